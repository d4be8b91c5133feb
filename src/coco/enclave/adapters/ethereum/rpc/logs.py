"""Logs, and filters that are asked again and again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from coco import limits
from coco._native import Block
from coco.enclave.adapters.contract import AdapterError, Caller, Request, Visible
from coco.enclave.adapters.ethereum import visibility
from coco.enclave.adapters.ethereum.backend import Backend, Filter
from coco.enclave.adapters.ethereum.parameters import LogQuery, bad_params, data, log_query, param, quantity
from coco.enclave.adapters.ethereum.rpc.blocks import MANY
from coco.enclave.adapters.ethereum.rpc.registry import method, public_method
from coco.enclave.store import StoreView

_LIMIT_EXCEEDED = -32005
#: Blocks whose logs are looked through at once, on a thread for lists; few are on the event loop, since handing them
#: over costs more, if there is not much to compare each of their logs with.
_BLOCKS_AT_ONCE, _BLOCKS_HERE, _COMPARED_AT_ONCE = 64, 2, 8

#: A block, and the matches in it: transaction index, log position.
Matches = tuple[Block, list[tuple[int, int]]]


async def _number(chain: Backend, tag: Any, default: int) -> int:
    if tag is None:
        return default
    if tag in ("latest", "safe", "finalized", "pending"):
        return chain.committed_number
    return 0 if tag == "earliest" else quantity(tag, most=(1 << 64) - 1)


async def _logs(chain: Backend, wanted: LogQuery, first: int, last: int, caller: Caller, view: StoreView) -> Visible:
    last = min(last, chain.committed_number)
    if last - first >= limits.LOGS_BLOCKS_MAX:
        raise AdapterError(
            f"a query covers at most {limits.LOGS_BLOCKS_MAX} blocks",
            code="ethereum.range_too_large",
            rpc_code=_LIMIT_EXCEEDED,
        )
    if not visibility.sees_all(caller) and not visibility.accounts(caller):
        return visibility.nobodys([])  # whoever owns nothing sees nothing, whatever is there
    matching: list[Matches] = []
    count = 0
    for begin in range(first, last + 1, _BLOCKS_AT_ONCE):
        numbers = range(begin, min(begin + _BLOCKS_AT_ONCE, last + 1))
        blocks = [await chain.block_there(number, view) for number in numbers]
        if len(blocks) > _BLOCKS_HERE:
            slice_matching = await chain.services.run_list(_matches, wanted, blocks, caller)
        else:
            slice_matching = [(block, await _matches_of(chain, wanted, block, caller)) for block in blocks]
        matching += [(block, places) for block, places in slice_matching if places]
        count += sum(len(places) for _, places in slice_matching)
        if count > limits.LOGS_MAX:
            raise AdapterError(
                f"a query returns at most {limits.LOGS_MAX} logs",
                code="ethereum.too_many_logs",
                rpc_code=_LIMIT_EXCEEDED,
            )

    async def render(seen: list[Any]) -> Any:
        blocks = seen[0].blocks if seen else []
        if count <= MANY:
            return [block.log(*place) for block, places in blocks for place in places]
        return msgspec.Raw(await chain.services.run_list(_logs_json, blocks))

    return Visible([visibility.Logs(matching, caller)], render)


def _matches(wanted: LogQuery, blocks: Sequence[Block], caller: Caller) -> list[Matches]:
    """Those of a slice of blocks, until they are too many; on a thread of its own."""
    matching: list[Matches] = []
    count = 0
    for block in blocks:
        # What is hidden does not count: where it is looked through must not tell that it is there.
        places = wanted.matches(block, caller)
        matching.append((block, places))
        count += len(places)
        if count > limits.LOGS_MAX:
            break
    return matching


async def _matches_of(chain: Backend, wanted: LogQuery, block: Block, caller: Caller) -> list[tuple[int, int]]:
    """Those of one block; as above."""
    seen = visibility.transactions(block, caller)
    if seen and (len(seen) > MANY or wanted.size > _COMPARED_AT_ONCE):
        places: list[tuple[int, int]] = await chain.services.run_list(wanted.among, block, seen)
        return places
    return wanted.among(block, seen)


def _logs_json(matching: Sequence[Matches]) -> bytes:
    lists, size = [], 0
    for block, places in matching:
        lists.append(block.logs_json(places)[1:-1])
        size += len(lists[-1])
        if size > limits.LOGS_BYTES_MAX:
            raise AdapterError(
                f"the logs of a query have at most {limits.LOGS_BYTES_MAX} bytes",
                code="ethereum.too_many_logs",
                rpc_code=_LIMIT_EXCEEDED,
            )
    return b"[" + b",".join(filter(None, lists)) + b"]"


@method
async def eth_getLogs(chain: Backend, request: Request, caller: Caller, view: StoreView) -> Any:
    """The visible logs that match a filter."""
    wanted = param(request, 0)
    query = log_query(wanted)
    if wanted.get("blockHash") is not None:
        if wanted.get("fromBlock") is not None or wanted.get("toBlock") is not None:
            raise bad_params("blockHash excludes fromBlock and toBlock")
        block = await chain.block_by_hash(data(wanted["blockHash"], size=32), view)
        if block is None:
            raise AdapterError("unknown block", code="ethereum.block_not_found")
        return await _logs(chain, query, block.number, block.number, caller, view)
    latest = chain.committed_number
    first = await _number(chain, wanted.get("fromBlock"), latest)
    last = await _number(chain, wanted.get("toBlock"), latest)
    if first > last:
        raise bad_params("fromBlock is after toBlock")
    return await _logs(chain, query, first, last, caller, view)


@public_method
async def eth_newFilter(chain: Backend, request: Request, caller: Caller, view: StoreView) -> Any:
    """A filter for logs from now on."""
    wanted = param(request, 0)
    query = log_query(wanted)
    following = chain.committed_number + 1
    first = await _number(chain, wanted.get("fromBlock"), following)
    return chain.events.install(Filter(caller.actor, "logs", query, first, following))


@public_method
async def eth_newBlockFilter(chain: Backend, request: Request, caller: Caller, view: StoreView) -> Any:
    """A filter for blocks from now on."""
    following = chain.committed_number + 1
    return chain.events.install(Filter(caller.actor, "blocks", LogQuery(), following, following))


@public_method
async def eth_newPendingTransactionFilter(chain: Backend, request: Request, caller: Caller, view: StoreView) -> Any:
    """A filter that stays empty: what is pending is nobody else's business."""
    following = chain.committed_number + 1
    return chain.events.install(Filter(caller.actor, "nothing", LogQuery(), following, following))


