"""Mistakes of an operator in a hurry: what one wrong command, flag or clock does to a network."""

from __future__ import annotations

import contextlib
import sqlite3
import ssl
import time
from typing import Any

import pytest
from attacks import attack
from cryptography import x509

from coco.cli.sandbox import make_owner
from coco.enclave.core.clock import Agreement, Clock, compare_with_ledger
from coco.errors import CocoError, HostError
from coco.host.node import Node, NodeOptions
from network import ADAPTERS, ROOT, TestNetwork, run

# --- E4: one start with a wrong clock ---

DAY_MS = 86_400_000


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


class Clocked(TestNetwork):
    """A network whose first node is started under one clock after another, always on the same ledger."""

    def entries(self) -> dict[int, bytes]:
        with contextlib.closing(sqlite3.connect(self.files.ledger(0))) as disk:
            return dict(disk.execute("SELECT seqno, entry FROM entries"))

    async def start_under(self, ahead_ms: int, **options: Any) -> None:
        await self.start(clock_ms=lambda: _now_ms() + ahead_ms, **options)

    async def refused(self, ahead_ms: int) -> str:
        """The code with which a start under a clock is refused; nothing is written by it."""
        before = self.entries()
        with pytest.raises(HostError) as error:
            await self.start_under(ahead_ms)
        await self.node.stop()
        assert self.entries() == before
        assert error.value.hint and "--accept-clock" in error.value.hint
        return error.value.code

    async def stop(self) -> None:
        for client in self.clients:
            await client.close()
        self.clients.clear()
        await self.node.stop()

    def joiner(self, ahead_ms: int) -> Node:
        return Node(
            NodeOptions(
                ledger=self.files.ledger(1),
                genesis=self.genesis,
                join=[f"127.0.0.1:{self.node.relays['peers'].port}"],
                owner=make_owner(self.files, self.service),
                expected_service=self.service.encode(),
                clock_ms=lambda: _now_ms() + ahead_ms,
                adapters=ADAPTERS,
                extra_path=[str(ROOT / "examples"), str(ROOT / "tests/adapters")],
            ),
            self.log.append,
        )


@attack(
    "E4",
    was="one start of the only node three days ahead is taken; with the clock mended, certificates are not valid yet and "
    "joins end with `join.statement_expired`; ten years: participants are out for ever",
    now="`clock.ahead_of_the_ledger`, and nothing is written; `--accept-clock` takes it, and a second one, under the "
    "right clock, takes it back: certificates, joins and payments work",
)
def test_a_start_under_a_wrong_clock_is_refused_and_one_that_was_accepted_is_taken_back(tmp_path):
    async def story() -> None:
        network = Clocked(tmp_path / "network")
        try:
            await network.start_under(0)
            await network.stop()
            assert await network.refused(3 * DAY_MS) == "clock.ahead_of_the_ledger"
            assert await network.refused(3650 * DAY_MS) == "clock.ahead_of_the_ledger"
            # It may be that the ledger slept for so long; or, as here, somebody believes it.
            await network.start_under(3650 * DAY_MS, accept_clock=True)
            await network.recover()
            client = network.client("dapp")
            with pytest.raises((CocoError, ssl.SSLError)):
                await network.rpc(client, "eth_blockNumber")
            await network.stop()
            assert await network.refused(0) == "clock.behind_the_ledger"
            await network.start_under(0, accept_clock=True)
            await network.recover()
            client = network.client("dapp")
            assert int((await network.rpc(client, "eth_blockNumber"))["result"], 16) == 0
            shown = x509.load_pem_x509_certificate(network.service.encode())
            assert abs(shown.not_valid_before_utc.timestamp() - _now_ms() / 1000) < DAY_MS / 1000
            # A newcomer under either wrong clock is refused before anything is written of it; under the right one, it joins.
            for ahead_ms, code in ((3 * DAY_MS, "join.clock_ahead"), (-3 * DAY_MS, "join.clock_behind")):
                before, newcomer = len(network.entries()), network.joiner(ahead_ms)
                with pytest.raises(HostError) as refused:
                    await newcomer.start()
                await newcomer.stop()
                assert refused.value.code == code and refused.value.hint
                assert len(network.entries()) == before
            newcomer = network.joiner(0)
            try:
                assert (await newcomer.start()).status == "Open"
            finally:
                await newcomer.stop()
        finally:
            await network.stop()

    run(story())


@attack(
    "E4",
    was="a joiner takes its host's time, however far ahead, and stamps entries with it as soon as it leads",
    now="it takes the network's; a host alone moves the time as fast as it passes until most hosts have been heard",
)
def test_a_newcomer_goes_by_the_networks_time_and_not_by_its_hosts():
    agreement, clock = Agreement(10_000), Clock(1_000_000)
    assert agreement.ceiling_ms([1, 2, 3], 0.0) is None
    for second in range(1, 31):
        clock.tick(1_000_000 + 3 * DAY_MS, agreement.ceiling_alone_ms(clock.now_ms, 1.0))
        assert clock.now_ms <= 1_000_000 + second * 2_000


@pytest.mark.parametrize(
    ("ahead_s", "code"),
    [(86_400, ""), (86_402, "clock.ahead_of_the_ledger"), (-300, ""), (-302, "clock.behind_the_ledger")],
)
def test_the_bounds_are_those_that_members_set(ahead_s, code):
    end_ms = 1_800_000_000_000
    try:
        compare_with_ledger(end_ms + 1000 * ahead_s, end_ms, gap_s=86_400, skew_s=300)
        found = ""
    except CocoError as error:
        found = error.code
        assert error.numbers["seconds"] == abs(ahead_s)
    assert found == code
