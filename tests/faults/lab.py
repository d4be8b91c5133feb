"""Nodes as processes in network namespaces of their own, on a bridge; and everything that can go wrong with them.

Needs root, iproute2, iptables and strace. Node ``i`` has the address ``10.77.0.(i+1)`` and a disk of its own (a tmpfs
that can be filled); the bridge, and so every client, is ``10.77.0.254``. Each node has a supervisor: a process that
ended is started again, and joins.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import requests

from coco.cli.sandbox import WELL_KNOWN_ACCOUNTS, make_genesis
from coco.cli.sandbox_folder import SandboxFiles

BRIDGE, NET = "coco-lab", "10.77.0"
CLIENTS = f"{NET}.254"
APPLICATION, ADMINISTRATION, PEERS = 9000, 9001, 9002
PROXY = 9100
CHAIN_ID = 2017
#: sstore(calldata[0:32], calldata[32:64])
REGISTERS, REGISTERS_CODE = "0x00000000000000000000000000000000000c0c00", "0x60203560003555 00".replace(" ", "")
_DISK_MB = 64
_CLONE_NEWNET = 0x40000000
_SO_ORIGINAL_DST, _SO_MARK, _MARK = 80, 36, 77
_RESTART_S = 0.5


def command(*arguments: str, check: bool = True) -> None:
    subprocess.run(arguments, check=check, capture_output=True)


def missing() -> list[str]:
    """What this machine lacks."""
    lacking = [tool for tool in ("ip", "iptables", "strace", "mount") if not _which(tool)]
    return [*lacking, *(["root"] if os.geteuid() else [])]


def _which(tool: str) -> bool:
    return any((Path(folder) / tool).exists() for folder in ("/usr/sbin", "/sbin", "/usr/bin", "/bin"))


class LabNode:
    """One address: its namespace, its disk, and the process that serves there now."""

    def __init__(self, lab: Lab, number: int) -> None:
        self.lab, self.number = lab, number
        self.name, self.space, self.address = f"n{number}", f"coco-n{number}", f"{NET}.{number + 1}"
        self.cable = f"coco-veth{number}"
        self.directory = lab.directory / self.name
        self.process: subprocess.Popen[str] | None = None
        self.said: dict[str, Any] = {}
        self.deaths: list[str] = []
        self._proxy: DelayingProxy | None = None

    # --- its place ---

    def make(self) -> None:
        command("ip", "netns", "add", self.space)
        command("ip", "link", "add", self.cable, "type", "veth", "peer", "name", "eth0", "netns", self.space)
        command("ip", "link", "set", self.cable, "master", BRIDGE, "up")
        self.run("ip", "address", "add", f"{self.address}/24", "dev", "eth0")
        self.run("ip", "link", "set", "eth0", "up")
        self.run("ip", "link", "set", "lo", "up")
        self.directory.mkdir(parents=True)
        command("mount", "-t", "tmpfs", "-o", f"size={_DISK_MB}m", "tmpfs", str(self.directory))

    def unmake(self) -> None:
        if self._proxy is not None:
            self._proxy.close()
        command("umount", "-l", str(self.directory), check=False)
        self.clear()

    def clear(self) -> None:
        """Remove its namespace, and its cable: that of a namespace in which anything still runs stays otherwise."""
        command("ip", "link", "del", self.cable, check=False)
        command("ip", "netns", "del", self.space, check=False)

    def run(self, *arguments: str) -> None:
        command("ip", "netns", "exec", self.space, *arguments)

    # --- its process ---

    def start(self, *, found: bool) -> None:
        lab = self.lab
        arguments = ["start"] if found else ["join", "--service", str(lab.service), "--operator", str(lab.operator)]
        if not found:
            arguments += [part for node in lab.nodes if node is not self for part in ("--peer", node.peers)]
        ports = ("--application-port", APPLICATION, "--administration-port", ADMINISTRATION, "--peer-port", PEERS)
        self.process = subprocess.Popen(
            ["ip", "netns", "exec", self.space, sys.executable, "-m", "coco.cli.main", "node", *arguments]
            + ["--dir", str(self.directory), "--genesis", str(lab.genesis), "--listen", self.address, "--json"]
            + [str(part) for part in ports],
            stdout=subprocess.PIPE,
            stderr=(lab.directory / f"{self.name}.log").open("ab"),
            text=True,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        self.said = json.loads(line) if line else {}
        if found:
            assert "error" not in self.said, self.said
            lab.service.write_bytes((self.directory / "service.pem").read_bytes())

    @property
    def peers(self) -> str:
        return f"{self.address}:{PEERS}"

    def supervise(self) -> None:
        """Start the node again whenever it has ended, until the lab closes; it joins."""
        while not self.lab.closing.is_set():
            process = self.process
            if process is None or process.poll() is not None:
                if process is not None and process.stdout is not None:
                    self.deaths.append((process.stdout.read() or json.dumps(self.said))[-500:])
                    process.stdout.close()
                self.process, self.said = None, {}
                with contextlib.suppress(OSError, ValueError):
                    self.start(found=False)
            self.lab.closing.wait(_RESTART_S)

    def ask(self, path: str) -> Any:
        url = f"https://{self.address}:{ADMINISTRATION}{path}"
        return requests.get(url, verify=str(self.lab.service), timeout=5).json()

    @property
    def pids(self) -> tuple[int, int]:
        """Of the host and of the enclave."""
        assert self.process is not None
        return self.process.pid, int(self.said["enclave_pid"])

    # --- what goes wrong ---

    def kill(self, which: int) -> None:
        """``kill -9`` of the host (0) or the enclave (1)."""
        with contextlib.suppress(ProcessLookupError, KeyError, AssertionError):
            os.kill(self.pids[which], signal.SIGKILL)

    @contextlib.contextmanager
    def paused(self, which: int) -> Iterator[None]:
        """SIGSTOP of the host (0) or the enclave (1)."""
        pid = self.pids[which]
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    @contextlib.contextmanager
    def cut_off(self, *, directions: tuple[str, ...] = ("INPUT", "OUTPUT")) -> Iterator[None]:
        """No packet of the other nodes comes in, or none goes out, or neither; clients still reach it."""
        others = [node.address for node in self.lab.nodes if node is not self]
        rules = [(chain, "-s" if chain == "INPUT" else "-d", other) for chain in directions for other in others]
        for chain, side, other in rules:
            self.run("iptables", "-A", chain, side, other, "-j", "DROP")
        try:
            yield
        finally:
            for chain, side, other in rules:
                self.run("iptables", "-D", chain, side, other, "-j", "DROP")

    @contextlib.contextmanager
    def slow_disk(self, delay_ms: int) -> Iterator[None]:
        """Every sync of the host's takes so much longer."""
        calls = "fsync,fdatasync"
        inject = f"inject={calls}:delay_exit={delay_ms * 1000}"
        tracer = subprocess.Popen(
            ["strace", "-f", "-q", "-p", str(self.pids[0]), "-o", "/dev/null", "-e", f"trace={calls}", "-e", inject],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            yield
        finally:
            tracer.terminate()
            tracer.wait()

    @contextlib.contextmanager
    def full_disk(self) -> Iterator[None]:
        """Not a byte is left where its ledger lies."""
        ballast = self.directory / "ballast"
        with contextlib.suppress(OSError), ballast.open("wb") as file:
            while True:
                file.write(bytes(1 << 20))
                file.flush()
        try:
            yield
        finally:
            ballast.unlink()

    @contextlib.contextmanager
    def slow_links(self, delay_ms: int) -> Iterator[None]:
        """What it sends to other nodes, and what they answer on the same connection, comes so much later."""
        if self._proxy is None:
            self._proxy = DelayingProxy(self)
        self._proxy.delay_s = delay_ms / 1000
        try:
            yield
        finally:
            self._proxy.delay_s = 0.0


class DelayingProxy:
    """Carries the connections that a node opens to other nodes; made when it is first needed."""

    def __init__(self, node: LabNode) -> None:
        self.delay_s = 0.0
        self._space = node.space
        self._listener = self._within(self._listen)
        match = ("-p", "tcp", "--dport", str(PEERS), "-m", "mark", "!", "--mark", str(_MARK))
        node.run("iptables", "-t", "nat", "-A", "OUTPUT", *match, "-j", "REDIRECT", "--to-ports", str(PROXY))
        # What is connected already goes on past the proxy: end it.
        node.run("ss", "-K", "dport", "=", str(PEERS))
        threading.Thread(target=self._accept, daemon=True).start()

    def _within(self, make: Callable[[], socket.socket]) -> socket.socket:
        """Call ``make`` in the node's namespace; sockets stay where they were made."""
        made: list[socket.socket | OSError] = []

        def work() -> None:
            with open(f"/var/run/netns/{self._space}") as space:
                assert ctypes.CDLL(None, use_errno=True).setns(space.fileno(), _CLONE_NEWNET) == 0
            try:
                made.append(make())
            except OSError as error:
                made.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        (one,) = made
        if isinstance(one, OSError):
            raise one
        return one

    @staticmethod
    def _listen() -> socket.socket:
        return socket.create_server(("127.0.0.1", PROXY), reuse_port=False)

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._carry, args=(near,), daemon=True).start()

    def _carry(self, near: socket.socket) -> None:
        _, port, a, b, c, d = struct.unpack("!HHBBBB8x", near.getsockopt(socket.SOL_IP, _SO_ORIGINAL_DST, 16))

        def connect() -> socket.socket:
            far = socket.socket()
            far.setsockopt(socket.SOL_SOCKET, _SO_MARK, _MARK)
            far.settimeout(5)
            far.connect((f"{a}.{b}.{c}.{d}", port))
            far.settimeout(None)
            return far

        try:
            far = self._within(connect)
        except OSError:
            near.close()
            return
        for source, sink in ((near, far), (far, near)):
            threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                time.sleep(self.delay_s)
                sink.sendall(data)
        for one in (source, sink):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


