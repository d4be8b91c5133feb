"""A consortium in one process, written entry by entry by the very pieces that a primary uses: every legal step there is.

What it writes can be read by anybody: entries are sealed, chained and signed as a node does it. Whoever attacks gets the
keys from here: of the service, of the nodes, of a host.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from functools import cache
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from coco import constitutions
from coco._native import Entry as NativeEntry
from coco._native import LedgerSecret, MerkleTree, Sealer, WriteSet
from coco.attestation import wrapper
from coco.attestation.evidence import Evidence, report_data, virtual
from coco.configuration import nodes, platforms, succession
from coco.configuration import secrets as wrapping
from coco.configuration.draft import Draft
from coco.configuration.genesis import Genesis
from coco.configuration.proposals import Change, Proposals
from coco.configuration.share_holders import share_holders
from coco.crypto import cose
from coco.crypto.certificates import endorsed_names, pem
from coco.enclave.keys.certificates import Certificates
from coco.enclave.keys.epochs import Epochs
from coco.enclave.keys.identity import EncryptionKey, ServiceIdentity
from coco.enclave.network.snapshots import evidence_row
from coco.enclave.platform.rules_worker import call_here
from coco.host.persistence import open_database
from coco.ledger import receipts, signature, tables
from coco.ledger.statements import (
    IDENTITY_STATEMENT,
    NODE_STATEMENT,
    RETIRE_STATEMENT,
    identity_payload,
    node_payload,
    retire_payload,
    sign_as_member,
    spki_of,
)
from coco.ledger.transaction_id import TransactionId
from members import Member

Row = tuple[str, bytes, bytes | None]
BEGAN_S = 1_800_000_000
MEASUREMENT = "0123456789abcdef" * 4
NAMES = ["localhost", "127.0.0.1"]
_called: dict[str, Any] = {}


async def call(source: str, function: str, *arguments: Any) -> Any:
    """The rules, each question asked once: a campaign asks the same ones again and again."""
    question = sha256(json.dumps([source, function, arguments], sort_keys=True).encode()).hexdigest()
    if question not in _called:
        try:
            _called[question] = await call_here(source, function, *arguments), None
        except Exception as failed:
            _called[question] = None, failed
    answer, error = _called[question]
    if error is not None:
        raise error
    return json.loads(json.dumps(answer))


@cache
def _rsa(number: int) -> EncryptionKey:
    """RSA keys are slow to make; every consortium has the same ones."""
    return EncryptionKey.generate()


@dataclass(frozen=True)
class Signing:
    """How a signature entry was made, so that it can be made again over something else."""

    node: str
    time_s: int
    committed: TransactionId


@dataclass(frozen=True)
class Entry:
    """One entry before it is sealed; a signature has no rows of its own."""

    view: int
    rows: tuple[Row, ...] = ()
    signing: Signing | None = None
    claims: bytes = bytes(32)
    #: What the ledger is like with it: for whoever goes on from here.
    service: str = ""

    def public(self) -> dict[tuple[str, bytes], bytes | None]:
        return {(table, key): value for table, key, value in self.rows if table.startswith("public:")}


@dataclass
class Node:
    """One validating node."""

    name: str
    key: ec.EllipticCurvePrivateKey
    encryption: EncryptionKey
    address: str
    engine: int = 0
    certificate: str = ""

    @property
    def id(self) -> str:
        return cose.key_id(self.key.public_key())


class Operator:
    """Signs for nodes."""

    def __init__(self, member: Member) -> None:
        self.pem, self.key, self.certificate, self.id = member.pem, member.key, member.certificate, member.id

    def sign(self, kind: str, payload: Any) -> bytes:
        return sign_as_member(self.key, self.certificate, kind, payload, created_at_s=BEGAN_S)


def report(node: Node, service: bytes, measurement: str = MEASUREMENT, *, joins: bool = True) -> Evidence:
    """What platform virtual says of a node."""
    bound = {"encryption_key": node.encryption.pem.encode()} if joins else {}
    data = report_data(cose.spki(node.key.public_key()), service=service, configuration=bytes(32), **bound)
    return virtual(measurement, data)


@dataclass
class Keys:
    """Everything that a forger may hold."""

    services: dict[str, ServiceIdentity] = field(default_factory=dict)
    nodes: dict[str, Node] = field(default_factory=dict)
    secret: LedgerSecret = field(default_factory=LedgerSecret.generate)


class Consortium:
    """Three members, an operator, and as many nodes as are started; ``now_s`` goes on by a second with each entry."""

    def __init__(self, directory: Path, rules: str = "majority", **genesis: Any) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory, self.files = directory, 0
        self.members = [Member(directory, f"member{number}") for number in range(5)]
        self.operator, self.stranger = (Operator(Member(directory, name)) for name in ("operator", "stranger"))
        self.participants = [Member(directory, f"participant{number}") for number in range(3)]
        shares = [_rsa(number).pem for number in range(3)]
        founders = [
            {"cert": one.pem, "encryption_public_key": share}
            for one, share in zip(self.members[:3], shares, strict=True)
        ]
        self.genesis = {
            "network": "test",
            "members": founders,
            "operators": [{"cert": self.operator.pem, "addresses": ["10.0.0.1", "10.0.0.2", "10.0.0.3"]}],
            "participants": [{"cert": self.participants[0].pem}],
            "recovery_threshold": 2,
            "constitution": constitutions.text(rules),
            "insecure_virtual": True,
            "production": False,
            "settings": {"voted": {"epoch_length_s": 3600}},
            **genesis,
        }
        self.document = json.dumps(self.genesis).encode()
        self.keys = Keys()
        self.entries: list[Entry] = []
        self.tree = MerkleTree()
        self.sealed: list[bytes] = []
        self.rows: dict[tuple[str, bytes], bytes] = {}
        self.now_s = BEGAN_S
        self.view, self.primary = 2, ""
        self.first, self.committed = 1, TransactionId(0, 0)
        self.proposals = Proposals(call)
        self._new_service()

    # --- what the pieces read ---

    def get(self, table: str, key: bytes) -> bytes | None:
        return self.rows.get((table, key))

    def scan(self, table: str, prefix: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        return iter(sorted((k, v) for (t, k), v in self.rows.items() if t == table and k.startswith(prefix)))

    @property
    def last_seqno(self) -> int:
        return len(self.entries)

    @property
    def current_secret(self) -> tuple[int, LedgerSecret]:
        return self.first, self.keys.secret

    @property
    def info(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.get(tables.SERVICE_INFO, tables.SINGLETON) or b"{}")
        return found

    def _new_service(self) -> None:
        self.service = ServiceIdentity.generate(1000 * self.now_s)
        self.keys.services[pem(self.service.certificate)] = self.service

    def audited(self) -> Any:
        """What the auditor says of it."""
        return audit(self.sealed)

    def clone(self, directory: Path) -> Consortium:
        """The same, to go on from here in another way; who holds which key stays the same."""
        other = copy(self)
        other.directory, other.files, other.tree = directory, 0, MerkleTree()
        other.entries, other.sealed, other.rows = [*self.entries], [*self.sealed], dict(self.rows)
        other.keys = replace(self.keys, services=dict(self.keys.services), nodes=dict(self.keys.nodes))
        for at in range(1, len(self.tree)):
            other.tree.append(self.tree.leaf(at) or b"")
        return other

    def save(self, path: Path) -> Path:
        """As a node's file."""
        return save(path, self.sealed)

    def receipt(self, seqno: int) -> dict[str, Any]:
        """Of an entry, under the next signature behind it."""
        at = next(n for n, entry in enumerate(self.entries, 1) if n > seqno and entry.signing)
        parsed, writes = (NativeEntry.parse(self.sealed[n - 1]) for n in (seqno, at))
        rows = (dict(writes.public_writes().rows(t)) for t in (tables.SIGNATURES, tables.COSE_SIGNATURES))
        position = TransactionId(parsed.view, seqno)
        return receipts.Receipt(
            position=position,
            write_set_digest=parsed.write_set_digest,
            commit_evidence=self.keys.secret.commit_evidence(*position),
            claims_digest=parsed.claims_digest,
            path=tuple(self.tree.proof(seqno, at)),
            signature=signature.parse_rows(*(row[tables.SINGLETON] or b"" for row in rows)),
        ).to_json()

    @property
    def certificates(self) -> Certificates:
        return Certificates(self.service)

    @property
    def epochs(self) -> Epochs:
        journal: Any = SimpleNamespace(current_secret=self.current_secret, tree=self.tree)
        return Epochs(journal, self.service, "", EncryptionKey(None, ""))  # type: ignore[arg-type]

    # --- writing ---

    def write(self, rows: Sequence[Row], *, claims: bytes = bytes(32)) -> int:
        """One entry."""
        made = Entry(self.view, tuple(rows), claims=claims, service=pem(self.service.certificate))
        self._append(made)
        self._apply(made)
        return len(self.entries)

    def sign(self, node: str = "") -> int:
        """A signature entry, of the primary."""
        made = Signing(node or self.primary, self.now_s, self.committed)
        self._append(Entry(self.view, signing=made, service=pem(self.service.certificate)))
        self.committed = TransactionId(self.view, len(self.entries))
        return len(self.entries)

    def _append(self, entry: Entry) -> None:
        data, leaf = seal(self.keys, self.tree, len(self.entries) + 1, entry, self.certificate_of)
        self.entries.append(entry)
        self.sealed.append(data)
        self.tree.append(leaf)
        self.now_s += 1

    def certificate_of(self, node: str) -> str:
        """As the ledger has it."""
        return (self.get(tables.NODE_CERTIFICATES, node.encode()) or b"").decode()

    def rewrite(self, number: int, entry: Entry) -> None:
        """Write an entry otherwise, and everything after it again over that, as who has every key can."""
        later = [entry, *self.entries[number:]]
        del self.entries[number - 1 :], self.sealed[number - 1 :]
        self.tree.truncate(number)
        self.rows.clear()
        for one in self.entries:
            self._apply(one)
        for one in later:
            self._append(one)
            self._apply(one)

    def _apply(self, entry: Entry) -> None:
        for table, key, value in entry.rows:
            if value is None:
                self.rows.pop((table, key), None)
            else:
                self.rows[table, key] = value

    # --- steps ---

    def start(self, address: str) -> Node:
        """A process with keys of its own."""
        node = Node(address, ec.generate_private_key(ec.SECP384R1()), _rsa(3 + len(self.keys.nodes)), address)
        self.keys.nodes[node.id] = node
        return node

    def found(self) -> Node:
        """Entries 1 to 4: the service is founded, signed, and opens."""
        node = self.start("10.0.0.1:1")
        node.engine, self.primary = 1, node.id
        rows: list[Row] = [*Genesis.parse(self.document).rows(self.document), *self._founder(node)]
        rows.append((tables.SERVICE_INFO, tables.SINGLETON, self._service("Opening", 0)))
        before = dict(self.rows)
        self.rows |= {(table, key): value for table, key, value in rows if value is not None}
        rows += self.epochs.found(share_holders(self), 1000 * self.now_s)
        self.rows = before
        self.write([*rows, ("private", b"", b"first")])
        self.sign()
        self.write([(tables.SERVICE_INFO, tables.SINGLETON, self._service("Open", 0))])
        self.sign()
        return node

    def _service(self, status: str, count: int, **more: Any) -> bytes:
        return tables.row({"status": status, "cert": pem(self.service.certificate), "recovery_count": count, **more})

    def _founder(self, node: Node) -> list[Row]:
        context = {"service": self.service.spki, "configuration": bytes(32)}
        evidence = report(node, self.service.spki, joins=False)
        verified = evidence.verify(now_s=self.now_s)
        said = wrapper.wrap(evidence, context)
        certificate = self.service.endorse(node.key.public_key(), node.engine, NAMES, 1000 * self.now_s, evidence=said)
        node.certificate = pem(certificate)
        row = nodes.row_document(
            engine=node.engine,
            status=nodes.TRUSTED,
            address=node.address,
            owner="",
            evidence=evidence.to_json(),
            verified=verified,
            context=context,
            encryption_key=node.encryption.pem,
            seqno=len(self.entries) + 1,
            host_names=endorsed_names(certificate),
        )
        code = platforms.code_row(verified)
        assert code is not None
        return [
            (tables.NODES_INFO, node.id.encode(), tables.row(row)),
            (tables.NODE_CERTIFICATES, node.id.encode(), node.certificate.encode()),
            code,
        ]

    def node_statement(self, node: Node, **other: Any) -> dict[str, Any]:
        """What an operator signs for a node."""
        rules = str(json.loads(self.get(tables.CONSTITUTION, tables.SINGLETON) or b'""'))
        payload = node_payload(
            network="test",
            service=cose.key_id(self.service.key.public_key()),
            constitution=sha256(rules.encode()).hexdigest(),
            node_id=node.id,
            address=node.address,
            measurement=MEASUREMENT,
            host_names=NAMES,
            expires_s=self.now_s + 86_400,
        )
        return {**payload, **other}

    def admission(
        self,
        node: Node,
        *,
        status: str = nodes.TRUSTED,
        evidence: Evidence | None = None,
        statement: bytes | None = None,
        owner: str | None = None,
        **other: Any,
    ) -> list[Row]:
        """The rows with which a primary admits a node; whoever forges gives something else for a part."""
        evidence = evidence or report(node, self.service.spki)
        if statement is None:
            statement = self.operator.sign(NODE_STATEMENT, self.node_statement(node))
        node.engine = other.pop("engine", nodes.next_engine(self))
        document = nodes.row_document(
            engine=node.engine,
            status=status,
            address=node.address,
            owner=(self.operator.id if statement else "") if owner is None else owner,
            evidence=evidence.to_json(),
            verified=other.pop("verified", None) or evidence.verify(now_s=self.now_s),
            context={
                "encryption_key": node.encryption.pem.encode(),
                "service": self.service.spki,
                "configuration": bytes(32),
            },
            encryption_key=node.encryption.pem,
            seqno=len(self.entries) + 1,
            host_names=NAMES,
            statement=statement,
        )
        document |= other
        rows: list[Row] = [(tables.NODES_INFO, node.id.encode(), tables.row(document))]
        if status == nodes.TRUSTED:
            row = nodes.NodeRow(node.id, node.engine, status, node.address, document["owner"], MEASUREMENT)
            rows.append(self.certificates.issue(node.key.public_key(), row, NAMES, self, 1000 * self.now_s, document))
        return rows

    def admit(self, address: str, **how: Any) -> Node:
        """A node comes."""
        node = self.start(address)
        self.write(self.admission(node, **how))
        node.certificate = self.certificate_of(node.id)
        return node

    def lead(self, node: Node) -> None:
        """Another view begins, with a signature of its primary."""
        self.view += 1
        self.primary = node.id
        self.sign()

    def row(self, node: Node) -> dict[str, Any]:
        """A node's row."""
        found: dict[str, Any] = json.loads(self.get(tables.NODES_INFO, node.id.encode()) or b"{}")
        return found

    def endorse(self, node: Node) -> None:
        """A node that members trusted gets its certificate."""
        one = next(row for row in nodes.rows(self) if row.node_id == node.id)
        self.write([self.certificates.issue(node.key.public_key(), one, NAMES, self, 1000 * self.now_s)])

    def renew_certificates(self) -> None:
        """Days later, certificates are renewed."""
        self.now_s += 5 * 86_400
        self.write(self.certificates.renewed(self.certificates.due(self, 1000 * self.now_s), self, 1000 * self.now_s))

    def renew_evidence(self, node: Node) -> None:
        """The same evidence again: platform virtual has no newer one."""
        before, spki = self.row(node), cose.spki(node.key.public_key())
        document = nodes.renewed(before, report_of(before).to_json(), spki, now_s=self.now_s)
        one = next(row for row in nodes.rows(self) if row.node_id == node.id)
        issued = self.certificates.issue(
            node.key.public_key(), one, document["host_names"], self, 1000 * self.now_s, document
        )
        self.write([(tables.NODES_INFO, node.id.encode(), tables.row(document)), issued])

    def retire(self, node: Node, *, statement: bytes | None = None, replaced: bool = False) -> None:
        """A node leaves: its operator says so, or another took its place."""
        document = self.row(node) | {"status": nodes.RETIRED, "retired_committed": replaced}
        if not replaced:
            service = cose.key_id(self.service.key.public_key())
            payload = retire_payload(network="test", service=service, node_id=node.id, expires_s=self.now_s + 1000)
            made = self.operator.sign(RETIRE_STATEMENT, payload) if statement is None else statement
            document["retire_statement"] = made.hex()
        gone = nodes.superseded(self, document) if replaced else []
        more = [(table, key, None) for key in gone for table in (tables.NODES_INFO, tables.NODE_CERTIFICATES)]
        self.write([(tables.NODES_INFO, node.id.encode(), tables.row(document)), *more])

    def epoch(self, *, wait_s: int = 0) -> None:
        """Another epoch begins, as the primary's duty."""
        self.now_s += wait_s
        left: list[Row] = []
        for key, value in self.scan(tables.NODES_INFO):
            row = json.loads(value)
            if row["status"] == nodes.RETIRED and not row.get("retired_committed"):
                left.append((tables.NODES_INFO, key, tables.row({**row, "retired_committed": True})))
        draft = Draft(self)
        self.write([*left, *self._epoch(draft.share_holders(), draft.node_keys())])

    def _epoch(self, keeping: Any, node_keys: Any, following: bytes = b"") -> list[Row]:
        first = len(self.entries) + 2
        _, kept = self.epochs.begin(keeping, node_keys, 1000 * self.now_s, first, following)
        self.first = first
        return kept

    # --- requests ---

    def take(self, change: Change) -> dict[str, Any]:
        """Write what a request gives, as a primary does."""
        now_ms = 1000 * self.now_s
        rows = [*change.rows, *self.certificates.renewed(change.renew, self, now_ms)]
        if change.renew_service is not None:
            written = {table: value for table, _, value in change.rows}
            info = written.get(tables.SERVICE_INFO) or self.get(tables.SERVICE_INFO, tables.SINGLETON)
            issued = self.certificates.renewed_service(change.renew_service, info or b"{}", now_ms)
            rows = [row for row in rows if row[0] != tables.SERVICE_INFO] + [issued]
            renewed = x509.load_pem_x509_certificate(json.loads(issued[2] or b"{}")["cert"].encode())
            self.service = ServiceIdentity(self.service.key, renewed)
            self.keys.services[pem(renewed)] = self.service
        leaves = any(
            json.loads(value)["status"] == nodes.RETIRED
            for table, _, value in change.rows
            if table == tables.NODES_INFO and value
        )
        if change.rekey and not leaves:
            rows += self._epoch(change.share_holders, change.node_keys)
        elif change.reshare:
            rows.append(self.epochs.wrap(change.share_holders))
        self.write(rows)
        return change.answer

    def propose(self, member: Member, *actions: Any) -> str:
        body = member.sign("proposal", {"actions": list(actions)})
        made = asyncio.run(self.proposals.create(body, self, self.tree.root()))
        return str(self.take(made)["proposalId"])

    def vote(self, member: Member, proposal: str, vote: bool = True) -> dict[str, Any]:
        body = member.sign("ballot", {"vote": vote}, proposal)
        return self.take(asyncio.run(self.proposals.vote(proposal, member.id, body, self)))

    def decide(self, *actions: Any, by: Sequence[int] = (0, 1)) -> str:
        """Members propose and accept; each entry is signed."""
        made = self.propose(self.members[by[0]], *actions)
        self.sign()
        answer: dict[str, Any] = {}
        for number in by:
            answer = self.vote(self.members[number], made)
            self.sign()
            if answer["proposalState"] != "Open":
                break
        assert answer["proposalState"] == "Accepted", answer
        return made

    def acknowledge(self, member: Member) -> None:
        """A new member says that it knows the state."""
        root = self.tree.root()
        self.take(self.proposals.state_digest(member.id, member.sign("state_digest", {}), self, root))
        body = member.sign("ack", {"state_digest": root.hex()})
        self.take(self.proposals.acknowledge(member.id, body, self))

    # --- the rest ---

    def application(self) -> None:
        """Participants did something."""
        self.write([("private", self.now_s.to_bytes(8, "big"), b"a transfer")], claims=sha256(b"claim").digest())

    def snapshot(self) -> None:
        at = len(self.entries) - 1
        self.write([(tables.SNAPSHOT_EVIDENCE, tables.SINGLETON, evidence_row(at, sha256(b"state").digest()))])

    def begin_adapter(self, name: str) -> None:
        row = json.loads(self.get(tables.ADAPTERS, name.encode()) or b"{}")
        running = tables.row({**row, "status": "Running"})
        self.write([(tables.ADAPTERS, name.encode(), running), ("private", b"adapter", b"its genesis")])

    def announce(self, **other: Any) -> dict[str, Any]:
        """The identity that members wanted."""
        following = ServiceIdentity.generate(1000 * self.now_s)
        self.keys.services[pem(following.certificate)] = following
        seqno = len(self.entries) + 1
        keys = Draft(self).node_keys()
        document = {
            "status": succession.ANNOUNCED,
            "number": seqno,
            "previous": self.info["cert"],
            "next": pem(following.certificate),
            "transaction_id": str(TransactionId(self.entries[-1].view, seqno - 1)),
            "root": self.tree.root(seqno - 1).hex(),
            "keys": {node: wrapping.seal_service_key(following.key, key).hex() for node, key in keys.items()},
            **other,
        }
        self.write([(tables.SUCCESSION, tables.SINGLETON, tables.row(document))])
        return document

    def state(self, member: Member, document: dict[str, Any]) -> None:
        """A member states the announced identity."""
        body = member.sign(IDENTITY_STATEMENT, succession.payload(document))
        self.write([succession.statement_row(self, body)])

    def succeed(self, document: dict[str, Any]) -> None:
        """The announced identity becomes the service's."""
        following = self.keys.services[document["next"]]
        draft = Draft(self)
        rows: list[Row] = [
            (tables.SUCCESSION, tables.SINGLETON, None),
            *self.certificates.under(following, self, 1000 * self.now_s),
        ]
        info = succession.succeeded(document, self.info, len(self.entries) + 1)
        rows.append((tables.SERVICE_INFO, tables.SINGLETON, tables.row(info)))
        rows += self._epoch(draft.share_holders(), draft.node_keys(), following.spki)
        self.write(rows)
        self.service = following

    def begin_recovery(self) -> Node:
        """All nodes are lost: another one begins another life."""
        former = self.info
        count = int(former["recovery_count"]) + 1
        self.view += 2
        self.now_s += 100
        self._new_service()
        node = self.start("10.0.0.2:1")
        node.engine, self.primary = nodes.next_engine(self), node.id
        rows: list[Row] = self._founder(node)
        for key, value in self.scan(tables.NODES_INFO):
            row = json.loads(value)
            if row["status"] == nodes.TRUSTED:
                gone = {**row, "status": nodes.RETIRED, "retired_committed": True}
                rows.append((tables.NODES_INFO, key, tables.row(gone)))
        since = len(self.entries) + 1
        self.life = {"previous_service_identity": former["cert"], "since": since}
        self.stated = identity_payload(
            spki_of(former["cert"]),
            self.service.spki,
            str(TransactionId(self.entries[-1].view, since - 1)),
            self.tree.root(since - 1).hex(),
        )
        self.count = count
        rows.append((tables.SERVICE_INFO, tables.SINGLETON, self._service("Recovering", count, **self.life)))
        if self.get(tables.SUCCESSION, tables.SINGLETON) is not None:
            rows.append((tables.SUCCESSION, tables.SINGLETON, None))
        self.write(rows)
        self.former_first = self.first
        self.first = since
        self.sign()
        waits = self._service("WaitingForRecoveryShares", count, **self.life)
        self.write([(tables.SERVICE_INFO, tables.SINGLETON, waits)])
        self.sign()
        return node

    def state_recovery(self, member: Member, payload: dict[str, Any] | None = None) -> None:
        body = member.sign(IDENTITY_STATEMENT, payload or self.stated)
        key = self.count.to_bytes(8, "big") + member.id.encode()
        self.write([(tables.IDENTITY_STATEMENTS, key, body)])

    def end_recovery(self) -> None:
        """Shares are there: the secret is kept, and the service opens."""
        former = wrapping.wrap_former(self.keys.secret, self.former_first, LedgerSecret.generate())
        self.write(
            [
                *self.epochs.found(share_holders(self), 1000 * self.now_s),
                (tables.FORMER_SECRETS, self.former_first.to_bytes(8, "big"), former),
            ]
        )
        self.write([(tables.SERVICE_INFO, tables.SINGLETON, self._service("Open", self.count, **self.life))])
        self.sign()

    def recover(self, stating: Sequence[int] = (0, 1)) -> Node:
        node = self.begin_recovery()
        for number in stating:
            self.state_recovery(self.members[number])
            self.sign()
        self.end_recovery()
        return node


