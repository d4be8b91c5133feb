"""How long a node may answer by itself before a majority must confirm that it still knows the present (G5).

The first request of a connection waits for a round among the nodes. Every answer after it rests on decisions about who
may ask and see what, and those grow old: they are counted, not timed, because the host owns the clock. A node that is
cut off answers at most ``limits.ANSWERS_PER_ROUND_MAX`` requests more, then none. A round begins when half of them are
spent, so that on a whole network nobody waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from coco import limits
from coco.errors import BusyError

#: Waits until what is served is new enough: not before a transaction id, and (if so asked) confirmed by a majority.
Readable = Callable[[bytes | None, bool], Awaitable[None]]


class Freshness:
    """Of one listener.

    Args:
        readable: see above; None where nothing grows old.
    """

    def __init__(self, readable: Readable | None) -> None:
        self._readable = readable
        #: Connections whose first request was confirmed.
        self._confirmed: set[int] = set()
        self._answers, self._confirmed_at = 0, 0
        self._round: asyncio.Task[None] | None = None

    def may_answer(self, connection: int) -> bool:
        """Whether a request of this connection may be answered at once; then it counts as answered."""
        if self._readable is None:
            return True
        spent = self._answers - self._confirmed_at
        if connection not in self._confirmed or spent >= limits.ANSWERS_PER_ROUND_MAX:
            return False
        self._answers += 1
        if spent >= limits.ANSWERS_PER_ROUND_MAX // 2 and self._round is None:
            self._round = asyncio.get_running_loop().create_task(self._in_background())
        return True

    async def _in_background(self) -> None:
        try:
            await self._confirm(None)
        except BusyError:
            pass  # whoever asks once they are spent is told
        finally:
            self._round = None

    async def _confirm(self, floor: bytes | None) -> None:
        assert self._readable is not None, "who has nobody to ask never needs a round"
        begun_at = self._answers
        await self._readable(floor, True)
        self._confirmed_at = max(self._confirmed_at, begun_at)

    async def wait(self, connection: int, floor: bytes | None, linearizable: bool) -> None:
        """Wait until a request may be answered that wants more, or may not be answered at once.

        Args:
            connection: whose request it is.
            floor: transaction id that must be committed here; None if the client names none.
            linearizable: whether the client wants a round of its own.

        Raises:
            CocoError: it may not, with a reason to try again.
        """
        if self._readable is None:
            return
        if linearizable or not self.may_answer(connection):
            await self._confirm(floor)
            self._answers += 1
            self._confirmed.add(connection)
        elif floor is not None:
            await self._readable(floor, False)

    def forget(self, connection: int) -> None:
        """A connection has ended."""
        self._confirmed.discard(connection)
