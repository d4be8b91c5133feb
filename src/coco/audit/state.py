"""What the steps before an entry have left, for those who judge the next one."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec

from coco._native import MerkleTree
from coco.audit.rows import Rows, illegal
from coco.configuration import nodes
from coco.configuration.draft import Draft
from coco.configuration.proposals import Proposals
from coco.crypto import cose
from coco.ledger import tables
from coco.ledger.statements import spki_of
from coco.ledger.transaction_id import TransactionId

OPENING, OPEN, RECOVERING, WAITING = "Opening", "Open", "Recovering", "WaitingForRecoveryShares"


@dataclass(frozen=True)
class Life:
    """A life that a recovery began: what members must state, word for word (J7)."""

    began: int
    count: int
    former: bytes
    following: bytes
    position: str
    root: str


@dataclass
class State:
    """Everything that a step may depend on."""

    proposals: Proposals
    tree: MerkleTree
    rows: Rows = field(default_factory=Rows)
    #: Views by their first entry; who signs in the last one, and the last signature entry.
    views: list[tuple[int, int]] = field(default_factory=list)
    signer: str = ""
    last_signature: int = 0
    #: Who writes in the last view, as far as a signature or the beginning of a life proves it.
    writer: str = ""
    #: Whether the entry that is judged is the version before's (:mod:`coco.audit.former`), and what decides then.
    by_former: bool = False
    former_proposals: Proposals | None = None
    #: Time of the last signature; of the last certificate that was issued: the next signature is no earlier.
    time_s: int = 0
    issued_s: int = 0
    #: SHA-256 of every key that the service had or announced; ids and engine ids of every node that was ever trusted.
    identities: set[bytes] = field(default_factory=set)
    trusted: set[str] = field(default_factory=set)
    engines: set[int] = field(default_factory=set)
    life: Life | None = None
    events: list[dict[str, Any]] = field(default_factory=list)

    def copy(self, tree: MerkleTree) -> State:
        """The same, to go on from here in another way, with a tree that is cut to here."""
        return replace(
            self,
            tree=tree,
            rows=self.rows.copy(),
            views=[*self.views],
            identities={*self.identities},
            trusted={*self.trusted},
            engines={*self.engines},
            events=[*self.events],
        )

    def event(self, seqno: int, what: str, **more: Any) -> None:
        """Somebody did something."""
        self.events.append({"seqno": seqno, "what": what, "rules": self.rules_hash, **more})

    @property
    def rules_hash(self) -> str:
        """Hex SHA-256 of the rules in force."""
        rules = str(json.loads(self.rows.get(tables.CONSTITUTION, tables.SINGLETON) or b'""'))
        return sha256(rules.encode()).hexdigest()

    @property
    def service(self) -> dict[str, Any]:
        """The service's row."""
        return self.rows.document(tables.SERVICE_INFO)

    @property
    def status(self) -> str:
        """What the service is."""
        return str(self.service.get("status", ""))

    @property
    def service_key(self) -> bytes:
        """DER SubjectPublicKeyInfo of the service."""
        return spki(str(self.service["cert"]))

    @property
    def service_name(self) -> str:
        """As operators' statements name it."""
        return sha256(self.service_key).hexdigest()

    @property
    def network(self) -> str:
        """Name of the network."""
        return str(self.rows.document(tables.GENESIS)["network"])

    @property
    def draft(self) -> Draft:
        """The tables, for whoever asks what they mean."""
        return Draft(self.rows)

    def is_governed(self) -> bool:
        """Whether nodes join and members govern."""
        return self.status in (OPENING, OPEN)

    def view_at(self, seqno: int) -> int:
        """The view that wrote an entry; 0 where there is none."""
        return next((view for first, view in reversed(self.views) if first <= seqno), 0) if seqno > 0 else 0

    def position(self, seqno: int) -> str:
        """Transaction id of an entry."""
        return str(TransactionId(self.view_at(seqno), seqno))

    def node(self, node_id: str) -> dict[str, Any]:
        """A node's row; an empty one where there is none."""
        return self.rows.document(tables.NODES_INFO, node_id.encode())

    def is_trusted(self, node_id: str) -> bool:
        """Whether a node is one of the network."""
        return bool(self.node(node_id).get("status") == nodes.TRUSTED)

    def note_identity(self, certificate: str) -> None:
        """The service has this key, or had it."""
        self.identities.add(sha256(spki(certificate)).digest())

    def secret(self) -> int:
        """First entry of the current ledger secret."""
        return int(self.rows.document(tables.WRAPPED_SECRET)["first_seqno"])


def spki(certificate: str) -> bytes:
    """Key of a service's certificate.

    Raises:
        ConfigurationError: it is none (``audit.service``).
    """
    try:
        return spki_of(certificate)
    except ValueError as error:
        raise illegal(f"the service's certificate is wrong: {error}", "service") from error


def key_of(certificate: x509.Certificate) -> ec.EllipticCurvePublicKey:
    """Its key.

    Raises:
        ConfigurationError: it is of another kind (``audit.certificate``).
    """
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise illegal("a certificate has no elliptic-curve key", "certificate")
    return key


def issued_by(certificate: x509.Certificate, issuer: x509.Certificate) -> None:
    """Whether one certificate was issued with another's key.

    Raises:
        ConfigurationError: it was not (``audit.certificate``).
    """
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature) as error:
        raise illegal("a certificate is not the service's", "certificate") from error


def name_of(key: ec.EllipticCurvePublicKey) -> str:
    """Id of the node with this key."""
    return cose.key_id(key)
