"""Signature entries: the node's and the service's signatures over the Merkle root (docs/ledger-format.md, section 6).

The node key signs only roots, TLS, certificate requests and labelled messages; here it signs a root.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import Any, Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.x509.oid import SignatureAlgorithmOID

from coco.crypto import cose
from coco.errors import LedgerError, RequestError
from coco.ledger.transaction_id import TransactionId

#: "verifiable data structure" header and its value for this ledger.
VDS: Final = 395
VDS_CCF_LEDGER: Final = 2
CWT_CLAIMS: Final = 15
ISSUED_AT: Final = 6
#: What a certificate that is none, or of a kind that nobody here has, may raise.
_NO_CERTIFICATE: Final = (ValueError, UnsupportedAlgorithm, x509.InvalidVersion)


@dataclass(frozen=True, slots=True)
class RootSignature:
    """Both signatures over one root."""

    position: TransactionId
    root: bytes
    node_id: str
    node_signature: bytes
    node_certificate: str
    protected: bytes
    service_signature: bytes
    #: The enclave's commit position when it signed (L3).
    committed: TransactionId

    @property
    def issued_s(self) -> int:
        """The enclave's time when it signed, in seconds since the Unix epoch; only of a signature that is verified."""
        message = cose.parse(cose.encode(self.protected, self.service_signature, None))
        return int(message.headers[CWT_CLAIMS][ISSUED_AT])

    def signatures_row(self) -> bytes:
        """Value of the ``signatures`` table."""
        record = {
            "seqno": self.position.seqno,
            "view": self.position.view,
            "node": self.node_id,
            "root": self.root.hex(),
            "sig": base64.b64encode(self.node_signature).decode(),
            "cert": self.node_certificate,
            "commit_seqno": self.committed.seqno,
            "commit_view": self.committed.view,
        }
        return json.dumps(record, separators=(",", ":")).encode()

    def cose_row(self) -> bytes:
        """Value of the ``cose_signatures`` table."""
        message = cose.encode(self.protected, self.service_signature, None)
        return json.dumps(base64.b64encode(message).decode()).encode()


def sign_root(
    node_key: ec.EllipticCurvePrivateKey,
    service_key: ec.EllipticCurvePrivateKey,
    *,
    node_certificate: str,
    position: TransactionId,
    root: bytes,
    committed: TransactionId,
    time_s: int,
) -> RootSignature:
    """Sign ``root``, which covers every entry before ``position``, with both keys (about 0.7 ms)."""
    node_signature = node_key.sign(root, ec.ECDSA(utils.Prehashed(hashes.SHA256())))
    headers: dict[Any, Any] = {
        cose.KEY_ID: cose.key_id(service_key.public_key()).encode(),
        VDS: VDS_CCF_LEDGER,
        CWT_CLAIMS: {ISSUED_AT: time_s},
        "ccf.v1": {"txid": str(position)},
    }
    protected, service_signature = cose.sign(service_key, headers, root)
    return RootSignature(
        position=position,
        root=root,
        node_id=cose.key_id(node_key.public_key()),
        node_signature=node_signature,
        node_certificate=node_certificate,
        protected=protected,
        service_signature=service_signature,
        committed=committed,
    )


def parse_rows(signatures: bytes, cose_signatures: bytes) -> RootSignature:
    """Read the two rows back.

    Raises:
        LedgerError: they are malformed (``ledger.bad_signature_row``).
    """
    try:
        record = json.loads(signatures)
        message = cose.parse(base64.b64decode(json.loads(cose_signatures), validate=True))
        return RootSignature(
            position=TransactionId(int(record["view"]), int(record["seqno"])),
            root=bytes.fromhex(record["root"]),
            node_id=str(record["node"]),
            node_signature=base64.b64decode(record["sig"], validate=True),
            node_certificate=str(record["cert"]),
            protected=message.protected,
            service_signature=message.signature,
            committed=TransactionId(int(record["commit_view"]), int(record["commit_seqno"])),
        )
    except (ValueError, KeyError, TypeError, RecursionError, RequestError) as error:
        raise LedgerError("a signature row is malformed", code="ledger.bad_signature_row") from error


def verify_node(signature: RootSignature) -> None:
    """Check that the node which an entry names has signed the root which it names; not whose node it is.

    Raises:
        LedgerError: ``ledger.bad_signature``.
    """
    try:
        key = x509.load_pem_x509_certificate(signature.node_certificate.encode()).public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey) or cose.key_id(key) != signature.node_id:
            raise LedgerError(f"the signature at {signature.position} names another node", code="ledger.bad_signature")
        key.verify(signature.node_signature, signature.root, ec.ECDSA(utils.Prehashed(hashes.SHA256())))
    except (*_NO_CERTIFICATE, InvalidSignature) as error:
        raise LedgerError(
            f"the signature at {signature.position} does not verify", code="ledger.bad_signature"
        ) from error


def verify_root(
    signature: RootSignature, *, root: bytes, position: TransactionId, service_key: ec.EllipticCurvePublicKey
) -> None:
    """Check both signatures over ``root`` at ``position``.

    Raises:
        LedgerError: ``ledger.bad_signature``.
    """
    try:
        if signature.root != root or signature.position != position:
            raise LedgerError(f"the signature at {position} signs something else", code="ledger.bad_signature")
        certificate = x509.load_pem_x509_certificate(signature.node_certificate.encode())
        node_key = certificate.public_key()
        if not isinstance(node_key, ec.EllipticCurvePublicKey) or cose.key_id(node_key) != signature.node_id:
            raise LedgerError(f"the signature at {position} names another node", code="ledger.bad_signature")
        # The outer name of the algorithm is not signed, and the inner one says the same of what the service signs.
        if certificate.signature_algorithm_oid != SignatureAlgorithmOID.ECDSA_WITH_SHA384:
            raise LedgerError(f"the signature at {position} shows no certificate", code="ledger.bad_signature")
        service_key.verify(certificate.signature, certificate.tbs_certificate_bytes, ec.ECDSA(hashes.SHA384()))
        node_key.verify(signature.node_signature, root, ec.ECDSA(utils.Prehashed(hashes.SHA256())))
        message = cose.parse(cose.encode(signature.protected, signature.service_signature, None))
        if message.headers.get("ccf.v1") != {"txid": str(position)}:
            raise LedgerError(f"the service signature at {position} is for another place", code="ledger.bad_signature")
        cose.verify(message, service_key, root)
    except (*_NO_CERTIFICATE, InvalidSignature, RequestError) as error:
        raise LedgerError(f"the signature at {position} does not verify", code="ledger.bad_signature") from error
