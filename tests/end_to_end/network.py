"""A node in this process's host half, with a real enclave process: for tests that need other adapters or a liar."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from coco.cli.sandbox import SandboxFiles, make_actor, make_genesis
from coco.client.http import HttpsClient
from coco.client.members import recover
from coco.client.verify import service_context, unverified_context
from coco.host.node import Node, NodeOptions

ROOT = Path(__file__).parent.parent.parent
ADAPTERS = {
    "ethereum": "coco.enclave.adapters.ethereum.adapter:adapter",
    "kv": "kv_ledger:adapter",
    "sawtooth": "sawtooth_shape:adapter",
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


@contextlib.asynccontextmanager
async def running(network: TestNetwork, **options: Any) -> AsyncIterator[TestNetwork]:
    try:
        await network.start(**options)
        yield network
    finally:
        for client in network.clients:
            await client.close()
        await network.node.stop()


def run(work: Any) -> Any:
    return asyncio.run(asyncio.wait_for(work, 120))
