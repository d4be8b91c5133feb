"""A joiner's way to the ledger: from a snapshot and its own disk, and never from what nothing proves."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from coco._native import LedgerSecret, WriteSet
from coco.crypto.certificates import pem
from coco.enclave.keys.identity import NodeIdentity, ServiceIdentity
from coco.enclave.network.snapshots import SNAPSHOT, SNAPSHOT_PART, Offer, Reader, Snapshots, WantedPart, evidence_row
from coco.enclave.network.state_transfer import CatchUp
from coco.enclave.store import Journal, Store
from coco.errors import BusyError, LedgerError, NotFoundError
from coco.ledger import tables
from coco.ledger.signature import sign_root
from coco.ledger.transaction_id import TransactionId

_STATE = (tables.GENESIS, tables.SIGNATURES, tables.COSE_SIGNATURES, tables.TREE, tables.PREDECESSOR)
SNAPSHOT_AT, END = 8, 14


def make_store(journal: Journal) -> Store:
    store = Store(journal)
    for name in (*_STATE, tables.SNAPSHOT_EVIDENCE, tables.ADAPTERS):
        store.declare(name)
    return store


class Network:
    """A ledger of ``END`` entries with a snapshot in its middle; and the joiner's connection to it."""

    def __init__(self, *, evidence: bytes | None = None) -> None:
        self.secret = LedgerSecret.generate()
        self.service = ServiceIdentity.generate(0)
        key = ec.generate_private_key(ec.SECP384R1())
        self.node = NodeIdentity(key, self.service.endorse(key.public_key(), 1, ["localhost"], 0))
        self.entries: list[bytes] = []
        self.journal = Journal(append=lambda at, entry, signs: self.entries.append(entry), read=None)  # type: ignore[arg-type]
        self.journal.begin(view=2, secret=self.secret)
        self.store = make_store(self.journal)
        self._declare(self.store)
        self._write((tables.GENESIS, tables.SINGLETON, b"genesis"))
        while self.journal.last_seqno < SNAPSHOT_AT - 1:
            number = str(self.journal.last_seqno).encode()
            self._write(("app.state", b"k" + number, number), ("app.log", number, b"value " + number))
        self._sign()
        self.parts, self.offer, digest = self._snapshot()
        self._write((tables.SNAPSHOT_EVIDENCE, tables.SINGLETON, evidence or evidence_row(SNAPSHOT_AT, digest)))
        while self.journal.last_seqno < END - 1:
            number = str(self.journal.last_seqno).encode()
            self._write(("app.state", b"k2", number), ("app.log", number, b"value " + number))
        self._sign()
        self.asked: list[str] = []
        self.fetched: list[int] = []
        #: Answers that fail, by what is asked for the how-manieth time.
        self.failing: dict[tuple[str, int], Exception] = {}
        self.offers = [self.offer]

    @staticmethod
    def _declare(store: Store) -> None:
        store.declare("app.state")
        store.declare("app.log", log=True)

    def _write(self, *rows: tuple[str, bytes, bytes | None]) -> None:
        self.store.write(WriteSet(list(rows)))

    def _sign(self) -> None:
        at = TransactionId(2, self.journal.last_seqno + 1)
        signed = sign_root(
            self.node.key,
            self.service.key,
            node_certificate=pem(self.node.certificate),
            position=at,
            root=self.journal.tree.root(),
            committed=TransactionId(2, at.seqno - 1),
            time_s=0,
        )
        rows = [(tables.SIGNATURES, signed.signatures_row()), (tables.COSE_SIGNATURES, signed.cose_row())]
        tree = (tables.TREE, tables.SINGLETON, self.journal.tree.serialise())
        self.journal.adopt_signature(at.seqno)
        self._write(*((table, tables.SINGLETON, row) for table, row in rows), tree)

    def _snapshot(self) -> tuple[list[bytes], Offer, bytes]:
        parts: list[bytes] = []

        async def write(seqno: int, number: int, part: bytes) -> None:
            parts.append(part)

        async def inline(call: Any) -> Any:
            return call()

        control: Any = SimpleNamespace(write_snapshot=write, appended_bytes=0)
        taker = Snapshots(
            control=control,
            sequencer=SimpleNamespace(store=self.store),  # type: ignore[arg-type]
            genesis=b"genesis",
            interval=1,
            run=inline,
            spawn=lambda work: None,
            log=lambda *line: None,
        )
        taken = asyncio.run(taker._take(SNAPSHOT_AT))
        return parts, Offer(SNAPSHOT_AT, SNAPSHOT_AT + 1, taken.salt, len(parts)), taken.digest

    # --- what a joiner asks ---

    async def ask_any(self, kind: str, body: bytes) -> bytes:
        self.asked.append(kind)
        if failure := self.failing.get((kind, self.asked.count(kind))):
            raise failure
        if kind == SNAPSHOT:
            return msgspec.msgpack.encode(self.offers)
        assert kind == SNAPSHOT_PART
        return self.parts[msgspec.msgpack.decode(body, type=WantedPart).number]

    def turn(self) -> None:
        self.asked.append("turn")

    async def fetch(self, first: int, last: int) -> list[bytes]:
        self.fetched.append(first)
        return self.entries[first - 1 : min(last, first + 2)]


class Disk:
    """The host of the joiner."""

    def __init__(self, entries: list[bytes]) -> None:
        self.entries = list(entries)

    async def read(self, first: int, last: int) -> list[bytes]:
        return self.entries[first - 1 : last]

    async def truncate(self, seqno: int) -> None:
        del self.entries[seqno:]

    def begin_at(self, seqno: int) -> None:
        assert seqno == len(self.entries)

    def append(self, seqno: int, entry: bytes) -> None:
        assert seqno == len(self.entries) + 1
        self.entries.append(entry)

    async def room(self) -> None:
        pass


