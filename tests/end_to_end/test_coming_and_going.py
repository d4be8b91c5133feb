"""Nodes come and go one at a time under load: 3 -> 5 -> 3, then every node once; no request fails that a retry does not mend."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from eth_account import Account

import coco
from coco.cli.sandbox import WELL_KNOWN_ACCOUNTS
from coco.cli.sandbox_folder import SandboxFiles
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
        self.pair: Any = tuple(str(files.actor("participants", "dapp", end)) for end in (".pem", ".key.pem"))
        self.session = requests.Session()
        self.receipts: list[str] = []
        self.refusals: set[str] = set()

    def call(self, method: str, *params: Any, node: str | None = None) -> Any:
        """A result; or None after a refusal that may be tried again. A node that is named gives the newest."""
        running = list(self.operator.running.values())
        said = self.operator.running[node][1] if node else self.chance.choice(running)[1]
        body: dict[str, Any] = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        # Any other read may miss what a client of another node was told a moment ago.
        headers = {"coco-read": "linearizable"} if node else {}
        try:
            reply = self.session.post(
                said["application_url"],
                json=body,
                headers=headers,
                verify=self.operator.service,
                cert=self.pair,
                timeout=20,
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


@contextlib.contextmanager
def paying(operator: Operator, accounts: int) -> Iterator[list[Load]]:
    """Accounts that pay all the while; at the end nobody has failed, and every node knows every payment."""
    stop, failures = threading.Event(), []
    loads = [Load(operator, number) for number in range(accounts)]

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
        yield loads
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


@pytest.mark.slow
def test_nodes_come_and_go_under_load(operator):
    operator.run("n0", "start")
    for name in ("n1", "n2"):
        operator.join(name)
    voting(operator, {"n0", "n1", "n2"})
    with paying(operator, 3):
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


def _measured(code: Path | None) -> str:
    environment = {**os.environ, **({"PYTHONPATH": str(code)} if code is not None else {})}
    command = [sys.executable, "-m", "coco.cli.main", "node", "measure"]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout.strip()


@pytest.mark.slow
def test_new_code_is_voted_in_and_rolled_out_under_load_and_who_keeps_the_old_is_ejected(operator, tmp_path):
    code = tmp_path / "v2"
    shutil.copytree(Path(coco.__file__).parent, code / "coco")
    with (code / "coco" / "enclave" / "node" / "process.py").open("a") as changed:
        changed.write("# version two\n")
    old, new = _measured(None), _measured(code)
    assert old != new
    operator.run("n0", "start")
    for name in ("n1", "n2"):
        operator.join(name)
    voting(operator, {"n0", "n1", "n2"})
    with paying(operator, 2):
        early = operator.join("n3", code=code)
        assert early["error"]["code"] == "join.code_not_allowed", "before the vote it is a stranger"
        allow = {"name": "add_virtual_measurement", "args": {"measurement": new}}
        assert operator.propose(allow, by="n1")["proposalState"] == "Accepted"
        drop = {"name": "remove_virtual_measurement", "args": {"measurement": old}}
        too_early = operator.propose(drop, by="n1")
        assert too_early["failure"]["code"] in ("gov.no_node_left", "gov.no_quorum_left")
        # One after the other, at its address; the last one's operator does not care.
        for name in ("n0", "n1"):
            process, said = operator.running.pop(name)
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=40)
            port = said["peer_address"].rpartition(":")[2]
            operator.join(name, "--peer-port", port, by="n2", code=code)
            voting(operator, {"n0", "n1", "n2"})
        process, _ = operator.running.pop("n2")
        assert operator.propose(drop, by="n0")["proposalState"] == "Accepted"
        voting(operator, {"n0", "n1"})
        process.communicate(timeout=60)
        again = operator.join("n4", by="n0")
        assert again["error"]["code"] == "join.code_not_allowed"
