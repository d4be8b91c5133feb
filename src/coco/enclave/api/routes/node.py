"""``/node``: what a node is, what its network is, and what its ledger says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from starlette.requests import Request as HttpRequest

from coco.attestation.evidence import NONCE_BYTES_MAX
from coco.enclave.api.routes.common import Handler, body_of, json_response
from coco.errors import RequestError
from coco.ledger.receipts import Receipt
from coco.ledger.transaction_id import TransactionId


class NodeAnswers(Protocol):
    """What these routes need of a node."""

    @property
    def status(self) -> str: ...
    @property
    def is_ready(self) -> bool: ...
    def info(self) -> dict[str, Any]: ...
    def network(self) -> dict[str, Any]: ...
    def identities(self) -> dict[str, Any]: ...
    def keys(self) -> dict[str, Any]: ...
    def committed_position(self) -> TransactionId: ...
    def transaction_status(self, position: TransactionId) -> str: ...
    async def attest(self, nonce: bytes) -> dict[str, Any]: ...
    async def receipt(self, position: TransactionId) -> Receipt: ...
    async def retire(self, statement: bytes) -> dict[str, Any]: ...


#: Beyond the least.
WORK_US: Mapping[str, int] = {
    "/node/attestation": 1_000,
    "/node/network": 600,
    "/node/receipt": 800,
    "/node/retire": 1_000,
    "/node/service/identities": 500,
    "/node/service/keys": 300,
}


def handlers(node: NodeAnswers) -> dict[tuple[str, str], Handler]:
    """By method and path."""

    async def info(request: HttpRequest) -> Any:
        return node.info()

    async def health(request: HttpRequest) -> Any:
        return json_response({"status": node.status, "ready": node.is_ready}, 200 if node.is_ready else 503)

    async def attestation(request: HttpRequest) -> Any:
        try:
            nonce = bytes.fromhex(request.query_params.get("nonce", ""))
        except ValueError as error:
            raise RequestError("the nonce is hex", code="attestation.bad_nonce") from error
        if len(nonce) > NONCE_BYTES_MAX:
            raise RequestError(f"the nonce has at most {NONCE_BYTES_MAX} bytes", code="attestation.bad_nonce")
        return await node.attest(nonce)

    async def network(request: HttpRequest) -> Any:
        return node.network()

    async def retire(request: HttpRequest) -> Any:
        return await node.retire(await body_of(request))

    async def commit(request: HttpRequest) -> Any:
        return {"transaction_id": str(node.committed_position())}

    async def transaction(request: HttpRequest) -> Any:
        if "hash" in request.query_params:
            raise RequestError(
                "what became of a transaction is told to its parties",
                code="request.hash_elsewhere",
                hint="GET /coco/transaction?hash=0x… where applications connect, with a participant's certificate",
            )
        position = TransactionId.parse(request.query_params.get("id", ""))
        return {"transaction_id": str(position), "status": node.transaction_status(position)}

    async def receipt(request: HttpRequest) -> Any:
        position = TransactionId.parse(request.query_params.get("id", request.query_params.get("transaction_id", "")))
        return (await node.receipt(position)).to_json()

    async def identities(request: HttpRequest) -> Any:
        return node.identities()

    async def keys(request: HttpRequest) -> Any:
        return node.keys()

    return {
        ("GET", "/node/info"): info,
        ("GET", "/node/health"): health,
        ("GET", "/node/attestation"): attestation,
        ("GET", "/node/network"): network,
        ("GET", "/node/commit"): commit,
        ("GET", "/node/tx"): transaction,
        ("GET", "/node/receipt"): receipt,
        ("GET", "/node/service/identities"): identities,
        ("GET", "/node/service/keys"): keys,
        ("POST", "/node/retire"): retire,
    }
