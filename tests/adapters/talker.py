"""An adapter that has an external processor decide, which asks back for state and has it kept.

GET /talked/{processor}/{payload}    what the processor said, and the state that it left
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from coco.enclave.adapters.contract import (
    BatchSession,
    Caller,
    LedgerAdapter,
    Manifest,
    Reply,
    Request,
    Route,
    RouteKind,
)


class Talker(LedgerAdapter):
    def manifest(self) -> Manifest:
        routes = (Route("talk", RouteKind.QUERY, "GET", "/talked/{processor}/{payload}"),)
        return Manifest("talker", "1", routes, (), externals=("xo", "nobody"))

    async def admit(self, raw: Sequence[bytes], caller: Caller) -> Sequence[Any]:
        return []

    async def open(self, tx: Any, block: Any) -> BatchSession:
        raise NotImplementedError("it takes no transactions")

    async def query(self, request: Request, caller: Caller, view: Any) -> Reply:
        params: Any = request.params
        state, said = {b"counter": b"5"}, list[str]()
        async with self.services.external(params["processor"]) as session:
            async for message in session.converse(params["payload"].encode()):
                said.append(message.decode())
                match message.split(b" "):
                    case [b"get", name]:
                        await session.send(state.get(name, b"0"))
                    case [b"set", name, value]:
                        state[name] = value
                        await session.send(b"ok")
        return Reply({"said": said, "counter": state[b"counter"].decode()}, public=True)

    def redact(self, items: Sequence[Any], caller: Caller, view: Any) -> list[Any]:
        return list(items)


def adapter(settings: Mapping[str, Any]) -> Talker:
    return Talker()
