"""The JSON-RPC methods of the Ethereum adapter (execution-apis; docs/ethereum.md says which and for whom).

Wire rules: ``params`` absent, null or a list; ``data`` and ``input`` mean the same; quantities without leading zeros;
a revert is error 3 with the revert bytes as data; an unknown block is null or "header not found".
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from coco import limits
from coco._native import Block, keccak256
from coco.enclave.adapters.contract import AdapterError, Caller, Request, Route, RouteKind
from coco.enclave.adapters.ethereum import visibility
from coco.enclave.adapters.ethereum.costs import fee_history_blocks
from coco.enclave.adapters.ethereum.events import Filter, LogQuery
from coco.enclave.store import StoreView
from coco.errors import StoreError

if TYPE_CHECKING:
    from coco.enclave.adapters.ethereum.adapter import EthereumAdapter

Method = Callable[["EthereumAdapter", Request, Caller, StoreView], Awaitable[Any]]

_INVALID_PARAMS = -32602
_LIMIT_EXCEEDED = -32005
_REVERTED = 3
_SUBMISSIONS = {
    "eth_sendRawTransaction": RouteKind.SUBMIT,
    "eth_sendRawTransactionSync": RouteKind.SUBMIT_AND_WAIT,
}
#: Blocks of an answer about fees before others get their turn, and their transactions.
_FEE_BLOCKS_TOGETHER, _FEE_TRANSACTIONS_TOGETHER = 64, 1_000
#: Items up to which a list is made on the event loop; handing it to a thread costs more.
_MANY = 64
#: Blocks whose logs are looked through before others have their turn, and with how much each log is compared there.
_BLOCKS_AT_ONCE, _COMPARED_AT_ONCE = 64, 8
_ERROR_SELECTOR = bytes.fromhex("08c379a0")
_PANIC_SELECTOR = bytes.fromhex("4e487b71")

METHODS: dict[str, Method] = {}


def _method(function: Method) -> Method:
    METHODS[function.__name__] = function
    return function


# --- parameters ---------------------------------------------------------------------------------------------------


def bad_params(message: str) -> AdapterError:
    """The error for parameters of the wrong form."""
    return AdapterError(message, code="rpc.invalid_params", rpc_code=_INVALID_PARAMS)


def _param(request: Request, index: int, default: Any = ...) -> Any:
    params = request.params
    if not isinstance(params, list):
        if not params and default is not ...:
            return default
        raise bad_params("params must be a list")
    if index < len(params) and not (params[index] is None and default is not ...):
        return params[index]
    if default is ...:
        raise bad_params(f"missing value for required argument {index}")
    return default


def quantity(value: Any, *, most: int = (1 << 256) - 1) -> int:
    """A number written as 0x-prefixed hex."""
    if isinstance(value, str) and value.startswith("0x") and 2 < len(value) <= 66:
        try:
            number = int(value[2:], 16) if value[2:].isalnum() else -1
        except ValueError:
            number = -1
        if 0 <= number <= most:
            return number
    raise bad_params(f"{str(value)[:80]!r} is not a quantity")


def data(value: Any, *, size: int | None = None) -> bytes:
    """Bytes written as 0x-prefixed hex."""
    if isinstance(value, str) and value[:2] in ("0x", "0X"):
        try:
            found = bytes.fromhex(value[2:])
        except ValueError:
            found = b""
        # ``fromhex`` skips white space, which then is missing from the length.
        if 2 * len(found) + 2 == len(value) and (size is None or len(found) == size):
            return found
    raise bad_params(f"{str(value)[:80]!r} is not {'data' if size is None else f'{size} bytes'} in hex")


def address(value: Any) -> bytes:
    """An address in any case."""
    return data(value, size=20)


def raw_transaction(request: Request) -> bytes:
    """The raw transaction of a submission."""
    return data(_param(request, 0))


def log_query(value: Any) -> LogQuery:
    """Addresses and topics of a filter object."""
    if not isinstance(value, dict):
        raise bad_params("a filter is an object")
    wanted = value.get("address") or []
    addresses = tuple(address(one) for one in (wanted if isinstance(wanted, list) else [wanted]))
    topics: list[tuple[bytes, ...]] = []
    given = value.get("topics") or []
    if not isinstance(given, list) or len(given) > 4 or len(addresses) > 1000:
        raise bad_params("too many topics or addresses")
    for place in given:
        if place is None:
            topics.append(())
        elif isinstance(place, list):
            # A null inside a list of alternatives means anything.
            alternatives = () if None in place else tuple(data(one, size=32) for one in place)
            topics.append(alternatives)
        else:
            topics.append((data(place, size=32),))
    return LogQuery(addresses, tuple(topics))


# --- blocks -------------------------------------------------------------------------------------------------------


async def _block(adapter: EthereumAdapter, tag: Any, view: StoreView) -> Block | None:
    """A block by number, tag, or EIP-1898 object; latest, safe, finalized and pending are the last committed one."""
    if isinstance(tag, dict):
        if "blockHash" in tag:
            return await adapter.block_by_hash(data(tag["blockHash"], size=32), view)
        tag = tag.get("blockNumber")
    if tag in ("latest", "safe", "finalized", "pending"):
        return await adapter.block(adapter.committed_number, view)
    if tag == "earliest":
        return await adapter.block(0, view)
    number = quantity(tag, most=(1 << 64) - 1)
    return await adapter.block(number, view) if number <= adapter.committed_number else None


async def _state(adapter: EthereumAdapter, tag: Any, view: StoreView) -> tuple[Block, StoreView]:
    """A block and the store after it."""
    block = await _block(adapter, tag, view)
    if block is None:
        raise AdapterError("header not found", code="ethereum.block_not_found")
    if block.number == adapter.committed_number:
        return block, view
    try:
        return block, view.at(await adapter.version_of(block.number, view))
    except StoreError as error:
        raise AdapterError(
            "the state of this block is no longer held",
            code="ethereum.state_pruned",
            hint="ask for a newer block",
        ) from error


async def _listed(
    adapter: EthereumAdapter,
    one: Callable[[int], dict[str, Any]],
    many: Callable[[Sequence[int]], bytes],
    indices: Sequence[int],
) -> Any:
    """Objects of a block. Many of them are written by the extension, while the event loop serves others."""
    if len(indices) <= _MANY:
        return [one(index) for index in indices]
    return msgspec.Raw(await adapter.services.run_list(many, indices))


async def _block_document(
    adapter: EthereumAdapter, block: Block | None, full: Any, caller: Caller, view: StoreView
) -> Any:
    if block is None:
        return None
    document = visibility.header(block.header(), caller)
    document["uncles"] = []
    seen = visibility.transactions(block, caller)
    if full is True:
        document["transactions"] = await _listed(adapter, block.transaction, block.transactions_json, seen)
    elif seen:
        hashes = block.transaction_hashes()
        document["transactions"] = ["0x" + hashes[index].hex() for index in seen]
    else:
        document["transactions"] = []
    return document


@_method
async def eth_getBlockByNumber(adapter: EthereumAdapter, request: Request, caller: Caller, view: StoreView) -> Any:
    """A block by number or tag."""
    block = await _block(adapter, _param(request, 0), view)
    return await _block_document(adapter, block, _param(request, 1, False), caller, view)


@_method
async def eth_getBlockByHash(adapter: EthereumAdapter, request: Request, caller: Caller, view: StoreView) -> Any:
    """A block by hash."""
    block = await adapter.block_by_hash(data(_param(request, 0), size=32), view)
    return await _block_document(adapter, block, _param(request, 1, False), caller, view)


@_method
async def eth_getBlockTransactionCountByNumber(
    adapter: EthereumAdapter, request: Request, caller: Caller, view: StoreView
) -> Any:
    """Number of the visible transactions in a block."""
    block = await _block(adapter, _param(request, 0), view)
    return None if block is None else hex(len(visibility.transactions(block, caller)))


@_method
async def eth_getBlockTransactionCountByHash(
    adapter: EthereumAdapter, request: Request, caller: Caller, view: StoreView
) -> Any:
    """Number of the visible transactions in a block."""
    block = await adapter.block_by_hash(data(_param(request, 0), size=32), view)
    return None if block is None else hex(len(visibility.transactions(block, caller)))


@_method
async def eth_getUncleCountByBlockNumber(
    adapter: EthereumAdapter, request: Request, caller: Caller, view: StoreView
) -> Any:
    """Always zero."""
    return None if await _block(adapter, _param(request, 0), view) is None else "0x0"


@_method
async def eth_getBlockReceipts(adapter: EthereumAdapter, request: Request, caller: Caller, view: StoreView) -> Any:
    """The visible receipts of a block."""
    tag = _param(request, 0)
    if isinstance(tag, str) and len(tag) == 66:
        tag = {"blockHash": tag}
    block = await _block(adapter, tag, view)
    if block is None:
        return None
    return await _listed(adapter, block.receipt, block.receipts_json, visibility.transactions(block, caller))


# --- transactions -------------------------------------------------------------------------------------------------


@_method
async def eth_getTransactionByHash(adapter: EthereumAdapter, request: Request, caller: Caller, view: StoreView) -> Any:
    """A transaction; null looks the same for unknown and for not visible."""
    identity = data(_param(request, 0), size=32)
    async with visibility.one_time(caller) as held:
        found = await _located(adapter, identity, caller, view)
        if found is not None:
            held.shown = True
            return found[0].transaction(found[1])
        pooled = adapter.services.pooled(identity)
        if pooled is not None and visibility.may_see(caller, pooled.payload.sender, pooled.payload.to):
            held.shown = True
            return pooled.payload.describe()
    return None


async def _located(
    adapter: EthereumAdapter, identity: bytes, caller: Caller, view: StoreView
) -> tuple[Block, int] | None:
    """Where a transaction is that the caller may see; whoever owns nothing sees none, and none is looked for."""
    if not visibility.sees_all(caller) and not caller.accounts:
        return None
    found = await adapter.locate(identity, view)
    return found if found is not None and adapter.redact([found], caller, view) else None


@_method
async def eth_getTransactionReceipt(adapter: EthereumAdapter, request: Request, caller: Caller, view: StoreView) -> Any:
    """A receipt; null looks the same for unknown and for not visible."""
    identity = data(_param(request, 0), size=32)
    async with visibility.one_time(caller) as held:
        found = await _located(adapter, identity, caller, view)
        if found is not None:
            held.shown = True
            return found[0].receipt(found[1])
        # Whoever waits for a transaction of its own need not wait for this answer.
        pooled = adapter.services.pooled(identity)
        held.shown |= pooled is not None and visibility.may_see(caller, pooled.payload.sender, pooled.payload.to)
    return None


async def _by_index(adapter: EthereumAdapter, block: Block | None, index: int, caller: Caller, view: StoreView) -> Any:
    if block is None or index not in visibility.transactions(block, caller):
        return None
    return block.transaction(index)


@_method
async def eth_getTransactionByBlockNumberAndIndex(
    adapter: EthereumAdapter, request: Request, caller: Caller, view: StoreView
) -> Any:
    """A transaction by its place."""
    block = await _block(adapter, _param(request, 0), view)
    return await _by_index(adapter, block, quantity(_param(request, 1)), caller, view)


@_method
async def eth_getTransactionByBlockHashAndIndex(
    adapter: EthereumAdapter, request: Request, caller: Caller, view: StoreView
) -> Any:
    """A transaction by its place."""
    block = await adapter.block_by_hash(data(_param(request, 0), size=32), view)
    return await _by_index(adapter, block, quantity(_param(request, 1)), caller, view)


# --- chain --------------------------------------------------------------------------------------------------------


@_method
async def eth_chainId(adapter: EthereumAdapter, request: Request, caller: Caller, view: StoreView) -> Any:
    """Chain id."""
    return hex(adapter.settings.chain_id)


@_method
async def net_version(adapter: EthereumAdapter, request: Request, caller: Caller, view: StoreView) -> Any:
    """Chain id in decimal."""
    return str(adapter.settings.chain_id)


@_method
async def net_listening(adapter: EthereumAdapter, request: Request, caller: Caller, view: StoreView) -> Any:
    """Always true."""
    return True


@_method
async def web3_clientVersion(adapter: EthereumAdapter, request: Request, caller: Caller, view: StoreView) -> Any:
    """Name of this software."""
    return adapter.client_version


@_method
async def web3_sha3(adapter: EthereumAdapter, request: Request, caller: Caller, view: StoreView) -> Any:
    """Keccak-256."""
    return "0x" + keccak256(data(_param(request, 0))).hex()


@_method
async def eth_blockNumber(adapter: EthereumAdapter, request: Request, caller: Caller, view: StoreView) -> Any:
    """Number of the last committed block."""
    return hex(adapter.committed_number)


@_method
async def eth_syncing(adapter: EthereumAdapter, request: Request, caller: Caller, view: StoreView) -> Any:
    """Never: a node serves only what is committed."""
    return False


@_method
async def eth_accounts(adapter: EthereumAdapter, request: Request, caller: Caller, view: StoreView) -> Any:
    """None: the node holds no keys of users."""
    return []


@_method
async def eth_gasPrice(adapter: EthereumAdapter, request: Request, caller: Caller, view: StoreView) -> Any:
    """Base fee, plus one gwei of priority when fees are charged."""
    block = await adapter.block_there(adapter.committed_number, view)
    return hex(block.base_fee + _priority(adapter))


def _priority(adapter: EthereumAdapter) -> int:
    return 0 if adapter.settings.fees.policy == "free" else 1_000_000_000


@_method
async def eth_maxPriorityFeePerGas(adapter: EthereumAdapter, request: Request, caller: Caller, view: StoreView) -> Any:
    """A priority fee that gets in."""
    return hex(_priority(adapter))


@_method
async def eth_blobBaseFee(adapter: EthereumAdapter, request: Request, caller: Caller, view: StoreView) -> Any:
    """The least fee: there are no blobs."""
    return "0x1"


@_method
async def eth_feeHistory(adapter: EthereumAdapter, request: Request, caller: Caller, view: StoreView) -> Any:
    """Fees of past blocks."""
    count = _param(request, 0)
    count = count if isinstance(count, int) and not isinstance(count, bool) else quantity(count)
    newest = await _block(adapter, _param(request, 1), view)
    percentiles = _param(request, 2, []) or []
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
    block, together, transactions = newest, 0, 0
    for number in range(first, newest.number + 1):
        together, transactions = together + 1, transactions + len(block) * bool(percentiles)
        if together >= _FEE_BLOCKS_TOGETHER or transactions >= _FEE_TRANSACTIONS_TOGETHER:
            together = transactions = 0
            await asyncio.sleep(0)
        block = await adapter.block_there(number, view)
        fees.append(hex(block.base_fee))
        # How full blocks are and what others pay is theirs: whoever does not see all gets what the node recommends.
        ratios.append(block.gas_used / block.gas_limit if sees_all else 0.0)
        rewards.append(_rewards(block, percentiles) if sees_all else [hex(_priority(adapter))] * len(percentiles))
    fees.append(hex(_next_base_fee(adapter, block)))
    answer: dict[str, Any] = {"oldestBlock": hex(first), "baseFeePerGas": fees, "gasUsedRatio": ratios}
    answer["baseFeePerBlobGas"] = ["0x1"] * len(fees)
    answer["blobGasUsedRatio"] = [0.0] * len(ratios)
    if percentiles:
        answer["reward"] = rewards
    return answer


def _next_base_fee(adapter: EthereumAdapter, block: Block) -> int:
    if adapter.settings.fees.policy == "free":
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


# --- state --------------------------------------------------------------------------------------------------------


#: Looked up in place of what is hidden, so that both take one path.
_NOBODY = bytes(20)


def _shown(adapter: EthereumAdapter, owner: bytes, caller: Caller, state: StoreView) -> bool:
    """Whether an account is the caller's, or a contract, which is every participant's."""
    if visibility.account(caller, owner):
        return True
    return visibility.contracts(caller) and adapter.chain.is_contract(state.native, owner)


@_method
async def eth_getBalance(adapter: EthereumAdapter, request: Request, caller: Caller, view: StoreView) -> Any:
    """Balance of an account that is the caller's, or of a contract; any other has none."""
    owner = address(_param(request, 0))
    _, state = await _state(adapter, _param(request, 1, "latest"), view)
    shown = _shown(adapter, owner, caller, state)
    ((_, balance),) = adapter.chain.accounts(state.native, [owner if shown else _NOBODY])
    return hex(balance if shown else 0)


