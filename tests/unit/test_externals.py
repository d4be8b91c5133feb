"""Sessions with external processors: asked back, bounded, ended when either side goes; a lying host ends no more."""

from __future__ import annotations

import asyncio
import contextlib
import struct
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from coco import limits
from coco.channel import messages
from coco.enclave.platform import externals as enclave
from coco.errors import BusyError, CocoError, HostError, HostLiedError
from coco.host import externals as host


def run(story: Any) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60):
            await story

    asyncio.run(bounded())


async def refusal(work: Any) -> str:
    with pytest.raises(CocoError) as refused:
        await work
    return refused.value.code


class Wired:
    """Both sides of the channel, with every message encoded and decoded on its way."""

    def __init__(self, **processors: host.External) -> None:
        self.sent: list[Any] = []
        self.sessions = enclave.Sessions(self.to_host)
        self.host = host.Externals(processors, self.to_enclave)

    def to_host(self, message: Any) -> None:
        message = messages.decode_to_host(messages.encode(message))
        self.sent.append(message)
        match message:
            case messages.ExternalOpen(session, name):
                self.host.open(session, name)
            case messages.ExternalSend(session, body):
                self.host.send(session, body)
            case messages.ExternalClose(session):
                self.host.close(session)

    def to_enclave(self, message: Any) -> None:
        decoded: Any = messages.decode_to_enclave(messages.encode(message))
        self.sessions.receive(decoded)


async def read(reader: asyncio.StreamReader) -> bytes:
    return await reader.readexactly(struct.unpack("!I", await reader.readexactly(4))[0])


def put(writer: asyncio.StreamWriter, body: bytes) -> None:
    writer.write(struct.pack("!I", len(body)) + body)