def join(network: Network, disk: list[bytes]) -> tuple[dict[str, int], Store, Disk, list[bytes]]:
    journal = Journal(append=lambda *entry: None, read=None)  # type: ignore[arg-type]
    journal.hold(1, network.secret)
    store, host = make_store(journal), Disk(disk)
    begun: list[bytes] = []

    def begin(genesis: bytes) -> None:
        begun.append(genesis)
        network._declare(store)

    end = TransactionId(2, END)
    joined: Any = SimpleNamespace(start=SimpleNamespace(position=end, signed=end), service=network.service)
    control: Any = host
    joiner: Any = network
    numbers = asyncio.run(CatchUp(control, store, joiner, joined, begin).run(len(disk)))
    assert begun == [b"genesis"]
    assert host.entries == network.entries
    assert journal.tree.root() == network.journal.tree.root() and store.latest == END
    assert list(store.view().scan("app.state")) == list(network.store.view().scan("app.state"))
    for seqno in range(2, END):
        if seqno not in (SNAPSHOT_AT, SNAPSHOT_AT + 1):
            assert store.native.written_at("app.log", str(seqno - 1).encode()) == seqno
    assert journal.last_signature == END and journal._signatures[0] == SNAPSHOT_AT
    return numbers, store, host, begun


def test_a_joiner_with_an_empty_disk_applies_only_what_follows_the_snapshot():
    network = Network()
    numbers, store, *_ = join(network, [])
    assert (numbers["snapshot"], numbers["kept"]) == (SNAPSHOT_AT, 0)
    assert store.native.oldest == SNAPSHOT_AT


def test_its_own_disk_is_taken_as_far_as_it_is_the_networks():
    network = Network()
    numbers, *_ = join(network, network.entries[:6])
    assert (numbers["kept"], network.fetched[0]) == (6, 7)
    # Entries after the snapshot are fetched, whatever the disk says: nothing here proves them yet.
    network = Network()
    numbers, *_ = join(network, network.entries[:12])
    assert (numbers["kept"], network.fetched[0]) == (SNAPSHOT_AT, SNAPSHOT_AT + 1)
    other = Network().entries
    network = Network()
    numbers, *_ = join(network, [*network.entries[:3], other[3], *network.entries[4:]])
    assert (numbers["kept"], network.fetched[0]) == (3, 4)
    network = Network()
    numbers, *_ = join(network, [*network.entries[:3], b"", *network.entries[4:]])
    assert numbers["kept"] == 3


def test_without_a_snapshot_the_ledger_is_read_from_its_first_entry():
    for offers in ([], [Offer(SNAPSHOT_AT, END + 1, bytes(32), 3)]):
        network = Network()
        network.offers = offers
        numbers, *_ = join(network, network.entries[:6])
        assert (numbers["snapshot"], numbers["kept"], network.fetched[0]) == (0, 0, 1)


def test_a_snapshot_whose_evidence_nothing_has_signed_yet_is_not_begun_from():
    """Who is asked has seen the signature over it, who welcomed the joiner had not: it may have ended since."""
    network = Network()
    cut = network.entries[: SNAPSHOT_AT + 1]
    journal = Journal(append=lambda *entry: None, read=None)  # type: ignore[arg-type]
    journal.hold(1, network.secret)
    store, host = make_store(journal), Disk([])
    start = SimpleNamespace(position=TransactionId(2, SNAPSHOT_AT + 1), signed=TransactionId(2, SNAPSHOT_AT))
    joined: Any = SimpleNamespace(start=start, service=network.service)
    control: Any = host
    joiner: Any = network
    numbers = asyncio.run(CatchUp(control, store, joiner, joined, lambda genesis: network._declare(store)).run(0))
    assert numbers["snapshot"] == 0 and host.entries == cut


def test_a_snapshot_that_breaks_off_is_begun_anew_elsewhere():
    network = Network()
    network.failing = {
        (SNAPSHOT, 1): BusyError("away", code="peers.unreachable"),
        (SNAPSHOT_PART, 3): NotFoundError("another by now", code="snapshot.gone"),
        (SNAPSHOT_PART, 5): BusyError("what a node of another kind says of its host", code="channel.wrong_snapshot"),
    }
    numbers, *_ = join(network, [])
    assert numbers["snapshot"] == SNAPSHOT_AT
    assert network.asked.count("turn") == 3 and network.asked.count(SNAPSHOT) == 4


@pytest.mark.parametrize("what", ["another digest", "another place", "a part less"])
def test_a_snapshot_that_nothing_in_the_ledger_proves_stops_the_joiner(what):
    digest = Reader(Offer(SNAPSHOT_AT, 9, bytes(32), 0), LedgerSecret.generate()).digest
    rows = {"another digest": evidence_row(SNAPSHOT_AT, digest), "another place": evidence_row(7, digest)}
    network = Network(evidence=rows.get(what))
    if what == "a part less":
        network.offers = [msgspec.structs.replace(network.offer, parts=network.offer.parts - 1)]
    with pytest.raises(LedgerError) as refused:
        join(network, [])
    assert refused.value.code == "join.snapshot_unproven"


def test_another_ledger_than_the_snapshots_stops_the_joiner():
    network, other = Network(), Network()
    network.entries[4] = other.entries[4]
    with pytest.raises(LedgerError) as refused:
        join(network, [])
    assert refused.value.code == "join.other_ledger"
