"""Mistakes of an operator in a hurry: what one wrong command, flag or clock does to a network."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import re
import resource
import shutil
import signal
import sqlite3
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from attacks import attack
from cryptography import x509

import membership
from coco import constitutions, limits
from coco.cli import keys
from coco.cli import network as networks
from coco.cli.keys import make_actor
from coco.cli.output import exit_code
from coco.cli.sandbox import make_genesis, make_owner
from coco.cli.sandbox_folder import SandboxFiles, begin_anew, prepare
from coco.client.operators import nobody, owner
from coco.configuration import nodes
from coco.configuration.actions import ACTIONS
from coco.configuration.draft import Draft
from coco.configuration.genesis import Genesis
from coco.crypto import cose
from coco.crypto.certificates import pem
from coco.enclave.api.openapi import OPERATIONS
from coco.enclave.network import standing
from coco.enclave.platform.clock import Agreement, Clock, compare_with_ledger
from coco.errors import CocoError, ConfigurationError, GovernanceError, HostError, LedgerError
from coco.host.folder import TemporaryFolder
from coco.host.hints import HINTS
from coco.host.node import Node, NodeOptions
from coco.ledger import tables
from coco.ledger.replay import Replay
from coco.ledger.statements import fingerprint
from conftest import SandboxProcess
from everything import BODIES, OPTIONS, ROWS, WRONG, Lab, at_every_method, at_every_route, over_a_socket, stated
from governed import NOTHING, Network, action, rsa_pem
from hurry import COCO, PATIENCE_S, Lives, change, coco, flipped, pay, rows, rpc, writes
from members import Member
from network import ADAPTERS, ROOT, Several, TestNetwork, run, running
from operators import Operator

# --- E4: one start with a wrong clock ---

DAY_MS = 86_400_000


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


class Clocked(TestNetwork):
    """A network whose first node is started under one clock after another, always on the same ledger."""

    def entries(self) -> dict[int, bytes]:
        with contextlib.closing(sqlite3.connect(self.files.ledger(0))) as disk:
            return dict(disk.execute("SELECT seqno, entry FROM entries"))

    async def start_under(self, ahead_ms: int, **options: Any) -> None:
        await self.start(clock_ms=lambda: _now_ms() + ahead_ms, **options)

    async def refused(self, ahead_ms: int) -> str:
        """The code with which a start under a clock is refused; nothing is written by it."""
        before = self.entries()
        with pytest.raises(HostError) as error:
            await self.start_under(ahead_ms)
        await self.node.stop()
        assert self.entries() == before
        assert error.value.hint and "--accept-clock" in error.value.hint
        return error.value.code

    async def stop(self) -> None:
        for client in self.clients:
            await client.close()
        self.clients.clear()
        await self.node.stop()

    def joiner(self, ahead_ms: int) -> Node:
        return Node(
            NodeOptions(
                ledger=self.files.ledger(1),
                genesis=self.genesis,
                join=[f"127.0.0.1:{self.node.relays['peers'].port}"],
                owner=make_owner(self.files, self.service),
                expected_service=self.service.encode(),
                clock_ms=lambda: _now_ms() + ahead_ms,
                adapters=ADAPTERS,
                extra_path=[str(ROOT / "examples"), str(ROOT / "tests/adapters")],
            ),
            self.log.append,
        )


@attack(
    "E4",
    was="one start of the only node three days ahead is taken; with the clock mended, certificates are not valid yet and "
    "joins end with `join.statement_expired`; ten years: participants are out for ever",
    now="`clock.ahead_of_the_ledger`, and nothing is written; `--accept-clock` takes it, and a second one, under the "
    "right clock, takes it back: its certificates count from now on, participants and nodes come in",
)
def test_a_start_under_a_wrong_clock_is_refused_and_one_that_was_accepted_is_taken_back(tmp_path):
    async def story() -> None:
        network = Clocked(tmp_path / "network")
        try:
            await network.start_under(0)
            await network.stop()
            assert await network.refused(3 * DAY_MS) == "clock.ahead_of_the_ledger"
            # It may be that the ledger slept for so long; or, as here, somebody believes it.
            await network.start_under(3650 * DAY_MS, accept_clock=True)
            await network.recover()
            client = network.client("dapp")
            with pytest.raises((CocoError, ssl.SSLError)):
                await network.rpc(client, "eth_blockNumber")
            await network.stop()
            assert await network.refused(0) == "clock.behind_the_ledger"
            await network.start_under(0, accept_clock=True)
            await network.recover()
            client = network.client("dapp")
            assert int((await network.rpc(client, "eth_blockNumber"))["result"], 16) == 0
            shown = x509.load_pem_x509_certificate(network.service.encode())
            assert abs(shown.not_valid_before_utc.timestamp() - _now_ms() / 1000) < DAY_MS / 1000
            newcomer = network.joiner(0)
            try:
                assert (await newcomer.start()).status == "Open"
            finally:
                await newcomer.stop()
        finally:
            await network.stop()

    run(story())


@attack(
    "E4",
    was="a newcomer under a clock three days ahead is taken in; one under the right clock, where the network's was wrong, "
    "ends with `join.statement_expired`",
    now="`join.clock_ahead` or `join.clock_behind`, with the seconds, before anything is written of it",
)
def test_a_newcomer_under_a_wrong_clock_is_refused_before_anything_is_written_of_it(tmp_path):
    async def story() -> None:
        network = Clocked(tmp_path / "network")
        try:
            await network.start_under(0)
            for ahead_ms, code in ((3 * DAY_MS, "join.clock_ahead"), (-3 * DAY_MS, "join.clock_behind")):
                before, newcomer = len(network.entries()), network.joiner(ahead_ms)
                with pytest.raises(HostError) as refused:
                    await newcomer.start()
                await newcomer.stop()
                assert refused.value.code == code and refused.value.hint
                assert len(network.entries()) == before
            newcomer = network.joiner(0)
            try:
                assert (await newcomer.start()).status == "Open"
            finally:
                await newcomer.stop()
        finally:
            await network.stop()

    run(story())


@attack(
    "E4",
    was="a joiner takes its host's time, however far ahead, and stamps entries with it as soon as it leads",
    now="it takes the network's; a host alone moves the time as fast as it passes until most hosts have been heard",
)
def test_a_newcomer_goes_by_the_networks_time_and_not_by_its_hosts():
    agreement, clock = Agreement(10_000), Clock(1_000_000)
    assert agreement.ceiling_ms([1, 2, 3], 0.0) is None
    for second in range(1, 31):
        clock.tick(1_000_000 + 3 * DAY_MS, agreement.ceiling_alone_ms(clock.now_ms, 1.0))
        assert clock.now_ms <= 1_000_000 + second * 2_000


@pytest.mark.parametrize(
    ("ahead_s", "code"),
    [(86_400, ""), (86_402, "clock.ahead_of_the_ledger"), (-300, ""), (-302, "clock.behind_the_ledger")],
)
def test_the_bounds_are_those_that_members_set(ahead_s, code):
    end_ms = 1_800_000_000_000
    try:
        compare_with_ledger(end_ms + 1000 * ahead_s, end_ms, gap_s=86_400, skew_s=300)
        found = ""
    except CocoError as error:
        found = error.code
        assert error.numbers["seconds"] == abs(ahead_s)
    assert found == code


# --- E2, E3, G3, G5: starts and restarts ---


@pytest.fixture(scope="module")
def lives(tmp_path_factory):
    return Lives(tmp_path_factory.mktemp("lives"))


@attack(
    "E2",
    was="98 signed entries deleted (288 → 190), exit 0",
    now="`ledger.damaged` names the entry; nothing is touched",
)
@pytest.mark.parametrize(("damage", "known"), [("a bit of the header", "nothing"), ("dropped", "the former service")])
def test_damage_where_a_life_begins_is_damage_whoever_starts(lives, tmp_path, damage, known):
    folder = lives.copy(tmp_path)
    ledger, first = folder / "ledger.db", lives.begins[0]
    if damage == "dropped":
        change(ledger, "DELETE FROM entries WHERE seqno = ?", first)
    else:
        change(ledger, "UPDATE entries SET entry = ? WHERE seqno = ?", flipped(dict(rows(ledger))[first], 3), first)
    before = rows(ledger)
    said = lives.start(folder, *(["--service", lives.services[0]] if known != "nothing" else []))
    assert said["error"]["code"] == "ledger.damaged", said
    assert f"entry={first}" in said["error"]["message"] and said["error"]["hint"]
    assert rows(ledger) == before


@attack(
    "E2",
    was="whatever lies behind damage under another service's key counts as a tail",
    now="any place: `ledger.damaged`",
)
def test_no_place_of_damage_hides_a_signature_behind_it(lives):
    entries = [entry for _, entry in rows(lives.ledger)]
    last_signed = max(seqno for seqno, entry in enumerate(entries, 1) if writes(entry).rows(tables.SIGNATURES))
    for seqno in range(1, last_signed):
        for damaged in ([*entries[: seqno - 1], *entries[seqno:]], _with(entries, seqno, 3), _with(entries, seqno, 60)):
            replay = Replay()
            with pytest.raises(LedgerError) as refused:
                replay.feed(damaged)
                replay.end_of_last_opened_life()
            assert refused.value.code == "ledger.damaged", (seqno, refused.value)


def _with(entries: list[bytes], seqno: int, at: int) -> list[bytes]:
    return [*entries[: seqno - 1], flipped(entries[seqno - 1], at), *entries[seqno:]]


@attack(
    "E2", was="the entries of a recovery that nobody finished are deleted", now="set aside, named, put back bit for bit"
)
def test_what_a_start_does_not_believe_is_set_aside_and_comes_back(lives, tmp_path):
    folder = lives.copy(tmp_path)
    ledger, first = folder / "ledger.db", lives.begins[1]
    before = rows(ledger)
    said = lives.start(folder)
    assert said["status"] == "WaitingForRecoveryShares", said
    told = said["told"]["ledger.set_aside"]
    assert (told["first"], told["last"], told["reason"]) == (first, len(before), "recovery") and told["signed"] >= 1
    assert str(ledger) in told["hint"]
    assert rows(ledger)[: first - 1] == before[: first - 1] and rows(ledger) != before
    (kept,) = coco("ledger", "aside", "--ledger", ledger)["aside"]
    assert (kept["number"], kept["first"], kept["entries"]) == (told["batch"], first, len(before) - first + 1)
    half_made = rows(ledger)
    coco("ledger", "put-back", str(kept["number"]), "--ledger", ledger)
    assert rows(ledger) == before
    # What stood in its place is not lost either.
    (other,) = coco("ledger", "aside", "--ledger", ledger)["aside"]
    assert (other["reason"], other["first"]) == (f"put_back.{kept['number']}", first)
    coco("ledger", "put-back", str(other["number"]), "--ledger", ledger)
    assert rows(ledger) == half_made
    assert coco("ledger", "put-back", "77", "--ledger", ledger)["error"]["code"] == "ledger.no_such_aside"


@attack(
    "E2",
    was="a start three days ahead was taken, and the entries that it did not believe were gone before anybody could refuse",
    now="what is believed is judged first: `clock.ahead_of_the_ledger`, and every entry is where it was",
)
def test_a_start_that_is_refused_has_set_nothing_aside(lives, tmp_path):
    folder = lives.copy(tmp_path)
    before = rows(folder / "ledger.db")

    async def story() -> str:
        node = Node(NodeOptions(folder / "ledger.db", clock_ms=lambda: _now_ms() + 3 * DAY_MS), lambda line: None)
        try:
            with pytest.raises(HostError) as refused:
                await node.start()
            return refused.value.code
        finally:
            await node.stop()

    assert run(story()) == "clock.ahead_of_the_ledger"
    assert rows(folder / "ledger.db") == before


def test_a_person_may_set_aside_what_no_copy_mends(lives, tmp_path):
    folder = lives.copy(tmp_path)
    ledger, first = folder / "ledger.db", lives.begins[0]
    change(ledger, "UPDATE entries SET entry = ? WHERE seqno = ?", flipped(dict(rows(ledger))[first], 3), first)
    before = rows(ledger)
    done = coco("ledger", "set-aside", str(first), "--ledger", ledger)
    assert done["entries"] == len(before) - first + 1
    assert lives.start(folder, "--service", lives.services[0])["status"] == "WaitingForRecoveryShares"
    change(ledger, "DELETE FROM entries WHERE seqno > ?", first - 5)
    refused = coco("ledger", "put-back", str(done["number"]), "--ledger", ledger)
    assert refused["error"]["code"] == "ledger.aside_does_not_fit"


@attack(
    "G3",
    was="a recovery that is stopped and repeated finds its own half-made identity: `recovery.other_service`",
    now="it goes on",
)
def test_a_recovery_that_was_stopped_is_begun_again_with_the_same_file(lives, tmp_path):
    folder = lives.copy(tmp_path)
    pem = folder / "service.pem"
    assert pem.read_bytes() == lives.services[-1].read_bytes(), "the third life never opened"
    assert Path(lives.said[2]["service_certificate"]).name == "service.recovering.pem"
    half_made = (folder / "service.recovering.pem").read_bytes()
    assert half_made != pem.read_bytes()
    said = lives.start(folder, "--service", pem)
    assert said["status"] == "WaitingForRecoveryShares", said
    assert pem.read_bytes() == lives.services[-1].read_bytes()
    assert (folder / "service.recovering.pem").read_bytes() != half_made, "a life has keys of its own"
    # Once a life opens its certificate takes the place, and the former one stays beside it.
    former = {path.read_bytes() for path in folder.glob("service.*.pem")}
    assert lives.services[0].read_bytes() in former
    wrong = lives.start(folder, "--service", folder / "service.recovering.pem")["error"]
    assert wrong["code"] == "recovery.other_service" and wrong["hint"]


@attack(
    "G3",
    was="killed between the opening of a recovered service and the writing of `service.pem`, a start with that file ends "
    "with `recovery.other_service`",
    now="the members' statements in the ledger lead from the one to the other",
)
def test_a_host_killed_as_the_service_opened_finds_its_way_by_the_members_statements(lives, tmp_path):
    folder = lives.copy(tmp_path)
    shutil.copy(lives.services[0], folder / "service.pem")
    said = lives.start(folder, "--service", folder / "service.pem")
    assert said["status"] == "WaitingForRecoveryShares", said
    assert (folder / "service.pem").read_bytes() == lives.services[0].read_bytes()


@attack(
    "G3", was="`--service known.pem` on an empty ledger founds another service, status Open", now="`recovery.no_ledger`"
)
@pytest.mark.parametrize("there", ["nothing", "an empty folder", "an empty ledger", "an unsigned ledger"])
def test_a_named_service_is_recovered_or_nothing(lives, tmp_path, there):
    folder = tmp_path / "n0"
    if there != "nothing":
        folder.mkdir()
    if "ledger" in there:
        lives_copy = lives.copy(tmp_path / "whole")
        shutil.copy(lives_copy / "ledger.db", folder / "ledger.db")
        change(folder / "ledger.db", "DELETE FROM entries WHERE seqno > ?", 0 if there == "an empty ledger" else 1)
    said = lives.start(folder, "--service", lives.services[-1])
    expected = "ledger.unsigned" if there == "an unsigned ledger" else "recovery.no_ledger"
    assert said["error"]["code"] == expected, said
    assert not (folder / "service.pem").exists()


@attack(
    "E3", was="founding again where another service's certificate lies overwrites it", now="`node.service_of_another`"
)
def test_a_folder_that_lost_its_ledger_founds_nothing(lives, tmp_path):
    folder = lives.copy(tmp_path)
    for file in folder.glob("ledger.db*"):
        file.unlink()
    said = lives.start(folder)
    assert said["error"]["code"] == "node.service_of_another" and said["error"]["hint"]
    assert (folder / "service.pem").read_bytes() == lives.services[-1].read_bytes()


# --- E3: the sandbox ---


class Written:
    """A sandbox of three nodes that has acknowledged payments and whose host was killed while others wanted its folder."""

    def __init__(self, directory: Path) -> None:
        self.process = SandboxProcess(directory / "sandbox", ["--nodes", "3"])
        self.directory = self.process.directory
        self.process.start()
        self.paid = [pay(self.process.url, nonce) for nonce in range(5)]
        sandbox = ("sandbox", "--port", "0", "--nodes", "1", "--dir", self.directory)
        self.second = coco(*sandbox)
        self.fresh = coco(*sandbox, "--fresh")
        given = ("--genesis", self.directory / "genesis.json")
        self.node = coco("node", "start", "--dir", self.directory / "n0", *given)
        self.aside = coco("ledger", "set-aside", "3", "--ledger", self.directory / "n0" / "ledger.db")
        self.paid.append(pay(self.process.url, 5))
        self.holder = int(self.process.summary["host_pid"])
        self.process.kill("host")

    def copy(self, to: Path, *arguments: str) -> SandboxProcess:
        shutil.copytree(self.directory, to / "sandbox")
        return SandboxProcess(to / "sandbox", list(arguments))

    def all_there(self, sandbox: SandboxProcess) -> bool:
        found = [rpc(sandbox.url, "eth_getTransactionReceipt", identity) for identity in self.paid]
        return all(receipt is not None and receipt["status"] == "0x1" for receipt in found)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return Written(tmp_path_factory.mktemp("written"))


@attack(
    "E3",
    was="a second start runs beside the first and 220 acknowledged writes are lost; `--fresh` erases it while it runs; "
    "`coco node start` on a running node's folder overwrites `service.pem` and kills the first",
    now="`host.folder_in_use` names the process; after kill -9 everything acknowledged is there",
)
def test_a_folder_in_use_is_nobody_elses(written):
    for said in (written.second, written.fresh, written.node, written.aside):
        assert said["error"]["code"] == "host.folder_in_use", said
        assert str(written.holder) in said["error"]["message"] and said["error"]["hint"]
    assert len(written.paid) == 6


@attack(
    "E3",
    was="entry 1 of one copy damaged, `connect.json` gone: all three ledgers are cut to 8 entries",
    now="a whole copy is taken, the bad one named and left as it is",
)
def test_a_damaged_copy_costs_no_whole_one(written, tmp_path):
    sandbox = written.copy(tmp_path)
    (sandbox.directory / "connect.json").unlink()
    copies = [sandbox.directory / f"n{number}" / "ledger.db" for number in range(3)]
    change(copies[0], "UPDATE entries SET entry = ? WHERE seqno = 1", flipped(rows(copies[0])[0][1], 3))
    before = [rows(copy) for copy in copies]
    try:
        assert sandbox.start()["recovered"]
        assert written.all_there(sandbox)
    finally:
        sandbox.stop()
    damaged = [json.loads(line) for line in sandbox.log.read_text().splitlines() if "sandbox.ledger_damaged" in line]
    assert [(line["node"], "entry 1" in line["reason"]) for line in damaged] == [("n0", True)]
    assert rows(copies[0]) == before[0]
    grown = next(number for number in (1, 2) if rows(copies[number]) != before[number])
    whole = max(before[1:], key=len)
    assert rows(copies[grown])[: len(whole)] == whole


@attack(
    "E3",
    was="one unreadable file of three, or `genesis.json` missing, and no start works any more, or the keys are made anew",
    now="the node is named, its file kept beside, its copy mended from a good one; the genesis comes from the ledger",
)
def test_a_good_copy_mends_a_bad_one(written, tmp_path):
    sandbox = written.copy(tmp_path, "--nodes", "3")
    keys = {path: path.read_bytes() for path in sandbox.directory.glob("*/*.pem")}
    bad = sandbox.directory / "n1" / "ledger.db"
    for beside in bad.parent.glob("ledger.db-*"):
        beside.unlink()
    bad.write_bytes(b"no database" * 1000)
    (sandbox.directory / "genesis.json").unlink()
    try:
        sandbox.start()
        assert written.all_there(sandbox)
    finally:
        sandbox.stop()
    told = [json.loads(line) for line in sandbox.log.read_text().splitlines() if line.startswith('{"event": "sandbox.')]
    assert [(line["event"], line["node"]) for line in told] == [
        ("sandbox.ledger_damaged", "n1"),
        ("sandbox.ledger_moved", "n1"),
        ("sandbox.ledger_mended", "n1"),
    ]
    assert Path(told[1]["to"]).read_bytes() == b"no database" * 1000
    good = sandbox.directory / "n0" / "ledger.db"
    assert rows(bad)[:20] == rows(good)[:20] and len(rows(bad)) > 20
    genesis = [json.loads((folder / "genesis.json").read_text()) for folder in (sandbox.directory, written.directory)]
    assert genesis[0] == genesis[1]
    assert {path: path.read_bytes() for path in sandbox.directory.glob("*/*.pem")} == keys


@attack(
    "E3",
    was="`genesis.json` or a key missing: every key is made anew and the ledger lost for good",
    now="said, nothing made",
)
@pytest.mark.parametrize("lost", ["members/alice.encryption.key.pem", "members/alice.key.pem", "participants/dapp.pem"])
def test_what_a_sandbox_lacks_is_named_and_not_made_anew(written, tmp_path, lost):
    sandbox = written.copy(tmp_path)
    (sandbox.directory / lost).unlink()
    before = {path: path.read_bytes() for path in sandbox.directory.rglob("*.pem")}
    said = coco("sandbox", "--port", "0", "--nodes", "1", "--dir", sandbox.directory)
    assert said["error"]["code"] == "sandbox.incomplete" and lost in said["error"]["message"], said
    assert {path: path.read_bytes() for path in sandbox.directory.rglob("*.pem")} == before


@attack(
    "E3",
    was="`--fresh --dir X` erases any folder that holds a `genesis.json`",
    now="only with the marker; moved, not erased",
)
def test_begin_anew_moves_aside_only_what_is_a_sandbox(tmp_path):
    other = SandboxFiles(tmp_path / "other")
    other.directory.mkdir()
    (other.directory / "genesis.json").write_text("{}")
    (other.directory / "thesis.tex").write_text("years")
    with pytest.raises(ConfigurationError) as refused:
        begin_anew(other)
    assert refused.value.code == "sandbox.not_a_sandbox"
    assert sorted(path.name for path in other.directory.iterdir()) == ["genesis.json", "thesis.tex"]
    files = SandboxFiles(tmp_path / "sandbox")
    for generation in range(3):
        files.directory.mkdir()
        assert prepare(files, lambda at: make_genesis(at, fees="free", fork="osaka", chain_id=1))
        (files.directory / "generation").write_text(str(generation))
        former = begin_anew(files)
        assert former is not None and (former / "generation").read_text() == str(generation)
        assert not files.directory.exists()
    # What lies where the former one would go is somebody's too.
    assert former is not None
    (former / "sandbox.json").unlink()
    files.directory.mkdir()
    prepare(files, lambda at: make_genesis(at, fees="free", fork="osaka", chain_id=1))
    with pytest.raises(ConfigurationError):
        begin_anew(files)
    assert (former / "generation").exists() and files.genesis.exists()


def test_a_folder_of_something_else_gets_no_sandbox(tmp_path):
    (tmp_path / "coco.lock").write_text("")
    (tmp_path / "letters").mkdir()
    said = coco("sandbox", "--port", "0", "--dir", tmp_path)
    assert said["error"]["code"] == "sandbox.not_a_sandbox"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["coco.lock", "letters"]


@attack(
    "E3",
    was="a bad `--fees` or `--fork` leaves a folder that never starts",
    now="refused with what is wrong; no folder",
)
@pytest.mark.parametrize("wrong", [("--fees", "none"), ("--fork", "london"), ("--chain-id", "0")])
def test_a_wrong_setting_leaves_no_folder(tmp_path, wrong):
    said = coco("sandbox", "--port", "0", "--nodes", "1", "--dir", tmp_path / "sandbox", *wrong)
    assert said["error"]["code"] == "configuration.ethereum", said
    assert not (tmp_path / "sandbox").exists()


@pytest.mark.parametrize("after", range(11))
def test_making_a_sandbox_may_be_cut_short_anywhere(tmp_path, monkeypatch, after):
    """Whatever was written when the process died: the next start has all of it, or makes it again."""
    files, left = SandboxFiles(tmp_path / "sandbox"), [after]
    files.directory.mkdir()
    make = lambda at: make_genesis(at, fees="free", fork="osaka", chain_id=1)  # noqa: E731
    rename, write = Path.rename, keys._write_new

    def dies(step: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            return step(*arguments)

        return run

    with monkeypatch.context() as cut:
        cut.setattr(Path, "rename", dies(rename))
        cut.setattr(keys, "_write_new", dies(write))
        with pytest.raises(KeyboardInterrupt):
            prepare(files, make)
    before = {path.name: path.read_bytes() for path in files.directory.glob("*/*.pem")}
    prepare(files, make)
    assert all(path.exists() for path in files.needed()) and files.is_marked()
    after_all = {path.name: path.read_bytes() for path in files.directory.glob("*/*.pem")}
    assert before.items() <= after_all.items()
    assert not prepare(files, make), "nothing is made twice"


@attack("E3", was="`make_actor` and the sandbox write keys over keys", now="`network.file_exists`")
def test_no_key_is_overwritten(tmp_path):
    keys.make_actor(tmp_path, "alice")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ConfigurationError) as refused:
        keys.make_actor(tmp_path, "alice")
    assert refused.value.code == "network.file_exists"
    (tmp_path / "alice.key.pem").unlink()
    with pytest.raises(ConfigurationError):
        keys.make_actor(tmp_path, "alice")
    assert (tmp_path / "alice.pem").read_bytes() == before[tmp_path / "alice.pem"]


# --- G5: nodes that are lost ---


class Lost:
    """A network of three whose majority was started again with whole disks; then it is recovered, and goes on."""

    def __init__(self, directory: Path) -> None:
        self.operator = operator = Operator(directory)
        assert operator.run("n0", "start")["status"] == "Open"
        operator.join("n1")
        operator.join("n2", by="n1")
        operator.voters("n0", 3)
        at = operator.running["n0"][1]
        self.paid = [self.pay(at["application_url"], nonce) for nonce in range(3)]
        dead = [operator.kill(name) for name in ("n1", "n2")]
        self.before = {name: rows(directory / name / "ledger.db") for name in ("n1", "n2")}
        self.told = self._waits("n1", dead[0]["peer_address"], by=at["peer_address"])
        self.status = operator.status("n0")
        shown = [*COCO, "status", at["administration_url"], "--service", operator.service, "--once"]
        self.shown = subprocess.run(shown, capture_output=True, text=True, timeout=PATIENCE_S).stdout
        self.kept = {name: rows(directory / name / "ledger.db") for name in ("n1", "n2")}
        operator.kill("n0")

    def pay(self, url: str, nonce: int, *, chain_id: int = 1) -> str:
        files = SandboxFiles(self.operator.directory)
        pair = tuple(str(files.actor("participants", "dapp", end)) for end in (".pem", ".key.pem"))
        return pay(url, nonce, chain_id=chain_id, verify=self.operator.service, cert=pair)

    def _waits(self, name: str, address: str, *, by: str) -> dict[str, Any]:
        """What a node that is started again at its address says while it waits."""
        host, _, port = address.rpartition(":")
        known = ("--peer", by, "--service", self.operator.service, "--operator", self.operator.certificate)
        given = ("--dir", self.operator.directory / name, "--genesis", self.operator.genesis, "--peer-port", port)
        process = subprocess.Popen(
            [*COCO, *map(str, ("node", "join", *known, *given, "--listen", host)), "--json"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr is not None
        end = threading.Timer(PATIENCE_S, process.kill)  # a node that never says it waits for ever
        end.start()
        try:
            for line in process.stderr:
                if "majority_lost" in line:
                    return dict(json.loads(line))
        finally:
            end.cancel()
            process.kill()
            process.communicate(timeout=PATIENCE_S)
        raise AssertionError("it ended without a word of the majority")


@pytest.fixture(scope="module")
def lost(tmp_path_factory):
    made = Lost(tmp_path_factory.mktemp("lost"))
    yield made
    made.operator.stop()


@attack(
    "G5",
    was="two of three nodes restarted with whole disks wait for ever with `join.waiting`, state `no_primary`",
    now="`join.majority_lost` and `coco status` say what that means and which command recovers; no disk changes meanwhile",
)
def test_who_waits_for_a_majority_that_is_lost_is_told(lost):
    assert lost.told["event"] == "join.majority_lost" and lost.told["seconds"] >= 10
    assert "coco node start" in lost.told["hint"] and "when-nodes-are-lost" in lost.told["hint"]
    assert lost.status["network"]["without_primary_s"] >= 10
    assert "3 nodes vote, 2 must agree" in lost.status["majority_lost"]
    assert "the majority is lost" in lost.shown and "coco node start" in lost.shown
    assert lost.kept == lost.before


class Recovered:
    """The same network, recovered by its member from the ledger that goes furthest, and joined by another node."""

    def __init__(self, lost: Lost) -> None:
        self.operator, self.paid = lost.operator, lost.paid
        self.directory = lost.operator.directory
        folders = {name: self.directory / name for name in ("n0", "n1", "n2")}
        ends = {name: coco("ledger", "verify", "--ledger", at / "ledger.db") for name, at in folders.items()}
        best = max(ends, key=lambda name: [int(part) for part in ends[name]["last_signed"].split(".")])
        self.former = (folders["n0"] / "service.pem").read_bytes()
        self.known = self.directory / "known.pem"
        self.known.write_bytes(self.former)
        self.said = self.operator.run(best, "start", "--service", str(self.known))
        given = ("--service", self.known, "--cert", self.directory / "members" / "alice.pem", "--insecure-virtual")
        self.state = coco("member", "share", "--admin", self.said["administration_url"], *given)
        self.folder = folders[best]
        deadline = time.monotonic() + PATIENCE_S
        while (self.folder / "service.pem").read_bytes() == self.former and time.monotonic() < deadline:
            time.sleep(0.1)
        shutil.copy(self.folder / "service.pem", self.known)
        other = next(name for name in folders if name != best)
        self.names, self.joined = (best, other), self.join(other)

    def join(self, name: str) -> dict[str, Any]:
        known = ("--service", str(self.known), "--operator", str(self.operator.certificate))
        return self.operator.run(name, "join", "--peer", self.said["peer_address"], *known)


@pytest.fixture(scope="module")
def recovered(lost):
    return Recovered(lost)


def test_a_lost_majority_is_recovered_from_the_ledger_that_goes_furthest(recovered):
    assert recovered.said["status"] == "WaitingForRecoveryShares", recovered.said
    assert recovered.state["status"] == "Open" and recovered.joined["status"] == "Open"
    # The file is another one now, and the former one lies beside it.
    assert recovered.known.read_bytes() != recovered.former
    assert recovered.former in [path.read_bytes() for path in recovered.folder.glob("service.*.pem")]
    pair = tuple(str(recovered.directory / "participants" / f"dapp{end}") for end in (".pem", ".key.pem"))
    for name in recovered.names:
        url = recovered.operator.running[name][1]["application_url"]
        for identity in recovered.paid:
            receipt = rpc(url, "eth_getTransactionReceipt", identity, verify=str(recovered.known), cert=pair)
            assert receipt is not None and receipt["status"] == "0x1"


@attack(
    "E2",
    was="a join on a folder with another network's ledger deletes all of it, and overwrites its `service.pem`",
    now="set aside, and put back bit for bit",
)
def test_a_joiner_keeps_what_another_network_wrote(recovered, lives):
    folder = recovered.directory / "borrowed"
    shutil.copytree(lives.folder, folder)
    before = rows(folder / "ledger.db")
    assert recovered.join("borrowed")["status"] == "Open"
    recovered.operator.kill("borrowed")
    (kept,) = coco("ledger", "aside", "--ledger", folder / "ledger.db")["aside"]
    assert (kept["reason"], kept["entries"]) == ("join", len(before))
    assert lives.services[-1].read_bytes() in [path.read_bytes() for path in folder.glob("service.*.pem")]
    coco("ledger", "put-back", str(kept["number"]), "--ledger", folder / "ledger.db")
    assert rows(folder / "ledger.db") == before


# --- G1: whatever is imported late, after the lock-down ---


def none_late(log: list[dict[str, Any]]) -> None:
    late = [line for line in log if line["event"] in ("enclave.late_import", "enclave.unexpected")]
    assert late == [], late


@attack(
    "G1",
    was="any certificate change with a date was an internal error: a module was imported after the lock-down",
    now="every action, route and method, well and badly used, imports nothing late; a late import is named at once",
)
def test_nothing_is_imported_after_the_lock_down(tmp_path):
    async def story() -> None:
        assert set(ROWS) == set(ACTIONS), "say how every action is tried"
        network = Several(tmp_path / "network")
        try:
            founder = await network.start(**OPTIONS)
            lab = Lab(network)
            joining = asyncio.ensure_future(network.start(owner=nobody, **OPTIONS))
            lab.newcomer = await lab.pending()
            known = {"node": lab.newcomer, "member": lab.member.member}
            for wrong in WRONG:
                done = await lab.propose(wrong)
                assert done["proposalState"] == "Failed", done
                known["proposal"] = done["proposalId"]
            client = network.client(founder)
            answers = await at_every_route(lab, client, known)
            assert [one for one in answers if one[1] == 500] == []
            application = network.client(founder, "application")
            await at_every_method(application)
            await over_a_socket(network, founder.relays["application"].port)
            for name, (args, wanted) in ROWS.items():
                done = await lab.propose({"name": name, "args": args(lab)})
                assert done["proposalState"] == wanted, (name, done)
                if name == "transition_node_to_trusted":
                    await joining
                    await network.voters(founder, 2)
                elif name == "rotate_service_identity":
                    await stated(lab)
            assert (await client.request("GET", "/node/info")).json()["unexpected_errors"] == 0
            none_late(network.log)
        finally:
            await network.stop()
        none_late(network.log)

    run(story())


def test_a_recovery_imports_nothing_after_the_lock_down(tmp_path):
    async def story() -> None:
        network = TestNetwork(tmp_path / "network")
        async with running(network):
            pass
        async with running(network):
            client = network.client(listener="administration")
            member = network.files.member()
            known = {"member": fingerprint(member.certificate)}
            for (method, route), _ in OPERATIONS.items():
                if "/gov/recovery" in route:
                    path = re.sub(r"{(\w+)}", lambda found: known.get(found[1], "x"), route)
                    for body in BODIES:
                        assert (await client.request(method, path, body, content_type="application/cose")).status != 500
            await network.recover()
            none_late(network.log)

    run(story())


def test_a_late_import_is_named_with_who_asked_and_never_by_a_clients_word(tmp_path):
    """In a process of its own, for it cannot be undone."""
    code = f"""
