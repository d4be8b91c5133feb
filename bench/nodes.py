"""What several nodes cost and how fast they fail over, in one run on one machine; adds to bench/out/summary.json.

    python bench/nodes.py [--transactions 20000] [--kills 20] [--nodes 1,3,5] [--skip etcd,...]

The load is the one of bench/ethereum.py, given to the primary. All nodes share the machine's cores: a network of real
machines has more of them, and slower links. A failover is measured by a client of a backup that sends one payment after
the other: from the kill of the primary's enclave to the receipt of the first payment begun after it, and divided by the
election timeout (the mean of 20 to 40 ticks of 25 ms). Commit latency is what one client sees that sends one payment
after the other and waits for its receipt. Catching up: a backup is killed after the load, loses its disk, and joins.
etcd is beside it for the replicated write alone: labelled with what it does not do.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import select
import signal
import statistics
import threading
import time
from pathlib import Path
from typing import Any

from eth_account import Account

from ethereum import OUT, load, prepare, sign
from load import Connection, Target
from systems import CHAIN_ID, FUNDER, FUNDER_KEY, Coco, Etcd, running, there

ELECTION_TIMEOUT_S = 0.75
PATIENCE_S = 60
LATENCY_PAYMENTS = 500


def network(nodes: int) -> type[Coco]:
    return type(f"Coco{nodes}", (Coco,), {"nodes": nodes, "name": f"coco x{nodes}"})


def throughput(nodes: int, prepared: dict[str, Any]) -> dict[str, Any]:
    with running(network(nodes)) as system:
        if nodes > 1:
            Network(system).settled()
        return load(system, prepared)


class Network:
    """A running network whose nodes' processes are known, also those that were started anew."""

    def __init__(self, system: Coco) -> None:
        self.nodes = {name: dict(row) for name, row in system.summary["nodes"].items()}
        self._tls = system.target.tls
        #: What each node that joined has said of it.
        self.caught_up: list[dict[str, Any]] = []
        threading.Thread(target=self._read, args=(system.process.stderr or (),), daemon=True).start()

    def _read(self, lines) -> None:
        for line in lines:
            event = json.loads(line) if line.startswith("{") else {}
            if event.get("event") == "join.caught_up":
                self.caught_up.append(event)
            if event.get("event") == "sandbox.node_joined":
                self.nodes[event["node"]]["enclave_pid"] = event["enclave_pid"]

    def target(self, name: str) -> Target:
        return Target("localhost", int(self.nodes[name]["application_url"].rpartition(":")[2]), self._tls)

    def ask(self, name: str, path: str) -> dict[str, Any]:
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


def failovers(kills: int) -> dict[str, Any]:
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


