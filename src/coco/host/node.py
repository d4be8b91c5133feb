"""The host process of one validating node: it launches the enclave, carries its bytes and keeps its entries.

States: launching -> serving -> ended. If the enclave dies, the host ends and says why; if the host dies, the enclave
sees its control channel close and ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import sqlite3
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from coco import limits
from coco._native import Relay
from coco.channel import messages
from coco.channel.framing import FrameReader, FrameWriter
from coco.errors import CocoError, ConfigurationError, HostError
from coco.host.externals import External, Externals
from coco.host.folder import FolderLock
from coco.host.hints import HINTS
from coco.host.launcher import VIRTUAL, Enclave, launch, place, reach, take_turns
from coco.host.metrics import MetricsServer, sizes
from coco.host.persistence import Aside, LedgerFile, unreadable
from coco.host.ports import cannot_listen

TICK_SECONDS = 1.0
STOP_SECONDS, STOP_STARTING_SECONDS = 10.0, 0.2
DIAL_SECONDS = 3.0
_RELAY_NUMBERS = ("accepted", "refused", "open", "bytes_in", "bytes_out")

#: How often it is looked for newer endorsements.
ENDORSE_SECONDS = 60.0


@dataclass
class NodeOptions:
    """What an operator chooses for one node."""

    ledger: Path
    application: tuple[str, int] = ("127.0.0.1", 0)
    administration: tuple[str, int] = ("127.0.0.1", 0)
    peers: tuple[str, int] = ("127.0.0.1", 0)
    #: Nodes of a network to join, ``host:port`` of their peer listeners; empty to create or recover one.
    join: list[str] = field(default_factory=list)
    #: Name or address under which other nodes reach this one; empty: where it listens for its peers.
    advertise: str = ""
    #: The joiner's owner: signs for node id, measurement, address and host names (COSE Sign1); empty leaves it to
    #: governance.
    owner: Callable[[str, str, str, Sequence[str]], bytes] = lambda node_id, measurement, address, host_names: b""
    #: SHA-256 of the rules that a joiner's owner has approved; empty: any.
    expected_constitution: bytes = b""
    genesis: dict[str, Any] | None = None
    expected_service: bytes = b""
    expected_position: str = ""
    host_names: list[str] = field(default_factory=lambda: ["localhost", "127.0.0.1"])
    #: External processors, by name: ``unix:PATH`` or ``tcp:HOST:PORT``.
    externals: dict[str, External] = field(default_factory=dict)
    #: Factories of the adapters in the enclave's bundle, ``module:attribute`` by name.
    adapters: dict[str, str] = field(
        default_factory=lambda: {"ethereum": "coco.enclave.adapters.ethereum.adapter:adapter"}
    )
    extra_path: list[str] = field(default_factory=list)
    #: Where an enclave listens that somebody else starts (``tcp:127.0.0.1:PORT``, ``vsock:CID:PORT``); empty: this
    #: host starts one itself.
    enclave: str = ""
    #: Where the enclave runs, by the name of its evidence; whoever starts it says so.
    platform: str = VIRTUAL
    #: What vendors say of the platform that gave some evidence: a JSON object of texts, or nothing. It is asked again
    #: now and then, and may raise OSError or HostError.
    endorse: Callable[[str, bytes], bytes] = lambda platform, evidence: b""
    endorse_seconds: float = ENDORSE_SECONDS
    connections_max: int = limits.CONNECTIONS_MAX
    #: Where ``GET /metrics`` is served; None: nowhere.
    metrics: tuple[str, int] | None = None
    #: The clock that the enclave is told, in milliseconds since the Unix epoch.
    clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000
    #: The clock is right, whatever the end of the ledger says: it slept long, or a wrong clock was believed before.
    accept_clock: bool = False
    #: Hears how far the enclave has read the ledger: the entry, and the last one.
    replaying: Callable[[int, int], None] = lambda entry, last: None


class Node:
    """A running node, seen from the host."""

    def __init__(self, options: NodeOptions, log: Callable[[dict[str, Any]], None] | None = None) -> None:
        self.options = options
        self.ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.ready: asyncio.Future[messages.Ready] = asyncio.get_running_loop().create_future()
        self.relays: dict[str, Relay] = {}
        self._log = log or (lambda line: print(json.dumps(line), file=sys.stderr, flush=True))
        self._loop = asyncio.get_running_loop()
        self._frames = FrameWriter()
        self._enclave: Enclave | None = None
        self._transport: asyncio.Transport | None = None
        self._ledger: LedgerFile | None = None
        self._lock: FolderLock | None = None
        #: Why the host itself could not go on.
        self._failure: HostError | None = None
        #: Hears of the service whenever the enclave says how it is: once it serves, and once it is open.
        self.announced: Callable[[messages.Ready], None] = lambda ready: None
        self._tasks: set[asyncio.Task[None]] = set()
        self._externals = Externals(options.externals, self.send)
        self._exit: messages.Exit | None = None
        self._numbers: dict[str, int] = {}
        self.metrics: MetricsServer | None = None
        self._address = ""
        self._stopping = False

    @property
    def enclave_pid(self) -> int:
        """Process id of the enclave; 0 if somebody else has started it."""
        assert self._enclave is not None, "launched before anything is asked of it"
        return self._enclave.process.pid if self._enclave.process is not None else 0

    async def start(self) -> messages.Ready:
        """Launch the enclave, start it on the ledger and wait until it serves.

        Raises:
            HostError: the enclave ended before it was ready (code ``host.enclave_ended``), or a disk or port failed;
                another process uses the folder (``host.folder_in_use``).
            ConfigurationError: there is nothing to recover (``recovery.no_ledger``).
        """
        options = self.options
        take_turns()
        if options.expected_service and not options.join and not options.ledger.exists():
            raise _nothing_to_recover(options.ledger)
        self._lock = FolderLock(options.ledger.parent)
        self._ledger = LedgerFile(
            options.ledger,
            appended=lambda seqno: self._from_thread(self.send, messages.Appended(seqno)),
            failed=lambda error: self._from_thread(self._disk_failed, error),
        )
        if options.expected_service and not options.join and self._ledger.last_seqno == 0:
            raise _nothing_to_recover(options.ledger)
        if options.enclave:
            self._enclave = await reach(options.enclave)
        else:
            self._enclave = launch(
                adapters=options.adapters,
                platform=options.platform,
                extra_path=options.extra_path,
                nested_log=sys.stderr.fileno() if _has_descriptor() else None,
            )
        self._transport, _ = await self._loop.create_connection(
            lambda: _Control(self), sock=_non_blocking(self._enclave.control)
        )
        last = self._ledger.last_seqno
        create = options.genesis is not None and last == 0 and not options.join
        self._listen("peers", options.peers)
        self._address = f"{options.advertise or options.peers[0]}:{self.relays['peers'].port}"
        self.send(
            messages.Start(
                mode="join" if options.join else "create" if create else "recover",
                last_seqno=last,
                time_ms=options.clock_ms(),
                genesis=json.dumps(options.genesis).encode() if create else b"",
                expected_service=options.expected_service,
                expected_position=options.expected_position,
                host_names=options.host_names,
                peer_address=self._address,
                peers=options.join,
                expected_constitution=options.expected_constitution,
                accept_clock=options.accept_clock,
            )
        )
        self._spawn(self._tick())
        first: set[asyncio.Future[Any]] = {self.ready, self.ended}
        await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
        if not self.ready.done():
            if self._failure is not None:
                raise self._failure
            code = self._exit.code if self._exit else "host.enclave_ended"
            raise HostError(self.ended.result(), code=code, hint=HINTS.get(code))
        self._listen("application", options.application)
        self._listen("administration", options.administration)
        if options.metrics is not None:
            self.metrics = MetricsServer(self.numbers)
            try:
                await self.metrics.start(*options.metrics)
            except OSError as error:
                raise cannot_listen(options.metrics, error) from error
        return self.ready.result()

    @property
    def address(self) -> str:
        """Where other nodes reach this one, ``host:port``."""
        return self._address

    @property
    def failure(self) -> HostError | None:
        """Why the host itself could not go on, if that is why the node ended."""
        return self._failure

    @property
    def end_code(self) -> str:
        """Why the enclave ended by itself; empty while it has not said so."""
        return self._exit.code if self._exit is not None else ""

    def numbers(self) -> dict[str, dict[str, int]]:
        """What monitoring may see: each number's values by listener ("" for the node itself)."""
        found = {name: {"": value} for name, value in self._numbers.items()}
        for listener, relay in self.relays.items():
            for name, value in zip(_RELAY_NUMBERS, relay.counters(), strict=True):
                found.setdefault(f"relay.{name}", {})[listener] = value
        found |= {name: {"": value} for name, value in sizes(self.options.ledger).items()}
        return found

    def _listen(self, name: str, address: tuple[str, int]) -> None:
        assert self._enclave is not None, "launched before anything is asked of it"
        # Nodes tell each other much that is short and gets no answer; the enclave knows which of its peers are nodes.
        crumbs = None if name == "peers" else limits.CRUMBS
        try:
            relay = Relay(*address, self._enclave.listeners[name], self.options.connections_max, crumbs)
        except HostError as error:
            raise cannot_listen(address, error) if error.code == "host.cannot_listen" else error from error
        self.relays[name] = relay

    async def _dial(self, dial: int, address: str) -> None:
        """Connect to another node, and the enclave to it."""
        assert self._enclave is not None, "launched before anything is asked of it"
        host, _, port = address.rpartition(":")  # a name is resolved here: who answers is known by its key
        sockets: list[socket.socket] = []
        try:
            async with asyncio.timeout(DIAL_SECONDS):
                for family, target in (
                    (socket.AF_INET, (host, int(port))),
                    place(self._enclave.listeners["dialled"]),
                ):
                    sockets.append(_non_blocking(socket.socket(family)))
                    await self._loop.sock_connect(sockets[-1], target)
                await self._loop.sock_sendall(sockets[-1], dial.to_bytes(8, "big"))
            self.relays["peers"].carry(*(one.detach() for one in sockets))
        except (OSError, ValueError, TimeoutError, CocoError):
            for one in sockets:
                one.close()
            self.send(messages.DialFailed(dial))

    async def stop(self) -> None:
        """Ask the enclave to end, wait for it, close everything."""
        for name, relay in self.relays.items():
            if name != "peers":  # over which leadership is handed over
                relay.stop()
        if self.metrics is not None:
            self.metrics.stop()
        self._stopping = True
        if self._enclave is not None and not self.ended.done():
            self.send(messages.Stop())
            # One that is not ready has acknowledged nothing: it may be anywhere in its start, and is not waited for.
            with contextlib.suppress(asyncio.TimeoutError):
                seconds = STOP_SECONDS if self.ready.done() else STOP_STARTING_SECONDS
                await asyncio.wait_for(asyncio.shield(self.ended), seconds)
        self._externals.stop()
        for task in self._tasks:
            task.cancel()
        if "peers" in self.relays:
            self.relays["peers"].stop()
        if self._transport is not None:
            self._transport.close()
        if self._enclave is not None:
            await self._loop.run_in_executor(None, self._enclave.close)
        if self._ledger is not None:
            if not self.ready.done():  # a start that failed has set aside what it has set aside
                self._settle_aside()
            await self._loop.run_in_executor(None, self._ledger.close)
        if self._lock is not None:
            self._lock.release()

    def send(self, message: messages.ToEnclave) -> None:
        """Send one message to the enclave."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(self._frames.frame(messages.encode(message)))

    def receive(self, message: messages.ToHost) -> None:
        """Serve one message of the enclave."""
        assert self._ledger is not None, "opened before the enclave is launched"
        match message:
            case messages.Append(first, entries):
                self._ledger.append(first, entries)
            case messages.Read(request, first, last):
                self.options.replaying(last, self._ledger.last_seqno)
                self._ledger.read(
                    first,
                    last,
                    lambda entries: self._from_thread(self.send, messages.Entries(request, entries)),
                )
            case messages.Truncate(seqno):
                done = lambda: self._from_thread(self.send, messages.Truncated(seqno))  # noqa: E731
                if self.ready.done():
                    self._ledger.truncate(seqno, done)
                else:
                    self._ledger.set_aside(seqno, "join" if self.options.join else "recovery", done)
                    if not self.options.join:  # a joiner may be given the same entries again
                        self._settle_aside()
            case messages.WriteIndex(run, first, blocks):
                self._ledger.write_index(run, first, blocks)
            case messages.ReadIndex(request, run, block):
                self._ledger.read_index(
                    run, block, lambda sealed: self._from_thread(self.send, messages.IndexBlock(request, sealed))
                )
            case messages.DropIndex(run):
                self._ledger.drop_index(run)
            case messages.WriteSnapshot(request, seqno, number, part):
                written = messages.SnapshotWritten(request)
                self._ledger.write_snapshot(seqno, number, part, lambda: self._from_thread(self.send, written))
            case messages.ReadSnapshot(request, seqno, number):
                self._ledger.read_snapshot(
                    seqno, number, lambda part: self._from_thread(self.send, messages.SnapshotPart(request, part))
                )
            case messages.KeepSnapshot(seqno):
                self._ledger.keep_snapshot(seqno)
            case messages.Dial(dial, address):
                self._spawn(self._dial(dial, address))
            case messages.Identity(node_id, measurement):
                statement = self.options.owner(node_id, measurement, self._address, self.options.host_names)
                self.send(messages.OwnerStatement(statement))
            case messages.Endorse(request, platform, evidence):
                self._spawn(self._endorse(request, platform, evidence))
            case messages.ExternalOpen(session, name):
                self._externals.open(session, name)
            case messages.ExternalSend(session, body):
                self._externals.send(session, body)
            case messages.ExternalClose(session):
                self._externals.close(session)
            case messages.Metrics(numbers):
                self._numbers = numbers
            case messages.Log(code, numbers, ids):
                hint = HINTS.get(code)
                self._log({"event": code, **numbers, **ids, **({"hint": hint} if hint else {})})
            case messages.Ready():
                if not self.ready.done():
                    self._settle_aside()
                    self.ready.set_result(message)
                self.announced(message)
            case messages.Exit(code, numbers, ids):
                self._exit = message
                self._log({"event": "enclave.exit", "code": code, **numbers, **ids})
                if self._transport is not None:
                    self._transport.close()  # it was heard: the enclave need not wait

    def lost(self) -> None:
        """The control channel closed: the enclave is gone or going."""
        reason = "stopped" if self._stopping else "the enclave ended without a word"
        if self._exit is not None:
            details = " ".join(f"{k}={v}" for k, v in {**self._exit.numbers, **self._exit.ids}.items())
            reason = f"the enclave ended: {self._exit.code} {details}".rstrip()
        self._end(reason)

    def _settle_aside(self) -> None:
        assert self._ledger is not None, "asked for by an enclave that was started on it"
        self._ledger.settle_aside(lambda left: self._from_thread(self._say_aside, left))

    def _say_aside(self, left: Aside | None) -> None:
        if left is None:
            return
        found = {"batch": left.batch, "first": left.first, "last": left.last, "entries": left.entries}
        hint = f"they are kept: coco ledger aside --ledger {self.options.ledger}"
        self._log({"event": "ledger.set_aside", **found, "signed": left.signed, "reason": left.reason, "hint": hint})

    def _disk_failed(self, error: Exception) -> None:
        if isinstance(error, sqlite3.Error):
            self._failure = unreadable(self.options.ledger, error)
        elif isinstance(error, HostError):
            self._failure = error
        self._end(f"the ledger file failed: {self._failure or error}")

    def _end(self, reason: str) -> None:
        if not self.ended.done():
            self.ended.set_result(reason)

    def _from_thread(self, call: Callable[..., None], *arguments: Any) -> None:
        def guarded() -> None:
            try:
                call(*arguments)
            except Exception as error:  # noqa: BLE001 - an enclave that waits for an answer for ever is worse
                self._end(f"the host failed: {error!r}")

        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to tell
            self._loop.call_soon_threadsafe(guarded)

    def _spawn(self, work: Any) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            self.send(messages.Tick(self.options.clock_ms()))
            if self._ledger is not None:
                self._ledger.check()

    async def _endorse(self, request: int, platform: str, evidence: bytes) -> None:
        """Answer, and offer whatever is newer from then on."""
        given: bytes | None = None
        while True:
            try:
                found = await self._loop.run_in_executor(None, self.options.endorse, platform, evidence)
            except (OSError, CocoError) as error:
                self._log({"event": "host.no_endorsements", "reason": str(error)})
                found = given or b""
            if found != given:
                self.send(messages.Endorsed(request if given is None else 0, found))
                given = found
            await asyncio.sleep(self.options.endorse_seconds)


def _nothing_to_recover(ledger: Path) -> ConfigurationError:
    return ConfigurationError(
        f"there is no ledger at {ledger} to recover the service from",
        code="recovery.no_ledger",
        hint="--service means to recover that one: put its ledger there; to found another one, leave --service away",
    )


class _Control(asyncio.Protocol):
    def __init__(self, node: Node) -> None:
        self._node = node
        self._reader = FrameReader()

    def data_received(self, data: bytes) -> None:
        try:
            for frame in self._reader.feed(data):
                self._node.receive(messages.decode_to_host(frame))
        except CocoError as error:
            self._node._end(f"the enclave sent a bad message: {error}")

    def connection_lost(self, exc: Exception | None) -> None:
        self._node.lost()


def _non_blocking(sock: Any) -> Any:
    sock.setblocking(False)
    return sock


def _has_descriptor() -> bool:
    try:
        sys.stderr.fileno()
    except (AttributeError, OSError, ValueError):
        return False
    return True


def stop_signal() -> asyncio.Future[str]:
    """Take over SIGINT and SIGTERM of the running loop; the future gets the name of the first one.

    Called before a node is started: a signal that arrives a moment after *ready* must end it in good order too.
    """
    loop = asyncio.get_running_loop()
    stopped: asyncio.Future[str] = loop.create_future()

    def stop(name: str) -> None:
        if not stopped.done():
            stopped.set_result(name)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop, number.name)
    return stopped


async def run_until(node: Node, stopped: asyncio.Future[str]) -> str:
    """Serve until ``stopped`` or until the enclave ends; return the reason."""
    await asyncio.wait({stopped, node.ended}, return_when=asyncio.FIRST_COMPLETED)
    return node.ended.result() if node.ended.done() else stopped.result()
