"""Intel TDX: a guest's quote."""

from __future__ import annotations

from collections.abc import Mapping

from coco.attestation import dcap
from coco.attestation.verified import TDX, Verified


def verify(quote: bytes, endorsements: Mapping[str, str], *, now_s: int, root: bytes | None = None) -> Verified:
    """As :func:`coco.attestation.dcap.verify`; the measurement is MRTD, and the run-time registers are claims."""
    return dcap.verify(quote, endorsements, now_s=now_s, platform=TDX, root=root)
