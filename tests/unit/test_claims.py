"""What an entry claims of each of its items: the extension's tree is the one written down here, and proves nothing else."""

from __future__ import annotations

from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coco._native import ClaimTree
from coco.errors import LedgerError, NativeError
from coco.ledger import claims
from coco.ledger.claims import LEVELS, Claim

SECRET = bytes(range(32))
_HASH = st.binary(min_size=32, max_size=32)
_ITEMS = st.lists(st.binary(max_size=200), min_size=1, max_size=70)


def made(items: list[bytes], secret: bytes = SECRET) -> ClaimTree:
    tree = ClaimTree(secret)
    tree.extend(items)
    return tree


class Reference:
    """The tree as docs/ledger-format.md has it, read slowly."""

    def __init__(self, items: list[bytes], secret: bytes = SECRET) -> None:
        def of_secret(label: bytes, number: int) -> bytes:
            return sha256(label + secret + number.to_bytes(4, "little")).digest()

        self.salts = [of_secret(b"coco claim salt", index) for index in range(len(items))]
        nodes = [
            sha256(b"coco claim leaf" + salt + item).digest() for salt, item in zip(self.salts, items, strict=True)
        ]
        self.levels: list[list[bytes]] = []
        for level in range(LEVELS):
            if len(nodes) % 2:
                nodes.append(of_secret(b"coco claim fill", level))
            self.levels.append(nodes)
            nodes = [sha256(b"coco claim node" + a + b).digest() for a, b in zip(nodes[::2], nodes[1::2], strict=True)]
        (self.root,) = nodes

    def path(self, index: int) -> list[bytes]:
        return [nodes[(index >> level) ^ 1] for level, nodes in enumerate(self.levels)]


@settings(max_examples=150, deadline=None)
@given(_ITEMS, _HASH)
def test_the_tree_is_the_one_that_is_written_down(items: list[bytes], secret: bytes):
    tree, reference = made(items, secret), Reference(items, secret)
    assert tree.root() == reference.root
    for index, item in enumerate(items):
        salt, path = tree.proof(index)
        assert (salt, path) == (reference.salts[index], reference.path(index)) and len(path) == LEVELS
        claims.check(tree.root(), index, item, salt, path)