import sys
sys.path[:0] = [{str(ROOT / "src")!r}]
from coco.enclave.platform import imports
told = []
late = imports.Late()
late.seal()
def tries(what):
    try:
        what()
    except (ImportError, LookupError):
        return
    raise AssertionError(what)
tries(lambda: __import__("tomllib"))
late.hear(lambda module, by: told.append((module, by)))
tries(lambda: __import__("tomllib"))
tries(lambda: __import__("wave.client_said_this"))
tries(lambda: __import__("client_said_this"))
tries(lambda: "x".encode("cp037"))
tries(lambda: "x".encode("client-said-this"))
import itertools, sys as again
assert told == [("tomllib", "__main__"), ("wave", "__main__"), ("unknown", "__main__"), ("encodings.cp037", "__main__")], told
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# --- G2: a supervisor that starts again what was told to leave; G7: what restarts leave behind ---


class Door:
    """The membership of a primary, whose ledger and consensus the test plays; and joiners at one address."""

    ADDRESS = "10.0.0.1:900"

    def __init__(self, directory: Path) -> None:
        self.certificate = make_actor(directory, "operator")
        self.files = directory / "operator.pem", directory / "operator.key.pem"
        self.primary = membership.Primary(self.certificate)

    async def knock(self, **said: Any) -> str:
        """What a new process at the address, with a fresh statement of its operator, is; or the code of its refusal."""
        sign = owner(*self.files, network="test", service=pem(membership.SERVICE.certificate), **said)
        joiner = membership.JoinerSide(sign)
        try:
            await joiner.ask(self.primary)
        except CocoError as error:
            return error.code
        self.primary.commit()
        return self.rows()[joiner.node_id]["status"]

    def rows(self) -> dict[str, Any]:
        """Rows of the nodes at the address, oldest first."""
        found = [(key.decode(), json.loads(value)) for key, value in self.primary.store.view().scan(tables.NODES_INFO)]
        here = [one for one in found if one[1]["peer_address"] == self.ADDRESS]
        return dict(sorted(here, key=lambda one: one[1]["engine"]))

    def newest(self) -> nodes.NodeRow:
        return max(self.primary.joiners(), key=lambda row: row.engine)

    async def vote(self, name: str, node_id: str) -> None:
        """An accepted proposal with one action about a node."""
        draft = Draft(self.primary.store.view())
        ACTIONS[name](draft, {"node_id": node_id})
        await self.primary.write_rows(draft.rows())
        self.primary.commit()

    async def retire(self) -> str:
        """Its operator has the newest one leave."""
        row = self.newest()
        await self.primary.membership._retire(row, statement=b"signed, and checked elsewhere")
        self.primary.commit()
        return row.node_id


