"""What a node stands on before it knows its network: what its process hands it, and what its host says of the start."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from typing import Any

from coco import _native
from coco._native import Front
from coco.channel import messages
from coco.enclave.network.evidence import NodeEvidence
from coco.enclave.ordering.registry import AdapterFactory
from coco.enclave.ordering.replica import Replica
from coco.enclave.platform.background import Background
from coco.enclave.platform.children import Children
from coco.enclave.platform.clock import Clock
from coco.enclave.platform.control import Control
from coco.enclave.platform.evidence.attester import Attester
from coco.enclave.platform.faults import Faults
from coco.enclave.platform.rules_worker import Rules
from coco.enclave.store import Journal, LogIndex, Store
from coco.enclave.transport.links import Links
from coco.ledger import tables
from coco.ledger.transaction_id import TransactionId


@dataclass(frozen=True)
class Handed:
    """What the process hands to its node, after the lock-down."""

    control: Control
    #: The listeners, by purpose.
    doors: dict[str, Front]
    background: _native.Background
    rules: Rules
    children: Children
    #: How the lock-down went, part by part.
    report: dict[str, str]
    attester: Attester
    factories: Mapping[str, AdapterFactory]
    #: Ends the process, with the reason if there is one.
    ended: Callable[[BaseException | None], None]


class Ground:
    """The same for every life of a node: channel, clock, journal, links.

    Args:
        handed: from the process.
        start: from the host.
        faults: hears of what nobody expected.
    """

    #: This node's part in consensus, from when it knows its place.
    replica: Replica

    def __init__(self, handed: Handed, start: messages.Start, faults: Faults) -> None:
        self.loop = asyncio.get_running_loop()
        self.control, self.doors, self.report = handed.control, handed.doors, handed.report
        self.children = handed.children
        self.rules, self.factories, self.ended = handed.rules, handed.factories, handed.ended
        self.background = Background(handed.background)
        self.log, self.faults = handed.control.log, faults
        self.start = start
        #: The enclave's time; who joins or recovers begins anew with what the network, or the ledger, says.
        self.clock = Clock(start.time_ms)
        self.configuration_hash = sha256(messages.encode(start)).digest()
        self.evidence = NodeEvidence(handed.attester, self.control, lambda: self.clock.now_ms // 1000)
        self.journal = Journal(append=self._append, read=self.control.read)
        self.links = Links(
            self.doors.pop("peers"),
            self.doors.pop("dialled"),
            dial=lambda dial, address: self.control.send(messages.Dial(dial, address)),
            failed=self.ended,
            unexpected=faults.unexpected,
            log=self.log,
        )
        self.control.on_dial_failed = self.links.dial_failed

    def _append(self, position: TransactionId, entry: bytes, is_signature: bool) -> None:
        self.replica.append(position, entry, is_signature)

    def new_store(self) -> Store:
        """An empty store over the journal, with the framework's own tables."""
        store = Store(self.journal)
        store.index = LogIndex(store.native, self.control, run=self.run_off_loop, spawn=self.spawn)
        for name in tables.STATE_TABLES:
            store.declare(name)
        for name in tables.LOG_TABLES:
            store.declare(name, log=True)
        return store

    async def run_off_loop(self, function: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
        """Run what takes long on a thread; its result."""
        return await self.loop.run_in_executor(None, partial(function, *arguments, **keywords))

    def spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        """Run a task whose failure ends the node."""
        task = self.loop.create_task(work)
        task.add_done_callback(lambda t: self.ended(t.exception()) if not t.cancelled() and t.exception() else None)
