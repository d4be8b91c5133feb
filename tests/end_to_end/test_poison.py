"""G3: a transaction that ends whoever executes it does not take the network with it."""

from __future__ import annotations

import asyncio
import contextlib

from network import ROOT, Several, run

from coco.errors import CocoError

OPTIONS = {"adapters": {"kv": "bomb:adapter"}, "extra_path": [str(ROOT / "examples"), str(ROOT / "tests/adapters")]}
NODES = 5


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
            # It ends the primary, and mostly the next one too (unless its receiver gave up, or was that one itself);
            # whoever is third leaves it alone, for a third would be the majority.
            async with asyncio.timeout(60):
                while not any(node.ended.done() for node in network.nodes):
                    await asyncio.sleep(0.2)
            await asyncio.sleep(8)
            alive = [node for node in network.nodes if not node.ended.done()]
            assert len(alive) >= 3, "two have ended at most"
            for number, node in enumerate(alive):
                other = network.client(node, "application")
                async with asyncio.timeout(30):
                    while True:
                        with contextlib.suppress(CocoError):
                            if (await other.request("PUT", f"/kv/after{number}", b"good")).status == 201:
                                break
                        await asyncio.sleep(0.2)
            bomb.cancel()
            with contextlib.suppress(asyncio.CancelledError, CocoError):
                await bomb
        finally:
            await network.stop()

    run(story())
