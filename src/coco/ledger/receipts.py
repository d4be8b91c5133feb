"""Receipts: offline proof that a transaction is in the ledger, as JSON and as an IETF COSE receipt.

Rules (L4): a receipt has all three leaf components; the evidence's seqno equals the index that the path gives and lies
below the signature's; the path is no longer than 64; a bare root, or a signature entry, is no transaction receipt. What
is read is what would be written: no part of a receipt goes unread, and none has a second form.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final

import cbor2
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from coco.crypto import cose
from coco.errors import LedgerError
from coco.ledger.signature import RootSignature, verify_root
from coco.ledger.transaction_id import TransactionId

PATH_MAX: Final = 64
SALT_BYTES: Final = 32
CLAIMS_LABEL: Final = b"coco claims digest v1"
NO_CLAIMS: Final = bytes(32)

Path = Sequence[tuple[bool, bytes]]


def claims_digest(salt: bytes, claim: bytes) -> bytes:
    """Public digest of a claim; the salt stays sealed until a receipt shows it (K6)."""
    return sha256(CLAIMS_LABEL + salt + claim).digest()


@dataclass(frozen=True, slots=True)
class Receipt:
    """Everything that a verifier needs but the service certificate."""

    position: TransactionId
    write_set_digest: bytes
    commit_evidence: str
    claims_digest: bytes
    path: tuple[tuple[bool, bytes], ...]
    signature: RootSignature
    claim: bytes | None = None
    claim_salt: bytes | None = None

    def to_json(self) -> dict[str, Any]:
        """The JSON form; ``claim`` and ``claim_salt`` are ours, the rest is the format's."""
        body: dict[str, Any] = {
            "leaf_components": {
                "write_set_digest": self.write_set_digest.hex(),
                "commit_evidence": self.commit_evidence,
                "claims_digest": self.claims_digest.hex(),
            },
            "proof": [{"left" if left else "right": node.hex()} for left, node in self.path],
            "signature": base64.b64encode(self.signature.node_signature).decode(),
            "cert": self.signature.node_certificate,
            "node_id": self.signature.node_id,
            "service_endorsements": [],
            "signed_at": str(self.signature.position),
            "cose": base64.b64encode(self.to_cose()).decode(),
        }
        if self.claim is not None and self.claim_salt is not None:
            body["claim"] = {"value": self.claim.hex(), "salt": self.claim_salt.hex()}
        return body

    def to_cose(self) -> bytes:
        """The COSE receipt."""
        proof = cbor2.dumps(
            {
                1: [self.write_set_digest, self.commit_evidence, self.claims_digest],
                2: [[left, node] for left, node in self.path],
            }
        )
        return cose.encode(self.signature.protected, self.signature.service_signature, None, {396: {-1: [proof]}})


def leaf(write_set_digest: bytes, commit_evidence: str, claims: bytes) -> bytes:
    """Leaf of the Merkle tree from its three components."""
    return sha256(write_set_digest + sha256(commit_evidence.encode()).digest() + claims).digest()


def fold(start: bytes, path: Path) -> bytes:
    """Root that the path leads to."""
    node = start
    for left, sibling in path:
        node = sha256(sibling + node if left else node + sibling).digest()
    return node


def index_of(path: Path, leaves: int) -> int:
    """Index of the leaf that ``path`` belongs to in a tree of ``leaves`` leaves, or -1 when it fits none.

    The path has one step for each level where a sibling exists; an odd last node has none and moves up unchanged.
    """
    steps = list(path)
    # Follow the shape from the root down, then check that the walk used the path exactly.
    low, size, index = 0, leaves, 0
    shape: list[bool] = []
    for left, _ in reversed(steps):
        if size <= 1:
            return -1
        half = 1 << ((size - 1).bit_length() - 1)
        shape.append(left)
        if left:
            low, size = low + half, size - half
        else:
            size = half
    index = low
    return index if size == 1 else -1


def verify(body: dict[str, Any], service: x509.Certificate) -> TransactionId:
    """Check a JSON receipt against a pinned service certificate; return the transaction's id.

    Raises:
        LedgerError: ``receipt.malformed`` or ``receipt.invalid``.
    """
    try:
        parts = body["leaf_components"]
        digest, claims = bytes.fromhex(parts["write_set_digest"]), bytes.fromhex(parts["claims_digest"])
        evidence = str(parts["commit_evidence"])
        path = [_step(step) for step in body["proof"]]
        message = cose.parse(base64.b64decode(body["cose"], validate=True))
        claim = body.get("claim")
        value, salt = (None, None) if claim is None else (bytes.fromhex(claim["value"]), bytes.fromhex(claim["salt"]))
        signed_at = TransactionId.parse(str(body["signed_at"]))
        kind, txid, secret = evidence.split(":")
        position = TransactionId.parse(txid)
        if kind != "ce" or len(secret) != 64 or len(digest) != 32 or len(claims) != 32 or len(path) > PATH_MAX:
            raise ValueError("a component has the wrong form")
        if salt is not None and len(salt) != SALT_BYTES:
            raise ValueError("a salt has 32 bytes")  # else some of the claim might pass for it
        signature = RootSignature(
            position=signed_at,
            root=fold(leaf(digest, evidence, claims), path),
            node_id=str(body["node_id"]),
            node_signature=base64.b64decode(body["signature"], validate=True),
            node_certificate=str(body["cert"]),
            protected=message.protected,
            service_signature=message.signature,
            committed=TransactionId(0, 0),
        )
        if Receipt(position, digest, evidence, claims, tuple(path), signature, value, salt).to_json() != body:
            raise ValueError("a part has another form than it is written in")
        if not is_canonical(signature.node_certificate):
            raise ValueError("the certificate has another form than it is written in")
    except LedgerError:
        raise
    except Exception as error:
        raise LedgerError(f"the receipt is malformed: {error}", code="receipt.malformed") from error
    if index_of(path, signed_at.seqno) != position.seqno or position.seqno >= signed_at.seqno or position.seqno == 0:
        raise LedgerError("the path does not lead from this transaction", code="receipt.invalid")
    key = service.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise LedgerError("the service certificate has no elliptic-curve key", code="receipt.invalid")
    try:
        verify_root(signature, root=signature.root, position=signed_at, service_key=key)
    except LedgerError as error:
        raise LedgerError("the receipt is not signed by this service", code="receipt.invalid") from error
    if value is not None and salt is not None and claims_digest(salt, value) != claims:
        raise LedgerError("the claim is not the one in the ledger", code="receipt.invalid")
    return position


def is_canonical(certificate: str) -> bool:
    """Whether a certificate in PEM is written in the one way that nodes write it, its signature in whole bytes."""
    parsed = x509.load_pem_x509_certificate(certificate.encode())
    whole = parsed.public_bytes(Encoding.DER).endswith(b"\0" + parsed.signature)
    return whole and parsed.public_bytes(Encoding.PEM).decode() == certificate


def _step(step: dict[str, str]) -> tuple[bool, bytes]:
    ((side, node),) = step.items()
    if side not in ("left", "right") or len(node) != 64:
        raise ValueError("a proof step has the wrong form")
    return side == "left", bytes.fromhex(node)
