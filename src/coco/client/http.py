"""A small HTTP/1.1 client over TLS: one request at a time on each connection, kept alive.

Rules: nothing waits for ever, every request has a time limit; one that waits long, as for commit, keeps nobody else
from being sent; what replies take in memory is counted, where a budget is given; a node that does not even say that it
is there is left for the next one.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

import httptools

from coco import limits
from coco.errors import BusyError, CocoError, HostError
from coco.ledger.statements import parse_json

_READ_BYTES = 256 * 1024
_REPLY_BYTES_MAX = 256 * 1024 * 1024
_CONNECT_SECONDS = 10
#: A request that waits longer is no longer counted among those under way, so that others are sent.
_SLOW_SECONDS = 0.5
_UNANSWERED = ("client.unreachable", "client.no_answer")


class Budget:
    """Bytes that may be held at once, beyond a little that everything may hold in any case."""

    def __init__(self, bytes_max: int, free_bytes: int) -> None:
        self.bytes_max, self.free_bytes = bytes_max, free_bytes
        #: Held now, beyond what is free.
        self.held = 0

    def hold(self, before: int, now: int) -> None:
        """Something grows (or shrinks) from ``before`` to ``now`` bytes.

        Raises:
            BusyError: there is no room for it (``client.full``).
        """
        more = max(0, now - self.free_bytes) - max(0, before - self.free_bytes)
        if more > 0 and self.held + more > self.bytes_max:
            raise BusyError(
                f"{self.bytes_max} bytes of large requests and replies are held already",
                code="client.full",
                hint="try again in a moment, with fewer large requests at once",
            )
        self.held += more


#: For whom nothing is counted but one reply.
_UNBOUNDED = Budget(1 << 62, 0)


@dataclass
class HttpReply:
    """Status, headers with lower-case names, and body."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    def json(self) -> Any:
        """The body as JSON; raises for an error of the node.

        Raises:
            RemoteError: the node refused, with its code.
        """
        try:
            document = parse_json(self.body)
        except ValueError as error:
            raise RemoteError(f"the node answered {self.status} without JSON", code="client.bad_reply") from error
        if self.status >= 400:
            inner = document.get("error", {}) if isinstance(document, dict) else {}
            raise RemoteError(
                str(inner.get("message", "refused")),
                code=str(inner.get("code", "client.refused")),
                hint=inner.get("hint"),
            )
        return document


class RemoteError(CocoError):
    """A refusal by the node."""

    code = "client.refused"


class _Parser:
    """One reply; what it holds of the budget is its reader's to give back."""

    def __init__(self, budget: Budget) -> None:
        self.reply = HttpReply()
        self.done = False
        self._body: list[bytes] = []
        self._size, self._budget = 0, budget
        self.parser: Any = httptools.HttpResponseParser(self)

    def on_header(self, name: bytes, value: bytes) -> None:
        self.reply.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        if self._size + len(body) > _REPLY_BYTES_MAX:
            raise HostError("the reply is too large", code="client.reply_too_large")
        self._budget.hold(self._size, self._size + len(body))
        self._size += len(body)
        self._body.append(body)

    def forget(self) -> None:
        """Nobody gets this reply."""
        self._budget.hold(self._size, 0)
        self._size = 0
        self._body.clear()

    def on_message_complete(self) -> None:
        self.reply.status = self.parser.get_status_code()
        self.reply.body = b"".join(self._body)
        self.done = True


