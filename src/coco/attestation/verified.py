"""What evidence proves once its signatures are verified: the same form for every platform."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from coco.errors import AttestationError

SGX: Final = "sgx"
TDX: Final = "tdx"
SNP: Final = "snp"
NITRO: Final = "nitro"
AZURE_VTPM: Final = "azure_vtpm"
VBS: Final = "vbs"

REPORT_DATA_BYTES: Final = 64


@dataclass(frozen=True, slots=True)
class Verified:
    """Claims of an enclave that its platform's vendor vouches for.

    Whether they are good enough is for a policy to say (:mod:`coco.attestation.policy`). Nothing here is a digest of
    the evidence as it came: quotes can be changed in places that no signature covers.
    """

    platform: str
    #: Hex of what was measured at launch: MRENCLAVE, MRTD, the launch measurement, PCR0, the unique id.
    measurement: str
    #: Hex identity of who signed the code; empty where the platform has none, or none was used.
    signer: str
    #: What the enclave had its platform sign, 64 bytes; shorter data is followed by zeros.
    report_data: bytes
    #: Whether somebody outside may look into the enclave.
    debug: bool
    #: State of the platform's firmware in the vendor's words; empty where the vendor gives numbers only.
    tcb_status: str
    #: Seconds since the Unix epoch between which every endorsement is valid.
    valid_from_s: int
    valid_until_s: int
    advisories: tuple[str, ...] = ()
    #: What else the platform says; JSON.
    claims: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """For a row of the ledger, which is judged again when the manifest changes (H6)."""
        return {
            "platform": self.platform,
            "measurement": self.measurement,
            "signer": self.signer,
            "report_data": self.report_data.hex(),
            "debug": self.debug,
            "tcb_status": self.tcb_status,
            "valid_from_s": self.valid_from_s,
            "valid_until_s": self.valid_until_s,
            "advisories": list(self.advisories),
            "claims": dict(self.claims),
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Verified:
        """What :meth:`to_json` wrote."""
        data, advisories = bytes.fromhex(document["report_data"]), tuple(document["advisories"])
        return cls(**{**document, "report_data": data, "advisories": advisories})


def refuse(reason: str, code: str) -> AttestationError:
    """The error of evidence that proves nothing."""
    return AttestationError(reason, code=f"attestation.{code}")


def check_time(now_s: int, valid_from_s: int, valid_until_s: int, what: str) -> None:
    """Whether something is valid now.

    Raises:
        AttestationError: it is over (``attestation.stale``) or has not begun (``attestation.future``).
    """
    if now_s < valid_from_s:
        raise refuse(f"{what} is not valid yet", "future")
    if now_s > valid_until_s:
        raise refuse(f"{what} is not valid any more", "stale")
