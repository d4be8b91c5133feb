"""Who may do and see what: callers, accounts, the read matrix, and the holes of an earlier system by their numbers."""

from __future__ import annotations

import json
import ssl
import subprocess
import sys
import time
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from eth_account import Account
from eth_account.messages import encode_defunct

from coco.attestation.evidence import Evidence, report_data
from coco.client.http import HttpsClient, RemoteError
from coco.client.pin import Pin
from coco.client.verify import service_context, verify_node
from coco.errors import AttestationError
from coco.ledger.statements import binding_text
from conftest import verify_with_ccf
from network import TestNetwork, run, running

ALICE = Account.from_key("0xac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80")
BOB = Account.from_key("0x59c6995e998f97a5a0044966f0945389dc9e86dae88c7a8412f4603b6b78690d")
# Returns CALLER: PUSH0 CALLER PUSH0 MSTORE PUSH1 20 PUSH0 RETURN, behind a constructor that copies it.
WHO_AM_I = "0x33" + "5f52" + "60205ff3"
DEPLOY = "0x66" + WHO_AM_I[2:].rjust(14, "0") + "5f5260076019f3"


@pytest.fixture
def network(tmp_path):
    made = TestNetwork(tmp_path / "network")
    made.add_participant("alice")
    made.add_participant("bob")
    made.add_participant("auditor", auditor=True)
    yield made
    verify_with_ccf(made.files.ledger(0), tmp_path / "chunks")


def signed(account, nonce, **fields):
    whole = {
        "to": BOB.address,
        "value": 5,
        "gas": 100_000,
        "nonce": nonce,
        "chainId": 2017,
        "maxFeePerGas": 0,
    }
    return account.sign_transaction({**whole, "maxPriorityFeePerGas": 0, **fields})


async def send(network, client, account, nonce, **fields):
    raw = signed(account, nonce, **fields)
    answer = await network.rpc(client, "eth_sendRawTransactionSync", "0x" + raw.raw_transaction.hex())
    return answer["result"]


async def bind(network, client, account, nonce="nonce12345", signer=None, text=None):
    who = (await client.request("GET", "/coco/caller")).json()
    statement = text or binding_text(who["network"], who["actor"], bytes.fromhex(account.address[2:]), nonce)
    signature = (signer or account).sign_message(encode_defunct(text=statement)).signature.hex()
    body = json.dumps({"account": account.address, "nonce": nonce, "signature": signature}).encode()
    return await client.request("POST", "/coco/accounts/bind", body)


def code_of(answer):
    return answer["error"]["data"]["code"]


def test_an_account_is_proven_by_its_own_signature_and_opens_what_is_its_own(network):
    async def story():
        async with running(network):
            alice, bob, sandbox = network.client("alice"), network.client("bob"), network.client("dapp")
            receipt = await send(network, sandbox, ALICE, 0)
            identity = receipt["transactionHash"]
            assert (await network.rpc(alice, "eth_getTransactionReceipt", identity))["result"] is None
            assert (await network.rpc(alice, "eth_getBalance", ALICE.address, "latest"))["result"] == "0x0"

            wrong = await bind(network, alice, ALICE, signer=BOB)
            assert json.loads(wrong.body)["error"]["code"] == "account.bad_signature"
            actor_of_bob = (await bob.request("GET", "/coco/caller")).json()["actor"]
            stolen = binding_text("coco-dev", actor_of_bob, bytes.fromhex(ALICE.address[2:]), "nonce12345")
            assert (await bind(network, alice, ALICE, text=stolen)).status == 403, "a statement for another actor"
            for body in (b"", b"[]", b'{"account": 1}', b'{"account":"0x","nonce":"1","signature":"0x"}'):
                malformed = await alice.request("POST", "/coco/accounts/bind", body)
                assert json.loads(malformed.body)["error"]["code"] == "account.malformed"
            anonymous = await bind_anonymous(network)
            assert anonymous == "access.not_a_participant"

            bound = await bind(network, alice, ALICE)
            assert bound.status == 200, bound.body
            assert (await alice.request("GET", "/coco/caller")).json()["accounts"] == [ALICE.address.lower()]
            assert (await network.rpc(alice, "eth_getTransactionReceipt", identity))["result"] == receipt
            assert (await network.rpc(alice, "eth_getBalance", ALICE.address, "latest"))["result"] != "0x0"
            await bind(network, bob, BOB)
            assert (await network.rpc(bob, "eth_getTransactionReceipt", identity))["result"] == receipt, "the receiver"

    run(story())


