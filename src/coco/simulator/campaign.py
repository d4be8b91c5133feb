"""One run: a cluster, its clients, and faults drawn from the seed; then peace, and everything must be well."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from coco.consensus import Members, Start
from coco.simulator.checks import Checks
from coco.simulator.model import State, Violation
from coco.simulator.process import TICK_MS, Process
from coco.simulator.world import Disk, Weather, World

_CALM_MS = 1_500
_PEACE_MS = 30_000
_CLIENT_MS = 40
_RETRY_MS = 1_500


@dataclass(frozen=True)
class Plan:
    """What a run does."""

    nodes: int = 3
    seed: int = 0
    #: Time with faults.
    fault_ms: int = 6_000


@dataclass
class Report:
    """How a run went; ``violation`` is empty if everything held."""

    plan: Plan
    violation: str = ""
    #: Virtual time in milliseconds.
    time_ms: int = 0
    counters: dict[str, int] = field(default_factory=dict)


class Cluster:
    """The hosts, the processes that ran on them, and who watches."""

    process_class: type[Process] = Process

    def __init__(self, plan: Plan) -> None:
        self.plan, self.seed = plan, plan.seed
        self.world = World(plan.seed)
        self.checks = Checks()
        self.processes: list[Process] = []
        #: By engine id, as the processes left them.
        self.disks: dict[int, Disk] = {}
        #: Hosts that are to have a node.
        self.hosts = set(range(plan.nodes))
        self.founders = [(host + 1, host, host) for host in range(plan.nodes)]
        self.submitted = 0
        self.counters: Counter[str] = Counter()
        members = Members(tuple(node for node, _, _ in self.founders))
        for node, host, _ in self.founders:
            process = self.start(host)
            process.begin(node, Start(members), self.new_state())

    def new_state(self) -> State:
        """The state before the first entry."""
        return State()

    def count(self, what: str, times: int = 1) -> None:
        """Remember that something happened, for the report."""
        self.counters[what] += times

    def start(self, host: int) -> Process:
        """Start a process on a host."""
        process = self.process_class(self, host, len(self.processes))
        self.processes.append(process)
        return process

    def current(self) -> list[Process]:
        """The living processes."""
        return [process for process in self.processes if process.alive]

    def ended(self, process: Process, reason: str) -> None:
        """A process ends by itself; its host starts another."""
        if process.alive:
            self.crash(process, self.world.random.randint(50, 400))

    def crash(self, process: Process, restart_ms: int) -> None:
        """Kill a process, and start another one on its host after a while."""
        process.crash()
        self.count("restarts")
        self.world.after(restart_ms, lambda: self.start_again(process))

    def start_again(self, former: Process) -> None:
        """What a host starts after a crash: a new identity."""
        if former.host in self.hosts:
            self.start(former.host)

    @property
    def is_whole(self) -> bool:
        """Whether every host that is to have one has a living voter of a settled configuration, and no other votes."""
        living = [process for process in self.current() if process.host in self.hosts]
        voters = {process.driver.node for process in living if process.driver is not None and process.is_voter}
        return len(voters) == len(self.hosts) and all(
            process.driver is not None and set(process.driver.members.all) == voters for process in living
        )

    def states(self) -> dict[int, State]:
        """The states of the nodes that are to be there."""
        return {p.driver.node: p.state for p in self.current() if p.driver is not None and p.host in self.hosts}

    def spare(self) -> int:
        """How many voters may die now without the loss of a majority in any configuration."""
        living = {p.driver.node for p in self.current() if p.driver is not None}
        spare = self.plan.nodes
        for process in self.current():
            if process.driver is None:
                continue
            for voters in process.driver.members.majorities:
                dead = sum(1 for voter in voters if voter not in living)
                spare = min(spare, (len(voters) - 1) // 2 - dead)
        return spare


class Campaign:
    """Clients and faults."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster, self._world = cluster, cluster.world
        self._chance = cluster.world.random
        self._quiet = False

    def run(self) -> None:
        """Run it.

        Raises:
            Violation: a promise was broken, or the network does not recover.
        """
        world, cluster = self._world, self._cluster
        self._clients()
        world.run_until(_CALM_MS)
        world.after(0, self._fault)
        world.run_until(_CALM_MS + cluster.plan.fault_ms)
        self._quiet = True
        world.weather = Weather()
        end = world.now + _PEACE_MS
        while world.now < end:
            world.run_until(world.now + 500)
            if cluster.is_whole and self._all_acknowledged():
                break
        else:
            raise Violation("the network did not recover")
        world.run_until(world.now + 1_000)
        cluster.checks.final(cluster.states())

    def _all_acknowledged(self) -> bool:
        return len(self._cluster.checks.acknowledged) == self._cluster.submitted

    # --- clients ---

    def _clients(self) -> None:
        if self._quiet:
            return
        self._world.after(self._chance.randint(1, 2 * _CLIENT_MS), self._clients)
        self._submit(f"t{self._cluster.submitted}")
        self._cluster.submitted += 1
        if self._chance.random() < 0.3:
            self._chance.choice(self._cluster.current()).read()

    def _submit(self, transaction: str) -> None:
        acknowledged = self._cluster.checks.acknowledged
        if transaction in acknowledged:
            return
        living = self._cluster.current()
        if living:
            self._chance.choice(living).submit(transaction, lambda: acknowledged.add(transaction))
        self._world.after(_RETRY_MS, lambda: self._submit(transaction))

    # --- faults ---

    def _fault(self) -> None:
        if self._quiet:
            return
        chance, world = self._chance, self._world
        world.after(chance.randint(100, 700), self._fault)
        hosts_and_networks = [self._crash, self._partition, self._one_way, self._bad_network, self._lying_network]
        # A node whose disk fails ends: a crash, so that one comes twice.
        others = [self._slow_disks, self._crash, self._freeze, self._hurry, self._hand_over, self._resize]
        chance.choice([*hosts_and_networks, *others])()

    def _crash(self) -> None:
        if self._cluster.spare() > 0:
            voters = [process for process in self._cluster.current() if process.is_voter]
            if voters:
                self._cluster.crash(self._chance.choice(voters), self._chance.randint(10, 800))

    def _partition(self) -> None:
        hosts = sorted(self._cluster.hosts)
        if len(hosts) == 1:
            return
        side = set(self._chance.sample(hosts, self._chance.randint(1, len(hosts) // 2)))
        cut = {(a, b) for a in hosts for b in hosts if (a in side) != (b in side)}
        self._cut(cut)

    def _one_way(self) -> None:
        hosts = sorted(self._cluster.hosts)
        victim = self._chance.choice(hosts)
        self._cut({(victim, other) for other in hosts if other != victim})

    def _cut(self, cut: set[tuple[int, int]]) -> None:
        weather = self._world.weather
        weather.cut |= cut

        def heal() -> None:
            weather.cut -= cut

        self._world.after(self._chance.randint(100, 1_500), heal)

    def _spell(self, **changes: Any) -> None:
        """Another weather for a while."""
        weather = self._world.weather
        for name, value in changes.items():
            setattr(weather, name, value)

        def over() -> None:
            for name in changes:
                setattr(weather, name, getattr(Weather(), name))

        self._world.after(self._chance.randint(200, 1_500), over)

    def _bad_network(self) -> None:
        drop, duplicate = self._chance.uniform(0, 0.2), self._chance.uniform(0, 0.2)
        self._spell(drop=drop, duplicate=duplicate, delay_ms=(1, self._chance.choice([6, 20, 60])))

    def _lying_network(self) -> None:
        self._spell(replay=0.05, misdeliver=0.05)

    def _slow_disks(self) -> None:
        self._spell(fsync_ms=(1, self._chance.choice([50, 300])))

    def _hurry(self) -> None:
        process = self._chance.choice(self._cluster.current())
        process.tick_ms = TICK_MS // 3

        def calm() -> None:
            process.tick_ms = TICK_MS

        self._world.after(self._chance.randint(200, 1_500), calm)

    def _resize(self) -> None:
        """A host comes or goes, between the plan's number of nodes and two more."""
        cluster = self._cluster
        extra = sorted(cluster.hosts - set(range(cluster.plan.nodes)))
        cluster.count("resizes")
        if len(extra) < 2 and self._chance.random() < 0.6:
            host = 1 + max(process.host for process in cluster.processes)
            cluster.hosts.add(host)
            cluster.start(host)
        elif extra and cluster.spare() > 0:
            cluster.hosts.discard(self._chance.choice(extra))

    def _freeze(self) -> None:
        process = self._chance.choice(self._cluster.current())
        process.frozen_until = self._world.now + self._chance.randint(50, 1_500)

    def _hand_over(self) -> None:
        for process in self._cluster.current():
            driver = process.driver
            if driver is not None and driver.may_execute and len(driver.members.voters) > 1:
                others = [node for node in driver.members.voters if node != driver.node]
                process.hand_over(self._chance.choice(others))
                return


def run(plan: Plan, cluster_class: type[Cluster] = Cluster, campaign_class: type[Campaign] = Campaign) -> Report:
    """Run a plan; what broke is in the report, with the virtual time."""
    report = Report(plan)
    cluster = cluster_class(plan)
    try:
        campaign_class(cluster).run()
    except Exception as error:  # noqa: BLE001 - whatever it is, the seed repeats it
        report.violation = f"{type(error).__name__}: {error}"
    report.time_ms = cluster.world.now
    report.counters = {
        "submitted": cluster.submitted,
        "acknowledged": len(cluster.checks.acknowledged),
        "commits": cluster.checks.commits,
        "reads": cluster.checks.reads,
        **cluster.counters,
    }
    return report
