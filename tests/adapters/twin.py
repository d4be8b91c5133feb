"""An adapter with JSON-RPC methods that Ethereum has too, for mounts: what it is asked, and by which path, it tells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from coco._native import keccak256
from coco.enclave.adapters.contract import (
    BatchSession,
    BlockContext,
    Caller,
    Envelope,
    LedgerAdapter,
    Manifest,
    Outcome,
    Reply,
    Request,
    Route,
    RouteKind,
    Stream,
    Subscriptions,
    Table,
    Verdict,
)
from coco.enclave.store import StoreTransaction, StoreView
from coco.errors import CocoError


class Rows(BatchSession):
    def __init__(self, tx: StoreTransaction) -> None:
        self._tx = tx

    async def run(self, envelope: Envelope) -> Outcome:
        self._tx.put("twin.rows", envelope.id, envelope.payload)
        return Outcome(Verdict.INCLUDED)


class Twin(LedgerAdapter):
    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.settings = settings

    def manifest(self) -> Manifest:
        routes = (
            Route("eth_chainId", RouteKind.QUERY, headers=("psi",)),
            Route("eth_sendRawTransaction", RouteKind.SUBMIT),
            Route("rows", RouteKind.QUERY, "GET", "/rows/{identity}"),
            Route("echo", RouteKind.STREAM, "GET", "/echo/{room}"),
        )
        named = Subscriptions("eth_subscribe", "eth_unsubscribe", "twin_told")
        return Manifest("twin", "1", routes, (Table("twin.rows"),), mount="/twin", subscriptions=named)

    def parse_submission(self, request: Request) -> Sequence[bytes]:
        params: Any = request.params
        return [bytes.fromhex(params[0].removeprefix("0x"))]

    async def admit(self, raw: Sequence[bytes], caller: Caller) -> Sequence[Envelope | CocoError]:
        return [Envelope(keccak256(each), each, len(each)) for each in raw]

    async def open(self, tx: StoreTransaction, block: BlockContext) -> BatchSession:
        return Rows(tx)

    async def query(self, request: Request, caller: Caller, view: StoreView) -> Reply:
        if request.name == "rows":
            params: Any = request.params
            row = view.get("twin.rows", bytes.fromhex(params["identity"]))
            return Reply(None if row is None else row.hex(), public=True)
        asked = {"rest": request.rest, "query": request.query, "headers": request.headers}
        return Reply({"twin": asked, "settings": self.settings}, public=True)

    async def stream(self, request: Request, caller: Caller, stream: Stream) -> None:
        if request.name == "eth_subscribe":
            await stream.send({"params": list(request.params)}, public=True)
            await stream.receive()
        await stream.send({"room": request.params, "query": request.query}, public=True)
        while (message := await stream.receive()) is not None and message != "enough":
            await stream.send(message, public=True)

    def redact(self, items: Sequence[Any], caller: Caller, view: Any) -> list[Any]:
        return list(items)


def adapter(settings: Mapping[str, Any]) -> Twin:
    return Twin(settings)
