"""Systems with one mistake each, which the simulator must catch; and the experiment that shows why a start is a new node.

A *revived* node goes on with the identity, vote and log that its disk holds. Coco never does that: these classes are the
only ones that call ``Engine.revived``.
"""

from __future__ import annotations

from typing import Any

from coco._native import Engine
from coco.consensus import Action, Committed, Driver, LedgerEntry, Start, engine_settings
from coco.consensus.pieces import cut
from coco.simulator.campaign import Campaign, Cluster
from coco.simulator.process import TIMING, Process


def cluster_of(process: type[Process]) -> type[Cluster]:
    """A cluster whose nodes are all of one kind."""
    return type(f"ClusterOf{process.__name__}", (Cluster,), {"process_class": process})


class SendBeforePersist(Process):
    """Acknowledges entries before they are durable."""

    def _persist(self, number, truncate_above, entries):
        self.disk.write(truncate_above, entries, lambda: None)
        driver = self.driver
        self.world.after(0, lambda: self._when_awake(lambda: self._do(driver.persisted(number))))


class CommitBeforeSignature(Process):
    """Reports what the engine committed, whether a signature covers it or not."""

    def _make_driver(self, node, start):
        return EagerDriver(node, start, timing=TIMING, seed=self.cluster.seed)


class EagerDriver(Driver):
    def _take_committed(self, actions: list[Action]) -> None:
        before = self._base
        super()._take_committed(actions)
        if self._base != before and Committed(self._base) not in actions:
            actions.append(Committed(self._base))


class ApplyTwice(Process):
    """Applies as a follower what it applied as a primary."""

    def _roll_back(self, seqno: int) -> None:
        super()._roll_back(seqno if self.driver.is_primary else self.state.position.seqno)


class ForwardStale(Process):
    """Hands what it sealed as a primary and had to roll back over to the next primary, which proposes it."""

    def __init__(self, cluster, host, number):
        super().__init__(cluster, host, number)
        self.stale: list[LedgerEntry] = []

    def _roll_back(self, seqno: int) -> None:
        self.stale = [entry for own, entry in sorted(self._own.items()) if own > seqno]
        super()._roll_back(seqno)

    def _send_held(self, transactions=None) -> None:
        super()._send_held(transactions)
        if not self.driver.is_primary and self.driver.primary:
            for entry in self.stale:
                self._tell_primary(("stale", entry))
            self.stale = []

    def _hear(self, sender: int, message: tuple[Any, ...]) -> None:
        if message[0] != "stale":
            super()._hear(sender, message)
        elif self.driver is not None and self.driver.is_primary:
            (entry,) = message[1:]
            self.propose_as_mine(entry)

    def propose_as_mine(self, entry: LedgerEntry) -> None:
        term = self.driver.view - 1
        for context, data in cut(entry):
            self.driver._engine.propose(term, context, data)
        self._do(self.driver.advance())


# --- identities that are used again ---


class Recorded:
    """An engine whose work is written down, as a disk would hold it."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.works: dict[int, tuple[Any, ...]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def work(self):
        work = self._engine.work()
        if work is not None:
            self.works[work[0]] = (work[3], work[4])
        return work


class Revivable(Process):
    """Keeps term, vote and log on its disk, and goes on with them after a crash."""

    cluster: Any

    def __init__(self, cluster, host, number):
        super().__init__(cluster, host, number)
        self.promise, self.slots = (0, 0, 0), []
        #: What the disk held at some earlier moment.
        self.older: Any = (self.promise, [])

    def _make_driver(self, node, start):
        members = start.members
        engine = Engine(node, (0, 0, members.voters, ()), engine_settings(TIMING, self.cluster.seed))
        self.recorded = Recorded(engine)
        recorded: Any = self.recorded
        return Driver(node, start, engine=recorded)

    def _persist(self, number, truncate_above, entries):
        driver, (slots, promise) = self.driver, self.recorded.works.pop(number)

        def durable():
            if slots:
                self.slots = [slot for slot in self.slots if slot[0] < slots[0][0]] + list(slots)
            self.promise = promise or self.promise
            if self.world.random.random() < 0.03:
                self.older = (self.promise, list(self.slots))
            self._when_awake(lambda: self._do(driver.persisted(number)))

        self.disk.write(truncate_above, entries, durable)

    def address(self, node):
        return self.cluster.now.get(node)

    def _take_snapshot(self):
        """The log stays whole here."""

    def revive(self, former: Revivable) -> None:
        """Go on as ``former``."""
        node = former.driver.node
        self.promise, self.slots = self.read_disk(former)
        start = Start(former.cluster.members)
        begin = (0, 0, start.members.voters, ())
        settings = engine_settings(TIMING, self.cluster.seed + self.number)
        self.recorded = Recorded(Engine.revived(node, begin, settings, self.promise, self.slots))
        recorded: Any = self.recorded
        self.driver = Driver(node, start, engine=recorded)
        self.disk = self.cluster.disks[node] = former.disk
        self._configurations = [start.members]
        persisted = self.driver._store(0, self.slots)
        former.disk.entries = list(persisted.entries)
        self.checks._reported.pop(node, None)

    def read_disk(self, former: Revivable):
        return former.promise, list(former.slots)


class ForgetsVote(Revivable):
    """The vote is not on the disk."""

    def read_disk(self, former):
        (term, _, commit), slots = super().read_disk(former)
        return (term, 0, commit), slots


class RolledBackDisk(Revivable):
    """The host gives an older disk back."""

    def read_disk(self, former):
        return former.older


class RevivingCluster(Cluster):
    """Restarts former identities in place of new ones."""

    process_class = Revivable

    def __init__(self, plan):
        #: The process that goes on as an engine id.
        self.now = {host + 1: host for host in range(plan.nodes)}
        super().__init__(plan)
        self.members = self.processes[0].driver.members

    def start_again(self, former):
        process: Any = self.start(former.host)
        self.now[former.driver.node] = process.number
        process.revive(former)

    @property
    def is_whole(self):
        return len(self.current()) == self.plan.nodes

    def spare(self):
        return (self.plan.nodes - 1) // 2 - (self.plan.nodes - len(self.current()))


def reviving(process: type[Revivable]) -> type[Cluster]:
    """A cluster that restarts former identities of this kind."""
    return type(f"Reviving{process.__name__}", (RevivingCluster,), {"process_class": process})


class CrashingCampaign(Campaign):
    """Nothing but short crashes and partitions, close together: where a forgotten vote counts."""

    def _fault(self) -> None:
        if self._quiet:
            return
        self._world.after(self._chance.randint(20, 150), self._fault)
        self._chance.choice([self._crash, self._crash, self._partition])()

    def _crash(self) -> None:
        if self._cluster.spare() > 0:
            self._cluster.crash(self._chance.choice(self._cluster.current()), self._chance.randint(1, 30))
