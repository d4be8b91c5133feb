"""One node's part in consensus: drives the engine, and speaks of views, seqnos and ledger entries.

Events go in (a tick, a message, an entry to propose, "this is durable"), actions come out; no clock, socket or disk.
The same class runs in a node and in the simulator. Rules (`docs/consensus.md`):

* The order of every step is the engine's: send, persist, acknowledge, apply. The caller carries actions out in the
  order given, and reports ``persisted`` once everything up to a number is durable.
* The engine's index is not the seqno: elections and changes of the configuration take indices. A view is a term.
* *Committed* is said only of what a signature entry covers that a majority holds; the engine's own commit is earlier.
* A primary applies what it proposes at once, ahead of commit; once deposed it rolls back to what the engine committed.
* A new primary first proposes a signature over whatever its log holds, and nothing else until that is committed.
* Any refusal after sealing means: step down. Nothing is ever sealed again in that view (K2).
* Between ``Install`` and ``installed`` the node is deaf and its clock stands: the engine would panic if it campaigned.
* The engine's timeouts are ticks; nothing that decides what is committed looks at the clock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from coco import limits
from coco._native import Engine
from coco.consensus.pieces import Assembler, LedgerEntry, cut
from coco.errors import ConsensusError
from coco.ledger.transaction_id import TransactionId

#: Before the first entry.
NOWHERE = TransactionId(0, 0)


@dataclass(frozen=True, slots=True)
class Timing:
    """Ticks of the engine. A network wants an election timeout of at least five times round trip and fsync."""

    election_ticks: int = 20
    heartbeat_ticks: int = 2


@dataclass(frozen=True, slots=True)
class Members:
    """Engine ids of a configuration; ``outgoing`` holds the former voters while two configurations count jointly."""

    voters: tuple[int, ...]
    learners: tuple[int, ...] = ()
    outgoing: tuple[int, ...] = ()

    @property
    def majorities(self) -> list[tuple[int, ...]]:
        """Sets of voters of each of which a majority counts."""
        return [voters for voters in (self.voters, self.outgoing) if voters]

    @property
    def all(self) -> frozenset[int]:
        """Every node that messages go to or come from."""
        return frozenset(self.voters + self.learners + self.outgoing)


@dataclass(frozen=True, slots=True)
class Start:
    """Where a node begins to follow: it has the state of ``position``, which holds everything up to ``index``."""

    members: Members
    index: int = 0
    term: int = 0
    position: TransactionId = NOWHERE
    #: Last signature entry at or below it.
    signed: TransactionId = NOWHERE


# --- actions ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Send:
    """Send a message to a peer; it may get lost."""

    to: int
    message: bytes
    is_snapshot: bool


@dataclass(frozen=True, slots=True)
class Persist:
    """Store entries, those above ``truncate_above`` being gone first; then report ``persisted(number)``."""

    number: int
    truncate_above: int | None
    entries: tuple[LedgerEntry, ...]


@dataclass(frozen=True, slots=True)
class Apply:
    """A majority holds these and this node has not applied them: apply, in order."""

    entries: tuple[LedgerEntry, ...]


@dataclass(frozen=True, slots=True)
class RollBack:
    """This node is deposed: everything above ``seqno`` is undone, and what is sealed but not proposed is dropped."""

    seqno: int


@dataclass(frozen=True, slots=True)
class Promoted:
    """This node is primary of ``view``: apply these entries ahead of commit, then propose a signature over them."""

    view: int
    entries: tuple[LedgerEntry, ...]


@dataclass(frozen=True, slots=True)
class ViewChanged:
    """Another view, or its primary became known (0: nobody is)."""

    view: int
    primary: int


@dataclass(frozen=True, slots=True)
class Committed:
    """Everything up to here can be told as committed."""

    position: TransactionId


@dataclass(frozen=True, slots=True)
class MembersChanged:
    """Another configuration is in force."""

    members: Members


@dataclass(frozen=True, slots=True)
class ReadReady:
    """A linearizable read with this context may be served: what it must see is applied."""

    context: bytes


@dataclass(frozen=True, slots=True)
class Install:
    """The log cannot go on from here: get the state that ``pointer`` names, or a later committed one, from any node,
    then call ``installed``."""

    number: int
    index: int
    pointer: bytes


Action = Send | Persist | Apply | RollBack | Promoted | ViewChanged | Committed | MembersChanged | ReadReady | Install


# --- the driver -------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Placed:
    """An entry of the log, with the indices of its first and its last piece."""

    first: int
    last: int
    entry: LedgerEntry


def engine_settings(timing: Timing, seed: int) -> tuple[int, int, int, int, int, int]:
    """Settings of an engine within the limits of :mod:`coco.limits`."""
    return (
        timing.election_ticks,
        timing.heartbeat_ticks,
        limits.APPEND_BYTES_MAX,
        limits.APPENDS_INFLIGHT_MAX,
        limits.UNCOMMITTED_BYTES_MAX,
        seed,
    )


class Driver:
    """One node. Its events return the actions that follow, to be carried out in order before the next event.

    Args:
        node: engine id, never used before by any process.
        start: where the log begins.
        timing: ticks of the engine.
        seed: of the election timeouts.
        view_offset: view of the engine's term 0; a service that goes on from a former one begins above its last view.
        engine: another than a fresh one; for experiments.
    """

    def __init__(
        self,
        node: int,
        start: Start,
        *,
        timing: Timing | None = None,
        seed: int = 0,
        view_offset: int = 1,
        engine: Engine | None = None,
    ) -> None:
        self.node, self.members, self._start = node, start.members, start
        begin = (start.index, start.term, start.members.voters, start.members.learners)
        self._engine = engine or Engine(node, begin, engine_settings(timing or Timing(), seed))
        self._view_offset = view_offset
        #: Last entry that the engine has committed; and last signature entry at or below it.
        self._base, self._signed = start.position, start.signed
        self._applied_index = start.index
        #: Entries of the log above ``_base``, whole.
        self._log: deque[_Placed] = deque()
        self._assembler = Assembler()
        #: Beginnings of entries in the log whose other pieces it lacks: another primary may have them, and bring them.
        self._beginnings: list[Assembler] = []
        #: Messages that wait until everything up to a number is durable.
        self._after: deque[tuple[int, list[Send]]] = deque()
        self._reads: list[tuple[int, bytes]] = []
        #: Last seqno that this node has applied; above ``_base`` only as a primary.
        self.applied = start.position.seqno
        self.view, self.primary, self.is_primary = 0, 0, False
        #: Seqno of the entry that must be committed before this primary may execute; None until it is proposed.
        self._opening: int | None = None
        self._handing_over = False
        self._installing: Install | None = None

    # --- what callers ask ---

    @property
    def last(self) -> TransactionId:
        """Last entry of the log, committed or not."""
        return self._log[-1].entry.position if self._log else self._base

    @property
    def committed(self) -> TransactionId:
        """Everything up to here may be told as committed."""
        return self._signed

    @property
    def may_execute(self) -> bool:
        """Whether this node is primary, has opened its view with a committed signature, and is not handing over."""
        opened = self._opening is not None and self._signed.seqno >= self._opening
        return self.is_primary and opened and not self._handing_over

    @property
    def is_opened(self) -> bool:
        """Whether this primary has proposed the entry that opens its view."""
        return self._opening is not None

    @property
    def anchor(self) -> Start:
        """Where a joiner can begin to follow, once it has the state of ``position``."""
        index = self._applied_index
        if self._log and self._log[0].first <= index:
            index = self._log[0].first - 1
        elif self._assembler.is_within and self._assembler.first <= index:
            index = self._assembler.first - 1
        return Start(self.members, index, self._engine.term_at(index), self._base, self._signed)

    @property
    def held_bytes(self) -> int:
        """Bytes of the entries that are kept for backups."""
        return self._engine.held_bytes()

    def progress(self) -> list[tuple[int, int, bool]]:
        """As primary, of each node: id, index that it holds durably, and whether it is heard of."""
        return self._engine.progress()

    # --- events ---

    def tick(self) -> list[Action]:
        """One tick of the clock."""
        if self._installing is None:
            self._engine.tick()
        return self.advance()

    def campaign(self) -> list[Action]:
        """Ask for an election now, such as when a service is founded."""
        self._engine.campaign()
        return self.advance()

    def receive(self, sender: int, message: bytes) -> list[Action]:
        """A message that came over the channel of ``sender``.

        Raises:
            ConsensusError: it is none (``consensus.bad_message``); the channel is to be closed.
        """
        if self._installing is None:
            self._engine.receive(sender, message)
        return self.advance()

    def propose(self, entry: LedgerEntry) -> list[Action]:
        """Append the next entry, which this node has sealed and applied as the primary of its view.

        Raises:
            ConsensusError: not primary of that view any more (``consensus.not_primary``), or the engine takes no more
                (``consensus.dropped``). In both cases this node is no primary afterwards: it rolls back to ``applied``,
                then carries out what ``advance`` says.
        """
        try:
            # First: it may have been sealed while this node was deposed, and be far from where that rolled back to.
            self._check_primary(entry)
            if entry.position.seqno != self.applied + 1:
                raise ConsensusError(f"{entry.position} is not the next entry", code="consensus.bad_entry")
            for context, data in cut(entry):
                self._engine.propose(entry.position.view - self._view_offset, context, data)
        except ConsensusError:
            self._engine.step_down()
            raise
        if self._opening is None:
            self._opening = self._signed.seqno if self.founds else entry.position.seqno
        self.applied += 1
        return self.advance()

    @property
    def founds(self) -> bool:
        """Whether this life of the service has written nothing yet, and so has nothing to sign first."""
        return self._start.index == 0 and self.applied == self._start.position.seqno

    def _check_primary(self, entry: LedgerEntry) -> None:
        opens = self._opening is None and (entry.is_signature or self.founds)
        if not self.is_primary or entry.position.view != self.view or not (opens or self.may_execute):
            raise ConsensusError(f"not primary of view {entry.position.view}", code="consensus.not_primary")

    def change_members(self, changes: Sequence[tuple[str, int]]) -> list[Action]:
        """Change the configuration as primary: ``("voter" | "learner" | "removed", node)``, all at one moment.

        Raises:
            ConsensusError: not primary, a change is under way, or no majority of the voters after it is heard of
                (``consensus.would_lose_majority``); nothing was changed.
        """
        if not self.may_execute:
            raise ConsensusError("this node is not primary", code="consensus.not_primary")
        voters = set(self.members.voters)
        for kind, node in changes:
            (voters.add if kind == "voter" else voters.discard)(node)
        active = {node for node, _, is_active in self.progress() if is_active} | {self.node}
        if len(voters & active) <= len(voters) // 2:
            raise ConsensusError("the change would lose the majority", code="consensus.would_lose_majority")
        self._engine.propose_changes(self.view - self._view_offset, changes)
        return self.advance()

    def persisted(self, number: int) -> list[Action]:
        """Everything up to ``number`` is durable here."""
        return self._acknowledge(number) + self.advance()

    def _acknowledge(self, number: int) -> list[Action]:
        self._engine.persisted(number)
        actions: list[Action] = []
        while self._after and self._after[0][0] <= number:
            actions += self._after.popleft()[1]
        return actions

    def hand_over(self, to: int) -> list[Action]:
        """Let ``to`` lead; until the outcome is known, nothing is executed here."""
        if self.is_primary:
            self._handing_over = True
            self._engine.transfer(to)
        return self.advance()

    def hand_over_failed(self) -> list[Action]:
        """The other one did not take over in time."""
        self._handing_over = False
        return self.advance()

    def read_index(self, context: bytes) -> list[Action]:
        """Ask for a linearizable read; ``ReadReady`` follows, or never: ask again after a while."""
        self._engine.read_index(context)
        return self.advance()

    def snapshot_sent(self, node: int, arrived: bool) -> list[Action]:
        """A peer has fetched the snapshot that a message pointed to, or gave up."""
        self._engine.snapshot_sent(node, arrived)
        return self.advance()

    def installed(self, position: TransactionId, signed: TransactionId) -> list[Action]:
        """The state that the last ``Install`` asked for is in the store, durably; ``position`` is its last entry."""
        if self._installing is None:
            raise ConsensusError("no state was asked for", code="consensus.not_installing")
        install, self._installing = self._installing, None
        self._log.clear()
        self._assembler, self._beginnings = Assembler(), []
        self._base, self._applied_index, self.applied = position, install.index, position.seqno
        self._signed = max(self._signed, signed)
        actions: list[Action] = []
        self._members_changed(actions, *self._engine.members())
        actions.append(Committed(self._signed))
        actions += self._acknowledge(install.number)
        self._engine.applied(install.index)
        return actions + self.advance()

    def offer_snapshot(self, anchor: Start, pointer: bytes) -> None:
        """There is a snapshot of the state at ``anchor``; peers that are too far behind get its pointer."""
        self._engine.offer_snapshot(anchor.index, pointer)

    def compact(self, anchor: Start) -> None:
        """Forget the log up to ``anchor``."""
        self._engine.compact(anchor.index)

    # --- the engine's work ---

    def advance(self) -> list[Action]:
        """Whatever is due; every event ends with it."""
        actions: list[Action] = []
        while self._installing is None and (work := self._engine.work()) is not None:
            number, messages, after, slots, _, snapshot, committed, reads = work
            self._follow_role(actions)
            actions += [Send(*message) for message in messages]
            self._after.append((number, [Send(*message) for message in after]))
            if snapshot is not None:
                if slots or committed:
                    raise ConsensusError("a snapshot came with entries", code="consensus.bad_snapshot")
                self._installing = Install(number, *snapshot)
                actions.append(self._installing)
                break
            actions.append(self._store(number, slots))
            for index, change in committed:
                self._applied_index = index
                if change is not None:
                    self._members_changed(actions, *self._engine.apply_change(index, change))
            self._take_committed(actions)
            self._reads += reads
            while self._reads and self._reads[0][0] <= self._applied_index:
                actions.append(ReadReady(self._reads.pop(0)[1]))
        return actions

    def _follow_role(self, actions: list[Action]) -> None:
        term, leader, is_primary = self._engine.status()
        view = term + self._view_offset
        if (view, leader, is_primary) == (self.view, self.primary, self.is_primary):
            return
        deposed = self.is_primary and (not is_primary or view != self.view)
        promoted = is_primary and (not self.is_primary or view != self.view)
        self.view, self.primary, self.is_primary = view, leader, is_primary
        if deposed:
            self._opening, self._handing_over = None, False
            self.applied = self._base.seqno
            actions.append(RollBack(self.applied))
        actions.append(ViewChanged(view, leader))
        if promoted:
            self.applied = self.last.seqno
            actions.append(Promoted(view, tuple(placed.entry for placed in self._log)))

    def _store(self, number: int, slots: Sequence[tuple[int, int, bool, bytes, bytes]]) -> Persist:
        truncate_above = None
        entries: list[LedgerEntry] = []
        if slots and self._cut_log(slots[0][0]):
            truncate_above = self.last.seqno
        for index, term, is_configuration, context, data in slots:
            if is_configuration:
                continue
            if not context:
                # The engine's own, with which a term begins: what the former primary had begun never was; unless a
                # later primary, that has all of it, overwrites this one's log.
                if self._assembler.is_within:
                    self._beginnings.append(self._assembler)
                self._assembler = Assembler()
                continue
            entry = self._assembler.add(index, context, data)
            if entry is None or entry.position.seqno <= self._base.seqno:
                continue  # a piece; or an entry that a snapshot brought already, for it was newer than asked for
            if entry.position.view != term + self._view_offset:
                raise ConsensusError("an entry was proposed in another view than its own", code="consensus.bad_entry")
            if entry.position.seqno != self.last.seqno + 1 or entry.position.view < self.last.view:
                raise ConsensusError("an entry does not follow its predecessor", code="consensus.bad_entry")
            self._log.append(_Placed(self._assembler.first, index, entry))
            entries.append(entry)
        return Persist(number, truncate_above, tuple(entries))

    def _cut_log(self, first: int) -> bool:
        """What follows is written at ``first``: forget what lay there and after it; whether a whole entry is gone.

        A cut may go through an entry: its pieces before the cut are still in the log, and the others may come again.
        """
        beginnings = [*self._beginnings, self._assembler] if self._assembler.is_within else self._beginnings
        gone = False
        while self._log and self._log[-1].last >= first:
            placed = self._log.pop()
            beginnings.append(Assembler.within(placed.entry, placed.first))
            gone = True
        self._beginnings = [one for one in beginnings if one.keep(first)]
        self._assembler = next((one for one in self._beginnings if one.following == first), Assembler())
        self._beginnings = [one for one in self._beginnings if one is not self._assembler]
        return gone

    def _members_changed(
        self, actions: list[Action], voters: list[int], learners: list[int], outgoing: list[int]
    ) -> None:
        self.members = Members(tuple(voters), tuple(learners), tuple(outgoing))
        actions.append(MembersChanged(self.members))

    def _take_committed(self, actions: list[Action]) -> None:
        fresh: list[LedgerEntry] = []
        before = self._signed
        if self._beginnings:
            # What is committed is never written again.
            self._beginnings = [one for one in self._beginnings if one.first > self._applied_index]
        while self._log and self._log[0].last <= self._applied_index:
            entry = self._log.popleft().entry
            self._base = entry.position
            if entry.is_signature:
                self._signed = entry.position
            if entry.position.seqno > self.applied:
                self.applied = entry.position.seqno
                fresh.append(entry)
        if fresh:
            actions.append(Apply(tuple(fresh)))
        self._engine.applied(self._applied_index)
        if self._signed != before:
            actions.append(Committed(self._signed))
