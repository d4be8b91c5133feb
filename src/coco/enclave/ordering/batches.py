"""Batches at the primary: opened, run, sealed as entries, and settled.

Rules:

* What one envelope breaks is its own loss (G3): it runs under a savepoint and is refused; an engine that takes many at
  once has halves of the batch run until the one is found. Nothing that an adapter derives moves before the entry is in
  the store, so nothing has to be built anew after a failure.
* The writer is held while a batch runs. An adapter that waits for somebody outside (``Manifest.waits_outside``) is not
  let near it: its batch runs on a snapshot, and becomes an entry if nothing that it has read has changed; else it runs
  again.
"""

from __future__ import annotations

import asyncio
import secrets as randomness
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from coco import limits
from coco._native import WriteSet
from coco.enclave.adapters.contract import (
    BatchSession,
    BlockContext,
    Envelope,
    Outcome,
    Verdict,
    WholeBatchSession,
)
from coco.enclave.ordering import records
from coco.enclave.ordering.claimed import Claimed
from coco.enclave.ordering.composite import CompositeSession
from coco.enclave.ordering.replica import Replica
from coco.enclave.ordering.runtime import AdapterRuntime
from coco.enclave.platform.clock import Clock
from coco.enclave.platform.faults import described
from coco.enclave.store import SealedEntry, Store, StoreTransaction
from coco.errors import CocoError, ConsensusError

#: What an executed envelope takes of the writer after it: roots, its record, its seal.
_SEALING_US = 40
#: What is wrong with a batch that executed and cannot become an entry; nothing of it was sealed.
_OF_THE_BATCH = frozenset(
    ("ledger.entry_too_large", "store.too_large", "store.log_is_append_only", "native.out_of_memory")
)
_CONFLICT = "store.conflict"


@dataclass(frozen=True)
class _Done:
    """A batch that ran: what becomes of each envelope, and what is to be written."""

    outcomes: Sequence[Outcome]
    claimed: Claimed
    #: Envelopes of which the ledger tells, as included or as refused.
    told: list[Envelope]


class _Undo(Exception):
    """Undoes what an envelope wrote that is not included."""


