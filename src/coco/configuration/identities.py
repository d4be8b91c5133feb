"""Identities of protocols that are proven to be an actor's: accounts, keys, signers, certificates.

What an identity is, and what proves that it wants to be an actor's, its adapter says. Those of Ethereum are in a table
of their own, as the first version wrote them: actor, 32 bytes, and account. Of any other adapter the row is under the
actor, the adapter's name and the identity.
"""

from __future__ import annotations

from typing import Final

from coco import limits
from coco.configuration.reads import Reads
from coco.errors import RequestError
from coco.ledger import tables

#: The adapter whose identities have a table of their own.
ACCOUNTS_OF: Final = "ethereum"


def place(actor: str, adapter: str, identity: bytes) -> tuple[str, bytes]:
    """Table and key of the row that says that an identity is an actor's.

    Raises:
        RequestError: it is no identity (``identity.malformed``).
    """
    if not 0 < len(identity) <= limits.IDENTITY_BYTES_MAX:
        text = f"an identity has 1 to {limits.IDENTITY_BYTES_MAX} bytes"
        raise RequestError(text, code="identity.malformed")
    if adapter == ACCOUNTS_OF:
        return tables.ACCOUNTS, bytes.fromhex(actor) + identity
    name = adapter.encode()
    return tables.IDENTITIES, bytes.fromhex(actor) + bytes([len(name)]) + name + identity


def proven(view: Reads, actor: str) -> dict[str, frozenset[bytes]]:
    """Those of an actor, by adapter."""
    prefix = bytes.fromhex(actor)
    found: dict[str, set[bytes]] = {}
    for key, _ in view.scan(tables.ACCOUNTS, prefix):
        found.setdefault(ACCOUNTS_OF, set()).add(key[len(prefix) :])
    for key, _ in view.scan(tables.IDENTITIES, prefix):
        begin = len(prefix) + 1
        end = begin + key[len(prefix)]
        found.setdefault(key[begin:end].decode(), set()).add(key[end:])
    return {adapter: frozenset(identities) for adapter, identities in found.items()}
