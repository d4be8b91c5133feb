"""A stranger, who has no certificate, wants to stop a node, to fill its memory, or to take the place of others.

Nothing here asserts a speed: what an attack costs the others is measured by ``make bench-attack``.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import uvloop
from attacks import attack
from front_door import headers_of, making

from coco import limits
from coco.cli.keys import make_actor
from coco.client import connect
from coco.client.connect import ConnectOptions, Connector
from coco.client.governance import API_VERSION
from coco.client.http import FailoverClient, HttpsClient
from coco.client.members import Member
from coco.client.pin import Pin
from coco.client.verify import unverified_context
from coco.enclave.adapters.contract import Caller, CallerKind, Route, RouteKind
from coco.enclave.adapters.ethereum.adapter import adapter as ethereum
from coco.enclave.api.dispatcher import Dispatcher
from coco.enclave.api.jsonrpc import JsonRpc
from coco.enclave.transport import listener as doors
from coco.errors import HostError
from network import TestNetwork, run, running

# --- C1 to C3: frames, batches, lists --------------------------------------------------------------------------------

_CONNECTIONS = 30
#: Numbers of ``coco.limits``, as they are documented.
_STRANGERS_BODY, _STRANGERS_SUBSCRIPTIONS, _PAGE_ROWS = 262_144, 64, 100
_WEBSOCKET = (
    b"GET / HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
    b"sec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)


def context(sandbox, *, participant):
    made = ssl.create_default_context(cafile=sandbox.summary["service_certificate"])
    if participant:
        made.load_cert_chain(sandbox.summary["participant_certificate"], sandbox.summary["participant_key"])
    return made


def port(sandbox, listener="application"):
    return int(sandbox.summary[f"{listener}_url"].rpartition(":")[2])


def connected(sandbox, *, participant=False):
    plain = socket.create_connection(("127.0.0.1", port(sandbox)), timeout=30)
    return context(sandbox, participant=participant).wrap_socket(plain, server_hostname="localhost")


@pytest.fixture(scope="module")
def stranger(sandbox):
    with httpx.Client(
        verify=context(sandbox, participant=False), base_url=f"https://localhost:{port(sandbox)}", timeout=60
    ) as client:
        yield client


@pytest.fixture(scope="module")
def participant(sandbox):
    with httpx.Client(
        verify=context(sandbox, participant=True), base_url=f"https://localhost:{port(sandbox)}", timeout=60
    ) as client:
        yield client


def call(method, *params, number=1):
    return {"jsonrpc": "2.0", "id": number, "method": method, "params": params}


def batch(count, method, *params):
    return [call(method, *params, number=number) for number in range(count)]


def until_closed(connection, wait_s=10):
    """What a connection still says before it is closed; None if it stays open."""
    said, deadline = b"", time.monotonic() + wait_s
    while time.monotonic() < deadline:
        connection.settimeout(max(deadline - time.monotonic(), 0.1))
        try:
            data = connection.recv(65536)
        except TimeoutError:
            return None
        except OSError:
            return said
        if not data:
            return said
        said += data
    return None


@pytest.mark.parametrize(
    ("first", "repeated"),
    [
        (b"", bytes([0x8A, 0x80])),
        (b"", bytes([0x89, 0x80])),
        (b"", bytes([0x81, 0x80])),
        (bytes([0x01, 0x80, 0, 0, 0, 0]), bytes([0x00, 0x80])),
        (bytes([0x01, 0x80, 0, 0, 0, 0]), bytes([0x00, 0x81])),
    ],
    ids=["pong", "ping", "empty text", "empty continuation", "crumbs"],
)
@attack(
    "C1",
    was="6 bytes a frame: 10 connections with 2 MB/s in all hold every write up for 11 s, 30 end the network's writing",
    now="the connection is closed with 1008 and the budget's name once it sends more of them than a person's client would",
)
def test_C1_frames_that_carry_nothing_end_their_connection(sandbox, first, repeated):
    frame = repeated + bytes(4) + b"x" * (repeated[1] & 0x7F)
    with connected(sandbox) as connection:
        connection.sendall(_WEBSOCKET)
        assert b" 101 " in connection.recv(65536)
        connection.sendall(first + frame * 10)
        if repeated[0] in (0x00, 0x8A):
            connection.settimeout(0.3)
            with pytest.raises(TimeoutError):
                connection.recv(65536)  # a few are what clients do
        try:
            for _ in range(20):
                connection.sendall(frame * 100)
        except OSError:
            pass  # it is closed already
        said = until_closed(connection)
        assert said is not None, "it stays open"
        assert b"budget.idle_frames" in said and bytes([0x03, 0xF0]) in said, said[-200:]


def outcomes(replies):
    """Of JSON-RPC answers: which refused a budget, and which did anything else."""
    refused = [one["error"] for one in replies if isinstance(one, dict) and one.get("error", {}).get("code") == -32005]
    return refused, [one for one in replies if not (isinstance(one, dict) and "error" in one)]


@attack(
    "C2",
    was="one anonymous batch of 467 kB takes 6.0 GB, one of 91 kB holds writes at 3 a second for 57 s",
    now="a batch is paid for as a whole before any of it runs, or refused with -32005, the budget and the time to wait",
)
def test_C2_a_batch_is_paid_for_before_it_runs_whoever_sends_it():
    async def story(body, caller):
        chain = ethereum({"chain_id": 1})
        chain._committed_number = 5_000
        runtime = SimpleNamespace(adapter=chain)
        nothing: Any = None
        service: Any = Dispatcher(nothing, nothing, [])
        ran, replies = [], list[Any]()
        service._rpc["eth_feeHistory"] = runtime, Route("eth_feeHistory", RouteKind.QUERY)

        async def answered(runtime, route, request, caller):
            ran.append(request.name)
            return SimpleNamespace(value=None)

        service.serve = answered
        fail: Any = pytest.fail
        rpc = JsonRpc(service, fail)
        for _ in range(8):
            rpc.handle(body, caller, replies.append)
        for _ in range(100):
            if replies:
                break
            await asyncio.sleep(0.05)
        return len(ran), json.loads(replies[0])

    for percentiles in ([list(range(100))], []):
        body = json.dumps(batch(1000, "eth_feeHistory", "0x400", "latest", *percentiles)).encode()
        for caller in (Caller(), Caller(CallerKind.PARTICIPANT, "aa" * 32)):
            ran, refusal = asyncio.run(story(body, caller))
            assert ran == 0, "it ran before it was paid for"
            assert refusal["error"]["code"] == -32005
            assert refusal["error"]["data"]["budget"].endswith(".work")
    body = json.dumps(call("eth_feeHistory", "0x400", "latest")).encode()
    assert asyncio.run(story(body, Caller(CallerKind.PARTICIPANT, "aa" * 32)))[1]["result"] is None


@attack(
    "C2",
    was="an answer has 1,024 blocks times 100 percentiles",
    now="the more percentiles, the fewer blocks: no answer has more cells than a bound",
)
def test_C2_one_answer_about_fees_is_bounded(participant):
    reply = participant.post("/", json=call("eth_feeHistory", "0x400", "latest", list(range(100)))).json()["result"]
    assert len(reply["reward"]) * 100 <= limits.FEE_HISTORY_CELLS_MAX
    from coco.enclave.adapters.ethereum.costs import fee_history_blocks

    for count in (1, 10, 1024, 10**9):
        for percentiles in range(101):
            blocks = fee_history_blocks(count, percentiles)
            assert 1 <= blocks <= count and blocks * percentiles <= limits.FEE_HISTORY_CELLS_MAX


@attack(
    "C2",
    was="30 connections ask for whole blocks in batches of 1,000: no writes",
    now="strangers share one budget: most are refused and told when to come back; a participant is served meanwhile",
)
def test_C2_strangers_share_one_budget_and_participants_do_not_wait_for_it(sandbox, stranger, participant):
    body = batch(1000, "eth_getBlockByNumber", "latest", True)
    with ThreadPoolExecutor(_CONNECTIONS) as pool:
        asked = [pool.submit(stranger.post, "/", json=body) for _ in range(_CONNECTIONS)]
        served = participant.post("/", json=batch(100, "eth_blockNumber")).json()
        replies = [one.result().json() for one in asked]
    assert all("result" in one for one in served)
    refused, answered = outcomes(replies)
    assert refused and {one["data"]["budget"] for one in refused} == {"anonymous.work"}
    assert all(one["data"]["code"] in ("budget.spent", "budget.too_much") for one in refused)
    assert all("retry_after_ms" in one["data"] for one in refused)
    assert len(refused) + len(answered) == _CONNECTIONS


@attack(
    "C2",
    was="52 strangers send most of a body of 5 MB each: participants get 503, for 30 s",
    now="a stranger's body has 256 kB, and what strangers hold leaves room for participants",
)
def test_C2_bodies_of_strangers_leave_room_for_participants(sandbox, participant):
    held = []
    try:
        for _ in range(53):
            connection = connected(sandbox)
            held.append(connection)
            with contextlib.suppress(OSError):  # refused while it sends
                connection.sendall(headers_of(5_000_000) + b" " * 4_990_000)
        answer = participant.post("/", json={**call("eth_chainId"), "id": "n" * 4_500_000})
        assert answer.status_code == 200 and answer.json()["result"] == "0x7e1", answer.text[:300]
    finally:
        for connection in held:
            connection.close()
    with connected(sandbox) as connection:
        connection.sendall(headers_of(_STRANGERS_BODY + 1))
        assert b" 413 " in (until_closed(connection) or b"")


@pytest.fixture
def door(tmp_path):
    with making(tmp_path) as make:
        yield make


@attack(
    "C2",
    was="readers that read nothing: their answers wait in the node's memory, 64 MB for each",
    now="all answers that wait have a bound together: the connection that holds the most is cut",
)
def test_C2_answers_that_nobody_reads_are_bounded_together(door, monkeypatch):
    monkeypatch.setattr(limits, "REPLIES_BYTES_MAX", 6_000_000, raising=False)
    front = door()
    held = [front.connect() for _ in range(3)]
    opened = front.events(doors.OPENED, 3)
    for connection in held:
        connection.sendall(headers_of(2) + b"{}")
    front.events(doors.JSON_RPC, 3)
    for number, connection in enumerate(opened):
        front.front.respond_json(connection, b"2.1", b"x" * (2_300_000 + 1000 * number))
    front.front.flush()
    assert front.events(doors.CLOSED, 1) == [opened[2]], "who holds the most"


@attack(
    "C1",
    was="12,000 connections of one stranger, and nobody else gets one for ten minutes",
    now="strangers have a third of them: whoever comes takes the place of the one that was quiet longest",
)
def test_C1_connections_of_strangers_make_place(door, monkeypatch):
    monkeypatch.setattr(limits, "STRANGERS_MAX", 3, raising=False)
    front = door()
    held = []
    for _ in range(3):
        held.append(front.connect())
        front.events(doors.OPENED, 1)
        time.sleep(0.01)
    known = front.connect(shows=True)
    (identity,) = front.events(doors.OPENED, 1)
    front.admit(identity, True)
    # Until it was admitted it counted as a stranger, and one of them made place.
    held.append(front.connect())
    front.events(doors.OPENED, 1)
    assert until_closed(held[0]) is not None, "the first stranger was quiet longest"
    known.sendall(headers_of(2) + b"{}")
    assert front.events(doors.JSON_RPC, 1) == [identity]


@attack(
    "C1",
    was="unfinished handshakes take every connection for ten seconds",
    now="the oldest unfinished handshake makes place",
)
def test_C1_unfinished_handshakes_make_place(door, monkeypatch):
    monkeypatch.setattr(limits, "HANDSHAKES_MAX", 3, raising=False)
    front = door()
    silent = []
    for _ in range(4):
        plain = socket.socket(socket.AF_UNIX)
        plain.settimeout(5)
        plain.connect(front.path)
        silent.append(plain)
        front.held.append(plain)
        time.sleep(0.05)
    assert silent[0].recv(1) == b"", "the oldest is cut"
    front.connect()
    front.events(doors.OPENED, 1)


@attack(
    "C2",
    was="a certificate that nobody knows opens what a participant may send: bodies of 5 MB",
    now="nothing is read before the owner has said whether it counts; a stranger's body has 256 kB",
)
def test_C2_a_certificate_that_counts_for_nothing_is_a_strangers(door):
    front = door()
    for counts in (False, True):
        connection = front.connect(shows=True)
        (identity,) = front.events(doors.OPENED, 1)
        connection.sendall(headers_of(262_145))
        assert until_closed(connection, 0.3) is None, "not before it is known"
        front.admit(identity, counts)
        if not counts:
            assert b" 413 " in (until_closed(connection) or b"")
            continue
        connection.sendall(b" " * 262_145)
        assert front.events(doors.JSON_RPC, 1) == [identity]


@attack(
    "C3",
    was="10,000 filters in 0.2 s, then nobody gets one",
    now="strangers share 500; every actor has 1,000 of its own",
)
def test_C3_filters_of_strangers_leave_those_of_participants(stranger, participant):
    taken = 0
    for _ in range(11):
        reply = stranger.post("/", json=batch(1000, "eth_newBlockFilter")).json()
        taken += sum("result" in one for one in reply) if isinstance(reply, list) else 0
    assert "result" in participant.post("/", json=call("eth_newBlockFilter")).json(), f"strangers have {taken}"
    assert 0 < taken <= 500
    refused = stranger.post("/", json=call("eth_newBlockFilter")).json()["error"]
    assert refused["data"]["code"] == "ethereum.too_many_filters" and "500" in refused["message"]


@attack(
    "C3",
    was="30 connections of 64 subscriptions each: the node tells 1,920 strangers of every block, writes fall to a quarter",
    now="strangers share 64 subscriptions, and what they are told is paid from their budget",
)
def test_C3_subscriptions_of_strangers_are_few(sandbox):
    def subscribe(connection, count):
        """How many of so many subscriptions are made and not ended by an error at once."""
        body = json.dumps(call("eth_subscribe", "newHeads")).encode()
        frame = bytes([0x81, 0x80 | len(body), 0, 0, 0, 0]) + body
        connection.sendall(frame * count)
        said, deadline = b"", time.monotonic() + 30
        while said.count(b'"id":1') < count and time.monotonic() < deadline:
            said += connection.recv(65536)
        connection.settimeout(0.5)
        with contextlib.suppress(TimeoutError):
            while True:
                said += connection.recv(65536)
        return said.count(b'"result":"0x') - said.count(b'"eth_subscription","params":{"subscription"')

    held, taken = [], 0
    try:
        for _ in range(3):
            connection = connected(sandbox)
            held.append(connection)
            connection.sendall(_WEBSOCKET)
            assert b" 101 " in connection.recv(65536)
            taken += subscribe(connection, 40)
        assert taken == _STRANGERS_SUBSCRIPTIONS
        with connected(sandbox, participant=True) as connection:
            connection.sendall(_WEBSOCKET)
            assert b" 101 " in connection.recv(65536)
            assert subscribe(connection, 1) == 1
    finally:
        for connection in held:
            connection.close()


@attack(
    "C3",
    was="anonymous reading and rehearsing: 19 writes a second become 1, and nobody is refused",
    now="429 with Retry-After and the budget's name; what a member has signed is paid from another budget and is served",
)
def test_C3_routes_have_a_budget_and_members_are_not_kept_out(sandbox):
    base = f"https://localhost:{port(sandbox, 'administration')}"
    paths = ["/gov/service/state", "/gov/members/proposals", "/gov/service/nodes", "/node/network", "/node/attestation"]
    files = [sandbox.directory / "members" / f"{name}" for name in _member_files(sandbox)]
    signed = Member.load(*files).sign("proposal", {"actions": [{"name": "remove_user", "args": {"user_id": "0" * 64}}]})
    many = 100
    with httpx.Client(
        verify=context(sandbox, participant=False),
        base_url=base,
        timeout=60,
        limits=httpx.Limits(max_connections=many),
    ) as client:
        rehearsal = {"actions": [{"name": "remove_user", "args": {"user_id": "0" * 64}}]}

        def ask(number):
            if number % 2:
                return client.post(f"/gov/members/proposals:rehearse?api-version={API_VERSION}", json=rehearsal)
            return client.get(paths[number % len(paths)], params={"api-version": API_VERSION})

        with ThreadPoolExecutor(many) as pool:
            flood = [pool.submit(ask, number) for number in range(3 * many)]
            with httpx.Client(verify=context(sandbox, participant=False), base_url=base, timeout=60) as member:
                made = member.post(
                    f"/gov/members/proposals:create?api-version={API_VERSION}",
                    content=signed,
                    headers={"content-type": "application/cose"},
                )
            replies = [one.result() for one in flood]
    assert made.status_code == 200, made.text
    refused = [one for one in replies if one.status_code == 429]
    # 503 says that others rehearse; it was there before.
    assert refused and {one.status_code for one in replies} <= {200, 429, 503}
    for one in refused:
        assert one.json()["error"]["code"] == "budget.spent" and "anonymous.work" in one.json()["error"]["message"]
        assert int(one.headers["retry-after"]) >= 1


def _member_files(sandbox):
    (encryption,) = (sandbox.directory / "members").glob("*.encryption.key.pem")
    name = encryption.name.removesuffix(".encryption.key.pem")
    return f"{name}.pem", f"{name}.key.pem", encryption.name


@attack(
    "C3",
    was="a list has no end: 1,000 proposals, read by strangers, leave one write a second",
    now="lists come in pages that look at no more than 100 rows, open or not, and name the next",
)
def test_C3_lists_of_governance_come_in_pages(sandbox):
    base = f"https://localhost:{port(sandbox, 'administration')}"
    with httpx.Client(verify=context(sandbox, participant=False), base_url=base, timeout=60) as client:
        for path, key in (("/gov/service/nodes", "nodeId"), ("/gov/service/members", "memberId")):
            whole = client.get(path, params={"api-version": API_VERSION}).json()
            assert len(whole["value"]) <= _PAGE_ROWS
            seen, following = [], f"{path}?api-version={API_VERSION}&top=1"
            while following:
                page = client.get(following).json()
                assert len(page["value"]) <= 1
                seen += [one[key] for one in page["value"]]
                following = page.get("nextLink")
            assert seen == [one[key] for one in whole["value"]]
        for wrong in ("0", "-1", "x", "1" * 30):
            answer = client.get(f"/gov/service/nodes?api-version={API_VERSION}&top={wrong}")
            assert (answer.status_code, answer.json()["error"]["code"]) == (400, "request.bad_page")


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
