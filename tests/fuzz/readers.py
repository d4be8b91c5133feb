"""Coverage-guided fuzzing of what reads outside bytes in Python: channel frames and messages, JSON-RPC, WebSocket.

    python tests/fuzz/readers.py [-max_total_time=60] [CORPUS]

Run by ``make fuzz``; the readers in Rust have ``rust/fuzz``. A reader may refuse with a code; anything else is found.
"""

from __future__ import annotations

import asyncio
import sys
from types import SimpleNamespace
from typing import Any

import atheris

with atheris.instrument_imports(include=["coco", "wsproto"]):
    from coco.channel import messages
    from coco.enclave.adapters.contract import AdapterServices, BlockContext, Caller, CallerKind
    from coco.enclave.adapters.ethereum.adapter import adapter
    from coco.enclave.api.dispatcher import Dispatcher
    from coco.enclave.api.jsonrpc import JsonRpc
    from coco.enclave.api.websocket import accept_websocket
    from coco.enclave.ordering.forwarding import Forwarding
    from coco.enclave.ordering.pool import Pool
    from coco.enclave.ordering.runtime import AdapterRuntime
    from coco.enclave.ordering.subscribers import Subscribers
    from coco.enclave.platform.background import Background
    from coco.enclave.platform.control import Control

from seeds import SENDER

from coco import _native, limits
from coco._native import LedgerSecret
from coco.channel.framing import FrameWriter
from coco.enclave.store import Journal, Store
from coco.errors import CocoError
from coco.ledger import tables


def at_once(work: Any) -> Any:
    """The result of what waits for nothing."""
    try:
        work.send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("it waits")


_LOOP = asyncio.new_event_loop()
_HANDSHAKE = [(b"host", b"x"), (b"upgrade", b"websocket"), (b"connection", b"upgrade")]
_HANDSHAKE += [(b"sec-websocket-version", b"13"), (b"sec-websocket-key", b"dGhlIHNhbXBsZSBub25jZQ==")]


class _Sequencer:
    """The parts of a primary's sequencer that JSON-RPC and submissions touch, over a chain of one block."""

    def __init__(self) -> None:
        self.subscribers = Subscribers()

        async def nothing(*arguments: Any) -> Any:
            raise CocoError("there is nothing to be had", code="test.nothing")

        settings = {"chain_id": 1, "alloc": {SENDER: {"balance": hex(10**18)}}}
        chain, background = adapter(settings), Background(_native.Background())
        journal = Journal(append=lambda *entry: None, read=nothing)
        journal.begin(view=2, secret=LedgerSecret.generate())
        self.store = Store(journal)
        self.store.declare(tables.PREDECESSOR)
        for table in chain.manifest().tables:
            self.store.declare(table.name, log=table.log)
        self.replica = SimpleNamespace(committed=1, is_primary=True, view=2)
        self.clock = SimpleNamespace(now_ms=1)
        self.runtimes = [AdapterRuntime(chain, Pool(chain.pool_policy()))]

        async def pending_position(lane: Any) -> int | None:
            return self.runtimes[0].pool.pending_position(lane)

        services = AdapterServices(
            pooled=self.runtimes[0].pool.get,
            pending_position=pending_position,
            newest=lambda: self.store.view(),
            prove_item=nothing,
            call_external=nothing,
            run=asyncio.to_thread,
            run_background=background.run,
            run_query=asyncio.to_thread,
            run_list=asyncio.to_thread,
        )
        chain.start(services)
        transaction = self.store.begin()
        chain.genesis(settings, transaction, BlockContext(1000, bytes(32), bytes(32), 1))
        writes = transaction.native.write_set()
        at_once(chain.applied(journal.position(self.store.write(writes)), writes))
        chain.committed(journal.position(1))

    def accept(self, runtime, envelopes):
        return runtime.pool.add(envelopes, self.store.view(), self.clock.now_ms)

    def outcome(self, runtime, identity):
        """Nothing is executed here, and nobody waits for it."""
        dropped = _LOOP.create_future()
        dropped.set_result("nothing is executed here")
        return dropped


async def _service() -> Dispatcher:
    sequencer: Any = _Sequencer()
    links: Any = SimpleNamespace(tell=lambda *message: True)
    return Dispatcher(sequencer, Forwarding(sequencer, links, lambda certificate: _CALLER), sequencer.runtimes)


_CALLER = Caller(kind=CallerKind.PARTICIPANT, actor="aa" * 32, any_account=True)
#: What went wrong in tasks that nobody awaits.
_UNHANDLED: list[dict[str, Any]] = []
_LOOP.set_exception_handler(lambda loop, context: _UNHANDLED.append(context))
_REPLY_S = 1
_SERVICE = _LOOP.run_until_complete(_service())


def _channel(data: bytes) -> None:
    async def story() -> None:
        ended: list[Any] = []
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
        ends = asyncio.get_running_loop().time() + _REPLY_S
        while not replies and asyncio.get_running_loop().time() < ends:
            await asyncio.sleep(0)

    _LOOP.run_until_complete(story())
    for task in asyncio.all_tasks(_LOOP):
        task.cancel()  # what has not answered by now is not waited for
    assert not failures and not _UNHANDLED, (failures, _UNHANDLED)
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
