"""Streams without sockets: what passes them, who pays, and when they end."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any

import pytest

from coco.enclave.adapters.contract import (
    AdapterError,
    Caller,
    CallerKind,
    Events,
    Manifest,
    Request,
    Route,
    RouteKind,
    Stream,
    Subscriptions,
    Visible,
)
from coco.enclave.api.admission import Admission
from coco.enclave.api.dispatcher import Dispatcher
from coco.enclave.api.jsonrpc import JsonRpc
from coco.enclave.api.streams import Streams
from coco.errors import CocoError

MINE = Caller(CallerKind.PARTICIPANT, actor="aa" * 32)
Serve = Callable[[Request, Caller, Stream], Coroutine[Any, Any, None]]


class Session:
    """A WebSocket whose client is the test."""

    def __init__(self, path: str, query: dict[str, str] | None = None, headers: Any = ()) -> None:
        self.path, self.query, self.headers = path, query or {}, headers
        self.who = MINE
        self.incoming: asyncio.Queue[Any] = asyncio.Queue()
        self.sent: list[Any] = []
        self.closed: tuple[int, str | None] | None = None

    def caller(self) -> Caller:
        return self.who

    async def fresh(self) -> None:
        pass

    async def drained(self) -> None:
        pass

    async def receive(self) -> Any:
        return await self.incoming.get()

    async def send(self, message: Any) -> None:
        self.sent.append(message)

    def close(self, code: int = 1000, reason: str | None = None) -> None:
        self.closed = code, reason


class Adapter:
    """Rows are their owners'; an auditor sees all. Its streams are the test's."""

    def __init__(self, serve: Serve) -> None:
        self._serve = serve

    async def stream(self, request: Request, caller: Caller, stream: Stream) -> None:
        await self._serve(request, caller, stream)

    def redact(self, items: Any, caller: Caller, view: Any) -> list[Any]:
        return [item for item in items if caller.auditor or item["owner"] == caller.actor]


def shown(row: Any) -> Visible:
    return Visible([row], lambda seen: seen[0]["text"])


OWN, OTHERS = {"owner": MINE.actor, "text": "mine"}, {"owner": "bb" * 32, "text": "a secret"}
NAMED = Subscriptions("sub", "unsub", "told")


class Node:
    """One adapter's streams, at a mount."""

    def __init__(self, serve: Serve, mount: str = "/x") -> None:
        route = Route("room", RouteKind.STREAM, "GET", "/room/{name}/{number:int}", headers=("x-tenant",))
        manifest = Manifest("x", "1", (route,), (), subscriptions=NAMED)
        runtime: Any = SimpleNamespace(adapter=Adapter(serve), manifest=manifest, mount=mount, name="x")
        sequencer: Any = SimpleNamespace(
            store=SimpleNamespace(view=lambda number: None), replica=SimpleNamespace(committed=1)
        )
        nothing: Any = None
        self.failed: list[BaseException] = []
        self.admission = Admission()
        service = Dispatcher(sequencer, nothing, [runtime])
        rpc = JsonRpc(service, self.failed.append, self.admission)
        self._streams = Streams(service, rpc, self.admission, self.failed.append)

    async def serve(self, session: Any) -> None:
        async with asyncio.timeout(10):
            await self._streams.serve(session)


def call(identity: int, method: str, *params: Any) -> str:
    return json.dumps({"jsonrpc": "2.0", "id": identity, "method": method, "params": params})


def test_a_stream_knows_its_path_query_and_headers_and_hears_its_client():
    async def story() -> None:
        async def echo(request: Request, caller: Caller, stream: Stream) -> None:
            assert caller == MINE and request.name == "room"
            await stream.send([request.params, request.query, request.headers], public=True)
            while (message := await stream.receive()) is not None:
                await stream.send(message, public=True)

        session = Session("/x/room/a b/7", {"y": "1"}, [(b"x-tenant", b"t"), (b"cookie", b"c")])
        for message in ("text", b"bytes", None):
            session.incoming.put_nowait(message)
        await Node(echo).serve(session)
        assert json.loads(session.sent[0]) == [{"name": "a b", "number": 7}, {"y": "1"}, {"x-tenant": "t"}]
        assert session.sent[1:] == ['"text"', b"bytes"] and session.closed is None

    asyncio.run(story())


def test_an_event_is_told_to_whom_the_caller_is_now():
    async def story() -> None:
        session = Session("/x/room/a/7")

        async def tell(request: Request, caller: Caller, stream: Stream) -> None:
            await stream.send(shown(OWN))
            await stream.send(shown(OTHERS))
            session.who = dataclasses.replace(MINE, auditor=True)
            await stream.send(shown(OTHERS))
            session.who = MINE
            await stream.send(shown(OTHERS))

        node = Node(tell)
        paid: list[Any] = []
        take = node.admission.take
        node.admission.take = lambda caller, work_us: paid.append(work_us) or take(caller, work_us)  # type: ignore[func-returns-value]
        await node.serve(session)
        assert session.sent == ['"mine"', '"a secret"'], "the second one as an auditor"
        assert len(paid) == 2, "what is not told costs its caller nothing"

    asyncio.run(story())


def test_what_changes_while_the_client_reads_slowly_counts():
    async def story() -> None:
        session: Any = Session("/x/room/a/7")
        session.who = dataclasses.replace(MINE, auditor=True)

        async def slow() -> None:
            session.who = MINE

        session.drained = slow

        async def tell(request: Request, caller: Caller, stream: Stream) -> None:
            await stream.send(shown(OTHERS))

        await Node(tell).serve(session)
        assert session.sent == []

    asyncio.run(story())


