"""AWS Nitro Enclaves: attestation documents of the Nitro security module.

Evidence: a COSE_Sign1 under ES384 whose payload has the certificate of the enclave's instance and what leads to it.
Endorsements: none. A certificate lives about three hours: fresh evidence is verified now, and with a nonce.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import cbor2
from cryptography.exceptions import InvalidSignature

from coco.attestation import signed
from coco.attestation.certificates import check_chain, check_dates, load_der, name_of
from coco.attestation.verified import NITRO, REPORT_DATA_BYTES, Verified, refuse
from coco.crypto import cose

#: SHA-256 of the root certificate that AWS publishes (G1).
ROOT: Final = "641a0321a3e244efe456463195d606317ed7cdcc3c1756e09893f3c68f79bb5b"
_PCR_BYTES = 48
_PCRS_MAX = 32
#: The registers of image, kernel and application; all zero in debug mode.
_MEASURED = (0, 1, 2)
_SIGNER = 8
_CERTIFICATES_MAX = 8


def verify(document: bytes, endorsements: Mapping[str, str], *, now_s: int, root: str = ROOT) -> Verified:
    """Verify a document under AWS's root.

    Report data is the field ``user_data``; the field ``public_key`` is among the claims.

    Args:
        document: as the module made it.
        endorsements: none are needed.
        now_s: the time, in seconds since the Unix epoch; of a stored document, its own.
        root: SHA-256 of the trusted root.

    Raises:
        AttestationError: ``attestation.malformed``, ``.root``, ``.chain``, ``.signature``, ``.stale``, ``.future``.
    """
    message, payload = signed.parse(document)
    body = _body(payload)
    path = [load_der(one) for one in (*body["cabundle"], body["certificate"])]
    if name_of(path[0]) != root:
        raise refuse("the root is not AWS's", "root")
    check_chain(path)
    begin, end = check_dates(path, now_s)
    try:
        if message.algorithm != cose.ES384:
            raise InvalidSignature
        signed.verify(message, path[-1].public_key())
    except InvalidSignature as error:
        raise refuse("the instance did not sign this document", "signature") from error
    made_s = body["timestamp"] // 1000
    if not begin <= made_s <= end:
        raise refuse("the document names a time at which its certificate did not count", "malformed")
    pcrs = {str(number): value.hex() for number, value in sorted(body["pcrs"].items()) if any(value)}
    return Verified(
        platform=NITRO,
        measurement=body["pcrs"].get(0, bytes(_PCR_BYTES)).hex(),
        signer=pcrs.get(str(_SIGNER), ""),
        report_data=_report_data(body.get("user_data") or b""),
        debug=not any(str(number) in pcrs for number in _MEASURED),
        tcb_status="",
        valid_from_s=begin,
        valid_until_s=end,
        claims={
            "pcrs": pcrs,
            "module_id": body["module_id"],
            "made_s": made_s,
            "nonce": (body.get("nonce") or b"").hex(),
            "public_key": (body.get("public_key") or b"").hex(),
        },
    )


def _report_data(user_data: bytes) -> bytes:
    """The 64 bytes of report data; longer data is somebody else's, and never ours."""
    return (
        user_data.ljust(REPORT_DATA_BYTES, b"\0") if len(user_data) <= REPORT_DATA_BYTES else bytes(REPORT_DATA_BYTES)
    )


def _body(payload: bytes) -> Mapping[str, Any]:
    """The fields of a document, of the types that they should have."""
    try:
        body = cbor2.loads(payload)
        known = (
            body["digest"] == "SHA384"
            and isinstance(body["module_id"], str)
            and isinstance(body["timestamp"], int)
            and isinstance(body["certificate"], bytes)
            and 0 < len(body["cabundle"]) <= _CERTIFICATES_MAX
            and all(isinstance(one, bytes) for one in body["cabundle"])
            and 0 < len(body["pcrs"]) <= _PCRS_MAX
            and all(isinstance(key, int) and len(value) == _PCR_BYTES for key, value in body["pcrs"].items())
            and all(isinstance(body.get(one), bytes | None) for one in ("user_data", "nonce", "public_key"))
        )
    except (cbor2.CBORError, ValueError, KeyError, TypeError, EOFError, AttributeError, RecursionError) as error:
        raise refuse("not a document of a Nitro enclave", "malformed") from error
    if not known:
        raise refuse("not a document of a Nitro enclave", "malformed")
    found: Mapping[str, Any] = body
    return found
