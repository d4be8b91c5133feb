"""The consortium's story with the primary killed between every two requests; and what nobody can do alone."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from typing import Any

import pytest
from cryptography import x509
from test_consortium import Consortium, action, pending_node
from test_epochs import until

from coco import constitutions
from coco.cli.keys import make_actor
from coco.cli.sandbox import WELL_KNOWN_ACCOUNTS
from coco.client.http import HttpsClient, RemoteError
from coco.client.operators import nobody, owner
from coco.client.verify import service_context
from coco.crypto.cose import SIGN1_TAG
from coco.ledger.statements import fingerprint
from network import run

pytestmark = pytest.mark.usefixtures("verified")


class Mortal(Consortium):
    """A consortium whose primary dies after every request, and is replaced by a fresh node."""

    async def next_life(self, *, replaced: bool = True) -> Any:
        """A backup, once the primary was killed, and a fresh node stands in its place if that is wanted."""
        alive = [node for node in self.nodes if not node.ended.done()]
        ids = {(await self.ask(node, "/node/info"))["node_id"]: node for node in alive}

        async def whole() -> Any:
            """Every node that runs votes, and the row of the one before says that it has left: no change goes on."""
            rows = (await self.ask(alive[-1], "/node/network"))["nodes"]
            trusted = {name for name, row in rows.items() if row["status"] == "Trusted" and row["votes"]}
            others = {name for name, row in rows.items() if row["status"] == "Trusted" and not row["votes"]}
            return rows if trusted == set(ids) and not others and any(row["primary"] for row in rows.values()) else None

        rows = await until(whole, 40)
        (primary,) = (name for name, row in rows.items() if row["primary"])
        os.kill(ids[primary].enclave_pid, signal.SIGKILL)
        await asyncio.wait_for(ids[primary].ended, 10)
        await ids[primary].stop()
        survivor = next(node for name, node in ids.items() if name != primary)
        # At the address of the dead, as a supervisor would start it.
        host, port = rows[primary]["address"].split(":")
        if replaced:
            await self.start(peers=(host, int(port)))
        return survivor


@pytest.mark.timeout(280)
def test_no_request_of_the_story_is_lost_or_counted_twice_when_the_primary_dies_after_it(tmp_path):
    async def story() -> None:
        network = Mortal(tmp_path / "network")
        try:
            for _ in range(3):
                await network.start()
            alice, bob, carol = network.members
            folder = network.files.directory / "members"
            certificate = make_actor(folder, "dave")
            dave = network.signer("dave")
            node = network.nodes[-1]

            async def say(work: Any, state: str = "", *, replaced: bool = True) -> Any:
                nonlocal node
                done = await work(network.governance(node))
                assert not state or done["proposalState"] == state, done
                node = await network.next_life(replaced=replaced)
                return done

            admit = {"actions": [action("set_member", cert=certificate, member_data={"name": "dave"})]}
            made = (await say(lambda at: at.propose(alice, admit), "Open"))["proposalId"]
            await say(lambda at: at.vote(alice, made, True), "Open")
            await say(lambda at: at.vote(bob, made, True), "Accepted")
            digest = await say(lambda at: at.send(dave.sign("state_digest", {})))
            await say(lambda at: at.send(dave.sign("ack", {"state_digest": digest["stateDigest"]})))
            rules = {"actions": [action("set_constitution", constitution=constitutions.text("unanimous"))]}
            dropped = (await say(lambda at: at.propose(carol, admit), "Open"))["proposalId"]
            change = (await say(lambda at: at.propose(dave, rules), "Open"))["proposalId"]
            for member in (dave, carol):
                await say(lambda at, member=member: at.vote(member, change, True), "Open")
            # Under the new rules a node needs votes, so nobody replaces this one.
            await say(lambda at: at.vote(alice, change, True), "Accepted", replaced=False)
            governance = network.governance(node)
            assert await governance.constitution() == constitutions.text("unanimous")
            shown = await governance.get(f"/members/proposals/{dropped}")
            assert shown["proposalState"] == "Dropped"
            found = await governance.get(f"/members/proposals/{made}")
            assert found["finalVotes"] == {alice.member: True, bob.member: True}
            members = (await governance.get("/service/members"))["value"]
            assert {one["memberId"]: one["status"] for one in members}[dave.member] == "Active"
        finally:
            await network.stop()

    asyncio.run(asyncio.wait_for(story(), 270))


async def refused(work: Any) -> str:
    with pytest.raises(RemoteError) as error:
        await work
    return error.value.code


def test_a_members_key_alone_adds_no_node_reads_no_data_and_changes_no_rule(tmp_path):
    async def story() -> None:
        network = Consortium(tmp_path / "network")
        try:
            node = await network.start()
            alice = network.members[0]
            governance = network.governance(node)
            rules = await governance.constitution()
            # It proposes and votes as often as it likes: one vote is one vote.
            change = {"actions": [action("set_constitution", constitution=constitutions.text("sandbox"))]}
            made = (await governance.propose(alice, change))["proposalId"]
            for _ in range(2):
                assert (await governance.vote(alice, made, True))["proposalState"] == "Open"
            assert await refused(governance.vote(alice, made, False)) == "gov.vote_exists"
            assert await governance.constitution() == rules
            # Its signature on a node's statement is no operator's.
            folder = network.files.directory / "members"
            signs = owner(
                folder / "alice.pem",
                folder / "alice.key.pem",
                network=network.genesis["network"],
                service=network.service,
                constitution=rules,
            )
            with pytest.raises(Exception, match=r"join\.not_the_owner"):
                await asyncio.wait_for(network.start(owner=signs), 30)
            # And its certificate opens no participant's door.
            context = service_context(network.service, str(folder / "alice.pem"), str(folder / "alice.key.pem"))
            client = HttpsClient("localhost", node.relays["application"].port, context)
            answers = []
            for method, *params in (
                ("eth_call", {"to": "0x" + "11" * 20}),
                ("eth_getBalance", WELL_KNOWN_ACCOUNTS[0][0]),
            ):
                body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": [*params, "latest"]})
                answers.append(json.loads((await client.request("POST", "/", body.encode())).body))
            assert answers[0]["error"]["code"] == -32001, answers
            assert answers[1]["result"] == "0x0", "what is hidden looks like what does not exist"
            await client.close()
        finally:
            await network.stop()

    run(story())


def test_a_host_alone_adds_no_node_and_changes_no_rule(tmp_path):
    """It starts enclaves and sends bytes as it likes; what it reads on the disk is in ``test_boundary.py``."""

    async def story() -> None:
        network = Consortium(tmp_path / "network")
        try:
            node = await network.start()
            joining = asyncio.ensure_future(network.start(owner=nobody))
            name = await pending_node(network, node)
            await asyncio.sleep(2)
            rows = (await network.ask(node, "/node/network"))["nodes"]
            assert rows[name]["status"] == "Pending" and not rows[name]["votes"] and not joining.done()
            joining.cancel()
            # A request of a key that it made itself, and one of a member's that it changes on the way.
            client = network.client(node)
            stranger = make_actor(tmp_path, "stranger")
            assert fingerprint(x509.load_pem_x509_certificate(stranger.encode()))
            governance = network.governance(node)
            network.files.directory.joinpath("members", "mallory.pem").write_text(stranger)
            key = (tmp_path / "stranger.key.pem").read_bytes()
            network.files.directory.joinpath("members", "mallory.key.pem").write_bytes(key)
            wanted = {"actions": [action("transition_node_to_trusted", node_id=name)]}
            assert await refused(governance.propose(network.signer("mallory"), wanted)) == "gov.not_a_member"
            signed = bytearray(network.members[0].sign("proposal", wanted))
            assert signed[0] & 0x1F == SIGN1_TAG
            at = signed.index(b"transition_node")
            signed[at] ^= 1
            reply = await client.request(
                "POST",
                "/gov/members/proposals:create?api-version=2024-07-01",
                bytes(signed),
                content_type="application/cose",
            )
            assert reply.status == 400 and reply.headers["x-ms-error-code"] == "cose.bad_signature"
        finally:
            await network.stop()

    run(story())


def test_a_node_alone_decides_nothing(tmp_path):
    """Cut off from the others, even with every member's votes: nothing that it says is committed."""

    async def story() -> None:
        network = Consortium(tmp_path / "network")
        try:
            nodes = [await network.start() for _ in range(3)]
            await network.voters(nodes[0], 3)
            change = {"actions": [action("set_constitution", constitution=constitutions.text("unanimous"))]}
            governance = network.governance(nodes[0])
            made = (await governance.propose(network.members[0], change))["proposalId"]
            for node in nodes[1:]:
                os.kill(node.enclave_pid, signal.SIGKILL)
            for member in network.members[:2]:
                with pytest.raises((TimeoutError, RemoteError)):
                    await asyncio.wait_for(network.governance(nodes[0]).vote(member, made, True), 4)
            assert await governance.constitution() == constitutions.text("majority")
            assert (await governance.get(f"/members/proposals/{made}"))["ballotCount"] == 0
        finally:
            await network.stop()

    run(story())
