"""Blocks: by number, tag or hash, whole or with hashes, and their receipts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from coco._native import Block
from coco.enclave.adapters.contract import AdapterError, Caller, Request, Visible
from coco.enclave.adapters.ethereum import visibility
from coco.enclave.adapters.ethereum.backend import Backend
from coco.enclave.adapters.ethereum.parameters import data, param, quantity
from coco.enclave.adapters.ethereum.rpc.registry import method, public_method
from coco.enclave.store import StoreView
from coco.errors import StoreError

#: Items up to which a list is made on the event loop; handing it to a thread costs more.
MANY = 64


async def block_of(chain: Backend, tag: Any, view: StoreView) -> Block | None:
    """A block by number, tag, or EIP-1898 object; latest, safe, finalized and pending are the last committed one."""
    if isinstance(tag, dict):
        if "blockHash" in tag:
            return await chain.block_by_hash(data(tag["blockHash"], size=32), view)
        tag = tag.get("blockNumber")
    if tag in ("latest", "safe", "finalized", "pending"):
        return await chain.block(chain.committed_number, view)
    if tag == "earliest":
        return await chain.block(0, view)
    number = quantity(tag, most=(1 << 64) - 1)
    return await chain.block(number, view) if number <= chain.committed_number else None


async def state_of(chain: Backend, tag: Any, view: StoreView) -> tuple[Block, StoreView]:
    """A block and the store after it."""
    block = await block_of(chain, tag, view)
    if block is None:
        raise AdapterError("header not found", code="ethereum.block_not_found")
    if block.number == chain.committed_number:
        return block, view
    try:
        return block, view.at(await chain.version_of(block.number, view))
    except StoreError as error:
        raise AdapterError(
            "the state of this block is no longer held",
            code="ethereum.state_pruned",
            hint="ask for a newer block",
        ) from error


async def _listed(
    chain: Backend,
    one: Callable[[int], dict[str, Any]],
    many: Callable[[Sequence[int]], bytes],
    indices: Sequence[int],
) -> Any:
    """Objects of a block. Many of them are written by the extension, while the event loop serves others."""
    if len(indices) <= MANY:
        return [one(index) for index in indices]
    return msgspec.Raw(await chain.services.run_list(many, indices))


async def _block_document(chain: Backend, block: Block | None, full: Any, caller: Caller) -> Visible:
    if block is None:
        return visibility.NOTHING

    async def render(seen: list[visibility.Item]) -> dict[str, Any]:
        document: dict[str, Any] = {}
        listed: Any = []
        for item in seen:
            if isinstance(item, visibility.Head):
                document |= item.document
            elif isinstance(item, visibility.Transactions) and full is True:
                listed = await _listed(chain, block.transaction, block.transactions_json, item.indices)
            elif isinstance(item, visibility.Transactions):
                hashes = block.transaction_hashes()
                listed = ["0x" + hashes[index].hex() for index in item.indices]
        return {**document, "uncles": [], "transactions": listed}

    return Visible([visibility.Head(block.header()), _transactions(block, caller)], render)


def _transactions(block: Block, caller: Caller) -> visibility.Transactions:
    return visibility.Transactions(block, visibility.transactions(block, caller), caller)


def _count(block: Block | None, caller: Caller) -> Visible:
    if block is None:
        return visibility.NOTHING
    return Visible([_transactions(block, caller)], lambda seen: hex(len(seen[0].indices) if seen else 0))


@method
async def eth_getBlockByNumber(chain: Backend, request: Request, caller: Caller, view: StoreView) -> Any:
    """A block by number or tag."""
    block = await block_of(chain, param(request, 0), view)
    return await _block_document(chain, block, param(request, 1, False), caller)


@method
async def eth_getBlockByHash(chain: Backend, request: Request, caller: Caller, view: StoreView) -> Any:
    """A block by hash."""
    block = await chain.block_by_hash(data(param(request, 0), size=32), view)
    return await _block_document(chain, block, param(request, 1, False), caller)


@method
async def eth_getBlockTransactionCountByNumber(
    chain: Backend, request: Request, caller: Caller, view: StoreView
) -> Any:
    """Number of the visible transactions in a block."""
    block = await block_of(chain, param(request, 0), view)
    return _count(block, caller)


@method
async def eth_getBlockTransactionCountByHash(chain: Backend, request: Request, caller: Caller, view: StoreView) -> Any:
    """Number of the visible transactions in a block."""
    block = await chain.block_by_hash(data(param(request, 0), size=32), view)
    return _count(block, caller)


@public_method
async def eth_getUncleCountByBlockNumber(chain: Backend, request: Request, caller: Caller, view: StoreView) -> Any:
    """Always zero."""
    return None if await block_of(chain, param(request, 0), view) is None else "0x0"


@method
async def eth_getBlockReceipts(chain: Backend, request: Request, caller: Caller, view: StoreView) -> Any:
    """The visible receipts of a block."""
    tag = param(request, 0)
    if isinstance(tag, str) and len(tag) == 66:
        tag = {"blockHash": tag}
    block = await block_of(chain, tag, view)
    if block is None:
        return visibility.NOTHING

    async def render(seen: list[Any]) -> Any:
        return await _listed(chain, block.receipt, block.receipts_json, seen[0].indices) if seen else []

    return Visible([_transactions(block, caller)], render)
