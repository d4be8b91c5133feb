"""A consortium governs itself: proposals and votes through any node, while primaries die, with tools of others too."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import subprocess
import sys
from datetime import UTC, datetime
from typing import Any

import pytest
from cryptography import x509
from eth_account import Account
from test_failover import KEY, SENDER, Payments, administration, eventually, whole

from coco import constitutions
from coco._native import Entry
from coco.cli.keys import make_actor
from coco.client.governance import Governance
from coco.client.http import HttpsClient, RemoteError
from coco.client.operators import nobody
from coco.client.signer import Signer
from coco.client.verify import service_context
from coco.ledger import tables
from coco.ledger.statements import fingerprint
from network import ROOT, Several, run

pytestmark = pytest.mark.usefixtures("verified")


class Consortium(Several):
    """Three members of equal rights; the first also holds the recovery share."""

    def __init__(self, directory: Any) -> None:
        super().__init__(directory)
        self.genesis["constitution"] = constitutions.text("majority")
        folder = self.files.directory / "members"
        for name in ("bob", "carol"):
            self.genesis["members"].append({"cert": make_actor(folder, name)})
        self.files.genesis.write_text(json.dumps(self.genesis))
        self.members = [self.signer(name) for name in ("alice", "bob", "carol")]

    def signer(self, name: str) -> Signer:
        folder = self.files.directory / "members"
        return Signer.load(folder / f"{name}.pem", folder / f"{name}.key.pem")

    def governance(self, node: Any) -> Governance:
        return Governance(self.client(node))

    async def accepted(self, nodes: list[Any], *actions: Any) -> str:
        """Propose and vote, each request through another node."""
        made = await self.governance(nodes[0]).propose(self.members[0], {"actions": list(actions)})
        await self.governance(nodes[-1]).vote(self.members[1], made["proposalId"], True)
        done = await self.governance(nodes[0]).vote(self.members[2], made["proposalId"], True)
        assert done["proposalState"] == "Accepted", done
        return made["proposalId"]


def action(name: str, **args: Any) -> dict[str, Any]:
    return {"name": name, "args": args}


class Held:
    """A connection that its client would keep: one request was answered on it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def open(cls, node: Any, context: Any) -> Held:
        port = node.relays["application"].port
        held = cls(*await asyncio.open_connection("localhost", port, ssl=context))
        held.writer.write(b"GET /coco/caller HTTP/1.1\r\nhost: localhost\r\n\r\n")
        head = await held.reader.readuntil(b"\r\n\r\n")
        (size,) = (line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        assert b'"participant"' in await held.reader.readexactly(int(size.partition(b":")[2]))
        return held

    async def ended(self, seconds: float) -> bool:
        try:
            return await asyncio.wait_for(self.reader.read(1), seconds) == b""
        except TimeoutError:
            return False
        finally:
            self.writer.close()


def test_members_admit_a_participant_while_primaries_die_and_remove_it_from_its_session(tmp_path):
    async def story() -> None:
        network = Consortium(tmp_path / "network")
        try:
            for _ in range(3):
                await network.start()
            await network.voters(network.nodes[0], 3)
            certificate = make_actor(network.files.directory / "participants", "erin")
            erin = network.files.directory / "participants" / "erin.pem"
            add = action("set_user", cert=certificate, user_data={"name": "erin"})
            backup = network.nodes[2]
            made = await network.governance(backup).propose(network.members[0], {"actions": [add]})
            identity = made["proposalId"]
            assert made["proposalState"] == "Open"
            await network.governance(network.nodes[1]).vote(network.members[0], identity, True)
            # The primary dies between two votes; the next vote is sent until somebody takes it.
            os.kill(network.nodes[0].enclave_pid, signal.SIGKILL)
            done = await network.governance(backup).vote(network.members[1], identity, True)
            assert done["proposalState"] == "Accepted" and done["ballotCount"] == 2
            assert await network.governance(network.nodes[1]).get(f"/members/proposals/{identity}") == done
            assert await network.governance(backup).get("/members/proposals") == {"value": []}
            # Erin calls over one connection; once she is removed, the next request on it is a stranger's.
            context = service_context(network.service, str(erin), str(erin.with_suffix(".key.pem")))
            session = HttpsClient("localhost", backup.relays["application"].port, context)

            async def who() -> Any:
                return (await session.request("GET", "/coco/caller")).json()["kind"]

            async with asyncio.timeout(20):
                while await who() != "participant":
                    await asyncio.sleep(0.1)
            name = fingerprint(x509.load_pem_x509_certificate(certificate.encode()))
            removal = await network.governance(backup).propose(
                network.members[1], {"actions": [action("remove_user", user_id=name)]}
            )
            assert await who() == "participant", "no effect before acceptance"
            held = await Held.open(backup, context)
            other = [str(network.files.actor("participants", "dapp", end)) for end in (".pem", ".key.pem")]
            control = await Held.open(backup, service_context(network.service, *other))
            for member in network.members[1:]:
                await network.governance(network.nodes[1]).vote(member, removal["proposalId"], True)
            async with asyncio.timeout(20):
                while await who() != "anonymous":
                    await asyncio.sleep(0.1)
            await session.close()
            assert await held.ended(10), "the node closes the connections of who is nobody any more (G4)"
            assert not await control.ended(1), "and nobody else's"
        finally:
            await network.stop()

    run(story())


async def pending_node(network: Consortium, node: Any) -> str:
    """The node that waits for a vote."""
    async with asyncio.timeout(30):
        while True:
            rows = (await network.ask(node, "/node/network"))["nodes"]
            pending = [name for name, row in rows.items() if row["status"] == "Pending"]
            if pending:
                return pending[0]
            await asyncio.sleep(0.1)


def test_a_pending_node_waits_for_the_vote_and_a_change_of_rules_binds_owners(tmp_path):
    async def story() -> None:
        network = Consortium(tmp_path / "network")
        try:
            first = await network.start()
            # Nobody signs for this one: it waits.
            joining = asyncio.ensure_future(network.start(owner=nobody))
            pending = await pending_node(network, first)
            await asyncio.sleep(1)
            rows = (await network.ask(first, "/node/network"))["nodes"]
            assert not joining.done() and not rows[pending]["votes"]
            await network.accepted([first], action("transition_node_to_trusted", node_id=pending))
            second = await asyncio.wait_for(joining, 40)
            assert pending in await network.voters(first, 2)
            # New rules; whoever signs for a node must know them.
            await network.accepted(
                [first, second], action("set_constitution", constitution=constitutions.text("unanimous"))
            )
            assert await network.governance(second).constitution() == constitutions.text("unanimous")
            third = asyncio.ensure_future(network.start())
            with pytest.raises(Exception, match=r"join\.not_the_owner"):
                await asyncio.wait_for(third, 30)
            network.genesis["constitution"] = constitutions.text("unanimous")
            network.files.genesis.write_text(json.dumps(network.genesis))
            # Under these rules an operator's word is not enough: every member votes for the node.
            third = asyncio.ensure_future(network.start())
            name = await pending_node(network, first)
            made = await network.governance(first).propose(
                network.members[0], {"actions": [action("transition_node_to_trusted", node_id=name)]}
            )
            for member in network.members:
                assert not third.done()
                done = await network.governance(second).vote(member, made["proposalId"], True)
            assert done["proposalState"] == "Accepted"
            await asyncio.wait_for(third, 40)
            await network.voters(first, 3)
        finally:
            await network.stop()

    run(story())


def test_the_open_formats_own_tool_signs_what_is_accepted(tmp_path):
    async def story() -> None:
        network = Consortium(tmp_path / "network")
        try:
            node = await network.start()
            folder = network.files.directory / "members"
            tool = ROOT / ".venv-ccf" / "bin" / "ccf_cose_sign1"

            def sign(name: str, kind: str, content: Any, proposal: str = "") -> bytes:
                path = tmp_path / "content.json"
                path.write_text(json.dumps(content))
                now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
                command = [str(tool), "--ccf-gov-msg-type", kind, "--ccf-gov-msg-created_at", now]
                command += [
                    "--signing-key",
                    str(folder / f"{name}.key.pem"),
                    "--signing-cert",
                    str(folder / f"{name}.pem"),
                ]
                command += ["--content", str(path)]
                command += ["--ccf-gov-msg-proposal_id", proposal] if proposal else []
                done = subprocess.run(command, capture_output=True)
                assert done.returncode == 0, done.stderr.decode()
                return done.stdout

            client = network.client(node)

            async def post(path: str, body: bytes) -> Any:
                reply = await client.request(
                    "POST", f"/gov/members/{path}?api-version=2024-07-01", body, content_type="application/cose"
                )
                return reply.json()

            certificate = make_actor(network.files.directory / "participants", "frank")
            made = await post(
                "proposals:create", sign("alice", "proposal", {"actions": [action("set_user", cert=certificate)]})
            )
            identity = made["proposalId"]
            for name, signer in (("alice", network.members[0]), ("bob", network.members[1])):
                body = sign(name, "ballot", {"vote": True}, identity)
                made = await post(f"proposals/{identity}/ballots/{signer.member}:submit", body)
            assert made["proposalState"] == "Accepted"
            # Refusals of the wire.
            for path, body, code in (
                ("proposals:create", b"", "cose.malformed"),
                ("proposals:create", b"\x00" * 100, "cose.malformed"),
                (f"proposals/{identity}:withdraw", sign("bob", "withdrawal", {}, identity), "gov.not_the_proposer"),
            ):
                with pytest.raises(RemoteError) as refused:
                    await post(path, body)
                assert refused.value.code == code
            for path, code in (
                ("/gov/members/proposals", "gov.unsupported_api_version"),
                (f"/gov/members/proposals/{'0' * 64}?api-version=2024-07-01", "gov.unknown_proposal"),
            ):
                with pytest.raises(RemoteError) as refused:
                    (await client.request("GET", path)).json()
                assert refused.value.code == code
        finally:
            await network.stop()

    run(story())


def test_a_sandboxs_nodes_restart_under_new_rules(sandboxes, tmp_path):
    sandbox = sandboxes("ruled", "--nodes", "3")
    summary = sandbox.start()
    (tmp_path / "rules.star").write_text(constitutions.text("majority"))
    change = {"actions": [action("set_constitution", constitution="@rules.star")]}
    (tmp_path / "change.json").write_text(json.dumps(change))
    command = [sys.executable, "-m", "coco.cli.main", "member", "propose", str(tmp_path / "change.json"), "--json"]
    command += ["--admin", summary["nodes"]["n1"]["administration_url"], "--service", summary["service_certificate"]]
    command += ["--cert", str(sandbox.directory / "members" / "alice.pem")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert json.loads(done.stdout)["proposalState"] == "Accepted", done.stdout
    eventually(lambda: whole(sandbox), "three nodes vote")
    killed = administration(sandbox, "n2", "/node/info")["node_id"]
    os.kill(summary["nodes"]["n2"]["enclave_pid"], signal.SIGKILL)
    # A process start is a new node: it has come back once another one votes at its address.
    eventually(
        lambda: whole(sandbox) and administration(sandbox, "n2", "/node/info")["node_id"] != killed,
        "it has joined again",
    )


def test_the_commands_govern(sandboxes, tmp_path):
    sandbox = sandboxes("governed")
    summary = sandbox.start()
    certificate = make_actor(tmp_path, "grace")
    (tmp_path / "proposal.json").write_text(json.dumps({"actions": [action("set_user", cert="@grace.pem")]}))
    at = ["--admin", summary["administration_url"], "--service", summary["service_certificate"], "--json"]
    alice = ["--cert", str(sandbox.directory / "members" / "alice.pem")]

    def coco(*arguments: str, code: int = 0) -> Any:
        done = subprocess.run(
            [sys.executable, "-m", "coco.cli.main", *arguments, *at], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == code, done.stdout + done.stderr
        return json.loads(done.stdout)

    proposal = str(tmp_path / "proposal.json")
    rehearsed = coco("proposal", "rehearse", proposal)
    assert len(rehearsed["after"]["users"]) == len(rehearsed["before"]["users"]) + 1
    made = coco("member", "propose", proposal, *alice)
    assert made["proposalState"] == "Accepted", "a sandbox's rules accept at once"
    shown = coco("proposal", "show", made["proposalId"])
    assert [one["name"] for one in shown["actions"]] == ["assert_service_identity", "set_user"]
    assert shown["actions"][1]["args"]["cert"] == certificate
    assert coco("proposal", "list") == {"value": []}
    assert coco("member", "vote", made["proposalId"], "--for", *alice, code=1)["error"]["code"] == "gov.proposal_closed"
    assert coco("member", "withdraw", made["proposalId"], *alice, code=1)["error"]["code"] == "gov.proposal_closed"
    assert len(coco("member", "ack", *alice)["stateDigest"]) == 64

    def offline(*arguments: str) -> Any:
        command = [sys.executable, "-m", "coco.cli.main", "constitution", *arguments, "--json"]
        command += ["--ledger", str(sandbox.ledger)]
        return json.loads(subprocess.run(command, capture_output=True, text=True, timeout=60).stdout)

    # Anyone with a ledger reads what was in force when, and what changed.
    now, first = offline("show"), offline("show", "--at", "1")
    name = next(
        iter(
            set(now["constitution"]["membership"]["participants"])
            - set(first["constitution"]["membership"]["participants"])
        )
    )
    assert now["constitution"]["membership"]["participants"][name]["cert"] == certificate
    assert now["constitution"]["voting_policy"]["rules"] == constitutions.text("sandbox")
    assert len({digest for _, digest in now["versions"]}) == len(now["versions"]) >= 2
    changes = offline("diff", "1", str(now["versions"][-1][0]))["changes"]
    assert [change["at"] for change in changes] == [f"/membership/participants/{name}"]
    (tmp_path / "bad.json").write_text("[]")
    assert coco("proposal", "rehearse", str(tmp_path / "bad.json"), code=2)["error"]["code"] == "member.bad_proposal"


def test_who_leaves_takes_no_later_secret_and_nodes_go_on_reading_every_epoch(tmp_path):
    async def story() -> None:
        network = Consortium(tmp_path / "network")
        certificate = make_actor(network.files.directory / "participants", "erin")
        network.genesis["participants"].append({"cert": certificate, "user_data": {"insecure_any_account": True}})
        try:
            first = await network.start()
            second = await network.start()
            await network.voters(first, 2)
            client = network.client(first, "application")
            nonce = 0

            async def pay() -> str:
                nonlocal nonce
                fields = {"nonce": nonce, "to": SENDER, "value": 1, "gas": 21_000, "chainId": 2017}
                signed = Account.from_key(KEY).sign_transaction(
                    {**fields, "maxFeePerGas": 0, "maxPriorityFeePerGas": 0}
                )
                nonce += 1
                found = await rpc(client, "eth_sendRawTransactionSync", "0x" + signed.raw_transaction.hex())
                return str(found["transactionHash"])

            async def rpc(client: HttpsClient, method: str, *params: Any) -> Any:
                body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode()
                answer = json.loads((await client.request("POST", "/", body)).body)
                assert "error" not in answer, answer
                return answer["result"]

            hashes = [await pay()]
            name = fingerprint(x509.load_pem_x509_certificate(certificate.encode()))
            await network.accepted([first, second], action("remove_user", user_id=name))
            hashes.append(await pay())
            await network.accepted([second, first], action("trigger_ledger_rekey"))
            hashes.append(await pay())
            # A node that joins now gets every secret; one that was there got the new ones in the ledger.
            third = await network.start()
            await network.voters(first, 3)
            os.kill(first.enclave_pid, signal.SIGKILL)
            for node in (second, third):
                reader = network.client(node, "application")
                async with asyncio.timeout(30):
                    while True:
                        try:
                            found = [await rpc(reader, "eth_getTransactionReceipt", one) for one in hashes]
                            break
                        except AssertionError:
                            await asyncio.sleep(0.2)
                assert all(receipt["status"] == "0x1" for receipt in found)
            client = network.client(third, "application")
            hashes.append(await pay())
        finally:
            await network.stop()
        # What anyone reads: two epochs began, each wrapped for the nodes that were trusted, and for nobody who left.
        with sqlite3.connect(network.files.ledger(1)) as ledger:
            entries = [bytes(row) for (row,) in ledger.execute("SELECT entry FROM entries ORDER BY seqno")]
        rows = [dict(Entry.parse(entry).public_writes().rows(tables.NODE_SECRETS)) for entry in entries]
        began = [json.loads(row[tables.SINGLETON] or b"") for row in rows if row]
        assert [len(one["nodes"]) for one in began] == [0, 2, 2], "the founder made the first one itself"
        later = [number + 2 for number, row in enumerate(rows) if row][1:]
        assert [one["first_seqno"] for one in began] == [1, *later]

    run(story())


def test_a_recovery_reads_every_epoch(sandboxes, tmp_path):
    sandbox = sandboxes("epochs")
    summary = sandbox.start()
    payments = Payments(sandbox.url)
    payments.pay()
    (tmp_path / "rekey.json").write_text(json.dumps({"actions": [action("trigger_ledger_rekey")]}))
    for _ in range(2):
        command = [sys.executable, "-m", "coco.cli.main", "member", "propose", str(tmp_path / "rekey.json"), "--json"]
        command += ["--admin", summary["administration_url"], "--service", summary["service_certificate"]]
        command += ["--cert", str(sandbox.directory / "members" / "alice.pem")]
        done = json.loads(subprocess.run(command, capture_output=True, text=True, timeout=60).stdout)
        assert done["proposalState"] == "Accepted", done
        payments.pay()
    sandbox.stop()
    sandbox.start()
    provider: Any = payments.web3.provider
    provider.endpoint_uri = sandbox.url
    payments.check()
    payments.pay()
    payments.check()


def test_three_organisations_found_a_network_with_commands_alone(tmp_path):
    def coco(*arguments: str, code: int = 0) -> Any:
        command = [sys.executable, "-m", "coco.cli.main", *arguments, "--json"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path)
        assert done.returncode == code, done.stdout + done.stderr
        return json.loads(done.stdout)

    # Each organisation has a folder and keys of its own; only certificates and public keys go to the others.
    names = ("north", "south", "west")
    for name in names:
        files = coco("member", "keygen", name, "--dir", name, *(["--recovery"] if name == "north" else []))
        assert (tmp_path / files["key"]).stat().st_mode & 0o077 == 0
        coco("member", "keygen", f"{name}-app", "--dir", name)
    assert coco("member", "keygen", "north", "--dir", "north", code=2)["error"]["code"] == "network.file_exists"
    init = ["network", "init", "trade", "--insecure-virtual", "--operator", "north/north-app.pem=127.0.0.1"]
    for name in names:
        init += ["--member", f"{name}/{name}.pem", "--participant", f"{name}/{name}-app.pem"]
    for wrong, error in (
        (["--recovery-threshold", "2"], "network.not_recoverable"),
        (["--constitution", "nothing"], "network.bad_rules"),
        (["--member", "nobody.pem"], "network.bad_certificate"),
        (["--operator", "north/north.pem"], "network.bad_operator"),
    ):
        assert coco(*init, *wrong, code=2)["error"]["code"] == error
    founded = coco(*init)
    assert (founded["members"], founded["participants"]) == (3, 3)
    assert coco(*init, code=2)["error"]["code"] == "network.file_exists"
    start = [
        sys.executable,
        "-m",
        "coco.cli.main",
        "node",
        "start",
        "--dir",
        "n0",
        "--genesis",
        "genesis.json",
        "--json",
    ]
    with subprocess.Popen(start, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=tmp_path) as node:
        try:
            said = json.loads(node.stdout.readline())
            at = ["--admin", said["administration_url"], "--service", said["service_certificate"]]
            coco("member", "keygen", "east", "--dir", "east")
            (tmp_path / "admit.json").write_text(
                json.dumps({"actions": [action("set_member", cert="@east/east.pem", member_data={"name": "east"})]})
            )
            made = coco("member", "propose", "admit.json", *at, "--cert", "south/south.pem")
            assert made["proposalState"] == "Open"
            for name in ("south", "west"):
                made = coco("member", "vote", made["proposalId"], "--for", *at, "--cert", f"{name}/{name}.pem")
            assert made["proposalState"] == "Accepted"
            # The fourth knows the state, acknowledges it, and then counts.
            (tmp_path / "none.json").write_text(json.dumps({"actions": [action("remove_user", user_id="none")]}))
            early = coco("member", "propose", "none.json", *at, "--cert", "east/east.pem", code=1)
            assert early["error"]["code"] == "gov.not_active"
            coco("member", "ack", *at, "--cert", "east/east.pem")
            made = coco("member", "propose", "none.json", *at, "--cert", "east/east.pem")
            for name, state in (("east", "Open"), ("north", "Open"), ("west", "Accepted")):
                made = coco("member", "vote", made["proposalId"], "--for", *at, "--cert", f"{name}/{name}.pem")
                assert made["proposalState"] == state, "three of four are more than half"
            listed = coco("constitution", "show", "--ledger", "n0/ledger.db")["constitution"]["membership"]["members"]
            assert sorted(one["member_data"]["name"] for one in listed.values()) == ["east", "north", "south", "west"]
        finally:
            node.send_signal(signal.SIGTERM)
            node.communicate(timeout=40)
