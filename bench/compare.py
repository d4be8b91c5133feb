"""Whether a change costs speed: this build and a former one under the same load, in turns, in one run.

    python bench/compare.py FORMER [--rounds 5] [--transactions 20000] [--nodes 1,3]

FORMER is another checkout with its environment built (``make build`` there, with the same profile). Every round runs
both, and the next one in the other order, so that a slow minute hits both. The load is the one of bench/ethereum.py: single
requests, then batches, to one node and to the primary of three. Told is the median of the rounds' ratios, this build's
transactions per second over the former's, with the least and the most.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

from ethereum import load, prepare
from nodes import Network
from systems import Coco, running


def build(name: str, python: Path, nodes: int) -> type[Coco]:
    return type(name, (Coco,), {"name": f"{name} x{nodes}", "python": str(python), "nodes": nodes})


def measure(kind: type[Coco], prepared: dict[str, Any]) -> dict[str, Any]:
    with running(kind) as system:
        if kind.nodes > 1:
            Network(system).settled()
        return load(system, prepared)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("former", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--transactions", type=int, default=20_000)
    parser.add_argument("--nodes", default="1,3")
    chosen = parser.parse_args()
    former = chosen.former / ".venv/bin/python"
    if not former.exists():
        parser.error(f"{chosen.former} has no environment: run make build there")
    prepared = prepare(chosen.transactions)
    ratios: dict[tuple[int, str], list[float]] = {}
    for number in range(chosen.rounds):
        for nodes in map(int, chosen.nodes.split(",")):
            pair = [build("this", Path(Coco.python), nodes), build("former", former, nodes)]
            found = {kind.__name__: measure(kind, prepared) for kind in (pair if number % 2 == 0 else reversed(pair))}
            for mode in ("single", "batch"):
                ratio = found["this"][mode]["tx_per_s"] / found["former"][mode]["tx_per_s"]
                ratios.setdefault((nodes, mode), []).append(ratio)
                print(f"round {number + 1}: {nodes} node(s), {mode}: {ratio:.3f}", flush=True)
    print(f"\nthis build over the former one, {chosen.rounds} rounds in turns, {time.strftime('%Y-%m-%d')}")
    for (nodes, mode), rounds in ratios.items():
        middle = statistics.median(rounds)
        print(f"  {nodes} node(s), {mode:<7} {middle:.3f}  (least {min(rounds):.3f}, most {max(rounds):.3f})")


if __name__ == "__main__":
    main()
