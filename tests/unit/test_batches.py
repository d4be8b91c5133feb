"""Batches at the primary: whose fault is whose, what waits outside, and what a session leaves behind."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from coco import limits
from coco._native import WriteSet, keccak256
from coco.enclave.adapters.contract import (
    BatchSession,
    BlockContext,
    Caller,
    Envelope,
    LedgerAdapter,
    Manifest,
    Outcome,
    Reply,
    Request,
    Route,
    RouteKind,
    Settled,
    Table,
    Verdict,
)
from coco.enclave.store import StoreTransaction, StoreView
from coco.errors import CocoError
from coco.ledger.transaction_id import TransactionId

COUNTER = b"counter"


class Session(BatchSession):
    def __init__(self, adapter: Counting, tx: StoreTransaction) -> None:
        self._adapter, self._tx = adapter, tx

    async def run(self, envelope: Envelope) -> Outcome:
        text = envelope.payload
        self._adapter.ran.append(text)
        before = int(self._tx.get("count.rows", COUNTER) or b"0")
        self._tx.put("count.rows", COUNTER, b"%d" % (before + 1))
        self._tx.put("count.rows", b"last", text.encode())
        await self._adapter.outside(text)
        if text == "broken":
            raise RuntimeError("a bug")
        if text == "no":
            return Outcome(Verdict.REFUSED, "it says no")
        self._tx.put("count.seen", envelope.id, text.encode())
        return Outcome(Verdict.INCLUDED)


class Counting(LedgerAdapter):
    """Counts what was included."""

    waits = False

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.ran: list[str] = []

    async def outside(self, text: str) -> None:
        pass

    def manifest(self) -> Manifest:
        route = Route("count.add", RouteKind.SUBMIT_AND_WAIT, "PUT", "/count/{text}")
        tables = (Table("count.rows"), Table("count.seen", log=True))
        return Manifest("count", "1", (route,), tables, "count.seen", waits_outside=self.waits)

    def parse_submission(self, request: Request) -> Sequence[bytes]:
        return [request.param("text").encode()]

    async def admit(self, raw: Sequence[bytes], caller: Caller) -> Sequence[Envelope | CocoError]:
        return [Envelope(keccak256(text), text.decode(), len(text)) for text in raw]

    async def open(self, tx: StoreTransaction, block: BlockContext) -> BatchSession:
        return Session(self, tx)

    async def query(self, request: Request, caller: Caller, view: StoreView) -> Reply:
        raise NotImplementedError

    async def acknowledge(self, request: Request, settled: Sequence[Settled], caller: Caller, view: StoreView) -> Reply:
        settled[0].require_included()
        return Reply(None, public=True)

    def redact(self, items: Sequence[Any], caller: Caller, view: StoreView) -> list[Any]:
        return list(items)

    async def applied(self, position: TransactionId, writes: WriteSet) -> Sequence[bytes]:
        return [identity for identity, _ in writes.rows("count.seen")]


class Waiting(Counting):
    """Waits for somebody outside, until the test lets it go on."""

    waits = True

    def __init__(self, settings: Mapping[str, Any]) -> None:
        super().__init__(settings)
        self.began, self.goes_on = threading.Event(), threading.Event()

    async def outside(self, text: str) -> None:
        if text == "slow":
            self.began.set()
            while not self.goes_on.is_set():
                await asyncio.sleep(0.001)


def rows(network: Any, node: int = 0) -> tuple[int, bytes | None]:
    view = network.node(node).parts.store.view()
    return int(view.get("count.rows", COUNTER) or b"0"), view.get("count.rows", b"last")


def in_background(work: Any) -> tuple[threading.Thread, list[Any]]:
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(work()))
    thread.start()
    return thread, answers


def test_what_is_not_included_leaves_nothing_and_takes_nobody_along(coco_network):
    network = coco_network(adapters={"count": Counting}, settings={"block_interval_ms": 200})
    alice = network.participant("alice")
    sent = {
        text: in_background(lambda t=text: alice.request("PUT", f"/count/{t}")) for text in ("a", "broken", "no", "b")
    }
    for thread, _ in sent.values():
        thread.join(20)
    answers = {text: answer[0] for text, (_, answer) in sent.items()}
    assert [answers[text].status for text in ("a", "b")] == [200, 200]
    assert {text: answers[text].error for text in ("broken", "no")} == {"broken": "node.dropped", "no": "node.dropped"}
    assert b"it says no" in answers["no"].body and b"adapter.failed" in answers["broken"].body
    count, last = rows(network)
    assert count == 2 and last in (b"a", b"b")
    adapter = network.node().parts.registry.by_name["count"]
    assert sorted(adapter.ran) == ["a", "b", "broken", "no"], "each ran once, whatever its neighbours did"


def test_a_batch_of_which_nothing_is_included_is_no_entry(coco_network):
    network = coco_network(adapters={"count": Counting})
    alice = network.participant("alice")
    before = network.node().parts.journal.last_seqno
    for text in ("no", "broken"):
        assert alice.request("PUT", f"/count/{text}").error == "node.dropped"
    assert network.node().parts.journal.last_seqno == before


def _others_write(network: Any) -> None:
    node = network.node()
    network.run(node.parts.sequencer.write_rows([("count.rows", COUNTER, b"40")]))


def test_who_waited_outside_runs_again_if_what_it_has_read_has_changed(coco_network):
    network = coco_network(adapters={"count": Waiting})
    adapter = network.node().parts.registry.by_name["count"]
    thread, answers = in_background(lambda: network.participant("alice").request("PUT", "/count/slow"))
    assert adapter.began.wait(20)
    _others_write(network)  # nobody holds the writer meanwhile
    adapter.goes_on.set()
    thread.join(20)
    assert answers[0].status == 200
    assert (rows(network), adapter.ran) == ((41, b"slow"), ["slow", "slow"])
    assert network.node().parts.sequencer.counters["conflicts"] == 1


def test_whoever_conflicts_again_and_again_is_put_back_and_lost_by_nobody(
    coco_network, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(limits, "BATCH_CONFLICTS_MAX", 2)
    network = coco_network(adapters={"count": Waiting})
    adapter = network.node().parts.registry.by_name["count"]
    left = [3]

    async def outside(text: str) -> None:
        if left[0]:
            left[0] -= 1
            await network.node().parts.sequencer.write_rows([("count.rows", COUNTER, b"%d" % (90 - left[0]))])

    adapter.outside = outside
    assert network.participant("alice").request("PUT", "/count/x").status == 200
    assert (rows(network)[0], adapter.ran) == (91, ["x"] * 4)


def test_a_primary_that_is_lost_while_it_waits_outside_loses_nothing_of_others(coco_network):
    network = coco_network(adapters={"count": Waiting}, nodes=3)
    first = network.node(1).parts.registry.by_name["count"]
    alice = network.participant("alice")
    thread, answers = in_background(lambda: alice.request("PUT", "/count/slow", node=2))
    assert first.began.wait(20)
    for number in (2, 3):
        network.node(number).parts.registry.by_name["count"].goes_on.set()
    network.lose(1)
    thread.join(30)
    assert answers[0].status == 200, answers[0].body
    network.settle()
    assert {rows(network, node) for node in network.nodes} == {(1, b"slow")}


def test_an_error_of_an_answer_has_a_code(coco_network):
    network = coco_network(adapters={"count": Counting})
    refused = network.participant("alice").request("PUT", "/count/no")
    assert json.loads(refused.body)["error"]["code"] == refused.error == "node.dropped"
