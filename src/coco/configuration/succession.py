"""The row that says how far the service is on its way to another identity, and members' statements about it. Sans-I/O.

The row is absent, or its status is ``Wanted`` (voted), then ``Announced`` (the new certificate is known). A node that
members remove meanwhile may know the announced key: it goes back to ``Wanted``, for yet another key.
"""

from __future__ import annotations

import json
from typing import Any

from coco.configuration.actors import signed_by_its_own_key
from coco.configuration.draft import ACTIVE, Draft
from coco.configuration.reads import Gets, Reads
from coco.errors import GovernanceError, RequestError
from coco.ledger import tables
from coco.ledger.statements import IDENTITY_STATEMENT, identity_payload, parse_json, spki_of

WANTED, ANNOUNCED = "Wanted", "Announced"
#: Keys of statements about a recovery begin with its count, those about a succession with its entry and this bit.
_NUMBERED = 1 << 63


def current(view: Gets) -> dict[str, Any] | None:
    """The row; None when the identity stays."""
    row = view.get(tables.SUCCESSION, tables.SINGLETON)
    found: dict[str, Any] | None = json.loads(row) if row is not None else None
    return found


def since(info: bytes | None) -> int:
    """The entry from which on the service has had its key, as the service's row says."""
    return int(json.loads(info or b"{}").get("since", 0))


def succeeded(found: dict[str, Any], info: dict[str, Any], seqno: int) -> dict[str, Any]:
    """The service's row once the announced identity is the service's, from entry ``seqno`` on."""
    return {**info, "cert": found["next"], "previous_service_identity": found["previous"], "since": seqno}


def want(draft: Draft) -> None:
    """Ask for another identity; whatever was announced counts no more."""
    draft.put(tables.SUCCESSION, tables.SINGLETON, tables.row({"status": WANTED}))


def somebody_left(draft: Draft) -> None:
    """Members removed a node, which may know the key that is announced."""
    if current(draft) is not None:
        want(draft)


def payload(found: dict[str, Any]) -> dict[str, Any]:
    """What members state about an announced identity (J7)."""
    return identity_payload(
        spki_of(found["previous"]), spki_of(found["next"]), found["transaction_id"], found["root"], goes_on=True
    )


def statement_row(view: Reads, body: bytes) -> tuple[str, bytes, bytes | None]:
    """The row of a member's statement.

    Args:
        view: what is committed.
        body: the COSE message.

    Raises:
        CocoError: no active member signed it; no identity is announced (``gov.no_succession``); or it is about
            something else (``gov.other_statement``).
    """
    member, stated = signed_by_its_own_key(body, IDENTITY_STATEMENT, view)
    found = current(view)
    if found is None or found["status"] != ANNOUNCED:
        raise GovernanceError("no new identity of the service is announced", code="gov.no_succession")
    try:
        right = parse_json(stated) == payload(found)
    except ValueError:
        right = False
    if not right:
        raise RequestError("the statement is about something else", code="gov.other_statement")
    return tables.IDENTITY_STATEMENTS, _prefix(found) + member.encode(), body


def stated_by(view: Reads) -> list[str]:
    """Active members who have stated the announced identity."""
    found = current(view)
    if found is None or found["status"] != ANNOUNCED:
        return []
    active = {name for name, info in Draft(view).members().items() if info["status"] == ACTIVE}
    signers = {key[8:].decode() for key, _ in view.scan(tables.IDENTITY_STATEMENTS, _prefix(found))}
    return sorted(active & signers)


def is_stated(view: Reads) -> bool:
    """Whether a majority of the active members has stated it."""
    if current(view) is None:
        return False
    active = sum(1 for info in Draft(view).members().values() if info["status"] == ACTIVE)
    return 2 * len(stated_by(view)) > active


def _prefix(found: dict[str, Any]) -> bytes:
    return (_NUMBERED | int(found["number"])).to_bytes(8, "big")
