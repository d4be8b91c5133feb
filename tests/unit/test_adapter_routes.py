"""HTTP routes of adapters, without sockets: headers, bodies, mounts and what is told."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import pytest

from coco import limits
from coco.enclave.adapters.contract import AdapterFault, Caller, CallerKind, Reply, Request, Route, RouteKind, headers
from coco.enclave.api.admission import Admission
from coco.enclave.api.routes import application_app

CALLER = Caller(kind=CallerKind.PARTICIPANT, actor="aa" * 32)
OPEN: Any = SimpleNamespace(is_open=True, is_governed=True)
ECHO = Route("echo", RouteKind.QUERY, "PUT", "/echo/{key}", headers=("if-match", "x-tenant"), body_bytes_max=8)


class Service:
    """One adapter's routes; what it was asked, and what it replies."""

    def __init__(self, reply: Reply, *routes: Route) -> None:
        self.routes = [(SimpleNamespace(mount="/"), one) for one in routes]
        self.asked: list[Request] = []
        self.rpc_mounts: list[str] = []
        self.reply = reply

    async def serve(self, runtime: Any, route: Route, request: Request, caller: Caller) -> Reply:
        self.asked.append(request)
        return self.reply


class Answer:
    def __init__(self, messages: list[Any]) -> None:
        self.status = messages[0]["status"]
        self.headers = {name.decode(): value.decode() for name, value in messages[0]["headers"]}
        self.body = b"".join(message.get("body", b"") for message in messages[1:])

    @property
    def code(self) -> str:
        return str(json.loads(self.body)["error"]["code"])


def put(service: Any, path: str, body: bytes = b"", given: Any = (), method: str = "PUT", query: bytes = b"") -> Answer:
    """What the routes answer to one request, as the listener hands it in: with lower-case names of headers."""

    async def story() -> Answer:
        nothing: Any = None
        messages: list[Any] = []

        async def receive() -> Any:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Any) -> None:
            messages.append(message)

        scope: dict[str, Any] = {"type": "http", "method": method, "path": path, "query_string": query}
        scope |= {"headers": list(given), "root_path": "", "coco.caller": CALLER}
        rpc: Any = getattr(service, "rpc", None)
        await application_app(nothing, nothing, service, OPEN, Admission(), rpc, lambda: b"2.7")(scope, receive, send)
        return Answer(messages)

    return asyncio.run(story())


def test_an_adapter_is_given_the_headers_that_its_route_asks_for_and_no_other():
    service = Service(Reply({}), ECHO)
    sent = [(b"x-tenant", b"a"), (b"x-tenant", b"b"), (b"cookie", b"secret"), (b"if-match", b'"7"')]
    assert put(service, "/echo/k", b"12345678", sent).status == 200
    (asked,) = service.asked
    assert asked.headers == {"x-tenant": "a, b", "if-match": '"7"'}
    assert asked.params == {"key": "k"} and asked.body == b"12345678"


def test_a_body_above_the_routes_limit_is_refused_before_the_adapter_sees_it():
    service = Service(Reply({}), ECHO)
    answer = put(service, "/echo/k", b"123456789")
    assert answer.status == 413 and answer.code == "http.body_too_large"
    assert service.asked == []


def test_a_reply_has_the_headers_that_its_adapter_adds():
    answer = put(Service(Reply(b"x", 201, "text/plain", {"ETag": '"7"'}), ECHO), "/echo/k")
    assert answer.status == 201 and answer.headers["etag"] == '"7"' and answer.body == b"x"
    answer = put(Service(Reply([1], headers={"location": "/echo/2"}), ECHO), "/echo/k")
    assert answer.headers["location"] == "/echo/2" and answer.body == b"[1]"


@pytest.mark.parametrize(
    "added",
    [
        {"x-a": "1\r\nset-cookie: b"},
        {"x-a": "1\nb"},
        {"x-a\r\nb": "1"},
        {"x a": "1"},
        {"": "1"},
        {"x-a": "\u0100"},
        {"Content-Length": "0"},
        {"transfer-encoding": "chunked"},
        {"Connection": "close"},
        {"X-MS-ccf-transaction-id": "2.9"},
        {"coco-primary": "1"},
        {"x-a": "1" * limits.REPLY_HEADERS_BYTES_MAX},
    ],
)
def test_a_header_that_an_adapter_may_not_write_is_its_fault_and_nothing_is_told(added):
    with pytest.raises(AdapterFault) as refused:
        headers.checked(added)
    assert refused.value.code == "adapter.bad_header"
    answer = put(Service(Reply("a secret", headers=added), ECHO), "/echo/k")
    assert answer.status == 500 and answer.code == "adapter.bad_header" and b"secret" not in answer.body
