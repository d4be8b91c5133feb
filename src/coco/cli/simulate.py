"""``coco simulate``: run the network in virtual time, one run for each seed."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import Any

from coco import limits
from coco.errors import ConfigurationError
from coco.simulator import Plan, Report, run


@dataclass
class Summary:
    """Many runs."""

    nodes: int
    runs: int = 0
    violations: list[dict[str, Any]] = field(default_factory=list)
    counters: Counter[str] = field(default_factory=Counter)

    def add(self, report: Report) -> None:
        """Take a run in."""
        self.runs += 1
        self.counters.update(report.counters)
        if report.violation:
            seed = report.plan.seed
            self.violations.append(
                {
                    "seed": seed,
                    "violation": report.violation,
                    "time_ms": report.time_ms,
                    "again": f"coco simulate --nodes {self.nodes} --seeds {seed}",
                }
            )


def parse_seeds(text: str) -> range:
    """Read ``A-B`` (both included) or one seed.

    Raises:
        ConfigurationError: another form, or no seeds.
    """
    match = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", text)
    seeds = range(0)
    if match is not None:
        first = int(match[1])
        seeds = range(first, int(match[2] or first) + 1)
    if not seeds:
        raise ConfigurationError(f"{text[:40]!r} are no seeds", code="simulate.seeds", hint="write A-B, like 0-199")
    return seeds


def check_nodes(nodes: int) -> None:
    """Refuse a network that no consensus fits.

    Raises:
        ConfigurationError: too few or too many.
    """
    if not 1 <= nodes <= limits.NODES_MAX:
        raise ConfigurationError(f"a network has 1 to {limits.NODES_MAX} nodes", code="simulate.nodes")


def reports(nodes: int, seeds: range, jobs: int) -> Iterator[Report]:
    """Run every seed, on several processors, and yield the reports in order."""
    plans = [Plan(nodes=nodes, seed=seed) for seed in seeds]
    if jobs == 1 or len(plans) == 1:
        yield from map(run, plans)
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("fork")) as pool:
        yield from pool.map(run, plans, chunksize=min(20, len(plans) // jobs + 1))
