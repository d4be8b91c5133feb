"""What several nodes cost and how fast they fail over, in one run on one machine; adds to bench/out/summary.json.

    python bench/nodes.py [--transactions 20000] [--kills 10] [--nodes 1,3,5]

The load is the one of bench/ethereum.py, given to the primary. All nodes share the machine's cores: a network of real
machines has more of them, and slower links. A failover is measured by a client of a backup that sends one payment after
the other: from the kill of the primary's enclave to the receipt of the first payment begun after it, and divided by the
election timeout (the mean of 20 to 40 ticks of 25 ms).
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import threading
import time
from pathlib import Path

from eth_account import Account

from ethereum import OUT, load, prepare, sign
from load import Connection
from systems import CHAIN_ID, FUNDER, FUNDER_KEY, Coco, Target, running

ELECTION_TIMEOUT_S = 0.75
PATIENCE_S = 60


def network(nodes: int) -> type[Coco]:
    return type(f"Coco{nodes}", (Coco,), {"nodes": nodes, "name": f"coco x{nodes}"})


def throughput(nodes: int, prepared: dict) -> dict:
    with running(network(nodes)) as system:
        if nodes > 1:
            Network(system).settled()
        return load(system, prepared)


class Network:
    """A running network whose nodes' processes are known, also those that were started anew."""

    def __init__(self, system: Coco) -> None:
        self.nodes = {name: dict(row) for name, row in system.summary["nodes"].items()}
        self._tls = system.target.tls
        threading.Thread(target=self._read, args=(system.process.stderr,), daemon=True).start()

    def _read(self, lines) -> None:
        for line in lines:
            event = json.loads(line) if line.startswith("{") else {}
            if event.get("event") == "sandbox.node_joined":
                self.nodes[event["node"]]["enclave_pid"] = event["enclave_pid"]

    def target(self, name: str) -> Target:
        return Target("localhost", int(self.nodes[name]["application_url"].rpartition(":")[2]), self._tls)

    def ask(self, name: str, path: str) -> dict:
        """A route of a node's administration listener."""
        port = int(self.nodes[name]["administration_url"].rpartition(":")[2])
        connection = Connection("localhost", port, self._tls)
        try:
            return connection.get(path)
        finally:
            connection.close()

    def settled(self) -> dict[str, bool]:
        """Once every node that runs votes, as every node says, and nobody else: for each, whether it leads."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            try:
                seen = {name: self.ask(name, "/node/network")["nodes"] for name in self.nodes}
                running = {name: self.ask(name, "/node/info")["node_id"] for name in self.nodes}
                voting = [{node for node, row in rows.items() if row["votes"]} for rows in seen.values()]
                if all(voters == set(running.values()) for voters in voting):
                    return {name: rows[running[name]]["primary"] for name, rows in seen.items()}
            except (OSError, KeyError, RuntimeError):
                pass
            time.sleep(0.2)
        raise RuntimeError("the network does not settle")


def failovers(kills: int) -> dict:
    seconds: list[float] = []
    nonce = 0
    with running(network(3)) as system:
        nodes = Network(system)

        def pay(connection: Connection) -> None:
            nonlocal nonce
            fields = {"nonce": nonce, "gas": 21_000, "to": FUNDER, "value": 1, "chainId": CHAIN_ID}
            _, raw = sign((FUNDER_KEY, fields))
            while True:
                try:
                    connection.call("eth_sendRawTransactionSync", raw)
                    break
                except RuntimeError as error:
                    if "node.no_primary" not in str(error) and "rolled_back" not in str(error):
                        raise
            nonce += 1

        for number in range(kills):
            leads = nodes.settled()
            primary = next(name for name, leading in leads.items() if leading)
            backup = next(name for name, leading in leads.items() if not leading)
            connection = nodes.target(backup).connect()
            pay(connection)
            os.kill(nodes.nodes[primary]["enclave_pid"], signal.SIGKILL)
            began = time.monotonic()
            pay(connection)
            seconds.append(time.monotonic() - began)
            connection.close()
            print(f"  kill {number + 1} of {kills}: {seconds[-1]:.2f} s", flush=True)
    return {
        "kills": kills,
        "election_timeout_s": ELECTION_TIMEOUT_S,
        "median_s": round(statistics.median(seconds), 2),
        "worst_s": round(max(seconds), 2),
        "median_election_timeouts": round(statistics.median(seconds) / ELECTION_TIMEOUT_S, 1),
        "worst_election_timeouts": round(max(seconds) / ELECTION_TIMEOUT_S, 1),
        "payments": nonce,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--transactions", type=int, default=20_000)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--nodes", default="1,3,5")
    chosen = parser.parse_args()
    assert Account.from_key(FUNDER_KEY).address == FUNDER
    prepared = prepare(chosen.transactions)
    sizes = [int(one) for one in chosen.nodes.split(",")]
    figures = {str(size): throughput(size, prepared) for size in sizes}
    found: dict = {"nodes": figures, "relative_to_one": {}}
    for mode in ("single", "batch"):
        if "1" in figures:
            one = figures["1"][mode]["tx_per_s"]
            ratios = {size: round(row[mode]["tx_per_s"] / one, 2) for size, row in figures.items()}
            found["relative_to_one"][mode] = ratios
            print(f"{mode}: throughput relative to one node: {ratios}")
    if chosen.kills:
        found["failover"] = failovers(chosen.kills)
        print(f"failover: {found['failover']}")
    path = Path(OUT) / "summary.json"
    OUT.mkdir(exist_ok=True)
    others = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**others, "network": found}, indent=1))
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
