"""Attacks of a participant: somebody with a certificate, and with nothing else."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import pytest
from attacks import attack
from eth_account import Account

from coco import limits
from coco._native import Background, LedgerSecret
from coco.enclave.adapters.contract import (
    AdapterError,
    AdapterServices,
    BlockContext,
    Caller,
    CallerKind,
    Envelope,
    Outcome,
    Request,
    Stream,
    Verdict,
    visible,
)
from coco.enclave.adapters.ethereum.adapter import EthereumAdapter
from coco.enclave.store import Journal, Store
from coco.ledger import tables
from network import TestNetwork, at_once, run, running

# --- E1: readers of old blocks, and what a node must keep ---

SENDER = Account.from_key("0x" + "11" * 32)
SETTINGS = {"chain_id": 1, "fork": "osaka", "fees": {"policy": "free"}, "alloc": {SENDER.address: {"balance": "1000"}}}
READER = Caller(CallerKind.PARTICIPANT, actor="reader", identities={})


class Chained:
    """An Ethereum adapter on a store and a journal of one node, as the sequencer drives them."""

    settings: ClassVar[dict[str, Any]] = SETTINGS

    def __init__(self) -> None:
        self.entries: list[bytes] = []
        self.journal = Journal(append=lambda position, entry, signs: self.entries.append(entry), read=self.read)
        self.store = Store(self.journal)
        self.journal.begin(view=2, secret=LedgerSecret.generate())
        self.adapter = EthereumAdapter(self.settings)
        self.background, self.nonce = Background(), 0
        #: What each block claims, from block 1 on.
        self.claims: list[bytes] = []
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
            AdapterServices(
                pooled=lambda identity: None,
                pending_position=nothing,
                newest=self.store.view,
                prove_item=nothing,
                call_external=nothing,
                run=run,
                run_background=admitted,
                run_query=run,
                run_list=run,
            )
        )
        transaction = self.store.begin()
        self.adapter.genesis({}, transaction, BlockContext(1000, bytes(32), bytes(32), 1))
        at_once(self._applied(transaction))
        self.commit()

    async def read(self, first: int, last: int) -> list[bytes]:
        return self.entries[first - 1 : last]

    async def _applied(self, transaction: Any) -> None:
        writes = transaction.native.write_set()
        seqno = self.store.write(writes)
        await self.adapter.applied(self.journal.position(seqno), writes)

    async def block(self, to: str = "22") -> None:
        """One payment, one block; not committed yet."""
        fields = {"nonce": self.nonce, "gas": 21_000, "chainId": 1, "value": 1, "to": "0x" + to * 20}
        raw = SENDER.sign_transaction({**fields, "maxFeePerGas": 0, "maxPriorityFeePerGas": 0}).raw_transaction
        await self.execute(bytes(raw))
        self.nonce += 1

    async def execute(self, *raw: bytes) -> list[str]:
        """One block of these transactions, not committed yet; why those were refused that were."""
        outcomes = await self.execute_all(*raw)
        return [outcome.reason for outcome in outcomes if outcome.verdict is not Verdict.INCLUDED]

    async def execute_all(self, *raw: bytes, target_ms: int = 0) -> Sequence[Outcome]:
        """The same; every outcome."""
        admitted = await self.adapter.admit(list(raw), READER)
        envelopes = [one for one in admitted if isinstance(one, Envelope)]
        assert len(envelopes) == len(admitted), admitted
        transaction = self.store.begin()
        context = BlockContext(
            1000 * self.nonce, bytes(32), secrets.token_bytes(32), self.journal.last_seqno + 1, target_ms
        )
        session = await self.adapter.open(transaction, context)
        outcomes = await session.run_all(envelopes)
        if any(outcome.verdict is Verdict.INCLUDED for outcome in outcomes):
            claim = await session.close()
            await self._applied(transaction)
            self.claims.append(claim.encode())
        return outcomes

    def commit(self) -> None:
        self.store.native.commit(self.store.latest)
        self.adapter.committed(self.journal.position(self.store.latest))

    def roll_back(self) -> None:
        """What consensus has a deposed primary do."""
        self.store.roll_back(self.store.committed)
        self.nonce = self.adapter.committed_number
        self.adapter.rolled_back(self.journal.position(self.store.latest))
        self.journal.lead(3)

    async def ask(self, method: str, *params: Any, caller: Caller = READER) -> Any:
        view = self.store.view(self.store.committed)
        reply = await self.adapter.query(Request(method, list(params)), caller, view)
        redact = self.adapter.redact
        return await visible.told(reply.value, redact, caller, view, public=reply.public, name=method)


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
        reply = await chain.adapter.query(Request("eth_getFilterChanges", [name]), READER, old)
        told = await visible.told(reply.value, chain.adapter.redact, READER, old, public=False, name="")
        newest = await chain.ask("eth_getBlockByNumber", "latest", False)
        assert len(told) == 3 and told[-1] == newest["hash"]

    asyncio.run(story())


# --- A: what is another participant's, and code that asks for it ---

VICTIM, MINE = Account.from_key("0x" + "22" * 32), Account.from_key("0x" + "33" * 32)
DELEGATING = Account.from_key("0x" + "44" * 32)
ABSENT = "0x" + "ee" * 20
#: Holds 42 in slot 0 and 0 in slot 1; writes its second word of input to the slot that the first names.
SETTER = "0x" + "5e" * 20
#: Answers with the balance of the address in its input.
PROBE = "0x" + "b0" * 20
ATTACKER = Caller(
    CallerKind.PARTICIPANT, actor="attacker", identities={"ethereum": frozenset({bytes.fromhex(MINE.address[2:])})}
)
OWNER = Caller(
    CallerKind.PARTICIPANT, actor="owner", identities={"ethereum": frozenset({bytes.fromhex(VICTIM.address[2:])})}
)
AUDITOR = Caller(CallerKind.PARTICIPANT, actor="auditor", auditor=True)
ANONYMOUS = Caller()
#: Returns zeros, which are no code's beginning that is refused, and the word on the stack.
RETURN = "60205260405ff3"
#: Logs the word on the stack and ends.
LOG = "5f5260205fa000"


def signed(account: Any, nonce: int, to: str | None, data: str = "0x", **fields: Any) -> bytes:
    whole = {"nonce": nonce, "gas": 300_000, "chainId": 1, "value": 0, "data": data, "maxFeePerGas": 0, **fields}
    if to is not None:
        whole["to"] = bytes.fromhex(to[2:])
    return bytes(account.sign_transaction({**whole, "maxPriorityFeePerGas": 0}).raw_transaction)


class Hiding(Chained):
    """A chain on which a victim holds 1000, paid 7 in block 1, and delegated from another account in block 2."""

    settings: ClassVar = {
        **SETTINGS,
        "alloc": {
            VICTIM.address: {"balance": "1000", "nonce": 5},
            MINE.address: {"balance": "1000000"},
            DELEGATING.address: {"balance": "77"},
            "0x" + "00" * 20: {"balance": "9000"},
            SETTER: {"balance": "3", "nonce": 1, "code": "0x6020355f355500", "storage": {"0x0": "0x2a"}},
            PROBE: {"balance": "11", "code": "0x5f35315f5260205ff3"},
        },
    }

    @classmethod
    async def made(cls) -> Hiding:
        chain = cls()
        await chain.included(signed(VICTIM, 5, "0x" + "99" * 20, value=7))
        authorization = DELEGATING.sign_authorization({"chainId": 1, "address": SETTER, "nonce": 1})
        await chain.included(signed(DELEGATING, 0, DELEGATING.address, authorizationList=[authorization]))
        return chain

    async def included(self, *raw: bytes) -> None:
        assert await self.execute(*raw) == []
        self.commit()

    async def run(self, code: str, caller: Caller = ATTACKER, block: str = "latest", **fields: str) -> str:
        """What code returns that is no contract's."""
        return str(await self.ask("eth_call", {"data": "0x" + code, **fields}, block, caller=caller))


