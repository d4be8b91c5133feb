"""What a caller may cost: token buckets by caller, and room for answers under way. No I/O: time is an argument.

Rules:

* A request's cost is known before it runs, and is taken then, whole: a bucket may go into debt, which whoever comes
  next waits for in the order of arrival. Nobody waits longer than ``patience_s``: whoever would have to is refused and
  told when to come back; a cost that no waiting covers is refused for ever.
* Every actor has a bucket of its own. All who have shown nothing share one, which is small.
* Room is bytes of answers that are being made: it is given back, not earned by time. Whoever does not fit waits.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass

from coco import limits
from coco.errors import OverBudgetError

#: Of everybody who has shown no identity that counts.
ANONYMOUS = ""


@dataclass(frozen=True, slots=True)
class Rate:
    """What one caller may spend: so much a second, at most so much at once."""

    per_second: float
    most: float
    #: How long a caller may be kept waiting for what its bucket lacks.
    patience_s: float


class _Bucket:
    __slots__ = ("at_s", "left")

    def __init__(self, left: float, at_s: float) -> None:
        self.left, self.at_s = left, at_s


class Budget:
    """One kind of cost, for every caller.

    Args:
        name: what refusals call it.
        anonymous: the bucket that all share who have no name.
        actor: the bucket of each who has one.
    """

    def __init__(self, name: str, *, anonymous: Rate, actor: Rate) -> None:
        self.name, self._anonymous, self._actor = name, anonymous, actor
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()
        #: Requests that were refused.
        self.refused = 0

    def take(self, caller: str, cost: float, now_s: float) -> float:
        """Spend; how many seconds to wait before that which it pays for may begin (0: none).

        Raises:
            OverBudgetError: the caller must come back later (``budget.spent``), or never with so much at once
                (``budget.too_much``). Nothing was spent.
        """
        rate = self._actor if caller else self._anonymous
        bucket = self._buckets.get(caller)
        if bucket is None:
            bucket = self._add(caller, rate, now_s)
        left = bucket.left + (now_s - bucket.at_s) * rate.per_second
        left = min(left, rate.most) - cost
        if left >= 0:
            bucket.left, bucket.at_s = left, now_s
            return 0.0
        wait_s = -left / rate.per_second
        if wait_s > rate.patience_s:
            self.refused += 1
            raise self._refusal(rate, cost, wait_s)
        bucket.left, bucket.at_s = left, now_s
        return wait_s

    def owe(self, caller: str, cost: float, now_s: float) -> None:
        """Spend what nobody knew before: this caller's next request waits for it, or is refused."""
        rate = self._actor if caller else self._anonymous
        bucket = self._buckets.get(caller) or self._add(caller, rate, now_s)
        left = min(bucket.left + (now_s - bucket.at_s) * rate.per_second, rate.most) - cost
        bucket.left, bucket.at_s = max(left, -rate.patience_s * rate.per_second), now_s

    def _add(self, caller: str, rate: Rate, now_s: float) -> _Bucket:
        if len(self._buckets) >= limits.BUDGETS_MAX:
            # Actors are governed, so there are few; whoever is forgotten begins anew with a full bucket.
            self._buckets.popitem(last=False)
        bucket = self._buckets[caller] = _Bucket(rate.most, now_s)
        return bucket

    def _refusal(self, rate: Rate, cost: float, wait_s: float) -> OverBudgetError:
        whose = "actor" if rate is self._actor else "anonymous"
        most = rate.most + rate.patience_s * rate.per_second
        if cost > most:
            return OverBudgetError(
                f"this costs {cost:.0f} of the budget {whose}.{self.name}, which never holds more than {most:.0f}",
                code="budget.too_much",
                hint="ask for less at once: a smaller batch, a shorter range",
                budget=f"{whose}.{self.name}",
            )
        retry_s = max(wait_s - rate.patience_s, 0.001)
        return OverBudgetError(
            f"the budget {whose}.{self.name} is spent",
            code="budget.spent",
            hint=f"come back in {retry_s:.1f} s" + (", or show a certificate" if whose == "anonymous" else ""),
            budget=f"{whose}.{self.name}",
            retry_after_s=retry_s,
        )


class Pace:
    """When each piece of a caller's work begins, so that others have their turn between two of them.

    A bucket lets a caller do at once what it has saved; here it does at most one part of the time's work, however much
    it has saved and over however many connections.

    Args:
        part: of the time, for one caller.
    """

    def __init__(self, part: float) -> None:
        self._each_s = 1 / part
        self._next_s: OrderedDict[str, float] = OrderedDict()

    def wait_s(self, caller: str, work_s: float, now_s: float) -> float:
        """Seconds until a piece of so much work may begin, behind those of its caller that came before it."""
        begins_s = max(self._next_s.pop(caller, now_s), now_s)
        if len(self._next_s) >= limits.BUDGETS_MAX:
            self._next_s.popitem(last=False)
        self._next_s[caller] = begins_s + work_s * self._each_s
        return begins_s - now_s


class Room:
    """Bytes that answers may take while they are made: of each caller, and of all.

    Args:
        anonymous: of all together who have no name.
        actor: of each who has one.
        most: of all.
    """

    def __init__(self, *, anonymous: int, actor: int, most: int) -> None:
        self._anonymous, self._actor, self._most = anonymous, actor, most
        self._held: dict[str, int] = {}
        self._sum = 0
        self._waiting: deque[tuple[str, int, Callable[[], None]]] = deque()

    @property
    def held(self) -> int:
        """Bytes that are taken."""
        return self._sum

    def most_of(self, caller: str) -> int:
        """What one caller may hold."""
        return self._actor if caller else self._anonymous

    def _fits(self, caller: str, size: int) -> bool:
        held = self._held.get(caller, 0)
        # What is larger than all of a caller's room runs alone: an answer has a bound of its own.
        return held == 0 or (held + size <= self.most_of(caller) and self._sum + size <= self._most)

    def enter(self, caller: str, size: int, begin: Callable[[], None]) -> None:
        """Call ``begin`` once there is room, at once if there is; :meth:`leave` gives it back."""
        if not any(name == caller for name, _, _ in self._waiting) and self._fits(caller, size):
            self._take(caller, size)
            begin()
        else:
            self._waiting.append((caller, size, begin))

    def _take(self, caller: str, size: int) -> None:
        self._held[caller] = self._held.get(caller, 0) + size
        self._sum += size

    def leave(self, caller: str, size: int) -> None:
        """Give back; whoever waits and fits now begins, each caller's in their order."""
        left = self._held[caller] - size
        self._sum -= size
        if left:
            self._held[caller] = left
        else:
            del self._held[caller]
        begun, passed = [], set[str]()
        for _ in range(len(self._waiting)):
            name, wanted, begin = self._waiting.popleft()
            if name not in passed and self._fits(name, wanted):
                self._take(name, wanted)
                begun.append(begin)
            else:
                passed.add(name)
                self._waiting.append((name, wanted, begin))
        for begin in begun:
            begin()

    def forget(self, begin: Callable[[], None]) -> bool:
        """Who waits does so no more; False if it has begun."""
        before = len(self._waiting)
        self._waiting = deque(one for one in self._waiting if one[2] is not begin)
        return len(self._waiting) < before
