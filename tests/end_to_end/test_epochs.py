"""Opening by vote, certificates, epochs: what members decide about the service itself, on real nodes."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import sqlite3
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from test_consortium import Consortium, action
from test_memory import scan

from coco._native import Entry
from coco.client.http import HttpsClient
from coco.client.verify import service_context, unverified_context
from coco.configuration.secrets import binding
from coco.ledger import tables
from coco.ledger.statements import decrypt_share
from network import run

pytestmark = pytest.mark.usefixtures("verified")


async def until(check: Any, seconds: float = 30) -> Any:
    async with asyncio.timeout(seconds):
        while not (found := await check()):
            await asyncio.sleep(0.1)
        return found


async def shown_certificate(node: Any) -> x509.Certificate:
    """What a node's administration listener shows to a new connection."""
    _, writer = await asyncio.open_connection("localhost", node.relays["administration"].port, ssl=unverified_context())
    der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    return x509.load_der_x509_certificate(der)


def test_J2_a_network_opens_by_a_vote_that_names_its_nodes(tmp_path):
    async def story() -> None:
        network = Consortium(tmp_path / "network")
        network.genesis["opens_by_vote"] = True
        try:
            first = await network.start()
            assert (await network.ask(first, "/node/info"))["status"] == "Opening"
            second = await network.start()  # its operator's word is enough: the vote names it
            voters = await network.voters(first, 2)
            opens = {"next_service_identity": network.service}
            governance = network.governance(first)
            made = await governance.propose(
                network.members[0], {"actions": [action("transition_service_to_open", nodes=["x"], **opens)]}
            )
            for member in network.members[:2]:
                made = await governance.vote(member, made["proposalId"], True)
            assert (made["proposalState"], made["failure"]["code"]) == ("Failed", "gov.other_nodes")
            assert (await network.ask(second, "/node/info"))["status"] == "Opening"
            right = action("transition_service_to_open", nodes=sorted(voters), **opens)
            await network.accepted([first, second], right)
            for node in (first, second):

                async def is_open(node: Any = node) -> bool:
                    return bool((await network.ask(node, "/node/info"))["status"] == "Open")

                await until(is_open)
                client = network.client(node, "application")
                body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "eth_chainId", "params": []}).encode()
                assert json.loads((await client.request("POST", "/", body)).body)["result"]
            third = await network.start()
            assert (await network.ask(third, "/node/info"))["status"] == "Open"
            # A newcomer that has approved other rules is sent nothing, whoever has signed for it.
            with pytest.raises(Exception, match=r"join\.other_constitution"):
                await asyncio.wait_for(network.start(expected_constitution=bytes(32)), 30)
            rows = (await network.ask(first, "/node/network"))["nodes"]
            assert len(rows) == 3, "not even a row"
        finally:
            await network.stop()

    run(story())


def test_J9_certificates_are_short_renewed_by_vote_and_shown_at_once(tmp_path):
    async def story() -> None:
        network = Consortium(tmp_path / "network")
        try:
            nodes = [await network.start(), await network.start()]
            await network.voters(nodes[0], 2)
            before = [await shown_certificate(node) for node in nodes]
            assert all((one.not_valid_after_utc - one.not_valid_before_utc).days == 7 for one in before)
            old_service = network.service
            await network.accepted(
                nodes,
                action("set_all_nodes_certificate_validity", validity_period_days=2),
                action("set_service_certificate_validity", validity_period_days=100),
            )

            async def renewed() -> bool:
                now = [await shown_certificate(node) for node in nodes]
                return all((one.not_valid_after_utc - one.not_valid_before_utc).days == 2 for one in now)

            await until(renewed)
            after = [await shown_certificate(node) for node in nodes]
            assert [one.public_key() for one in after] == [one.public_key() for one in before], "never another key"
            found = (await network.ask(nodes[1], "/node/network"))["service_certificate"]
            assert found != old_service
            assert x509.load_pem_x509_certificate(found.encode()).public_key() == (
                x509.load_pem_x509_certificate(old_service.encode()).public_key()
            )
            # Whoever knows either certificate of the service goes on, and so does a node that joins now.
            for known in (old_service, found):
                client = HttpsClient("localhost", nodes[1].relays["administration"].port, service_context(known))
                assert (await client.request("GET", "/node/health")).status == 200
                await client.close()
            await network.start()
            await network.voters(nodes[0], 3)
        finally:
            await network.stop()

    run(story())


