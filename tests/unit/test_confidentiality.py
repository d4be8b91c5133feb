"""The policies of an Ethereum chain, and what docs/confidentiality.md says of them: every closed cell has its tests."""

from __future__ import annotations

import ast
import asyncio
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest

from coco.enclave.adapters.contract import AdapterError

TESTS = Path(__file__).parent.parent
sys.path.insert(0, str(TESTS / "adversary"))

import test_participant as attacks  # noqa: E402
from test_participant import ABSENT, ANONYMOUS, ATTACKER, AUDITOR, MINE, SETTER, VICTIM, Hiding, signed, told  # noqa: E402

from coco.enclave.adapters.ethereum import visibility  # noqa: E402
from coco.errors import BusyError  # noqa: E402

PAGE = TESTS.parent / "docs" / "confidentiality.md"
ATTACKERS = ("stranger", "participant", "member", "host", "another operator")


# --- the page -----------------------------------------------------------------------------------------------------


def rows() -> list[list[str]]:
    table = PAGE.read_text().partition("\n## ")[0]
    lines = [line for line in table.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def named_tests() -> set[str]:
    found = set()
    for path in TESTS.rglob("test_*.py"):
        if "node_modules" not in path.parts:
            tree = ast.parse(path.read_text())
            functions = ast.FunctionDef | ast.AsyncFunctionDef
            found |= {node.name for node in ast.walk(tree) if isinstance(node, functions)}
    return found


def test_the_table_has_every_attacker_and_every_channel_once():
    head, _, *body = rows()
    assert head == ["channel", *ATTACKERS]
    assert len({row[0] for row in body}) == len(body)
    said = " ".join(row[0] for row in body)
    for channel in (
        *("answers", "errors", "gas", "sizes", "counts", "times", "order", "nonces", "blocks' fields"),
        *("governance routes", "metrics", "logs of nodes", "disks", "traffic"),
    ):
        assert channel in said, channel


def test_every_cell_names_its_tests_or_what_is_learnt():
    known, places = named_tests(), {f"as the {name}" for name in ATTACKERS}
    for row in rows()[2:]:
        assert len(row) == 1 + len(ATTACKERS), row[0]
        for attacker, cell in zip(ATTACKERS, row[1:], strict=True):
            where = f"{row[0]} / {attacker}: {cell}"
            if cell in places:
                assert cell != f"as the {attacker}", where
                continue
            assert re.match(r"(closed|open): ", cell), where
            closed, _, remains = cell.partition("open: ")
            if closed:
                tests = re.findall(r"`(\w+)`", closed)
                assert tests and not set(tests) - known, where
            if "open: " in cell:
                assert remains.strip(), where


# --- the policies -------------------------------------------------------------------------------------------------


class Transparent(Hiding):
    settings: ClassVar = {**Hiding.settings, "visibility": "transparent"}


def of(kind: type[Hiding], story):
    async def whole():
        return await story(await kind.made())

    return asyncio.run(whole())


async def gas(chain: Hiding, caller=ATTACKER, **call: str) -> int:
    return int(await chain.ask("eth_estimateGas", {"from": MINE.address, **call}, "latest", caller=caller), 16)


def store(value: int) -> str:
    return "0x" + bytes(32).hex() + value.to_bytes(32, "big").hex()


def test_under_transparent_every_participant_sees_and_the_machine_is_ethereums():
    async def story(chain):
        assert int(await chain.run(told("balance", VICTIM.address)), 16) == 993
        assert int(await chain.ask("eth_getBalance", VICTIM.address, "latest", caller=ATTACKER), 16) == 993
        assert await chain.ask("eth_getBalance", VICTIM.address, "latest", caller=ANONYMOUS) == "0x0"
        block = await chain.ask("eth_getBlockByNumber", "0x1", True, caller=ATTACKER)
        assert len(block["transactions"]) == 1 and int(block["gasUsed"], 16) == 21_000
        same, other = [await gas(chain, to=SETTER, data=store(value)) for value in (42, 43)]
        assert same < other
        to_one, to_none = [
            await gas(chain, value="0x1", data="0x" + attacks.SEND.format(to[2:].lower()))
            for to in (VICTIM.address, ABSENT)
        ]
        assert to_none - to_one == 25_000

    of(Transparent, story)


def test_an_estimate_is_enough_whoever_asks_for_it():
    async def story(chain):
        data = "0x" + attacks.SEND.format(VICTIM.address[2:].lower())
        asked = [await gas(chain, caller, value="0x1", data=data) for caller in (ATTACKER, SANDBOX)]
        assert asked[0] == asked[1], "an estimate is that of the transaction, not of who asks"
        await chain.included(signed(MINE, 0, None, data, value=1, gas=asked[0]))
        (receipt,) = await chain.ask("eth_getBlockReceipts", "latest", caller=AUDITOR)
        assert receipt["status"] == "0x1" and int(receipt["gasUsed"], 16) <= asked[0]

    of(Hiding, story)


#: Sees everything and may ask as anybody.
SANDBOX = replace(AUDITOR, any_account=True)


@pytest.mark.parametrize("opcode", ["f2", "f4", "fa"], ids=["callcode", "delegatecall", "staticcall"])
def test_every_way_to_call_costs_the_same_to_an_account_and_to_none(opcode):
    value = "5f" if opcode == "f2" else ""
    code = f"0x5f5f5f5f{value}73{{}}5a{opcode}00"

    async def story(chain):
        prices = [await gas(chain, data=code.format(to[2:].lower())) for to in (VICTIM.address, ABSENT)]
        assert prices[0] == prices[1]
        for instruction in attacks.TELLING:
            prices = [await gas(chain, data="0x" + told(instruction, to, "00")) for to in (VICTIM.address, ABSENT)]
            # An address has as many zero bytes as another has not: both of these have none.
            assert prices[0] == prices[1], instruction

    of(Hiding, story)


def test_an_auditor_sees_what_code_sees_of_everybody_at_the_prices_of_the_chain():
    async def story(chain):
        assert int(await chain.run(told("balance", VICTIM.address), AUDITOR), 16) == 993
        assert [await gas(chain, SANDBOX, to=SETTER, data=store(value)) for value in (42, 43)] == [
            await gas(chain, to=SETTER, data=store(value)) for value in (42, 43)
        ]

    of(Hiding, story)


@pytest.mark.parametrize("caller", [ATTACKER, ANONYMOUS])
def test_raw_storage_proofs_and_access_lists_are_auditors(caller):
    async def story(chain):
        for method, *params in (
            ("eth_getStorageAt", SETTER, "0x0", "latest"),
            ("eth_getStorageAt", ABSENT, "0x0", "latest"),
            ("eth_getProof", VICTIM.address, [], "latest"),
            ("eth_getProof", ABSENT, [], "latest"),
            ("eth_createAccessList", {"from": MINE.address, "to": SETTER}, "latest"),
        ):
            with pytest.raises(AdapterError) as refused:
                await chain.ask(method, *params, caller=caller)
            assert refused.value.code == "ethereum.not_visible", method

    of(Hiding, story)


_STATES = (
    *("pool.already_known", "pool.position_passed", "pool.lane_full", "pool.full", "pool.actor_full", "node.dropped"),
    *(f"ethereum.transaction.{code}" for code in ("nonce_too_low", "insufficient_funds", "replacement_underpriced")),
)


def test_whoever_may_not_see_a_sender_hears_of_no_state():
    sender = bytes.fromhex(VICTIM.address[2:])
    for code in _STATES:
        refusal = BusyError("told", code=code)
        assert visibility.told(refusal, sender, ATTACKER) is None, code
        for caller in (attacks.OWNER, AUDITOR, SANDBOX):
            assert visibility.told(refusal, sender, caller) is refusal
    for code in ("node.no_primary", "peers.unreachable", "access.not_a_participant"):
        refusal = BusyError("told", code=code)
        assert visibility.told(refusal, sender, ATTACKER) is refusal, "it would be refused whatever it is"
