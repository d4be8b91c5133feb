"""Turns by who asks: nobody takes every place, nobody waits for ever, and each one's own stay in order."""

from __future__ import annotations

import asyncio
import os
import threading
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coco import limits
from coco.enclave.ordering.queries import Queries
from coco.enclave.ordering.turns import ASKING, Turns
from coco.errors import BusyError


def turns(places: int, per_actor: int, waiting_max: int = 1000) -> Turns:
    return Turns(places, per_actor=per_actor, waiting_max=waiting_max, code="queries.too_many")


def test_a_place_is_free_for_another_actor_while_one_has_hundreds_waiting():
    async def story() -> None:
        some = turns(4, 2)
        greedy = [asyncio.create_task(some.enter("greedy")) for _ in range(64)]
        await asyncio.sleep(0)
        assert sum(task.done() for task in greedy) == 2
        await asyncio.wait_for(some.enter("quiet"), 1)
        for task in greedy:
            task.cancel()
        await asyncio.gather(*greedy, return_exceptions=True)

    asyncio.run(story())


def test_whoever_waits_is_served_in_turn_by_actor():
    async def story() -> None:
        some, order = turns(1, 1), []

        async def work(actor: str, number: int) -> None:
            async with some.turn(actor):
                order.append((actor, number))
                await asyncio.sleep(0)

        tasks = [asyncio.create_task(work("greedy", number)) for number in range(6)]
        tasks += [asyncio.create_task(work(actor, 0)) for actor in ("a", "b")]
        await asyncio.gather(*tasks)
        assert [actor for actor, _ in order[:4]] == ["greedy", "greedy", "a", "b"]
        assert [number for actor, number in order if actor == "greedy"] == list(range(6))

    asyncio.run(story())


def test_what_an_actor_may_have_waiting_is_bounded():
    async def story() -> None:
        some = turns(1, 1, waiting_max=2)
        await some.enter("greedy")
        waiting = [asyncio.create_task(some.enter("greedy")) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(BusyError) as refused:
            await some.enter("greedy")
        assert refused.value.code == "queries.too_many"
        other = asyncio.create_task(some.enter("other"))
        await asyncio.sleep(0)
        some.leave("greedy")
        await asyncio.sleep(0)
        assert waiting[0].done() and not other.done()
        some.leave("greedy")
        await asyncio.wait_for(other, 1)
        waiting[1].cancel()

    asyncio.run(story())


STEPS = st.lists(
    st.tuples(st.sampled_from(["enter", "leave", "cancel"]), st.sampled_from("abc"), st.integers(0, 7)), max_size=60
)


@settings(max_examples=60, deadline=None)
@given(STEPS, st.integers(1, 4), st.integers(1, 4))
def test_places_are_neither_lost_nor_given_twice(steps, places, per_actor):
    async def story() -> None:
        some = turns(places, per_actor)
        tasks: list[tuple[str, asyncio.Task[None]]] = []
        inside: Counter[str] = Counter()
        for step, actor, which in steps:
            if step == "enter":
                tasks.append((actor, asyncio.create_task(some.enter(actor))))
            elif step == "leave" and inside[actor]:
                inside[actor] -= 1
                some.leave(actor)
            elif step == "cancel" and tasks:
                tasks[which % len(tasks)][1].cancel()
            for _ in range(3):
                await asyncio.sleep(0)
            for entered in [row for row in tasks if row[1].done()]:
                tasks.remove(entered)
                if not entered[1].cancelled():
                    inside[entered[0]] += 1
            assert inside.total() <= places and max(inside.values(), default=0) <= per_actor
            if inside.total() < places:
                # Nobody waits who could have a place.
                assert all(inside[actor] == per_actor for actor, _ in tasks)
        for actor in list(inside.elements()):
            some.leave(actor)
        while tasks:
            await asyncio.wait([task for _, task in tasks], timeout=5)
            done = [row for row in tasks if row[1].done()]
            assert done, "somebody waits for ever"
            for row in done:
                tasks.remove(row)
                some.leave(row[0])

    asyncio.run(story())


def test_D_a_trivial_query_is_answered_while_64_heavy_ones_are_under_way():
    async def story() -> None:
        queries, go_on = Queries(), threading.Event()
        heavy = []
        for _ in range(64):
            ASKING.set("greedy")
            heavy.append(asyncio.create_task(queries.read(go_on.wait)))
        for _ in range(64):
            heavy.append(asyncio.create_task(queries.list(go_on.wait)))
        await asyncio.sleep(0)
        try:
            ASKING.set("quiet")
            assert await asyncio.wait_for(asyncio.create_task(queries.read(lambda: 7)), 30) == 7
            assert await asyncio.wait_for(asyncio.create_task(queries.list(lambda: 8)), 30) == 8
            assert not any(task.done() for task in heavy)
        finally:
            go_on.set()
        assert await asyncio.gather(*heavy) == [True] * 128

    asyncio.run(story())


def test_the_threads_of_queries_let_others_go_first():
    async def story() -> tuple[int, int, int]:
        queries = Queries()
        nice = lambda: os.getpriority(os.PRIO_PROCESS, 0)  # noqa: E731
        return nice(), await queries.read(nice), await queries.list(nice)

    own, read, many = asyncio.run(story())
    assert own < read < many
    assert limits.QUERY_THREADS_MIN >= 4, "half of it, and half of that, are threads still"
