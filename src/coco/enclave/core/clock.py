"""Enclave time: the host's clock, never backwards and only in bounded steps (H5). Time affects no safety decision."""

from __future__ import annotations

from coco import limits


class Clock:
    """Follows the host's time; at a start it takes it as it is, unless the ledger is later."""

    def __init__(self, host_ms: int, committed_ms: int = 0) -> None:
        self._now_ms = max(host_ms, committed_ms)
        #: Ticks in which the host's step was larger than allowed.
        self.clipped = 0

    @property
    def now_ms(self) -> int:
        """Milliseconds since the Unix epoch."""
        return self._now_ms

    def tick(self, host_ms: int) -> None:
        """Follow one tick of the host, which comes about once a second."""
        step = host_ms - self._now_ms
        if step > limits.TIME_STEP_MS_MAX:
            self.clipped += 1
            step = limits.TIME_STEP_MS_MAX
        if step > 0:
            self._now_ms += step