async def bind_anonymous(network):
    nobody = network.client(None)
    body = json.dumps({"account": "0x" + "00" * 20, "nonce": "12345678", "signature": "0x" + "00" * 65}).encode()
    return json.loads((await nobody.request("POST", "/coco/accounts/bind", body)).body)["error"]["code"]


def test_E2_the_from_of_a_call_is_proven_or_refused(network):
    async def story():
        async with running(network):
            alice, sandbox = network.client("alice"), network.client("dapp")
            receipt = await send(network, sandbox, ALICE, 0, to=None, data=DEPLOY, value=0)
            assert receipt["status"] == "0x1"
            contract = receipt["contractAddress"]
            for method in ("eth_call", "eth_estimateGas", "eth_createAccessList"):
                answer = await network.rpc(alice, method, {"from": ALICE.address, "to": contract}, "latest")
                assert code_of(answer) in ("ethereum.account_not_proven", "ethereum.not_visible"), method
            zero = await network.rpc(alice, "eth_call", {"to": contract}, "latest")
            assert int(zero["result"], 16) == 0, "without a from it is address zero"
            await bind(network, alice, ALICE)
            mine = await network.rpc(alice, "eth_call", {"from": ALICE.address, "to": contract}, "latest")
            assert mine["result"][-40:] == ALICE.address[2:].lower()
            any_account = await network.rpc(sandbox, "eth_call", {"from": BOB.address, "to": contract}, "latest")
            assert any_account["result"][-40:] == BOB.address[2:].lower(), "the sandbox's participant, insecurely"
            override = await network.rpc(sandbox, "eth_call", {"to": contract}, "latest", {contract: {"code": "0x"}})
            assert code_of(override) == "ethereum.override_refused"
            anonymous = await network.rpc(network.client(None), "eth_call", {"to": contract}, "latest")
            assert code_of(anonymous) == "ethereum.not_visible"

    run(story())


def test_E1_E3_E4_E5_E7_E8_E9_E10_of_an_earlier_system(network):
    async def story():
        async with running(network):
            sandbox, alice, nobody = network.client("dapp"), network.client("alice"), network.client(None)
            unsigned = await network.rpc(sandbox, "eth_sendTransaction", {"from": ALICE.address, "to": BOB.address})
            assert code_of(unsigned) == "ethereum.unsigned_transaction", "E1"
            raw = signed(ALICE, 0)
            text = "0x" + raw.raw_transaction.hex()
            receipt = (await network.rpc(sandbox, "eth_sendRawTransactionSync", text))["result"]
            assert receipt["transactionHash"] == "0x" + raw.hash.hex(), "E5"
            replayed = await network.rpc(sandbox, "eth_sendRawTransaction", text)
            assert code_of(replayed) == "ethereum.transaction.nonce_too_low", "E3"
            other_chain = signed(ALICE, 1, chainId=1)
            refused = await network.rpc(sandbox, "eth_sendRawTransaction", "0x" + other_chain.raw_transaction.hex())
            assert code_of(refused) == "ethereum.transaction.wrong_chain", "E4"
            for stranger in (alice, nobody):
                hidden = await network.rpc(stranger, "eth_getTransactionReceipt", receipt["transactionHash"])
                unknown = await network.rpc(stranger, "eth_getTransactionReceipt", "0x" + "12" * 32)
                assert hidden == unknown and hidden["result"] is None, "E7: hidden and unknown look the same"
                block = (await network.rpc(stranger, "eth_getBlockByNumber", receipt["blockNumber"], True))["result"]
                assert block["transactions"] == [] and int(block["logsBloom"], 16) == 0
                assert int(block["stateRoot"], 16) == 0
            auditor = await network.rpc(
                network.client("auditor"), "eth_getTransactionReceipt", receipt["transactionHash"]
            )
            assert auditor["result"] == receipt
            loop = await send(network, sandbox, ALICE, 1, to=None, data="0x5b5f56", value=0, gas=3_000_000)
            assert (loop["status"], int(loop["gasUsed"], 16)) == ("0x0", 3_000_000), "E8: gas bounds a loop"
            over = await network.rpc(
                sandbox, "eth_sendRawTransaction", "0x" + signed(ALICE, 2, gas=1 << 25).raw_transaction.hex()
            )
            assert code_of(over) == "ethereum.transaction.gas_over_cap", "the fork's cap on one transaction"
            hashed = await network.rpc(sandbox, "eth_call", {"to": "0x" + "00" * 19 + "02", "data": "0x"}, "latest")
            assert hashed["result"].startswith("0xe3b0c44298fc1c14"), "E9: precompile 2 is SHA-256"
            message = encode_defunct(text="E9")
            proof = ALICE.sign_message(message)
            words = [
                proof.message_hash,
                proof.v.to_bytes(32, "big"),
                proof.r.to_bytes(32, "big"),
                proof.s.to_bytes(32, "big"),
            ]
            call = {"to": "0x" + "00" * 19 + "01", "data": "0x" + b"".join(bytes(w) for w in words).hex()}
            recovered = await network.rpc(sandbox, "eth_call", call, "latest")
            assert recovered["result"][-40:] == ALICE.address[2:].lower(), "E9: ecrecover, on which read control rests"
            block = (await network.rpc(sandbox, "eth_getBlockByNumber", "latest", False))["result"]
            assert (
                int(block["number"], 16) == 2 and int(block["mixHash"], 16) != 0 and int(block["timestamp"], 16) > 1.7e9
            ), "E10"
            push0 = await network.rpc(sandbox, "eth_call", {"data": "0x5f5ff3"}, "latest")
            assert push0["result"] == "0x"

    run(story())