def epochs(ledger: Any) -> list[dict[str, Any]]:
    """The epochs that a ledger says began."""
    with sqlite3.connect(ledger) as found:
        entries = [bytes(row) for (row,) in found.execute("SELECT entry FROM entries ORDER BY seqno")]
    rows = [dict(Entry.parse(entry).public_writes().rows(tables.NODE_SECRETS)) for entry in entries]
    return [json.loads(row[tables.SINGLETON] or b"") for row in rows if row]


def test_a_node_that_members_remove_takes_no_later_secret_though_it_led(tmp_path):
    async def story() -> None:
        network = Consortium(tmp_path / "network")
        try:
            nodes = [await network.start() for _ in range(3)]
            voters = await network.voters(nodes[0], 3)
            primary = next(name for name, row in voters.items() if row["primary"])
            await network.accepted(nodes[1:], action("remove_node", node_id=primary))
            assert "node.retired" in await asyncio.wait_for(nodes[0].ended, 40)
            left = await network.voters(nodes[1], 2)
            assert primary not in left

            async def begun() -> Any:
                return [one for one in epochs(network.files.ledger(1)) if set(one["nodes"]) == set(left)]

            await until(begun)
        finally:
            await network.stop()

    run(story())


def opened(wrapped: bytes, key: bytes, aad: bytes) -> bytes:
    """The root of a ledger secret, in the clear: for a search of memory only."""
    return AESGCM(key).decrypt(wrapped[:12], wrapped[12:], aad)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root reads the memory of a process that is not dumpable")
def test_K5_a_former_ledger_secret_leaves_memory_and_is_fetched_back_when_needed(tmp_path):
    async def story() -> None:
        network = Consortium(tmp_path / "network")
        network.genesis["settings"] = {"voted": {"secret_lifetime_s": 1, "epoch_length_s": 10}}
        try:
            node = await network.start()
            service = x509.load_pem_x509_certificate(network.service.encode()).public_key()
            with sqlite3.connect(network.files.ledger(0)) as ledger:
                (entry,) = ledger.execute("SELECT entry FROM entries WHERE seqno = 1").fetchone()
            row = json.loads(
                dict(Entry.parse(entry).public_writes().rows(tables.WRAPPED_SECRET))[tables.SINGLETON] or b""
            )
            member = network.files.member()
            ((name, encrypted),) = row["encrypted_shares"].items()
            key = decrypt_share(base64.b64decode(encrypted), member.encryption_key)[1:]
            public = dict(Entry.parse(entry).public_writes().rows(tables.MEMBERS_ENCRYPTION))
            spki = service.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
            aad = binding(spki, 1, {name: public[name.encode()] or b""}, 1)
            first = opened(base64.b64decode(row["wrapped_secret"]), key, aad)
            assert scan(node.enclave_pid, {"first": first})["first"] > 0, "the current secret is there"
            # Ten seconds later another epoch begins by itself; the first secret is needed no more.

            async def begun() -> bool:
                return len(epochs(network.files.ledger(0))) > 1

            await until(begun)

            async def gone() -> bool:
                return scan(node.enclave_pid, {"first": first})["first"] == 0

            await until(gone, 15)
            # A receipt of the first epoch needs it again; then it leaves again.
            client = network.client(node)
            receipt = (await client.request("GET", "/node/receipt?id=2.1")).json()
            assert receipt["leaf_components"]["commit_evidence"]
            await until(gone, 15)
        finally:
            await network.stop()

    run(story())
