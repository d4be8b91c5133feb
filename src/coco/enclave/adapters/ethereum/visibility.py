"""Who sees what of the chain: the read matrix, in one place (docs/ethereum.md).

Default policy PRIVATE: a transaction, its receipt and its logs belong to the accounts that sent and received it; what
a caller may not see looks exactly like what does not exist.
"""

from __future__ import annotations

from typing import Any

from coco.enclave.adapters.base import AdapterError, Caller, CallerKind

_NO_BLOOM = "0x" + "00" * 256
_NO_ROOT = "0x" + "00" * 32
_BLINDED_ROOTS = ("stateRoot", "receiptsRoot", "transactionsRoot")


def sees_all(caller: Caller) -> bool:
    """Whether nothing is hidden from the caller."""
    return caller.any_account or caller.auditor


def may_see(caller: Caller, sender: bytes, to: bytes | None) -> bool:
    """Whether a transaction between these accounts is the caller's."""
    return sees_all(caller) or caller.owns(sender) or (to is not None and caller.owns(to))


def header(document: dict[str, Any], caller: Caller) -> dict[str, Any]:
    """A block header: bloom and roots tell about content, so only who sees all content gets them."""
    if sees_all(caller):
        return document
    return {**document, "logsBloom": _NO_BLOOM, **dict.fromkeys(_BLINDED_ROOTS, _NO_ROOT)}


def account(caller: Caller, address: bytes) -> bool:
    """Whether balance and nonce of an account may be read."""
    return sees_all(caller) or caller.owns(address)


def contracts(caller: Caller) -> bool:
    """Whether code may be read and contracts may be called: by every participant."""
    return sees_all(caller) or caller.kind is CallerKind.PARTICIPANT


def storage(caller: Caller) -> bool:
    """Whether raw storage and proofs, which bypass a contract's own rules, may be read."""
    return sees_all(caller)


def require(allowed: bool, what: str) -> None:
    """Refuse with one code.

    Raises:
        AdapterError: ``ethereum.not_visible``.
    """
    if not allowed:
        raise AdapterError(
            f"{what} is not visible to this caller",
            code="ethereum.not_visible",
            rpc_code=-32001,
            hint="bind the account with `coco account bind`, or ask as its owner",
        )


def sender(caller: Caller, claimed: bytes | None) -> bytes:
    """The ``msg.sender`` of a call: a proven account, or zero; never what the request says alone.

    Raises:
        AdapterError: ``ethereum.account_not_proven``.
    """
    if claimed is None:
        return bytes(20)
    if claimed == bytes(20) or caller.owns(claimed):
        return claimed
    raise AdapterError(
        f"the account 0x{claimed.hex()} is not proven for this caller",
        code="ethereum.account_not_proven",
        rpc_code=-32001,
        hint="bind it with `coco account bind`, or leave `from` out",
    )
