"""`coco node`: processes of their own, as operators run them."""

from __future__ import annotations

import json
import re
import time

import pytest
import requests

from conftest import ROOT
from operators import PATIENCE_S, Operator


@pytest.mark.started
def test_a_network_of_processes_and_a_host_that_dies(operator):
    assert operator.run("n0", "start")["status"] == "Open"
    operator.join("n1")
    operator.join("n2", "--metrics-port", "0", by="n1")
    before = operator.voters("n0", 3)
    text = requests.get(operator.running["n2"][1]["metrics_url"], timeout=10).text
    deadline = time.monotonic() + PATIENCE_S
    while not {"coco_voters 3", "coco_voters_reachable 3"} <= set(text.splitlines()) and time.monotonic() < deadline:
        text = requests.get(operator.running["n2"][1]["metrics_url"], timeout=10).text
    assert {"coco_leads 0", "coco_primary_known 1", "coco_voters 3"} <= set(text.splitlines())
    assert 'coco_relay_open{listener="peers"}' in text and "# TYPE coco_transactions_total counter" in text
    rules = (ROOT / "deploy" / "monitoring" / "alerts.yml").read_text()
    served = set(re.findall(r"^coco_\w+", text, re.M)) | {"coco_endorsements_left_s"}  # of platforms that have some
    assert set(re.findall(r"\bcoco_\w+", rules)) <= served
    numbers = dict(line.split() for line in text.splitlines() if line.startswith("coco_") and "{" not in line)
    assert (numbers["coco_voters_reachable"], numbers["coco_quorum_margin"]) == ("3", "1")
    assert numbers["coco_recovery_shares_held"] == numbers["coco_recovery_threshold"] == "1"
    assert 0 < int(numbers["coco_node_certificates_left_s"]) <= 7 * 86400 and int(numbers["coco_ledger_bytes"]) > 0
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

    first = operator.running["n0"][1]["node_id"]
    assert operator.retire(first, owner=stranger)["error"]["code"] == "join.not_the_owner"
    assert operator.retire("ab")["error"]["code"] == "node.unknown"
    # It founded the network and leads it: it hands over, and leaves.
    assert operator.retire(first) == {"retired": first}
    process, _ = operator.running.pop("n0")
    said, _ = process.communicate(timeout=40)
    assert json.loads(said)["error"]["code"] == "node.retired" and process.returncode == 5
    left = operator.voters("n1", 2)
    assert set(left) == set(nodes) - {first}
    # A supervisor starts it again: no. Its operator wants it back: yes.
    port = nodes[first]["address"].rpartition(":")[2]
    assert operator.join("n0", "--peer-port", port, by="n1")["error"]["code"] == "join.address_left"
    operator.join("n0", "--peer-port", port, "--returns", first, by="n1")
    operator.voters("n1", 3)
    assert operator.retire(operator.running["n0"][1]["node_id"])
    operator.running.pop("n0")[0].communicate(timeout=40)
    assert set(operator.voters("n1", 2)) == set(left)
    assert operator.retire(operator.running["n2"][1]["node_id"])
    operator.running.pop("n2")[0].communicate(timeout=40)
    last = operator.voters("n1", 1)
    assert operator.retire(next(iter(last)))["error"]["code"] == "node.last"


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
    # Nobody listens there: it says so after a while, and ends.
    said = operator.run(
        "x3", "join", "--peer", "127.0.0.1:9", "--service", operator.service, "--operator", str(operator.certificate)
    )
    assert said["error"]["code"] == "join.nobody_answers"


def test_a_dead_node_is_replaced_at_its_address_or_at_another(operator):
    operator.run("n0", "start")
    operator.join("n1")
    operator.join("n2")
    operator.voters("n0", 3)
    admin = operator.running["n0"][1]["administration_url"]

    def replace(name, node_id, *arguments):
        given = ("--admin", admin, "--service", operator.service, "--operator", str(operator.certificate))
        return operator.run(name, "replace", node_id, *given, *arguments)

    dead = operator.kill("n2")
    said = replace("n2", dead["node_id"][:12])
    assert said["peer_address"] == dead["peer_address"]
    nodes = operator.voters("n0", 3)
    assert said["node_id"] in nodes and dead["node_id"] not in nodes
    dead = operator.kill("n2")
    said = replace("n3", dead["node_id"], "--listen", "127.0.0.2")
    assert said["peer_address"].startswith("127.0.0.2:")
    nodes = operator.voters("n0", 3)
    assert said["node_id"] in nodes and dead["node_id"] not in nodes
    assert operator.status("n0")["network"]["nodes"][dead["node_id"]]["status"] == "Retired"
    assert replace("n4", dead["node_id"])["error"]["code"] == "node.retired"
    assert replace("n4", "zz")["error"]["code"] == "node.unknown"
