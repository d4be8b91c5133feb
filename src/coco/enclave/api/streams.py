"""WebSocket: streams of adapters, at routes of their own and as subscriptions of JSON-RPC (``contract/streams.py``)."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import re
import secrets
from collections.abc import Callable
from typing import Any

import msgspec
from starlette.routing import compile_path

from coco.enclave.adapters.contract import (
    AdapterError,
    Caller,
    Request,
    RouteKind,
    Stream,
    Subscriptions,
    Visible,
    headers,
    mounts,
    visible,
)
from coco.enclave.api.admission import Admission, request_work_us
from coco.enclave.api.dispatcher import Dispatcher
from coco.enclave.api.jsonrpc import AT_ROOT, JsonRpc, Target, error_object
from coco.enclave.api.websocket import POLICY, UNSUPPORTED, WebSocketSession
from coco.enclave.ordering.runtime import AdapterRuntime
from coco.enclave.ordering.turns import ASKING
from coco.errors import AccessError, CocoError, HostLiedError

_SUBSCRIPTIONS_MAX = 64
#: Microseconds of the event loop: one event to one subscriber.
_EVENT_WORK_US = 150
_encode = msgspec.json.Encoder().encode


class Streams:
    """Serves the WebSocket connections of the application listener."""

    def __init__(
        self, service: Dispatcher, rpc: JsonRpc, admission: Admission, failed: Callable[[BaseException], None]
    ) -> None:
        self.service, self.rpc, self.admission, self.failed = service, rpc, admission, failed

    async def serve(self, session: WebSocketSession) -> None:
        """Serve one connection until it ends."""
        for runtime, route in self.service.routes:
            if route.kind is RouteKind.STREAM:
                params = _fits(mounts.below(runtime.mount, route.path), session.path)
                if params is not None:
                    picked = headers.wanted(route.headers, session.headers)
                    nonce = secrets.token_bytes(16)
                    request = Request(route.name, params, b"", session.query, nonce, picked)
                    await self._route(session, runtime, request)
                    return
        if session.path == mounts.ROOT:
            await _Conversation(self, session, AT_ROOT).run()
            return
        for mount in self.service.rpc_mounts:
            if session.path == mount or session.path.startswith(mount + "/"):
                rest = session.path.removeprefix(mount)
                await _Conversation(self, session, Target(mount, rest, session.query, session.headers)).run()
                return

    async def _route(self, session: WebSocketSession, runtime: AdapterRuntime, request: Request) -> None:
        stream = _RouteStream(self, session, runtime, request.name)
        ASKING.set(stream.caller.actor)
        try:
            await runtime.adapter.stream(request, stream.caller, stream)
        except HostLiedError:
            raise
        except CocoError as error:
            session.close(POLICY, error.code)


@functools.lru_cache(maxsize=256)
def _pattern(path: str) -> tuple[re.Pattern[str], dict[str, Any]]:
    pattern, _, convertors = compile_path(path)
    return pattern, convertors


def _fits(path: str, asked: str) -> dict[str, Any] | None:
    """The parameters of a path, if it is one of a route."""
    pattern, convertors = _pattern(path)
    match = pattern.match(asked)
    if match is None:
        return None
    return {name: convertors[name].convert(value) for name, value in match.groupdict().items()}


class _SessionStream(Stream):
    """What both kinds of stream share."""

    def __init__(self, streams: Streams, session: WebSocketSession, runtime: AdapterRuntime, name: str) -> None:
        self._streams, self._session, self._runtime, self._name = streams, session, runtime, name
        began = session.caller()
        self._began = began.kind, began.actor

    @property
    def caller(self) -> Caller:
        """See the contract."""
        caller = self._session.caller()
        if (caller.kind, caller.actor) != self._began:
            raise AccessError("whoever began this stream may not follow it any more", code="stream.access_lost")
        return caller

    async def send(self, value: Any, *, public: bool = False) -> None:
        """See the contract."""
        await self.accept()
        if self._is_hidden(value):
            return
        await self._streams.admission.pace(self.caller, _EVENT_WORK_US)
        await self._session.drained()
        # Only now: meanwhile somebody may have taken from the caller what it could see.
        if self._is_hidden(value):
            return
        redact, caller = self._runtime.adapter.redact, self.caller
        view = self._streams.service.view()
        told = await visible.told(value, redact, caller, view, public=public, name=self._name)
        message = self._message(told)
        self._streams.admission.answered(caller, len(message))
        await self._session.send(message)

    def _is_hidden(self, value: Any) -> bool:
        if not isinstance(value, Visible) or not value.items:
            return False
        return not self._runtime.adapter.redact(value.items, self.caller, self._streams.service.view())

    def _message(self, told: Any) -> str | bytes:
        return bytes(told) if isinstance(told, bytes | bytearray) else _encode(told).decode()


class _RouteStream(_SessionStream):
    """A WebSocket of its own."""

    async def accept(self) -> None:
        """The handshake has said so."""

    async def receive(self) -> bytes | str | None:
        """See the contract."""
        message = await self._session.receive()
        if message is not None:
            await self._streams.admission.pace(self.caller, request_work_us(len(message)))
        return message


class _Subscription(_SessionStream):
    """A subscription, one of several on a connection of JSON-RPC."""

    def __init__(
        self, streams: Streams, session: WebSocketSession, runtime: AdapterRuntime, named: Subscriptions
    ) -> None:
        super().__init__(streams, session, runtime, named.subscribe)
        self.identity = "0x" + secrets.token_hex(16)
        self.accepted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        #: The client knows the identity.
        self.answered = asyncio.Event()
        self._notification = named.notification

    async def accept(self) -> None:
        """Wait until the client knows under which identity it hears."""
        if not self.accepted.done():
            self.accepted.set_result(None)
        await self.answered.wait()

    async def receive(self) -> bytes | str | None:
        """Never anything."""
        await self.accept()
        await asyncio.get_running_loop().create_future()
        return None

    def _message(self, told: Any) -> str | bytes:
        return self.notify("result", told)

    def notify(self, member: str, value: Any) -> str:
        """A notification."""
        body = {"subscription": self.identity, member: value}
        return _encode({"jsonrpc": "2.0", "method": self._notification, "params": body}).decode()


class _Conversation:
    """JSON-RPC over one WebSocket."""

    def __init__(self, streams: Streams, session: WebSocketSession, target: Target) -> None:
        self._streams, self._session, self._target = streams, session, target
        self._subscribed: dict[str, tuple[AdapterRuntime, asyncio.Task[None]]] = {}

    async def run(self) -> None:
        try:
            while (message := await self._session.receive()) is not None:
                if isinstance(message, bytes):
                    self._session.close(UNSUPPORTED)
                    return
                answer, begun = await self._answer(message)
                await self._session.send(answer.decode())
                if begun is not None:
                    begun.answered.set()
        finally:
            for _, task in self._subscribed.values():
                task.cancel()

    async def _answer(self, text: str) -> tuple[bytes, _Subscription | None]:
        document = identity = None
        try:
            # It is decoded here only to know subscriptions from calls, which are paid for where they are served.
            await self._streams.admission.pay(self._session.caller(), request_work_us(len(text)))
            with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                document = msgspec.json.decode(text)
            identity = document.get("id") if isinstance(document, dict) else None
            await self._session.fresh()
            method = document.get("method") if isinstance(document, dict) else None
            named = self._streams.service.subscription(method, self._target.mount) if isinstance(method, str) else None
            if named is not None and isinstance(document, dict):
                return await self._subscription(*named, method, identity, document.get("params"))
        except CocoError as error:
            return _encode({"jsonrpc": "2.0", "id": identity, "error": error_object(error)}), None
        reply: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

        def answered(data: bytes) -> None:
            if not reply.done():
                reply.set_result(data)

        self._streams.rpc.handle(text.encode(), self._session.caller(), answered, self._target)
        return await reply, None

    async def _subscription(
        self, runtime: AdapterRuntime, named: Subscriptions, method: str | None, identity: Any, params: Any
    ) -> tuple[bytes, _Subscription | None]:
        params = params if isinstance(params, list) else []
        begun = None
        if method == named.unsubscribe:
            result: Any = self._unsubscribe(runtime, str(params[0]) if params else "")
        else:
            begun = await self._subscribe(runtime, named, params)
            result = begun.identity
        return _encode({"jsonrpc": "2.0", "id": identity, "result": result}), begun

    def _unsubscribe(self, runtime: AdapterRuntime, identity: str) -> bool:
        whose, task = self._subscribed.get(identity, (None, None))
        if task is None or whose is not runtime:
            return False
        del self._subscribed[identity]
        task.cancel()
        return True

    async def _subscribe(self, runtime: AdapterRuntime, named: Subscriptions, params: list[Any]) -> _Subscription:
        if len(self._subscribed) >= _SUBSCRIPTIONS_MAX:
            raise _no_subscription()
        stream = _Subscription(self._streams, self._session, runtime, named)
        request = self._target.request(named.subscribe, params, None)
        task = asyncio.get_running_loop().create_task(self._follow(stream, runtime, request))
        self._subscribed[stream.identity] = runtime, task
        await asyncio.wait({task, stream.accepted}, return_when=asyncio.FIRST_COMPLETED)
        if not stream.accepted.done():
            task.result()  # raises what it was refused for
            raise _no_subscription()
        return stream

    async def _follow(self, stream: _Subscription, runtime: AdapterRuntime, request: Request) -> None:
        try:
            ASKING.set(stream.caller.actor)
            await runtime.adapter.stream(request, stream.caller, stream)
        except Exception as error:
            if not isinstance(error, CocoError) or isinstance(error, HostLiedError):
                self._streams.failed(error)
                error = AdapterError("the node failed to serve this", code="node.internal")
            if not stream.accepted.done():
                raise error from None
            await stream.answered.wait()
            await self._session.send(stream.notify("error", error_object(error)))
        finally:
            self._subscribed.pop(stream.identity, None)


def _no_subscription() -> AdapterError:
    return AdapterError("no more subscriptions", code="rpc.no_subscription", rpc_code=-32005)