@pytest.fixture
def door(tmp_path) -> Door:
    return Door(tmp_path)


@attack(
    "G2",
    was="a supervisor's restart made a node that its operator had let go a trusted voter again, without a vote",
    now="where a node was told to leave, another comes only by a statement that names it",
)
def test_a_node_that_its_operator_let_go_comes_back_only_when_the_operator_says_so(door):
    async def story() -> None:
        assert await door.knock() == nodes.TRUSTED
        left = await door.retire()
        assert await door.knock() == "join.address_left"
        assert await door.knock(returns="ab" * 32) == "join.address_left"
        assert list(door.rows()) == [left], "nothing of it is written"
        assert await door.knock(returns=left) == nodes.TRUSTED
        # Once it is back, restarts are restarts: with the word that brought it back, and without.
        assert await door.knock() == nodes.TRUSTED
        assert await door.knock(returns=left) == nodes.TRUSTED
        again = await door.retire()
        assert await door.knock(returns=left) == "join.address_left", "that word was about another time"
        assert await door.knock(returns=again) == nodes.TRUSTED

    asyncio.run(story())


@attack(
    "G2",
    was="a node that members removed came back by itself, without a vote",
    now="its address needs another vote, whatever its operator signs",
)
def test_a_node_that_members_removed_comes_back_only_by_another_vote(door):
    async def story() -> None:
        assert await door.knock() == nodes.TRUSTED
        removed = door.newest().node_id
        await door.vote("remove_node", removed)
        assert await door.knock() == "join.address_left"
        assert await door.knock(returns=removed) == nodes.PENDING
        waiting = door.newest().node_id
        assert await door.knock() == "join.address_left", "one that waits opens no door"
        await door.vote("transition_node_to_trusted", waiting)
        assert await door.knock() == nodes.TRUSTED

    asyncio.run(story())