class Lab:
    """A network of nodes. Use it as a context; nothing of it is left afterwards."""

    def __init__(self, directory: Path, nodes: int = 3) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self.closing = threading.Event()
        files = SandboxFiles(directory)
        genesis = make_genesis(files, fees="free", fork="osaka", chain_id=CHAIN_ID)
        self.nodes = [LabNode(self, number) for number in range(nodes)]
        genesis["operators"][0]["addresses"] = [node.address for node in self.nodes]
        genesis["adapters"]["ethereum"]["alloc"][REGISTERS] = {"code": REGISTERS_CODE}
        genesis["settings"] = {"snapshot_interval_entries": 500}
        self.genesis, self.service = files.genesis, directory / "service.pem"
        self.genesis.write_text(json.dumps(genesis))
        self.operator = files.actor("operators", "operator", ".pem")
        participant = genesis["participants"][0]["user_data"]["name"]
        self.client = (
            str(files.actor("participants", participant, ".pem")),
            str(files.actor("participants", participant, ".key.pem")),
        )
        self.accounts = WELL_KNOWN_ACCOUNTS
        self._supervisors: list[threading.Thread] = []

    def __enter__(self) -> Lab:
        self._clear()
        command("ip", "link", "add", BRIDGE, "type", "bridge")
        command("ip", "address", "add", f"{CLIENTS}/24", "dev", BRIDGE)
        command("ip", "link", "set", BRIDGE, "up")
        try:
            for node in self.nodes:
                node.make()
            self.nodes[0].start(found=True)
            for node in self.nodes:
                self._supervisors.append(threading.Thread(target=node.supervise, daemon=True))
                self._supervisors[-1].start()
            self.settle()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        for node in self.nodes:
            if node.process is not None and node.process.poll() is None:
                node.process.send_signal(signal.SIGTERM)
        for thread in self._supervisors:
            thread.join(timeout=30)
        for node in self.nodes:
            if node.process is not None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    node.process.wait(timeout=30)
                if node.process.poll() is None:
                    node.process.kill()

    def keep_ledgers(self) -> list[Path]:
        """Copy every node's ledger from its disk, once the nodes have stopped."""
        kept = []
        for node in self.nodes:
            folder = self.directory / f"{node.name}-ledger"
            folder.mkdir()
            for file in node.directory.glob("ledger.db*"):
                (folder / file.name).write_bytes(file.read_bytes())
            kept.append(folder / "ledger.db")
        return kept

    def clear(self) -> None:
        """Remove namespaces, bridge and disks."""
        for node in self.nodes:
            node.unmake()
        self._clear()

    def _clear(self) -> None:
        for node in self.nodes:
            node.clear()
        command("ip", "link", "del", BRIDGE, check=False)

    def settle(self, patience_s: float = 90) -> LabNode:
        """Wait until every node votes, as every node says, and nobody else does; return the primary."""
        deadline, seen = time.monotonic() + patience_s, None
        while time.monotonic() < deadline:
            try:
                ids = {node.ask("/node/info")["node_id"]: node for node in self.nodes}
                seen = [node.ask("/node/network")["nodes"] for node in self.nodes]
                voting = [{name for name, row in rows.items() if row["votes"]} for rows in seen]
                leading = [{name for name, row in rows.items() if row["primary"]} for rows in seen]
                if all(voters == set(ids) for voters in voting) and all(leading[0] == one for one in leading):
                    (primary,) = leading[0]
                    return ids[primary]
            except (requests.RequestException, KeyError, ValueError):
                pass
            time.sleep(0.2)
        raise AssertionError(f"the network does not settle: {seen}, {[node.deaths for node in self.nodes]}")