@method
async def eth_getFilterChanges(chain: Backend, request: Request, caller: Caller, view: StoreView) -> Any:
    """What came since the last poll."""
    installed = chain.events.get(str(param(request, 0)), caller)
    first, last = installed.next_block, chain.committed_number
    installed.next_block = last + 1
    if installed.kind == "nothing":
        return visibility.nobodys([])
    if installed.kind == "blocks":
        hashes = []
        for number in range(first, last + 1):
            block = await chain.block_there(number, view)
            hashes.append("0x" + block.hash.hex())
        return visibility.nobodys(hashes)  # that there are blocks, and their hashes, everybody may know
    return await _logs(chain, installed.logs, first, last, caller, view)


@method
async def eth_getFilterLogs(chain: Backend, request: Request, caller: Caller, view: StoreView) -> Any:
    """Everything that a log filter matches."""
    installed = chain.events.get(str(param(request, 0)), caller)
    if installed.kind != "logs":
        raise AdapterError("filter not found", code="ethereum.filter_not_found")
    return await _logs(chain, installed.logs, installed.from_block, chain.committed_number, caller, view)


@public_method
async def eth_uninstallFilter(chain: Backend, request: Request, caller: Caller, view: StoreView) -> Any:
    """Remove a filter."""
    return chain.events.uninstall(str(param(request, 0)), caller)


@public_method
async def eth_sendTransaction(chain: Backend, request: Request, caller: Caller, view: StoreView) -> Any:
    """Never: the node signs for nobody."""
    raise AdapterError(
        "the node holds no keys and signs nothing; sign in the wallet and use eth_sendRawTransaction",
        code="ethereum.unsigned_transaction",
        rpc_code=-32601,
    )
