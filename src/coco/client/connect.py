"""``coco connect``: plain HTTP on loopback for tools that can do no client certificates, verified TLS behind it.

Rules (G6): loopback only; a Host header from the allow-list, against DNS rebinding; an Origin only from the allow-list,
which is empty by default; ``application/json`` only; an optional secret path. No wildcard in any header.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httptools

from coco import limits
from coco.client.http import FailoverClient
from coco.client.pin import Pin
from coco.errors import CocoError, ConfigurationError

_SAVE_SECONDS = 1.0
_END_SECONDS = 1.0
_READ_BYTES = 256 * 1024


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

    @property
    def port(self) -> int:
        """Port that it listens on."""
        assert self._server is not None
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def start(self) -> None:
        """Begin to serve.

        Raises:
            ConfigurationError: the port is taken (``connect.port_taken``).
        """
        try:
            self._server = await asyncio.start_server(self._connection, self.options.host, self.options.port)
        except OSError as error:
            raise ConfigurationError(
                f"cannot listen on {self.options.host}:{self.options.port}: {error.strerror}",
                code="connect.port_taken",
                hint="choose another port with --port",
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
        request = _LocalRequest()
        task = asyncio.current_task()
        assert task is not None
        self._open[writer] = task
        try:
            while data := await reader.read(_READ_BYTES):
                request.feed(data)
                while request.complete:
                    method, path, headers, body = request.complete.pop(0)
                    status, reply, extra = await self._answer(method, path, headers, body)
                    head = f"HTTP/1.1 {status}\r\ncontent-length: {len(reply)}\r\n"
                    head += "".join(f"{name}: {value}\r\n" for name, value in extra.items())
                    if writer.transport.is_closing():
                        return  # the local peer left meanwhile, or this process ends
                    writer.write(head.encode() + b"content-type: application/json\r\n\r\n" + reply)
                    await writer.drain()
                    if headers.get("connection", "").lower() == "close":
                        return
        except (OSError, httptools.HttpParserError, CocoError):
            pass  # the local peer is gone or speaks no HTTP: its connection ends, nothing else
        finally:
            del self._open[writer]
            with contextlib.suppress(OSError):
                writer.close()

    async def _answer(
        self, method: str, path: str, headers: dict[str, str], body: bytes
    ) -> tuple[str, bytes, dict[str, str]]:
        host = headers.get("host", "")
        name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
        if name not in self.options.hosts:
            return _refused("403 Forbidden", "connect.host_refused", "this Host is not served")
        cors: dict[str, str] = {}
        origin = headers.get("origin")
        if origin is not None:
            if origin not in self.options.origins:
                return _refused(
                    "403 Forbidden", "connect.origin_refused", "this Origin is not allowed (--allow-origin)"
                )
            cors = {"access-control-allow-origin": origin, "vary": "origin"}
        base = self.options.secret_path.rstrip("/")
        if path.partition("?")[0] not in (base, base + "/"):
            return _refused("404 Not Found", "connect.not_found", "there is nothing here")
        if method == "OPTIONS" and origin is not None:
            allowed = {
                "access-control-allow-methods": "POST",
                "access-control-allow-headers": "content-type",
                "access-control-allow-private-network": "true",
            }
            return "204 No Content", b"", {**cors, **allowed}
        if method != "POST":
            return _refused("405 Method Not Allowed", "connect.post_only", "send JSON-RPC by POST")
        if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            return _refused("415 Unsupported Media Type", "connect.json_only", "content-type must be application/json")
        try:
            reply = await self.upstream.request("POST", "/", body)
        except CocoError as error:
            status, text, _ = _refused("502 Bad Gateway", error.code, str(error))
            return status, text, cors
        self._dirty |= self.pin.saw(reply.headers.get("x-ms-ccf-transaction-id", ""))
        return f"{reply.status} OK" if reply.status == 200 else f"{reply.status} Error", reply.body, cors


def _refused(status: str, code: str, message: str) -> tuple[str, bytes, dict[str, str]]:
    body = f'{{"error":{{"code":"{code}","message":"{message}"}}}}'
    return status, body.encode(), {}


class _LocalRequest:
    """Parses requests of one local connection, within the node's own limits."""

    def __init__(self) -> None:
        self.complete: list[tuple[str, str, dict[str, str], bytes]] = []
        self._parser: Any = httptools.HttpRequestParser(self)
        self._begin()

    def _begin(self) -> None:
        self._path, self._headers, self._body, self._size = b"", dict[str, str](), list[bytes](), 0

    def feed(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def _count(self, size: int) -> None:
        self._size += size
        if self._size > limits.BODY_BYTES_MAX + limits.HEAD_BYTES_MAX:
            raise ConfigurationError("the request is too large", code="http.body_too_large")

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        self._path += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value))
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        self._count(len(body))
        self._body.append(body)

    def on_message_complete(self) -> None:
        method = self._parser.get_method().decode("latin-1")
        self.complete.append((method, self._path.decode("latin-1"), self._headers, b"".join(self._body)))
        self._begin()
