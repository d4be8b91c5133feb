"""Wrapped ledger secrets (K1, K3, K4): nobody here can open them, but for whom they are kept everybody can see."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from functools import cache
from typing import Any

from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from coco import limits
from coco._native import LedgerSecret, WrappingKey
from coco.audit.rows import Written, document, illegal
from coco.audit.state import State
from coco.configuration.share_holders import ShareHolders
from coco.ledger import tables

_DIGEST_DIGITS = 64


def _refuse(why: str) -> Exception:
    return illegal(f"a ledger secret is kept otherwise: {why}", "secret")


@cache
def _wrapped_size() -> int:
    return len(LedgerSecret.generate().wrap(WrappingKey.generate(), b""))


def take_wrapped(written: Written, share_holders: ShareHolders, first: int) -> None:
    """Take the row that keeps a secret for a recovery.

    Args:
        written: the entry.
        share_holders: for whom.
        first: first entry that the secret seals.

    Raises:
        ConfigurationError: it is kept for somebody else (``audit.secret``).
    """
    row = document(written.take(tables.WRAPPED_SECRET), "a wrapped secret")
    owners = row.pop("owners", None)
    if share_holders.owners:
        _check(owners, share_holders.owners, first, 1)
    elif owners is not None:
        raise _refuse("for owners that there are not")
    if len(share_holders.members) >= share_holders.threshold:
        _check(row, share_holders.members, first, share_holders.threshold)
    elif row != {"first_seqno": first, "threshold": share_holders.threshold, "encrypted_shares": {}}:
        raise _refuse("for members that do not suffice")


def _check(row: Any, members: Mapping[str, bytes], first: int, threshold: int) -> None:
    if not isinstance(row, dict) or row.keys() != {
        *("first_seqno", "threshold", "wrapped_secret", "encrypted_shares", "share_commitments")
    }:
        raise _refuse("its row has another form")
    if row["first_seqno"] != first or row["threshold"] != threshold:
        raise _refuse("for another epoch, or another number of shares")
    if len(_bytes(row["wrapped_secret"])) != _wrapped_size():
        raise _refuse("it has another length")
    shares, commitments = row["encrypted_shares"], row["share_commitments"]
    if shares.keys() != members.keys() or commitments.keys() != members.keys():
        raise _refuse("for others than its share_holders")
    for member, pem in members.items():
        if len(_bytes(shares[member])) != _key_bytes(pem) or not _is_digest(commitments[member]):
            raise _refuse(f"the share of {member[:16]} has another form")


def _bytes(text: Any) -> bytes:
    found = base64.b64decode(text, validate=True)
    if base64.b64encode(found).decode() != text:
        raise _refuse("it is not as a node writes it")
    return found


def _is_digest(text: Any) -> bool:
    return isinstance(text, str) and len(text) == _DIGEST_DIGITS and bytes.fromhex(text).hex() == text


@cache
def _key_bytes(pem: bytes) -> int:
    key = load_pem_public_key(pem)
    if not isinstance(key, rsa.RSAPublicKey):
        raise _refuse("a keeper has no RSA key")
    return key.key_size // 8


def take_first(state: State, written: Written, share_holders: ShareHolders, first: int) -> None:
    """Take the rows that keep the first secret of a life of the service."""
    take_wrapped(written, share_holders, first)
    row = document(written.take(tables.NODE_SECRETS), "the nodes' secrets")
    _check_began(state, row)
    if row != {"first_seqno": first, "began_ms": row["began_ms"], "nodes": {}}:
        raise _refuse("for nodes that there are not yet")


def _check_began(state: State, row: Mapping[str, Any]) -> None:
    began_ms = row.get("began_ms")
    if not isinstance(began_ms, int) or isinstance(began_ms, bool):
        raise _refuse("it does not say when the epoch began")
    if began_ms < 1000 * (state.time_s - limits.AUDIT_SKEW_SECONDS):
        raise _refuse("the epoch began before what the ledger had signed")
    state.issued_s = max(state.issued_s, began_ms // 1000)


def take_epoch(state: State, written: Written, share_holders: ShareHolders, node_keys: Mapping[str, str]) -> int:
    """Take the rows of an epoch that begins with the next entry; when it began, in ms since the Unix epoch.

    Raises:
        ConfigurationError: it is kept for somebody else (``audit.secret``).
    """
    first = written.seqno + 1
    take_former(state, written)
    take_wrapped(written, share_holders, first)
    row = document(written.take(tables.NODE_SECRETS), "the nodes' secrets")
    _check_began(state, row)
    known = {node: key for node, key in node_keys.items() if key}
    if row.keys() != {"first_seqno", "began_ms", "nodes"} or row["first_seqno"] != first:
        raise _refuse("for another epoch")
    if row["nodes"].keys() != known.keys():
        raise _refuse("for other nodes than are trusted")
    for node, key in known.items():
        _check(row["nodes"][node], {node: key.encode()}, first, 1)
    return int(row["began_ms"])


def take_former(state: State, written: Written) -> None:
    """Take the row that keeps the secret before."""
    key = state.secret().to_bytes(8, "big")
    if state.rows.get(tables.FORMER_SECRETS, key) is not None:
        raise _refuse("one that is kept already")
    if len(written.take(tables.FORMER_SECRETS, key)) != _wrapped_size():
        raise _refuse("the former one has another length")


def epoch_is_old(state: State, began_ms: int) -> bool:
    """Whether the epoch before had lasted as long as members let it."""
    before = json.loads(state.rows.get(tables.NODE_SECRETS, tables.SINGLETON) or b"{}")
    return began_ms - int(before["began_ms"]) >= 1000 * int(state.draft.settings()["epoch_length_s"])