async def processor(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Adds a number to what it asks its adapter for, has it kept, and ends; or does what else it is told."""
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
        word, _, rest = (await read(reader)).partition(b" ")
        match word:
            case b"add":
                put(writer, b"get counter")
                found = int(await read(reader))
                put(writer, b"set counter %d" % (found + int(rest)))
                assert await read(reader) == b"ok"
                put(writer, b"done")
            case b"echo":
                put(writer, rest)
            case b"flood":
                while True:
                    put(writer, b"x" * int(rest))
                    await writer.drain()
            case b"hang":
                await reader.read()
            case b"large":
                writer.write(struct.pack("!I", limits.EXTERNAL_BYTES_MAX + 1))
                await reader.read()
            case b"cut":
                writer.write(b"\0\0")
            case b"many":
                for n in range(int(rest)):
                    put(writer, b"%d" % n)
        await writer.drain()
    writer.close()


@contextlib.asynccontextmanager
async def served(tmp_path: Any, kind: str = "unix") -> AsyncIterator[Wired]:
    if kind == "unix":
        server: Any = await asyncio.start_unix_server(processor, tmp_path / "processor")
        address = f"unix:{tmp_path}/processor"
    else:
        server = await asyncio.start_server(processor, "127.0.0.1", 0)
        address = f"tcp:127.0.0.1:{server.sockets[0].getsockname()[1]}"
    wired = Wired(xo=address)
    async with server:
        yield wired
        wired.host.stop()
        await asyncio.sleep(0.05)


async def transact(wired: Wired, state: dict[bytes, bytes], payload: bytes) -> list[bytes]:
    """As an adapter does it."""
    said = []
    async with wired.sessions.session("xo") as session:
        async for message in session.converse(payload):
            said.append(message)
            match message.split(b" "):
                case [b"get", name]:
                    await session.send(state.get(name, b"0"))
                case [b"set", name, value]:
                    state[name] = value
                    await session.send(b"ok")
    return said


@pytest.mark.parametrize("kind", ["unix", "tcp"])
def test_a_processor_asks_back_and_many_talk_at_a_time(tmp_path, kind):
    async def story() -> None:
        async with served(tmp_path, kind) as wired:
            state: dict[bytes, bytes] = {b"counter": b"5"}
            assert (await transact(wired, state, b"add 2"))[-1] == b"done"
            assert state[b"counter"] == b"7"
            states = [dict[bytes, bytes]() for _ in range(limits.EXTERNAL_SESSIONS_MAX)]
            await asyncio.gather(*(transact(wired, state, b"add %d" % n) for n, state in enumerate(states)))
            assert [state[b"counter"] for state in states] == [b"%d" % n for n in range(len(states))]
            assert wired.sessions._open == {} and wired.host._sessions == {}

    run(story())


def test_one_question_is_a_short_session(tmp_path):
    async def story() -> None:
        async def doubler(body: bytes) -> bytes:
            return str(2 * int(body)).encode()

        wired = Wired(doubler=doubler)
        assert await wired.sessions.call("doubler", b"21") == b"42"
        assert await refusal(wired.sessions.call("doubler", b"x")) == "external.unreachable"
        assert await refusal(wired.sessions.call("nobody", b"1")) == "external.unreachable"
        assert (
            await refusal(wired.sessions.call("doubler", bytes(limits.EXTERNAL_BYTES_MAX + 1))) == "external.too_large"
        )
        assert wired.sessions._open == {}

    run(story())


ENDS = {
    b"echo x": "external.ended",
    b"cut": "external.broken",
    b"large": "external.broken",
    b"flood 10": "external.flooded",
    b"flood 100000": "external.flooded",
    b"hang": "external.too_slow",
}


@pytest.mark.parametrize("payload", ENDS, ids=bytes.decode)
def test_however_a_processor_misbehaves_its_session_is_over_and_others_go_on(tmp_path, payload, monkeypatch):
    monkeypatch.setattr(limits, "EXTERNAL_SECONDS_MAX", 1)

    async def story() -> None:
        async with served(tmp_path) as wired:
            async with wired.sessions.session("xo") as session:
                await session.send(payload)
                await asyncio.sleep(0.3)
                with pytest.raises(BusyError) as over:
                    while True:
                        await session.receive()
                assert over.value.code == ENDS[payload]
                assert await refusal(session.send(b"more")) == ENDS[payload]
            assert await transact(wired, {}, b"add 1")

    run(story())


def test_what_was_said_before_the_end_is_read(tmp_path):
    async def story() -> None:
        async with served(tmp_path) as wired:
            said = await transact(wired, {}, b"many 200")
            assert said == [b"%d" % n for n in range(200)]
        sessions = enclave.Sessions(lambda message: None)
        async with sessions.session("xo") as session:
            for body in (b"a", b"b"):
                sessions.receive(messages.ExternalReceived(1, body))
            sessions.receive(messages.ExternalClosed(1, "ended"))
            assert [await session.receive(), await session.receive()] == [b"a", b"b"]
            assert await refusal(session.receive()) == "external.ended"

    run(story())


def test_a_session_has_a_time_and_a_size(tmp_path, monkeypatch):
    async def story() -> None:
        async with served(tmp_path) as wired:
            monkeypatch.setattr(limits, "EXTERNAL_SESSION_SECONDS_MAX", 0.3)
            began = time.monotonic()
            async with wired.sessions.session("xo") as session:
                assert await refusal(session.ask(b"hang")) == "external.too_long"
            assert time.monotonic() - began < 3
            monkeypatch.setattr(limits, "EXTERNAL_SESSION_SECONDS_MAX", 60)
            monkeypatch.setattr(limits, "EXTERNAL_SESSION_MESSAGES_MAX", 5)
            async with wired.sessions.session("xo") as session:
                for _ in range(5):
                    await session.send(b"hang")
                assert await refusal(session.send(b"hang")) == "external.too_long"
            monkeypatch.setattr(limits, "EXTERNAL_SESSION_MESSAGES_MAX", 10_000)
            async with wired.sessions.session("xo") as session:
                for _ in range(4):
                    await session.send(b"hang " + bytes(limits.EXTERNAL_BYTES_MAX - 5))
                assert await refusal(session.send(b"x")) == "external.too_long", "it has not said a word"

    run(story())


def test_sessions_are_few_and_end_with_whoever_has_them(tmp_path):
    async def story() -> None:
        async with served(tmp_path) as wired:
            async with contextlib.AsyncExitStack() as stack:
                for _ in range(limits.EXTERNAL_SESSIONS_MAX):
                    await stack.enter_async_context(wired.sessions.session("xo"))
                assert await refusal(wired.sessions.session("xo").__aenter__()) == "external.busy"
            task = asyncio.ensure_future(transact(wired, {}, b"hang"))
            await asyncio.sleep(0.1)
            task.cancel()
            await asyncio.wait([task])
            await asyncio.sleep(0)
            assert wired.sessions._open == {} and wired.host._sessions == {}
            session = wired.sessions.session("xo")
            async with session:
                pass
            assert await refusal(session.receive()) == "external.closed"

    run(story())


def test_a_host_that_goes_takes_its_sessions_with_it(tmp_path):
    async def story() -> None:
        async with served(tmp_path) as wired:
            waiting = asyncio.ensure_future(transact(wired, {}, b"hang"))
            await asyncio.sleep(0.1)
            wired.sessions.end()
            assert await refusal(waiting) == "external.unreachable"
            assert await refusal(wired.sessions.session("xo").__aenter__()) == "external.unreachable"

    run(story())


# --- a host that lies ---


def test_a_host_that_speaks_of_sessions_that_are_over_is_not_heard_and_of_none_is_a_liar():
    async def story() -> None:
        sessions = enclave.Sessions(lambda message: None)
        async with sessions.session("xo") as first, sessions.session("xo") as second:
            sessions.receive(messages.ExternalReceived(2, b"for the second"))
            sessions.receive(messages.ExternalReceived(1, b"for the first"))
            assert (await first.receive(), await second.receive()) == (b"for the first", b"for the second")
            sessions.receive(messages.ExternalClosed(1, "ended"))
            for _ in range(10_000):
                sessions.receive(messages.ExternalReceived(1, b"x"))
                sessions.receive(messages.ExternalClosed(1, "broken"))
            assert await refusal(first.receive()) == "external.ended"
            sessions.receive(messages.ExternalReceived(2, b"still there"))
            assert await second.receive() == b"still there"
        for number in (0, 3, 1 << 61):
            with pytest.raises(HostLiedError) as lie:
                sessions.receive(messages.ExternalReceived(number, b""))
            assert lie.value.code == "channel.unexpected_message"

    run(story())


def test_a_host_that_floods_fills_no_more_than_a_session_may_hold():
    async def story() -> None:
        told: list[Any] = []
        sessions = enclave.Sessions(told.append)
        async with sessions.session("xo") as session:
            for _ in range(3 * limits.EXTERNAL_UNREAD_MAX):
                sessions.receive(messages.ExternalReceived(1, bytes(limits.EXTERNAL_BYTES_MAX)))
            assert sum(map(len, session._unread)) == 0
            assert await refusal(session.receive()) == "external.flooded"
        assert told == [messages.ExternalOpen(1, "xo"), messages.ExternalClose(1)], "and it is told once"

    run(story())


def test_no_message_of_the_channel_carries_more_than_it_may():
    whole = messages.encode(messages.ExternalReceived(1, bytes(limits.EXTERNAL_BYTES_MAX + 1)))
    with pytest.raises(HostLiedError):
        messages.decode_to_enclave(whole)
    reason: Any = "because"
    with pytest.raises(HostLiedError):
        messages.decode_to_enclave(messages.encode(messages.ExternalClosed(1, reason)))


@pytest.mark.parametrize("wrong", ["", "unix:", "tcp:", "tcp:host", "tcp:host:0", "tcp:host:x", "udp:host:1", "/tmp/x"])
def test_an_address_that_is_none_is_refused(wrong):
    with pytest.raises(HostError) as refused:
        host.Externals({"xo": wrong}, lambda message: None)
    assert refused.value.code == "host.bad_external"