def test_a_stream_that_forgets_to_say_of_whom_it_tells_leaks_nothing_and_ends():
    async def story() -> None:
        async def forget(request: Request, caller: Caller, stream: Stream) -> None:
            await stream.send(OTHERS)

        session = Session("/x/room/a/7")
        await Node(forget).serve(session)
        assert session.sent == [] and session.closed == (1008, "adapter.not_redacted")

    asyncio.run(story())


def test_a_stream_ends_when_access_is_taken_from_its_caller():
    async def story() -> None:
        session = Session("/x/room/a/7")

        async def tell(request: Request, caller: Caller, stream: Stream) -> None:
            await stream.send(1, public=True)
            session.who = Caller()
            await stream.send(2, public=True)

        await Node(tell).serve(session)
        assert session.sent == ["1"] and session.closed == (1008, "stream.access_lost")

    asyncio.run(story())


async def until(true: Callable[[], Any]) -> None:
    async with asyncio.timeout(5):
        while not true():
            await asyncio.sleep(0)


def test_subscriptions_have_the_names_that_the_adapter_gives_them():
    async def story() -> None:
        events, ended = Events(), list[str]()

        async def follow(request: Request, caller: Caller, stream: Stream) -> None:
            if request.params != ["rows"]:
                raise AdapterError("nothing to follow", code="x.nothing")
            assert request.name == "sub" and request.rest == "/deep" and request.query == {"y": "1"}
            try:
                await events.follow(stream, shown)
            finally:
                ended.append("ended")

        session, node = Session("/x/deep", {"y": "1"}), Node(follow)
        serving = asyncio.ensure_future(node.serve(session))
        session.incoming.put_nowait(call(1, "sub", "other"))
        session.incoming.put_nowait(call(2, "sub", "rows"))
        session.incoming.put_nowait(call(3, "eth_subscribe", "newHeads"))
        await until(lambda: len(session.sent) == 3)
        refused, begun, unknown = map(json.loads, session.sent)
        assert refused["error"]["data"]["code"] == "x.nothing" and unknown["error"]["code"] == -32601
        events.tell([OTHERS, OWN])
        await until(lambda: len(session.sent) == 4)
        told = json.loads(session.sent[3])
        assert told["method"] == "told" and told["params"] == {"subscription": begun["result"], "result": "mine"}
        session.incoming.put_nowait(call(4, "unsub", begun["result"]))
        session.incoming.put_nowait(call(5, "unsub", begun["result"]))
        await until(lambda: len(session.sent) == 6)
        assert [json.loads(answer)["result"] for answer in session.sent[4:]] == [True, False]
        await until(lambda: ended == ["ended"])
        session.incoming.put_nowait(call(6, "sub", "rows"))
        session.incoming.put_nowait(None)
        await serving
        await until(lambda: len(ended) == 2)
        assert not node.failed

    asyncio.run(story())


def test_nothing_is_told_before_the_client_knows_under_which_name():
    async def story() -> None:
        async def tell(request: Request, caller: Caller, stream: Stream) -> None:
            for number in range(3):
                await stream.send(number, public=True)
            raise RuntimeError("a secret")

        session, node = Session("/"), Node(tell, "/")
        session.incoming.put_nowait(call(1, "sub"))
        serving = asyncio.ensure_future(node.serve(session))
        await until(lambda: len(session.sent) == 5)
        answers = [json.loads(message) for message in session.sent]
        assert answers[0]["id"] == 1
        assert [answer["params"].get("result") for answer in answers[1:4]] == [0, 1, 2]
        assert answers[4]["params"]["error"]["data"]["code"] == "node.internal" and "secret" not in session.sent[4]
        assert len(node.failed) == 1
        session.incoming.put_nowait(b"bytes")
        await serving
        assert session.closed == (1003, None), "JSON-RPC is text"

    asyncio.run(story())


def test_a_connection_has_so_many_subscriptions():
    async def story() -> None:
        async def wait(request: Request, caller: Caller, stream: Stream) -> None:
            assert await stream.receive() is None

        session, node = Session("/"), Node(wait, "/")
        for number in range(65):
            session.incoming.put_nowait(call(number, "sub"))
        serving = asyncio.ensure_future(node.serve(session))
        await until(lambda: len(session.sent) == 65)
        assert json.loads(session.sent[-1])["error"]["data"]["code"] == "rpc.no_subscription"
        session.incoming.put_nowait(None)
        await serving

    asyncio.run(story())


def test_a_client_that_is_too_slow_is_ended_and_told_no_gaps():
    async def story() -> None:
        class Slow(Stream):
            caller = MINE
            told: list[Any]

            async def accept(self) -> None:
                self.told = []

            async def receive(self) -> None:
                return None

            async def send(self, value: Any, *, public: bool = False) -> None:
                await asyncio.sleep(0)
                self.told.append(value.items[0])

        events, stream = Events(3), Slow()
        following = asyncio.ensure_future(events.follow(stream, lambda event: Visible([event], list)))
        await asyncio.sleep(0)
        events.tell(range(9))
        with pytest.raises(CocoError) as ended:
            await following
        assert ended.value.code == "stream.too_slow" and stream.told == [0, 1, 2]
        events.tell([9])

    asyncio.run(story())
