"""Outcomes that the ledger keeps, so that every node tells alike what became of a transaction.

A row of ``coco.outcomes`` is under the adapter's name, whether the transaction was included, and its id. Rows are never
rewritten: of several refusals the first one counts, and an inclusion before all of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import msgspec

from coco._native import WriteSet
from coco.enclave.adapters.contract import Envelope, Manifest, Outcome, Verdict
from coco.enclave.store import Store, StoreTransaction, StoreView
from coco.ledger import tables

_REFUSED, _INCLUDED = b"\x00", b"\x01"


class _Record(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    reason: str
    succeeded: bool
    reply: msgspec.Raw


def _key(adapter: str, kind: bytes, identity: bytes) -> bytes:
    name = adapter.encode()
    return bytes([len(name)]) + name + kind + identity


async def write(
    transaction: StoreTransaction, store: Store, adapter: str, ran: Iterable[tuple[Envelope, Outcome]]
) -> list[Outcome]:
    """Write those that are to be recorded and are not yet; all outcomes, in which those are recorded that are now."""
    newest = store.view()
    outcomes: list[Outcome] = []
    for envelope, outcome in ran:
        outcomes.append(replace(outcome, recorded=False) if outcome.recorded else outcome)
        if not outcome.recorded or outcome.verdict is Verdict.DEFERRED:
            continue
        key = _key(adapter, _INCLUDED if outcome.verdict is Verdict.INCLUDED else _REFUSED, envelope.id)
        if await newest.locate(tables.OUTCOMES, key) is None:
            reply = msgspec.Raw(msgspec.msgpack.encode(outcome.reply))
            record = _Record(outcome.reason, outcome.succeeded, reply)
            transaction.put(tables.OUTCOMES, key, msgspec.msgpack.encode(record))
            outcomes[-1] = outcome
    return outcomes


async def read(view: StoreView, manifest: Manifest, identity: bytes) -> Outcome | None:
    """What is recorded of a transaction; None: nothing."""
    for kind, verdict in ((_INCLUDED, Verdict.INCLUDED), (_REFUSED, Verdict.REFUSED)):
        row = await view.fetch(tables.OUTCOMES, _key(manifest.name, kind, identity))
        if row is not None:
            record = msgspec.msgpack.decode(row, type=_Record)
            reply: Any = msgspec.msgpack.decode(record.reply, type=manifest.reply)
            return Outcome(verdict, record.reason, succeeded=record.succeeded, reply=reply, recorded=True)
    return None


def told(writes: WriteSet, adapter: str) -> list[bytes]:
    """Ids of the adapter's transactions that an entry tells of."""
    name = adapter.encode()
    prefix = bytes([len(name)]) + name
    return [key[len(prefix) + 1 :] for key, _ in writes.rows(tables.OUTCOMES) if key.startswith(prefix)]
