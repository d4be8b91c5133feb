"""Ledger secrets at rest: wrapped, and the wrapping key split among members (K3, K4).

The current secret rests under a wrapping key whose shares go, encrypted, to the recovery members; key and shares are
handles of the extension and never Python bytes (K5). Each former secret
rests under a key derived from its successor, so that whoever recovers the last one reads every epoch.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from hashlib import sha256
from typing import Any

from coco._native import LedgerSecret, Share, WrappingKey
from coco.errors import LedgerError

_LABEL = b"coco wrapped ledger secret v1"
_FORMER_LABEL = b"coco former ledger secret v1"


def _sized(value: bytes) -> bytes:
    return len(value).to_bytes(8, "big") + value


def binding(service_key: bytes, first_seqno: int, members: Mapping[str, bytes], threshold: int) -> bytes:
    """What a wrapped secret is bound to (K4): the service, the epoch's first seqno, recovery members and threshold."""
    digest = sha256()
    for member, key in sorted(members.items()):
        digest.update(_sized(member.encode()) + _sized(key))
    numbers = first_seqno.to_bytes(8, "big") + threshold.to_bytes(2, "big")
    return _LABEL + _sized(service_key) + numbers + digest.digest()


def wrap(
    secret: LedgerSecret,
    *,
    service_key: bytes,
    first_seqno: int,
    members: Mapping[str, bytes],
    threshold: int,
) -> bytes:
    """Row that keeps ``secret``: JSON with the wrapped secret and one encrypted share for each member.

    Args:
        secret: the epoch's secret.
        service_key: DER SubjectPublicKeyInfo of the service.
        first_seqno: first entry that the secret seals.
        members: PEM of each recovery member's RSA key, by member id.
        threshold: shares needed.
    """
    key = WrappingKey.generate()
    aad = binding(service_key, first_seqno, members, threshold)
    shares = key.split(threshold, len(members))
    encrypted = {}
    for (member, pem), share in zip(sorted(members.items()), shares, strict=True):
        encrypted[member] = base64.b64encode(share.encrypt(pem.decode("ascii", "replace"))).decode()
    row: dict[str, Any] = {
        "first_seqno": first_seqno,
        "threshold": threshold,
        "wrapped_secret": base64.b64encode(secret.wrap(key, aad)).decode(),
        "encrypted_shares": encrypted,
    }
    return json.dumps(row, sort_keys=True, separators=(",", ":")).encode()


def unwrap(
    row: bytes, shares: list[Share], *, service_key: bytes, members: Mapping[str, bytes]
) -> tuple[int, LedgerSecret]:
    """The secret of a row and its first seqno, from enough shares.

    Raises:
        LedgerError: the shares do not open it, or it was made for another service (``ledger.shares_refused``).
    """
    try:
        parsed = json.loads(row)
        first, threshold = int(parsed["first_seqno"]), int(parsed["threshold"])
        key = WrappingKey.combine(threshold, shares)
        aad = binding(service_key, first, members, threshold)
        return first, LedgerSecret.unwrap(base64.b64decode(parsed["wrapped_secret"]), key, aad)
    except (ValueError, KeyError, TypeError) as error:
        raise LedgerError("the wrapped secret is malformed", code="ledger.shares_refused") from error
    except LedgerError as error:
        raise LedgerError(
            "the shares do not open the ledger secret of this service", code="ledger.shares_refused"
        ) from error


def wrap_former(former: LedgerSecret, first_seqno: int, successor: LedgerSecret) -> bytes:
    """Row that keeps a former secret under its successor."""
    return former.wrap(successor.wrapping_key(), _FORMER_LABEL + first_seqno.to_bytes(8, "big"))


def unwrap_former(row: bytes, first_seqno: int, successor: LedgerSecret) -> LedgerSecret:
    """The secret of such a row."""
    return LedgerSecret.unwrap(row, successor.wrapping_key(), _FORMER_LABEL + first_seqno.to_bytes(8, "big"))
