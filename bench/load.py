"""A load generator for JSON-RPC over HTTP/1.1, with or without TLS: fixed connections, single requests or batches.

The same code drives every system. Transactions are signed before; a block poller notes when each is mined. The
generator shares the machine's cores with what it measures, so it is one thread over plain sockets: the less it takes
for itself, the less it hides the differences between the systems.
"""

from __future__ import annotations

import json
import resource
import select
import socket
import ssl
import struct
import time
from collections import deque
from dataclasses import dataclass, field

_READ_BYTES = 1 << 18
_POLL_S = 0.05


def post(body: bytes, path: bytes = b"/") -> bytes:
    """A request."""
    head = b"POST %b HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    return head % (path, len(body)) + body


class Connection:
    """One keep-alive connection with one request under way.

    TLS is done in memory, so that both kinds cost one system call a request and one a reply.
    """

    def __init__(self, host: str, port: int, tls: ssl.SSLContext | None) -> None:
        self._socket = socket.create_connection((host, port), timeout=60)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # The kernel keeps the time limit: Python's own would ask it twice for every call.
        self._socket.settimeout(None)
        for limit in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            self._socket.setsockopt(socket.SOL_SOCKET, limit, struct.pack("ll", 60, 0))
        self._received = b""
        self._tls: ssl.SSLObject | None = None
        if tls is not None:
            self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
            self._tls = tls.wrap_bio(self._in, self._out, server_hostname=host)
            self._handshake(self._tls)

    def _handshake(self, tls: ssl.SSLObject) -> None:
        while True:
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                self._socket.sendall(self._out.read())
                self._in.write(self._received_bytes())
        self._socket.sendall(self._out.read())

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, body: bytes, path: bytes = b"/") -> None:
        self.write(post(body, path))

    def write(self, request: bytes) -> None:
        if self._tls is not None:
            self._tls.write(request)
            request = self._out.read()
        self._socket.sendall(request)

    def receive(self) -> bytes | None:
        """Read what is there; the body of the reply when it is whole."""
        data = self._received_bytes()
        if self._tls is not None:
            self._in.write(data)
            data = self._read(self._tls)
        self._received += data
        head, separator, body = self._received.partition(b"\r\n\r\n")
        if not separator:
            return None
        _, _, rest = head.lower().partition(b"content-length:")
        if len(body) < int(rest.partition(b"\r\n")[0]):
            return None
        self._received = b""
        return body

    def _received_bytes(self) -> bytes:
        data = self._socket.recv(_READ_BYTES)
        if not data:
            raise ConnectionError("the connection was closed")
        return data

    def _read(self, tls: ssl.SSLObject) -> bytes:
        found = b""
        while self._in.pending:
            try:
                found += tls.read(_READ_BYTES)
            except ssl.SSLWantReadError:
                break  # a part of a record
        while tls.pending():
            found += tls.read(_READ_BYTES)
        return found

    def call(self, method: str, *params):
        """One call, from its request to its result."""
        self.send(json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode())
        while (body := self.receive()) is None:
            pass
        answer = json.loads(body)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def get(self, path: str):
        """The JSON of a route."""
        self.write(b"GET %b HTTP/1.1\r\nhost: localhost\r\n\r\n" % path.encode())
        while (body := self.receive()) is None:
            pass
        return json.loads(body)

    def close(self) -> None:
        self._socket.close()


@dataclass
class Target:
    """Where a system listens."""

    host: str
    port: int
    tls: ssl.SSLContext | None = None

    def connect(self) -> Connection:
        return Connection(self.host, self.port, self.tls)


@dataclass
class Result:
    """Figures of one run."""

    transactions: int
    seconds: float
    latencies_ms: list[float] = field(repr=False)
    generator_cpu_s: float = 0.0

    @property
    def tx_per_s(self) -> float:
        return self.transactions / self.seconds

    def percentile(self, share: float) -> float:
        ordered = sorted(self.latencies_ms)
        return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


