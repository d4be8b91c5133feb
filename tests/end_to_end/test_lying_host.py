"""A campaign against lying hosts (``tests/faults/lying_host.py``): some lives here, many in ``make soak``."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent.parent / "faults"))
import lying_host


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("begin", [0, lying_host.LIVES_MAX])
def test_no_lie_of_a_host_loses_forks_or_leaks_anything_and_each_is_named(begin):
    told: list[str] = []
    wrong = asyncio.run(lying_host.campaign(range(begin, begin + lying_host.LIVES_MAX), told.append))
    assert wrong == [], "\n".join(told)
    assert len(told) == lying_host.LIVES_MAX + 1


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_no_lie_about_snapshots_or_the_index_harms_whoever_joins_while_the_liar_leads():
    told: list[str] = []
    seeds = [seed for seed, lie in enumerate(lying_host.LEADING_LIES) if issubclass(lie, lying_host.LiesAboutSnapshots)]
    index = lying_host.LEADING_LIES.index(lying_host.LiesAboutIndex)
    wrong = asyncio.run(lying_host.campaign([*seeds[:2], index], told.append, lead=True))
    assert wrong == [], "\n".join(told)
    assert len(told) == 4


def test_the_campaign_would_see_what_it_looks_for():
    assert lying_host.leaks(b"x" + lying_host.CANARY + b"y") and lying_host.leaks(lying_host.CANARY.hex().encode())
    assert not lying_host.leaks(lying_host.CANARY[:-1])
