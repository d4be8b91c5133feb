"""``coco connect`` under attack: what local clients wait for quiet calls, and its memory, quiet and attacked in turn.

    python bench/connect.py [--rounds 2] [--seconds 6]

A sandbox of one node with its connector, which is that of ``coco connect``. One quiet client asks for a balance, each
call after the other; the attacks come from a process of lowest priority: uploads that are broken off, calls that wait
for a nonce that never comes, requests that never end. Adds ``connect`` to bench/out/summary.json.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from coco.cli.sandbox import WELL_KNOWN_ACCOUNTS
from ethereum import OUT, sign
from load import Target
from systems import CHAIN_ID, FUNDER, Coco, running

_HEAD = b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"


async def _open(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", port)


async def broken_off(port: int) -> None:
    """1,000 uploads of 2 MB, each broken off."""
    for _ in range(1000):
        _, writer = await _open(port)
        writer.write(_HEAD % (4 << 20) + bytes(2 << 20))
        with contextlib.suppress(OSError):
            await writer.drain()
        writer.transport.abort()


async def with_a_gap(port: int) -> None:
    """70 calls that wait for the transaction before theirs."""

    async def wait(index: int) -> None:
        _, raw = sign(
            (
                WELL_KNOWN_ACCOUNTS[5][1],
                {"nonce": 1000 + index, "gas": 21_000, "to": FUNDER, "value": 1, "chainId": CHAIN_ID},
            )
        )
        body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "eth_sendRawTransactionSync", "params": [raw]}).encode()
        reader, writer = await _open(port)
        writer.write(_HEAD % len(body) + body)
        await reader.read(1)
        writer.close()

    await asyncio.gather(*(wait(index) for index in range(70)))


async def never_ending(port: int) -> None:
    """300 requests that never end."""
    kept = []
    for _ in range(300):
        _, writer = await _open(port)
        writer.write(_HEAD % (5 << 20) + bytes(1 << 20))
        kept.append(writer)
    await asyncio.sleep(3600)


ATTACKS: dict[str, Callable[[int], Coroutine[Any, Any, None]]] = {
    one.__name__: one for one in (broken_off, with_a_gap, never_ending)
}


def _memory_mb(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def _interval(target: Target, seconds: float, pid: int) -> dict[str, float]:
    """Calls that were answered in a second, how long they took, and the most memory meanwhile."""
    took, most = [], 0.0
    answered = threading.Event()

    def watch() -> None:
        nonlocal most
        while not answered.is_set():
            most = max(most, _memory_mb(pid))
            time.sleep(0.05)

    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    connection = target.connect()
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        began = time.monotonic()
        connection.call("eth_getBalance", FUNDER, "latest")
        took.append(time.monotonic() - began)
    answered.set()
    watching.join()
    return {
        "per_s": round(len(took) / seconds, 1),
        "p50_ms": round(1000 * statistics.median(took), 1),
        "worst_ms": round(1000 * max(took), 1),
        "memory_mb": round(most, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=6)
    parser.add_argument("--attack", help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.attack:
        os.nice(19)
        print("there", flush=True)
        asyncio.run(ATTACKS[chosen.attack](chosen.port))
        return
    found: dict[str, list[Any]] = {name: [] for name in ATTACKS}
    with running(Coco) as system:
        pid, port = system.summary["host_pid"], int(urlsplit(system.summary["ethereum_url"]).port or 0)
        target = Target("127.0.0.1", port)
        for number in range(chosen.rounds):
            for name in ATTACKS:
                quiet = _interval(target, chosen.seconds, pid)
                command = [sys.executable, __file__, "--attack", name, "--port", str(port)]
                attacker = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
                assert attacker.stdout is not None and attacker.stdout.readline()
                time.sleep(1)
                attacked = _interval(target, chosen.seconds, pid)
                attacker.kill()
                attacker.wait()
                grown = round(attacked["memory_mb"] - quiet["memory_mb"], 1)
                row = {"quiet": quiet, "attacked": attacked, "memory_grown_mb": grown}
                found[name].append(row)
                print(f"round {number + 1}, {name}: {row}", flush=True)
    OUT.mkdir(exist_ok=True)
    path = OUT / "summary.json"
    others = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**others, "connect": found}, indent=1))
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
