"""Submitted transactions, from a client's connection until their fate is known.

Rules:

* What arrives close together is checked together, and enters the pool in the order in which it came.
* Only the primary has a pool. A backup forwards what it was given, with the certificate that its client showed, and the
  primary looks the caller up in its own configuration and checks everything again (G4).
* The node that received a transaction holds it until it is committed, refused or expired, and sends it again to every
  new primary, and to the same one when a link between them was lost and with it, perhaps, the word of its fate. A
  primary runs nothing twice, because what every node has applied it knows by its id.
* What a primary was executing when it died may be why it died (G3); so it says what it executes, before it does. Its
  successor executes that once the network would survive this primary too, or after ``limits.SUSPECT_SECONDS_MAX``; from
  the second death on in a batch of its own, and never where the majority would be lost; after
  ``limits.PRIMARIES_OUTLIVED_MAX`` it is dropped.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable, Iterator, Sequence
from functools import partial

import msgspec

from coco import limits
from coco.enclave.adapters.contract import AdapterError, Caller, CallerKind, Envelope
from coco.enclave.ordering.runtime import AdapterRuntime
from coco.enclave.ordering.sequencer import Sequencer
from coco.enclave.ordering.turns import Turns
from coco.enclave.transport.links import Links, decode
from coco.errors import AccessError, BusyError, CocoError, RequestError

Answer = Callable[[Envelope | CocoError], None]
#: A transaction's bytes, and who waits for the pool's answer.
Submission = tuple[bytes, Answer]
#: A checked transaction, its bytes, and who waits for the pool's answer.
_Checked = tuple[Envelope, bytes, Answer]

#: Parts in which submissions that gathered are checked, and the least size of one. Few large parts cost less; many let
#: the first be answered, and its client go on, while the others are checked; and another actor's wait behind few.
_PARTS, _PART_MIN, _PART_MAX = 4, 8, 64
#: Questions and messages between nodes.
SUBMIT, PENDING, DROPPED, EXECUTING = "submit", "pending", "dropped", "executing_of"
#: What a primary of a former version says, whose message names no adapter.
EXECUTING_FORMERLY = "executing"
_AGAIN_S = 0.5
#: What says that there is no primary now, and how long until it is looked for again.
_NO_PRIMARY, _NO_PRIMARY_S = ("node.no_primary", "peers.unreachable"), 0.05
_FORWARD_MAX = 500
#: How often a node that cannot be reached is told; one that is longer away asks when it is back.
_TELL_TRIES = 10
#: Says that a primary will never execute it; the text is the reason.
_DROPPED = "pool.dropped"
_OUTLIVED = "pool.outlived_its_primaries"


class Forwarded(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Transactions for the primary's pool."""

    adapter: str
    #: DER of what the client showed to the node that forwards.
    certificate: bytes
    #: Whether a primary may know them.
    again: bool
    #: Primaries that died while they executed them.
    outlived: int
    raw: list[bytes]


