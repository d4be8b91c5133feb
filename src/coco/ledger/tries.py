"""Proofs of a value in a Merkle-Patricia trie, as Ethereum's blocks have two of: transactions and receipts.

Rules: every node of a proof is the one whose hash the node before it names, the first is named by the root, and no
node is left over. What proves something else, or nothing, is refused; it never says that a key is absent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from coco._native import Trie, keccak256, rlp_decode, rlp_encode
from coco.errors import CocoError, LedgerError

#: Nodes of one proof: a key of a block's list has at most four bytes, and two nodes for each half of one.
NODES_MAX: Final = 32
_BRANCH, _PATH = 17, 2


def key_of(index: int) -> bytes:
    """Key of the element ``index`` of a list that is kept as a trie."""
    return rlp_encode(index.to_bytes((index.bit_length() + 7) // 8, "big"))


def proofs(values: Sequence[bytes], index: int) -> tuple[bytes, list[bytes]]:
    """Root of the trie of a list, and the proof of one element."""
    trie = Trie()
    for number, value in enumerate(values):
        trie.set(key_of(number), value)
    return trie.root(), trie.proof(key_of(index))


def value_at(root: bytes, index: int, proof: Sequence[bytes]) -> bytes:
    """The element ``index`` of the list that has ``root``.

    Raises:
        LedgerError: the proof does not lead there (``receipt.invalid``).
    """
    try:
        return _value_at(root, _nibbles(key_of(index)), list(proof))
    except (CocoError, ValueError, TypeError, IndexError, AttributeError, OverflowError) as error:
        raise LedgerError("the proof does not lead from the root to this element", code="receipt.invalid") from error


def _value_at(root: bytes, rest: list[int], proof: list[bytes]) -> bytes:
    if len(proof) > NODES_MAX:
        raise ValueError("a proof is not that long")
    named: Any = root
    while True:
        if isinstance(named, bytes):
            encoded = proof.pop(0)
            if len(named) != 32 or keccak256(encoded) != named:
                raise ValueError("a node is another one")
            node = rlp_decode(encoded)
        else:
            node = named  # a short node stands in the one that names it
        if len(node) == _BRANCH:
            if not rest:
                return _whole(node[16], proof)
            named, rest = node[rest[0]], rest[1:]
        elif len(node) == _PATH:
            path, is_leaf = _path(node[0])
            if rest[: len(path)] != path or (is_leaf and len(rest) != len(path)):
                raise ValueError("the path leads elsewhere")
            if is_leaf:
                return _whole(node[1], proof)
            named, rest = node[1], rest[len(path) :]
        else:
            raise ValueError("a node has another form")


def _whole(value: Any, proof: list[bytes]) -> bytes:
    if not isinstance(value, bytes) or not value or proof:
        raise ValueError("the proof ends elsewhere")
    return value


def _nibbles(key: bytes) -> list[int]:
    return [nibble for byte in key for nibble in (byte >> 4, byte & 15)]


def _path(encoded: bytes) -> tuple[list[int], bool]:
    """Nibbles of a compact path, and whether a value follows (Ethereum's yellow paper, appendix C)."""
    nibbles = _nibbles(encoded)
    if nibbles[0] > 3 or (not nibbles[0] & 1 and nibbles[1]):
        raise ValueError("a path has another form")
    return nibbles[1:] if nibbles[0] & 1 else nibbles[2:], bool(nibbles[0] & 2)
