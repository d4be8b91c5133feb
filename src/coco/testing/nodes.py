"""Nodes in one process: the parts of an enclave (:class:`coco.enclave.node.parts.Parts`) over a world in memory."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from types import SimpleNamespace
from typing import Any, Final
from urllib.parse import parse_qsl

from cryptography.hazmat.primitives.asymmetric import ec

from coco import _native
from coco.attestation.evidence import Evidence, report_data, virtual
from coco.configuration.callers import Caller
from coco.consensus.driver import Start
from coco.enclave.api.admission import Admission
from coco.enclave.api.asgi import ask
from coco.enclave.api.dispatcher import Dispatcher
from coco.enclave.api.jsonrpc import JsonRpc
from coco.enclave.api.routes import application_app
from coco.enclave.api.streams import Streams
from coco.enclave.keys.identity import EncryptionKey, NodeIdentity
from coco.enclave.node.answers import Answers
from coco.enclave.node.bindings import Bindings
from coco.enclave.node.create import create
from coco.enclave.node.ground import Ground
from coco.enclave.node.parts import Identities, Parts
from coco.enclave.node.states import Life, State
from coco.enclave.ordering.forwarding import DROPPED, EXECUTING, PENDING, SUBMIT
from coco.enclave.ordering.registry import AdapterFactory
from coco.enclave.ordering.replica import ENGINE, Replica
from coco.enclave.platform.background import Background
from coco.enclave.platform.children import Children
from coco.enclave.platform.clock import Clock
from coco.enclave.platform.faults import Faults
from coco.enclave.store import Journal
from coco.errors import CocoError, NotFoundError
from coco.testing.memory import MemoryHost, MemoryLinks, MemoryNet

_AGAIN_S: Final = 0.002


@dataclass(frozen=True)
class Response:
    """An answer of a node."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)

    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    @property
    def error(self) -> str:
        """Code of a refusal; empty if it is none."""
        return str(self.json()["error"]["code"]) if self.status >= 400 else ""


class _Evidence:
    """Of no platform."""

    is_virtual = True
    platform = "virtual"

    async def begin(self, node_key: bytes, context: Mapping[str, bytes]) -> Evidence:
        evidence = virtual("", report_data(node_key, **context))
        self.verified = evidence.verify(now_s=0)
        return evidence


