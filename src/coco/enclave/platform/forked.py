"""Processes that are forked from the enclave before its lock-down and asked over a socket, one question at a time.

A question and an answer are each four bytes of length and the bytes.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import struct
from collections.abc import Callable
from typing import Final

from coco.errors import CocoError

_SIZE: Final = struct.Struct("!I")
_READ_BYTES: Final = 65536
_DESCRIPTORS_MAX: Final = 4096


def fork(serve: Callable[[int], None]) -> socket.socket:
    """Fork a process that holds nothing open but its end of a socket.

    Args:
        serve: what it does, with the descriptor of its end; once that returns, it ends.

    Returns:
        The other end.
    """
    ours, theirs = socket.socketpair()
    if os.fork() == 0:
        try:
            ours.close()
            os.closerange(0, theirs.fileno())
            os.closerange(theirs.fileno() + 1, _DESCRIPTORS_MAX)
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            serve(theirs.fileno())
        finally:
            os._exit(0)
    theirs.close()
    return ours


def read(descriptor: int) -> bytes | None:
    """The next question or answer; None when the other side is gone."""
    data = bytearray()
    wanted = _SIZE.size
    while len(data) < wanted:
        more = os.read(descriptor, min(_READ_BYTES, wanted - len(data)))
        if not more:
            return None
        data += more
        if len(data) == _SIZE.size:
            wanted = _SIZE.size + _SIZE.unpack(data)[0]
    return bytes(data[_SIZE.size :])


def write(descriptor: int, data: bytes) -> None:
    """Send a question or an answer."""
    write_all(descriptor, _SIZE.pack(len(data)) + data)


def write_all(descriptor: int, data: bytes) -> None:
    """Write every byte."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


class Exchange:
    """The enclave's end: one question at a time.

    Args:
        sock: as :func:`fork` gave it.
        timeout_s: an answer that takes longer is given up, and so is the process: the next answer to come would be
            taken for another question's.
        gone: the error of a process that is dead, or was given up.
    """

    def __init__(self, sock: socket.socket, *, timeout_s: float, gone: Callable[[], CocoError]) -> None:
        sock.setblocking(False)
        self._socket, self._timeout_s, self._gone = sock, timeout_s, gone
        self._lock = asyncio.Lock()
        self._broken = False
        self._asked: set[asyncio.Task[bytes]] = set()

    async def ask(self, question: bytes) -> bytes:
        """The answer.

        Raises:
            CocoError: the process is gone.
        """
        # Whoever asked may leave; the exchange goes on to its end, so that the next one begins at a beginning.
        task = asyncio.get_running_loop().create_task(self._ask(question))
        self._asked.add(task)
        task.add_done_callback(self._asked.discard)
        return await asyncio.shield(task)

    async def _ask(self, question: bytes) -> bytes:
        loop = asyncio.get_running_loop()
        async with self._lock:
            if self._broken:
                raise self._gone()
            self._broken = True
            try:
                async with asyncio.timeout(self._timeout_s):
                    await loop.sock_sendall(self._socket, _SIZE.pack(len(question)) + question)
                    (size,) = _SIZE.unpack(await self._exactly(_SIZE.size))
                    answer = await self._exactly(size)
            except (OSError, TimeoutError) as error:
                raise self._gone() from error
            self._broken = False
            return answer

    async def _exactly(self, size: int) -> bytes:
        loop, data = asyncio.get_running_loop(), bytearray()
        while len(data) < size:
            more = await loop.sock_recv(self._socket, min(_READ_BYTES, size - len(data)))
            if not more:
                raise self._gone()
            data += more
        return bytes(data)
