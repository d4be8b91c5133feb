"""Another key of the service by vote (J9): nodes, clients and members move to it, and nobody else's word moves them."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from test_consortium import Consortium, action
from test_epochs import shown_certificate, until
from test_failover import eventually, whole
from test_restart import nonce_of, send_sync

from coco.cli.sandbox import make_owner
from coco.client.http import RemoteError
from coco.client.pin import Pin, service_key
from coco.client.verify import verify_node
from coco.enclave.keys.identity import ServiceIdentity
from coco.errors import AttestationError, HostError
from coco.ledger import receipts
from coco.ledger.statements import IDENTITY_STATEMENT
from network import Several, run

pytestmark = pytest.mark.usefixtures("verified")


async def announced(network: Consortium, node: Any) -> Any:
    async def look() -> Any:
        found = await network.governance(node).get("/service/succession")
        return found if found["status"] == "Announced" else None

    return await until(look)


async def shows(network: Several, node: Any, service: str) -> None:
    """Wait until a node shows a certificate of this service."""
    issuer = x509.load_pem_x509_certificate(service.encode())

    async def look() -> bool:
        try:
            (await shown_certificate(node)).verify_directly_issued_by(issuer)
        except Exception:
            return False
        return True

    await until(look)


def listener(node: Any) -> tuple[str, int]:
    return "localhost", node.relays["administration"].port


def test_J9_the_service_gets_another_key_while_primaries_die_and_everyone_follows(tmp_path):
    async def story() -> None:
        network = Consortium(tmp_path / "network")
        try:
            nodes = [await network.start() for _ in range(3)]
            await network.voters(nodes[0], 3)
            former = network.service
            pins = [Pin(former, (await network.ask(nodes[1], "/node/network"))["members"]) for _ in range(3)]
            for pin in pins:
                pin.saw((await network.ask(nodes[0], "/node/commit"))["transaction_id"])
            receipt = (await network.client(nodes[0]).request("GET", "/node/receipt?id=2.1")).json()

            with pytest.raises(RemoteError) as nothing:
                await network.governance(nodes[0]).send(network.members[0].sign(IDENTITY_STATEMENT, {}))
            assert nothing.value.code == "gov.no_succession"
            await network.accepted(nodes, action("rotate_service_identity"))
            found = await announced(network, nodes[1])
            assert found["previous"] == former != found["next"]
            # Half of what is needed, then the primary dies; a newcomer comes in its place.
            with pytest.raises(RemoteError) as other:
                wrong = {**found["statement"], "next_service": found["statement"]["previous_service"]}
                await network.governance(nodes[1]).send(network.members[0].sign(IDENTITY_STATEMENT, wrong))
            assert other.value.code == "gov.other_statement"
            said = await network.governance(nodes[1]).state(network.members[0], former)
            assert len(said["members"]) == 1
            os.kill(nodes[0].enclave_pid, signal.SIGKILL)
            await asyncio.wait_for(nodes[0].ended, 10)
            third = await network.start()
            alive = [*nodes[1:], third]
            await shows(network, alive[0], former)
            for pin in pins:
                await verify_node(*listener(third), pin, accept_insecure_virtual=True)
                assert pin.service == former, "one member is no majority"

            # The second statement is a majority: whoever leads then takes the step.
            await network.governance(alive[0]).state(network.members[1], former)
            for node in alive:
                await shows(network, node, found["next"])
            network.service = found["next"]
            info = await network.governance(third).get("/service/info")
            assert info["certificate"] == found["next"] and info["status"] == "Open"
            assert await network.governance(third).get("/service/succession") == {"status": "None"}
            await network.accepted(alive, action("trigger_ledger_rekey"))

            # A client that pinned the old one follows the members, and what it has seen is still there ...
            before = pins[0].position
            await verify_node(*listener(third), pins[0], accept_insecure_virtual=True)
            assert (pins[0].service, pins[0].position) == (found["next"], before)
            # ... one that knows other members does not, nor one that has seen what never was.
            pins[1].members = dict(list(pins[1].members.items())[:1])
            pins[1].members |= {"0" * 64: next(iter(pins[1].members.values()))}
            with pytest.raises(AttestationError) as refused:
                await verify_node(*listener(third), pins[1], accept_insecure_virtual=True)
            assert refused.value.code == "client.other_service"
            pins[2].position = "2.99999999"
            with pytest.raises(AttestationError) as refused:
                await verify_node(*listener(third), pins[2], accept_insecure_virtual=True)
            assert refused.value.code == "client.rolled_back"

            # Receipts of old entries come under the new key; those under the old one prove nothing to who moved on.
            service = x509.load_pem_x509_certificate(found["next"].encode())
            again = (await network.client(third).request("GET", "/node/receipt?id=2.1")).json()
            assert receipts.verify(again, service).seqno == 1
            with pytest.raises(Exception, match="not signed by this service"):
                receipts.verify(receipt, service)

            # A node that knows only the old key is not welcome, one that knows the new one is.
            with pytest.raises(Exception, match=r"peers|join"):
                await network.start(expected_service=former.encode(), owner=make_owner(network.files, former))
            await network.nodes.pop().stop()  # it lets go of its folder
            newest = await network.start()
            await network.voters(newest, 5)  # the dead one still counts
            # The next succession begins where this one ended.
            await network.accepted([newest, alive[0]], action("rotate_service_identity"))
            assert (await announced(network, newest))["previous"] == found["next"]
        finally:
            await network.stop()

    run(story())


def test_J9_code_that_is_removed_as_vulnerable_takes_the_key_of_the_service_with_it(tmp_path):
    async def story() -> None:
        network = Consortium(tmp_path / "network")
        try:
            nodes = [await network.start() for _ in range(2)]
            await network.voters(nodes[0], 2)
            gone = action("remove_virtual_measurement", measurement="0" * 64, vulnerable=True)
            made = await network.governance(nodes[0]).propose(
                network.members[0], {"actions": [{**gone, "args": {**gone["args"], "vulnerable": "yes"}}]}
            )
            for member in network.members[:2]:
                made = await network.governance(nodes[0]).vote(member, made["proposalId"], True)
            assert made["proposalState"] == "Failed"
            await network.accepted(nodes, gone)
            found = await announced(network, nodes[1])
            # A node is removed before members have stated anything: it knew the announced key, so there is another.
            rows = (await network.ask(nodes[0], "/node/network"))["nodes"]
            backup = next(name for name, row in rows.items() if not row["primary"])
            await network.accepted(nodes[:1], action("remove_node", node_id=backup))

            async def another() -> Any:
                now = await network.governance(nodes[0]).get("/service/succession")
                return now if now["status"] == "Announced" and now["next"] != found["next"] else None

            now = await until(another)
            with pytest.raises(RemoteError) as stale:
                message = network.members[0].sign(IDENTITY_STATEMENT, found["statement"])
                await network.governance(nodes[0]).send(message)
            assert stale.value.code == "gov.other_statement"
            for member in network.members[:2]:
                await network.governance(nodes[0]).state(member, network.service)
            await shows(network, nodes[0], now["next"])
            # The old key is good for nothing now: not for TLS, and not for a node of the network.
            with pytest.raises(HostError, match="CERTIFICATE_VERIFY_FAILED"):
                await network.ask(nodes[0], "/node/info")
            assert service_key(now["next"]) != service_key(network.service)
            network.service = now["next"]
            assert (await network.ask(nodes[0], "/node/info"))["status"] == "Open"
        finally:
            await network.stop()

    run(story())


def test_wallets_go_on_through_a_succession_and_a_sandbox_restarts_and_recovers_after_it(sandboxes, tmp_path):
    sandbox = sandboxes("succeeding", "--nodes", "3")
    summary = sandbox.start()
    former = Path(summary["service_certificate"]).read_text()
    (tmp_path / "former.pem").write_text(former)
    (tmp_path / "rotate.json").write_text(json.dumps({"actions": [action("rotate_service_identity")]}))

    def coco(*arguments: str, service: str = "former.pem") -> Any:
        command = [sys.executable, "-m", "coco.cli.main", *arguments, "--json"]
        command += ["--admin", summary["nodes"]["n1"]["administration_url"], "--service", str(tmp_path / service)]
        command += ["--cert", str(sandbox.directory / "members" / "alice.pem")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        return json.loads(done.stdout)

    assert send_sync(sandbox.url, 0)["status"] == "0x1"
    eventually(lambda: whole(sandbox), "three nodes vote")
    assert coco("member", "identity")["status"] == "None"
    assert coco("member", "propose", str(tmp_path / "rotate.json"))["proposalState"] == "Accepted"
    said = eventually(
        lambda: (
            (found := coco("member", "identity", "--out", str(tmp_path / "next.pem")))["status"] == "Announced"
            and found
        ),
        "the new identity is announced",
    )
    assert len(said["members"]) == 1, "a sandbox has one member: it is a majority"
    following = (tmp_path / "next.pem").read_text()
    # Kept connections stay, and no new one is needed yet.
    for nonce in range(1, 6):
        assert send_sync(sandbox.url, nonce)["status"] == "0x1"
        time.sleep(0.5)
    assert coco("member", "identity")["error"]["code"] == "client.unreachable", "the old one is good for nothing"
    assert coco("member", "identity", service="next.pem")["status"] == "None"
    # The node that the wallet's connector talks to dies: the connector follows the member to the others, and so does
    # the node that comes in its place.
    os.kill(summary["nodes"]["n0"]["enclave_pid"], signal.SIGKILL)
    assert send_sync(sandbox.url, 6)["status"] == "0x1"
    eventually(lambda: Path(summary["service_certificate"]).read_text() == following, "the sandbox has followed")
    eventually(lambda: whole(sandbox), "it has joined again")
    sandbox.stop()
    # K4: the secret was wrapped anew for the service as it is now; whoever recovers continues that one.
    summary = sandbox.start()
    assert nonce_of(sandbox.url) == 7
    assert send_sync(sandbox.url, 7)["status"] == "0x1"


def test_a_key_that_was_announced_before_a_disaster_is_nobodys_after_it(sandboxes, tmp_path):
    sandbox = sandboxes("announced", "--nodes", "1")
    summary = sandbox.start()
    (tmp_path / "rotate.json").write_text(json.dumps({"actions": [action("rotate_service_identity")]}))

    def coco(*arguments: str) -> Any:
        command = [sys.executable, "-m", "coco.cli.main", *arguments, "--json"]
        command += ["--admin", summary["administration_url"], "--service", summary["service_certificate"]]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        return json.loads(done.stdout)

    alice = ["--cert", str(sandbox.directory / "members" / "alice.pem")]

    def announced() -> bool:
        found = coco("proposal", "list")
        assert found == {"value": []}
        return "service.identity_announced" in sandbox.log.read_text()

    assert coco("member", "propose", str(tmp_path / "rotate.json"), *alice)["proposalState"] == "Accepted"
    eventually(announced, "the new identity is announced")
    sandbox.kill("enclave")
    summary = sandbox.start()
    assert coco("member", "identity", *alice)["status"] == "None"
    assert send_sync(sandbox.url, 0)["status"] == "0x1"


def test_a_rolled_back_succession_leaves_the_former_identity():
    service = ServiceIdentity.generate(0)
    former, other = service.certificate, ServiceIdentity.generate(0)
    with pytest.raises(Exception, match="no key of the service"):
        service.become(other.certificate)
    service.hold(other.key)
    assert service.become(other.certificate) and service.key is other.key
    assert not service.become(other.certificate)
    assert service.become(former) and service.certificate == former
    assert service.become(other.certificate)
    service.forget_others()
    with pytest.raises(Exception, match="no key of the service"):
        service.become(former)