class HttpsClient:
    """Talks to one listener of one node."""

    def __init__(
        self,
        host: str,
        port: int,
        context: ssl.SSLContext,
        *,
        connections_max: int = 64,
        check: Callable[[bytes], None] | None = None,
    ) -> None:
        self.host, self.port, self.context = host, port, context
        #: Counts what replies hold; whoever gives one gives the bytes of each reply back.
        self.budget = _UNBOUNDED
        #: Refuses a node by its certificate (DER), before anything is sent to it.
        self._check = check
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self._slots, self._kept_max = asyncio.Semaphore(connections_max), connections_max

    async def request(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        *,
        content_type: str = "application/json",
        floor: str = "",
        seconds: float = limits.ANSWER_SECONDS_MAX,
    ) -> HttpReply:
        """Send one request; what answers it has committed the transaction ``floor``.

        Raises:
            HostError: the node cannot be reached (``client.unreachable``), or has not answered (``client.no_answer``).
        """
        head = (
            f"{method} {path} HTTP/1.1\r\nhost: {self.host}:{self.port}\r\n"
            f"content-type: {content_type}\r\ncontent-length: {len(body)}\r\n"
            + (f"coco-min-transaction-id: {floor}\r\n" if floor else "")
            + "\r\n"
        )
        try:
            async with asyncio.timeout(seconds), self._under_way():
                return await self._request(head.encode() + body)
        except TimeoutError as error:
            raise HostError(
                f"{self.host}:{self.port} has not answered in {seconds:g} s",
                code="client.no_answer",
                hint="the node is there but does not get to it: see coco status",
            ) from error

    async def alive(self) -> bool:
        """Whether the node answers anything at all, in time."""
        probe = HttpsClient(self.host, self.port, self.context, check=self._check)
        try:
            await probe.request("GET", "/coco/caller", seconds=limits.ALIVE_SECONDS_MAX)
        except CocoError:
            return False
        finally:
            await probe.close()
        return True

    @contextlib.asynccontextmanager
    async def _under_way(self) -> AsyncIterator[None]:
        await self._slots.acquire()
        counted = True

        def leave() -> None:
            nonlocal counted
            if counted:
                counted = False
                self._slots.release()

        timer = asyncio.get_running_loop().call_later(_SLOW_SECONDS, leave)
        try:
            yield
        finally:
            timer.cancel()
            leave()

    async def _request(self, data: bytes) -> HttpReply:
        if self._idle:
            # A kept connection may have been closed meanwhile; then one fresh one is tried, since nothing was read.
            reply = await self._try(self._idle.pop(), data)
            if reply is not None:
                return reply
        reply = await self._try(await self._connect(), data)
        if reply is None:
            raise HostError(f"{self.host}:{self.port} closed the connection", code="client.unreachable")
        return reply

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                reader, writer = await asyncio.open_connection(
                    self.host,
                    self.port,
                    ssl=self.context,
                    server_hostname=self.host,
                    ssl_handshake_timeout=_CONNECT_SECONDS,
                )
        except (OSError, ValueError, OverflowError) as error:  # a name or a port may be none
            raise HostError(
                f"cannot reach {self.host}:{self.port}: {error}",
                code="client.unreachable",
                hint="is the node running?",
            ) from error
        if self._check is not None:
            try:
                self._check(writer.get_extra_info("ssl_object").getpeercert(binary_form=True) or b"")
            except BaseException:
                writer.close()
                raise
        return reader, writer

    async def _try(
        self, connection: tuple[asyncio.StreamReader, asyncio.StreamWriter], data: bytes
    ) -> HttpReply | None:
        reader, writer = connection
        kept = False
        parser = _Parser(self.budget)
        try:
            writer.write(data)
            await writer.drain()
            while not parser.done:
                received = await reader.read(_READ_BYTES)
                if not received:
                    return None
                parser.parser.feed_data(received)
            kept = parser.reply.headers.get("connection", "").lower() != "close" and len(self._idle) < self._kept_max
            if kept:
                self._idle.append(connection)
            return parser.reply
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if isinstance(error.__context__, CocoError):  # of a limit of ours
                raise error.__context__ from None
            return None
        except OSError:
            return None
        finally:
            if not parser.done:
                parser.forget()
            if not kept:
                writer.close()
            parser.parser = None  # the two hold each other

    async def peer_certificate(self) -> bytes:
        """DER of the certificate that the node shows."""
        connection = await self._connect()
        tls = connection[1].get_extra_info("ssl_object")
        self._idle.append(connection)
        der: bytes = tls.getpeercert(binary_form=True)
        return der

    async def close(self) -> None:
        """Close every kept connection."""
        while self._idle:
            self._idle.pop()[1].close()


