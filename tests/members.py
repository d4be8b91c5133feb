"""Members with keys in files, organisations, and somebody of them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from coco.attestation.evidence import virtual
from coco.cli.keys import make_actor
from coco.crypto.certificates import pem
from coco.ledger.statements import fingerprint, sign_as_member


def node_row(**fields: Any) -> dict[str, Any]:
    """The row of a node on platform virtual."""
    verified = virtual(fields["measurement"], bytes(64)).verify(now_s=0)
    return {**fields, "verified": verified.to_json()}


class Member:
    def __init__(self, directory: Any, name: str) -> None:
        self.pem = make_actor(directory, name)
        self.certificate = x509.load_pem_x509_certificate(self.pem.encode())
        key = load_pem_private_key((directory / f"{name}.key.pem").read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        self.key, self.id = key, fingerprint(self.certificate)
        self.now = 1000

    def sign(self, kind: str, payload: Any, proposal: str = "", at: int | None = None) -> bytes:
        self.now += 1
        created = self.now if at is None else at
        return sign_as_member(self.key, self.certificate, kind, payload, created_at_s=created, proposal_id=proposal)


class Leaf:
    """Somebody of an organisation."""

    def __init__(self, member: str, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
        self.id, self.key, self.certificate, self.now = member, key, certificate, 2000

    def sign(self, kind: str, payload: Any, proposal: str = "", at: int | None = None) -> bytes:
        self.now += 1
        created = self.now if at is None else at
        return sign_as_member(
            self.key, self.certificate, kind, payload, created_at_s=created, proposal_id=proposal, organisation=self.id
        )


class Organisation(Member):
    """A member whose certificate issues others: any leaf of it signs for it."""

    def __init__(self, directory: Any, name: str, now: datetime = datetime.fromtimestamp(0, UTC)) -> None:
        super().__init__(directory, name)
        self.begin = now
        self.certificate = self.issue(name, self.key, ca=True)
        self.pem, self.id = pem(self.certificate), fingerprint(self.certificate)

    def issue(self, name: str, key: ec.EllipticCurvePrivateKey, *, ca: bool = False, days: int = 9) -> x509.Certificate:
        subject, issuer = (x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, one)]) for one in (name, "org"))
        return (
            x509.CertificateBuilder()
            .subject_name(issuer if ca else subject)
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(self.begin - timedelta(days=1))
            .not_valid_after(self.begin + timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .sign(self.key, hashes.SHA384())
        )

    def leaf(self, name: str, days: int = 9) -> Leaf:
        key = ec.generate_private_key(ec.SECP384R1())
        return Leaf(self.id, key, self.issue(name, key, days=days))
