"""One Ethereum transaction and its outcome, proven from what its entry claims: both sides of a proof use this file.

Two things are proven. *The outcome*: transaction, status, gas that it used, contract that it created and logs are an
item of the claim (``ledger.claims``); this shows nothing of other transactions. *The block*: the header is hashed, and
that hash is in the claim; transaction and receipt are at the same index under the header's two roots; this shows the
block's gas and bloom, and the hashes of the others. Entries of former versions claim the hash of a block and nothing
else, so there is only the second proof of them.

Nothing else of a document is believed: what it says besides is computed again, or refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from coco._native import keccak256, rlp_decode, rlp_encode
from coco.errors import CocoError, LedgerError
from coco.ledger import claims, tries
from coco.ledger.claims import Claim

ADAPTER: Final = "ethereum"
_TRANSACTIONS_ROOT, _RECEIPTS_ROOT, _NUMBER, _TIMESTAMP = 4, 5, 8, 11
_BLOOM_BYTES: Final = 256
#: Hash, number and time of a block.
_HEAD_BYTES: Final = claims.HASH_BYTES + 16
#: A typed transaction or receipt begins with its type, any other one with a list (EIP-2718).
_TYPES_MAX: Final = 0x7F
_OUTCOME: Final = frozenset({"hash", "index", "transaction", "outcome", "salt", "path"})
_BLOCK: Final = frozenset({"hash", "index", "header", "transaction_proof", "receipt_proof"})


def claim(block_hash: bytes, number: int, timestamp: int, root: bytes) -> Claim:
    """What the entry of a block claims: the block's hash, number and time (seconds), and each transaction's outcome."""
    return Claim(ADAPTER, block_hash + number.to_bytes(8, "big") + timestamp.to_bytes(8, "big"), root)


def block_of(claimed: bytes) -> dict[str, Any] | None:
    """The block that an entry claims, as far as the claim says; None: it claims none."""
    try:
        parsed = Claim.parse(claimed)
    except LedgerError:
        return None
    if parsed is None:
        return {"hash": _hex(claimed)}
    if parsed.adapter != ADAPTER or len(parsed.head) != _HEAD_BYTES:
        return None
    block_hash, number, timestamp = parsed.head[:-16], parsed.head[-16:-8], parsed.head[-8:]
    return {
        "hash": _hex(block_hash),
        "number": int.from_bytes(number, "big"),
        "timestamp": int.from_bytes(timestamp, "big"),
    }


def prove(index: int, transaction: bytes, outcome: bytes, salt: bytes, path: list[bytes]) -> dict[str, Any]:
    """The proof of one outcome, from what ``coco._native.Block.outcome`` gives."""
    return {
        "hash": _hex(keccak256(transaction)),
        "index": index,
        "transaction": _hex(transaction),
        "outcome": _hex(outcome),
        "salt": _hex(salt),
        "path": [_hex(node) for node in path],
    }


def prove_in_block(record: bytes, index: int) -> dict[str, Any]:
    """The proof of one transaction of a block, from the record that the ledger keeps of the block.

    Raises:
        LedgerError: the record does not have the roots that its header names (``ethereum.state_root``).
    """
    header, flat, kept, *_ = rlp_decode(record)
    transactions: list[bytes] = flat[1::2]  # each with its sender before it
    receipts = [_receipt(transaction, *receipt) for transaction, receipt in zip(transactions, kept, strict=True)]
    transactions_root, transaction_proof = tries.proofs(transactions, index)
    receipts_root, receipt_proof = tries.proofs(receipts, index)
    if [transactions_root, receipts_root] != [header[_TRANSACTIONS_ROOT], header[_RECEIPTS_ROOT]]:
        raise LedgerError("a block has other roots than its header names", code="ethereum.state_root")
    return {
        "hash": _hex(keccak256(transactions[index])),
        "index": index,
        "header": _hex(rlp_encode(header)),
        "transaction_proof": [_hex(node) for node in transaction_proof],
        "receipt_proof": [_hex(node) for node in receipt_proof],
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


def verify(document: Mapping[str, Any], claimed: bytes) -> dict[str, Any]:
    """What became of the transaction, for a person: hash, block, index, status, gas and logs.

    Args:
        document: as :func:`prove` makes it, with or without what :func:`prove_in_block` does; of a former version's
            entry the latter alone.
        claimed: what the ledger's entry claims.

    Raises:
        LedgerError: ``receipt.malformed``, or it proves something else (``receipt.invalid``).
    """
    parsed, keys = Claim.parse(claimed), set(document)
    if parsed is None:
        if keys != _BLOCK:
            raise LedgerError("the entry claims the hash of a block, and no outcomes", code="receipt.invalid")
        return _verify_block(document, claimed)
    block = block_of(claimed)
    if block is None:
        raise LedgerError("the ledger's entry claims no block", code="receipt.invalid")
    if keys not in (_OUTCOME, _OUTCOME | _BLOCK):
        raise LedgerError("the proof has other parts than one of an outcome", code="receipt.malformed")
    found = _verify_outcome(document, parsed.root, block)
    if keys > _OUTCOME:
        in_block = _verify_block(document, parsed.head[: claims.HASH_BYTES])
        # An enclave wrote both, so that they differ is no forgery; nobody should rest anything on either.
        if any(found[name] != in_block[name] for name in found.keys() & in_block.keys()):
            raise LedgerError("the block says something else of this transaction", code="receipt.invalid")
        found |= in_block
    return found


def _verify_outcome(document: Mapping[str, Any], root: bytes, block: dict[str, Any]) -> dict[str, Any]:
    try:
        index, named = _index(document), _data(document["hash"])
        transaction, outcome, salt = (_data(document[name]) for name in ("transaction", "outcome", "salt"))
        path = [_data(node) for node in document["path"]]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise LedgerError(f"the proof is malformed: {error}", code="receipt.malformed") from error
    claims.check(root, index, outcome, salt, path)
    try:
        identity, sender, success, gas, created, logs = rlp_decode(outcome)
        if not named == identity == keccak256(transaction):
            raise LedgerError("the outcome is another transaction's", code="receipt.invalid")
        return {
            "hash": _hex(named),
            "block_hash": block["hash"],
            "block_number": block["number"],
            "timestamp": block["timestamp"],
            "index": index,
            "status": _status(success),
            "gas_used": int.from_bytes(gas, "big"),
            "from": _hex(sender),
            "contract": _hex(created) if created else None,
            "transaction": _hex(transaction),
            "logs": _logs(logs),
        }
    except LedgerError:
        raise
    except (CocoError, ValueError, TypeError, IndexError, AttributeError) as error:
        raise LedgerError("the outcome is none of Ethereum's", code="receipt.invalid") from error


def _verify_block(document: Mapping[str, Any], block_hash: bytes) -> dict[str, Any]:
    try:
        index = _index(document)
        header = _data(document["header"])
        named = _data(document["hash"])
        paths = [[_data(node) for node in document[name]] for name in ("transaction_proof", "receipt_proof")]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise LedgerError(f"the proof is malformed: {error}", code="receipt.malformed") from error
    if keccak256(header) != block_hash:
        raise LedgerError("the header is not the one of the block in the ledger", code="receipt.invalid")
    try:
        fields = rlp_decode(header)
        transaction = tries.value_at(fields[_TRANSACTIONS_ROOT], index, paths[0])
        if keccak256(transaction) != named:
            raise LedgerError("another transaction is at that place of the block", code="receipt.invalid")
        receipt = tries.value_at(fields[_RECEIPTS_ROOT], index, paths[1])
        success, gas, _, logs = rlp_decode(receipt[1:] if receipt[0] <= _TYPES_MAX else receipt)
        return {
            "hash": _hex(named),
            "block_hash": _hex(block_hash),
            "block_number": int.from_bytes(fields[_NUMBER], "big"),
            "timestamp": int.from_bytes(fields[_TIMESTAMP], "big"),
            "index": index,
            "status": _status(success),
            "cumulative_gas_used": int.from_bytes(gas, "big"),
            "transaction": _hex(transaction),
            "logs": _logs(logs),
        }
    except LedgerError:
        raise
    except (CocoError, ValueError, TypeError, IndexError, AttributeError) as error:
        raise LedgerError("the block is none of Ethereum's", code="receipt.invalid") from error


def _status(success: bytes) -> str:
    return "success" if success == b"\1" else "failure"


def _logs(logs: Any) -> list[dict[str, Any]]:
    return [
        {"address": _hex(address), "topics": [_hex(topic) for topic in topics], "data": _hex(data)}
        for address, topics, data in logs
    ]


def _index(document: Mapping[str, Any]) -> int:
    index = document["index"]
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < 1 << 32:
        raise ValueError("an index is a number")
    return index


def _hex(data: bytes) -> str:
    return "0x" + data.hex()


def _data(text: str) -> bytes:
    data = bytes.fromhex(text[2:])
    if _hex(data) != text:
        raise ValueError("bytes are hex, in lower case")
    return data
