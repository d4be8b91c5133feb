"""Writes this ledger: run with the code and the tests of commit fa5f8b7, not with today's (see README.md beside it).

A consortium of three nodes and four members: payments; a proposal that stays open while a member who voted on it is
removed; a node that its operator lets go and one that members remove; other rules, another secret, another key of the
service; then every node is lost, and two members recover the service.
"""

from __future__ import annotations

import asyncio
import json
import lzma
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

from cryptography import x509
from eth_account import Account
from test_succession import announced, shows

from coco import constitutions
from coco.cli.keys import make_actor, make_encryption_key
from coco.cli.sandbox import WELL_KNOWN_ACCOUNTS
from coco.client.governance import Governance
from coco.client.members import Member, recover
from coco.client.signer import Signer
from coco.host.node import Node, NodeOptions
from coco.ledger.statements import fingerprint
from network import Several

TO = Account.from_key("0x" + "77" * 32).address


class Consortium(Several):
    """Four members of equal rights; two of them hold shares, and both are needed."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        folder = self.files.directory / "members"
        rest = [{"cert": make_actor(folder, name)} for name in ("bob", "carol", "dave")]
        rest[0]["encryption_public_key"] = make_encryption_key(folder / "bob.encryption.key.pem")
        self.genesis["members"] += rest
        self.genesis |= {"constitution": constitutions.text("majority"), "recovery_threshold": 2}
        self.files.genesis.write_text(json.dumps(self.genesis))
        self.members = {name: self.signer(name) for name in ("alice", "bob", "carol", "dave")}
        self.nonce = 0

    def signer(self, name: str) -> Signer:
        folder = self.files.directory / "members"
        return Signer.load(folder / f"{name}.pem", folder / f"{name}.key.pem")

    def holder(self, name: str) -> Member:
        folder = self.files.directory / "members"
        return Member.load(*(folder / f"{name}{end}" for end in (".pem", ".key.pem", ".encryption.key.pem")))

    def governance(self, node: Node) -> Governance:
        return Governance(self.client(node))

    async def accepted(self, node: Node, *actions: Any, voters: tuple[str, ...] = ("bob", "carol")) -> str:
        made = await self.governance(node).propose(self.members["alice"], {"actions": list(actions)})
        for name in ("alice", *voters):
            made = await self.governance(node).vote(self.members[name], made["proposalId"], True)
            if made["proposalState"] == "Accepted":
                return str(made["proposalId"])
        raise AssertionError(made)

    def pem(self, name: str) -> str:
        return (self.files.directory / "members" / f"{name}.pem").read_text()

    async def open(self, wanted: dict[str, Any], *, ballot: str) -> str:
        """A proposal of the first member that one other votes for."""
        made = await self.governance(self.nodes[0]).propose(self.members["alice"], {"actions": [wanted]})
        await self.governance(self.nodes[0]).vote(self.members[ballot], made["proposalId"], True)
        return str(made["proposalId"])

    async def lose(self) -> None:
        """Every node dies at once."""
        for client in self._clients:
            await client.close()
        self._clients.clear()
        for node in self.nodes:
            if not node.ended.done():
                os.kill(node.enclave_pid, signal.SIGKILL)
        for node in self.nodes:
            await node.stop()

    async def pay(self, node: Node, value: int) -> None:
        fields = {"to": TO, "value": value, "gas": 21_000, "nonce": self.nonce, "chainId": 2017}
        fees = {"maxFeePerGas": 0, "maxPriorityFeePerGas": 0}
        raw = Account.from_key(WELL_KNOWN_ACCOUNTS[0][1]).sign_transaction({**fields, **fees}).raw_transaction
        body = {"jsonrpc": "2.0", "id": 1, "method": "eth_sendRawTransactionSync", "params": ["0x" + raw.hex()]}
        answer = await self.client(node, "application").request("POST", "/", json.dumps(body).encode())
        assert json.loads(answer.body)["result"]["status"] == "0x1", answer.body
        self.nonce += 1

    async def retire(self, node_id: str, by: Node) -> None:
        """Its operator lets a node go."""
        at = f"https://localhost:{by.relays['administration'].port}"
        pem = self.files.directory / "service.pem"
        pem.write_text(self.service)
        command = [
            sys.executable,
            "-m",
            "coco.cli.main",
            "node",
            "retire",
            at,
            node_id,
            "--service",
            str(pem),
            "--json",
        ]
        command += ["--operator", str(self.files.actor("operators", "operator", ".pem"))]
        await asyncio.to_thread(subprocess.check_output, command)


def action(name: str, **args: Any) -> dict[str, Any]:
    return {"name": name, "args": args}


async def story(directory: Path) -> Path:
    network = Consortium(directory)
    first, *_ = [await network.start() for _ in range(3)]
    await network.voters(first, 3)
    rows = (await network.ask(first, "/node/network"))["nodes"]
    engines = {row["engine"]: name for name, row in rows.items()}
    members, governance = network.members, network.governance(first)
    for value, node in enumerate(network.nodes, 1):
        await network.pay(node, value)

    # Somebody votes, proposes, and is removed by the others; what he voted on is decided afterwards. So it is once he
    # is back: his ballot of before counts again.
    folder = network.files.directory / "participants"
    erin, frank = make_actor(folder, "erin"), make_actor(folder, "frank")
    # An account that is none, and an address at which no node can be.
    held = await network.open(action("set_user", cert=erin, user_data={"accounts": ["zz"]}), ballot="dave")
    later = await network.open(action("set_user", cert=frank, user_data={"n": 1}), ballot="dave")
    left = await governance.propose(members["dave"], {"actions": [action("trigger_ledger_rekey")]})
    await governance.vote(members["dave"], left["proposalId"], True)
    await network.accepted(first, action("remove_member", member_id=name_of(network.pem("dave"))))
    for name in ("bob", "carol"):
        done = await governance.vote(members[name], held, True)
    assert done["proposalState"] == "Accepted", done
    await network.accepted(first, action("set_member", cert=network.pem("dave")))
    await governance.acknowledge(members["dave"])
    for name in ("alice", "bob"):
        done = await governance.vote(members[name], later, True)
    assert done["proposalState"] == "Accepted", "with the ballot of before"
    await network.accepted(first, action("remove_member", member_id=name_of(network.pem("dave"))))
    operator = network.files.actor("operators", "operator", ".pem").read_text()
    await network.accepted(first, action("set_operator", cert=operator, addresses=["127.0.0.1", "::1"]))
    await network.pay(first, 4)

    # One node goes because its operator says so, and another one comes to its address; one because members do.
    await network.start()
    await network.voters(first, 4)
    port = network.nodes[2].relays["peers"].port
    await network.retire(engines[3], first)
    await network.voters(first, 3)
    await network.nodes[2].stop()
    await network.start(peers=("127.0.0.1", port))
    await network.voters(first, 4)
    await network.accepted(first, action("remove_node", node_id=engines[2]))
    await network.voters(first, 3)
    await network.pay(first, 5)

    # Other rules, another secret, another key of the service.
    amended = constitutions.text("majority") + "\n# Amended.\n"
    await network.accepted(first, action("set_constitution", constitution=amended))
    await network.accepted(first, action("trigger_ledger_rekey"))
    former = network.service
    await network.accepted(first, action("rotate_service_identity"))
    found = await announced(network, first)  # type: ignore[arg-type]
    for name in ("alice", "bob"):
        await network.governance(first).state(members[name], former)
    await shows(network, first, found["next"])
    network.service = found["next"]
    await network.pay(first, 6)
    await network.lose()

    # Every node is lost; the service begins another life on the ledger of the first one.
    lone = Node(NodeOptions(ledger=network.files.ledger(0), genesis=network.genesis), network.log.append)
    known, ready = network.service, await lone.start()
    network.nodes, network.service = [lone], ready.service.decode()
    for name in ("alice", "bob"):
        state = await recover(network.client(lone), network.holder(name), pinned_service=known, seen="0.0")
    assert state["status"] == "Open", state
    await network.pay(lone, 7)
    await network.accepted(lone, action("set_user_data", user_id=name_of(frank), user_data={"n": 2}))
    await network.pay(lone, 8)
    await asyncio.sleep(1)
    await network.stop()
    return network.files.ledger(0)


def name_of(certificate: str) -> str:
    return fingerprint(x509.load_pem_x509_certificate(certificate.encode()))


def main() -> None:
    directory, to = Path(sys.argv[1]), Path(sys.argv[2])
    ledger = asyncio.run(asyncio.wait_for(story(directory / "network"), 300))
    connection = sqlite3.connect(ledger)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.execute("PRAGMA journal_mode=DELETE")
    connection.execute("DELETE FROM snapshots")
    connection.commit()
    connection.execute("VACUUM")
    connection.close()
    (to / "ledger.db.xz").write_bytes(lzma.compress(ledger.read_bytes(), preset=9 | lzma.PRESET_EXTREME))
    for path in sorted((directory / "network").rglob("*")):
        if path.suffix in (".pem", ".json") and path.name != "service.pem":
            target = to / "network" / path.relative_to(directory / "network")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())


if __name__ == "__main__":
    main()
