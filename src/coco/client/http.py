"""A small HTTP/1.1 client over TLS: one request at a time on each connection, kept alive."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import httptools

from coco.errors import CocoError, HostError

_READ_BYTES = 256 * 1024
_REPLY_BYTES_MAX = 256 * 1024 * 1024


@dataclass
class HttpReply:
    """Status, headers with lower-case names, and body."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    def json(self) -> Any:
        """The body as JSON; raises for an error of the node.

        Raises:
            RemoteError: the node refused, with its code.
        """
        try:
            document = json.loads(self.body)
        except ValueError as error:
            raise RemoteError(f"the node answered {self.status} without JSON", code="client.bad_reply") from error
        if self.status >= 400:
            inner = document.get("error", {}) if isinstance(document, dict) else {}
            raise RemoteError(
                str(inner.get("message", "refused")),
                code=str(inner.get("code", "client.refused")),
                hint=inner.get("hint"),
            )
        return document


class RemoteError(CocoError):
    """A refusal by the node."""

    code = "client.refused"


class _Parser:
    def __init__(self) -> None:
        self.reply = HttpReply()
        self.done = False
        self._body: list[bytes] = []
        self._size = 0
        self.parser: Any = httptools.HttpResponseParser(self)

    def on_header(self, name: bytes, value: bytes) -> None:
        self.reply.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        self._size += len(body)
        if self._size > _REPLY_BYTES_MAX:
            raise HostError("the reply is too large", code="client.reply_too_large")
        self._body.append(body)

    def on_message_complete(self) -> None:
        self.reply.status = self.parser.get_status_code()
        self.reply.body = b"".join(self._body)
        self.done = True


class HttpsClient:
    """Talks to one listener of one node."""

    def __init__(
        self,
        host: str,
        port: int,
        context: ssl.SSLContext,
        *,
        connections_max: int = 64,
        check: Callable[[bytes], None] | None = None,
    ) -> None:
        self.host, self.port, self.context = host, port, context
        #: Refuses a node by its certificate (DER), before anything is sent to it.
        self._check = check
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self._slots = asyncio.Semaphore(connections_max)

    async def request(
        self, method: str, path: str, body: bytes = b"", *, content_type: str = "application/json", floor: str = ""
    ) -> HttpReply:
        """Send one request; what answers it has committed the transaction ``floor``.

        Raises:
            HostError: the node cannot be reached (``client.unreachable``).
        """
        head = (
            f"{method} {path} HTTP/1.1\r\nhost: {self.host}:{self.port}\r\n"
            f"content-type: {content_type}\r\ncontent-length: {len(body)}\r\n"
            + (f"coco-min-transaction-id: {floor}\r\n" if floor else "")
            + "\r\n"
        )
        async with self._slots:
            if self._idle:
                # A kept connection may have been closed meanwhile; then one fresh one is tried, since nothing was read.
                connection = self._idle.pop()
                reply = await self._try(connection, head.encode() + body)
                if reply is not None:
                    return reply
            reply = await self._try(await self._connect(), head.encode() + body)
            if reply is None:
                raise HostError(f"{self.host}:{self.port} closed the connection", code="client.unreachable")
            return reply

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        try:
            reader, writer = await asyncio.open_connection(
                self.host, self.port, ssl=self.context, server_hostname=self.host, ssl_handshake_timeout=10
            )
        except (OSError, ssl.SSLError) as error:
            raise HostError(
                f"cannot reach {self.host}:{self.port}: {error}",
                code="client.unreachable",
                hint="is the node running?",
            ) from error
        if self._check is not None:
            try:
                self._check(writer.get_extra_info("ssl_object").getpeercert(binary_form=True) or b"")
            except BaseException:
                writer.close()
                raise
        return reader, writer

    async def _try(
        self, connection: tuple[asyncio.StreamReader, asyncio.StreamWriter], data: bytes
    ) -> HttpReply | None:
        reader, writer = connection
        parser = _Parser()
        try:
            writer.write(data)
            await writer.drain()
            while not parser.done:
                received = await reader.read(_READ_BYTES)
                if not received:
                    writer.close()
                    return None
                parser.parser.feed_data(received)
        except (OSError, ssl.SSLError, httptools.HttpParserError):
            writer.close()
            return None
        except BaseException:
            writer.close()
            raise
        if parser.reply.headers.get("connection", "").lower() == "close":
            writer.close()
        else:
            self._idle.append(connection)
        return parser.reply

    async def peer_certificate(self) -> bytes:
        """DER of the certificate that the node shows."""
        connection = await self._connect()
        tls = connection[1].get_extra_info("ssl_object")
        self._idle.append(connection)
        der: bytes = tls.getpeercert(binary_form=True)
        return der

    async def close(self) -> None:
        """Close every kept connection."""
        while self._idle:
            self._idle.pop()[1].close()


class FailoverClient:
    """Talks to one of several nodes of a network: to the same one until it cannot be reached, then to the next.

    What was seen once is seen again: the first requests to a node name the newest transaction known, which it must have
    committed before it answers.

    Args:
        clients: one for each node.
        floor: id of the newest transaction known.
        follow: looks whether the service has another identity that follows from the known one; gives TLS that trusts
            that, or None.
    """

    def __init__(
        self,
        clients: Sequence[HttpsClient],
        floor: Callable[[], str] = str,
        follow: Callable[[], Awaitable[ssl.SSLContext | None]] | None = None,
    ) -> None:
        self._clients, self._floor, self._follow = list(clients), floor, follow
        self._current, self._caught_up = 0, False
        self._following = asyncio.Lock()

    async def request(
        self, method: str, path: str, body: bytes = b"", *, content_type: str = "application/json"
    ) -> HttpReply:
        """Send one request; again to the next node when one gave no answer at all.

        Raises:
            HostError: no node can be reached (``client.unreachable``).
        """
        context = self._clients[0].context
        try:
            return await self._request(method, path, body, content_type)
        except HostError as error:
            if error.code != "client.unreachable" or not await self._moved(context):
                raise
        return await self._request(method, path, body, content_type)

    async def _moved(self, context: ssl.SSLContext) -> bool:
        """Whether the nodes are trusted otherwise by now than with ``context``."""
        async with self._following:
            if self._follow is not None and self._clients[0].context is context:
                found = await self._follow()
                for client in self._clients if found is not None else ():
                    assert found is not None
                    client.context = found
                    await client.close()
        return self._clients[0].context is not context

    async def _request(self, method: str, path: str, body: bytes, content_type: str) -> HttpReply:
        for attempt in range(len(self._clients)):
            chosen = self._current
            floor = "" if self._caught_up else self._floor()
            try:
                reply = await self._clients[chosen].request(
                    method, path, body, content_type=content_type, floor=floor if floor != "0.0" else ""
                )
            except HostError as error:
                if error.code != "client.unreachable" or attempt == len(self._clients) - 1:
                    raise
                if self._current == chosen:
                    self._current, self._caught_up = (chosen + 1) % len(self._clients), False
                continue
            self._caught_up |= self._current == chosen and reply.status == 200
            return reply
        raise AssertionError("a network has at least one node")

    async def close(self) -> None:
        """Close every kept connection."""
        for client in self._clients:
            await client.close()