#: Each puts what an instruction tells of an address on the stack.
TELLING = {
    "balance": "73{}31",
    "extcodesize": "73{}3b",
    "extcodehash": "73{}3f",
    "extcodecopy": "60205f5f73{}3c5f51",
}


def told(instruction: str, address: str, end: str = RETURN) -> str:
    return TELLING[instruction].format(address[2:].lower()) + end


def in_process(story: Callable[[Hiding], Awaitable[None]]) -> None:
    async def whole() -> None:
        await story(await Hiding.made())

    asyncio.run(whole())


@attack(
    "A",
    was="`eth_call` of `73<address>31…` at blocks N and N-1 gives any account's balance, so amount and parties of a payment",
    now="an account of another answers as one that does not exist; its owner and an auditor see it",
)
def test_code_that_is_no_contracts_reads_no_balance():
    async def story(chain: Hiding) -> None:
        for block in ("0x0", "0x1", "latest"):
            assert await chain.run(told("balance", VICTIM.address), block=block) == "0x" + "00" * 64
        for caller, fields in ((OWNER, {"from": VICTIM.address}), (AUDITOR, {})):
            assert int(await chain.run(told("balance", VICTIM.address), caller, "0x0", **fields), 16) == 1000
            assert int(await chain.run(told("balance", VICTIM.address), caller, "0x1", **fields), 16) == 993
        own = await chain.run(told("balance", MINE.address), **{"from": MINE.address})
        assert int(own, 16) == 1_000_000

    in_process(story)


@attack(
    "A",
    was="BALANCE, EXTCODESIZE, EXTCODEHASH and EXTCODECOPY tell whether an account exists, what it has and delegates to",
    now="each answers the same bytes for another's account, with a delegation or without, as for none; contracts are seen",
)
@pytest.mark.parametrize("instruction", sorted(TELLING))
def test_no_instruction_tells_an_account_from_none(instruction: str):
    async def story(chain: Hiding) -> None:
        nothing = await chain.run(told(instruction, ABSENT))
        for hidden in (VICTIM.address, DELEGATING.address, "0x" + "00" * 20):
            assert await chain.run(told(instruction, hidden)) == nothing, hidden
            assert await chain.run(told(instruction, hidden), **{"from": MINE.address}) == nothing, hidden
        assert await chain.run(told(instruction, SETTER)) != nothing, "contracts are every participant's"

    in_process(story)