def report_of(row: dict[str, Any]) -> Evidence:
    """The evidence in a row."""
    return Evidence.parse(row["quote_info"])


def seal(
    keys: Keys, tree: MerkleTree, seqno: int, entry: Entry, certificate_of: Callable[[str], str]
) -> tuple[bytes, bytes]:
    """Seal, and sign, an entry over what is in the tree; its bytes and its leaf."""
    rows: list[Row] = list(entry.rows)
    if entry.signing is not None:
        made, node = entry.signing, keys.nodes[entry.signing.node]
        signed = signature.sign_root(
            node.key,
            keys.services[entry.service].key,
            node_certificate=certificate_of(node.id),
            position=TransactionId(entry.view, seqno),
            root=tree.root(),
            committed=made.committed,
            time_s=made.time_s,
        )
        rows += [
            (tables.SIGNATURES, tables.SINGLETON, signed.signatures_row()),
            (tables.COSE_SIGNATURES, tables.SINGLETON, signed.cose_row()),
            (tables.TREE, tables.SINGLETON, tree.serialise()),
        ]
    if not any(table == tables.PREDECESSOR for table, _, _ in rows):
        rows.append((tables.PREDECESSOR, tables.SINGLETON, tree.leaf(seqno - 1)))
    return Sealer(entry.view, seqno - 1).seal(keys.secret, entry.view, seqno, entry.claims, WriteSet(rows))


