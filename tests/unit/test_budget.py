"""Budgets of callers: what waits, what is refused, whose it is; the room for answers."""

from __future__ import annotations

import asyncio
import functools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coco import limits
from coco.enclave.adapters.contract import Caller, CallerKind
from coco.enclave.api.admission import Admission
from coco.enclave.api.budget import ANONYMOUS, Budget, Pace, Rate, Room
from coco.errors import OverBudgetError

SMALL, LARGE = Rate(10, 20, 2), Rate(100, 200, 2)


def budget():
    return Budget("work", anonymous=SMALL, actor=LARGE)


def test_what_is_there_is_spent_at_once_and_what_lacks_is_waited_for_in_order():
    found = budget()
    assert found.take("a", 200, 0) == 0
    assert found.take("a", 50, 0) == pytest.approx(0.5)
    assert found.take("a", 50, 0) == pytest.approx(1.0), "whoever comes next waits behind"
    assert found.take("a", 50, 1) == pytest.approx(0.5), "time pays"
    assert found.take("a", 200, 1000) == 0, "no more than the most is kept"


def test_strangers_share_one_and_every_actor_has_its_own():
    found = budget()
    assert found.take(ANONYMOUS, 20, 0) == 0
    assert found.take(ANONYMOUS, 20, 0) == pytest.approx(2)
    with pytest.raises(OverBudgetError):
        found.take(ANONYMOUS, 1, 0)
    assert found.take("a", 200, 0) == 0 == found.take("b", 200, 0)
    assert found.refused == 1


def test_a_refusal_says_which_budget_and_when_to_come_back_and_spends_nothing():
    found = budget()
    found.take(ANONYMOUS, 35, 0)
    with pytest.raises(OverBudgetError) as refused:
        found.take(ANONYMOUS, 10, 0)
    assert (refused.value.code, refused.value.budget) == ("budget.spent", "anonymous.work")
    assert refused.value.retry_after_s == pytest.approx(0.5) and refused.value.http_status == 429
    assert found.take(ANONYMOUS, 10, 0.5) == pytest.approx(2), "at the time that it named it is taken"


def test_what_no_waiting_pays_is_refused_for_ever_without_a_time():
    with pytest.raises(OverBudgetError) as refused:
        budget().take(ANONYMOUS, 41, 0)
    assert (refused.value.code, refused.value.retry_after_s) == ("budget.too_much", 0)


def test_what_an_answer_weighs_is_owed_and_waited_for_by_whoever_asks_next():
    found = budget()
    found.owe("a", 250, 0)
    assert found.take("a", 50, 0) == pytest.approx(1), "50 are lacking, and 50 more are asked for"
    found.owe("a", 10_000, 0)
    with pytest.raises(OverBudgetError):
        found.take("a", 1, 0)
    assert found.take("a", 1, 1) == pytest.approx(1.01), "no debt is longer than the patience: it is waited off"
    assert found.take("b", 200, 0) == 0, "another owes nothing"


def test_work_of_one_caller_begins_at_a_pace_and_that_of_others_beside_it():
    pace = Pace(0.5)
    assert [pace.wait_s("a", 1, 10) for _ in range(3)] == [0, 2, 4]
    assert pace.wait_s("b", 1, 10) == 0, "another waits for nobody"
    assert pace.wait_s("a", 1, 13) == 3
    assert pace.wait_s("a", 1, 100) == 0, "what nobody used is not saved up"
    assert pace.wait_s("a", 1, 100) == 2


@given(st.lists(st.tuples(st.floats(0, 3), st.integers(1, 30)), max_size=60))
def test_nobody_spends_more_than_time_gives(asked):
    found, now, spent, begun = budget(), 0.0, 0, 0.0
    for step, cost in asked:
        now += step
        try:
            begins = now + found.take(ANONYMOUS, cost, now)
        except OverBudgetError as error:
            assert error.retry_after_s >= 0
            continue
        spent += cost
        assert begins >= begun - 1e-6 and begins - now <= SMALL.patience_s + 1e-6
        begun = begins
        assert spent <= SMALL.most + SMALL.per_second * begins + 1e-6


def test_no_more_callers_are_remembered_than_the_limit(monkeypatch):
    monkeypatch.setattr(limits, "BUDGETS_MAX", 3)
    found = budget()
    for caller in "abcde":
        found.take(caller, 1, 0)
    assert len(found._buckets) == 3


def test_room_is_shared_by_caller_and_in_all_and_nobody_waits_for_another():
    room = Room(anonymous=10, actor=20, most=45)
    begun: list[Any] = []
    for caller, size in (("a", 15), ("a", 10), ("a", 1), ("b", 20), (ANONYMOUS, 10), (ANONYMOUS, 1)):
        room.enter(caller, size, functools.partial(begun.append, (caller, size)))
    assert begun == [("a", 15), ("b", 20), (ANONYMOUS, 10)], "what is small does not overtake its own"
    room.leave("a", 15)
    assert begun[3:] == [("a", 10), ("a", 1)]
    room.leave(ANONYMOUS, 10)
    assert begun[5:] == [(ANONYMOUS, 1)] and room.held == 32


def test_no_more_paces_are_remembered_than_the_limit(monkeypatch):
    monkeypatch.setattr(limits, "BUDGETS_MAX", 2)
    pace = Pace(0.5)
    for name in "abc":
        pace.wait_s(name, 1, 0)
    assert pace.wait_s("c", 1, 0) == 2 and pace.wait_s("a", 1, 0) == 0


def test_what_is_larger_than_all_room_of_a_caller_runs_alone():
    room = Room(anonymous=10, actor=20, most=45)
    begun: list[Any] = []
    room.enter("a", 100, lambda: begun.append(1))
    room.enter("a", 1, lambda: begun.append(2))
    assert begun == [1]
    room.leave("a", 100)
    assert begun == [1, 2]


def test_who_is_gone_waits_no_more_and_gives_back_what_it_got():
    async def story():
        admission = Admission()
        somebody = Caller(CallerKind.PARTICIPANT, "aa")
        most, inside = limits.ACTOR_ANSWERS_BYTES_MAX, []

        async def answer(name, size):
            async with admission.answering(somebody, size):
                inside.append(name)
                await asyncio.sleep(3600)

        first = asyncio.create_task(answer("first", most))
        second = asyncio.create_task(answer("second", most))
        third = asyncio.create_task(answer("third", most))
        await asyncio.sleep(0.01)
        assert inside == ["first"] and admission.room.held == most
        second.cancel()
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.sleep(0.01)
        assert inside == ["first", "third"]
        third.cancel()
        await asyncio.gather(first, second, third, return_exceptions=True)
        assert admission.room.held == 0

    asyncio.run(story())


def test_what_is_signed_is_not_kept_out_by_strangers_who_read():
    async def story():
        admission = Admission(lambda: 0.0)
        admission.work.take(ANONYMOUS, limits.ANONYMOUS_WORK_US_MAX, 0)
        await admission.pay(Caller(), 2_000, signed=True)
        assert admission.work.take(ANONYMOUS, 1, 0) > 0

    asyncio.run(story())


def test_refusals_of_strangers_are_told_one_after_the_other():
    async def story():
        admission = Admission(lambda: 10.0)
        waits = [admission.refusal_s(Caller()) for _ in range(limits.REFUSALS_PER_SECOND_MAX + 1)]
        assert waits[0] == limits.REFUSAL_SECONDS and waits[-1] - waits[0] == pytest.approx(1)
        assert admission.refusal_s(Caller(CallerKind.MEMBER, "aa")) == limits.REFUSAL_SECONDS

    asyncio.run(story())