class _Follower:
    """Follows the chain, one request at a time, and notes when each transaction is in a block."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.mined: dict[str, float] = {}
        #: When to ask for the head next; None while a request is under way.
        self.due: float | None = 0.0
        self._number = self._head = int(connection.call("eth_blockNumber"), 16)

    def ask(self) -> None:
        self.due = None
        self.connection.send(b'{"jsonrpc":"2.0","id":1,"method":"eth_blockNumber","params":[]}')

    def take(self) -> None:
        """Take what came, and ask for the next block that is there."""
        body = self.connection.receive()
        if body is None:
            return
        result = json.loads(body)["result"]
        now = time.perf_counter()
        if isinstance(result, dict):
            self._number += 1
            for identity in result["transactions"]:
                self.mined.setdefault(identity, now)
        else:
            self._head = int(result, 16)
        if self._number < self._head:
            following = b'"0x%x"' % (self._number + 1)
            self.connection.send(
                b'{"jsonrpc":"2.0","id":1,"method":"eth_getBlockByNumber","params":[%b,false]}' % following
            )
        else:
            self.due = now + _POLL_S


def _requests(
    transactions: list[tuple[int, str, str]], connections: int, batch: int
) -> list[deque[tuple[list[str], bytes]]]:
    """The requests of each connection, ready to be sent, with the hashes in each."""
    lanes: list[list[tuple[str, str]]] = [[] for _ in range(connections)]
    for number, identity, raw in transactions:
        lanes[number % connections].append((identity, raw))
    requests: list[deque[tuple[list[str], bytes]]] = []
    for lane in lanes:
        requests.append(deque())
        for first in range(0, len(lane), batch):
            chunk = lane[first : first + batch]
            calls = [
                b'{"jsonrpc":"2.0","id":%d,"method":"eth_sendRawTransaction","params":["%b"]}' % (number, raw.encode())
                for number, (_, raw) in enumerate(chunk)
            ]
            body = calls[0] if batch == 1 else b"[" + b",".join(calls) + b"]"
            requests[-1].append(([identity for identity, _ in chunk], post(body)))
    return requests


def run(target: Target, transactions: list[tuple[int, str, str]], *, connections: int, batch: int) -> Result:
    """Submit ``(lane, hash, raw)`` and wait until all are mined; a lane keeps to one connection, in order."""
    lanes = _requests(transactions, connections, batch)
    submitted: dict[str, float] = {}
    follower = _Follower(target.connect())
    clients = [target.connect() for _ in range(connections)]
    working = {client.fileno(): (client, lane) for client, lane in zip(clients, lanes, strict=True) if lane}
    readable = select.epoll()
    for descriptor in working:
        readable.register(descriptor, select.EPOLLIN)

    def submit(client: Connection, lane: deque[tuple[list[str], bytes]]) -> None:
        identities, request = lane.popleft()
        submitted.update(dict.fromkeys(identities, time.perf_counter()))
        client.write(request)

    readable.register(follower.connection.fileno(), select.EPOLLIN)
    cpu = resource.getrusage(resource.RUSAGE_SELF)
    began = time.perf_counter()
    for client, lane in list(working.values()):
        submit(client, lane)
    while len(follower.mined) < len(transactions):
        wait = -1.0
        if follower.due is not None:
            wait = follower.due - time.perf_counter()
            if wait <= 0:
                follower.ask()
                wait = -1.0
        for descriptor, _ in readable.poll(wait):
            if descriptor == follower.connection.fileno():
                follower.take()
                continue
            client, lane = working[descriptor]
            answer = client.receive()
            if answer is None:
                continue
            if b'"error"' in answer:
                raise RuntimeError(f"a transaction was refused: {answer[:400]!r}")
            if lane:
                submit(client, lane)
    ended = time.perf_counter()
    spent = resource.getrusage(resource.RUSAGE_SELF)
    readable.close()
    for client in [follower.connection, *clients]:
        client.close()
    return Result(
        transactions=len(transactions),
        seconds=ended - began,
        latencies_ms=[(follower.mined[identity] - at) * 1000 for identity, at in submitted.items()],
        generator_cpu_s=spent.ru_utime + spent.ru_stime - cpu.ru_utime - cpu.ru_stime,
    )
