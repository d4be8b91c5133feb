"""The systems that the benchmark runs: Coco as its users run it, and its peers."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from load import Target

HERE = Path(__file__).parent
CHAIN_ID = 1337
#: A private key for the benchmark only.
FUNDER_KEY = "0xac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80"
FUNDER = "0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def processes(root: int) -> list[int]:
    """A process and its descendants."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            with contextlib.suppress(OSError):
                fields = (path / "stat").read_text().rpartition(")")[2].split()
                children.setdefault(int(fields[1]), []).append(int(path.name))
    found, queue = [], [root]
    while queue:
        pid = queue.pop()
        found.append(pid)
        queue += children.get(pid, [])
    return found


def cpu_seconds(root: int) -> float:
    total = 0.0
    for pid in processes(root):
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def rss_mb(root: int) -> float:
    total = 0
    for pid in processes(root):
        with contextlib.suppress(OSError):
            total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return total / 1e6


def disk_bytes(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


Kind = TypeVar("Kind", bound="System")


class System:
    """A running system."""

    name = ""
    version = ""
    settings = ""
    #: How it comes to this machine.
    install = ""

    @classmethod
    def program(cls) -> str:
        """What is run; nothing where it is not installed."""
        return sys.executable

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.process: subprocess.Popen[Any] | None = None
        self.target = Target("127.0.0.1", 0)

    def start(self) -> None:
        """Have it serve; ends when it does."""
        raise NotImplementedError

    def stop(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def _wait(self) -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex((self.target.host, self.target.port)) == 0:
                    return
            time.sleep(0.1)
        raise RuntimeError(f"{self.name} did not start")


def there(kinds: Sequence[type[System]]) -> list[type[System]]:
    """Those that can be run here; which ones are missing is said, and the others go on."""
    for kind in kinds:
        if not kind.program():
            print(f"{kind.name} is missing and left out: {kind.install}", flush=True)
    return [kind for kind in kinds if kind.program()]


class Coco(System):
    name = "coco"
    nodes = 1
    #: Interpreter of the environment that holds the build to run.
    python = sys.executable
    settings = (
        "one node, TLS 1.3 with client certificate, sealed entries, signed ledger, fsync before commit, lock-down on"
    )

    def start(self) -> None:
        command = [self.python, "-m", "coco.cli.main", "sandbox", "--json", "--port", "0"]
        command += ["--nodes", str(self.nodes), "--dir", str(self.directory), "--chain-id", str(CHAIN_ID)]
        errors = None if self.nodes == 1 else subprocess.PIPE
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        assert self.process.stdout is not None
        self.summary = summary = json.loads(self.process.stdout.readline())
        context = ssl.create_default_context(cafile=summary["service_certificate"])
        context.load_cert_chain(summary["participant_certificate"], summary["participant_key"])
        self.target = Target("localhost", int(summary["application_url"].rpartition(":")[2]), context)
        shown = subprocess.run(
            [self.python, "-m", "coco.cli.main", "version", "--json"],
            capture_output=True,
            text=True,
            check=True,
        )
        self.version = json.loads(shown.stdout)["coco"]


class Anvil(System):
    name = "anvil"
    settings = "--block-time 1 --prune-history, memory only, no TLS"
    install = "cd bench/peers && npm ci"

    @classmethod
    def program(cls) -> str:
        return shutil.which(str(HERE / "peers/node_modules/.bin/anvil")) or ""

    def start(self) -> None:
        self.target = Target("127.0.0.1", free_port())
        binary = self.program()
        command = [binary, "--port", str(self.target.port), "--chain-id", str(CHAIN_ID), "--block-time", "1"]
        command += ["--silent", "--prune-history", "--gas-limit", "500000000", "--hardfork", "osaka"]
        self.process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=self.directory
        )
        self._wait()
        shown = subprocess.run([binary, "--version"], capture_output=True, text=True)
        self.version = shown.stdout.splitlines()[0]


class Geth(System):
    name = "geth"
    settings = "--dev --dev.period 1 --dev.gaslimit 500000000, on disk, no TLS"
    install = "make bench/peers/bin/geth, which needs Go"

    @classmethod
    def program(cls) -> str:
        return shutil.which("geth", path=f"{HERE / 'peers/bin'}:{os.environ['PATH']}") or ""

    def start(self) -> None:
        self.target = Target("127.0.0.1", free_port())
        binary = self.program()
        command = [binary, "--dev", "--dev.period", "1", "--dev.gaslimit", "500000000", "--http"]
        command += [
            "--http.port",
            str(self.target.port),
            "--http.api",
            "eth,net,web3",
            "--datadir",
            str(self.directory / "data"),
        ]
        command += ["--port", "0", "--authrpc.port", str(free_port()), "--ipcdisable", "--verbosity", "1"]
        command += [
            "--txpool.globalslots",
            "60000",
            "--txpool.accountslots",
            "2000",
            "--txpool.accountqueue",
            "2000",
        ]
        command += ["--txpool.globalqueue", "60000", "--rpc.batch-request-limit", "2000"]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._wait()
        shown = subprocess.run([binary, "version"], capture_output=True, text=True)
        self.version = next(line for line in shown.stdout.splitlines() if line.startswith("Version:"))


class Etcd(System):
    """Three etcd processes: the same fsync before the same majority, and nothing else of what Coco does."""

    name = "etcd"
    settings = (
        "three processes, fsync before commit; no TLS, no encryption, no execution, no signed ledger; JSON gateway"
    )
    install = "apt-get install etcd-server"

    @classmethod
    def program(cls) -> str:
        return shutil.which("etcd") or ""

    def start(self) -> None:
        binary = self.program()
        shown = subprocess.run([binary, "--version"], capture_output=True, text=True)
        self.version = shown.stdout.splitlines()[0]
        clients, peers = [free_port() for _ in range(3)], [free_port() for _ in range(3)]
        cluster = ",".join(f"e{number}=http://127.0.0.1:{port}" for number, port in enumerate(peers))
        self._members = []
        for number in range(3):
            url, peer = f"http://127.0.0.1:{clients[number]}", f"http://127.0.0.1:{peers[number]}"
            command = [binary, "--name", f"e{number}", "--data-dir", str(self.directory / f"e{number}")]
            command += ["--listen-client-urls", url, "--advertise-client-urls", url, "--initial-cluster", cluster]
            command += ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]
            member = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            self._members.append(member)
        self.process = self._members[0]
        for port in clients:
            self.target = Target("127.0.0.1", port)
            self._wait()
        time.sleep(2)  # until somebody leads

    def stop(self) -> None:
        for member in self._members:
            member.send_signal(signal.SIGINT)
        for member in self._members:
            member.wait(timeout=30)


@contextlib.contextmanager
def running(kind: type[Kind]) -> Iterator[Kind]:
    with tempfile.TemporaryDirectory(prefix=f"bench-{kind.name}-") as directory:
        system = kind(Path(directory))
        try:
            system.start()
            yield system
        finally:
            system.stop()
