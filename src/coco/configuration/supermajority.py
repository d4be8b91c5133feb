"""The way to replace rules that no rules can close: so many active members as the genesis fixed for ever.

Rules (G2):

* Rules may recognise every question that the framework asks them and answer it well, and any other one badly. So a
  proposal that does nothing but replace the rules is accepted by a supermajority whatever they say, or if they fail.
* The rules in force may accept such a proposal too, but only as it is; while a supermajority can still be reached, they
  cannot end it: not by refusing, rejecting, accepting without effect, or having others drop it.
* In production such a proposal names the service, as every other does: it does nothing in another network.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Set
from typing import Any

from coco.configuration.draft import Draft
from coco.errors import ConfigurationError

ASSERT_SERVICE, SET_CONSTITUTION = "assert_service_identity", "set_constitution"
#: In a proposal's row: the rules in force decide nothing about it.
ONLY = "only_by_supermajority"
#: Of networks that were founded before there was one.
DEFAULT = "2/3"
_FRACTION = re.compile(r"([1-9][0-9]?)/([1-9][0-9]?)")


def fraction(text: str) -> tuple[int, int]:
    """Numerator and denominator of a share such as ``2/3``.

    Raises:
        ConfigurationError: it is none of more than a half and at most all (``configuration.genesis``).
    """
    found = _FRACTION.fullmatch(text)
    part, whole = (int(found[1]), int(found[2])) if found else (0, 1)
    if not whole < 2 * part <= 2 * whole:
        raise ConfigurationError(
            "rules_supermajority is a share like 2/3: more than a half, at most all", code="configuration.genesis"
        )
    return part, whole


def is_way(draft: Draft, listed: list[Any]) -> bool:
    """Whether a proposal does nothing but replace the rules."""
    names = [one.get("name") if isinstance(one, dict) else None for one in listed]
    named = ASSERT_SERVICE in names or not draft.production
    return named and names.count(SET_CONSTITUTION) == 1 and set(names) <= {SET_CONSTITUTION, ASSERT_SERVICE}


def needed(genesis: Mapping[str, Any], members: int) -> int:
    """How many of so many active members are a supermajority."""
    part, whole = fraction(str(genesis.get("rules_supermajority", DEFAULT)))
    return max(1, -(-part * members // whole))


def is_reached(genesis: Mapping[str, Any], active: Set[str], ballots: Mapping[str, bool]) -> bool:
    """Whether so many active members voted for it."""
    return sum(ballots.get(name) is True for name in active) >= needed(genesis, len(active))


def is_reachable(genesis: Mapping[str, Any], active: Set[str], ballots: Mapping[str, bool]) -> bool:
    """Whether so many have not voted against it."""
    return sum(ballots.get(name) is not False for name in active) >= needed(genesis, len(active))
