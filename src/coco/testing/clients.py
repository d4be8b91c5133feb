"""The network as a test sees it: plain calls, answered by nodes that run on a thread of their own."""

from __future__ import annotations

import asyncio
import json
import tempfile
import threading
import time
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from coco import constitutions
from coco.cli.keys import make_actor, make_encryption_key
from coco.configuration.callers import Caller
from coco.enclave.adapters.ethereum.adapter import adapter as ethereum
from coco.enclave.ordering.registry import AdapterFactory
from coco.testing.nodes import InProcessNetwork, InProcessNode, MemorySession, Response

_T = TypeVar("_T")
_SECONDS: Final = 60.0
_EVENT_SECONDS: Final = 5.0
#: An account of every chain of a test, with much ether; everybody knows its key.
_ACCOUNT: Final = "0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266"
CHAIN_ID: Final = 2017


class Conversation:
    """A client's end of a WebSocket; iterating over it gives what it is told, as JSON."""

    def __init__(self, network: Network, session: MemorySession) -> None:
        self._network, self._session = network, session

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        told = self._network.run(asyncio.wait_for(self._session.told.get(), _EVENT_SECONDS))
        return json.loads(told or "null")

    def send(self, message: bytes | str | Mapping[str, Any]) -> None:
        """Say something: as it is, or as JSON."""
        text = json.dumps(message) if isinstance(message, Mapping) else message

        async def put() -> None:
            self._session.sent.put_nowait(text)

        self._network.run(put())


class Participant:
    """Somebody who calls; made by :meth:`Network.participant`."""

    def __init__(self, network: Network, certificate: bytes | None) -> None:
        self._network, self._certificate = network, certificate
        self._calls = 0

    def request(
        self,
        method: str,
        target: str,
        body: bytes | Mapping[str, Any] | Sequence[Any] = b"",
        *,
        headers: Mapping[str, str] | None = None,
        node: int = 0,
    ) -> Response:
        """One request to the application listener.

        Args:
            method: such as ``PUT``.
            target: path, and query behind a ``?``.
            body: bytes, or what becomes JSON.
            headers: of the request.
            node: which one is asked; 0: the primary.
        """
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        given = [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()]
        asked = self._network.node(node)
        return self._network.run(asked.request(method, target, data, given, self._caller(asked)))

    def rpc(self, method: str, *params: Any, mount: str = "/", node: int = 0) -> Any:
        """The result of a JSON-RPC method.

        Raises:
            AssertionError: it was refused, with what was answered.
        """
        self._calls += 1
        body = {"jsonrpc": "2.0", "id": self._calls, "method": method, "params": list(params)}
        answer = self.request("POST", mount, body, node=node).json()
        assert "error" not in answer, answer["error"]
        return answer["result"]

    @contextmanager
    def events(self, target: str, *, node: int = 0) -> Iterator[Conversation]:
        """A WebSocket: what it is told from now on, and what is said to it. Waiting for what does not come fails."""
        asked = self._network.node(node)

        async def begin() -> tuple[MemorySession, asyncio.Task[None]]:
            session = MemorySession(target, lambda: self._caller(asked))
            task = asyncio.get_running_loop().create_task(asked.converse(session))
            await asyncio.sleep(0)  # it has begun
            return session, task

        async def end(task: asyncio.Task[None]) -> None:
            task.cancel()
            await asyncio.wait({task})
            if not task.cancelled() and (error := task.exception()) is not None:
                raise error

        session, task = self._network.run(begin())
        try:
            yield Conversation(self._network, session)
        finally:
            self._network.run(end(task))

    def _caller(self, node: InProcessNode) -> Caller:
        return node.parts.callers.caller(self._certificate)


class Network:
    """A network in this process; a context manager.

    Args:
        adapters: factory of each ledger protocol, by its name; Ethereum is there unless one of these is called so.
        genesis: settings of each, by its name.
        nodes: how many; of one, everything is committed by itself.
        participants: what is said of each by its name (``user_data``).
        settings: of the network, such as ``block_interval_ms``.
    """

    def __init__(
        self,
        *,
        adapters: Mapping[str, AdapterFactory] | None = None,
        genesis: Mapping[str, Any] | None = None,
        nodes: int = 1,
        participants: Mapping[str, Mapping[str, Any]] | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self._factories: dict[str, AdapterFactory] = {"ethereum": ethereum, **(adapters or {})}
        chain = {"chain_id": CHAIN_ID, "alloc": {_ACCOUNT: {"balance": str(10**24)}}}
        self._genesis = {"ethereum": chain, **{name: {} for name in adapters or {}}, **(genesis or {})}
        self._nodes, self._settings = nodes, dict(settings or {"block_interval_ms": 5, "signature_interval_ms": 1})
        self._data = dict(participants or {"alice": {}, "bob": {}, "auditor": {"auditor": True}})
        self._certificates: dict[str, bytes] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="coco-testing", daemon=True)
        self._network: InProcessNetwork

    def __enter__(self) -> Self:
        self._thread.start()
        try:
            self._network = self.run(
                InProcessNetwork.begin(
                    self._document(), self._factories, nodes=self._nodes, time_ms=int(time.time() * 1000)
                )
            )
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.run(self._network.end())
        finally:
            self._stop()

    def _stop(self) -> None:
        async def cancel_all() -> None:
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        self.run(cancel_all())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def run(self, work: Coroutine[Any, Any, _T]) -> _T:
        """The result of a coroutine among the nodes."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(_SECONDS)

    def _document(self) -> dict[str, Any]:
        with tempfile.TemporaryDirectory(prefix="coco-testing-") as folder:
            at = Path(folder)
            member = make_actor(at, "member")
            public = make_encryption_key(at / "member.encryption.key.pem")
            people = {name: make_actor(at, name) for name in self._data}
        for name, pem in people.items():
            self._certificates[name] = x509.load_pem_x509_certificate(pem.encode()).public_bytes(Encoding.DER)
        return {
            "network": "testing",
            "members": [{"cert": member, "encryption_public_key": public}],
            "participants": [{"cert": people[name], "user_data": dict(data)} for name, data in self._data.items()],
            "constitution": constitutions.text("sandbox"),
            "insecure_virtual": True,
            "production": False,
            "settings": self._settings,
            "adapters": self._genesis,
        }

    # --- what a test does ---

    def participant(self, name: str) -> Participant:
        """One of the participants."""
        return Participant(self, self._certificates[name])

    def anonymous(self) -> Participant:
        """Somebody who shows no certificate."""
        return Participant(self, None)

    @property
    def nodes(self) -> list[int]:
        """Numbers of the nodes that are there."""
        return sorted(self._network.nodes)

    @property
    def primary(self) -> int:
        """Number of the node that leads."""
        return self._network.primary

    def node(self, number: int = 0) -> InProcessNode:
        """A node, to look into; 0: the primary."""
        return self._network.nodes[number or self.primary]

    def lose(self, number: int = 0) -> None:
        """Lose a node at once, by default the primary; another one leads if a majority is left."""
        self.run(self._network.lose(number or self.primary))

    def settle(self) -> None:
        """Wait until every node has committed what the primary has."""
        self.run(self._network.settled())

    @property
    def log(self) -> list[tuple[str, dict[str, int], dict[str, str]]]:
        """What the nodes logged: event, numbers, ids."""
        return [line for node in self._network.nodes.values() for line in node.ground.host.lines]
