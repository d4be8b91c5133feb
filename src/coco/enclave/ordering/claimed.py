"""What an entry claims, adapter by adapter: kept so that it can be proven again, and combined if there are several.

A row of ``coco.claim_items`` is under the seqno of its entry and the adapter's name: the secret of the salts, the ids
of the transactions, and the items. A composite entry has one for each adapter that gave items, and its own, whose items
are the record of the composite transaction and the claim of each adapter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any

import msgspec

from coco._native import ClaimTree
from coco.enclave.store import StoreView
from coco.ledger import proofs, tables
from coco.ledger.claims import Claim
from coco.ledger.proofs import COMPOSITE, CompositeRecord


class _Kept(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    secret: bytes
    ids: list[bytes]
    items: list[bytes]

    def tree(self) -> ClaimTree:
        tree = ClaimTree(self.secret)
        tree.extend(self.items)
        return tree


class Claimed:
    """The claim of one entry under way, and what is kept of it."""

    def __init__(self) -> None:
        self.claim: Claim | None = None
        #: By adapter.
        self._kept: dict[str, _Kept] = {}

    def add(
        self, adapter: str, claim: Claim | None, included: Sequence[tuple[bytes, bytes | None]], secret: bytes
    ) -> Claim | None:
        """What an adapter claims of what is included.

        Args:
            adapter: its name.
            claim: what its session gave.
            included: id and item of each.
            secret: of the batch; salts come from it.
        """
        items = [item for _, item in included if item is not None]
        if claim is None and items:
            assert len(items) == len(included), "all of a batch have an item, or none has; else the adapter has failed"
            kept = _Kept(derived(secret, b"items", adapter), [identity for identity, _ in included], items)
            self._kept[adapter] = kept
            claim = Claim(adapter, b"", kept.tree().root())
        self.claim = claim
        return claim

    def combine(self, record: CompositeRecord, parts: Mapping[str, Claim | None], secret: bytes) -> None:
        """One claim over those of several adapters."""
        items = [record.encode(), *(claim.encode() for claim in parts.values() if claim is not None)]
        kept = _Kept(derived(secret, b"items", COMPOSITE), [record.id], items)
        self._kept[COMPOSITE] = kept
        self.claim = Claim(COMPOSITE, b"", kept.tree().root())

    def rows(self, seqno: int) -> list[tuple[str, bytes, bytes]]:
        """What the entry ``seqno`` keeps of it."""
        at = seqno.to_bytes(8, "big")
        rows = [(tables.CLAIM_ITEMS, at + name.encode(), msgspec.msgpack.encode(k)) for name, k in self._kept.items()]
        return [*rows, *([(tables.CLAIMS, at, self.claim.encode())] if self.claim is not None else [])]


def derived(secret: bytes, purpose: bytes, adapter: str) -> bytes:
    """A secret of its own for one purpose and one adapter of a batch."""
    return sha256(b"coco claim secret" + secret + purpose + b"\0" + adapter.encode()).digest()


async def _kept_at(view: StoreView, seqno: int, adapter: str) -> _Kept | None:
    row = await view.fetch(tables.CLAIM_ITEMS, seqno.to_bytes(8, "big") + adapter.encode())
    return None if row is None else msgspec.msgpack.decode(row, type=_Kept)


async def prove_item(view: StoreView, adapter: str, seqno: int, identity: bytes) -> dict[str, Any] | None:
    """The proof of the item of one transaction; None: its adapter gave none."""
    kept = await _kept_at(view, seqno, adapter)
    if kept is None or identity not in kept.ids:
        return None
    index = kept.ids.index(identity)
    return proofs.item(adapter, identity, kept.items[index], index, *kept.tree().proof(index))


class Combined:
    """What a composite entry claims, read back."""

    def __init__(self, kept: _Kept) -> None:
        self._items, self._tree = kept.items, kept.tree()
        self.record = msgspec.msgpack.decode(kept.items[0], type=CompositeRecord)

    def step(self, index: int) -> dict[str, Any]:
        """The way from an item to the claim; the record is the first."""
        return proofs.step(self._items[index], index, *self._tree.proof(index))

    def within(self, adapter: str) -> dict[str, Any]:
        """What a proof of the adapter's needs besides, to reach what the entry claims; nothing if it claims nothing."""
        for index, claim in enumerate(self._items[1:], 1):
            parsed = Claim.parse(claim)
            if parsed is not None and parsed.adapter == adapter:
                return {"within": self.step(index)}
        return {}


async def combined(view: StoreView, seqno: int) -> Combined | None:
    """What the entry claims, if it is a composite one."""
    kept = await _kept_at(view, seqno, COMPOSITE)
    return None if kept is None else Combined(kept)
