"""Attacks of a participant: somebody with a certificate, and with nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from attacks import attack
from eth_account import Account

from coco._native import Background, LedgerSecret
from coco.enclave.adapters.base import BlockContext, Caller, CallerKind, Request, Services
from coco.enclave.adapters.ethereum.adapter import EthereumAdapter
from coco.enclave.store import Journal, Store
from coco.ledger import tables

# --- E1: readers of old blocks, and what a node must keep ---

SENDER = Account.from_key("0x" + "11" * 32)
SETTINGS = {"chain_id": 1, "fork": "osaka", "fees": {"policy": "free"}, "alloc": {SENDER.address: {"balance": "1000"}}}
READER = Caller(CallerKind.PARTICIPANT, actor="reader", accounts=frozenset())


class Chained:
    """An Ethereum adapter on a store and a journal of one node, as the sequencer drives them."""

    def __init__(self) -> None:
        self.entries: list[bytes] = []
        self.journal = Journal(append=lambda position, entry, signs: self.entries.append(entry), read=self.read)
        self.store = Store(self.journal)
        self.journal.begin(view=2, secret=LedgerSecret.generate())
        self.adapter = EthereumAdapter(SETTINGS)
        self.background, self.nonce = Background(), 0
        for name in tables.STATE_TABLES:
            self.store.declare(name)
        for table in self.adapter.manifest().tables:
            self.store.declare(table.name, log=table.log)

        async def run(function: Callable[..., Any], *arguments: Any) -> Any:
            return function(*arguments)

        async def admitted(begin: Callable[..., int], *arguments: Any) -> Any:
            ticket = begin(self.background, *arguments)
            while not (done := self.background.take()):
                await asyncio.sleep(0.001)
            return next(answers for number, answers, _ in done if number == ticket)

        async def nothing(*arguments: Any) -> Any:
            return None

        self.adapter.start(
            Services(
                pooled=lambda identity: None,
                pending_position=nothing,
                newest=self.store.view,
                call_external=nothing,
                run=run,
                run_background=admitted,
                run_query=run,
            )
        )
        transaction = self.store.begin()
        self.adapter.genesis({}, transaction, BlockContext(1000, bytes(32), 1))
        self._applied(transaction)
        self.commit()

    async def read(self, first: int, last: int) -> list[bytes]:
        return self.entries[first - 1 : last]

    def _applied(self, transaction: Any) -> None:
        writes = transaction.native.write_set()
        seqno = self.store.write(writes)
        self.adapter.applied(self.journal.position(seqno), writes)

    async def block(self, to: str = "22") -> None:
        """One payment, one block; not committed yet."""
        fields = {"nonce": self.nonce, "gas": 21_000, "chainId": 1, "value": 1, "to": "0x" + to * 20}
        raw = SENDER.sign_transaction({**fields, "maxFeePerGas": 0, "maxPriorityFeePerGas": 0}).raw_transaction
        (envelope,) = await self.adapter.admit([bytes(raw)], READER)
        transaction = self.store.begin()
        context = BlockContext(1000 * self.nonce, bytes(32), self.journal.last_seqno + 1)
        await self.adapter.execute([envelope], transaction, context)
        self._applied(transaction)
        self.nonce += 1

    def commit(self) -> None:
        self.store.native.commit(self.store.latest)
        self.adapter.committed(self.journal.position(self.store.latest))

    def roll_back(self) -> None:
        """What consensus has a deposed primary do."""
        self.store.roll_back(self.store.committed)
        self.nonce = self.adapter.committed_number
        self.adapter.rolled_back(self.journal.position(self.store.latest))
        self.journal.lead(3)

    async def ask(self, method: str, *params: Any) -> Any:
        view = self.store.view(self.store.committed)
        return (await self.adapter.query(Request(method, list(params)), READER, view)).value


async def _everything_old(chain: Chained) -> None:
    await chain.ask("eth_feeHistory", "0x400", hex(chain.adapter.committed_number - 1), [])


async def _each_old_block(chain: Chained) -> None:
    for number in range(chain.adapter.committed_number):
        await chain.ask("eth_getBlockByNumber", hex(number), False)


async def _every_log(chain: Chained) -> None:
    await chain.ask("eth_getLogs", {"fromBlock": "0x0", "toBlock": hex(chain.adapter.committed_number - 1)})


def _read_and_roll_back(read: Callable[[Chained], Awaitable[None]]) -> None:
    async def story() -> None:
        chain = Chained()
        for _ in range(540):
            await chain.block()
            chain.commit()
        head = await chain.ask("eth_getBlockByNumber", "latest", False)
        await read(chain)
        await chain.block()
        await chain.block()
        chain.roll_back()
        assert await chain.ask("eth_getBlockByNumber", "latest", False) == head
        await chain.block()
        chain.commit()
        following = await chain.ask("eth_getBlockByNumber", "latest", False)
        assert following["parentHash"] == head["hash"]
        assert int(following["number"], 16) == 541

    asyncio.run(story())


@attack(
    "E1",
    was="the head leaves a cache; a primary that is cut off then meets an assertion when it rolls back, and ends",
    now="the head is held apart from the cache: it rolls back, and goes on",
)
def test_fee_history_of_old_blocks_ends_no_primary_that_rolls_back():
    _read_and_roll_back(_everything_old)


@attack(
    "E1",
    was="the head leaves a cache; a primary that is cut off then meets an assertion when it rolls back, and ends",
    now="the head is held apart from the cache: it rolls back, and goes on",
)
def test_reading_every_old_block_ends_no_primary_that_rolls_back():
    _read_and_roll_back(_each_old_block)


@attack(
    "E1",
    was="the head leaves a cache; a primary that is cut off then meets an assertion when it rolls back, and ends",
    now="the head is held apart from the cache: it rolls back, and goes on",
)
def test_logs_of_old_blocks_end_no_primary_that_rolls_back():
    _read_and_roll_back(_every_log)


@attack(
    "E1",
    was="after a batch that could not be executed the trie forgets how to undo what is not committed: the next roll-back "
    "leaves it wrong, and the node ends at the next block (`ethereum.state_root`)",
    now="a roll-back below such a trie builds it anew, and checks its root",
)
def test_a_batch_that_fails_before_a_roll_back_ends_no_node():
    async def story() -> None:
        chain = Chained()
        await chain.block()
        chain.commit()
        head = await chain.ask("eth_getBlockByNumber", "latest", False)
        await chain.block("33")
        # What the sequencer does when an adapter fails: whatever was half done is built anew from the store.
        await chain.adapter.rebuild(chain.store.view())
        await chain.block("44")
        chain.roll_back()
        await chain.block()
        chain.commit()
        following = await chain.ask("eth_getBlockByNumber", "latest", False)
        assert following["parentHash"] == head["hash"]
        made = await chain.adapter.block(2, chain.store.view())
        assert made is not None and made.state_root == _root_of(chain)

    asyncio.run(story())


def _root_of(chain: Chained) -> bytes:
    """The root of the state as another node would compute it, from the tables."""
    other = EthereumAdapter(SETTINGS)
    return bytes(other.chain.rebuild(chain.store.view().native))


@attack(
    "E1",
    was="more is committed while a query runs, and an assertion fails in it: an internal error, and its filter has "
    "lost those blocks",
    now="whatever is committed is found, whichever view the query began with",
)
def test_a_filter_is_told_what_is_committed_after_its_view_was_taken():
    async def story() -> None:
        chain = Chained()
        old = chain.store.view(chain.store.committed)
        name = await chain.ask("eth_newBlockFilter")
        for _ in range(3):
            await chain.block()
            chain.commit()
        chain.adapter._cache.clear()
        told = (await chain.adapter.query(Request("eth_getFilterChanges", [name]), READER, old)).value
        newest = await chain.ask("eth_getBlockByNumber", "latest", False)
        assert len(told) == 3 and told[-1] == newest["hash"]

    asyncio.run(story())
