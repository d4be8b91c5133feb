"""Turns at something that only so many can have at once: by who asks, not by who came first.

Rules: nobody has more than a part of the places, so that another one finds a place free; who waits is served in turn by
actor, and each actor's own in the order in which they came; what an actor may have waiting is bounded.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar

from coco.errors import BusyError

#: Whose request the current task serves (:attr:`Caller.actor`); all who are anonymous are one.
ASKING: ContextVar[str] = ContextVar("asking", default="")


class Turns:
    """So many places, so many of them for one actor, and a queue for each."""

    def __init__(self, places: int, *, per_actor: int, waiting_max: int, code: str) -> None:
        self._places, self._per_actor = places, per_actor
        self._waiting_max, self._code = waiting_max, code
        self._taken: dict[str, int] = {}
        self._free = places
        #: Who waits; the first actor's turn is next.
        self._queues: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    @asynccontextmanager
    async def turn(self, actor: str) -> AsyncIterator[None]:
        """Have a place, as soon as it is this actor's turn.

        Raises:
            BusyError: the actor has too many waiting.
        """
        await self.enter(actor)
        try:
            yield
        finally:
            self.leave(actor)

    async def enter(self, actor: str) -> None:
        """Take a place, which must be given back by ``leave``."""
        if self._free and self._taken.get(actor, 0) < self._per_actor:
            self._take(actor)
            return
        queue = self._queues.setdefault(actor, deque())
        if len(queue) >= self._waiting_max:
            raise BusyError("you have too many requests waiting; try again later", code=self._code)
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        queue.append(place)
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                self.leave(actor)  # it was given in the same moment
            raise

    def _take(self, actor: str) -> None:
        self._free -= 1
        self._taken[actor] = self._taken.get(actor, 0) + 1

    def leave(self, actor: str) -> None:
        """Give a place back; whoever is next gets it."""
        self._free += 1
        left = self._taken.pop(actor) - 1
        if left:
            self._taken[actor] = left
        while self._free and self._serve_one():
            pass

    def _serve_one(self) -> bool:
        for actor, queue in self._queues.items():
            if self._taken.get(actor, 0) >= self._per_actor:
                continue
            while queue:
                place = queue.popleft()
                if not place.done():  # else whoever waited is gone
                    self._take(actor)
                    place.set_result(None)
                    break
            if queue:
                self._queues.move_to_end(actor)
            else:
                del self._queues[actor]
            return True
        return False
