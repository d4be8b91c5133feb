"""Evidence, report data, and the one platform of this version: ``virtual``, which is insecure by name.

Report data (J1): bytes 0-31 are SHA-256 of the node key, bytes 32-63 SHA-256 over labelled nonce, encryption key,
service identity, constitution hash and start configuration hash, with defined empty values before joining.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final

from coco.errors import AttestationError

VIRTUAL: Final = "insecure_virtual"
_CONTEXT_LABEL: Final = b"coco report data v1"
NONCE_BYTES_MAX: Final = 64


def _sized(value: bytes) -> bytes:
    return len(value).to_bytes(4, "big") + value


def report_data(
    node_key: bytes,
    *,
    nonce: bytes = b"",
    encryption_key: bytes = b"",
    service: bytes = b"",
    constitution: bytes = b"",
    configuration: bytes = b"",
) -> bytes:
    """The 64 bytes that bind evidence to a key and its context.

    Args:
        node_key: DER SubjectPublicKeyInfo of the node key.
        nonce: a verifier's freshness nonce.
        encryption_key: DER of the key to which secrets are sealed, empty before joining.
        service: DER SubjectPublicKeyInfo of the service key, empty before joining.
        constitution: SHA-256 of the constitution.
        configuration: SHA-256 of the start configuration.
    """
    context = b"".join(_sized(part) for part in (nonce, encryption_key, service, constitution, configuration))
    return sha256(node_key).digest() + sha256(_CONTEXT_LABEL + context).digest()


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a platform says about an enclave."""

    platform: str
    measurement: str
    report_data: bytes

    def to_json(self) -> dict[str, Any]:
        """The form that ``/node/attestation`` serves."""
        body = json.dumps({"measurement": self.measurement, "report_data": self.report_data.hex()}).encode()
        return {"platform": self.platform, "evidence": base64.b64encode(body).decode(), "endorsements": ""}

    @classmethod
    def parse(cls, document: dict[str, Any]) -> Evidence:
        """Read what ``to_json`` wrote.

        Raises:
            AttestationError: ``attestation.malformed`` or ``attestation.unknown_platform``.
        """
        platform = document.get("platform")
        if platform != VIRTUAL:
            raise AttestationError(f"unknown platform {platform!r}", code="attestation.unknown_platform")
        try:
            body = json.loads(base64.b64decode(document["evidence"], validate=True))
            parsed = cls(VIRTUAL, str(body["measurement"]), bytes.fromhex(body["report_data"]))
        except (KeyError, ValueError, TypeError) as error:
            raise AttestationError("the evidence is malformed", code="attestation.malformed") from error
        if len(parsed.report_data) != 64:
            raise AttestationError("the evidence is malformed", code="attestation.malformed")
        return parsed


def verify(evidence: Evidence, *, expected_report_data: bytes, accept_insecure_virtual: bool) -> None:
    """Decide whether ``evidence`` proves an enclave that holds the expected key and context.

    Raises:
        AttestationError: ``attestation.insecure_platform`` or ``attestation.report_data``.
    """
    if evidence.platform == VIRTUAL and not accept_insecure_virtual:
        raise AttestationError(
            "platform virtual proves nothing",
            code="attestation.insecure_platform",
            hint="for development only: accept it by --insecure-virtual",
        )
    if evidence.report_data != expected_report_data:
        raise AttestationError("the evidence is for another key or context", code="attestation.report_data")
