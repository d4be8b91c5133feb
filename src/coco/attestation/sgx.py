"""Intel SGX: an enclave's quote."""

from __future__ import annotations

from collections.abc import Mapping

from coco.attestation import dcap
from coco.attestation.verified import SGX, Verified


def verify(quote: bytes, endorsements: Mapping[str, str], *, now_s: int, root: bytes | None = None) -> Verified:
    """As :func:`coco.attestation.dcap.verify`; the measurement is MRENCLAVE, the signer MRSIGNER."""
    return dcap.verify(quote, endorsements, now_s=now_s, platform=SGX, root=root)
