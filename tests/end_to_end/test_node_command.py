"""`coco node`: processes of their own, as operators run them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import requests

from coco.cli.sandbox import SandboxFiles, make_genesis
from conftest import verify_with_ccf

COMMAND = [sys.executable, "-m", "coco.cli.main", "node"]
PATIENCE_S = 40


class Operator:
    """One person with a few nodes on one machine."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        files = SandboxFiles(directory)
        make_genesis(files, fees="free", fork="osaka", chain_id=1)
        self.genesis, self.certificate = files.genesis, files.actor("operators", "operator", ".pem")
        self.running: dict[str, tuple[subprocess.Popen[str], dict[str, Any]]] = {}

    def run(self, name: str, *arguments: str) -> dict[str, Any]:
        """Start a node; what it says once it serves, or its error."""
        command = [*COMMAND, *arguments, "--dir", str(self.directory / name), "--genesis", str(self.genesis), "--json"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert process.stdout is not None
        said = json.loads(process.stdout.readline())
        if "error" in said:
            process.communicate(timeout=30)
        else:
            self.running[name] = process, said
        return said

    @property
    def service(self) -> str:
        return str(self.directory / "n0" / "service.pem")

    def join(self, name: str, *arguments: str, by: str = "n0") -> dict[str, Any]:
        peer = self.running[by][1]["peer_address"]
        return self.run(
            name, "join", "--peer", peer, "--service", self.service, "--operator", str(self.certificate), *arguments
        )

    def status(self, name: str) -> dict[str, Any]:
        admin = self.running[name][1]["administration_url"]
        done = subprocess.run(
            [*COMMAND, "status", admin, "--service", self.service, "--json"], capture_output=True, text=True, timeout=30
        )
        return json.loads(done.stdout)

    def voters(self, name: str, wanted: int) -> dict[str, Any]:
        """The nodes that vote, once they are so many."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            nodes = self.status(name)["network"]["nodes"]
            found = {node: row for node, row in nodes.items() if row["votes"]}
            if len(found) == wanted:
                return found
            time.sleep(0.2)
        raise AssertionError(f"not {wanted} voters: {nodes}")

    def kill(self, name: str) -> dict[str, Any]:
        process, said = self.running.pop(name)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate(timeout=10)
        return said

    def stop(self) -> None:
        for process, _ in self.running.values():
            process.send_signal(signal.SIGTERM)
        for process, _ in self.running.values():
            process.communicate(timeout=40)


@pytest.fixture
def operator(tmp_path):
    made = Operator(tmp_path)
    yield made
    made.stop()
    for ledger in sorted(tmp_path.glob("n*/ledger.db")):
        verify_with_ccf(ledger, tmp_path / f"{ledger.parent.name}-chunks")


def test_a_network_of_processes_and_a_host_that_dies(operator):
    assert operator.run("n0", "start")["status"] == "Open"
    operator.join("n1")
    operator.join("n2", "--metrics-port", "0", by="n1")
    before = operator.voters("n0", 3)
    text = requests.get(operator.running["n2"][1]["metrics_url"], timeout=10).text
    deadline = time.monotonic() + PATIENCE_S
    while "coco_voters 3" not in text and time.monotonic() < deadline:
        text = requests.get(operator.running["n2"][1]["metrics_url"], timeout=10).text
    assert {"coco_leads 0", "coco_primary_known 1", "coco_voters 3"} <= set(text.splitlines())
    assert 'coco_relay_open{listener="peers"}' in text and "# TYPE coco_transactions_total counter" in text
    dead = operator.kill("n0")
    # The host is gone with its enclave; the operator, or a supervisor, starts a process at the same address.
    operator.join("n0", "--peer-port", dead["peer_address"].rpartition(":")[2], by="n1")
    after = operator.voters("n1", 3)
    assert dead["node_id"] in before and dead["node_id"] not in after
    rows = operator.status("n2")["network"]["nodes"]
    deadline = time.monotonic() + PATIENCE_S
    while rows[dead["node_id"]]["status"] != "Retired" and time.monotonic() < deadline:
        rows = operator.status("n2")["network"]["nodes"]
    assert rows[dead["node_id"]]["status"] == "Retired"


def test_nodes_leave_as_their_operator_says(operator, tmp_path):
    operator.run("n0", "start")
    operator.join("n1")
    operator.join("n2")
    nodes = operator.voters("n0", 3)
    stranger = Operator(tmp_path / "stranger")

    def retire(node_id: str, by: Operator = operator) -> Any:
        admin = operator.running["n1"][1]["administration_url"]
        command = [*COMMAND, "retire", admin, node_id, "--service", operator.service, "--json"]
        done = subprocess.run([*command, "--operator", str(by.certificate)], capture_output=True, text=True, timeout=60)
        return json.loads(done.stdout)

    first = operator.running["n0"][1]["node_id"]
    assert retire(first, stranger)["error"]["code"] == "join.not_the_owner"
    assert retire("ab")["error"]["code"] == "node.unknown"
    # It founded the network and leads it: it hands over, and leaves.
    assert retire(first) == {"retired": first}
    process, _ = operator.running.pop("n0")
    said, _ = process.communicate(timeout=40)
    assert json.loads(said)["error"]["code"] == "node.ended" and "node.retired" in said
    left = operator.voters("n1", 2)
    assert set(left) == set(nodes) - {first}
    assert retire(operator.running["n2"][1]["node_id"])
    operator.running.pop("n2")[0].communicate(timeout=40)
    last = operator.voters("n1", 1)
    assert retire(next(iter(last)))["error"]["code"] == "node.last"


def test_who_may_not_join_does_not(operator, tmp_path):
    operator.run("n0", "start")
    # Another service's certificate: the joiner itself refuses, and no node is asked for secrets.
    other = Operator(tmp_path / "other")
    (tmp_path / "other" / "n0").mkdir()
    try:
        other.run("n0", "start")
        peer = operator.running["n0"][1]["peer_address"]
        said = operator.run("x1", "join", "--peer", peer, "--service", other.service)
        assert said["error"]["code"] == "peers.not_of_the_service"
        # Another network's operator: the network refuses.
        said = operator.run(
            "x2", "join", "--peer", peer, "--service", operator.service, "--operator", str(other.certificate)
        )
        assert said["error"]["code"] == "join.not_the_owner"
    finally:
        other.stop()
    rows = operator.status("n0")["network"]["nodes"]
    assert len(rows) == 1
