"""A stranger: somebody without a certificate who reaches a socket."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import uvloop
from attacks import attack

from coco import limits
from coco.cli.keys import make_actor
from coco.client import connect
from coco.client.connect import ConnectOptions, Connector
from coco.client.http import FailoverClient, HttpsClient
from coco.client.pin import Pin
from coco.client.verify import unverified_context
from coco.errors import HostError
from network import TestNetwork, run, running

# --- C4: coco connect, from whatever runs on its machine -----------------------------------------------------------

_HEAD = "POST / HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n"
#: A node, as coco connect sees it: what it answers to a request, given its head and body; nothing: it never does.
Node = Callable[[str, bytes], Awaitable[bytes | None]]


@contextlib.asynccontextmanager
async def _nodes(folder: Path, *nodes: Node) -> AsyncIterator[Connector]:
    """``coco connect`` before nodes, of which this test decides what they say."""
    make_actor(folder, "node")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "node.pem", folder / "node.key.pem")
    waiting: set[asyncio.Task[None]] = set()

    def serving(node: Node) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            waiting.add(task)
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                while True:
                    head = (await reader.readuntil(b"\r\n\r\n")).decode()
                    size = next(int(line.split(":")[1]) for line in head.split("\r\n") if "content-length" in line)
                    answer = await node(head, await reader.readexactly(size))
                    if answer is None:
                        await asyncio.Event().wait()
                    assert answer is not None
                    writer.write(
                        b"HTTP/1.1 200 OK\r\nx-ms-ccf-transaction-id: 2.17\r\ncontent-length: %d\r\n\r\n" % len(answer)
                        + answer
                    )
            writer.close()

        return serve

    servers = [await asyncio.start_server(serving(node), "127.0.0.1", 0, ssl=context) for node in nodes]
    clients = [HttpsClient("127.0.0.1", server.sockets[0].getsockname()[1], unverified_context()) for server in servers]
    connector = Connector(ConnectOptions(port=0, origins=("http://page",)), FailoverClient(clients), Pin(""), None)
    await connector.start()
    try:
        yield connector
    finally:
        await connector.stop()
        for task in waiting:
            task.cancel()
        for server in servers:
            server.close()


async def _answering(head: str, body: bytes) -> bytes | None:
    return b'{"result":"' + str(len(body)).encode() + b'"}'


async def _silent(head: str, body: bytes) -> bytes | None:
    return None


async def _asked(connector: Connector, data: bytes) -> tuple[str, dict[str, str], bytes]:
    """Status, headers and body of the answer to some bytes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", connector.port)
    try:
        writer.write(data)
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
        return head[0].split(" ", 1)[1], headers, await reader.readexactly(int(headers["content-length"]))
    finally:
        writer.close()


def _post(body: bytes) -> bytes:
    return _HEAD.format(len(body)).encode() + body


def _run(story: Any) -> list[dict[str, Any]]:
    """Run it as coco connect runs; what nobody handled, which prints a traceback."""
    unhandled: list[dict[str, Any]] = []

    async def watched() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: unhandled.append(context))
        await asyncio.wait_for(story, 60)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(watched())
    return unhandled


def _memory_mb() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 >> 20


@attack("C4", was="1,000 aborted uploads: 2.2 GB of memory", now="what an aborted upload held is given back at once")
def test_uploads_that_are_broken_off_leave_nothing_behind(tmp_path: Path):
    async def story() -> None:
        async with _nodes(tmp_path, _answering) as connector:
            before = _memory_mb()
            for _ in range(150):
                _, writer = await asyncio.open_connection("127.0.0.1", connector.port)
                writer.write(_HEAD.format(4 << 20).encode() + bytes(2 << 20))
                await writer.drain()
                writer.transport.abort()
            while connector._open:
                await asyncio.sleep(0.01)
            assert _memory_mb() - before < 96, "150 x 2 MB were sent"
            assert connector._budget.held == 0

    assert not _run(story())


@attack("C4", was="uploads that never end: no limit for all of them together", now="96 MiB; more is told to come later")
def test_uploads_that_never_end_have_one_limit_together(tmp_path: Path):
    async def story() -> None:
        async with _nodes(tmp_path, _answering) as connector:
            before, open_ones = _memory_mb(), []
            for _ in range(60):
                reader, writer = await asyncio.open_connection("127.0.0.1", connector.port)
                writer.write(_HEAD.format(5 << 20).encode() + bytes(4 << 20))
                open_ones.append((reader, writer))
            refused = 0
            for reader, writer in open_ones:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.2):
                        refused += (await reader.readline()).startswith(b"HTTP/1.1 503")
            assert refused >= 30 and _memory_mb() - before < 256
            # Others are served all the same.
            assert (await _asked(connector, _post(b"{}")))[0] == "200 OK"
            for _, writer in open_ones:
                writer.transport.abort()

    assert not _run(story())


