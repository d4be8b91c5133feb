"""Three nodes, real processes and real clients: the primary dies, and nobody loses anything."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
from eth_account import Account
from hexbytes import HexBytes
from web3 import Web3
from web3.exceptions import TimeExhausted, Web3RPCError

from coco.cli.sandbox import WELL_KNOWN_ACCOUNTS
from conftest import SandboxProcess

SENDER, KEY = WELL_KNOWN_ACCOUNTS[0]
PATIENCE_S = 40


def administration(sandbox: SandboxProcess, node: str, path: str) -> Any:
    url = sandbox.summary["nodes"][node]["administration_url"]
    return requests.get(url + path, verify=sandbox.summary["service_certificate"], timeout=10).json()


def eventually(check: Callable[[], Any], what: str) -> Any:
    """What ``check`` gives, once it gives something."""
    deadline, last = time.monotonic() + PATIENCE_S, None
    while time.monotonic() < deadline:
        try:
            if found := check():
                return found
        except requests.RequestException as error:
            last = error
        time.sleep(0.1)
    raise AssertionError(f"{what}: {last}")


def voters(sandbox: SandboxProcess, node: str) -> dict[str, Any]:
    found = administration(sandbox, node, "/node/network")["nodes"]
    return {name: row for name, row in found.items() if row["votes"]}


def whole(sandbox: SandboxProcess) -> bool:
    """Whether every node that runs votes, and nobody else: only then is one more loss survived."""
    running = {administration(sandbox, name, "/node/info")["node_id"] for name in sandbox.summary["nodes"]}
    return all(set(voters(sandbox, name)) == running for name in sandbox.summary["nodes"])


def primary_of(sandbox: SandboxProcess) -> str:
    """The name of the node that leads, as every node says."""

    def agreed() -> str | None:
        infos = {name: administration(sandbox, name, "/node/info") for name in sandbox.summary["nodes"]}
        networks = [administration(sandbox, name, "/node/network")["nodes"] for name in infos]
        leading = {node for network in networks for node, row in network.items() if row["primary"]}
        named = {info["node_id"]: name for name, info in infos.items()}
        return named.get(leading.pop()) if len(leading) == 1 else None

    return eventually(agreed, "the nodes agree on a primary")


class Payments:
    """Payments of one account, one after the other, each until its receipt is there."""

    def __init__(self, url: str, account: int = 0) -> None:
        self.web3 = Web3(Web3.HTTPProvider(url, request_kwargs={"timeout": 60}))
        self.account = Account.from_key(WELL_KNOWN_ACCOUNTS[account][1])
        self.acknowledged: list[bytes] = []
        self.refusals: list[str] = []

    def sign(self) -> Any:
        """The next payment."""
        fees = {"maxFeePerGas": 0, "maxPriorityFeePerGas": 0, "gas": 21_000}
        nonce = len(self.acknowledged)
        return self.account.sign_transaction({"nonce": nonce, "to": SENDER, "value": 1, "chainId": 2017, **fees})

    def pay(self) -> float:
        """Send one; seconds until its receipt."""
        began = time.monotonic()
        signed = self.sign()
        receipt = None
        while receipt is None:
            assert time.monotonic() - began < PATIENCE_S, "no receipt"
            receipt = self._try(signed)
        assert receipt["status"] == 1
        self.acknowledged.append(bytes(signed.hash))
        return time.monotonic() - began

    def _try(self, signed: Any) -> Any:
        """Send, and wait a little for the receipt.

        The node that took it may have died with it before it was committed: then it is sent again, as wallets do.
        """
        try:
            self.web3.eth.send_raw_transaction(signed.raw_transaction)
        except Web3RPCError as error:
            known = ("already known", "nonce too low", "no primary", "another node", "failed to reach")
            assert any(text in str(error) for text in known), error
            self.refusals.append(str(error))
        try:
            return self.web3.eth.wait_for_transaction_receipt(signed.hash, timeout=3, poll_latency=0.05)
        except TimeExhausted:
            return None

    def check(self) -> None:
        """Everything acknowledged is there, once."""
        assert self.web3.eth.get_transaction_count(self.account.address) == len(self.acknowledged)
        for identity in self.acknowledged:
            assert self.web3.eth.get_transaction_receipt(HexBytes(identity))["status"] == 1


@pytest.fixture
def network(sandboxes):
    made = sandboxes("network", "--nodes", "3")
    made.start()
    return made


def test_the_primary_is_killed_and_replaced_without_a_person(network):
    payments = Payments(network.url)
    for _ in range(5):
        payments.pay()
    before = voters(network, "n0")
    assert len(before) == 3
    killed = primary_of(network)
    os.kill(network.summary["nodes"][killed]["enclave_pid"], signal.SIGKILL)
    # The unmodified client sees nothing but a slow payment.
    assert payments.pay() < 15
    for _ in range(5):
        payments.pay()
    # The sandbox is its supervisor: the same address joins again, under an identity of its own.
    others = [name for name in network.summary["nodes"] if name != killed]

    def replaced() -> bool:
        now = voters(network, others[0])
        return len(now) == 3 and len(set(now) - set(before)) == 1

    eventually(replaced, "the dead node is replaced")
    payments.pay()
    payments.check()


def test_clients_of_a_backup_read_and_write(network):
    backup = next(name for name in network.summary["nodes"] if name != primary_of(network))
    summary = network.summary
    session = requests.Session()
    ca = summary["service_certificate"]
    session.cert = (summary["participant_certificate"], summary["participant_key"])

    def call(method: str, *params: Any) -> Any:
        body: dict[str, Any] = {"jsonrpc": "2.0", "id": 1, "method": method, "params": list(params)}
        reply = session.post(summary["nodes"][backup]["application_url"], json=body, verify=ca, timeout=30)
        assert reply.headers["coco-primary"] == "1"
        answer = reply.json()
        assert "error" not in answer, answer
        return answer["result"]

    account = Account.from_key(KEY)
    fees = {"gas": 21_000, "to": SENDER, "value": 1, "chainId": 2017, "maxFeePerGas": 0, "maxPriorityFeePerGas": 0}
    for nonce in range(3):
        signed = account.sign_transaction({"nonce": nonce, **fees})
        receipt = call("eth_sendRawTransactionSync", "0x" + signed.raw_transaction.hex())
        assert receipt["status"] == "0x1"
    assert call("eth_getTransactionCount", SENDER, "latest") == "0x3"
    # A gap waits in the primary's pool, and a backup knows of it.
    signed = account.sign_transaction({"nonce": 3, **fees})
    later = account.sign_transaction({"nonce": 4, **fees})
    call("eth_sendRawTransaction", "0x" + later.raw_transaction.hex())
    assert call("eth_getTransactionCount", SENDER, "pending") == "0x3"
    call("eth_sendRawTransaction", "0x" + signed.raw_transaction.hex())
    eventually(lambda: call("eth_getTransactionCount", SENDER, "latest") == "0x5", "both are executed")
    # Their parties may ask what became of them, at any node; how many wait is told to nobody (docs/confidentiality.md).
    for name in summary["nodes"]:
        asked = f"{summary['nodes'][name]['application_url']}/coco/transaction"
        for identity in (signed.hash.hex(), later.hash.hex()):
            told = lambda: session.get(asked, params={"hash": identity}, verify=ca, timeout=10).json()["status"]  # noqa: E731
            eventually(lambda: told() == "Committed", "every node knows")
    assert "held" not in administration(network, backup, "/node/info")


def test_a_network_of_three_recovers_from_the_ledger_that_goes_furthest(network):
    payments = Payments(network.url)
    for _ in range(3):
        payments.pay()
    network.stop()
    network.start()
    payments.web3 = Web3(Web3.HTTPProvider(network.url))
    payments.check()
    payments.pay()
    assert len(voters(network, "n0")) == 3


def test_a_majority_lost_is_said_and_recovered_without_a_fork(network):
    payments = Payments(network.url)
    for _ in range(5):
        payments.pay()
    eventually(lambda: whole(network), "three nodes vote")
    for name in ("n1", "n2"):
        os.kill(network.summary["nodes"][name]["enclave_pid"], signal.SIGKILL)
    eventually(lambda: "sandbox.majority_lost" in network.log.read_text(), "it is said")
    eventually(lambda: not administration(network, "n0", "/node/health")["ready"], "nobody leads")
    with pytest.raises(Web3RPCError) as refused:
        payments.web3.eth.send_raw_transaction(payments.sign().raw_transaction)
    assert "no primary" in str(refused.value)
    network.stop()
    network.start()
    payments.web3 = Web3(Web3.HTTPProvider(network.url))
    payments.check()
    payments.pay()
    payments.check()
    eventually(lambda: whole(network), "three nodes vote")


def test_a_node_that_is_cut_off_answers_no_fresh_client(network):
    # G5: what it knows may be old; whoever asks for the first time must not be told so as if it were the present.
    payments = Payments(network.url)
    payments.pay()
    left = next(name for name in network.summary["nodes"] if name != primary_of(network))
    others = [row["enclave_pid"] for name, row in network.summary["nodes"].items() if name != left]
    summary = network.summary
    balance: dict[str, Any] = {"jsonrpc": "2.0", "id": 1, "method": "eth_blockNumber", "params": []}
    url, ca = summary["nodes"][left]["application_url"], summary["service_certificate"]
    client = (summary["participant_certificate"], summary["participant_key"])
    with requests.Session() as known:
        known.cert = client
        assert known.post(url, json=balance, verify=ca, timeout=10).json()["result"] == "0x1"
        for pid in others:
            os.kill(pid, signal.SIGSTOP)
        try:
            fresh = requests.post(url, json=balance, verify=ca, cert=client, timeout=20)
            assert (fresh.status_code, fresh.json()["error"]["code"]) == (503, "consensus.no_majority")
            strict = known.post(url, json=balance, verify=ca, headers={"coco-read": "linearizable"}, timeout=20)
            assert (strict.status_code, strict.json()["error"]["code"]) == (503, "consensus.no_majority")
            # Serializable reads of a session that was confirmed go on.
            assert known.post(url, json=balance, verify=ca, timeout=10).json()["result"] == "0x1"
        finally:
            for pid in others:
                os.kill(pid, signal.SIGCONT)
        eventually(
            lambda: requests.post(url, json=balance, verify=ca, cert=client, timeout=20).status_code == 200,
            "the majority is back",
        )
        floor = {"coco-min-transaction-id": "2.100000"}
        behind = known.post(url, json=balance, verify=ca, headers=floor, timeout=20)
        assert (behind.status_code, behind.json()["error"]["code"]) == (503, "node.behind")
    payments.pay()
    payments.check()


def test_L3_what_a_primary_signs_alone_is_not_called_committed(network):
    payments = Payments(network.url)
    for _ in range(3):
        payments.pay()
    primary = primary_of(network)
    ledger, service = network.directory / primary / "ledger.db", Path(network.summary["service_certificate"])

    def audited() -> dict[str, Any]:
        command = [sys.executable, "-m", "coco.cli.main", "ledger", "verify", "--json", "--ledger", str(ledger)]
        done = subprocess.run([*command, "--service", str(service)], capture_output=True, text=True, timeout=60)
        return json.loads(done.stdout)

    before = audited()
    assert int(before["committed"].partition(".")[2]) > 3 and before["service_pinned"]
    others = [row["enclave_pid"] for name, row in network.summary["nodes"].items() if name != primary]
    for pid in others:
        os.kill(pid, signal.SIGSTOP)
    try:
        payments.web3.eth.send_raw_transaction(payments.sign().raw_transaction)
        eventually(lambda: audited()["signed_commitment_unproven"] > 2, "it signs what nobody else holds")
        alone = audited()
    finally:
        for pid in others:
            os.kill(pid, signal.SIGCONT)
    # Its own disk tells: up to here and no further did a majority hold it.
    assert int(alone["committed"].partition(".")[2]) < int(alone["last_signed"].partition(".")[2]) - 2
    eventually(lambda: whole(network), "three nodes vote")


def enclaves(sandbox: SandboxProcess) -> list[int]:
    """Process ids of the enclaves that run now."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
            command = (path.parent / "cmdline").read_bytes()
        except OSError:
            continue
        if parent == sandbox.summary["host_pid"] and b"boot.py" in command:
            found.append(int(path.parent.name))
    return sorted(found)