def test_a_node_whose_code_is_not_allowed_any_more_comes_back_with_other_code(door):
    """It was not told to leave: members replaced code, and its operator has to start the other one."""

    async def story() -> None:
        assert await door.knock() == nodes.TRUSTED
        draft = Draft(door.primary.store.view())
        ACTIONS["add_virtual_measurement"](draft, {"measurement": "n"})
        ACTIONS["remove_virtual_measurement"](draft, {"measurement": "m"})
        assert json.loads(draft.get(tables.NODES_INFO, door.newest().node_id.encode()) or b"{}")["status"] == "Retired"
        assert nodes.left_at(draft.whole(), Door.ADDRESS) is None

    asyncio.run(story())


@attack(
    "G2",
    was="`coco node retire` ended the process with 3 and the hint to start it again; units restarted it always",
    now="it ends with 5, which every unit leaves alone; pods restart on failure, and this is none",
)
def test_who_was_let_go_ends_with_a_code_that_supervisors_leave_alone():
    for code in ("node.retired", "join.retired", "join.address_left"):
        error = HostError("x", code=code, hint=HINTS[code])
        assert exit_code(error) == 5 and "start it again" not in HINTS[code]
    units = [path for path in (ROOT / "deploy").rglob("*.service") if "coco node join" in path.read_text()]
    assert len(units) == 4
    for unit in units:
        assert "Restart=always" in unit.read_text() and "RestartPreventExitStatus=5\n" in unit.read_text(), unit
    for pod in ("container/pod.json", "azure-container/template.json"):
        text = (ROOT / "deploy" / pod).read_text()
        assert '"restartPolicy": "OnFailure"' in text and '"--left-is-done"' in text


