"""The pool of one adapter: checked transactions that wait for a batch.

Rules: positions of a lane run without gap; a lane whose head can run is ready; every bound has a name in
:mod:`coco.limits` and a full pool answers at once with ``pool.full``; nothing waits for ever.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

from coco import limits
from coco.enclave.adapters.base import Envelope, PoolPolicy
from coco.enclave.store import StoreView
from coco.errors import BusyError, CocoError, RequestError


@dataclass(slots=True)
class _Lane:
    #: Position that runs next, counting what has been taken.
    next: int
    #: Whether its envelopes carry positions. If not, they run as they arrive, and the pool counts: without gap.
    numbered: bool
    waiting: dict[int, tuple[Envelope, int]] = field(default_factory=dict)
    #: Taken and not yet done: while there are any, the lane keeps its place.
    running: int = 0


class Pool:
    """Lanes of envelopes; single-threaded, without I/O and without clock."""

    def __init__(self, policy: PoolPolicy) -> None:
        self.policy = policy
        self._lanes: dict[Hashable, _Lane] = {}
        self._ready: OrderedDict[Hashable, None] = OrderedDict()
        self._by_id: dict[bytes, Envelope] = {}
        self._taken: dict[bytes, Envelope] = {}
        #: Pushed out by another one since somebody asked.
        self._replaced: list[Envelope] = []
        #: Those that may be why so many primaries died (G3).
        self._suspects: dict[bytes, int] = {}
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._by_id)

    @property
    def ready(self) -> bool:
        """Whether a batch could be made now."""
        return bool(self._ready)

    def get(self, identity: bytes) -> Envelope | None:
        """A waiting or running envelope by its id."""
        return self._by_id.get(identity) or self._taken.get(identity)

    def pending_position(self, lane_key: Hashable) -> int | None:
        """The first position of a lane that nothing occupies, or None when the lane is empty."""
        lane = self._lanes.get(lane_key)
        if lane is None:
            return None
        position = lane.next
        while position in lane.waiting:
            position += 1
        return position

    def add(self, envelopes: Sequence[Envelope], view: StoreView, time_ms: int) -> list[CocoError | None]:
        """Take envelopes in; for each None or the reason of the refusal."""
        unknown = {e.lane: e.position is not None for e in envelopes if e.lane not in self._lanes}
        numbered = [lane for lane, is_numbered in unknown.items() if is_numbered]
        following = dict(zip(numbered, self.policy.next_positions(numbered, view), strict=True)) if numbered else {}
        for lane, is_numbered in unknown.items():
            self._lanes[lane] = _Lane(following.get(lane, 0), is_numbered)
        verdicts = list(self.policy.check(envelopes, view))
        for index, envelope in enumerate(envelopes):
            if verdicts[index] is None:
                verdicts[index] = self._add(envelope, time_ms)
        for lane in unknown:
            if not self._lanes[lane].waiting:
                del self._lanes[lane]
        return verdicts

    def _add(self, envelope: Envelope, time_ms: int) -> CocoError | None:
        if envelope.id in self._by_id or envelope.id in self._taken:
            return RequestError("already known", code="pool.already_known")
        lane_key, position = envelope.lane, envelope.position
        lane = self._lanes[lane_key]
        if (position is not None) != lane.numbered:
            return RequestError("the envelopes of a lane all carry positions, or none does", code="pool.mixed_lane")
        if position is None:
            position = lane.next + len(lane.waiting)
        if position < lane.next:
            return RequestError("nonce too low", code="pool.position_passed")
        old = lane.waiting.get(position)
        if old is not None:
            refusal = self.policy.replaces(envelope, old[0])
            if refusal is not None:
                return refusal
            self._forget(old[0])
            self._replaced.append(old[0])
        elif lane.numbered and len(lane.waiting) >= limits.POOL_LANE_MAX:
            return BusyError("this account has too many transactions waiting", code="pool.lane_full")
        elif len(self._by_id) >= limits.POOL_TRANSACTIONS_MAX or self._bytes + envelope.size > limits.POOL_BYTES_MAX:
            return BusyError("the pool is full; try again later", code="pool.full")
        lane.waiting[position] = (envelope, time_ms)
        self._by_id[envelope.id] = envelope
        self._bytes += envelope.size
        if position == lane.next:
            self._ready[lane_key] = None
        return None

    def take_replaced(self) -> list[Envelope]:
        """Those that another one has pushed out since the last call."""
        replaced, self._replaced = self._replaced, []
        return replaced

    def _forget(self, envelope: Envelope) -> None:
        self._by_id.pop(envelope.id, None)
        self._bytes -= envelope.size

    def suspect(self, identity: bytes, outlived: int) -> None:
        """So many primaries died while they executed this one; from the second on it runs beside no other."""
        if identity in self._by_id:
            self._suspects[identity] = outlived

    def take(self, count: int, size: int, *, outlived: int = 0) -> list[Envelope]:
        """The next batch: at most ``count`` envelopes and about ``size`` bytes, lanes in turn.

        Args:
            count: most envelopes.
            size: bytes after which the batch is full.
            outlived: what may have ended more primaries than so many does not run now.
        """
        batch: list[Envelope] = []
        taken_bytes = 0
        blocked: dict[bytes, Hashable] = {}
        while self._ready and len(batch) < count and taken_bytes < size:
            lane_key, _ = self._ready.popitem(last=False)
            lane = self._lanes[lane_key]
            envelope, _ = lane.waiting[lane.next]
            is_late = any(needed in self._by_id for needed in envelope.depends_on)
            deaths = self._suspects.get(envelope.id, 0)
            if is_late or deaths > outlived or (deaths > 1 and batch):
                if not lane.numbered and envelope.id not in blocked:
                    # It waits behind what arrived later, which may be what it needs.
                    self._to_the_end(lane)
                    self._ready[lane_key] = None
                blocked[envelope.id] = lane_key
                continue
            del lane.waiting[lane.next]
            lane.next += 1
            lane.running += 1
            self._forget(envelope)
            self._taken[envelope.id] = envelope
            batch.append(envelope)
            taken_bytes += envelope.size
            if lane.next in lane.waiting:
                self._ready[lane_key] = None
            if deaths > 1:
                break
        for lane_key in blocked.values():
            lane = self._lanes[lane_key]
            if lane.next in lane.waiting:
                self._ready[lane_key] = None
        return batch

    @staticmethod
    def _to_the_end(lane: _Lane) -> None:
        head = lane.waiting.pop(lane.next)
        lane.next += 1
        lane.waiting[lane.next + len(lane.waiting)] = head

    def done(self, batch: Sequence[Envelope]) -> None:
        """These were included or refused: the pool has nothing to do with them any more."""
        for envelope in batch:
            self._taken.pop(envelope.id, None)
            self._suspects.pop(envelope.id, None)
            lane = self._lanes[envelope.lane]
            lane.running -= 1
            if not lane.running and not lane.waiting:
                self._drop_if_empty(envelope.lane)

    def forget(self, batch: Sequence[Envelope]) -> None:
        """These were taken, and nobody knows what became of them: the pool has nothing to do with them any more."""
        for envelope in batch:
            if self._taken.pop(envelope.id, None) is None:
                continue  # the pool was cleared meanwhile
            self._lanes[envelope.lane].running -= 1
            self._drop_if_empty(envelope.lane)

    def clear(self) -> None:
        """Drop everything, what was taken included."""
        self._lanes.clear()
        self._ready.clear()
        self._by_id.clear()
        self._taken.clear()
        self._suspects.clear()
        self._bytes = 0

    def refresh(self, lanes: Sequence[Hashable], view: StoreView) -> None:
        """Set where lanes go on from the state, after a refusal or a roll-back left a gap."""
        known = [key for key in dict.fromkeys(lanes) if key in self._lanes and self._lanes[key].numbered]
        for key, following in zip(known, self.policy.next_positions(known, view), strict=True):
            lane = self._lanes[key]
            lane.next = following
            for position in [position for position in lane.waiting if position < following]:
                self._forget(lane.waiting.pop(position)[0])
            self._ready.pop(key, None)
            if following in lane.waiting:
                self._ready[key] = None
            self._drop_if_empty(key)

    def give_back(self, batch: Sequence[Envelope], view: StoreView, time_ms: int) -> None:
        """Put taken envelopes back at the head of their lanes."""
        for envelope in reversed(batch):
            self._taken.pop(envelope.id, None)
            key, position = envelope.lane, envelope.position
            lane = self._lanes[key]
            lane.running -= 1
            lane.next = lane.next - 1 if position is None else min(lane.next or position, position)
            lane.waiting[lane.next if position is None else position] = (envelope, time_ms)
            self._by_id[envelope.id] = envelope
            self._bytes += envelope.size
            self._ready[key] = None
        numbered = {envelope.lane for envelope in batch if envelope.position is not None}
        if numbered:
            self.refresh(list(numbered), view)

    def expire(self, before_ms: int) -> list[Envelope]:
        """Drop what arrived before ``before_ms``."""
        dropped: list[Envelope] = []
        for key, lane in list(self._lanes.items()):
            old = [p for p, (_, arrived) in lane.waiting.items() if arrived < before_ms]
            for position in old:
                envelope, _ = lane.waiting.pop(position)
                self._forget(envelope)
                dropped.append(envelope)
            if old and not lane.numbered:
                left = [lane.waiting[position] for position in sorted(lane.waiting)]
                lane.waiting = dict(enumerate(left, lane.next))
            if lane.next not in lane.waiting:
                self._ready.pop(key, None)
            self._drop_if_empty(key)
        return dropped

    def _drop_if_empty(self, key: Hashable) -> None:
        lane = self._lanes.get(key)
        if lane is not None and not lane.waiting and not lane.running:
            self._ready.pop(key, None)
            del self._lanes[key]
