"""Fixtures: real sandboxes as processes, and the checks that every ledger they write must pass."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import forks
import order
from forks import CCF_PYTHON
from forks import ROOT as ROOT
from operators import Operator

_FORKS: pytest.StashKey[Any] = pytest.StashKey()


def pytest_configure(config: pytest.Config) -> None:
    forks.install()
    if not hasattr(config, "workerinput") and "COCO_TESTS_STARTED" not in os.environ:
        config.stash[_FORKS] = forks.begin()


@pytest.hookimpl(tryfirst=True)  # a worker takes the groups' names right after
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items[:] = order.arrange(items)


def pytest_unconfigure(config: pytest.Config) -> None:
    if _FORKS in config.stash:
        config.stash[_FORKS].cleanup()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """A test that is marked so has every process started, also those of its fixtures."""
    with forks.started() if item.get_closest_marker("started") else contextlib.nullcontext():
        return (yield)


@pytest.fixture(autouse=True)
def usual_recursion() -> Iterator[None]:
    """As deep as the interpreter allows by itself: a library of the tests raises that until the stack overflows."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(1000)
    yield
    sys.setrecursionlimit(before)


@dataclass
class SandboxProcess:
    """A ``coco sandbox`` as a user starts it."""

    directory: Path
    arguments: list[str] = field(default_factory=list)
    process: subprocess.Popen[str] | None = None
    summary: dict[str, Any] = field(default_factory=dict)

    def start(self, *extra: str, timeout_s: float = 60) -> dict[str, Any]:
        command = [sys.executable, "-m", "coco.cli.main", "sandbox", "--json", "--port", "0", "--nodes", "1"]
        command += ["--dir", str(self.directory), *self.arguments, *extra]
        with self.log.open("ab") as log:  # not a pipe, which would fill up and stop the host
            self.process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.process.wait(timeout=timeout_s)
            raise AssertionError(f"the sandbox did not start: {self.log.read_text()[-5000:]}")
        self.summary = json.loads(line)
        if "error" in self.summary:
            self.process.wait(timeout=timeout_s)
            self._close()
        return self.summary

    @property
    def log(self) -> Path:
        """What the sandbox says on its standard error."""
        return self.directory.with_name(f"{self.directory.name}.log")

    @property
    def url(self) -> str:
        return str(self.summary["ethereum_url"])

    @property
    def ledger(self) -> Path:
        return self.directory / "n0" / "ledger.db"

    def stop(self) -> None:
        try:
            if self.process is not None and self.process.poll() is None:
                self.process.send_signal(signal.SIGINT)
                assert self.process.wait(timeout=30) == 0
                assert "Traceback" not in (said := self.log.read_text())
                assert "enclave.late_import" not in said
        finally:
            self._close()

    def kill(self, which: str) -> None:
        """``kill -9`` of the host or of the enclave, and wait until both are gone."""
        assert self.process is not None
        os.kill(self.summary[f"{which}_pid"], signal.SIGKILL)
        self.process.wait(timeout=30)
        deadline = time.monotonic() + 10
        while Path(f"/proc/{self.summary['enclave_pid']}").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not Path(f"/proc/{self.summary['enclave_pid']}").exists(), "the enclave outlived its host"
        self._close()

    def _close(self) -> None:
        if self.process is not None:
            for stream in (self.process.stdout, self.process.stderr):
                if stream is not None:
                    stream.close()
            self.process = None


@pytest.fixture
def sandboxes(tmp_path: Path) -> Iterator[Callable[..., SandboxProcess]]:
    """Make sandboxes; at the end each is stopped and its ledger is verified by the independent reader."""
    made: list[SandboxProcess] = []

    def make(name: str = "sandbox", *arguments: str) -> SandboxProcess:
        sandbox = SandboxProcess(tmp_path / name, list(arguments))
        made.append(sandbox)
        return sandbox

    yield make
    for sandbox in made:
        sandbox.stop()
        if (sandbox.directory / "damaged").exists():
            continue
        verify_all(sandbox.directory, tmp_path / f"{sandbox.directory.name}-chunks")


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SandboxProcess]:
    """One running sandbox for the tests of a module."""
    directory = tmp_path_factory.mktemp("shared")
    running = SandboxProcess(directory / "sandbox")
    running.start()
    yield running
    running.stop()
    verify_with_ccf(running.ledger, directory / "chunks")


@pytest.fixture
def operator(tmp_path: Path) -> Iterator[Operator]:
    """An operator with nodes as processes; at the end they stop and every ledger is verified."""
    made = Operator(tmp_path)
    yield made
    made.stop()
    verify_all(tmp_path, tmp_path / "chunks")


def has_entries(ledger: Path) -> bool:
    """Whether a node wrote anything."""
    with sqlite3.connect(ledger) as found:
        return bool(found.execute("SELECT count(*) FROM entries").fetchone()[0])


@pytest.fixture
def verified(tmp_path: Path) -> Iterator[None]:
    """At the end every ledger below ``tmp_path/network`` is verified and its governance audited."""
    yield
    verify_all(tmp_path / "network", tmp_path / "chunks")


def verify_all(directory: Path, chunks: Path) -> None:
    """Verify the ledger of every node of a network that wrote anything: one that its network refused has not."""
    ledgers = [ledger for ledger in sorted(directory.glob("n*/ledger.db")) if has_entries(ledger)]
    chunks.mkdir()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda ledger: verify_with_ccf(ledger, chunks / ledger.parent.name), ledgers))


def audit(ledger: Path, *options: str) -> dict[str, Any]:
    """What ``coco ledger audit`` finds in a ledger."""
    command = [sys.executable, "-m", "coco.cli.main", "ledger", "audit", "--ledger", str(ledger), "--json", *options]
    done = subprocess.run(command, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def verify_with_ccf(ledger: Path, chunks: Path, *options: str) -> str:
    """Export ``ledger`` and have the independent ``ccf`` package verify it; our own auditor judges its governance."""
    audited = audit(ledger, *options)
    assert audited.get("violations") == [], audited
    assert CCF_PYTHON.exists(), "run `make build`: the independent reader has its own environment"
    coco = [sys.executable, "-m", "coco.cli.main"]
    subprocess.run([*coco, "ledger", "export", str(chunks), "--ledger", str(ledger)], check=True, capture_output=True)
    checked = subprocess.run(
        [str(CCF_PYTHON), str(Path(__file__).parent / "verify_with_ccf.py"), str(chunks)],
        capture_output=True,
        text=True,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    return checked.stdout
