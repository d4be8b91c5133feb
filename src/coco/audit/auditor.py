"""Judges a ledger's governance again: who proposed and voted what, under which rules, and whether that was all.

Rules:

* Every change of a table of governance is the effect of one member's signed request, which the ledger holds, under the
  rules that were in force, which it holds too; the request is judged again by the code that nodes run, and must give
  the very same rows. Nothing else is believed, no node and no host.
* What the framework may write by itself is listed here, and checked for what proves it: nodes that operators signed
  for, certificates that the service issued, a recovery that members stated.
* Whatever is left is a violation, named with its entry.

The ledger's own signatures are another matter (``coco.ledger.replay``), and come first.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec

from coco._native import MerkleTree, WriteSet
from coco.attestation.verified import Verified
from coco.enclave.configuration import nodes, platforms, succession
from coco.enclave.configuration.actions.service import ADAPTER_ACCEPTED, ADAPTER_RUNNING
from coco.enclave.configuration.genesis import Genesis
from coco.enclave.configuration.proposals import CallRules, Change, Proposals, signed_by_member
from coco.errors import CocoError, ConfigurationError
from coco.ledger import cose, tables
from coco.ledger.position import Position
from coco.ledger.statements import (
    IDENTITY_STATEMENT,
    MESSAGE_TYPE,
    NODE_STATEMENT,
    PROPOSAL_ID,
    RETIRE_STATEMENT,
    spki_of,
)

_GOVERNED = ("public:ccf.gov.", "public:coco.gov.")
#: How far before an entry the root lies that its request was judged with: other entries may have come in between.
_ROOTS = 5_000

Key = tuple[str, bytes]


@dataclass
class _Rows:
    """The tables of governance, as far as they were read."""

    rows: dict[Key, bytes] = field(default_factory=dict)

    def get(self, table: str, key: bytes) -> bytes | None:
        return self.rows.get((table, key))

    def scan(self, table: str, prefix: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        found = [(key, value) for (name, key), value in self.rows.items() if name == table and key.startswith(prefix)]
        return iter(sorted(found))

    def document(self, table: str, key: bytes = tables.SINGLETON) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.get(table, key) or b"{}")
        return found

    def apply(self, changes: dict[Key, bytes | None]) -> None:
        for key, value in changes.items():
            if value is None:
                self.rows.pop(key, None)
            else:
                self.rows[key] = value


class Auditor:
    """Feed it the public writes of every entry, in order.

    Args:
        call: runs rules; whoever audits needs the same limits as nodes have.
        tree: of the ledger, which grows as entries are fed.
    """

    def __init__(self, call: CallRules, tree: MerkleTree) -> None:
        self._proposals, self._tree, self._rows = Proposals(call), tree, _Rows()
        #: What members and operators did: entry, who, what, and what became of it.
        self.events: list[dict[str, Any]] = []
        #: Entries that change what nobody was allowed to change so, and why.
        self.violations: list[dict[str, Any]] = []

    async def feed(self, seqno: int, writes: WriteSet) -> None:
        """Take the next entry, whose leaf is in the tree already."""
        changes = {
            (table, key): value
            for table in writes.tables()
            if table.startswith(_GOVERNED)
            for key, value in writes.rows(table)
        }
        if not changes:
            return
        try:
            if seqno == 1:
                self._founded(changes)
            elif any(table == tables.COSE_HISTORY for table, _ in changes):
                await self._requested(seqno, changes)
            else:
                await self._by_itself(seqno, changes)
        except CocoError as error:
            self._violates(seqno, f"{error} ({error.code})")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            self._violates(seqno, f"a row is malformed: {error}")
        self._rows.apply(changes)

    def _violates(self, seqno: int, why: str) -> None:
        self.violations.append({"seqno": seqno, "why": why})

    def _event(self, seqno: int, what: str, **more: Any) -> None:
        rules = str(json.loads(self._rows.get(tables.CONSTITUTION, tables.SINGLETON) or b'""'))
        self.events.append({"seqno": seqno, "what": what, "rules": sha256(rules.encode()).hexdigest(), **more})

    # --- the beginning ---

    def _founded(self, changes: dict[Key, bytes | None]) -> None:
        document = changes.get((tables.GENESIS, tables.SINGLETON)) or b""
        expected = {(table, key): value for table, key, value in Genesis.parse(document).rows(document)}
        expected |= _own_code(changes)
        own = {tables.NODES_INFO, tables.NODE_CERTIFICATES, tables.SERVICE_INFO}
        if {key: value for key, value in changes.items() if key[0] not in own} != expected:
            raise ConfigurationError("the first entry is not what its genesis says", code="audit.founding")
        self.events.append({"seqno": 1, "what": "founded", "genesis": sha256(document).hexdigest()})

    # --- requests of members ---

    async def _requested(self, seqno: int, changes: dict[Key, bytes | None]) -> None:
        bodies = [value for (table, _), value in changes.items() if table == tables.COSE_HISTORY and value]
        if len(bodies) != 1:
            raise ConfigurationError("more than one request in an entry", code="audit.not_one_request")
        message = cose.parse(bodies[0])
        kind, proposal = str(message.headers.get(MESSAGE_TYPE)), str(message.headers.get(PROPOSAL_ID, ""))
        change = await self._judged(seqno, kind, proposal, bodies[0], changes)
        expected = {(table, key): value for table, key, value in change.rows}
        expected |= self._renewed(change, changes)
        if expected != changes:
            where = sorted({key[0] for key in expected.keys() | changes.keys() if not _same(expected, changes, key)})
            raise ConfigurationError(f"the rules give something else in {', '.join(where)}", code="audit.other_effect")
        (member,) = (key.decode() for table, key in changes if table == tables.COSE_HISTORY)
        answer = change.answer
        more: dict[str, Any] = {"member": member}
        if "proposalId" in answer:
            more |= {"proposal": answer["proposalId"], "state": answer["proposalState"]}
        if kind == "ballot":
            more["vote"] = json.loads(message.payload or b"{}").get("vote")
        if kind == "proposal":
            more["actions"] = json.loads(message.payload or b"{}")["actions"]
        self._event(seqno, kind, **more)

    async def _judged(
        self, seqno: int, kind: str, proposal: str, body: bytes, changes: dict[Key, bytes | None]
    ) -> Change:
        rows = self._rows
        match kind:
            case "proposal":
                made = [key for table, key in changes if table == tables.PROPOSALS]
                return await self._proposals.create(body, rows, self._root(seqno, made[0].decode(), body))
            case "ballot":
                return await self._proposals.vote(proposal, "", body, rows)
            case "withdrawal":
                return self._proposals.withdraw(proposal, body, rows)
            case "state_digest":
                acks = {key: value for (table, key), value in changes.items() if table == tables.MEMBERS_ACKS}
                ((_, row),) = acks.items()
                root = bytes.fromhex(json.loads(row or b"{}")["state_digest"])
                if all(self._tree.root(leaves) != root for leaves in self._lately(seqno)):
                    raise ConfigurationError("the digest is not of this ledger", code="audit.other_effect")
                return self._proposals.state_digest("", body, rows, root)
            case "ack":
                return self._proposals.acknowledge("", body, rows)
        raise ConfigurationError(f"no node takes a {kind[:32]}", code="audit.other_effect")

    def _lately(self, seqno: int) -> range:
        return range(seqno, max(0, seqno - _ROOTS), -1)

    def _root(self, seqno: int, identity: str, body: bytes) -> bytes:
        """The root that makes the id of a proposal what it is; any other gives another id, and so a violation."""
        message = cose.parse(body)
        listed = json.loads(message.payload or b"{}")["actions"]
        before, after = tables.row(listed), cose.signed_digest(message).hex().encode()
        roots = (self._tree.root(leaves) for leaves in self._lately(seqno))
        found = (root for root in roots if sha256(before + root + after).hexdigest() == identity)
        return next(found, bytes(32))

    def _renewed(self, change: Change, changes: dict[Key, bytes | None]) -> dict[Key, bytes | None]:
        """Certificates that the accepted actions asked for: their bytes are the service's, but not what they say."""
        found: dict[Key, bytes | None] = {}
        for node_id in change.renew:
            key = (tables.NODE_CERTIFICATES, node_id.encode())
            if key in changes:
                self._check_certificate(node_id, changes[key])
                found[key] = changes[key]
        key = (tables.SERVICE_INFO, tables.SINGLETON)
        if change.renew_service is not None and key in changes:
            old = {table: value for table, _, value in change.rows}.get(key[0]) or self._rows.get(*key)
            before, after = json.loads(old or b"{}"), json.loads(changes[key] or b"{}")
            if {**before, "cert": ""} != {**after, "cert": ""} or _key(before["cert"]) != _key(after["cert"]):
                raise ConfigurationError("the service's identity changed", code="audit.other_effect")
            found[key] = changes[key]
        return found

    def _check_certificate(self, node_id: str, pem: bytes | None, identity: str | None = None) -> None:
        certificate = x509.load_pem_x509_certificate(pem or b"")
        identity = identity or self._rows.document(tables.SERVICE_INFO)["cert"]
        service = x509.load_pem_x509_certificate(str(identity).encode())
        key = certificate.public_key()
        try:
            certificate.verify_directly_issued_by(service)
        except (ValueError, TypeError, InvalidSignature) as error:
            raise ConfigurationError("a node's certificate is not the service's", code="audit.certificate") from error
        if not isinstance(key, ec.EllipticCurvePublicKey) or cose.key_id(key) != node_id:
            raise ConfigurationError("a node's certificate is another node's", code="audit.certificate")

    # --- what the framework does by itself ---

    async def _by_itself(self, seqno: int, changes: dict[Key, bytes | None]) -> None:
        recovers = self._recovers(seqno, changes)
        service = self._new_identity(seqno, changes) if not recovers else None
        own_code = _own_code(changes) if recovers else {}
        for (table, key), value in changes.items():
            if table == tables.NODES_INFO and value is not None:
                await self._node(seqno, key.decode(), json.loads(value), recovers=recovers)
            elif table == tables.NODE_CERTIFICATES and value is not None:
                if not recovers:
                    self._check_certificate(key.decode(), value, service)
            elif table == tables.IDENTITY_STATEMENTS and value is not None:
                self._statement(seqno, key, value)
            elif table == tables.SUCCESSION:
                self._succession(seqno, value, changed=service is not None, recovers=recovers)
            elif table == tables.ADAPTERS and value is not None:
                self._adapter_begins(seqno, key, json.loads(value))
            elif table == tables.SERVICE_INFO or own_code.get((table, key)) == value:
                continue  # judged by _recovers; a node that begins another life lists its own code
            else:
                raise ConfigurationError(f"{table} changed without a request", code="audit.no_request")

    def _adapter_begins(self, seqno: int, key: bytes, row: dict[str, Any]) -> None:
        before = self._rows.document(tables.ADAPTERS, key)
        if before.get("status") != ADAPTER_ACCEPTED or row != {**before, "status": ADAPTER_RUNNING}:
            raise ConfigurationError("an adapter began otherwise than it was accepted", code="audit.adapter")
        self._event(seqno, "adapter_began", adapter=key.decode())

    def _recovers(self, seqno: int, changes: dict[Key, bytes | None]) -> bool:
        """Whether the service begins another life; whatever else it says of itself must be a step that there is."""
        value = changes.get((tables.SERVICE_INFO, tables.SINGLETON))
        if value is None:
            return False
        before, after = self._rows.document(tables.SERVICE_INFO), json.loads(value)
        genesis = self._rows.document(tables.GENESIS)
        step = before.get("status"), after.get("status")
        if self._new_identity(seqno, changes) is not None and step[0] == step[1]:
            return False
        same = _key(before["cert"]) == _key(after["cert"])
        if after["status"] == "Recovering" and not same:
            if _key(after["previous_service_identity"]) != _key(before["cert"]):
                raise ConfigurationError("a recovery continues another service", code="audit.service")
            self._event(seqno, "recovering")
            return True
        if step == ("Opening", "Open") and same and not genesis.get("opens_by_vote"):
            return False
        if step == ("Recovering", "WaitingForRecoveryShares") and same:
            return False
        if step == ("WaitingForRecoveryShares", "Open") and same:
            members = [json.loads(row)["status"] for _, row in self._rows.scan(tables.MEMBERS_INFO)]
            count = int(after["recovery_count"]).to_bytes(8, "big")
            stated = sum(1 for _ in self._rows.scan(tables.IDENTITY_STATEMENTS, count))
            if 2 * stated <= members.count("Active"):
                raise ConfigurationError("too few members stated the new identity", code="audit.service")
            self._event(seqno, "recovered", statements=stated)
            return False
        raise ConfigurationError(f"the service went from {step[0]} to {step[1]}", code="audit.service")

    def _statement(self, seqno: int, key: bytes, body: bytes) -> None:
        member = key[8:].decode()
        signed_by_member(body, self._rows, IDENTITY_STATEMENT, member=member)
        if succession.current(self._rows) is not None and succession.statement_row(self._rows, body)[1] != key:
            raise ConfigurationError("a statement is filed under another one's", code="audit.service")
        self._event(seqno, "identity_statement", member=member)

    def _new_identity(self, seqno: int, changes: dict[Key, bytes | None]) -> str | None:
        """Certificate of the identity that follows with this entry, as members have stated it (J9)."""
        found, value = succession.current(self._rows), changes.get((tables.SERVICE_INFO, tables.SINGLETON))
        if found is None or value is None or changes.get((tables.SUCCESSION, tables.SINGLETON), b"") is not None:
            return None
        if json.loads(value).get("status") == "Recovering":
            return None  # a recovery, that lets the announced one go
        before = self._rows.document(tables.SERVICE_INFO)
        stated = succession.is_stated(self._rows)
        if not stated or json.loads(value) != succession.succeeded(found, before, seqno):
            raise ConfigurationError("too few members stated the new identity", code="audit.service")
        return str(found["next"])

    def _succession(self, seqno: int, value: bytes | None, *, changed: bool, recovers: bool) -> None:
        before = succession.current(self._rows)
        if value is None:
            if not changed and not recovers:
                raise ConfigurationError("an announced identity was dropped", code="audit.service")
            self._event(seqno, "identity_changed" if changed else "identity_dropped")
            return
        after = json.loads(value)
        known = before is not None and before["status"] == succession.WANTED and after["number"] == seqno
        right = _key(after["previous"]) == _key(self._rows.document(tables.SERVICE_INFO)["cert"])
        place = Position.parse(after["transaction_id"])
        if not known or not right or place.seqno != seqno - 1 or self._tree.root(seqno - 1).hex() != after["root"]:
            raise ConfigurationError("an identity was announced that nobody asked for", code="audit.service")
        self._event(seqno, "identity_announced")

    async def _node(self, seqno: int, node_id: str, row: dict[str, Any], *, recovers: bool) -> None:
        before = self._rows.document(tables.NODES_INFO, node_id.encode())
        after = row["status"]
        if recovers:
            return  # a new life retires every node, and founds itself with one
        if not before:
            if after == nodes.TRUSTED:
                await self._admitted(node_id, row)
            elif after != nodes.PENDING:
                raise ConfigurationError(f"a node began as {after}", code="audit.node")
            self._event(seqno, "node_" + str(after).lower(), node=node_id, owner=row["owner"])
            return
        changed = {name for name in before.keys() | row.keys() if before.get(name) != row.get(name)}
        if before["status"] == nodes.TRUSTED and after == nodes.RETIRED:
            if not changed <= {"status", "retired_committed", "retire_statement"}:
                raise ConfigurationError("a node that left changed otherwise", code="audit.node")
            self._retired(node_id, row)
            self._event(seqno, "node_retired", node=node_id)
        elif changed and changed <= {"quote_info", "verified"}:
            self._newer_evidence(node_id, before, row)
            self._event(seqno, "node_evidence_renewed", node=node_id)
        elif changed != {"retired_committed"}:
            raise ConfigurationError(f"a node changed {', '.join(sorted(changed))}", code="audit.node")

    async def _admitted(self, node_id: str, row: dict[str, Any]) -> None:
        """A node that is trusted without a vote: its operator signed for it, and the rules ask no more."""
        if not nodes.is_allowed(row, platforms.policy(self._rows)):
            raise ConfigurationError("a node was admitted that the manifest does not have", code="audit.node")
        self._operator(row["owner_statement"], NODE_STATEMENT, node_id, row["peer_address"])
        node = nodes.admission(
            nodes.rows(self._rows),
            address=row["peer_address"],
            owner=row["owner"],
            measurement=row["measurement"],
            host_names=row["host_names"],
        )
        if not await self._proposals.admits(node, self._rows):
            raise ConfigurationError("the rules ask for a vote about this node", code="audit.node")

    def _newer_evidence(self, node_id: str, before: dict[str, Any], row: dict[str, Any]) -> None:
        """Newer evidence proves the same of the same key; it is judged at a time when its endorsements counted."""
        certificate = self._rows.get(tables.NODE_CERTIFICATES, node_id.encode()) or b""
        from_s = row["verified"]["valid_from_s"]
        if nodes.renewed(before, row["quote_info"], _key(certificate.decode()), now_s=from_s) != row:
            raise ConfigurationError("a node's evidence proves something else than its row", code="audit.node")

    def _operator(self, statement: str, kind: str, node_id: str, address: str) -> None:
        body = bytes.fromhex(statement)
        payload = json.loads(cose.parse(body).payload or b"{}")
        if payload.get("node_id") != node_id:
            raise ConfigurationError("the operator signed for another node", code="audit.node")
        # When it expired is nothing to a reader: the network judged that at its own time.
        nodes.check_owner(self._rows, body, payload, kind=kind, address=address, time_s=0)

    def _retired(self, node_id: str, row: dict[str, Any]) -> None:
        if row.get("retire_statement"):
            self._operator(row["retire_statement"], RETIRE_STATEMENT, node_id, row["peer_address"])
            return
        others = [one for one in nodes.rows(self._rows) if one.status == nodes.TRUSTED]
        if not any(one.address == row["peer_address"] and one.engine > row["engine"] for one in others):
            raise ConfigurationError("a node left, though nobody said so and none replaced it", code="audit.node")


def _own_code(changes: dict[Key, bytes | None]) -> dict[Key, bytes]:
    """The row that lists the code of the node that begins a life of the service."""
    nodes_rows = (json.loads(value) for (table, _), value in changes.items() if table == tables.NODES_INFO and value)
    trusted = [row for row in nodes_rows if row["status"] == nodes.TRUSTED]
    found = (platforms.code_row(Verified.from_json(row["verified"])) for row in trusted)
    return {(row[0], row[1]): row[2] for row in found if row is not None}


def _same(one: dict[Key, bytes | None], other: dict[Key, bytes | None], key: Key) -> bool:
    return key in one and key in other and one[key] == other[key]


def _key(certificate: str) -> bytes:
    try:
        return spki_of(certificate)
    except ValueError as error:
        raise ConfigurationError(f"the service's certificate is wrong: {error}", code="audit.service") from error
