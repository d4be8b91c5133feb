"""Evidence as it travels, of any platform, and the report data that binds it to a key.

Report data (J1): bytes 0-31 are SHA-256 of the node key, bytes 32-63 SHA-256 over labelled nonce, encryption key,
service identity, constitution hash and start configuration hash, with defined empty values before joining.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Final

from coco.attestation import azure_vtpm, nitro, sgx, snp, tdx, vbs
from coco.attestation.policy import INSECURE_VIRTUAL
from coco.attestation.verified import AZURE_VTPM, NITRO, REPORT_DATA_BYTES, SGX, SNP, TDX, VBS, Verified, refuse

#: The platform that is none: insecure by name.
VIRTUAL: Final = INSECURE_VIRTUAL
_CONTEXT_LABEL: Final = b"coco report data v1"
NONCE_BYTES_MAX: Final = 64
#: Evidence of Azure has a certificate chain and a policy with it; collateral of Intel is the largest.
_BYTES_MAX: Final = 256 * 1024
FOR_EVER_S = (1 << 53) - 1


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
    """What a platform says about an enclave, and what its vendor says about the platform."""

    platform: str
    evidence: bytes
    endorsements: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, str]:
        """The form that ``/node/attestation`` serves and a joiner sends."""
        endorsed = json.dumps(self.endorsements, sort_keys=True).encode() if self.endorsements else b""
        return {
            "platform": self.platform,
            "evidence": base64.b64encode(self.evidence).decode(),
            "endorsements": base64.b64encode(endorsed).decode(),
        }

    @classmethod
    def parse(cls, document: Mapping[str, Any]) -> Evidence:
        """Read what ``to_json`` wrote.

        Raises:
            AttestationError: ``attestation.malformed`` or ``attestation.unknown_platform``.
        """
        platform = document.get("platform")
        if not isinstance(platform, str) or platform not in _VERIFIERS:
            raise refuse(f"unknown platform {str(platform)[:32]}", "unknown_platform")
        try:
            evidence, endorsed = (
                base64.b64decode(document.get(part, ""), validate=True) for part in ("evidence", "endorsements")
            )
            if len(evidence) + len(endorsed) > _BYTES_MAX:
                raise refuse("evidence is not that large", "malformed")
            endorsements = json.loads(endorsed.decode()) if endorsed else {}
            json.dumps(endorsements, ensure_ascii=False).encode()  # half a surrogate pair could be written nowhere
        except (ValueError, TypeError, RecursionError) as error:
            raise refuse("the evidence is malformed", "malformed") from error
        if not isinstance(endorsements, dict) or not all(isinstance(one, str) for one in endorsements.values()):
            raise refuse("the endorsements are malformed", "malformed")
        return cls(platform, evidence, endorsements)

    def verify(self, *, now_s: int) -> Verified:
        """Verify what its vendor signed; whether that is good enough, a policy says.

        Args:
            now_s: the time, in seconds since the Unix epoch.

        Raises:
            AttestationError: it proves nothing, with the code of its platform's module.
        """
        return _VERIFIERS[self.platform](self.evidence, self.endorsements, now_s=now_s)


def virtual(measurement: str, data: bytes) -> Evidence:
    """What platform ``virtual`` says: anything."""
    body = json.dumps({"measurement": measurement, "report_data": data.hex()}).encode()
    return Evidence(VIRTUAL, body)


def _verify_virtual(evidence: bytes, endorsements: Mapping[str, str], *, now_s: int) -> Verified:
    """Read what it says; nobody vouches for it."""
    try:
        body = json.loads(evidence.decode())
        measurement, data = str(body["measurement"]), bytes.fromhex(body["report_data"])
        measurement.encode()  # half a surrogate pair could be written nowhere
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise refuse("the evidence is malformed", "malformed") from error
    if len(data) != REPORT_DATA_BYTES:
        raise refuse("the evidence is malformed", "malformed")
    return Verified(
        platform=VIRTUAL,
        measurement=measurement,
        signer="",
        report_data=data,
        debug=False,
        tcb_status="",
        valid_from_s=0,
        valid_until_s=FOR_EVER_S,
    )


_VERIFIERS: Mapping[str, Callable[..., Verified]] = {
    VIRTUAL: _verify_virtual,
    SGX: sgx.verify,
    TDX: tdx.verify,
    SNP: snp.verify,
    NITRO: nitro.verify,
    AZURE_VTPM: azure_vtpm.verify,
    VBS: vbs.verify,
}
