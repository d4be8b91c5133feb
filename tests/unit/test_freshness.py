"""G5: answers are counted, and a node that no majority confirms stops answering."""

from __future__ import annotations

import asyncio

import pytest

from coco import limits
from coco.enclave.api.freshness import Freshness
from coco.errors import BusyError


class Majority:
    """Confirms, or does not; what it was asked."""

    def __init__(self) -> None:
        self.there = True
        self.rounds = 0
        self.floors: list[bytes | None] = []
        self.delay = asyncio.Event()
        self.delay.set()

    async def readable(self, floor: bytes | None, confirm: bool) -> None:
        self.floors.append(floor)
        await self.delay.wait()
        if confirm:
            self.rounds += 1
            if not self.there:
                raise BusyError("alone", code="consensus.no_majority")


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(limits, "ANSWERS_PER_ROUND_MAX", 10)


def run(story) -> None:
    asyncio.run(story(Majority()))


def test_G5_the_first_request_of_every_connection_waits_for_a_round():
    async def story(majority: Majority) -> None:
        freshness = Freshness(majority.readable)
        assert not freshness.may_answer(1)
        await freshness.wait(1, None, False)
        assert majority.rounds == 1 and freshness.may_answer(1) and not freshness.may_answer(2)
        # A refused round confirms nobody.
        majority.there = False
        with pytest.raises(BusyError):
            await freshness.wait(2, None, False)
        assert not freshness.may_answer(2)
        freshness.forget(1)
        assert not freshness.may_answer(1), "the number of a connection may be another's later"

    run(story)


def test_G5_a_node_that_is_cut_off_answers_only_so_many_more():
    async def story(majority: Majority) -> None:
        freshness = Freshness(majority.readable)
        for connection in (1, 2):
            await freshness.wait(connection, None, False)
        majority.there, answered = False, 0
        for turn in range(100):
            answered += freshness.may_answer(turn % 2 + 1)
            await asyncio.sleep(0)
        assert answered <= limits.ANSWERS_PER_ROUND_MAX
        with pytest.raises(BusyError) as refused:
            await freshness.wait(1, None, False)
        assert refused.value.code == "consensus.no_majority"
        majority.there = True
        await freshness.wait(1, None, False)
        assert freshness.may_answer(1) and freshness.may_answer(2), "one round serves every connection"

    run(story)


def test_G5_on_a_whole_network_nobody_waits_and_rounds_are_few():
    async def story(majority: Majority) -> None:
        freshness = Freshness(majority.readable)
        await freshness.wait(1, None, False)
        for _ in range(100):
            assert freshness.may_answer(1)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        assert majority.rounds <= 1 + 100 // (limits.ANSWERS_PER_ROUND_MAX // 2) + 1

    run(story)


def test_G5_what_was_answered_while_a_round_went_on_is_not_confirmed_by_it():
    async def story(majority: Majority) -> None:
        freshness = Freshness(majority.readable)
        await freshness.wait(1, None, False)
        majority.delay.clear()
        round_ = asyncio.ensure_future(freshness.wait(1, None, True))
        await asyncio.sleep(0)
        during = sum(freshness.may_answer(1) for _ in range(4))  # too few for a round of their own
        majority.delay.set()
        await round_
        majority.there = False
        after = sum(freshness.may_answer(1) for _ in range(20))
        assert during + after <= limits.ANSWERS_PER_ROUND_MAX

    run(story)


def test_a_client_may_want_more():
    async def story(majority: Majority) -> None:
        freshness = Freshness(majority.readable)
        await freshness.wait(1, b"2.5", False)
        await freshness.wait(1, b"2.6", False)
        await freshness.wait(1, None, True)
        assert (majority.floors, majority.rounds) == ([b"2.5", b"2.6", None], 2)
        await Freshness(None).wait(1, b"2.5", True)

    run(story)
