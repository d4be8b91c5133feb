"""Several ledger protocols on one order: Ethereum, the example, and a fake in Sawtooth's shape."""

from __future__ import annotations

import asyncio
import json

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from eth_account import Account
from websockets.asyncio.client import connect

from conftest import verify_with_ccf
from network import ADAPTERS, TestNetwork, run, running

KEY = "0xac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80"


@pytest.fixture
def network(tmp_path):
    made = TestNetwork(tmp_path / "network")
    made.genesis["adapters"] |= {"kv": {}, "sawtooth": {}}
    made.add_participant("other")
    yield made
    verify_with_ccf(made.files.ledger(0), tmp_path / "chunks")


def batch(number, *transactions, depends_on=()):
    rows = [{"family": f, "key": k, "value": v} for f, k, v in transactions]
    identity = number.to_bytes(8, "big").hex()
    return json.dumps({"id": identity, "transactions": rows, "depends_on": list(depends_on)}).encode()


async def status(client, number):
    for _ in range(100):
        found = (await client.request("GET", f"/batch_statuses/{number.to_bytes(8, 'big').hex()}")).json()["status"]
        if found != "UNKNOWN":
            return found
        await asyncio.sleep(0.02)
    return "UNKNOWN"


def test_the_key_value_example(network):
    async def story():
        async with running(network):
            mine, other, nobody = network.client("dapp"), network.client("other"), network.client(None)
            written = await mine.request("PUT", "/kv/colour", b"blue")
            assert written.status == 201
            assert bytes.fromhex(written.json()["value"]) == b"blue"
            found = (await mine.request("GET", "/kv/colour")).json()
            assert bytes.fromhex(found["value"]) == b"blue"
            for stranger in (other, nobody):
                hidden = await stranger.request("GET", "/kv/colour")
                assert (hidden.status, json.loads(hidden.body)["error"]["code"]) == (404, "kv.not_found")
            absent = await other.request("GET", "/kv/nothing")
            assert absent.body == (await other.request("GET", "/kv/colour")).body, "absent and hidden look the same"
            refused = await other.request("PUT", "/kv/colour", b"red")
            assert json.loads(refused.body)["error"]["code"] == "node.dropped"
            anonymous = await nobody.request("PUT", "/kv/colour", b"red")
            assert json.loads(anonymous.body)["error"]["code"] == "access.not_a_participant"
            large = await mine.request("PUT", "/kv/large", bytes(100_000))
            assert json.loads(large.body)["error"]["code"] == "kv.too_large"

    run(story())


def test_the_key_value_example_streams_committed_changes(network):
    async def story():
        async with running(network):
            mine, other = network.client("dapp"), network.client("other")
            url = f"wss://localhost:{network.node.relays['application'].port}/kv-stream"
            async with connect(url, ssl=network.tls("dapp")) as stream:
                await asyncio.sleep(0.1)
                await other.request("PUT", "/kv/theirs", b"1")
                await mine.request("PUT", "/kv/mine", b"2")
                event = json.loads(await asyncio.wait_for(stream.recv(), 5))
                assert event["key"] == "mine", "another's change is not told"

    run(story())


async def doubler(body: bytes) -> bytes:
    await asyncio.sleep(0.01)
    return str(2 * int(body)).encode()


def test_batches_are_atomic_ordered_and_may_ask_outside(network):
    async def story():
        async with running(network, externals={"doubler": doubler}):
            client = network.client()
            assert (
                await client.request("POST", "/batches", batch(1, ("int", "a", 1), ("external", "b", 21)))
            ).status == 200
            assert await status(client, 1) == "COMMITTED"
            assert (await client.request("GET", "/state/b")).json()["data"] == "42"
            await client.request("POST", "/batches", batch(2, ("int", "a", 99), ("int", "c", -1)))
            await client.request(
                "POST", "/batches", batch(3, ("int", "d", 3), depends_on=[(1).to_bytes(8, "big").hex()])
            )
            await client.request(
                "POST", "/batches", batch(4, ("int", "e", 3), depends_on=[(77).to_bytes(8, "big").hex()])
            )
            assert await status(client, 3) == "COMMITTED"
            state = (await client.request("GET", "/state/a")).json()
            assert state["data"] == "1", "nothing of the invalid batch was written"
            assert state["root"] == state["derived_root"]
            assert await status(client, 4) == "UNKNOWN", "it waits for what nobody has seen"
            # G3: a handler that crashes costs its own batch, not the node and not its neighbours.
            sent = [batch(5, ("int", "f", 5)), batch(6, ("crash", "g", 6)), batch(7, ("int", "h", 7))]
            await asyncio.gather(*(client.request("POST", "/batches", one) for one in sent))
            assert [await status(client, 5), await status(client, 7)] == ["COMMITTED", "COMMITTED"]
            assert await status(client, 6) == "UNKNOWN"
            malformed = await client.request("POST", "/batches", b"{}")
            assert json.loads(malformed.body)["error"]["code"] == "sawtooth.malformed_batch"

    run(story())