@_method
async def eth_getTransactionCount(adapter: EthereumAdapter, request: Request, caller: Caller, view: StoreView) -> Any:
    """Nonce of an account that is the caller's, or of a contract; any other has sent nothing. ``pending`` counts the
    pool.
    """
    owner = address(_param(request, 0))
    tag = _param(request, 1, "latest")
    if tag == "pending" and visibility.account(caller, owner):
        pending = await adapter.services.pending_position(owner)
        if pending is not None:
            return hex(pending)
        # Executed but not committed yet counts as pending too.
        ((nonce, _),) = adapter.chain.accounts(view.newest().native, [owner])
        return hex(nonce)
    _, state = await _state(adapter, tag, view)
    shown = _shown(adapter, owner, caller, state)
    ((nonce, _),) = adapter.chain.accounts(state.native, [owner if shown else _NOBODY])
    return hex(nonce if shown else 0)


@_method
async def eth_getCode(adapter: EthereumAdapter, request: Request, caller: Caller, view: StoreView) -> Any:
    """Code of a contract, for participants; what an account delegates to (EIP-7702) is its owner's."""
    at = address(_param(request, 0))
    visibility.require(visibility.contracts(caller), "code")
    _, state = await _state(adapter, _param(request, 1, "latest"), view)
    shown = _shown(adapter, at, caller, state)
    return "0x" + adapter.chain.code(state.native, at if shown else _NOBODY).hex()


