"""A host that lies: real enclaves under it, in a network whose other hosts are honest. Seeded; as a command, a campaign.

``python tests/faults/lying_host.py --seeds 0-999``

One node of three is under a liar, which is given a new life and another lie by each seed. While payments run through
the honest nodes, the liar drops, delays, repeats, reorders, truncates or flips what it carries, acknowledges what it
never wrote, rolls its disk back or shows another network's, crosses connections, lies about time, starves the enclave
or kills it. With ``--lead`` it is one of four, its enclave is made primary now and then, snapshots and blocks of the
index are taken often and lied about (damaged, cut, withheld, swapped, older, of another node, process or network), and
newcomers join meanwhile, who ask whoever leads. What must hold:

* no acknowledged payment is lost, and the honest nodes' ledgers are one;
* an honest newcomer joins, whoever leads; what the liar's enclave says of a payment or an entry is right, or nothing;
* nothing that the liar saw, wrote or carried holds the canary that every payment has in its data;
* a lie that ends the enclave is named in its last message; nobody waits without saying for what.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import shutil
import signal
import sqlite3
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent.parent)]

from cryptography import x509
from eth_account import Account

from coco import limits
from coco.channel import messages
from coco.cli.sandbox import make_owner
from coco.client.http import HttpsClient, RemoteError
from coco.client.verify import service_context
from coco.errors import CocoError, HostError
from coco.host.node import Node, NodeOptions
from coco.ledger import receipts
from coco.ledger.transaction_id import TransactionId
from network import Several

KEY = "0xac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80"
SENDER = Account.from_key(KEY)
CANARY = bytes.fromhex("c0ffee15c0ffee15c0ffee15c0ffee15")
#: Lives of a liar at one address: a network admits no more in ten minutes.
LIVES_MAX = 25
#: The last is how long an enclave may start without a word: on a machine that is busy, at idle priority, it does.
_LIFE_S, _PATIENCE_S, _SLOW_START_S = 0.8, 9.0, 120.0
#: Time for an honest newcomer; and how often an election is forced so that the liar leads.
_JOINS_S, _UNSEATED_MAX = 60.0, 3
#: Time after which another snapshot is due at the latest.
_TAKES_S = 15.0
#: Longer than an election takes.
_SLOW_S = 1.5
#: Events that say what keeps an enclave waiting.
_NAMED = ("channel.host_silent", "link.refused", "link.cut", "join.no_answer", "join.waiting")
_TEN_YEARS_MS = 315_360_000_000


class LyingNode(Node):
    """A host that carries messages otherwise than it should; what it saw, it keeps."""

    def __init__(self, options: NodeOptions, log: Any, lie: Lie) -> None:
        super().__init__(options, log)
        self.lie = lie
        self.seen = bytearray()
        lie.node = self

    def honest_send(self, message: Any) -> None:
        super().send(message)

    def raw(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def framed(self, message: Any) -> bytes:
        return self._frames.frame(messages.encode(message))

    def send(self, message: Any) -> None:
        self.lie.to_enclave(message)

    def honest_receive(self, message: Any) -> None:
        super().receive(message)

    def receive(self, message: Any) -> None:
        self.seen += messages.encode(message)
        self.lie.from_enclave(message)

    async def _dial(self, dial: int, address: str) -> None:
        await super()._dial(dial, self.lie.address(address))


@dataclass
class Lie:
    """One way to lie; this one tells the truth."""

    rng: random.Random
    node: Any = None
    #: What was done, for the report.
    done: list[str] = field(default_factory=list)
    #: Addresses that a crossed connection may lead to.
    others: list[str] = field(default_factory=list)
    #: What this host has kept for its enclaves; and of which part or block the enclave has asked.
    kept: Store = field(default_factory=lambda: Store())
    asked: dict[int, tuple[int, int]] = field(default_factory=dict)
    #: Messages to let pass first.
    after: int = 0
    #: Whether it is worth nothing unless its enclave leads while somebody joins.
    wants_to_lead = False

    def to_enclave(self, message: Any) -> None:
        self.node.honest_send(message)

    def from_enclave(self, message: Any) -> None:
        self.node.honest_receive(message)

    def address(self, address: str) -> str:
        return address

    def clock_ms(self, now_ms: int) -> int:
        return now_ms

    def before_start(self, ledger: Path) -> None:
        """What the disk is made to say."""

    def now(self, message: Any) -> bool:
        """Whether the moment has come, for messages that carry something."""
        if isinstance(message, messages.Start | messages.Tick | messages.Stop | messages.OwnerStatement):
            return False
        self.after -= 1
        return self.after < 0 and not self.done

    def did(self, what: str, message: Any = None) -> None:
        self.done.append(what if message is None else f"{what} {type(message).__name__}")


class Drops(Lie):
    def to_enclave(self, message: Any) -> None:
        if self.now(message):
            self.did("dropped", message)
        else:
            super().to_enclave(message)


class Delays(Lie):
    def to_enclave(self, message: Any) -> None:
        if not self.now(message):
            super().to_enclave(message)
            return
        self.did("delayed", message)
        asyncio.get_running_loop().call_later(self.rng.uniform(0.05, 1.5), self.node.honest_send, message)


class Repeats(Lie):
    def to_enclave(self, message: Any) -> None:
        if self.now(message):
            self.did("repeated", message)
            super().to_enclave(message)
        super().to_enclave(message)


class Reorders(Lie):
    _held: Any = None

    def to_enclave(self, message: Any) -> None:
        if self._held is None and self.now(message):
            self.did("held back", message)
            self._held = message
            return
        super().to_enclave(message)
        if self._held is not None:
            held, self._held = self._held, None
            super().to_enclave(held)


class Flips(Lie):
    def to_enclave(self, message: Any) -> None:
        if not self.now(message):
            super().to_enclave(message)
            return
        frame = bytearray(self.node.framed(message))
        at = self.rng.randrange(len(frame))
        frame[at] ^= 1 << self.rng.randrange(8)
        self.did(f"flipped byte {at} of", message)
        self.node.raw(bytes(frame))


class Truncates(Lie):
    def to_enclave(self, message: Any) -> None:
        if not self.now(message):
            super().to_enclave(message)
            return
        frame = self.node.framed(message)
        self.did("cut", message)
        self.node.raw(frame[: self.rng.randrange(len(frame))])


class RepeatsAFrame(Lie):
    def to_enclave(self, message: Any) -> None:
        if not self.now(message):
            super().to_enclave(message)
            return
        frame = self.node.framed(message)
        self.did("repeated the frame of", message)
        self.node.raw(frame + frame)


class LosesWrites(Lie):
    """Says that entries are on the disk, and writes none from some moment on."""

    def from_enclave(self, message: Any) -> None:
        if isinstance(message, messages.Append) and (self.done or self.now(message)):
            self.did("lost", message)
            self.node.honest_send(messages.Appended(message.first + len(message.entries) - 1))
        else:
            super().from_enclave(message)


class Acknowledges(Lie):
    """Acknowledges entries before it has them, or that do not exist."""

    def from_enclave(self, message: Any) -> None:
        super().from_enclave(message)
        if isinstance(message, messages.Append) and self.now(message):
            self.did("acknowledged more than", message)
            self.node.honest_send(messages.Appended(message.first + len(message.entries) + self.rng.randrange(1, 50)))


class ReadsOthers(Lie):
    """Answers a read with other entries, or another part of a snapshot, than were asked for."""

    def to_enclave(self, message: Any) -> None:
        if isinstance(message, messages.SnapshotPart) and message.part and self.now(message):
            part = bytearray(message.part)
            part[self.rng.randrange(len(part))] ^= 1
            self.did("flipped", message)
            message = messages.SnapshotPart(message.request, bytes(part))
        if isinstance(message, messages.Entries) and message.entries and self.now(message):
            entries = list(message.entries)
            choice = self.rng.choice(("reversed", "short", "flipped", "garbage"))
            if choice == "reversed":
                entries.reverse()
            elif choice == "short":
                entries.pop()
            elif choice == "flipped":
                changed = bytearray(entries[0])
                changed[self.rng.randrange(len(changed))] ^= 1
                entries[0] = bytes(changed)
            else:
                entries[0] = self.rng.randbytes(len(entries[0]))
            self.did(f"{choice}", message)
            message = messages.Entries(message.request, entries)
        super().to_enclave(message)


@dataclass
class Store:
    """What a liar has kept, in all of its lives."""

    snapshots: Kept = field(default_factory=lambda: Kept())
    index: Kept = field(default_factory=lambda: Kept())

    def another_process(self) -> None:
        """What was kept is a former process's from now on."""
        for kept in (self.snapshots, self.index):
            kept.foreign = [*kept.parts.values(), *kept.foreign][:200]
            kept.parts = {}