def test_three_protocols_share_one_order(network):
    async def story():
        async with running(network, externals={"doubler": doubler}):
            client = network.client()
            account = Account.from_key(KEY)
            url = f"wss://localhost:{network.node.relays['application'].port}"
            async with (
                connect(url + "/subscriptions", ssl=network.tls("dapp")) as batches,
                connect(url, ssl=network.tls("dapp")) as heads,
            ):
                await heads.send(
                    json.dumps({"jsonrpc": "2.0", "id": 7, "method": "eth_subscribe", "params": ["newHeads"]})
                )
                subscription = json.loads(await heads.recv())["result"]
                for n in range(10):
                    fields = {"to": "0x" + "22" * 20, "value": 1, "gas": 21000, "nonce": n, "chainId": 2017}
                    raw = account.sign_transaction({**fields, "maxFeePerGas": 0, "maxPriorityFeePerGas": 0})
                    await network.rpc(client, "eth_sendRawTransaction", "0x" + raw.raw_transaction.hex())
                    await client.request("POST", "/batches", batch(100 + n, ("int", f"k{n}", n)))
                    await client.request("PUT", f"/kv/k{n}", str(n).encode())
                told = [json.loads(await asyncio.wait_for(batches.recv(), 5))["batch"] for _ in range(10)]
                assert told == [(100 + n).to_bytes(8, "big").hex() for n in range(10)]
                head = json.loads(await asyncio.wait_for(heads.recv(), 5))
                assert head["params"]["subscription"] == subscription
            count = await network.rpc(client, "eth_getTransactionCount", account.address, "latest")
            assert count["result"] == "0xa"

    run(story())


def test_an_identity_of_a_protocol_is_bound_by_a_proof_that_its_adapter_verifies(network):
    signer, thief = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    identity = signer.public_key().public_bytes_raw()

    async def bind(client, key, *, adapter="sawtooth", nonce="nonce12345", text=None, named=identity):
        asked = f"/coco/identities/statement?adapter={adapter}&identity={named.hex()}&nonce={nonce}"
        said = text or (await client.request("GET", asked)).json()["text"]
        proof = key.sign(said.encode()).hex()
        body = {"adapter": adapter, "identity": named.hex(), "nonce": nonce, "proof": proof}
        return await client.request("POST", "/coco/identities/bind", json.dumps(body).encode())

    async def story():
        async with running(network):
            mine, other, nobody = network.client("dapp"), network.client("other"), network.client(None)
            stolen = (
                await other.request(
                    "GET", f"/coco/identities/statement?adapter=sawtooth&identity={identity.hex()}&nonce=n"
                )
            ).json()["text"]
            for refused, code in [
                (await bind(mine, thief), "sawtooth.bad_signer"),
                (await bind(mine, signer, text=stolen), "sawtooth.bad_signer"),
                (await bind(mine, signer, text="anything"), "sawtooth.bad_signer"),
                (await bind(mine, signer, adapter="kv", text="any"), "adapter.no_identities"),
                (await bind(mine, signer, adapter="nobody", text="any"), "adapter.unknown"),
                (await bind(mine, signer, named=b"", text="any"), "sawtooth.bad_signer"),
                (await bind(mine, signer, nonce="short"), "account.malformed"),
                (await bind(nobody, signer, text="any"), "access.not_a_participant"),
            ]:
                assert json.loads(refused.body)["error"]["code"] == code
            assert (await mine.request("GET", "/coco/caller")).json()["identities"] == {}
            bound = await bind(mine, signer)
            assert bound.status == 200, bound.body
            assert (await mine.request("GET", "/coco/caller")).json()["identities"] == {
                "sawtooth": ["0x" + identity.hex()]
            }
            # It is one of that protocol alone, and of nobody else.
            assert (await mine.request("GET", "/coco/caller")).json()["accounts"] == []
            assert (await other.request("GET", "/coco/caller")).json()["identities"] == {}

    run(story())