@attack(
    "G7",
    was="every restart left a row for ever (11 of 15 rows), in the state, in snapshots, and in every list",
    now="two rows at an address: the node, and the one that it replaced",
)
def test_restarts_leave_two_rows_at_an_address(door):
    async def story() -> None:
        for number in range(6):
            assert await door.knock() == nodes.TRUSTED
            if number:
                former = sorted(door.primary.joiners(), key=lambda row: row.engine)[-2]
                await door.primary.membership._retire(former, replaced=True)
                door.primary.commit()
        rows = door.rows()
        assert [row["status"] for row in rows.values()] == [nodes.RETIRED, nodes.TRUSTED]
        assert [row["engine"] for row in rows.values()] == [6, 7], "an engine id is never used again"
        named = [key.decode() for key, _ in door.primary.store.view().scan(tables.NODE_CERTIFICATES)]
        assert set(named) == set(rows), "nor do their certificates stay"

    asyncio.run(story())


# --- G7: addresses that nobody can dial, and limits that are not named ---

NO_ADDRESS = {
    "not an address": "neither an IPv4 address nor a name",
    "": "neither an IPv4 address nor a name",
    "node_1.example.org": "neither an IPv4 address nor a name",
    "a..b": "neither an IPv4 address nor a name",
    "-a.org": "neither an IPv4 address nor a name",
    "10.0.0.256": "no IPv4 address",
    "10.1": "no IPv4 address",
    "0.0.0.0": "no other machine could dial it",
    "0.0.0.0:8445": "no other machine could dial it",
    "224.0.0.1": "no other machine could dial it",
    "::1": "IPv6",
    "[::1]:8445": "IPv6",
    "fe80::1%eth0": "IPv6",
    "10.0.0.1:0": "a port is a number",
    "10.0.0.1:70000": "a port is a number",
    "10.0.0.1:08445": "a port is a number",
    "node1:port": "a port is a number",
    "https://node1": "a port is a number",
    "a" * 64 + ".org": "neither an IPv4 address nor a name",
}


