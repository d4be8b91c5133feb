"""HTTP routes: ``/node`` and recovery on the administration listener, adapters' routes on the application listener."""

from __future__ import annotations

import base64
import functools
import secrets
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route as HttpRoute

from coco import limits
from coco.attestation.evidence import NONCE_BYTES_MAX
from coco.configuration.reads import Page, Paged
from coco.enclave.adapters.contract import Caller, CallerKind, Request, RouteKind
from coco.enclave.api import openapi
from coco.enclave.api.admission import is_signed
from coco.enclave.api.http import error_body, retry_headers
from coco.enclave.api.service import Service
from coco.enclave.network.governance import Asked
from coco.errors import AccessError, BusyError, CocoError, HostLiedError, NotFoundError, RequestError
from coco.ledger.position import Position

if TYPE_CHECKING:
    from coco.enclave.node.life import EnclaveNode

Handler = Callable[["EnclaveNode", HttpRequest], Awaitable[Any]]

_encode = msgspec.json.Encoder().encode
_HASH_BYTES_MAX = 64
_AFTER_MAX = 256


def json_response(value: Any, status: int = 200) -> Response:
    """A JSON answer."""
    return Response(_encode(value), status, media_type="application/json")


def error_response(error: CocoError) -> Response:
    """The answer for a refusal, with its code in a header too."""
    return Response(
        error_body(error),
        error.http_status,
        media_type="application/json",
        headers={"x-ms-error-code": error.code, **retry_headers(error)},
    )


async def _body(request: HttpRequest) -> bytes:
    """The body, whole and uncopied, as the listener gave it: Starlette would join it with an empty end."""
    message = await request.receive()
    return bytes(message["body"])


def _guard(node: EnclaveNode, handler: Handler, work_us: int = 0) -> Callable[[HttpRequest], Awaitable[Response]]:
    @functools.wraps(handler)
    async def endpoint(request: HttpRequest) -> Response:
        try:
            if work_us:
                signed = is_signed(request.method, request.scope["headers"])
                await node.admission.pay(_caller(request), work_us, signed=signed)
            answer = await handler(node, request)
        except HostLiedError:
            raise  # the listener reports it, which ends the enclave
        except CocoError as error:
            return error_response(error)
        return answer if isinstance(answer, Response) else json_response(answer)

    return endpoint


def _not_found(request: HttpRequest, exc: Exception) -> Response:
    return error_response(NotFoundError(f"there is nothing at {request.url.path[:200]}", code="http.not_found"))


def _bad_method(request: HttpRequest, exc: Exception) -> Response:
    error = RequestError(f"{request.method} is not served here", code="http.method_not_allowed")
    return Response(error_body(error), 405, media_type="application/json")


def _starlette(routes: list[HttpRoute]) -> Starlette:
    return Starlette(routes=routes, exception_handlers={404: _not_found, 405: _bad_method})


# --- administration -----------------------------------------------------------------------------------------------


async def _info(node: EnclaveNode, request: HttpRequest) -> Any:
    return node.info()


async def _health(node: EnclaveNode, request: HttpRequest) -> Any:
    return json_response({"status": node.status, "ready": node.is_ready}, 200 if node.is_ready else 503)


async def _attestation(node: EnclaveNode, request: HttpRequest) -> Any:
    try:
        nonce = bytes.fromhex(request.query_params.get("nonce", ""))
    except ValueError as error:
        raise RequestError("the nonce is hex", code="attestation.bad_nonce") from error
    if len(nonce) > NONCE_BYTES_MAX:
        raise RequestError(f"the nonce has at most {NONCE_BYTES_MAX} bytes", code="attestation.bad_nonce")
    return await node.attest(nonce)


async def _network(node: EnclaveNode, request: HttpRequest) -> Any:
    return node.network()


async def _retire(node: EnclaveNode, request: HttpRequest) -> Any:
    return await node.retire(await _body(request))


async def _commit(node: EnclaveNode, request: HttpRequest) -> Any:
    return {"transaction_id": str(node.committed_position())}