def test_what_became_of_a_batch_every_client_hears(network):
    async def story():
        async with running(network, externals={"doubler": doubler}):
            client = network.client()
            told = [
                (await client.request("POST", "/batches-and-wait", one)).json()
                for one in (batch(1, ("int", "a", 1)), batch(2, ("int", "a", -1)), batch(3, ("int", "b", 3)))
            ]
            assert [one["status"] for one in told] == ["COMMITTED", "INVALID", "COMMITTED"]
            assert told[1]["message"] == "negative"
            # Handed in again, it is told again; nothing runs twice.
            again = await client.request("POST", "/batches-and-wait", batch(2, ("int", "a", -1)))
            assert again.json() == told[1]
            waits = asyncio.ensure_future(
                client.request(
                    "POST", "/batches-and-wait", batch(5, ("int", "e", 1), depends_on=[(4).to_bytes(8, "big").hex()])
                )
            )
            await asyncio.sleep(0.5)
            assert not waits.done(), "what it depends on was never seen"
            sent = await network.client().request("POST", "/batches-and-wait", batch(4, ("int", "d", 1)))
            assert sent.json()["status"] == "COMMITTED"
            assert (await waits).json()["status"] == "COMMITTED"

    run(story())


def test_who_waits_outside_holds_up_nobody(network):
    goes_on: list[bool] = []

    async def slow(body: bytes) -> bytes:
        while not goes_on:
            await asyncio.sleep(0.01)
        return body

    async def story():
        async with running(network, externals={"doubler": slow}):
            client = network.client()
            waits = asyncio.ensure_future(client.request("POST", "/batches-and-wait", batch(1, ("external", "a", 1))))
            await asyncio.sleep(0.3)
            for number in range(5):
                assert (await network.client().request("PUT", f"/kv/key{number}", b"v")).status == 201
            assert not waits.done(), "writes went on meanwhile"
            goes_on.append(True)
            assert (await waits).json()["status"] == "COMMITTED"

    run(story())


def test_tables_are_brought_to_the_version_of_the_code_or_left_alone(network):
    async def story():
        async with running(network):
            assert (await network.client().request("PUT", "/kv/colour", b"blue")).status == 201
        async with running(network, adapters={**ADAPTERS, "kv": "kv_second:adapter"}):
            await network.recover()
            client = network.client()
            row = (await client.request("GET", "/kv/colour")).json()
            assert (bytes.fromhex(row["value"]), row["readers"]) == (b"blue", []) and row["migrated_ms"]
            assert (await client.request("PUT", "/kv/colour", b"red")).status == 201
        # The former code, and one that has no way, are not let near tables that they do not know; the rest goes on.
        for code in ("kv_ledger:adapter", "kv_second:third", "kv_second:broken"):
            async with running(network, adapters={**ADAPTERS, "kv": code}):
                await network.recover()
                client = network.client()
                refused = await client.request("PUT", "/kv/colour", b"green")
                assert json.loads(refused.body)["error"]["code"] == "configuration.adapter_version", code
                assert (await client.request("POST", "/batches", batch(1, ("int", "a", 1)))).status == 200
                assert any(line["event"] == "adapter.unfit" for line in network.log)
                network.log.clear()
        async with running(network, adapters={**ADAPTERS, "kv": "kv_second:adapter"}):
            await network.recover()
            row = (await network.client().request("GET", "/kv/colour")).json()
            assert (bytes.fromhex(row["value"]), "migrated_ms" in row) == (b"red", False), "once is enough"

    run(story())
