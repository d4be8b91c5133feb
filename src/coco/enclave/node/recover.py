"""A node begins a new life of a service whose nodes are all lost, from its ledger and its members' shares."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from coco import _native
from coco.configuration import nodes, settings
from coco.configuration import secrets as wrapping
from coco.configuration.genesis import Genesis
from coco.configuration.share_holders import share_holders
from coco.crypto.certificates import pem
from coco.enclave.network.recovery import PAGE, FormerLife, Recovery, read_former_life
from coco.enclave.network.state_transfer import HISTORY_AFTER_JOIN
from coco.enclave.node.founding import check_platform, check_policy, found, make_founder, service_row
from coco.enclave.node.ground import Ground
from coco.enclave.node.parts import Parts
from coco.enclave.node.states import Life, State
from coco.enclave.platform.clock import Clock, compare_with_ledger
from coco.enclave.store import Store
from coco.errors import LedgerError, NotFoundError, RequestError
from coco.ledger import tables


async def begin_recovery(ground: Ground) -> tuple[Parts, Recovery]:
    """Read the former life, and write that this one continues it; the service waits for its members then.

    Raises:
        LedgerError: the ledger is damaged, another's, or from another time.
    """
    public = _native.Store()
    for name in tables.STATE_TABLES:
        public.declare(name, False)
    former = await read_former_life(ground.control, ground.journal, public, ground.start)
    check_platform(ground, Genesis.parse(former.genesis))
    ground.clock = _compare_clock(ground, former.committed_ms, settings.in_force(public))
    engine = former.last_engine + 1
    founder = await make_founder(ground, engine)
    # K1: nothing of this life is sealed under a secret of a former one.
    await found(ground, engine, former.end.view + 2, former.end)
    ground.journal.begin(view=ground.replica.view, secret=_native.LedgerSecret.generate(former.root))
    parts = Parts(ground, Store(ground.journal, public), former.genesis, founder.identities)
    rows: list[tuple[str, bytes, bytes | None]] = [*founder.rows(ground, ground.journal.last_seqno + 1)]
    following = parts.store.begin()
    for table, key, row in rows:
        following.put(table, key, row or b"")
    check_policy(ground, following)
    if former.discarded:
        await ground.control.truncate(former.end.seqno)
    ground.control.begin_at(former.end.seqno)
    for node_id in former.node_ids:
        info = json.loads(public.get(tables.NODES_INFO, node_id.encode()) or b"{}")
        retired = {**info, "status": nodes.RETIRED, "retired_committed": True}
        rows.append((tables.NODES_INFO, node_id.encode(), tables.row(retired)))
    rows.append((tables.SERVICE_INFO, tables.SINGLETON, _service_row(parts, former, State.RECOVERING)))
    if public.get(tables.SUCCESSION, tables.SINGLETON) is not None:
        # Whatever key was announced is gone with the nodes that had it; this life has another one anyway.
        rows.append((tables.SUCCESSION, tables.SINGLETON, None))
    await parts.sequencer.write_rows(rows)
    await parts.sequencer.committed(await parts.sequencer.sign())
    waiting = _service_row(parts, former, State.WAITING_FOR_SHARES)
    await parts.sequencer.write_rows([(tables.SERVICE_INFO, tables.SINGLETON, waiting)])
    await parts.sequencer.committed(await parts.sequencer.sign())
    if former.discarded:
        ground.log("recovery.tail_discarded", {"entries": former.discarded, "end": former.end.seqno})
    return parts, Recovery(former, parts.service.spki)


def _service_row(parts: Parts, former: FormerLife, status: State) -> bytes:
    count, since = former.recovery_count + 1, former.end.seqno + 1
    return service_row(parts.service, status, count, previous=pem(former.service), since=since)


def _compare_clock(ground: Ground, end_ms: int, voted: Mapping[str, Any]) -> Clock:
    """The time in which a recovered ledger goes on: not before its end, unless the operator says so.

    Raises:
        LedgerError: the host's clock cannot be right (``clock.ahead_of_the_ledger``, ``clock.behind_the_ledger``).
    """
    start = ground.start
    try:
        gap_s, skew_s = int(voted["start_clock_gap_s"]), int(voted["start_clock_skew_s"])
        compare_with_ledger(start.time_ms, end_ms, gap_s=gap_s, skew_s=skew_s)
    except LedgerError as error:
        if not start.accept_clock:
            raise
        ground.log("clock.accepted", error.numbers, {"instead": error.code})
        return Clock(start.time_ms)
    return Clock(start.time_ms, end_ms)


class Recovering:
    """What members do while the service waits for them; it opens once they have done enough.

    Args:
        life: of the service.
        parts: of the node.
        recovery: what members have said and given; none, where there was no former life.
        opened: serves, once the service is open.
    """

    def __init__(
        self, life: Life, parts: Parts, recovery: Recovery | None, opened: Callable[[], Awaitable[None]]
    ) -> None:
        self._life, self._parts, self._recovery, self._opened = life, parts, recovery, opened
        self._opening = asyncio.Lock()

    @property
    def discarded(self) -> int:
        """Entries of the former life that nobody had signed."""
        return self._recovery.former.discarded if self._recovery is not None else 0

    def _waiting(self) -> Recovery:
        if self._recovery is None or self._life.state is not State.WAITING_FOR_SHARES:
            raise RequestError("the service is not being recovered", code="recovery.not_recovering")
        return self._recovery

    def state(self) -> dict[str, Any]:
        """What members need to know to state the new identity."""
        recovery, service = self._recovery, self._parts.service
        if recovery is None:
            return {"status": self._life.state}
        former = recovery.former
        return {
            "status": self._life.state,
            "previous_service": pem(former.service),
            "next_service": pem(service.certificate),
            "time_ms": self._parts.ground.clock.now_ms,
            "ledger_time_ms": former.committed_ms,
            "previous_service_key": former.service_key.hex(),
            "next_service_key": service.spki.hex(),
            "transaction_id": str(former.end),
            "root": former.root.hex(),
            "discarded_entries": former.discarded,
            "statements": sorted(recovery.statements),
            "shares": sorted(recovery.shares),
        }

    async def accept_statement(self, body: bytes) -> dict[str, Any]:
        """Take a member's statement that the new identity continues the old one."""
        recovery = self._waiting()
        member = recovery.accept_statement(body, self._parts.store.view())
        key = (recovery.former.recovery_count + 1).to_bytes(8, "big") + member.encode()
        async with self._opening:
            self._waiting()
            await self._parts.sequencer.write_rows([(tables.IDENTITY_STATEMENTS, key, body)])
        await self._open()
        return self.state()

    def encrypted_share(self, member: str) -> bytes:
        """A member's share of the former ledger secret, encrypted to the member.

        Raises:
            NotFoundError: there is none (``recovery.no_share``).
        """
        row = self._parts.store.view().get(tables.WRAPPED_SECRET, tables.SINGLETON)
        share = wrapping.encrypted_share(row, member)
        if share is None:
            raise NotFoundError("there is no share for this member", code="recovery.no_share")
        return share

    async def accept_share(self, member: str, body: bytes) -> dict[str, Any]:
        """Take a member's share; at the threshold the private ledger is recovered and the service opens."""
        recovery = self._waiting()
        view = self._parts.store.view()
        recovery.accept_share(member, body, view)
        threshold, submitted = share_holders(view).threshold, len(recovery.shares)
        await self._open()
        return {
            "message": f"{submitted} of {threshold} shares",
            "submittedCount": submitted,
            "recoveryThreshold": threshold,
        }

    async def _open(self) -> None:
        async with self._opening:
            recovery = self._recovery
            if recovery is None:
                return
            if self._life.state is not State.WAITING_FOR_SHARES:
                recovery.shares.clear()  # this one came too late to be needed
                return
            parts, view = self._parts, self._parts.store.view()
            if not recovery.enough(view) or not recovery.stated(view):
                return
            secrets = recovery.secrets(view)
            await parts.sequencer.committed(await parts.sequencer.sign())
            parts.journal.restore_secrets(secrets)
            await _replay_private(parts)
            await _rewrap(parts, secrets)
            row = _service_row(parts, recovery.former, State.OPEN)
            seqno = await parts.sequencer.write_rows([(tables.SERVICE_INFO, tables.SINGLETON, row)])
            # This node leads already, and has only now the tables of adapters; before the entry that opens the service
            # nothing of theirs may be written.
            await parts.registry.migrate()
            parts.sequencer.start()
            await parts.sequencer.committed(seqno)
            await self._opened()


