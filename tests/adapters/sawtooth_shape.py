"""A fake in Sawtooth's shape, to hold the adapter contract to what that protocol will need.

Atomic batches of several transactions, dependencies between batches, handlers inside and an asynchronous external
processor outside the enclave, events, and a state root of its own. The wire formats are invented; the shape is real.

    POST /batches            {"id", "transactions": [{"family", "key", "value"}], "depends_on"?: [id]}
    GET  /batch_statuses/{id}   COMMITTED, INVALID or UNKNOWN
    GET  /state/{key}           {"data", "root"}
    WS   /subscriptions         one event for each committed batch
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from hashlib import sha512
from typing import Any

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from coco._native import WriteSet
from coco.enclave.adapters.contract import (
    AdapterError,
    AdapterServices,
    BatchSession,
    BlockContext,
    Caller,
    CallerKind,
    Envelope,
    Events,
    LedgerAdapter,
    Manifest,
    Outcome,
    PoolPolicy,
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
from coco.ledger.claims import Claim
from coco.ledger.transaction_id import TransactionId


class InvalidTransactionError(AdapterError):
    code = "sawtooth.invalid_transaction"


class Status(msgspec.Struct, frozen=True):
    """What became of a batch."""

    status: str
    message: str = ""


class Batches(BatchSession):
    """All transactions of a batch, or none: a session runs one envelope under a savepoint."""

    def __init__(self, tx: StoreTransaction, services: AdapterServices) -> None:
        self._tx, self._services = tx, services

    async def run(self, envelope: Envelope) -> Outcome:
        tx = self._tx
        if any(tx.get("sawtooth.state", b"batch:" + needed) is None for needed in envelope.depends_on):
            return Outcome(Verdict.REFUSED, "a dependency was never committed")
        try:
            for transaction in envelope.payload["transactions"]:
                await self._handle(transaction)
        except InvalidTransactionError as error:
            # Every node says so from then on, and why.
            return Outcome(Verdict.REFUSED, str(error), reply=Status("INVALID", str(error)), recorded=True)
        tx.put("sawtooth.state", b"batch:" + envelope.id, b"COMMITTED")
        tx.put("sawtooth.batches", envelope.id, json.dumps(envelope.payload).encode())
        return Outcome(Verdict.INCLUDED, reply=Status("COMMITTED"), recorded=True)

    async def close(self) -> Claim | None:
        self._tx.put("sawtooth.root", bytes(8), root_of(self._tx))
        return None

    async def _handle(self, transaction: dict[str, Any]) -> None:
        key, value = transaction["key"].encode(), int(transaction["value"])
        if transaction["family"] == "external":
            # Outside the enclave, so it sees what it is given; its answer is recorded, never asked for again.
            value = int(await self._services.call_external("doubler", str(value).encode()))
        if value < 0:
            raise InvalidTransactionError("negative")
        if transaction["family"] == "crash":
            raise RuntimeError("a handler with a bug")
        self._tx.put("sawtooth.state", b"key:" + key, str(value).encode())


class Order(PoolPolicy):
    def executed(self, identities: Sequence[bytes], view: StoreView) -> Sequence[bool]:
        return [view.get("sawtooth.state", b"batch:" + identity) is not None for identity in identities]


class SawtoothShape(LedgerAdapter):
    def pool_policy(self) -> PoolPolicy:
        return Order()

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._root = bytes(32)
        self._roots: list[tuple[int, bytes]] = []
        self._events: list[tuple[int, dict[str, Any]]] = []
        self._told = Events()

    def manifest(self) -> Manifest:
        routes = (
            Route("batches", RouteKind.SUBMIT, "POST", "/batches"),
            Route("batches.wait", RouteKind.SUBMIT_AND_WAIT, "POST", "/batches-and-wait"),
            Route("status", RouteKind.QUERY, "GET", "/batch_statuses/{id}"),
            Route("state", RouteKind.QUERY, "GET", "/state/{key}"),
            Route("events", RouteKind.STREAM, "GET", "/subscriptions"),
        )
        tables = (Table("sawtooth.state"), Table("sawtooth.root"), Table("sawtooth.batches", log=True))
        return Manifest("sawtooth", "1", routes, tables, reply=Status, waits_outside=True, externals=("doubler",))

    async def admit(self, raw: Sequence[bytes], caller: Caller) -> Sequence[Envelope | CocoError]:
        admitted: list[Envelope | CocoError] = []
        for one in raw:
            try:
                batch = json.loads(one)
                depends_on = tuple(bytes.fromhex(d) for d in batch.get("depends_on", []))
                admitted.append(Envelope(bytes.fromhex(batch["id"]), batch, len(one), depends_on=depends_on))
            except (ValueError, KeyError, TypeError):
                admitted.append(AdapterError("not a batch", code="sawtooth.malformed_batch"))
        return admitted

    async def open(self, tx: StoreTransaction, block: BlockContext) -> BatchSession:
        return Batches(tx, self.services)

    async def query(self, request: Request, caller: Caller, view: StoreView) -> Reply:
        assert isinstance(request.params, Mapping)
        if caller.kind is CallerKind.ANONYMOUS:
            raise NotFoundError("nothing here", code="sawtooth.not_found")
        if request.name == "status":
            identity = bytes.fromhex(request.params["id"])
            known = view.get("sawtooth.state", b"batch:" + identity)
            return Reply({"id": request.params["id"], "status": known.decode() if known else "UNKNOWN"}, public=True)
        value = view.get("sawtooth.state", b"key:" + request.params["key"].encode())
        if value is None:
            raise NotFoundError("no such state", code="sawtooth.not_found")
        root = view.get("sawtooth.root", bytes(8)) or b""
        state = {"data": value.decode(), "root": root.hex(), "derived_root": self._root.hex()}
        return Reply(Visible([state], lambda seen: seen[0]))

    def verify_binding(self, identity: bytes, text: bytes, proof: bytes) -> None:
        try:
            Ed25519PublicKey.from_public_bytes(identity).verify(proof, text)
        except (ValueError, InvalidSignature) as error:
            raise AdapterError("the signer did not sign this", code="sawtooth.bad_signer") from error

    async def acknowledge(self, request: Request, settled: Sequence[Settled], caller: Caller, view: StoreView) -> Reply:
        status = settled[0].outcome.reply or Status("UNKNOWN", settled[0].outcome.reason)
        return Reply(
            {"id": settled[0].envelope.id.hex(), "status": status.status, "message": status.message}, public=True
        )

    def redact(self, items: Sequence[Any], caller: Caller, view: StoreView) -> list[Any]:
        return list(items)

    async def applied(self, position: TransactionId, writes: WriteSet) -> Sequence[bytes]:
        rows = writes.rows("sawtooth.root")
        if rows:
            self._roots.append((position.seqno, self._root))
            self._root = rows[0][1] or b""
            for identity, _ in writes.rows("sawtooth.batches"):
                self._events.append((position.seqno, {"batch": identity.hex(), "root": self._root.hex()}))
        return ()

    def committed(self, position: TransactionId) -> None:
        done = [event for seqno, event in self._events if seqno <= position.seqno]
        self._events = self._events[len(done) :]
        self._roots = [item for item in self._roots if item[0] > position.seqno]
        self._told.tell(done)

    def rolled_back(self, position: TransactionId) -> None:
        while self._roots and self._roots[-1][0] > position.seqno:
            self._root = self._roots.pop()[1]

    async def rebuild(self, view: StoreView) -> None:
        self._root = view.get("sawtooth.root", bytes(8)) or bytes(32)
        self._roots = []

    async def stream(self, request: Request, caller: Caller, stream: Stream) -> None:
        await self._told.follow(stream, lambda event: Visible([event], lambda seen: seen[0]))


def root_of(tx: StoreTransaction) -> bytes:
    whole = sha512()
    for key, value in tx.scan("sawtooth.state"):
        whole.update(len(key).to_bytes(4, "big") + key + value)
    return whole.digest()[:32]


def adapter(settings: Mapping[str, Any]) -> SawtoothShape:
    return SawtoothShape(settings)
