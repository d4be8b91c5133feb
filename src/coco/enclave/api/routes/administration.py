"""The administration listener: the node, its members' governance, a recovery, and the description of all of it."""

from __future__ import annotations

import functools
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from coco.enclave.api import openapi
from coco.enclave.api.admission import Admission
from coco.enclave.api.routes import governance, node, recovery
from coco.enclave.api.routes.common import LEAST_WORK_US, Handler, Serves, app, route
from coco.enclave.network.governance import GovernanceService

_WORK_US = {**node.WORK_US, **governance.WORK_US, **recovery.WORK_US}


@functools.cache
def _document() -> bytes:
    return msgspec.json.encode(openapi.document())


async def _openapi(request: HttpRequest) -> Any:
    return Response(_document(), media_type="application/json")


def administration_app(
    answers: node.NodeAnswers,
    governing: GovernanceService,
    recovering: recovery.Recovers,
    life: Serves,
    admission: Admission,
) -> Starlette:
    """Routes of the administration listener."""
    handlers: dict[tuple[str, str], Handler] = {
        ("GET", "/openapi.json"): _openapi,
        **node.handlers(answers),
        **governance.handlers(governing, answers, life),
        **recovery.handlers(recovering),
    }
    return app(
        [
            route(method, path, handler, admission, _WORK_US.get(path, LEAST_WORK_US))
            for (method, path), handler in handlers.items()
        ]
    )