@attack(
    "A",
    was="any contract that reads a balance for whoever calls it reads everybody's, called by another contract too",
    now="in every frame only its own account, the origin's, and contracts are seen",
)
@pytest.mark.parametrize("opcode", ["fa", "f4"], ids=["staticcall", "delegatecall"])
def test_a_contract_in_between_reads_no_more(opcode: str):
    #: Hands an address to the probe and returns what that says.
    between = "73{}5f5260205f60205f73" + PROBE[2:] + "5a" + opcode + "505f51" + RETURN

    async def story(chain: Hiding) -> None:
        async def seen(address: str, **fields: Any) -> tuple[int, int]:
            word = "0x" + bytes(12).hex() + address[2:].lower()
            direct = await chain.ask("eth_call", {"to": PROBE, "data": word, **fields}, "latest", caller=ATTACKER)
            nested = await chain.run(between.format(address[2:].lower()), **fields)
            return int(direct, 16), int(nested[-64:], 16)

        for fields in ({}, {"from": MINE.address}):
            assert await seen(VICTIM.address, **fields) == await seen(DELEGATING.address, **fields) == (0, 0)
        assert await seen(MINE.address, **{"from": MINE.address}) == (1_000_000, 1_000_000)
        assert await seen(MINE.address) == (0, 0), "without a proven origin nobody's account is the origin's"
        assert await seen(PROBE) == (11, 11)

    in_process(story)


@attack(
    "A",
    was="a contract that the attacker deploys logs the balance of any account, or its code, or that it exists",
    now="in a transaction too only the frame's own account and the origin's are seen",
)
@pytest.mark.parametrize("instruction", sorted(TELLING))
def test_a_transaction_logs_nothing_of_another(instruction: str):
    async def story(chain: Hiding) -> None:
        targets = (ABSENT, VICTIM.address, DELEGATING.address, MINE.address)
        raw = [signed(MINE, n, None, "0x" + told(instruction, one, LOG)) for n, one in enumerate(targets)]
        await chain.included(*raw)
        receipts = await chain.ask("eth_getBlockReceipts", "latest", caller=ATTACKER)
        nothing, hidden, delegating, own = [receipt["logs"][0]["data"] for receipt in receipts]
        assert hidden == nothing and delegating == nothing
        if instruction == "balance":
            assert int(own, 16) == 1_000_000

    in_process(story)


#: Sends one wei to an address, and ends by SELFDESTRUCT to one with what is left.
SEND = "5f5f5f5f600173{}5af100"
END = "73{}ff"


@attack(
    "A",
    was="a CALL with value, or a SELFDESTRUCT, to an account that exists costs 25,000 less than to none",
    now="both cost the same to every account that is hidden, for whoever asks, and in transactions",
)
@pytest.mark.parametrize("code", [SEND, END], ids=["call", "selfdestruct"])
def test_the_price_of_value_tells_no_account_from_none(code: str):
    async def price(chain: Hiding, to: str, caller: Caller) -> int:
        call = {"from": MINE.address, "value": "0x2", "data": "0x" + code.format(to[2:].lower())}
        return int(await chain.ask("eth_estimateGas", call, "latest", caller=caller), 16)

    async def story(chain: Hiding) -> None:
        for caller in (ATTACKER, replace(AUDITOR, any_account=True)):
            absent = await price(chain, ABSENT, caller)
            assert await price(chain, VICTIM.address, caller) == absent
            assert await price(chain, MINE.address, caller) < absent, "what the origin knows anyway keeps its price"
        raw = [
            signed(MINE, n, None, "0x" + code.format(to[2:].lower()), value=2)
            for n, to in enumerate((VICTIM.address, ABSENT))
        ]
        await chain.included(*raw)
        first, second = await chain.ask("eth_getBlockReceipts", "latest", caller=ATTACKER)
        assert first["status"] == second["status"] == "0x1" and first["gasUsed"] == second["gasUsed"]

    in_process(story)


@attack(
    "A",
    was="the gas of a setter confirms a guess of what a slot holds: 24,390 where it is right, 27,190 where not",
    now="a store costs what a change costs, whatever the slot holds: the guess, something else, nothing",
)
def test_the_price_of_a_store_confirms_no_guess():
    async def price(chain: Hiding, slot: int, value: int) -> int:
        word = lambda number: number.to_bytes(32, "big").hex()  # noqa: E731
        call = {"from": MINE.address, "to": SETTER, "data": "0x" + word(slot) + word(value)}
        return int(await chain.ask("eth_estimateGas", call, "latest", caller=ATTACKER), 16)

    async def story(chain: Hiding) -> None:
        # Input bytes that are not zero have a price of their own: each pair differs in what the slot holds alone.
        assert await price(chain, 0, 42) == await price(chain, 0, 43) == await price(chain, 2, 42) - 12

    in_process(story)


