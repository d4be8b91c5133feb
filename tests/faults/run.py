"""Histories of concurrent clients of a network whose nodes and links fail, checked for linearizability.

    make test-net [RUNS=20] [RUN_SECONDS=60] [SEED=1]

Each run is a fresh network of three nodes in network namespaces (``lab.py``), five clients that write and read
registers of one contract, and one fault after the other at one node at a time, chosen by the seed. A write ends with
its receipt; its transaction is sent again, to any node, until then. A read is an ``eth_getStorageAt`` with
``coco-read: linearizable``. At the end everything heals, every acknowledged transaction must be there, every ledger
must pass the independent reader, and ``checker`` (porcupine) must find an order for every register's history.

``--stale`` leaves the header out: the checker must then refuse (such a run shows that it can).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import requests
from eth_account import Account

sys.path.insert(0, str(Path(__file__).parent.parent))

from lab import APPLICATION, CHAIN_ID, REGISTERS, Lab, LabNode, missing

from conftest import verify_with_ccf

HERE = Path(__file__).parent
KEYS = 4
CLIENTS = 5
FAULTS = (
    *("enclave killed", "host killed", "enclave stopped", "host stopped"),
    *("cut off", "cut off", "deaf", "mute", "cut off and stopped"),
    *("slow disk", "full disk", "slow links"),
)
_PAUSE_S = 0.02
_FINISH_S = 60


class Client:
    """One client: an account, a connection to one node at a time, and what it did and saw."""

    def __init__(self, lab: Lab, number: int, seed: int, *, stale: bool) -> None:
        self.lab, self.number, self.stale = lab, number, stale
        self.chance = random.Random(f"{seed}/{number}")
        self.account = Account.from_key(lab.accounts[number][1])
        self.history: list[dict[str, Any]] = []
        self.acknowledged: list[str] = []
        self.refusals: dict[str, int] = {}
        self._nonce = 0
        self._session = requests.Session()
        self._move()

    def _move(self) -> None:
        self._session.close()
        self.node = self.chance.choice(self.lab.nodes)

    def call(self, method: str, *params: Any, timeout_s: float = 8) -> Any:
        """A result; or None, after which another node is asked."""
        body: dict[str, Any] = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        url = f"https://{self.node.address}:{APPLICATION}/"
        strict = method == "eth_getStorageAt" and not self.stale
        headers = {"coco-read": "linearizable"} if strict else {}
        try:
            reply = self._session.post(
                url, json=body, headers=headers, verify=str(self.lab.service), cert=self.lab.client, timeout=timeout_s
            ).json()
        except (requests.RequestException, ValueError) as error:
            self._refused(type(error).__name__)
            return None
        if reply.get("error"):
            data = reply["error"].get("data")
            self._refused(str(reply["error"].get("code")) if not isinstance(data, dict) else str(data.get("code")))
            return None
        return reply["result"]

    def _refused(self, what: str) -> None:
        self.refusals[what] = self.refusals.get(what, 0) + 1
        self._move()

    def write(self, key: int, value: int, give_up: threading.Event) -> None:
        fields = {"nonce": self._nonce, "to": REGISTERS, "chainId": CHAIN_ID, "gas": 100_000}
        data = key.to_bytes(32, "big") + value.to_bytes(32, "big")
        signed = self.account.sign_transaction({**fields, "data": data, "maxFeePerGas": 0, "maxPriorityFeePerGas": 0})
        raw, identity = "0x" + signed.raw_transaction.hex(), "0x" + signed.hash.hex()
        entry = {"client": self.number, "write": True, "key": str(key), "value": value, "call": time.monotonic_ns()}
        self.history.append(entry)
        receipt = None
        while receipt is None and not give_up.is_set():
            receipt = self.call("eth_sendRawTransactionSync", raw) or self.call("eth_getTransactionReceipt", identity)
            if receipt is None:
                time.sleep(_PAUSE_S)
        if receipt is not None:
            assert receipt["status"] == "0x1" and receipt["transactionHash"] == identity, receipt
            entry["return"] = time.monotonic_ns()
            self.acknowledged.append(identity)
            self._nonce += 1

    def read(self, key: int) -> bool:
        began = time.monotonic_ns()
        found = self.call("eth_getStorageAt", REGISTERS, hex(key), "latest")
        if found is not None:
            entry = {"client": self.number, "write": False, "key": str(key), "value": int(found, 16), "call": began}
            self.history.append({**entry, "return": time.monotonic_ns()})
        return found is not None

    def work(self, stop: threading.Event, give_up: threading.Event) -> None:
        values = iter(range(1, 1 << 30))
        while not stop.is_set():
            key = self.chance.randrange(KEYS)
            if self.chance.random() < 0.5:
                self.write(key, next(values) * CLIENTS + self.number, give_up)
            else:
                self.read(key)
            if self.chance.random() < 0.05:
                self._move()
            time.sleep(_PAUSE_S)


def fault(node: LabNode, chance: random.Random, seconds: float) -> str:
    """Do something to a node for a while; what it was."""
    pause = lambda: time.sleep(seconds)  # noqa: E731
    kind = chance.choice(FAULTS)
    with contextlib.ExitStack() as stack:
        match kind:
            case "enclave killed" | "host killed":
                node.kill(0 if kind == "host killed" else 1)
                return kind
            case "enclave stopped" | "host stopped":
                stack.enter_context(node.paused(0 if kind == "host stopped" else 1))
            case "cut off":
                stack.enter_context(node.cut_off())
            case "deaf":
                stack.enter_context(node.cut_off(directions=("INPUT",)))
            case "mute":
                stack.enter_context(node.cut_off(directions=("OUTPUT",)))
            case "slow disk":
                stack.enter_context(node.slow_disk(chance.choice([50, 200])))
            case "full disk":
                stack.enter_context(node.full_disk())
            case "slow links":
                stack.enter_context(node.slow_links(chance.choice([20, 100])))
            case "cut off and stopped":
                stack.enter_context(node.cut_off())
                stack.enter_context(node.paused(1))
        pause()
    return kind


def one_run(seed: int, seconds: float, directory: Path, *, stale: bool) -> tuple[Path, dict[str, Any]]:
    chance = random.Random(seed)
    lab = Lab(directory)
    faults: dict[str, int] = {}
    try:
        with lab:
            clients = [Client(lab, number, seed, stale=stale) for number in range(CLIENTS)]
            stop, give_up = threading.Event(), threading.Event()
            failures: list[BaseException] = []

            def work(client: Client) -> None:
                try:
                    client.work(stop, give_up)
                except BaseException as error:
                    failures.append(error)

            threads = [threading.Thread(target=work, args=(client,), daemon=True) for client in clients]
            for thread in threads:
                thread.start()
            ends = time.monotonic() + seconds
            while time.monotonic() < ends and not failures:
                time.sleep(chance.uniform(0.5, 2))
                # Half of the time whoever leads; and nobody else is touched before everything is whole again.
                primary = lab.settle()
                victim = primary if chance.random() < 0.5 else chance.choice(lab.nodes)
                kind = fault(victim, chance, chance.uniform(1, 5))
                faults[kind] = faults.get(kind, 0) + 1
            stop.set()
            lab.settle()
            for thread in threads:
                thread.join(timeout=_FINISH_S)
            give_up.set()
            assert not failures, failures
            assert not any(thread.is_alive() for thread in threads), "a client does not come to an end"
            for client in clients:
                for identity in client.acknowledged:
                    while (receipt := client.call("eth_getTransactionReceipt", identity)) is None:
                        assert time.monotonic() < ends + 3 * _FINISH_S, f"{identity} was acknowledged and is lost"
                    assert receipt["status"] == "0x1"
                wanted = hex(len(client.acknowledged))
                assert client.call("eth_getTransactionCount", client.account.address, "latest") == wanted
            for key in range(KEYS):
                assert clients[0].read(key)
        for ledger in lab.keep_ledgers():
            verify_with_ccf(ledger, ledger.parent / "chunks")
    finally:
        lab.clear()
    history = sorted((line for client in clients for line in client.history), key=lambda line: line["call"])
    path = directory / "history.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in history))
    refusals: dict[str, int] = {}
    for client in clients:
        for what, count in client.refusals.items():
            refusals[what] = refusals.get(what, 0) + count
    acknowledged = sum(len(client.acknowledged) for client in clients)
    return path, {"faults": faults, "acknowledged": acknowledged, "refusals": refusals}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--stale", action="store_true", help="reads without the header: the checker must refuse")
    parser.add_argument("--checker", default=str(HERE / "checker" / "checker"))
    parser.add_argument("--keep", type=Path, help="folder for histories and logs")
    chosen = parser.parse_args()
    if lacking := missing():
        sys.exit(f"needed: {', '.join(lacking)} (apt-get install iproute2 iptables strace)")
    root = chosen.keep or Path(tempfile.mkdtemp(prefix="coco-faults-"))
    refused = 0
    for seed in range(chosen.seed, chosen.seed + chosen.runs):
        try:
            path, said = one_run(seed, chosen.seconds, root / str(seed), stale=chosen.stale)
            checked = subprocess.run([chosen.checker, str(path)], capture_output=True, text=True)
            verdict, ok = checked.stdout.strip().rpartition(": ")[2], checked.returncode == 0
        except AssertionError as error:
            said, verdict, ok = {}, f"failed: {error}", False
        refused += not ok
        print(json.dumps({"seed": seed, "verdict": verdict, **said}), flush=True)
    print(f"{chosen.runs - refused} passed, {refused} failed")
    sys.exit(1 if refused else 0)


if __name__ == "__main__":
    main()
