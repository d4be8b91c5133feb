"""The ledger of a network of the version before (commit fa5f8b7): read, judged, recovered and continued by this one."""

from __future__ import annotations

import json
import lzma
import shutil
from pathlib import Path
from typing import Any

from eth_account import Account

from coco.audit.former import FormerPractice
from coco.cli import ledger as ledgers
from coco.cli.sandbox import WELL_KNOWN_ACCOUNTS, make_owner
from coco.cli.sandbox_folder import SandboxFiles
from coco.client.governance import Governance
from coco.client.members import Member, recover
from coco.client.signer import Signer
from coco.configuration.proposals import Proposals
from coco.ledger.statements import fingerprint
from conftest import verify_with_ccf
from consortium import MEASUREMENT, Consortium, call
from network import Several, run

VECTOR = Path(__file__).parent.parent / "vectors" / "ledgers" / "fa5f8b7"
#: Of the code of that commit.
FORMER = "d39b3b8771dc3ddc663fe9942cde073640fc5924ad86230f9b5b168d6c6c23e6"
#: Entries that only the former rules take: fewer settings; ballots of who left that stay, and count again; an address
#: that is none; who comes where a node was let go; a removed node whose row does not say so.
OTHERWISE = [1, 33, 37, 59, 65, 75, 81]
LAST, PAID = 134, 36
PAYEE = Account.from_key("0x" + "77" * 32).address


def unpacked(to: Path) -> Path:
    to.write_bytes(lzma.decompress((VECTOR / "ledger.db.xz").read_bytes()))
    return to


class Continued(Several):
    """A network whose folder is the stored one."""

    def __init__(self, directory: Path) -> None:
        shutil.copytree(VECTOR / "network", directory)
        self.files = SandboxFiles(directory)
        self.genesis = json.loads(self.files.genesis.read_text())
        self.nodes, self.log, self.service, self._clients = [], [], "", []
        self.files.ledger(0).parent.mkdir(parents=True)
        unpacked(self.files.ledger(0))
        self._nonce = 8

    def _member(self, name: str, *ends: str) -> list[Path]:
        return [self.files.directory / "members" / f"{name}{end}" for end in ends]

    def signer(self, name: str) -> Signer:
        return Signer.load(*self._member(name, ".pem", ".key.pem"))

    def holder(self, name: str) -> Member:
        return Member.load(*self._member(name, ".pem", ".key.pem", ".encryption.key.pem"))

    def governance(self, node: Any) -> Governance:
        return Governance(self.client(node))

    async def rpc(self, node: Any, method: str, *params: Any) -> Any:
        body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        answer = await self.client(node, "application").request("POST", "/", json.dumps(body).encode())
        return json.loads(answer.body)["result"]

    async def pay(self, node: Any) -> None:
        fields = {"to": PAYEE, "value": 1, "gas": 21_000, "nonce": self._nonce, "chainId": 2017}
        signed = Account.from_key(WELL_KNOWN_ACCOUNTS[0][1]).sign_transaction(
            {**fields, "maxFeePerGas": 0, "maxPriorityFeePerGas": 0}
        )
        receipt = await self.rpc(node, "eth_sendRawTransactionSync", "0x" + signed.raw_transaction.hex())
        assert receipt["status"] == "0x1"
        self._nonce += 1


def test_it_is_verified_by_this_version_and_by_another_reader(tmp_path):
    path = unpacked(tmp_path / "ledger.db")
    found = ledgers.verify(path, "")
    assert found["last_signed"] == f"4.{LAST}" and found["unsigned"] == 0
    verify_with_ccf(path, tmp_path / "chunks", "--former", FORMER)


def test_what_it_did_otherwise_is_legal_only_for_who_names_that_version(tmp_path):
    path = unpacked(tmp_path / "ledger.db")
    found = ledgers.audit(path, "")
    assert [one["seqno"] for one in found["violations"]] == OTHERWISE
    assert found["code"] == [{"seqno": 1, "measurement": FORMER, "former": False}]
    assert [one["seqno"] for one in ledgers.audit(path, "", earlier=["ab" * 32])["violations"]] == OTHERWISE
    found = ledgers.audit(path, "", earlier=[FORMER])
    assert found["violations"] == [] and found["code"] == [{"seqno": 1, "measurement": FORMER, "former": True}]
    assert {"node_retired", "identity_changed", "recovered"} <= {event["what"] for event in found["events"]}


