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
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from coco import limits
from coco.enclave.adapters.contract import (
    AdapterError,
    Caller,
    Cost,
    Envelope,
    LedgerAdapter,
    Request,
    Route,
    RouteKind,
    headers,
    mounts,
    visible,
)
from coco.enclave.api.admission import Admission, request_work_us
from coco.enclave.api.dispatcher import Dispatcher
from coco.enclave.ordering.runtime import AdapterRuntime
from coco.errors import AccessError, BusyError, CocoError, HostLiedError, OverBudgetError

if TYPE_CHECKING:
    from coco._native import Admitted

#: A submission that the door has read and checked: its id as JSON, what was found and in which time, and what takes
#: the reply.
EarlyCall = tuple[bytes, "Admitted", int, Callable[[bytes], None]]

PARSE_ERROR, INVALID_REQUEST, METHOD_NOT_FOUND = -32700, -32600, -32601
INTERNAL_ERROR, SERVER_ERROR, LIMIT_EXCEEDED = -32603, -32000, -32005
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


class Target(msgspec.Struct, frozen=True):
    """Where JSON-RPC was asked: what the HTTP request says besides its body. At ``/`` nothing of it is looked at."""

    mount: str = mounts.ROOT
    #: What follows the mount in the path.
    rest: str = ""
    query: Mapping[str, str] = msgspec.field(default_factory=dict)
    headers: Sequence[tuple[bytes, bytes]] = ()

    def request(self, name: str, params: Any, route: Route | None) -> Request:
        """A call of a method that is served below a mount."""
        names = () if route is None else route.headers
        picked = headers.wanted(names, self.headers)
        return Request(name, params, query=self.query, headers=picked, rest=self.rest)


AT_ROOT = Target()


class _Call(msgspec.Struct, gc=False):
    """One call of a body, as far as it is known before it runs."""

    identity: str | int | float | None
    request: Request
    route: tuple[AdapterRuntime, Route] | None
    cost: Cost
    #: Why it is no call at all.
    refusal: dict[str, Any] | None = None

    @property
    def kind(self) -> RouteKind | None:
        return None if self.route is None else self.route[1].kind


class _Answer(msgspec.Struct, tag_field="jsonrpc", tag="2.0", gc=False):
    """The answer of a call that was served."""

    id: str | int | float | msgspec.Raw | None
    result: Any


class _Refusal(msgspec.Struct, tag_field="jsonrpc", tag="2.0", gc=False):
    """The answer of a call that was refused."""

    id: str | int | float | msgspec.Raw | None
    error: dict[str, Any]


#: The types of an ``id`` as the decoder makes them: a truth value is none.
_ID_TYPES = {str, int, float, type(None)}
_NO_CALL = _failure(None, INVALID_REQUEST, "invalid request", "rpc.invalid_request")
_NOTHING = Request("", ())


def _settled(
    adapter: LedgerAdapter,
    request: Request,
    identity: str | int | float | msgspec.Raw | None,
    done: Callable[[bytes], None],
    answer: Envelope | CocoError,
) -> None:
    """Tell what became of a submission."""
    if isinstance(answer, CocoError):
        done(_encode(_Refusal(identity, error_object(answer))))
        return
    reply = adapter.accepted(request, (answer,))
    if reply.public:
        done(_encode(_Answer(identity, reply.value)))
    else:
        done(_encode(_Refusal(identity, error_object(visible.not_redacted(request.name)))))


class _Batch:
    """Encoded answers of the calls of one body, in its order."""

    def __init__(self, calls: int, bytes_max: int, reply: Callable[[bytes], None]) -> None:
        self._answers: list[bytes] = [b""] * calls
        self._open, self._size, self._bytes_max, self._reply = calls, 0, bytes_max, reply

    @property
    def is_full(self) -> bool:
        """Whether its answer may not grow any more."""
        return self._size > self._bytes_max

    def answered(self, index: int, identity: Any, answer: bytes) -> None:
        """One call is done."""
        if self._size + len(answer) > self._bytes_max:
            answer = self._too_long(identity)
            self._size = self._bytes_max + 1
        self._answers[index] = answer
        self._size += len(answer)
        self._open -= 1
        if not self._open:
            self._reply(b"[" + b",".join(self._answers) + b"]")

    def refuse(self, index: int, identity: Any) -> None:
        """One call is not run, because the answer is full."""
        self.answered(index, identity, self._too_long(identity))

    def _too_long(self, identity: Any) -> bytes:
        message = f"the answer of a batch has at most {self._bytes_max} bytes; ask for less at once"
        return _encode(_failure(identity, LIMIT_EXCEEDED, message, "budget.answer_too_long"))


