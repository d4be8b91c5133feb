"""An adapter that signs whatever it is asked to, with a key of each kind.

GET /signed/{key}/{text}    {"signature", "certificates"}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from coco.enclave.adapters.contract import (
    Algorithm,
    BatchSession,
    Caller,
    Key,
    LedgerAdapter,
    Manifest,
    Reply,
    Request,
    Route,
    RouteKind,
)

KEYS = (
    Key("notary", Algorithm.ED25519, stays=True),
    Key("blocks", Algorithm.SECP256K1),
    Key("papers", Algorithm.P384),
)


class Signer(LedgerAdapter):
    def manifest(self) -> Manifest:
        return Manifest("signer", "1", (Route("sign", RouteKind.QUERY, "GET", "/signed/{key}/{text}"),), (), keys=KEYS)

    async def admit(self, raw: Sequence[bytes], caller: Caller) -> Sequence[Any]:
        return []

    async def open(self, tx: Any, block: Any) -> BatchSession:
        raise NotImplementedError("it takes no transactions")

    async def query(self, request: Request, caller: Caller, view: Any) -> Reply:
        params: Any = request.params
        signature = await self.services.sign(params["key"], params["text"].encode())
        certificates = list(self.services.certificates(params["key"]))
        return Reply({"signature": signature.hex(), "certificates": certificates}, public=True)

    def redact(self, items: Sequence[Any], caller: Caller, view: Any) -> list[Any]:
        return list(items)


def adapter(settings: Mapping[str, Any]) -> Signer:
    return Signer()
