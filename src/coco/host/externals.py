"""External processors, which enclaves talk to through their host: one connection for each session.

A processor listens at ``unix:PATH`` or ``tcp:HOST:PORT``. A message is a big-endian ``u32`` of its length and its
bytes, both ways; whoever has said everything closes the connection. In tests a coroutine function may stand for one: it
answers each message by one.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Final, Literal

from coco import limits
from coco.channel import messages
from coco.errors import HostError

_SIZE: Final = struct.Struct("!I")
_CONNECT_SECONDS: Final = 3.0

External = Callable[[bytes], Awaitable[bytes]] | str
_Reason = Literal["ended", "unreachable", "broken"]


class _BrokenError(Exception):
    """What a processor sent is no message."""


def check(name: str, address: str) -> None:
    """Whether a processor can be at an address.

    Raises:
        HostError: it cannot (``host.bad_external``).
    """
    kind, _, place = address.partition(":")
    host, _, port = place.rpartition(":")
    if not ((kind == "unix" and place) or (kind == "tcp" and host and port.isdecimal() and 0 < int(port) < 65_536)):
        raise HostError(
            f"the external processor {name} cannot be at {address[:100]!r}",
            code="host.bad_external",
            hint="unix:PATH or tcp:HOST:PORT",
        )


class Externals:
    """The processors of one node, and the sessions with them.

    Args:
        processors: by name.
        send: gives a message to the enclave.
    """

    def __init__(self, processors: Mapping[str, External], send: Callable[[messages.ToEnclave], None]) -> None:
        for name, processor in processors.items():
            if isinstance(processor, str):
                check(name, processor)
        self._processors, self._send = processors, send
        self._sessions: dict[int, tuple[asyncio.Queue[bytes], asyncio.Task[None]]] = {}

    def open(self, session: int, name: str) -> None:
        """Begin a session."""
        queue: asyncio.Queue[bytes] = asyncio.Queue()
        task = asyncio.get_running_loop().create_task(self._run(session, self._processors.get(name), queue))
        self._sessions[session] = queue, task

    def send(self, session: int, body: bytes) -> None:
        """Pass a message on; one for a session that is over is thrown away."""
        if session in self._sessions:
            self._sessions[session][0].put_nowait(body)

    def close(self, session: int) -> None:
        """End a session."""
        if session in self._sessions:
            self._sessions.pop(session)[1].cancel()

    def stop(self) -> None:
        """End every session."""
        for session in list(self._sessions):
            self.close(session)

    async def _run(self, session: int, processor: External | None, queue: asyncio.Queue[bytes]) -> None:
        reason: _Reason = "unreachable"

        def received(body: bytes) -> None:
            self._send(messages.ExternalReceived(session, body))

        try:
            if isinstance(processor, str):
                reason = await _relay(processor, queue, received)
            elif processor is not None:
                while True:
                    body = await processor(await queue.get())
                    if len(body) > limits.EXTERNAL_BYTES_MAX:
                        raise _BrokenError
                    received(body)
        except _BrokenError:
            reason = "broken"
        except Exception:  # noqa: BLE001 - whatever it is, the enclave hears that nobody answers
            reason = "unreachable"
        self._sessions.pop(session, None)
        self._send(messages.ExternalClosed(session, reason))


async def _relay(address: str, queue: asyncio.Queue[bytes], received: Callable[[bytes], None]) -> _Reason:
    kind, _, place = address.partition(":")
    async with asyncio.timeout(_CONNECT_SECONDS):
        if kind == "unix":
            reader, writer = await asyncio.open_unix_connection(place)
        else:
            host, _, port = place.rpartition(":")
            reader, writer = await asyncio.open_connection(host, int(port))
    sending = asyncio.get_running_loop().create_task(_write(queue, writer))
    try:
        while (body := await _message(reader)) is not None:
            received(body)
    except ConnectionError:
        return "broken"
    finally:
        sending.cancel()
        writer.close()
        with suppress(OSError, asyncio.CancelledError):
            await sending
    return "ended"


async def _write(queue: asyncio.Queue[bytes], writer: asyncio.StreamWriter) -> None:
    while True:
        body = await queue.get()
        writer.write(_SIZE.pack(len(body)) + body)
        await writer.drain()


async def _message(reader: asyncio.StreamReader) -> bytes | None:
    """The next message of a processor; None: it has closed its connection."""
    try:
        head = await reader.readexactly(_SIZE.size)
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise _BrokenError from error
        return None
    (size,) = _SIZE.unpack(head)
    if size > limits.EXTERNAL_BYTES_MAX:
        raise _BrokenError
    try:
        return await reader.readexactly(size)
    except asyncio.IncompleteReadError as error:
        raise _BrokenError from error