@attack(
    "A",
    was="whoever calls as address zero sends its value, or reads in the refusal what fees it has collected",
    now="address zero is nobody's own: it pays nothing, and shows nothing",
)
def test_address_zero_is_nobodys_own():
    async def refusal(chain: Hiding, value: str) -> str:
        with pytest.raises(AdapterError) as refused:
            await chain.ask("eth_call", {"value": value, "to": ABSENT}, "latest", caller=ATTACKER)
        return f"{refused.value.code} {refused.value}"

    async def story(chain: Hiding) -> None:
        assert int(await chain.run(told("balance", "0x" + "00" * 20)), 16) == 0
        assert await refusal(chain, "0x1") == await refusal(chain, hex(9001))

    in_process(story)


@attack(
    "A",
    was="balances and nonces that are hidden are refused as not visible, and code tells who delegates to what",
    now="they look like what does not exist; a contract's are shown to participants, as to code; the owner sees its own",
)
def test_getters_show_what_is_hidden_as_what_does_not_exist():
    async def story(chain: Hiding) -> None:
        for method in ("eth_getBalance", "eth_getTransactionCount"):
            for caller in (ATTACKER, ANONYMOUS):
                for address in (VICTIM.address, DELEGATING.address, ABSENT):
                    for block in ("latest", "pending", "0x0"):
                        assert await chain.ask(method, address, block, caller=caller) == "0x0"
            assert int(await chain.ask(method, SETTER, "latest", caller=ANONYMOUS), 16) == 0
            assert int(await chain.ask(method, SETTER, "latest", caller=ATTACKER), 16) in (1, 3)
            assert int(await chain.ask(method, VICTIM.address, "latest", caller=OWNER), 16) in (6, 993)
        owner = replace(OWNER, identities={"ethereum": frozenset({bytes.fromhex(DELEGATING.address[2:])})})
        for caller, shown in ((ATTACKER, "0x"), (owner, "0xef0100" + "5e" * 20)):
            assert await chain.ask("eth_getCode", DELEGATING.address, "latest", caller=caller) == shown

    in_process(story)


_HEAD_FIELDS = ("gasUsed", "size", "logsBloom", "stateRoot", "receiptsRoot", "transactionsRoot", "requestsHash")


@attack(
    "A",
    was="every block tells how many transactions it holds, their hashes, size and gas, to strangers too",
    now="a block of others looks empty: no hashes, no gas, no size; so do counts, receipts, logs and the fee history",
)
@pytest.mark.parametrize("caller", [ATTACKER, ANONYMOUS], ids=["participant", "stranger"])
def test_a_block_of_others_looks_empty(caller: Caller):
    async def story(chain: Hiding) -> None:
        code = told("balance", VICTIM.address, LOG)
        await chain.included(*(signed(VICTIM, 6 + n, None, "0x" + code) for n in range(3)))
        number = hex(chain.adapter.committed_number)
        block = await chain.ask("eth_getBlockByNumber", number, False, caller=caller)
        empty = await chain.ask("eth_getBlockByNumber", "0x0", False, caller=caller)
        assert [block[name] for name in _HEAD_FIELDS] == [empty[name] for name in _HEAD_FIELDS]
        for full in (False, True):
            by_hash = await chain.ask("eth_getBlockByHash", block["hash"], full, caller=caller)
            assert by_hash["transactions"] == []
        assert await chain.ask("eth_getBlockTransactionCountByNumber", number, caller=caller) == "0x0"
        assert await chain.ask("eth_getBlockTransactionCountByHash", block["hash"], caller=caller) == "0x0"
        assert await chain.ask("eth_getBlockReceipts", number, caller=caller) == []
        assert await chain.ask("eth_getLogs", {"fromBlock": "0x0", "toBlock": number}, caller=caller) == []
        for index in ("0x0", "0x2", "0x3"):
            found = await chain.ask("eth_getTransactionByBlockNumberAndIndex", number, index, caller=caller)
            assert found is None
        fees = await chain.ask("eth_feeHistory", "0x4", number, [50], caller=caller)
        assert set(fees["gasUsedRatio"]) == {0.0} and fees["reward"] == [["0x0"]] * 4
        seen = await chain.ask("eth_getBlockByNumber", number, False, caller=OWNER)
        assert len(seen["transactions"]) == 3 and seen["gasUsed"] == "0x0"
        auditors = await chain.ask("eth_getBlockByNumber", number, False, caller=AUDITOR)
        assert len(auditors["transactions"]) == 3 and int(auditors["gasUsed"], 16) > 0

    in_process(story)


