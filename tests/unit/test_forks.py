"""What a server of forks makes is what would have been started: measured, told, limited and ended the same."""

from __future__ import annotations

import base64
import json
import os
import resource
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

import forks
from network import TestNetwork, run, running

COCO = [sys.executable, "-m", "coco.cli.main"]


def both(make: Any) -> list[tuple[bool, Any]]:
    """What comes of the same thing, forked and started."""
    made = []
    for context in (nullcontext(), forks.started()):
        with context:
            made.append(make())
    return made


def is_fork(process: Any) -> bool:
    return process._server is not None


def test_an_enclave_has_the_measurement_of_one_that_was_started(tmp_path):
    async def story() -> tuple[bool, str]:
        network = TestNetwork(tmp_path / str(time.monotonic_ns()))
        async with running(network):
            client = network.client(listener="administration")
            said = (await client.request("GET", "/node/attestation")).json()
            measured = json.loads(base64.b64decode(said["evidence"]))["measurement"]
            return is_fork(network.node._enclave.process), measured

    (forked, measured), (not_forked, again) = both(lambda: run(story()))
    assert (forked, not_forked) == (True, False)
    assert measured == again


@pytest.mark.parametrize(
    "arguments", [["version", "--json"], ["ledger", "show", "--ledger", "none"], ["nonsense"], ["member", "--help"]]
)
def test_a_command_says_the_same_and_ends_with_the_same_code(tmp_path, arguments):
    def make() -> tuple[bool, Any]:
        process = subprocess.Popen(
            [*COCO, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path
        )
        return is_fork(process), (process.communicate(timeout=60), process.returncode)

    (forked, said), (not_forked, again) = both(make)
    assert (forked, not_forked) == (True, False)
    assert said == again


def waiting(tmp_path: Path, **options: Any) -> subprocess.Popen[str]:
    """A command that serves until it is told to end: what it says first is on its way."""
    arguments = ["sandbox", "--json", "--port", "0", "--nodes", "1", "--dir", "s"]
    process = subprocess.Popen(
        [*COCO, *arguments], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=tmp_path, **options
    )
    assert is_fork(process)
    return process


def test_a_fork_has_the_limits_descriptors_folder_and_environment_that_it_would_have(tmp_path, monkeypatch):
    monkeypatch.setenv("COCO_OF_THIS_TEST", "here")
    soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))
    try:
        process = waiting(tmp_path, start_new_session=True)
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, (soft, hard))
    assert process.stdout is not None
    enclave = json.loads(process.stdout.readline())["enclave_pid"]
    of = Path(f"/proc/{process.pid}")
    assert os.readlink(of / "cwd") == str(tmp_path)
    assert os.getsid(process.pid) == process.pid and os.getsid(enclave) == enclave
    assert resource.prlimit(process.pid, resource.RLIMIT_CORE) == (0, hard)
    assert os.readlink(of / "fd" / "0") == os.readlink("/proc/self/fd/0")
    assert os.readlink(of / "fd" / "2") == "/dev/null"
    folder = os.environ[forks.FOLDER]
    assert not [link for link in (of / "fd").iterdir() if folder in os.readlink(link)], "a descriptor of the server"
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 0
    assert not Path(f"/proc/{enclave}").exists()


def test_an_enclave_dies_with_its_host_and_who_waits_hears_which_signal_ended_it(tmp_path):
    process = waiting(tmp_path)
    assert process.stdout is not None
    enclave = json.loads(process.stdout.readline())["enclave_pid"]
    os.kill(enclave, signal.SIGSTOP)  # it would not see by itself that its channel has closed
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=0.01)
    assert process.poll() is None
    process.kill()
    process.communicate(timeout=10)
    assert process.returncode == -signal.SIGKILL
    until = time.monotonic() + 10
    while Path(f"/proc/{enclave}").exists() and time.monotonic() < until:
        time.sleep(0.01)
    assert not Path(f"/proc/{enclave}").exists()


def test_what_reads_its_environment_before_its_first_line_is_started(tmp_path):
    for environment in ({"PYTHONPATH": str(tmp_path)}, {"COLUMNS": "40"}):
        process = subprocess.Popen([*COCO, "version"], env={**os.environ, **environment}, stdout=subprocess.DEVNULL)
        assert process.wait(timeout=60) == 0
        assert not is_fork(process)
