"""The pool of one adapter: checked transactions that wait for a batch, shared fairly by those who handed them in.

Rules: positions of a lane run without gap; a lane whose head can run is ready; every bound has a name in
:mod:`coco.limits`, also what one actor may fill, and a full pool answers at once with ``pool.full``; nothing waits for
ever.

An *actor* is who handed a transaction in, not the account that signed it. Actors take turns (deficit round robin): a
turn is worth ``PoolPolicy.turn`` of the cost that the adapter gives each envelope, what is left of it is kept while the
actor has something that waits, and within an actor its lanes take turns. Cost is known before and wrong by its nature;
so the pool also hears how long each actor's envelopes really took (:meth:`Pool.spent`). Whoever took long *rests* while
somebody else is active who did not: it has at most a quarter of the writer's time then, and all of it when it is alone.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field

from coco import limits
from coco.enclave.adapters.contract import Envelope, PoolPolicy
from coco.enclave.store import StoreView
from coco.errors import BusyError, CocoError, RequestError

#: A rest is so many times as long as what it is for.
_REST = 3
#: Turns that one envelope may cost at most: whatever it says that it costs, it runs.
_TURNS_MAX = 64


@dataclass(slots=True)
class _Lane:
    #: TransactionId that runs next, counting what has been taken.
    next: int
    #: Whether its envelopes carry positions. If not, they run as they arrive, and the pool counts: without gap.
    numbered: bool
    waiting: dict[int, tuple[Envelope, int]] = field(default_factory=dict)
    #: Taken and not yet done: while there are any, the lane keeps its place.
    running: int = 0


@dataclass(slots=True)
class _Share:
    """What one actor has in the pool, and what it is due."""

    #: Lanes whose head is this actor's and can run; the first one's turn is next.
    ready: OrderedDict[Hashable, None] = field(default_factory=OrderedDict)
    #: Cost that it may still take in this turn.
    deficit: int = 0
    #: Waiting envelopes and their bytes.
    count: int = 0
    size: int = 0
    #: Seconds of the writer's time that it has to rest for, as they stood at ``owed_at_s``.
    owes_s: float = 0.0
    owed_at_s: float = 0.0
    #: When it last handed something in.
    seen_s: float = float("-inf")

    def owed_s(self, now_s: float) -> float:
        """What is left of the debt: time pays it off."""
        return max(0.0, self.owes_s - max(0.0, now_s - self.owed_at_s) / _REST)

    def rest_s(self, now_s: float) -> float:
        """How long it would rest from now on; 0 if it need not."""
        return max(0.0, self.owed_s(now_s) - limits.POOL_DEBT_MS_MAX / 1000) * _REST


class Pool:
    """Lanes of envelopes; single-threaded, without I/O and without clock."""

    def __init__(self, policy: PoolPolicy) -> None:
        self.policy = policy
        self._lanes: dict[Hashable, _Lane] = {}
        self._shares: dict[str, _Share] = {}
        #: Actors that have a lane that is ready; the first one's turn is next.
        self._ring: OrderedDict[str, None] = OrderedDict()
        self._by_id: dict[bytes, Envelope] = {}
        self._taken: dict[bytes, Envelope] = {}
        #: What waits for others (``depends_on``), outside its lane: when it came, and which others are not done yet.
        self._parked: dict[bytes, tuple[Envelope, int, set[bytes]]] = {}
        #: Who waits for an id.
        self._dependants: dict[bytes, list[bytes]] = {}
        #: Pushed out by another one since somebody asked.
        self._replaced: list[Envelope] = []
        #: Those that may be why so many primaries died (G3).
        self._suspects: dict[bytes, int] = {}
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._by_id)

    @property
    def ready(self) -> bool:
        """Whether a batch could be made, now or when whoever rests has rested."""
        return bool(self._ring)

    def rest_s(self, now_s: float) -> float:
        """How long everybody who has something that is ready rests from now on; 0 if somebody does not."""
        resting = self._resting(now_s)
        if len(resting) < len(self._ring) or not resting:
            return 0.0
        return min(self._shares[actor].rest_s(now_s) for actor in resting)

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

    # --- in ---

    def add(
        self, envelopes: Sequence[Envelope], view: StoreView, time_ms: int, *, now_s: float = 0.0
    ) -> list[CocoError | None]:
        """Take envelopes in; for each None or the reason of the refusal.

        Args:
            envelopes: what was handed in.
            view: the newest state.
            time_ms: of the enclave, for their expiry.
            now_s: of a clock that only ever rises, for the shares.
        """
        unknown = {e.lane: e.position is not None for e in envelopes if e.lane not in self._lanes}
        numbered = [lane for lane, is_numbered in unknown.items() if is_numbered]
        following = dict(zip(numbered, self.policy.next_positions(numbered, view), strict=True)) if numbered else {}
        for lane, is_numbered in unknown.items():
            self._lanes[lane] = _Lane(following.get(lane, 0), is_numbered)
        verdicts = list(self.policy.check(envelopes, view))
        for index, envelope in enumerate(envelopes):
            if verdicts[index] is None:
                missing = self._missing(envelope, view) if envelope.depends_on else None
                verdicts[index] = self._add(envelope, time_ms, now_s, missing)
        for lane in unknown:
            if not self._lanes[lane].waiting:
                del self._lanes[lane]
        return verdicts

    def _missing(self, envelope: Envelope, view: StoreView) -> set[bytes]:
        """What its protocol says that an envelope has to wait for, be it here or not."""
        executed = self.policy.executed(envelope.depends_on, view)
        return {needed for needed, is_done in zip(envelope.depends_on, executed, strict=True) if not is_done}

    def _add(
        self, envelope: Envelope, time_ms: int, now_s: float, missing: set[bytes] | None = None
    ) -> CocoError | None:
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
        share = self._shares.get(envelope.actor) or self._share(envelope.actor)
        old = lane.waiting.get(position)
        if old is not None:
            refusal = self.policy.replaces(envelope, old[0])
            if refusal is not None:
                return refusal
            if position == lane.next and old[0].actor != envelope.actor:
                self._unready(lane_key, lane)
            self._forget(old[0], self._shares[old[0].actor])
            self._replaced.append(old[0])
        elif lane.numbered and len(lane.waiting) >= limits.POOL_LANE_MAX:
            return BusyError("this account has too many transactions waiting", code="pool.lane_full")
        elif len(self._by_id) >= limits.POOL_TRANSACTIONS_MAX or self._bytes + envelope.size > limits.POOL_BYTES_MAX:
            return BusyError("the pool is full; try again later", code="pool.full")
        elif (
            share.count >= limits.POOL_ACTOR_TRANSACTIONS_MAX
            or share.size + envelope.size > limits.POOL_ACTOR_BYTES_MAX
        ):
            return BusyError("you have too many transactions waiting; try again later", code="pool.actor_full")
        if now_s > share.seen_s:
            share.seen_s = now_s
        self._enter(envelope, share)
        if missing:
            self._parked[envelope.id] = envelope, time_ms, missing
            for identity in missing:
                self._dependants.setdefault(identity, []).append(envelope.id)
            return None
        lane.waiting[position] = (envelope, time_ms)
        if position == lane.next:
            self._make_ready(lane_key, lane)
        return None

    def release(self, done: Sequence[bytes]) -> None:
        """These are done, here or elsewhere: what waited for the last of them enters its lane."""
        if not self._dependants:
            return
        for identity in done:
            for dependant in self._dependants.pop(identity, ()):
                parked = self._parked.get(dependant)
                if parked is None:
                    continue
                envelope, time_ms, missing = parked
                missing.discard(identity)
                if not missing:
                    self._unpark(envelope, time_ms)

    def _unpark(self, envelope: Envelope, time_ms: int) -> None:
        del self._parked[envelope.id]
        lane = self._lanes.get(envelope.lane)
        if lane is None:
            lane = self._lanes[envelope.lane] = _Lane(envelope.position or 0, envelope.position is not None)
        position = lane.next + len(lane.waiting) if envelope.position is None else envelope.position
        if position < lane.next or position in lane.waiting:
            # Its place was taken while it waited.
            self._forget(envelope, self._shares[envelope.actor])
            self._replaced.append(envelope)
            return
        lane.waiting[position] = (envelope, time_ms)
        if position == lane.next:
            self._make_ready(envelope.lane, lane)

    def _share(self, actor: str) -> _Share:
        share = self._shares.get(actor)
        if share is None:
            share = self._shares[actor] = _Share()
        return share

    def _enter(self, envelope: Envelope, share: _Share) -> None:
        self._by_id[envelope.id] = envelope
        self._bytes += envelope.size
        share.count += 1
        share.size += envelope.size

    def take_replaced(self) -> list[Envelope]:
        """Those whose place another one has taken since the last call."""
        replaced, self._replaced = self._replaced, []
        return replaced

    def _forget(self, envelope: Envelope, share: _Share) -> None:
        if self._by_id.pop(envelope.id, None) is None:
            return
        self._bytes -= envelope.size
        share.count -= 1
        share.size -= envelope.size
        if not share.count:
            share.deficit = 0

    def suspect(self, identity: bytes, outlived: int) -> None:
        """So many primaries died while they executed this one; from the second on it runs beside no other."""
        if identity in self._by_id:
            self._suspects[identity] = outlived

    # --- turns ---

    def _make_ready(self, lane_key: Hashable, lane: _Lane, *, first: bool = False) -> None:
        """A lane's head can run; its turn comes last among its actor's, or first."""
        actor = lane.waiting[lane.next][0].actor
        share = self._shares[actor]
        share.ready.setdefault(lane_key)
        if first:
            share.ready.move_to_end(lane_key, last=False)
        self._ring.setdefault(actor)

    def _unready(self, lane_key: Hashable, lane: _Lane) -> None:
        """Whatever is at the head of a lane has no turn."""
        head = lane.waiting.get(lane.next)
        if head is not None:
            actor = head[0].actor
            share = self._shares[actor]
            share.ready.pop(lane_key, None)
            if not share.ready:
                self._ring.pop(actor, None)

    def _cost(self, envelope: Envelope) -> int:
        return min(max(envelope.cost, 1), _TURNS_MAX * self.policy.turn)

    def _resting(self, now_s: float) -> list[str]:
        """Actors that have something that is ready, and let others go first: those who owe none."""
        owing = [actor for actor in self._ring if self._shares[actor].rest_s(now_s) > 0]
        if not owing:
            return owing
        since = now_s - limits.POOL_COMPANY_MS / 1000
        company = any(
            (share.ready or share.seen_s >= since) and not share.rest_s(now_s) for share in self._shares.values()
        )
        return owing if company else []

    def spent(self, took: Mapping[str, float], now_s: float) -> None:
        """Each of these actors has just held the writer for so many seconds."""
        for actor, seconds in took.items():
            share = self._shares.get(actor)
            if share is not None:
                share.owes_s = share.owed_s(now_s) + seconds
                share.owed_at_s = now_s

    def take(self, count: int, size: int, *, outlived: int = 0, now_s: float = 0.0) -> list[Envelope]:
        """The next batch: at most ``count`` envelopes and about ``size`` bytes; actors in turn, and lanes of each.

        Args:
            count: most envelopes.
            size: bytes after which the batch is full.
            outlived: what may have ended more primaries than so many does not run now.
            now_s: of a clock that only ever rises: who rests has no turn.
        """
        batch: list[Envelope] = []
        taken_bytes = 0
        blocked: dict[bytes, Hashable] = {}
        resting = self._resting(now_s)
        for actor in resting:
            del self._ring[actor]
        full, turn = False, self.policy.turn
        while self._ring and not full:
            actor = next(iter(self._ring))
            share, alone = self._shares[actor], len(self._ring) == 1
            share.deficit += turn
            before = len(batch)
            while share.ready:
                full = len(batch) >= count or taken_bytes >= size
                lane_key = next(iter(share.ready))
                lane = self._lanes[lane_key]
                envelope, _ = lane.waiting[lane.next]
                cost = envelope.cost
                if not 0 < cost <= turn:
                    cost = self._cost(envelope)
                if full or (cost > share.deficit and not alone):
                    break
                del share.ready[lane_key]
                is_late = envelope.depends_on and any(needed in self._by_id for needed in envelope.depends_on)
                deaths = self._suspects.get(envelope.id, 0) if self._suspects else 0
                if is_late or deaths > outlived or (deaths > 1 and batch):
                    if not lane.numbered and envelope.id not in blocked:
                        # It waits behind what arrived later, which may be what it needs.
                        self._to_the_end(lane)
                        self._make_ready(lane_key, lane)
                    blocked[envelope.id] = lane_key
                    continue
                share.deficit = max(0, share.deficit - cost)
                del lane.waiting[lane.next]
                lane.next += 1
                lane.running += 1
                self._forget(envelope, share)
                self._taken[envelope.id] = envelope
                batch.append(envelope)
                taken_bytes += envelope.size
                following = lane.waiting.get(lane.next)
                if following is not None and following[0].actor == actor:
                    share.ready[lane_key] = None
                elif following is not None:
                    self._make_ready(lane_key, lane)
                if deaths > 1:
                    full = True
                    break
            if not share.ready:
                self._ring.pop(actor, None)
                share.deficit = 0
            elif full and len(batch) == before:
                share.deficit -= turn  # its turn is still to come
            else:
                self._ring.move_to_end(actor)
        for lane_key in blocked.values():
            lane = self._lanes[lane_key]
            if lane.next in lane.waiting:
                self._make_ready(lane_key, lane)
        for actor in resting:
            self._ring.setdefault(actor)
        return batch

    @staticmethod
    def _to_the_end(lane: _Lane) -> None:
        head = lane.waiting.pop(lane.next)
        lane.next += 1
        lane.waiting[lane.next + len(lane.waiting)] = head

    # --- out, and back ---

    def done(self, batch: Sequence[Envelope]) -> None:
        """These were included or refused: the pool has nothing to do with them any more."""
        for envelope in batch:
            self._taken.pop(envelope.id, None)
            if self._suspects:
                self._suspects.pop(envelope.id, None)
            self._ended(envelope.lane)
        self.release([envelope.id for envelope in batch])

    def forget(self, batch: Sequence[Envelope]) -> None:
        """These were taken, and nobody knows what became of them: the pool has nothing to do with them any more."""
        for envelope in batch:
            if self._taken.pop(envelope.id, None) is None:
                continue  # the pool was cleared meanwhile
            self._ended(envelope.lane)

    def _ended(self, lane_key: Hashable) -> None:
        """One of a lane's envelopes does not run any more."""
        lane = self._lanes[lane_key]
        lane.running -= 1
        if not lane.running and not lane.waiting:
            del self._lanes[lane_key]

    def clear(self) -> None:
        """Drop everything, what was taken included."""
        self._lanes.clear()
        self._shares.clear()
        self._ring.clear()
        self._by_id.clear()
        self._taken.clear()
        self._suspects.clear()
        self._parked.clear()
        self._dependants.clear()
        self._bytes = 0

    def refresh(self, lanes: Sequence[Hashable], view: StoreView) -> None:
        """Set where lanes go on from the state, after a refusal or a roll-back left a gap."""
        known = [key for key in dict.fromkeys(lanes) if key in self._lanes and self._lanes[key].numbered]
        for key, following in zip(known, self.policy.next_positions(known, view), strict=True):
            lane = self._lanes[key]
            if lane.next != following:
                self._unready(key, lane)
                lane.next = following
            for position in [position for position in lane.waiting if position < following]:
                envelope, _ = lane.waiting.pop(position)
                self._forget(envelope, self._shares[envelope.actor])
            if following in lane.waiting:
                self._make_ready(key, lane)
            self._drop_if_empty(key)

    def give_back(
        self, batch: Sequence[Envelope], view: StoreView, time_ms: int, *, served: Collection[str] = ()
    ) -> None:
        """Put taken envelopes back at the head of their lanes.

        Args:
            batch: what did not run, in the order in which it was taken.
            view: the newest state.
            time_ms: of the enclave, for their expiry.
            served: actors of whom something else did run. The others have the next turn.
        """
        for envelope in reversed(batch):
            self._taken.pop(envelope.id, None)
            key, position = envelope.lane, envelope.position
            lane = self._lanes[key]
            lane.running -= 1
            self._unready(key, lane)
            lane.next = lane.next - 1 if position is None else min(lane.next or position, position)
            lane.waiting[lane.next if position is None else position] = (envelope, time_ms)
            self._enter(envelope, self._share(envelope.actor))
            self._make_ready(key, lane, first=True)
        for envelope in batch:
            self._shares[envelope.actor].deficit += self._cost(envelope)
        actors = list(dict.fromkeys(envelope.actor for envelope in batch))
        for actor in reversed(actors):
            if actor in served:
                # It had its turn; or else what it is owed for what did not run would be one long turn.
                self._shares[actor].deficit = min(self._shares[actor].deficit, self.policy.turn)
            elif actor in self._ring:  # or else it waits in a lane behind another actor's
                self._ring.move_to_end(actor, last=False)
        numbered = {envelope.lane for envelope in batch if envelope.position is not None}
        if numbered:
            self.refresh(list(numbered), view)

    def expire(self, before_ms: int, *, now_s: float = 0.0) -> list[Envelope]:
        """Drop what arrived before ``before_ms``, and forget who has nothing here any more and owes nothing."""
        dropped: list[Envelope] = []
        for key, lane in list(self._lanes.items()):
            old = [p for p, (_, arrived) in lane.waiting.items() if arrived < before_ms]
            if old:
                self._unready(key, lane)
            for position in old:
                envelope, _ = lane.waiting.pop(position)
                self._forget(envelope, self._shares[envelope.actor])
                dropped.append(envelope)
            if old and not lane.numbered:
                left = [lane.waiting[position] for position in sorted(lane.waiting)]
                lane.waiting = dict(enumerate(left, lane.next))
            if old and lane.next in lane.waiting:
                self._make_ready(key, lane)
            self._drop_if_empty(key)
        for envelope, arrived, missing in list(self._parked.values()):
            if arrived < before_ms:
                del self._parked[envelope.id]
                self._forget(envelope, self._shares[envelope.actor])
                dropped.append(envelope)
                for identity in missing:
                    others = [one for one in self._dependants.get(identity, ()) if one != envelope.id]
                    if others:
                        self._dependants[identity] = others
                    else:
                        self._dependants.pop(identity, None)
        since = now_s - limits.POOL_COMPANY_MS / 1000
        for actor, share in list(self._shares.items()):
            if not share.count and share.seen_s < since and not share.owed_s(now_s):
                del self._shares[actor]
        return dropped

    def _drop_if_empty(self, key: Hashable) -> None:
        lane = self._lanes.get(key)
        if lane is not None and not lane.waiting and not lane.running:
            del self._lanes[key]