#: What a host can give instead of a part or a block that it was asked for.
_INSTEAD = ("damaged", "cut", "longer", "withheld", "swapped", "older", "another's", "garbage")


@dataclass
class Kept:
    """Parts of snapshots, or blocks of the index, that the enclaves of one host have had it keep."""

    #: By snapshot or run, and number.
    parts: dict[tuple[int, int], bytes] = field(default_factory=dict)
    #: Those of former processes, and of other nodes.
    foreign: list[bytes] = field(default_factory=list)

    def instead(self, rng: random.Random, group: int, number: int, right: bytes) -> tuple[str, bytes]:
        """How it is lied, and what is given."""
        how = rng.choice(_INSTEAD)
        others = {
            "swapped": [part for (one, at), part in self.parts.items() if one == group and at != number],
            "older": [part for (one, _), part in self.parts.items() if one < group],
            "another's": self.foreign,
        }
        found = [part for part in others.get(how, ()) if part != right]
        if how in others and not found:
            how = "damaged"
        if how == "withheld" or not right:
            return "withheld", b""
        if how == "damaged":
            changed = bytearray(right)
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
            return how, bytes(changed)
        if how == "cut":
            return how, right[: rng.randrange(len(right))]
        if how == "longer":
            return how, right + rng.randbytes(rng.randrange(1, 100))
        if how == "garbage":
            return how, rng.randbytes(len(right))
        return how, rng.choice(found)