def _slot(value: Any) -> bytes:
    if isinstance(value, str) and value.startswith("0x") and 2 < len(value) <= 66 and value[2:].isalnum():
        try:
            return int(value, 16).to_bytes(32, "big")
        except ValueError:
            pass
    raise bad_params(f"{str(value)[:80]!r} is not a storage slot")


@_method
async def eth_getStorageAt(adapter: EthereumAdapter, request: Request, caller: Caller, view: StoreView) -> Any:
    """A raw storage slot, for whoever sees everything."""
    at, slot = address(_param(request, 0)), _slot(_param(request, 1))
    visibility.require(visibility.storage(caller), "raw storage")
    _, state = await _state(adapter, _param(request, 2, "latest"), view)
    return "0x" + adapter.chain.storage(state.native, at, slot).hex()


@_method
async def eth_getProof(adapter: EthereumAdapter, request: Request, caller: Caller, view: StoreView) -> Any:
    """Merkle proof of an account at the latest block, for whoever sees everything."""
    at, keys = address(_param(request, 0)), _param(request, 1)
    visibility.require(visibility.storage(caller), "a proof")
    if not isinstance(keys, list) or len(keys) > 1024:
        raise bad_params("storage keys must be a list of at most 1024")
    block, state = await _state(adapter, _param(request, 2, "latest"), view)
    if block.number != adapter.committed_number or view.newest().version != view.version:
        raise AdapterError(
            "proofs are given for the latest block only, while nothing is under way",
            code="ethereum.proof_unavailable",
            hint="ask again with the tag latest",
        )
    ((nonce, balance),) = adapter.chain.accounts(state.native, [at])
    slots = [_slot(key) for key in keys]
    account_proof, storage_root, storage_proofs = adapter.chain.proof(at, slots)
    code = adapter.chain.code(state.native, at)
    return {
        "address": "0x" + at.hex(),
        "accountProof": ["0x" + node.hex() for node in account_proof],
        "balance": hex(balance),
        "codeHash": "0x" + keccak256(code).hex(),
        "nonce": hex(nonce),
        "storageHash": "0x" + storage_root.hex(),
        "storageProof": [
            {
                "key": key,
                "value": hex(int.from_bytes(adapter.chain.storage(state.native, at, slot), "big")),
                "proof": ["0x" + node.hex() for node in proof],
            }
            for key, slot, proof in zip(keys, slots, storage_proofs, strict=True)
        ],
    }