def action(name: str, /, **args: Any) -> dict[str, Any]:
    return {"name": name, "args": args}


def audit(sealed: Sequence[bytes]) -> Any:
    """Judge entries as ``coco ledger audit`` does."""
    # Not above: what is written here is given to older auditors, too.
    from coco.audit import Auditor
    from coco.audit.rows import Written
    from coco.ledger.replay import Replay

    replay = Replay()
    auditor = Auditor(call, replay.tree)

    async def feed() -> None:
        for data in sealed:
            replay.feed([data])
            await auditor.feed(Written.parse(data))

    asyncio.run(feed())
    return auditor


def save(path: Path, sealed: Sequence[bytes]) -> Path:
    """Entries as a node's file."""
    with contextlib.closing(open_database(path)) as connection:
        connection.execute("BEGIN")
        connection.executemany("INSERT INTO entries VALUES (?, ?)", enumerate(sealed, 1))
        connection.execute("COMMIT")
    return path


def eventful(directory: Path) -> Consortium:
    """A ledger with every step that there is: votes, nodes that come and go, rotations, recoveries, other rules."""
    made = Consortium(directory)
    members, participants = made.members, made.participants
    first = made.found()
    made.application()
    made.sign()
    second, third = made.admit("10.0.0.2:1"), made.admit("10.0.0.3:1")
    made.sign()
    made.decide(action("set_member", cert=members[3].pem))
    made.acknowledge(members[3])
    made.sign()
    made.decide(action("set_user", cert=participants[1].pem), by=(0, 1, 2))
    made.lead(second)
    made.renew_evidence(third)
    made.retire(third)
    made.sign()
    made.epoch()
    made.sign()
    pending = made.admit("10.0.0.3:1", status=nodes.PENDING, statement=b"")
    made.decide(action("transition_node_to_trusted", node_id=pending.id), by=(0, 1, 2))
    made.endorse(pending)
    made.decide(action("remove_node", node_id=first.id), by=(0, 1, 2))
    made.epoch()
    made.renew_certificates()
    made.snapshot()
    made.sign()
    made.decide(action("set_service_certificate_validity", validity_period_days=100), by=(0, 1, 2))
    made.decide(action("remove_member", member_id=members[3].id), by=(0, 1, 2))
    made.decide(action("set_adapter", name="kv"))
    made.begin_adapter("kv")
    made.sign()
    made.decide(action("rotate_service_identity"))
    announced = made.announce()
    for member in members[:2]:
        made.state(member, announced)
    made.succeed(announced)
    made.sign()
    made.application()
    made.sign()
    made.recover()
    made.application()
    made.sign()
    former, successor = made.admit("10.0.0.1:2"), made.admit("10.0.0.1:2")
    made.retire(former, replaced=True)
    made.admit("10.0.0.1:2")
    made.retire(successor, replaced=True)
    made.sign()
    made.decide(action("set_constitution", constitution=constitutions.text("unanimous")))
    made.decide(action("set_user_data", user_id=participants[0].id, user_data={"desk": "a"}), by=(0, 1, 2))
    made.epoch(wait_s=4000)
    made.sign()
    made.recover(stating=(1, 2))
    made.application()
    made.sign()
    return made