async def _replay_private(parts: Parts) -> None:
    """Build the whole store anew from the ledger, private tables included."""
    ground, journal = parts.ground, parts.journal
    parts.sequencer.store = store = ground.new_store()
    assert store.index is not None, "`new_store` gives it one"
    store.index.rows_cold_max = parts.genesis.settings.index_rows_max
    parts.declare_adapters()
    last, kept = journal.last_seqno, list[int]()
    for first in range(1, last + 1, PAGE):
        upto = min(first + PAGE - 1, last)
        entries = await ground.control.read(first, upto)
        if len(entries) != upto - first + 1:
            raise LedgerError("the host lost entries during recovery", code="ledger.damaged")
        for seqno, data in enumerate(entries, first):
            if _native.Entry.parse(data).leaf != journal.tree.leaf(seqno):
                raise LedgerError(
                    f"entry {seqno} changed during recovery", code="ledger.damaged", numbers={"entry": seqno}
                )
            writes = await ground.run_off_loop(_open_entry, parts, seqno, data)
            store.native.apply(seqno, writes)
            parts.registry.adopt(seqno, writes.rows(tables.ADAPTERS))
            if any(not table.startswith("public:") for table in writes.tables()):
                kept.append(seqno)
        store.native.commit(upto)
        kept = kept[-HISTORY_AFTER_JOIN:]
        store.native.prune(kept[0] if kept else upto)
        await store.index.relieve_now()
    await parts.rebuild_adapters()


def _open_entry(parts: Parts, seqno: int, data: bytes) -> _native.WriteSet:
    try:
        return parts.journal.secret_at(seqno).open(data)
    except LedgerError as error:
        raise LedgerError(
            f"entry {seqno} is damaged: its seal is broken", code="ledger.damaged", numbers={"entry": seqno}
        ) from error


async def _rewrap(parts: Parts, former: list[tuple[int, _native.LedgerSecret]]) -> None:
    """Keep the new secret among the members, and the last former one under the new one."""
    _, current = parts.journal.current_secret
    first, last = former[-1]
    kept = parts.epochs.found(share_holders(parts.store.view()), parts.ground.clock.now_ms)
    wrapped = wrapping.wrap_former(last, first, current)
    await parts.sequencer.write_rows([*kept, (tables.FORMER_SECRETS, first.to_bytes(8, "big"), wrapped)])
