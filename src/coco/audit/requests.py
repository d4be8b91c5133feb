"""Requests of members: each is judged again by the code that nodes run, and must give the very same rows."""

from __future__ import annotations

import json
from hashlib import sha256
from typing import Any

from coco.audit import certificates, secrets
from coco.audit.rows import Written, document, illegal
from coco.audit.state import State, spki
from coco.configuration import nodes
from coco.configuration.proposals import Change
from coco.crypto import cose
from coco.ledger import tables
from coco.ledger.statements import MESSAGE_TYPE, PROPOSAL_ID

#: How far before an entry the root lies that its request was judged with: other entries may have come in between.
_ROOTS = 5_000


async def request(state: State, written: Written) -> None:
    """One request of one member.

    Raises:
        CocoError: the rules do not take it, or give something else.
    """
    if not state.is_governed():
        raise illegal("members do not govern while the service is being recovered", "request")
    members = written.keys(tables.COSE_HISTORY)
    body = written.value(tables.COSE_HISTORY, members[0])
    if len(members) != 1 or body is None:
        raise illegal("an entry has one request", "not_one_request")
    message = cose.parse(body)
    kind, proposal = str(message.headers.get(MESSAGE_TYPE)), str(message.headers.get(PROPOSAL_ID, ""))
    change = await _judged(state, written, kind, proposal, body)
    _take(state, written, change)
    told: dict[str, Any] = {"member": members[0].decode()}
    answer = change.answer
    if "proposalId" in answer:
        told |= {"proposal": answer["proposalId"], "state": answer["proposalState"]}
    if kind == "ballot":
        told["vote"] = json.loads(message.payload or b"{}").get("vote")
    if kind == "proposal":
        told["actions"] = json.loads(message.payload or b"{}")["actions"]
    state.event(written.seqno, kind, **told)


async def _judged(state: State, written: Written, kind: str, proposal: str, body: bytes) -> Change:
    rows, proposals = state.rows, state.proposals
    if state.by_former and state.former_proposals is not None:
        proposals = state.former_proposals
    match kind:
        case "proposal":
            made = written.keys(tables.PROPOSALS)
            if len(made) != 1:
                raise illegal("a proposal is made in an entry of its own", "other_effect")
            return await proposals.create(body, rows, _root(state, written.seqno, made[0].decode(), body))
        case "ballot":
            return await proposals.vote(proposal, "", body, rows)
        case "withdrawal":
            return proposals.withdraw(proposal, body, rows)
        case "state_digest":
            (key,) = written.keys(tables.MEMBERS_ACKS)
            root = bytes.fromhex(document(written.value(tables.MEMBERS_ACKS, key))["state_digest"])
            if all(state.tree.root(leaves) != root for leaves in _lately(written.seqno)):
                raise illegal("the digest is not of this ledger", "other_effect")
            return proposals.state_digest("", body, rows, root)
        case "ack":
            return proposals.acknowledge("", body, rows)
    raise illegal(f"no node takes a {kind[:32]}", "other_effect")


def _lately(seqno: int) -> range:
    return range(seqno, max(0, seqno - _ROOTS), -1)


def _root(state: State, seqno: int, identity: str, body: bytes) -> bytes:
    """The root that makes the id of a proposal what it is; any other gives another id, and so a violation."""
    message = cose.parse(body)
    listed = json.loads(message.payload or b"{}")["actions"]
    before, after = tables.row(listed), cose.signed_digest(message).hex().encode()
    roots = (state.tree.root(leaves) for leaves in _lately(seqno))
    found = (root for root in roots if sha256(before + root + after).hexdigest() == identity)
    return next(found, bytes(32))


def _take(state: State, written: Written, change: Change) -> None:
    """Take what the rules gave, and what the primary adds to it by itself: certificates and secrets."""
    after = {(table, key): value for table, key, value in change.rows}
    for (table, key), value in after.items():
        if table != tables.SERVICE_INFO or change.renew_service is None:
            written.expect(table, key, value)
    for node_id, wanted in change.renew.items():
        name = node_id.encode()
        if state.rows.get(tables.NODE_CERTIFICATES, name) is not None:
            row = json.loads(after.get((tables.NODES_INFO, name)) or b"{}") or state.node(node_id)
            certificates.take(state, written, node_id, row, wanted=wanted)
    if change.renew_service is not None:
        _take_service(state, written, change, after.get((tables.SERVICE_INFO, tables.SINGLETON)))
    rows = [json.loads(value) for (table, _), value in after.items() if table == tables.NODES_INFO and value]
    leaves = any(row["status"] == nodes.RETIRED for row in rows)
    if change.rekey and not leaves:
        secrets.take_epoch(state, written, change.share_holders, change.node_keys)
    elif change.reshare:
        secrets.take_wrapped(written, change.share_holders, state.secret())


def _take_service(state: State, written: Written, change: Change, value: bytes | None) -> None:
    """The same identity under another certificate."""
    wanted = change.renew_service
    assert wanted is not None, "the caller has just looked"
    before = json.loads(value) if value is not None else state.service
    after = document(written.take(tables.SERVICE_INFO), "the service's row")
    found = certificates.parse(after["cert"])
    if {**before, "cert": ""} != {**after, "cert": ""} or spki(before["cert"]) != spki(after["cert"]):
        raise illegal("the service's identity changed", "other_effect")
    certificates.check_service(found, wanted.days)
    if wanted.from_s is not None and certificates.issued_at_s(found) != wanted.from_s:
        raise illegal("the service's certificate begins at another time than members have set", "certificate")
