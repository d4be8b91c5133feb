"""WebSocket connections for event streams, by ``wsproto``, within the HTTP protocol's limits.

A frame costs the node much more than the six bytes that it may have, so frames are counted before they are read: each
costs its caller work, and those that carry nothing (ping, pong, empty, a message cut into crumbs) are limited in time
for each connection, which ends when it sends more of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import parse_qsl, unquote

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
from coco.enclave.adapters.contract import Caller
from coco.enclave.api.budget import Budget, Rate
from coco.errors import OverBudgetError

_INCOMING_MAX, _QUERY_FIELDS_MAX = 256, 64
#: Codes with which a session ends (RFC 6455, 7.4.1).
_TOO_BIG, POLICY, UNSUPPORTED = 1009, 1008, 1003
#: Frames of one read: more messages than may wait, and what may be between them.
_FRAMES_MAX = _INCOMING_MAX + limits.IDLE_FRAMES_MAX
#: Microseconds of the event loop: what came at once, each frame of it, each kilobyte.
_READ_WORK_US, _FRAME_WORK_US, _KIB_WORK_US = 30, 25, 4
_IDLE_FRAMES = Rate(limits.IDLE_FRAMES_PER_SECOND, limits.IDLE_FRAMES_MAX, 0)
_CONTINUATION, _TEXT, _BINARY, _FINAL = 0, 1, 2, 0x80


class FrameCounter:
    """Counts frames in what a client sends, however it is cut, without reading what they carry (RFC 6455, 5.2)."""

    def __init__(self) -> None:
        self._header = bytearray()
        #: Bytes of the frame under way that are still to come.
        self._skip = 0

    def count(self, data: bytes) -> tuple[int, int]:
        """Frames that begin in ``data``, and those of them that carry nothing; ends early where they are too many."""
        frames = idle = at = 0
        size = len(data)
        while at < size and idle <= limits.IDLE_FRAMES_MAX and frames <= _FRAMES_MAX:
            if self._skip:
                taken = min(self._skip, size - at)
                self._skip -= taken
                at += taken
                continue
            header = self._header
            wanted = 2 if len(header) < 2 else _header_bytes(header[1])
            taken = min(wanted - len(header), size - at)
            header += data[at : at + taken]
            at += taken
            if len(header) < 2 or len(header) < _header_bytes(header[1]):
                continue
            length = header[1] & 0x7F
            if length > 125:
                length = int.from_bytes(header[2 : 4 if length == 126 else 10], "big")
            frames += 1
            idle += _carries_nothing(header[0], length)
            self._skip = length
            header.clear()
        return frames, idle


def _header_bytes(second: int) -> int:
    length = second & 0x7F
    return 2 + (4 if second & 0x80 else 0) + (2 if length == 126 else 8 if length == 127 else 0)


def _carries_nothing(first: int, length: int) -> bool:
    if first & 0x0F not in (_CONTINUATION, _TEXT, _BINARY):
        return True
    return length == 0 or (not first & _FINAL and length < limits.FRAGMENT_BYTES_MIN)


async def _nothing() -> None:
    pass


class WebSocketSession:
    """One open WebSocket; messages in both directions are text or bytes."""

    def __init__(
        self,
        connection: WSConnection,
        target: str,
        headers: list[tuple[bytes, bytes]],
        write: Callable[[bytes], None],
        drained: asyncio.Event,
    ) -> None:
        path, _, query = target.partition("?")
        self.path = unquote(path, errors="replace")
        self.query = dict(parse_qsl(query, keep_blank_values=True, max_num_fields=_QUERY_FIELDS_MAX))
        self.headers = headers
        self.caller: Callable[[], Caller] = Caller
        #: Waits until another message of this session may be answered.
        self.fresh: Callable[[], Awaitable[None]] = _nothing
        #: Of one message from the client.
        self.message_bytes_max = limits.BODY_BYTES_MAX
        self._connection, self._write, self._drained = connection, write, drained
        self._on_close: Callable[[], None] = lambda: None
        self._incoming: asyncio.Queue[str | bytes | None] = asyncio.Queue()
        self._parts: list[Any] = []
        self._size = 0
        self._over = False
        self._frames = FrameCounter()
        self._idle_frames = Budget("idle_frames", anonymous=_IDLE_FRAMES, actor=_IDLE_FRAMES)

    @property
    def is_over(self) -> bool:
        """Whether nothing of it is read any more."""
        return self._over

    def feed(self, data: bytes) -> int:
        """Bytes from the client; the work that they are."""
        if self._over:
            return 0
        frames, idle = self._frames.count(data)
        if frames > _FRAMES_MAX:
            self.close(_TOO_BIG, "more messages at once than may wait")
            return _READ_WORK_US
        if idle:
            try:
                self._idle_frames.take("", idle, asyncio.get_running_loop().time())
            except OverBudgetError:
                self.close(POLICY, "budget.idle_frames: too many frames that carry nothing")
                return _READ_WORK_US
        try:
            self._connection.receive_data(data)
            for event in self._connection.events():
                self._handle(event)
                if self._over:
                    break
        except ProtocolError:
            self.close()
        return _READ_WORK_US + frames * _FRAME_WORK_US + len(data) * _KIB_WORK_US // 1024

    def _handle(self, event: Any) -> None:
        if isinstance(event, TextMessage | BytesMessage):
            self._size += len(event.data)
            if event.data:
                self._parts.append(event.data)
            if self._size > self.message_bytes_max or self._incoming.qsize() >= _INCOMING_MAX:
                self.close(_TOO_BIG)
            elif event.message_finished:
                whole = "".join(self._parts) if isinstance(event, TextMessage) else b"".join(self._parts)
                self._incoming.put_nowait(whole)
                self._parts, self._size = [], 0
        elif isinstance(event, Ping):
            self._write(self._connection.send(event.response()))
        elif isinstance(event, CloseConnection):
            self._write(self._connection.send(event.response()))
            self.lost()
            self._on_close()

    async def receive(self) -> str | bytes | None:
        """The next message, or None when the client is gone."""
        return None if self._over and self._incoming.empty() else await self._incoming.get()

    async def drained(self) -> None:
        """Wait while the client reads too slowly."""
        await self._drained.wait()

    async def send(self, message: str | bytes) -> None:
        """Send a message; waits while the client reads too slowly."""
        await self._drained.wait()
        if not self._over:
            event = TextMessage(data=message) if isinstance(message, str) else BytesMessage(data=message)
            self._write(self._connection.send(event))

    def close(self, code: int = 1000, reason: str | None = None) -> None:
        """End the session."""
        if not self._over:
            self._write(self._connection.send(CloseConnection(code=code, reason=reason)))
            self.lost()
            if code == POLICY:
                # The client hears of it at once, and its connection ends later: coming again at once gains nothing.
                asyncio.get_running_loop().call_later(limits.REFUSAL_SECONDS, self._on_close)
            else:
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
    try:
        session = WebSocketSession(connection, target.decode("ascii", "replace"), headers, write, drained)
    except ValueError:
        return None
    write(connection.send(AcceptConnection()))
    session._on_close = on_close
    return session
