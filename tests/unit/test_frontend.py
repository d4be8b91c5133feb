"""The front end without sockets: what must not pass it."""

from __future__ import annotations

import asyncio
import json

from coco.enclave.adapters.base import Caller, CallerKind
from coco.enclave.frontend.jsonrpc import JsonRpc
from coco.errors import HostLiedError, NotFoundError

CALLER = Caller(kind=CallerKind.PARTICIPANT, actor="aa" * 32)


class Service:
    """A service whose calls fail in one way."""

    def __init__(self, error):
        self.error = error

    def rpc_route(self, name):
        return None

    async def call(self, name, request, caller):
        raise self.error


def answer_of(error):
    async def story():
        failed, replies = [], []
        JsonRpc(Service(error), failed.append).handle(b'{"id":1,"method":"eth_call"}', CALLER, replies.append)
        for _ in range(3):
            await asyncio.sleep(0)
        (reply,) = replies
        return failed, json.loads(reply)["error"]

    return asyncio.run(story())


def test_a_lie_of_the_host_ends_the_enclave_and_is_no_answer():
    lie = HostLiedError("the host gave another entry", code="channel.wrong_entry")
    failed, error = answer_of(lie)
    assert failed == [lie]
    assert error["data"]["code"] == "node.internal" and "entry" not in json.dumps(error)


def test_what_nobody_expected_keeps_its_text_inside():
    failed, error = answer_of(RuntimeError("a secret"))
    assert len(failed) == 1 and error["data"]["code"] == "node.internal" and "secret" not in json.dumps(error)


def test_a_refusal_is_an_answer():
    failed, error = answer_of(NotFoundError("nothing", code="kv.not_found"))
    assert not failed and error["data"]["code"] == "kv.not_found"
