"""One Ethereum transaction and its outcome, proven from its block's header: both sides of such a proof use this file.

Rules: the header is hashed, and that hash is the claim of the ledger's entry; transaction and receipt are at the same
index under the header's two roots; the transaction's hash is that of its bytes. Nothing else of the document is
believed: what it says besides is computed again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from coco._native import keccak256, rlp_decode, rlp_encode
from coco.errors import CocoError, LedgerError
from coco.ledger import tries

_TRANSACTIONS_ROOT, _RECEIPTS_ROOT, _NUMBER, _TIMESTAMP = 4, 5, 8, 11
_BLOOM_BYTES: Final = 256
#: A typed transaction or receipt begins with its type, any other one with a list (EIP-2718).
_TYPES_MAX: Final = 0x7F


def prove(record: bytes, index: int) -> dict[str, Any]:
    """The proof of one transaction of a block, from the record that the ledger keeps of the block.

    Raises:
        LedgerError: the record does not have the roots that its header names (``ethereum.state_root``).
    """
    header, flat, kept = rlp_decode(record)
    transactions: list[bytes] = flat[1::2]  # each with its sender before it
    receipts = [_receipt(transaction, *receipt) for transaction, receipt in zip(transactions, kept, strict=True)]
    transactions_root, transaction_proof = tries.proofs(transactions, index)
    receipts_root, receipt_proof = tries.proofs(receipts, index)
    if [transactions_root, receipts_root] != [header[_TRANSACTIONS_ROOT], header[_RECEIPTS_ROOT]]:
        raise LedgerError("a block has other roots than its header names", code="ethereum.state_root")
    return {
        "hash": "0x" + keccak256(transactions[index]).hex(),
        "index": index,
        "header": "0x" + rlp_encode(header).hex(),
        "transaction_proof": ["0x" + node.hex() for node in transaction_proof],
        "receipt_proof": ["0x" + node.hex() for node in receipt_proof],
    }


def _receipt(transaction: bytes, success: bytes, gas: bytes, logs: Any) -> bytes:
    kind = transaction[:1] if transaction[0] <= _TYPES_MAX else b""
    return kind + rlp_encode([success, gas, _bloom(logs), logs])


def _bloom(logs: Any) -> bytes:
    bits = 0
    for address, topics, _ in logs:
        for one in (address, *topics):
            digest = keccak256(one)
            for at in (0, 2, 4):
                bits |= 1 << (int.from_bytes(digest[at : at + 2], "big") & 2047)
    return bits.to_bytes(_BLOOM_BYTES, "big")


def verify(document: Mapping[str, Any], claim: bytes) -> dict[str, Any]:
    """What became of the transaction, for a person: hash, block, index, status, gas and logs.

    Args:
        document: as :func:`prove` makes it.
        claim: what the ledger's entry claims: the hash of the block.

    Raises:
        LedgerError: ``receipt.malformed``, or it proves something else (``receipt.invalid``).
    """
    try:
        index = document["index"]
        if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < 1 << 32:
            raise ValueError("an index is a number")
        header = _data(document["header"])
        named = _data(document["hash"])
        paths = [[_data(node) for node in document[name]] for name in ("transaction_proof", "receipt_proof")]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise LedgerError(f"the proof is malformed: {error}", code="receipt.malformed") from error
    if keccak256(header) != claim:
        raise LedgerError("the header is not the one of the block in the ledger", code="receipt.invalid")
    try:
        fields = rlp_decode(header)
        transaction = tries.value_at(fields[_TRANSACTIONS_ROOT], index, paths[0])
        if keccak256(transaction) != named:
            raise LedgerError("another transaction is at that place of the block", code="receipt.invalid")
        receipt = tries.value_at(fields[_RECEIPTS_ROOT], index, paths[1])
        success, gas, _, logs = rlp_decode(receipt[1:] if receipt[0] <= _TYPES_MAX else receipt)
        return {
            "hash": "0x" + named.hex(),
            "block_hash": "0x" + claim.hex(),
            "block_number": int.from_bytes(fields[_NUMBER], "big"),
            "timestamp": int.from_bytes(fields[_TIMESTAMP], "big"),
            "index": index,
            "status": "success" if success == b"\1" else "failure",
            "cumulative_gas_used": int.from_bytes(gas, "big"),
            "transaction": "0x" + transaction.hex(),
            "logs": [
                {
                    "address": "0x" + address.hex(),
                    "topics": ["0x" + topic.hex() for topic in topics],
                    "data": "0x" + data.hex(),
                }
                for address, topics, data in logs
            ],
        }
    except LedgerError:
        raise
    except (CocoError, ValueError, TypeError, IndexError, AttributeError) as error:
        raise LedgerError("the block is none of Ethereum's", code="receipt.invalid") from error


def _data(text: str) -> bytes:
    if not text.startswith("0x"):
        raise ValueError("bytes are hex")
    return bytes.fromhex(text[2:])
