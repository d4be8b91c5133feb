"""Who hears what becomes of entries and transactions, in the order in which they asked to hear it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from coco._native import WriteSet
from coco.enclave.ordering.runtime import AdapterRuntime


@dataclass(frozen=True)
class Subscribers:
    """One list for each kind of news; whoever adds itself hears of everything from then on. Nobody may raise."""

    #: An entry was applied; those of an adapter at the node that executed them are not told.
    applied: list[Callable[[WriteSet], None]] = field(default_factory=list)
    #: Entries above this one never were; told before the adapters are.
    rolled_back: list[Callable[[int], None]] = field(default_factory=list)
    #: More is committed, and whoever waited for it has been told.
    committed: list[Callable[[], None]] = field(default_factory=list)
    #: There may be another view, primary or list of members.
    view_changed: list[Callable[[], None]] = field(default_factory=list)
    #: A transaction left the order: its adapter, its id, and why ("": it is committed).
    settled: list[Callable[[AdapterRuntime, bytes, str], None]] = field(default_factory=list)
    #: What arrived before this time, in milliseconds, has waited too long.
    expired: list[Callable[[int], None]] = field(default_factory=list)
    #: This node has begun to lead; it executes nothing before everybody who hears of it is done.
    opening: list[Callable[[], Awaitable[None]]] = field(default_factory=list)
    #: A batch of an adapter is executed next; it waits until everybody who hears of it is ready.
    executing: list[Callable[[AdapterRuntime, Sequence[bytes]], Awaitable[None]]] = field(default_factory=list)
