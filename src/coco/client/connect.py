"""``coco connect``: plain HTTP on loopback for tools that can do no client certificates, verified TLS behind it.

Rules (G6): loopback only; a Host header from the allow-list, against DNS rebinding; an Origin only from the allow-list,
which is empty by default; ``application/json`` only; an optional secret path. No wildcard in any header. A local client
may be anything that runs here, a web page too: connections, time and memory are bounded, whoever sends what is no
request is told so before the connection ends, and one that waits long keeps nobody else waiting.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import resource
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httptools

from coco import limits
from coco.client.http import Budget, FailoverClient
from coco.client.pin import Pin
from coco.errors import BusyError, CocoError, ConfigurationError, RequestError

_SAVE_SECONDS = 1.0
_END_SECONDS = 1.0
_READ_BYTES = 256 * 1024
_TRANSACTION_ID = "x-ms-ccf-transaction-id"
_BUSY = "503 Service Unavailable"
#: What a request that is none is answered with; then its connection ends.
_STATUS = {
    "http.malformed": "400 Bad Request",
    "http.head_too_large": "431 Request Header Fields Too Large",
    "http.body_too_large": "413 Content Too Large",
    "http.timeout": "408 Request Timeout",
    "connect.no_upgrade": "501 Not Implemented",
    "client.full": _BUSY,
    "connect.full": _BUSY,
}

_Answer = tuple[str, bytes, dict[str, str]]


@dataclass
class ConnectOptions:
    """What the local side accepts."""

    host: str = "127.0.0.1"
    port: int = 8545
    origins: Sequence[str] = ()
    #: Path below which it serves, such as ``/4f2a…``; empty serves at ``/``.
    secret_path: str = ""
    hosts: Sequence[str] = field(default_factory=lambda: ("localhost", "127.0.0.1", "[::1]"))


class Connector:
    """The local listener."""

    def __init__(self, options: ConnectOptions, upstream: FailoverClient, pin: Pin, pin_path: Path | None) -> None:
        if not ipaddress.ip_address(options.host).is_loopback:
            raise ConfigurationError("coco connect serves on loopback only", code="connect.not_loopback")
        self.options, self.upstream, self.pin = options, upstream, pin
        self._pin_path = pin_path
        self._dirty = False
        self._server: asyncio.Server | None = None
        self._saver: asyncio.Task[None] | None = None
        self._open: dict[asyncio.StreamWriter, asyncio.Task[None]] = {}
        self._budget = Budget(limits.CONNECT_BYTES_MAX, limits.CONNECT_FREE_BYTES)
        if isinstance(upstream, FailoverClient):
            upstream.spend(self._budget)

    @property
    def port(self) -> int:
        """Port that it listens on."""
        assert self._server is not None, "asked once it has started"
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def start(self) -> None:
        """Begin to serve.

        Raises:
            ConfigurationError: the port is taken (``connect.port_taken``).
        """
        # Each local connection takes a descriptor, and its request perhaps another one.
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        try:
            self._server = await asyncio.start_server(self._connection, self.options.host, self.options.port)
        except OSError as error:
            raise ConfigurationError(
                f"cannot listen on {self.options.host}:{self.options.port}: {error.strerror}",
                code="connect.port_taken",
                hint=f"ss -tanp 'sport = :{self.options.port}' says who has it; choose another port with --port",
            ) from error
        self._saver = asyncio.get_running_loop().create_task(self._save_loop())

    async def stop(self) -> None:
        """End."""
        if self._server is not None:
            self._server.close()
        if self._saver is not None:
            self._saver.cancel()
        ending = list(self._open.values())
        for writer in list(self._open):
            writer.close()
        if ending:
            await asyncio.wait(ending, timeout=_END_SECONDS)
            for task in ending:
                task.cancel()
        self._save()
        await self.upstream.close()

    async def _save_loop(self) -> None:
        while True:
            await asyncio.sleep(_SAVE_SECONDS)
            await asyncio.get_running_loop().run_in_executor(None, self._save)

    def _save(self) -> None:
        if self._dirty and self._pin_path is not None:
            self._dirty = False
            self.pin.save(self._pin_path)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = _LocalRequest(self._budget)
        task = asyncio.current_task()
        assert task is not None, "this runs in one"
        self._open[writer] = task
        try:
            if len(self._open) > limits.CONNECT_CONNECTIONS_MAX:
                raise BusyError("too many connections are open", code="connect.full", hint="close some of them")
            async for method, path, headers, body in self._requests(reader, request):
                status, reply, extra = await self._answer(method, path, headers, body)
                try:
                    if writer.transport.is_closing():
                        return  # the local peer left meanwhile, or this process ends
                    if headers.get("connection", "").lower() == "close":
                        extra = {**extra, "connection": "close"}
                    await self._write(writer, status, reply, extra)
                finally:
                    self._budget.hold(len(reply), 0)
                if headers.get("connection", "").lower() == "close":
                    return
        except (OSError, asyncio.CancelledError):
            pass  # the local peer is gone or reads nothing, or this process ends: its connection ends, nothing else
        except CocoError as error:
            with contextlib.suppress(OSError):
                await self._write(writer, *_refused(_STATUS[error.code], error, {"connection": "close"}))
                await _linger(reader)
        finally:
            request.forget()
            del self._open[writer]
            with contextlib.suppress(OSError):
                writer.close()

    async def _requests(
        self, reader: asyncio.StreamReader, request: _LocalRequest
    ) -> AsyncIterator[tuple[str, str, dict[str, str], bytes]]:
        """Each request, whole.

        Raises:
            RequestError: what came is none, too large or too late.
            BusyError: there is no room for it.
        """
        while True:
            try:
                seconds = limits.REQUEST_SECONDS_MAX if request.begun else limits.IDLE_SECONDS_MAX
                async with asyncio.timeout_at(request.began(asyncio.get_running_loop().time()) + seconds):
                    data = await reader.read(_READ_BYTES)
            except TimeoutError:
                if not request.begun:
                    return
                raise RequestError("the request did not end in time", code="http.timeout") from None
            if not data:
                return
            request.feed(data)
            while request.complete:
                method, path, headers, body = request.complete.pop(0)
                try:
                    yield method, path, headers, body
                finally:
                    self._budget.hold(len(body), 0)
            if request.failed is not None:
                raise request.failed

    async def _write(self, writer: asyncio.StreamWriter, status: str, reply: bytes, extra: dict[str, str]) -> None:
        head = f"HTTP/1.1 {status}\r\ncontent-length: {len(reply)}\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in extra.items())
        writer.write(head.encode() + b"content-type: application/json\r\n\r\n" + reply)
        try:
            async with asyncio.timeout(limits.REQUEST_SECONDS_MAX):
                await writer.drain()
        except TimeoutError:
            writer.transport.abort()  # what it does not read is not held for it any longer
            raise

    async def _answer(self, method: str, path: str, headers: dict[str, str], body: bytes) -> _Answer:
        host = headers.get("host", "")
        name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
        if name not in self.options.hosts:
            return _refused("403 Forbidden", RequestError("this Host is not served", code="connect.host_refused"))
        cors: dict[str, str] = {}
        origin = headers.get("origin")
        if origin is not None:
            if origin not in self.options.origins:
                error = RequestError("this Origin is not allowed (--allow-origin)", code="connect.origin_refused")
                return _refused("403 Forbidden", error)
            cors = {"access-control-allow-origin": origin, "vary": "origin"}
        base = self.options.secret_path.rstrip("/")
        if path.partition("?")[0] not in (base, base + "/"):
            return _refused("404 Not Found", RequestError("there is nothing here", code="connect.not_found"))
        if method == "OPTIONS" and origin is not None:
            allowed = {
                "access-control-allow-methods": "POST",
                "access-control-allow-headers": "content-type",
                "access-control-allow-private-network": "true",
            }
            return "204 No Content", b"", {**cors, **allowed}
        if method != "POST":
            return _refused("405 Method Not Allowed", RequestError("send JSON-RPC by POST", code="connect.post_only"))
        if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            return _refused(
                "415 Unsupported Media Type",
                RequestError("content-type must be application/json", code="connect.json_only"),
            )
        try:
            reply = await self.upstream.request("POST", "/", body)
            position = reply.headers.get(_TRANSACTION_ID, "")
            self._dirty |= self.pin.saw(position)
        except BusyError as error:
            return _refused(_BUSY, error, {**cors, "retry-after": "1"})
        except CocoError as error:
            return _refused("502 Bad Gateway", error, cors)
        if position:
            cors |= {_TRANSACTION_ID: position}
        if origin is not None:
            cors |= {"access-control-expose-headers": _TRANSACTION_ID}
        if "retry-after" in reply.headers:
            cors |= {"retry-after": reply.headers["retry-after"]}
        return f"{reply.status} OK" if reply.status == 200 else f"{reply.status} Error", reply.body, cors


def _refused(status: str, error: CocoError, extra: dict[str, str] | None = None) -> _Answer:
    said = {"code": error.code, "message": str(error), **({"hint": error.hint} if error.hint else {})}
    return status, json.dumps({"error": said}).encode(), extra or {}


async def _linger(reader: asyncio.StreamReader) -> None:
    """Read what a client still sends, for a moment: closing over it would take the answer from the client again."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(limits.LINGER_SECONDS_MAX):
            while await reader.read(_READ_BYTES):
                pass