@pytest.mark.started
@pytest.mark.slow
def test_nodes_die_at_random_under_load_and_nothing_is_lost_or_done_twice(network):
    chance = random.Random(20)
    clients = [Payments(network.url, account) for account in range(4)]
    stop = threading.Event()
    failures: list[BaseException] = []

    def work(client: Payments) -> None:
        while not stop.is_set():
            try:
                client.pay()
            except BaseException as error:
                failures.append(error)
                return

    threads = [threading.Thread(target=work, args=(client,)) for client in clients]
    for thread in threads:
        thread.start()
    for _ in range(5):
        eventually(lambda: whole(network), "three nodes vote")
        time.sleep(chance.uniform(0, 1))
        os.kill(chance.choice(enclaves(network)), signal.SIGKILL)
    eventually(lambda: whole(network), "three nodes vote")
    stop.set()
    for thread in threads:
        thread.join(timeout=60)
    assert not failures, failures
    for client in clients:
        assert len(client.acknowledged) > 20
        client.check()
    # Every node has come to the same chain.
    ca = network.summary["service_certificate"]
    pair = tuple(network.summary[f"participant_{part}"] for part in ("certificate", "key"))
    call: dict[str, Any] = {"jsonrpc": "2.0", "id": 1, "method": "eth_getBlockByNumber", "params": ["latest", False]}

    def agreed() -> bool:
        urls = [row["application_url"] for row in network.summary["nodes"].values()]
        blocks = [requests.post(url, json=call, verify=ca, cert=pair, timeout=20).json()["result"] for url in urls]
        return len({(block["hash"], block["stateRoot"]) for block in blocks}) == 1

    eventually(agreed, "the nodes agree on the chain")
