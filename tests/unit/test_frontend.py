"""The front end without sockets: what must not pass it."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from coco.enclave.adapters.contract import Caller, CallerKind, Cost, Reply, Route, RouteKind
from coco.enclave.api.http import Listener
from coco.enclave.api.jsonrpc import JsonRpc
from coco.enclave.transport import listener as doors
from coco.errors import HostLiedError, NotFoundError

CALLER = Caller(kind=CallerKind.PARTICIPANT, actor="aa" * 32)
OTHER = Caller(kind=CallerKind.PARTICIPANT, actor="bb" * 32)


class Service:
    """A service whose calls fail in one way."""

    def __init__(self, error):
        self.error = error

    def rpc_route(self, name):
        return None, Route(name, RouteKind.QUERY)

    def cost(self, name, params):
        return Cost()

    async def serve(self, runtime, route, request, caller):
        raise self.error


def answer_of(error):
    async def story():
        failed: list[Any] = []
        replies: list[Any] = []
        service: Any = Service(error)
        JsonRpc(service, failed.append).handle(b'{"id":1,"method":"eth_call"}', CALLER, replies.append)
        for _ in range(3):
            await asyncio.sleep(0)
        (reply,) = replies
        return failed, json.loads(reply)["error"]

    return asyncio.run(story())


def test_a_lie_of_the_host_ends_the_enclave_and_is_no_answer():
    lie = HostLiedError("the host gave another entry", code="channel.wrong_entry")
    failed, error = answer_of(lie)
    assert failed == [lie]
    assert error["data"]["code"] == "node.internal" and "entry" not in json.dumps(error)


def test_what_nobody_expected_keeps_its_text_inside():
    failed, error = answer_of(RuntimeError("a secret"))
    assert len(failed) == 1 and error["data"]["code"] == "node.internal" and "secret" not in json.dumps(error)


class CostlyService:
    """A service whose calls cost twenty milliseconds each, and that notes whose it answered."""

    def __init__(self):
        self.answered = []

    def rpc_route(self, name):
        return None, Route(name, RouteKind.QUERY)

    def cost(self, name, params):
        return Cost(work_us=20_000)

    async def serve(self, runtime, route, request, caller):
        self.answered.append(caller.actor)
        return Reply("0x1")


def test_between_the_costly_calls_of_one_caller_others_have_their_turn():
    async def story():
        service: Any = CostlyService()
        replies: list[Any] = []
        rpc = JsonRpc(service, lambda error: None)
        calls = [{"jsonrpc": "2.0", "id": n, "method": "costly"} for n in range(10)]
        for _ in range(3):  # as over three connections
            rpc.handle(json.dumps(calls).encode(), CALLER, replies.append)
        await asyncio.sleep(0)
        rpc.handle(json.dumps(calls[0]).encode(), Caller(kind=CallerKind.PARTICIPANT, actor="bb" * 32), replies.append)
        async with asyncio.timeout(30):
            while len(replies) < 4:
                await asyncio.sleep(0.01)
        return service.answered, [json.loads(reply) for reply in replies]

    answered, replies = asyncio.run(story())
    assert len(answered) == 31 and answered.count("bb" * 32) == 1
    assert answered.index("bb" * 32) <= 4, "not behind what the other one has saved up to run at once"
    assert isinstance(replies[0], dict), "it is answered first"
    assert all("result" in one for batch in replies[1:] for one in batch), "what was paid for is answered all the same"


def test_a_refusal_is_an_answer():
    failed, error = answer_of(NotFoundError("nothing", code="kv.not_found"))
    assert not failed and error["data"]["code"] == "kv.not_found"


class Door:
    """A front door whose events the test makes."""

    def __init__(self):
        self.events, self.written, self.closed, self.upgraded, self.admitted = [], [], [], [], []

    def take(self):
        events, self.events = self.events, []
        return events

    def write(self, connection, data):
        self.written.append(data)

    def admit(self, connection, known, paid):
        self.admitted.append((connection, known, paid))

    def upgrade(self, connection):
        self.upgraded.append(connection)

    def close(self, connection):
        self.closed.append(connection)

    def respond(self, connection, line, headers, body):
        self.written.append(line + body)

    def flush(self):
        pass


UPGRADE = [
    (b"host", b"x"),
    (b"upgrade", b"websocket"),
    (b"connection", b"upgrade"),
    (b"sec-websocket-version", b"13"),
    (b"sec-websocket-key", b"dGhlIHNhbXBsZSBub25jZQ=="),
]


def test_a_websocket_client_that_does_not_read_gets_no_more_until_it_does():
    async def story():
        door: Any = Door()
        sent: list[int] = []

        async def talk(session):
            for number in range(3):
                await session.send(str(number))
                sent.append(number)
            await session.receive()

        def fail(error):
            raise error

        app: Any = None
        listener = Listener(door, caller=lambda peer: CALLER, app=app, on_error=fail, on_failure=fail, websocket=talk)

        async def happen(*events):
            door.events = list(events)
            listener._ready()
            for _ in range(5):
                await asyncio.sleep(0)

        await happen((0, 7, None, None), (2, 7, "GET", b"/", UPGRADE, b"", True), (4, 7, True))
        assert door.upgraded == [7] and sent == [], "nothing while it does not read"
        await happen((4, 7, False))
        assert sent == [0, 1, 2]
        await happen((5, 7))
        assert not listener._peers and not listener._sessions and not listener._tasks, "everything is forgotten"

    asyncio.run(story())


def test_a_front_door_that_failed_ends_the_enclave():
    async def story():
        door: Any = Door()
        failures: list[Any] = []
        app: Any = None
        listener = Listener(
            door, caller=lambda peer: CALLER, app=app, on_error=failures.append, on_failure=failures.append
        )
        door.events = [(6, 0)]
        listener._ready()
        assert [error.code for error in failures] == ["front.failed"]

    asyncio.run(story())


def listening(submitted, failed):
    """A listener whose submissions go to ``submitted``, and the function that makes events happen at its door."""
    door: Any = Door()
    door.checked_early, door.check_early = [], lambda connection: door.checked_early.append(connection)
    callers = {b"participant": CALLER, b"other": OTHER, None: Caller()}
    app: Any = None
    listener = Listener(
        door,
        caller=callers.__getitem__,
        app=app,
        on_error=failed.append,
        on_failure=failed.append,
        submitted=submitted,
    )

    def happen(*events):
        door.events = list(events)
        listener._ready()

    return door, happen


def handed_in(connection, found, method="eth_sendRawTransaction"):
    return doors.SUBMISSION, connection, method, b"%d" % connection, found, 7


def test_what_came_together_is_served_together_by_caller_and_method():
    async def story():
        served: list[Any] = []
        failed: list[Any] = []
        door, happen = listening(lambda *call: served.append(call), failed)
        happen(
            (doors.OPENED, 1, b"participant", None),
            (doors.OPENED, 2, None, None),
            (doors.OPENED, 3, b"participant", None),
        )
        assert door.checked_early == [1, 3], "a stranger's signatures are not looked at"
        # One of them is gone before its submission is served: it counts all the same.
        happen(handed_in(1, "a"), handed_in(3, "b"), handed_in(1, "c", "other"), (doors.CLOSED, 3))
        assert [(method, caller) for method, caller, _ in served] == [
            ("eth_sendRawTransaction", CALLER),
            ("other", CALLER),
        ]
        assert [[call[:3] for call in calls] for _, _, calls in served] == [
            [(b"1", "a", 7), (b"3", "b", 7)],
            [(b"1", "c", 7)],
        ]
        assert not failed and not door.closed

    asyncio.run(story())


def test_G3_submissions_that_cannot_be_served_end_their_connections_and_no_more():
    async def story():
        failed: list[Any] = []

        def fail(method, caller, calls):
            raise RuntimeError("a secret")

        door, happen = listening(fail, failed)
        happen((doors.OPENED, 1, b"participant", None), (doors.OPENED, 2, b"participant", None))
        happen(handed_in(1, "a"))
        assert door.closed == [1] and len(failed) == 1
        happen(handed_in(2, "a"))
        assert door.closed == [1, 2] and len(failed) == 2

    asyncio.run(story())


def test_G3_a_submission_that_cannot_be_served_ends_nobody_elses_connection():
    async def story():
        failed: list[Any] = []
        served: list[Any] = []

        def fail_for_one(method, caller, calls):
            if caller is CALLER and method == "eth_sendRawTransaction":
                raise RuntimeError("a secret")
            served.append((method, caller, [call[0] for call in calls]))

        door, happen = listening(fail_for_one, failed)
        happen(*((doors.OPENED, n, b"other" if n == 2 else b"participant", None) for n in (1, 2, 3, 4)))
        # All of the same turn: what fails is what one caller hands in by one method.
        happen(handed_in(1, "a"), handed_in(2, "b"), handed_in(3, "c", "other"), handed_in(4, "d"))
        assert door.closed == [1, 4] and len(failed) == 1
        assert served == [("eth_sendRawTransaction", OTHER, [b"2"]), ("other", CALLER, [b"3"])]

    asyncio.run(story())
