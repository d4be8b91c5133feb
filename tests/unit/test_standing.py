"""What an operator watches: numbers of what ends, who is there, who could recover it; and the alerts over them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from coco import constitutions
from coco.crypto.certificates import pem
from coco.enclave.keys.identity import ServiceIdentity
from coco.enclave.network import standing
from coco.host.metrics import render, sizes
from coco.ledger import tables
from governed import SERVICE, TIME_MS, Network
from members import Member

DEPLOY = Path(__file__).parent.parent.parent / "deploy"
DAY_S = 24 * 3600


@pytest.fixture(scope="module")
def members(tmp_path_factory) -> list[Member]:
    directory = tmp_path_factory.mktemp("members")
    return [Member(directory, f"m{number}") for number in range(3)]


def left_days(member: Member, now_s: int) -> int:
    return int(member.certificate.not_valid_after_utc.timestamp()) - now_s


@pytest.mark.parametrize(
    ("voters", "reached", "says"),
    [
        ((1,), {1}, (1, 0)),
        ((1, 2, 3), {1, 2, 3}, (3, 1)),
        ((1, 2, 3), {1, 2, 9}, (2, 0)),
        ((1, 2, 3), {2}, (1, -1)),
        ((1, 2, 3, 4), {1, 2}, (2, -1)),
        ((), set(), (0, -1)),
    ],
)
def test_how_many_the_network_can_lose(voters, reached, says):
    assert tuple(standing.quorum(voters, reached).values()) == says


def test_what_ends_first_and_who_holds_shares(members):
    network = Network(members, constitutions.text("majority"))
    now_s = TIME_MS // 1000
    holder = members[0].id
    network.put(tables.WRAPPED_SECRET, tables.SINGLETON, tables.row({"encrypted_shares": {holder: "", "gone": ""}}))
    found = standing.of_rows(network, now_s)
    assert found["member_certificates_left_s"] == min(left_days(one, now_s) for one in members)
    assert found["recovery_shares_held"] == found["recovery_members"] == found["recovery_threshold"] == 1
    assert (found["recovery_owners"], "node_certificates_left_s" in found) == (0, False)
    assert "endorsements_left_s" not in found, "nobody vouches for platform virtual"
    # A node's certificate has ended; a member that is no more counts for nothing.
    service = ServiceIdentity.generate(TIME_MS)
    ended = service.endorse(members[0].key.public_key(), 1, ["a"], TIME_MS - 9 * DAY_S * 1000, 7)
    network.put(tables.NODE_CERTIFICATES, b"founder", pem(ended).encode())
    network.put(tables.MEMBERS_INFO, holder.encode(), tables.row({"status": "Accepted"}))
    row = json.loads(network.get(tables.NODES_INFO, b"founder") or b"{}")
    row["verified"]["valid_until_s"] = now_s + 5
    network.put(tables.NODES_INFO, b"founder", tables.row(row))
    found = standing.of_rows(network, now_s)
    assert -3 * DAY_S < found["node_certificates_left_s"] < 0 and found["endorsements_left_s"] == 5
    assert (found["recovery_members"], found["recovery_shares_held"]) == (0, 0)
    assert found["service_certificate_left_s"] == standing._end_s(SERVICE.encode()) - now_s


def test_rows_are_read_now_and_then(members):
    network, reads = Network(members, ""), []

    def read() -> Any:
        reads.append(1)
        return network

    numbers = standing.Standing(read)
    first = numbers.numbers(0, 100.0)
    assert numbers.numbers(5, 100.0 + standing.AGAIN_S - 1) == first and len(reads) == 1
    assert (
        numbers.numbers(5, 100.0 + standing.AGAIN_S)["member_certificates_left_s"] < first["member_certificates_left_s"]
    )
    assert standing.Standing(lambda: None).numbers(0, 0.0) == {}


def test_bytes_of_a_ledger_are_those_of_its_files(tmp_path):
    assert sizes(tmp_path / "ledger.db")["ledger_bytes"] == 0
    for name, size in (("ledger.db", 100), ("ledger.db-wal", 20), ("index.db", 3), ("other", 1000)):
        (tmp_path / name).write_bytes(bytes(size))
    found = sizes(tmp_path / "ledger.db")
    assert found["ledger_bytes"] == 123 and found["disk_free_bytes"] > 0


def test_alert_rules_are_what_prometheus_takes_and_the_page_names_what_is_new():
    (group,) = yaml.safe_load((DEPLOY / "monitoring" / "alerts.yml").read_text())["groups"]
    names = [rule["alert"] for rule in group["rules"]]
    assert len(set(names)) == len(names) > 10
    said = (DEPLOY / "monitoring" / "README.md").read_text()
    for rule in group["rules"]:
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}, rule["alert"]
        assert re.fullmatch(r"Coco[A-Za-z]+", rule["alert"]) and rule["labels"]["severity"] in ("page", "ticket")
        assert re.fullmatch(r"\d+[smh]", rule.get("for", "1m"))
        assert set(rule["annotations"]) == {"summary", "description"}, "each says what to do"
        assert rule["expr"].count("(") == rule["expr"].count(")") and re.search(r"coco|up", rule["expr"])
    for number in ("voters_reachable", "quorum_margin", "ledger_bytes", "disk_free_bytes", "endorsements_left_s"):
        assert f"coco_{number}" in said and f"coco_{number}" in render({number: {"": 1}})
    assert "](monitoring)" in (DEPLOY / "README.md").read_text()
