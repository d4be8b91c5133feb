"""Nodes that come, stay and leave: what each entry about them must be proven by (J1-J5, H6).

Evidence is judged again by the code that nodes run, of platform ``virtual`` too: nobody vouches for that one, but it
names a key, a service, a start and code like every other.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from typing import Any

from cryptography import x509

from coco import limits
from coco.attestation import policy
from coco.attestation.evidence import VIRTUAL, Evidence, report_data
from coco.attestation.verified import Verified
from coco.audit import certificates, secrets
from coco.audit.rows import Written, document, illegal
from coco.audit.state import State
from coco.configuration import nodes, platforms
from coco.configuration.draft import Validity
from coco.crypto import cose
from coco.crypto.certificates import NODE_CERTIFICATE_DAYS
from coco.ledger import tables
from coco.ledger.statements import NODE_STATEMENT, RETIRE_STATEMENT, node_payload, retire_payload

_EVIDENCE = ("platform", "evidence", "endorsements")
_DIGEST_BYTES = 32


def evidence_of(row: Mapping[str, Any]) -> dict[str, str]:
    """The evidence in a row, as the node sent it.

    Raises:
        ConfigurationError: it is not as a node writes it (``audit.evidence``).
        AttestationError: it is none.
    """
    said = row["quote_info"]
    found = {name: said[name] for name in _EVIDENCE}
    if said != {"format": found["platform"], **found}:
        raise illegal("a node's evidence is not as a node writes it", "evidence")
    Evidence.parse(found)
    return found


def judged(node_id: str, row: Mapping[str, Any], context: Mapping[str, bytes], time_s: int) -> Verified:
    """What the evidence in a row proves, if that is for this node and context.

    Raises:
        AttestationError: it proves nothing, or something else.
    """
    verified = Evidence.parse(evidence_of(row)).verify(now_s=time_s)
    bound = report_data(b"", **context)[_DIGEST_BYTES:]
    policy.check_report_data(verified, bytes.fromhex(node_id) + bound)
    return verified


def _context(row: Mapping[str, Any], names: set[str]) -> dict[str, bytes]:
    found = {name: bytes.fromhex(value) for name, value in row["report_context"].items()}
    if found.keys() != names or len(found["configuration"]) != _DIGEST_BYTES:
        raise illegal("a node's evidence is bound to something else than a node binds it to", "evidence")
    return found


# --- a node that begins a life of the service ---


def take_founder(state: State, written: Written, node_id: str, engine: int, service: x509.Certificate) -> None:
    """Take the rows of the node that begins a life: its own, its certificate, and its code.

    Raises:
        CocoError: they are not what such a node writes.
    """
    value = written.take(tables.NODES_INFO, node_id.encode())
    row = document(value, "a node's row")
    key = cose.spki(service.public_key())  # type: ignore[arg-type]
    context = _context(row, {"service", "configuration"})
    if context["service"] != key:
        raise illegal("a node's evidence is for another service", "evidence")
    wanted = Validity(None, NODE_CERTIFICATE_DAYS)
    found = certificates.take(state, written, node_id, row, service=service, wanted=wanted)
    verified = judged(node_id, row, context, certificates.issued_at_s(found))
    expected = nodes.row_document(
        engine=engine,
        status=nodes.TRUSTED,
        address=row["peer_address"],
        owner="",
        evidence=evidence_of(row),
        verified=verified,
        context=context,
        encryption_key=row["encryption_pub_key"],
        seqno=written.seqno,
        host_names=row["host_names"],
    )
    if row != expected or node_id in state.trusted:
        raise illegal("the node that begins is not as one begins", "node")
    code = platforms.code_row(verified)
    if code is not None:
        written.expect(*code)
    following = state.rows.copy()
    following.apply(written.changes)
    if verified.platform != VIRTUAL:
        policy.enforce(verified, platforms.policy(following))
    elif not following.document(tables.GENESIS).get("insecure_virtual"):
        raise illegal("this network does not accept platform virtual", "evidence")


# --- admission ---


async def admission(state: State, written: Written) -> None:
    """A node comes: trusted, because its operator signed for it and the rules ask no more; or pending."""
    (key,) = written.keys(tables.NODES_INFO)
    node_id, value = key.decode(), written.take(tables.NODES_INFO, key)
    row = document(value, "a node's row")
    status = row["status"]
    if status not in (nodes.TRUSTED, nodes.PENDING):
        raise illegal(f"a node began as {status}", "node")
    context = _context(row, {"encryption_key", "service", "configuration"})
    if context["service"] != state.service_key or context["encryption_key"] != row["encryption_pub_key"].encode():
        raise illegal("a node's evidence is for another service or key", "evidence")
    time_s = state.time_s
    if status == nodes.TRUSTED:
        wanted = certificates.validity(state, node_id)
        time_s = certificates.issued_at_s(certificates.take(state, written, node_id, row, wanted=wanted))
    else:
        # Of one that waits nothing says when it came, but the signatures before and after.
        with contextlib.suppress(KeyError, TypeError, ValueError):
            time_s = max(time_s, int(row["verified"]["valid_from_s"]))
            state.issued_s = max(state.issued_s, time_s)
    verified = judged(node_id, row, context, time_s)
    policy.enforce(verified, platforms.policy(state.rows))
    expected = nodes.row_document(
        engine=row["engine"],
        status=status,
        address=row["peer_address"],
        owner=row["owner"],
        evidence=evidence_of(row),
        verified=verified,
        context=context,
        encryption_key=row["encryption_pub_key"],
        seqno=row["ledger_secret_seqno"],
        host_names=row["host_names"],
        statement=bytes.fromhex(row["owner_statement"]),
    )
    if row != expected:
        raise illegal("a node's row says something else than its evidence", "evidence")
    _check_numbers(state, node_id, row, written.seqno)
    await _check_owner(state, node_id, row)
    state.event(written.seqno, "node_" + status.lower(), node=node_id, owner=row["owner"])


def _check_numbers(state: State, node_id: str, row: Mapping[str, Any], seqno: int) -> None:
    engine, first = row["engine"], row["ledger_secret_seqno"]
    if not all(isinstance(one, int) and not isinstance(one, bool) for one in (engine, first)):
        raise illegal("a node's row has no numbers where it should", "node")
    known = nodes.rows(state.rows)
    most = max((*state.engines, *(one.engine for one in known)), default=0) + 1
    if node_id in state.trusted or engine in state.engines or not nodes.next_engine(state.rows) <= engine <= most:
        raise illegal("a node has an id that another one has had", "engine")
    if not 0 < first <= seqno:
        raise illegal("a node joined at a place that there is not", "node")
    most = limits.NODES_MAX if row["status"] == nodes.TRUSTED else limits.PENDING_NODES_MAX
    if sum(one.status == row["status"] for one in known) >= most:
        raise illegal("there are more nodes than there may be", "node")


async def _check_owner(state: State, node_id: str, row: Mapping[str, Any]) -> None:
    statement = bytes.fromhex(row["owner_statement"])
    if not statement:
        if row["status"] == nodes.TRUSTED or row["owner"]:
            raise illegal("a node was admitted that no operator signed for", "node")
        return
    more: dict[str, str] = {}
    by_rule = True
    if not state.by_former:
        more, by_rule = nodes.returning(state.rows, row["peer_address"], statement)
    expected = node_payload(
        network=state.network,
        service=state.service_name,
        constitution=state.rules_hash,
        node_id=node_id,
        address=row["peer_address"],
        measurement=row["measurement"],
        host_names=row["host_names"],
        expires_s=0,
        **more,
    )
    owner = nodes.check_owner(
        state.rows,
        statement,
        expected,
        kind=NODE_STATEMENT,
        address=row["peer_address"],
        time_s=state.time_s - limits.AUDIT_SKEW_SECONDS,
    )
    if owner != row["owner"]:
        raise illegal("a node is another operator's than its row says", "node")
    asked = nodes.admission(
        nodes.rows(state.rows),
        address=row["peer_address"],
        owner=owner,
        measurement=row["measurement"],
        host_names=row["host_names"],
    )
    if row["status"] == nodes.TRUSTED and not (by_rule and await state.proposals.admits(asked, state.rows)):
        raise illegal("the rules ask for a vote about this node", "node")


# --- certificates and evidence ---


def endorsement(state: State, written: Written) -> None:
    """A node that members trusted gets its first certificate."""
    (key,) = written.keys(tables.NODE_CERTIFICATES)
    node_id = key.decode()
    if not state.is_trusted(node_id):
        raise illegal("a node has a certificate that is not trusted", "certificate")
    certificates.take(state, written, node_id, state.node(node_id), wanted=certificates.validity(state, node_id))


def renewal(state: State, written: Written) -> None:
    """Certificates that end soon are renewed."""
    for key in written.keys(tables.NODE_CERTIFICATES):
        node_id = key.decode()
        before = certificates.parse(state.rows.get(tables.NODE_CERTIFICATES, key) or b"")
        if not state.is_trusted(node_id):
            raise illegal("the certificate of a node was renewed that is not trusted", "certificate")
        wanted = Validity(None, certificates.validity(state, node_id).days)
        after = certificates.take(state, written, node_id, state.node(node_id), wanted=wanted)
        certificates.check_due(before, after)
    state.event(written.seqno, "certificates_renewed")


def newer_evidence(state: State, written: Written) -> None:
    """Newer evidence proves the same of the same node; it is judged when it was taken."""
    (key,) = written.keys(tables.NODES_INFO)
    node_id, before = key.decode(), state.node(key.decode())
    row = document(written.take(tables.NODES_INFO, key), "a node's row")
    if before["status"] != nodes.TRUSTED or {**before, **_proof(row)} != row:
        changed = sorted(name for name in {*before, *row} if before.get(name) != row.get(name))
        raise illegal(f"a node changed {', '.join(changed)[:200]}", "node")
    found = certificates.take(state, written, node_id, row, wanted=certificates.validity(state, node_id))
    spki = cose.spki(found.public_key())  # type: ignore[arg-type]
    if nodes.renewed(before, evidence_of(row), spki, now_s=certificates.issued_at_s(found)) != row:
        raise illegal("a node's evidence proves something else than its row says", "evidence")
    nodes.check_manifest(state.rows, Verified.from_json(row["verified"]))
    state.event(written.seqno, "node_evidence_renewed", node=node_id)


def _proof(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in ("quote_info", "verified")}


# --- leaving ---


def retirement(state: State, written: Written) -> None:
    """A node leaves by its operator's word, or because a newer one took its place."""
    (key,) = (key for key in written.keys(tables.NODES_INFO) if written.value(tables.NODES_INFO, key) is not None)
    node_id, before = key.decode(), state.node(key.decode())
    row = document(written.take(tables.NODES_INFO, key), "a node's row")
    statement = row.get("retire_statement", "")
    expected = {**before, "status": nodes.RETIRED, "retired_committed": not statement}
    if statement:
        expected["retire_statement"] = statement
    if before["status"] != nodes.TRUSTED or row != expected:
        raise illegal("a node left otherwise than one leaves", "node")
    if statement:
        payload = retire_payload(network=state.network, service=state.service_name, node_id=node_id, expires_s=0)
        nodes.check_owner(
            state.rows,
            bytes.fromhex(statement),
            payload,
            kind=RETIRE_STATEMENT,
            address=row["peer_address"],
            time_s=state.time_s - limits.AUDIT_SKEW_SECONDS,
        )
    else:
        others = [one for one in nodes.rows(state.rows) if one.status == nodes.TRUSTED]
        if not any(one.address == row["peer_address"] and one.engine > row["engine"] for one in others):
            raise illegal("a node left, though nobody said so and none replaced it", "node")
        # Former ones at its address go with it, all of them; what an earlier version wrote has none of this.
        gone = nodes.superseded(state.rows, row) if len(written.changes) > 2 else ()
        for old in gone:
            written.take_removed(tables.NODES_INFO, old)
            if state.rows.get(tables.NODE_CERTIFICATES, old) is not None:
                written.take_removed(tables.NODE_CERTIFICATES, old)
    state.event(written.seqno, "node_retired", node=node_id)


def epoch(state: State, written: Written) -> None:
    """Another ledger secret: nodes have left that knew the last one, or it is old."""
    left = 0
    for key, value in state.rows.scan(tables.NODES_INFO):
        row = json.loads(value)
        if row["status"] == nodes.RETIRED and not row.get("retired_committed"):
            left += 1
            written.expect(tables.NODES_INFO, key, tables.row({**row, "retired_committed": True}))
    draft = state.draft
    began_ms = secrets.take_epoch(state, written, draft.share_holders(), draft.node_keys())
    if not left and not secrets.epoch_is_old(state, began_ms):
        raise illegal("an epoch began that was not due", "secret")
    state.event(written.seqno, "epoch_began", left=left)
