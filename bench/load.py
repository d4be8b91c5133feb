"""A load generator for JSON-RPC over HTTP/1.1, with or without TLS: fixed connections, single requests or batches.

The same code drives every system. Transactions are signed before; a block poller notes when each is mined.
"""

from __future__ import annotations

import asyncio
import json
import resource
import ssl
import time
from collections import deque
from dataclasses import dataclass, field

import httptools


class Client(asyncio.Protocol):
    """One keep-alive connection with one request under way."""

    def __init__(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._body: list[bytes] = []
        self._waiting: asyncio.Future[bytes] | None = None
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        body = b"".join(self._body)
        self._body = []
        self._parser = httptools.HttpResponseParser(self)
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(body)

    def connection_lost(self, exc) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(ConnectionError("the connection was closed"))

    def send(self, body: bytes) -> asyncio.Future[bytes]:
        self._waiting = asyncio.get_running_loop().create_future()
        self._transport.write(
            b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
            % len(body)
            + body
        )
        return self._waiting

    def close(self) -> None:
        self._transport.close()


@dataclass
class Target:
    """Where a system listens."""

    host: str
    port: int
    tls: ssl.SSLContext | None = None

    async def connect(self) -> Client:
        loop = asyncio.get_running_loop()
        name = self.host if self.tls is not None else None
        _, client = await loop.create_connection(Client, self.host, self.port, ssl=self.tls, server_hostname=name)
        return client

    async def call(self, client: Client, method: str, *params):
        body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode()
        answer = json.loads(await client.send(body))
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]


@dataclass
class Result:
    """Figures of one run."""

    transactions: int
    seconds: float
    latencies_ms: list[float] = field(repr=False)
    generator_cpu_s: float = 0.0

    @property
    def tx_per_s(self) -> float:
        return self.transactions / self.seconds

    def percentile(self, share: float) -> float:
        ordered = sorted(self.latencies_ms)
        return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


async def run(
    target: Target,
    transactions: list[tuple[int, str, str]],
    *,
    connections: int,
    batch: int,
    poll_s: float = 0.05,
) -> Result:
    """Submit ``(lane, hash, raw)`` and wait until all are mined; a lane keeps to one connection, in order."""
    lanes: list[deque[tuple[str, str]]] = [deque() for _ in range(connections)]
    for lane, identity, raw in transactions:
        lanes[lane % connections].append((identity, raw))
    submitted: dict[str, float] = {}
    mined: dict[str, float] = {}
    poller = await target.connect()
    clients = [await target.connect() for _ in range(connections)]
    number = int(await target.call(poller, "eth_blockNumber"), 16)
    cpu = resource.getrusage(resource.RUSAGE_SELF)
    began = time.perf_counter()

    async def submit(client: Client, lane: deque[tuple[str, str]]) -> None:
        while lane:
            chunk = [lane.popleft() for _ in range(min(batch, len(lane)))]
            now = time.perf_counter()
            for identity, _ in chunk:
                submitted[identity] = now
            calls = [
                b'{"jsonrpc":"2.0","id":%d,"method":"eth_sendRawTransaction","params":["%b"]}' % (i, raw.encode())
                for i, (_, raw) in enumerate(chunk)
            ]
            answer = await client.send(calls[0] if batch == 1 else b"[" + b",".join(calls) + b"]")
            if b'"error"' in answer:
                raise RuntimeError(f"a transaction was refused: {answer[:400]!r}")

    async def poll() -> float:
        nonlocal number
        while len(mined) < len(transactions):
            head = int(await target.call(poller, "eth_blockNumber"), 16)
            while number < head:
                number += 1
                block = await target.call(poller, "eth_getBlockByNumber", hex(number), False)
                now = time.perf_counter()
                for identity in block["transactions"]:
                    mined.setdefault(identity, now)
            if len(mined) < len(transactions):
                await asyncio.sleep(poll_s)
        return time.perf_counter()

    tasks = [asyncio.create_task(submit(client, lane)) for client, lane in zip(clients, lanes, strict=True)]
    polling = asyncio.create_task(poll())
    await asyncio.gather(*tasks)
    ended = await polling
    spent = resource.getrusage(resource.RUSAGE_SELF)
    for client in [poller, *clients]:
        client.close()
    return Result(
        transactions=len(transactions),
        seconds=ended - began,
        latencies_ms=[(mined[i] - submitted[i]) * 1000 for i in submitted],
        generator_cpu_s=spent.ru_utime + spent.ru_stime - cpu.ru_utime - cpu.ru_stime,
    )
