"""Forwarding between a client and its fate: gathered, checked in parts, pooled in order, forwarded, held, sent again."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import msgspec

from coco import limits
from coco.enclave.adapters.contract import Caller, CallerKind, Envelope
from coco.enclave.ordering.forwarding import EXECUTING, EXECUTING_FORMERLY, SUBMIT, ExecutingOf, Forwarding, _encode
from coco.enclave.ordering.runtime import AdapterRuntime
from coco.enclave.ordering.sequencer import Sequencer
from coco.enclave.ordering.subscribers import Subscribers
from coco.errors import BusyError, CocoError, RequestError

PARTICIPANT = Caller(CallerKind.PARTICIPANT, "aa", certificate=b"aa")
CALLERS = {b"aa": PARTICIPANT}


class Adapter:
    """Checks parts of a submission, the earlier the slower; refuses ``no`` and breaks at ``break``."""

    def __init__(self) -> None:
        self.parts: list[int] = []

    async def admit(self, raw: list[bytes], caller: Caller) -> list[Envelope | CocoError]:
        self.parts.append(len(raw))
        await asyncio.sleep(0.05 / len(self.parts))
        assert b"break" not in raw
        refusal = RequestError("no", code="test.no")
        return [refusal if one == b"no" else Envelope(one, None, 1) for one in raw]

    def told(self, refusal: CocoError, envelope: Envelope, caller: Caller) -> CocoError | None:
        return refusal


class Node:
    """The submissions of one node, over a pool that is a list."""

    def __init__(self, *, primary: bool = True) -> None:
        self.pooled: list[bytes] = []
        self.answers: dict[bytes, Any] = {}
        self.outcomes: dict[bytes, str] = {}
        self.adapter = Adapter()
        self.replica = SimpleNamespace(is_primary=primary, view=2, primary=1, ask_primary=self._ask_primary)
        pool = SimpleNamespace(get=lambda identity: identity if identity in self.pooled else None)
        self.runtime: Any = SimpleNamespace(name="test", adapter=self.adapter, pool=pool, included={})
        sequencer: Any = SimpleNamespace(
            accept=self._accept,
            resolve=self._resolve,
            replica=self.replica,
            clock=SimpleNamespace(now_ms=0),
            runtimes=[self.runtime],
            subscribers=Subscribers(),
        )
        #: The node that this one takes for the primary.
        self.peer: Node | None = None
        self.links: Any = SimpleNamespace(tell=lambda *message: True)
        links: Any = self.links
        self.forwarding = Forwarding(sequencer, links, lambda certificate: CALLERS[certificate or b""])
        self._sequencer = sequencer

    def _accept(self, runtime: Any, envelopes: list[Envelope]) -> list[CocoError | None]:
        self.pooled.extend(envelope.id for envelope in envelopes)
        return [None] * len(envelopes)

    def _resolve(self, runtime: Any, identity: bytes, reason: str) -> None:
        self.outcomes[identity] = reason
        for settled in self._sequencer.subscribers.settled:
            settled(runtime, identity, reason)

    async def _ask_primary(self, kind: str, body: bytes) -> bytes:
        assert kind == SUBMIT and self.peer is not None
        return await self.peer.forwarding.serve(7, kind, body)

    def submit(self, *raw: bytes, caller: Caller = PARTICIPANT) -> None:
        for one in raw:
            self.forwarding.add(self.runtime, caller, [(one, functools.partial(self.answers.__setitem__, one))])

    def hand_in(self, *checked: Any, caller: Caller = PARTICIPANT) -> None:
        """As the door does with what it has checked: texts, or refusals."""
        calls = []
        for number, one in enumerate(checked):
            name = b"%d" % number if isinstance(one, CocoError) else one
            found = one if isinstance(one, CocoError) else (Envelope(one, None, 1), one)
            calls.append((found, lambda answer, name=name: self.answers.__setitem__(name, answer)))
        self.forwarding.add_checked(self.runtime, caller, calls, 5)

    async def answered(self, count: int) -> None:
        async with asyncio.timeout(10):
            while len(self.answers) < count:
                await asyncio.sleep(0.001)
        await asyncio.sleep(0)
        own = self.forwarding
        assert not own._checks and not own._waiting and not own._count


def submit(*raw: bytes, caller: Caller = PARTICIPANT) -> tuple[list[bytes], dict[bytes, Any], Adapter]:
    """What reached the pool of a primary, in order; every answer; the adapter."""

    async def run() -> Node:
        node = Node()
        node.submit(*raw, caller=caller)
        await node.answered(len(raw))
        return node

    node = asyncio.run(run())
    return node.pooled, node.answers, node.adapter


def test_parts_enter_the_pool_in_the_order_in_which_they_came():
    raw = [b"%d" % number for number in range(50)]
    pooled, answers, adapter = submit(*raw)
    assert pooled == raw
    assert adapter.parts == [12, 12, 12, 12, 2]
    assert all(answers[one].id == one for one in raw)


def test_few_are_checked_in_one_call():
    _, _, adapter = submit(b"a", b"b", b"c")
    assert adapter.parts == [3]


def test_a_refusal_is_its_own():
    pooled, answers, _ = submit(b"a", b"no", b"b")
    assert pooled == [b"a", b"b"]
    assert answers[b"no"].code == "test.no"


def test_a_failing_check_refuses_its_part_and_no_other():
    raw = [b"%d" % number for number in range(15)]
    pooled, answers, _ = submit(b"break", *raw)
    assert pooled == raw[7:]
    assert {answers[one].code for one in (b"break", *raw[:7])} == {"adapter.failed"}


def test_only_participants_submit():
    pooled, answers, _ = submit(b"a", caller=Caller(CallerKind.MEMBER, "bb"))
    assert pooled == [] and answers[b"a"].code == "access.not_a_participant"


def test_what_the_door_has_checked_enters_at_once():
    async def story() -> None:
        node = Node()
        node.hand_in(b"a", RequestError("no", code="test.no"), b"b")
        assert node.pooled == [b"a", b"b"]
        assert node.answers[b"a"].id == b"a" and node.answers[b"1"].code == "test.no"
        assert list(node.forwarding._held) == [("test", b"a"), ("test", b"b")] and not node.forwarding._count
        assert (node.forwarding.checked, node.forwarding.check_us) == (3, 5)
        assert node.adapter.parts == [], "nothing is checked twice"

    asyncio.run(story())


def test_what_is_committed_or_dropped_is_held_no_longer():
    async def story() -> None:
        node = Node()
        node.hand_in(b"a", b"b")
        assert node.forwarding.held == 2
        node._resolve(node.runtime, b"a", "")
        node._resolve(node.runtime, b"b", "replaced")
        assert node.forwarding.held == 0
        assert node.forwarding.why_dropped(node.runtime, b"b") == "replaced"
        assert node.forwarding.why_dropped(node.runtime, b"b", PARTICIPANT.actor) == "replaced", "it handed it in"
        for nobody in ("", "another"):
            assert node.forwarding.why_dropped(node.runtime, b"b", nobody) == ""

    asyncio.run(story())


def test_a_caller_hears_what_its_protocol_lets_it_hear():
    async def story() -> None:
        node = Node()
        refusal = RequestError("already known", code="pool.already_known")
        node._sequencer.accept = lambda runtime, envelopes: [refusal] * len(envelopes)
        node.adapter.told = lambda refusal, envelope, caller: None if caller is not PARTICIPANT else refusal
        other = Caller(CallerKind.PARTICIPANT, "another")
        node.hand_in(b"a")
        assert node.answers[b"a"] is refusal
        node.hand_in(b"b", caller=other)
        assert node.answers[b"b"].id == b"b" and node.forwarding.held == 0, "as if taken, and not held"

    asyncio.run(story())


def test_what_the_door_has_checked_enters_after_what_came_before_it():
    async def story() -> None:
        node = Node()
        node.submit(b"a", b"b")
        await asyncio.sleep(0)  # their check has begun
        node.hand_in(b"c")
        assert node.pooled == []
        await node.answered(3)
        assert node.pooled == [b"a", b"b", b"c"]

    asyncio.run(story())


def test_G4_what_the_door_has_checked_needs_a_participant():
    async def story() -> None:
        node = Node()
        node.hand_in(b"a", RequestError("no", code="test.no"), caller=Caller(CallerKind.ANONYMOUS))
        assert node.pooled == []
        assert {answer.code for answer in node.answers.values()} == {"access.not_a_participant"}

    asyncio.run(story())


def test_G3_a_pool_that_fails_refuses_and_goes_on():
    async def story() -> None:
        node = Node()
        accept = node._sequencer.accept

        def fail(runtime: Any, envelopes: list[Envelope]) -> list[CocoError | None]:
            raise MemoryError

        node._sequencer.accept = fail
        node.hand_in(b"a")
        node.submit(b"b")
        await node.answered(2)
        assert {answer.code for answer in node.answers.values()} == {"adapter.failed"}
        node._sequencer.accept = accept
        node.hand_in(b"c")
        assert node.pooled == [b"c"]

    asyncio.run(story())


def test_what_was_dropped_once_may_be_handed_in_again():
    async def story() -> None:
        node = Node()
        node.hand_in(b"a")
        node._resolve(node.runtime, b"a", "replaced")
        node.pooled.clear()
        node.hand_in(b"a")
        assert node.pooled == [b"a"] and node.answers[b"a"].id == b"a"
        assert node.forwarding.why_dropped(node.runtime, b"a") == ""

    asyncio.run(story())


# --- several nodes ----------------------------------------------------------------------------------------------------


def network(story: Callable[[Node, Node], Awaitable[None]]) -> None:
    """Run a story of a backup and of the primary that it knows."""

    async def run() -> None:
        backup, primary = Node(primary=False), Node()
        backup.peer = primary
        await story(backup, primary)

    asyncio.run(run())


def test_a_backup_forwards_and_holds():
    async def story(backup: Node, primary: Node) -> None:
        backup.submit(b"a", b"no", b"b")
        await backup.answered(3)
        assert primary.pooled == [b"a", b"b"] and backup.pooled == []
        assert backup.answers[b"no"].code == "test.no"
        assert list(backup.forwarding._held) == [("test", b"a"), ("test", b"b")]
        backup._resolve(backup.runtime, b"a", "")
        assert list(backup.forwarding._held) == [("test", b"b")]

    network(story)


def test_a_backup_forwards_what_its_door_has_checked():
    async def story(backup: Node, primary: Node) -> None:
        backup.hand_in(b"a", b"b")
        await backup.answered(2)
        assert primary.pooled == [b"a", b"b"] and primary.adapter.parts == [2], "the primary checks for itself (G4)"
        assert list(backup.forwarding._held) == [("test", b"a"), ("test", b"b")]

    network(story)


def test_a_primary_asks_its_own_configuration_who_the_caller_is():
    async def story(backup: Node, primary: Node) -> None:
        CALLERS[b"former"] = Caller(CallerKind.ANONYMOUS)
        backup.submit(b"a", caller=Caller(CallerKind.PARTICIPANT, "former", certificate=b"former"))
        await backup.answered(1)
        assert backup.answers[b"a"].code == "access.not_a_participant" and primary.pooled == []

    network(story)


def test_without_a_primary_a_submission_waits_for_one():
    async def story(backup: Node, primary: Node) -> None:
        primary.replica.is_primary = False
        backup.submit(b"a")
        await asyncio.sleep(0.2)
        assert not backup.answers
        primary.replica.is_primary = True
        await backup.answered(1)
        assert isinstance(backup.answers[b"a"], Envelope) and primary.pooled == [b"a"]

    network(story)


def test_what_the_former_primary_took_is_not_taken_twice(monkeypatch):
    async def story(backup: Node, primary: Node) -> None:
        serve = primary.forwarding.serve

        async def serve_and_die(sender: int, kind: str, body: bytes) -> bytes:
            await serve(sender, kind, body)
            primary.forwarding.serve = serve
            raise BusyError("gone", code="peers.unreachable")

        primary.forwarding.serve = serve_and_die
        backup.submit(b"a")
        await backup.answered(1)
        assert isinstance(backup.answers[b"a"], Envelope) and primary.pooled == [b"a"]

    network(story)


def test_word_of_a_fate_may_overtake_the_answer():
    async def story(backup: Node, primary: Node) -> None:
        serve = primary.forwarding.serve

        async def serve_and_drop(sender: int, kind: str, body: bytes) -> bytes:
            answer = await serve(sender, kind, body)
            backup._resolve(backup.runtime, b"a", "too much")
            return answer

        primary.forwarding.serve = serve_and_drop
        backup.submit(b"a", b"b")
        await backup.answered(2)
        assert backup.answers[b"a"].code == "node.dropped" and "too much" in str(backup.answers[b"a"])
        assert list(backup.forwarding._held) == [("test", b"b")]
        # Whoever submits it anew gets another chance.
        primary.forwarding.serve, backup.answers = serve, {}
        backup.submit(b"a")
        await backup.answered(1)
        assert isinstance(backup.answers[b"a"], Envelope)

    network(story)


def test_what_a_lost_link_may_have_said_is_asked_again():
    async def story(backup: Node, primary: Node) -> None:
        backup.submit(b"a", b"b", b"c")
        await backup.answered(3)
        # The primary drops one, and its word is lost; another one is not in its pool for some reason.
        primary._resolve(primary.runtime, b"a", "too much")
        primary.pooled.remove(b"c")
        backup.forwarding.link_lost(5)
        await asyncio.sleep(0.01)
        assert backup.outcomes == {}, "another node's link"
        backup.forwarding.link_lost(backup.replica.primary)
        await asyncio.sleep(0.1)
        assert backup.outcomes == {b"a": "too much"}
        assert primary.pooled == [b"a", b"b", b"c"], "nothing twice"
        assert not backup.forwarding._outlived, "no primary has ended"

    network(story)


def test_a_new_primary_gets_what_is_held_once():
    async def story(backup: Node, primary: Node) -> None:
        backup.submit(b"a", b"b")
        await backup.answered(2)
        following = Node()
        following.runtime.included[b"b"] = 3
        backup.peer, backup.replica.view = following, 4
        backup.forwarding.view_changed()
        await asyncio.sleep(0.3)
        assert following.pooled == [b"a"], "b is executed already"
        backup.forwarding.view_changed()
        await asyncio.sleep(0.6)
        assert following.pooled == [b"a"]

    network(story)


def test_a_backup_that_becomes_primary_takes_what_it_holds():
    async def story(backup: Node, primary: Node) -> None:
        backup.submit(b"a")
        await backup.answered(1)
        backup.replica.is_primary, backup.replica.view = True, 4
        backup.forwarding.view_changed()
        await asyncio.sleep(0.1)
        assert backup.pooled == [b"a"]

    network(story)


def test_what_a_new_primary_refuses_is_told():
    async def story(backup: Node, primary: Node) -> None:
        backup.submit(b"a")
        await backup.answered(1)
        following = Node()
        following._sequencer.accept = lambda runtime, envelopes: [RequestError("no", code="test.too_low")]
        backup.peer, backup.replica.view = following, 4
        backup.forwarding.view_changed()
        await asyncio.sleep(0.3)
        assert backup.outcomes == {b"a": "test.too_low"} and not backup.forwarding._held

    network(story)


def test_G3_what_primaries_die_with_is_suspected_then_dropped():
    async def story(backup: Node, primary: Node) -> None:
        backup.submit(b"a", b"b")
        await backup.answered(2)
        suspected = []
        for number in range(2, 10):
            # The primary says what it executes, and dies.
            backup.forwarding.executing(backup.replica.primary, EXECUTING, _encode(ExecutingOf("test", [b"x"])))
            backup.forwarding.executing(backup.replica.primary, EXECUTING, _encode(ExecutingOf("test", [b"a"])))
            following = Node()
            following.runtime.pool.suspect = lambda *suspect: suspected.append(suspect)
            backup.peer, backup.replica.view, backup.replica.primary = following, number + 2, number
            backup.forwarding.view_changed()
            async with asyncio.timeout(5):
                while b"b" not in following.pooled:
                    await asyncio.sleep(0.01)
            await asyncio.sleep(0.1)
            assert (b"a" in following.pooled) != (b"a" in backup.outcomes)
            if backup.outcomes:
                break
        assert backup.outcomes == {b"a": "pool.outlived_its_primaries"}
        assert suspected == [(b"a", outlived) for outlived in range(1, limits.PRIMARIES_OUTLIVED_MAX)]
        assert ("test", b"b") in backup.forwarding._held, "of others nobody thinks ill"

    network(story)


def test_G3_what_a_primary_died_with_is_known_whoever_submits_it():
    async def story() -> None:
        node, suspected = Node(), []
        node.runtime.pool.suspect = lambda *suspect: suspected.append(suspect)
        for primary in range(2, 2 + limits.PRIMARIES_OUTLIVED_MAX):
            node.forwarding.executing(primary - 1, EXECUTING, _encode(ExecutingOf("test", [b"a"])))
            node.replica.primary = primary
            node.forwarding.view_changed()
            node.forwarding.view_changed()
        node.hand_in(b"a", b"b")
        assert node.pooled == [b"b"] and node.answers[b"a"].code == "node.dropped" and suspected == []
        node.forwarding._outlived["test", b"a"] = 1
        node.hand_in(b"a")
        assert node.pooled == [b"b", b"a"] and suspected == [(b"a", 1)]
        # What is committed was not why.
        node._resolve(node.runtime, b"a", "")
        node.hand_in(b"c")
        assert suspected == [(b"a", 1)] and not node.forwarding._outlived

    asyncio.run(story())


def test_an_id_is_one_of_its_adapter_and_of_no_other():
    async def story(backup: Node, primary: Node) -> None:
        backup.submit(b"a")
        await backup.answered(1)
        other: Any = SimpleNamespace(name="other", included={})
        backup._sequencer.runtimes.append(other)
        # A client of another protocol has chosen the same id, and that protocol's transaction is settled and dies.
        backup._resolve(other, b"a", "refused")
        assert list(backup.forwarding._held) == [("test", b"a")], "it is not the one that was settled"
        assert not backup.forwarding.why_dropped(backup.runtime, b"a")
        assert backup.forwarding.why_dropped(other, b"a") == "refused"
        backup.forwarding.executing(1, EXECUTING, _encode(ExecutingOf("other", [b"a"])))
        backup.replica.primary = 2
        backup.forwarding.view_changed()
        assert list(backup.forwarding._outlived) == [("other", b"a")]
        # What a former version says, names no adapter.
        backup.forwarding.executing(2, EXECUTING_FORMERLY, msgspec.msgpack.encode([[b"a"]]))
        backup.replica.primary = 3
        backup.forwarding.view_changed()
        assert backup.forwarding._outlived == {("other", b"a"): 2, ("test", b"a"): 1}

    network(story)


def test_a_primary_that_gets_another_view_has_not_died():
    async def story() -> None:
        node = Node()
        node.forwarding.executing(1, EXECUTING, _encode(ExecutingOf("test", [b"a"])))
        node.replica.view += 1
        node.forwarding.view_changed()
        assert not node.forwarding._outlived

    asyncio.run(story())


def test_whoever_asks_late_hears_what_is_committed():
    async def story() -> None:
        sequencer: Any = SimpleNamespace(replica=SimpleNamespace(committed=5))
        runtime = AdapterRuntime(adapter=None, pool=None)  # type: ignore[arg-type]
        runtime.included.update({b"committed": 5, b"executed": 6})
        assert await Sequencer.outcome(sequencer, runtime, b"committed") == ""
        assert not Sequencer.outcome(sequencer, runtime, b"executed").done()
        assert not Sequencer.outcome(sequencer, runtime, b"unknown").done()
        assert set(runtime.waiting) == {b"executed", b"unknown"}

    asyncio.run(story())


def test_a_primary_says_what_it_executes_before_it_does():
    async def story() -> None:
        node, told = Node(), []
        node.replica.node, node.replica.members = 1, SimpleNamespace(all=(1, 2, 3))

        async def written() -> None:
            told.append("written")

        node.links.tell = lambda *message: told.append(message)
        node.links.written = written
        (executing,) = node._sequencer.subscribers.executing
        await executing(node.runtime, [b"a", b"b"])
        message = _encode(ExecutingOf("test", [b"a", b"b"]))
        assert told == [(2, EXECUTING, message), (3, EXECUTING, message), "written"]
        node.replica.members.all = (1,)
        await executing(node.runtime, [b"a"])
        assert len(told) == 3, "alone it says nothing"

    asyncio.run(story())


# --- D: who handed it in ---


def test_D_an_envelope_carries_who_handed_it_in_by_every_way(monkeypatch):
    async def run() -> None:
        primary, backup = Node(), Node(primary=False)
        backup.peer = primary
        entered: list[tuple[bytes, str]] = []
        accept = primary._sequencer.accept

        def noted(runtime: Any, envelopes: list[Envelope]) -> list[CocoError | None]:
            entered.extend((one.id, one.actor) for one in envelopes)
            return accept(runtime, envelopes)

        monkeypatch.setattr(primary._sequencer, "accept", noted)
        primary.submit(b"checked here")
        primary.hand_in(b"checked by the door")
        await primary.answered(2)
        # The backup says what it likes of its caller: the primary looks behind the certificate.
        backup.submit(b"forwarded", caller=Caller(CallerKind.PARTICIPANT, "somebody else", certificate=b"aa"))
        await backup.answered(1)
        assert sorted(entered) == [(b"checked by the door", "aa"), (b"checked here", "aa"), (b"forwarded", "aa")]

    asyncio.run(run())


def test_D_one_actor_cannot_take_every_place_on_the_way_into_the_pool(monkeypatch):
    monkeypatch.setattr(limits, "POOL_ACTOR_TRANSACTIONS_MAX", 3)
    other = Caller(CallerKind.PARTICIPANT, "bb", certificate=b"bb")

    async def run() -> None:
        node = Node()
        node.submit(*(b"%d" % number for number in range(5)))
        node.submit(b"other", caller=other)
        await node.answered(6)
        codes = [getattr(node.answers[b"%d" % number], "code", None) for number in range(5)]
        assert codes == [None, None, None, "pool.actor_full", "pool.actor_full"]
        assert node.answers[b"other"].id == b"other"
        assert not node.forwarding._counts
        node.submit(b"again")
        await node.answered(7)
        assert node.answers[b"again"].id == b"again"

    asyncio.run(run())


def test_D_anothers_few_are_checked_before_the_rest_of_ones_many(monkeypatch):
    monkeypatch.setattr(limits, "CHECKS_MAX", 2)
    other = Caller(CallerKind.PARTICIPANT, "bb", certificate=b"bb")

    async def run() -> None:
        node = Node()
        node.submit(*(b"%d" % number for number in range(1000)))
        node.submit(b"other", caller=other)
        await node.answered(1001)
        assert node.pooled.index(b"other") < 400
        assert [one for one in node.pooled if one != b"other"] == [b"%d" % number for number in range(1000)]

    asyncio.run(run())
