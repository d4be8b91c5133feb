"""The application listener: ``/coco``, what the framework offers every participant, and the routes of every adapter."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from starlette.applications import Starlette
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from coco import limits
from coco.configuration.callers import Caller, CallerKind
from coco.configuration.identities import ACCOUNTS_OF
from coco.enclave.adapters.contract import Request, Route, RouteKind, headers, mounts
from coco.enclave.api.admission import Admission
from coco.enclave.api.dispatcher import Dispatcher
from coco.enclave.api.jsonrpc import JsonRpc, Target
from coco.enclave.api.routes.common import (
    Handler,
    Serves,
    app,
    body_of,
    caller_of,
    json_response,
    require_open,
    route,
)
from coco.enclave.ordering.runtime import AdapterRuntime
from coco.errors import AccessError, BodyTooLargeError, RequestError
from coco.ledger.transaction_id import TransactionId

_HASH_BYTES_MAX = 64
#: Two tries of a block's transactions: 0.1 ms of a small block, 32 ms of one of 2,000.
_RECEIPT_WORK_US = 10_000


class ParticipantAnswers(Protocol):
    """What these routes need of a node."""

    @property
    def network_name(self) -> str: ...
    async def transaction_fate(self, adapter: str, identity: bytes, caller: Caller) -> dict[str, Any]: ...
    async def whole_receipt(self, position: TransactionId) -> dict[str, Any]: ...
    async def proof(self, adapter: str, identity: bytes, caller: Caller) -> dict[str, Any]: ...


class Binds(Protocol):
    """Binds identities of protocols to participants."""

    async def bind(self, body: bytes, caller: Caller) -> dict[str, Any]: ...
    def statement(self, adapter: str, identity: bytes, nonce: str, caller: Caller) -> str: ...


def _hex(identities: Iterable[bytes]) -> list[str]:
    return sorted("0x" + identity.hex() for identity in identities)


def _identity(text: str, bytes_max: int = _HASH_BYTES_MAX) -> bytes:
    try:
        identity = bytes.fromhex(text.removeprefix("0x"))
    except ValueError as error:
        raise RequestError("a transaction's hash is hex", code="request.bad_hash") from error
    if not 0 < len(identity) <= bytes_max:
        raise RequestError("a transaction's hash is hex", code="request.bad_hash")
    return identity


def _of_adapter(service: Dispatcher, runtime: AdapterRuntime, served: Route, life: Serves) -> Handler:
    body_bytes_max = served.body_bytes_max or limits.BODY_BYTES_MAX

    async def handler(request: HttpRequest) -> Response:
        require_open(life)
        body = await body_of(request)
        if len(body) > body_bytes_max:
            message = f"a body of this route has at most {body_bytes_max} bytes"
            raise BodyTooLargeError(message)
        asked = Request(
            served.name,
            request.path_params,
            body,
            dict(request.query_params),
            secrets.token_bytes(16),
            headers.wanted(served.headers, request.scope["headers"]),
        )
        reply = await service.serve(runtime, served, asked, caller_of(request))
        added = headers.checked(reply.headers) if reply.headers else None
        if isinstance(reply.value, bytes):
            return Response(reply.value, reply.status, added, reply.content_type)
        return json_response(reply.value, reply.status, added)

    return handler


def _json_rpc(rpc: JsonRpc, mount: str, position: Callable[[], bytes]) -> Handler:
    async def handler(request: HttpRequest) -> Response:
        body, caller = await body_of(request), caller_of(request)
        if not caller.actor and len(body) > limits.ANONYMOUS_BODY_BYTES_MAX:
            message = f"a body of whoever shows no certificate has at most {limits.ANONYMOUS_BODY_BYTES_MAX} bytes"
            raise BodyTooLargeError(message)
        rest = request.url.path.removeprefix(mount)
        target = Target(mount, rest, dict(request.query_params), request.scope["headers"])
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        rpc.handle(body, caller, lambda reply: None if answer.done() else answer.set_result(reply), target)
        said = {"x-ms-ccf-transaction-id": position().partition(b"\r\n")[0].decode()}
        return Response(await answer, headers=said, media_type="application/json")

    return handler


def application_app(
    answers: ParticipantAnswers,
    bindings: Binds,
    service: Dispatcher,
    life: Serves,
    admission: Admission,
    rpc: JsonRpc,
    position: Callable[[], bytes],
) -> Starlette:
    """Routes of the application listener: the framework's own, every adapter's, and JSON-RPC below mounts."""

    async def bind(request: HttpRequest) -> Any:
        return await bindings.bind(await body_of(request), caller_of(request))

    async def statement(request: HttpRequest) -> Any:
        asked = request.query_params
        identity, nonce = _identity(asked.get("identity", ""), limits.IDENTITY_BYTES_MAX), asked.get("nonce", "")
        return {"text": bindings.statement(asked.get("adapter", ""), identity, nonce, caller_of(request))}

    async def who(request: HttpRequest) -> Any:
        caller = caller_of(request)
        return {
            "kind": caller.kind.value,
            "actor": caller.actor,
            "network": answers.network_name,
            "accounts": _hex(caller.identities_of(ACCOUNTS_OF)),
            "identities": {adapter: _hex(owned) for adapter, owned in sorted(caller.identities.items())},
            "insecure_any_account": caller.any_account,
        }

    async def fate(request: HttpRequest) -> Any:
        asked = request.query_params
        identity = _identity(asked.get("hash", ""))
        require_open(life)
        adapter = asked.get("adapter", "ethereum")
        told = await answers.transaction_fate(adapter, identity, caller_of(request))
        return {"hash": "0x" + identity.hex(), **told}

    async def receipt(request: HttpRequest) -> Any:
        caller, asked = caller_of(request), request.query_params
        if caller.kind is CallerKind.ANONYMOUS:
            raise AccessError("a receipt is for participants", code="access.no_participant")
        require_open(life)
        if "hash" not in asked:
            return await answers.whole_receipt(TransactionId.parse(asked.get("id", "")))
        return await answers.proof(asked.get("adapter", "ethereum"), _identity(asked["hash"]), caller)

    return app(
        [
            route("POST", "/coco/accounts/bind", bind, admission, 0),
            route("GET", "/coco/identities/statement", statement, admission, 0),
            route("POST", "/coco/identities/bind", bind, admission, 0),
            route("GET", "/coco/caller", who, admission, 0),
            route("GET", "/coco/receipt", receipt, admission, _RECEIPT_WORK_US),
            route("GET", "/coco/transaction", fate, admission, 0),
            *(
                route(
                    served.method,
                    mounts.below(runtime.mount, served.path),
                    _of_adapter(service, runtime, served, life),
                    admission,
                    0,
                )
                for runtime, served in service.routes
                if served.kind is not RouteKind.STREAM
            ),
            *(
                route("POST", path, _json_rpc(rpc, mount, position), admission, 0)
                for mount in service.rpc_mounts
                for path in mounts.of_json_rpc(mount)
            ),
        ]
    )
