"""Nodes of the version before (commit fa5f8b7) and of this one understand each other while one replaces the other."""

from __future__ import annotations

import asyncio
import importlib
import json
import pkgutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec

import coco
from coco.cli.keys import make_actor
from coco.configuration.nodes import JoinRequest
from coco.enclave.network.joining import Joiner
from coco.enclave.network.membership import JOIN, Waiting
from coco.enclave.transport.links import MALFORMED, Answer, Frames, Hello, frame
from coco.errors import BusyError
from membership import SERVICE, JoinerSide, Primary

#: Names of the fields of every message between its nodes, in order.
FORMER = json.loads((Path(__file__).parent.parent / "vectors/ledgers/fa5f8b7/messages.json").read_text())
#: What came since, and is left out for whoever does not read it.
SINCE = {"Answer": ["numbers"], "JoinRequest": ["time_ms"]}
REQUEST = JoinRequest({"platform": "virtual"}, "key", b"c", b"n", "10.0.0.1:1", ["a"], b"signed", b"r", 7)


class FormerAnswer(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="answer"):
    """As it was."""

    number: int
    code: str
    body: bytes


class FormerRequest(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """As it was."""

    evidence: dict[str, str]
    encryption_key: str
    configuration: bytes
    nonce: bytes
    address: str
    host_names: list[str]
    owner_statement: bytes
    constitution: bytes = b""


def test_messages_between_nodes_have_the_fields_that_they_had():
    kinds: dict[str, list[list[str]]] = {}
    for module in pkgutil.walk_packages(coco.__path__, "coco."):
        if module.name.startswith(("coco.enclave.", "coco.configuration.")) and not module.name.endswith(".boot"):
            for name, one in vars(importlib.import_module(module.name)).items():
                if isinstance(one, type) and issubclass(one, msgspec.Struct):
                    kinds.setdefault(name, []).append([field.name for field in msgspec.structs.fields(one)])
    for name, fields in FORMER.items():
        assert fields + SINCE.get(name, []) in kinds.get(name, []), name


def test_an_answer_without_numbers_is_what_a_former_node_reads():
    for code, body in (("", b"fine"), ("pool.full", b"the node is full")):
        sent = frame(Answer(4, code, body))
        read = msgspec.msgpack.decode(sent[4:], type=FormerAnswer)
        assert (read.number, read.code, read.body) == (4, code, body)
        assert Frames().feed(sent) == [Answer(4, code, body)]
    numbered = Answer(4, "join.clock_ahead", b"late", {"seconds": 9})
    assert Frames().feed(frame(numbered)) == [numbered]
    former = msgspec.msgpack.encode(FormerAnswer(1, "a", b"b"))
    assert Frames().feed(len(former).to_bytes(4, "big") + former) == [Answer(1, "a", b"b")]
    assert Frames().feed(frame(Hello("s", 1))) == [Hello("s", 1)]


def test_a_request_without_a_time_is_what_a_former_node_reads():
    without = msgspec.structs.replace(REQUEST, time_ms=0)
    read = msgspec.msgpack.decode(without.encode(), type=FormerRequest)
    assert msgspec.structs.astuple(read) == msgspec.structs.astuple(REQUEST)[:-1]
    assert msgspec.msgpack.decode(REQUEST.encode(), type=JoinRequest) == REQUEST
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(read), type=JoinRequest) == without


def test_who_asks_a_former_node_to_join_asks_again_as_that_reads_it(tmp_path):
    asked: list[bytes] = []
    log: list[str] = []
    certificate = make_actor(tmp_path, "operator")

    class Former:
        """A link to a primary that reads what the former version read, and answers as it did."""

        async def ask(self, kind: str, body: bytes, *, timeout_s: float) -> bytes:
            asked.append(body)
            try:
                msgspec.msgpack.decode(body, type=FormerRequest)
            except msgspec.DecodeError as error:
                raise BusyError("a peer's message is malformed", code=MALFORMED) from error
            answer = Primary(certificate).membership._answer(Waiting("pending"))
            return FormerAnswer(1, "", answer).body

        def close(self) -> None:
            pass

    async def story() -> None:
        async def opened(address: str, *, timeout_s: float) -> Former:
            return Former()

        joiner = Joiner.__new__(Joiner)
        control: Any = SimpleNamespace(log=lambda code, *more: log.append(code))
        links: Any = SimpleNamespace(open=opened)
        joiner._control, joiner._links, joiner._earlier = control, links, set()
        joiner._service = SERVICE.key.public_key()
        assert await joiner._ask("10.0.0.1:1", REQUEST) is None
        assert await joiner._ask("10.0.0.1:1", REQUEST) == Waiting("pending")
        assert [len(msgspec.msgpack.decode(body)) for body in asked] == [9, 8] and log == ["join.earlier_version"]

    asyncio.run(story())


def test_a_former_nodes_request_is_answered_though_it_says_no_time(tmp_path):
    primary, joiner = Primary(make_actor(tmp_path, "operator")), JoinerSide(None)
    former = FormerRequest(*msgspec.structs.astuple(joiner.request)[:-1])

    async def story() -> None:
        await primary.membership.serve(joiner.certificate, JOIN, msgspec.msgpack.encode(former))
        assert [row.status for row in primary.joiners()] == ["Pending"]

    asyncio.run(story())
