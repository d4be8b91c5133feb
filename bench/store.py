"""The store alone: rates from Rust and from Python on one core, and memory for a million entries.

    python bench/store.py

Merged into bench/out/summary.json under ``store``. Goals: a million gets and 300,000 puts a second from Rust, 10,000
small transactions a second from Python, at most 250 MB for a million entries of 20-byte keys and 32-byte values.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from coco._native import Store, WriteSet, benchmark_store

OUT = Path(__file__).parent / "out" / "summary.json"
COUNT = 1_000_000


def resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def memory() -> float:
    """Megabytes that a million committed entries take, in a process of their own."""
    store = Store()
    store.declare("bench", False)
    before = resident_mb()
    for version in range(1, COUNT // 1000 + 1):
        first = (version - 1) * 1000
        rows = [
            ("bench", ((n * 0x9E3779B97F4A7C15) % 2**64).to_bytes(8, "big") + bytes(12), bytes([n % 256]) * 32)
            for n in range(first, first + 1000)
        ]
        store.apply(version, WriteSet(rows))
        store.commit(version)
        store.prune(version)
    return resident_mb() - before


def small_transactions() -> float:
    """Transactions a second from Python: one read, one write, one commit each."""
    store = Store()
    store.declare("bench", False)
    count, began = 20_000, time.perf_counter()
    for version in range(1, count + 1):
        transaction = store.begin()
        key = (version % 1000).to_bytes(20, "big")
        value = transaction.get("bench", key) or bytes(32)
        transaction.put("bench", key, value[1:] + bytes([version % 256]))
        store.apply(version, transaction.write_set())
        store.commit(version)
    return count / (time.perf_counter() - began)


def main() -> None:
    if sys.argv[1:] == ["--memory"]:
        print(memory())
        return
    child = subprocess.run([sys.executable, __file__, "--memory"], capture_output=True, text=True, check=True)
    puts, gets = benchmark_store(COUNT)
    figures = {
        "gets_per_s": round(gets),
        "puts_per_s": round(puts),
        "python_transactions_per_s": round(small_transactions()),
        "million_entries_mb": round(float(child.stdout), 1),
    }
    print("store", figures)
    OUT.parent.mkdir(exist_ok=True)
    summary = json.loads(OUT.read_text()) if OUT.exists() else {}
    OUT.write_text(json.dumps({**summary, "store": figures}, indent=1))


if __name__ == "__main__":
    main()
