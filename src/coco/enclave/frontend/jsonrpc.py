"""JSON-RPC 2.0 over one body: parse, route to the adapter that has the method, answer in order.

A call for an unknown method is an error in the reply (−32601), not in HTTP. Single submissions take a short way
without a task of their own; they are admitted together in one call of the extension, or by the door already.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from coco import limits
from coco.enclave.adapters.base import AdapterError, Caller, Envelope, LedgerAdapter, Request, RouteKind
from coco.enclave.frontend.service import Service
from coco.enclave.sequencer import AdapterRuntime
from coco.errors import AccessError, BusyError, CocoError, HostLiedError

if TYPE_CHECKING:
    from coco._native import Admitted

#: A submission that the door has read and checked: its id as JSON, what was found and in which time, and what takes
#: the reply.
EarlyCall = tuple[bytes, "Admitted", int, Callable[[bytes], None]]

PARSE_ERROR, INVALID_REQUEST, METHOD_NOT_FOUND = -32700, -32600, -32601
INTERNAL_ERROR, SERVER_ERROR = -32603, -32000

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


def error_object(error: CocoError) -> dict[str, Any]:
    """The ``error`` member for an exception; ``data.code`` is stable, unless the protocol defines the data itself."""
    rpc_code, data = SERVER_ERROR, None
    if isinstance(error, AdapterError):
        rpc_code, data = error.rpc_code, error.data
    elif isinstance(error, BusyError):
        rpc_code = -32005
    elif isinstance(error, AccessError):
        rpc_code = -32001
    if data is None:
        data = {"code": error.code, **({"hint": error.hint} if error.hint else {})}
    return {"code": rpc_code, "message": str(error), "data": data}


def _failure(identity: Any, code: int, message: str, stable: str) -> dict[str, Any]:
    return {
        "jsonrpc": "2.0",
        "id": identity,
        "error": {"code": code, "message": message, "data": {"code": stable}},
    }


def _answer_submission(
    adapter: LedgerAdapter,
    request: Request,
    identity: Any,
    done: Callable[[dict[str, Any]], None],
    answer: Envelope | CocoError,
) -> None:
    reply: dict[str, Any] = {"jsonrpc": "2.0", "id": identity}
    if isinstance(answer, CocoError):
        reply["error"] = error_object(answer)
    else:
        reply["result"] = adapter.accepted(request, [answer]).value
    done(reply)


def _answer_early(
    adapter: LedgerAdapter,
    request: Request,
    call: bytes,
    reply: Callable[[bytes], None],
    answer: Envelope | CocoError,
) -> None:
    _answer_submission(adapter, request, msgspec.Raw(call), lambda document: reply(_encode(document)), answer)


class JsonRpc:
    """Serves bodies of JSON-RPC."""

    def __init__(self, service: Service, failed: Callable[[BaseException], None]) -> None:
        self._service, self._failed = service, failed
        self._tasks: set[asyncio.Task[None]] = set()

    def handle(self, body: bytes, caller: Caller, reply: Callable[[bytes], None]) -> None:
        """Serve one body; ``reply`` gets the bytes of the answer once."""
        try:
            document = _decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            reply(_encode(_failure(None, PARSE_ERROR, "parse error", "rpc.parse_error")))
            return
        if isinstance(document, dict):
            self._begin(document, caller, lambda answer: reply(_encode(answer)))
        elif isinstance(document, list) and document:
            if len(document) > limits.RPC_BATCH_MAX:
                message = f"a batch has at most {limits.RPC_BATCH_MAX} calls"
                reply(_encode(_failure(None, INVALID_REQUEST, message, "rpc.batch_too_large")))
            else:
                self._batch(document, caller, reply)
        else:
            reply(_encode(_failure(None, INVALID_REQUEST, "invalid request", "rpc.invalid_request")))

    def _begin(self, document: Any, caller: Caller, done: Callable[[dict[str, Any]], None]) -> None:
        """Begin one call; ``done`` gets its answer, at once or later."""
        route = self._service.rpc_route(document.get("method")) if isinstance(document, dict) else None
        if route is not None and route[1].kind is RouteKind.SUBMIT:
            self._submit(route[0], document, caller, done)
            return
        task = asyncio.get_running_loop().create_task(self._call(document, caller, done))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _call(self, document: Any, caller: Caller, done: Callable[[dict[str, Any]], None]) -> None:
        done(await self.call(document, caller))

    def _batch(self, documents: list[Any], caller: Caller, reply: Callable[[bytes], None]) -> None:
        # Calls run at the same time, so that submissions of one batch are admitted together.
        answers: list[dict[str, Any] | None] = [None] * len(documents)
        open_calls = len(documents)

        def answered(index: int, answer: dict[str, Any]) -> None:
            nonlocal open_calls
            answers[index] = answer
            open_calls -= 1
            if not open_calls:
                reply(_encode(answers))

        for index, document in enumerate(documents):
            self._begin(document, caller, partial(answered, index))

    def _submit(
        self, runtime: AdapterRuntime, document: dict[str, Any], caller: Caller, done: Callable[[dict[str, Any]], None]
    ) -> None:
        params = document.get("params")
        request = Request(document["method"], params if params is not None else [])
        settled = partial(_answer_submission, runtime.adapter, request, document.get("id"), done)
        try:
            (raw,) = runtime.adapter.parse_submission(request)
        except CocoError as error:
            settled(error)
            return
        self._service.submissions.add(runtime, raw, caller, settled)

    def submitted(self, method: str, caller: Caller, calls: list[EarlyCall]) -> None:
        """Serve one caller's submissions by one method, which the door has read and checked."""
        route = self._service.rpc_route(method)
        assert route is not None, "the door checks only what an adapter has asked for"
        runtime, _ = route
        adapter, request = runtime.adapter, Request(method, ())
        checked = [
            (adapter.checked(found), partial(_answer_early, adapter, request, call, reply))
            for call, found, _, reply in calls
        ]
        check_us = sum(spent for _, _, spent, _ in calls)
        self._service.submissions.add_checked(runtime, caller, checked, check_us)

    async def call(self, document: Any, caller: Caller) -> dict[str, Any]:
        """Serve one call; its answer."""
        if not isinstance(document, dict):
            return _failure(None, INVALID_REQUEST, "invalid request", "rpc.invalid_request")
        identity, name = document.get("id"), document.get("method")
        if (
            not isinstance(name, str)
            or not isinstance(identity, str | int | float | None)
            or isinstance(identity, bool)
        ):
            return _failure(None, INVALID_REQUEST, "invalid request", "rpc.invalid_request")
        params = document.get("params")
        if params is None:
            params = []
        if not isinstance(params, list | dict):
            return _failure(identity, INVALID_REQUEST, "params must be a list or an object", "rpc.invalid_request")
        try:
            reply = await self._service.call(name, Request(name, params), caller)
        except Exception as error:  # noqa: BLE001 - no call may end the process; the text stays inside (H1)
            if isinstance(error, CocoError) and not isinstance(error, HostLiedError):
                return {"jsonrpc": "2.0", "id": identity, "error": error_object(error)}
            self._failed(error)  # a host's lie ends the enclave
            return _failure(identity, INTERNAL_ERROR, "the node failed to serve this", "node.internal")
        if reply is None:
            return _failure(
                identity, METHOD_NOT_FOUND, f"the method {name[:80]} does not exist", "rpc.method_not_found"
            )
        return {"jsonrpc": "2.0", "id": identity, "result": reply.value}