async def _transaction(node: EnclaveNode, request: HttpRequest) -> Any:
    if "hash" in request.query_params:
        raise RequestError(
            "what became of a transaction is told to its parties",
            code="request.hash_elsewhere",
            hint="GET /coco/transaction?hash=0x… where applications connect, with a participant's certificate",
        )
    position = Position.parse(request.query_params.get("id", ""))
    return {"transaction_id": str(position), "status": node.transaction_status(position)}


async def _receipt(node: EnclaveNode, request: HttpRequest) -> Any:
    position = Position.parse(request.query_params.get("id", request.query_params.get("transaction_id", "")))
    return (await node.receipt(position)).to_json()


async def _identities(node: EnclaveNode, request: HttpRequest) -> Any:
    return node.identities()


async def _recovery(node: EnclaveNode, request: HttpRequest) -> Any:
    return node.recovery_state()


async def _statement(node: EnclaveNode, request: HttpRequest) -> Any:
    return await node.accept_statement(await _body(request))


async def _encrypted_share(node: EnclaveNode, request: HttpRequest) -> Any:
    share = node.encrypted_share(request.path_params["member"])
    return {"encryptedShare": base64.b64encode(share).decode()}


async def _recover(node: EnclaveNode, request: HttpRequest) -> Any:
    return await node.accept_share(request.path_params["member"], await _body(request))


# --- governance ---------------------------------------------------------------------------------------------------


def _version(request: HttpRequest) -> None:
    given = request.query_params.get("api-version", "")
    if given != openapi.API_VERSION:
        raise RequestError(
            f"the query parameter api-version must be {openapi.API_VERSION}", code="gov.unsupported_api_version"
        )


def _signed(verb: str) -> Handler:
    async def handler(node: EnclaveNode, request: HttpRequest) -> Any:
        _version(request)
        if not node.is_governed:
            raise BusyError("the service is not open", code="node.not_open")
        if request.headers.get("content-type", "").partition(";")[0].strip() != "application/cose":
            raise RequestError("content-type must be application/cose", code="gov.not_cose")
        named = request.path_params
        asked = Asked(verb, named.get("proposal", ""), named.get("member", ""), await _body(request))
        return (await node.governing.serve(asked)) or Response(status_code=204)

    return handler


def _read(read: Callable[[EnclaveNode, dict[str, str]], Any]) -> Handler:
    async def handler(node: EnclaveNode, request: HttpRequest) -> Any:
        _version(request)
        if not node.is_governed:
            raise BusyError("the service is not open", code="node.not_open")
        return read(node, request.path_params)

    return handler


def _list(read: Callable[[EnclaveNode, Page], Paged]) -> Handler:
    """A list, a page at a time: the answer names where the next one is, if there is one."""

    async def handler(node: EnclaveNode, request: HttpRequest) -> Any:
        _version(request)
        if not node.is_governed:
            raise BusyError("the service is not open", code="node.not_open")
        found = read(node, _page(request))
        answer: dict[str, Any] = {"value": found.rows}
        if found.last:
            asked = {**request.query_params, "after": found.last}
            answer["nextLink"] = f"{request.url.path}?{urlencode(asked)}"
        return answer

    return handler


def _page(request: HttpRequest) -> Page:
    after, rows = request.query_params.get("after", ""), request.query_params.get("top", "")
    if len(after) > _AFTER_MAX:
        raise RequestError("`after` is what a `nextLink` says", code="request.bad_page")
    if not rows:
        return Page(after)
    if not (rows.isascii() and rows.isdigit() and len(rows) <= 9 and int(rows) > 0):
        raise RequestError("`top` is a number of rows", code="request.bad_page")
    return Page(after, min(int(rows), limits.PAGE_ROWS_MAX))


async def _rehearse(node: EnclaveNode, request: HttpRequest) -> Any:
    _version(request)
    if not node.is_governed:
        raise BusyError("the service is not open", code="node.not_open")
    return await node.governing.rehearse(await _body(request))


def _status_of(node: EnclaveNode, position: Position) -> dict[str, Any]:
    return {"transactionId": str(position), "status": node.transaction_status(position)}


@functools.cache
def _openapi_document() -> bytes:
    return _encode(openapi.document())