@attack("C4", was="its node frozen: nothing through, though others were named", now="the next node is asked")
def test_a_node_that_is_frozen_is_left_for_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(limits, "ANSWER_SECONDS_PATIENT", 0.2, raising=False)
    monkeypatch.setattr(limits, "ALIVE_SECONDS_MAX", 0.5, raising=False)

    async def story() -> None:
        async with _nodes(tmp_path, _silent, _answering) as connector, asyncio.timeout(20):
            together = [_asked(connector, _post(b"{}")) for _ in range(8)]
            assert {status for status, _, _ in await asyncio.gather(*together)} == {"200 OK"}

    assert not _run(story())


@attack(
    "C4", was="a request that its node never answers: waits for ever", now="502 client.no_answer after a time limit"
)
def test_no_request_waits_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    async def story() -> None:
        async with _nodes(tmp_path, _silent) as connector:
            client = connector.upstream._clients[0]
            with pytest.raises(HostError) as refused:
                await client.request("POST", "/", b"{}", seconds=0.3)
            assert refused.value.code == "client.no_answer"

    assert not _run(story())


@attack("C4", was="70 Sync calls with a nonce gap block everyone for 28 s", now="who waits long keeps nobody waiting")
def test_calls_that_wait_for_commit_keep_nobody_waiting(tmp_path: Path):
    async def waiting(head: str, body: bytes) -> bytes | None:
        return None if b"eth_sendRawTransactionSync" in body else b"{}"

    async def story() -> None:
        async with _nodes(tmp_path, waiting) as connector, asyncio.timeout(20):
            gap = [asyncio.ensure_future(_asked(connector, _post(b'"eth_sendRawTransactionSync"'))) for _ in range(80)]
            await asyncio.sleep(0.2)
            assert (await _asked(connector, _post(b"{}")))[0] == "200 OK"
            assert not any(one.done() for one in gap)
            for one in gap:
                one.cancel()

    assert not _run(story())


@attack("C4", was="Ctrl-C while a call waits: a traceback", now="the call ends with the process")
def test_a_call_that_waits_at_the_end_prints_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(connect, "_END_SECONDS", 0.1)

    async def story() -> None:
        async with _nodes(tmp_path, _silent) as connector:
            _, writer = await asyncio.open_connection("127.0.0.1", connector.port)
            writer.write(_post(b"{}"))
            await asyncio.sleep(0.5)  # it waits for the node by then
            assert connector._open
            connector.upstream._follow = asyncio.Event().wait  # type: ignore[assignment]
        writer.close()

    assert not _run(story())


_UPGRADE = (
    "GET / HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: {}\r\nsec-websocket-version: 13\r\n\r\n"
)


@attack("C4", was="Upgrade: a traceback and no answer", now="501 connect.no_upgrade, then the connection ends")
@pytest.mark.parametrize("what", ["websocket", "h2c"])
def test_an_upgrade_is_answered(tmp_path: Path, what: str):
    async def story() -> None:
        async with _nodes(tmp_path, _answering) as connector, asyncio.timeout(20):
            status, _, body = await _asked(connector, _UPGRADE.format(what).encode())
            assert status.startswith(("501", "405")) and json.loads(body)["error"]["code"].startswith("connect.")

    assert not _run(story())


@attack("C4", was="malformed requests: closed without an answer", now="a 4xx answer with a code, then closed")
@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200), "400"),
        (b"hello\r\n\r\n", "400"),
        (b"POST / HTTP/1.1\r\ncontent-length: -1\r\n\r\n", "400"),
        (b"POST / HTTP/1.1\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\nx", "400"),
        (b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", "400"),
        (b"POST / HTTP/1.1\r\nhost: localhost\r\nx: " + b"y" * 40_000 + b"\r\n\r\n", "431"),
        (b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 99999999\r\n\r\n", "413"),
        (
            b"POST / HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n500001\r\n"
            + bytes((5 << 20) + 1),
            "413",
        ),
    ],
)
def test_what_is_no_request_is_answered_before_the_connection_ends(tmp_path: Path, data: bytes, status: str):
    async def story() -> None:
        async with _nodes(tmp_path, _answering) as connector, asyncio.timeout(20):
            reader, writer = await asyncio.open_connection("127.0.0.1", connector.port)
            writer.write(data)
            answer = await reader.read()
            assert answer.startswith(f"HTTP/1.1 {status} ".encode()) and b'"code": "http.' in answer
            writer.close()

    assert not _run(story())


