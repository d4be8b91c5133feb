"""Nodes come and go one at a time under load: 3 -> 5 -> 3, then every node once; no request fails that a retry does not mend."""

from __future__ import annotations

import random
import signal
import threading
import time
from typing import Any

import requests
from eth_account import Account

from coco.cli.sandbox import WELL_KNOWN_ACCOUNTS, SandboxFiles
from operators import PATIENCE_S, Operator

TO = WELL_KNOWN_ACCOUNTS[0][0]
#: What a client may be told while nodes come and go; all of it is worth another try.
RETRIABLE = {"node.no_primary", "node.stopping", "peers.unreachable", "consensus.no_majority", "node.behind"}
KNOWN = {"pool.already_known", "ethereum.transaction.nonce_too_low", "pool.position_passed"}


class Load:
    """One account that pays through whichever node it finds, each payment until its receipt."""

    def __init__(self, operator: Operator, number: int) -> None:
        self.operator, self.chance = operator, random.Random(number)
        self.account = Account.from_key(WELL_KNOWN_ACCOUNTS[number][1])
        files = SandboxFiles(operator.directory)
        self.pair = tuple(str(files.actor("participants", "dapp", end)) for end in (".pem", ".key.pem"))
        self.session = requests.Session()
        self.receipts: list[str] = []
        self.refusals: set[str] = set()

    def call(self, method: str, *params: Any, node: str | None = None) -> Any:
        """A result; or None after a refusal that may be tried again."""
        running = list(self.operator.running.values())
        said = self.operator.running[node][1] if node else self.chance.choice(running)[1]
        body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        try:
            reply = self.session.post(
                said["application_url"], json=body, verify=self.operator.service, cert=self.pair, timeout=20
            ).json()
        except (requests.RequestException, ValueError):
            return None
        error = reply.get("error")
        if error:
            data = error.get("data")
            code = data["code"] if isinstance(data, dict) else error["code"]
            assert code in RETRIABLE | KNOWN, reply
            self.refusals.add(code)
            return None
        return reply["result"]

    def pay(self) -> None:
        fees = {"maxFeePerGas": 0, "maxPriorityFeePerGas": 0, "gas": 21_000, "chainId": 1}
        signed = self.account.sign_transaction({"nonce": len(self.receipts), "to": TO, "value": 0, **fees})
        raw, identity = "0x" + signed.raw_transaction.hex(), "0x" + signed.hash.hex()
        deadline, receipt = time.monotonic() + PATIENCE_S, None
        while receipt is None:
            assert time.monotonic() < deadline, "no receipt"
            receipt = self.call("eth_sendRawTransactionSync", raw) or self.call("eth_getTransactionReceipt", identity)
        assert receipt["status"] == "0x1"
        self.receipts.append(identity)


def voting(operator: Operator, wanted: set[str]) -> None:
    """Wait until exactly these nodes vote, as each of them says."""
    ids = {operator.running[name][1]["node_id"] for name in wanted}
    for name in wanted:
        deadline = time.monotonic() + PATIENCE_S
        while set(operator.voters(name, len(wanted))) != ids:
            assert time.monotonic() < deadline
            time.sleep(0.2)


def test_nodes_come_and_go_under_load(operator):
    operator.run("n0", "start")
    for name in ("n1", "n2"):
        operator.join(name)
    voting(operator, {"n0", "n1", "n2"})
    stop, failures = threading.Event(), []
    loads = [Load(operator, number) for number in range(3)]

    def work(load: Load) -> None:
        try:
            while not stop.is_set():
                load.pay()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(load,)) for load in loads]
    for thread in threads:
        thread.start()
    try:
        for name in ("n3", "n4"):
            operator.join(name, by="n1")
            voting(operator, set(operator.running))
        for name in ("n1", "n0"):  # the second leads, or has led: it hands over
            by = "n2"
            process, said = operator.running.pop(name)
            assert operator.retire(said["node_id"], by=by)["retired"] == said["node_id"]
            process.communicate(timeout=40)
            voting(operator, {"n2", "n3", "n4"} | (set(operator.running) & {"n0"}))
        # Every node once: stopped in good order, and started again at its address.
        for name in ("n2", "n3", "n4"):
            process, said = operator.running.pop(name)
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=40)
            by = next(iter(operator.running))
            operator.join(name, "--peer-port", said["peer_address"].rpartition(":")[2], by=by)
            voting(operator, {"n2", "n3", "n4"})
    finally:
        stop.set()
        for thread in threads:
            thread.join(timeout=60)
    assert not failures, failures
    for load in loads:
        assert len(load.receipts) > 20
        for name in operator.running:
            assert load.call("eth_getTransactionCount", load.account.address, "latest", node=name) == hex(
                len(load.receipts)
            )
            for identity in (load.receipts[0], load.receipts[-1]):
                assert load.call("eth_getTransactionReceipt", identity, node=name)["status"] == "0x1"
