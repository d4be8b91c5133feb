"""Proofs of one Ethereum transaction from its block: every one verifies, and nothing else than what is in the block."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coco._native import keccak256, rlp_decode, rlp_encode
from coco.errors import LedgerError
from coco.ledger import outcomes, tries

_DICE = random.Random(16)


def block(count: int, seed: int = 1) -> tuple[bytes, bytes]:
    """Record and hash of a block with so many transactions, of several types, with and without logs."""
    dice = random.Random(seed)
    raw, receipts, kept = [], [], []
    for index in range(count):
        kind = dice.choice([b"", b"\1", b"\2", b"\4"])
        raw.append(kind + rlp_encode([dice.randbytes(dice.randrange(100)), dice.randbytes(65)]))
        logs = [
            [dice.randbytes(20), [dice.randbytes(32) for _ in range(dice.randrange(5))], dice.randbytes(40)]
            for _ in range(dice.randrange(3))
        ]
        body = [b"\1" if dice.randrange(4) else b"", (21_000 * (index + 1)).to_bytes(4, "big").lstrip(b"\0"), logs]
        kept.append(body)
        receipts.append(kind + rlp_encode([*body[:2], outcomes._bloom(logs), logs]))
    roots = [tries.proofs(values, 0)[0] for values in (raw, receipts)]
    header = [
        bytes(32),
        bytes(32),
        bytes(20),
        bytes(32),
        *roots,
        bytes(256),
        b"",
        b"\7",
        b"\5",
        b"\6",
        b"\x10",
        b"coco",
    ]
    senders = [part for one in raw for part in (bytes(20), one)]
    return rlp_encode([header, senders, kept]), keccak256(rlp_encode(header))


@pytest.mark.parametrize("count", [1, 2, 15, 16, 17, 127, 128, 129, 300])
def test_every_transaction_of_a_block_is_proven_with_its_outcome(count: int):
    record, claim = block(count)
    for index in {0, count // 2, count - 1, min(count - 1, 127), min(count - 1, 128)}:
        found = outcomes.verify(json.loads(json.dumps(outcomes.prove_in_block(record, index))), claim)
        assert (found["index"], found["block_number"], found["timestamp"]) == (index, 7, 16)
        assert found["cumulative_gas_used"] == 21_000 * (index + 1)
        assert found["hash"] == "0x" + keccak256(bytes.fromhex(found["transaction"][2:])).hex()


def places(document: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where a document has a value."""
    if isinstance(document, dict):
        return [one for name, value in document.items() for one in places(value, (*path, name))]
    if isinstance(document, list):
        return [one for at, value in enumerate(document) for one in places(value, (*path, at))]
    return [path]


def put(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    changed = copy.deepcopy(document)
    at = changed
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = value
    return changed


def test_a_document_that_was_touched_anywhere_is_refused():
    record, claim = block(200)
    document = outcomes.prove_in_block(record, 130)
    for path in places(document):
        value = document
        for step in path:
            value = value[step]
        wrong: list[Any] = [None, "", "0x", 7.5, [], {}, True, "0xzz", "00", -1, 1 << 40, 131, 0]
        if isinstance(value, str):
            for _ in range(12):
                at = _DICE.randrange(2, len(value))
                wrong.append(value[:at] + f"{int(value[at], 16) ^ 1 << _DICE.randrange(4):x}" + value[at + 1 :])
            wrong += [value[:-2], value + "00"]
        for one in wrong:
            with pytest.raises(LedgerError) as refused:
                outcomes.verify(put(document, path, one), claim)
            assert refused.value.code in ("receipt.malformed", "receipt.invalid")
    for name in document:
        with pytest.raises(LedgerError):
            outcomes.verify({key: value for key, value in document.items() if key != name}, claim)


def test_parts_of_another_proof_prove_nothing():
    record, claim = block(200)
    other_record, other_claim = block(200, seed=2)
    document, neighbour, stranger = (
        outcomes.prove_in_block(record, 130),
        outcomes.prove_in_block(record, 131),
        outcomes.prove_in_block(other_record, 130),
    )
    assert outcomes.verify(stranger, other_claim)["index"] == 130
    for other in (neighbour, stranger):
        for name in document:
            if document[name] != other[name]:
                with pytest.raises(LedgerError):
                    outcomes.verify({**document, name: other[name]}, claim)
    with pytest.raises(LedgerError):
        outcomes.verify(stranger, claim)
    swapped = {"transaction_proof": document["receipt_proof"], "receipt_proof": document["transaction_proof"]}
    with pytest.raises(LedgerError):
        outcomes.verify({**document, **swapped}, claim)
    for name in ("transaction_proof", "receipt_proof"):
        for changed in (document[name][:-1], document[name][1:], [*document[name], document[name][-1]], []):
            with pytest.raises(LedgerError):
                outcomes.verify({**document, name: changed}, claim)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=60), min_size=1, max_size=40), st.data())
def test_a_trie_proves_each_of_its_values_and_nothing_else(values: list[bytes], draw: st.DataObject):
    index, other = draw.draw(st.integers(0, len(values) - 1)), draw.draw(st.integers(0, len(values) + 3))
    root, proof = tries.proofs(values, index)
    assert tries.value_at(root, index, proof) == values[index]
    try:
        found = tries.value_at(root, other, proof)
    except LedgerError:
        assert other != index
    else:  # a short value stands in the node above it, so that its neighbour's proof is its own too
        assert found == values[other]


def test_what_the_ledger_does_not_hold_as_its_header_says_is_not_proven():
    header, transactions, kept = rlp_decode(block(3)[0])
    kept[1][1] = b"\7"
    with pytest.raises(LedgerError) as refused:
        outcomes.prove_in_block(rlp_encode([header, transactions, kept]), 0)
    assert refused.value.code == "ethereum.state_root"
