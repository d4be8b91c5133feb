"""The auditor, on a ledger of governance made here: what is legal passes, and every forgery is named."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from test_governance import SERVICE, action, rsa_pem

from coco import constitutions
from coco._native import MerkleTree, WriteSet
from coco.audit import Auditor
from coco.enclave.configuration import nodes, succession
from coco.enclave.configuration.proposals import Change, Proposals
from coco.enclave.core.identity import ServiceIdentity, pem
from coco.enclave.core.rules_worker import call_here
from coco.ledger import tables
from coco.ledger.statements import IDENTITY_STATEMENT
from members import Member, node_row


@pytest.fixture(scope="module")
def members(tmp_path_factory):
    directory = tmp_path_factory.mktemp("members")
    return [Member(directory, f"m{number}") for number in range(4)]


class Ledger:
    """Entries of governance, as a primary would write them."""

    def __init__(self, members: list[Member], rules: str = "majority") -> None:
        genesis = {
            "network": "test",
            "members": [{"cert": one.pem} for one in members],
            "constitution": constitutions.text(rules),
            "insecure_virtual": True,
            "production": False,
        }
        genesis["members"][0]["encryption_public_key"] = rsa_pem()  # type: ignore[index]
        document = json.dumps(genesis).encode()
        from coco.enclave.configuration.genesis import Genesis

        self.rows: dict[tuple[str, bytes], bytes] = {}
        self.entries: list[list[tuple[str, bytes, bytes | None]]] = []
        self.tree = MerkleTree()
        node = node_row(status=nodes.TRUSTED, engine=1, measurement="m", peer_address="a:1", owner="")
        self.write(
            [
                *Genesis.parse(document).rows(document),
                (tables.NODES_INFO, b"founder", tables.row(node)),
                (tables.NODE_MEASUREMENTS, b"m", nodes.ALLOWED),
                (tables.SERVICE_INFO, tables.SINGLETON, tables.row({"status": "Open", "cert": SERVICE})),
            ]
        )
        self.proposals = Proposals(call_here)

    def get(self, table: str, key: bytes) -> bytes | None:
        return self.rows.get((table, key))

    def scan(self, table: str, prefix: bytes = b"") -> Any:
        return iter(sorted((k, v) for (t, k), v in self.rows.items() if t == table and k.startswith(prefix)))

    def write(self, rows: Any) -> None:
        self.entries.append(list(rows))
        self.tree.append(bytes([len(self.entries)]) * 32)
        for table, key, value in rows:
            if value is None:
                self.rows.pop((table, key), None)
            else:
                self.rows[table, key] = value

    def take(self, change: Change) -> Any:
        self.write(change.rows)
        return change.answer

    def propose(self, member: Member, *actions: Any) -> str:
        body = member.sign("proposal", {"actions": list(actions)})
        return str(self.take(asyncio.run(self.proposals.create(body, self, self.tree.root())))["proposalId"])  # type: ignore[arg-type]

    def vote(self, member: Member, proposal: str, vote: bool = True) -> Any:
        body = member.sign("ballot", {"vote": vote}, proposal)
        return self.take(asyncio.run(self.proposals.vote(proposal, member.id, body, self)))  # type: ignore[arg-type]

    def audit(self) -> Auditor:
        tree = MerkleTree()
        auditor = Auditor(call_here, tree)

        async def feed() -> None:
            for seqno, rows in enumerate(self.entries, 1):
                tree.append(bytes([seqno]) * 32)
                await auditor.feed(seqno, WriteSet(rows))

        asyncio.run(feed())
        return auditor


@pytest.fixture
def ledger(members):
    found = Ledger(members[:3])
    made = found.propose(members[0], action("set_user", cert=members[3].pem))
    found.write([("public:coco.internal.predecessor", tables.SINGLETON, b"another entry in between")])
    found.vote(members[0], made)
    found.vote(members[1], made)
    refused = found.propose(members[1], action("set_member_data", member_id="nobody"))
    found.vote(members[1], refused, False)
    found.vote(members[2], refused, False)
    return found


def test_what_is_legal_is_told_step_by_step(ledger, members):
    found = ledger.audit()
    assert found.violations == []
    told = [(one["what"], one.get("member"), one.get("vote"), one.get("state")) for one in found.events]
    assert told == [
        ("founded", None, None, None),
        ("proposal", members[0].id, None, "Open"),
        ("ballot", members[0].id, True, "Open"),
        ("ballot", members[1].id, True, "Accepted"),
        ("proposal", members[1].id, None, "Open"),
        ("ballot", members[1].id, False, "Open"),
        ("ballot", members[2].id, False, "Rejected"),
    ]


def _change(rows: list[Any], table: str, edit: Any) -> list[Any]:
    return [(name, key, edit(value) if name == table else value) for name, key, value in rows]


FORGERIES: dict[str, Any] = {
    "a participant from nowhere": lambda rows: [(tables.USERS_CERTS, b"x", b"y")],
    "other rules from nowhere": lambda rows: [(tables.CONSTITUTION, tables.SINGLETON, b'"x"')],
    "a service that opens again": lambda rows: [
        (tables.SERVICE_INFO, tables.SINGLETON, tables.row({"status": "Open", "cert": SERVICE}))
    ],
    "a node that nobody signed for": lambda rows: [
        (
            tables.NODES_INFO,
            b"new",
            tables.row(
                node_row(
                    status=nodes.TRUSTED,
                    engine=2,
                    measurement="m",
                    peer_address="b:1",
                    owner="o",
                    owner_statement="",
                    host_names=[],
                )
            ),
        )
    ],
    "a node that left by itself": lambda rows: [
        (
            tables.NODES_INFO,
            b"founder",
            tables.row(node_row(status=nodes.RETIRED, engine=1, measurement="m", peer_address="a:1", owner="")),
        )
    ],
    "a row more than the request gives": lambda rows: [*rows, (tables.USERS_CERTS, b"x", b"y")],
    "a row less": lambda rows: [row for row in rows if row[0] != tables.PROPOSALS_INFO],
    "a vote that was turned round": lambda rows: _change(
        rows, tables.PROPOSALS_INFO, lambda value: value.replace(b"true", b"false")
    ),
    "a request that was changed": lambda rows: _change(
        rows, tables.COSE_HISTORY, lambda value: value.replace(b"true", b"null")
    ),
    "a request that is none": lambda rows: _change(rows, tables.COSE_HISTORY, lambda value: b"\xff"),
}


@pytest.mark.parametrize("forge", FORGERIES.values(), ids=FORGERIES.keys())
def test_every_forgery_is_named_with_its_entry(ledger, forge):
    ledger.entries[3] = forge(ledger.entries[3])  # the first vote
    found = ledger.audit()
    assert found.violations and found.violations[0]["seqno"] == 4, found.violations


def test_a_vote_that_the_rules_did_not_accept_is_seen_though_everything_is_signed(members):
    """Rules that say Open, and a primary that says Accepted: as only one with other code could write it."""
    ledger = Ledger(members[:3], "unanimous")
    made = ledger.propose(members[0], action("set_user", cert=members[3].pem))
    ledger.vote(members[0], made)
    lenient = Ledger(members[:3], "majority")
    lenient.rows = dict(ledger.rows)
    lenient.rows[tables.CONSTITUTION, tables.SINGLETON] = tables.row(constitutions.text("majority"))
    lenient.vote(members[1], made)
    ledger.write(lenient.entries[-1])
    assert ledger.audit().violations[0]["why"].endswith("(audit.other_effect)")


def _announce(ledger: Ledger, **other: Any) -> dict[str, Any]:
    """As a primary writes it: the next entry announces another identity."""
    seqno = len(ledger.entries) + 1
    document = {
        "status": succession.ANNOUNCED,
        "number": seqno,
        "previous": SERVICE,
        "next": pem(ServiceIdentity.generate(0).certificate),
        "transaction_id": f"2.{seqno - 1}",
        "root": ledger.tree.root(seqno - 1).hex(),
        "keys": {},
        **other,
    }
    ledger.write([(tables.SUCCESSION, tables.SINGLETON, tables.row(document))])
    return document


def _state(ledger: Ledger, member: Member, document: dict[str, Any]) -> None:
    body = member.sign(IDENTITY_STATEMENT, succession.payload(document))
    ledger.write([succession.statement_row(ledger, body)])  # type: ignore[arg-type]


def _succeed(ledger: Ledger, document: dict[str, Any]) -> None:
    info = json.loads(ledger.get(tables.SERVICE_INFO, tables.SINGLETON) or b"{}")
    row = tables.row(succession.succeeded(document, info, len(ledger.entries) + 1))
    rows = [(tables.SERVICE_INFO, tables.SINGLETON, row), (tables.SUCCESSION, tables.SINGLETON, None)]
    ledger.write(rows)


def _wanted(members: list[Member]) -> Ledger:
    ledger = Ledger(members[:3])
    made = ledger.propose(members[0], action("rotate_service_identity"))
    for member in members[:2]:
        ledger.vote(member, made)
    return ledger


def test_J9_a_succession_is_told_step_by_step(members):
    ledger = _wanted(members)
    document = _announce(ledger)
    for member in members[:2]:
        _state(ledger, member, document)
    _succeed(ledger, document)
    found = ledger.audit()
    assert found.violations == []
    told = [one["what"] for one in found.events][-4:]
    assert told == ["identity_announced", "identity_statement", "identity_statement", "identity_changed"]


def _unasked(members: list[Member]) -> Ledger:
    ledger = Ledger(members[:3])
    _announce(ledger)
    return ledger


def _too_few(members: list[Member]) -> Ledger:
    ledger = _wanted(members)
    document = _announce(ledger)
    _state(ledger, members[0], document)
    _succeed(ledger, document)
    return ledger


def _twice_by_one(members: list[Member]) -> Ledger:
    ledger = _wanted(members)
    document = _announce(ledger)
    _state(ledger, members[0], document)
    table, key, body = ledger.entries[-1][0]
    ledger.write([(table, key[:8] + members[1].id.encode(), body)])
    _succeed(ledger, document)
    return ledger


def _another_key(members: list[Member]) -> Ledger:
    ledger = _wanted(members)
    document = _announce(ledger)
    for member in members[:2]:
        _state(ledger, member, document)
    _succeed(ledger, {**document, "next": pem(ServiceIdentity.generate(0).certificate)})
    return ledger


def _elsewhere(members: list[Member]) -> Ledger:
    ledger = _wanted(members)
    _announce(ledger, root="00" * 32)
    return ledger


def _dropped(members: list[Member]) -> Ledger:
    ledger = _wanted(members)
    _announce(ledger)
    ledger.write([(tables.SUCCESSION, tables.SINGLETON, None)])
    return ledger


@pytest.mark.parametrize("forged", [_unasked, _too_few, _twice_by_one, _another_key, _elsewhere, _dropped])
def test_J9_an_identity_that_members_have_not_stated_is_seen(members, forged):
    found = forged(members)
    assert found.audit().violations, "this is legal"