@attack(
    "G7",
    was='`set_operator` with "not an address", an IPv6 address or `0.0.0.0` was accepted, and no node could ever be there',
    now="refused at the rehearsal, in the genesis and by `coco network init`, with the reason",
)
@pytest.mark.parametrize("text", NO_ADDRESS)
def test_what_is_no_address_of_a_node_is_refused_with_its_reason(text, tmp_path):
    certificate = make_actor(tmp_path, "operator")
    network = Network([Member(tmp_path, "m")], constitutions.text("sandbox"))
    wanted = [action("set_operator", cert=certificate, addresses=["10.0.0.1", text])]
    with pytest.raises(GovernanceError) as refused:
        asyncio.run(network.proposals.rehearse(wanted, network))
    assert refused.value.code == "gov.bad_argument"
    assert NO_ADDRESS[text] in str(refused.value) or "list of texts" in str(refused.value)
    genesis: dict[str, Any] = {
        "network": "n",
        "members": [{"cert": certificate}],
        "recovery_threshold": 1,
        "production": False,
    }
    genesis["members"][0]["encryption_public_key"] = rsa_pem()
    parsed = Genesis.parse(json.dumps({**genesis, "operators": [{"cert": certificate, "addresses": [text]}]}).encode())
    for call in (parsed.check_founding, lambda: networks._operator(f"{tmp_path}/operator.pem={text}")):
        with pytest.raises(ConfigurationError) as error:
            call()
        assert error.value.code in ("configuration.bad_address", "network.bad_operator")


