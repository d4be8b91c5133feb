"""H5: a host that lies about the time neither moves the network's clock far nor goes on leading it."""

from __future__ import annotations

import asyncio
import time

from network import Several, run

BOUND_MS = 3_000


def test_H5_a_primary_whose_host_is_ten_years_ahead_hands_over(tmp_path):
    ahead_ms = [0]
    now = lambda: time.time_ns() // 1_000_000  # noqa: E731

    async def story() -> None:
        network = Several(tmp_path / "network", settings={"time_bound_ms": BOUND_MS})
        try:
            first = await network.start(clock_ms=lambda: now() + ahead_ms[0])
            others = [await network.start(), await network.start()]
            liar = (await network.ask(first, "/node/info"))["node_id"]
            assert (await network.voters(others[0], 3))[liar]["primary"]
            # The others' times have been heard by now, a few times.
            await asyncio.sleep(3)
            ahead_ms[0] = 10 * 365 * 86_400_000
            async with asyncio.timeout(40):
                while (await network.voters(others[0], 3))[liar]["primary"]:
                    await asyncio.sleep(0.2)
            for node in network.nodes:
                info = await network.ask(node, "/node/info")
                assert abs(info["time_ms"] - now()) < BOUND_MS + 4_000
            assert any(line["event"] == "clock.ahead_of_the_median" for line in network.log)
            # Ten years behind changes nothing but itself: time never goes back.
            ahead_ms[0] = -10 * 365 * 86_400_000
            before = (await network.ask(first, "/node/info"))["time_ms"]
            await asyncio.sleep(2)
            assert (await network.ask(first, "/node/info"))["time_ms"] >= before
        finally:
            await network.stop()

    run(story())
