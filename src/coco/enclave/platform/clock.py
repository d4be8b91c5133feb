"""Enclave time (H5): the host's clock, never backwards, in bounded steps, and never far beyond what most nodes say.

At a start the host's clock is compared with what the node will go by: a joiner's with the network's time, which it then
takes; whoever recovers a ledger has its end alone, and an operator's word for a ledger that slept long, or for a wrong
clock that was believed before and is right now. Time affects no safety decision.
"""

from __future__ import annotations

from collections.abc import Sequence

from coco import limits
from coco.errors import AccessError, LedgerError


def compare_with_ledger(host_ms: int, end_ms: int, *, gap_s: int, skew_s: int) -> None:
    """Whether a host's clock can be right, by the end of the ledger that is to be recovered.

    Args:
        host_ms: what the host says.
        end_ms: when the last signature of the ledger was made.
        gap_s: furthest ahead: so long the ledger may have slept.
        skew_s: furthest behind.

    Raises:
        LedgerError: too far ahead (``clock.ahead_of_the_ledger``) or behind (``clock.behind_the_ledger``).
    """
    ahead_s = (host_ms - end_ms) // 1000
    if ahead_s > gap_s:
        raise LedgerError(
            "the host's clock is far ahead of the ledger",
            code="clock.ahead_of_the_ledger",
            numbers={"seconds": ahead_s, "most": gap_s},
        )
    if -ahead_s > skew_s:
        raise LedgerError(
            "the host's clock is behind the ledger",
            code="clock.behind_the_ledger",
            numbers={"seconds": -ahead_s, "most": skew_s},
        )


def compare_with_network(host_ms: int, network_ms: int, *, skew_s: int) -> None:
    """Whether the clock of a joiner's host is near the network's time.

    Raises:
        AccessError: it is not (``join.clock_ahead``, ``join.clock_behind``).
    """
    ahead_s = (host_ms - network_ms) // 1000
    if abs(ahead_s) > skew_s:
        raise AccessError(
            f"the clock of the joiner's host is {abs(ahead_s)} s {'ahead' if ahead_s > 0 else 'behind'}",
            code="join.clock_ahead" if ahead_s > 0 else "join.clock_behind",
            numbers={"seconds": abs(ahead_s), "most": skew_s},
        )


class Clock:
    """Follows the host's time from where it starts, or from what is committed, if that is later."""

    def __init__(self, host_ms: int, committed_ms: int = 0) -> None:
        self._now_ms = max(host_ms, committed_ms)
        #: Ticks in which the host's step was larger than allowed.
        self.clipped = 0

    @property
    def now_ms(self) -> int:
        """Milliseconds since the Unix epoch."""
        return self._now_ms

    def at_least(self, committed_ms: int) -> None:
        """An entry of that time is committed."""
        self._now_ms = max(self._now_ms, committed_ms)

    def tick(self, host_ms: int, ceiling_ms: int | None = None) -> None:
        """Follow one tick of the host, which comes about once a second, but not beyond ``ceiling_ms``."""
        if ceiling_ms is not None and host_ms > ceiling_ms:
            self.clipped += 1
            host_ms = ceiling_ms
        step = host_ms - self._now_ms
        if step > limits.TIME_STEP_MS_MAX:
            self.clipped += 1
            step = limits.TIME_STEP_MS_MAX
        if step > 0:
            self._now_ms += step


class Agreement:
    """What the hosts of the voters say of the time: each says it to every node, about once a second.

    Args:
        bound_ms: how far a host's clock may be ahead of their median.
    """

    def __init__(self, bound_ms: int) -> None:
        self._bound_ms = bound_ms
        #: Of each node: what its host said, and when that was heard.
        self._said: dict[int, tuple[int, float]] = {}

    def heard(self, node: int, host_ms: int, loop_s: float) -> None:
        """A node's host says that it is ``host_ms``; the event loop's clock says ``loop_s``."""
        self._said[node] = host_ms, loop_s

    def reached(self, loop_s: float) -> set[int]:
        """Nodes that were heard of lately."""
        return {node for node, (_, at) in self._said.items() if loop_s - at < limits.TIME_SAID_SECONDS_MAX}

    def ceiling_alone_ms(self, now_ms: int, passed_s: float) -> int:
        """The same while a majority has not been heard of: a host alone moves the time as fast as it passes."""
        return now_ms + int(1000 * passed_s) + limits.TIME_STEP_ALONE_MS

    def ceiling_ms(self, voters: Sequence[int], loop_s: float) -> int | None:
        """The latest time that a host may say now; None while a majority of the voters has not been heard of lately."""
        self._said = {
            node: said for node, said in self._said.items() if loop_s - said[1] < limits.TIME_SAID_SECONDS_MAX
        }
        times = [host_ms + int(1000 * (loop_s - at)) for node, (host_ms, at) in self._said.items() if node in voters]
        if len(times) <= len(voters) // 2:
            return None
        # Of an even number the lower one: a liar among two is then the other's, never its own judge.
        return sorted(times)[(len(times) - 1) // 2] + self._bound_ms
