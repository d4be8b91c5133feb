"""Attacks of a host: whoever runs a node's host process, its disk and its network, and would like more than that.

The campaign with many lives of lying hosts is ``tests/faults/lying_host.py``; here is each kind once.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
import sqlite3
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from attacks import attack

from coco import limits
from coco._native import LedgerSecret, WriteSet
from coco.audit import report
from coco.channel import messages
from coco.channel.framing import FrameWriter
from coco.cli import ledger as ledgers
from coco.consensus import LedgerEntry, RollBack
from coco.crypto.certificates import endorsed_names
from coco.enclave.keys.identity import ServiceIdentity
from coco.enclave.network.membership import FetchRange, Membership
from coco.enclave.network.snapshots import SNAPSHOT, SNAPSHOT_PART, WantedPart
from coco.enclave.platform.control import Control
from coco.enclave.store import Journal, Store
from coco.errors import CocoError, ConsensusError, HostLiedError
from coco.host.persistence import open_database
from coco.ledger import tables
from coco.ledger.transaction_id import TransactionId
from consortium import Consortium
from network import TestNetwork, run

# What a liar gives, and the parts of a node that it is given to, are those of the campaign and of the unit tests.
sys.path += [str(Path(__file__).parent.parent / folder) for folder in ("faults", "unit", "simulation")]
import lying_host
import test_catching_up as catching_up
import test_driver as drivers
import test_index as indexes
import test_snapshots as snapshots

# --- E1: what a host says must end an enclave with a code, or not at all ---

START = messages.Start("create", 0, 1_800_000_000_000, b"{}", b"", "", [], "127.0.0.1:1", [])


@attack(
    "E1",
    was="a host's clock in the year 285,000 ends the enclave with `enclave.failed`: a date that no calendar has",
    now="no message can hold such a time: `channel.invalid_message`",
)
@pytest.mark.parametrize("time_ms", [limits.TIME_MS_MAX, (1 << 53) - 1])
def test_a_time_that_no_calendar_has_is_no_message(time_ms):
    for message in (messages.Tick(time_ms), messages.Start("create", 0, time_ms, b"{}", b"", "", [], "a:1", [])):
        with pytest.raises(HostLiedError) as refused:
            messages.decode_to_enclave(messages.encode(message))
        assert refused.value.code == "channel.invalid_message"
    # The latest time that one can hold leaves room for every certificate.
    ServiceIdentity.generate(limits.TIME_MS_MAX - 1).renewed(limits.TIME_MS_MAX - 1, 3650)


@attack(
    "E1",
    was="whatever a message makes fail closes the channel: the enclave ends with exit code 0 and without a word",
    now="the enclave ends with the failure's name and place",
)
def test_a_message_that_makes_something_fail_ends_the_enclave_with_a_reason():
    async def story() -> None:
        ended: list[Any] = []
        control, frames = Control(ended.append), FrameWriter()

        def fails(time_ms: int) -> None:
            raise KeyError("nobody expected this")

        control.on_tick = fails
        for message in (START, messages.Tick(1)):
            control.data_received(frames.frame(messages.encode(message)))
        assert [type(error) for error in ended] == [KeyError]

    asyncio.run(story())


@attack(
    "E1",
    was="a host name that no certificate can hold is a ValueError in the enclave; a joiner's is one in the primary",
    now="`join.bad_host_name`, and the joiner stops",
)
def test_a_host_name_that_no_certificate_can_hold_is_refused():
    service = ServiceIdentity.generate(1_800_000_000_000)
    key = ServiceIdentity.generate(0).key.public_key()
    with pytest.raises(CocoError) as refused:
        service.endorse(key, 1, ["knoten-ä"], 1_800_000_000_000)
    assert refused.value.code == "join.bad_host_name"
    assert endorsed_names(service.endorse(key, 1, ["n1", "::1"], 1_800_000_000_000)) == ["n1", "::1"]


@attack(
    "E1",
    was="a primary that is held up for a moment, and deposed while it seals an entry, meets an assertion when it proposes "
    "that, and ends",
    now="it is refused, rolls back and goes on as a backup",
)
def test_a_primary_that_is_held_up_while_it_seals_goes_on_as_a_backup():
    net = drivers.Network()
    old = net.elect()
    net.write(old, b"genesis")
    net.write(old, b"signature", signature=True)
    net.cut = {old.node}
    net.write(old, b"only here")
    net.write(old, b"nor this")
    sealed = LedgerEntry(TransactionId(old.view, old.applied + 1), b"being sealed", False)
    new = net.elect()
    net.write(new, b"signature", signature=True)
    net.cut = set()
    for _ in range(20):
        net.tick()
    assert not old.is_primary and any(isinstance(action, RollBack) for action in net.seen[old.node])
    with pytest.raises(ConsensusError) as refused:
        old.propose(sealed)
    assert refused.value.code == "consensus.not_primary"
    for _ in range(5):
        net.tick()
    assert old.last == new.last


# --- the ledger, snapshots and the index: each kind of lie, given to the code that reads it back ---

EVERY_LIE = pytest.mark.parametrize("how", lying_host._INSTEAD)


class Chosen(random.Random):
    """Chooses one kind of lie, and whatever else by chance."""

    how = ""

    def choice(self, options: Any) -> Any:
        return self.how if options is lying_host._INSTEAD else super().choice(options)


def lie(how: str, parts: dict[tuple[int, int], bytes], foreign: list[bytes], group: int, number: int) -> bytes:
    """What a host gives instead of a part."""
    rng = Chosen(7)
    rng.how = how
    right = parts[group, number]
    said, given = lying_host.Kept(parts, foreign).instead(rng, group, number, right)
    assert said == how and given != right
    return given


class Entries:
    """A ledger of a few entries, on the disk of a host."""

    def __init__(self) -> None:
        self.kept: list[bytes] = []
        self.journal = Journal(append=lambda at, entry, signs: self.kept.append(entry), read=self.read)
        self.journal.begin(view=2, secret=LedgerSecret.generate())
        store = Store(self.journal)
        for name in (tables.PREDECESSOR, "app"):
            store.declare(name)
        for number in range(4):
            store.write(WriteSet([("app", b"k", b"value %d" % number)]))

    async def read(self, first: int, last: int) -> list[bytes]:
        return self.kept[first - 1 : last]


@EVERY_LIE
def test_L2_another_entry_than_was_asked_for_goes_nowhere(how):
    async def story() -> None:
        ledger, other = Entries(), Entries()
        parts = {(3, number): entry for number, entry in enumerate(ledger.kept)} | {(2, 2): ledger.kept[0]}
        ledger.kept[2] = lie(how, parts, other.kept, 3, 2)
        with pytest.raises(HostLiedError) as refused:
            await ledger.journal.fetch(3)
        assert refused.value.code == "channel.wrong_entry"

    asyncio.run(story())


@attack(
    "E1",
    was="another node's question is refused and the lie is not noticed; what is no entry is an error of whoever asked",
    now="the node that was lied to ends with `channel.wrong_entry`, and whoever asked asks another one",
)
@EVERY_LIE
def test_L2_a_lie_about_an_entry_that_another_node_asks_for_is_this_hosts(how):
    async def story() -> None:
        ledger, other = Entries(), Entries()
        parts = {(3, number): entry for number, entry in enumerate(ledger.kept)} | {(2, 2): ledger.kept[0]}
        ledger.kept[2] = lie(how, parts, other.kept, 3, 2)
        network: Any = SimpleNamespace(
            _sequencer=SimpleNamespace(store=SimpleNamespace(journal=ledger.journal)),
            _replica=SimpleNamespace(anchor=SimpleNamespace(position=SimpleNamespace(seqno=4))),
            _control=SimpleNamespace(read_some=ledger.read),
        )
        with pytest.raises(HostLiedError) as refused:
            await Membership._fetch(network, FetchRange(1, 4))
        assert refused.value.code == "channel.wrong_entry"

    asyncio.run(story())


@EVERY_LIE
def test_L2_another_part_of_a_snapshot_than_was_asked_for_goes_nowhere(how):
    async def story() -> None:
        secret = LedgerSecret.generate()
        node, other = snapshots.Node(secret, leads=True), snapshots.Node(secret, leads=True)
        kept: dict[tuple[int, int], bytes] = {}
        for one in (node, other):
            for round_ in range(2):
                one.write(("a", b"k", b"%d" % round_))
                one.write(("a", b"k2", b"%d" % round_))
                one.appended_bytes += 1 << 20
                await one.commit()
                kept |= node.parts  # those of the former snapshot, too
                await one.commit()
        assert not node.failed and not other.failed
        (offer,) = snapshots.offers(await node.snapshots.serve(SNAPSHOT, msgspec.msgpack.encode(100)))
        node.parts[offer.seqno, 1] = lie(how, kept, list(other.parts.values()), offer.seqno, 1)
        with pytest.raises(HostLiedError) as refused:
            await node.snapshots.serve(SNAPSHOT_PART, msgspec.msgpack.encode(WantedPart(offer.seqno, 1)))
        assert refused.value.code == "channel.wrong_snapshot"

    asyncio.run(story())


@EVERY_LIE
def test_L2_another_block_of_the_index_than_was_asked_for_goes_nowhere(how):
    async def story() -> None:
        native, host, index = indexes.filled(3000)
        await index.spill()
        key = (1500).to_bytes(8, "big") * 4
        assert await index.locate("log.a", key) == 1
        (run, block), *_ = native.candidates("log.a", key)
        _, other, spilled = indexes.filled(3000)
        await spilled.spill()
        parts = dict(host.blocks) | {(run - 1, block): next(reversed(host.blocks.values()))}
        given = lie(how, parts, list(other.blocks.values()), run, block)
        host.lie = lambda *asked: given
        with pytest.raises(HostLiedError) as refused:
            await index.locate("log.a", key)
        assert refused.value.code == "channel.wrong_index_block"

    asyncio.run(story())


@pytest.mark.parametrize("disk", ["rolled back", "replayed", "another network's", "swapped", "cut in the middle"])
def test_a_newcomer_believes_of_its_own_disk_only_what_the_network_has(disk):
    network, other = catching_up.Network(), catching_up.Network()
    entries = network.entries
    given = {
        "rolled back": entries[:4],
        "replayed": [*entries[:4], *entries[:4]],
        "another network's": other.entries,
        "swapped": [*entries[:4], entries[5], entries[4], *entries[6:]],
        "cut in the middle": [*entries[:4], entries[4][:-1], *entries[5:]],
    }[disk]
    # The ledger on the disk is the network's afterwards, whatever it was: `join` compares it.
    numbers, *_ = catching_up.join(network, given)
    assert numbers["kept"] == (0 if disk == "another network's" else 4)


@attack(
    "E1",
    was="the last word of an enclave is lost when its host is busy for longer than a fifth of a second, and then writes",
    now="the enclave waits until its host has heard it, for a second at most",
)
def test_a_busy_host_hears_why_its_enclave_ended(tmp_path):
    async def story() -> None:
        network = TestNetwork(tmp_path / "network")
        node = await network.start()
        node.send(messages.Appended(1 << 40))
        time.sleep(0.6)
        for _ in range(3):
            node.send(messages.Tick(1))
            await asyncio.sleep(0)
        assert "channel.false_durability" in await node.ended
        await node.stop()

    run(story())


# --- B: a ledger that a host hands to an auditor ---


@pytest.fixture(scope="module")
def handed(tmp_path_factory):
    made = Consortium(tmp_path_factory.mktemp("handed"))
    made.found()
    made.application()
    made.sign()
    return made


#: A file that calls itself a ledger, the code of the refusal, and what that names.
FILES: dict[str, tuple[str, str, str]] = {
    "an endless view": (
        "DROP TABLE entries; CREATE VIEW entries AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) "
        "SELECT i AS seqno, zeroblob(9) AS entry FROM n",
        "host.ledger_unreadable",
        "no ledger",
    ),
    "an entry that is made when it is read": (
        "DROP TABLE entries; CREATE TABLE entries (seqno INTEGER PRIMARY KEY, entry BLOB AS (zeroblob(900000000)));"
        "INSERT INTO entries (seqno) VALUES (1)",
        "host.ledger_unreadable",
        "no ledger",
    ),
    "text where bytes belong": (
        "CREATE TABLE other AS SELECT * FROM entries; DROP TABLE entries;"
        "CREATE TABLE entries (seqno INTEGER PRIMARY KEY, entry BLOB NOT NULL); INSERT INTO entries SELECT * FROM other;"
        "UPDATE entries SET entry = 'x' WHERE seqno = 3",
        "ledger.damaged",
        "entry 3",
    ),
    "a number where bytes belong": (
        "CREATE TABLE other AS SELECT * FROM entries; DROP TABLE entries;"
        "CREATE TABLE entries (seqno INTEGER PRIMARY KEY, entry BLOB NOT NULL); INSERT INTO entries SELECT * FROM other;"
        "UPDATE entries SET entry = 7 WHERE seqno = 2",
        "ledger.damaged",
        "entry 2",
    ),
    "an entry that is gone": ("DELETE FROM entries WHERE seqno = 3", "ledger.gap", "entry 3"),
    "an entry of an endless length": (
        "UPDATE entries SET entry = zeroblob(30000000) WHERE seqno = 4",
        "host.ledger_unreadable",
        "too big",
    ),
    "an entry that is none": ("UPDATE entries SET entry = x'00' WHERE seqno = 3", "ledger.damaged", "entry 3"),
}


@attack(
    "B",
    was="an endless view named `entries` was read for ever; text or a number for an entry ended in a traceback; where an "
    "entry is gone everything from there on counted as unsigned, and the audit found nothing illegal, exit 0",
    now="`entries` is a table of bytes, numbered without gap; whatever else it is, is refused with the place named",
)
@pytest.mark.parametrize("kind", FILES)
def test_an_auditor_is_given_a_file_that_is_no_ledger(handed, tmp_path, kind):
    statements, code, named = FILES[kind]
    path = handed.save(tmp_path / "ledger.db")
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.executescript(statements)
    for read in (ledgers.verify, ledgers.audit):
        with pytest.raises(CocoError) as refused:
            read(path, "")
        assert refused.value.code == code and named in str(refused.value), refused.value


def _nested() -> bytes:
    return b"[" * 100_000 + b"]" * 100_000


@attack(
    "B",
    was="JSON that is nested for ever ended the audit in a traceback, with everything behind it unread, where a node, an "
    "adapter or a key of the service is described; in the rows of wrapped secrets nobody looked",
    now="it is a violation of its entry, and the audit goes on",
)
@pytest.mark.parametrize(
    "table", [tables.NODES_INFO, tables.IDENTITY_STATEMENTS, tables.SUCCESSION, tables.NODE_SECRETS, tables.ADAPTERS]
)
def test_an_auditor_reads_on_behind_a_row_without_end(handed, tmp_path, table):
    made = handed.clone(tmp_path)
    at = made.write([(table, b"x", _nested())])
    made.rows.pop((table, b"x"))
    made.sign()
    behind = made.write([("public:no.such", b"", b"")])
    made.sign()
    found = ledgers.audit(made.save(tmp_path / "ledger.db"), "")["violations"]
    assert {one["seqno"] for one in found} >= {at, behind}, found


@attack(
    "B",
    was="reading a ledger wrote into it and erased the log beside it; one on a medium that cannot be written was not "
    "read at all (`host.ledger_unreadable`)",
    now="nothing is written, whatever lies beside the file; a log that was left behind is read from a copy",
)
@pytest.mark.parametrize("left", ["nothing", "a log", "a log and its index"])
def test_an_auditor_leaves_no_trace(handed, tmp_path, left):
    folder = tmp_path / "evidence"
    folder.mkdir()
    path = tmp_path / "ledger.db"
    with contextlib.closing(open_database(path)) as connection:
        connection.executemany("INSERT INTO entries VALUES (?, ?)", enumerate(handed.sealed, 1))
        if left == "nothing":
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        for end in {"nothing": ("",), "a log": ("", "-wal"), "a log and its index": ("", "-wal", "-shm")}[left]:
            shutil.copyfile(f"{path}{end}", folder / f"ledger.db{end}")
    before = {one.name: one.read_bytes() for one in folder.iterdir() if one.suffix != ".db-shm"}
    names = {one.name for one in folder.iterdir()}
    found = ledgers.audit(folder / "ledger.db", "")
    assert found["violations"] == [] and found["last_signed"] == f"2.{len(handed.sealed)}"
    assert {one.name for one in folder.iterdir()} == names
    assert {one.name: one.read_bytes() for one in folder.iterdir() if one.suffix != ".db-shm"} == before


@attack(
    "B",
    was="there was no report for people; what a ledger says would have been shown as it is",
    now="whatever a ledger says is text in it; it loads nothing",
)
def test_a_report_shows_what_a_ledger_says_as_text():
    said = {"seqno": 1, "what": "<script>x</script>", "member": "<img src=x>", "rules": "&"}
    found = {
        "events": [said],
        "violations": [{"seqno": 2, "step": "<b>", "why": "'\"<i>"}],
        "committed": "<u>",
        "last_signed": "2.1",
        "unsigned": 0,
        "signatures": 1,
        "root": "00",
    }
    page = report.html(found, "<ledger>")
    assert "default-src 'none'" in page and "1 steps are illegal" in page
    for tag in ("<script", "<img", "<b>", "<i>", "<u>", "<ledger>"):
        assert tag not in page
