"""What attackers do: the scenarios of bench/attack.py, by name.

A scenario is an :class:`Attack`: what each of its connections does until the time is over, who it is, and what must be
there before. It is a ``stranger``; or ``greedy``, a participant of its own, beside whom the quiet ones are others: with
it, trivial calls of a quiet one are timed too.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, ClassVar
from urllib.parse import urlsplit

from eth_utils import to_checksum_address

from coco.cli.sandbox import WELL_KNOWN_ACCOUNTS
from ethereum import sign
from systems import CHAIN_ID, FUNDER

CONNECTIONS, WRITERS = 30, 4
#: What all connections of an attack send together, at most.
BYTES_PER_SECOND = 2_000_000


# --- one connection of an attacker ---------------------------------------------------------------------------------


class Peer:
    """One connection of an attack, and what came of it."""

    #: Contracts that are there, by what they do.
    contracts: ClassVar[dict[str, str]] = {}

    def __init__(self, url: str, tls: ssl.SSLContext, counted: Counter[str], index: int, until: float) -> None:
        place = urlsplit(url)
        self.host, self.port, self.index, self.until = "localhost", int(place.port or 0), index, until
        self.tls, self.counted = tls, counted
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def connect(self) -> None:
        await self.close()
        self._reader, self._writer = await asyncio.wait_for(
            asyncio.open_connection(self.host, self.port, ssl=self.tls, server_hostname=self.host, limit=1 << 26), 10
        )
        self.counted["connections"] += 1

    async def close(self) -> None:
        if self._writer is not None:
            self._writer.transport.abort()
            self._reader = self._writer = None

    async def send(self, data: bytes) -> None:
        """Send, within this connection's share of the rate."""
        if self._writer is None:
            await self.connect()
        assert self._writer is not None and self._reader is not None
        if self._reader.at_eof():
            self.counted["closed"] += 1
            await self.close()
            raise ConnectionError
        self._writer.write(data)
        self.counted["bytes"] += len(data)
        await asyncio.gather(
            asyncio.wait_for(self._writer.drain(), 30), asyncio.sleep(len(data) * CONNECTIONS / BYTES_PER_SECOND)
        )

    async def reply(self) -> bytes:
        """The body of one answer; what was refused is counted."""
        assert self._reader is not None
        head = await asyncio.wait_for(self._reader.readuntil(b"\r\n\r\n"), 60)
        length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        body = await asyncio.wait_for(self._reader.readexactly(int(length.partition(b":")[2])), 60)
        refused = head[9:12] not in (b"200", b"101") or b'"code":-32005' in body[:400]
        self.counted["refused" if refused else "answered"] += 1
        if b"connection: close" in head.lower():
            await self.close()
        return body

    async def post(self, body: bytes, path: bytes = b"/") -> bytes:
        head = b"POST %b HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
        await self.send(head % (path, len(body)) + body)
        return await self.reply()

    async def get(self, path: bytes) -> bytes:
        await self.send(b"GET %b HTTP/1.1\r\nhost: localhost\r\n\r\n" % path)
        return await self.reply()

    async def upgrade(self) -> None:
        await self.connect()
        await self.send(
            b"GET / HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
            b"sec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        )
        assert self._reader is not None
        head = await asyncio.wait_for(self._reader.readuntil(b"\r\n\r\n"), 60)
        if b" 101 " not in head:
            self.counted["refused"] += 1
            raise ConnectionError


Attacker = Callable[[Peer], Awaitable[None]]


@dataclass(frozen=True)
class Attack:
    """A scenario."""

    does: Attacker
    listener: str = "application"
    caller: str = "stranger"
    connections: int = CONNECTIONS
    prepare: str = ""
    #: Rounds of quiet and attack, if not as many as are asked for: what is begun in one goes on after it.
    rounds: int = 0


def call(method: str, *params: object, number: int = 1) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": number, "method": method, "params": params}).encode()


def batch(method: str, *params: object, count: int = 1000) -> bytes:
    return b"[" + b",".join(call(method, *params, number=n) for n in range(count)) + b"]"


def frames(opcode: int, *, first: bytes = b"") -> Attacker:
    """Frames of 6 bytes: a header, a mask, nothing."""
    data = bytes([opcode, 0x80, 0, 0, 0, 0]) * 2000

    async def attack(peer: Peer) -> None:
        await peer.upgrade()
        if first:
            await peer.send(first)
        while True:
            await peer.send(data)
            peer.counted["frames"] += 2000

    return attack


def posts(body: bytes, path: bytes = b"/") -> Attacker:
    async def attack(peer: Peer) -> None:
        await peer.post(body, path)

    return attack


def gets(*paths: bytes) -> Attacker:
    async def attack(peer: Peer) -> None:
        for path in paths:
            await peer.get(path)

    return attack


async def nothing(peer: Peer) -> None:
    """Only the attacker's process itself: what it takes of the cores that it shares with the others."""
    while time.time() < peer.until:
        await asyncio.sleep(0)


async def handshakes(peer: Peer) -> None:
    await peer.connect()
    await peer.close()


async def subscriptions(peer: Peer) -> None:
    """As many subscriptions as one connection may have, then silence: the node does the rest."""
    await peer.upgrade()
    body = call("eth_subscribe", "newHeads")
    frame = bytes([0x81, 0x80 | len(body), 0, 0, 0, 0]) + body
    for _ in range(64):
        await peer.send(frame)
    while time.time() < peer.until:
        assert peer._reader is not None
        if not await asyncio.wait_for(peer._reader.read(1 << 16), max(0.1, peer.until - time.time())):
            raise ConnectionError


def slow_reader(body: bytes) -> Attacker:
    """Asks for much and reads nothing of it."""

    async def attack(peer: Peer) -> None:
        await peer.connect()
        assert peer._writer is not None
        transport: Any = peer._writer.transport
        transport.pause_reading()
        head = b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n" % len(body)
        await peer.send(head + body)
        await asyncio.sleep(max(0.1, peer.until - time.time()))

    return attack


def trickled(first: bytes, crumb: bytes, count: int, *, upgrade: bool = False) -> Attacker:
    """Sends something, and what belongs to it in pieces of one record and one packet each."""

    async def attack(peer: Peer) -> None:
        if upgrade:
            await peer.upgrade()
        else:
            await peer.connect()
        await peer.send(first)
        for _ in range(count):
            await peer.send(crumb)

    return attack


async def small_records(peer: Peer) -> None:
    """A head in records of one byte, as many as fit into each packet."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = peer.tls.wrap_bio(incoming, outgoing)
    reader, writer = await asyncio.open_connection(peer.host, peer.port)
    peer.counted["connections"] += 1
    try:
        while True:
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                writer.write(outgoing.read())
                incoming.write(await asyncio.wait_for(reader.read(1 << 14), 30))
        tls.write(b"GET / HTTP/1.1\r\nx: ")
        for _ in range(30):
            for _ in range(1000):
                tls.write(b"y")
            data = outgoing.read()
            peer.counted["bytes"] += len(data)
            writer.write(data)
            await asyncio.wait_for(writer.drain(), 30)
            await asyncio.sleep(len(data) * CONNECTIONS / BYTES_PER_SECOND)
    finally:
        writer.transport.abort()


async def connections(peer: Peer) -> None:
    """Connections that end before they have said anything."""
    _, writer = await asyncio.open_connection(peer.host, peer.port)
    peer.counted["connections"] += 1
    writer.transport.abort()


async def trickled_hello(peer: Peer) -> None:
    """Handshakes that never come to their end, a byte at a time."""
    _, writer = await asyncio.open_connection(peer.host, peer.port)
    peer.counted["connections"] += 1
    try:
        writer.write(b"\x16\x03\x01\x3f\xff")
        for _ in range(16_000):
            writer.write(b"\x01")
            peer.counted["bytes"] += 1
            await asyncio.wait_for(writer.drain(), 30)
            await asyncio.sleep(CONNECTIONS / BYTES_PER_SECOND)
    finally:
        writer.transport.abort()


async def pipelined(peer: Peer) -> None:
    """Tiny requests, hundreds of them in each packet, whose answers nobody waits for."""
    await peer.connect()
    while True:
        await peer.send(b"GET /x HTTP/1.1\r\n\r\n" * 500)


async def large_body(peer: Peer) -> None:
    await peer.post(b"[" + b"[],".ljust(3) * 1_600_000 + b"[]]")


#: Multiplies a point of a curve (6,000 gas, and much time) or logs nothing, as long as there is gas.
RUNTIMES = {
    "ecmul": "60015f526002602052"
    + "7f2f"
    + "ff" * 31
    + "604052"
    + "5b6040608060605f60075afa50"
    + "6170005a1160"
    + "2d5700",
    "logs": "5b5f5fa0610bb85a115f5700",
}
#: What a transaction may have since Osaka.
FULL_GAS = 16_777_216
HEAVY_TRANSACTIONS = 40


def account(index: int) -> tuple[str, str]:
    """One of those that nobody else pays from."""
    return WELL_KNOWN_ACCOUNTS[WRITERS + 1 + index]


async def _nonce(peer: Peer, index: int) -> int:
    answer = json.loads(await peer.post(call("eth_getTransactionCount", account(index)[0], "pending")))
    return int(answer["result"], 16)


def signed(index: int, nonce: int, to: str, **fields: object) -> str:
    whole = {"nonce": nonce, "gas": 21_000, "to": to_checksum_address(to), "value": 0, "chainId": CHAIN_ID, **fields}
    return sign((account(index)[1], whole))[1]


async def heavy_transactions(peer: Peer) -> None:
    """One connection hands in what takes half a minute; the others have nothing to do."""
    if not peer.index:
        first = await _nonce(peer, 0)
        for nonce in range(first, first + HEAVY_TRANSACTIONS):
            raw = signed(0, nonce, peer.contracts["ecmul"], gas=FULL_GAS)
            await peer.post(call("eth_sendRawTransaction", raw))
    await asyncio.sleep(max(0.1, peer.until - time.time()))


async def payments(peer: Peer) -> None:
    """As many payments as it can sign, in batches."""
    account = peer.index
    nonce = await _nonce(peer, account)
    while time.time() < peer.until:
        raw = [signed(account, nonce + n, FUNDER, value=1) for n in range(50)]
        nonce += len(raw)
        await peer.post(b"[" + b",".join(call("eth_sendRawTransaction", one) for one in raw) + b"]")


async def heavy_calls(peer: Peer) -> None:
    await peer.post(call("eth_call", {"to": peer.contracts["ecmul"], "gas": hex(FULL_GAS)}, "latest"))


async def heavy_estimates(peer: Peer) -> None:
    await peer.post(call("eth_estimateGas", {"to": peer.contracts["ecmul"]}, "latest"))


async def long_logs(peer: Peer) -> None:
    block = peer.contracts["block of logs"]
    await peer.post(call("eth_getLogs", {"fromBlock": block, "toBlock": block}))


async def many_topics(peer: Peer) -> None:
    """Logs that are compared with thousands of topics, and are none of them."""
    block = peer.contracts["block of logs"]
    topics = ["0x" + f"{number:064x}" for number in range(10_000)]
    await peer.post(call("eth_getLogs", {"fromBlock": block, "toBlock": block, "topics": [topics]}))


_CHUNKED = b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n"
_PERCENTILES = list(range(100))
_GOV = b"?api-version=2024-07-01"
_REHEARSAL = json.dumps({"actions": [{"name": "set_recovery_threshold", "args": {"recovery_threshold": 1}}]}).encode()

ATTACKS: dict[str, Attack] = {
    # To compare with: on a busy machine no attack has a better ratio than this
    "nothing": Attack(nothing),
    # C1: frames without content
    "pong": Attack(frames(0x8A)),
    "ping": Attack(frames(0x89)),
    "empty_text": Attack(frames(0x81)),
    "continuation": Attack(frames(0x00, first=bytes([0x01, 0x80, 0, 0, 0, 0]))),
    # C2: much from little
    "fee_history": Attack(posts(batch("eth_feeHistory", "0x400", "latest", _PERCENTILES))),
    "fee_history_plain": Attack(posts(batch("eth_feeHistory", "0x400", "latest"))),
    "blocks": Attack(posts(batch("eth_getBlockByNumber", "latest", True))),
    "logs": Attack(posts(batch("eth_getLogs", {"fromBlock": "0x0", "toBlock": "latest"}, count=100))),
    "trivial": Attack(posts(call("eth_chainId"))),
    "large_body": Attack(large_body),
    "known_fee_history": Attack(
        posts(batch("eth_feeHistory", "0x400", "latest", _PERCENTILES)), caller="greedy", prepare="contracts"
    ),
    "slow_reader": Attack(
        slow_reader(batch("eth_getBlockByNumber", "latest", True)), caller="greedy", prepare="contracts"
    ),
    # C3: lists, rehearsals, filters, and what else a stranger may ask
    "proposals": Attack(gets(b"/gov/members/proposals" + _GOV), "administration", prepare="proposals"),
    "rehearsals": Attack(posts(_REHEARSAL, b"/gov/members/proposals:rehearse" + _GOV), "administration"),
    "filters": Attack(posts(batch("eth_newBlockFilter"))),
    "subscriptions": Attack(subscriptions),
    "routes": Attack(
        gets(
            b"/openapi.json",
            b"/node/network",
            b"/node/attestation?nonce=00",
            b"/gov/service/state" + _GOV,
            b"/gov/service/nodes" + _GOV,
            b"/node/receipt?id=2.3",
            b"/node/info",
        ),
        "administration",
    ),
    # D: one caller starves the others
    "heavy_transactions": Attack(heavy_transactions, caller="greedy", prepare="contracts", rounds=1),
    "payments": Attack(payments, caller="greedy", prepare="contracts", connections=4),
    "heavy_calls": Attack(heavy_calls, caller="greedy", prepare="contracts", connections=64),
    "heavy_estimates": Attack(heavy_estimates, caller="greedy", prepare="contracts"),
    "long_logs": Attack(long_logs, caller="greedy", prepare="contracts", connections=8),
    "many_topics": Attack(many_topics, caller="greedy", prepare="contracts", connections=8),
    "handshakes": Attack(handshakes),
    # What is not yet a request: of what it is made, and how it is cut
    "trickled_head": Attack(trickled(b"GET / HTTP/1.1\r\nx: ", b"yyy", 10_000)),
    "trickled_body": Attack(trickled(b"POST / HTTP/1.1\r\ncontent-length: 200000\r\n\r\n", b"[", 200_000)),
    "trickled_chunks": Attack(trickled(_CHUNKED, b"1\r\n[\r\n", 200_000)),
    "small_chunks": Attack(trickled(_CHUNKED, b"1\r\n[\r\n" * 2000, 100)),
    "trickled_frame": Attack(
        trickled(b"\x81\xff" + (200_000).to_bytes(8, "big") + bytes(4), b"[", 200_000, upgrade=True)
    ),
    "small_records": Attack(small_records),
    "connections": Attack(connections),
    "trickled_hello": Attack(trickled_hello),
    "pipelined": Attack(pipelined),
}