async def _openapi(node: EnclaveNode, request: HttpRequest) -> Any:
    return Response(_openapi_document(), media_type="application/json")


_PROPOSALS = "/gov/members/proposals"
_GOV_GET: dict[str, Handler] = {
    _PROPOSALS: _list(lambda node, page: node.governing.open_proposals(page)),
    _PROPOSALS + "/{proposal}": _read(lambda node, named: node.governing.proposal(named["proposal"])),
    _PROPOSALS + "/{proposal}/actions": _read(lambda node, named: node.governing.actions_of(named["proposal"])),
    _PROPOSALS + "/{proposal}/ballots/{member}": _read(
        lambda node, named: node.governing.ballot(named["proposal"], named["member"])
    ),
    "/gov/members/state-digests/{member}": _read(lambda node, named: node.governing.state_digest(named["member"])),
    "/gov/service/info": _read(lambda node, named: node.governing.info()),
    "/gov/service/members": _list(lambda node, page: node.governing.members(page)),
    "/gov/service/members/{member}": _read(lambda node, named: node.governing.member(named["member"])),
    "/gov/service/nodes": _list(lambda node, page: node.governing.nodes(page)),
    "/gov/service/nodes/{node}": _read(lambda node, named: node.governing.node(named["node"])),
    "/gov/service/succession": _read(lambda node, named: node.governing.succession()),
    "/gov/service/join-policy": _read(lambda node, named: node.governing.join_policy()),
    "/gov/service/transactions/commit": _read(lambda node, named: _status_of(node, node.committed_position())),
    "/gov/service/transactions/{position}": _read(
        lambda node, named: _status_of(node, Position.parse(named["position"]))
    ),
    "/gov/service/constitution": _read(
        lambda node, named: Response(node.governing.constitution(), media_type="text/plain; charset=utf-8")
    ),
    "/gov/service/state": _read(lambda node, named: node.governing.state()),
}
_GOV_POST: dict[str, Handler] = {
    _PROPOSALS + ":create": _signed("create"),
    _PROPOSALS + ":rehearse": _rehearse,
    _PROPOSALS + "/{proposal}:withdraw": _signed("withdraw"),
    _PROPOSALS + "/{proposal}/ballots/{member}:submit": _signed("vote"),
    "/gov/members/state-digests/{member}:update": _signed("state_digest"),
    "/gov/members/state-digests/{member}:ack": _signed("ack"),
    "/gov/service/succession/statements": _signed("state"),
}


#: Microseconds of the event loop that routes cost beyond what each request does (``http.py``): the one table of it.
_LEAST_WORK_US = 200
_WORK_US: dict[str, int] = {
    "/node/attestation": 1_000,
    "/node/network": 600,
    "/node/receipt": 800,
    "/node/retire": 1_000,
    "/node/service/identities": 500,
    "/gov/recovery/statements": 1_000,
    "/gov/recovery/members/{member}:recover": 1_000,
    _PROPOSALS: 2_500,
    _PROPOSALS + ":create": 3_000,
    # Two runs of the rules in a process that is forked for each.
    _PROPOSALS + ":rehearse": 30_000,
    _PROPOSALS + "/{proposal}:withdraw": 1_000,
    _PROPOSALS + "/{proposal}/ballots/{member}:submit": 1_000,
    "/gov/members/state-digests/{member}:update": 1_000,
    "/gov/members/state-digests/{member}:ack": 1_000,
    "/gov/service/succession/statements": 1_000,
    "/gov/service/members": 2_500,
    "/gov/service/nodes": 2_500,
    "/gov/service/join-policy": 500,
    "/gov/service/state": 1_500,
    # Two tries of a block's transactions: 0.1 ms of a small block, 32 ms of one of 2,000.
    "/coco/receipt": 10_000,
}


