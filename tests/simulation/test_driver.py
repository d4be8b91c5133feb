"""The driver of consensus and its engine: pieces, guards, order."""

from __future__ import annotations

from collections import deque

import pytest
from harness import Wire
from hypothesis import given
from hypothesis import strategies as st

from coco import limits
from coco._native import Engine
from coco.consensus import (
    Action,
    Apply,
    Committed,
    Driver,
    LedgerEntry,
    Members,
    Promoted,
    ReadReady,
    RollBack,
    Start,
    Timing,
    engine_settings,
)
from coco.consensus.pieces import Assembler, cut
from coco.errors import ConsensusError, NativeError
from coco.ledger.transaction_id import TransactionId

MEMBERS = Members((1, 2, 3))


class Network(Wire):
    """Three drivers, and what each of them said."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[int, list[Action]] = {}
        for node in MEMBERS.voters:
            self.begin(node, Start(MEMBERS))

    def begin(self, node: int, start: Start) -> None:
        super().begin(node, start)
        self.seen[node] = []

    def note(self, node: int, action: Action) -> None:
        self.seen[node].append(action)

    def elect(self) -> Driver:
        for _ in range(200):
            self.tick()
            leaders = [d for d in self.nodes.values() if d.is_primary and d.node not in self.cut]
            if leaders:
                return leaders[0]
        raise AssertionError("nobody was elected")

    def write(self, primary: Driver, data: bytes, *, signature: bool = False) -> TransactionId:
        position = TransactionId(primary.view, primary.applied + 1)
        self.do(primary.node, primary.propose(LedgerEntry(position, data, signature)))
        self.deliver()
        return position

    def applied(self, node: int) -> list[TransactionId]:
        return [entry.position for action in self.seen[node] if isinstance(action, Apply) for entry in action.entries]


@pytest.fixture
def network() -> tuple[Network, Driver]:
    network = Network()
    primary = network.elect()
    network.write(primary, b"genesis")
    network.write(primary, b"signature", signature=True)
    return network, primary


@given(st.integers(0, 3 * limits.PIECE_BYTES_MAX + 2), st.booleans())
def test_pieces_make_the_entry_again(size, is_signature):
    entry = LedgerEntry(TransactionId(7, 9), bytes(size % 251 for _ in range(1)) * size, is_signature)
    assembler = Assembler()
    made = [assembler.add(index, *piece) for index, piece in enumerate(cut(entry), 1)]
    assert made[:-1] == [None] * (len(made) - 1)
    assert made[-1] == entry
    assert not assembler.is_within


def test_pieces_out_of_order_are_refused():
    pieces = list(cut(LedgerEntry(TransactionId(2, 3), bytes(3 * limits.PIECE_BYTES_MAX), False)))
    other = list(cut(LedgerEntry(TransactionId(2, 4), bytes(3 * limits.PIECE_BYTES_MAX), False)))
    for wrong in ([pieces[1]], [pieces[0], pieces[2]], [pieces[0], other[1]], [(b"short", b"")]):
        with pytest.raises(ConsensusError) as refused:
            assembler = Assembler()
            for index, piece in enumerate(wrong):
                assembler.add(index, *piece)
        assert refused.value.code == "consensus.bad_entry"


def test_committed_is_told_only_of_what_a_signature_covers(network):
    net, primary = network
    assert primary.committed == TransactionId(2, 2)
    data = net.write(primary, b"x")
    assert primary.committed == TransactionId(2, 2) and data == (2, 3)
    signature = net.write(primary, b"signature", signature=True)
    assert primary.committed == signature
    for _ in range(5):
        net.tick()
    for node, driver in net.nodes.items():
        assert driver.committed == signature
        told = [action.position for action in net.seen[node] if isinstance(action, Committed)]
        assert told == [TransactionId(2, 2), signature]
        assert net.applied(node) == ([] if driver is primary else [TransactionId(2, seqno) for seqno in range(1, 5)])


def test_a_deposed_primary_rolls_back_and_a_new_one_signs_first(network):
    net, old = network
    net.cut = {old.node}
    net.write(old, b"only here")
    new = net.elect()
    assert new is not old
    with pytest.raises(ConsensusError) as refused:
        new.propose(LedgerEntry(TransactionId(new.view, new.applied + 1), b"too early", False))
    assert refused.value.code == "consensus.not_primary"


def test_the_log_of_the_elected_survives_with_its_old_view(network):
    net, old = network
    kept = net.write(old, b"on a majority")
    net.cut = {old.node}
    net.write(old, b"only here")
    new = net.elect()
    promoted = [action for action in net.seen[new.node] if isinstance(action, Promoted)]
    assert promoted[-1].view == new.view > old.view
    inherited = [*net.applied(new.node), *(entry.position for entry in promoted[-1].entries)]
    assert kept in inherited and kept.view == old.view
    assert not new.may_execute and not new.is_opened
    signature = net.write(new, b"signature", signature=True)
    assert new.may_execute and new.committed == signature
    net.cut = set()
    for _ in range(5):
        net.tick()
    assert not old.is_primary and old.committed == signature
    assert RollBack(kept.seqno) in net.seen[old.node] or RollBack(kept.seqno - 1) in net.seen[old.node]
    assert net.applied(old.node)[-1] == signature


def test_nobody_but_the_leader_of_the_term_proposes(network):
    net, primary = network
    entry = LedgerEntry(TransactionId(primary.view, primary.applied + 1), b"x", False)
    for driver in net.nodes.values():
        if driver is not primary:
            with pytest.raises(ConsensusError) as refused:
                driver._engine.propose(primary.view - 1, b"", b"x")
            assert refused.value.code == "consensus.not_primary"
    with pytest.raises(ConsensusError):
        primary._engine.propose(primary.view, b"", b"another term")
    assert primary.is_primary
    stale = LedgerEntry(TransactionId(primary.view - 1, entry.position.seqno), b"x", False)
    with pytest.raises(ConsensusError):
        primary.propose(stale)
    primary.advance()
    assert not primary.is_primary, "a refusal after sealing means to step down (K2)"


def field(number: int, value: int | bytes) -> bytes:
    """One field of a protobuf message, of numbers and lengths below 128."""
    if isinstance(value, int):
        return bytes([number << 3, value])
    return bytes([number << 3 | 2, len(value)]) + value


@pytest.mark.parametrize(
    ("message", "why"),
    [
        (field(1, 2) + field(2, 1) + field(3, 2) + field(7, field(4, b"stale")), "a forwarded proposal"),
        (field(1, 0) + field(2, 1) + field(3, 2), "a campaign on behalf of this node"),
        (field(1, 8) + field(2, 1) + field(3, 3), "another sender"),
        (field(1, 8) + field(2, 3) + field(3, 2), "another receiver"),
        (b"\xff" * 40, "no message"),
        (b"\x0b" * 100_000, "groups without end"),
        (field(7, b"\x0b" * 100), "groups in an entry"),
        (b"\x3a\xff\x01ab", "a length beyond the end"),
    ],
)
def test_a_peer_cannot_send(message, why):
    engine = Engine(1, (0, 0, (1, 2, 3), ()), engine_settings(Timing(), 0))
    with pytest.raises(ConsensusError) as refused:
        engine.receive(2, message)
    assert refused.value.code == "consensus.bad_message", why
    engine.tick()


@given(st.binary(max_size=300))
def test_G3_no_bytes_of_a_peer_break_the_engine(message):
    engine = Engine(1, (0, 0, (1, 2, 3), ()), engine_settings(Timing(), 0))
    try:
        engine.receive(2, message)
    except ConsensusError as error:
        assert error.code.startswith("consensus.")
    engine.tick()
    engine.work()


def test_a_read_at_a_backup_waits_for_the_primary(network):
    net, primary = network
    backup = next(driver for driver in net.nodes.values() if driver is not primary)
    net.do(backup.node, backup.read_index(b"first"))
    net.deliver()
    assert ReadReady(b"first") in net.seen[backup.node]
    net.cut = {primary.node}
    net.do(primary.node, primary.read_index(b"second"))
    net.deliver()
    assert ReadReady(b"second") not in net.seen[primary.node], "a primary without a majority serves no such read"


def test_members_change_at_one_moment_and_the_replaced_node_is_out(network):
    net, primary = network
    gone = next(driver.node for driver in net.nodes.values() if driver is not primary)
    net.do(primary.node, primary.change_members([("learner", 4)]))
    net.deliver()
    anchor = primary.anchor
    assert anchor.members == Members(anchor.members.voters, (4,))
    net.begin(4, anchor)
    net.write(primary, b"seen by the learner")
    net.write(primary, b"signature", signature=True)
    net.do(primary.node, primary.change_members([("voter", 4), ("removed", gone)]))
    net.deliver()
    for _ in range(5):
        net.tick()
    for node, driver in net.nodes.items():
        if node != gone:
            assert set(driver.members.voters) == {1, 2, 3, 4} - {gone} and not driver.members.outgoing
    assert [position.seqno for position in net.applied(4)] == [3, 4]


def test_a_panic_of_the_engine_is_an_error_and_the_end_of_it():
    engine = Engine(1, (0, 0, (1,), ()), engine_settings(Timing(), 0))
    engine.campaign()
    engine.work()
    with pytest.raises(NativeError) as first:
        engine.applied(99)
    assert first.value.code == "native.panic"
    with pytest.raises(NativeError) as second:
        engine.tick()
    assert second.value.code == "native.panic"


def test_a_request_for_a_read_that_comes_twice_releases_no_other(network):
    net, primary = network
    first, second = (driver for driver in net.nodes.values() if driver is not primary)
    net.do(first.node, first.read_index(b"first"))
    _, _, request = net.wire.pop()
    net.do(primary.node, primary.receive(first.node, request))
    heartbeats, net.wire = list(net.wire), deque()
    for _, receiver, heartbeat in heartbeats:
        net.do(receiver, net.nodes[receiver].receive(primary.node, heartbeat))
    answers = {sender: message for sender, receiver, message in net.wire if receiver == primary.node}
    net.wire.clear()
    net.do(primary.node, primary.receive(first.node, answers[first.node]))
    net.do(primary.node, primary.read_index(b"later"))
    # The host repeats the request, and a late answer to the first one arrives: it says nothing of what was asked since.
    net.do(primary.node, primary.receive(first.node, request))
    net.do(primary.node, primary.receive(second.node, answers[second.node]))
    assert ReadReady(b"later") not in net.seen[primary.node]
    net.wire.clear()
    net.tick()
    net.tick()
    assert ReadReady(b"later") in net.seen[primary.node], "a majority answered it"
