"""A node in this process's host half, with a real enclave process: for tests that need other adapters or a liar."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any

from coco.cli.keys import make_actor
from coco.cli.sandbox import make_genesis, make_owner
from coco.cli.sandbox_folder import SandboxFiles
from coco.client.http import HttpsClient
from coco.client.members import recover
from coco.client.verify import service_context, unverified_context
from coco.host.node import Node, NodeOptions

ROOT = Path(__file__).parent.parent
ADAPTERS = {
    "ethereum": "coco.enclave.adapters.ethereum.adapter:adapter",
    "kv": "kv_ledger:adapter",
    "sawtooth": "sawtooth_shape:adapter",
    "twin": "twin:adapter",
}


class TestNetwork:
    __test__ = False

    def __init__(self, directory: Path, **changes: Any) -> None:
        self.files = SandboxFiles(directory)
        directory.mkdir(parents=True, exist_ok=True)
        self.genesis = make_genesis(self.files, fees="free", fork="osaka", chain_id=2017)
        self.log: list[dict[str, Any]] = []
        self.node: Node | None = None
        self.service = ""
        self.clients: list[HttpsClient] = []
        for key, value in changes.items():
            self.genesis[key] = value

    def add_participant(self, name: str, **data: Any) -> None:
        certificate = make_actor(self.files.directory / "participants", name)
        self.genesis["participants"].append({"cert": certificate, "user_data": data})

    async def start(self, **options: Any) -> Node:
        chosen = {
            "adapters": ADAPTERS,
            "extra_path": [str(ROOT / "examples"), str(ROOT / "tests/adapters")],
            **options,
        }
        self.node = Node(NodeOptions(ledger=self.files.ledger(0), genesis=self.genesis, **chosen), self.log.append)
        ready = await self.node.start()
        self.service = ready.service.decode()
        return self.node

    async def recover(self) -> None:
        """What the development member does after a restart."""
        client = self.client(listener="administration")
        state = (await client.request("GET", "/gov/recovery")).json()
        done = await recover(client, self.files.member(), pinned_service=state["previous_service"], seen="0.0")
        assert done["status"] == "Open", done
        await client.close()

    def tls(self, participant: str | None) -> ssl.SSLContext:
        if participant is None:
            return service_context(self.service)
        at = lambda suffix: str(self.files.actor("participants", participant, suffix))  # noqa: E731
        return service_context(self.service, at(".pem"), at(".key.pem"))

    def client(self, participant: str | None = "dapp", listener: str = "application") -> HttpsClient:
        context = self.tls(participant) if listener == "application" else unverified_context()
        made = HttpsClient("localhost", self.node.relays[listener].port, context)
        self.clients.append(made)
        return made

    async def rpc(self, client: HttpsClient, method: str, *params: Any) -> Any:
        body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode()
        return json.loads((await client.request("POST", "/", body)).body)


class Several:
    """Several nodes in this process's host half; the first founds the network, the others join it."""

    def __init__(self, directory: Path, **changes: Any) -> None:
        self.files = SandboxFiles(directory)
        directory.mkdir(parents=True, exist_ok=True)
        genesis = make_genesis(self.files, fees="free", fork="osaka", chain_id=2017)
        self.genesis = {**genesis, **changes}
        self.files.genesis.write_text(json.dumps(self.genesis))
        self.nodes: list[Node] = []
        self.log: list[dict[str, Any]] = []
        self.service = ""
        self._clients: list[HttpsClient] = []

    async def start(self, **options: Any) -> Node:
        """One node more."""
        chosen: dict[str, Any] = {"ledger": self.files.ledger(len(self.nodes)), "genesis": self.genesis}
        if self.nodes:
            alive = [node for node in self.nodes if not node.ended.done()]
            chosen |= {
                "join": [f"127.0.0.1:{node.relays['peers'].port}" for node in alive],
                "owner": make_owner(self.files, self.service),
                "expected_service": self.service.encode(),
            }
        node = Node(NodeOptions(**{**chosen, **options}), self.log.append)
        self.nodes.append(node)
        ready = await node.start()
        self.service = self.service or ready.service.decode()
        return node

    def client(self, node: Node, listener: str = "administration") -> HttpsClient:
        pair = [str(self.files.actor("participants", "dapp", end)) for end in (".pem", ".key.pem")]
        context = service_context(self.service, *(pair if listener == "application" else ()))
        self._clients.append(HttpsClient("localhost", node.relays[listener].port, context))
        return self._clients[-1]

    async def ask(self, node: Node, path: str) -> Any:
        client = self.client(node)
        try:
            return (await client.request("GET", path)).json()
        finally:
            await client.close()

    async def voters(self, node: Node, wanted: int) -> dict[str, Any]:
        """The nodes that vote, once they are so many."""
        async with asyncio.timeout(60):
            while True:
                rows = (await self.ask(node, "/node/network"))["nodes"]
                found = {name: row for name, row in rows.items() if row["votes"]}
                if len(found) == wanted and any(row["primary"] for row in found.values()):
                    return found
                await asyncio.sleep(0.2)

    async def stop(self) -> None:
        for client in self._clients:
            await client.close()
        for node in reversed(self.nodes):
            await node.stop()
        none_late(self.log)


@contextlib.asynccontextmanager
async def running(network: TestNetwork, **options: Any) -> AsyncIterator[TestNetwork]:
    try:
        await network.start(**options)
        yield network
    finally:
        for client in network.clients:
            await client.close()
        await network.node.stop()
    none_late(network.log)


def none_late(log: list[dict[str, Any]]) -> None:
    """Nothing was imported after the lock-down (G1), but by the probe of the walls, which tries to."""
    late = [line for line in log if line["event"] == "enclave.late_import" and line["by"] != "probe"]
    assert late == [], late


def at_once(work: Coroutine[Any, Any, Any]) -> Any:
    """The result of what waits for nothing."""
    try:
        work.send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("it waits")


def run(work: Any) -> Any:
    return asyncio.run(asyncio.wait_for(work, 120))
