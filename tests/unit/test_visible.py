"""What is told passes ``redact``, whatever an adapter forgets."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import pytest

from coco.enclave.adapters.contract import (
    AdapterFault,
    Caller,
    CallerKind,
    Envelope,
    Reply,
    Request,
    Route,
    RouteKind,
    Visible,
)
from coco.enclave.adapters.ethereum import rpc, visibility
from coco.enclave.api.dispatcher import Dispatcher
from coco.enclave.api.jsonrpc import JsonRpc

MINE = Caller(CallerKind.PARTICIPANT, actor="aa" * 32, identities={"ethereum": frozenset({b"m" * 20})})
OTHER = Caller(CallerKind.PARTICIPANT, actor="bb" * 32, identities={"ethereum": frozenset({b"o" * 20})})
NOBODY = Caller()
AUDITOR = Caller(CallerKind.PARTICIPANT, actor="cc" * 32, auditor=True)
ROWS = [{"owner": MINE.actor, "text": "mine"}, {"owner": OTHER.actor, "text": "a secret"}]


class Adapter:
    """Owners see their own rows; its replies are the test's."""

    def __init__(self, reply: Reply) -> None:
        self.reply = reply
        self.redacted: list[Any] = []

    def cost(self, request: Request) -> Any:
        return SimpleNamespace(work_us=1, answer_bytes=1)

    def parse_submission(self, request: Request) -> list[bytes]:
        return [b""]

    async def query(self, request: Request, caller: Caller, view: Any) -> Reply:
        return self.reply

    async def acknowledge(self, request: Request, settled: Any, caller: Caller, view: Any) -> Reply:
        return self.reply

    def accepted(self, request: Request, envelopes: Any) -> Reply:
        return self.reply

    def redact(self, items: Any, caller: Caller, view: Any) -> list[Any]:
        self.redacted.append(caller)
        return [item for item in items if item["owner"] == caller.actor]


class Forwarding:
    """Takes everything at once."""

    def add(self, runtime: Any, caller: Caller, submitted: Any) -> None:
        for _, answer in submitted:
            answer(Envelope(b"id", None, 1))


def asked(reply: Reply, kind: RouteKind = RouteKind.QUERY, caller: Caller = MINE) -> tuple[Any, Adapter]:
    """What is told over JSON-RPC, as bytes."""

    async def story() -> tuple[Any, Adapter]:
        adapter = Adapter(reply)
        routes = [Route("ask", kind)]
        runtime: Any = SimpleNamespace(
            adapter=adapter, manifest=SimpleNamespace(routes=routes, subscriptions=None), mount="/", name="x"
        )
        sequencer: Any = SimpleNamespace(
            store=SimpleNamespace(view=lambda number: None), replica=SimpleNamespace(committed=1)
        )
        submissions: Any = Forwarding()
        replies: list[bytes] = []

        def failed(error: BaseException) -> None:
            raise error

        rpc_server = JsonRpc(Dispatcher(sequencer, submissions, [runtime]), failed)
        rpc_server.handle(b'{"jsonrpc":"2.0","id":1,"method":"ask"}', caller, replies.append)
        async with asyncio.timeout(5):
            while not replies:
                await asyncio.sleep(0)
        return json.loads(replies[0]), adapter

    return asyncio.run(story())


def texts(seen: list[Any]) -> list[str]:
    return [row["text"] for row in seen]


async def slowly(seen: list[Any]) -> list[str]:
    await asyncio.sleep(0)
    return texts(seen)


@pytest.mark.parametrize("render", [texts, slowly])
def test_an_answer_tells_of_what_its_caller_may_see(render):
    for caller, told in ((MINE, ["mine"]), (OTHER, ["a secret"]), (NOBODY, [])):
        answer, adapter = asked(Reply(Visible(ROWS, render)), caller=caller)
        assert answer["result"] == told and adapter.redacted == [caller]


@pytest.mark.parametrize("kind", [RouteKind.QUERY, RouteKind.SUBMIT])
def test_an_adapter_that_forgets_leaks_nothing(kind):
    answer, _ = asked(Reply(ROWS), kind)
    assert answer["error"]["data"]["code"] == "adapter.not_redacted" and "secret" not in json.dumps(answer)


