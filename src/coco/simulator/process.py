"""One simulated node: the driver of consensus, the model of a ledger, a disk, and the duties of a primary.

A process joins under an identity of its own: a primary admits it in the ledger, adds it as a learner, gives it the
state, and in one change makes it a voter and removes the dead one of the same host.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from coco.consensus import (
    NOWHERE,
    Action,
    Apply,
    Committed,
    Driver,
    Install,
    LedgerEntry,
    Members,
    MembersChanged,
    Persist,
    Promoted,
    ReadReady,
    RollBack,
    Send,
    Start,
    Timing,
    ViewChanged,
)
from coco.errors import ConsensusError
from coco.ledger.transaction_id import TransactionId
from coco.simulator.checks import Checks
from coco.simulator.model import State
from coco.simulator.world import Disk, World

TICK_MS = 10
_BATCH = 20
_DUTY_TICKS = 10
_AGAIN_TICKS = 20
#: Entries that are kept behind the newest snapshot.
_KEPT_ENTRIES = 15
TIMING = Timing(election_ticks=15, heartbeat_ticks=2)


class Cluster(Protocol):
    """What a process knows of its surroundings: the world, the other processes, the disks."""

    world: World
    checks: Checks
    processes: list[Process]
    disks: dict[int, Disk]
    hosts: set[int]
    founders: list[tuple[int, int, int]]
    seed: int

    def new_state(self) -> State:
        """The state of a process that has applied nothing."""

    def count(self, what: str, times: int = 1) -> None:
        """Something happened."""

    def current(self) -> list[Process]:
        """The processes that live."""

    def ended(self, process: Process, reason: str) -> None:
        """A process has ended by itself."""


class Process:
    """A process on a host; it dies with its memory."""

    def __init__(self, cluster: Cluster, host: int, number: int) -> None:
        self.cluster, self.host, self.number = cluster, host, number
        self.world, self.checks = cluster.world, cluster.checks
        self.driver: Driver | None = None
        self.state = cluster.new_state()
        self.disk = Disk(self.world)
        self.alive = True
        self.frozen_until = 0
        #: Its clock as the host lets it go: as it should, or too fast.
        self.tick_ms = TICK_MS
        self._ticks = 0
        #: Transactions that clients of this node wait for, and those that wait to be executed here.
        self._held: dict[str, list[Callable[[], None]]] = {}
        self._pool: dict[str, None] = {}
        self._own: dict[int, LedgerEntry] = {}
        self._reads: dict[bytes, frozenset[str]] = {}
        #: State at the base of the disk, and the last signature in it.
        self._base = self.state, NOWHERE
        self._offered: list[Start] = []
        self._configurations: list[Members] = []
        self._heard: dict[int, int] = {node: number for node, _, number in cluster.founders}
        self._install: tuple[Install, int] | None = None
        self._sign_at = self._asked = 0
        #: Executed, and not yet proposed.
        self._sealing: LedgerEntry | None = None
        self.world.after(TICK_MS, self._tick)

    # --- life ---

    def begin(self, node: int, start: Start, state: State) -> None:
        """Take part from now on."""
        self.state, self.disk.base = state, start.position
        self._base = state.copy_at(start.position.seqno), start.signed
        self.cluster.disks[node] = self.disk
        self._configurations = [start.members]
        self.driver = self._make_driver(node, start)

    def _make_driver(self, node: int, start: Start) -> Driver:
        return Driver(node, start, timing=TIMING, seed=self.cluster.seed)

    @property
    def is_voter(self) -> bool:
        """Whether it is a voter of a settled configuration, as it knows."""
        driver = self.driver
        return driver is not None and driver.node in driver.members.voters and not driver.members.outgoing

    def crash(self) -> None:
        """Lose everything that is not durable."""
        self.alive = False
        self.disk.crash()

    def _when_awake(self, event: Callable[[], None]) -> None:
        if not self.alive:
            return
        if self.frozen_until > self.world.now:
            self.world.after(self.frozen_until - self.world.now, lambda: self._when_awake(event))
        else:
            event()

    def _tick(self) -> None:
        if not self.alive:
            return
        self.world.after(self.tick_ms, self._tick)
        if self.frozen_until > self.world.now:
            return
        self._ticks += 1
        if self.driver is None:
            if self._ticks % _AGAIN_TICKS == 1:
                self._tell_random(("join", self.host, self.number))
            return
        self._do(self.driver.tick())
        if self._install is not None:
            self._fetch_state()
            return
        self._work()
        if self._ticks % _DUTY_TICKS == 0:
            self._duties()
        if self._ticks % _AGAIN_TICKS == 0:
            self._send_held()

    # --- messages between processes ---

    def tell(self, number: int, message: tuple[Any, ...], *, size: int = 0) -> None:
        """Send a message of the node's own (not the engine's) to another process."""
        other = self.cluster.processes[number]
        self.world.carry(
            self.host, other.host, lambda: other._when_awake(lambda: other._hear(self.number, message)), size=size
        )

    def address(self, node: int) -> int | None:
        """The process that has an engine id: from the rows of the nodes, or from who used it towards this node."""
        found = self.state.nodes.get(node)
        return found[1] if found is not None else self._heard.get(node)

    def _tell_primary(self, message: tuple[Any, ...]) -> None:
        assert self.driver is not None
        number = self.address(self.driver.primary)
        if number is not None:
            self.tell(number, message)

    def _tell_random(self, message: tuple[Any, ...]) -> None:
        others = [p for p in self.cluster.current() if p is not self and p.driver is not None]
        if others:
            self.tell(self.world.random.choice(others).number, message)

    def _hear(self, sender: int, message: tuple[Any, ...]) -> None:
        kind, *arguments = message
        driver = self.driver
        if kind == "welcome":
            node, start, state = arguments
            if driver is None:
                self.cluster.count("joins")
                self.begin(node, start, state.copy_at(state.position.seqno))
        elif driver is None:
            return
        elif kind == "engine":
            node, content = arguments
            self._heard[node] = sender
            try:
                actions = driver.receive(node, content)
            except ConsensusError as error:
                if error.code != "consensus.bad_message":
                    raise
                self.cluster.count("refused_messages")  # its channel would be closed now
                return
            self._do(actions)
        elif kind == "forward":
            (transaction,) = arguments
            self._pool.setdefault(transaction)
        elif kind == "join":
            self._join_asked(message)
        elif kind == "fetch":
            (wanted,) = arguments
            self._give_state(sender, wanted)
        elif kind == "state":
            wanted, state, signed = arguments
            if self._install is not None and self._install[0].pointer == wanted:
                self._install = None
                self.cluster.count("snapshots_installed")
                self._base = state, signed
                self.state = state.copy_at(state.position.seqno)
                self.disk.restart_at(state.position)
                self._own.clear()
                self._do(driver.installed(state.position, signed))

    def _give_state(self, receiver: int, wanted: bytes) -> None:
        """The state that a peer asks for, made from this node's ledger; or a later one, if the ledger begins later."""
        driver = self.driver
        assert driver is not None
        seqno = TransactionId.parse(wanted.decode()).seqno
        if self._install is not None or driver.anchor.position.seqno < seqno:
            return
        state, signed = self._base
        state = state.copy_at(state.position.seqno)
        for entry in self.disk.entries:
            if entry.position.seqno > seqno:
                break
            state.apply(entry)
            signed = entry.position if entry.is_signature else signed
        if state.position.seqno >= seqno:
            self.tell(receiver, ("state", wanted, state.copy_at(state.position.seqno), signed), size=1_000_000)

    def _fetch_state(self) -> None:
        assert self._install is not None
        install, since = self._install
        if (self._ticks - since) % _AGAIN_TICKS == 1:
            self._tell_random(("fetch", install.pointer))

    # --- the driver's actions ---

    def _do(self, actions: list[Action]) -> None:
        driver = self.driver
        assert driver is not None
        for action in actions:
            match action:
                case Send(to, content, is_snapshot):
                    self._send(to, content, is_snapshot)
                case Persist(number, truncate_above, entries):
                    self._persist(number, truncate_above, entries)
                case Apply(entries):
                    for entry in entries:
                        self.state.apply(entry)
                        self.checks.applied(driver.node, entry)
                case Promoted(view, entries):
                    self.checks.promoted(driver.node, view)
                    self.cluster.count("elections")
                    self.cluster.count("inherited_entries", len(entries))
                    for entry in entries:
                        self.state.apply(entry)
                        self._own[entry.position.seqno] = entry
                    self.world.after(0, lambda: self._when_awake(self._open_view))
                case RollBack(seqno):
                    self.cluster.count("rolled_back_entries", self.state.position.seqno - seqno)
                    self._roll_back(seqno)
                case ViewChanged(_, primary):
                    if primary:
                        self._send_held()
                case Committed(position):
                    self._committed(position)
                case MembersChanged(members):
                    self.checks.configured(self._configurations[-1], members)
                    self._configurations.append(members)
                    if driver.node not in members.all and driver.node in self.cluster.disks:
                        self.cluster.ended(self, "it was replaced")
                case ReadReady(context):
                    before = self._reads.pop(context, None)
                    if before is not None:
                        self.checks.read(driver.node, before, self.state, driver.committed.seqno)
                case Install():
                    self._install = action, self._ticks

    def _send(self, to: int, content: bytes, is_snapshot: bool) -> None:
        driver = self.driver
        assert driver is not None
        if is_snapshot:
            self.world.after(500, lambda: self._when_awake(lambda: self._do(driver.snapshot_sent(to, True))))
        number = self.address(to)
        if number is not None:
            if self.world.random.random() < self.world.weather.misdeliver:
                number = self.world.random.choice(self.cluster.processes).number
            self.tell(number, ("engine", driver.node, content), size=len(content))

    def _persist(self, number: int, truncate_above: int | None, entries: tuple[LedgerEntry, ...]) -> None:
        driver = self.driver
        assert driver is not None
        self.disk.write(truncate_above, entries, lambda: self._when_awake(lambda: self._do(driver.persisted(number))))

    def _roll_back(self, seqno: int) -> None:
        self._sealing = None
        self.state.roll_back(seqno)
        self._sign_at = min(self._sign_at, seqno)
        for own in [own for own in self._own if own > seqno]:
            del self._own[own]

    def _committed(self, position: TransactionId) -> None:
        driver = self.driver
        assert driver is not None
        self.checks.committed(driver.node, position, self._configurations, self.cluster.disks)
        self._configurations = [driver.members]
        for seqno in sorted(own for own in self._own if own <= position.seqno):
            self.checks.applied(driver.node, self._own.pop(seqno))
        self.state.settle(position.seqno)
        later = position.seqno + 1
        done = [one for one in self._held if self.state.executed.get(one, later) < later]
        for transaction in done:
            for acknowledge in self._held.pop(transaction):
                acknowledge()

    # --- a primary's work ---

    def _open_view(self) -> None:
        driver = self.driver
        if driver is not None and driver.is_primary and self._sealing is None and not driver.is_opened:
            founders = [["admit", *founder] for founder in self.cluster.founders]
            self._propose([] if driver.applied else founders, driver.applied > 0)

    def _propose(self, operations: list[list[Any]], is_signature: bool, padding: int = 0) -> None:
        """Execute and seal, and propose a little later: sealing runs on another thread."""
        driver = self.driver
        assert driver is not None
        entry = self.state.make(driver.view, operations, is_signature=is_signature, padding=padding)
        self.checks.sealed(entry)
        self.state.apply(entry)
        self._sealing = entry
        delay_ms = self.world.random.randint(0, 3)
        self.world.after(delay_ms, lambda: self._when_awake(lambda: self._sealed(entry)))

    def _sealed(self, entry: LedgerEntry) -> None:
        driver = self.driver
        assert driver is not None
        if self._sealing is not entry:
            return  # rolled back meanwhile
        self._sealing = None
        self._own[entry.position.seqno] = entry
        try:
            actions = driver.propose(entry)
        except ConsensusError:
            self._roll_back(driver.applied)
            actions = driver.advance()
        self._do(actions)

    def _work(self) -> None:
        driver = self.driver
        assert driver is not None
        if self._sealing is not None or not driver.may_execute:
            return
        operations: list[list[Any]] = []
        for transaction in list(self._pool)[:_BATCH]:
            del self._pool[transaction]
            if transaction not in self.state.executed:
                operations.append(["execute", transaction])
        if operations:
            large = self.world.random.random() < 0.01
            self._propose(operations, False, padding=600_000 if large else 0)
        elif self.state.position.seqno > self._sign_at:
            self._propose([], True)
            self._sign_at = self.state.position.seqno

    def _duties(self) -> None:
        driver = self.driver
        assert driver is not None
        self._take_snapshot()
        if not driver.may_execute or driver.members.outgoing:
            return
        if self._retire():
            return
        newest = {host: node for node, (host, _) in sorted(self.state.nodes.items()) if host in self.cluster.hosts}
        standing = {node: matched for node, matched, _ in driver.progress()}
        try:
            for host, node in newest.items():
                old = [n for n in sorted(driver.members.all) if n < node and self.state.nodes[n][0] == host]
                if node not in driver.members.all:
                    self._do(driver.change_members([("learner", node)]))
                elif node in driver.members.learners and standing.get(node, 0) + 20 >= standing[driver.node]:
                    self._do(driver.change_members([("voter", node), *(("removed", n) for n in old)]))
                else:
                    continue
                return
        except ConsensusError:
            pass  # a change is under way; next time

    def _retire(self) -> bool:
        """Take a node out of the configuration whose host is to go; a primary hands over first."""
        driver = self.driver
        assert driver is not None
        for node in sorted(driver.members.all):
            if self.state.nodes[node][0] in self.cluster.hosts:
                continue
            if node == driver.node:
                others = [n for n in driver.members.voters if self.state.nodes[n][0] in self.cluster.hosts]
                self.hand_over(self.world.random.choice(others))
            else:
                try:
                    self._do(driver.change_members([("removed", node)]))
                except ConsensusError:
                    continue  # a change is under way, or the dead must be replaced first
            return True
        return False

    def _join_asked(self, message: tuple[Any, ...]) -> None:
        driver = self.driver
        assert driver is not None
        _, host, number = message
        if not driver.is_primary:
            self._tell_primary(message)
            return
        found = [node for node, (_, process) in self.state.nodes.items() if process == number]
        if not found and host in self.cluster.hosts:
            if driver.may_execute and self._sealing is None:
                self._propose([["admit", self.state.next_node, host, number]], False)
            return
        if not found:
            return
        (node,) = found
        anchor = driver.anchor
        if node in anchor.members.all and not anchor.members.outgoing:
            self.tell(number, ("welcome", node, anchor, self.state.copy_at(anchor.position.seqno)), size=1_000_000)

    def _take_snapshot(self) -> None:
        driver = self.driver
        assert driver is not None
        anchor = driver.anchor
        if self._offered and anchor.index < self._offered[-1].index + _KEPT_ENTRIES:
            return
        driver.offer_snapshot(anchor, str(anchor.position).encode())
        self._offered.append(anchor)
        if len(self._offered) > 2:
            self._offered.pop(0)
            driver.compact(self._offered[0])

    def hand_over(self, to: int) -> None:
        """Let another node lead."""
        driver = self.driver
        assert driver is not None
        self._do(driver.hand_over(to))
        self.world.after(500, lambda: self._when_awake(lambda: self._do(driver.hand_over_failed())))

    # --- clients ---

    def submit(self, transaction: str, acknowledge: Callable[[], None]) -> None:
        """Take a transaction from a client; it hears of it once it is committed here, or never."""
        if self.driver is None:
            return
        committed = self.driver.committed.seqno
        if self.state.executed.get(transaction, committed + 1) <= committed:
            acknowledge()
            return
        self._held.setdefault(transaction, []).append(acknowledge)
        self._send_held([transaction])

    def _send_held(self, transactions: list[str] | None = None) -> None:
        driver = self.driver
        assert driver is not None
        for transaction in transactions or list(self._held):
            if driver.is_primary:
                self._pool.setdefault(transaction)
            else:
                self._tell_primary(("forward", transaction))

    def read(self) -> None:
        """Ask for a linearizable read."""
        if self.driver is not None and self._install is None:
            self._asked += 1
            context = b"%d:%d" % (self.number, self._asked)
            self._reads[context] = frozenset(self.checks.acknowledged)
            self._do(self.driver.read_index(context))
