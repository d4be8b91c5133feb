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

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_der_private_key,
    load_pem_public_key,
)

from coco._native import LedgerSecret, Share, WrappingKey, wipe
from coco.configuration.share_holders import ShareHolders
from coco.errors import LedgerError, RequestError
from coco.ledger import tables
from coco.ledger.statements import SHARE_PADDING, decrypt_share

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
    encrypted, commitments = {}, {}
    for (member, pem), share in zip(sorted(members.items()), shares, strict=True):
        commitments[member] = share.commitment.hex()
        encrypted[member] = base64.b64encode(share.encrypt(pem.decode("ascii", "replace"))).decode()
    row: dict[str, Any] = {
        "first_seqno": first_seqno,
        "threshold": threshold,
        "wrapped_secret": base64.b64encode(secret.wrap(key, aad)).decode(),
        "encrypted_shares": encrypted,
        "share_commitments": commitments,
    }
    return tables.row(row)


def keep(secret: LedgerSecret, first_seqno: int, share_holders: ShareHolders, service_key: bytes) -> bytes:
    """Row that keeps ``secret`` for a recovery: :func:`wrap` for the members' shares, and again for each owner alone.

    Args:
        secret: the epoch's secret.
        first_seqno: first entry that it seals.
        share_holders: for whom.
        service_key: DER SubjectPublicKeyInfo of the service.
    """
    bound: dict[str, Any] = {"service_key": service_key, "first_seqno": first_seqno}
    row: dict[str, Any] = {"first_seqno": first_seqno, "threshold": share_holders.threshold, "encrypted_shares": {}}
    if len(share_holders.members) >= share_holders.threshold:
        row = json.loads(wrap(secret, members=share_holders.members, threshold=share_holders.threshold, **bound))
    if share_holders.owners:
        row["owners"] = json.loads(wrap(secret, members=share_holders.owners, threshold=1, **bound))
    return tables.row(row)


def encrypted_share(row: bytes | None, member: str) -> bytes | None:
    """A keeper's share as a row of :func:`keep` has it, encrypted to the keeper."""
    parsed = json.loads(row or b"{}")
    for one in (parsed, parsed.get("owners", {})):
        if member in one.get("encrypted_shares", {}):
            return base64.b64decode(one["encrypted_shares"][member])
    return None


def is_share_of(row: bytes | None, member: str, share: Share) -> bool:
    """Whether this is the share that a row gave to the member: a wrong one would spoil the others (J8)."""
    parsed = json.loads(row or b"{}")
    known = {**parsed.get("share_commitments", {}), **parsed.get("owners", {}).get("share_commitments", {})}
    return not known or known.get(member) == share.commitment.hex()


def recovered(
    row: bytes, shares: Mapping[str, Share], share_holders: ShareHolders, service_key: bytes
) -> tuple[int, LedgerSecret]:
    """The secret of a row of :func:`keep` and its first seqno: from one owner's share, or from enough members'.

    Raises:
        LedgerError: the shares do not open it (``ledger.shares_refused``).
    """
    owned = [share for member, share in shares.items() if member in share_holders.owners]
    if owned:
        nested = tables.row(json.loads(row).get("owners", {}))
        return unwrap(nested, owned[:1], service_key=service_key, members=share_holders.owners)
    return unwrap(row, list(shares.values()), service_key=service_key, members=share_holders.members)


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


def seal_for_node(secret: LedgerSecret, first_seqno: int, node_id: str, node_key: str, service_key: bytes) -> bytes:
    """Row that gives ``secret`` to a node: :func:`wrap` with the node as the only recipient (J3).

    Args:
        secret: an epoch's secret.
        first_seqno: first entry that it seals.
        node_id: the node.
        node_key: PEM of the RSA key that its evidence is bound to.
        service_key: DER SubjectPublicKeyInfo of the service.
    """
    members = {node_id: node_key.encode()}
    return wrap(secret, service_key=service_key, first_seqno=first_seqno, members=members, threshold=1)


def open_for_node(row: bytes, node_id: str, key: rsa.RSAPrivateKey, node_key: str, service_key: bytes) -> LedgerSecret:
    """The secret of such a row, at its node.

    Raises:
        LedgerError: it is for another node or service (``ledger.shares_refused``).
    """
    try:
        encrypted = base64.b64decode(json.loads(row)["encrypted_shares"][node_id])
        share = Share.adopt(decrypt_share(encrypted, key))
    except (ValueError, KeyError, TypeError, RequestError) as error:
        raise LedgerError("the secret is sealed to another node", code="ledger.shares_refused") from error
    _, secret = unwrap(row, [share], service_key=service_key, members={node_id: node_key.encode()})
    return secret


_NONCE_BYTES = 12
_SERVICE_LABEL = b"coco service key v1"


def seal_service_key(service: ec.EllipticCurvePrivateKey, node_key: str) -> bytes:
    """The service's private key, readable with a node's RSA key only: encrypted key, nonce, PKCS#8 under that key."""
    recipient = load_pem_public_key(node_key.encode())
    if not isinstance(recipient, rsa.RSAPublicKey):
        raise LedgerError("a node's encryption key is an RSA key", code="ledger.shares_refused")
    content_key = AESGCM.generate_key(256)
    plain = service.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    nonce = bytes(_NONCE_BYTES)  # the key is used once
    sealed = AESGCM(content_key).encrypt(nonce, plain, _SERVICE_LABEL)
    wipe(plain)
    return recipient.encrypt(content_key, SHARE_PADDING) + sealed


def open_service_key(sealed: bytes, key: rsa.RSAPrivateKey) -> ec.EllipticCurvePrivateKey:
    """The service's private key, at the node that it was sealed to.

    Raises:
        LedgerError: it is for another node (``ledger.shares_refused``).
    """
    size = key.key_size // 8
    try:
        content_key = key.decrypt(sealed[:size], SHARE_PADDING)
        plain = AESGCM(content_key).decrypt(bytes(_NONCE_BYTES), sealed[size:], _SERVICE_LABEL)
        service = load_der_private_key(plain, None)
    except (ValueError, InvalidTag) as error:
        raise LedgerError("the service key is sealed to another node", code="ledger.shares_refused") from error
    wipe(plain)
    if not isinstance(service, ec.EllipticCurvePrivateKey):
        raise LedgerError("the service key is no elliptic-curve key", code="ledger.shares_refused")
    return service
