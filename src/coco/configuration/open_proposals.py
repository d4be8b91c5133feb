"""What is open: how long, how much of it, and what becomes of the ballots of those who leave. Sans-I/O.

Rules:

* A proposal lives as long as the members have set (``proposal_lifetime_s``), counted from the time that it names. It
  has ended when a later request names a time after that; nobody's clock ends it.
* Each member has at most so many open at once: one cannot fill the ledger, nor everybody's list.
* A member who leaves takes its ballots along. What it signed before that counts no more, also once it is back: the
  message lies in the ledger, where anyone finds it and sends it again.
"""

from __future__ import annotations

import json
from collections.abc import Set
from typing import Any

from coco import limits
from coco.configuration import settings
from coco.configuration.draft import Draft
from coco.configuration.reads import Gets
from coco.crypto import cose
from coco.errors import GovernanceError
from coco.ledger import tables
from coco.ledger.statements import CREATED_AT

OPEN, DROPPED = "Open", "Dropped"
#: In a proposal's row: members who left, and the time up to which their ballots about it are void.
_VOID = "void_ballots"


def opened(draft: Draft) -> list[str]:
    """Ids of the open proposals, in order."""
    return [
        key.decode() for key, value in draft.scan(tables.PROPOSALS_INFO).items() if json.loads(value)["state"] == OPEN
    ]


def ends_s(rows: Gets, info: dict[str, Any]) -> int:
    """The last second of a proposal's life."""
    return int(info["created_at"]) + int(settings.in_force(rows)["proposal_lifetime_s"])


def expire(draft: Draft, at_s: int) -> None:
    """Drop what has ended.

    A message may name a time that is ahead by a bound; by so much everything else lives longer.
    """
    for name in opened(draft):
        info = _info(draft, name)
        if ends_s(draft, info) + limits.MESSAGE_AHEAD_SECONDS_MAX < at_s:
            why = {"reason": "it was not decided in time", "code": "gov.proposal_expired"}
            _save(draft, name, {**info, "state": DROPPED, "failure": why})


def check_room(draft: Draft, member: str) -> None:
    """Whether a member may propose more.

    Raises:
        GovernanceError: it has as many open proposals as it may have (``gov.too_many_proposals``).
    """
    own = [name for name in opened(draft) if _info(draft, name)["proposer_id"] == member]
    if len(own) >= limits.OPEN_PROPOSALS_MAX:
        raise GovernanceError(
            f"this member has {len(own)} open proposals, and may have {limits.OPEN_PROPOSALS_MAX}",
            code="gov.too_many_proposals",
            hint="withdraw one, or have one decided",
        )


def check_ballot(draft: Draft, info: dict[str, Any], member: str, at_s: int) -> None:
    """Whether a ballot of this time may count.

    Raises:
        GovernanceError: the proposal has expired (``gov.proposal_expired``); or the member signed this before it was
            removed (``gov.ballot_void``).
    """
    if at_s > (ended_s := ends_s(draft, info)):
        raise GovernanceError(
            f"the proposal expired at {ended_s}", code="gov.proposal_expired", hint="propose it again"
        )
    if at_s <= info.get(_VOID, {}).get(member, -1):
        raise GovernanceError(
            "the member was removed after it signed this ballot", code="gov.ballot_void", hint="sign another one"
        )


def void(draft: Draft, gone: Set[str], at_s: int) -> None:
    """Members left at this time: their ballots about what is open count no more, nor does what they signed so far."""
    for name in opened(draft) if gone else ():
        info = _info(draft, name)
        ended = {member: max(at_s, _last_signed_s(draft, member)) for member in gone}
        ballots = {member: ballot for member, ballot in info["ballots"].items() if member not in gone}
        _save(draft, name, {**info, "ballots": ballots, _VOID: {**info.get(_VOID, {}), **ended}})


def _last_signed_s(draft: Draft, member: str) -> int:
    """The time that a member's last message names; it may be ahead of the network's."""
    body = draft.get(tables.COSE_HISTORY, member.encode())
    return int(cose.parse(body).headers.get(CREATED_AT, 0)) if body is not None else 0


def _info(draft: Draft, name: str) -> dict[str, Any]:
    return draft.document(tables.PROPOSALS_INFO, name.encode()) or {}


def _save(draft: Draft, name: str, info: dict[str, Any]) -> None:
    draft.put(tables.PROPOSALS_INFO, name.encode(), tables.row(info))
