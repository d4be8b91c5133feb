"""Virtual time, a network that loses messages, and disks that are slow. All chance comes from one generator.

Times are milliseconds since the start of the run.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from coco.consensus import NOWHERE, LedgerEntry
from coco.ledger.transaction_id import TransactionId


@dataclass
class Weather:
    """What the network and the disks do to what passes through them."""

    delay_ms: tuple[int, int] = (1, 6)
    drop: float = 0.0
    duplicate: float = 0.0
    #: Chances that a lying host sends a message of long ago again, or delivers one to another node.
    replay: float = 0.0
    misdeliver: float = 0.0
    fsync_ms: tuple[int, int] = (1, 4)
    #: Pairs of hosts that do not hear each other, in the direction given.
    cut: set[tuple[int, int]] = field(default_factory=set)


class World:
    """The clock and the network of one run."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)  # noqa: S311 - a run must be repeatable
        self.now = 0
        self.weather = Weather()
        self._events: list[tuple[int, int, Callable[[], None]]] = []
        self._order = 0
        self._old: list[Callable[[], None]] = []

    def after(self, delay_ms: int, event: Callable[[], None]) -> None:
        """Let something happen later."""
        self._order += 1
        heapq.heappush(self._events, (self.now + delay_ms, self._order, event))

    def run_until(self, end: int) -> None:
        """Let everything happen that is due before ``end``."""
        while self._events and self._events[0][0] <= end:
            self.now, _, event = heapq.heappop(self._events)
            event()
        self.now = end

    def carry(self, sender: int, receiver: int, deliver: Callable[[], None], *, size: int = 0) -> None:
        """Carry a message between two hosts, or lose it; large ones take longer (100 MB a second)."""
        weather, chance = self.weather, self.random
        copies = 1 + (chance.random() < weather.duplicate)
        if (sender, receiver) in weather.cut or chance.random() < weather.drop:
            copies = 0
        for _ in range(copies):
            self.after(chance.randint(*weather.delay_ms) + size // 100_000, deliver)
        if weather.replay and size < 10_000:
            if len(self._old) < 1000:
                self._old.append(deliver)
            if chance.random() < weather.replay:
                self.after(chance.randint(1, 100), chance.choice(self._old))


class Disk:
    """The ledger of one process on its host: what is durable, and what a crash loses."""

    def __init__(self, world: World, base: TransactionId = NOWHERE) -> None:
        self._world = world
        #: Everything up to here came as a snapshot.
        self.base = base
        self.entries: list[LedgerEntry] = []
        self._waiting: list[tuple[Callable[[], None], Callable[[], None]]] = []
        self._busy = False

    def holds(self, position: TransactionId) -> bool:
        """Whether the entry at ``position`` is durable here."""
        place = position.seqno - self.base.seqno - 1
        if place < 0:
            return True
        return place < len(self.entries) and self.entries[place].position == position

    def write(self, truncate_above: int | None, entries: tuple[LedgerEntry, ...], durable: Callable[[], None]) -> None:
        """Store entries; what waits together is synced together, and ``durable`` is called after."""

        def change() -> None:
            if truncate_above is not None:
                del self.entries[max(0, truncate_above - self.base.seqno) :]
            self.entries.extend(entries)

        self._waiting.append((change, durable))
        if not self._busy:
            self._busy = True
            self._world.after(self._world.random.randint(*self._world.weather.fsync_ms), self._sync)

    def restart_at(self, base: TransactionId) -> None:
        """A snapshot takes the place of everything."""
        self.base, self.entries, self._waiting = base, [], []

    def crash(self) -> None:
        """What was not synced may have become durable, or not."""
        if self._world.random.random() < 0.5:
            for change, _ in self._waiting:
                change()
        self._waiting = []

    def _sync(self) -> None:
        waiting, self._waiting, self._busy = self._waiting, [], False
        for change, _ in waiting:
            change()
        for _, durable in waiting:
            durable()
