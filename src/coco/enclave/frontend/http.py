"""One HTTP/1.1 protocol class for every listener: limits, caller and time-outs in one place.

JSON-RPC is its fast path: ``POST /`` goes straight to the handler. Every other route goes to a Starlette app with the
caller in the scope. Memory per connection is bounded: one body at a time, a short queue, and no reading while a slow
reader has not taken its replies.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, cast
from urllib.parse import unquote

import httptools
import msgspec

from coco import limits
from coco.enclave.adapters.base import Caller
from coco.enclave.frontend.websocket import WebSocketSession, accept_websocket
from coco.errors import CocoError

_PIPELINE_MAX = 16
_ACCEPTS_PER_TURN = 64
_WRITE_HIGH_BYTES = 256 * 1024
_JSON = b"application/json"
_RPC_REPLY = (
    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n"
    b"x-ms-ccf-transaction-id: %b\r\n\r\n%b"
)
#: Headers after which a request is more than its head and so many bytes.
_NOT_PLAIN = frozenset({b"transfer-encoding", b"expect", b"upgrade"})

_json_encode = msgspec.json.Encoder().encode
_status_lines = {s.value: f"HTTP/1.1 {s.value} {s.phrase}\r\n".encode() for s in HTTPStatus}

#: Serves one JSON-RPC body; the callback gets the reply, at once or later.
RpcHandler = Callable[[bytes, Caller, Callable[[bytes], None]], None]
AsgiApp = Callable[[dict[str, Any], Callable[[], Awaitable[Any]], Callable[[Any], Awaitable[None]]], Awaitable[None]]


@dataclass(slots=True)
class Incoming:
    """One parsed request."""

    method: str
    target: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes
    keep_alive: bool

    def is_plain_rpc(self) -> bool:
        """Whether it is JSON-RPC whose end only a content length tells, on a connection that goes on."""
        if self.method != "POST" or self.target != b"/" or not self.keep_alive:
            return False
        names = {name for name, _ in self.headers}
        return b"content-length" in names and names.isdisjoint(_NOT_PLAIN)


@dataclass
class Listener:
    """What all connections of one listener share."""

    name: str
    #: Looks the caller up in the current configuration, on every request.
    caller: Callable[[bytes | None], Caller]
    app: AsgiApp
    rpc: RpcHandler | None = None
    #: Id of the last committed entry, for the header of JSON-RPC replies.
    position: Callable[[], bytes] = bytes
    #: Serves WebSocket connections, or None.
    websocket: Callable[[WebSocketSession], Awaitable[None]] | None = None
    on_error: Callable[[BaseException], None] = lambda error: None

    def __post_init__(self) -> None:
        self.connections: set[Connection] = set()
        self.body_bytes = 0

    def sweep(self, now: float) -> None:
        """Close connections that are too slow or idle; called once a second."""
        for connection in list(self.connections):
            connection.check_time(now)

    def close(self) -> None:
        """Close every connection."""
        for connection in list(self.connections):
            connection.abort()


def error_body(error: CocoError) -> bytes:
    """The JSON of an error, in the form of the governance API."""
    return _simple_error(error.code, str(error), error.hint)


def _simple_error(code: str, message: str, hint: str | None = None) -> bytes:
    inner = {"code": code, "message": message}
    if hint:
        inner["hint"] = hint
    return _json_encode({"error": inner})


class Acceptor:
    """Accepts streams of one inherited socket and gives each a limited time for its TLS handshake.

    Written out because the event loop's own ``ssl_handshake_timeout`` has no effect on a server (uvloop 0.23):
    half-open connections would stay for ever.
    """

    def __init__(self, listener: Listener, sock: socket.socket, context: ssl.SSLContext) -> None:
        self._listener, self._sock, self._context = listener, sock, context
        self._loop = asyncio.get_running_loop()
        self._handshakes: set[asyncio.Task[None]] = set()
        self._loop.add_reader(sock.fileno(), self._accept)

    def _accept(self) -> None:
        for _ in range(_ACCEPTS_PER_TURN):
            try:
                stream, _ = self._sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError:
                return  # out of descriptors: what waits in the backlog is taken when some are free
            if len(self._handshakes) + len(self._listener.connections) >= limits.CONNECTIONS_MAX:
                stream.close()
                continue
            stream.setblocking(False)
            task = self._loop.create_task(self._handshake(stream))
            self._handshakes.add(task)
            task.add_done_callback(self._handshakes.discard)

    async def _handshake(self, stream: socket.socket) -> None:
        try:
            async with asyncio.timeout(limits.HANDSHAKE_SECONDS_MAX):
                await self._loop.connect_accepted_socket(lambda: Connection(self._listener), stream, ssl=self._context)
        except (OSError, ssl.SSLError, TimeoutError):
            stream.close()  # a client that cannot or will not finish: nothing to tell, nothing to keep

    def close(self) -> None:
        """Accept no more."""
        self._loop.remove_reader(self._sock.fileno())
        for task in self._handshakes:
            task.cancel()


class Connection(asyncio.Protocol):
    """One connection, from the end of its handshake."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._parser: Any = httptools.HttpRequestParser(self)
        self._peer: bytes | None = None
        self._target = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._head_bytes = 0
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._queue: deque[Incoming] = deque()
        self._busy = False
        self._paused_by_queue = False
        self._closing = False
        #: When the first byte of an unfinished request came; None between requests.
        self._began: float | None = None
        #: Head of the last plain JSON-RPC request, and the length of the whole request.
        self._known_head, self._known_length = b"", -1
        self._plain: Incoming | None = None
        self._last_active = self._loop.time()
        self._websocket: WebSocketSession | None = None
        self._task: asyncio.Task[None] | None = None
        self._drained = asyncio.Event()
        self._drained.set()

    # --- asyncio ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport and the client's certificate."""
        # uvloop's transports keep the contract but do not inherit from asyncio's.
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=_WRITE_HIGH_BYTES)
        tls = transport.get_extra_info("ssl_object")
        self._peer = tls.getpeercert(binary_form=True) if tls is not None else None
        self._listener.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget everything."""
        self._listener.connections.discard(self)
        self._listener.body_bytes -= self._body_bytes
        self._body_bytes = 0
        self._closing = True
        self._drained.set()
        if self._websocket is not None:
            self._websocket.lost()
        if self._task is not None:
            self._task.cancel()

    def data_received(self, data: bytes) -> None:
        """Parse."""
        self._last_active = self._loop.time()
        if self._closing:
            return
        if self._websocket is not None:
            self._websocket.feed(data)
            return
        between = self._began is None
        if between:
            if len(data) == self._known_length and data.startswith(self._known_head):
                # The same head, byte for byte, means what it meant before: no need to parse it again.
                self._enqueue(Incoming("POST", b"/", [], data[len(self._known_head) :], True))
                return
            self._began = self._last_active
        try:
            self._parser.feed_data(data)
            if self._plain is not None:
                if between and self._began is None:
                    self._remember(data, len(self._plain.body))
                self._plain = None
        except httptools.HttpParserUpgrade as upgrade:
            self._upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            self._refuse(400, "http.malformed", "this is not HTTP/1.1")

    def eof_received(self) -> bool:
        """The client sends no more; TLS cannot stay half open."""
        return False

    def pause_writing(self) -> None:
        """A slow reader: take no more of its requests."""
        self._drained.clear()
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        """The reader has caught up."""
        self._drained.set()
        if self._transport is not None and not self._paused_by_queue:
            self._transport.resume_reading()
        self._next()

    def check_time(self, now: float) -> None:
        """Close when a request takes too long to arrive or nothing comes at all."""
        began = self._began
        slow = began is not None and not self._busy and now - began > limits.REQUEST_SECONDS_MAX
        stuck = not self._drained.is_set() and now - self._last_active > limits.REQUEST_SECONDS_MAX
        idle = not self._busy and self._websocket is None and now - self._last_active > limits.IDLE_SECONDS_MAX
        if slow or stuck or idle:
            self.abort()

    def abort(self) -> None:
        """Close at once."""
        self._closing = True
        if self._transport is not None:
            self._transport.abort()

    def _remember(self, data: bytes, body_length: int) -> None:
        """Keep the head of a plain request that came whole and alone."""
        head = data[: len(data) - body_length]
        if head.find(b"\r\n\r\n") + 4 == len(head):
            self._known_head, self._known_length = head, len(data)

    # --- httptools ---

    def on_message_begin(self) -> None:
        """The first byte of a request, which may follow another one closely."""
        self._began = self._last_active

    def on_url(self, url: bytes) -> None:
        """Part of the request target."""
        self._target += url
        self._count_head(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header."""
        self._headers.append((name.lower(), value))
        self._count_head(len(name) + len(value) + 4)

    def _count_head(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > limits.HEAD_BYTES_MAX:
            self._refuse(431, "http.head_too_large", f"request line and headers exceed {limits.HEAD_BYTES_MAX} bytes")

    def on_headers_complete(self) -> None:
        """The head is whole: refuse a body that is announced too large before it comes."""
        for name, value in self._headers:
            if name == b"content-length" and value.isdigit() and int(value) > limits.BODY_BYTES_MAX:
                self._refuse(413, "http.body_too_large", f"a body has at most {limits.BODY_BYTES_MAX} bytes")
            elif name == b"expect" and value.lower() == b"100-continue" and not self._closing:
                self._write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        """Part of a body."""
        if self._closing:
            return
        self._body_bytes += len(body)
        self._listener.body_bytes += len(body)
        if self._body_bytes > limits.BODY_BYTES_MAX:
            self._refuse(413, "http.body_too_large", f"a body has at most {limits.BODY_BYTES_MAX} bytes")
        elif self._listener.body_bytes > limits.BODIES_BYTES_MAX:
            self._refuse(503, "node.busy", "too many requests are arriving at once")
        else:
            self._body.append(body)

    def on_message_complete(self) -> None:
        """A request is whole."""
        if self._closing or self._parser.should_upgrade():
            return
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        incoming = Incoming(
            method=self._parser.get_method().decode("ascii", "replace"),
            target=self._target,
            headers=self._headers,
            body=body,
            keep_alive=self._parser.should_keep_alive(),
        )
        if self._listener.rpc is not None and incoming.is_plain_rpc():
            self._plain = incoming
        self._reset()
        self._enqueue(incoming)

    def _enqueue(self, incoming: Incoming) -> None:
        self._queue.append(incoming)
        if len(self._queue) >= _PIPELINE_MAX and self._transport is not None:
            self._paused_by_queue = True
            self._transport.pause_reading()
        self._next()

    def _reset(self) -> None:
        self._listener.body_bytes -= self._body_bytes
        self._target, self._headers, self._head_bytes = b"", [], 0
        self._body, self._body_bytes, self._began = [], 0, None

    # --- serving ---

    def _next(self) -> None:
        if self._busy or self._closing or not self._queue or not self._drained.is_set():
            return
        incoming = self._queue.popleft()
        if self._paused_by_queue and len(self._queue) < _PIPELINE_MAX // 2 and self._transport is not None:
            self._paused_by_queue = False
            self._transport.resume_reading()
        self._busy = True
        caller = self._listener.caller(self._peer)
        if self._listener.rpc is not None and incoming.method == "POST" and incoming.target == b"/":
            keep_alive = incoming.keep_alive
            self._listener.rpc(incoming.body, caller, lambda reply: self._rpc_done(reply, keep_alive))
        else:
            self._task = self._loop.create_task(self._serve(incoming, caller))

    def _rpc_done(self, reply: bytes, keep_alive: bool) -> None:
        if keep_alive and not self._closing:
            self._write(_RPC_REPLY % (len(reply), self._listener.position(), reply))
            self._finished(True)
        else:
            extra = [(b"x-ms-ccf-transaction-id", self._listener.position())]
            self._respond(200, reply, _JSON, keep_alive=keep_alive, extra=extra)

    def _finished(self, keep_alive: bool) -> None:
        self._busy = False
        self._last_active = self._loop.time()
        if not keep_alive:
            self._close()
        elif self._queue:
            self._next()

    def _respond(
        self,
        status: int,
        body: bytes,
        content_type: bytes = _JSON,
        *,
        keep_alive: bool,
        extra: list[tuple[bytes, bytes]] | None = None,
    ) -> None:
        if not self._closing:
            lines = [
                _status_lines.get(status, b"HTTP/1.1 %d Status\r\n" % status),
                b"content-type: %b\r\ncontent-length: %d\r\n" % (content_type, len(body)),
            ]
            lines += [b"%b: %b\r\n" % pair for pair in extra or ()]
            if not keep_alive:
                lines.append(b"connection: close\r\n")
            lines += [b"\r\n", body]
            self._write(b"".join(lines))
        self._finished(keep_alive)

    async def _serve(self, incoming: Incoming, caller: Caller) -> None:
        path, _, query = incoming.target.partition(b"?")
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": incoming.method,
            "scheme": "https",
            "path": unquote(path.decode("ascii", "replace"), errors="replace"),
            "raw_path": path,
            "query_string": query,
            "root_path": "",
            "headers": incoming.headers,
            "client": None,
            "server": None,
            "coco.caller": caller,
        }
        status, headers, body = 500, list[tuple[bytes, bytes]](), list[bytes]()
        given = False

        async def receive() -> dict[str, Any]:
            nonlocal given
            if given:
                return {"type": "http.disconnect"}
            given = True
            return {"type": "http.request", "body": incoming.body, "more_body": False}

        async def send(message: Any) -> None:
            nonlocal status, headers
            if message["type"] == "http.response.start":
                status, headers = message["status"], list(message.get("headers", []))
            elif message["type"] == "http.response.body":
                body.append(message.get("body", b""))

        try:
            await self._listener.app(scope, receive, send)
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 - no request may end the process; the text stays inside (H1)
            self._listener.on_error(error)
            status, headers, body = 500, [], [_simple_error("node.internal", "the node failed to serve this")]
        kept = [(n, v) for n, v in headers if n.lower() not in (b"content-length", b"content-type", b"connection")]
        content_type = next((v for n, v in headers if n.lower() == b"content-type"), _JSON)
        whole = b"" if incoming.method == "HEAD" else b"".join(body)
        self._respond(status, whole, content_type, keep_alive=incoming.keep_alive, extra=kept)

    def _upgrade(self, rest: bytes) -> None:
        headers = dict(self._headers)
        if headers.get(b"upgrade", b"").lower() != b"websocket" or self._listener.websocket is None:
            self._refuse(400, "http.no_upgrade", "this listener upgrades to nothing")
            return
        session = accept_websocket(self._target, self._headers, self._write, self._close, self._drained)
        if session is None:
            self._refuse(400, "http.bad_websocket", "the WebSocket handshake is malformed")
            return
        session.caller = lambda: self._listener.caller(self._peer)
        self._websocket = session
        self._began = None
        self._task = self._loop.create_task(self._run_websocket(session))
        if rest:
            session.feed(rest)

    async def _run_websocket(self, session: WebSocketSession) -> None:
        assert self._listener.websocket is not None
        try:
            await self._listener.websocket(session)
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 - as above
            self._listener.on_error(error)
        finally:
            session.close()

    def _refuse(self, status: int, code: str, message: str) -> None:
        if self._closing:
            return
        self._queue.clear()
        body = _simple_error(code, message)
        head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body)
        self._write(_status_lines[status] + head + body)
        self._close()

    def _write(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)
            if self._transport.get_write_buffer_size() > limits.REPLY_BYTES_MAX:
                self.abort()

    def _close(self) -> None:
        self._closing = True
        if self._transport is not None:
            self._transport.close()
