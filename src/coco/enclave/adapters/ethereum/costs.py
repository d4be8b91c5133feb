"""What each JSON-RPC method costs: the one table of it, known before a call runs from its parameters and from memory.

Work is in microseconds of the event loop, as measured (``bench/attack.py`` shows what a wrong figure does); bytes are
those of the answer's Python objects while it is made. A call that will be refused for its parameters costs the least.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from coco import limits
from coco.enclave.adapters.contract import Cost, Request
from coco.enclave.adapters.ethereum.backend import Backend
from coco.errors import CocoError

#: A block that the adapter remembers, and one that has to come from the ledger: fetched, verified, opened, decoded.
_BLOCK_US, _OLD_BLOCK_US = 5, 120
#: One transaction, receipt or log as Python objects.
_ITEM_US, _ITEM_BYTES = 6, 2_500
#: What the newest block has at most, when the one that is asked for is not in memory.
_ITEMS_UNKNOWN = 500
_FEE_CELL_NS, _FEE_CELL_BYTES = 400, 80
_PROOF_KEY_US, _PROOF_KEY_BYTES = 60, 8_000
_LEAST, _CALL, _SUBMISSION = Cost(), Cost(150, 64 * limits.KIB), Cost(10, 256)
_FILTER = Cost(60, 512)

_Costs = Callable[[Backend, list[Any]], Cost]


def _number(chain: Backend, tag: Any, default: int) -> int:
    """The block that a tag names, about: what is not a number means the newest."""
    if tag == "earliest":
        return 0
    if isinstance(tag, str) and tag.startswith("0x") and len(tag) <= 18:
        try:
            return int(tag, 16)
        except ValueError:
            return default
    return default


def _range(chain: Backend, first: int, last: int) -> int:
    """Work of looking at a range of blocks."""
    newest = chain.committed_number
    last = min(last, newest)
    blocks = min(max(last - first + 1, 0), limits.LOGS_BLOCKS_MAX)
    remembered = min(blocks, max(last - (newest - chain.blocks_remembered), 0))
    return remembered * _BLOCK_US + (blocks - remembered) * _OLD_BLOCK_US


def _at(params: list[Any], index: int) -> Any:
    return params[index] if index < len(params) else None


def _whole_block(chain: Backend, params: list[Any]) -> Cost:
    """A block with what is in it."""
    items = chain.items_of(_number(chain, _at(params, 0), chain.committed_number))
    items = _ITEMS_UNKNOWN if items is None else items
    return Cost(_LEAST.work_us + _OLD_BLOCK_US + items * _ITEM_US, _LEAST.answer_bytes + items * _ITEM_BYTES)


def _block(chain: Backend, params: list[Any]) -> Cost:
    if _at(params, 1) is True:
        return _whole_block(chain, params)
    items = chain.items_of(_number(chain, _at(params, 0), chain.committed_number))
    items = _ITEMS_UNKNOWN if items is None else items
    return Cost(_LEAST.work_us + _OLD_BLOCK_US // 2 + items // 4, _LEAST.answer_bytes + items * 130)


def _fee_history(chain: Backend, params: list[Any]) -> Cost:
    count, percentiles = _at(params, 0), _at(params, 2)
    count = count if isinstance(count, int) else _number(chain, count, 0)
    columns = len(percentiles) if isinstance(percentiles, list) else 0
    newest = _number(chain, _at(params, 1), chain.committed_number)
    blocks = fee_history_blocks(min(count, newest + 1), columns)
    cells = blocks * columns
    work_us = _range(chain, newest - blocks + 1, newest) + cells * _FEE_CELL_NS // 1000
    return Cost(_LEAST.work_us + work_us, _LEAST.answer_bytes + (cells + 4 * blocks) * _FEE_CELL_BYTES)


def fee_history_blocks(count: int, percentiles: int) -> int:
    """Blocks that one answer about fees has: with many percentiles fewer than asked for, as the protocol allows."""
    return max(min(count, limits.FEE_HISTORY_BLOCKS_MAX, limits.FEE_HISTORY_CELLS_MAX // max(percentiles, 1)), 0)


def _logs(chain: Backend, params: list[Any]) -> Cost:
    wanted, newest = _at(params, 0), chain.committed_number
    if not isinstance(wanted, dict):
        return _LEAST
    if wanted.get("blockHash") is not None:
        return Cost(_LEAST.work_us + _OLD_BLOCK_US + _ITEMS_UNKNOWN, limits.LOGS_BYTES_MAX // 4)
    first = _number(chain, wanted.get("fromBlock"), newest)
    last = _number(chain, wanted.get("toBlock"), newest)
    return Cost(_LEAST.work_us + _range(chain, first, last), limits.LOGS_BYTES_MAX if first < last else limits.MIB)


def _of_filter(chain: Backend, params: list[Any]) -> Cost:
    blocks = chain.events.behind(str(_at(params, 0)), chain.committed_number)
    if not blocks:
        return _LEAST
    newest = chain.committed_number
    return Cost(_LEAST.work_us + _range(chain, newest - blocks + 1, newest), limits.LOGS_BYTES_MAX // 4)


def _filter_logs(chain: Backend, params: list[Any]) -> Cost:
    first = chain.events.begins(str(_at(params, 0)))
    if first is None:
        return _LEAST
    work_us = _range(chain, first, chain.committed_number)
    return Cost(_LEAST.work_us + work_us, limits.LOGS_BYTES_MAX)


def _proof(chain: Backend, params: list[Any]) -> Cost:
    keys = _at(params, 1)
    count = min(len(keys), 1024) if isinstance(keys, list) else 0
    return Cost(200 + count * _PROOF_KEY_US, 16 * limits.KIB + count * _PROOF_KEY_BYTES)


def _hash(chain: Backend, params: list[Any]) -> Cost:
    return Cost(_LEAST.work_us + len(str(_at(params, 0))) // 500, 256)


#: Of methods that cost more than the least.
_BY_METHOD: dict[str, Cost | _Costs] = {
    "eth_sendRawTransaction": _SUBMISSION,
    "eth_sendRawTransactionSync": _SUBMISSION,
    "eth_call": _CALL,
    "eth_estimateGas": _CALL,
    "eth_createAccessList": _CALL,
    "eth_getBlockByNumber": _block,
    "eth_getBlockByHash": _block,
    "eth_getBlockReceipts": _whole_block,
    "eth_getTransactionByHash": Cost(_LEAST.work_us + _OLD_BLOCK_US, 4 * limits.KIB),
    "eth_getTransactionReceipt": Cost(_LEAST.work_us + _OLD_BLOCK_US, 16 * limits.KIB),
    "eth_getTransactionByBlockNumberAndIndex": Cost(_LEAST.work_us + _OLD_BLOCK_US, 4 * limits.KIB),
    "eth_getTransactionByBlockHashAndIndex": Cost(_LEAST.work_us + _OLD_BLOCK_US, 4 * limits.KIB),
    "eth_getBlockTransactionCountByHash": Cost(_LEAST.work_us + _OLD_BLOCK_US),
    "eth_getBlockTransactionCountByNumber": Cost(_LEAST.work_us + _OLD_BLOCK_US),
    "eth_getUncleCountByBlockNumber": Cost(_LEAST.work_us + _OLD_BLOCK_US),
    "eth_feeHistory": _fee_history,
    "eth_getLogs": _logs,
    "eth_getFilterChanges": _of_filter,
    "eth_getFilterLogs": _filter_logs,
    "eth_newFilter": _FILTER,
    "eth_newBlockFilter": _FILTER,
    "eth_newPendingTransactionFilter": _FILTER,
    "eth_getProof": _proof,
    "web3_sha3": _hash,
}


def cost(chain: Backend, request: Request) -> Cost:
    """What a call costs at most."""
    found = _BY_METHOD.get(request.name, _LEAST)
    if isinstance(found, Cost):
        return found
    if not isinstance(request.params, list):
        return _LEAST
    try:
        return found(chain, request.params)
    except CocoError:
        return _LEAST