def latency(nodes: int, payments: int) -> dict[str, Any]:
    """Of one client at the primary, one payment at a time: submit to receipt."""
    with running(network(nodes)) as system:
        found = Network(system)
        leads = found.settled()
        connection = found.target(next(name for name, leading in leads.items() if leading)).connect()
        took = []
        for nonce in range(payments):
            fields = {"nonce": nonce, "gas": 21_000, "to": FUNDER, "value": 1, "chainId": CHAIN_ID}
            _, raw = sign((FUNDER_KEY, fields))
            began = time.perf_counter()
            connection.call("eth_sendRawTransactionSync", raw)
            took.append(1000 * (time.perf_counter() - began))
        connection.close()
    ordered = sorted(took)
    return {"p50_ms": round(ordered[len(ordered) // 2], 1), "p99_ms": round(ordered[int(len(ordered) * 0.99)], 1)}


def catch_up(prepared: dict[str, Any]) -> dict[str, Any]:
    """A backup that lost its disk reads the whole ledger from another node, checks, opens and applies it."""
    with running(network(3)) as system:
        nodes = Network(system)
        leads = nodes.settled()
        load(system, prepared)
        backup = next(name for name, leading in leads.items() if not leading)
        os.kill(nodes.nodes[backup]["enclave_pid"], signal.SIGKILL)
        (system.directory / backup / "ledger.db").unlink()
        deadline = time.monotonic() + PATIENCE_S
        joins = len(nodes.caught_up)
        while len(nodes.caught_up) == joins:
            if time.monotonic() > deadline:
                raise RuntimeError("the node does not come back")
            time.sleep(0.1)
        event = nodes.caught_up[-1]
        nodes.settled()
    seconds = max(event["ms"], 1) / 1000
    return {
        "entries": event["entries"],
        "mb": round(event["fetched_bytes"] / 1e6, 1),
        "mb_per_s": round(event["fetched_bytes"] / 1e6 / seconds, 1),
        "entries_per_s": round(event["entries"] / seconds),
    }


def etcd(puts: int, connections: int = 32) -> dict[str, Any]:
    """Puts of a payment's size through the JSON gateway, each acknowledged by a majority."""
    with running(Etcd) as system:
        value = base64.b64encode(os.urandom(180)).decode()
        clients = [system.target.connect() for _ in range(connections)]
        waiting = select.epoll()
        by_descriptor = {client.fileno(): client for client in clients}
        for descriptor in by_descriptor:
            waiting.register(descriptor, select.EPOLLIN)
        sent = done = 0
        at: dict[int, float] = {}
        took: list[float] = []

        def put(client: Connection) -> None:
            nonlocal sent
            key = base64.b64encode(b"key %d" % sent).decode()
            sent += 1
            at[client.fileno()] = time.perf_counter()
            client.send(json.dumps({"key": key, "value": value}).encode(), b"/v3/kv/put")

        began = time.perf_counter()
        for client in clients:
            put(client)
        while done < puts:
            for descriptor, _ in waiting.poll():
                client = by_descriptor[descriptor]
                body = client.receive()
                if body is None:
                    continue
                if b'"revision"' not in body:
                    raise RuntimeError(f"etcd refused: {body[:200]!r}")
                took.append(1000 * (time.perf_counter() - at[descriptor]))
                done += 1
                if sent < puts:
                    put(client)
        seconds = time.perf_counter() - began
        for client in clients:
            client.close()
        waiting.close()
        ordered = sorted(took)
        return {
            "version": system.version,
            "settings": system.settings,
            "puts_per_s": round(puts / seconds),
            "p50_ms": round(ordered[puts // 2], 1),
            "p99_ms": round(ordered[int(puts * 0.99)], 1),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--transactions", type=int, default=20_000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--skip", default="", help="latency, catch_up, etcd: comma between them")
    parser.add_argument("--nodes", default="1,3,5")
    chosen = parser.parse_args()
    assert Account.from_key(FUNDER_KEY).address == FUNDER
    prepared = prepare(chosen.transactions)
    sizes = [int(one) for one in chosen.nodes.split(",")]
    figures = {str(size): throughput(size, prepared) for size in sizes}
    found: dict[str, Any] = {"nodes": figures, "relative_to_one": {}}
    for mode in ("single", "batch"):
        if "1" in figures:
            one = figures["1"][mode]["tx_per_s"]
            ratios = {size: round(row[mode]["tx_per_s"] / one, 2) for size, row in figures.items()}
            found["relative_to_one"][mode] = ratios
            print(f"{mode}: throughput relative to one node: {ratios}")
    if chosen.kills:
        found["failover"] = failovers(chosen.kills)
        print(f"failover: {found['failover']}")
    skip = chosen.skip.split(",")
    if "latency" not in skip:
        found["commit_latency"] = {str(size): latency(size, LATENCY_PAYMENTS) for size in sizes}
        print(f"commit latency: {found['commit_latency']}")
    if "catch_up" not in skip:
        found["catch_up"] = catch_up(prepared)
        print(f"catch-up: {found['catch_up']}")
    if "etcd" not in skip and there([Etcd]):
        found["etcd"] = etcd(chosen.transactions)
        three = figures.get("3")
        if three is not None:
            ratio = round(three["single"]["tx_per_s"] / found["etcd"]["puts_per_s"], 2)
            found["etcd"]["coco_transactions_per_etcd_put"] = ratio
        print(f"etcd (not like for like: {found['etcd']['settings']}): {found['etcd']}")
    path = Path(OUT) / "summary.json"
    OUT.mkdir(exist_ok=True)
    others = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**others, "network": found}, indent=1))
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
