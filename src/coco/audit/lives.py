"""How the service is founded, becomes another and begins another life: who must have said so, word for word (J7)."""

from __future__ import annotations

import json
from hashlib import sha256
from typing import Any

from coco.audit import certificates, former, membership, secrets
from coco.audit.rows import Written, document, illegal
from coco.audit.state import OPEN, OPENING, RECOVERING, WAITING, Life, State, spki
from coco.configuration import nodes, succession
from coco.configuration.actions.service import ADAPTER_ACCEPTED, ADAPTER_RUNNING
from coco.configuration.actors import signed_by_its_own_key
from coco.configuration.draft import ACTIVE
from coco.configuration.genesis import Genesis
from coco.configuration.share_holders import share_holders
from coco.crypto.certificates import CERTIFICATE_DAYS
from coco.ledger import tables
from coco.ledger.statements import IDENTITY_STATEMENT, identity_payload, parse_json

#: A node's RSA key encrypts a key, under which the service's key is sealed.
_SEALED_KEY_BYTES_MIN = 256
_DIGEST_BYTES = 32


def _fresh(state: State, certificate: str) -> bytes:
    """Key of an identity that the service never had."""
    certificates.check_service(certificates.parse(certificate), CERTIFICATE_DAYS)
    key = spki(certificate)
    if sha256(key).digest() in state.identities:
        raise illegal("the service has had this key already", "service")
    return key


# --- the beginning ---


def founding(state: State, written: Written) -> None:
    """The first entry: what the genesis says, the first node, the first secret."""
    if written.seqno != 1:
        raise illegal("a service is founded once", "founding")
    body = written.take(tables.GENESIS)
    genesis = Genesis.parse(body)
    expected = {(table, key): value for table, key, value in genesis.rows(body)}
    if state.by_former:
        config = (tables.SERVICE_CONFIG, tables.SINGLETON)
        expected[config] = former.first_settings(expected[config])
    for (table, key), value in expected.items():
        if table != tables.GENESIS:
            written.expect(table, key, value)
    info = document(written.take(tables.SERVICE_INFO), "the service's row")
    if info != {"status": OPENING, "cert": info["cert"], "recovery_count": 0}:
        raise illegal("the service is founded otherwise", "service")
    _fresh(state, info["cert"])
    following = state.rows.copy()
    following.apply(written.changes)
    secrets.take_first(state, written, share_holders(following), 1)
    names = written.keys(tables.NODES_INFO)
    if len(names) != 1:
        raise illegal("one node founds a service", "node")
    membership.take_founder(state, written, names[0].decode(), 1, certificates.parse(info["cert"]))
    state.event(1, "founded", genesis=sha256(body).hexdigest())


def opening(state: State, written: Written) -> None:
    """A service opens without a vote, where its genesis lets it."""
    if state.status != OPENING or state.rows.document(tables.GENESIS).get("opens_by_vote"):
        raise illegal(f"the service went from {state.status} to {OPEN}", "service")
    _only_status(state, written, OPEN)
    state.event(written.seqno, "opened")


def _only_status(state: State, written: Written, status: str) -> None:
    written.expect(tables.SERVICE_INFO, tables.SINGLETON, tables.row({**state.service, "status": status}))


def adapter(state: State, written: Written) -> None:
    """An adapter that members voted in begins."""
    names = written.keys(tables.ADAPTERS)
    if len(names) != 1:
        raise illegal("one adapter begins at a time", "adapter")
    before = state.rows.document(tables.ADAPTERS, names[0])
    if before.get("status") != ADAPTER_ACCEPTED:
        raise illegal("an adapter began that was not accepted", "adapter")
    written.expect(tables.ADAPTERS, names[0], tables.row({**before, "status": ADAPTER_RUNNING}))
    state.event(written.seqno, "adapter_began", adapter=names[0].decode())


def snapshot(state: State, written: Written) -> None:
    """A snapshot is named."""
    row = document(written.take(tables.SNAPSHOT_EVIDENCE), "a snapshot's evidence")
    before = state.rows.document(tables.SNAPSHOT_EVIDENCE).get("seqno", 1)
    at, digest = row.get("seqno"), row.get("digest")
    right = row.keys() == {"seqno", "digest"} and isinstance(at, int) and not isinstance(at, bool)
    if not right or not before <= at < written.seqno:  # type: ignore[operator]
        raise illegal("a snapshot is of no entry before it", "snapshot")
    if not isinstance(digest, str) or bytes.fromhex(digest).hex() != digest or len(digest) != 2 * _DIGEST_BYTES:
        raise illegal("a snapshot has no digest", "snapshot")


# --- another identity, by vote ---


def announcement(state: State, written: Written) -> None:
    """The identity that members wanted is announced."""
    before, seqno = succession.current(state.rows), written.seqno
    row = document(written.take(tables.SUCCESSION), "an announcement")
    if before is None or before["status"] != succession.WANTED:
        raise illegal("an identity was announced that nobody asked for", "service")
    expected = {
        "status": succession.ANNOUNCED,
        "number": seqno,
        "previous": state.service["cert"],
        "next": row["next"],
        "transaction_id": state.position(seqno - 1),
        "root": state.tree.root(seqno - 1).hex(),
        "keys": row["keys"],
    }
    if row != expected:
        raise illegal("an identity was announced otherwise than one is", "service")
    key = _fresh(state, row["next"])
    known = {node for node, sealed_to in state.draft.node_keys().items() if sealed_to}
    if row["keys"].keys() != known:
        raise illegal("the announced key is sealed to other nodes than are trusted", "secret")
    for sealed in row["keys"].values():
        found = bytes.fromhex(sealed)
        if found.hex() != sealed or len(found) <= _SEALED_KEY_BYTES_MIN:
            raise illegal("the announced key is sealed otherwise", "secret")
    state.identities.add(sha256(key).digest())
    state.event(seqno, "identity_announced")


