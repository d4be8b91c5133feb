"""WebSocket: JSON-RPC with ``eth_subscribe``, and the event routes of adapters."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from typing import Any

import msgspec

from coco.enclave.adapters.contract import AdapterError, Request, RouteKind, mounts
from coco.enclave.api.admission import Admission, request_work_us
from coco.enclave.api.jsonrpc import AT_ROOT, JsonRpc, Target, error_object
from coco.enclave.api.service import Service
from coco.enclave.api.websocket import WebSocketSession
from coco.errors import CocoError

_SUBSCRIPTIONS_MAX = 64
#: Microseconds of the event loop: one event to one subscriber.
_EVENT_WORK_US = 150
_encode = msgspec.json.Encoder().encode


class Streams:
    """Serves the WebSocket connections of the application listener."""

    def __init__(self, service: Service, rpc: JsonRpc, admission: Admission) -> None:
        self._service, self._rpc, self._admission = service, rpc, admission

    async def serve(self, session: WebSocketSession) -> None:
        """Serve one connection until it ends."""
        for runtime, route in self._service.routes:
            path = mounts.below(runtime.mount, route.path)
            if route.kind is RouteKind.SUBSCRIBE and path == session.path:
                await self._events(session, runtime, Request(route.name, {}))
                return
        if session.path == mounts.ROOT:
            await self._json_rpc(session, AT_ROOT)
            return
        for mount in self._service.rpc_mounts:
            if session.path == mount or session.path.startswith(mount + "/"):
                rest = session.path.removeprefix(mount)
                await self._json_rpc(session, Target(mount, rest, session.query, session.headers))
                return

    async def _events(self, session: WebSocketSession, runtime: Any, request: Request) -> None:
        async def tell() -> None:
            async for event in runtime.adapter.subscribe(request, session.caller()):
                await self._admission.pace(session.caller(), _EVENT_WORK_US)
                await session.send(_encode(event).decode())

        task = asyncio.get_running_loop().create_task(tell())
        try:
            while await session.receive() is not None:
                pass
        finally:
            task.cancel()

    async def _json_rpc(self, session: WebSocketSession, target: Target) -> None:
        streams: dict[str, asyncio.Task[None]] = {}
        try:
            while (text := await session.receive()) is not None:
                answer = await self._message(session, text, streams, target)
                await session.send(answer.decode())
        finally:
            for task in streams.values():
                task.cancel()

    async def _message(
        self, session: WebSocketSession, text: str, streams: dict[str, asyncio.Task[None]], target: Target
    ) -> bytes:
        document = identity = None
        try:
            # It is decoded here only to know subscriptions from calls, which are paid for where they are served.
            await self._admission.pay(session.caller(), request_work_us(len(text)))
            with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                document = msgspec.json.decode(text)
            identity = document.get("id") if isinstance(document, dict) else None
            await session.fresh()
        except CocoError as error:
            return _encode({"jsonrpc": "2.0", "id": identity, "error": error_object(error)})
        if isinstance(document, dict) and document.get("method") in ("eth_subscribe", "eth_unsubscribe"):
            identity, params = document.get("id"), document.get("params")
            params = params if isinstance(params, list) else []
            try:
                if document["method"] == "eth_unsubscribe":
                    task = streams.pop(str(params[0]) if params else "", None)
                    if task is not None:
                        task.cancel()
                    result: Any = task is not None
                else:
                    result = self._subscribe(session, params, streams, target)
            except CocoError as error:
                return _encode({"jsonrpc": "2.0", "id": identity, "error": error_object(error)})
            return _encode({"jsonrpc": "2.0", "id": identity, "result": result})
        reply: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

        def answered(data: bytes) -> None:
            if not reply.done():
                reply.set_result(data)

        self._rpc.handle(text.encode(), session.caller(), answered, target)
        return await reply

    def _subscribe(
        self, session: WebSocketSession, params: list[Any], streams: dict[str, asyncio.Task[None]], target: Target
    ) -> str:
        found = self._service.rpc_route("eth_subscribe", target.mount)
        if found is None or len(streams) >= _SUBSCRIPTIONS_MAX:
            raise AdapterError("no more subscriptions", code="rpc.no_subscription", rpc_code=-32005)
        name = "0x" + secrets.token_hex(16)
        events = found[0].adapter.subscribe(Request("eth_subscribe", params), session.caller())

        async def tell() -> None:
            try:
                async for event in events:
                    await self._admission.pace(session.caller(), _EVENT_WORK_US)
                    body = {"subscription": name, "result": event}
                    await session.send(
                        _encode({"jsonrpc": "2.0", "method": "eth_subscription", "params": body}).decode()
                    )
            except CocoError as error:
                body = {"subscription": name, "error": error_object(error)}
                await session.send(_encode({"jsonrpc": "2.0", "method": "eth_subscription", "params": body}).decode())
            finally:
                streams.pop(name, None)

        streams[name] = asyncio.get_running_loop().create_task(tell())
        return name
