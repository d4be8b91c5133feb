"""H5: a host that lies about the time neither moves the network's clock far nor goes on leading it."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

from coco.cli.sandbox import SandboxFiles, make_genesis, make_owner
from coco.client.http import HttpsClient
from coco.client.verify import service_context
from coco.host.node import Node, NodeOptions

BOUND_MS = 3_000


def test_H5_a_primary_whose_host_is_ten_years_ahead_hands_over(tmp_path):
    files = SandboxFiles(tmp_path)
    tmp_path.mkdir(exist_ok=True)
    genesis = make_genesis(files, fees="free", fork="osaka", chain_id=1)
    genesis["settings"] = {"time_bound_ms": BOUND_MS}
    files.genesis.write_text(json.dumps(genesis))
    ahead_ms = [0]
    logged: list[dict[str, Any]] = []

    async def story() -> None:
        now = lambda: time.time_ns() // 1_000_000  # noqa: E731
        nodes = [
            Node(
                NodeOptions(ledger=files.ledger(0), genesis=genesis, clock_ms=lambda: now() + ahead_ms[0]),
                logged.append,
            )
        ]
        service = (await nodes[0].start()).service.decode()
        peer = f"127.0.0.1:{nodes[0].relays['peers'].port}"
        try:
            for number in (1, 2):
                options = NodeOptions(
                    ledger=files.ledger(number),
                    join=[peer],
                    owner=make_owner(files, service),
                    expected_service=service.encode(),
                )
                nodes.append(Node(options, logged.append))
                await nodes[-1].start()
            clients = [
                HttpsClient("localhost", node.relays["administration"].port, service_context(service)) for node in nodes
            ]

            async def ask(number: int, path: str) -> Any:
                return (await clients[number].request("GET", path)).json()

            async def until(check: Any) -> None:
                async with asyncio.timeout(40):
                    while not await check():
                        await asyncio.sleep(0.2)

            liar = (await ask(0, "/node/info"))["node_id"]

            async def all_vote() -> bool:
                return sum(row["votes"] for row in (await ask(1, "/node/network"))["nodes"].values()) == 3

            async def another_leads() -> bool:
                rows = (await ask(1, "/node/network"))["nodes"]
                return any(row["primary"] for row in rows.values()) and not rows[liar]["primary"]

            await until(all_vote)
            assert (await ask(1, "/node/network"))["nodes"][liar]["primary"]
            # The others' times have been heard by now, a few times.
            await asyncio.sleep(3)
            ahead_ms[0] = 10 * 365 * 86_400_000
            await until(another_leads)
            for number in range(3):
                info = await ask(number, "/node/info")
                assert abs(info["time_ms"] - now()) < BOUND_MS + 4_000, number
            assert any(line["event"] == "clock.ahead_of_the_median" for line in logged)
            # Ten years behind changes nothing but itself: time never goes back.
            ahead_ms[0] = -10 * 365 * 86_400_000
            before = (await ask(0, "/node/info"))["time_ms"]
            await asyncio.sleep(2)
            assert (await ask(0, "/node/info"))["time_ms"] >= before
            for client in clients:
                await client.close()
        finally:
            for node in reversed(nodes):
                await node.stop()

    asyncio.run(asyncio.wait_for(story(), 120))
