"""The auditor, on a ledger of governance made here: what is legal passes, and every forgery is named."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

import consortium
from coco import constitutions
from coco.audit import model
from coco.audit.model import Step
from coco.crypto.certificates import pem
from coco.enclave.keys.identity import ServiceIdentity
from coco.ledger import tables
from consortium import Consortium, action


@pytest.fixture(scope="module")
def eventful(tmp_path_factory):
    return consortium.eventful(tmp_path_factory.mktemp("eventful"))


def test_every_step_that_there_is_passes(eventful):
    found = eventful.audited()
    assert found.violations == []
    assert set(found.steps) == set(Step) - {Step.UNKNOWN}


def test_the_model_has_every_public_table_and_no_other():
    public = {name for name in tables.STATE_TABLES + tables.LOG_TABLES if name.startswith("public:")}
    assert set(model.TABLES) == public
    assert set(model.STEPS) == set(Step) - {Step.UNKNOWN}
    written = {step for steps in model.TABLES.values() for step in steps}
    assert written == set(model.STEPS)


@pytest.fixture
def ledger(tmp_path):
    found = Consortium(tmp_path)
    found.found()
    made = found.propose(found.members[0], action("set_user", cert=found.participants[1].pem))
    found.application()
    found.vote(found.members[0], made)
    found.vote(found.members[1], made)
    refused = found.propose(found.members[1], action("set_member_data", member_id="nobody"))
    found.vote(found.members[1], refused, False)
    found.vote(found.members[2], refused, False)
    found.sign()
    return found


#: The first vote.
VOTE = 7
OTHER = pem(ServiceIdentity.generate(1_800_000_000_000).certificate)


def test_what_is_legal_is_told_step_by_step(ledger):
    found, members = ledger.audited(), ledger.members
    assert found.violations == []
    told = [(one["what"], one.get("member"), one.get("vote"), one.get("state")) for one in found.events]
    assert told == [
        ("founded", None, None, None),
        ("opened", None, None, None),
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
        (tables.SERVICE_INFO, tables.SINGLETON, tables.row({"status": "Open", "cert": OTHER}))
    ],
    "a row of a table that there is not": lambda rows: [*rows, ("public:no.such", b"", b"x")],
    "a removal of something that is not there": lambda rows: [*rows, (tables.USERS_CERTS, b"x", None)],
    "a sealed part beside a request": lambda rows: [*rows, ("private", b"", b"x")],
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
    entry = ledger.entries[VOTE - 1]
    ledger.rewrite(VOTE, replace(entry, rows=tuple(forge(list(entry.rows)))))
    found = ledger.audited()
    assert found.violations and found.violations[0]["seqno"] == VOTE, found.violations


def test_a_vote_that_the_rules_did_not_accept_is_seen_though_everything_is_signed(tmp_path):
    """Rules that say Open, and a primary that says Accepted: as only one with other code could write it."""
    ledger = Consortium(tmp_path, "unanimous")
    ledger.found()
    made = ledger.propose(ledger.members[0], action("set_user", cert=ledger.participants[1].pem))
    ledger.vote(ledger.members[0], made)
    ledger.rows[tables.CONSTITUTION, tables.SINGLETON] = tables.row(constitutions.text("majority"))
    assert ledger.vote(ledger.members[1], made)["proposalState"] == "Accepted"
    ledger.sign()
    (found,) = ledger.audited().violations
    assert found["why"].endswith("(audit.other_effect)")


def _wanted(ledger: Consortium) -> None:
    ledger.found()
    ledger.decide(action("rotate_service_identity"))


def test_J9_a_succession_is_told_step_by_step(tmp_path):
    ledger = Consortium(tmp_path)
    _wanted(ledger)
    document = ledger.announce()
    for member in ledger.members[:2]:
        ledger.state(member, document)
    ledger.succeed(document)
    ledger.sign()
    found = ledger.audited()
    assert found.violations == []
    told = [one["what"] for one in found.events][-4:]
    assert told == ["identity_announced", "identity_statement", "identity_statement", "identity_changed"]


def _unasked(ledger: Consortium) -> None:
    ledger.found()
    ledger.announce()


def _too_few(ledger: Consortium) -> None:
    _wanted(ledger)
    document = ledger.announce()
    ledger.state(ledger.members[0], document)
    ledger.succeed(document)


def _twice_by_one(ledger: Consortium) -> None:
    _wanted(ledger)
    document = ledger.announce()
    ledger.state(ledger.members[0], document)
    ((table, key, body),) = ledger.entries[-1].rows
    ledger.write([(table, key[:8] + ledger.members[1].id.encode(), body)])
    ledger.succeed(document)


def _another_key(ledger: Consortium) -> None:
    _wanted(ledger)
    document = ledger.announce()
    for member in ledger.members[:2]:
        ledger.state(member, document)
    other = ServiceIdentity.generate(1000 * ledger.now_s)
    ledger.keys.services[pem(other.certificate)] = other
    ledger.succeed({**document, "next": pem(other.certificate)})


def _elsewhere(ledger: Consortium) -> None:
    _wanted(ledger)
    ledger.announce(root="00" * 32)


def _dropped(ledger: Consortium) -> None:
    _wanted(ledger)
    ledger.announce()
    ledger.write([(tables.SUCCESSION, tables.SINGLETON, None)])


@pytest.mark.parametrize("forged", [_unasked, _too_few, _twice_by_one, _another_key, _elsewhere, _dropped])
def test_J9_an_identity_that_members_have_not_stated_is_seen(tmp_path, forged):
    ledger = Consortium(tmp_path)
    forged(ledger)
    assert ledger.audited().violations, "this is legal"