@pytest.mark.parametrize(
    "text", ["10.0.0.1", "10.0.0.1:8445", "node1.example.org:17101", "localhost", "n", "xn--bcher-kva.example"]
)
def test_names_and_addresses_are_taken(text, tmp_path):
    certificate = make_actor(tmp_path, "operator")
    network = Network([Member(tmp_path, "m")], constitutions.text("sandbox"))
    wanted = [action("set_operator", cert=certificate, addresses=[text])]
    assert asyncio.run(network.proposals.rehearse(wanted, network))["rows"]


@attack(
    "G7",
    was="an operator of `node1.example.org:17101` was listed, and no node could listen under that name "
    "(`host.bad_address`); one that listened everywhere or on IPv6 started, and no network let it in",
    now="a node is reached under the name that it is given (`--advertise`); its host listens on IPv4, or says why not",
)
def test_a_node_is_reached_under_a_name(tmp_path):
    made = Operator(tmp_path)
    try:
        genesis = json.loads(made.genesis.read_text())
        genesis["operators"][0]["addresses"].append("localhost")
        made.genesis.write_text(json.dumps(genesis))
        made.run("n0", "start", "--advertise", "localhost")
        assert made.running["n0"][1]["peer_address"].startswith("localhost:")
        said = made.join("n1", "--listen", "0.0.0.0", "--advertise", "localhost")
        assert said["peer_address"].startswith("localhost:"), said
        made.voters("n0", 2)
        for options in (
            ["--listen", "0.0.0.0"],
            ["--listen", "localhost"],
            ["--listen", "::1"],
            ["--advertise", "::1"],
        ):
            refused = made.join("n2", *options)
            assert refused["error"]["code"] == "configuration.bad_address" and refused["error"]["message"], refused
    finally:
        made.stop()


@attack(
    "G7",
    was="a proposal of 400 actions was refused without a word of how many there may be",
    now="refusals name the limit and what was given",
)
def test_refusals_name_the_limit(tmp_path):
    member = Member(tmp_path, "m")
    network = Network([member], constitutions.text("sandbox"))
    for call in (
        lambda: network.propose(member, *[NOTHING] * 400),
        lambda: asyncio.run(network.proposals.rehearse([NOTHING] * 400, network)),
    ):
        with pytest.raises(CocoError, match=f"1 to {limits.PROPOSAL_ACTIONS_MAX} actions, and this one 400"):
            call()
    large = member.sign("proposal", {"actions": [action("set_user", cert="a" * 3_000_000)]})
    with pytest.raises(CocoError, match=f"at most {cose.MESSAGE_BYTES_MAX} bytes, and this one {len(large)}"):
        network.propose(member, body=large)


# --- F: small and sharp: what is typed in a hurry, a full disk, Ctrl-C, a file that is gone ---


