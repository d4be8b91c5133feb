"""Settings that members vote on: what there is, in which bounds, and what holds where nobody has said anything."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from coco.configuration.reads import Gets
from coco.errors import GovernanceError
from coco.ledger import tables

_DAY_S = 24 * 3600


@dataclass(frozen=True)
class _Number:
    least: int
    most: int
    default: int

    def accepts(self, value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and self.least <= value <= self.most

    def __str__(self) -> str:
        return f"a number from {self.least} to {self.most}"


@dataclass(frozen=True)
class _OneOf:
    values: tuple[str, ...]
    default: str

    def accepts(self, value: Any) -> bool:
        return value in self.values

    def __str__(self) -> str:
        return " or ".join(self.values)


PRIVATE, PARTICIPANTS = "private", "participants"

SETTINGS: Mapping[str, _Number | _OneOf] = {
    #: Shares of recovery members that recover the service.
    "recovery_threshold": _Number(1, 254, 1),
    #: Requests of each member that are remembered so that none counts twice.
    "recent_cose_proposals_window_size": _Number(1, 10_000, 100),
    #: Seconds for which a proposal may be decided.
    "proposal_lifetime_s": _Number(_DAY_S, 365 * _DAY_S, 30 * _DAY_S),
    #: Certificates of nodes count at most so long; the primary renews them before they end.
    "maximum_node_certificate_validity_days": _Number(1, 3650, 7),
    #: Seconds after which another ledger secret is used.
    "epoch_length_s": _Number(10, 3650 * _DAY_S, 30 * _DAY_S),
    #: Seconds for which a former ledger secret stays in memory after it was last needed.
    "secret_lifetime_s": _Number(1, 3650 * _DAY_S, 3600),
    #: How far the clock of a starting node's host may be from the time of the network that it joins, either way; and
    #: behind the end of a ledger that it recovers.
    "start_clock_skew_s": _Number(10, 3650 * _DAY_S, 300),
    #: How far it may be ahead of the end of a ledger that it recovers, without its operator's word.
    "start_clock_gap_s": _Number(60, 3650 * _DAY_S, _DAY_S),
    #: Who sees transactions and accounts that nothing else is said about: their parties, or every participant.
    "default_visibility": _OneOf((PRIVATE, PARTICIPANTS), PRIVATE),
}


#: Those that the version before did not have (commit fa5f8b7).
SINCE = frozenset({"proposal_lifetime_s", "start_clock_skew_s", "start_clock_gap_s"})


def complete(known: Mapping[str, Any]) -> dict[str, Any]:
    """Every setting: what is known, and the default of what is not."""
    return {**{name: kind.default for name, kind in SETTINGS.items()}, **known}


def in_force(rows: Gets) -> dict[str, Any]:
    """Every setting, as members have set it."""
    return complete(json.loads(rows.get(tables.SERVICE_CONFIG, tables.SINGLETON) or b"{}"))


def check(given: Mapping[str, Any]) -> None:
    """Whether each is one, in its bounds.

    Raises:
        GovernanceError: one is not (``gov.bad_argument``).
    """
    for name, value in given.items():
        kind = SETTINGS.get(name)
        if kind is None:
            raise GovernanceError(f"there is no setting {name[:64]}", code="gov.bad_argument")
        if not kind.accepts(value):
            raise GovernanceError(f"{name} must be {kind}", code="gov.bad_argument")