def test_blobs_unsigned_and_broken_transactions_are_refused_with_codes(network):
    async def story():
        async with running(network):
            sandbox = network.client("dapp")
            good = signed(ALICE, 0).raw_transaction

            async def code(raw):
                return code_of(await network.rpc(sandbox, "eth_sendRawTransaction", raw))

            assert await code("0x") == "ethereum.transaction.undecodable"
            assert await code("nonsense") == "rpc.invalid_params"
            assert await code("0x" + good.hex()[:-2]) == "ethereum.transaction.undecodable"
            assert await code("0x" + good.hex() + "00") == "ethereum.transaction.undecodable"
            assert await code("0x" + "00" * 200_000) == "ethereum.transaction.too_large"
            assert (
                await code("0x" + signed(ALICE, 0, gas=20_000).raw_transaction.hex())
                == "ethereum.transaction.intrinsic_gas"
            )
            rich = signed(ALICE, 0, value=10**30)
            assert await code("0x" + rich.raw_transaction.hex()) == "ethereum.transaction.insufficient_funds"
            anonymous = await network.rpc(network.client(None), "eth_sendRawTransaction", "0x" + good.hex())
            assert code_of(anonymous) == "access.not_a_participant"

    run(story())


def test_G4_no_session_ticket_and_a_stranger_is_nobody(network, tmp_path):
    async def story():
        async with running(network):
            port = network.node.relays["application"].port
            made = subprocess.run(
                ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-tls1_3"],
                input=b"", capture_output=True, timeout=20,
            )  # fmt: skip
            assert b"TLSv1.3" in made.stdout and b"New Session Ticket" not in made.stdout
            old = subprocess.run(
                ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-tls1_2"],
                input=b"", capture_output=True, timeout=20,
            )  # fmt: skip
            assert b"alert protocol version" in old.stderr or b"Cipher is (NONE)" in old.stdout
            from coco.cli.keys import make_actor

            make_actor(tmp_path, "stranger")
            context = service_context(
                network.service, str(tmp_path / "stranger.pem"), str(tmp_path / "stranger.key.pem")
            )
            stranger = HttpsClient("localhost", port, context)
            assert (await stranger.request("GET", "/coco/caller")).json()["kind"] == "anonymous"
            raw = "0x" + signed(ALICE, 0).raw_transaction.hex()
            assert code_of(await network.rpc(stranger, "eth_sendRawTransaction", raw)) == "access.not_a_participant"
            await stranger.close()

    run(story())


def test_an_organisation_ca_stands_for_its_leaves(network, tmp_path):
    """Any leaf that the pinned CA issued is the actor; a leaf of another CA with the same name is not."""
    made = make_ca_and_leaf(tmp_path / "org")
    network.genesis["participants"].append({"cert": made["ca"], "user_data": {}})
    other = make_ca_and_leaf(tmp_path / "other")

    async def story():
        async with running(network):
            port = network.node.relays["application"].port
            leaf = HttpsClient("localhost", port, service_context(network.service, *made["leaf"]))
            who = (await leaf.request("GET", "/coco/caller")).json()
            assert who["kind"] == "participant"
            fake = HttpsClient("localhost", port, service_context(network.service, *other["leaf"]))
            assert (await fake.request("GET", "/coco/caller")).json()["kind"] == "anonymous"
            team = HttpsClient("localhost", port, service_context(network.service, *made["team"]))
            assert (await team.request("GET", "/coco/caller")).json()["actor"] == who["actor"]
            await team.close()
            for flaw in ("expired", "early", "server", "alone"):
                flawed = HttpsClient("localhost", port, service_context(network.service, *made[flaw]))
                assert (await flawed.request("GET", "/coco/caller")).json()["kind"] == "anonymous", flaw
                await flawed.close()
            await leaf.close()
            await fake.close()

    run(story())


