"""What a member does: state that a recovered service continues the old one, and give its recovery share."""

from __future__ import annotations

import base64
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from coco.client.http import HttpsClient
from coco.client.pin import service_key
from coco.errors import AttestationError, ConfigurationError
from coco.ledger.position import Position
from coco.ledger.statements import (
    IDENTITY_STATEMENT,
    RECOVERY_SHARE,
    decrypt_share,
    fingerprint,
    identity_payload,
    share_payload,
    sign_as_member,
)


@dataclass(frozen=True)
class Member:
    """A member's keys, from files."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey
    encryption_key: rsa.RSAPrivateKey

    @classmethod
    def load(cls, certificate: Path, key: Path, encryption_key: Path) -> Member:
        """Read PEM files.

        Raises:
            ConfigurationError: a file holds something else (``client.bad_key_file``).
        """
        try:
            signing = serialization.load_pem_private_key(key.read_bytes(), None)
            decrypting = serialization.load_pem_private_key(encryption_key.read_bytes(), None)
            loaded = x509.load_pem_x509_certificate(certificate.read_bytes())
        except (ValueError, TypeError) as error:
            raise ConfigurationError(f"{error}", code="client.bad_key_file") from error
        if not isinstance(signing, ec.EllipticCurvePrivateKey) or not isinstance(decrypting, rsa.RSAPrivateKey):
            raise ConfigurationError("a member signs with P-384 and decrypts with RSA", code="client.bad_key_file")
        return cls(loaded, signing, decrypting)

    def sign(self, kind: str, payload: Any) -> bytes:
        """A COSE message."""
        return sign_as_member(self.key, self.certificate, kind, payload, created_at_s=int(time.time()))


async def recover(client: HttpsClient, member: Member, *, pinned_service: str, seen: str) -> dict[str, Any]:
    """State the new identity and submit the share, if the service continues what the member knows.

    Args:
        client: the administration listener of the recovering node, already verified by its evidence.
        member: the member's keys.
        pinned_service: PEM of the service that the member knew.
        seen: highest transaction id that the member saw committed; ``0.0`` when none.

    Raises:
        AttestationError: the ledger is another one, or ends before ``seen``; nothing was signed and no share sent.
    """
    state: dict[str, Any] = (await client.request("GET", "/gov/recovery")).json()
    if state["status"] != "WaitingForRecoveryShares":
        return state
    previous = service_key(state["previous_service"])
    if previous != service_key(pinned_service):
        raise AttestationError("the node recovers another service", code="client.other_service")
    if Position.parse(state["transaction_id"]) < Position.parse(seen):
        raise AttestationError(
            f"the recovered ledger ends at {state['transaction_id']}, but {seen} was seen committed",
            code="client.rolled_back",
        )
    payload = identity_payload(previous, service_key(state["next_service"]), state["transaction_id"], state["root"])
    cose_type = "application/cose"
    statement = member.sign(IDENTITY_STATEMENT, payload)
    (await client.request("POST", "/gov/recovery/statements", statement, content_type=cose_type)).json()
    name = fingerprint(member.certificate)
    encrypted = (await client.request("GET", f"/gov/recovery/encrypted-shares/{name}")).json()["encryptedShare"]
    share = decrypt_share(base64.b64decode(encrypted), member.encryption_key)
    message = member.sign(RECOVERY_SHARE, share_payload(share))
    path = f"/gov/recovery/members/{name}:recover"
    (await client.request("POST", path, message, content_type=cose_type)).json()
    return (await client.request("GET", "/gov/recovery")).json()  # type: ignore[no-any-return]
