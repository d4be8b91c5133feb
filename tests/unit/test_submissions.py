"""Submissions between the front end and the pool: gathered, checked in parts, and put into the pool as they came."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from coco.enclave.adapters.base import Caller, CallerKind, Envelope
from coco.enclave.frontend.service import Submissions
from coco.errors import CocoError, RequestError

PARTICIPANT = Caller(CallerKind.PARTICIPANT, "aa")


class Adapter:
    """Checks parts of a submission, the earlier the slower; refuses ``no`` and breaks at ``break``."""

    def __init__(self) -> None:
        self.parts: list[int] = []

    async def admit(self, raw: list[bytes], caller: Caller) -> list[Envelope | CocoError]:
        self.parts.append(len(raw))
        await asyncio.sleep(0.05 / len(self.parts))
        assert b"break" not in raw
        refusal = RequestError("no", code="test.no")
        return [refusal if one == b"no" else Envelope(one, None, 1) for one in raw]


def submit(*raw: bytes, caller: Caller = PARTICIPANT) -> tuple[list[bytes], dict[bytes, Any], Adapter]:
    """What reached the pool, in order; every answer; the adapter."""
    pooled: list[bytes] = []
    answers: dict[bytes, Any] = {}

    def accept(runtime: Any, envelopes: list[Envelope]) -> list[None]:
        pooled.extend(envelope.id for envelope in envelopes)
        return [None] * len(envelopes)

    async def run() -> Adapter:
        adapter = Adapter()
        submissions = Submissions(SimpleNamespace(accept=accept))
        runtime: Any = SimpleNamespace(adapter=adapter)
        for one in raw:
            submissions.add(runtime, one, caller, lambda answer, one=one: answers.__setitem__(one, answer))
        async with asyncio.timeout(10):
            while len(answers) < len(raw):
                await asyncio.sleep(0.001)
        await asyncio.sleep(0)
        assert not submissions._checks and not submissions._waiting and not submissions._count
        return adapter

    adapter = asyncio.run(run())
    return pooled, answers, adapter


def test_parts_enter_the_pool_in_the_order_in_which_they_came():
    raw = [b"%d" % number for number in range(50)]
    pooled, answers, adapter = submit(*raw)
    assert pooled == raw
    assert adapter.parts == [12, 12, 12, 12, 2]
    assert all(answers[one].id == one for one in raw)


def test_few_are_checked_in_one_call():
    _, _, adapter = submit(b"a", b"b", b"c")
    assert adapter.parts == [3]


def test_a_refusal_is_its_own():
    pooled, answers, _ = submit(b"a", b"no", b"b")
    assert pooled == [b"a", b"b"]
    assert answers[b"no"].code == "test.no"


def test_a_failing_check_refuses_its_part_and_no_other():
    raw = [b"%d" % number for number in range(15)]
    pooled, answers, _ = submit(b"break", *raw)
    assert pooled == raw[7:]
    assert {answers[one].code for one in (b"break", *raw[:7])} == {"adapter.failed"}


def test_only_participants_submit():
    pooled, answers, _ = submit(b"a", caller=Caller(CallerKind.MEMBER, "bb"))
    assert pooled == [] and answers[b"a"].code == "access.not_a_participant"
