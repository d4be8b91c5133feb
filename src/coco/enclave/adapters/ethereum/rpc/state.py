"""Accounts, code and storage, as far as the policy shows them."""

from __future__ import annotations

from typing import Any

from coco._native import keccak256
from coco.enclave.adapters.contract import AdapterError, Caller, Request, Visible
from coco.enclave.adapters.ethereum import visibility
from coco.enclave.adapters.ethereum.backend import Backend
from coco.enclave.adapters.ethereum.parameters import address, bad_params, param
from coco.enclave.adapters.ethereum.rpc.blocks import state_of
from coco.enclave.adapters.ethereum.rpc.registry import method
from coco.enclave.store import StoreView

#: Looked up in place of what is hidden, so that both take one path.
_NOBODY = bytes(20)


def _shown(chain: Backend, owner: bytes, caller: Caller, state: StoreView) -> tuple[bool, bool]:
    """Whether an account may be looked at, and whether that is because it is a contract, every participant's."""
    if visibility.account(caller, owner):
        return True, False
    is_contract = visibility.contracts(caller) and chain.chain.is_contract(state.native, owner)
    return is_contract, is_contract


def _of_account(owner: bytes, is_contract: bool, number: int) -> Visible:
    """A number that an account has; one that is hidden has none."""
    item = visibility.OfAccount(owner, is_contract, number)
    return Visible([item], lambda seen: hex(seen[0].value if seen else 0))


@method
async def eth_getBalance(chain: Backend, request: Request, caller: Caller, view: StoreView) -> Any:
    """Balance of an account that is the caller's, or of a contract; any other has none."""
    owner = address(param(request, 0))
    _, state = await state_of(chain, param(request, 1, "latest"), view)
    shown, is_contract = _shown(chain, owner, caller, state)
    ((_, balance),) = chain.chain.accounts(state.native, [owner if shown else _NOBODY])
    return _of_account(owner, is_contract, balance)


@method
async def eth_getTransactionCount(chain: Backend, request: Request, caller: Caller, view: StoreView) -> Any:
    """Nonce of an account that is the caller's, or of a contract; any other has sent nothing. ``pending`` counts the
    pool.
    """
    owner = address(param(request, 0))
    tag = param(request, 1, "latest")
    if tag == "pending" and visibility.account(caller, owner):
        pending = await chain.services.pending_position(owner)
        if pending is not None:
            return _of_account(owner, False, pending)
        # Executed but not committed yet counts as pending too.
        ((nonce, _),) = chain.chain.accounts(view.newest().native, [owner])
        return _of_account(owner, False, nonce)
    _, state = await state_of(chain, tag, view)
    shown, is_contract = _shown(chain, owner, caller, state)
    ((nonce, _),) = chain.chain.accounts(state.native, [owner if shown else _NOBODY])
    return _of_account(owner, is_contract, nonce)


@method
async def eth_getCode(chain: Backend, request: Request, caller: Caller, view: StoreView) -> Any:
    """Code of a contract, for participants; what an account delegates to (EIP-7702) is its owner's."""
    at = address(param(request, 0))
    visibility.require(visibility.contracts(caller), "code")
    _, state = await state_of(chain, param(request, 1, "latest"), view)
    shown, is_contract = _shown(chain, at, caller, state)
    code = "0x" + chain.chain.code(state.native, at if shown else _NOBODY).hex()
    return Visible([visibility.OfAccount(at, is_contract, code)], lambda seen: seen[0].value if seen else "0x")


def _slot(value: Any) -> bytes:
    if isinstance(value, str) and value.startswith("0x") and 2 < len(value) <= 66 and value[2:].isalnum():
        try:
            return int(value, 16).to_bytes(32, "big")
        except ValueError:
            pass
    raise bad_params(f"{str(value)[:80]!r} is not a storage slot")


@method
async def eth_getStorageAt(chain: Backend, request: Request, caller: Caller, view: StoreView) -> Any:
    """A raw storage slot, for whoever sees everything."""
    at, slot = address(param(request, 0)), _slot(param(request, 1))
    visibility.require(visibility.storage(caller), "raw storage")
    _, state = await state_of(chain, param(request, 2, "latest"), view)
    return visibility.of_all("0x" + chain.chain.storage(state.native, at, slot).hex(), "raw storage")


@method
async def eth_getProof(chain: Backend, request: Request, caller: Caller, view: StoreView) -> Any:
    """Merkle proof of an account at the latest block, for whoever sees everything."""
    at, keys = address(param(request, 0)), param(request, 1)
    visibility.require(visibility.storage(caller), "a proof")
    if not isinstance(keys, list) or len(keys) > 1024:
        raise bad_params("storage keys must be a list of at most 1024")
    block, state = await state_of(chain, param(request, 2, "latest"), view)
    if block.number != chain.committed_number or view.newest().version != view.version:
        raise AdapterError(
            "proofs are given for the latest block only, while nothing is under way",
            code="ethereum.proof_unavailable",
            hint="ask again with the tag latest",
        )
    ((nonce, balance),) = chain.chain.accounts(state.native, [at])
    slots = [_slot(key) for key in keys]
    account_proof, storage_root, storage_proofs = chain.chain.proof(at, slots)
    code = chain.chain.code(state.native, at)
    proof = {
        "address": "0x" + at.hex(),
        "accountProof": ["0x" + node.hex() for node in account_proof],
        "balance": hex(balance),
        "codeHash": "0x" + keccak256(code).hex(),
        "nonce": hex(nonce),
        "storageHash": "0x" + storage_root.hex(),
        "storageProof": [
            {
                "key": key,
                "value": hex(int.from_bytes(chain.chain.storage(state.native, at, slot), "big")),
                "proof": ["0x" + node.hex() for node in nodes],
            }
            for key, slot, nodes in zip(keys, slots, storage_proofs, strict=True)
        ],
    }
    return visibility.of_all(proof, "a proof")