class Batches:
    """Executes batches of envelopes as entries.

    Args:
        store: gets the entries.
        clock: of the enclave.
        replica: says whether this node may execute, and keeps the locks.
        target_ms: time that executing a batch should take.
        run: runs what takes long off the event loop.
        applied: hears of every entry that was written, and of the envelopes that it tells of.
        resolve: tells whoever waits that a transaction was refused, and why.
        log: a line for operators.
        counters, stages: of the node.
    """

    def __init__(
        self,
        *,
        store: Callable[[], Store],
        clock: Clock,
        replica: Replica,
        target_ms: int,
        run: Callable[..., Awaitable[Any]],
        applied: Callable[[AdapterRuntime, int, WriteSet, list[Envelope]], Awaitable[None]],
        resolve: Callable[[AdapterRuntime, bytes, str], None],
        log: Callable[..., None],
        counters: dict[str, int],
        stages: dict[str, int],
    ) -> None:
        self._store, self._clock, self._replica = store, clock, replica
        self._target_ms = target_ms
        self._run, self._applied, self._resolve, self._log = run, applied, resolve, log
        self._counters, self._stages = counters, stages
        self._loop = asyncio.get_running_loop()

    async def execute(self, runtime: AdapterRuntime, batch: list[Envelope]) -> None:
        """Execute a batch; ``writer`` is held, unless the adapter waits for somebody outside.

        Raises:
            ConsensusError: this node is not primary (any more); nobody knows what became of the batch.
        """
        runtime.taken_at_s = self._loop.time()
        await self._execute(runtime, batch)

    async def _execute(self, runtime: AdapterRuntime, batch: list[Envelope]) -> None:
        view, outside = self._replica.view, runtime.manifest.waits_outside
        began_s = self._loop.time()
        for _ in range(limits.BATCH_CONFLICTS_MAX if outside else 1):
            self._require_lead(view)
            store = self._store()
            transaction = store.begin_optimistic() if outside else store.begin()
            try:
                done = await self._attempt(runtime, batch, transaction)
            except Exception as error:  # noqa: BLE001 - whatever an adapter raises, the node goes on (G3)
                await self._bisect(runtime, batch, error)
                return
            try:
                if outside:
                    async with self._replica.writer:
                        await self._write(runtime, transaction, done, view)
                else:
                    await self._write(runtime, transaction, done, view)
            except ConsensusError:
                raise
            except CocoError as error:
                if outside and error.code == _CONFLICT:
                    self._counters["conflicts"] += 1
                    continue
                if error.code not in _OF_THE_BATCH:
                    raise
                await self._bisect(runtime, batch, error)
                return
            self._charge(runtime, batch, done.outcomes, self._loop.time() - began_s)
            self.settle(runtime, batch, done.outcomes)
            return
        self.settle(runtime, batch, [Outcome(Verdict.DEFERRED)] * len(batch))

    async def _attempt(
        self, runtime: AdapterRuntime, batch: Sequence[Envelope], transaction: StoreTransaction
    ) -> _Done:
        began_s = self._loop.time()
        context = BlockContext(
            time_ms=self._clock.now_ms,
            randomness=randomness.token_bytes(32),
            secret=randomness.token_bytes(32),
            expected_seqno=self._store().journal.last_seqno + 1,
            target_ms=self._target_ms,
        )
        session = await runtime.adapter.open(transaction, context)
        if isinstance(session, WholeBatchSession):
            outcomes = await session.run_all(batch)
            assert len(outcomes) == len(batch), "one outcome for each envelope; else the adapter has failed"
        else:
            outcomes = await self._one_by_one(runtime, session, batch, transaction)
        claimed = Claimed()
        included = [(e.id, o.item) for e, o in zip(batch, outcomes, strict=True) if o.verdict is Verdict.INCLUDED]
        if included and isinstance(session, CompositeSession):
            claimed = session.claimed
        elif included:
            claimed.add(runtime.name, await session.close(), included, context.secret)
        if runtime.manifest.reply is not None:
            outcomes = await records.write(transaction, self._store(), runtime.name, zip(batch, outcomes, strict=True))
        told = [
            envelope
            for envelope, outcome in zip(batch, outcomes, strict=True)
            if outcome.verdict is Verdict.INCLUDED or outcome.recorded
        ]
        self._spent("execute_us", began_s)
        return _Done(outcomes, claimed, told)

    async def _one_by_one(
        self,
        runtime: AdapterRuntime,
        session: BatchSession,
        batch: Sequence[Envelope],
        transaction: StoreTransaction,
    ) -> list[Outcome]:
        outcomes: list[Outcome] = []
        until_s = self._loop.time() + self._target_ms / 1000
        ran = False
        for envelope in batch:
            now_s = self._loop.time()
            if ran and now_s >= until_s:
                outcomes.append(Outcome(Verdict.DEFERRED))
                continue
            outcome = Outcome(Verdict.DEFERRED)
            try:
                with transaction.savepoint():
                    outcome = await session.run(envelope)
                    if outcome.verdict is not Verdict.INCLUDED:
                        raise _Undo
                ran = True
            except _Undo:
                pass
            except Exception as error:  # noqa: BLE001 - as above: it is this envelope's
                self._counters["crashed"] += 1
                outcome = self._broken(runtime, envelope, error)
            outcomes.append(outcome)
        return outcomes

    def _broken(self, runtime: AdapterRuntime, envelope: Envelope, error: Exception) -> Outcome:
        code = error.code if isinstance(error, CocoError) else "adapter.failed"
        # For whoever wrote the adapter: where it failed, and never what it said (H1).
        numbers, ids = described(error)
        self._log("sequencer.envelope_dropped", {"size": envelope.size, **numbers}, {"adapter": runtime.name, **ids})
        return Outcome(Verdict.REFUSED, f"it cannot be executed: {code}")

    def _require_lead(self, view: int) -> None:
        if not self._replica.may_execute or self._replica.view != view:
            raise ConsensusError("this node is not primary any more", code="consensus.not_primary")

    async def _write(self, runtime: AdapterRuntime, transaction: StoreTransaction, done: _Done, view: int) -> None:
        """Make the entry, if there is something to tell; ``writer`` is held."""
        async with self._replica.order:
            self._require_lead(view)
            if not done.told:
                return
            store = self._store()
            for row in done.claimed.rows(store.journal.last_seqno + 1):
                transaction.put(*row)
            began_s = self._loop.time()
            claim = done.claimed.claim
            writes, sealed = await self._run(self._prepare, transaction, claim.encode() if claim is not None else None)
            self._spent("seal_us", began_s)
            included = sum(outcome.verdict is Verdict.INCLUDED for outcome in done.outcomes)
            self._counters["transactions"] += included
            self._counters["batches"] += 1
            await self._applied(runtime, store.journal.append(sealed), writes, done.told)

    def _prepare(self, transaction: StoreTransaction, claim: bytes | None) -> tuple[WriteSet, SealedEntry]:
        writes = transaction.native.write_set()
        return writes, self._store().prepare(writes, claim=claim)

    async def _bisect(self, runtime: AdapterRuntime, batch: list[Envelope], error: Exception) -> None:
        """Run halves of a batch whose execution failed, down to the one envelope that it fails on."""
        self._counters["crashed"] += 1
        if len(batch) == 1:
            # All the halves that ran for nothing are this one's.
            now_s = self._loop.time()
            runtime.pool.spent({batch[0].actor: now_s - runtime.taken_at_s}, now_s)
            runtime.taken_at_s = now_s
            self.settle(runtime, batch, [self._broken(runtime, batch[0], error)])
            return
        middle = len(batch) // 2
        await self._execute(runtime, batch[:middle])
        await self._execute(runtime, batch[middle:])

    # --- afterwards ---

    def _spent(self, stage: str, began_s: float) -> None:
        self._stages[stage] += int(1e6 * (self._loop.time() - began_s))

    def _charge(
        self, runtime: AdapterRuntime, batch: Sequence[Envelope], outcomes: Sequence[Outcome], took_s: float
    ) -> None:
        """Say whose envelopes held the writer, and for how long: as the adapter measured, or all alike of ``took_s``.

        What a batch takes whoever is in it is nobody's, so a few small ones never count for much.
        """
        measured_us: dict[str, int] = {}
        ran: dict[str, int] = {}
        for envelope, outcome in zip(batch, outcomes, strict=True):
            if outcome.verdict is not Verdict.DEFERRED:
                actor = envelope.actor
                measured_us[actor] = measured_us.get(actor, 0) + outcome.took_us
                ran[actor] = ran.get(actor, 0) + 1
        if any(measured_us.values()):
            spent = {actor: (us + ran[actor] * _SEALING_US) / 1e6 for actor, us in measured_us.items()}
        else:
            each_s = took_s / max(sum(ran.values()), 1)
            spent = {actor: each_s * count for actor, count in ran.items()}
        runtime.pool.spent(spent, self._loop.time())

    def settle(self, runtime: AdapterRuntime, batch: list[Envelope], outcomes: Sequence[Outcome]) -> None:
        """Tell the pool, and whoever waits, what became of a batch."""
        finished: list[Envelope] = []
        deferred: list[Envelope] = []
        refused: list[tuple[Envelope, Outcome]] = []
        for envelope, outcome in zip(batch, outcomes, strict=True):
            if outcome.verdict is Verdict.DEFERRED:
                deferred.append(envelope)
                continue
            finished.append(envelope)
            if outcome.verdict is Verdict.REFUSED:
                refused.append((envelope, outcome))
        runtime.pool.done(finished)
        for replaced in runtime.pool.take_replaced():
            self._resolve(runtime, replaced.id, "replaced")
        for envelope, outcome in refused:
            self._counters["refused"] += 1
            if not outcome.recorded:  # else it is told once that is committed
                self._resolve(runtime, envelope.id, outcome.reason or "refused")
        view = self._store().view()
        if deferred:
            served = {envelope.actor for envelope in finished}
            runtime.pool.give_back(deferred, view, self._clock.now_ms, served=served)
        if refused:
            runtime.pool.refresh([envelope.lane for envelope, _ in refused], view)
