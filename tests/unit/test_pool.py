"""The pool against what it promises: order in a lane, bounds, and that it never forgets what it took."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coco import limits
from coco.enclave.adapters.contract import Envelope, PoolPolicy
from coco.enclave.ordering.pool import Pool

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


class Depending(PoolPolicy):
    """Knows what was executed."""

    def __init__(self, *done: int) -> None:
        self.done = {bytes([number]) for number in done}

    def executed(self, identities, view):
        return [identity in self.done for identity in identities]


def test_what_is_needed_and_was_never_seen_is_waited_for():
    pool = Pool(Depending(9))
    sent = [envelope(1, "", None, 3), envelope(2, "a", None, 9), envelope(4, "", None, 1, 2), envelope(5)]
    assert codes(pool.add(sent, VIEW, 0)) == [None] * 4
    assert len(pool) == 4 and pool.get(bytes([1])) is sent[0]
    assert codes(pool.add([sent[0]], VIEW, 0)) == ["pool.already_known"]
    batch = pool.take(10, 1000)
    assert numbers(batch) == [2, 5]
    assert not pool.ready, "what waits for others is no work"
    pool.done(batch)
    assert pool.take(10, 1000) == [], "1 is still to be done"
    pool.add([envelope(3)], VIEW, 1)
    for number in (3, 1, 4):
        batch = pool.take(10, 1000)
        assert numbers(batch) == [number]
        pool.done(batch)
    assert len(pool) == 0 and not pool._parked and not pool._dependants


def test_what_waits_for_others_expires_and_holds_its_actors_room(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(limits, "POOL_ACTOR_TRANSACTIONS_MAX", 2)
    pool = Pool(Depending())
    waiting = [envelope(1, "", None, 8), envelope(2, "", None, 8, 9), envelope(3, "", None, 8)]
    assert codes(pool.add(waiting, VIEW, 0)) == [None, None, "pool.actor_full"]
    assert numbers(pool.expire(1)) == [1, 2]
    assert len(pool) == 0 and not pool._parked and not pool._dependants
    assert codes(pool.add(waiting[2:], VIEW, 2)) == [None]
    # Done elsewhere is done; in a lane that counts, its place may be taken meanwhile.
    pool.release([bytes([8])])
    assert numbers(pool.take(10, 1000)) == [3]
    pool.clear()
    pool.add([envelope(1, "a", 0, 8), envelope(2, "a", 0)], VIEW, 3)
    assert numbers(pool.take(10, 1000)) == [2]
    pool.release([bytes([8])])
    assert not pool.ready and len(pool) == 0 and numbers(pool.take_replaced()) == [1]


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


# --- D: shares of actors ---


def of(actor: str, number: int, *, cost: int = 1, lane: str = "", position: int | None = None) -> Envelope:
    return Envelope(number.to_bytes(4, "big"), None, 10, lane or actor, position, cost=cost, actor=actor)


def actors(batch: list[Envelope]) -> str:
    return "".join(one.actor for one in batch)


class Turns(PoolPolicy):
    turn = 4


def test_D_actors_take_turns_by_cost_and_lanes_within_an_actor():
    pool = Pool(Turns())
    greedy = [of("g", number, lane=f"lane {number % 40}") for number in range(200)]
    pool.add([*greedy, of("q", 900), of("q", 901), of("r", 902, cost=4), of("r", 903)], VIEW, 0)
    batch = pool.take(12, 10_000)
    assert actors(batch) == "ggggqqrggggr"
    lanes = [one.lane for one in batch if one.actor == "g"]
    assert len(set(lanes)) == len(lanes), "a lane waits for the others of its actor"
    assert actors(pool.take(200, 10_000)) == "g" * 192, "and whoever is alone has all"


def test_D_the_actor_is_who_handed_it_in_whatever_account_signed_it():
    pool = Pool(Turns())
    # Forty accounts are no forty turns.
    pool.add([of("g", number, lane=f"account {number}", cost=4) for number in range(40)], VIEW, 0)
    pool.add([of("q", 100, cost=4), of("q", 101, cost=4)], VIEW, 0)
    assert actors(pool.take(4, 10_000)) == "gqgq"


def test_D_a_lane_of_two_actors_is_each_ones_at_its_turn():
    pool = Pool(Nonces())
    pool.add([of("g", 1, lane="x", position=0), of("q", 2, lane="x", position=1)], VIEW, 0)
    pool.add([of("g", 3, lane="x", position=2), of("g", 4, lane="y", position=0)], VIEW, 0)
    taken = pool.take(10, 10_000)
    assert [one.position for one in taken if one.lane == "x"] == [0, 1, 2]
    pool.give_back(taken, VIEW, 0)
    assert [one.position for one in pool.take(10, 10_000) if one.lane == "x"] == [0, 1, 2]
    assert not pool.ready and len(pool) == 0


def test_D_an_envelope_that_costs_many_turns_gets_them():
    pool = Pool(Turns())
    pool.add([of("g", 1, cost=10**30)], VIEW, 0)
    pool.add([of("q", 10 + number) for number in range(400)], VIEW, 0)
    seen = ""
    for _ in range(40):
        seen += actors(pool.take(10, 10_000))
    assert seen.count("g") == 1 and seen.index("g") <= 4 * 64


def test_D_who_was_not_served_is_first_next_time():
    pool = Pool(Turns())
    pool.add([of("g", number) for number in range(8)], VIEW, 0)
    pool.add([of("q", 100)], VIEW, 0)
    batch = pool.take(9, 10_000)
    assert actors(batch) == "ggggqgggg"
    # The time was over after the first.
    pool.done(batch[:1])
    pool.give_back(batch[1:], VIEW, 0, served={"g"})
    again = pool.take(9, 10_000)
    assert actors(again) == "qggggggg"
    assert [one.id for one in again if one.actor == "g"] == [one.id for one in batch[1:] if one.actor == "g"]


def test_D_who_waited_in_vain_comes_before_who_has_more_to_run():
    pool = Pool(Turns())
    pool.add([of("g", number) for number in range(20)], VIEW, 0)
    pool.add([of("q", 100), of("r", 101)], VIEW, 0)
    batch = pool.take(6, 10_000)
    assert actors(batch) == "ggggqr"
    pool.done(batch[:4])
    pool.give_back(batch[4:], VIEW, 0, served={"g"})
    assert actors(pool.take(6, 10_000)) == "qrgggg"


def test_D_whoever_took_long_rests_while_another_one_is_active(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(limits, "POOL_DEBT_MS_MAX", 0)
    pool = Pool(Turns())
    pool.add([of("g", number) for number in range(9)], VIEW, 0, now_s=10.0)
    pool.done(pool.take(1, 10_000, now_s=10.0))
    pool.spent({"g": 0.7}, 10.7)
    assert pool.rest_s(10.7) == 0 and actors(pool.take(1, 10_000, now_s=10.7)) == "g", "alone it need not"
    pool.add([of("q", 100)], VIEW, 0, now_s=11.0)
    pool.spent({"g": 0.7}, 11.0)
    assert actors(pool.take(9, 10_000, now_s=11.0)) == "q"
    assert pool.ready
    rest_s = pool.rest_s(11.0)
    assert rest_s == pytest.approx(3 * (0.7 + 0.7 - 0.1))
    assert pool.take(9, 10_000, now_s=11.9) == [], "it rests also while the other one waits for its answer"
    # Nobody else has handed anything in for a while.
    assert actors(pool.take(2, 10_000, now_s=12.1)) == "gg"
    pool.add([of("q", 101)], VIEW, 0, now_s=12.2)
    assert actors(pool.take(9, 10_000, now_s=12.2)) == "q"
    assert actors(pool.take(1, 10_000, now_s=11.0 + rest_s + 0.001)) == "g"


def test_D_two_who_took_long_do_not_wait_for_each_other():
    pool = Pool(Turns())
    pool.add([of(actor, number) for number, actor in enumerate("ghgh")], VIEW, 0, now_s=1.0)
    pool.spent({"g": 5.0, "h": 5.0}, 1.0)
    assert pool.rest_s(1.0) == 0
    assert actors(pool.take(9, 10_000, now_s=1.0)) == "gghh"


def test_D_one_actor_cannot_fill_the_pool(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(limits, "POOL_ACTOR_TRANSACTIONS_MAX", 3)
    pool = Pool(Turns())
    assert codes(pool.add([of("g", number, lane=f"{number}") for number in range(4)], VIEW, 0)) == [
        *[None] * 3,
        "pool.actor_full",
    ]
    assert codes(pool.add([of("q", 100)], VIEW, 0)) == [None]
    pool.done(pool.take(1, 10_000))
    assert codes(pool.add([of("g", 50)], VIEW, 0)) == [None]
    monkeypatch.setattr(limits, "POOL_ACTOR_TRANSACTIONS_MAX", 100)
    monkeypatch.setattr(limits, "POOL_ACTOR_BYTES_MAX", 35)
    assert codes(pool.add([of("g", 60), of("q", 101)], VIEW, 0)) == ["pool.actor_full", None]


def test_D_a_replacement_by_another_actor_is_that_ones():
    class Replaced(Nonces):
        def replaces(self, new, old):
            return None

    pool = Pool(Replaced())
    pool.add([of("g", 1, lane="x", position=0)], VIEW, 0)
    assert codes(pool.add([of("q", 2, lane="x", position=0)], VIEW, 0)) == [None]
    assert [one.id[3] for one in pool.take_replaced()] == [1]
    assert actors(pool.take(9, 10_000)) == "q"
    assert not pool.ready and len(pool) == 0


def test_D_who_has_gone_is_forgotten():
    pool = Pool(Turns())
    pool.add([of("g", 1)], VIEW, 0, now_s=1.0)
    pool.done(pool.take(9, 10_000, now_s=1.0))
    pool.spent({"g": 10.0}, 1.0)
    pool.expire(0, now_s=5.0)
    assert list(pool._shares) == ["g"], "what it owes is remembered"
    pool.expire(0, now_s=60.0)
    assert not pool._shares


TRAFFIC = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.sampled_from("ghq"), st.integers(1, 30)),
        st.tuples(st.just("take"), st.integers(1, 6), st.integers(0, 6)),
        st.tuples(st.just("spent"), st.sampled_from("ghq"), st.integers(0, 900)),
        st.tuples(st.just("wait"), st.integers(1, 3000), st.none()),
        st.tuples(st.just("refresh"), st.none(), st.none()),
    ),
    max_size=80,
)


@given(TRAFFIC)
def test_D_nothing_is_lost_nobody_starves_and_lanes_keep_their_order(steps):
    """Random traffic of three actors; a part of each batch comes back, as after a block whose time was over."""
    policy = Nonces()
    policy.turn = 8
    pool, now_s, number = Pool(policy), 1.0, 0
    positions = dict.fromkeys("ghq", 0)
    ran: dict[str, list[int]] = {actor: [] for actor in "ghq"}
    waiting: dict[str, int] = dict.fromkeys("ghq", 0)

    def take(count: int, done: int, at_s: float) -> list[Envelope]:
        batch = pool.take(count, 10_000, now_s=at_s)
        done = max(done, 1)
        for one in batch[:done]:
            assert one.position is not None
            ran[one.actor].append(one.position)
            policy.state[one.lane] = one.position + 1
            waiting[one.actor] -= 1
        pool.done(batch[:done])
        pool.give_back(batch[done:], VIEW, 0, served={one.actor for one in batch[:done]})
        return batch[:done]

    for step, first, second in steps:
        if step == "add":
            one = of(first, number, cost=second, position=positions[first])
            assert pool.add([one], VIEW, 0, now_s=now_s) == [None]
            number, positions[first] = number + 1, positions[first] + 1
            waiting[first] += 1
        elif step == "take":
            take(first, second, now_s)
        elif step == "spent":
            pool.spent({first: second / 1000}, now_s)
        elif step == "wait":
            now_s += first / 1000
        else:
            pool.refresh(list("ghq"), VIEW)
        assert len(pool) == sum(waiting.values())
        assert pool.ready == (len(pool) > 0)
        for actor, share in pool._shares.items():
            assert share.count == waiting[actor] and share.size == 10 * waiting[actor]
            assert bool(share.ready) == (actor in pool._ring) == (waiting[actor] > 0)
            assert 0 <= share.deficit <= 8 + 8 * 64 + 30 * (waiting[actor] + 6)
        if pool.ready and not pool.rest_s(now_s):
            served = take(1, 1, now_s)
            assert len(served) == 1, "something is ready, and nobody has to rest"
    # From now on `q` hands in one at a time, and `g` and `h` have much: none of them waits for long.
    since = dict.fromkeys("ghq", 0)
    for _ in range(60):
        for actor in "ghq":
            while waiting[actor] < (1 if actor == "q" else 5):
                one = of(actor, number, cost=30 if actor == "g" else 3, position=positions[actor])
                pool.add([one], VIEW, 0, now_s=now_s)
                number, positions[actor] = number + 1, positions[actor] + 1
                waiting[actor] += 1
        now_s += 5.0  # everybody has rested
        these = set(actors(take(4, 2, now_s)))
        for actor in "ghq":
            since[actor] = 0 if actor in these else since[actor] + 1
            assert since[actor] <= 12, f"{actor} starves"
    assert all(order == sorted(order) for order in ran.values())
    assert all(order == list(range(len(order))) for order in ran.values()), "in order and without gap"