def _typed(*arguments: str, cwd: Path, bytes_max: int = -1) -> tuple[int, str]:
    """What a person sees of a command, and its exit code; it may write files of so many bytes."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_max, resource.RLIM_INFINITY))

    command = [sys.executable, "-m", "coco.cli.main", *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=cwd, timeout=120, preexec_fn=limit if bytes_max >= 0 else None
    )
    return done.returncode, done.stdout + done.stderr


_NOWHERE = "https://127.0.0.1:1"


@attack(
    "F",
    was="a traceback for a bad --service, a port of 70000, a folder that cannot be written or is a file, a damaged "
    "genesis, a full disk, http:// and --cert without --key",
    now="an error with a code, a hint and the documented exit code; the table of every command and kind of wrong value: "
    "tests/unit/test_cli_errors.py",
)
@pytest.mark.parametrize(
    ("typed", "code", "ends"),
    [
        (["status", _NOWHERE, "--service", "text"], "client.bad_certificate", 2),
        (["sandbox", "--node-port", "70000"], "cli.usage", 2),
        (["node", "start", "--dir", "n", "--genesis", "genesis.json", "--peer-port", "70000"], "cli.usage", 2),
        (["sandbox", "--dir", "/sys/coco"], "host.folder_unusable", 3),
        (["sandbox", "--dir", "text"], "sandbox.not_a_sandbox", 2),
        (["node", "start", "--dir", "n", "--genesis", "cut.json"], "node.bad_file", 2),
        (["status", "http://127.0.0.1:1", "--service", "alice.pem"], "cli.bad_url", 2),
        (
            ["account", "bind", "0x" + "11" * 20, "--url", _NOWHERE, "--service", "alice.pem", "--cert", "alice.pem"],
            "client.bad_key_file",
            2,
        ),
        (["ledger", "export", "/sys/coco", "--ledger", "text"], "cli.bad_file", 2),
    ],
)
def test_what_is_typed_in_a_hurry_ends_with_a_code_and_a_hint(tmp_path: Path, typed: list[str], code: str, ends: int):
    make_actor(tmp_path, "alice")
    (tmp_path / "text").write_text("no certificate")
    (tmp_path / "cut.json").write_text('{"network": "n", "memb')
    (tmp_path / "genesis.json").write_text('{"network": "n"}')
    exits, said = _typed(*typed, cwd=tmp_path)
    assert "Traceback" not in said and f"[{code}]" in said and "try: " in said, said
    assert exits == ends


@attack("F", was="a full disk: a traceback", now="host.disk with a hint, exit code 3")
@pytest.mark.parametrize(
    ("typed", "bytes_max"),
    [
        (["sandbox", "--nodes", "1", "--port", "0", "--json"], 20_000),
        (["sandbox", "--nodes", "1", "--port", "0", "--json"], 100_000),
        (["member", "keygen", "bob", "--json"], 10),
        (["network", "init", "n", "--member", "alice.pem", "--recovery-threshold", "1", "--json"], 10),
    ],
)
def test_a_disk_without_room_is_named(tmp_path: Path, typed: list[str], bytes_max: int):
    make_actor(tmp_path, "alice")
    (tmp_path / "alice.encryption.pem").write_text("x")
    exits, said = _typed(*typed, cwd=tmp_path, bytes_max=bytes_max)
    assert "Traceback" not in said and '"host.disk"' in said and '"hint"' in said, said
    assert exits == 3


@attack(
    "F",
    was="Ctrl-C during a start: 11 to 15 s",
    now="a node that is not ready has acknowledged nothing: it ends at once",
)
@pytest.mark.parametrize("command", ["sandbox", "join"])
@pytest.mark.started
def test_a_start_that_is_broken_off_waits_for_nothing(tmp_path: Path, command: str):
    make_actor(tmp_path, "service")
    (tmp_path / "genesis.json").write_text('{"network": "n"}')
    typed = {
        "sandbox": ["sandbox", "--json", "--port", "0", "--dir", "s"],
        "join": ["node", "join", "--json", "--dir", "n", "--peer", "127.0.0.1:1", "--genesis", "genesis.json"],
    }[command]
    typed += ["--service", "service.pem"] if command == "join" else []
    started = subprocess.Popen(
        [sys.executable, "-m", "coco.cli.main", *typed],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )
    children = Path(f"/proc/{started.pid}/task/{started.pid}/children")
    while not (enclaves := children.read_text().split()):
        assert started.poll() is None
        time.sleep(0.01)
    started.send_signal(signal.SIGINT)
    # The former code waited 10 s for an enclave that hears nothing before its start is done.
    said, errors = started.communicate(timeout=8)
    assert "Traceback" not in said + errors
    assert started.returncode in (0, 130)
    assert not any(Path(f"/proc/{pid}").exists() for pid in enclaves)


@attack(
    "F",
    was="a ledger file that is deleted while the host runs: everything goes on, and is lost at the end",
    now="noticed within a second: the node ends (host.ledger_gone), and what the file had is in a copy beside it",
)
@pytest.mark.parametrize("how", ["deleted", "replaced", "its log of writes deleted"])
def test_a_ledger_that_is_removed_under_a_node_is_noticed_and_kept(tmp_path: Path, how: str):
    network = TestNetwork(tmp_path / "network")
    ledger = network.files.ledger(0)

    async def story() -> None:
        async with running(network):
            assert network.node is not None
            before = rows(ledger)
            if how == "its log of writes deleted":
                ledger.with_name("ledger.db-wal").unlink()
            else:
                ledger.unlink()
            if how == "replaced":
                ledger.write_bytes(b"")
            await asyncio.wait_for(asyncio.shield(network.node.ended), 60)
            assert network.node.failure is not None and network.node.failure.code == "host.ledger_gone"
            (rescued,) = ledger.parent.glob("ledger.rescued.*.db")
            assert rows(rescued)[: len(before)] == before

    run(story())


@attack(
    "F",
    was="folders in /tmp stay behind for ever when hosts are killed",
    now="the next start removes those, and no other",
)
def test_folders_of_killed_hosts_are_removed_by_the_next_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    killed = (
        "import os, signal; from coco.host.folder import TemporaryFolder; kept = TemporaryFolder('coco-'); "
        "print(kept.name, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    left = Path(subprocess.run([sys.executable, "-c", killed], capture_output=True, text=True).stdout.strip())
    assert left.is_dir() and left.parent == tmp_path
    others = tmp_path / "coco-of-somebody"
    others.mkdir()
    (others / "precious").touch()
    (tmp_path / "coco-link").symlink_to(others)
    with contextlib.closing(TemporaryFolder("coco-")) as living:
        assert not left.exists()
        with contextlib.closing(TemporaryFolder("coco-")) as another:
            assert Path(living.name).exists() and Path(another.name).exists() and (others / "precious").exists()
    assert not Path(living.name).exists() and not Path(another.name).exists()


@attack(
    "F", was="make bench ends with a traceback where etcd is not installed", now="says what is missing, and goes on"
)
def test_a_benchmark_goes_on_without_what_is_not_installed(monkeypatch: pytest.MonkeyPatch, capsys: Any):
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    systems = importlib.import_module("systems")
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(systems, "HERE", Path("/nowhere"))
    assert systems.there([systems.Coco, systems.Geth, systems.Etcd]) == [systems.Coco]
    assert "etcd is missing and left out: apt-get install etcd-server" in capsys.readouterr().out


# --- G6: what an operator is told before it is too late ---


@attack(
    "G6",
    was="no number said that certificates end, voters are away or shares are missing, and no rule raised an alert: an "
    "operator met it as a standstill",
    now="numbers say so before, and a rule that ships raises an alert over each",
)
def test_every_danger_that_a_number_knows_raises_an_alert(tmp_path):
    member = Member(tmp_path, "m")
    network = Network([member], constitutions.text("majority"))
    issued = membership.SERVICE.endorse(member.key.public_key(), 1, ["a"], 1000, 7)
    network.put(tables.NODE_CERTIFICATES, b"founder", pem(issued).encode())
    row = network.document(tables.NODES_INFO, "founder")
    row["verified"]["valid_until_s"] = 9
    network.put(tables.NODES_INFO, b"founder", tables.row(row))
    calm = {"voters": 3, **standing.quorum((1, 2, 3), {1, 2, 3}), **standing.of_rows(network, 0)}
    lost: dict[str, Any] = {"encrypted_shares": {}}
    network.put(tables.WRAPPED_SECRET, tables.SINGLETON, tables.row(lost))
    late_s = int(member.certificate.not_valid_after_utc.timestamp()) - 60
    hurt = {"voters": 3, **standing.quorum((1, 2, 3), {1}), **standing.of_rows(network, late_s)}
    thin = {**calm, **standing.quorum((1, 2, 3), {1, 2})}
    (group,) = yaml.safe_load((ROOT / "deploy" / "monitoring" / "alerts.yml").read_text())["groups"]
    rules = {rule["alert"]: rule["expr"] for rule in group["rules"]}

    def raised(numbers: dict[str, int], alert: str) -> bool:
        """Whether a rule of comparisons holds, as Prometheus reads it."""
        known = {f"coco_{name}": value for name, value in numbers.items()}
        return bool(eval(rules[alert], {}, known))

    for alert in ("CocoNoMajority", "CocoNodeCertificateEnds", "CocoServiceCertificateEnds", "CocoNotRecoverable"):
        assert raised(hurt, alert), alert
    missing = {**hurt, "participant_certificates_left_s": 1 << 40, "operator_certificates_left_s": 1 << 40}
    assert raised(missing, "CocoActorCertificateEnds") and raised(hurt, "CocoEndorsementEnds")
    assert raised(thin, "CocoNoMargin") and not raised(calm, "CocoNoMargin")
    for alert in ("CocoNoMajority", "CocoNodeCertificateEnds"):
        assert not raised({**calm, "node_certificates_left_s": 5 * 86_400}, alert), alert
