"""The holder of the service key: every node's keys, too, and with them every signature that a ledger has."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import forger
import legal
import pytest
from attacks import attack

import consortium
from coco.attestation.evidence import Evidence, virtual
from coco.cli.ledger import audit
from coco.configuration import nodes
from coco.crypto.certificates import pem
from coco.enclave.keys.identity import ServiceIdentity
from coco.errors import LedgerError
from coco.ledger import tables
from coco.ledger.statements import NODE_STATEMENT
from consortium import MEASUREMENT, NAMES, Consortium, Node, action, report, save

# --- B: the auditor accepts what never happened -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def founded(tmp_path_factory: pytest.TempPathFactory) -> Consortium:
    """An open network of two nodes."""
    made = Consortium(tmp_path_factory.mktemp("keys"), recovery_threshold=1)
    made.found()
    made.admit("10.0.0.2:1")
    made.sign()
    return made


@pytest.fixture
def ledger(founded: Consortium, tmp_path: Path) -> Consortium:
    """The same, for one attack."""
    return founded.clone(tmp_path)


def illegal(made: Consortium, entry: int = 0) -> dict[str, Any]:
    """What ``coco ledger audit`` says of a ledger that ends with a signature; the first violation is in ``entry``."""
    if made.entries[-1].signing is None:
        made.sign()
    found = audit(made.save(made_at(made)), "")["violations"]
    assert found, "accepted"
    assert not entry or found[0]["seqno"] == entry, found
    first: dict[str, Any] = found[0]
    return first


def passes(made: Consortium) -> None:
    """The same of one that is what it says."""
    if made.entries[-1].signing is None:
        made.sign()
    assert audit(made.save(made_at(made)), "")["violations"] == []


def made_at(made: Consortium) -> Path:
    """A file that is not there yet."""
    made.files += 1
    return made.directory / f"ledger{made.files}.db"


def refile(made: Consortium, former: list[bytes]) -> None:
    """File statements of a former recovery as ones of this."""
    for member, body in zip(made.members, former, strict=False):
        made.write([(tables.IDENTITY_STATEMENTS, made.count.to_bytes(8, "big") + member.id.encode(), body)])
        made.sign()


@attack(
    "B1",
    was="the members' statements of an earlier recovery, filed again, made a recovery under anybody's key legal",
    now="each statement must name the former and the following identity, the place and the root of this recovery",
)
def test_a_recovery_that_no_member_stated_is_found(ledger):
    ledger.recover()
    passes(ledger)
    former = [body for table, _, body in _rows(ledger) if table == tables.IDENTITY_STATEMENTS]
    ledger.begin_recovery()
    filed = len(ledger.entries) + 1
    refile(ledger, former)
    ledger.end_recovery()
    assert illegal(ledger, filed)["why"].endswith("(audit.service)")


def _rows(made: Consortium) -> list[Any]:
    return [row for entry in made.entries for row in entry.rows]


@attack(
    "B1",
    was="a statement about another root, place, identity or kind of continuation was one more for the majority",
    now="only exactly what members of this recovery state counts, once for each active member",
)
@pytest.mark.parametrize(
    "other",
    [
        {"root": "00" * 32},
        {"transaction_id": "2.1"},
        {"next_service": "00"},
        {"previous_service": "00"},
        {"goes_on": True},
    ],
    ids=lambda one: next(iter(one)),
)
def test_a_statement_about_something_else_is_no_statement(ledger, other):
    ledger.begin_recovery()
    ledger.state_recovery(ledger.members[0])
    ledger.state_recovery(ledger.members[1], {**ledger.stated, **other})
    filed = len(ledger.entries)
    ledger.end_recovery()
    illegal(ledger, filed)


@attack(
    "B2",
    was="any row of governance could be removed by an entry without a request: None was compared with None",
    now="a removal is a change like every other: without a step that makes it, it is named",
)
@pytest.mark.parametrize(
    "table",
    [
        tables.MEMBERS_INFO,
        tables.MEMBERS_CERTS,
        tables.COSE_RECENT,
        tables.COSE_HISTORY,
        tables.PROPOSALS_INFO,
        tables.OPERATORS,
        tables.NODE_MEASUREMENTS,
        tables.NODES_INFO,
        tables.NODE_CERTIFICATES,
        tables.CONSTITUTION,
        tables.SERVICE_CONFIG,
    ],
)
def test_no_row_is_removed_without_a_request(ledger, table):
    ledger.propose(ledger.members[0], action("set_user_data", user_id=ledger.participants[0].id, user_data={}))
    key = next(key for key, _ in ledger.scan(table) if key != ledger.primary.encode())
    at = ledger.write([(table, key, None)])
    illegal(ledger, at)


@attack(
    "B2",
    was="two of three members removed by nobody, the third decided alone, and replayed an old proposal: legal",
    now="the entry that removes them is named",
)
def test_one_member_alone_is_no_majority(ledger):
    gone = [one.id.encode() for one in ledger.members[1:3]]
    at = ledger.write([(table, key, None) for key in gone for table in (tables.MEMBERS_INFO, tables.MEMBERS_CERTS)])
    made = ledger.propose(ledger.members[0], action("set_user", cert=ledger.participants[1].pem))
    assert ledger.vote(ledger.members[0], made)["proposalState"] == "Accepted"
    illegal(ledger, at)


def _garbage(made: Consortium, node: Node) -> dict[str, Any]:
    return {"evidence": Evidence("insecure_virtual", b"garbage"), "verified": report(node, b"").verify(now_s=0)}


def _other_code(made: Consortium, node: Node) -> dict[str, Any]:
    true = report(node, made.service.spki)
    return {"evidence": report(node, made.service.spki, "f" * 64), "verified": true.verify(now_s=0)}


def _of_another_node(made: Consortium, node: Node) -> dict[str, Any]:
    return {"evidence": report(made.start("10.0.0.9:1"), made.service.spki)}


def _for_another_service(made: Consortium, node: Node) -> dict[str, Any]:
    return {"evidence": report(node, ServiceIdentity.generate(0).spki)}


def _for_nothing(made: Consortium, node: Node) -> dict[str, Any]:
    return {"evidence": virtual(MEASUREMENT, bytes(64))}


@attack(
    "B3",
    was="evidence was never read again: the row's own `verified` was believed, whatever lay beside it",
    now="it is verified by the nodes' code, of platform virtual too, for this key, service, start and code",
)
@pytest.mark.parametrize("forged", [_garbage, _other_code, _of_another_node, _for_another_service, _for_nothing])
def test_a_node_without_evidence_is_found(ledger, forged):
    node = ledger.start("10.0.0.3:1")
    at = ledger.write(ledger.admission(node, **forged(ledger, node)))
    illegal(ledger, at)


@attack(
    "B3",
    was="an operator's statement was compared with itself: one for another network admitted a node to this one",
    now="network, service, rules, node, address, measurement and names must be those of this entry",
)
@pytest.mark.parametrize(
    "name", ["network", "service", "constitution", "node_id", "address", "measurement", "host_names", "expires_s"]
)
def test_an_operator_signed_for_this_node_alone(ledger, name):
    node = ledger.start("10.0.0.3:1")
    other: dict[str, Any] = {"host_names": ["bank.example"], "expires_s": 1, "address": "10.0.0.1:9"}
    statement = ledger.operator.sign(NODE_STATEMENT, ledger.node_statement(node, **{name: other.get(name, "another")}))
    at = ledger.write(ledger.admission(node, statement=statement))
    illegal(ledger, at)


@attack(
    "B3",
    was="a second node with the engine id of another, and a wrapped secret for other keepers, were legal",
    now="an engine id is given once; a secret is kept for exactly those whom members have as keepers",
)
@pytest.mark.parametrize("forged", ["engine", "wrapped", "node_secrets", "former", "unknown"])
def test_ids_are_given_once_and_secrets_kept_for_keepers(ledger, forged):
    if forged == "engine":
        at = ledger.write(ledger.admission(ledger.start("10.0.0.3:1"), engine=2))
    elif forged == "unknown":
        at = ledger.write([("public:coco.internal.no_such", b"", b"x")])
    else:
        table = {
            "wrapped": tables.WRAPPED_SECRET,
            "node_secrets": tables.NODE_SECRETS,
            "former": tables.FORMER_SECRETS,
        }[forged]
        at = ledger.write([(table, tables.SINGLETON, b'{"first_seqno":1,"nodes":{}}')])
    illegal(ledger, at)


@attack(
    "B3",
    was="a node that members trusted asked for its certificate under other host names, of a bank's, and got it",
    now="it gets the names that members saw in its row; a certificate for others, engine id, time or key is found",
)
@pytest.mark.parametrize("other", ["names", "engine", "days", "key", "service"])
def test_a_certificate_is_for_what_members_saw(ledger, other):
    node = ledger.admit("10.0.0.3:1", status=nodes.PENDING, statement=b"")
    ledger.decide(action("transition_node_to_trusted", node_id=node.id))
    document, service = ledger.row(node), ledger.service
    key: Any = ledger.start("10.0.0.9:1").key if other == "key" else node.key
    names = ["bank.example"] if other == "names" else NAMES
    said, now_ms = nodes.wrapped_evidence(document), 1000 * ledger.now_s
    issuer = ServiceIdentity.generate(now_ms) if other == "service" else service
    engine, days = document["engine"] + (other == "engine"), 70 if other == "days" else 7
    issued = issuer.endorse(key.public_key(), engine, names, now_ms, days, said)
    at = ledger.write([(tables.NODE_CERTIFICATES, node.id.encode(), pem(issued).encode())])
    illegal(ledger, at)


def _by_a_stranger(made: Consortium) -> None:
    node = made.start("10.0.0.9:1")
    certificate = made.service.endorse(node.key.public_key(), 9, NAMES, 1000 * made.now_s)
    made.certificate_of = lambda node: pem(certificate)
    made.view, made.primary = made.view + 1, node.id
    made.sign()


def _by_one_that_waits(made: Consortium) -> None:
    node = made.admit("10.0.0.3:1", status=nodes.PENDING, statement=b"")
    made.sign()
    made.rows[tables.NODE_CERTIFICATES, node.id.encode()] = pem(
        made.service.endorse(node.key.public_key(), node.engine, NAMES, 1000 * made.now_s)
    ).encode()
    made.lead(node)


def _by_one_that_left(made: Consortium) -> None:
    node = made.admit("10.0.0.3:1")
    made.retire(node)
    made.epoch()
    made.sign()
    made.lead(node)


def _after_its_end(made: Consortium) -> None:
    made.now_s += 8 * 86_400
    made.sign()


def _earlier(made: Consortium) -> None:
    made.now_s -= 1000
    made.sign()


def _by_two(made: Consortium) -> None:
    other = next(node for node in made.keys.nodes.values() if node.engine == 2)
    made.sign(other.id)


@attack(
    "B4",
    was="a signature by a node of no table, one that waits, one that left, or with a certificate that had ended counted",
    now="who signs is trusted at that entry, with the certificate that it has there, while that counts",
)
@pytest.mark.parametrize(
    "forged", [_by_a_stranger, _by_one_that_waits, _by_one_that_left, _after_its_end, _earlier, _by_two]
)
def test_only_a_trusted_node_signs(ledger, forged):
    ledger.application()
    forged(ledger)
    illegal(ledger, len(ledger.entries))


@attack(
    "B5",
    was="one bit in the entry that begins a life, or that entry gone: the whole life behind it was an unsigned tail",
    now="a node's signature behind it proves the damage: refused, the entry named, exit code 4",
)
@pytest.mark.parametrize("how", ["bit", "dropped"])
@pytest.mark.parametrize("form", ["file", "chunks"])
def test_damage_hides_nothing_behind_it(ledger, tmp_path, how, form):
    ledger.recover()
    began = next(n for n, entry in enumerate(ledger.entries, 1) if b"Recovering" in str(entry.rows).encode())
    sealed = [*ledger.sealed]
    if how == "bit":
        sealed[began - 1] = sealed[began - 1][:30] + bytes([sealed[began - 1][30] ^ 1]) + sealed[began - 1][31:]
    else:
        del sealed[began - 1]
    path = save(tmp_path / "damaged.db", sealed)
    if form == "chunks":
        coco("ledger", "export", str(tmp_path / "chunks"), "--ledger", str(path))
        path = tmp_path / "chunks"
        if not path.is_dir() or not any(path.iterdir()):
            return  # such a ledger is not even exported
    for command in ("verify", "audit"):
        code, said = coco("ledger", command, "--ledger", str(path), "--json")
        assert code == 4 and said["error"]["code"] == "ledger.damaged", said
        assert f"entry {began} " in said["error"]["message"], said


def coco(*arguments: str) -> tuple[int, dict[str, Any]]:
    """A command as an auditor runs it."""
    done = subprocess.run([sys.executable, "-m", "coco.cli.main", *arguments], capture_output=True, text=True)
    return done.returncode, json.loads(done.stdout) if done.stdout.startswith("{") else {"error": done.stderr}


@attack(
    "B6",
    was="a ledger cut at a signature passed, and nothing that its reader held could be compared with it",
    now="`--expect` and `--receipt` refuse a ledger without what its reader knows of it",
)
def test_a_cut_is_seen_by_whoever_holds_something_later(ledger, tmp_path):
    ledger.application()
    ledger.sign()
    ledger.application()
    later = len(ledger.entries)
    ledger.sign()
    held = tmp_path / "receipt.json"
    held.write_text(json.dumps(ledger.receipt(later)))
    whole, cut = ledger.save(tmp_path / "whole.db"), save(tmp_path / "cut.db", ledger.sealed[: later - 1])
    for command in ("verify", "audit"):
        for option, value in (("--expect", f"2.{later}"), ("--receipt", str(held))):
            code, found = coco("ledger", command, "--ledger", str(whole), option, value, "--json")
            assert code == 0 and found["cut_excluded_up_to"] == f"2.{later}", found
            code, found = coco("ledger", command, "--ledger", str(cut), option, value, "--json")
            assert code == 4 and found["error"]["code"] == "ledger.position_missing", found


@attack(
    "B6",
    was="another entry at the place of the one that a receipt is of went unnoticed",
    now="the receipt's leaf is compared with the ledger's, bit for bit",
)
def test_another_ledger_at_the_same_place_is_not_the_receipts(ledger, tmp_path):
    ledger.application()
    at = len(ledger.entries)
    ledger.sign()
    held = tmp_path / "receipt.json"
    held.write_text(json.dumps(ledger.receipt(at)))
    entry = ledger.entries[at - 1]
    ledger.rewrite(at, replace(entry, rows=(("private", b"", b"another transfer"),)))
    path = ledger.save(tmp_path / "other.db")
    assert audit(path, "")["violations"] == []
    with pytest.raises(LedgerError) as refused:
        audit(path, "", receipts_held=[held])
    assert refused.value.code == "ledger.other_entry"


@attack(
    "B",
    was="nobody had tried: removals, admissions, signers and statements as above passed, re-signed with these keys",
    now="of 10,000 seeded edits none that a second model calls illegal is accepted (`make forge`; here a few hundred)",
)
def test_no_forgery_passes_that_a_second_model_calls_illegal(tmp_path):
    made = forger.Forger(consortium.eventful(tmp_path))
    assert legal.why_illegal(made.made.sealed) == ""
    summary = forger.Summary()
    for seed in range(20_000, 20_300):
        summary.add(made.forge(seed)[0])
    assert summary.accepted_illegal == []
    assert summary.made == 300 and summary.refused > 200, "the forger forges"
    assert summary.accepted_legal, "what means nothing is not refused for its own sake"
    assert len(summary.kinds) > 15
    # The second model is no rubber stamp: it knows most forgeries by itself.
    forged = [made.whole(seed) for seed in range(20_000, 20_040)]
    assert sum(bool(legal.why_illegal(one)) for one in forged if one) > 20