# --- calls --------------------------------------------------------------------------------------------------------


async def _query(
    kind: str, adapter: EthereumAdapter, request: Request, caller: Caller, view: StoreView
) -> tuple[bytes, int, list[Any]]:
    call = _param(request, 0)
    if not isinstance(call, dict):
        raise bad_params("a call is an object")
    if _param(request, 2, None) is not None or _param(request, 3, None) is not None:
        raise AdapterError(
            "state and block overrides are refused: they bypass a contract's own rules",
            code="ethereum.override_refused",
        )
    visibility.require(visibility.contracts(caller), "a contract")
    claimed = call.get("from")
    sender = visibility.sender(caller, None if claimed is None else address(claimed))
    given = [call[name] for name in ("input", "data") if call.get(name) is not None]
    payloads = {data(one) for one in given}
    if len(payloads) > 1:
        raise bad_params("`data` and `input` differ")
    to, gas, value = call.get("to"), call.get("gas"), call.get("value")
    price = call.get("gasPrice") if call.get("gasPrice") is not None else call.get("maxFeePerGas")
    access = call.get("accessList") or []
    if not isinstance(access, list) or len(access) > 1024:
        raise bad_params("an access list is a list")
    try:
        rows = [(address(row["address"]), [data(k, size=32) for k in row["storageKeys"]]) for row in access]
    except (KeyError, TypeError) as error:
        raise bad_params("an access list has addresses and storage keys") from error
    signed = call.get("authorizationList") or []
    if not isinstance(signed, list) or len(signed) > 256:
        raise bad_params("an authorization list is a list")
    block, state = await _state(adapter, _param(request, 1, "latest"), view)
    (outcome, output, used, reason), touched = await adapter.services.run_query(
        adapter.chain.query,
        kind,
        state.native,
        block,
        sender,
        None if to is None or to == "" else address(to),
        None if gas is None else quantity(gas, most=(1 << 64) - 1),
        None if price is None else quantity(price, most=(1 << 128) - 1),
        b"" if value is None else quantity(value).to_bytes(32, "big"),
        next(iter(payloads), b""),
        rows,
        [_authorization(one) for one in signed],
        visibility.sees_all(caller),
    )
    if outcome == "revert":
        raise reverted(output)
    if outcome in ("halt", "refused"):
        raise AdapterError(reason, code=f"ethereum.call_{outcome}", rpc_code=-32000)
    return output, used, touched


