"""What strangers and greedy callers cost the others: writes and memory of a network of three, quiet and under attack.

    python bench/attack.py [--scenarios pong,fee_history,...] [--rounds 2] [--seconds 8] [--out FILE]

Three nodes as processes. Four quiet participants pay at the primary, each one payment after the other, and wait for its
receipt; the attack comes over 30 connections from a process of its own with the lowest priority and a bounded rate,
because it shares the machine's cores with what it attacks. Quiet and attacked intervals take turns in one run: figures
are ratios within it. Memory is that of the attacked enclave: its most during an attack, less what it had before all.
Adds ``attack`` to bench/out/summary.json.

A scenario is an :class:`Attack`: what each of its connections does until the time is over, who it is, and what must be
there before. It is a ``stranger``; or ``greedy``, a participant of its own, beside whom the quiet ones are others: with
it, trivial calls of a quiet one are timed too.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import ssl
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

from eth_utils import to_checksum_address

from coco.cli.keys import make_actor
from coco.cli.sandbox import WELL_KNOWN_ACCOUNTS
from coco.client.governance import Governance
from coco.client.http import HttpsClient
from coco.client.members import Member
from coco.client.verify import unverified_context
from coco.constitutions import text
from coco.ledger.statements import fingerprint
from ethereum import OUT, sign
from load import Connection, Target
from nodes import Network, network
from systems import CHAIN_ID, FUNDER, Coco, running

CONNECTIONS, WRITERS = 30, 4
#: What all connections of an attack send together, at most.
BYTES_PER_SECOND = 2_000_000
#: More than this and the run is ended: the machine has others on it.
MEMORY_MB_MAX = 4_000
PROPOSALS = 300


# --- one connection of an attacker ---------------------------------------------------------------------------------


class Peer:
    """One connection of an attack, and what came of it."""

    #: Contracts that are there, by what they do.
    contracts: ClassVar[dict[str, str]] = {}

    def __init__(self, url: str, tls: ssl.SSLContext, counted: Counter[str], index: int, until: float) -> None:
        place = urlsplit(url)
        self.host, self.port, self.index, self.until = "localhost", int(place.port or 0), index, until
        self._tls, self.counted = tls, counted
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def connect(self) -> None:
        await self.close()
        self._reader, self._writer = await asyncio.wait_for(
            asyncio.open_connection(self.host, self.port, ssl=self._tls, server_hostname=self.host, limit=1 << 26), 10
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


async def trickled_head(peer: Peer) -> None:
    """A head of 30 KB in pieces of one record each."""
    await peer.connect()
    await peer.send(b"GET / HTTP/1.1\r\nx: ")
    for _ in range(10_000):
        await peer.send(b"yyy")


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


def _account(index: int) -> tuple[str, str]:
    """One of those that nobody else pays from."""
    return WELL_KNOWN_ACCOUNTS[WRITERS + 1 + index]


async def _nonce(peer: Peer, index: int) -> int:
    answer = json.loads(await peer.post(call("eth_getTransactionCount", _account(index)[0], "pending")))
    return int(answer["result"], 16)


def _signed(index: int, nonce: int, to: str, **fields: object) -> str:
    whole = {"nonce": nonce, "gas": 21_000, "to": to_checksum_address(to), "value": 0, "chainId": CHAIN_ID, **fields}
    return sign((_account(index)[1], whole))[1]


async def heavy_transactions(peer: Peer) -> None:
    """One connection hands in what takes half a minute; the others have nothing to do."""
    if not peer.index:
        first = await _nonce(peer, 0)
        for nonce in range(first, first + HEAVY_TRANSACTIONS):
            raw = _signed(0, nonce, peer.contracts["ecmul"], gas=FULL_GAS)
            await peer.post(call("eth_sendRawTransaction", raw))
    await asyncio.sleep(max(0.1, peer.until - time.time()))


async def payments(peer: Peer) -> None:
    """As many payments as it can sign, in batches."""
    account = peer.index
    nonce = await _nonce(peer, account)
    while time.time() < peer.until:
        raw = [_signed(account, nonce + n, FUNDER, value=1) for n in range(50)]
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


_PERCENTILES = list(range(100))
_GOV = b"?api-version=2024-07-01"
_REHEARSAL = json.dumps({"actions": [{"name": "set_recovery_threshold", "args": {"recovery_threshold": 1}}]}).encode()

ATTACKS: dict[str, Attack] = {
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
    "trickled_head": Attack(trickled_head),
}


async def _attack(chosen: Attack, url: str, tls: ssl.SSLContext, seconds: float) -> Counter[str]:
    counted: Counter[str] = Counter()
    until = time.time() + seconds

    async def one(index: int) -> None:
        peer = Peer(url, tls, counted, index, until)
        while time.time() < until:
            try:
                await chosen.does(peer)
            except (OSError, EOFError, TimeoutError, asyncio.IncompleteReadError):
                counted["failed"] += 1
                await peer.close()
                await asyncio.sleep(0.01)
        await peer.close()

    tasks = [asyncio.create_task(one(index)) for index in range(chosen.connections)]
    await asyncio.wait(tasks, timeout=seconds + 1)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return counted


def attacker() -> None:
    """The process of an attack: its arguments come as JSON, its figures go out as JSON."""
    os.nice(19)
    asked = json.loads(sys.argv[2])
    tls = ssl.create_default_context()
    tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
    if asked["identity"]:
        tls.load_cert_chain(*asked["identity"])
    Peer.contracts = asked["contracts"]
    print(json.dumps(asyncio.run(_attack(ATTACKS[asked["name"]], asked["url"], tls, asked["seconds"]))))


# --- the quiet ones, and what they see -----------------------------------------------------------------------------


class Writers:
    """Participants that pay, one payment after the other each, until they are stopped."""

    def __init__(self, target: Target) -> None:
        self._target, self._stop = target, threading.Event()
        #: When each payment began and ended.
        self.done: list[tuple[float, float]] = []
        #: When the one began that each writer waits for.
        self.open: dict[int, float] = {}
        self.errors: Counter[str] = Counter()
        self._threads = [threading.Thread(target=self._write, args=(n,), daemon=True) for n in range(WRITERS)]
        for thread in self._threads:
            thread.start()

    def _write(self, index: int) -> None:
        _, secret = WELL_KNOWN_ACCOUNTS[index + 1]
        connection: Connection | None = None
        nonce = 0
        while not self._stop.is_set():
            fields = {"nonce": nonce, "gas": 21_000, "to": FUNDER, "value": 1, "chainId": CHAIN_ID}
            _, raw = sign((secret, fields))
            self.open[index] = began = time.monotonic()
            try:
                connection = connection or self._target.connect()
                connection.call("eth_sendRawTransactionSync", raw)
            except (OSError, RuntimeError) as error:
                self.errors[str(error)[:80]] += 1
                connection = None
                if "nonce" not in str(error) and "known" not in str(error):
                    time.sleep(0.2)
                    continue
            nonce += 1
            self.done.append((began, time.monotonic()))

    def between(self, begin: float, end: float) -> dict[str, float]:
        """Payments that ended within an interval, and the longest that any of it was waited for."""
        ended = [row for row in self.done if begin <= row[1] < end]
        waits = [min(stop, end) - start for start, stop in self.done if start < end and stop > begin]
        waits += [end - start for start in self.open.values() if start < end]
        return {"per_s": len(ended) / (end - begin), "worst_s": max(waits, default=end - begin)}

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=70)


class Memory:
    """The most that a process had since it was asked last."""

    def __init__(self, pid: int) -> None:
        self._pid, self._most = pid, 0.0
        threading.Thread(target=self._watch, daemon=True).start()

    def now(self) -> float:
        with contextlib.suppress(OSError):
            pages = int(Path(f"/proc/{self._pid}/statm").read_text().split()[1])
            return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
        return 0.0

    def _watch(self) -> None:
        while Path(f"/proc/{self._pid}").exists():
            self._most = max(self._most, self.now())
            if self._most > MEMORY_MB_MAX:
                os.kill(self._pid, 9)
            time.sleep(0.05)

    def take(self) -> float:
        most, self._most = max(self._most, self.now()), 0.0
        return most


class Caller:
    """A quiet participant that asks something trivial ten times a second."""

    def __init__(self, target: Target) -> None:
        self._target, self._stop = target, threading.Event()
        self.done: list[tuple[float, float]] = []
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self._thread.start()

    def _ask(self) -> None:
        connection = self._target.connect()
        while not self._stop.is_set():
            began = time.monotonic()
            connection.call("eth_call", {"to": FUNDER}, "latest")
            self.done.append((began, time.monotonic()))
            time.sleep(0.1)

    def between(self, begin: float, end: float) -> list[float]:
        """What calls that began within an interval have waited, in milliseconds, in order."""
        return sorted(1000 * (stop - start) for start, stop in self.done if begin <= start < end)

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(timeout=70)


async def _contracts(target: Attacked) -> dict[str, str]:
    """Make one participant more, and with its certificate the contracts that its attacks want."""
    directory = target.system.directory
    certificate = make_actor(directory / "participants", "greedy")
    name = next(directory.glob("members/*.encryption.key.pem")).name.removesuffix(".encryption.key.pem")
    at = [directory / "members" / f"{name}{end}" for end in (".pem", ".key.pem", ".encryption.key.pem")]
    client = HttpsClient("localhost", urlsplit(target.url("administration")).port or 0, unverified_context())
    arguments = {"cert": certificate, "user_data": {"insecure_any_account": True}}
    try:
        message = Member.load(*at).sign("proposal", {"actions": [{"name": "set_user", "args": arguments}]})
        await Governance(client).send(message)
    finally:
        await client.close()
    tls = ssl.create_default_context()
    tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
    tls.load_cert_chain(*target.identity("greedy"))
    await asyncio.sleep(1)
    connection = Target("localhost", urlsplit(target.url("application")).port or 0, tls).connect()
    found = {}
    for nonce, (does, runtime) in enumerate(RUNTIMES.items()):
        data = f"0x61{len(runtime) // 2:04x}80600a5f395ff3{runtime}"
        fields = {"nonce": nonce, "gas": 1_000_000, "data": data, "chainId": CHAIN_ID}
        receipt = connection.call("eth_sendRawTransactionSync", sign((_account(0)[1], fields))[1])
        found[does] = receipt["contractAddress"]
    raw = _signed(0, len(RUNTIMES), found["logs"], gas=4_000_000)
    found["block of logs"] = connection.call("eth_sendRawTransactionSync", raw)["blockNumber"]
    connection.close()
    return found


async def _open_proposals(url: str, directory: Path) -> int:
    """Make proposals that stay open; as many as members may have."""
    name = next(directory.glob("members/*.encryption.key.pem")).name.removesuffix(".encryption.key.pem")
    at = [directory / "members" / f"{name}{end}" for end in (".pem", ".key.pem", ".encryption.key.pem")]
    member = Member.load(*at)
    client = HttpsClient("localhost", urlsplit(url).port or 0, unverified_context())
    governance = Governance(client)
    made = 0
    try:
        rules = {"actions": [{"name": "set_constitution", "args": {"constitution": text("majority")}}]}
        await governance.send(member.sign("proposal", rules))
        for number in range(PROPOSALS):
            data = {"number": number, "text": "x" * 400}
            action = {
                "name": "set_member_data",
                "args": {"member_id": fingerprint(member.certificate), "member_data": data},
            }
            await governance.send(member.sign("proposal", {"actions": [action]}))
            made += 1
    except Exception as error:  # noqa: BLE001 - there is a limit: what was made is what there is
        print(f"  proposals: {made} ({error})", flush=True)
    finally:
        await client.close()
    return made


# --- measuring -----------------------------------------------------------------------------------------------------


class Attacked:
    """A network with its writers, and one node of it that is attacked."""

    def __init__(self, system: Coco) -> None:
        self.system, self.network = system, Network(system)
        leads = self.network.settled()
        self.name = next(name for name, leading in leads.items() if leading)
        self.row = self.network.nodes[self.name]
        self.memory = Memory(self.row["enclave_pid"])
        self.writers = Writers(self.network.target(self.name))
        self.contracts: dict[str, str] = {}

    def url(self, listener: str) -> str:
        return self.row[f"{listener}_url"]

    def identity(self, caller: str) -> list[str]:
        """Certificate and key, if whoever attacks shows one."""
        at = self.system.directory / "participants"
        return {
            "stranger": [],
            "greedy": [str(at / "greedy.pem"), str(at / "greedy.key.pem")],
        }[caller]

    def begin(self, name: str, seconds: float) -> subprocess.Popen[str]:
        chosen = ATTACKS[name]
        asked = {
            "name": name,
            "url": self.url(chosen.listener),
            "seconds": seconds,
            "identity": self.identity(chosen.caller),
            "contracts": self.contracts,
        }
        command = [sys.executable, __file__, "--be", json.dumps(asked)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def measure(self, name: str, rounds: int, seconds: float) -> dict[str, Any]:
        """Quiet and attacked intervals in turn."""
        if ATTACKS[name].prepare == "proposals":
            asyncio.run(_open_proposals(self.url("administration"), self.system.directory))
        caller = None
        if ATTACKS[name].prepare == "contracts":
            self.contracts = asyncio.run(_contracts(self))
            caller = Caller(self.network.target(self.name))
        waits: list[float] = []
        rounds = ATTACKS[name].rounds or rounds
        time.sleep(2)
        base = self.memory.now()
        quiet, attacked, grown = [], [], []
        counted: Counter[str] = Counter()
        for _ in range(rounds):
            began = time.monotonic()
            time.sleep(seconds)
            quiet.append(self.writers.between(began, began + seconds))
            self.memory.take()
            process = self.begin(name, seconds + 1.5)
            time.sleep(1.5)  # until it has begun
            began = time.monotonic()
            time.sleep(seconds)
            attacked.append(self.writers.between(began, began + seconds))
            if caller is not None:
                waits += caller.between(began, began + seconds)
            said, _ = process.communicate(timeout=seconds + 90)
            counted.update(json.loads(said))
            grown.append(self.memory.take() - base)
            time.sleep(2)
        if caller is not None:
            caller.stop()
        waits.sort()
        per_s = [sum(row["per_s"] for row in rows) / rounds for rows in (quiet, attacked)]
        return {
            "quiet_per_s": round(per_s[0], 1),
            "attacked_per_s": round(per_s[1], 1),
            "ratio": round(per_s[1] / per_s[0], 2) if per_s[0] else 0.0,
            "quiet_worst_ms": round(1000 * max(row["worst_s"] for row in quiet)),
            "attacked_worst_ms": round(1000 * max(row["worst_s"] for row in attacked)),
            "memory_grown_mb": round(max(grown)),
            **({"call_median_ms": round(waits[len(waits) // 2]), "call_worst_ms": round(waits[-1])} if waits else {}),
            "attacker": dict(counted),
        }


@contextlib.contextmanager
def attacked() -> Iterator[Attacked]:
    with running(network(3)) as system:
        found = Attacked(system)
        try:
            yield found
        finally:
            found.writers.stop()


def main() -> None:
    if sys.argv[1:2] == ["--be"]:
        attacker()
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenarios", default=",".join(ATTACKS), help="comma between them; all without it")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--out", default=str(OUT / "summary.json"))
    chosen = parser.parse_args()
    found: dict[str, dict[str, Any]] = {}
    for name in chosen.scenarios.split(","):
        try:
            with attacked() as target:  # a network of its own: no attack pays for another's
                found[name] = target.measure(name, chosen.rounds, chosen.seconds)
                if target.writers.errors:
                    found[name]["errors"] = dict(target.writers.errors)
        except (RuntimeError, ZeroDivisionError, ValueError, subprocess.TimeoutExpired) as error:
            found[name] = {"failed": str(error)}
        print(f"{name}: {found[name]}", flush=True)
    path = Path(chosen.out)
    path.parent.mkdir(exist_ok=True)
    others = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**others, "attack": {**others.get("attack", {}), **found}}, indent=1))
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
