"""The production store and journal on several nodes: in the simulator, and refusing what does not follow."""

from __future__ import annotations

import pytest
from ledger_state import EXECUTED, LedgerCluster, LedgerState

from coco.errors import LedgerError
from coco.ledger.transaction_id import TransactionId
from coco.simulator import Plan, run


@pytest.mark.parametrize("nodes", [3, 5])
@pytest.mark.slow
def test_sealed_ledgers_agree_under_faults(nodes):
    reports = [run(Plan(nodes=nodes, seed=seed), LedgerCluster) for seed in range(12)]
    assert [report.violation for report in reports] == [""] * len(reports)
    for what in ("rolled_back_entries", "inherited_entries", "joins"):
        assert sum(report.counters.get(what, 0) for report in reports) > 0, what


def written(state: LedgerState, view: int, *transactions: str, is_signature: bool = False):
    operations = [["execute", transaction] for transaction in transactions]
    entry = state.make(view, operations, is_signature=is_signature)
    state.apply(entry)
    return entry


def pair() -> tuple[LedgerState, LedgerState]:
    primary, backup = LedgerState(), LedgerState()
    for transaction in ("a", "b"):
        backup.apply(written(primary, 2, transaction))
    backup.apply(written(primary, 2, is_signature=True))
    assert primary.digest == backup.digest and backup.position == TransactionId(2, 3)
    return primary, backup


def refused(state: LedgerState, data: bytes) -> str:
    before = state.digest
    with pytest.raises(LedgerError) as error:
        state.store.accept(data)
    assert state.digest == before, "nothing was changed"
    return error.value.code


def test_L1_an_entry_that_does_not_follow_stops_the_node():
    primary, backup = pair()
    fourth, fifth = written(primary, 2, "c"), written(primary, 2, "d")
    assert refused(backup, fifth.data) == "ledger.does_not_follow", "a gap"
    assert refused(backup, primary.entries[2]) == "ledger.does_not_follow", "again"
    other, _ = pair()
    other_fourth = written(other, 2, "x")
    fifth_elsewhere = written(other, 2, "d")
    backup.apply(fourth)
    assert refused(backup, fifth_elsewhere.data) == "ledger.does_not_follow", "another predecessor"
    assert refused(backup, fourth.data[:-1] + b"\0") in ("ledger.seal_broken", "ledger.malformed_entry")
    assert other_fourth.position == fourth.position


def test_an_entry_of_an_older_view_does_not_follow():
    primary, backup = pair()
    primary.journal.follow()
    backup.apply(written(primary, 5, "c"))
    stale = LedgerState()
    for data in primary.entries:
        stale._accept(data)
    late = stale.make(4, [["execute", "d"]], is_signature=False)
    assert refused(backup, late.data) == "ledger.does_not_follow"


def test_a_signature_over_another_root_stops_the_node():
    primary, backup = pair()
    lie = primary.make(2, [], is_signature=True, root=bytes(32))
    assert refused(backup, lie.data) == "ledger.other_root"


def test_a_deposed_primary_falls_back_and_seals_no_position_again():
    primary, backup = pair()
    lost = [written(primary, 2, "c"), written(primary, 2, "d")]
    primary.roll_back(3)
    assert primary.digest == backup.digest and "c" not in primary.executed
    new = [written(backup, 3, is_signature=True), written(backup, 3, "c")]
    for entry in new:
        primary.apply(entry)
    assert primary.digest == backup.digest and primary.executed["c"] == 5
    assert primary.journal.position(4) == (3, 4) and primary.journal.position(3) == (2, 3)
    assert {entry.position for entry in lost}.isdisjoint(entry.position for entry in new)
    assert primary.store.native.get(EXECUTED, b"d") is None
