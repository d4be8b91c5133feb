"""Members vote a ledger protocol in while the network runs; nodes that die and join know it as if founded with it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from types import SimpleNamespace
from typing import Any

import pytest
from eth_account import Account
from test_consortium import Consortium
from test_epochs import until
from test_failover import KEY, SENDER

from coco import constitutions
from coco.client.governance import Governance
from coco.client.signer import Signer
from coco.enclave.adapters.contract import PoolPolicy
from coco.enclave.ordering.registry import AdapterRegistry
from coco.enclave.ordering.subscribers import Subscribers
from coco.ledger import tables
from network import ADAPTERS, ROOT, TestNetwork, run, running

pytestmark = pytest.mark.usefixtures("verified")
OPTIONS: dict[str, Any] = {
    "adapters": ADAPTERS,
    "extra_path": [str(ROOT / "examples"), str(ROOT / "tests/adapters")],
}


def adapter(name: str, genesis: Any) -> dict[str, Any]:
    return {"name": "set_adapter", "args": {"name": name, "genesis": genesis}}


async def rpc(client: Any, method: str, *params: Any) -> Any:
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode()
    return json.loads((await client.request("POST", "/", body)).body)


def test_an_adapter_is_voted_in_used_and_outlives_its_nodes(tmp_path):
    async def story() -> None:
        network = Consortium(tmp_path / "network")
        ethereum = network.genesis["adapters"].pop("ethereum")
        network.genesis["adapters"] = {"kv": {}}
        network.genesis["settings"] = {"snapshot_interval_entries": 15}
        network.files.genesis.write_text(json.dumps(network.genesis))
        nonce = 0

        async def pay(node: Any) -> None:
            nonlocal nonce
            fields = {"nonce": nonce, "to": SENDER, "value": 1, "gas": 21_000, "chainId": 2017}
            signed = Account.from_key(KEY).sign_transaction({**fields, "maxFeePerGas": 0, "maxPriorityFeePerGas": 0})
            client = network.client(node, "application")
            raw = "0x" + signed.raw_transaction.hex()
            found = await rpc(client, "eth_sendRawTransactionSync", raw)
            assert found["result"]["status"] == "0x1", found
            nonce += 1

        async def serves(node: Any, method: str) -> Any:
            async def answer() -> Any:
                return (await rpc(network.client(node, "application"), method)).get("result")

            return await until(answer)

        try:
            nodes = [await network.start(**OPTIONS) for _ in range(2)]
            await network.voters(nodes[0], 2)
            before = await rpc(network.client(nodes[0], "application"), "eth_chainId")
            assert before["error"]["code"] == -32601, "nobody has the method"
            governance = network.governance(nodes[0])
            for wrong, code in (
                (adapter("nonsense", {}), "gov.bad_adapter"),
                (adapter("ethereum", {"chain_id": "x"}), "gov.bad_adapter"),
                (adapter("kv", {}), "gov.bad_adapter"),
            ):
                with pytest.raises(Exception) as refused:
                    await governance.propose(network.members[0], {"actions": [wrong]})
                assert getattr(refused.value, "code", "") == code
            await network.accepted(nodes, adapter("ethereum", ethereum))
            for node in nodes:
                assert await serves(node, "eth_chainId") == hex(2017)
            for _ in range(3):
                await pay(nodes[0])
                await pay(nodes[1])
            await network.accepted(nodes, adapter("sawtooth", {}))

            async def has_sawtooth() -> bool:
                found = await asyncio.gather(*(network.ask(node, "/node/info") for node in nodes))
                return all("sawtooth" in one["adapters"] for one in found)

            await until(has_sawtooth)
            # What the first protocol had is still there.
            kv = network.client(nodes[1], "application")
            assert (await kv.request("PUT", "/kv/colour", b"blue")).status == 201
            # One joins, and has it from a snapshot or from the entries.
            nodes.append(await network.start(**OPTIONS))
            await network.voters(nodes[0], 3)
            os.kill(nodes[0].enclave_pid, signal.SIGKILL)
            await asyncio.wait_for(nodes[0].ended, 10)
            await network.voters(nodes[1], 3)
            assert await serves(nodes[2], "eth_blockNumber") == hex(6)
            await pay(nodes[2])
            late = await network.start(**OPTIONS)
            assert await serves(late, "eth_blockNumber") == hex(7)
        finally:
            await network.stop()

    run(story())


def test_a_recovered_service_has_what_was_voted_in(tmp_path):
    async def story() -> None:
        network = TestNetwork(tmp_path / "network")
        network.genesis["constitution"] = constitutions.text("sandbox")
        ethereum = network.genesis["adapters"].pop("ethereum")
        network.genesis["adapters"] = {"kv": {}}
        folder = network.files.directory / "members"
        alice = Signer.load(folder / "alice.pem", folder / "alice.key.pem")
        async with running(network):
            admin = network.client(listener="administration")
            done = await Governance(admin).propose(alice, {"actions": [adapter("ethereum", ethereum)]})
            assert done["proposalState"] == "Accepted"
            client = network.client()
            await until(lambda: result(client, "eth_chainId"))
            fields = {"nonce": 0, "to": SENDER, "value": 1, "gas": 21_000, "chainId": 2017}
            signed = Account.from_key(KEY).sign_transaction({**fields, "maxFeePerGas": 0, "maxPriorityFeePerGas": 0})
            assert (await result(client, "eth_sendRawTransactionSync", "0x" + signed.raw_transaction.hex()))[
                "status"
            ] == "0x1"
        network.clients.clear()
        async with running(network):
            await network.recover()
            client = network.client()
            identity = "0x" + signed.hash.hex()
            found = await until(lambda: result(client, "eth_getTransactionReceipt", identity))
            assert found["status"] == "0x1"
            assert (await client.request("PUT", "/kv/colour", b"blue")).status == 201

    run(story())


async def result(client: Any, method: str, *params: Any) -> Any:
    return (await rpc(client, method, *params)).get("result")


class Fake:
    """As much of an adapter as is needed to come and go."""

    def __init__(self, settings: Any) -> None:
        self.settings = settings

    def manifest(self) -> Any:
        return SimpleNamespace(name="fake", tables=(), routes=(), mount="/", keys=())

    def pool_policy(self) -> Any:
        return PoolPolicy()

    def start(self, services: Any) -> None:
        pass


def test_what_is_rolled_back_is_forgotten_and_what_did_not_begin_is_fresh():
    sequencer: Any = SimpleNamespace(runtimes=[], subscribers=Subscribers())
    nothing: Any = lambda *given: None  # noqa: E731
    protocols: Any = AdapterRegistry({"fake": Fake}, sequencer, nothing, nothing)  # type: ignore[dict-item]

    def row(status: str, genesis: Any) -> Any:
        return [(b"fake", tables.row({"status": status, "genesis": genesis}))]

    protocols.adopt(5, row("Accepted", {"a": 1}))
    assert protocols.served == [] and protocols.newly_served(9) == []
    protocols.adopt(7, row("Running", {"a": 1}))
    first = protocols.by_name["fake"]
    protocols.rolled_back(6)  # it has not begun: as fresh as it was
    assert protocols.by_name["fake"] is not first and protocols.newly_served(9) == []
    protocols.adopt(7, row("Running", {"a": 1}))
    protocols.rolled_back(7)
    assert [one.adapter for one in protocols.newly_served(7)] == [protocols.by_name["fake"]]
    protocols.rolled_back(4)
    assert protocols.by_name == {} and sequencer.runtimes == []
    protocols.adopt(5, row("Accepted", {"a": 2}))
    assert protocols.by_name["fake"].settings == {"a": 2}, "another vote may say something else"
