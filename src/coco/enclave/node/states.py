"""The life of a node's service as a table: its states, and which one may follow which.

A process start is a new node identity, always: no key, vote or term is ever read back.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from coco.errors import FaultError


class State(StrEnum):
    """What a node's service is doing; the names are those on the wire and in the ledger."""

    STARTING = "Starting"
    #: This node comes to the ledger of a network that runs.
    JOINING = "Joining"
    #: Members have not opened the service yet: nodes join and members govern, participants wait.
    OPENING = "Opening"
    #: A former life was read, and this node's identity is in the ledger.
    RECOVERING = "Recovering"
    #: Members state that this identity continues the former one, and give their shares.
    WAITING_FOR_SHARES = "WaitingForRecoveryShares"
    OPEN = "Open"


#: States in which nodes join and members govern.
GOVERNED: Final = frozenset({State.OPENING, State.OPEN})

_NEXT: Final[dict[State, frozenset[State]]] = {
    State.STARTING: frozenset({State.OPENING, State.OPEN, State.JOINING, State.RECOVERING}),
    State.JOINING: frozenset({State.OPENING, State.OPEN}),
    State.OPENING: frozenset({State.OPEN}),
    State.RECOVERING: frozenset({State.WAITING_FOR_SHARES}),
    State.WAITING_FOR_SHARES: frozenset({State.OPEN}),
    State.OPEN: frozenset(),
}


class Life:
    """Where one node is in the table."""

    def __init__(self) -> None:
        self._state = State.STARTING

    @property
    def state(self) -> State:
        """The state that it is in."""
        return self._state

    @property
    def is_open(self) -> bool:
        """Whether participants are served."""
        return self._state is State.OPEN

    @property
    def is_governed(self) -> bool:
        """Whether nodes join and members govern: the service is open, or members are about to open it."""
        return self._state in GOVERNED

    def become(self, state: State) -> None:
        """Go on to a state; being in it already is fine.

        Raises:
            FaultError: the table has no way from here to there.
        """
        if state is not self._state and state not in _NEXT[self._state]:
            raise FaultError(f"no way leads from {self._state} to {state}", code="node.bad_transition")
        self._state = state
