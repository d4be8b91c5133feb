"""One listener: from the extension's front door to whoever serves the request.

TLS 1.3, HTTP/1.1 and their limits in bytes and time are the extension's (:class:`coco._native.Front`), on a thread of
its own without the interpreter's lock. Here is decided who calls and what serves: JSON-RPC's fast path is ``POST /``,
every other route goes to a Starlette app with the caller in the scope, WebSocket goes to its own handler. The caller is
looked up in the current configuration on every request (G4). What it asks is paid from its budget (``admission.py``)
before it is served, and so is what is read of a WebSocket before more is.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from functools import partial
from http import HTTPStatus
from typing import Any

import msgspec

from coco import limits
from coco._native import Chain, Front
from coco.enclave.adapters.contract import Caller, CallerKind
from coco.enclave.api.admission import Admission, is_signed, request_work_us
from coco.enclave.api.asgi import AsgiApp, Headers, ask
from coco.enclave.api.freshness import Freshness, Readable
from coco.enclave.api.jsonrpc import EarlyCall
from coco.enclave.api.websocket import WebSocketSession, accept_websocket
from coco.enclave.transport import listener as doors
from coco.errors import CocoError, NativeError, OverBudgetError

_JSON = b"application/json"
#: Microseconds of the event loop: a route before its handler, and the handshake of a WebSocket; and of the door, a TLS
#: handshake.
_ROUTE_WORK_US, _UPGRADE_WORK_US, _HANDSHAKE_WORK_US = 200, 500, 800

_json_encode = msgspec.json.Encoder().encode
_status_lines = {s.value: f"HTTP/1.1 {s.value} {s.phrase}\r\n".encode() for s in HTTPStatus}

#: Serves one JSON-RPC body; the callback gets the reply, at once or later.
RpcHandler = Callable[[bytes, Caller, Callable[[bytes], None]], None]
#: Serves one caller's submissions by one method that the door has checked.
SubmissionHandler = Callable[[str, Caller, list[EarlyCall]], None]


def error_body(error: CocoError) -> bytes:
    """The JSON of an error, in the form of the governance API."""
    return _simple_error(error.code, str(error), error.hint)


def _simple_error(code: str, message: str, hint: str | None = None) -> bytes:
    inner = {"code": code, "message": message}
    if hint:
        inner["hint"] = hint
    return _json_encode({"error": inner})


def retry_headers(error: CocoError) -> dict[str, str]:
    """When to come back, where that helps."""
    if isinstance(error, OverBudgetError) and error.retry_after_s:
        return {"retry-after": str(math.ceil(error.retry_after_s))}
    return {}


class Listener:
    """Serves the connections of one front door."""

    def __init__(
        self,
        door: Front,
        *,
        caller: Callable[[bytes | None], Caller],
        app: AsgiApp,
        on_error: Callable[[BaseException], None],
        on_failure: Callable[[BaseException], None],
        rpc: RpcHandler | None = None,
        submitted: SubmissionHandler | None = None,
        position: Callable[[], bytes] = bytes,
        websocket: Callable[[WebSocketSession], Awaitable[None]] | None = None,
        readable: Readable | None = None,
        admission: Admission | None = None,
    ) -> None:
        self._door, self._caller, self._app = door, caller, app
        self._admission = admission or Admission()
        self._on_error, self._on_failure = on_error, on_failure
        self._rpc, self._position, self._websocket = rpc, position, websocket
        self._submitted = submitted
        self._freshness = Freshness(readable)
        self._loop = asyncio.get_running_loop()
        #: DER of each connection's client certificate.
        self._peers: dict[int, bytes | None] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._sessions: dict[int, tuple[WebSocketSession, asyncio.Event]] = {}
        self._waker = doors.Waker(door)
        self._ask_client = False

    def start(self, chain: Sequence[bytes], key: bytes, *, ask_client: bool) -> None:
        """Accept connections, as the holder of a certificate chain and its PKCS#8 key (DER)."""
        self._ask_client = ask_client
        self._door.start(chain, key, ask_client)
        self._loop.add_reader(self._door.fileno(), self._ready)

    @property
    def certificates(self) -> frozenset[bytes | None]:
        """What whoever is connected shows."""
        return frozenset(self._peers.values())

    def close_those(self, certificates: Collection[bytes | None]) -> None:
        """Close the connections of whoever shows one of these certificates."""
        for connection, certificate in list(self._peers.items()):
            if certificate in certificates:
                self._door.close(connection)
        self._waker.soon()

    def check_early(self, checks: Mapping[str, Chain]) -> None:
        """Have the door check what participants hand in by these methods, before it is heard of here."""
        for method, chain in checks.items():
            self._door.check(method, chain)

    def serve(self, app: Any) -> None:
        """Serve other routes from now on."""
        self._app = app

    def show(self, chain: Sequence[bytes], key: bytes) -> None:
        """Show another certificate to whoever connects from now on."""
        self._door.start(chain, key, self._ask_client)

    def close(self) -> None:
        """Send the replies that are ready, and close everything."""
        self._loop.remove_reader(self._door.fileno())
        self._door.stop()
        for task in self._tasks.values():
            task.cancel()

    # --- events ---

    def _ready(self) -> None:
        early: list[tuple[Caller, tuple[Any, ...]]] = []
        for event in self._door.take():
            try:
                if event[0] == doors.SUBMISSION:
                    connection = event[1]
                    if self._freshness.may_answer(connection):
                        early.append((self._caller(self._peers[connection]), event))
                    else:
                        call = partial(self._submit_one, event)
                        self._spawn(connection, self._call_when_readable(connection, call, None, False))
                elif event[0] == doors.JSON_RPC:
                    _, connection, body, floor, linearizable = event
                    call = partial(self._call, connection, body)
                    if floor is None and not linearizable and self._freshness.may_answer(connection):
                        call()
                    else:
                        self._spawn(connection, self._call_when_readable(connection, call, floor, linearizable))
                else:
                    self._handle(event)
            except Exception as error:  # noqa: BLE001 - no request may end the process; the text stays inside (H1)
                self._on_error(error)
                self._door.close(event[1])
                self._waker.soon()
        if early:
            self._submit(early)

    def _call(self, connection: int, body: bytes) -> None:
        assert self._rpc is not None, "the door names JSON-RPC only where it is served"
        caller = self._caller(self._peers[connection])
        if not caller.actor and len(body) > limits.ANONYMOUS_BODY_BYTES_MAX:
            message = f"a body of whoever shows no certificate has at most {limits.ANONYMOUS_BODY_BYTES_MAX} bytes"
            self._refuse(connection, "http.body_too_large", message, status=413)
            return
        self._rpc(body, caller, partial(self._respond_json, connection))

    def _submit_one(self, event: tuple[Any, ...]) -> None:
        self._submit([(self._caller(self._peers[event[1]]), event)])

    def _submit(self, events: list[tuple[Caller, tuple[Any, ...]]]) -> None:
        """Serve submissions that the door has checked: what came at the same time together."""
        assert self._submitted is not None, "the door checks only what this listener asked it to"
        calls: dict[tuple[str, int], tuple[Caller, list[EarlyCall], list[int]]] = {}
        for caller, (_, connection, method, call, found, check_us) in events:
            _, together, connections = calls.setdefault((method, id(caller)), (caller, [], []))
            together.append((call, found, check_us, partial(self._respond_json, connection)))
            connections.append(connection)
        for (method, _), (caller, together, connections) in calls.items():
            try:
                self._submitted(method, caller, together)
            except Exception as error:  # noqa: BLE001 - as above
                self._on_error(error)
                for connection in connections:  # whoever else came at the same time is answered
                    self._door.close(connection)
                self._waker.soon()

    async def _call_when_readable(
        self, connection: int, call: Callable[[], None], floor: bytes | None, linearizable: bool
    ) -> None:
        try:
            await self._confirm(connection, floor, linearizable)
        except CocoError as error:
            self._respond(connection, error.http_status, [], _JSON, error_body(error))
            return
        call()

    async def _confirm(self, connection: int, floor: bytes | None, linearizable: bool) -> None:
        await self._freshness.wait(connection, floor, linearizable)
        if connection not in self._peers:
            self._freshness.forget(connection)

    def _handle(self, event: tuple[Any, ...]) -> None:
        kind, connection, *rest = event
        if kind == doors.OPENED:
            self._peers[connection], _ = rest
            if rest[0] is not None:
                # It is read from once it is known whose it is, and with it what it may send.
                caller = self._caller(rest[0])
                self._door.admit(connection, bool(caller.actor), self._paid(caller, _HANDSHAKE_WORK_US))
                self._waker.soon()
            # Signatures are checked for those who may submit: nobody else gets so much of the door's time.
            if self._submitted is not None and self._caller(rest[0]).kind is CallerKind.PARTICIPANT:
                self._door.check_early(connection)
                self._waker.soon()
        elif kind == doors.REQUEST:
            method, target, headers, body, upgrade = rest
            if upgrade:
                self._upgrade(connection, target, headers)
            else:
                self._spawn(connection, self._serve(connection, method, target, headers, body))
        elif kind == doors.DATA:
            session, _ = self._sessions[connection]
            work_us = session.feed(*rest)
            if not session.is_over:
                self._read_on(connection, work_us)
        elif kind == doors.PRESSURE:
            if connection in self._sessions:
                _, drained = self._sessions[connection]
                (pressed,) = rest
                (drained.clear if pressed else drained.set)()
        elif kind == doors.CLOSED:
            self._forget(connection)
        elif kind == doors.FAILED:
            self._on_failure(NativeError("the front door failed", code="front.failed"))

    def _paid(self, caller: Caller, work_us: float) -> bool:
        """Whether an actor's own budget covers this; what it does not, strangers' time at the door does."""
        if not caller.actor:
            return False
        try:
            self._admission.take(caller, work_us)
        except OverBudgetError:
            return False
        return True

    def _read_on(self, connection: int, work_us: float) -> None:
        """Take more of a WebSocket once what came is paid for: till then it stays with the sender."""
        if connection not in self._sessions:
            return
        try:
            wait_s = self._admission.take(self._caller(self._peers.get(connection)), work_us)
        except OverBudgetError:
            # What came was small, or else the budget is far behind: nothing of it is refused, more is not read.
            self._loop.call_later(limits.REFUSAL_SECONDS, self._read_on, connection, work_us)
            return
        if wait_s:
            self._loop.call_later(wait_s, self._more, connection)
        else:
            self._more(connection)

    def _more(self, connection: int) -> None:
        if connection in self._sessions:
            self._door.more(connection)
            self._waker.soon()

    def _forget(self, connection: int) -> None:
        self._peers.pop(connection, None)
        self._freshness.forget(connection)
        task = self._tasks.pop(connection, None)
        if task is not None:
            task.cancel()
        found = self._sessions.pop(connection, None)
        if found is not None:
            session, drained = found
            session.lost()
            drained.set()

    def _spawn(self, connection: int, work: Any) -> None:
        task: asyncio.Task[None] = self._loop.create_task(work)
        self._tasks[connection] = task

        def done(task: asyncio.Task[None]) -> None:
            if self._tasks.get(connection) is task:
                del self._tasks[connection]

        task.add_done_callback(done)

    # --- replies ---

    def _respond_json(self, connection: int, reply: bytes) -> None:
        self._door.respond_json(connection, self._position(), reply)
        self._waker.soon()

    def _respond(self, connection: int, status: int, headers: Headers, content_type: bytes, body: bytes) -> None:
        line = _status_lines.get(status, b"HTTP/1.1 %d Status\r\n" % status)
        length = b"%d" % len(body)
        self._door.respond(
            connection, line, [(b"content-type", content_type), (b"content-length", length), *headers], body
        )
        self._waker.soon()

    async def _serve(self, connection: int, method: str, target: bytes, headers: Headers, body: bytes) -> None:
        try:
            caller = self._caller(self._peers.get(connection))
            work_us = _ROUTE_WORK_US + request_work_us(len(body))
            await self._admission.pay(caller, work_us, signed=is_signed(method, headers))
            wanted = dict(headers)
            linearizable = wanted.get(b"coco-read", b"").lower() == b"linearizable"
            await self._confirm(connection, wanted.get(b"coco-min-transaction-id"), linearizable)
            caller = self._caller(self._peers.get(connection))
            status, sent_headers, sent_body = await ask(self._app, method, target, headers, body, caller)
        except asyncio.CancelledError:
            raise
        except CocoError as error:
            status, sent_body = error.http_status, error_body(error)
            sent_headers = [(name.encode(), value.encode()) for name, value in retry_headers(error).items()]
        except Exception as error:  # noqa: BLE001 - as above
            self._on_error(error)
            status, sent_headers = 500, []
            sent_body = _simple_error("node.internal", "the node failed to serve this")
        kept = [(n, v) for n, v in sent_headers if n.lower() not in (b"content-length", b"content-type", b"connection")]
        content_type = next((v for n, v in sent_headers if n.lower() == b"content-type"), _JSON)
        self._respond(connection, status, kept, content_type, b"" if method == "HEAD" else sent_body)

    # --- WebSocket ---

    def _upgrade(self, connection: int, target: bytes, headers: Headers) -> None:
        names = dict(headers)
        if names.get(b"upgrade", b"").lower() != b"websocket" or self._websocket is None:
            self._refuse(connection, "http.no_upgrade", "this listener upgrades to nothing")
            return
        try:
            wait_s = self._admission.take(self._caller(self._peers.get(connection)), _UPGRADE_WORK_US)
        except OverBudgetError as error:
            refuse = partial(self._refuse_over_budget, connection, error)
            self._loop.call_later(self._admission.refusal_s(self._caller(self._peers.get(connection))), refuse)
            return
        if wait_s:
            self._loop.call_later(wait_s, self._accept_websocket, connection, target, headers)
        else:
            self._accept_websocket(connection, target, headers)

    def _accept_websocket(self, connection: int, target: bytes, headers: Headers) -> None:
        if connection not in self._peers:
            return  # it is gone
        drained = asyncio.Event()
        drained.set()
        session = accept_websocket(
            target, headers, partial(self._write, connection), partial(self._close, connection), drained
        )
        if session is None:
            self._refuse(connection, "http.bad_websocket", "the WebSocket handshake is malformed")
            return
        session.caller = lambda: self._caller(self._peers.get(connection))
        session.fresh = partial(self._confirm, connection, None, False)
        if not session.caller().actor:
            session.message_bytes_max = limits.ANONYMOUS_BODY_BYTES_MAX
        self._sessions[connection] = session, drained
        self._door.upgrade(connection)
        self._spawn(connection, self._run_websocket(connection, session))

    async def _run_websocket(self, connection: int, session: WebSocketSession) -> None:
        assert self._websocket is not None, "only a listener with WebSocket upgrades"
        try:
            await self._confirm(connection, None, False)
            await self._websocket(session)
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 - as above
            self._on_error(error)
        finally:
            session.close()

    def _refuse(self, connection: int, code: str, message: str, *, status: int = 400) -> None:
        self._respond(connection, status, [(b"connection", b"close")], _JSON, _simple_error(code, message))
        self._close(connection)

    def _refuse_over_budget(self, connection: int, error: OverBudgetError) -> None:
        headers = [(name.encode(), value.encode()) for name, value in retry_headers(error).items()]
        self._respond(connection, error.http_status, [(b"connection", b"close"), *headers], _JSON, error_body(error))
        self._close(connection)

    def _write(self, connection: int, data: bytes) -> None:
        self._door.write(connection, data)
        self._waker.soon()

    def _close(self, connection: int) -> None:
        self._door.close(connection)
        self._waker.soon()
