"""Transactions and their receipts, where the caller may see them."""

from __future__ import annotations

from typing import Any

from coco._native import Block
from coco.enclave.adapters.contract import Caller, Request, Visible
from coco.enclave.adapters.ethereum import visibility
from coco.enclave.adapters.ethereum.backend import Backend
from coco.enclave.adapters.ethereum.parameters import data, param, quantity
from coco.enclave.adapters.ethereum.rpc.blocks import block_of
from coco.enclave.adapters.ethereum.rpc.registry import method
from coco.enclave.store import StoreView


@method
async def eth_getTransactionByHash(chain: Backend, request: Request, caller: Caller, view: StoreView) -> Any:
    """A transaction; null looks the same for unknown and for not visible."""
    identity = data(param(request, 0), size=32)
    async with visibility.one_time(caller) as held:
        found = await _located(chain, identity, caller, view)
        if found is not None:
            held.shown = True
            return _transaction(found)
        pooled = chain.services.pooled(identity)
        if pooled is not None and visibility.may_see(caller, pooled.payload.sender, pooled.payload.to):
            held.shown = True
            item = visibility.Pooled(pooled.payload)
            return Visible([item], lambda seen: seen[0].transaction.describe() if seen else None)
    return visibility.NOTHING


def _transaction(item: visibility.Transactions) -> Visible:
    return Visible([item], lambda seen: seen[0].block.transaction(seen[0].indices[0]) if seen else None)


async def _located(chain: Backend, identity: bytes, caller: Caller, view: StoreView) -> visibility.Transactions | None:
    """Where a transaction is that the caller may see; whoever owns nothing sees none, and none is looked for."""
    if not visibility.sees_all(caller) and not visibility.accounts(caller):
        return None
    place = await chain.locate(identity, view)
    if place is None:
        return None
    (*seen,) = visibility.visible([visibility.Transactions(place[0], [place[1]])], caller)
    return visibility.Transactions(place[0], [place[1]], caller) if seen else None


@method
async def eth_getTransactionReceipt(chain: Backend, request: Request, caller: Caller, view: StoreView) -> Any:
    """A receipt; null looks the same for unknown and for not visible."""
    identity = data(param(request, 0), size=32)
    async with visibility.one_time(caller) as held:
        found = await _located(chain, identity, caller, view)
        if found is not None:
            held.shown = True
            return receipt(found)
        # Whoever waits for a transaction of its own need not wait for this answer.
        pooled = chain.services.pooled(identity)
        held.shown |= pooled is not None and visibility.may_see(caller, pooled.payload.sender, pooled.payload.to)
    return visibility.NOTHING


def receipt(item: visibility.Transactions) -> Visible:
    """The receipt of a transaction."""
    return Visible([item], lambda seen: seen[0].block.receipt(seen[0].indices[0]) if seen else None)


def _by_index(block: Block | None, index: int, caller: Caller) -> Visible:
    if block is None or index not in visibility.transactions(block, caller):
        return visibility.NOTHING
    return _transaction(visibility.Transactions(block, [index], caller))


@method
async def eth_getTransactionByBlockNumberAndIndex(
    chain: Backend, request: Request, caller: Caller, view: StoreView
) -> Any:
    """A transaction by its place."""
    block = await block_of(chain, param(request, 0), view)
    return _by_index(block, quantity(param(request, 1)), caller)


@method
async def eth_getTransactionByBlockHashAndIndex(
    chain: Backend, request: Request, caller: Caller, view: StoreView
) -> Any:
    """A transaction by its place."""
    block = await chain.block_by_hash(data(param(request, 0), size=32), view)
    return _by_index(block, quantity(param(request, 1)), caller)
