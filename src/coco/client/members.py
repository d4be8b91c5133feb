"""What a member does: state that a recovered service continues the old one, and give its recovery share."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from coco.client.files import write_whole
from coco.client.http import HttpsClient
from coco.client.pin import service_key
from coco.client.signer import Token, TokenKey
from coco.client.verify import service_context, verify_node
from coco.errors import AttestationError, ConfigurationError, RequestError
from coco.ledger.statements import (
    IDENTITY_STATEMENT,
    RECOVERY_SHARE,
    DecryptingKey,
    decrypt_share,
    fingerprint,
    identity_payload,
    parse_json,
    share_payload,
    sign_as_member,
)
from coco.ledger.transaction_id import TransactionId


@dataclass(frozen=True)
class Member:
    """A member's keys, from files."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey
    encryption_key: DecryptingKey

    @classmethod
    def load(cls, certificate: Path, key: Path, encryption_key: Path | Token) -> Member:
        """Read PEM files; the key of the share may be in a token.

        Raises:
            ConfigurationError: a file holds something else (``client.bad_key_file``).
        """
        try:
            signing = serialization.load_pem_private_key(key.read_bytes(), None)
            decrypting: Any
            if isinstance(encryption_key, Token):
                decrypting = TokenKey(encryption_key)
            else:
                decrypting = serialization.load_pem_private_key(encryption_key.read_bytes(), None)
            loaded = x509.load_pem_x509_certificate(certificate.read_bytes())
        except (OSError, ValueError, TypeError) as error:
            raise ConfigurationError(f"{error}", code="client.bad_key_file") from error
        if not isinstance(signing, ec.EllipticCurvePrivateKey) or not isinstance(
            decrypting, rsa.RSAPrivateKey | TokenKey
        ):
            raise ConfigurationError("a member signs with P-384 and decrypts with RSA", code="client.bad_key_file")
        return cls(loaded, signing, decrypting)

    def sign(self, kind: str, payload: Any) -> bytes:
        """A COSE message."""
        return sign_as_member(self.key, self.certificate, kind, payload, created_at_s=int(time.time()))


@dataclass
class Record:
    """What a member remembers between commands: how far it has seen each service, and where its share went (J8)."""

    #: Newest committed transaction id that was seen, by hex key of the service.
    seen: dict[str, str] = field(default_factory=dict)
    #: Hex key of the service that a share was released to, by that of the one before it.
    released: dict[str, str] = field(default_factory=dict)

    @classmethod
    def beside(cls, certificate: Path) -> Path:
        """Where the record of the member with this certificate lies."""
        return certificate.with_name(certificate.stem + ".record.json")

    @classmethod
    def load(cls, path: Path) -> Record:
        """Read a record; an empty one when there is none.

        Raises:
            ConfigurationError: it is damaged (``member.bad_record``).
        """
        try:
            document = parse_json(path.read_bytes())
            record = cls(dict(document["seen"]), dict(document["released"]))
            for position in record.seen.values():
                TransactionId.parse(position)
        except FileNotFoundError:
            return cls()
        except (ValueError, KeyError, TypeError, RequestError) as error:
            raise ConfigurationError(f"the record {path} is damaged", code="member.bad_record") from error
        return record

    def save(self, path: Path) -> None:
        """Write it, whole or not at all: what was released is on the disk before the share leaves."""
        write_whole(path, {"seen": self.seen, "released": self.released})

    def saw(self, service: str, position: str) -> bool:
        """Remember a committed position of a service (PEM); True when it is news."""
        key = service_key(service).hex()
        if position and TransactionId.parse(position) > TransactionId.parse(self.seen.get(key, "0.0")):
            self.seen[key] = position
            return True
        return False


@dataclass(frozen=True)
class Trust:
    """What a recovering node must prove before a share leaves."""

    #: PEM of the service that the member knew.
    service: str
    #: Code that the member knows; empty: any, which only a sandbox should accept.
    measurements: tuple[str, ...] = ()
    insecure_virtual: bool = False
    #: Release a share although one went to another service before.
    again: bool = False


async def release(address: tuple[str, int], member: Member, trust: Trust, record_file: Path) -> dict[str, Any]:
    """State the new identity and give the share to a recovering node that proves what it should (J8).

    The share travels in TLS that ends in the enclave whose evidence was verified: its key is in the evidence.

    Raises:
        AttestationError: the node proves something else, or a share was released to another one before; none was sent.
    """
    verified = await verify_node(*address, None, accept_insecure_virtual=trust.insecure_virtual)
    if trust.measurements and verified.measurement not in trust.measurements:
        raise AttestationError("the node runs other code than the member knows", code="client.other_code")
    record = Record.load(record_file)
    previous, following = service_key(trust.service).hex(), service_key(verified.service).hex()
    if record.released.get(previous, following) != following and not trust.again:
        raise AttestationError(
            "a share of this service went to another one before: only one can continue it",
            code="client.released_before",
            hint="if that recovery came to nothing, say --again",
        )
    client = HttpsClient(*address, service_context(verified.service))
    try:
        seen = record.seen.get(previous, "0.0")
        # Written before anything is sent: whoever dies in between has released it.
        released = replace(record, released={**record.released, previous: following})
        return await recover(
            client, member, pinned_service=trust.service, seen=seen, releasing=lambda: released.save(record_file)
        )
    finally:
        await client.close()


async def recover(
    client: HttpsClient,
    member: Member,
    *,
    pinned_service: str,
    seen: str,
    releasing: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """State the new identity and submit the share, if the service continues what the member knows.

    Args:
        client: the administration listener of the recovering node, already verified by its evidence.
        member: the member's keys.
        pinned_service: PEM of the service that the member knew.
        seen: highest transaction id that the member saw committed; ``0.0`` when none.
        releasing: called before the first message leaves.

    Raises:
        AttestationError: the ledger is another one, or ends before ``seen``; nothing was signed and no share sent.
    """
    state: dict[str, Any] = (await client.request("GET", "/gov/recovery")).json()
    if state["status"] != "WaitingForRecoveryShares":
        return state
    previous = service_key(state["previous_service"])
    if previous != service_key(pinned_service):
        raise AttestationError("the node recovers another service", code="client.other_service")
    if TransactionId.parse(state["transaction_id"]) < TransactionId.parse(seen):
        raise AttestationError(
            f"the recovered ledger ends at {state['transaction_id']}, but {seen} was seen committed",
            code="client.rolled_back",
        )
    payload = identity_payload(previous, service_key(state["next_service"]), state["transaction_id"], state["root"])
    releasing()
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