def _authorization(row: Any) -> tuple[bytes, bytes, int, int, bytes, bytes]:
    if not isinstance(row, dict):
        raise bad_params("an authorization is an object")
    parity = quantity(row.get("yParity") if row.get("yParity") is not None else row.get("v"), most=255)
    r, s = quantity(row.get("r")), quantity(row.get("s"))
    return (
        quantity(row.get("chainId")).to_bytes(32, "big"),
        address(row.get("address")),
        quantity(row.get("nonce"), most=(1 << 64) - 1),
        parity,
        r.to_bytes(32, "big"),
        s.to_bytes(32, "big"),
    )


def reverted(output: bytes) -> AdapterError:
    """The error of a revert, with its reason in words where it has one."""
    text = "execution reverted"
    if output[:4] == _ERROR_SELECTOR and len(output) >= 68:
        length = int.from_bytes(output[36:68], "big")
        text += ": " + output[68 : 68 + min(length, 4096)].decode(errors="replace")
    elif output[:4] == _PANIC_SELECTOR and len(output) >= 36:
        text += f": panic code 0x{int.from_bytes(output[4:36], 'big'):02x}"
    return AdapterError(text, code="ethereum.reverted", rpc_code=_REVERTED, data="0x" + output.hex())


@_method
async def eth_call(adapter: EthereumAdapter, request: Request, caller: Caller, view: StoreView) -> Any:
    """Execute a message and forget it."""
    output, _, _ = await _query("call", adapter, request, caller, view)
    return "0x" + output.hex()