def test_this_version_recovers_it_and_goes_on(tmp_path):
    async def story() -> None:
        network = Continued(tmp_path / "network")
        try:
            # It slept for longer than a day: its operator says that the clock is right.
            node = await network.start(accept_clock=True)
            client = network.client(node)
            state = (await client.request("GET", "/gov/recovery")).json()
            assert state["transaction_id"] == f"4.{LAST}"
            known = state["previous_service"]
            for name in ("alice", "bob"):
                state = await recover(client, network.holder(name), pinned_service=known, seen=f"4.{LAST}")
            assert state["status"] == "Open"
            assert int(await network.rpc(node, "eth_getBalance", PAYEE, "latest"), 16) == PAID
            assert await network.rpc(node, "eth_blockNumber") == "0x8"
            await network.pay(node)
            members = (await network.governance(node).get("/service/members"))["value"]
            names = {fingerprint(network.signer(name).certificate) for name in ("alice", "bob", "carol")}
            assert {one["memberId"]: one["status"] for one in members} == dict.fromkeys(names, "Active")
            nodes = (await network.ask(node, "/node/network"))["nodes"]
            trusted = [row["engine"] for row in nodes.values() if row["status"] == "Trusted"]
            assert trusted == [max(row["engine"] for row in nodes.values())]

            await _decided(network.governance(node), network)
            rules = network.genesis["constitution"] + "\n# Amended.\n"
            other = await network.start(owner=make_owner(network.files, network.service, rules))
            await network.voters(node, 2)
            await network.pay(other)
            assert int(await network.rpc(other, "eth_getBalance", PAYEE, "latest"), 16) == PAID + 2
        finally:
            await network.stop()

    run(story())
    for number in (0, 1):
        ledger = tmp_path / "network" / f"n{number}" / "ledger.db"
        found = ledgers.audit(ledger, "", earlier=[FORMER])
        assert found["violations"] == []
        assert [one["former"] for one in found["code"]] == [True, False]
        verify_with_ccf(ledger, tmp_path / f"chunks{number}", "--former", FORMER)


async def _decided(governance: Governance, network: Continued) -> None:
    """Members decide under the rules that they had; whoever leaves takes its ballot along from now on."""
    assert (await governance.get("/members/proposals"))["value"] == [], "other rules had ended them"
    carol = network.signer("carol")
    made = await governance.propose(
        network.signer("alice"), {"actions": [{"name": "trigger_ledger_rekey", "args": {}}]}
    )
    held = await governance.vote(carol, made["proposalId"], True)
    assert held["ballotCount"] == 1
    removal = {"name": "remove_member", "args": {"member_id": fingerprint(carol.certificate)}}
    gone = await governance.propose(network.signer("bob"), {"actions": [removal]})
    for name in ("alice", "bob"):
        gone = await governance.vote(network.signer(name), gone["proposalId"], True)
    assert gone["proposalState"] == "Accepted"
    assert (await governance.get(f"/members/proposals/{made['proposalId']}"))["ballotCount"] == 0


def test_naming_a_version_is_no_leave_for_another(tmp_path):
    """A removal that leaves ballots as they are, written by code that nobody named."""
    made = Consortium(tmp_path)
    made.found()
    held = made.propose(made.members[0], {"name": "trigger_ledger_rekey", "args": {}})
    made.vote(made.members[2], held)
    made.proposals = Proposals(call, practice=FormerPractice())
    removal = {"name": "remove_member", "args": {"member_id": made.members[2].id}}
    gone = made.propose(made.members[0], removal)
    for member in made.members[:2]:
        made.vote(member, gone)
    at = len(made.sealed)
    made.sign()
    path = made.save(tmp_path / "ledger.db")
    assert at in [one["seqno"] for one in ledgers.audit(path, "", earlier=[FORMER])["violations"]]
    named = ledgers.audit(path, "", earlier=[MEASUREMENT])["violations"]
    assert at not in [one["seqno"] for one in named], "that very entry is what the former version wrote"
    assert [one["seqno"] for one in named] == [1], "and its first entry is not"