def administration_app(node: EnclaveNode) -> Starlette:
    """Routes of the administration listener."""
    get: dict[str, Handler] = {
        "/openapi.json": _openapi,
        "/node/info": _info,
        "/node/health": _health,
        "/node/attestation": _attestation,
        "/node/network": _network,
        "/node/commit": _commit,
        "/node/tx": _transaction,
        "/node/receipt": _receipt,
        "/node/service/identities": _identities,
        "/gov/recovery": _recovery,
        "/gov/recovery/encrypted-shares/{member}": _encrypted_share,
        **_GOV_GET,
    }
    post: dict[str, Handler] = {
        "/node/retire": _retire,
        "/gov/recovery/statements": _statement,
        "/gov/recovery/members/{member}:recover": _recover,
        **_GOV_POST,
    }
    routes = [
        HttpRoute(path, _guard(node, handler, _WORK_US.get(path, _LEAST_WORK_US)), methods=[method])
        for method, handlers in (("GET", get), ("POST", post))
        for path, handler in handlers.items()
    ]
    return _starlette(routes)


# --- application --------------------------------------------------------------------------------------------------


async def _bind_account(node: EnclaveNode, request: HttpRequest) -> Any:
    return await node.bind_account(await _body(request), _caller(request))


async def _who(node: EnclaveNode, request: HttpRequest) -> Any:
    caller = _caller(request)
    return {
        "kind": caller.kind.value,
        "actor": caller.actor,
        "network": node.network_name,
        "accounts": sorted("0x" + account.hex() for account in caller.accounts),
        "insecure_any_account": caller.any_account,
    }


def _identity(text: str) -> bytes:
    try:
        identity = bytes.fromhex(text.removeprefix("0x"))
    except ValueError as error:
        raise RequestError("a transaction's hash is hex", code="request.bad_hash") from error
    if not 0 < len(identity) <= _HASH_BYTES_MAX:
        raise RequestError("a transaction's hash is hex", code="request.bad_hash")
    return identity


async def _fate(node: EnclaveNode, request: HttpRequest) -> Any:
    asked = request.query_params
    identity = _identity(asked.get("hash", ""))
    if node.status != "Open":
        raise BusyError("the service is not open", code="node.not_open")
    adapter = asked.get("adapter", "ethereum")
    return {"hash": "0x" + identity.hex(), **await node.transaction_fate(adapter, identity, _caller(request))}


async def _whole_receipt(node: EnclaveNode, request: HttpRequest) -> Any:
    caller, asked = _caller(request), request.query_params
    if caller.kind is CallerKind.ANONYMOUS:
        raise AccessError("a receipt is for participants", code="access.no_participant")
    if node.status != "Open":
        raise BusyError("the service is not open", code="node.not_open")
    if "hash" not in asked:
        return await node.whole_receipt(Position.parse(asked.get("id", "")))
    return await node.proof(asked.get("adapter", "ethereum"), _identity(asked["hash"]), caller)


def _caller(request: HttpRequest) -> Caller:
    caller: Caller = request.scope["coco.caller"]
    return caller


def application_app(node: EnclaveNode, service: Service) -> Starlette:
    """Routes of the application listener: the framework's own, and every adapter's."""
    routes = [
        HttpRoute("/coco/accounts/bind", _guard(node, _bind_account), methods=["POST"]),
        HttpRoute("/coco/caller", _guard(node, _who), methods=["GET"]),
        HttpRoute("/coco/receipt", _guard(node, _whole_receipt, _WORK_US["/coco/receipt"]), methods=["GET"]),
        HttpRoute("/coco/transaction", _guard(node, _fate), methods=["GET"]),
    ]
    for runtime, route in service.routes:
        if route.kind is RouteKind.SUBSCRIBE:
            continue

        async def serve(
            node: EnclaveNode, request: HttpRequest, runtime: Any = runtime, route: Any = route
        ) -> Response:
            if node.status != "Open":
                raise BusyError("the service is not open", code="node.not_open")
            asked = Request(
                route.name,
                request.path_params,
                await _body(request),
                dict(request.query_params),
                secrets.token_bytes(16),
            )
            reply = await service.serve(runtime, route, asked, _caller(request))
            if isinstance(reply.value, bytes):
                return Response(reply.value, reply.status, media_type=reply.content_type)
            return json_response(reply.value, reply.status)

        routes.append(HttpRoute(route.path, _guard(node, serve), methods=[route.method]))
    return _starlette(routes)
