"""Sessions with external processors, which the host reaches: many of them over the one control channel.

Rules:

* A processor is outside and not confidential: it sees what it is sent, and may say anything at any time. So may the
  host, in its name. Neither can hold up, fill or end more than the session; only what breaks the channel itself (a
  message that is none, a session that never was) ends the enclave, as everywhere.
* A session has bounds of messages, bytes and time, there are a few at a time, and it is over at the first breach.
* What was in a session that is over is forgotten on both sides; what comes for it later is thrown away.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Final, Self

from coco import limits
from coco.channel import messages
from coco.errors import BusyError, HostLiedError, RequestError

_REASONS: Final = {
    "external.unreachable": "an external processor cannot be reached",
    "external.ended": "an external processor has ended the session",
    "external.broken": "an external processor has broken the form of its messages",
    "external.too_slow": "an external processor did not answer in time",
    "external.flooded": "an external processor sends more than is read",
    "external.too_long": "a session with an external processor takes too long, or too much",
    "external.closed": "the session with an external processor is closed",
}


class Session:
    """A conversation with one processor; used as an asynchronous context manager, which ends it.

    Args:
        number: of the session.
        name: of the processor.
        sessions: of the enclave.
    """

    def __init__(self, number: int, name: str, sessions: Sessions) -> None:
        self._number, self._name, self._sessions = number, name, sessions
        self._unread: deque[bytes] = deque()
        self._unread_bytes = self._unanswered_bytes = self._bytes = self._messages = 0
        self._news = asyncio.Event()
        self._until_s = 0.0
        #: Why it is over.
        self._over = ""

    async def __aenter__(self) -> Self:
        """Have the host open it; whether the processor is there shows with its first answer.

        Raises:
            BusyError: there are too many sessions (``external.busy``).
        """
        self._until_s = asyncio.get_running_loop().time() + limits.EXTERNAL_SESSION_SECONDS_MAX
        self._sessions.begin(self._number, self._name, self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it."""
        self.end("external.closed")

    async def send(self, message: bytes) -> None:
        """Send a message.

        Raises:
            RequestError: it is too large (``external.too_large``).
            BusyError: the session is over, with the reason as its code; or more was sent than a processor that says
                nothing is sent (``external.too_long``).
        """
        if len(message) > limits.EXTERNAL_BYTES_MAX:
            raise RequestError("that is too much for an external processor", code="external.too_large")
        self._check_time()
        self._unanswered_bytes += len(message)
        self._count(message)
        if self._unanswered_bytes > limits.EXTERNAL_UNREAD_BYTES_MAX:
            self.end("external.too_long")
        self._raise_if_over()
        self._sessions.send(messages.ExternalSend(self._number, message))

    async def receive(self) -> bytes:
        """The next message.

        Raises:
            BusyError: the session is over, with the reason as its code: ``external.unreachable``, ``ended``,
                ``broken``, ``too_slow``, ``flooded``, ``too_long``, ``closed``.
        """
        self._check_time()
        if not self._unread and not self._over:
            left_s = self._until_s - asyncio.get_running_loop().time()
            self._news.clear()
            try:
                await asyncio.wait_for(self._news.wait(), min(left_s, limits.EXTERNAL_SECONDS_MAX))
            except TimeoutError:
                self.end("external.too_slow" if left_s > limits.EXTERNAL_SECONDS_MAX else "external.too_long")
        if self._unread:  # what it said before it ended counts
            message = self._unread.popleft()
            self._unread_bytes -= len(message)
            self._unanswered_bytes = 0
            return message
        self._raise_if_over()
        raise BusyError(_REASONS["external.too_slow"], code="external.too_slow")  # another reader was faster

    async def ask(self, message: bytes) -> bytes:
        """Send a message; the next one that comes."""
        await self.send(message)
        return await self.receive()

    async def converse(self, first: bytes) -> AsyncIterator[bytes]:
        """Send a message; each one that comes, until the processor ends the session in good order."""
        await self.send(first)
        while True:
            try:
                message = await self.receive()
            except BusyError as error:
                if error.code == "external.ended":
                    return
                raise
            yield message

    # --- from the host ---

    def take(self, message: bytes) -> None:
        """A message has come."""
        self._count(message)
        self._unread_bytes += len(message)
        if len(self._unread) >= limits.EXTERNAL_UNREAD_MAX or self._unread_bytes > limits.EXTERNAL_UNREAD_BYTES_MAX:
            self.end("external.flooded")
        if not self._over:
            self._unread.append(message)
            self._news.set()

    def end(self, code: str, *, told: bool = False) -> None:
        """It is over; what was not read of a session that broke its bounds is not read any more.

        Args:
            code: why.
            told: the host said so, and need not be told.
        """
        if self._over:
            return
        self._over = code
        if code != "external.ended":
            self._unread.clear()
        self._news.set()
        self._sessions.finish(self._number, told=told)

    def _count(self, message: bytes) -> None:
        self._messages += 1
        self._bytes += len(message)
        if self._messages > limits.EXTERNAL_SESSION_MESSAGES_MAX or self._bytes > limits.EXTERNAL_SESSION_BYTES_MAX:
            self.end("external.too_long")

    def _check_time(self) -> None:
        if asyncio.get_running_loop().time() >= self._until_s:
            self.end("external.too_long")

    def _raise_if_over(self) -> None:
        if self._over:
            raise BusyError(_REASONS[self._over], code=self._over)


class Sessions:
    """The sessions of one enclave.

    Args:
        send: gives a message to the host.
    """

    def __init__(self, send: Callable[[messages.ToHost], None]) -> None:
        self.send = send
        self._number = 0
        self._open: dict[int, Session] = {}
        self._is_over = False

    def session(self, name: str) -> Session:
        """A session with a processor, to be entered."""
        self._number += 1
        return Session(self._number, name, self)

    async def call(self, name: str, body: bytes) -> bytes:
        """One question, one answer.

        Raises:
            BusyError: there is no answer in time (``external.unreachable``).
            RequestError: ``body`` is too long (``external.too_large``).
        """
        try:
            async with self.session(name) as session:
                return await session.ask(body)
        except BusyError as error:
            raise BusyError(str(error), code="external.unreachable") from error

    def begin(self, number: int, name: str, session: Session) -> None:
        """Open a session that is entered."""
        if self._is_over:
            raise BusyError(_REASONS["external.unreachable"], code="external.unreachable")
        if len(self._open) >= limits.EXTERNAL_SESSIONS_MAX:
            raise BusyError("there are too many sessions with external processors", code="external.busy")
        assert number not in self._open, "a session is entered once"
        self._open[number] = session
        self.send(messages.ExternalOpen(number, name))

    def finish(self, number: int, *, told: bool) -> None:
        """Forget a session that is over."""
        if self._open.pop(number, None) is not None and not told and not self._is_over:
            self.send(messages.ExternalClose(number))

    def receive(self, message: messages.ExternalReceived | messages.ExternalClosed) -> None:
        """Take what the host says of a session.

        Raises:
            HostLiedError: there never was such a session (``channel.unexpected_message``).
        """
        if not 0 < message.session <= self._number:
            raise HostLiedError("a session that was never opened", code="channel.unexpected_message")
        session = self._open.get(message.session)
        if session is None:
            return  # over, and the host has not heard of it yet
        if isinstance(message, messages.ExternalReceived):
            session.take(message.body)
        else:
            session.end(f"external.{message.reason}", told=True)

    def end(self) -> None:
        """The host is gone."""
        self._is_over = True
        for session in list(self._open.values()):
            session.end("external.unreachable")
