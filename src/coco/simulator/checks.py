"""What must hold in every run, checked at every step by an observer who sees all nodes.

One primary for each view · every position is sealed once · agreement on every committed entry · *committed* only of
what a signature covers that the disks of a majority hold · a reported commit never goes back · no transaction twice ·
nothing acknowledged is lost · a linearizable read sees what was acknowledged before it · all agree once the faults end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256

from coco.consensus import LedgerEntry, Members
from coco.ledger.transaction_id import TransactionId
from coco.simulator.model import State, Violation
from coco.simulator.world import Disk


class Checks:
    """The observer."""

    def __init__(self) -> None:
        self._primaries: dict[int, int] = {}
        self._sealed: dict[TransactionId, bytes] = {}
        self._signatures: set[TransactionId] = set()
        self._agreed: dict[int, tuple[TransactionId, bytes]] = {}
        self._reported: dict[int, int] = {}
        self._before: dict[Members, set[Members]] = {}
        #: Transactions of which a client knows that they are committed.
        self.acknowledged: set[str] = set()
        self.commits = self.reads = 0

    def promoted(self, node: int, view: int) -> None:
        """A node says that it is primary."""
        if self._primaries.setdefault(view, node) != node:
            raise Violation(f"nodes {self._primaries[view]} and {node} are both primary of view {view}")

    def sealed(self, entry: LedgerEntry) -> None:
        """A primary sealed an entry."""
        digest = sha256(entry.data).digest()
        if entry.is_signature:
            self._signatures.add(entry.position)
        if self._sealed.setdefault(entry.position, digest) != digest:
            raise Violation(f"position {entry.position} was sealed twice")

    def applied(self, node: int, entry: LedgerEntry) -> None:
        """A node takes an entry for committed by the engine."""
        found = (entry.position, sha256(entry.data).digest())
        agreed = self._agreed.setdefault(entry.position.seqno, found)
        if agreed != found:
            raise Violation(f"node {node} has {entry.position} where another has {agreed[0]}")

    def committed(
        self, node: int, position: TransactionId, configurations: Sequence[Members], disks: Mapping[int, Disk]
    ) -> None:
        """A node reports a commit.

        Args:
            node: who reports.
            position: what is committed.
            configurations: those that were in force here since its last report; it was committed in one of them, or in
                the one before: the primary may count by that one until it has applied the change.
            disks: of all engine ids, as their processes left them.
        """
        self.commits += 1
        if position not in self._signatures:
            raise Violation(f"node {node} reports {position}, which is no signature")
        if position.seqno < self._reported.get(node, 0):
            raise Violation(f"the commit of node {node} went back to {position}")
        self._reported[node] = position.seqno
        for members in [*configurations, *self._before.get(configurations[0], ())]:
            held = [sum(disks[n].holds(position) for n in voters) for voters in members.majorities]
            needed = [len(voters) // 2 + 1 for voters in members.majorities]
            if all(count >= enough for count, enough in zip(held, needed, strict=True)):
                return
        raise Violation(f"node {node} reports {position}, which {held} disks hold where {needed} must")

    def configured(self, before: Members, members: Members) -> None:
        """A node went from one configuration to another."""
        self._before.setdefault(members, set()).add(before)

    def read(self, node: int, before: frozenset[str], state: State, committed: int) -> None:
        """A linearizable read was served up to ``committed``; ``before`` was acknowledged before it was asked for."""
        self.reads += 1
        missing = [one for one in before if state.executed.get(one, committed + 1) > committed]
        if missing:
            raise Violation(f"a linearizable read at node {node} misses {min(missing)}")

    def final(self, states: Mapping[int, State]) -> None:
        """The network is healed and quiet."""
        digests = {state.digest for state in states.values()}
        if len(digests) != 1:
            where = {node: str(state.position) for node, state in states.items()}
            raise Violation(f"the nodes did not converge: {where}")
        for node, state in states.items():
            lost = self.acknowledged - state.executed.keys()
            if lost:
                raise Violation(f"node {node} lost the acknowledged transaction {min(lost)}")
