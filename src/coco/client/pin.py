"""The pin file: which service a client trusts, who may say that another continues it, and how far it has seen.

A client moves from one service identity to the next only on the signatures of a majority of the members that it knew
(J7), and never to a ledger that ends before what it has seen.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from coco.client.files import write_whole
from coco.crypto import cose
from coco.errors import AttestationError, ConfigurationError, RequestError
from coco.ledger.statements import IDENTITY_STATEMENT, MESSAGE_TYPE, fingerprint, parse_json, spki_of
from coco.ledger.transaction_id import TransactionId

_STATEMENTS_MAX = 100_000
#: Former and new key of the service, where in the ledger, and whether the ledger goes on.
_Link = tuple[bytes, bytes, TransactionId, bool]


@dataclass
class Pin:
    """What a client remembers of a network."""

    service: str
    members: dict[str, str] = field(default_factory=dict)
    position: str = "0.0"

    @classmethod
    def load(cls, path: Path) -> Pin | None:
        """Read a pin file; None when there is none.

        Raises:
            ConfigurationError: it is damaged (``client.bad_pin``).
        """
        try:
            document = parse_json(path.read_bytes())
            pin = cls(str(document["service"]), dict(document["members"]), str(document["position"]))
            pin.key()
            TransactionId.parse(pin.position)
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, RequestError) as error:
            raise ConfigurationError(
                f"the pin file {path} is damaged",
                code="client.bad_pin",
                hint="take a copy of it, or compare the service certificate with the operator and begin another one",
            ) from error
        return pin

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        write_whole(path, {"service": self.service, "members": self.members, "position": self.position})

    def key(self) -> bytes:
        """DER SubjectPublicKeyInfo of the pinned service."""
        return service_key(self.service)

    def saw(self, position: str) -> bool:
        """Remember a committed position; True when it is news."""
        if position and TransactionId.parse(position) > TransactionId.parse(self.position):
            self.position = position
            return True
        return False

    def follow(self, service: str, statements: list[dict[str, Any]]) -> bool:
        """Move to ``service`` if members' statements lead there; True when ids of its ledger mean something new.

        Raises:
            AttestationError: they do not (``client.other_service``), or the ledger was cut (``client.rolled_back``).
        """
        target = service_key(service)
        at = self.key()
        if target == at:
            return False
        links = self._links(statements)
        last_known = TransactionId.parse(self.position)
        for _ in range(len(links) + 1):
            found = [
                (following, position, goes_on)
                for (previous, following, position, goes_on), signers in links.items()
                if previous == at and len(signers) > len(self.members) // 2
            ]
            if not found:
                break
            at, position, goes_on = found[-1]
            if goes_on:
                # Nothing ended: what was seen is to be found under its id.
                if at == target:
                    self.service = service
                    if last_known == TransactionId(0, 0):
                        self.position = "0.0"
                    return last_known == TransactionId(0, 0)
                continue
            if position < last_known:
                raise AttestationError(
                    f"the service continues from {position}, but {last_known} was seen committed",
                    code="client.rolled_back",
                    hint="the ledger was cut or rolled back: do not use this node; recover from a later copy",
                )
            # Ids have a meaning only within one identity: beyond the first link nothing has been seen.
            last_known = TransactionId(0, 0)
            if at == target:
                self.service = service
                self.position = "0.0"
                return True
        raise AttestationError(
            "the node runs another service than the pinned one, and no majority of its members says that it follows",
            code="client.other_service",
            hint="compare the service certificate with the operator, then remove the pin file",
        )

    def _links(self, statements: list[dict[str, Any]]) -> dict[_Link, set[str]]:
        links: dict[_Link, set[str]] = {}
        for row in statements[:_STATEMENTS_MAX]:
            try:
                message = cose.parse(bytes.fromhex(row["statement"]))
                member = message.headers[cose.KEY_ID].decode()
                certificate = x509.load_pem_x509_certificate(self.members[member].encode())
                key = certificate.public_key()
                if message.headers.get(MESSAGE_TYPE) != IDENTITY_STATEMENT or fingerprint(certificate) != member:
                    continue
                if not isinstance(key, ec.EllipticCurvePublicKey):
                    continue
                cose.verify(message, key)
                payload = parse_json(message.payload or b"")
                link = (
                    bytes.fromhex(payload["previous_service"]),
                    bytes.fromhex(payload["next_service"]),
                    TransactionId.parse(payload["transaction_id"]),
                    payload.get("goes_on") is True,
                )
            except (ValueError, KeyError, TypeError, AttributeError, RequestError):
                continue  # a statement of a stranger, or a broken one, counts for nothing
            links.setdefault(link, set()).add(member)
        return links


def service_key(pem: str) -> bytes:
    """DER SubjectPublicKeyInfo of a service certificate."""
    try:
        return spki_of(pem)
    except ValueError as error:
        raise ConfigurationError(f"the service certificate is wrong: {error}", code="client.bad_pin") from error
