"""What a node's enclave sees of the world, in memory: a host that keeps entries, and links that carry at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

from coco.enclave.platform.externals import Sessions
from coco.enclave.transport.links import Serve
from coco.errors import BusyError


class MemoryHost:
    """Keeps the entries of one node; whatever is written is durable a moment later."""

    def __init__(self) -> None:
        self.on_appended: Callable[[int], None] | None = None
        self.entries: list[bytes] = []
        #: What the enclave logged: event, numbers, ids.
        self.lines: list[tuple[str, dict[str, int], dict[str, str]]] = []
        self.externals = Sessions(lambda message: None)
        self.appended_bytes = 0

    def append(self, seqno: int, entry: bytes) -> None:
        """Keep the next entry."""
        del self.entries[seqno - 1 :]
        self.entries.append(entry)
        self.appended_bytes += len(entry)
        asyncio.get_running_loop().call_soon(self._durable, seqno)

    def _durable(self, seqno: int) -> None:
        if self.on_appended is not None and seqno <= len(self.entries):
            self.on_appended(seqno)

    def cut(self, seqno: int) -> None:
        """Forget what is above."""
        del self.entries[seqno:]

    async def read(self, first: int, last: int) -> list[bytes]:
        """Entries, both ends included."""
        return self.entries[first - 1 : last]

    async def room(self) -> None:
        """There is always room."""

    def log(self, code: str, numbers: dict[str, int] | None = None, ids: dict[str, str] | None = None) -> None:
        """Keep a line of the log."""
        self.lines.append((code, numbers or {}, ids or {}))


class MemoryLink:
    """The way to one other node."""

    def __init__(self, net: MemoryNet, sender: int, receiver: int) -> None:
        self._net, self._sender, self._receiver = net, sender, receiver

    async def ask(self, kind: str, body: bytes, *, timeout_s: float) -> bytes:
        """The other node's answer."""
        other = self._net.alive.get(self._receiver)
        if other is None or self._sender not in self._net.alive or other.serve is None:
            raise BusyError("the node cannot be reached", code="peers.unreachable")
        async with asyncio.timeout(timeout_s):
            answer: bytes = await other.serve(self._sender, b"", kind, body)
            return answer


class MemoryLinks:
    """One node's links."""

    def __init__(self, net: MemoryNet, node: int) -> None:
        self._net, self._node = net, node
        self.on_tell: Callable[[int, str, bytes], None] = lambda sender, kind, body: None
        self.on_lost: Callable[[int], None] = lambda node: None
        self.serve: Serve | None = None
        net.alive[node] = self

    def to(self, node: int) -> MemoryLink | None:
        """The way to a node that is there."""
        return MemoryLink(self._net, self._node, node) if node in self._net.alive else None

    def tell(self, node: int, kind: str, body: bytes) -> bool:
        """Carry a message, as long as both live."""
        if node not in self._net.alive:
            return False
        asyncio.get_running_loop().call_soon(partial(self._net.carry, self._node, node, kind, body))
        return True

    async def written(self) -> None:
        """What was told has left."""

    def dial_as(self, *certificates: Any) -> None:
        """Nobody asks who dials."""

    def accept_as(self, *certificates: Any) -> None:
        """Nobody asks who accepts."""


class MemoryNet:
    """Everybody who can be reached."""

    def __init__(self) -> None:
        self.alive: dict[int, MemoryLinks] = {}

    def carry(self, sender: int, receiver: int, kind: str, body: bytes) -> None:
        """Deliver, if both still live."""
        if sender in self.alive and receiver in self.alive:
            self.alive[receiver].on_tell(sender, kind, body)

    def lose(self, node: int) -> None:
        """Nobody reaches this one any more."""
        del self.alive[node]
        for other in self.alive.values():
            other.on_lost(node)
