"""RLP, transactions and tries under random input; the trie against a short pure-Python reference."""

from __future__ import annotations

import select

import pytest
from eth_account import Account
from hypothesis import given, settings
from hypothesis import strategies as st

from coco._native import Background, Chain, Envelope, Trie, check_transaction, keccak256, rlp_decode, rlp_encode
from coco.errors import CocoError

items = st.recursive(st.binary(max_size=70), lambda c: st.lists(c, max_size=5), max_leaves=20)
SIGNED = Account.from_key("0x" + "11" * 32).sign_transaction(
    {"to": "0x" + "22" * 20, "value": 1, "gas": 60_000, "nonce": 0, "chainId": 1, "maxFeePerGas": 1,
     "maxPriorityFeePerGas": 1, "accessList": [{"address": "0x" + "33" * 20, "storageKeys": ["0x" + "00" * 32]}]}
)  # fmt: skip


@given(items)
def test_rlp_survives_its_encoding(item):
    assert rlp_decode(rlp_encode(item)) == item


@settings(max_examples=500)
@given(st.binary(max_size=80))
def test_garbage_is_no_rlp_or_canonical(data):
    try:
        assert rlp_encode(rlp_decode(data)) == data
    except CocoError as error:
        assert error.code == "ethereum.rlp"


def wrapped(payload):
    """The RLP of a list with this payload."""
    size = len(payload)
    if size < 56:
        return bytes([0xC0 + size]) + payload
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([0xF7 + len(length)]) + length + payload


def test_deep_nesting_is_refused_not_followed():
    deep = b"\xc0"
    for _ in range(5_000):
        deep = wrapped(deep)
    with pytest.raises(CocoError) as refused:
        rlp_decode(deep)
    assert refused.value.code == "ethereum.rlp"


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_a_changed_transaction_is_another_or_none(data):
    raw = bytearray(SIGNED.raw_transaction)
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= data.draw(st.integers(1, 255))
    try:
        identity, _, _ = check_transaction(bytes(raw), "osaka", 1)
    except CocoError as error:
        assert error.code.startswith("ethereum.transaction.")
        return
    assert identity != bytes(SIGNED.hash)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.binary(max_size=200), max_size=40))
def test_admission_answers_each_of_a_batch_in_order(garbage):
    chain, background = Chain(1, "osaka", 30_000_000, None), Background()
    ticket = chain.admit(background, [*garbage, bytes(SIGNED.raw_transaction)])
    assert select.select([background], [], [], 10)[0], "the background says when it is done"
    ((done, answers, error),) = background.take()
    assert (done, error) == (ticket, None)
    assert len(answers) == len(garbage) + 1
    envelope, identity, sender, nonce, raw = answers[-1]
    assert isinstance(envelope, Envelope) and envelope.hash == identity == bytes(SIGNED.hash)
    assert (envelope.sender, envelope.nonce, envelope.raw) == (sender, nonce, raw)
    assert raw == bytes(SIGNED.raw_transaction)
    for code, _ in answers[:-1]:
        assert code.startswith("ethereum.transaction.")


# --- the trie -----------------------------------------------------------------------------------------------------


def compact(path, leaf):
    flag = (2 if leaf else 0) + len(path) % 2
    nibbles = [flag, *path] if len(path) % 2 else [flag, 0, *path]
    return bytes(a << 4 | b for a, b in zip(nibbles[::2], nibbles[1::2], strict=True))


def node(rows):
    """The RLP structure of a trie over ``rows``, a list of (nibbles, value) without equal paths."""
    if not rows:
        return b""
    if len(rows) == 1:
        return [compact(rows[0][0], True), rows[0][1]]
    shared = 0
    while all(len(p) > shared and p[shared] == rows[0][0][shared] for p, _ in rows):
        shared += 1
    if shared:
        return [compact(rows[0][0][:shared], False), reference(node([(p[shared:], v) for p, v in rows]))]
    branch = [reference(node([(p[1:], v) for p, v in rows if p and p[0] == n])) for n in range(16)]
    return [*branch, next((v for p, v in rows if not p), b"")]


def reference(structure):
    encoded = rlp_encode(structure)
    return structure if len(encoded) < 32 else keccak256(encoded)


def root(content):
    rows = [([n for byte in key for n in (byte >> 4, byte & 15)], value) for key, value in sorted(content.items())]
    return keccak256(rlp_encode(node(rows)))


@settings(max_examples=400, deadline=None)
@given(st.lists(st.tuples(st.binary(max_size=3), st.binary(max_size=40)), max_size=25))
def test_the_trie_has_the_reference_root_after_every_change(changes):
    trie, content = Trie(), {}
    for key, value in changes:
        trie.set(key, value)
        if value:
            content[key] = value
        else:
            content.pop(key, None)
        assert trie.root() == root(content)