class Told(Stream):
    """The attacker's stream."""

    caller = ATTACKER

    def __init__(self, chain: Hiding) -> None:
        self._chain = chain
        self.events: asyncio.Queue[Any] = asyncio.Queue()

    async def accept(self) -> None:
        pass

    async def receive(self) -> None:
        return None

    async def send(self, value: Any, *, public: bool = False) -> None:
        redact, view = self._chain.adapter.redact, self._chain.store.view()
        self.events.put_nowait(await visible.told(value, redact, ATTACKER, view, public=public, name=""))


@attack(
    "A",
    was="every new head tells a subscriber the gas and size of others' blocks",
    now="heads of others' blocks look empty; their logs are not told",
)
def test_a_subscriber_is_told_nothing_of_others():
    async def story(chain: Hiding) -> None:
        told_of: dict[str, Told] = {kind: Told(chain) for kind in ("newHeads", "logs")}
        streaming = [
            asyncio.ensure_future(chain.adapter.stream(Request("eth_subscribe", [kind]), ATTACKER, stream))
            for kind, stream in told_of.items()
        ]
        following = {kind: asyncio.ensure_future(stream.events.get()) for kind, stream in told_of.items()}
        await asyncio.sleep(0)
        code = "0x" + told("balance", VICTIM.address, LOG)
        await chain.included(signed(VICTIM, 6, None, code))
        head = await following["newHeads"]
        assert [head[name] for name in _HEAD_FIELDS[:2]] == ["0x0", "0x0"] and int(head["stateRoot"], 16) == 0
        assert not following["logs"].done()
        await chain.included(signed(MINE, 0, None, code))
        assert (await following["logs"])["transactionIndex"] == "0x0"
        for task in streaming:
            task.cancel()

    in_process(story)


@attack(
    "A",
    was="`eth_getLogs` on a block with 100 hidden logs takes 494 µs against 362: every hidden log is matched and looked at",
    now="hidden logs are never looked at: whose transactions they are is known first, and who owns nothing reads no block",
)
def test_hidden_logs_are_never_looked_at(monkeypatch: pytest.MonkeyPatch):
    async def story(chain: Hiding) -> None:
        code = "0x" + told("balance", VICTIM.address, LOG)
        await chain.included(signed(VICTIM, 6, None, code), signed(MINE, 0, None, code), signed(VICTIM, 7, None, code))
        looked: list[list[int]] = []

        class Watched:
            def __init__(self, block: Any) -> None:
                self.block = block

            def __getattr__(self, name: str) -> Any:
                return getattr(self.block, name)

            def match_logs(self, addresses: Any, topics: Any, transactions: Any) -> Any:
                looked.append(list(transactions))
                return self.block.match_logs(addresses, topics, transactions)

        found = chain.adapter.block_there

        async def watched(number: int, view: Any) -> Any:
            return Watched(await found(number, view))

        monkeypatch.setattr(chain.adapter, "block_there", watched)
        logs = await chain.ask("eth_getLogs", {"fromBlock": "0x0", "toBlock": "latest"}, caller=ATTACKER)
        assert [log["transactionIndex"] for log in logs] == ["0x1"] and looked == [[1]]

        async def unread(number: int, view: Any) -> Any:
            raise AssertionError("a block was read for somebody who owns nothing")

        monkeypatch.setattr(chain.adapter, "block_there", unread)
        for caller in (ANONYMOUS, READER):
            assert await chain.ask("eth_getLogs", {"fromBlock": "0x0", "toBlock": "latest"}, caller=caller) == []

    in_process(story)


@attack(
    "A",
    was="a hash that is known is answered later where the transaction is hidden than where there is none",
    now="both answers are null and leave when the same timer says; whoever may see it waits for nothing",
)
@pytest.mark.parametrize("method", ["eth_getTransactionByHash", "eth_getTransactionReceipt"])
def test_hidden_and_unknown_hashes_are_answered_at_one_time(method: str, monkeypatch: pytest.MonkeyPatch):
    async def story(chain: Hiding) -> None:
        hidden = (await chain.ask("eth_getBlockByNumber", "0x1", False, caller=AUDITOR))["transactions"][0]
        ended: list[float] = []

        async def timer(seconds: float) -> None:
            ended.append(seconds)

        monkeypatch.setattr("coco.enclave.adapters.ethereum.visibility.asyncio.sleep", timer)
        for caller in (ATTACKER, ANONYMOUS):
            for identity in (hidden, "0x" + "ab" * 32):
                ended.clear()
                assert await chain.ask(method, identity, caller=caller) is None
                assert ended == [limits.HIDDEN_ANSWER_S]
        ended.clear()
        assert (await chain.ask(method, hidden, caller=OWNER))["from"] == VICTIM.address.lower()
        assert ended == []

    in_process(story)


@attack(
    "A",
    was="why a transaction was dropped names its sender's nonce and balance",
    now="the reason has no numbers",
)
def test_the_reason_why_one_was_dropped_has_no_numbers():
    async def story(chain: Hiding) -> None:
        old, poor = signed(VICTIM, 5, ABSENT), signed(VICTIM, 6, ABSENT, value=994)
        assert await chain.execute(old, poor) == ["nonce too low", "insufficient funds for gas * price + value"]

    in_process(story)


