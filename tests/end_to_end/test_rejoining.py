"""A node that dies comes back from a snapshot and its own disk, and knows everything that happened before."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
from typing import Any

import requests
from test_failover import Payments, eventually, primary_of, whole

from coco.cli.keys import make_actor
from coco.cli.sandbox import make_genesis
from coco.cli.sandbox_folder import SandboxFiles
from coco.host.node import Node, NodeOptions
from network import Several, run

INTERVAL = 40


def events(sandbox: Any, name: str) -> list[dict[str, Any]]:
    lines = [line for line in sandbox.log.read_text().splitlines() if line.startswith("{")]
    return [line for line in map(json.loads, lines) if line.get("event") == name]


def ask(sandbox: Any, node: str, method: str, *params: Any) -> Any:
    summary = sandbox.summary
    pair = (summary["participant_certificate"], summary["participant_key"])
    body: dict[str, Any] = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
    reply = requests.post(
        summary["nodes"][node]["application_url"],
        json=body,
        verify=summary["service_certificate"],
        cert=pair,
        timeout=20,
    )
    return reply.json().get("result")


def test_a_joiner_begins_from_a_snapshot_and_knows_what_came_before(sandboxes):
    network = sandboxes("snapshots", "--nodes", "3")
    network.directory.mkdir()
    files = SandboxFiles(network.directory)
    genesis = make_genesis(files, fees="free", fork="osaka", chain_id=2017)
    files.genesis.write_text(json.dumps({**genesis, "settings": {"snapshot_interval_entries": INTERVAL}}))
    network.start()
    payments = Payments(network.url)
    for _ in range(30):
        payments.pay()
    eventually(lambda: len(events(network, "snapshot.taken")) >= 3, "every node has a snapshot")
    eventually(lambda: whole(network), "three nodes vote")
    primary = primary_of(network)
    killed = next(name for name in network.summary["nodes"] if name != primary)
    joins = len(events(network, "join.caught_up"))
    os.kill(network.summary["nodes"][killed]["enclave_pid"], signal.SIGKILL)
    for _ in range(3):
        payments.pay()
    eventually(lambda: len(events(network, "join.caught_up")) > joins, "it is back")
    caught_up = events(network, "join.caught_up")[-1]
    assert caught_up["snapshot"] >= INTERVAL
    assert caught_up["kept"] == caught_up["snapshot"], "its own disk had everything up to the snapshot"
    eventually(lambda: whole(network), "three nodes vote")
    for identity in payments.acknowledged:
        assert ask(network, killed, "eth_getTransactionReceipt", "0x" + identity.hex())["status"] == "0x1"
    payments.pay()
    payments.check()
    # Its disk holds the whole ledger, and a snapshot of its own before long.
    for _ in range(30):
        payments.pay()
    taken = network.directory / killed / "ledger.db"

    def has_snapshot() -> bool:
        with sqlite3.connect(taken) as ledger:
            (found,) = ledger.execute("SELECT COUNT(DISTINCT seqno) FROM snapshots").fetchone()
            (least, most, count) = ledger.execute("SELECT MIN(seqno), MAX(seqno), COUNT(*) FROM entries").fetchone()
        return found >= 1 and least == 1 and most == count

    eventually(has_snapshot, "it takes snapshots too")
    # The canary of this network, an address that every payment names, is in no snapshot.
    with sqlite3.connect(taken) as ledger:
        parts = [bytes(part) for (part,) in ledger.execute("SELECT part FROM snapshots")]
    assert parts and not any(payments.account.address[2:].lower().encode() in part for part in parts)
    assert not any(bytes.fromhex(payments.account.address[2:]) in part for part in parts)


def test_a_joiner_names_the_node_that_does_not_answer_it(tmp_path):
    async def story():
        log: list[Any] = []
        certificate = make_actor(tmp_path, "service")
        options = NodeOptions(tmp_path / "n" / "ledger.db", join=["127.0.0.1:1"], expected_service=certificate.encode())
        node = Node(options, log.append)
        starting = asyncio.ensure_future(node.start())
        try:
            async with asyncio.timeout(20):
                while not (said := [line for line in log if line["event"] == "join.no_answer"]):
                    await asyncio.sleep(0.1)
            assert said[0] == {"event": "join.no_answer", "seconds": 3, "address": "127.0.0.1:1"}
        finally:
            starting.cancel()
            await asyncio.wait({starting})
            await node.stop()

    run(story())


def test_a_joiner_that_waits_says_for_what(tmp_path):
    async def story():
        network = Several(tmp_path / "network")
        waiting = None
        try:
            await network.start()
            nobody = lambda node_id, measurement, address, host_names: b""  # noqa: E731
            waiting = asyncio.ensure_future(network.start(owner=nobody))
            async with asyncio.timeout(20):
                while not (said := [line for line in network.log if line["event"] == "join.waiting"]):
                    await asyncio.sleep(0.1)
            assert said[0] == {"event": "join.waiting", "seconds": 4, "state": "pending"}
        finally:
            if waiting is not None:
                waiting.cancel()
                await asyncio.wait({waiting})
            await network.stop()

    run(story())
