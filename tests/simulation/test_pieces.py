"""Entries in pieces, in logs that primaries overwrite: what is whole in the log is known, whatever was written before."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coco import limits
from coco.consensus import Driver, LedgerEntry, Members, Start
from coco.consensus.pieces import Assembler, cut
from coco.ledger.transaction_id import TransactionId

#: Term, and context and data of a piece; no context: the engine's own entry, with which a term begins.
Slot = tuple[int, bytes, bytes]


def whole(log: list[Slot]) -> list[TransactionId]:
    """The entries of a log that are whole, by looking at all of it."""
    found, assembler = [], Assembler()
    for index, (_, context, data) in enumerate(log, 1):
        if not context:
            assembler = Assembler()
        elif (entry := assembler.add(index, context, data)) is not None:
            found.append(entry.position)
    return found


def extend(log: list[Slot], term: int, sizes: list[int], lacking: int) -> list[Slot]:
    """What the primary of a term writes after a log; ``lacking`` of its last slots do not reach anybody."""
    made = [*log, (term, b"", b"")]
    seqno = whole(log)[-1].seqno if whole(log) else 0
    for size in sizes:
        seqno += 1
        entry = LedgerEntry(TransactionId(term + 1, seqno), bytes(size * limits.PIECE_BYTES_MAX), False)
        made += [(term, context, data) for context, data in cut(entry)]
    return made[: max(len(log) + 1, len(made) - lacking)]


stories = st.lists(
    st.tuples(
        st.integers(0, 30),  # which earlier log the primary has
        st.integers(0, 30),  # how much of it
        st.lists(st.integers(1, 4), max_size=3),
        st.integers(0, 4),
        st.integers(1, 6),  # how many slots come at once
    ),
    min_size=1,
    max_size=8,
)


@pytest.fixture(autouse=True, scope="module")
def small_pieces():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "PIECE_BYTES_MAX", 1)
        yield


@settings(max_examples=300, deadline=None)
@given(stories)
def test_whatever_primaries_overwrite_what_is_whole_is_known(story):
    engine: Any = object()
    driver = Driver(1, Start(Members((1, 2, 3))), engine=engine)
    logs: list[list[Slot]] = [[]]
    mine: list[Slot] = []
    for term, (which, length, sizes, lacking, step) in enumerate(story, 1):
        base = logs[which % len(logs)]
        # Either it goes on from a part of an earlier log, as a primary of another term; or that log itself comes back.
        made = extend(base[: length % (len(base) + 1)], term, sizes, lacking) if sizes else base
        logs.append(made)
        same = 0
        while same < min(len(mine), len(made)) and mine[same] == made[same]:
            same += 1
        if same == len(made):
            continue  # nothing of it is new, and nothing is overwritten
        for first in range(same, len(made), step):
            slots = made[first : first + step]
            given_ = [(first + n + 1, t, False, context, data) for n, (t, context, data) in enumerate(slots)]
            driver._store(1, given_)
            mine = [*mine[:first], *slots]
            assert [placed.entry.position for placed in driver._log] == whole(mine)
            for placed in driver._log:
                assert mine[placed.first - 1][1] and mine[placed.last - 1][1]
