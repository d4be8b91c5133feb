"""``/gov``: members' signed requests, and what everybody may read of the configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlencode

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from coco import limits
from coco.configuration.reads import Page, Paged
from coco.enclave.api import openapi
from coco.enclave.api.routes.common import Handler, Serves, body_of, require_governed
from coco.enclave.api.routes.node import NodeAnswers
from coco.enclave.network.governance import Asked, GovernanceService
from coco.errors import RequestError
from coco.ledger.transaction_id import TransactionId

_AFTER_MAX = 256
_PROPOSALS = "/gov/members/proposals"

#: Beyond the least.
WORK_US: Mapping[str, int] = {
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
}


def _check_version(request: HttpRequest) -> None:
    given = request.query_params.get("api-version", "")
    if given != openapi.API_VERSION:
        raise RequestError(
            f"the query parameter api-version must be {openapi.API_VERSION}", code="gov.unsupported_api_version"
        )


def _page(request: HttpRequest) -> Page:
    after, rows = request.query_params.get("after", ""), request.query_params.get("top", "")
    if len(after) > _AFTER_MAX:
        raise RequestError("`after` is what a `nextLink` says", code="request.bad_page")
    if not rows:
        return Page(after)
    if not (rows.isascii() and rows.isdigit() and len(rows) <= 9 and int(rows) > 0):
        raise RequestError("`top` is a number of rows", code="request.bad_page")
    return Page(after, min(int(rows), limits.PAGE_ROWS_MAX))


def handlers(governing: GovernanceService, node: NodeAnswers, life: Serves) -> dict[tuple[str, str], Handler]:
    """By method and path.

    Args:
        governing: takes requests, and reads.
        node: knows transactions.
        life: whether there is anything to govern.
    """

    def check(request: HttpRequest) -> None:
        _check_version(request)
        require_governed(life)

    def signed(verb: str) -> Handler:
        async def handler(request: HttpRequest) -> Any:
            check(request)
            if request.headers.get("content-type", "").partition(";")[0].strip() != "application/cose":
                raise RequestError("content-type must be application/cose", code="gov.not_cose")
            named = request.path_params
            asked = Asked(verb, named.get("proposal", ""), named.get("member", ""), await body_of(request))
            return (await governing.serve(asked)) or Response(status_code=204)

        return handler

    def read(answer: Callable[[dict[str, str]], Any]) -> Handler:
        async def handler(request: HttpRequest) -> Any:
            check(request)
            return answer(request.path_params)

        return handler

    def paged(answer: Callable[[Page], Paged]) -> Handler:
        """A list, a page at a time: the answer names where the next one is, if there is one."""

        async def handler(request: HttpRequest) -> Any:
            check(request)
            page = answer(_page(request))
            document: dict[str, Any] = {"value": page.rows}
            if page.last:
                asked = {**request.query_params, "after": page.last}
                document["nextLink"] = f"{request.url.path}?{urlencode(asked)}"
            return document

        return handler

    async def rehearse(request: HttpRequest) -> Any:
        check(request)
        return await governing.rehearse(await body_of(request))

    def status_of(position: TransactionId) -> dict[str, Any]:
        return {"transactionId": str(position), "status": node.transaction_status(position)}

    def constitution(named: dict[str, str]) -> Response:
        return Response(governing.constitution(), media_type="text/plain; charset=utf-8")

    get: dict[str, Handler] = {
        _PROPOSALS: paged(governing.open_proposals),
        _PROPOSALS + "/{proposal}": read(lambda named: governing.proposal(named["proposal"])),
        _PROPOSALS + "/{proposal}/actions": read(lambda named: governing.actions_of(named["proposal"])),
        _PROPOSALS + "/{proposal}/ballots/{member}": read(
            lambda named: governing.ballot(named["proposal"], named["member"])
        ),
        "/gov/members/state-digests/{member}": read(lambda named: governing.state_digest(named["member"])),
        "/gov/service/info": read(lambda named: governing.info()),
        "/gov/service/members": paged(governing.members),
        "/gov/service/members/{member}": read(lambda named: governing.member(named["member"])),
        "/gov/service/nodes": paged(governing.nodes),
        "/gov/service/nodes/{node}": read(lambda named: governing.node(named["node"])),
        "/gov/service/succession": read(lambda named: governing.succession()),
        "/gov/service/join-policy": read(lambda named: governing.join_policy()),
        "/gov/service/transactions/commit": read(lambda named: status_of(node.committed_position())),
        "/gov/service/transactions/{position}": read(lambda named: status_of(TransactionId.parse(named["position"]))),
        "/gov/service/constitution": read(constitution),
        "/gov/service/state": read(lambda named: governing.state()),
    }
    post: dict[str, Handler] = {
        _PROPOSALS + ":create": signed("create"),
        _PROPOSALS + ":rehearse": rehearse,
        _PROPOSALS + "/{proposal}:withdraw": signed("withdraw"),
        _PROPOSALS + "/{proposal}/ballots/{member}:submit": signed("vote"),
        "/gov/members/state-digests/{member}:update": signed("state_digest"),
        "/gov/members/state-digests/{member}:ack": signed("ack"),
        "/gov/service/succession/statements": signed("state"),
    }
    return {("GET", path): handler for path, handler in get.items()} | {
        ("POST", path): handler for path, handler in post.items()
    }
