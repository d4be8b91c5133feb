"""Keys that adapters sign with, in real networks: one for all nodes, through joining, another key of the service, recovery."""

from __future__ import annotations

import json
from typing import Any

import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from test_consortium import Consortium, action
from test_epochs import until
from test_succession import announced, shows

from adapter_signatures import verify
from coco.client.http import HttpsClient
from coco.client.verify import unverified_context
from network import ADAPTERS, ROOT, TestNetwork, run, running

pytestmark = pytest.mark.usefixtures("verified")
OPTIONS: dict[str, Any] = {
    "adapters": {**ADAPTERS, "signer": "signer:adapter"},
    "extra_path": [str(ROOT / "examples"), str(ROOT / "tests/adapters")],
}
NAMES = ("notary", "blocks", "papers")


async def signed(client: Any, name: str) -> Any:
    reply = await client.request("GET", f"/signed/{name}/data")
    return json.loads(reply.body) if reply.status == 200 else None


async def all_signed(network: Any, node: Any) -> dict[str, Any]:
    """What a node signs with each key, once it serves the adapter; verified."""
    client = network.client(node, "application")
    answers = {name: await until(lambda name=name: signed(client, name)) for name in NAMES}
    for answer in answers.values():
        verify(answer["certificates"][0], bytes.fromhex(answer["signature"]))
    return {name: answer["certificates"] for name, answer in answers.items()}


def issued(certificate: str, service: str) -> None:
    issuer = x509.load_pem_x509_certificate(service.encode())
    x509.load_pem_x509_certificate(certificate.encode()).verify_directly_issued_by(issuer)


def public(certificate: str) -> Any:
    return x509.load_pem_x509_certificate(certificate.encode()).public_key()


async def followed(network: Any, node: Any) -> bool:
    """Whether every key has a certificate of the service as it is."""
    context = unverified_context()
    client = HttpsClient("localhost", node.relays["administration"].port, context)
    try:
        listed = (await client.request("GET", "/node/service/keys")).json()["keys"]
    finally:
        await client.close()
    try:
        for document in listed.values():
            issued(document["certificates"][0], network.service)
    except InvalidSignature:
        return False
    return len(listed) == len(NAMES)


def test_three_nodes_sign_with_the_same_keys_before_and_after_the_service_has_another(tmp_path):
    async def story() -> None:
        network = Consortium(tmp_path / "network")
        try:
            nodes = [await network.start(**OPTIONS) for _ in range(2)]
            await network.voters(nodes[0], 2)
            await network.accepted(nodes, {"name": "set_adapter", "args": {"name": "signer", "genesis": {}}})
            nodes.append(await network.start(**OPTIONS))
            await network.voters(nodes[0], 3)
            first, *others = [await all_signed(network, node) for node in nodes]
            assert others == [first, first]
            for certificates in first.values():
                issued(certificates[0], network.service)
            listed = (await network.ask(nodes[2], "/node/service/keys"))["keys"]
            assert {f"signer/{name}": found for name, found in first.items()} == {
                name: document["certificates"] for name, document in listed.items()
            }

            former = network.service
            await network.accepted(nodes, action("rotate_service_identity"))
            found = await announced(network, nodes[1])
            for member in network.members[:2]:
                await network.governance(nodes[0]).state(member, former)
            for node in nodes:
                await shows(network, node, found["next"])
            network.service = found["next"]
            for node in nodes:
                await until(lambda node=node: followed(network, node))
            second, *others = [await all_signed(network, node) for node in nodes]
            assert others == [second, second]
            for name, (newest, *before) in second.items():
                issued(newest, network.service)
                assert before == first[name]
                assert (public(newest) == public(before[0])) == (name == "notary")
        finally:
            await network.stop()

    run(story())


def test_a_recovered_service_signs_with_the_keys_that_it_had(tmp_path):
    async def story() -> None:
        network = TestNetwork(tmp_path / "network")
        network.genesis["adapters"] |= {"signer": {}}
        async with running(network, **OPTIONS):
            client = network.client()
            first = {name: await signed(client, name) for name in NAMES}
            former = network.service
        network.clients.clear()
        async with running(network, **OPTIONS):
            await network.recover()
            client = network.client()
            await until(lambda: followed(network, network.node))
            for name in NAMES:
                answer = await signed(client, name)
                newest, *before = answer["certificates"]
                verify(newest, bytes.fromhex(answer["signature"]))
                assert before == first[name]["certificates"] and public(newest) == public(before[0])
                issued(newest, network.service)
                issued(before[0], former)
        for line in network.log:
            assert "PRIVATE" not in json.dumps(line)

    run(story())
