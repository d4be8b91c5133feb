"""J4: what a joiner gets at each moment of its admission, and that secrets leave at the last one only."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from coco import limits
from coco.cli.keys import make_actor
from coco.client.operators import owner
from coco.configuration import nodes
from coco.consensus import Members
from coco.crypto.certificates import pem
from coco.enclave.network.membership import Waiting, Welcome
from coco.errors import AccessError, BusyError, CocoError
from coco.ledger import tables
from coco.ledger.transaction_id import TransactionId
from membership import ADDRESS, SERVICE, JoinerSide, Primary


@pytest.fixture(scope="module")
def operators(tmp_path_factory):
    directory = tmp_path_factory.mktemp("operator")
    certificate = make_actor(directory, "operator")
    sign = owner(
        directory / "operator.pem",
        directory / "operator.key.pem",
        network="test",
        service=pem(SERVICE.certificate),
        constitution="",
    )
    return certificate, sign


@pytest.fixture
def story(operators):
    certificate, sign = operators

    def run(tell: Callable[[Primary, JoinerSide], Awaitable[None]], *, signed: bool = True) -> None:
        async def told() -> None:
            primary = Primary(certificate)
            await tell(primary, JoinerSide(sign if signed else None))

        asyncio.run(told())

    return run


async def admitted(primary: Primary, joiner: JoinerSide) -> int:
    """Bring a joiner to the moment before its welcome; its engine id."""
    assert await joiner.ask(primary) == Waiting("admitted")
    primary.commit()
    (row,) = primary.joiners(committed=True)
    primary.members = Members((1,), (row.engine,))
    return row.engine


def test_J4_nothing_leaves_before_the_row_is_committed_and_the_joiner_is_a_learner(story):
    async def tell(primary: Primary, joiner: JoinerSide) -> None:
        assert await joiner.ask(primary) == Waiting("admitted")
        # The same joiner, again and again: one row.
        assert await joiner.ask(primary) == Waiting("admitted")
        assert len(primary.joiners()) == 1 and not primary.joiners(committed=True)
        # It is a learner already, and its row is not committed.
        (row,) = primary.joiners()
        primary.members = Members((1,), (row.engine,))
        assert await joiner.ask(primary) == Waiting("admitted")
        primary.commit()
        primary.members = Members((1,), (), (1,))
        assert await joiner.ask(primary) == Waiting("admitted")
        primary.members = Members((1,), (row.engine,))
        welcome = await joiner.ask(primary)
        assert isinstance(welcome, Welcome) and welcome.engine == row.engine and welcome.secrets
        assert TransactionId.parse(welcome.position).seqno == primary.committed

    story(tell)


def test_J4_an_old_primary_that_is_cut_off_gives_nothing(story):
    async def tell(primary: Primary, joiner: JoinerSide) -> None:
        await admitted(primary, joiner)

        async def alone() -> None:
            raise BusyError("alone", code="consensus.no_majority")

        primary.during = alone
        with pytest.raises(CocoError) as refused:
            await joiner.ask(primary)
        assert refused.value.code == "consensus.no_majority" and primary.rounds == 1
        primary.may_execute, primary.primary = False, 0
        assert await joiner.ask(primary) == Waiting("no_primary")
        primary.primary = 1
        assert await joiner.ask(primary) == Waiting("redirected", "10.0.0.9:1")
        assert primary.rounds == 1

    story(tell)


@pytest.mark.parametrize("committed", [True, False])
def test_J4_what_changes_while_the_majority_is_asked_counts(story, committed):
    async def tell(primary: Primary, joiner: JoinerSide) -> None:
        await admitted(primary, joiner)

        async def retired() -> None:
            (row,) = primary.joiners()
            document = json.loads(primary.store.view().get(tables.NODES_INFO, row.node_id.encode()) or b"")
            retired = tables.row({**document, "status": nodes.RETIRED})
            await primary.write_rows([(tables.NODES_INFO, row.node_id.encode(), retired)])
            if committed:
                primary.commit()

        primary.during = retired
        with pytest.raises(AccessError) as refused:
            await joiner.ask(primary)
        assert refused.value.code == "join.retired" and primary.rounds == 1

    story(tell)


def test_J4_code_that_is_disallowed_meanwhile_gets_nothing(story):
    async def tell(primary: Primary, joiner: JoinerSide) -> None:
        await admitted(primary, joiner)

        async def disallowed() -> None:
            primary.write((tables.NODE_MEASUREMENTS, b"m", None))

        primary.during = disallowed
        with pytest.raises(AccessError) as refused:
            await joiner.ask(primary)
        assert refused.value.code == "join.code_not_allowed"

    story(tell)


def test_a_joiner_without_an_owner_waits_for_governance_and_counts_for_nothing(story):
    async def tell(primary: Primary, joiner: JoinerSide) -> None:
        assert await joiner.ask(primary) == Waiting("pending")
        primary.commit()
        assert await joiner.ask(primary) == Waiting("pending")
        (row,) = primary.joiners(committed=True)
        assert row.status == nodes.PENDING and primary.membership.address(row.engine) is None
        changes: list[Any] = []
        primary.change_members = changes.append  # type: ignore[attr-defined]
        await primary.membership._attend()
        assert changes == [] and primary.rounds == 0

    story(tell, signed=False)


def test_a_node_whose_code_is_not_run_any_more_is_nobodys_peer(story):
    async def tell(primary: Primary, joiner: JoinerSide) -> None:
        engine = await admitted(primary, joiner)
        assert (primary.membership.address(engine), primary.membership.address(1)) == (ADDRESS, "10.0.0.9:1")
        await primary.write_rows(
            [(tables.NODE_MEASUREMENTS, b"m", None), (tables.NODE_MEASUREMENTS, b"n", nodes.ALLOWED)]
        )
        assert primary.membership.address(engine) == ADDRESS, "not before it is committed"
        primary.commit()
        assert primary.membership.address(engine) is None and primary.membership.address(1) is None

    story(tell)


def test_a_process_that_dies_again_and_again_does_not_fill_the_ledger(story, operators, monkeypatch):
    monkeypatch.setattr(limits, "ADMISSIONS_MAX", 3)

    async def tell(primary: Primary, _: JoinerSide) -> None:
        for _attempt in range(3):
            await JoinerSide(operators[1]).ask(primary)
        with pytest.raises(BusyError) as refused:
            await JoinerSide(operators[1]).ask(primary)
        assert refused.value.code == "join.too_often"
        assert len(primary.joiners()) == 3
        primary.clock.now_ms += 1000 * limits.ADMISSIONS_SECONDS
        await JoinerSide(operators[1]).ask(primary)

    story(tell)
