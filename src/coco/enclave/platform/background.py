"""Calls of the extension that run on its own thread, awaited on the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from coco import _native


class Background:
    """Awaits what :class:`coco._native.Background` runs.

    For calls that are short and many: to hand one to a thread of Python's costs as much as checking twenty signatures.
    """

    def __init__(self, native: _native.Background) -> None:
        self._native = native
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(native.fileno(), self._ready)

    async def run(self, begin: Callable[..., int], *arguments: Any) -> Any:
        """The result of ``begin(native, *arguments)``, which queues a call and returns its ticket."""
        future: asyncio.Future[Any] = self._loop.create_future()
        self._waiting[begin(self._native, *arguments)] = future
        return await future

    def _ready(self) -> None:
        for ticket, result, error in self._native.take():
            future = self._waiting.pop(ticket)
            if future.done():
                continue  # whoever waited is gone
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)
