"""How long a network in one process takes to begin (`coco.testing`): the median of several, in seconds.

python bench/in_process.py [--rounds 7]
"""

from __future__ import annotations

import argparse
import statistics
import time

from coco.testing import Network


def began_s(nodes: int) -> float:
    began = time.monotonic()
    with Network(nodes=nodes):
        return time.monotonic() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    began_s(1)  # whatever is imported once
    for nodes in (1, 3):
        took = [began_s(nodes) for _ in range(rounds)]
        print(f"{nodes} node(s): {statistics.median(took):.2f} s (least {min(took):.2f}, most {max(took):.2f})")


if __name__ == "__main__":
    main()
