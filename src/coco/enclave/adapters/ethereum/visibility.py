"""Who sees what of the chain: the read matrix, in one place (docs/ethereum.md, docs/confidentiality.md).

Under the policy ``private`` a transaction, its receipt and its logs belong to the accounts that sent and received it.
What a caller may not see looks exactly like what does not exist, and takes as long; contracts, without their storage,
are every participant's. Under ``transparent`` every participant counts as an auditor.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from coco import limits
from coco._native import Block
from coco.enclave.adapters.contract import AdapterError, Caller, CallerKind
from coco.errors import CocoError

#: Whose identities accounts are.
ADAPTER = "ethereum"
_NO_BLOOM = "0x" + "00" * 256
_NO_ROOT = "0x" + "00" * 32
_BLINDED_ROOTS = ("stateRoot", "receiptsRoot", "transactionsRoot", "requestsHash")
#: What a submission may be refused for whatever it is. A pool that is full is not among them, nor a caller's part of
#: it: it takes what it has already, and refuses the rest.
_WHATEVER_IT_IS = ("node.no_primary", "node.stopping", "adapter.failed")
_WHOEVER_ASKS = ("peers.", "access.")


def accounts(caller: Caller) -> frozenset[bytes]:
    """The accounts that are proven to be the caller's."""
    return caller.identities_of(ADAPTER)


def viewer(caller: Caller, policy: str) -> Caller:
    """The caller, as far as the chain's policy lets it see."""
    if policy == "transparent" and caller.kind is CallerKind.PARTICIPANT and not caller.auditor:
        return replace(caller, auditor=True)
    return caller


def sees_all(caller: Caller) -> bool:
    """Whether nothing is hidden from the caller."""
    return caller.any_account or caller.auditor


def may_see(caller: Caller, sender: bytes, to: bytes | None) -> bool:
    """Whether a transaction between these accounts is the caller's."""
    return sees_all(caller) or caller.owns(ADAPTER, sender) or (to is not None and caller.owns(ADAPTER, to))


def transactions(block: Block, caller: Caller) -> Sequence[int]:
    """Indexes of a block's transactions that are the caller's; what is in the others costs no time."""
    if sees_all(caller):
        return range(len(block))
    return block.of_accounts(owned) if (owned := accounts(caller)) else ()


def header(document: dict[str, Any], caller: Caller) -> dict[str, Any]:
    """A block header: bloom, roots, gas and size tell about content, so only who sees all content gets them."""
    if sees_all(caller):
        return document
    blinded = {name: _NO_ROOT for name in _BLINDED_ROOTS if name in document}
    return {**document, "logsBloom": _NO_BLOOM, "gasUsed": "0x0", "size": "0x0", **blinded}


def account(caller: Caller, address: bytes) -> bool:
    """Whether balance and nonce of an account may be read that is no contract's."""
    return sees_all(caller) or caller.owns(ADAPTER, address)


def told(refusal: CocoError, sender: bytes, caller: Caller) -> CocoError | None:
    """What a caller hears of a refusal by the pool; None: nothing, as if the transaction had been taken.

    Most refusals tell the sender's nonce, balance, or what waits: to whom the sender is hidden, all states are alike.
    """
    if account(caller, sender) or refusal.code in _WHATEVER_IT_IS or refusal.code.startswith(_WHOEVER_ASKS):
        return refusal
    return None


@asynccontextmanager
async def one_time(caller: Caller) -> AsyncIterator[Held]:
    """Answers about what is hidden and about what is not there leave after the same time, unless ``shown`` was set."""
    held = Held(sees_all(caller))
    timer = None if held.shown else asyncio.ensure_future(asyncio.sleep(limits.HIDDEN_ANSWER_S))
    try:
        yield held
        if timer is not None and not held.shown:
            await timer
    finally:
        if timer is not None:
            timer.cancel()


class Held:
    """An answer on its way."""

    def __init__(self, shown: bool) -> None:
        #: Whether it shows something, so that it need not wait.
        self.shown = shown


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


def may_see_whole(block: Block, caller: Caller) -> bool:
    """Whether a block's header tells the caller of no transaction that it may not see."""
    return sees_all(caller) or len(transactions(block, caller)) == len(block)


def sender(caller: Caller, claimed: bytes | None) -> bytes:
    """The ``msg.sender`` of a call: a proven account, or zero; never what the request says alone.

    Raises:
        AdapterError: ``ethereum.account_not_proven``.
    """
    if claimed is None:
        return bytes(20)
    if claimed == bytes(20) or caller.owns(ADAPTER, claimed):
        return claimed
    raise AdapterError(
        f"the account 0x{claimed.hex()} is not proven for this caller",
        code="ethereum.account_not_proven",
        rpc_code=-32001,
        hint="bind it with `coco account bind`, or leave `from` out",
    )
