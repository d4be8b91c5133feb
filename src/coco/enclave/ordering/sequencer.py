"""The single writer: batches from the pools become entries, entries become signed, signed entries become committed.

Order of one batch at the primary: take from a pool -> execute on a store transaction -> seal and apply -> propose ->
sign -> a majority holds it -> committed -> tell. Execution runs ahead of commit; nothing is told before it. A backup
applies what consensus gives it and tells the same at commit. A deposed primary undoes what was not committed; who
received a transaction sends it again (:mod:`coco.enclave.ordering.forwarding`).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from coco import limits
from coco._native import LedgerSecret, WriteSet
from coco.crypto.certificates import pem
from coco.enclave.adapters.contract import BlockContext, Envelope
from coco.enclave.keys.identity import NodeIdentity, ServiceIdentity
from coco.enclave.ordering import records
from coco.enclave.ordering.batches import Batches
from coco.enclave.ordering.replica import Replica
from coco.enclave.ordering.runtime import AdapterRuntime
from coco.enclave.ordering.subscribers import Subscribers
from coco.enclave.platform.clock import Clock
from coco.enclave.store import Store, StoreTransaction
from coco.errors import BusyError, CocoError, ConsensusError
from coco.ledger import tables
from coco.ledger.signature import sign_root
from coco.ledger.transaction_id import TransactionId

_EXPIRY_INTERVAL_S = 60.0

#: The secret of an epoch whose first entry is given, and the rows that keep it.
NewEpoch = Callable[[int], tuple[LedgerSecret | None, Sequence[tuple[str, bytes, bytes | None]]]]


@dataclass(slots=True)
class _Executed:
    seqno: int
    runtime: AdapterRuntime
    included: Sequence[bytes]
    at_s: float


class Sequencer:
    """Runs the pools of all adapters into one order."""

    def __init__(
        self,
        *,
        store: Store,
        clock: Clock,
        node: NodeIdentity,
        service: ServiceIdentity,
        replica: Replica,
        block_interval_ms: int,
        signature_interval_ms: int,
        run: Callable[..., Awaitable[Any]],
        room: Callable[[], Awaitable[None]],
        fatal: Callable[[BaseException], None],
        log: Callable[..., None],
    ) -> None:
        self.store, self.clock = store, clock
        self.runtimes: list[AdapterRuntime] = []
        self.replica = replica
        replica.on_committed = self._committed
        replica.on_apply = self.apply
        replica.on_roll_back = self._roll_back
        replica.on_promoted = store.journal.lead
        replica.on_opening = self._open_view
        replica.on_view = self._view_changed
        self.subscribers = Subscribers()
        self._node, self._service = node, service
        self._block_interval_s = block_interval_ms / 1000
        self._signature_interval_s = signature_interval_ms / 1000
        self._run, self._room, self._fatal = run, room, fatal
        self._work = asyncio.Event()
        #: Wakes when whoever rests has rested.
        self._rested: asyncio.TimerHandle | None = None
        #: Batches that wait for somebody outside.
        self._outside: set[asyncio.Task[None]] = set()
        self._unsigned = 0
        self._sign_due = asyncio.Event()
        self._writer, self._order = replica.writer, replica.order
        self._executed: deque[_Executed] = deque()
        self._commit_waiters: list[tuple[int, asyncio.Future[None]]] = []
        self._history: deque[tuple[int, int]] = deque()
        self._tasks: list[asyncio.Task[None]] = []
        self._draining = False
        #: As primary: everything that comes before the first batch is done.
        self._is_open = True
        #: When this node began to execute as primary.
        self._opened_at_s = 0.0
        counted = ("transactions", "batches", "signatures", "refused", "crashed", "conflicts", "commits")
        self.counters = dict.fromkeys(counted, 0)
        #: Microseconds that batches (signatures, commits) have spent in each stage, all together.
        self.stages = {"execute_us": 0, "seal_us": 0, "sign_us": 0, "commit_us": 0}
        self._batches = Batches(
            store=lambda: self.store,
            clock=clock,
            replica=replica,
            target_ms=max(block_interval_ms, limits.BATCH_TARGET_MS_MIN),
            run=run,
            applied=self._executed_here,
            resolve=self.resolve,
            log=log,
            counters=self.counters,
            stages=self.stages,
        )

    def _spent(self, stage: str, began_s: float) -> None:
        self.stages[stage] += int(1e6 * (asyncio.get_running_loop().time() - began_s))

    def start(self) -> None:
        """Begin to sequence."""
        for work in (self._sequence(), self._sign_loop(), self._expire()):
            task = asyncio.get_running_loop().create_task(work)
            task.add_done_callback(self._task_ended)
            self._tasks.append(task)

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fatal(error)

    async def drain(self) -> None:
        """Take no more work, finish what was begun, and wait until it is committed."""
        self._draining = True
        async with self._writer:
            pass
        if self.replica.is_primary and self.store.journal.last_seqno > self.replica.committed:
            self._sign_due.set()
            await self.committed(self.store.journal.last_seqno)
        self.abandon()

    def abandon(self) -> None:
        """Do nothing more, whatever was begun."""
        for task in [*self._tasks, *self._outside]:
            task.cancel()

    # --- submissions ---

    def accept(self, runtime: AdapterRuntime, envelopes: Sequence[Envelope]) -> list[CocoError | None]:
        """Put envelopes into the pool; for each None or the reason of its refusal."""
        if self._draining:
            return [BusyError("the node is stopping", code="node.stopping")] * len(envelopes)
        if runtime.unfit is not None:
            return [runtime.unfit] * len(envelopes)
        now_s = asyncio.get_running_loop().time()
        verdicts = runtime.pool.add(envelopes, self.store.view(), self.clock.now_ms, now_s=now_s)
        for replaced in runtime.pool.take_replaced():
            self.resolve(runtime, replaced.id, "replaced")
        if runtime.pool.ready:
            self.wake()
        return verdicts

    def wake(self) -> None:
        """There may be something to execute."""
        self._work.set()

    def outcome(self, runtime: AdapterRuntime, identity: bytes) -> asyncio.Future[str]:
        """Resolves when the transaction is committed (to ""), or with the reason why it left the pool."""
        future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        if runtime.included.get(identity, self.replica.committed + 1) <= self.replica.committed:
            future.set_result("")  # of what was sent twice, the first may be committed before the second is answered
        else:
            runtime.waiting.setdefault(identity, []).append(future)
        return future

    def resolve(self, runtime: AdapterRuntime, identity: bytes, reason: str) -> None:
        """Tell whoever waits that a transaction is committed ("") or why it never will be."""
        for settled in self.subscribers.settled:
            settled(runtime, identity, reason)
        for future in runtime.waiting.pop(identity, ()):
            if not future.done():
                future.set_result(reason)

    # --- batches ---

    async def _sequence(self) -> None:
        loop = asyncio.get_running_loop()
        last = 0.0
        while True:
            await self._work.wait()
            await self._room()
            delay = last + self._block_interval_s - loop.time()
            if delay > 0 and not self._full():
                # A batch closes by time or by size, whichever comes first.
                await asyncio.sleep(min(delay, 0.005))
                continue
            last = loop.time()
            self._work.clear()
            if not (self.replica.may_execute and self._is_open):
                continue  # whoever makes it primary wakes it
            rests_s: list[float] = []
            for runtime in self.runtimes:
                if runtime.pool.ready and not self._draining:
                    await self._run_a_batch(runtime)
                if runtime.pool.ready and not runtime.is_outside:
                    rests_s.append(runtime.pool.rest_s(loop.time()))
            if rests_s:
                self._wake_in(min(rests_s))

    async def _run_a_batch(self, runtime: AdapterRuntime) -> None:
        """Take a batch and execute it; one that waits for somebody outside goes on by itself."""
        if runtime.is_outside:
            return
        if runtime.manifest.waits_outside:
            if batch := self._take(runtime):
                runtime.is_outside = True
                task = asyncio.get_running_loop().create_task(self._execute_outside(runtime, batch))
                self._outside.add(task)
                task.add_done_callback(self._outside_ended)
            return
        ends_s = asyncio.get_running_loop().time() + self._block_interval_s
        async with self._writer:
            # Small batches, by what the adapter wants, do not each wait for a turn of their own.
            while self.replica.may_execute and (batch := self._take(runtime)):
                await self._execute(runtime, batch)
                if len(batch) < runtime.pool.policy.batch_max or asyncio.get_running_loop().time() >= ends_s:
                    break

    def _take(self, runtime: AdapterRuntime) -> list[Envelope]:
        return runtime.pool.take(
            min(limits.BATCH_TRANSACTIONS_MAX, runtime.pool.policy.batch_max),
            limits.BATCH_BYTES_SOFT,
            outlived=self._may_have_outlived(),
            now_s=asyncio.get_running_loop().time(),
        )

    async def _execute_outside(self, runtime: AdapterRuntime, batch: list[Envelope]) -> None:
        try:
            await self._execute(runtime, batch)
        finally:
            runtime.is_outside = False
            self.wake()

    def _outside_ended(self, task: asyncio.Task[None]) -> None:
        self._outside.discard(task)
        self._task_ended(task)

    async def _execute(self, runtime: AdapterRuntime, batch: list[Envelope]) -> None:
        try:
            for executing in self.subscribers.executing:
                await executing(runtime, [envelope.id for envelope in batch])
            await self._batches.execute(runtime, batch)
        except ConsensusError:
            runtime.pool.forget(batch)  # deposed; whoever received them sends them again

    def _wake_in(self, rest_s: float) -> None:
        """Go on at once, or when somebody has rested."""
        if self._rested is not None:
            self._rested.cancel()
            self._rested = None
        if rest_s > 0:
            self._rested = asyncio.get_running_loop().call_later(rest_s, self.wake)
        else:
            self.wake()

    def _may_have_outlived(self) -> int:
        """How many primaries a transaction may have ended that runs now.

        Any number, while the network would go on without this primary. What one died with waits for that, but not for
        ever: most primaries die of something else, and it may be that nobody replaces them.
        """
        if self.replica.is_spare:
            return limits.PRIMARIES_OUTLIVED_MAX
        waited_s = asyncio.get_running_loop().time() - self._opened_at_s
        return 1 if waited_s > limits.SUSPECT_SECONDS_MAX else 0

    def _full(self) -> bool:
        return any(len(runtime.pool) >= limits.BATCH_TRANSACTIONS_MAX for runtime in self.runtimes)

    async def _executed_here(self, runtime: AdapterRuntime, seqno: int, writes: WriteSet, told: list[Envelope]) -> None:
        """An entry of this primary's is in the store; ``writer`` and ``order`` are held."""
        position = self.store.journal.position(seqno)
        await runtime.adapter.applied(position, writes)
        self._remember(seqno, runtime, [envelope.id for envelope in told])
        if runtime.parts_of is not None:
            await self._executed_with_others(runtime, position, writes, told)
        self._entry_written()

    async def _executed_with_others(
        self, runtime: AdapterRuntime, position: TransactionId, writes: WriteSet, told: list[Envelope]
    ) -> None:
        """The same, of composite transactions: every adapter hears of it, and every pool."""
        view = self.store.view()
        for other in self.runtimes:
            if other is not runtime and (included := await other.adapter.applied(position, writes)):
                self._remember(position.seqno, other, included)
                other.pool.release(included)
        assert runtime.parts_of is not None, "asked only of what has parts"
        for envelope in told:
            for other, part in runtime.parts_of(envelope):
                other.pool.refresh([part.lane], view)

    def _remember(self, seqno: int, runtime: AdapterRuntime, included: Sequence[bytes]) -> None:
        self._executed.append(_Executed(seqno, runtime, included, asyncio.get_running_loop().time()))
        self._history.append((seqno, self.clock.now_ms))
        known = runtime.included
        known.update(dict.fromkeys(included, seqno))
        while len(known) > limits.INCLUDED_IDS_MAX:
            del known[next(iter(known))]

    # --- what consensus says; ``writer`` and ``order`` are held ---

    async def apply(self, position: TransactionId, data: bytes) -> None:
        """Apply an entry that another node wrote, or a former life of this one's leadership."""
        writes = self.store.accept(data)
        self.clock.at_least(self.store.journal.issued_s * 1000)
        for runtime in self.runtimes:
            told = await runtime.adapter.applied(position, writes)
            if runtime.manifest.reply is not None:
                told = list(dict.fromkeys([*told, *records.told(writes, runtime.name)]))
            if told:
                self._remember(position.seqno, runtime, told)
        self._tell_applied(writes)

    def _view_changed(self) -> None:
        for view_changed in self.subscribers.view_changed:
            view_changed()

    def _tell_applied(self, writes: WriteSet) -> None:
        for applied in self.subscribers.applied:
            applied(writes)

    def _roll_back(self, seqno: int) -> None:
        """Undo what this node executed as the primary of a view that is over."""
        if seqno < self.store.latest:
            self.store.roll_back(seqno)
        else:
            self.store.journal.follow()
        position = self.store.journal.position(seqno)
        while self._executed and self._executed[-1].seqno > seqno:
            gone = self._executed.pop()
            for identity in gone.included:
                gone.runtime.included.pop(identity, None)
        while self._history and self._history[-1][0] > seqno:
            self._history.pop()
        for rolled_back in self.subscribers.rolled_back:
            rolled_back(seqno)
        for runtime in self.runtimes:
            runtime.adapter.rolled_back(position)
            runtime.pool.clear()
        self._unsigned = 0
        lost = ConsensusError("the primary changed before it was committed", code="consensus.rolled_back")
        for wanted, future in self._commit_waiters:
            if wanted > seqno and not future.done():
                future.set_exception(lost)
        self._commit_waiters = [item for item in self._commit_waiters if item[0] <= seqno]

    async def _open_view(self) -> None:
        """Begin a view with a signature over whatever is there."""
        self._opened_at_s = asyncio.get_running_loop().time()
        self._is_open = False
        try:
            await self.committed(await self.sign())
            for opening in self.subscribers.opening:
                await opening()
        except ConsensusError:
            return  # deposed already
        self._is_open = True
        self.wake()

    async def write_rows(
        self, rows: Sequence[tuple[str, bytes, bytes | None]], *, epoch: NewEpoch | None = None
    ) -> int:
        """Write rows of the framework's own as one entry; return its seqno.

        Args:
            rows: table, key, and value or None to remove it.
            epoch: gets the number of the next entry; gives the secret of an epoch that begins with it, if one does,
                and more rows, which must know their place.

        Raises:
            ConsensusError: this node is not primary; the caller may try again.
        """
        async with self._writer, self._order:
            if not (self.replica.may_execute or self.replica.founds):
                raise ConsensusError("this node is not primary", code="consensus.not_primary")
            written, secret = list(rows), None
            if epoch is not None:
                secret, kept = epoch(self.store.journal.last_seqno + 2)
                written += kept
            writes = WriteSet(written)
            seqno = self.store.write(writes)
            if secret is not None:
                self.store.journal.hold(seqno + 1, secret)
            self._tell_applied(writes)
            self._entry_written()
            return seqno

    async def write_adapter(
        self,
        runtime: AdapterRuntime,
        fill: Callable[[StoreTransaction, BlockContext], Awaitable[None]],
        rows: Sequence[tuple[str, bytes, bytes]],
    ) -> int:
        """Write an entry that an adapter fills outside a batch, with rows of the framework's; return its seqno.

        Raises:
            ConsensusError: this node is not primary.
        """
        async with self._writer, self._order:
            if not self.replica.may_execute:
                raise ConsensusError("this node is not primary", code="consensus.not_primary")
            transaction = self.store.begin()
            expected = self.store.journal.last_seqno + 1
            await fill(transaction, BlockContext(self.clock.now_ms, bytes(32), bytes(32), expected))
            for row in rows:
                transaction.put(*row)
            writes = transaction.native.write_set()
            seqno = self.store.write(writes)
            await runtime.adapter.applied(self.store.journal.position(seqno), writes)
            self._tell_applied(writes)
            self._entry_written()
            return seqno

    # --- signatures and commit ---

    def _entry_written(self) -> None:
        self._unsigned += 1
        self._sign_due.set()

    async def _sign_loop(self) -> None:
        while True:
            await self._sign_due.wait()
            if self._unsigned < limits.UNSIGNED_ENTRIES_MAX and not self._draining:
                await asyncio.sleep(self._signature_interval_s)
            self._sign_due.clear()
            if self._unsigned and self.replica.may_execute:
                with contextlib.suppress(ConsensusError):  # deposed meanwhile
                    await self.sign()

    async def sign(self) -> int:
        """Write a signature entry over everything before it; return its seqno.

        Raises:
            ConsensusError: this node is not primary any more.
        """
        journal = self.store.journal
        async with self._order:
            if not self.replica.is_primary or self.replica.view != journal.view:
                raise ConsensusError("this node is not primary any more", code="consensus.not_primary")
            seqno = journal.last_seqno + 1
            position = TransactionId(journal.view, seqno)
            # Signed off the event loop, while batches may execute; only sealing waits.
            began = asyncio.get_running_loop().time()
            signature = await self._run(
                sign_root,
                self._node.key,
                self._service.key,
                node_certificate=pem(self._node.certificate),
                position=position,
                root=journal.tree.root(),
                committed=journal.position(self.replica.committed),
                time_s=self.clock.now_ms // 1000,
            )
            self._spent("sign_us", began)
            rows = [
                (tables.SIGNATURES, tables.SINGLETON, signature.signatures_row()),
                (tables.COSE_SIGNATURES, tables.SINGLETON, signature.cose_row()),
                (tables.TREE, tables.SINGLETON, journal.tree.serialise()),
            ]
            self._unsigned = 0
            journal.adopt_signature(seqno)
            written = self.store.write(WriteSet(rows), is_signature=True)
            assert written == seqno, "`order` is held: nothing was written since the root was taken"
            self.counters["signatures"] += 1
        return seqno

    def _committed(self, moved: int) -> None:
        """Everything up to ``moved`` is committed."""
        self.store.native.commit(moved)
        if self.store.index is not None:
            self.store.index.relieve()
        position = self.store.journal.position(moved)
        for runtime in self.runtimes:
            runtime.adapter.committed(position)
        while self._executed and self._executed[0].seqno <= moved:
            executed = self._executed.popleft()
            self.counters["commits"] += 1
            self._spent("commit_us", executed.at_s)
            for identity in executed.included:
                self.resolve(executed.runtime, identity, "")
        still: list[tuple[int, asyncio.Future[None]]] = []
        for wanted, future in self._commit_waiters:
            if wanted > moved:
                still.append((wanted, future))
            elif not future.done():
                future.set_result(None)
        self._commit_waiters = still
        self._prune()
        for committed in self.subscribers.committed:
            committed()

    async def committed(self, seqno: int) -> None:
        """Wait until ``seqno`` is committed."""
        if seqno > self.replica.committed:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._commit_waiters.append((seqno, future))
            await future

    def _prune(self) -> None:
        """Keep state readable for a number of application entries and a time back, whichever is more."""
        oldest_ms = self.clock.now_ms - limits.HISTORY_SECONDS_MIN * 1000
        oldest = None
        while len(self._history) > limits.HISTORY_ENTRIES_MIN and self._history[1][1] < oldest_ms:
            self._history.popleft()
            oldest = self._history[0][0]
        if oldest is not None and oldest <= self.replica.committed:
            self.store.native.prune(oldest)

    async def _expire(self) -> None:
        while True:
            await asyncio.sleep(_EXPIRY_INTERVAL_S)
            before = self.clock.now_ms - limits.POOL_SECONDS_MAX * 1000
            for runtime in self.runtimes:
                now_s = asyncio.get_running_loop().time()
                for envelope in runtime.pool.expire(before, now_s=now_s):
                    self.resolve(runtime, envelope.id, "expired")
            for expired in self.subscribers.expired:
                expired(before)
