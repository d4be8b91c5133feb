"""What idle connections cost the enclave: opens as many as this machine's descriptors allow, up to 10,000.

    python bench/idle.py [--connections 10000]

Each connection is a finished TLS 1.3 handshake with a client certificate and one served request, then silence. The host
needs two descriptors for each. Merged into bench/out/summary.json as ``idle``.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path
from typing import Any

from load import Connection
from systems import Coco, running

OUT = Path(__file__).parent / "out" / "summary.json"
_SPARE_DESCRIPTORS = 200


def enclave_mb(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def measure(system: Coco, wanted: int) -> dict[str, Any]:
    enclave = system.summary["enclave_pid"]
    first = system.target.connect()
    first.call("eth_chainId")
    before = enclave_mb(enclave)
    began = time.perf_counter()
    connections: list[Connection] = []
    for _ in range(wanted):
        connection = system.target.connect()
        connection.call("eth_chainId")
        connections.append(connection)
    opened_s = time.perf_counter() - began
    full = enclave_mb(enclave)
    began = time.perf_counter()
    connections[-1].call("eth_blockNumber")
    first.call("eth_blockNumber")
    answer_ms = (time.perf_counter() - began) / 2 * 1000
    for connection in connections:
        connection.close()
    time.sleep(3)
    after = enclave_mb(enclave)
    first.call("eth_blockNumber")
    return {
        "connections": wanted,
        "opened_per_s": round(wanted / opened_s),
        "enclave_mb_before": round(before, 1),
        "enclave_mb_full": round(full, 1),
        "kb_per_connection": round((full - before) * 1000 / wanted, 1),
        "answer_ms": round(answer_ms, 2),
        "enclave_mb_after_close": round(after, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connections", type=int, default=10_000)
    chosen = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    wanted = min(chosen.connections, (hard - _SPARE_DESCRIPTORS) // 2)
    if wanted < chosen.connections:
        print(f"this machine allows {hard} descriptors, so {wanted} connections instead of {chosen.connections}")
    with running(Coco) as system:
        figures = measure(system, wanted)
    print(figures)
    others = json.loads(OUT.read_text()) if OUT.exists() else {}
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps({**others, "idle": figures}, indent=1))


if __name__ == "__main__":
    main()