class _Ground(Ground):
    """The ground of a node over a world in memory."""

    def __init__(
        self, net: MemoryNet, number: int, genesis: bytes, factories: Mapping[str, AdapterFactory], time_ms: int
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.host = MemoryHost()
        world: Any = self.host
        self.control, self.report, self.doors = world, {}, {}
        self.rules: Any = SimpleNamespace(call=None)
        self.children = Children({}, {})
        self.factories, self.background = factories, Background(_native.Background())
        self.log = self.host.log
        #: The first failure that would have ended the process.
        self.failure: asyncio.Future[BaseException | None] = self.loop.create_future()
        self.ended = self._ended
        self.faults = Faults(self._ended, self.log)
        start: Any = SimpleNamespace(genesis=genesis, host_names=["localhost"], peer_address=f"127.0.0.1:{number}")
        self.start = start
        self.clock = Clock(time_ms)
        self.configuration_hash = sha256(genesis).digest()
        evidence: Any = _Evidence()
        self.evidence = evidence
        self.journal = Journal(append=self._append, read=self.host.read)
        links: Any = MemoryLinks(net, number)
        self.links = links

    def _ended(self, error: BaseException | None) -> None:
        if not self.failure.done():
            self.failure.set_result(error)


class InProcessNode:
    """One node, and what its application listener would serve."""

    def __init__(self, ground: _Ground, parts: Parts) -> None:
        self.ground, self.parts = ground, parts
        self.life = Life()
        for state in (State.OPENING, State.OPEN):
            self.life.become(state)
        links = ground.links
        links.on_tell, links.serve, links.on_lost = self._told, self._serve, parts.forwarding.link_lost
        self.service = Dispatcher(parts.sequencer, parts.forwarding, parts.registry.served)
        admission = Admission()
        self._rpc = JsonRpc(self.service, ground.faults.unexpected, admission)
        self._streams = Streams(self.service, self._rpc, admission, ground.faults.unexpected)
        answers, bindings = Answers(parts, self.life), Bindings(parts, self.life)
        self._app = application_app(
            answers, bindings, self.service, self.life, admission, self._rpc, lambda: str(self.position).encode()
        )

    @property
    def position(self) -> Any:
        """Id of the last committed entry."""
        return self.parts.committed_position()

    def check(self) -> None:
        """Raise what would have ended this node's process."""
        if self.ground.failure.done() and (error := self.ground.failure.result()) is not None:
            raise error

    def _told(self, sender: int, kind: str, body: bytes) -> None:
        parts = self.parts
        if kind == ENGINE:
            parts.replica.receive(sender, body)
        elif kind == DROPPED:
            parts.forwarding.dropped(body)
        elif kind == EXECUTING:
            parts.forwarding.executing(sender, kind, body)

    async def _serve(self, sender: int, certificate: bytes, kind: str, body: bytes) -> bytes:
        if kind in (SUBMIT, PENDING):
            return await self.parts.forwarding.serve(sender, kind, body)
        raise NotFoundError(f"nobody answers {kind} here", code="testing.not_there")

    async def request(
        self, method: str, target: str, body: bytes, headers: Sequence[tuple[bytes, bytes]], caller: Caller
    ) -> Response:
        """Serve one request as the application listener would, after TLS and its budget."""
        asked = self.ground.loop.create_task(self._answer(method, target, body, headers, caller))
        # A node that would have ended answers nobody any more.
        first: set[asyncio.Future[Any]] = {asked, self.ground.failure}
        await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
        if not asked.done():
            asked.cancel()
        self.check()
        return await asked

    async def _answer(
        self, method: str, target: str, body: bytes, headers: Sequence[tuple[bytes, bytes]], caller: Caller
    ) -> Response:
        if method == "POST" and target == "/":
            answer: asyncio.Future[bytes] = self.ground.loop.create_future()
            self._rpc.handle(body, caller, answer.set_result)
            return Response(200, await answer)
        try:
            status, sent, answered = await ask(self._app, method, target.encode(), headers, body, caller)
        except CocoError as error:
            refusal = {"error": {"code": error.code, "message": str(error)}}
            return Response(error.http_status, json.dumps(refusal).encode())
        return Response(status, answered, {name.decode(): value.decode() for name, value in sent})

    async def converse(self, session: MemorySession) -> None:
        """Serve a WebSocket until it ends."""
        served: Any = session
        await self._streams.serve(served)


class MemorySession:
    """A WebSocket: what the client sent, and what it was told."""

    def __init__(self, target: str, caller: Callable[[], Caller]) -> None:
        self.path, _, query = target.partition("?")
        self.query, self.headers = dict(parse_qsl(query)), list[tuple[bytes, bytes]]()
        self.caller = caller
        self.sent, self.told = asyncio.Queue[bytes | str | None](), asyncio.Queue[bytes | str | None]()

    async def receive(self) -> bytes | str | None:
        """The next message of the client."""
        return await self.sent.get()

    async def send(self, message: bytes | str) -> None:
        """Tell the client."""
        self.told.put_nowait(message)

    async def drained(self) -> None:
        """The client reads at once."""

    async def fresh(self) -> None:
        """Nothing newer is asked for."""

    def close(self, code: int, reason: str) -> None:
        """Say why it ends."""
        self.told.put_nowait(json.dumps({"closed": {"code": code, "reason": reason}}))
        self.sent.put_nowait(None)


class InProcessNetwork:
    """Nodes that follow one another; made by :meth:`begin`."""

    def __init__(self) -> None:
        self.net = MemoryNet()
        self.nodes: dict[int, InProcessNode] = {}

    @classmethod
    async def begin(
        cls, genesis: Mapping[str, Any], factories: Mapping[str, AdapterFactory], *, nodes: int, time_ms: int
    ) -> InProcessNetwork:
        """Found a service and have other nodes vote in it."""
        made = cls()
        document = json.dumps(genesis).encode()
        ground = _Ground(made.net, 1, document, factories, time_ms)
        parts = await create(ground)
        made.nodes[1] = InProcessNode(ground, parts)
        parts.sequencer.start()
        for number in range(2, nodes + 1):
            await made._follow(number, document, factories, time_ms)
        if nodes > 1:
            await made._vote()
        return made

    async def _follow(self, number: int, genesis: bytes, factories: Mapping[str, AdapterFactory], time_ms: int) -> None:
        """One node more, with the state of the first one."""
        first = self.nodes[1].parts
        anchor: Start = first.replica.anchor
        ground = _Ground(self.net, number, genesis, factories, time_ms)
        ground.journal.hold(*first.journal.current_secret)
        ground.replica = Replica(
            ground.control,
            ground.links,
            node=number,
            start=anchor,
            view_offset=first.replica.view_offset,
            fatal=ground._ended,
        )
        key = ec.generate_private_key(ec.SECP384R1())
        certificate = first.service.endorse(key.public_key(), number, ["localhost"], time_ms)
        identities = Identities(NodeIdentity(key, certificate), first.service, EncryptionKey.generate())
        parts = Parts(ground, ground.new_store(), genesis, identities)
        parts.declare_adapters()
        for entry in await self.nodes[1].ground.host.read(1, anchor.position.seqno):
            parts.store.accept(entry)
            ground.host.entries.append(entry)
        parts.store.native.commit(parts.store.latest)
        await parts.rebuild_adapters()
        self.nodes[number] = InProcessNode(ground, parts)
        parts.sequencer.start()

    async def _vote(self) -> None:
        for node in self.nodes.values():
            node.parts.replica.follow()
        leader, others = self.nodes[1].parts.replica, [number for number in self.nodes if number != 1]
        leader.change_members([("learner", number) for number in others])
        await self._until(lambda: set(leader.members.all) == set(self.nodes))
        await self._until(lambda: all(active for _, _, active in leader.progress()))
        leader.change_members([("voter", number) for number in others])
        await self._until(
            lambda: all(set(node.parts.replica.members.voters) == set(self.nodes) for node in self.nodes.values())
        )

    async def _until(self, holds: Any) -> None:
        async with asyncio.timeout(30):
            while not holds():
                for node in self.nodes.values():
                    node.check()
                await asyncio.sleep(_AGAIN_S)

    @property
    def primary(self) -> int:
        """Number of the node that leads; 0 while none does."""
        leads = [number for number, node in self.nodes.items() if node.parts.replica.may_execute]
        return leads[0] if leads else 0

    async def lose(self, number: int) -> None:
        """A node is gone, at once and for ever; another one leads, if it was the primary and a majority is left."""
        node = self.nodes.pop(number)
        self.net.lose(number)
        node.parts.replica.stop()
        others = list(self.nodes.values())
        if len(others) > len(node.parts.replica.members.voters) // 2:
            # They would elect one of themselves in a second or so; here one stands at once.
            others[0].parts.replica.stand()
            await self._until(lambda: self.primary)

    async def settled(self) -> None:
        """Wait until every node has committed what the primary has."""
        await self._until(lambda: self.primary)
        wanted = self.nodes[self.primary].parts.journal.last_seqno
        await self._until(lambda: all(node.parts.replica.committed >= wanted for node in self.nodes.values()))

    async def end(self) -> None:
        """Nothing of it runs any more."""
        for node in self.nodes.values():
            node.parts.replica.stop()
            node.parts.sequencer.abandon()
        for node in self.nodes.values():
            node.check()
