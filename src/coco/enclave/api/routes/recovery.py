"""``/gov/recovery``: what members say and give while a service waits for them."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any, Protocol

from starlette.requests import Request as HttpRequest

from coco.enclave.api.routes.common import Handler, body_of


class Recovers(Protocol):
    """What these routes need of a node."""

    def state(self) -> dict[str, Any]: ...
    def encrypted_share(self, member: str) -> bytes: ...
    async def accept_statement(self, body: bytes) -> dict[str, Any]: ...
    async def accept_share(self, member: str, body: bytes) -> dict[str, Any]: ...


#: Beyond the least.
WORK_US: Mapping[str, int] = {
    "/gov/recovery/statements": 1_000,
    "/gov/recovery/members/{member}:recover": 1_000,
}


def handlers(recovering: Recovers) -> dict[tuple[str, str], Handler]:
    """By method and path."""

    async def state(request: HttpRequest) -> Any:
        return recovering.state()

    async def statement(request: HttpRequest) -> Any:
        return await recovering.accept_statement(await body_of(request))

    async def encrypted_share(request: HttpRequest) -> Any:
        share = recovering.encrypted_share(request.path_params["member"])
        return {"encryptedShare": base64.b64encode(share).decode()}

    async def share(request: HttpRequest) -> Any:
        return await recovering.accept_share(request.path_params["member"], await body_of(request))

    return {
        ("GET", "/gov/recovery"): state,
        ("GET", "/gov/recovery/encrypted-shares/{member}"): encrypted_share,
        ("POST", "/gov/recovery/statements"): statement,
        ("POST", "/gov/recovery/members/{member}:recover"): share,
    }
