"""Streams: messages both ways between a client and an adapter, over a WebSocket or as a subscription of JSON-RPC.

Rules:

* ``LedgerAdapter.stream`` runs as long as the stream does; it is cancelled when the client is gone or unsubscribes.
* What is sent passes ``redact`` for the caller as it is at that moment (``visible.py``); an event of which nothing is
  left is not sent, and costs nothing. The rest is paid from the caller's budget, and so is what it sends.
* The stream ends when the caller is not who it was: when its access is taken from it (``stream.access_lost``).
* Nothing waits without bound: a client that sends faster than its messages are received is disconnected, and one that
  reads too slowly for :class:`Events` is ended rather than told less (``stream.too_slow``).
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

from coco import limits
from coco.configuration.callers import Caller
from coco.enclave.adapters.contract.visible import Visible
from coco.errors import BusyError


class Stream(ABC):
    """One stream, as its adapter sees it."""

    @property
    @abstractmethod
    def caller(self) -> Caller:
        """Who the client is now.

        Raises:
            AccessError: not who it was when the stream began (``stream.access_lost``).
        """

    @abstractmethod
    async def accept(self) -> None:
        """Say that the stream has begun; ``send`` and ``receive`` do it too. Until then a subscription can be refused
        by an exception, which is the answer to the call.
        """

    @abstractmethod
    async def receive(self) -> bytes | str | None:
        """The next message; None when the client sends no more. A subscription never gets any."""

    @abstractmethod
    async def send(self, value: Any, *, public: bool = False) -> None:
        """Tell something: :class:`Visible`, or anything that is ``public``. Bytes are sent as they are, all else as
        JSON. Waits while the client reads too slowly.

        Raises:
            AdapterFault: it is neither (``adapter.not_redacted``).
            AccessError: as :attr:`caller` does.
        """


class Events:
    """What happened, for all streams that follow it; for adapters that only tell."""

    def __init__(self, waiting_max: int = limits.EVENTS_WAITING_MAX) -> None:
        self._waiting_max = waiting_max
        self._queues: set[asyncio.Queue[Any]] = set()

    def tell(self, events: Iterable[Any]) -> None:
        """Something happened."""
        for event in events:
            for queue in list(self._queues):
                if queue.full():
                    self._queues.discard(queue)
                else:
                    queue.put_nowait(event)

    async def follow(self, stream: Stream, shown: Callable[[Any], Visible]) -> None:
        """Send what happens from now on, as ``shown`` makes it of each event.

        Raises:
            BusyError: the client is too slow for it (``stream.too_slow``).
        """
        queue: asyncio.Queue[Any] = asyncio.Queue(self._waiting_max)
        self._queues.add(queue)
        try:
            await stream.accept()
            while queue in self._queues or not queue.empty():
                await stream.send(shown(await queue.get()))
        finally:
            self._queues.discard(queue)
        raise BusyError("the client reads too slowly for what happens", code="stream.too_slow")