class JsonRpc:
    """Serves bodies of JSON-RPC."""

    def __init__(
        self, service: Dispatcher, failed: Callable[[BaseException], None], admission: Admission | None = None
    ) -> None:
        self._service, self._failed = service, failed
        self._admission = admission or Admission()
        self._tasks: set[asyncio.Task[None]] = set()

    def handle(self, body: bytes, caller: Caller, reply: Callable[[bytes], None], target: Target = AT_ROOT) -> None:
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
            call = self._read(document, target)
            begin = partial(self._begin, call, caller, partial(self._reply, caller, reply))
            self._when_paid(caller, call.cost.work_us, call.identity, reply, begin)
        elif not isinstance(document, list) or not document:
            reply(_encode(_NO_CALL))
        elif len(document) > limits.RPC_BATCH_MAX:
            message = f"a batch has at most {limits.RPC_BATCH_MAX} calls"
            reply(_encode(_failure(None, INVALID_REQUEST, message, "rpc.batch_too_large")))
        else:
            calls = [self._read(part, target) for part in document]
            work_us = sum([call.cost.work_us for call in calls])
            self._when_paid(caller, work_us, None, reply, partial(self._batch, calls, caller, reply))

    def _read(self, document: Any, target: Target) -> _Call:
        """What is asked for, whoever serves it, and what it costs at most."""
        if type(document) is not dict:
            return _Call(None, _NOTHING, None, Cost(), _NO_CALL)
        identity, name, params = document.get("id"), document.get("method"), document.get("params")
        if type(name) is not str or type(identity) not in _ID_TYPES:
            return _Call(None, _NOTHING, None, Cost(), _NO_CALL)
        if params is None:
            params = []
        elif type(params) is not list and type(params) is not dict:
            message = "params must be a list or an object"
            refusal = _failure(identity, INVALID_REQUEST, message, "rpc.invalid_request")
            return _Call(identity, _NOTHING, None, Cost(), refusal)
        if target is AT_ROOT:
            request, route = Request(name, params), self._service.rpc_route(name)
        else:
            route = self._service.rpc_route_below(target.mount, name)
            request = target.request(name, params, None if route is None else route[1])
        return _Call(identity, request, route, self._service.cost(route, request))

    def _reply(self, caller: Caller, reply: Callable[[bytes], None], answer: bytes) -> None:
        if len(answer) > _FREE_ANSWER_BYTES:
            self._admission.answered(caller, len(answer))
        reply(answer)

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
        answer = _encode(_Refusal(identity, error_object(error)))
        asyncio.get_running_loop().call_later(self._admission.refusal_s(caller), reply, answer)

    def _begin(self, call: _Call, caller: Caller, done: Callable[[bytes], None]) -> None:
        """Begin one call; ``done`` gets its answer, at once or later."""
        if call.kind is RouteKind.SUBMIT and call.route is not None:
            self._submit(call.route[0], caller, [(call, done)])
        else:
            self._spawn(self._answer(call, caller, done))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, call: _Call, caller: Caller, done: Callable[[bytes], None]) -> None:
        async with self._admission.answering(caller, call.cost.answer_bytes):
            await self._admission.turn(caller, call.cost.work_us)
            done(await self._serve(call, caller))

    def _batch(self, calls: list[_Call], caller: Caller, reply: Callable[[bytes], None]) -> None:
        # Forwarding run at the same time, so that those of one batch are admitted together; of the rest a few do.
        known = bool(caller.actor)
        bytes_max = limits.RPC_ANSWER_BYTES_MAX if known else limits.ANONYMOUS_RPC_ANSWER_BYTES_MAX
        batch = _Batch(len(calls), bytes_max, partial(self._reply, caller, reply))
        queries: deque[tuple[int, _Call]] = deque()
        answer_bytes = 0
        submitted: dict[str, tuple[AdapterRuntime, list[tuple[_Call, Callable[[bytes], None]]]]] = {}
        for index, call in enumerate(calls):
            kind = call.kind
            if kind is RouteKind.SUBMIT and call.route is not None:
                runtime = call.route[0]
                _, together = submitted.setdefault(runtime.name, (runtime, []))
                together.append((call, partial(batch.answered, index, call.identity)))
            elif kind is RouteKind.SUBMIT_AND_WAIT:
                self._begin(call, caller, partial(batch.answered, index, call.identity))
            else:
                queries.append((index, call))
                answer_bytes += call.cost.answer_bytes
        for runtime, together in submitted.values():
            self._submit(runtime, caller, together)
        if queries:
            self._spawn(self._query_all(batch, queries, min(answer_bytes, bytes_max), caller))

    async def _query_all(
        self, batch: _Batch, queries: deque[tuple[int, _Call]], answer_bytes: int, caller: Caller
    ) -> None:
        async def run() -> None:
            while queries:
                index, call = queries.popleft()
                if batch.is_full:
                    batch.refuse(index, call.identity)
                else:
                    await self._admission.turn(caller, call.cost.work_us)
                    batch.answered(index, call.identity, await self._serve(call, caller))
                # Most calls never wait for anything: others get their turn between two of a batch.
                await asyncio.sleep(0)

        async with self._admission.answering(caller, answer_bytes):
            await asyncio.gather(*(run() for _ in range(min(len(queries), limits.RPC_BATCH_RUNNING_MAX))))

    def _submit(
        self, runtime: AdapterRuntime, caller: Caller, calls: list[tuple[_Call, Callable[[bytes], None]]]
    ) -> None:
        """Hand submissions of one adapter in, together."""
        adapter, submissions = runtime.adapter, []
        for call, done in calls:
            settled = partial(_settled, adapter, call.request, call.identity, done)
            try:
                (raw,) = adapter.parse_submission(call.request)
            except CocoError as error:
                settled(error)
            else:
                submissions.append((raw, settled))
        self._service.forwarding.add(runtime, caller, submissions)

    def submitted(self, method: str, caller: Caller, calls: list[EarlyCall]) -> None:
        """Serve one caller's submissions by one method, which the door has read and checked."""
        route = self._service.rpc_route(method)
        assert route is not None, "the door checks only what an adapter has asked for"
        runtime, _ = route
        adapter, request = runtime.adapter, Request(method, ())
        checked = [
            (adapter.checked(verdict), partial(_settled, adapter, request, msgspec.Raw(call), reply))
            for call, verdict, _, reply in calls
        ]
        check_us = sum(spent for _, _, spent, _ in calls)
        self._service.forwarding.add_checked(runtime, caller, checked, check_us)

    async def _serve(self, call: _Call, caller: Caller) -> bytes:
        """Serve one call; its answer."""
        if call.refusal is not None:
            return _encode(call.refusal)
        if call.route is None:
            message = f"the method {call.request.name[:80]} does not exist"
            return _encode(_failure(call.identity, METHOD_NOT_FOUND, message, "rpc.method_not_found"))
        try:
            reply = await self._service.serve(*call.route, call.request, caller)
        except Exception as error:  # noqa: BLE001 - no call may end the process; the text stays inside (H1)
            if isinstance(error, CocoError) and not isinstance(error, HostLiedError):
                return _encode(_Refusal(call.identity, error_object(error)))
            self._failed(error)  # a host's lie ends the enclave
            return _encode(_failure(call.identity, INTERNAL_ERROR, "the node failed to serve this", "node.internal"))
        return _encode(_Answer(call.identity, reply.value))
