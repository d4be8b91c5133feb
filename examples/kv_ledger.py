"""A key-value ledger on Coco: the smallest adapter that does everything an adapter must.

    PUT  /kv/{key}      the body is the value; answered once committed
    GET  /kv/{key}      the value, and who wrote it, for its owner
    GET  /kv-stream     WebSocket: every committed change that the caller may see

The first participant to write a key owns it: only the owner may write or read it afterwards.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from coco._native import WriteSet, keccak256
from coco.enclave.adapters.contract import (
    AdapterError,
    BatchSession,
    BlockContext,
    Caller,
    Envelope,
    Events,
    LedgerAdapter,
    Manifest,
    Outcome,
    Reply,
    Request,
    Route,
    RouteKind,
    Settled,
    Stream,
    Table,
    Verdict,
    Visible,
)
from coco.enclave.store import StoreTransaction, StoreView
from coco.errors import CocoError, NotFoundError
from coco.ledger.transaction_id import TransactionId

VALUE_BYTES_MAX, KEY_CHARACTERS_MAX = 64 * 1024, 200


class Changes(BatchSession):
    """A batch of changes."""

    def __init__(self, tx: StoreTransaction, block: BlockContext) -> None:
        self._tx, self._block = tx, block

    async def run(self, envelope: Envelope) -> Outcome:
        """Write what its owner may write."""
        change, key = envelope.payload, envelope.payload["key"].encode()
        row = self._tx.get("kv.rows", key)
        if row is not None and json.loads(row)["owner"] != change["owner"]:
            return Outcome(Verdict.REFUSED, "the key is another's")
        document = json.dumps({**change, "time_ms": self._block.time_ms}, sort_keys=True).encode()
        self._tx.put("kv.rows", key, document)
        self._tx.put("kv.history", envelope.id, document)
        return Outcome(Verdict.INCLUDED, item=document)


class KeyValueLedger(LedgerAdapter):
    """Keys with owners."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._uncommitted: list[tuple[int, dict[str, Any]]] = []
        self._events = Events()

    def manifest(self) -> Manifest:
        """Two tables, three routes."""
        routes = (
            Route("kv.put", RouteKind.SUBMIT_AND_WAIT, "PUT", "/kv/{key}"),
            Route("kv.get", RouteKind.QUERY, "GET", "/kv/{key}"),
            Route("kv.stream", RouteKind.STREAM, "GET", "/kv-stream"),
        )
        return Manifest("kv", "1", routes, (Table("kv.rows"), Table("kv.history", log=True)), "kv.history")

    def parse_submission(self, request: Request) -> Sequence[bytes]:
        """Key and value as one transaction."""
        key = request.param("key")
        if len(key) > KEY_CHARACTERS_MAX or len(request.body) > VALUE_BYTES_MAX:
            raise AdapterError("the key or the value is too large", code="kv.too_large")
        return [json.dumps({"key": key, "value": request.body.hex(), "nonce": request.nonce.hex()}).encode()]

    async def admit(self, raw: Sequence[bytes], caller: Caller) -> Sequence[Envelope | CocoError]:
        """Every change carries its author, whom the connection proved."""
        owned = [(change + caller.actor.encode(), {**json.loads(change), "owner": caller.actor}) for change in raw]
        return [Envelope(keccak256(named), change, len(named)) for named, change in owned]

    async def open(self, tx: StoreTransaction, block: BlockContext) -> BatchSession:
        """Changes run one by one."""
        return Changes(tx, block)

    async def query(self, request: Request, caller: Caller, view: StoreView) -> Reply:
        """The row of a key."""
        return Reply(Visible(rows(view.get("kv.rows", request.param("key").encode())), only))

    async def acknowledge(self, request: Request, settled: Sequence[Settled], caller: Caller, view: StoreView) -> Reply:
        """Committed: give the record from the history, which lies in the ledger."""
        settled[0].require_included()
        return Reply(Visible(rows(await view.fetch("kv.history", settled[0].envelope.id)), only), status=201)

    async def item(self, identity: bytes, view: StoreView) -> Any:
        """A change, for whoever asks what became of it, or for a proof."""
        pooled = self.services.pooled(identity)
        return pooled.payload if pooled else next(iter(rows(await view.fetch("kv.history", identity))), None)

    def redact(self, items: Sequence[Any], caller: Caller, view: StoreView) -> list[Any]:
        """Owners see their own; an auditor sees all."""
        return [item for item in items if caller.auditor or item["owner"] == caller.actor]

    async def applied(self, position: TransactionId, writes: WriteSet) -> Sequence[bytes]:
        """Remember what changed until it is committed."""
        self._uncommitted += [(position.seqno, json.loads(value or b"")) for _, value in writes.rows("kv.rows")]
        return [identity for identity, _ in writes.rows("kv.history")]

    def committed(self, position: TransactionId) -> None:
        """Tell the streams."""
        done = [change for seqno, change in self._uncommitted if seqno <= position.seqno]
        self._uncommitted = self._uncommitted[len(done) :]
        self._events.tell(done)

    def rolled_back(self, position: TransactionId) -> None:
        """Forget what is gone."""
        self._uncommitted = [item for item in self._uncommitted if item[0] <= position.seqno]

    async def stream(self, request: Request, caller: Caller, stream: Stream) -> None:
        """Changes from now on."""
        await self._events.follow(stream, lambda change: Visible([change], only))


def rows(document: bytes | None) -> list[dict[str, Any]]:
    """A document as an item, if it is there."""
    return [json.loads(document)] if document is not None else []


def only(seen: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The one row that is left, if the caller may see it: a hidden one looks like none."""
    if not seen:
        raise NotFoundError("there is no such key", code="kv.not_found")
    return seen[0]


#: Makes the adapter of a genesis document's ``kv`` section.
adapter = KeyValueLedger
