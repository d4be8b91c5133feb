"""G3: a transaction that ends whoever executes it does not take the network with it; memory that is not there ends a call
and no node.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random

from eth_account import Account

from coco.errors import CocoError
from network import ADAPTERS, ROOT, Several, run

OPTIONS = {"adapters": {"kv": "bomb:adapter"}, "extra_path": [str(ROOT / "examples"), str(ROOT / "tests/adapters")]}
NODES = 5


async def put_everywhere(network, name):
    """Every node that lives has a change committed."""
    for number, node in enumerate(network.nodes):
        if node.ended.done():
            continue
        client = network.client(node, "application")
        async with asyncio.timeout(30):
            while True:
                with contextlib.suppress(CocoError, OSError):
                    if (await client.request("PUT", f"/kv/{name}-{number}", b"good")).status == 201:
                        break
                await asyncio.sleep(0.1)
        await client.close()


def test_G3_what_ends_its_primaries_is_not_executed_where_that_would_lose_the_majority(tmp_path):
    async def story() -> None:
        network = Several(tmp_path / "network", adapters={"kv": {}})
        try:
            for _ in range(NODES):
                await network.start(**OPTIONS)
            await network.voters(network.nodes[0], NODES)
            receiver = network.nodes[-1]
            client = network.client(receiver, "application")
            await client.request("PUT", "/kv/before", b"good")
            bomb = asyncio.ensure_future(client.request("PUT", "/kv/bomb", b"bomb"))

            def alive() -> int:
                return sum(not node.ended.done() for node in network.nodes)

            # It ends the primary, and mostly the next one too (unless its receiver gave up, or was that one itself);
            # whoever is third leaves it alone, for a third would be the majority.
            async with asyncio.timeout(60):
                while alive() > NODES - 2 and not (bomb.done() and alive() < NODES):
                    await asyncio.sleep(0.05)
            # The third has the bomb to choose from and chooses what follows, from every node, again and again.
            for turn in range(3):
                await put_everywhere(network, f"after-{turn}")
            assert alive() >= 3, "two have ended at most"
            bomb.cancel()
            with contextlib.suppress(asyncio.CancelledError, CocoError):
                await bomb
        finally:
            await network.stop()

    run(story())


def test_G3_in_a_network_of_three_what_ended_one_primary_waits_until_the_next_may_end(tmp_path):
    async def story() -> None:
        network = Several(tmp_path / "network", adapters={"kv": {}})
        alive = lambda: [node for node in network.nodes if not node.ended.done()]  # noqa: E731
        try:
            for _ in range(3):
                await network.start(**OPTIONS)
            await network.voters(network.nodes[0], 3)
            client = network.client(network.nodes[2], "application")
            await client.request("PUT", "/kv/before", b"good")
            bomb = asyncio.ensure_future(client.request("PUT", "/kv/bomb", b"bomb"))
            async with asyncio.timeout(20):
                while len(alive()) == 3:
                    await asyncio.sleep(0.05)
            # Whoever executed the bomb now would take the majority with it; others do not wait for that.
            await put_everywhere(network, "meanwhile")
            assert len(alive()) == 2
            # Another node takes the place of the dead one, within limits.SUSPECT_SECONDS_MAX as a supervisor would;
            # then the bomb may have the next primary, and no more.
            (dead,) = (node for node in network.nodes if node.ended.done())
            place = "127.0.0.1", dead.relays["peers"].port
            await dead.stop()
            await network.start(**OPTIONS, peers=place)
            async with asyncio.timeout(40):
                while len(alive()) == 3:
                    await asyncio.sleep(0.05)
            await put_everywhere(network, "after")
            assert len(alive()) == 2
            bomb.cancel()
            with contextlib.suppress(asyncio.CancelledError, CocoError):
                await bomb
        finally:
            await network.stop()

    run(story())


async def call(client, method, *params):
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode()
    answer = json.loads((await client.request("POST", "/", body)).body)
    return answer.get("result"), answer.get("error")


async def pay(network, node, account, until):
    """Payments of one account, one after another; how many have a receipt."""
    client, nonce = network.client(node, "application"), 0
    fields = {"to": "0x" + "46" * 20, "value": 0, "gas": 21_000, "chainId": 2017}
    while not until.is_set():
        fees = {"maxFeePerGas": 0, "maxPriorityFeePerGas": 0}
        raw = account.sign_transaction({**fields, **fees, "nonce": nonce}).raw_transaction
        with contextlib.suppress(CocoError, OSError):
            receipt, error = await call(client, "eth_sendRawTransactionSync", "0x" + raw.hex())
            if receipt:
                nonce += 1
            elif "nonce too low" in error["message"]:
                nonce += 1  # its answer was lost, it was not
            else:
                assert error["data"]["code"], error
            await call(client, "eth_call", {"to": "0x" + "46" * 20}, "latest")
    return nonce


def test_G3_memory_that_is_not_there_ends_calls_and_no_node(tmp_path):
    async def story() -> None:
        adapters = {**ADAPTERS, "kv": "exhaustion:adapter"}
        chain = {"chain_id": 2017, "fork": "osaka", "fees": {"policy": "free"}}
        network = Several(tmp_path / "network", adapters={"kv": {}, "ethereum": chain})
        chance, over = random.Random(7), asyncio.Event()
        try:
            for _ in range(3):
                await network.start(adapters=adapters, extra_path=OPTIONS["extra_path"])
            await network.voters(network.nodes[0], 3)
            accounts = [Account.from_key(f"0x{number + 1:064x}") for number in range(3)]
            payers = [
                asyncio.ensure_future(pay(network, node, account, over))
                for node, account in zip(network.nodes, accounts, strict=True)
            ]
            refused = 0
            for turn in range(120):
                client = network.client(network.nodes[turn % 3], "application")
                value = b"exhaust %d" % int(10 ** chance.uniform(0, 3.5))
                with contextlib.suppress(CocoError, OSError):
                    answer = await client.request("PUT", f"/kv/key{turn}", value)
                    refused += answer.status != 201
                await client.close()
                assert not any(node.ended.done() for node in network.nodes), network.log[-3:]
            for node in network.nodes:
                calm = network.client(node, "application")
                with contextlib.suppress(CocoError):
                    await calm.request("PUT", "/kv/calm", b"exhaust 0")
            over.set()
            paid = await asyncio.gather(*payers)
            assert refused > 5 and min(paid) > 5, (refused, paid)
            for node in network.nodes:
                client = network.client(node, "application")
                for account, nonce in zip(accounts, paid, strict=True):
                    known, _ = await call(client, "eth_getTransactionCount", account.address, "latest")
                    assert int(known, 16) >= nonce, "what had a receipt is there"
            assert len(await network.voters(network.nodes[0], 3)) == 3
        finally:
            over.set()
            await network.stop()

    run(story())
