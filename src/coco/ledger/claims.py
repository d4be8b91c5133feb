"""What an entry claims of each of its transactions: one root, from which any of them is proven and no other one shown.

Rules: every leaf is salted with what only enclaves and those who see the item know, so a path confirms no guess of a
neighbour; every path has ``LEVELS`` steps, so it tells its own place and not how many items there are; leaves, nodes
and salts are hashed under labels of their own, so none passes for another; a claim names the adapter that made it
(docs/ledger-format.md, section 9; ``coco-core::claims`` is the maker's side).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from coco.errors import LedgerError

LABEL: Final = b"coco claim v2"
#: Steps of every path.
LEVELS: Final = 20
#: Bytes of a hash, of a salt, and of a claim of former versions, which is nothing but the hash of an Ethereum block.
HASH_BYTES: Final = 32
_LEAF: Final = b"coco claim leaf"
_NODE: Final = b"coco claim node"


@dataclass(frozen=True, slots=True)
class Claim:
    """What one adapter claims of one entry."""

    #: Name of the adapter.
    adapter: str
    #: What it claims of the whole entry, in its own form; at most 65,535 bytes, shown to whoever is shown the claim.
    head: bytes
    #: Root over its items, 32 bytes.
    root: bytes

    def encode(self) -> bytes:
        """The claim as the entry's digest covers it; never 32 bytes, which are a former version's."""
        name = self.adapter.encode()
        return LABEL + bytes([len(name)]) + name + len(self.head).to_bytes(2, "little") + self.head + self.root

    @classmethod
    def parse(cls, claim: bytes) -> Claim | None:
        """Read a claim; None: it is a former version's, the hash of a block.

        Raises:
            LedgerError: it is neither (``receipt.malformed``).
        """
        if len(claim) == HASH_BYTES:
            return None
        try:
            at = len(LABEL) + 1
            end = at + claim[at - 1]
            head = end + 2 + int.from_bytes(claim[end : end + 2], "little")
            parsed = cls(claim[at:end].decode(), claim[end + 2 : head], claim[head:])
            if parsed.encode() == claim and len(parsed.root) == HASH_BYTES and parsed.adapter:
                return parsed
        except (IndexError, UnicodeDecodeError):
            pass
        raise LedgerError("the claim has another form", code="receipt.malformed")


def leaf(salt: bytes, item: bytes) -> bytes:
    """Leaf of one item."""
    return sha256(_LEAF + salt + item).digest()


def node(left: bytes, right: bytes) -> bytes:
    """Parent of two nodes."""
    return sha256(_NODE + left + right).digest()


def check(root: bytes, index: int, item: bytes, salt: bytes, path: Sequence[bytes]) -> None:
    """Whether the item ``index`` of a claim with this root is ``item``.

    Args:
        root: :attr:`Claim.root`.
        index: place of the item, from 0.
        item: what the adapter says of it.
        salt: 32 bytes.
        path: the siblings from the leaf up, 32 bytes each, ``LEVELS`` of them.

    Raises:
        LedgerError: ``receipt.invalid``.
    """
    sizes = {len(salt), *(len(sibling) for sibling in path)}
    if len(path) != LEVELS or sizes != {HASH_BYTES} or not 0 <= index < 1 << LEVELS:
        raise LedgerError("the path has another form", code="receipt.invalid")
    at = leaf(salt, item)
    for level, sibling in enumerate(path):
        at = node(sibling, at) if index >> level & 1 else node(at, sibling)
    if at != root:
        raise LedgerError("the path does not lead from this item to the claim", code="receipt.invalid")