def statement(state: State, written: Written) -> None:
    """A member states that one identity of the service continues another."""
    keys = written.keys(tables.IDENTITY_STATEMENTS)
    if len(keys) != 1:
        raise illegal("one statement at a time", "service")
    body = written.take(tables.IDENTITY_STATEMENTS, keys[0])
    if state.status == OPEN or state.status == OPENING:
        if succession.statement_row(state.rows, body) != (tables.IDENTITY_STATEMENTS, keys[0], body):
            raise illegal("a statement is filed under another one's", "service")
        member = keys[0][8:].decode()
    else:
        life = _waiting(state)
        member, payload = signed_by_its_own_key(body, IDENTITY_STATEMENT, state.rows)
        if keys[0] != life.count.to_bytes(8, "big") + member.encode():
            raise illegal("a statement is filed under another one's", "service")
        if parse_json(payload) != identity_payload(life.former, life.following, life.position, life.root):
            raise illegal("a statement is about something else than this recovery", "service")
    state.event(written.seqno, "identity_statement", member=member)


def succeeded(state: State, written: Written) -> None:
    """The announced identity becomes the service's."""
    found = succession.current(state.rows)
    if found is None or not succession.is_stated(state.rows):
        raise illegal("too few members stated the new identity", "service")
    info = tables.row(succession.succeeded(found, state.service, written.seqno))
    written.expect(tables.SERVICE_INFO, tables.SINGLETON, info)
    written.take_removed(tables.SUCCESSION)
    following = certificates.parse(found["next"])
    for one in nodes.rows(state.rows):
        known = state.rows.get(tables.NODE_CERTIFICATES, one.node_id.encode()) is not None
        if one.status == nodes.TRUSTED and known:
            wanted = certificates.validity(state, one.node_id)
            row = state.node(one.node_id)
            certificates.take(state, written, one.node_id, row, service=following, wanted=wanted)
    draft = state.draft
    secrets.take_epoch(state, written, draft.share_holders(), draft.node_keys())
    state.event(written.seqno, "identity_changed")


# --- another life ---


def recovery(state: State, written: Written) -> None:
    """A node begins another life of the service, after all others were lost."""
    seqno, before = written.seqno, state.service
    if not state.is_governed() or state.last_signature != seqno - 1 or written.view <= state.view_at(seqno - 1):
        raise illegal("a recovery begins at another place than behind a signature", "service")
    info = document(written.take(tables.SERVICE_INFO), "the service's row")
    key = _fresh(state, info["cert"])
    count = int(before.get("recovery_count", 0)) + 1
    expected = {
        "status": RECOVERING,
        "cert": info["cert"],
        "recovery_count": count,
        "previous_service_identity": before["cert"],
        "since": seqno,
    }
    if info != expected:
        raise illegal("a recovery continues another service, or another place", "service")
    # Its host's clock may be right where the former ones' was wrong; the operator has said so (H5).
    state.time_s = state.issued_s = 0
    known = nodes.rows(state.rows)
    for one in known:
        if one.status == nodes.TRUSTED:
            row = {**state.node(one.node_id), "status": nodes.RETIRED, "retired_committed": True}
            written.expect(tables.NODES_INFO, one.node_id.encode(), tables.row(row))
    if succession.current(state.rows) is not None:
        written.take_removed(tables.SUCCESSION)
    names = written.keys(tables.NODES_INFO)
    if len(names) != 1:
        raise illegal("one node recovers a service", "node")
    engine = max((*state.engines, *(one.engine for one in known)), default=0) + 1
    membership.take_founder(state, written, names[0].decode(), engine, certificates.parse(info["cert"]))
    root = state.tree.root(seqno - 1).hex()
    state.life = Life(seqno, count, spki(before["cert"]), key, state.position(seqno - 1), root)
    state.event(seqno, "recovering")


def waiting(state: State, written: Written) -> None:
    """The node that recovers waits for members."""
    if state.status != RECOVERING:
        raise illegal(f"the service went from {state.status} to {WAITING}", "service")
    _only_status(state, written, WAITING)


def _waiting(state: State) -> Life:
    if state.status != WAITING or state.life is None:
        raise illegal("the service is not being recovered", "service")
    return state.life


def _stated(state: State) -> tuple[Life, int]:
    """This life, and how many of its members stated it: each statement was judged when it came."""
    life = _waiting(state)
    members = [json.loads(row) for _, row in state.rows.scan(tables.MEMBERS_INFO)]
    active = sum(1 for info in members if info.get("status") == ACTIVE)
    stated = sum(1 for _ in state.rows.scan(tables.IDENTITY_STATEMENTS, life.count.to_bytes(8, "big")))
    if 2 * stated <= active:
        raise illegal("too few members stated the new identity", "service")
    return life, stated


def keeping(state: State, written: Written) -> None:
    """Shares have opened the former secrets: they are kept under this life's."""
    life, _ = _stated(state)
    if state.secret() >= life.began:
        raise illegal("the secret of this life is kept already", "secret")
    secrets.take_former(state, written)
    secrets.take_first(state, written, share_holders(state.rows), life.began)


def recovered(state: State, written: Written) -> None:
    """The recovered service opens."""
    life, stated = _stated(state)
    if state.secret() != life.began:
        raise illegal("the service opens with the secret of a former life", "secret")
    _only_status(state, written, OPEN)
    state.event(written.seqno, "recovered", statements=stated)


def status_of(written: Written) -> tuple[str, dict[str, Any]]:
    """Status and whole row of the service, as an entry writes it."""
    info = document(written.value(tables.SERVICE_INFO), "the service's row")
    return str(info.get("status")), info