class LiesAboutSnapshots(Lie):
    """Gives another part of a snapshot than the one that it was asked for; a newcomer asks whoever leads."""

    wants_to_lead = True

    def from_enclave(self, message: Any) -> None:
        if isinstance(message, messages.WriteSnapshot):
            self.kept.snapshots.parts[message.seqno, message.number] = message.part
        if isinstance(message, messages.ReadSnapshot):
            self.asked[message.request] = message.seqno, message.number
        super().from_enclave(message)

    def to_enclave(self, message: Any) -> None:
        if isinstance(message, messages.SnapshotPart):
            group, number = self.asked.pop(message.request)
            if self.now(message):
                how, part = self.kept.snapshots.instead(self.rng, group, number, message.part)
                self.did(f"{how}: part {number} of the snapshot at {group}")
                message = messages.SnapshotPart(message.request, part)
        super().to_enclave(message)


class LosesSnapshots(LiesAboutSnapshots):
    """Says that parts are on the disk, and keeps some of another process or none; or forgets the one that counts."""

    def from_enclave(self, message: Any) -> None:
        if isinstance(message, messages.WriteSnapshot) and (self.done or self.now(message)):
            self.did("lost", message)
            self.node.honest_send(messages.SnapshotWritten(message.request))
        elif isinstance(message, messages.KeepSnapshot) and message.seqno and self.rng.random() < 0.5:
            self.did("forgot every snapshot")
            super().from_enclave(messages.KeepSnapshot(0))
        else:
            super().from_enclave(message)

    def to_enclave(self, message: Any) -> None:
        Lie.to_enclave(self, message)


class LiesAboutIndex(Lie):
    """Gives another block of the index than the one that it was asked for."""

    def from_enclave(self, message: Any) -> None:
        if isinstance(message, messages.WriteIndex):
            for offset, block in enumerate(message.blocks):
                self.kept.index.parts[message.run, message.first + offset] = block
        if isinstance(message, messages.ReadIndex):
            self.asked[message.request] = message.run, message.block
        super().from_enclave(message)

    def to_enclave(self, message: Any) -> None:
        if isinstance(message, messages.IndexBlock):
            group, number = self.asked.pop(message.request)
            if self.now(message):
                how, block = self.kept.index.instead(self.rng, group, number, message.block)
                self.did(f"{how}: block {number} of run {group}")
                message = messages.IndexBlock(message.request, block[: limits.INDEX_BLOCK_BYTES_MAX])
        super().to_enclave(message)


