"""``eth_getLogs`` over many blocks: what is looked through where."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from coco import limits
from coco.enclave.adapters.contract import AdapterError, Caller, CallerKind, Request, visible
from coco.enclave.adapters.ethereum import visibility
from coco.enclave.adapters.ethereum.rpc import METHODS

OWNER = Caller(CallerKind.PARTICIPANT, actor="aa" * 32, identities={"ethereum": frozenset({b"o" * 20})})


class Block:
    """Block ``number`` has two transactions; the second is the owner's, with ``number`` logs."""

    looked: ClassVar[list[tuple[int, Any]]] = []

    def __init__(self, number: int, logs: int) -> None:
        self.number, self.logs = number, logs

    def __len__(self) -> int:
        return 2

    def of_accounts(self, accounts: Any) -> list[int]:
        return [1]

    def match_logs(self, addresses: Any, topics: Any, transactions: Any) -> list[tuple[int, int]]:
        self.looked.append((threading.get_ident(), transactions))
        return [(1, position) for position in range(self.logs)]

    def log(self, index: int, position: int) -> Any:
        return [self.number, index, position]


class Chain:
    def __init__(self, blocks: list[Block]) -> None:
        self.blocks, self.committed_number = blocks, len(blocks) - 1
        self.slices: list[int] = []
        self.services = SimpleNamespace(run_list=self.run_list)

    def redact(self, items: Any, caller: Caller, view: Any) -> list[Any]:
        return list(visibility.visible(items, caller))

    async def block_there(self, number: int, view: Any) -> Block:
        return self.blocks[number]

    async def run_list(self, function: Any, *arguments: Any) -> Any:
        self.slices.append(len(arguments[1]))
        return await asyncio.to_thread(function, *arguments)


def ask(chain: Any, first: int, last: int) -> Any:
    request = Request("eth_getLogs", [{"fromBlock": hex(first), "toBlock": hex(last)}])
    Block.looked = []
    view: Any = None

    async def answer() -> Any:
        found = await METHODS["eth_getLogs"](chain, request, OWNER, view)
        return await visible.told(found, chain.redact, OWNER, view, public=False, name=request.name)

    return asyncio.run(answer())


def test_many_blocks_are_looked_through_on_other_threads_a_slice_at_a_time():
    chain = Chain([Block(number, number % 100 == 7) for number in range(300)])
    logs = ask(chain, 3, 260)
    assert logs == [[7, 1, 0], [107, 1, 0], [207, 1, 0]], "in order, and none twice"
    assert [transactions for _, transactions in Block.looked] == [[1]] * 258, "each block once, and nothing hidden"
    here = threading.get_ident()
    # The last slice has two blocks, which cost less here than they would elsewhere.
    assert chain.slices == [64, 64, 64, 64] and [thread == here for thread, _ in Block.looked].count(True) == 2


def test_a_few_blocks_are_looked_through_where_they_are_asked_for():
    chain = Chain([Block(number, 1) for number in range(3)])
    assert ask(chain, 1, 2) == [[1, 1, 0], [2, 1, 0]] and chain.slices == []


def test_no_more_is_looked_through_once_it_is_too_much():
    chain = Chain([Block(number, limits.LOGS_MAX // 4) for number in range(200)])
    with pytest.raises(AdapterError) as refused:
        ask(chain, 0, 199)
    assert refused.value.code == "ethereum.too_many_logs"
    assert len(Block.looked) == 5
