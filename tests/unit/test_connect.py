"""``coco connect`` and local clients that leave too early."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import uvloop

from coco.client.connect import ConnectOptions, Connector
from coco.client.pin import Pin

_REQUEST = b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"


def test_an_answer_for_a_client_that_left_raises_nothing():
    errors: list[dict[str, Any]] = []

    async def story() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: errors.append(context))
        asked, answer = asyncio.Event(), asyncio.Event()

        async def request(method: str, path: str, body: bytes) -> Any:
            asked.set()
            await answer.wait()
            return SimpleNamespace(headers={}, status=200, body=b"[]")

        async def close() -> None:
            pass

        upstream: Any = SimpleNamespace(request=request, close=close)
        connector = Connector(ConnectOptions(port=0), upstream, Pin(""), None)
        await connector.start()
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", connector.port)
            writer.write(_REQUEST)
            await asked.wait()
            # The local side of it is closed, as when the process ends, while the answer is on its way.
            (server_side,) = connector._open
            server_side.close()
            await asyncio.sleep(0.05)
            answer.set()
            await asyncio.sleep(0.05)
            assert not connector._open
            writer.close()
        finally:
            await connector.stop()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(story())
    assert not errors
