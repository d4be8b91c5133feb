"""The pool against what it promises: order in a lane, bounds, and that it never forgets what it took."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coco import limits
from coco.enclave.adapters.base import Envelope, PoolPolicy
from coco.enclave.pool import Pool

VIEW: Any = None


class Nonces(PoolPolicy):
    """Lanes go on where ``state`` says."""

    def __init__(self) -> None:
        self.state: dict[Any, int] = {}

    def next_positions(self, lanes, view):
        return [self.state.get(lane, 0) for lane in lanes]


def envelope(number: int, lane: str = "", position: int | None = None, *needs: int) -> Envelope:
    return Envelope(bytes([number]), None, 10, lane, position, tuple(bytes([one]) for one in needs))


def numbers(batch: list[Envelope]) -> list[int]:
    return [one.id[0] for one in batch]


def codes(verdicts) -> list[str | None]:
    return [None if error is None else error.code for error in verdicts]


def test_a_refusal_strands_nothing_that_arrived_behind_it():
    pool = Pool(PoolPolicy())
    pool.add([envelope(1)], VIEW, 0)
    taken = pool.take(10, 1000)
    pool.add([envelope(2), envelope(3)], VIEW, 0)
    pool.done(taken)
    pool.refresh([""], VIEW)
    assert numbers(pool.take(10, 1000)) == [2, 3]


def test_lanes_without_positions_keep_the_order_of_arrival_each():
    pool = Pool(PoolPolicy())
    pool.add([envelope(1, "a"), envelope(2, "b"), envelope(3, "a"), envelope(4, "b")], VIEW, 0)
    assert numbers(pool.take(10, 1000)) == [1, 2, 3, 4]
    assert not pool.ready


def test_what_it_needs_may_arrive_later():
    pool = Pool(PoolPolicy())
    pool.add([envelope(1, "", None, 3), envelope(2), envelope(3)], VIEW, 0)
    assert numbers(pool.take(10, 1000)) == [2, 3, 1]
    pool.add([envelope(4, "", None, 5), envelope(5, "", None, 4)], VIEW, 0)
    assert pool.take(10, 1000) == [], "each waits for the other"
    assert sorted(numbers(pool.expire(1))) == [4, 5]
    assert not pool.ready and len(pool) == 0


def test_a_gap_waits_and_a_passed_position_is_refused():
    policy = Nonces()
    policy.state["a"] = 5
    pool = Pool(policy)
    assert codes(pool.add([envelope(1, "a", 4), envelope(2, "a", 6)], VIEW, 0)) == ["pool.position_passed", None]
    assert not pool.ready
    assert pool.pending_position("a") == 5
    assert codes(pool.add([envelope(3, "a", 5)], VIEW, 0)) == [None]
    assert pool.pending_position("a") == 7
    assert numbers(pool.take(10, 1000)) == [3, 2]


def test_after_a_refusal_a_lane_goes_on_where_the_state_is():
    pool = Pool(Nonces())
    pool.add([envelope(1, "a", 0), envelope(2, "a", 1)], VIEW, 0)
    taken = pool.take(1, 1000)
    pool.done(taken)
    pool.refresh(["a"], VIEW)  # refused: the state's nonce is 0 still
    assert not pool.ready
    assert codes(pool.add([envelope(3, "a", 0)], VIEW, 0)) == [None]
    assert numbers(pool.take(10, 1000)) == [3, 2]


def test_what_is_given_back_runs_first():
    pool = Pool(Nonces())
    pool.add([envelope(1, "a", 0), envelope(2, "a", 1), envelope(3), envelope(4)], VIEW, 0)
    taken = pool.take(10, 1000)
    pool.add([envelope(5, "a", 2), envelope(6)], VIEW, 0)
    pool.give_back(taken, VIEW, 0)
    again = numbers(pool.take(10, 1000))
    assert [n for n in again if n in (1, 2, 5)] == [1, 2, 5]
    assert [n for n in again if n in (3, 4, 6)] == [3, 4, 6]


def test_the_named_limits_hold(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(limits, "POOL_LANE_MAX", 2)
    monkeypatch.setattr(limits, "POOL_TRANSACTIONS_MAX", 4)
    pool = Pool(Nonces())
    lane = [envelope(number, "a", number) for number in range(3)]
    assert codes(pool.add(lane, VIEW, 0)) == [None, None, "pool.lane_full"]
    assert codes(pool.add([envelope(7), envelope(8), envelope(9)], VIEW, 0)) == [None, None, "pool.full"]
    assert codes(pool.add([envelope(7)], VIEW, 0)) == ["pool.already_known"]


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.sampled_from("abc"), st.integers(0, 40)),
        st.tuples(st.just("take"), st.integers(1, 5), st.sampled_from(["done", "refuse", "back"])),
        st.tuples(st.just("expire"), st.integers(0, 30), st.none()),
    ),
    max_size=60,
)


@given(STEPS)
def test_every_accepted_envelope_is_taken_or_expires(steps):
    pool = Pool(PoolPolicy())
    inside: set[int] = set()
    number = 0
    for time_ms, (step, first, second) in enumerate(steps):
        if step == "add":
            # An envelope may need one that was there before, one that comes later, or none that exists.
            one = envelope(number, str(first), None, *((int(second),) if int(second) != number else ()))
            assert pool.add([one], VIEW, time_ms) == [None]
            inside.add(number)
            number += 1
        elif step == "take":
            batch = pool.take(int(first), 1000)
            assert set(numbers(batch)) <= inside
            if second == "back":
                pool.give_back(batch, VIEW, time_ms)
                continue
            pool.done(batch)
            if second == "refuse":
                pool.refresh([one.lane for one in batch], VIEW)
            inside -= set(numbers(batch))
        else:
            inside -= set(numbers(pool.expire(int(first))))
        assert len(pool) == len(inside)
    for _ in range(number + 1):
        batch = pool.take(100, 10_000)
        pool.done(batch)
        inside -= set(numbers(batch))
    # What is left waits for one another.
    left = pool.expire(10**6)
    assert set(numbers(left)) == inside
    assert all(any(needed[0] in inside for needed in one.depends_on) for one in left if one.depends_on)
    assert all(one.depends_on for one in left), "an envelope that needs nothing was stranded"
    assert len(pool) == 0 and not pool.ready


def test_G3_a_suspect_runs_alone_and_only_when_it_may():
    pool = Pool(PoolPolicy())
    pool.add([envelope(1, "a"), envelope(2, "b"), envelope(3, "b"), envelope(4, "c")], VIEW, 0)
    pool.suspect(bytes([2]), 2)
    pool.suspect(bytes([9]), 2)
    for outlived in (0, 1):
        assert numbers(pool.take(10, 1000, outlived=outlived)) == [[1, 4, 3], []][outlived], "nobody waits behind it"
        assert pool.ready
    pool.add([envelope(5, "b")], VIEW, 0)
    batch = pool.take(10, 1000, outlived=2)
    assert numbers(batch) == [2], "nothing beside it"
    pool.done(batch)
    assert numbers(pool.take(10, 1000, outlived=0)) == [5]


def test_G3_what_one_primary_died_with_waits_and_runs_with_others():
    pool = Pool(PoolPolicy())
    pool.add([envelope(1, "a"), envelope(2, "b"), envelope(3, "c")], VIEW, 0)
    pool.suspect(bytes([1]), 1)
    pool.suspect(bytes([2]), 1)
    assert numbers(pool.take(10, 1000, outlived=0)) == [3]
    assert numbers(pool.take(10, 1000, outlived=1)) == [1, 2]


def test_G3_a_suspect_in_the_middle_of_a_lane_keeps_its_place():
    pool = Pool(Nonces())
    pool.add([envelope(number, "a", number) for number in range(3)], VIEW, 0)
    pool.suspect(bytes([1]), 2)
    assert [numbers(pool.take(10, 1000, outlived=2)) for _ in range(3)] == [[0], [1], [2]]