class LosesIndex(LiesAboutIndex):
    """Keeps no block of the index from some moment on, or drops runs that are still needed."""

    def from_enclave(self, message: Any) -> None:
        if isinstance(message, messages.WriteIndex) and (self.done or self.now(message)):
            self.did("lost", message)
            if self.rng.random() < 0.5:
                super().from_enclave(message)
                self.node.honest_receive(messages.DropIndex(message.run))
        else:
            super().from_enclave(message)

    def to_enclave(self, message: Any) -> None:
        Lie.to_enclave(self, message)


class Crosses(Lie):
    """Dials somebody else than it is asked to."""

    def address(self, address: str) -> str:
        self.after -= 1
        if self.after >= 0 or len(self.done) > 4:
            return address
        other = self.rng.choice([*self.others, self.node._address])
        self.did(f"crossed to {'itself' if other == self.node._address else 'another'}")
        return other


class Clocks(Lie):
    """Says another time; from its start on, or once the node is in."""

    _offset: int | None = None
    _asked = 0

    def clock_ms(self, now_ms: int) -> int:
        self._asked += 1
        if self.after and self._asked <= 3:
            return now_ms
        if self._offset is None:
            self._offset = self.rng.choice((_TEN_YEARS_MS, -_TEN_YEARS_MS, 3_600_000, -3_600_000, -now_ms))
            self.did(f"moved the clock by {self._offset} ms")
        return max(0, now_ms + self._offset)


class Starves(Lie):
    async def later(self) -> None:
        await asyncio.sleep(self.rng.uniform(0.2, 1.2))
        self.did("starved the enclave")
        with contextlib.suppress(OSError):
            os.kill(self.node.enclave_pid, signal.SIGSTOP)
        await asyncio.sleep(self.rng.uniform(0.5, 2))
        with contextlib.suppress(OSError):
            os.kill(self.node.enclave_pid, signal.SIGCONT)


class Kills(Lie):
    async def later(self) -> None:
        await asyncio.sleep(self.rng.uniform(0.0, 2.0))
        self.did("killed the enclave")
        with contextlib.suppress(OSError):
            os.kill(self.node.enclave_pid, signal.SIGKILL)


class RollsBack(Lie):
    """The disk of a former life, with its last entries gone, or with one changed."""

    def before_start(self, ledger: Path) -> None:
        if not ledger.exists():
            return
        with contextlib.closing(sqlite3.connect(ledger)) as disk, disk:
            (last,) = disk.execute("SELECT max(seqno) FROM entries").fetchone()
            if last is None:
                return
            at = self.rng.randrange(1, last + 1)
            if self.rng.random() < 0.5:
                disk.execute("DELETE FROM entries WHERE seqno > ?", (at,))
                self.did(f"rolled back to {at} of {last}")
            else:
                (entry,) = disk.execute("SELECT entry FROM entries WHERE seqno = ?", (at,)).fetchone()
                changed = bytearray(entry)
                changed[self.rng.randrange(len(changed))] ^= 1
                disk.execute("UPDATE entries SET entry = ? WHERE seqno = ?", (bytes(changed), at))
                self.did(f"changed entry {at} of {last}")


class AnotherNetworks(Lie):
    """The disk of another network."""

    foreign: Path | None = None

    def before_start(self, ledger: Path) -> None:
        if self.foreign is not None:
            for file in ledger.parent.glob(f"{ledger.name}*"):
                file.unlink()
            shutil.copy(self.foreign, ledger)
            self.did("showed another network's ledger")


LIES: tuple[type[Lie], ...] = (
    *(Drops, Delays, Repeats, Reorders, Flips, Truncates, RepeatsAFrame, LosesWrites, Acknowledges, ReadsOthers),
    *(Crosses, Clocks, Starves, Kills, RollsBack, AnotherNetworks),
)
#: Of those who lead every other one is about what a host keeps besides the ledger.
_KEPT_LIES: tuple[type[Lie], ...] = (LiesAboutSnapshots, LiesAboutIndex, LiesAboutSnapshots, LosesIndex, LosesSnapshots)
LEADING_LIES: tuple[type[Lie], ...] = tuple(
    one for number, lie in enumerate(LIES) for one in (lie, _KEPT_LIES[number % len(_KEPT_LIES)])
)


