"""Coverage-guided fuzzing of what reads outside bytes in Python: channel frames and messages, JSON-RPC, WebSocket.

    python tests/fuzz/readers.py [-max_total_time=60] [CORPUS]

Run by ``make fuzz``; the readers in Rust have ``rust/fuzz``. A reader may refuse with a code; anything else is found.
"""

from __future__ import annotations

import asyncio
import sys

import atheris

with atheris.instrument_imports(include=["coco", "wsproto"]):
    from coco.channel import messages
    from coco.enclave.adapters.base import Caller, CallerKind
    from coco.enclave.adapters.ethereum.adapter import adapter
    from coco.enclave.core.control import Control
    from coco.enclave.frontend.jsonrpc import JsonRpc
    from coco.enclave.frontend.service import Service
    from coco.enclave.frontend.websocket import accept_websocket
    from coco.enclave.pool import Pool
    from coco.enclave.sequencer import AdapterRuntime

from coco import limits
from coco.channel.framing import FrameWriter
from coco.enclave.store import Store
from coco.errors import CocoError

_LOOP = asyncio.new_event_loop()
_HANDSHAKE = [(b"host", b"x"), (b"upgrade", b"websocket"), (b"connection", b"upgrade")]
_HANDSHAKE += [(b"sec-websocket-version", b"13"), (b"sec-websocket-key", b"dGhlIHNhbXBsZSBub25jZQ==")]


class _Journal:
    last_seqno = 0


class _Replica:
    committed = 0


class _Sequencer:
    """The parts of a sequencer that JSON-RPC touches, over an empty chain."""

    def __init__(self) -> None:
        chain = adapter({"chain_id": 1})
        self.store, self.replica = Store(_Journal()), _Replica()  # type: ignore[arg-type]
        for table in chain.manifest().tables:
            self.store.declare(table.name, log=table.log)
        self.runtimes = [AdapterRuntime(chain, Pool(chain.pool_policy()))]

    def accept(self, runtime, envelopes):
        return runtime.pool.add(envelopes, self.store.view(), 1)


_SERVICE = Service(_Sequencer())  # type: ignore[arg-type]
_CALLER = Caller(kind=CallerKind.PARTICIPANT, actor="aa" * 32, any_account=True)


def _channel(data: bytes) -> None:
    async def story() -> None:
        ended: list = []
        control = Control(ended.append)
        framed = data[0] % 2 if data else 0
        control.data_received(FrameWriter().frame(data[1:]) if framed else data[1:])
        for error in ended:
            assert error is None or error.code.startswith("channel."), error

    _LOOP.run_until_complete(story())


def _to_host(data: bytes) -> None:
    try:
        messages.decode_to_host(data)
    except CocoError as error:
        assert error.code.startswith("channel."), error


def _json_rpc(data: bytes) -> None:
    replies: list[bytes] = []
    failures: list[BaseException] = []

    async def story() -> None:
        JsonRpc(_SERVICE, failures.append).handle(data, _CALLER, replies.append)
        for _ in range(5):
            await asyncio.sleep(0)

    _LOOP.run_until_complete(story())
    for task in asyncio.all_tasks(_LOOP):
        task.cancel()  # a query went to another thread: whatever it says, it was parsed
    assert len(replies) <= 1


def _websocket(data: bytes) -> None:
    out: list[bytes] = []

    async def story() -> None:
        session = accept_websocket(b"/", _HANDSHAKE, out.append, lambda: None, asyncio.Event())
        assert session is not None
        for at in range(0, len(data), 7):
            session.feed(data[at : at + 7])
        assert session._size <= limits.BODY_BYTES_MAX

    _LOOP.run_until_complete(story())


_TARGETS = (_channel, _to_host, _json_rpc, _websocket)


def one(data: bytes) -> None:
    if data:
        _TARGETS[data[0] % len(_TARGETS)](data[1:])


if __name__ == "__main__":
    atheris.Setup(sys.argv, one)
    atheris.Fuzz()
