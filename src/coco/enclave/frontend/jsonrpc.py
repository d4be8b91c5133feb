"""JSON-RPC 2.0 over one body: parse, route to the adapter that has the method, answer in order.

A call for an unknown method is an error in the reply (−32601), not in HTTP. Single submissions take a short way
without a task of their own; they are admitted together in one call of the extension, or by the door already.

What a body costs is known before any of it runs, counted over all its calls, and is its caller's to pay
(``admission.py``): a body is paid for as a whole or refused as a whole.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from coco import limits
from coco.enclave.adapters.base import AdapterError, Caller, Cost, Envelope, LedgerAdapter, Request, RouteKind
from coco.enclave.frontend.admission import Admission, request_work_us
from coco.enclave.frontend.service import Service
from coco.enclave.sequencer import AdapterRuntime
from coco.errors import AccessError, BusyError, CocoError, HostLiedError, OverBudgetError

if TYPE_CHECKING:
    from coco._native import Admitted

#: A submission that the door has read and checked: its id as JSON, what was found and in which time, and what takes
#: the reply.
EarlyCall = tuple[bytes, "Admitted", int, Callable[[bytes], None]]

PARSE_ERROR, INVALID_REQUEST, METHOD_NOT_FOUND = -32700, -32600, -32601
INTERNAL_ERROR, SERVER_ERROR, LIMIT_EXCEEDED = -32603, -32000, -32005
#: Kinds whose calls of one batch begin at the same time: submissions are admitted together, and wait for one block.
_TOGETHER = (RouteKind.SUBMIT, RouteKind.SUBMIT_AND_WAIT)

#: An answer that costs nothing beyond its call.
_FREE_ANSWER_BYTES = 16 * limits.KIB

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


def error_object(error: CocoError) -> dict[str, Any]:
    """The ``error`` member for an exception; ``data.code`` is stable, unless the protocol defines the data itself."""
    rpc_code, data = SERVER_ERROR, None
    if isinstance(error, AdapterError):
        rpc_code, data = error.rpc_code, error.data
    elif isinstance(error, BusyError):
        rpc_code = LIMIT_EXCEEDED
    elif isinstance(error, AccessError):
        rpc_code = -32001
    if data is None:
        data = {"code": error.code, **({"hint": error.hint} if error.hint else {})}
    if isinstance(error, OverBudgetError):
        data |= {"budget": error.budget, "retry_after_ms": math.ceil(1000 * error.retry_after_s)}
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


class _Batch:
    """Answers of the calls of one body, in its order, encoded as they come."""

    def __init__(self, calls: int, bytes_max: int, reply: Callable[[bytes], None]) -> None:
        self._answers: list[bytes] = [b""] * calls
        self._open, self._size, self._bytes_max, self._reply = calls, 0, bytes_max, reply

    @property
    def is_full(self) -> bool:
        """Whether its answer may not grow any more."""
        return self._size > self._bytes_max

    def answered(self, index: int, answer: dict[str, Any]) -> None:
        """One call is done."""
        encoded = _encode(answer)
        if self._size + len(encoded) > self._bytes_max:
            encoded = _encode(_too_long(answer.get("id"), self._bytes_max))
            self._size = self._bytes_max + 1
        self._answers[index] = encoded
        self._size += len(encoded)
        self._open -= 1
        if not self._open:
            self._reply(b"[" + b",".join(self._answers) + b"]")

    def refuse(self, index: int, document: Any) -> None:
        """One call is not run, because the answer is full."""
        self.answered(index, _too_long(_identity(document), self._bytes_max))


def _too_long(identity: Any, bytes_max: int) -> dict[str, Any]:
    message = f"the answer of a batch has at most {bytes_max} bytes; ask for less at once"
    return _failure(identity, LIMIT_EXCEEDED, message, "budget.answer_too_long")


def _identity(document: Any) -> Any:
    return document.get("id") if isinstance(document, dict) else None


class JsonRpc:
    """Serves bodies of JSON-RPC."""

    def __init__(
        self, service: Service, failed: Callable[[BaseException], None], admission: Admission | None = None
    ) -> None:
        self._service, self._failed = service, failed
        self._admission = admission or Admission()
        self._tasks: set[asyncio.Task[None]] = set()

    def handle(self, body: bytes, caller: Caller, reply: Callable[[bytes], None]) -> None:
        """Serve one body; ``reply`` gets the bytes of the answer once."""
        try:
            self._admission.take(caller, request_work_us(len(body)))
        except OverBudgetError as error:
            self._refuse(None, error, caller, reply)
            return
        try:
            document = _decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            reply(_encode(_failure(None, PARSE_ERROR, "parse error", "rpc.parse_error")))
            return
        if isinstance(document, dict):
            cost = self._cost(document)
            self._when_paid(
                caller,
                cost.work_us,
                document.get("id"),
                reply,
                lambda: self._begin(document, cost, caller, lambda answer: self._reply(_encode(answer), caller, reply)),
            )
        elif isinstance(document, list) and document:
            if len(document) > limits.RPC_BATCH_MAX:
                message = f"a batch has at most {limits.RPC_BATCH_MAX} calls"
                reply(_encode(_failure(None, INVALID_REQUEST, message, "rpc.batch_too_large")))
            else:
                costs = [self._cost(one) for one in document]
                work_us = sum(one.work_us for one in costs)
                begin = partial(self._batch, document, costs, caller, reply)
                self._when_paid(caller, work_us, None, reply, begin)
        else:
            reply(_encode(_failure(None, INVALID_REQUEST, "invalid request", "rpc.invalid_request")))

    def _reply(self, answer: bytes, caller: Caller, reply: Callable[[bytes], None]) -> None:
        if len(answer) > _FREE_ANSWER_BYTES:
            self._admission.answered(caller, len(answer))
        reply(answer)

    def _cost(self, document: Any) -> Cost:
        """What a call costs, at most, as far as it can be known before it runs."""
        if not isinstance(document, dict):
            return Cost()
        params = document.get("params")
        return self._service.cost(document.get("method"), params if params is not None else [])

    def _when_paid(
        self, caller: Caller, work_us: int, identity: Any, reply: Callable[[bytes], None], begin: Callable[[], None]
    ) -> None:
        """Begin at once, or when the caller's budget covers it; or refuse."""
        try:
            wait_s = self._admission.take(caller, work_us)
        except OverBudgetError as error:
            self._refuse(identity, error, caller, reply)
            return
        if wait_s:
            asyncio.get_running_loop().call_later(wait_s, begin)
        else:
            begin()

    def _refuse(self, identity: Any, error: OverBudgetError, caller: Caller, reply: Callable[[bytes], None]) -> None:
        answer = _encode({"jsonrpc": "2.0", "id": identity, "error": error_object(error)})
        asyncio.get_running_loop().call_later(self._admission.refusal_s(caller), reply, answer)

    def _begin(self, document: Any, cost: Cost, caller: Caller, done: Callable[[dict[str, Any]], None]) -> None:
        """Begin one call; ``done`` gets its answer, at once or later."""
        route = self._service.rpc_route(document.get("method")) if isinstance(document, dict) else None
        if route is not None and route[1].kind is RouteKind.SUBMIT:
            self._submit(route[0], document, caller, done)
            return
        self._spawn(self._call(document, cost, caller, done))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _call(self, document: Any, cost: Cost, caller: Caller, done: Callable[[dict[str, Any]], None]) -> None:
        async with self._admission.answering(caller, cost.answer_bytes):
            await self._admission.turn(caller, cost.work_us)
            done(await self.call(document, caller))

    def _batch(self, documents: list[Any], costs: list[Cost], caller: Caller, reply: Callable[[bytes], None]) -> None:
        # Submissions run at the same time, so that those of one batch are admitted together; of the rest a few do.
        known = bool(caller.actor)
        bytes_max = limits.RPC_ANSWER_BYTES_MAX if known else limits.ANONYMOUS_RPC_ANSWER_BYTES_MAX
        batch = _Batch(len(documents), bytes_max, lambda answer: self._reply(answer, caller, reply))
        queries: deque[tuple[int, Any, int]] = deque()
        answer_bytes = 0
        for index, (document, cost) in enumerate(zip(documents, costs, strict=True)):
            if self._is_submission(document):
                self._begin(document, Cost(), caller, partial(batch.answered, index))
            else:
                queries.append((index, document, cost.work_us))
                answer_bytes += cost.answer_bytes
        if queries:
            self._spawn(self._query_all(batch, queries, min(answer_bytes, bytes_max), caller))

    def _is_submission(self, document: Any) -> bool:
        route = self._service.rpc_route(document.get("method")) if isinstance(document, dict) else None
        return route is not None and route[1].kind in _TOGETHER

    async def _query_all(
        self, batch: _Batch, queries: deque[tuple[int, Any, int]], answer_bytes: int, caller: Caller
    ) -> None:
        async def run() -> None:
            while queries:
                index, document, work_us = queries.popleft()
                if batch.is_full:
                    batch.refuse(index, document)
                else:
                    await self._admission.turn(caller, work_us)
                    batch.answered(index, await self.call(document, caller))
                # Most calls never wait for anything: others get their turn between two of a batch.
                await asyncio.sleep(0)

        async with self._admission.answering(caller, answer_bytes):
            await asyncio.gather(*(run() for _ in range(min(len(queries), limits.RPC_BATCH_RUNNING_MAX))))

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