@attack("C4", was="a request that never ends, or whose answer is not read: kept for ever", now="30 s, then 408 or cut")
def test_a_request_has_a_time_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(limits, "REQUEST_SECONDS_MAX", 0.3)

    async def large(head: str, body: bytes) -> bytes | None:
        return bytes(32 << 20)

    async def story() -> None:
        async with _nodes(tmp_path, large) as connector, asyncio.timeout(20):
            status, _, _ = await _asked(connector, _post(b"{}")[:-1])
            assert status.startswith("408")
            _, writer = await asyncio.open_connection("127.0.0.1", connector.port, limit=1024)
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            writer.write(_post(b"{}"))
            await asyncio.sleep(0.1)
            while connector._open:
                await asyncio.sleep(0.05)
            assert connector._budget.held == 0
            writer.transport.abort()

    assert not _run(story())


@attack(
    "F", was="coco connect keeps the transaction id to itself", now="x-ms-ccf-transaction-id is passed on, to pages too"
)
def test_the_transaction_id_is_passed_on(tmp_path: Path):
    async def story() -> None:
        async with _nodes(tmp_path, _answering) as connector, asyncio.timeout(20):
            page = _post(b"{}").replace(b"host", b"origin: http://page\r\nhost", 1)
            status, headers, _ = await _asked(connector, page)
            assert (status, headers["x-ms-ccf-transaction-id"]) == ("200 OK", "2.17")
            assert headers["access-control-expose-headers"] == "x-ms-ccf-transaction-id"

    assert not _run(story())


@attack("C4", was="an error's text with a quote in it made an answer that is no JSON", now="JSON whatever the text")
def test_whatever_an_error_says_the_answer_is_json(tmp_path: Path):
    async def request(method: str, path: str, body: bytes) -> Any:
        raise HostError('it said "no"\n', code="client.unreachable")

    async def close() -> None:
        pass

    async def story() -> None:
        upstream: Any = SimpleNamespace(request=request, close=close)
        connector = Connector(ConnectOptions(port=0), upstream, Pin(""), None)
        await connector.start()
        status, _, body = await _asked(connector, _post(b"{}"))
        assert status.startswith("502") and json.loads(body)["error"]["code"] == "client.unreachable"
        await connector.stop()

    assert not _run(story())


# --- F: what is no text, in every place of a request ---

_HALF = "%ED%A0%80"
_PATHS = [
    f"/gov/members/proposals/{_HALF}?api-version=2024-07-01",
    f"/gov/service/members/{_HALF}?api-version=2024-07-01",
    f"/gov/recovery/encrypted-shares/{_HALF}",
    f"/gov/service/info?api-version={_HALF}",
    f"/node/tx?id={_HALF}",
    f"/node/attestation?nonce={_HALF}",
    f"/{_HALF}",
]
_BODIES = ['{"actions": [{"name": "\\ud800", "args": {}}]}', '["\\udfff"]', '"\\ud800"', '{"\\ud800": 1}']


@attack(
    "F", was="half a surrogate pair in JSON of a rehearsal or an account: 500 node.internal", now="a 4xx with a code"
)
def test_half_a_surrogate_pair_is_refused_wherever_it_comes(tmp_path: Path):
    network = TestNetwork(tmp_path / "network")

    async def story() -> None:
        async with running(network):
            admin, mine = network.client(listener="administration"), network.client()
            replies = [await admin.request("GET", path) for path in _PATHS]
            for body in _BODIES:
                path = "/gov/members/proposals:rehearse?api-version=2024-07-01"
                replies.append(await admin.request("POST", path, body.encode()))
                replies.append(await mine.request("POST", "/coco/accounts/bind", body.encode()))
            for path in (f"/coco/receipt?hash={_HALF}", f"/coco/receipt?id={_HALF}", f"/coco/transaction?hash={_HALF}"):
                replies.append(await mine.request("GET", path))
            for reply in replies:
                assert 400 <= reply.status < 500 and json.loads(reply.body)["error"]["code"] != "node.internal", reply
            for member in ("method", "id", "params"):
                call = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "eth_chainId", "params": [], member: "\ud800"})
                assert b'"error"' in (await mine.request("POST", "/", call.encode())).body
            assert network.node is not None and not network.node.ended.done()

    run(story())
