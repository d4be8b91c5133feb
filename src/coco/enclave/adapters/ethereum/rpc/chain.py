"""What the chain and the node are, and what fees are."""

from __future__ import annotations

import asyncio
import math
from typing import Any

from coco._native import Block, keccak256
from coco.enclave.adapters.contract import AdapterError, Caller, Request, Visible
from coco.enclave.adapters.ethereum import visibility
from coco.enclave.adapters.ethereum.backend import Backend
from coco.enclave.adapters.ethereum.costs import fee_history_blocks
from coco.enclave.adapters.ethereum.parameters import bad_params, data, param, quantity
from coco.enclave.adapters.ethereum.rpc.blocks import block_of
from coco.enclave.adapters.ethereum.rpc.registry import method, public_method
from coco.enclave.store import StoreView

#: Blocks of an answer about fees before others get their turn, and their transactions.
_FEE_BLOCKS_TOGETHER, _FEE_TRANSACTIONS_TOGETHER = 64, 1_000


@public_method
async def eth_chainId(chain: Backend, request: Request, caller: Caller, view: StoreView) -> Any:
    """Chain id."""
    return hex(chain.settings.chain_id)


@public_method
async def net_version(chain: Backend, request: Request, caller: Caller, view: StoreView) -> Any:
    """Chain id in decimal."""
    return str(chain.settings.chain_id)


@public_method
async def net_listening(chain: Backend, request: Request, caller: Caller, view: StoreView) -> Any:
    """Always true."""
    return True


@public_method
async def web3_clientVersion(chain: Backend, request: Request, caller: Caller, view: StoreView) -> Any:
    """Name of this software."""
    return chain.client_version


@public_method
async def web3_sha3(chain: Backend, request: Request, caller: Caller, view: StoreView) -> Any:
    """Keccak-256."""
    return "0x" + keccak256(data(param(request, 0))).hex()


@public_method
async def eth_blockNumber(chain: Backend, request: Request, caller: Caller, view: StoreView) -> Any:
    """Number of the last committed block."""
    return hex(chain.committed_number)


@public_method
async def eth_syncing(chain: Backend, request: Request, caller: Caller, view: StoreView) -> Any:
    """Never: a node serves only what is committed."""
    return False


@public_method
async def eth_accounts(chain: Backend, request: Request, caller: Caller, view: StoreView) -> Any:
    """None: the node holds no keys of users."""
    return []


@public_method
async def eth_gasPrice(chain: Backend, request: Request, caller: Caller, view: StoreView) -> Any:
    """Base fee, plus one gwei of priority when fees are charged."""
    block = await chain.block_there(chain.committed_number, view)
    return hex(block.base_fee + _priority(chain))


def _priority(chain: Backend) -> int:
    return 0 if chain.settings.fees.policy == "free" else 1_000_000_000


@public_method
async def eth_maxPriorityFeePerGas(chain: Backend, request: Request, caller: Caller, view: StoreView) -> Any:
    """A priority fee that gets in."""
    return hex(_priority(chain))


@public_method
async def eth_blobBaseFee(chain: Backend, request: Request, caller: Caller, view: StoreView) -> Any:
    """The least fee: there are no blobs."""
    return "0x1"


@method
async def eth_feeHistory(chain: Backend, request: Request, caller: Caller, view: StoreView) -> Any:
    """Fees of past blocks."""
    count = param(request, 0)
    count = count if isinstance(count, int) and not isinstance(count, bool) else quantity(count)
    newest = await block_of(chain, param(request, 1), view)
    percentiles = param(request, 2, []) or []
    if newest is None:
        raise AdapterError("header not found", code="ethereum.block_not_found")
    numbers_ok = isinstance(percentiles, list) and all(
        isinstance(p, int | float) and not isinstance(p, bool) and 0 <= p <= 100 for p in percentiles
    )
    if not numbers_ok or len(percentiles) > 100 or percentiles != sorted(percentiles):
        raise bad_params("percentiles must be rising numbers from 0 to 100")
    if count < 1:
        raise bad_params("block count must be positive")
    count = fee_history_blocks(min(count, newest.number + 1), len(percentiles))
    first = newest.number - count + 1
    sees_all = visibility.sees_all(caller)
    fees, ratios, rewards = [], [], []
    recommended = [hex(_priority(chain))] * len(percentiles)
    block, together, transactions = newest, 0, 0
    for number in range(first, newest.number + 1):
        together, transactions = together + 1, transactions + len(block) * bool(percentiles)
        if together >= _FEE_BLOCKS_TOGETHER or transactions >= _FEE_TRANSACTIONS_TOGETHER:
            together = transactions = 0
            await asyncio.sleep(0)
        block = await chain.block_there(number, view)
        fees.append(hex(block.base_fee))
        if sees_all:
            ratios.append(block.gas_used / block.gas_limit)
            rewards.append(_rewards(block, percentiles))
    fees.append(hex(_next_base_fee(chain, block)))

    def render(seen: list[Any]) -> dict[str, Any]:
        # How full blocks are and what others pay is theirs: whoever does not see all gets what the node recommends.
        shown = seen[0].value if seen and sees_all else ([0.0] * count, [recommended] * count)
        answer: dict[str, Any] = {"oldestBlock": hex(first), "baseFeePerGas": fees, "gasUsedRatio": shown[0]}
        answer["baseFeePerBlobGas"] = ["0x1"] * len(fees)
        answer["blobGasUsedRatio"] = [0.0] * count
        if percentiles:
            answer["reward"] = shown[1]
        return answer

    return Visible([visibility.OfAll((ratios, rewards))], render)


def _next_base_fee(chain: Backend, block: Block) -> int:
    if chain.settings.fees.policy == "free":
        return 0
    target = block.gas_limit // 2
    change = block.base_fee * abs(block.gas_used - target) // target // 8
    if block.gas_used > target:
        return block.base_fee + max(change, 1)
    return block.base_fee - change


def _rewards(block: Block, percentiles: list[float]) -> list[str]:
    paid = sorted(block.rewards())
    if not paid:
        return ["0x0"] * len(percentiles)
    total = sum(gas for _, gas in paid)
    answers, spent, at = [], paid[0][1], 0
    for percentile in percentiles:
        wanted = math.floor(total * percentile / 100)
        while spent < wanted and at < len(paid) - 1:
            at += 1
            spent += paid[at][1]
        answers.append(hex(paid[at][0]))
    return answers
