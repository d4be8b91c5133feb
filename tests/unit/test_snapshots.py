"""Snapshots: the same pieces on every node, a store that begins from them, and nothing believed without evidence."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coco._native import LedgerSecret, Store, WriteSet
from coco.enclave.network.snapshots import SNAPSHOT, SNAPSHOT_PART, Offer, Reader, Snapshots, WantedPart, evidence_row
from coco.enclave.store import Journal
from coco.enclave.store import Store as Tables
from coco.errors import CocoError, HostLiedError, LedgerError, NotFoundError, StoreError
from coco.ledger import tables
from coco.ledger.transaction_id import TransactionId

STATE, LOG = ("a", "public:b"), "log"
rows = st.tuples(st.sampled_from(STATE), st.binary(min_size=1, max_size=2), st.none() | st.binary(max_size=8))


def declared() -> Store:
    store = Store()
    for name in STATE:
        store.declare(name, False)
    store.declare(LOG, True)
    return store


def pieces(store: Store, version: int, size: int) -> list[WriteSet]:
    found: list[Any] = []
    after = None
    while not found or after is not None:
        piece, after = store.snapshot_piece(version, after, size)
        found.append(piece)
    return found


def encoded(found: list[WriteSet]) -> list[tuple[bytes, bytes]]:
    return [(piece.encode_public(), piece.encode_private()) for piece in found]


@settings(deadline=None)
@given(
    st.lists(st.lists(rows, min_size=1, max_size=6, unique_by=lambda row: row[:2]), min_size=1, max_size=12),
    st.integers(1, 40),
    st.data(),
)
def test_a_store_begun_from_pieces_equals_the_state_at_their_version(history, size, data):
    first, second = declared(), declared()
    for version, writes in enumerate(history, 1):
        both = WriteSet([*writes, (LOG, version.to_bytes(2, "big"), b"v")])
        first.apply(version, both)
        second.apply(version, both)
    at = data.draw(st.integers(0, len(history)))
    found = pieces(first, at, size)
    # Another node, which knows no version after it, cuts the same.
    second.roll_back(at)
    assert encoded(pieces(second, at, size)) == encoded(found)
    begun = declared()
    for piece in found:
        begun.load(at, piece)
    for version in range(1, at + 1):
        begun.note_places(version, WriteSet([(LOG, version.to_bytes(2, "big"), b"v")]))
    begun.begin_at(at)
    for name in STATE:
        assert begun.scan(name) == first.scan(name, version=at)
    for version in range(1, len(history) + 1):
        wanted = version if version <= at else None
        assert begun.written_at(LOG, version.to_bytes(2, "big")) == wanted
    if at:
        with pytest.raises(StoreError) as refused:
            begun.get("a", b"x", at - 1)
        assert refused.value.code == "store.version_unavailable"
    begun.apply(at + 1, WriteSet([("a", b"next", b"1")]))
    assert begun.get("a", b"next") == b"1"


def test_a_store_that_has_begun_takes_no_piece():
    store = declared()
    store.load(5, WriteSet([("a", b"k", b"v")]))
    for piece in ([("a", b"k", b"w")], [("a", b"x", None)], [(LOG, b"x", b"v")], [("other", b"x", b"v")]):
        with pytest.raises(StoreError):
            store.load(5, WriteSet(piece))
    store.unload()
    store.load(5, WriteSet([("a", b"k", b"w")]))
    store.begin_at(5)
    for late in (lambda: store.load(5, WriteSet([("a", b"x", b"v")])), lambda: store.begin_at(6), store.unload):
        with pytest.raises(StoreError) as refused:
            late()
        assert refused.value.code == "store.out_of_order"


def test_K3_a_part_opens_only_where_it_was_sealed():
    secret, salt = LedgerSecret.generate(), bytes(32)
    cipher = secret.snapshot_cipher(salt, 7)
    sealed = [cipher.seal(b"first"), cipher.seal(b"first")]
    assert sealed[0] != sealed[1], "no two parts share a nonce"
    reader = secret.snapshot_cipher(salt, 7)
    assert [reader.open(part) for part in sealed] == [b"first", b"first"]
    assert reader.digest() == cipher.digest()
    other_salt = b"1" + bytes(31)
    for wrong, part in (
        (secret.snapshot_cipher(salt, 7), sealed[1]),
        (secret.snapshot_cipher(salt, 8), sealed[0]),
        (secret.snapshot_cipher(other_salt, 7), sealed[0]),
        (LedgerSecret.generate().snapshot_cipher(salt, 7), sealed[0]),
        (secret.snapshot_cipher(salt, 7), sealed[0][:-1]),
        (secret.snapshot_cipher(salt, 7), bytes([sealed[0][0] ^ 1]) + sealed[0][1:]),
        (secret.snapshot_cipher(salt, 7), b""),
    ):
        with pytest.raises(LedgerError):
            wrong.open(part)
    # The digest is of the text, whatever the salt; and of its division, and of the place.
    again = secret.snapshot_cipher(other_salt, 7)
    again.seal(b"first"), again.seal(b"first")
    assert again.digest() == cipher.digest()
    for seqno, texts in ((7, [b"firstfirst"]), (7, [b"first"]), (8, [b"first", b"first"])):
        other = secret.snapshot_cipher(salt, seqno)
        for text in texts:
            other.seal(text)
        assert other.digest() != cipher.digest()


class Node:
    """The snapshots of one node over a real store, and a host that may give other bytes."""

    def __init__(self, secret: LedgerSecret, *, leads: bool, interval: int = 2) -> None:
        self.journal = Journal(append=lambda *entry: None, read=None)  # type: ignore[arg-type]
        self.journal.begin(view=2, secret=secret)
        self.store = Tables(self.journal)
        for name in (*STATE, tables.SNAPSHOT_EVIDENCE, tables.PREDECESSOR, tables.ADAPTERS):
            self.store.declare(name)
        self.parts: dict[tuple[int, int], bytes] = {}
        self.failed: list[BaseException] = []
        self.replica = SimpleNamespace(committed=0, may_execute=leads)
        self.appended_bytes = 0
        sequencer: Any = SimpleNamespace(store=self.store, replica=self.replica, write_rows=self._write_rows)
        control: Any = self
        self.snapshots = Snapshots(
            control=control,
            sequencer=sequencer,
            genesis=b"genesis",
            interval=interval,
            run=self._inline,
            spawn=self._spawn,
            log=lambda *line: None,
        )

    async def _inline(self, call: Any) -> Any:
        return call()

    def _spawn(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        task.add_done_callback(lambda done: self.failed.append(done.exception()) if done.exception() else None)

    async def _write_rows(self, rows: Any) -> int:
        return self.write(*rows)

    def write(self, *rows: tuple[str, bytes, bytes | None]) -> int:
        return self.store.write(WriteSet(list(rows)))

    async def commit(self) -> None:
        self.replica.committed = self.store.latest
        self.store.native.commit(self.store.latest)
        self.snapshots.committed()
        for _ in range(50):
            await asyncio.sleep(0)

    # What the host does.
    async def write_snapshot(self, seqno: int, number: int, part: bytes) -> None:
        self.parts[seqno, number] = part

    async def read_snapshot(self, seqno: int, number: int) -> bytes:
        return self.parts.get((seqno, number), b"")

    def keep_snapshot(self, seqno: int) -> None:
        self.parts = {place: part for place, part in self.parts.items() if place[0] == seqno}


def offers(body: bytes) -> list[Offer]:
    return msgspec.msgpack.decode(body, type=list[Offer])


def test_every_node_takes_the_snapshot_that_the_ledger_names_and_gives_it_once_proven():
    async def story() -> None:
        secret = LedgerSecret.generate()
        leader, backup = Node(secret, leads=True), Node(secret, leads=False)
        for node in (leader, backup):
            node.write(("a", b"k", b"1"))
            node.write(("a", b"k", b"2"), ("public:b", b"x", b"3"))
        await leader.commit()
        # Taken, named by an entry that is not committed yet: nobody gets it.
        assert leader.store.latest == 3 and leader.parts
        ask = msgspec.msgpack.encode(100)
        assert offers(await leader.snapshots.serve(SNAPSHOT, ask)) == []
        await leader.commit()
        (offer,) = offers(await leader.snapshots.serve(SNAPSHOT, ask))
        assert (offer.seqno, offer.evidence) == (2, 3)
        # Nor does a joiner whose ledger ends before the evidence.
        assert offers(await leader.snapshots.serve(SNAPSHOT, msgspec.msgpack.encode(2))) == []
        # A backup commits the same row, and has its own copy of the same text.
        row = leader.store.view().get(tables.SNAPSHOT_EVIDENCE, tables.SINGLETON)
        backup.write((tables.SNAPSHOT_EVIDENCE, tables.SINGLETON, row))
        await backup.commit()
        assert not backup.failed
        (theirs,) = offers(await backup.snapshots.serve(SNAPSHOT, ask))
        assert theirs.seqno == 2 and theirs.salt != offer.salt
        assert set(backup.parts) == set(leader.parts) and backup.parts != leader.parts
        reader = Reader(theirs, secret)
        begun = declared()
        for name in (tables.SNAPSHOT_EVIDENCE, tables.PREDECESSOR, tables.ADAPTERS):
            begun.declare(name, False)
        for number in range(theirs.parts):
            wanted = msgspec.msgpack.encode(WantedPart(2, number))
            piece = reader.open(await backup.snapshots.serve(SNAPSHOT_PART, wanted))
            if piece is not None:
                begun.load(2, piece)
        assert evidence_row(2, reader.digest) == row
        assert reader.header is not None and reader.header.genesis == b"genesis"
        assert TransactionId.parse(reader.header.position) == TransactionId(2, 2)
        assert [reader.leaf(seqno) for seqno in range(3)] == [backup.journal.tree.leaf(seqno) for seqno in range(3)]
        begun.begin_at(2)
        assert (begun.get("a", b"k"), begun.get("public:b", b"x")) == (b"2", b"3")
        for place in ((1, 0), (2, theirs.parts), (2, -1)):
            with pytest.raises(NotFoundError) as gone:
                await backup.snapshots.serve(SNAPSHOT_PART, msgspec.msgpack.encode(WantedPart(*place)))
            assert gone.value.code == "snapshot.gone"
        # L2: what the host changed goes nowhere.
        backup.parts[2, 0] = leader.parts[2, 0]
        with pytest.raises(HostLiedError) as lie:
            await backup.snapshots.serve(SNAPSHOT_PART, msgspec.msgpack.encode(WantedPart(2, 0)))
        assert lie.value.code == "channel.wrong_snapshot"

    asyncio.run(story())


def test_a_node_with_another_state_stops_when_the_ledger_says_so():
    async def story() -> None:
        secret = LedgerSecret.generate()
        leader, backup = Node(secret, leads=True), Node(secret, leads=False)
        for node, value in ((leader, b"1"), (backup, b"2")):
            node.write(("a", b"k", value))
            node.write(("a", b"l", b"0"))
            await node.commit()
        await leader.commit()
        row = leader.store.view().get(tables.SNAPSHOT_EVIDENCE, tables.SINGLETON)
        backup.write((tables.SNAPSHOT_EVIDENCE, tables.SINGLETON, row))
        await backup.commit()
        assert [error.code for error in backup.failed if isinstance(error, CocoError)] == ["ledger.other_state"]
        assert offers(await backup.snapshots.serve(SNAPSHOT, msgspec.msgpack.encode(100))) == []

    asyncio.run(story())


def test_the_next_one_waits_until_as_much_was_written_as_the_last_one_holds():
    async def story() -> None:
        node = Node(LedgerSecret.generate(), leads=True)
        node.write(("a", b"k", b"1"))
        node.write(("a", b"l", b"1"))
        await node.commit()
        await node.commit()
        size = sum(len(part) for part in node.parts.values())
        for _ in range(3):
            node.write(("a", b"k", b"1"))
        await node.commit()
        assert {seqno for seqno, _ in node.parts} == {2}
        node.appended_bytes += size
        await node.commit()
        await node.commit()
        assert {seqno for seqno, _ in node.parts} == {6}

    asyncio.run(story())
