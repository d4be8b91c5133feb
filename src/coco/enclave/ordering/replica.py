"""This node's place in the network: carries out, in order, what the driver of consensus says.

Rules:

* What only touches disk and network (send, persist) is done at once. What touches the store waits its turn behind the
  batch or signature that is being sealed: ``writer`` and ``order`` are held while it is done.
* ``committed`` moves when the store has reached it, so that a reader never looks for a version that is not there.
* Peers' messages come from authenticated links, under the sender's engine id; a malformed one closes the link.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

from coco import limits
from coco.consensus import (
    Action,
    Apply,
    Committed,
    Driver,
    Install,
    LedgerEntry,
    MembersChanged,
    Persist,
    Promoted,
    ReadReady,
    RollBack,
    Send,
    Start,
    Timing,
    ViewChanged,
)
from coco.enclave.platform.control import Control
from coco.enclave.transport.links import Links
from coco.errors import AttestationError, BusyError, ConsensusError
from coco.ledger.transaction_id import TransactionId

#: Time of one tick of the engine; an election is due after 20 to 40 of them without a word from the primary.
TICK_S = 0.025
TIMING = Timing(election_ticks=20, heartbeat_ticks=2)
_SNAPSHOT_PATIENCE_S = 0.5
_HAND_OVER_S = 2.0
_READ_AGAIN_S = 0.25
#: Time after which every node that is heard of has applied a change of members.
_MEMBERS_SETTLE_S = 2.0
ENGINE = "engine"


class Replica:
    """The driver, with the disk behind the control channel and the peers behind their links.

    Args:
        control: where entries are made durable.
        links: where messages go.
        node: engine id, which no process has used before.
        start: where this node begins to follow.
        view_offset: view of the engine's term 0.
        fatal: ends the process; a node whose engine failed starts again as a new one.
    """

    def __init__(
        self,
        control: Control,
        links: Links,
        *,
        node: int,
        start: Start,
        view_offset: int,
        fatal: Callable[[BaseException], None],
    ) -> None:
        self.node, self.view_offset = node, view_offset
        self.committed = start.signed.seqno
        self.members = start.members
        self._driver = Driver(node, start, timing=TIMING, seed=secrets.randbits(63), view_offset=view_offset)
        self._control, self._links, self._fatal = control, links, fatal
        self._loop = asyncio.get_running_loop()
        #: Held by whoever has an open write transaction; and while a position is given to an entry.
        self.writer, self.order = asyncio.Lock(), asyncio.Lock()
        #: What waits for the store; the first is being done while ``_worker`` runs.
        self._waiting: deque[Action] = deque()
        self._worker: asyncio.Task[None] | None = None
        #: Work under way to the disk: the number to report, and the seqno that must be durable first.
        self._persisting: deque[tuple[int, int]] = deque()
        self._written = self._durable = start.position.seqno
        self._heard_at = self._members_at = self._led_at = self._loop.time()
        self._reads: dict[bytes, asyncio.Future[None]] = {}
        #: The round of confirmation under way, and the one after it.
        self._round: asyncio.Task[None] | None = None
        self._following_round: asyncio.Task[None] | None = None
        self._offered: Start | None = None
        self._ticking: asyncio.TimerHandle | None = None
        # What the sequencer and the node do with it.
        self.on_apply: Callable[[TransactionId, bytes], Awaitable[None]]
        self.on_roll_back: Callable[[int], None] = lambda seqno: None
        self.on_promoted: Callable[[int], None] = lambda view: None
        self.on_opening: Callable[[], Awaitable[object]] | None = None
        self.on_committed: Callable[[int], None] = lambda seqno: None
        self.on_view: Callable[[], None] = lambda: None
        self.on_install: Callable[[int], Awaitable[tuple[TransactionId, TransactionId]]] | None = None
        control.on_appended = self._appended

    # --- what callers ask ---

    @property
    def view(self) -> int:
        """The view as this node knows it."""
        return self._driver.view

    @property
    def is_primary(self) -> bool:
        """Whether this node leads."""
        return self._driver.is_primary

    @property
    def primary(self) -> int:
        """Engine id of the primary; 0 when nobody is known to be."""
        return self._driver.primary

    @property
    def may_execute(self) -> bool:
        """Whether this node may execute transactions now.

        It is so only after the signature that opens its view, and so after whatever waited for the store before.
        """
        return self._driver.may_execute

    @property
    def is_spare(self) -> bool:
        """As primary: whether the network would go on without this node; also so when there is no other to go on.

        Not while another configuration is coming into force: the others may still count by the former one.
        """
        if len(self.members.all) == 1:
            return True
        if self._loop.time() - self._members_at < _MEMBERS_SETTLE_S:
            return False
        others = {node for node, _, is_active in self.progress() if is_active} - {self.node}
        return all(len(others.intersection(voters)) > len(voters) // 2 for voters in self.members.majorities)

    @property
    def founds(self) -> bool:
        """Whether this node begins a life of the service in which nothing is written yet."""
        return self._driver.founds

    @property
    def quiet_s(self) -> float:
        """Seconds since another node said anything."""
        return self._loop.time() - self._heard_at

    @property
    def without_primary_s(self) -> float:
        """Seconds since this node knew of a primary."""
        return 0.0 if self._driver.primary else self._loop.time() - self._led_at

    @property
    def anchor(self) -> Start:
        """Where a joiner can begin to follow."""
        return self._driver.anchor

    def progress(self) -> list[tuple[int, int, bool]]:
        """As primary, of each node: id, index that it holds durably, and whether it is heard of."""
        return self._driver.progress()

    # --- events ---

    async def found(self) -> None:
        """Begin a life of the service as its only node."""
        self._guarded(self._driver.campaign)
        if self._worker is not None:
            await self._worker
        assert self._driver.is_primary, "a network of one elects itself"

    def stand(self) -> None:
        """Ask for an election now, without waiting for the time at which this node would."""
        self._guarded(self._driver.campaign)

    def follow(self) -> None:
        """Let time pass: from now on there are other nodes."""
        if self._ticking is None:
            self._ticking = self._loop.call_later(TICK_S, self._tick)

    def stop(self) -> None:
        """Let no more time pass."""
        if self._ticking is not None:
            self._ticking.cancel()

    def _tick(self) -> None:
        self._ticking = self._loop.call_later(TICK_S, self._tick)
        self._guarded(self._driver.tick)
        if self._driver.primary:
            self._led_at = self._loop.time()

    def receive(self, sender: int, message: bytes) -> None:
        """A message that came over the link of ``sender``.

        Raises:
            AttestationError: it is none (``peers.malformed``); the link is to be closed.
        """
        self._heard_at = self._loop.time()
        try:
            actions = self._driver.receive(sender, message)
        except ConsensusError as error:
            if error.code != "consensus.bad_message":
                self._fatal(error)
            raise AttestationError("a peer's message is malformed", code="peers.malformed") from error
        except Exception as error:  # noqa: BLE001 - a broken engine ends the process
            self._fatal(error)
            return
        self._guarded(lambda: actions)

    def append(self, position: TransactionId, entry: bytes, is_signature: bool) -> None:
        """Propose the next entry, which is sealed and applied.

        Raises:
            ConsensusError: this node is no primary any more; it rolls the entry back in its turn.
        """
        try:
            actions = self._driver.propose(LedgerEntry(position, entry, is_signature))
        except ConsensusError:
            self._guarded(self._driver.advance)
            raise
        self._do(actions)

    def change_members(self, changes: Sequence[tuple[str, int]]) -> None:
        """Change the configuration as primary; see the driver."""
        self._do(self._driver.change_members(changes))

    async def hand_over(self) -> bool:
        """As primary, let the most advanced backup lead; whether it does."""
        others = [
            (matched, node)
            for node, matched, active in self.progress()
            if active and node != self.node and node in self.members.voters
        ]
        if not self.is_primary or not others:
            return False
        self._guarded(lambda: self._driver.hand_over(max(others)[1]))
        for _ in range(int(_HAND_OVER_S / TICK_S)):
            await asyncio.sleep(TICK_S)
            if not self.is_primary:
                return True
        self._guarded(self._driver.hand_over_failed)
        return False

    async def ask_primary(self, kind: str, body: bytes) -> bytes:
        """The primary's answer to a question of this node.

        Raises:
            BusyError: it cannot be reached now (``node.no_primary``, ``peers.unreachable``).
            CocoError: it refused.
        """
        link = self._links.to(self.primary)
        if link is None:
            raise BusyError("no primary can be reached now; try again", code="node.no_primary")
        return await link.ask(kind, body, timeout_s=limits.PEER_SECONDS_MAX)

    async def read_index(self) -> None:
        """Wait until this node has applied everything that was committed when it was asked.

        Raises:
            BusyError: no primary could confirm it in time (``consensus.no_majority``); ask again.
        """
        context = secrets.token_bytes(16)
        future: asyncio.Future[None] = self._loop.create_future()
        self._reads[context] = future
        try:
            async with asyncio.timeout(limits.READ_INDEX_SECONDS_MAX):
                while not future.done():
                    self._guarded(lambda: self._driver.read_index(context))
                    await asyncio.wait({future}, timeout=_READ_AGAIN_S)
        except TimeoutError as error:
            raise BusyError("no majority of the nodes can be reached", code="consensus.no_majority") from error
        finally:
            del self._reads[context]

    async def confirm(self) -> None:
        """A round of :meth:`read_index` that begins from now on, shared by all who ask before it does.

        Raises:
            BusyError: as there.
        """
        if len(self.members.all) == 1:
            return
        if self._following_round is None:
            self._following_round = self._loop.create_task(self._confirm_after(self._round))
            self._following_round.add_done_callback(lambda done: done.cancelled() or done.exception())
        await asyncio.shield(self._following_round)

    async def _confirm_after(self, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.wait({before})
        self._round, self._following_round = self._following_round, None
        await self.read_index()

    # --- the driver's actions ---

    def _guarded(self, event: Callable[[], Sequence[Action]]) -> None:
        """Carry out an event that nobody above can do anything about if it fails: a broken engine ends the process."""
        try:
            self._do(event())
        except Exception as error:  # noqa: BLE001 - as above
            self._fatal(error)

    def _do(self, actions: Sequence[Action]) -> None:
        for action in actions:
            match action:
                case Send(to, message, is_snapshot):
                    self._send(to, message, is_snapshot)
                case Persist(number, truncate_above, entries):
                    self._persist(number, truncate_above, entries)
                case Committed(position) if not self._waiting:
                    self._settle(position.seqno)
                case _:
                    self._waiting.append(action)
        if self._waiting and self._worker is None:
            self._worker = self._loop.create_task(self._work())
        if self._persisting and self._persisting[0][1] <= self._durable:
            self._report_persisted()

    def _send(self, to: int, message: bytes, is_snapshot: bool) -> None:
        self._links.tell(to, ENGINE, message)
        if is_snapshot:
            # The pointer is small and its state is fetched from anywhere: whether it came shows in the next answer.
            done = lambda: self._guarded(lambda: self._driver.snapshot_sent(to, True))  # noqa: E731
            self._loop.call_later(_SNAPSHOT_PATIENCE_S, done)

    def _persist(self, number: int, truncate_above: int | None, entries: Sequence[LedgerEntry]) -> None:
        if truncate_above is not None:
            self._control.cut(truncate_above)
            self._written = truncate_above
            self._durable = min(self._durable, truncate_above)
            self._persisting = deque((n, min(needed, truncate_above)) for n, needed in self._persisting)
        for entry in entries:
            self._written = entry.position.seqno
            self._control.append(self._written, entry.data)
        self._persisting.append((number, self._written))

    def _appended(self, seqno: int) -> None:
        self._durable = seqno
        self._guarded(tuple)  # no actions, but some may be durable now

    def _report_persisted(self) -> None:
        number = None
        while self._persisting and self._persisting[0][1] <= self._durable:
            number, _ = self._persisting.popleft()
        if number is not None:
            self._do(self._driver.persisted(number))

    async def _work(self) -> None:
        try:
            opening = False
            async with self.writer, self.order:
                while self._waiting:
                    opening = await self._carry_out(self._waiting[0]) or opening
                    self._waiting.popleft()
            self._worker = None
            self.on_view()
            if opening and self.on_opening is not None:
                await self.on_opening()
        except Exception as error:  # noqa: BLE001 - a node that cannot follow stops, with its reason
            self._fatal(error)

    async def _carry_out(self, action: Action) -> bool:
        """Do what touches the store; whether this node leads from here on."""
        match action:
            case Apply(entries):
                for entry in entries:
                    await self.on_apply(entry.position, entry.data)
            case RollBack(seqno):
                self.on_roll_back(seqno)
            case Promoted(view, entries):
                for entry in entries:
                    await self.on_apply(entry.position, entry.data)
                self.on_promoted(view)
                return True
            case Committed(position):
                self._settle(position.seqno)
            case MembersChanged(members):
                self.members, self._members_at = members, self._loop.time()
            case ReadReady(context):
                future = self._reads.get(context)
                if future is not None and not future.done():
                    future.set_result(None)
            case Install(_, _, pointer):
                await self._install(TransactionId.parse(pointer.decode()))
            case ViewChanged():
                pass  # `on_view` follows
            case _:
                raise ConsensusError(f"{type(action).__name__} does not touch the store", code="consensus.bad_action")
        return False

    async def _install(self, wanted: TransactionId) -> None:
        assert self.on_install is not None, "wired before the first message of a peer is heard"
        self._persisting.clear()
        position, signed = await self.on_install(wanted.seqno)
        self._written = position.seqno
        while self._durable < position.seqno:
            await asyncio.sleep(TICK_S)
        self._do(self._driver.installed(position, signed))

    def _settle(self, seqno: int) -> None:
        if seqno > self.committed:
            self.committed = seqno
            self.on_committed(seqno)
        alone = len(self.members.all) == 1
        if self._driver.held_bytes > (limits.LOG_ALONE_BYTES_MAX if alone else limits.LOG_BYTES_MAX):
            self._compact()

    def _compact(self) -> None:
        """Forget the older half of what is kept for backups; one that is further behind gets the state instead."""
        anchor = self._driver.anchor
        self._driver.offer_snapshot(anchor, str(anchor.position).encode())
        self._driver.compact(self._offered if self._offered is not None and len(self.members.all) > 1 else anchor)
        self._offered = anchor