#: Of another protocol.
SIGNER = "02" + "5a" * 32
#: One of the sandbox's funded accounts.
RICH = Account.from_key("0xac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80")


def of_rich(nonce: int, **fields: Any) -> tuple[str, str]:
    """A signed transaction of the funded account, and its hash."""
    whole = {"chainId": 2017, "gas": 100_000, "to": "0x" + "99" * 20, "value": 1, "maxFeePerGas": 0, **fields}
    made = RICH.sign_transaction({**whole, "nonce": nonce, "maxPriorityFeePerGas": 0})
    return "0x" + made.raw_transaction.hex(), "0x" + made.hash.hex()


@pytest.fixture
def network(tmp_path: Path) -> TestNetwork:
    made = TestNetwork(tmp_path / "network")
    made.add_participant("attacker", accounts=[MINE.address])
    made.add_participant("victim", accounts=[RICH.address])
    return made


@attack(
    "A",
    was="an old transaction of a counterparty, sent again, tells its nonce (`nonce too low: next nonce 7`), whether one "
    "waits and what it pays; whoever knows a hash learns from any node, without a certificate, what became of it",
    now="whoever may not see the sender hears the same for every state of the account: the hash; nobody waits for the fate "
    "of another's, or is told it",
)
def test_an_old_transaction_sent_again_tells_nothing_of_its_sender(network: TestNetwork):
    async def story() -> None:
        async with running(network):
            attacker, victim = network.client("attacker"), network.client("victim")
            done, waiting = of_rich(0), of_rich(5)
            answer = await network.rpc(victim, "eth_sendRawTransactionSync", done[0])
            assert answer["result"]["status"] == "0x1"
            assert (await network.rpc(victim, "eth_sendRawTransaction", waiting[0]))["result"] == waiting[1]
            states = {
                "done": done,
                "passed": of_rich(0, value=2),
                "waiting": waiting,
                "underpriced": of_rich(5, value=2),
                "poor": of_rich(6, value=10**30),
                "after a gap": of_rich(7),
            }
            heard = {}
            for name, (raw, identity) in states.items():
                told = await network.rpc(attacker, "eth_sendRawTransaction", raw)
                assert told.get("result") == identity, (name, told)
                waits = await network.rpc(attacker, "eth_sendRawTransactionSync", raw)
                heard[name] = waits["error"]
                fate = await attacker.request("GET", f"/coco/transaction?hash={identity}")
                assert fate.json() == {"hash": identity, "status": "Unknown"}, name
                for method in ("eth_getTransactionByHash", "eth_getTransactionReceipt"):
                    assert (await network.rpc(attacker, method, identity))["result"] is None
            assert all(error == heard["done"] for error in heard.values()), heard
            assert heard["done"]["data"]["code"] == "ethereum.not_visible"
            again = await network.rpc(victim, "eth_sendRawTransaction", states["passed"][0])
            assert again["error"]["data"]["code"] == "ethereum.transaction.nonce_too_low"
            for (_, identity), status in ((done, "Committed"), (waiting, "Pending")):
                fate = (await victim.request("GET", f"/coco/transaction?hash={identity}")).json()
                assert fate["status"] == status
            nobody = network.client(listener="administration")
            info = (await nobody.request("GET", "/node/info")).json()
            assert not {"held", "pools"} & set(info), "what waits is counted for the node's own operator alone"
            elsewhere = await nobody.request("GET", f"/node/tx?hash={done[1]}")
            assert json.loads(elsewhere.body)["error"]["code"] == "request.hash_elsewhere"

    run(story())


@attack(
    "A",
    was="`/gov/service/state`, and the rehearsal of any action, tell anybody the accounts of every participant",
    now="neither tells accounts; rules see them as before",
)
def test_governance_tells_no_accounts_of_participants(network: TestNetwork):
    network.add_participant("signer", identities={"sawtooth": [SIGNER]})

    async def story() -> None:
        async with running(network):
            nobody = network.client(listener="administration")
            version = "api-version=2024-07-01"
            state = (await nobody.request("GET", f"/gov/service/state?{version}")).json()
            assert len(state["users"]) == 4
            action = {"name": "set_recovery_threshold", "args": {"recovery_threshold": 1}}
            body = json.dumps({"actions": [action]}).encode()
            answer = await nobody.request("POST", f"/gov/members/proposals:rehearse?{version}", body)
            rehearsed = answer.json()
            for seen in (state, rehearsed["before"], rehearsed["after"]):
                text = json.dumps(seen).lower()
                assert MINE.address[2:].lower() not in text and RICH.address[2:].lower() not in text
                assert SIGNER not in text

    run(story())


# --- D: one caller starves the others ---

#: Multiplies a point of a curve by a large number (6,000 gas, and much time) as long as there is gas.
ECMUL = (
    "60015f526002602052" + "7f2f" + "ff" * 31 + "604052" + "5b604060806060" + "5f60075afa50" + "6170005a1160" + "2d5700"
)
#: Logs nothing as long as there is gas.
LOGGING = "5b5f5fa0610bb85a115f5700"
#: A tenth of what a transaction may have; it takes about a tenth of a second.
HEAVY_GAS = 2_000_000


