"""WebSocket connections for event streams, by ``wsproto``, within the HTTP protocol's limits."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Ping,
    Request,
    TextMessage,
)
from wsproto.utilities import ProtocolError

from coco import limits
from coco.enclave.adapters.base import Caller

_INCOMING_MAX = 256
_TOO_BIG = 1009


async def _nothing() -> None:
    pass


class WebSocketSession:
    """One open WebSocket; messages in both directions are text."""

    def __init__(
        self, connection: WSConnection, path: str, write: Callable[[bytes], None], drained: asyncio.Event
    ) -> None:
        self.path = path
        self.caller: Callable[[], Caller] = Caller
        #: Waits until another message of this session may be answered.
        self.fresh: Callable[[], Awaitable[None]] = _nothing
        self._connection, self._write, self._drained = connection, write, drained
        self._on_close: Callable[[], None] = lambda: None
        self._incoming: asyncio.Queue[str | None] = asyncio.Queue()
        self._parts: list[str] = []
        self._size = 0
        self._over = False

    def feed(self, data: bytes) -> None:
        """Bytes from the client."""
        if self._over:
            return
        try:
            self._connection.receive_data(data)
            for event in self._connection.events():
                self._handle(event)
        except ProtocolError:
            self.close()

    def _handle(self, event: Any) -> None:
        if isinstance(event, TextMessage):
            self._size += len(event.data)
            self._parts.append(event.data)
            if self._size > limits.BODY_BYTES_MAX or self._incoming.qsize() >= _INCOMING_MAX:
                self.close(_TOO_BIG)
            elif event.message_finished:
                self._incoming.put_nowait("".join(self._parts))
                self._parts, self._size = [], 0
        elif isinstance(event, BytesMessage):
            self.close(1003)
        elif isinstance(event, Ping):
            self._write(self._connection.send(event.response()))
        elif isinstance(event, CloseConnection):
            self._write(self._connection.send(event.response()))
            self.lost()
            self._on_close()

    async def receive(self) -> str | None:
        """The next message, or None when the client is gone."""
        return None if self._over and self._incoming.empty() else await self._incoming.get()

    async def send(self, text: str) -> None:
        """Send a message; waits while the client reads too slowly."""
        await self._drained.wait()
        if not self._over:
            self._write(self._connection.send(TextMessage(data=text)))

    def close(self, code: int = 1000) -> None:
        """End the session."""
        if not self._over:
            self._write(self._connection.send(CloseConnection(code=code)))
            self.lost()
            self._on_close()

    def lost(self) -> None:
        """The connection is gone."""
        if not self._over:
            self._over = True
            self._incoming.put_nowait(None)


def accept_websocket(
    target: bytes,
    headers: list[tuple[bytes, bytes]],
    write: Callable[[bytes], None],
    on_close: Callable[[], None],
    drained: asyncio.Event,
) -> WebSocketSession | None:
    """Answer the handshake; None if it is malformed."""
    connection = WSConnection(ConnectionType.SERVER)
    lines = b"".join(b"%b: %b\r\n" % pair for pair in headers)
    try:
        connection.receive_data(b"GET " + target + b" HTTP/1.1\r\n" + lines + b"\r\n")
        (event, *_) = list(connection.events())
    except (ProtocolError, ValueError):
        return None
    if not isinstance(event, Request):
        return None
    write(connection.send(AcceptConnection()))
    session = WebSocketSession(connection, target.decode("ascii", "replace").partition("?")[0], write, drained)
    session._on_close = on_close
    return session
