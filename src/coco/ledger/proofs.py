"""Proofs of transactions from what their entry claims, for any adapter: what is proven is shown, nothing is believed.

Three forms, told apart by the claim that the entry's digest covers and by what the document has:

* *an item* of an adapter's claim (``ledger.claims``): the adapter's own form of a transaction and its outcome;
* *an outcome of Ethereum*, which is an item, too, and may come with the block (``ledger.outcomes``);
* *a composite transaction*: its entry claims the claims of every adapter that it touched, and says which transactions
  they were. A document of one adapter's transaction in such an entry has ``within``: the way to that adapter's claim.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

import msgspec

from coco.errors import LedgerError
from coco.ledger import claims, outcomes
from coco.ledger.claims import Claim

COMPOSITE: Final = "composite"
_ITEM: Final = frozenset({"adapter", "id", "item", "index", "salt", "path"})
_WITHIN: Final = frozenset({"item", "index", "salt", "path"})
_WHOLE: Final = frozenset({"id", "parts", *_WITHIN})
_PARTS_MAX: Final = 64


class CompositeRecord(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The first item of a composite entry's claim: which transactions were one."""

    id: bytes
    #: Adapter and id, in their order.
    parts: list[tuple[str, bytes]]

    def encode(self) -> bytes:
        """The item."""
        return msgspec.msgpack.encode(self)


def item(
    adapter: str, identity: bytes, content: bytes, index: int, salt: bytes, path: Sequence[bytes]
) -> dict[str, Any]:
    """The proof of one item of a claim."""
    return {"adapter": adapter, "id": identity.hex(), **step(content, index, salt, path)}


def step(content: bytes, index: int, salt: bytes, path: Sequence[bytes]) -> dict[str, Any]:
    """The way from one item to the root over it."""
    nodes = [node.hex() for node in path]
    return {"item": content.hex(), "index": index, "salt": salt.hex(), "path": nodes}


def verify(document: Mapping[str, Any], claimed: bytes) -> dict[str, Any]:
    """What a document proves, for a person.

    Args:
        document: as a node gives it.
        claimed: what the ledger's entry claims.

    Raises:
        LedgerError: ``receipt.malformed``, or it proves something else (``receipt.invalid``).
    """
    claim = Claim.parse(claimed)
    if claim is None or claim.adapter != COMPOSITE:
        return _verify_of_adapter(document, claimed, claim)
    if "parts" in document:
        return _verify_whole(document, claim)
    if not isinstance(document.get("within"), Mapping):
        raise LedgerError(
            "the entry is a composite one, and the proof does not say of which part", code="receipt.invalid"
        )
    part = _climb(document["within"], claim)
    rest = {name: value for name, value in document.items() if name != "within"}
    return _verify_of_adapter(rest, part, Claim.parse(part))


def _verify_of_adapter(document: Mapping[str, Any], claimed: bytes, claim: Claim | None) -> dict[str, Any]:
    if claim is None or claim.adapter == outcomes.ADAPTER:
        return outcomes.verify(document, claimed)
    if set(document) != _ITEM:
        raise LedgerError("the proof has other parts than one of an item", code="receipt.malformed")
    if document["adapter"] != claim.adapter:
        raise LedgerError("the entry claims nothing of that adapter", code="receipt.invalid")
    content = _climb({name: document[name] for name in _WITHIN}, claim)
    shown = {"adapter": claim.adapter, "id": _hex(document["id"]).hex(), "item": content.hex()}
    with suppress(UnicodeDecodeError):
        shown["text"] = content.decode()
    return shown


def _verify_whole(document: Mapping[str, Any], claim: Claim) -> dict[str, Any]:
    if set(document) != _WHOLE or not isinstance(document["parts"], list) or len(document["parts"]) > _PARTS_MAX:
        raise LedgerError("the proof has other parts than one of a composite transaction", code="receipt.malformed")
    try:
        record = msgspec.msgpack.decode(_climb({name: document[name] for name in _WITHIN}, claim), type=CompositeRecord)
    except msgspec.MsgspecError as error:
        raise LedgerError("the item is no record of a composite transaction", code="receipt.invalid") from error
    if record.id != _hex(document["id"]):
        raise LedgerError("it is the proof of another composite transaction", code="receipt.invalid")
    if len(document["parts"]) != len(record.parts):
        raise LedgerError("the proof leaves parts out", code="receipt.invalid")
    parts = []
    for part, (adapter, identity) in zip(document["parts"], record.parts, strict=True):
        shown: dict[str, Any] = {"adapter": adapter, "id": identity.hex()}
        if part is not None:
            if not isinstance(part, Mapping):
                raise LedgerError("a part is no proof", code="receipt.malformed")
            found = verify(part, claim.encode())
            if _hex(str(found.get("hash") or found["id"]).removeprefix("0x")) != identity:
                raise LedgerError("a part proves another transaction", code="receipt.invalid")
            shown |= found
        parts.append(shown)
    return {"id": record.id.hex(), "parts": parts}


def _climb(document: Mapping[str, Any], claim: Claim) -> bytes:
    """The item at the foot of a way that leads to the claim's root."""
    if set(document) != _WITHIN or not isinstance(document["path"], list):
        raise LedgerError("the way to the claim is malformed", code="receipt.malformed")
    index = document["index"]
    if isinstance(index, bool) or not isinstance(index, int):
        raise LedgerError("an index is a number", code="receipt.malformed")
    content, salt = _hex(document["item"]), _hex(document["salt"])
    claims.check(claim.root, index, content, salt, [_hex(node) for node in document["path"]])
    return content


def _hex(text: Any) -> bytes:
    try:
        data = bytes.fromhex(text)
    except (TypeError, ValueError) as error:
        raise LedgerError("bytes are hex", code="receipt.malformed") from error
    if data.hex() != text:
        raise LedgerError("bytes are hex, in lower case", code="receipt.malformed")
    return data