def creation(runtime: str) -> str:
    """Code that creates a contract with this code."""
    size = len(runtime) // 2
    return f"0x61{size:04x}80600a5f395ff3{runtime}"


def heavy(nonce: int, to: str, **fields: Any) -> str:
    return of_rich(nonce, to=bytes.fromhex(to[2:]), value=0, gas=HEAVY_GAS, **fields)[0]


#: Another funded account of the sandbox.
FRUGAL = Account.from_key("0x59c6995e998f97a5a0044966f0945389dc9e86dae88c7a8412f4603b6b78690d")


def payment(nonce: int) -> str:
    whole = {"chainId": 2017, "gas": 21_000, "to": "0x" + "99" * 20, "value": 1, "maxFeePerGas": 0}
    made = FRUGAL.sign_transaction({**whole, "nonce": nonce, "maxPriorityFeePerGas": 0})
    return "0x" + made.raw_transaction.hex()


@pytest.fixture
def shared(tmp_path: Path) -> TestNetwork:
    """Two participants, of whom neither hides anything from the other: here it is about shares."""
    made = TestNetwork(tmp_path / "network")
    for name in ("greedy", "quiet"):
        made.add_participant(name, insecure_any_account=True)
    return made


async def deployed(network: TestNetwork, client: Any, nonce: int, runtime: str) -> str:
    made = of_rich(nonce, to=b"", value=0, gas=1_000_000, data=creation(runtime))[0]
    receipt = (await network.rpc(client, "eth_sendRawTransactionSync", made))["result"]
    assert receipt["status"] == "0x1"
    return str(receipt["contractAddress"])


@attack(
    "D",
    was="40 full-gas `ecmul` transactions of one account are one block: everybody's writes 37 -> 0 per second for 27 s",
    now="a block has a time target; whoever took long rests while others are active: a payment waits behind what is under "
    "way, and not behind the other 38",
)
def test_a_payment_waits_behind_few_of_anothers_heavy_transactions(shared: TestNetwork):
    async def story() -> None:
        async with running(shared):
            greedy, quiet = shared.client("greedy"), shared.client("quiet")
            contract = await deployed(shared, greedy, 0, ECMUL)
            for nonce in range(1, 41):
                sent = await shared.rpc(greedy, "eth_sendRawTransaction", heavy(nonce, contract))
                assert "result" in sent, sent
            for nonce in range(5):
                before = await _executed(shared, quiet)
                paid = await shared.rpc(quiet, "eth_sendRawTransactionSync", payment(nonce))
                assert paid["result"]["status"] == "0x1", paid
                # One may be executed and not told yet, and one under way.
                assert await _executed(shared, quiet) - before <= 3, f"payment {nonce} waited behind many"
            assert await _executed(shared, quiet) < 41, "they were not through anyway"

    run(story())


async def _executed(network: TestNetwork, client: Any) -> int:
    count = await network.rpc(client, "eth_getTransactionCount", RICH.address, "latest")
    return int(count["result"], 16)


@attack(
    "D",
    was="a trivial `eth_call` waits 27 s behind 64 heavy ones of another caller",
    now="one caller has at most half of the threads for queries: it is answered while they are under way",
)
def test_a_trivial_call_is_answered_while_heavy_ones_are_under_way(shared: TestNetwork):
    async def story() -> None:
        async with running(shared):
            greedy, quiet = shared.client("greedy"), shared.client("quiet")
            contract = await deployed(shared, greedy, 0, ECMUL)
            call = {"to": contract, "gas": hex(3 * HEAVY_GAS)}
            heavy_calls = [
                asyncio.create_task(shared.rpc(shared.client("greedy"), "eth_call", call, "latest")) for _ in range(64)
            ]
            await asyncio.wait(heavy_calls, return_when=asyncio.FIRST_COMPLETED)
            for _ in range(5):
                trivial = await shared.rpc(quiet, "eth_call", {"to": "0x" + "99" * 20}, "latest")
                assert trivial["result"] == "0x"
            done = [task.result() for task in heavy_calls if task.done()]
            assert all("result" in answer for answer in done), "they are heavy, and none is refused"
            assert len(done) <= 32, "it waited for them"
            for task in heavy_calls:
                task.cancel()
            await asyncio.gather(*heavy_calls, return_exceptions=True)

    run(story())


class Counting(Chained):
    """A chain that notes what is run as a list."""

    def __init__(self) -> None:
        self.lists: list[str] = []
        super().__init__()
        listed = self.adapter.services.run_list

        async def run_list(function: Callable[..., Any], *arguments: Any) -> Any:
            self.lists.append(function.__name__)
            return await listed(function, *arguments)

        self.adapter.services.run_list = run_list


EVERYONE = Caller(CallerKind.PARTICIPANT, actor="sandbox", any_account=True)