@_method
async def eth_estimateGas(adapter: EthereumAdapter, request: Request, caller: Caller, view: StoreView) -> Any:
    """The least gas limit that works."""
    _, used, _ = await _query("estimate", adapter, request, caller, view)
    return hex(used)


@_method
async def eth_createAccessList(adapter: EthereumAdapter, request: Request, caller: Caller, view: StoreView) -> Any:
    """Accounts and slots that a message touches."""
    visibility.require(visibility.storage(caller), "an access list")
    _, used, touched = await _query("access_list", adapter, request, caller, view)
    return {
        "accessList": [
            {"address": "0x" + at.hex(), "storageKeys": ["0x" + key.hex() for key in keys]} for at, keys in touched
        ],
        "gasUsed": hex(used),
    }


# --- logs and filters ---------------------------------------------------------------------------------------------


async def _number(adapter: EthereumAdapter, tag: Any, default: int) -> int:
    if tag is None:
        return default
    if tag in ("latest", "safe", "finalized", "pending"):
        return adapter.committed_number
    return 0 if tag == "earliest" else quantity(tag, most=(1 << 64) - 1)


async def _logs(
    adapter: EthereumAdapter, wanted: LogQuery, first: int, last: int, caller: Caller, view: StoreView
) -> Any:
    last = min(last, adapter.committed_number)
    if last - first >= limits.LOGS_BLOCKS_MAX:
        raise AdapterError(
            f"a query covers at most {limits.LOGS_BLOCKS_MAX} blocks",
            code="ethereum.range_too_large",
            rpc_code=_LIMIT_EXCEEDED,
        )
    found: list[tuple[Block, list[tuple[int, int]]]] = []
    if not visibility.sees_all(caller) and not caller.accounts:
        return []  # whoever owns nothing sees nothing, whatever is there
    count = 0
    for number in range(first, last + 1):
        block = await adapter.block_there(number, view)
        matches = await _matches(adapter, wanted, block, caller)
        if matches:
            found.append((block, matches))
            count += len(matches)
        if count > limits.LOGS_MAX:
            raise AdapterError(
                f"a query returns at most {limits.LOGS_MAX} logs",
                code="ethereum.too_many_logs",
                rpc_code=_LIMIT_EXCEEDED,
            )
        if number % _BLOCKS_AT_ONCE == 0:
            await asyncio.sleep(0)  # others have their turn between two slices
    if count <= _MANY:
        return [block.log(*place) for block, places in found for place in places]
    return msgspec.Raw(await adapter.services.run_list(_logs_json, found))