def test_what_is_said_to_be_public_is_told_as_it_is_but_items_are_redacted_all_the_same():
    assert asked(Reply(7, public=True))[0]["result"] == 7
    assert asked(Reply(7, public=True), RouteKind.SUBMIT)[0]["result"] == 7
    assert asked(Reply(Visible(ROWS, texts), public=True))[0]["result"] == ["mine"]


def test_a_routes_answer_that_forgets_is_a_fault_of_the_adapter():
    async def story() -> None:
        runtime: Any = SimpleNamespace(
            adapter=Adapter(Reply(ROWS)), manifest=SimpleNamespace(routes=(), subscriptions=None), mount="/"
        )
        sequencer: Any = SimpleNamespace(
            store=SimpleNamespace(view=lambda number: None), replica=SimpleNamespace(committed=1)
        )
        submissions: Any = Forwarding()
        service = Dispatcher(sequencer, submissions, [runtime])
        with pytest.raises(AdapterFault) as refused:
            await service.serve(runtime, Route("ask", RouteKind.QUERY, "GET", "/x"), Request("ask", {}), MINE)
        assert refused.value.code == "adapter.not_redacted" and "secret" not in str(refused.value)

    asyncio.run(story())


class Block:
    """The first transaction is the owner's, the second another's."""

    def __len__(self) -> int:
        return 2

    def of_accounts(self, accounts: frozenset[bytes]) -> list[int]:
        return [index for index, owner in enumerate((b"m" * 20, b"o" * 20)) if owner in accounts]


BLOCK: Any = Block()
POOLED = SimpleNamespace(sender=b"o" * 20, to=None)


@pytest.mark.parametrize(
    "item",
    [
        visibility.Transactions(BLOCK, [1]),
        visibility.Transactions(BLOCK, [1], OTHER),
        visibility.Pooled(POOLED),
        visibility.OfAccount(b"o" * 20, False, 7),
        visibility.OfAll(7),
    ],
)
def test_what_no_method_has_looked_through_is_not_told_to_others(item):
    assert visibility.visible([item], MINE) == visibility.visible([item], NOBODY) == []
    assert len(visibility.visible([item], AUDITOR)) == 1


def test_of_several_the_callers_own_are_left():
    (left,) = visibility.visible([visibility.Transactions(BLOCK, [0, 1])], MINE)
    assert left == visibility.Transactions(BLOCK, [0], MINE)
    (logs,) = visibility.visible([visibility.Logs([(BLOCK, [(0, 3), (1, 4)]), (BLOCK, [(1, 5)])], OTHER)], MINE)
    assert logs == visibility.Logs([(BLOCK, [(0, 3)])], MINE)


def test_what_was_looked_through_for_this_caller_is_not_looked_through_again():
    item = visibility.Transactions(None, [5], MINE)  # type: ignore[arg-type]
    assert visibility.visible([item], MINE) == [item]


def test_contracts_are_every_participants_and_heads_everybodys_without_what_tells():
    assert visibility.visible([visibility.OfAccount(b"o" * 20, True, 7)], MINE) and not visibility.visible(
        [visibility.OfAccount(b"o" * 20, True, 7), visibility.OfContracts(7)], NOBODY
    )
    (head,) = visibility.visible([visibility.Head({"gasUsed": "0x5208", "number": "0x1"})], MINE)
    assert isinstance(head, visibility.Head) and head.document["gasUsed"] == "0x0" and head.document["number"] == "0x1"


def test_methods_whose_answers_are_public_are_these():
    assert {
        *("eth_accounts", "eth_blobBaseFee", "eth_blockNumber", "eth_chainId", "eth_gasPrice", "eth_syncing"),
        *("eth_maxPriorityFeePerGas", "net_listening", "net_version", "web3_clientVersion", "web3_sha3"),
        *("eth_getUncleCountByBlockNumber", "eth_newBlockFilter", "eth_newFilter", "eth_uninstallFilter"),
        *("eth_newPendingTransactionFilter", "eth_sendTransaction"),
    } == rpc.PUBLIC
