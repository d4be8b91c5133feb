"""Calls that change nothing: what code would answer, use and touch."""

from __future__ import annotations

from typing import Any

from coco.enclave.adapters.contract import AdapterError, Caller, Request
from coco.enclave.adapters.ethereum import visibility
from coco.enclave.adapters.ethereum.backend import Backend
from coco.enclave.adapters.ethereum.parameters import address, bad_params, data, param, quantity
from coco.enclave.adapters.ethereum.rpc.blocks import state_of
from coco.enclave.adapters.ethereum.rpc.registry import method
from coco.enclave.store import StoreView

_REVERTED = 3
_ERROR_SELECTOR = bytes.fromhex("08c379a0")
_PANIC_SELECTOR = bytes.fromhex("4e487b71")


async def _query(
    kind: str, chain: Backend, request: Request, caller: Caller, view: StoreView
) -> tuple[bytes, int, list[Any]]:
    call = param(request, 0)
    if not isinstance(call, dict):
        raise bad_params("a call is an object")
    if param(request, 2, None) is not None or param(request, 3, None) is not None:
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
    block, state = await state_of(chain, param(request, 1, "latest"), view)
    (outcome, output, used, reason), touched = await chain.services.run_query(
        chain.chain.query,
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


@method
async def eth_call(chain: Backend, request: Request, caller: Caller, view: StoreView) -> Any:
    """Execute a message and forget it."""
    output, _, _ = await _query("call", chain, request, caller, view)
    return visibility.of_contracts("0x" + output.hex())


@method
async def eth_estimateGas(chain: Backend, request: Request, caller: Caller, view: StoreView) -> Any:
    """The least gas limit that works."""
    _, used, _ = await _query("estimate", chain, request, caller, view)
    return visibility.of_contracts(hex(used))


@method
async def eth_createAccessList(chain: Backend, request: Request, caller: Caller, view: StoreView) -> Any:
    """Accounts and slots that a message touches."""
    visibility.require(visibility.storage(caller), "an access list")
    _, used, touched = await _query("access_list", chain, request, caller, view)
    accounts = [{"address": "0x" + at.hex(), "storageKeys": ["0x" + key.hex() for key in keys]} for at, keys in touched]
    return visibility.of_all({"accessList": accounts, "gasUsed": hex(used)}, "an access list")