def make_ca_and_leaf(directory):
    import datetime

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    directory.mkdir()
    now = datetime.datetime.now(datetime.UTC)
    name = lambda text: x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])  # noqa: E731
    ca_key, leaf_key = (ec.generate_private_key(ec.SECP384R1()) for _ in range(2))

    def build(
        subject, key, ca, days=(0, 1), usage=x509.oid.ExtendedKeyUsageOID.CLIENT_AUTH, issuer="Organisation", by=None
    ):
        return (
            x509.CertificateBuilder()
            .subject_name(name(subject))
            .issuer_name(name(issuer))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + datetime.timedelta(days=days[0], hours=-1))
            .not_valid_after(now + datetime.timedelta(days=days[1], hours=-1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .sign(by or ca_key, hashes.SHA384())
        )

    pem = serialization.Encoding.PEM
    flaws: dict[str, dict[str, Any]] = {
        "leaf": {},
        "expired": {"days": (-2, 0)},
        "early": {"days": (1, 2)},
        "server": {"usage": x509.oid.ExtendedKeyUsageOID.SERVER_AUTH},
    }
    for flaw, fields in flaws.items():
        leaf = build("department", leaf_key, False, **fields)
        (directory / f"{flaw}.pem").write_bytes(leaf.public_bytes(pem))
    (directory / "leaf.key").write_bytes(
        leaf_key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    # Of a CA that the organisation's issued: shown with its leaf, and without.
    team_key = ec.generate_private_key(ec.SECP384R1())
    team = build("team", team_key, True).public_bytes(pem)
    somebody = build("somebody", leaf_key, False, issuer="team", by=team_key).public_bytes(pem)
    (directory / "team.pem").write_bytes(somebody + team)
    (directory / "alone.pem").write_bytes(somebody)
    flaws |= {"team": {}, "alone": {}}
    ca = build("Organisation", ca_key, True).public_bytes(pem).decode()
    return {"ca": ca} | {flaw: (str(directory / f"{flaw}.pem"), str(directory / "leaf.key")) for flaw in flaws}


def test_J7_a_pinned_client_follows_members_only(network):
    async def story():
        async with running(network):
            admin = ("127.0.0.1", network.node.relays["administration"].port)
            verified = await verify_node(*admin, None, accept_insecure_virtual=True)
            pin = Pin(verified.service, dict(verified.network["members"]))
            commit = (await network.client(listener="administration").request("GET", "/node/commit")).json()
            pin.saw(commit["transaction_id"])
            with pytest.raises(AttestationError) as insecure:
                await verify_node(*admin, pin, accept_insecure_virtual=False)
            assert insecure.value.code == "attestation.insecure_platform"
        async with running(network):
            await network.recover()
            admin = ("127.0.0.1", network.node.relays["administration"].port)
            without_members = Pin(pin.service, {}, pin.position)
            with pytest.raises(AttestationError) as refused:
                await verify_node(*admin, without_members, accept_insecure_virtual=True)
            assert refused.value.code == "client.other_service"
            ahead = Pin(pin.service, pin.members, "2.999999")
            with pytest.raises(AttestationError) as cut:
                await verify_node(*admin, ahead, accept_insecure_virtual=True)
            assert cut.value.code == "client.rolled_back"
            followed = await verify_node(*admin, pin, accept_insecure_virtual=True)
            assert pin.service == followed.service != verified.service

    run(story())


def test_the_command_binds_an_account(network):
    async def story():
        async with running(network):
            (network.files.directory / "service.pem").write_text(network.service)
            at = lambda suffix: str(network.files.actor("participants", "alice", suffix))  # noqa: E731
            url = f"https://localhost:{network.node.relays['application'].port}"
            command = [
                sys.executable,
                "-m",
                "coco.cli.main",
                "account",
                "bind",
                ALICE.address,
                "--json",
                "--url",
                url,
            ]
            command += [
                "--service",
                str(network.files.service),
                "--cert",
                at(".pem"),
                "--key",
                at(".key.pem"),
            ]
            loop = __import__("asyncio").get_running_loop()

            async def run_command(*more):
                done = await loop.run_in_executor(
                    None,
                    lambda: subprocess.run([*command, *more], capture_output=True, text=True, timeout=60),
                )
                return done.returncode, json.loads(done.stdout)

            code, first = await run_command()
            assert code == 0
            signature = ALICE.sign_message(encode_defunct(text=first["text"])).signature.hex()
            code, bound = await run_command("--nonce", first["nonce"], "--signature", signature)
            assert (code, bound["account"]) == (0, ALICE.address.lower())
            code, bad = await run_command("--nonce", first["nonce"], "--signature", "00" * 65)
            assert (code, bad["error"]["code"]) == (1, "account.bad_signature")

    run(story())


def test_recovery_messages_are_checked(network):
    """Only a member of the ledger can state an identity or give a share, and only for what is there."""

    async def story():
        async with running(network):
            open_already = network.client(listener="administration")
            answer = await open_already.request("POST", "/gov/recovery/statements", b"x")
            assert json.loads(answer.body)["error"]["code"] == "recovery.not_recovering"
        async with running(network):
            client = network.client(listener="administration")
            assert (await client.request("GET", "/node/health")).status == 503
            member = network.files.member()
            from dataclasses import replace

            from cryptography.hazmat.primitives.asymmetric import ec

            from coco.ledger.statements import IDENTITY_STATEMENT, RECOVERY_SHARE, fingerprint, share_payload

            state = (await client.request("GET", "/gov/recovery")).json()
            payload = {
                "previous_service": state["previous_service_key"],
                "next_service": state["next_service_key"],
                "transaction_id": state["transaction_id"],
                "root": state["root"],
            }

            async def refused(path, message):
                reply = await client.request("POST", path, message, content_type="application/cose")
                with pytest.raises(RemoteError) as error:
                    reply.json()
                return error.value.code

            stranger = replace(member, key=ec.generate_private_key(ec.SECP384R1()))
            statements = "/gov/recovery/statements"
            assert await refused(statements, b"\x00" * 50) == "cose.malformed"
            assert await refused(statements, stranger.sign(IDENTITY_STATEMENT, payload)) == "cose.bad_signature"
            assert await refused(statements, member.sign("ballot", payload)) == "gov.wrong_message_type"
            other = {**payload, "transaction_id": "2.1"}
            assert await refused(statements, member.sign(IDENTITY_STATEMENT, other)) == "recovery.other_statement"
            path = f"/gov/recovery/members/{fingerprint(member.certificate)}:recover"
            bad_share = member.sign(RECOVERY_SHARE, share_payload(b"\x01" * 33))
            (await client.request("POST", statements, member.sign(IDENTITY_STATEMENT, payload))).json()
            assert await refused(path, bad_share) == "recovery.bad_share"
            assert await refused(path, member.sign(RECOVERY_SHARE, {"share": "!"})) == "gov.malformed"
            await network.recover()
            assert (await client.request("GET", "/node/health")).status == 200

    run(story())


def key_of(pem: str) -> bytes:
    """DER SubjectPublicKeyInfo of a certificate's key."""
    return (
        x509.load_pem_x509_certificate(pem.encode())
        .public_key()
        .public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    )


def test_tls_ends_in_the_enclave(network):
    """The certificate's key is not in the host process or on its disk: it is the one in the evidence."""

    async def story():
        async with running(network):
            port = network.node.relays["application"].port
            shown = ssl.get_server_certificate(("127.0.0.1", port))
            assert shown.strip() != network.service.strip()
            nonce = b"of this test"
            client = network.client(listener="administration")
            said = (await client.request("GET", f"/node/attestation?nonce={nonce.hex()}")).json()
            proven = Evidence.parse(said).verify(now_s=int(time.time())).report_data
            bound = {
                "nonce": nonce,
                "service": key_of(network.service),
                "constitution": bytes.fromhex(said["constitution_hash"]),
                "configuration": bytes.fromhex(said["configuration_hash"]),
            }
            assert proven == report_data(key_of(shown), **bound)
            assert proven != report_data(key_of(network.service), **bound), "it is of one key"
            for path in network.files.directory.rglob("*"):
                if path.is_file() and "key" not in path.name:
                    assert b"PRIVATE KEY" not in path.read_bytes()

    run(story())