async def _matches(adapter: EthereumAdapter, wanted: LogQuery, block: Block, caller: Caller) -> list[tuple[int, int]]:
    # What is hidden does not count: where it is looked through must not tell that it is there.
    seen = visibility.transactions(block, caller)
    if seen and (len(seen) > _MANY or wanted.size > _COMPARED_AT_ONCE):
        matches: list[tuple[int, int]] = await adapter.services.run_list(wanted.among, block, seen)
        return matches
    return wanted.among(block, seen)


def _logs_json(found: list[tuple[Block, list[tuple[int, int]]]]) -> bytes:
    lists, size = [], 0
    for block, places in found:
        lists.append(block.logs_json(places)[1:-1])
        size += len(lists[-1])
        if size > limits.LOGS_BYTES_MAX:
            raise AdapterError(
                f"the logs of a query have at most {limits.LOGS_BYTES_MAX} bytes",
                code="ethereum.too_many_logs",
                rpc_code=_LIMIT_EXCEEDED,
            )
    return b"[" + b",".join(one for one in lists if one) + b"]"


@_method
async def eth_getLogs(adapter: EthereumAdapter, request: Request, caller: Caller, view: StoreView) -> Any:
    """The visible logs that match a filter."""
    wanted = _param(request, 0)
    query = log_query(wanted)
    if wanted.get("blockHash") is not None:
        if wanted.get("fromBlock") is not None or wanted.get("toBlock") is not None:
            raise bad_params("blockHash excludes fromBlock and toBlock")
        block = await adapter.block_by_hash(data(wanted["blockHash"], size=32), view)
        if block is None:
            raise AdapterError("unknown block", code="ethereum.block_not_found")
        return await _logs(adapter, query, block.number, block.number, caller, view)
    latest = adapter.committed_number
    first = await _number(adapter, wanted.get("fromBlock"), latest)
    last = await _number(adapter, wanted.get("toBlock"), latest)
    if first > last:
        raise bad_params("fromBlock is after toBlock")
    return await _logs(adapter, query, first, last, caller, view)