class FailoverClient:
    """Talks to one of several nodes of a network: to the same one until it cannot be reached, then to the next.

    What was seen once is seen again: the first requests to a node name the newest transaction known, which it must have
    committed before it answers.

    Args:
        clients: one for each node.
        floor: id of the newest transaction known.
        follow: looks whether the service has another identity that follows from the known one; gives TLS that trusts
            that, or None.
    """

    def __init__(
        self,
        clients: Sequence[HttpsClient],
        floor: Callable[[], str] = str,
        follow: Callable[[], Awaitable[ssl.SSLContext | None]] | None = None,
    ) -> None:
        self._clients, self._floor, self._follow = list(clients), floor, follow
        self._current, self._caught_up = 0, False
        self._following = asyncio.Lock()
        self._probes: dict[int, asyncio.Task[bool]] = {}

    def spend(self, budget: Budget) -> None:
        """Count what replies hold from now on; whoever gets one gives its bytes back."""
        for client in self._clients:
            client.budget = budget

    async def request(
        self, method: str, path: str, body: bytes = b"", *, content_type: str = "application/json"
    ) -> HttpReply:
        """Send one request; again to the next node when one gave no answer at all.

        Raises:
            HostError: no node can be reached (``client.unreachable``).
        """
        context = self._clients[0].context
        try:
            return await self._request(method, path, body, content_type)
        except HostError as error:
            if error.code not in _UNANSWERED or not await self._moved(context):
                raise
        return await self._request(method, path, body, content_type)

    async def _moved(self, context: ssl.SSLContext) -> bool:
        """Whether the nodes are trusted otherwise by now than with ``context``."""
        async with self._following:
            if self._follow is not None and self._clients[0].context is context:
                found = await self._follow()
                for client in self._clients if found is not None else ():
                    assert found is not None, "else there is no client in this loop"
                    client.context = found
                    await client.close()
        return self._clients[0].context is not context

    async def _request(self, method: str, path: str, body: bytes, content_type: str) -> HttpReply:
        for attempt in range(len(self._clients)):
            chosen = self._current
            floor = "" if self._caught_up else self._floor()
            try:
                reply = await self._answered(
                    chosen,
                    self._clients[chosen].request(
                        method, path, body, content_type=content_type, floor=floor if floor != "0.0" else ""
                    ),
                )
            except HostError as error:
                if error.code not in _UNANSWERED or attempt == len(self._clients) - 1:
                    raise
                if self._current == chosen:
                    self._current, self._caught_up = (chosen + 1) % len(self._clients), False
                continue
            self._caught_up |= self._current == chosen and reply.status == 200
            return reply
        raise HostError("no node is named", code="client.unreachable")

    async def _answered(self, chosen: int, request: Coroutine[Any, Any, HttpReply]) -> HttpReply:
        """The answer, however long it takes as long as the node lives; where there is no other, its life is not asked.

        Raises:
            HostError: also when the node does not even say that it is there (``client.no_answer``).
        """
        asked = asyncio.ensure_future(request)
        try:
            while True:
                await asyncio.wait({asked}, timeout=limits.ANSWER_SECONDS_PATIENT)
                if asked.done() or len(self._clients) == 1:
                    return await asked
                if not await self._alive(chosen) and not asked.done():
                    client = self._clients[chosen]
                    raise HostError(f"{client.host}:{client.port} does not answer", code="client.no_answer")
        finally:
            asked.cancel()

    async def _alive(self, chosen: int) -> bool:
        """Whether a node is there: whoever waits for it asks once, all together."""
        if chosen not in self._probes:
            probe = asyncio.ensure_future(self._clients[chosen].alive())
            self._probes[chosen] = probe
            probe.add_done_callback(lambda _: self._probes.pop(chosen))
        return await asyncio.shield(self._probes[chosen])

    async def close(self) -> None:
        """Close every kept connection."""
        for probe in self._probes.values():
            probe.cancel()
        for client in self._clients:
            await client.close()