@attack(
    "D",
    was="8 callers of `eth_getLogs` on a block of 9,000 logs hold the event loop: writes 37 -> 0.5 per second",
    now="long lists are looked through and written on threads of their own, in turn by caller, with the same bytes",
)
def test_long_lists_are_not_made_on_the_event_loop():
    async def story() -> None:
        chain = Counting()
        creating = signed(SENDER, 0, None, "0x" + LOGGING, gas=2_000_000)
        others = [signed(SENDER, nonce, "0x" + "22" * 20, value=1) for nonce in range(1, 80)]
        assert await chain.execute(creating, *others) == []
        chain.commit()
        block = await chain.adapter.block_there(1, chain.store.view())

        def decoded(raw: Any) -> Any:
            assert isinstance(raw, msgspec.Raw)
            return json.loads(bytes(raw))

        logs = decoded(await chain.ask("eth_getLogs", {"fromBlock": "0x1", "toBlock": "0x1"}, caller=EVERYONE))
        assert len(logs) > 4000
        assert logs == [block.log(0, position) for position in range(len(logs))]
        few = {"fromBlock": "0x1", "toBlock": "0x1", "topics": [["0x" + "77" * 32] * 40]}
        assert await chain.ask("eth_getLogs", few, caller=EVERYONE) == []
        whole = await chain.ask("eth_getBlockByNumber", "0x1", True, caller=EVERYONE)
        assert decoded(whole["transactions"]) == [block.transaction(index) for index in range(80)]
        receipts = decoded(await chain.ask("eth_getBlockReceipts", "0x1", caller=EVERYONE))
        assert receipts == [block.receipt(index) for index in range(80)]
        assert chain.lists == ["among", "_logs_json", "among", "transactions_json", "receipts_json"]

    asyncio.run(story())


@attack(
    "D",
    was="of one account's transactions in a batch, those behind one that does not fit the block are refused for good: "
    "whoever fills blocks has others' dropped",
    now="they wait with it for the next block",
)
def test_what_is_behind_one_that_does_not_fit_is_not_dropped():
    class Small(Chained):
        settings: ClassVar = {
            **SETTINGS,
            "gas_limit": 5_000_000,
            "alloc": {SENDER.address: {"balance": "1000"}, MINE.address: {"balance": "1000"}},
        }

    async def story() -> None:
        chain = Small()
        to = "0x" + "22" * 20
        fills = signed(SENDER, 0, None, "0x" + LOGGING, gas=4_000_000)
        behind = [signed(MINE, 0, to, gas=2_000_000), signed(MINE, 1, to, gas=21_000), signed(MINE, 2, to, gas=21_000)]
        outcomes = await chain.execute_all(fills, *behind, signed(SENDER, 1, to, gas=21_000))
        assert [one.verdict for one in outcomes] == [Verdict.INCLUDED, *[Verdict.DEFERRED] * 3, Verdict.INCLUDED]

    asyncio.run(story())


def test_D_no_more_begins_once_the_time_of_a_block_is_over():
    async def story() -> None:
        chain = Chained()
        code = "0x" + ECMUL
        batch = [signed(SENDER, nonce, None, code, gas=1_500_000) for nonce in range(4)]
        outcomes = await chain.execute_all(*batch, target_ms=1)
        assert [one.verdict for one in outcomes] == [Verdict.INCLUDED, *[Verdict.DEFERRED] * 3]
        assert outcomes[0].took_us > 1000
        outcomes = await chain.execute_all(*batch[1:])
        assert [one.verdict for one in outcomes] == [Verdict.INCLUDED] * 3

    asyncio.run(story())


@attack(
    "D",
    was="`eth_estimateGas` of a heavy message executes it some twenty times: 5.6 s",
    now="as often as one second allows, and once more; what it says still works",
)
def test_an_estimate_works_and_is_the_least_where_that_is_quickly_found():
    async def story() -> None:
        chain = Chained()
        to = "0x" + "22" * 20
        plain = await chain.ask("eth_estimateGas", {"from": SENDER.address, "to": to, "value": "0x1"}, caller=EVERYONE)
        assert plain == hex(21_000)
        # A call with value within a call: 2,300 gas are handed on and given back; storage that is emptied is refunded.
        for code in ("5f5f5f5f60016122225af15f5260205ff3", "60015f555f5f5500"):
            message = {"from": SENDER.address, "data": "0x" + code, "value": "0x1"}
            found = int(await chain.ask("eth_estimateGas", message, caller=EVERYONE), 16)
            await chain.ask("eth_call", {**message, "gas": hex(found)}, caller=EVERYONE)
            with pytest.raises(AdapterError):
                await chain.ask("eth_call", {**message, "gas": hex(found - 1)}, caller=EVERYONE)
        long = {"from": SENDER.address, "data": "0x" + ECMUL, "gas": hex(8_000_000)}
        found = int(await chain.ask("eth_estimateGas", long, caller=EVERYONE), 16)
        await chain.ask("eth_call", {**long, "gas": hex(found)}, caller=EVERYONE)

    asyncio.run(story())