@_method
async def eth_newFilter(adapter: EthereumAdapter, request: Request, caller: Caller, view: StoreView) -> Any:
    """A filter for logs from now on."""
    wanted = _param(request, 0)
    query = log_query(wanted)
    following = adapter.committed_number + 1
    first = await _number(adapter, wanted.get("fromBlock"), following)
    return adapter.events.install(Filter(caller.actor, "logs", query, first, following))


@_method
async def eth_newBlockFilter(adapter: EthereumAdapter, request: Request, caller: Caller, view: StoreView) -> Any:
    """A filter for blocks from now on."""
    following = adapter.committed_number + 1
    return adapter.events.install(Filter(caller.actor, "blocks", LogQuery(), following, following))


@_method
async def eth_newPendingTransactionFilter(
    adapter: EthereumAdapter, request: Request, caller: Caller, view: StoreView
) -> Any:
    """A filter that stays empty: what is pending is nobody else's business."""
    following = adapter.committed_number + 1
    return adapter.events.install(Filter(caller.actor, "nothing", LogQuery(), following, following))


@_method
async def eth_getFilterChanges(adapter: EthereumAdapter, request: Request, caller: Caller, view: StoreView) -> Any:
    """What came since the last poll."""
    installed = adapter.events.get(str(_param(request, 0)), caller)
    first, last = installed.next_block, adapter.committed_number
    installed.next_block = last + 1
    if installed.kind == "nothing":
        return []
    if installed.kind == "blocks":
        hashes = []
        for number in range(first, last + 1):
            block = await adapter.block_there(number, view)
            hashes.append("0x" + block.hash.hex())
        return hashes
    return await _logs(adapter, installed.logs, first, last, caller, view)


@_method
async def eth_getFilterLogs(adapter: EthereumAdapter, request: Request, caller: Caller, view: StoreView) -> Any:
    """Everything that a log filter matches."""
    installed = adapter.events.get(str(_param(request, 0)), caller)
    if installed.kind != "logs":
        raise AdapterError("filter not found", code="ethereum.filter_not_found")
    return await _logs(adapter, installed.logs, installed.from_block, adapter.committed_number, caller, view)


@_method
async def eth_uninstallFilter(adapter: EthereumAdapter, request: Request, caller: Caller, view: StoreView) -> Any:
    """Remove a filter."""
    return adapter.events.uninstall(str(_param(request, 0)), caller)


@_method
async def eth_sendTransaction(adapter: EthereumAdapter, request: Request, caller: Caller, view: StoreView) -> Any:
    """Never: the node signs for nobody."""
    raise AdapterError(
        "the node holds no keys and signs nothing; sign in the wallet and use eth_sendRawTransaction",
        code="ethereum.unsigned_transaction",
        rpc_code=-32601,
    )


ROUTES = (
    *(Route(name, RouteKind.QUERY) for name in METHODS),
    *(Route(name, kind) for name, kind in _SUBMISSIONS.items()),
    Route("eth_subscribe", RouteKind.SUBSCRIBE),
)
