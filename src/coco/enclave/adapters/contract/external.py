"""A conversation with a processor outside of the enclave, as an adapter has it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import TracebackType
from typing import Protocol, Self


class ExternalSession(Protocol):
    """Open for as long as its context lasts: ``async with services.external("xo") as session``.

    The processor sees what it is sent, and is not confidential; so does the host, and either may say anything. A
    session has bounds (``limits.EXTERNAL_*``) and is over at the first breach, with a code: ``external.unreachable``,
    ``ended`` (in good order), ``broken``, ``too_slow``, ``flooded``, ``too_long``, ``closed``. Too many: ``busy``.
    """

    async def __aenter__(self) -> Self:
        """Open it."""

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it."""

    async def send(self, message: bytes) -> None:
        """Send a message; raises :class:`coco.errors.BusyError`, and RequestError if it is too large."""

    async def receive(self) -> bytes:
        """The next message; raises :class:`coco.errors.BusyError`."""

    async def ask(self, message: bytes) -> bytes:
        """Send a message; the next one that comes."""

    def converse(self, first: bytes) -> AsyncIterator[bytes]:
        """Send a message; each one that comes, until the processor ends the session in good order.

        A processor that asks back is answered within the loop, by :meth:`send`.
        """