class _LocalRequest:
    """Parses requests of one local connection, within the node's own limits."""

    def __init__(self, budget: Budget) -> None:
        self.complete: list[tuple[str, str, dict[str, str], bytes]] = []
        #: Why nothing more is read.
        self.failed: CocoError | None = None
        self._parser: Any = httptools.HttpRequestParser(self)
        self._budget = budget
        self._begin()

    def _begin(self) -> None:
        self._path, self._headers, self._body, self._size, self._head = b"", dict[str, str](), list[bytes](), 0, 0
        self._began_at = 0.0
        self.begun = False

    def began(self, now: float) -> float:
        """When the request began whose end has not come; ``now`` when none has."""
        if not self.begun or not self._began_at:
            self._began_at = now
        return self._began_at

    def feed(self, data: bytes) -> None:
        """Take what came; what is complete is in ``complete``, and why it ends in ``failed``."""
        self.begun = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._fail("this is not served here, ask for JSON-RPC by POST", "connect.no_upgrade")
        except httptools.HttpParserError as error:
            if isinstance(error.__context__, CocoError):
                self.failed = error.__context__
            else:
                self._fail("this is no HTTP request", "http.malformed")

    def _fail(self, message: str, code: str) -> None:
        self.failed = RequestError(message, code=code)

    def forget(self) -> None:
        """Give back what is held: the parser and this hold each other, so that nothing would go by itself."""
        for _, _, _, body in self.complete:
            self._budget.hold(len(body), 0)
        self.complete.clear()
        self._budget.hold(self._size, 0)
        self._begin()
        self._parser = None

    def _count_head(self, size: int) -> None:
        self._head += size
        if self._head > limits.HEAD_BYTES_MAX:
            raise RequestError("the head of the request is too large", code="http.head_too_large")

    def on_message_begin(self) -> None:
        self.begun = True

    def on_url(self, url: bytes) -> None:
        self._count_head(len(url))
        self._path += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count_head(len(name) + len(value))
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        if self._headers.get("upgrade", "").lower().startswith("websocket"):
            text = "WebSocket is not served here: it needs a certificate of its own, at the node"
            raise RequestError(text, code="connect.no_upgrade")
        length = self._headers.get("content-length", "0")
        if length.isdecimal() and int(length[:20]) > limits.BODY_BYTES_MAX:
            self._too_large()

    def _too_large(self) -> None:
        text = f"a request has at most {limits.BODY_BYTES_MAX} bytes"
        raise RequestError(text, code="http.body_too_large")

    def on_body(self, body: bytes) -> None:
        if self._size + len(body) > limits.BODY_BYTES_MAX:
            self._too_large()
        self._budget.hold(self._size, self._size + len(body))
        self._size += len(body)
        self._body.append(body)

    def on_message_complete(self) -> None:
        method = self._parser.get_method().decode("latin-1")
        # What it holds is given back by whoever takes it.
        self.complete.append((method, self._path.decode("latin-1"), self._headers, b"".join(self._body)))
        self._begin()
