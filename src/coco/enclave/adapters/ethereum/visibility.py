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

import msgspec

from coco import limits
from coco._native import Block
from coco.enclave.adapters.contract import AdapterError, Caller, CallerKind, Visible
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


class Transactions(msgspec.Struct, frozen=True):
    """Some transactions of a block, or what is of them: receipts, hashes, how many there are."""

    block: Block
    indices: Sequence[int]
    #: For whom they were looked through already; whoever else is told of them has them looked through again.
    seen_by: Caller | None = None


class Logs(msgspec.Struct, frozen=True):
    """Logs of several blocks: transaction index and log position of each."""

    blocks: Sequence[tuple[Block, Sequence[tuple[int, int]]]]
    #: As above.
    seen_by: Caller | None = None


class Pooled(msgspec.Struct, frozen=True):
    """A transaction that is in no block yet."""

    transaction: Any


class Head(msgspec.Struct, frozen=True):
    """A block's header, as a document."""

    document: dict[str, Any]


class OfAccount(msgspec.Struct, frozen=True):
    """Something that an account has: its owner's, or every participant's if it is a contract's."""

    address: bytes
    is_contract: bool
    value: Any


class OfContracts(msgspec.Struct, frozen=True):
    """What contracts' own code answers."""

    value: Any


class OfAll(msgspec.Struct, frozen=True):
    """What tells of everybody's: storage as it is, proofs, how full blocks are."""

    value: Any


Item = Transactions | Logs | Pooled | Head | OfAccount | OfContracts | OfAll


def nobodys(value: Any) -> Visible:
    """An answer that tells of nobody's transactions and accounts."""
    return Visible((), lambda seen: value)


#: The answer to what is not there, or hidden.
NOTHING = nobodys(None)


def of_contracts(value: Any) -> Visible:
    """What contracts' own code answers."""
    return Visible([OfContracts(value)], lambda seen: _value(seen, "a contract"))


def of_all(value: Any, what: str) -> Visible:
    """What is for those who see everything."""
    return Visible([OfAll(value)], lambda seen: _value(seen, what))


def _value(seen: Sequence[Any], what: str) -> Any:
    require(bool(seen), what)
    return seen[0].value


def visible(items: Sequence[Item], caller: Caller) -> list[Item]:
    """What of these the caller may see."""
    seen = (_seen(item, caller) for item in items)
    return [item for item in seen if item is not None]


def _seen(item: Item, caller: Caller) -> Item | None:
    match item:
        case Transactions(block, indices, seen_by):
            if seen_by == caller or sees_all(caller):
                return item if indices else None
            own = set(transactions(block, caller))
            kept = [index for index in indices if index in own]
            return Transactions(block, kept, caller) if kept else None
        case Logs(blocks, seen_by):
            return item if seen_by == caller or sees_all(caller) else _seen_logs(blocks, caller)
        case Pooled(transaction):
            return item if may_see(caller, transaction.sender, transaction.to) else None
        case Head(document):
            return Head(header(document, caller))
        case OfAccount(owner, is_contract):
            return item if account(caller, owner) or (is_contract and contracts(caller)) else None
        case OfContracts():
            return item if contracts(caller) else None
        case OfAll():
            return item if sees_all(caller) else None


def _seen_logs(blocks: Sequence[tuple[Block, Sequence[tuple[int, int]]]], caller: Caller) -> Logs:
    kept = []
    for block, places in blocks:
        own = set(transactions(block, caller))
        own_places = [place for place in places if place[0] in own]
        if own_places:
            kept.append((block, own_places))
    return Logs(kept, caller)


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
