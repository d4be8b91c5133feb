"""The enclave's end of the control channel: requests out, checked answers in.

Every message of the host is hostile input: bounded and typed by the channel, and here checked against what was asked.
A lie raises :class:`HostLiedError`, and the process ends with its code.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import TypeVar, cast

from coco import limits
from coco.channel import messages
from coco.channel.framing import FrameReader, FrameWriter
from coco.enclave.platform.externals import Sessions
from coco.errors import HostLiedError

#: A host that owes an answer for so long is named in the log; it is looked after as often.
_SILENT_S, _LOOK_S = 5.0, 1.0


_T = TypeVar("_T")


class Control(asyncio.Protocol):
    """The channel as an asyncio protocol."""

    def __init__(self, ended: Callable[[Exception | None], None]) -> None:
        """``ended`` is called once: with the host's lie, another failure, or None when the host closed the channel."""
        self.started: asyncio.Future[messages.Start] = asyncio.get_running_loop().create_future()
        self.on_appended: Callable[[int], None] | None = None
        self.on_tick: Callable[[int], None] | None = None
        self.on_stop: Callable[[], None] | None = None
        self.on_dial_failed: Callable[[int], None] | None = None
        #: Hears what the host says of the platform without having been asked.
        self.on_endorsed: Callable[[bytes], None] | None = None
        #: The owner's statement, once the host has it.
        self.owner_statement: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        #: The host has closed the channel.
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._ended = ended
        self._over = False
        self._reader, self._writer = FrameReader(), FrameWriter()
        self._transport: asyncio.Transport | None = None
        self._appended, self._durable = 0, 0
        self._pending_bytes: deque[tuple[int, int]] = deque()
        self._in_flight_bytes = 0
        self._room = asyncio.Event()
        self._room.set()
        self._number = 0
        self._reads: dict[int, tuple[int, int, asyncio.Future[list[bytes]]]] = {}
        self._index_reads: dict[int, asyncio.Future[bytes]] = {}
        self._snapshot_reads: dict[int, asyncio.Future[bytes]] = {}
        self._snapshot_writes: dict[int, asyncio.Future[None]] = {}
        self._endorsing: dict[int, asyncio.Future[bytes]] = {}
        #: Bytes of the entries that were appended, ever.
        self.appended_bytes = 0
        #: Sessions with external processors.
        self.externals = Sessions(self.send)
        #: Cuts under way: the seqno, and who waits.
        self._truncating: deque[tuple[int, asyncio.Future[None] | None]] = deque()
        #: What was waited for when it was looked last, by kind, and since when.
        self._waited: dict[str, tuple[int, float]] = {}

    # --- asyncio ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport."""
        # uvloop's transports keep the contract but do not inherit from asyncio's.
        self._transport = cast(asyncio.Transport, transport)
        asyncio.get_running_loop().call_later(_LOOK_S, self._look)

    def data_received(self, data: bytes) -> None:
        """Serve what the host sent."""
        if self._over:
            return
        try:
            for frame in self._reader.feed(data):
                self._receive(messages.decode_to_enclave(frame))
        except Exception as error:  # noqa: BLE001 - whatever a message does, the end of it has a reason
            self._end(error)

    def _look(self) -> None:
        """Say what the host owes for long: an enclave that waits says what for."""
        if self._over:
            return
        loop = asyncio.get_running_loop()
        owed = {
            "appended": self._durable if self._pending_bytes else None,
            "truncated": self._truncating[0][0] if self._truncating else None,
            "entries": min(self._reads, default=None),
            "index_block": min(self._index_reads, default=None),
            "snapshot_part": min(self._snapshot_reads, default=None),
            "snapshot_written": min(self._snapshot_writes, default=None),
            "endorsed": min(self._endorsing, default=None),
            "rest_of_a_message": self._reader.number if self._reader.held else None,
        }
        for kind, what in owed.items():
            before, since = self._waited.get(kind, (None, 0.0))
            if what is None:
                self._waited.pop(kind, None)
            elif what != before:
                self._waited[kind] = what, loop.time()
            elif loop.time() - since >= _SILENT_S:
                self._waited[kind] = what, loop.time()
                self.log("channel.host_silent", {"seconds": int(_SILENT_S)}, {"owes": kind})
        loop.call_later(_LOOK_S, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        """The host is gone."""
        if not self.closed.done():
            self.closed.set_result(None)
        self._end(None)

    def _end(self, error: Exception | None) -> None:
        if not self._over:
            self._over = True
            self.externals.end()
            self._ended(error)

    # --- out ---

    def send(self, message: messages.ToHost) -> None:
        """Send one message."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(self._writer.frame(messages.encode(message)))

    def log(self, code: str, numbers: dict[str, int] | None = None, ids: dict[str, str] | None = None) -> None:
        """Write a line to the host's log: a registered code, numbers and public ids only (H1)."""
        self.send(messages.Log(code, numbers or {}, ids or {}))

    def begin_at(self, seqno: int) -> None:
        """The next entry to append is ``seqno + 1``."""
        self._appended = self._durable = seqno

    def append(self, seqno: int, entry: bytes) -> None:
        """Persist the next entry; ``on_appended`` tells when it is safe."""
        assert seqno == self._appended + 1, "entries are appended in order"
        self._appended = seqno
        self._pending_bytes.append((seqno, len(entry)))
        self._in_flight_bytes += len(entry)
        self.appended_bytes += len(entry)
        if self._in_flight_bytes > limits.APPENDING_BYTES_MAX:
            self._room.clear()
        self.send(messages.Append(seqno, [entry]))

    async def room(self) -> None:
        """Wait until the host keeps up with what was appended."""
        await self._room.wait()

    async def read(self, first: int, last: int) -> list[bytes]:
        """Entries ``first`` to ``last`` as the host gives them: unverified, and fewer if it has no more."""
        assert 0 < first <= last < first + limits.READ_ENTRIES_MAX, "callers read in pages"
        entries: list[bytes] = []
        # One answer holds as many as fit into a message.
        while first <= last and (more := await self.read_some(first, last)):
            entries += more
            first += len(more)
        return entries

    async def read_some(self, first: int, last: int) -> list[bytes]:
        """The same, as many as fit into one message."""
        self._number += 1
        future: asyncio.Future[list[bytes]] = asyncio.get_running_loop().create_future()
        self._reads[self._number] = (first, last, future)
        self.send(messages.Read(self._number, first, last))
        return await future

    def write_index(self, run: int, first: int, blocks: Sequence[bytes]) -> None:
        """Have the host keep sealed blocks of a run."""
        for at in range(0, len(blocks), limits.INDEX_BLOCKS_MAX):
            self.send(messages.WriteIndex(run, first + at, list(blocks[at : at + limits.INDEX_BLOCKS_MAX])))

    async def read_index(self, run: int, block: int) -> bytes:
        """A block of a run as the host gives it: unverified, and empty when it has none."""
        return await self._ask(self._index_reads, lambda request: messages.ReadIndex(request, run, block))

    def drop_index(self, run: int) -> None:
        """Have the host forget a run."""
        self.send(messages.DropIndex(run))

    async def write_snapshot(self, seqno: int, number: int, part: bytes) -> None:
        """Have the host keep a part of the snapshot at ``seqno``; returns once it says that the part is safe."""
        await self._ask(self._snapshot_writes, lambda request: messages.WriteSnapshot(request, seqno, number, part))

    async def read_snapshot(self, seqno: int, number: int) -> bytes:
        """A part of a snapshot as the host gives it: unverified, and empty when it has none."""
        return await self._ask(self._snapshot_reads, lambda request: messages.ReadSnapshot(request, seqno, number))

    async def endorse(self, platform: str, evidence: bytes) -> bytes:
        """What the host says that vendors say of the platform: unverified, and empty when it says nothing."""
        return await self._ask(self._endorsing, lambda request: messages.Endorse(request, platform, evidence))

    async def _ask(self, waiting: dict[int, asyncio.Future[_T]], question: Callable[[int], messages.ToHost]) -> _T:
        self._number += 1
        future: asyncio.Future[_T] = asyncio.get_running_loop().create_future()
        waiting[self._number] = future
        self.send(question(self._number))
        return await future

    def keep_snapshot(self, seqno: int) -> None:
        """Have the host forget every snapshot but the one at ``seqno``."""
        self.send(messages.KeepSnapshot(seqno))

    async def truncate(self, seqno: int) -> None:
        """Have the host drop every entry above ``seqno``."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._truncating.append((seqno, future))
        self.send(messages.Truncate(seqno))
        await future

    def cut(self, seqno: int) -> None:
        """Have the host drop every entry above ``seqno``; the next one to append is ``seqno + 1``."""
        self._appended, self._durable = seqno, min(self._durable, seqno)
        while self._pending_bytes and self._pending_bytes[-1][0] > seqno:
            self._in_flight_bytes -= self._pending_bytes.pop()[1]
        if self._in_flight_bytes <= limits.APPENDING_BYTES_MAX:
            self._room.set()
        self._truncating.append((seqno, None))
        self.send(messages.Truncate(seqno))

    # --- in ---

    def _receive(self, message: messages.ToEnclave) -> None:
        if not self.started.done():
            if not isinstance(message, messages.Start):
                raise HostLiedError("the first message is not a start", code="channel.unexpected_message")
            self.started.set_result(message)
            return
        match message:
            case messages.Appended(seqno):
                self._durable_to(seqno)
            case messages.Entries(request, entries):
                first, last, future = self._reads.pop(request, (0, -1, None))
                if future is None or len(entries) > last - first + 1:
                    raise HostLiedError("an answer that was not asked for", code="channel.unexpected_message")
                if not future.done():
                    future.set_result(entries)
            case messages.IndexBlock(request, block):
                _answer(self._index_reads, request, block)
            case messages.SnapshotPart(request, part):
                _answer(self._snapshot_reads, request, part)
            case messages.SnapshotWritten(request):
                _answer(self._snapshot_writes, request, None)
            case messages.Endorsed(0, endorsements):
                if self.on_endorsed is not None:
                    self.on_endorsed(endorsements)
            case messages.Endorsed(request, endorsements):
                _answer(self._endorsing, request, endorsements)
            case messages.Truncated(seqno):
                cut, waits = self._truncating.popleft() if self._truncating else (-1, None)
                if cut != seqno:
                    raise HostLiedError("an answer that was not asked for", code="channel.unexpected_message")
                if waits is not None:
                    waits.set_result(None)
            case messages.Tick(time_ms):
                if self.on_tick is not None:
                    self.on_tick(time_ms)
            case messages.ExternalReceived() | messages.ExternalClosed():
                self.externals.receive(message)
            case messages.OwnerStatement(statement):
                if self.owner_statement.done():
                    raise HostLiedError("a second statement of the owner", code="channel.unexpected_message")
                self.owner_statement.set_result(statement)
            case messages.DialFailed(dial):
                if self.on_dial_failed is not None:
                    self.on_dial_failed(dial)
            case messages.Stop():
                if self.on_stop is not None:
                    self.on_stop()
            case messages.Start():
                raise HostLiedError("a second start", code="channel.unexpected_message")

    def _durable_to(self, seqno: int) -> None:
        if self._truncating:
            # It may speak of what is being cut off; of what stays, it says so again after the cut, or here.
            seqno = min(seqno, *(cut for cut, _ in self._truncating))
            if seqno <= self._durable:
                return
        if not self._durable < seqno <= self._appended:
            raise HostLiedError("an entry is called durable that is not under way", code="channel.false_durability")
        self._durable = seqno
        while self._pending_bytes and self._pending_bytes[0][0] <= seqno:
            self._in_flight_bytes -= self._pending_bytes.popleft()[1]
        if self._in_flight_bytes <= limits.APPENDING_BYTES_MAX:
            self._room.set()
        if self.on_appended is not None:
            self.on_appended(seqno)


def _answer(waiting: dict[int, asyncio.Future[_T]], request: int, answer: _T) -> None:
    future = waiting.pop(request, None)
    if future is None:
        raise HostLiedError("an answer that was not asked for", code="channel.unexpected_message")
    if not future.done():
        future.set_result(answer)