class PendingLane(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Asks where a lane goes on in the primary's pool."""

    adapter: str
    lane: bytes


class ExecutingOf(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a primary begins to execute of one adapter."""

    adapter: str
    ids: list[bytes]


class Executing(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The same, as a former version says it."""

    ids: list[bytes]


class Dropped(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A transaction that was forwarded will never be executed."""

    adapter: str
    id: bytes
    reason: str


_encode = msgspec.msgpack.Encoder().encode

#: A transaction: its adapter's name, and its id, which may be any other adapter's, too.
_Name = tuple[str, bytes]


class _Held(msgspec.Struct):
    runtime: AdapterRuntime
    envelope: Envelope
    raw: bytes
    caller: Caller
    arrived_ms: int
    #: View whose primary has it.
    view: int
    #: A link to that primary was lost: it may have said something.
    unsure: bool = False


class Forwarding:
    """Collects raw transactions, checks them, and sees to it that a primary gets them."""

    def __init__(self, sequencer: Sequencer, links: Links, caller: Callable[[bytes | None], Caller]) -> None:
        self._sequencer, self._links, self._caller = sequencer, links, caller
        #: At the thread that checks.
        self._turns = Turns(
            limits.CHECKS_MAX,
            per_actor=limits.CHECKS_MAX,
            waiting_max=limits.POOL_TRANSACTIONS_MAX,
            code="pool.actor_full",
        )
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[tuple[int, int], list[Submission]] = {}
        #: The newest check of each adapter and caller.
        self._checks: dict[tuple[int, int], asyncio.Task[None]] = {}
        #: Transactions on their way into the pool, in all and of each actor.
        self._count = 0
        self._counts: dict[str, int] = {}
        #: Transactions that were checked, those of them that the door has checked, and what all checks took.
        self.checked, self.checked_early, self.check_us = 0, 0, 0
        self._held: dict[_Name, _Held] = {}
        #: A primary, and what it said last that it would execute, of each adapter.
        self._executing: tuple[int, dict[str, list[bytes]]] = 0, {}
        #: What primaries were executing when they died, and how many.
        self._outlived: dict[_Name, int] = {}
        #: Links from or to a primary that were lost.
        self._losses = 0
        #: Nodes that forwarded what is in the pool.
        self._origins: dict[_Name, int] = {}
        self._again: asyncio.Task[None] | None = None
        #: Why the newest of those that will never be executed will not, and who handed them in here.
        self._reasons: dict[_Name, tuple[str, str]] = {}
        sequencer.subscribers.settled.append(self._settled)
        sequencer.subscribers.expired.append(self.expire)
        sequencer.subscribers.executing.append(self.before_executing)

    @property
    def held(self) -> int:
        """Transactions that came to this node and whose fate is not known yet."""
        return len(self._held)

    # --- from clients ---

    def add(self, runtime: AdapterRuntime, caller: Caller, submitted: Sequence[Submission]) -> None:
        """Queue one caller's; each answer gets its envelope once a primary has it in its pool, or the refusal."""
        room, refusal = self._room(caller)
        for _, answer in submitted[room:]:
            answer(refusal)
        submitted = submitted[:room]
        if not submitted:
            return
        self._on_their_way(caller, len(submitted))
        key = id(runtime), id(caller)
        waiting = self._waiting.setdefault(key, [])
        if not waiting:
            # After everything that has arrived by now has been read: so submissions gather without waiting.
            self._loop.call_soon(self._check, runtime, caller)
        waiting += submitted

    def add_checked(
        self,
        runtime: AdapterRuntime,
        caller: Caller,
        checked: Sequence[tuple[tuple[Envelope, bytes] | CocoError, Answer]],
        check_us: int,
    ) -> None:
        """The same for those that the door has checked, in so many microseconds."""
        room, refusal = self._room(caller)
        good: list[_Checked] = []
        for verdict, answer in checked:
            if len(good) >= room:
                answer(refusal)
            elif isinstance(verdict, CocoError):
                answer(verdict)
            else:
                envelope, raw = verdict
                envelope.actor = caller.actor
                good.append((envelope, raw, answer))
        self.checked += len(checked)
        self.checked_early += len(checked)
        self.check_us += check_us
        if not good:
            return
        self._on_their_way(caller, len(good))
        key = id(runtime), id(caller)
        if key not in self._checks and self._sequencer.replica.is_primary:
            self._enter(runtime, caller, good)
        else:
            self._after_others(key, partial(self._submit_after, runtime, caller, good))

    def _room(self, caller: Caller) -> tuple[int, CocoError]:
        """How many this caller may hand in now, and the refusal of every further one."""
        if caller.kind is not CallerKind.PARTICIPANT:
            return 0, AccessError("only participants may submit transactions", code="access.not_a_participant")
        room = min(limits.POOL_TRANSACTIONS_MAX - self._count, 2 * limits.POOL_TRANSACTIONS_MAX - len(self._held))
        own_room = limits.POOL_ACTOR_TRANSACTIONS_MAX - self._counts.get(caller.actor, 0)
        if room <= own_room:
            return max(room, 0), BusyError("the node is full; try again later", code="pool.full")
        refusal = BusyError("you have too many transactions waiting; try again later", code="pool.actor_full")
        return max(own_room, 0), refusal

    def _on_their_way(self, caller: Caller, change: int) -> None:
        self._count += change
        own = self._counts.get(caller.actor, 0) + change
        if own:
            self._counts[caller.actor] = own
        else:
            self._counts.pop(caller.actor, None)

    def _check(self, runtime: AdapterRuntime, caller: Caller) -> None:
        key = id(runtime), id(caller)
        waiting = self._waiting.pop(key)
        size = min(max(_PART_MIN, len(waiting) // _PARTS), _PART_MAX)
        for first in range(0, len(waiting), size):
            self._after_others(key, partial(self._admit, runtime, caller, waiting[first : first + size]))

    def _after_others(
        self, key: tuple[int, int], work: Callable[[asyncio.Task[None] | None], Coroutine[None, None, None]]
    ) -> None:
        """Begin work that knows the one before it: a client's transactions enter the pool as they came."""
        task = self._loop.create_task(work(self._checks.get(key)))
        self._checks[key] = task
        task.add_done_callback(partial(self._done, key))

    def _done(self, key: tuple[int, int], task: asyncio.Task[None]) -> None:
        if self._checks[key] is task:
            del self._checks[key]

    async def _admit(
        self, runtime: AdapterRuntime, caller: Caller, batch: list[Submission], before: asyncio.Task[None] | None
    ) -> None:
        async with self._turns.turn(caller.actor):
            began = self._loop.time()
            admitted = await _admitted(runtime, [raw for raw, _ in batch], caller)
        self.checked += len(batch)
        self.check_us += int(1e6 * (self._loop.time() - began))
        good: list[_Checked] = []
        for (raw, answer), verdict in zip(batch, admitted, strict=True):
            if isinstance(verdict, CocoError):
                self._on_their_way(caller, -1)
                answer(verdict)
            else:
                good.append((verdict, raw, answer))
        await self._submit_after(runtime, caller, good, before)

    async def _submit_after(
        self, runtime: AdapterRuntime, caller: Caller, good: list[_Checked], before: asyncio.Task[None] | None
    ) -> None:
        if before is not None:
            await asyncio.wait({before})
        if not good:
            return
        self._forget_reasons(runtime, good)
        replica, again, deadline = self._sequencer.replica, False, self._loop.time() + limits.PEER_SECONDS_MAX
        losses = self._losses
        while True:
            if replica.is_primary:
                self._enter(runtime, caller, good, again=again)
                return
            try:
                refusals = await self._forward(runtime, caller, [raw for _, raw, _ in good], again=again)
                break
            except CocoError as error:
                if error.code not in _NO_PRIMARY or self._loop.time() > deadline:
                    refusals = [error] * len(good)
                    break
            # Whoever was asked may have taken them and died: from now on they may be known.
            again = True
            await asyncio.sleep(_NO_PRIMARY_S)
        self._entered(runtime, caller, good, refusals, unsure=losses != self._losses)

    def _enter(self, runtime: AdapterRuntime, caller: Caller, good: list[_Checked], *, again: bool = False) -> None:
        """Put checked transactions into this primary's pool."""
        if not again:
            self._forget_reasons(runtime, good)
        try:
            refusals = self._accept(runtime, [envelope for envelope, _, _ in good], again=again)
        except Exception:  # noqa: BLE001 - an adapter's failure is this batch's refusal, not the node's end (G3)
            refusals = [_failed()] * len(good)
        self._entered(runtime, caller, good, refusals)

    def _forget_reasons(self, runtime: AdapterRuntime, good: list[_Checked]) -> None:
        """Whoever submits anew what was dropped once asks anew."""
        if self._reasons:
            for envelope, _, _ in good:
                self._reasons.pop((runtime.name, envelope.id), None)

    def _entered(
        self,
        runtime: AdapterRuntime,
        caller: Caller,
        good: list[_Checked],
        refusals: Sequence[CocoError | None],
        *,
        unsure: bool = False,
    ) -> None:
        """Hold what a pool has taken, and answer."""
        now, view = self._sequencer.clock.now_ms, self._sequencer.replica.view
        self._on_their_way(caller, -len(good))
        for (envelope, raw, answer), refusal in zip(good, refusals, strict=True):
            identity = envelope.id
            if refusal is None and self._reasons and (dropped := self.why_dropped(runtime, identity)):
                # The primary's word of its fate has overtaken the answer.
                refusal = _dropped(dropped)
            if refusal is None:
                if identity not in runtime.included:
                    self._held[runtime.name, identity] = _Held(runtime, envelope, raw, caller, now, view, unsure)
                answer(envelope)
            else:
                if refusal.code == _DROPPED:
                    refusal = AdapterError(f"the transaction was dropped: {refusal}", code="node.dropped")
                answer(runtime.adapter.told(refusal, envelope, caller) or envelope)
        if unsure:
            self._begin_again()

    def _accept(self, runtime: AdapterRuntime, envelopes: Sequence[Envelope], *, again: bool) -> list[CocoError | None]:
        """Put envelopes into the pool; those that were sent before may be known, which is as good."""
        if not again and not self._outlived:
            return self._sequencer.accept(runtime, envelopes)
        refusals: dict[bytes, CocoError | None] = {
            one.id: _dropped(reason) for one in envelopes if (reason := self._why_not(runtime, one.id, again))
        }
        fresh = [one for one in envelopes if one.id not in refusals and not (again and self._knows(runtime, one.id))]
        refusals |= zip((one.id for one in fresh), self._sequencer.accept(runtime, fresh), strict=True)
        for one in fresh:
            if outlived := self._outlived.get((runtime.name, one.id)):
                runtime.pool.suspect(one.id, outlived)
        return [refusals.get(one.id) for one in envelopes]

    def _why_not(self, runtime: AdapterRuntime, identity: bytes, again: bool) -> str:
        if self._outlived.get((runtime.name, identity), 0) >= limits.PRIMARIES_OUTLIVED_MAX:
            return _OUTLIVED
        return self.why_dropped(runtime, identity) if again else ""

    # --- to and from other nodes ---

    async def _forward(
        self, runtime: AdapterRuntime, caller: Caller, raw: list[bytes], *, again: bool, outlived: int = 0
    ) -> list[CocoError | None]:
        body = _encode(Forwarded(runtime.name, caller.certificate, again, outlived, raw))
        verdicts = decode(list[tuple[str, str]], await self._sequencer.replica.ask_primary(SUBMIT, body))
        if len(verdicts) != len(raw):
            raise BusyError("the primary answered something else", code="peers.malformed")
        return [_refusal(code, text) if code else None for code, text in verdicts]

    async def serve(self, sender: int, kind: str, body: bytes) -> bytes:
        """Answer another node.

        Raises:
            CocoError: this node is not the primary, or the question is malformed.
        """
        if not self._sequencer.replica.is_primary:
            raise BusyError("this node is not primary", code="node.no_primary")
        if kind == PENDING:
            asked = decode(PendingLane, body)
            position = self._runtime(asked.adapter).pool.pending_position(asked.lane)
            return _encode(-1 if position is None else position)
        forwarded = decode(Forwarded, body)
        runtime = self._runtime(forwarded.adapter)
        caller = self._caller(forwarded.certificate)
        if caller.kind is not CallerKind.PARTICIPANT:
            raise AccessError("only participants may submit transactions", code="access.not_a_participant")
        async with self._turns.turn(caller.actor):
            admitted = await _admitted(runtime, forwarded.raw, caller)
        envelopes = [one for one in admitted if isinstance(one, Envelope)]
        if forwarded.outlived:
            names = [(runtime.name, one.id) for one in envelopes]
            self._outlived.update((name, max(forwarded.outlived, self._outlived.get(name, 0))) for name in names)
        refusals = iter(self._accept(runtime, envelopes, again=forwarded.again))
        verdicts: list[tuple[str, str]] = []
        for one in admitted:
            refusal = one if isinstance(one, CocoError) else next(refusals)
            verdicts.append(("", "") if refusal is None else (refusal.code, str(refusal)))
            if isinstance(one, Envelope) and refusal is None and one.id not in runtime.included:
                self._origins[runtime.name, one.id] = sender
        return _encode(verdicts)

    def _knows(self, runtime: AdapterRuntime, identity: bytes) -> bool:
        return identity in runtime.included or runtime.pool.get(identity) is not None

    def _runtime(self, name: str) -> AdapterRuntime:
        for runtime in self._sequencer.runtimes:
            if runtime.name == name:
                return runtime
        raise RequestError("there is no such adapter", code="peers.malformed")

    def dropped(self, body: bytes) -> None:
        """The primary says that a transaction will never be executed."""
        message = decode(Dropped, body)
        self._sequencer.resolve(self._runtime(message.adapter), message.id, message.reason)

    def _settled(self, runtime: AdapterRuntime, identity: bytes, reason: str) -> None:
        name = runtime.name, identity
        held = self._held.pop(name, None)
        if self._reasons:
            self._reasons.pop(name, None)
        if not reason and self._outlived:
            self._outlived.pop(name, None)
        if reason:
            self._reasons[name] = reason, held.caller.actor if held is not None else ""
            if len(self._reasons) > limits.DROPPED_IDS_MAX:
                del self._reasons[next(iter(self._reasons))]
        origin = self._origins.pop(name, None) if self._origins else None
        if origin is not None and reason:
            self._tell_dropped(origin, _encode(Dropped(runtime.name, identity, reason)))

    def _tell_dropped(self, origin: int, message: bytes, tries: int = _TELL_TRIES) -> None:
        if not self._links.tell(origin, DROPPED, message) and tries > 1:
            self._loop.call_later(_AGAIN_S, self._tell_dropped, origin, message, tries - 1)

    # --- held ---

    async def before_executing(self, runtime: AdapterRuntime, identities: Sequence[bytes]) -> None:
        """Tell the others what this primary executes next; returns once it has left this process."""
        others = [node for node in self._sequencer.replica.members.all if node != self._sequencer.replica.node]
        if others:
            message = _encode(ExecutingOf(runtime.name, list(identities)))
            for node in others:
                self._links.tell(node, EXECUTING, message)
            await self._links.written()

    def executing(self, sender: int, kind: str, body: bytes) -> None:
        """The primary says what it executes."""
        executor, said = self._executing
        if executor != sender:
            said = {}
        if kind == EXECUTING:
            message = decode(ExecutingOf, body)
            said[message.adapter] = message.ids
        else:
            ids = decode(Executing, body).ids
            said.update((runtime.name, ids) for runtime in self._sequencer.runtimes)
        self._executing = sender, said

    def view_changed(self) -> None:
        """There may be another primary, who lacks what is held here."""
        executor, said = self._executing
        if executor != self._sequencer.replica.primary:
            for name in [(adapter, identity) for adapter, ids in said.items() for identity in ids]:
                self._outlived[name] = self._outlived.get(name, 0) + 1
                if len(self._outlived) > limits.DROPPED_IDS_MAX:
                    del self._outlived[next(iter(self._outlived))]
            self._executing = self._sequencer.replica.primary, {}
        self._begin_again()

    def _begin_again(self) -> None:
        if self._held and (self._again is None or self._again.done()):
            self._again = self._loop.create_task(self._send_again())

    def link_lost(self, node: int) -> None:
        """A link to a node has ended, or from it."""
        if node == self._sequencer.replica.primary:
            self._losses += 1
            for one in self._held.values():
                one.unsure = True
            self._begin_again()

    async def _send_again(self) -> None:
        replica = self._sequencer.replica
        while late := [one for one in self._held.values() if one.unsure or one.view != replica.view]:
            for one in [one for one in late if self._died_with(one) >= limits.PRIMARIES_OUTLIVED_MAX]:
                late.remove(one)
                self._sequencer.resolve(one.runtime, one.envelope.id, _OUTLIVED)
            if replica.is_primary:
                self._take_again(late)
            elif replica.primary:
                for part in self._parts(late):
                    view = replica.view
                    for one in part:
                        one.unsure = False
                    try:
                        refusals = await self._forward(
                            part[0].runtime,
                            part[0].caller,
                            [one.raw for one in part],
                            again=True,
                            outlived=self._died_with(part[0]),
                        )
                    except CocoError:
                        for one in part:
                            one.unsure = True
                        break  # not reachable yet, or deposed; again in a moment
                    self._sent(part, refusals, view)
            await asyncio.sleep(_AGAIN_S)

    def _take_again(self, late: list[_Held]) -> None:
        view = self._sequencer.replica.view
        for part in self._parts(late):
            for one in part:
                one.unsure = False
            self._sent(part, self._accept(part[0].runtime, [one.envelope for one in part], again=True), view)

    def _died_with(self, one: _Held) -> int:
        return self._outlived.get((one.runtime.name, one.envelope.id), 0)

    def _parts(self, held: list[_Held]) -> Iterator[list[_Held]]:
        """In order, as much at once as has one adapter, one caller, and outlived as many primaries."""
        part: list[_Held] = []
        kind: tuple[AdapterRuntime, Caller, int] | None = None
        for one in held:
            own = one.runtime, one.caller, self._died_with(one)
            if part and (own != kind or len(part) >= _FORWARD_MAX):
                yield part
                part = []
            part.append(one)
            kind = own
        if part:
            yield part

    def _sent(self, part: list[_Held], refusals: Sequence[CocoError | None], view: int) -> None:
        for one, refusal in zip(part, refusals, strict=True):
            one.view = view
            if refusal is not None and not isinstance(refusal, BusyError):
                reason = str(refusal) if refusal.code == _DROPPED else refusal.code
                self._sequencer.resolve(one.runtime, one.envelope.id, reason)

    def expire(self, before_ms: int) -> None:
        """Give up what arrived before ``before_ms``."""
        for one in [one for one in self._held.values() if one.arrived_ms < before_ms]:
            self._sequencer.resolve(one.runtime, one.envelope.id, "expired")

    def why_dropped(self, runtime: AdapterRuntime, identity: bytes, actor: str | None = None) -> str:
        """Why a transaction will not be executed; empty if none is known, or ``actor`` did not hand it in."""
        reason, handed_in_by = self._reasons.get((runtime.name, identity), ("", ""))
        return reason if actor is None or (actor and actor == handed_in_by) else ""

    # --- what adapters ask ---

    def pooled(self, runtime: AdapterRuntime, identity: bytes) -> Envelope | None:
        """A transaction that waits, as far as this node knows."""
        found = runtime.pool.get(identity)
        held = self._held.get((runtime.name, identity)) if found is None else None
        return found if held is None else held.envelope

    async def pending_position(self, runtime: AdapterRuntime, lane: Hashable) -> int | None:
        """The first free position of a lane in the primary's pool; None when it is empty or cannot be asked."""
        replica = self._sequencer.replica
        if replica.is_primary:
            return runtime.pool.pending_position(lane)
        if not isinstance(lane, bytes):
            return None
        try:
            position = decode(int, await replica.ask_primary(PENDING, _encode(PendingLane(runtime.name, lane))))
        except CocoError:
            return None
        return None if position < 0 else position


async def _admitted(runtime: AdapterRuntime, raw: list[bytes], caller: Caller) -> Sequence[Envelope | CocoError]:
    try:
        admitted = await runtime.adapter.admit(raw, caller)
        for one in admitted:
            if isinstance(one, Envelope):
                one.actor = caller.actor
        return admitted
    except Exception:  # noqa: BLE001 - an adapter's failure is this batch's refusal, not the node's end
        return [_failed()] * len(raw)


def _failed() -> CocoError:
    return AdapterError("the transaction could not be checked", code="adapter.failed")


def _dropped(reason: str) -> CocoError:
    return AdapterError(reason, code=_DROPPED)


def _refusal(code: str, text: str) -> CocoError:
    if code in ("pool.full", "pool.lane_full", "pool.actor_full") or code.startswith("node."):
        return BusyError(text, code=code)
    return AdapterError(text, code=code)
