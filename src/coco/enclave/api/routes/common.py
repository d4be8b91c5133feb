"""What all routes share: they are paid for, their refusals are answers, and nothing that nobody expected is told."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route as HttpRoute

from coco.configuration.callers import Caller
from coco.enclave.api.admission import Admission, is_signed
from coco.enclave.api.http import error_body, retry_headers
from coco.errors import BusyError, CocoError, HostLiedError, NotFoundError, RequestError

Handler = Callable[[HttpRequest], Awaitable[Any]]

#: Microseconds of the event loop that a route costs beyond what each request does (``http.py``), if it says no other.
LEAST_WORK_US = 200

_encode = msgspec.json.Encoder().encode


class Serves(Protocol):
    """What a node's service is doing."""

    @property
    def is_open(self) -> bool:
        """Whether participants are served."""

    @property
    def is_governed(self) -> bool:
        """Whether nodes join and members govern."""


def require_open(life: Serves) -> None:
    """Refuse participants while they are not served.

    Raises:
        BusyError: ``node.not_open``.
    """
    if not life.is_open:
        raise BusyError("the service is not open", code="node.not_open")


def require_governed(life: Serves) -> None:
    """Refuse members and readers while there is nothing to govern.

    Raises:
        BusyError: ``node.not_open``.
    """
    if not life.is_governed:
        raise BusyError("the service is not open", code="node.not_open")


def json_response(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON answer."""
    return Response(_encode(value), status, headers, media_type="application/json")


def error_response(error: CocoError) -> Response:
    """The answer for a refusal, with its code in a header too."""
    return Response(
        error_body(error),
        error.http_status,
        media_type="application/json",
        headers={"x-ms-error-code": error.code, **retry_headers(error)},
    )


async def body_of(request: HttpRequest) -> bytes:
    """The body, whole and uncopied, as the listener gave it: Starlette would join it with an empty end."""
    message = await request.receive()
    return bytes(message["body"])


def caller_of(request: HttpRequest) -> Caller:
    """Who asks, as the listener found out."""
    caller: Caller = request.scope["coco.caller"]
    return caller


def route(method: str, path: str, handler: Handler, admission: Admission, work_us: int = LEAST_WORK_US) -> HttpRoute:
    """A route that its caller pays for before it runs; 0: it pays by itself, or nothing."""

    @functools.wraps(handler)
    async def endpoint(request: HttpRequest) -> Response:
        try:
            if work_us:
                signed = is_signed(request.method, request.scope["headers"])
                await admission.pay(caller_of(request), work_us, signed=signed)
            answer = await handler(request)
        except HostLiedError:
            raise  # the listener reports it, which ends the enclave
        except CocoError as error:
            return error_response(error)
        return answer if isinstance(answer, Response) else json_response(answer)

    return HttpRoute(path, endpoint, methods=[method])


def _not_found(request: HttpRequest, exc: Exception) -> Response:
    return error_response(NotFoundError(f"there is nothing at {request.url.path[:200]}", code="http.not_found"))


def _bad_method(request: HttpRequest, exc: Exception) -> Response:
    error = RequestError(f"{request.method} is not served here", code="http.method_not_allowed")
    return Response(error_body(error), 405, media_type="application/json")


def app(routes: list[HttpRoute]) -> Starlette:
    """These routes, and a refusal for everything else."""
    return Starlette(routes=routes, exception_handlers={404: _not_found, 405: _bad_method})