@settings(max_examples=300, deadline=None)
@given(_ITEMS, st.data())
def test_a_path_proves_its_item_and_nothing_else(items: list[bytes], draw: st.DataObject):
    tree = made(items)
    index = draw.draw(st.integers(0, len(items) - 1))
    salt, path = tree.proof(index)
    good: dict[str, Any] = {"root": tree.root(), "index": index, "item": items[index], "salt": salt, "path": path}
    claims.check(**good)
    at, bit = draw.draw(st.integers(0, LEVELS - 1)), draw.draw(st.integers(0, 255))

    def flipped(data: bytes) -> bytes:
        changed = bytearray(data)
        changed[bit // 8 % len(data)] ^= 1 << bit % 8
        return bytes(changed)

    wrong: list[dict[str, Any]] = [
        {"root": flipped(tree.root())},
        {"index": index ^ 1 << at},
        {"index": index + (1 << LEVELS)},
        {"index": -1 - index},
        {"item": items[index] + b"\0"},
        {"item": flipped(items[index] or b"\0")},
        {"salt": flipped(salt)},
        {"salt": salt + items[index][:1], "item": items[index][1:]} if items[index] else {"salt": salt[:-1]},
        {"path": path[:-1]},
        {"path": [*path, path[-1]]},
        {"path": [*path[:at], flipped(path[at]), *path[at + 1 :]]},
        {"path": [*path[:at], path[at][:-1], *path[at + 1 :]]},
        {"path": []},
    ]
    for change in wrong:
        with pytest.raises(LedgerError) as refused:
            claims.check(**{**good, **change})
        assert refused.value.code == "receipt.invalid"


def test_an_inner_node_is_no_leaf_and_a_leaf_is_no_inner_node():
    items = [b"item %d" % number for number in range(4)]
    tree = made(items)
    _, path = tree.proof(0)
    leaves = [tree.proof(1)[1][0], path[0]]
    # The two leaves under an inner node, told as one item with its salt: they are hashed as a leaf, not as a node.
    for salt, item in ((leaves[0], leaves[1]), (b"", leaves[0] + leaves[1]), (leaves[0][:32], leaves[1])):
        with pytest.raises(LedgerError):
            claims.check(tree.root(), 0, item, salt, [path[1], *path[2:], path[1]])
        with pytest.raises(LedgerError):
            claims.check(tree.root(), 0, item, salt, path[1:])
    # An item whose bytes are those of a node's hash input does not become that node.
    forged = made([b"coco claim node" + leaves[0] + leaves[1], *items[1:]])
    assert tree.proof(2)[1][1] not in (forged.proof(2)[1][1], forged.root())


def test_a_path_tells_its_place_and_not_how_many_items_there_are():
    """From the outside nothing of a path says whether a sibling is another's item, a part of the tree, or filled in."""
    seen = set()
    for count in (1, 2, 3, 64, 1000):
        tree = made([b"the same"] * count, bytes([count % 251]) * 32)
        salt, path = tree.proof(0)
        assert len(path) == LEVELS
        seen |= {*path, salt}
    assert len(seen) == 5 * (LEVELS + 1), "nothing in a path comes again in another one"
    # Under one secret a neighbour changes the first sibling, and what is above as if it were not there.
    alone, two = made([b"mine"]).proof(0)[1], made([b"mine", b"other"]).proof(0)[1]
    assert alone[0] != two[0] and alone[1:] == two[1:]


def test_a_neighbour_cannot_be_guessed_without_its_salt():
    """Whoever knows every item of an entry, and its own salt and path, confirms no guess of a neighbour."""
    items = [b"status %d" % number for number in range(8)]
    tree = made(items)
    salt, path = tree.proof(3)
    guesses = {sha256(b"coco claim leaf" + guess + item).digest() for item in items for guess in (b"", bytes(32), salt)}
    guesses |= {sha256(item).digest() for item in items}
    assert not guesses & set(path)
    assert claims.leaf(tree.proof(2)[0], items[2]) == path[0], "with its salt it would be"


def test_a_claim_has_one_form():
    claim = Claim("ethereum", b"head", bytes(32))
    encoded = claim.encode()
    assert Claim.parse(encoded) == claim and Claim.parse(bytes(32)) is None
    for changed in (b"", encoded[:-1], encoded + b"\0", b"x" + encoded[1:], bytes(31), bytes(33), encoded[:14]):
        with pytest.raises(LedgerError) as refused:
            Claim.parse(changed)
        assert refused.value.code == "receipt.malformed"
    for odd in (Claim("", b"", bytes(32)), Claim("ethereum", b"", bytes(31)), Claim("a", b"", b"")):
        with pytest.raises(LedgerError):
            Claim.parse(odd.encode())
    with pytest.raises(LedgerError):
        Claim.parse(b"coco claim v2\x01\xff\x00\x00" + bytes(32))


@settings(max_examples=200, deadline=None)
@given(st.text(min_size=1, max_size=20), st.binary(max_size=300), _HASH)
def test_two_claims_never_have_one_form(adapter: str, head: bytes, root: bytes):
    claim = Claim(adapter, head, root)
    encoded = claim.encode()
    assert len(encoded) != claims.HASH_BYTES and Claim.parse(encoded) == claim


def test_what_is_no_tree_is_an_error():
    with pytest.raises(NativeError):
        ClaimTree(b"short")
    with pytest.raises(NativeError):
        ClaimTree(SECRET).root()
    for index in (1, 1 << 31):
        with pytest.raises(NativeError):
            made([b"item"]).proof(index)
    full = made([b""] * (1 << LEVELS))
    salt, path = full.proof((1 << LEVELS) - 1)
    claims.check(full.root(), (1 << LEVELS) - 1, b"", salt, path)
    full.extend([b""])
    with pytest.raises(NativeError):
        full.root()