class Payments:
    """Payments through honest nodes, one after another; each says in its data how it is called, after the canary."""

    def __init__(self, clients: list[HttpsClient]) -> None:
        self._clients, self._at = clients, 0
        self.acknowledged: list[str] = []
        self._nonce = 0
        self.stopping = False

    async def _call(self, method: str, *params: Any) -> Any:
        body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode()
        reply = json.loads((await self._clients[self._at].request("POST", "/", body)).body)
        if "error" in reply:
            raise RemoteError(str(reply["error"]), code="test.refused")
        return reply["result"]

    async def run(self) -> None:
        while not self.stopping:
            data = CANARY + self._nonce.to_bytes(8, "big")
            fields = {"to": "0x" + "11" * 20, "value": 1, "gas": 60_000, "nonce": self._nonce, "chainId": 2017}
            signed = SENDER.sign_transaction({**fields, "maxFeePerGas": 1, "maxPriorityFeePerGas": 1, "data": data})
            name = "0x" + signed.hash.hex().removeprefix("0x")
            try:
                receipt = await self._call("eth_sendRawTransactionSync", "0x" + signed.raw_transaction.hex())
                assert receipt["status"] == "0x1"
                self.acknowledged.append(name)
                self._nonce += 1
            except (CocoError, TimeoutError, ValueError):
                # Sent again, to the other honest node: a payment counts once.
                self._at = (self._at + 1) % len(self._clients)
                await asyncio.sleep(0.2)
                with contextlib.suppress(CocoError, TimeoutError, ValueError):
                    if await self._call("eth_getTransactionReceipt", name):
                        self._nonce += 1
            await asyncio.sleep(0.02)

    async def lost(self) -> list[str]:
        """Acknowledged payments that a node does not have."""
        found = []
        for client_at in range(len(self._clients)):
            self._at = client_at
            for name in self.acknowledged[:: max(1, len(self.acknowledged) // 200)]:
                if not await self._call("eth_getTransactionReceipt", name):
                    found.append(name)
        return found


@dataclass
class Life:
    """What became of one liar."""

    seed: int
    lie: str
    done: list[str]
    #: ``votes``, ``ended`` with its reason, or ``waits`` with what for.
    outcome: str
    reason: str
    #: Whether its enclave was primary.
    led: bool
    leaked: bool
    #: An end without a reason, or a wait without a word.
    silent: bool
    #: What did not hold for somebody else.
    wrong: list[str] = field(default_factory=list)


async def _until(check: Callable[[], Any], seconds: float) -> bool:
    deadline = asyncio.get_running_loop().time() + seconds
    while asyncio.get_running_loop().time() < deadline:
        if await check():
            return True
        await asyncio.sleep(0.1)
    return False


def _names(line: dict[str, Any]) -> bool:
    """Whether a line of the log says what keeps an enclave waiting."""
    return str(line.get("event", "")).startswith(_NAMED)


class Campaign:
    """One network of two honest hosts, or of three, and a liar in one life after another at the same address."""

    def __init__(self, directory: Path, *, lead: bool) -> None:
        # Snapshots often: joiners begin from one, and every host keeps some; and runs of the index.
        settings = {"settings": {"snapshot_interval_entries": 60, "index_rows_max": 64}} if lead else {}
        self.network, self._lead = Several(directory / "network", **settings), lead
        self.foreign = directory / "foreign.db"
        self.log: list[dict[str, Any]] = []
        self._ledger = directory / "liar" / "ledger.db"
        self._port = 0
        self._kept = Store()
        self._newcomer = directory / "newcomer" / "ledger.db"
        self._newcomer_port = 0

    async def begin(self) -> None:
        other = Several(self.foreign.parent / "other")
        await other.start()
        await other.stop()
        shutil.copy(other.files.ledger(0), self.foreign)
        # With a newcomer that has left and a liar that has ended, the others are still the majority.
        honest = 3 if self._lead else 2
        for _ in range(honest):
            await self.network.start()
        await self.network.voters(self.network.nodes[0], honest)
        clients = [self.network.client(node, "application") for node in self.network.nodes]
        self.payments = Payments(clients)
        self._paying = asyncio.create_task(self.payments.run())

    async def live(self, seed: int) -> Life:
        """One life of the liar."""
        rng = random.Random(seed)
        lies = LEADING_LIES if self._lead else LIES
        lie = lies[seed % len(lies)](rng, after=rng.choice((0, 0, 1, 2, 5, 10, 30, 100)), kept=self._kept)
        lie.others = [f"127.0.0.1:{node.relays['peers'].port}" for node in self.network.nodes]
        if isinstance(lie, ReadsOthers | LiesAboutSnapshots | LiesAboutIndex):
            lie.after = rng.randrange(3)  # it reads seldom
        self._kept.another_process()
        if isinstance(lie, LiesAboutSnapshots):
            self._kept.snapshots.foreign += snapshot_of(self.network.files.ledger(0))
        if isinstance(lie, AnotherNetworks):
            lie.foreign = self.foreign
        self._ledger.parent.mkdir(exist_ok=True)
        lie.before_start(self._ledger)
        lines: list[dict[str, Any]] = []
        options = NodeOptions(
            ledger=self._ledger,
            genesis=self.network.genesis,
            join=lie.others,
            owner=make_owner(self.network.files, self.network.service),
            expected_service=self.network.service.encode(),
            peers=("127.0.0.1", self._port),
        )
        clock = options.clock_ms
        options.clock_ms = lambda: lie.clock_ms(clock())
        node = LyingNode(options, lines.append, lie)
        outcome, reason, wrong = "waits", "", list[str]()
        joining: asyncio.Task[str] | None = None
        starting = asyncio.create_task(node.start())
        later = asyncio.create_task(lie.later()) if hasattr(lie, "later") else None
        try:
            await asyncio.wait({starting}, timeout=_PATIENCE_S)

            async def over() -> bool:
                return starting.done() or any(_names(line) for line in lines)

            # A machine that is slow starts slowly; what is owed for so long is said all the same.
            await _until(over, _SLOW_START_S)
            if starting.done() and starting.exception() is None:
                liar = starting.result().node_id
                if lie.wants_to_lead:

                    async def taken() -> bool:
                        return node.ended.done() or any(line.get("event") == "snapshot.taken" for line in lines)

                    await _until(taken, _TAKES_S)
                for _ in range(_UNSEATED_MAX if lie.wants_to_lead else int(self._lead and rng.random() < 0.5)):
                    await self._unseat(liar)
                    if await self._leads(liar):
                        joining = asyncio.create_task(self._join(rng))
                        await asyncio.wait({joining, node.ended}, timeout=_PATIENCE_S)
                        if not lie.wants_to_lead or lie.done or not joining.done() or joining.result():
                            break
                        joining = None  # it came to another leader: once more
                wrong += await self._read(node, rng)
                await asyncio.wait({node.ended}, timeout=_LIFE_S)
                outcome = "votes"
            if node.ended.done():
                outcome, reason = "ended", node.ended.result()
            elif not starting.done():
                # What it lacks, or whom it met in the place of whom it had asked for.
                named = [line for line in lines if _names(line)]
                reason = " ".join(str(value) for value in named[-1].values()) if named else ""
        finally:
            if "peers" in node.relays:
                self._port = node.relays["peers"].port
            for task in (starting, later):
                if task is not None:
                    task.cancel()
                    with contextlib.suppress(asyncio.CancelledError, HostError, CocoError):
                        await task
            with contextlib.suppress(OSError):
                os.kill(node.enclave_pid, signal.SIGCONT)
            await node.stop()
        if joining is not None and (failed := await joining):
            wrong.append(failed)
        wrong += [f"an honest node ended: {one.ended.result()}" for one in self.network.nodes if one.ended.done()]
        led = any(
            line.get("event") == "consensus.changed" and line.get("primary") == line.get("node") for line in lines
        )
        killed = any("killed" in one for one in lie.done)
        said = any(line.get("event") == "enclave.exit" and line.get("code") for line in lines)
        silent = (outcome == "ended" and not said and not killed) or (outcome == "waits" and not reason)
        carried = bytes(node.seen) + json.dumps(lines).encode() + self._ledger.read_bytes()
        return Life(seed, type(lie).__name__, lie.done, outcome, reason, led, leaks(carried), silent, wrong)

    async def _leads(self, node_id: str) -> bool:
        with contextlib.suppress(CocoError):
            rows = (await self.network.ask(self.network.nodes[0], "/node/network"))["nodes"]
            return bool(rows.get(node_id, {}).get("primary"))
        return False

    async def _join(self, rng: random.Random) -> str:
        """Have an honest newcomer join, at an address of its own, and go; why it could not, if it could not.

        It asks whoever leads for a snapshot and for entries: the liar's enclave.
        """
        if rng.random() < 0.7:
            shutil.rmtree(self._newcomer.parent, ignore_errors=True)
        alive = self.network.nodes
        options = NodeOptions(
            ledger=self._newcomer,
            genesis=self.network.genesis,
            join=[f"127.0.0.1:{node.relays['peers'].port}" for node in alive],
            owner=make_owner(self.network.files, self.network.service),
            expected_service=self.network.service.encode(),
            peers=("127.0.0.1", self._newcomer_port),
        )
        node = Node(options, self.log.append)
        try:
            async with asyncio.timeout(_JOINS_S):
                await node.start()
            return ""
        except (CocoError, TimeoutError) as error:
            return f"an honest newcomer could not join: {error!r}"
        finally:
            if "peers" in node.relays:
                self._newcomer_port = node.relays["peers"].port
            await node.stop()

    async def _unseat(self, liar: str) -> None:
        """Once the liar votes, have whoever leads be slow for a moment, so that the others elect: perhaps the liar."""

        async def votes() -> bool:
            rows = (await self.network.ask(self.network.nodes[0], "/node/network"))["nodes"]
            return bool(rows.get(liar, {}).get("votes"))

        try:
            if not await _until(votes, 3):
                return
            rows = (await self.network.ask(self.network.nodes[0], "/node/network"))["nodes"]
            infos = [await self.network.ask(node, "/node/info") for node in self.network.nodes]
        except CocoError:
            return
        for node, info in zip(self.network.nodes, infos, strict=True):
            if rows.get(info["node_id"], {}).get("primary"):
                os.kill(node.enclave_pid, signal.SIGSTOP)
                await asyncio.sleep(_SLOW_S)
                os.kill(node.enclave_pid, signal.SIGCONT)

    async def _read(self, node: Node, rng: random.Random) -> list[str]:
        """Have the liar's enclave read its disk: each answer is right, or there is none; what was wrong."""
        wrong = list[str]()
        client = self.network.client(node, "application")
        try:
            # The blocks of old payments: their places are in the index, that the host keeps.
            for name in rng.sample(self.payments.acknowledged, min(6, len(self.payments.acknowledged))):
                body = {"jsonrpc": "2.0", "id": 1, "method": "eth_getTransactionReceipt", "params": [name]}
                asking = asyncio.create_task(client.request("POST", "/", json.dumps(body).encode()))
                waiting: set[asyncio.Future[Any]] = {asking, node.ended}
                await asyncio.wait(waiting, timeout=2, return_when=asyncio.FIRST_COMPLETED)
                if not asking.done():
                    asking.cancel()
                    break
                found = json.loads(asking.result().body).get("result")
                if found and found["transactionHash"] != name:
                    wrong.append(f"the liar's enclave gave another receipt than {name}")
        except CocoError:
            pass  # it ended, or its host keeps it from answering
        finally:
            await client.close()
        await self._read_entries(node, rng)
        return wrong

    async def _read_entries(self, node: Node, rng: random.Random) -> None:
        context = service_context(self.network.service)
        client = HttpsClient("localhost", node.relays["administration"].port, context)
        service = x509.load_pem_x509_certificate(self.network.service.encode())
        try:
            position = TransactionId.parse((await client.request("GET", "/node/commit")).json()["transaction_id"])
            for _ in range(4):
                asked = TransactionId(position.view, rng.randrange(1, position.seqno))
                asking = asyncio.create_task(client.request("GET", f"/node/receipt?id={asked}"))
                waiting: set[asyncio.Future[Any]] = {asking, node.ended}
                await asyncio.wait(waiting, timeout=2, return_when=asyncio.FIRST_COMPLETED)
                if not asking.done():
                    asking.cancel()
                    break
                reply = asking.result()
                if reply.status == 200:
                    assert receipts.verify(reply.json(), service) == asked, "the liar's enclave gave a wrong receipt"
        except CocoError:
            pass  # it ended, or its host keeps it from answering
        finally:
            await client.close()

    async def end(self) -> dict[str, Any]:
        """Stop, and judge the whole."""
        self.payments.stopping = True
        await self._paying
        lost = await self.payments.lost()
        infos = [await self.network.ask(node, "/node/info") for node in self.network.nodes]
        await self.network.stop()
        first, *others = [entries_of(self.network.files.ledger(number)) for number in range(len(infos))]
        forked = [seqno for one in others for seqno in first.keys() & one.keys() if first[seqno] != one[seqno]]
        # What was never committed may differ at the end; both say how far that is not so.
        committed = min(int(info["committed"].split(".")[1]) for info in infos)
        everything = b"".join(path.read_bytes() for path in self.network.files.directory.rglob("*.db"))
        return {
            "acknowledged": len(self.payments.acknowledged),
            "lost": lost,
            "forked": [seqno for seqno in forked if seqno <= committed],
            "leaked": leaks(everything),
        }


def entries_of(ledger: Path) -> dict[int, bytes]:
    with contextlib.closing(sqlite3.connect(ledger)) as disk:
        return {seqno: bytes(entry) for seqno, entry in disk.execute("SELECT seqno, entry FROM entries")}


def snapshot_of(ledger: Path) -> list[bytes]:
    """The parts that a host keeps."""
    with contextlib.closing(sqlite3.connect(ledger)) as disk:
        return [bytes(part) for (part,) in disk.execute("SELECT part FROM snapshots LIMIT 100")]


def leaks(data: bytes) -> bool:
    """Whether the canary is there, as it is or in hex."""
    return CANARY in data or CANARY.hex().encode() in data


async def campaign(seeds: Sequence[int], tell: Callable[[str], None] = print, *, lead: bool = False) -> list[str]:
    """Run seeds; what did not hold. With ``lead`` the liar's enclave is made primary now and then, of short snapshots."""
    wrong: list[str] = []
    lives = 0
    for at in range(0, len(seeds), LIVES_MAX):
        begin = seeds[at]
        with tempfile.TemporaryDirectory() as folder:
            one = Campaign(Path(folder), lead=lead)
            await one.begin()
            for seed in seeds[at : at + LIVES_MAX]:
                began = asyncio.get_running_loop().time()
                life = await one.live(seed)
                took = asyncio.get_running_loop().time() - began
                lives += 1
                tell(
                    f"{life.seed:5} {took:5.1f} s {life.lie:16} {'; '.join(life.done)[:60]:60} "
                    f"{'led, ' if life.led else ''}{life.outcome}: {life.reason[:70]}"
                )
                if life.leaked:
                    wrong.append(f"seed {life.seed}: the liar saw the canary")
                wrong += [f"seed {seed}: {said}" for said in life.wrong]
                if life.silent:
                    wrong.append(f"seed {life.seed}: {life.outcome} without a reason")
                for said in life.wrong:
                    tell(f"      {said}")
            found = await one.end()
            tell(
                f"      {found['acknowledged']} payments acknowledged, {len(found['lost'])} lost, forked at {found['forked']}"
            )
            if not found["acknowledged"]:
                wrong.append(f"seeds {begin}-: no payment was acknowledged")
            wrong += [f"seeds {begin}-: {name} was acknowledged and is lost" for name in found["lost"]]
            wrong += [f"seeds {begin}-: entry {seqno} differs" for seqno in found["forked"]]
            if found["leaked"]:
                wrong.append(f"seeds {begin}-: the canary is on a disk")
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", default="0-49", help="A-B, both included")
    parser.add_argument("--lead", action="store_true", help="have the liar lead now and then, and take snapshots often")
    chosen = parser.parse_args()
    first, _, last = chosen.seeds.partition("-")
    wrong = asyncio.run(campaign(range(int(first), int(last or first) + 1), lead=chosen.lead))
    for line in wrong:
        print(line)
    print(f"{len(wrong)} promises broken")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
