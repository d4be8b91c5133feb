"""One request to an ASGI application, with no server between."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any
from urllib.parse import unquote

from coco.configuration.callers import Caller

AsgiApp = Callable[[dict[str, Any], Callable[[], Awaitable[Any]], Callable[[Any], Awaitable[None]]], Awaitable[None]]
#: Names in lower case, and values.
Headers = list[tuple[bytes, bytes]]


async def ask(
    app: AsgiApp, method: str, target: bytes, headers: Sequence[tuple[bytes, bytes]], body: bytes, caller: Caller
) -> tuple[int, Headers, bytes]:
    """Status, headers and body of what the application answers; ``caller`` is in the scope as ``coco.caller``."""
    path, _, query = target.partition(b"?")
    scope: dict[str, Any] = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "https",
        "path": unquote(path.decode("ascii", "replace"), errors="replace"),
        "raw_path": path,
        "query_string": query,
        "root_path": "",
        "headers": headers,
        "client": None,
        "server": None,
        "coco.caller": caller,
    }
    status, sent_headers, sent_body = 500, Headers(), list[bytes]()
    given = False

    async def receive() -> dict[str, Any]:
        nonlocal given
        if given:
            return {"type": "http.disconnect"}
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        nonlocal status, sent_headers
        if message["type"] == "http.response.start":
            status, sent_headers = message["status"], list(message.get("headers", []))
        elif message["type"] == "http.response.body":
            sent_body.append(message.get("body", b""))

    await app(scope, receive, send)
    return status, sent_headers, b"".join(sent_body)
