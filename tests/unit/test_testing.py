"""The network in one process, as whoever writes a ledger protocol or an application tests with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from eth_account import Account

import kv_ledger
from coco.testing import Network

PAYER = Account.from_key("0xac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80")
OWNER = {"alice": {"accounts": [PAYER.address]}, "bob": {}}
SHOP = "0x" + "98" * 20


def payment(nonce: int) -> str:
    fields = {"chainId": 2017, "gas": 21_000, "to": bytes.fromhex(SHOP[2:]), "value": 7, "nonce": nonce}
    made = PAYER.sign_transaction({**fields, "maxFeePerGas": 0, "maxPriorityFeePerGas": 0})
    return "0x" + made.raw_transaction.hex()


def test_a_key_has_one_owner(coco_network):
    network = coco_network(adapters={"kv": kv_ledger.adapter})
    alice, bob = network.participant("alice"), network.participant("bob")
    with alice.events("/kv-stream") as events:
        assert alice.request("PUT", "/kv/colour", b"blue").status == 201
        assert bob.request("GET", "/kv/colour").error == "kv.not_found"
        assert bob.request("PUT", "/kv/colour", b"red").error == "node.dropped"
        assert network.participant("auditor").request("GET", "/kv/colour").status == 200
        assert network.anonymous().request("PUT", "/kv/x", b"1").error == "access.not_a_participant"
        assert next(events)["key"] == "colour"


def test_an_application_on_ethereum(coco_network):
    network = coco_network(participants={"payer": {"accounts": [PAYER.address]}, "other": {}})
    payer, other = network.participant("payer"), network.participant("other")
    assert payer.rpc("eth_sendRawTransactionSync", payment(0))["status"] == "0x1"
    assert payer.rpc("eth_getTransactionCount", PAYER.address, "latest") == "0x1"
    assert other.rpc("eth_getTransactionCount", PAYER.address, "latest") == "0x0", "it is none of theirs"
    with other.events("/") as events:
        events.send({"jsonrpc": "2.0", "id": 1, "method": "eth_subscribe", "params": ["newHeads"]})
        name = next(events)["result"]
        assert payer.rpc("eth_sendRawTransactionSync", payment(1))["status"] == "0x1"
        told = next(events)["params"]
        assert (told["subscription"], told["result"]["number"]) == (name, "0x2")
    with pytest.raises(AssertionError, match="nonce too low"):
        payer.rpc("eth_sendRawTransaction", payment(0))


def test_backups_follow_and_lead_when_the_primary_is_lost(coco_network):
    network = coco_network(adapters={"kv": kv_ledger.adapter}, nodes=3, participants=OWNER)
    alice = network.participant("alice")
    assert (network.nodes, network.primary) == ([1, 2, 3], 1)
    assert alice.request("PUT", "/kv/colour", b"blue", node=2).status == 201, "a backup forwards it"
    network.settle()
    for node in network.nodes:
        assert bytes.fromhex(alice.request("GET", "/kv/colour", node=node).json()["value"]) == b"blue"
    network.lose()
    assert network.nodes == [2, 3] and network.primary in (2, 3)
    assert alice.request("PUT", "/kv/colour", b"red").status == 201
    both = {"adapter": "kv", "route": "kv.put", "params": {"key": "order"}, "body": "paid"}
    done = alice.request("POST", "/coco/composite", {"parts": [{"adapter": "ethereum", "raw": payment(0)}, both]})
    assert done.status == 200, done.body
    network.settle()
    heads = {str(network.node(node).parts.store.view().get("ethereum.head", bytes(8))) for node in network.nodes}
    assert len(heads) == 1


def test_what_an_adapter_breaks_shows_in_the_log_and_nowhere_else(coco_network):
    class Broken(kv_ledger.KeyValueLedger):
        async def open(self, tx, block):
            raise RuntimeError("a bug")

    network = coco_network(adapters={"kv": Broken}, participants=OWNER)
    alice = network.participant("alice")
    assert alice.request("PUT", "/kv/colour", b"blue").error == "node.dropped"
    (line,) = [line for line in network.log if line[0] == "sequencer.envelope_dropped"]
    assert line[2]["kind"] == "RuntimeError" and line[2]["module"] == __name__
    assert alice.rpc("eth_sendRawTransactionSync", payment(0))["status"] == "0x1", "the others go on"


def test_networks_of_one_process_know_nothing_of_one_another():
    with Network(adapters={"kv": kv_ledger.adapter}) as one, Network(adapters={"kv": kv_ledger.adapter}) as other:
        assert one.participant("alice").request("PUT", "/kv/colour", b"blue").status == 201
        assert other.participant("alice").request("GET", "/kv/colour").status == 404


def test_what_the_page_for_newcomers_shows_is_true(coco_network):
    page = (Path(__file__).parents[2] / "docs/adapters.md").read_text()
    (code,) = [block.partition("```")[0] for block in page.split("```python\n")[1:]]
    names: dict[str, Any] = {}
    exec(compile(code, "docs/adapters.md", "exec"), names)
    names["test_a_key_has_one_owner"](coco_network)
    lines = len((Path(kv_ledger.__file__)).read_text().splitlines())
    assert lines < 150, "the page says so"
