"""Who is let in when: the budgets of every caller (``budget.py``) on the event loop, for all listeners of a node.

A request that its caller's budget does not cover yet waits; one that would wait too long is refused, and hears of it
only after a while, so that asking again at once gains nothing. Strangers are refused so many times a second at most.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager

from coco import limits
from coco.enclave.adapters.contract import Caller
from coco.enclave.api.budget import Budget, Pace, Rate, Room
from coco.errors import OverBudgetError

#: Microseconds of the event loop: a request, whatever it asks; and each kilobyte of its body, which is decoded.
REQUEST_WORK_US = 60
_BODY_WORK_US_PER_KIB = 20
#: Each kilobyte of an answer, which is written, sealed and carried: known once it is there.
_ANSWER_WORK_US_PER_KIB = 8
#: Work of one caller that waits so long, or less, begins at once.
_PACE_SECONDS_MIN = 0.001
#: An answer smaller than this needs no room.
_ROOM_BYTES_MIN = 256 * limits.KIB


def is_signed(method: str, headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether a request says that it carries its own signature; whoever lies gets a refusal for it."""
    return method == "POST" and any(n == b"content-type" and v.startswith(b"application/cose") for n, v in headers)


def request_work_us(body: int) -> int:
    """Work that a request costs before anything of it is known but its size."""
    return REQUEST_WORK_US + body * _BODY_WORK_US_PER_KIB // 1024


class Admission:
    """Of one node.

    Args:
        now_s: a clock that only goes forward; the event loop's if none is given.
    """

    def __init__(self, now_s: Callable[[], float] | None = None) -> None:
        self._now_s = now_s or asyncio.get_running_loop().time
        self.work = Budget(
            "work",
            anonymous=Rate(
                limits.ANONYMOUS_WORK_US_PER_SECOND,
                limits.ANONYMOUS_WORK_US_MAX,
                limits.ANONYMOUS_PATIENCE_SECONDS_MAX,
            ),
            actor=Rate(limits.ACTOR_WORK_US_PER_SECOND, limits.ACTOR_WORK_US_MAX, limits.ACTOR_PATIENCE_SECONDS_MAX),
        )
        signed = Rate(limits.SIGNED_WORK_US_PER_SECOND, limits.SIGNED_WORK_US_MAX, limits.ACTOR_PATIENCE_SECONDS_MAX)
        #: Of requests that are signed themselves, whatever the connection shows.
        self.signed = Budget("signed", anonymous=signed, actor=signed)
        #: When calls that are paid for begin.
        self._pace = Pace(limits.CALLER_WORK_PART)
        self.room = Room(
            anonymous=limits.ANONYMOUS_ANSWERS_BYTES_MAX,
            actor=limits.ACTOR_ANSWERS_BYTES_MAX,
            most=limits.ANSWERS_BYTES_MAX,
        )
        #: When the last refusal of a stranger is told.
        self._told_at_s = 0.0

    def take(self, caller: Caller, work_us: float) -> float:
        """Spend; seconds to wait before it may begin.

        Raises:
            OverBudgetError: refused; to be told after :meth:`refusal_s`.
        """
        return self.work.take(caller.actor, work_us, self._now_s())

    async def turn(self, caller: Caller, work_us: float) -> None:
        """Wait until a call that is paid for may begin: between two costly ones of a caller others have their turn."""
        wait_s = self._pace.wait_s(caller.actor, work_us / 1e6, self._now_s())
        if wait_s > _PACE_SECONDS_MIN:
            await asyncio.sleep(wait_s)

    def answered(self, caller: Caller, size: int) -> None:
        """An answer of so many bytes leaves: its caller owes for it."""
        self.work.owe(caller.actor, size * _ANSWER_WORK_US_PER_KIB // 1024, self._now_s())

    def refusal_s(self, caller: Caller) -> float:
        """How long a refusal waits until it is told; those of strangers are told one after the other."""
        if caller.actor:
            return limits.REFUSAL_SECONDS
        now_s = self._now_s()
        self._told_at_s = max(now_s + limits.REFUSAL_SECONDS, self._told_at_s + 1 / limits.REFUSALS_PER_SECOND_MAX)
        return self._told_at_s - now_s

    async def pay(self, caller: Caller, work_us: float, *, signed: bool = False) -> None:
        """Spend, and wait until it may begin.

        Args:
            caller: who pays.
            work_us: what.
            signed: whether it is a request that carries its own signature.

        Raises:
            OverBudgetError: refused, and held.
        """
        try:
            budget = self.signed if signed else self.work
            wait_s = budget.take(caller.actor, work_us, self._now_s())
        except OverBudgetError:
            await asyncio.sleep(self.refusal_s(caller))
            raise
        if wait_s:
            await asyncio.sleep(wait_s)

    async def pace(self, caller: Caller, work_us: float) -> None:
        """The same for what the node does by itself for a caller: it waits as long as it must."""
        while True:
            try:
                wait_s = self.take(caller, work_us)
            except OverBudgetError:
                await asyncio.sleep(limits.REFUSAL_SECONDS)
            else:
                if wait_s:
                    await asyncio.sleep(wait_s)
                return

    @asynccontextmanager
    async def answering(self, caller: Caller, size: int) -> AsyncIterator[None]:
        """Room for an answer of so many bytes, in which it is made."""
        size = min(size, self.room.most_of(caller.actor))
        if size < _ROOM_BYTES_MIN:
            yield
            return
        entered: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def begin() -> None:
            if entered.cancelled():
                self.room.leave(caller.actor, size)
            else:
                entered.set_result(None)

        self.room.enter(caller.actor, size, begin)
        try:
            await entered
        except asyncio.CancelledError:
            if entered.done() and not entered.cancelled():
                self.room.leave(caller.actor, size)
            else:
                self.room.forget(begin)
            raise
        try:
            yield
        finally:
            self.room.leave(caller.actor, size)
