"""What a primary does by itself, in order and one at a time: renew certificates, begin adapters, epochs and another
identity of the service (J9, K1).
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable
from functools import partial
from typing import Any

from coco.configuration import nodes
from coco.configuration.draft import Draft
from coco.enclave.keys.adapter_keys import AdapterKeys
from coco.enclave.keys.certificates import Certificates
from coco.enclave.keys.epochs import Epochs, Row
from coco.enclave.network.key_rotation import KeyRotation
from coco.enclave.ordering.registry import AdapterRegistry
from coco.enclave.ordering.sequencer import Sequencer
from coco.errors import ConsensusError
from coco.ledger import tables

_LOOK_S = 0.5


class PrimaryTasks:
    """The duties of one node, while it is primary.

    Args:
        sequencer: writes the rows.
        certificates: issues what is due.
        epochs: begins what is due.
        protocols: begins what is due.
        keys: of adapters, whose certificates are renewed.
        succession: takes the next step.
        changing: held by whoever changes the rows of nodes.
        log: takes an event with its numbers.
    """

    def __init__(
        self,
        sequencer: Sequencer,
        certificates: Certificates,
        epochs: Epochs,
        protocols: AdapterRegistry,
        keys: AdapterKeys,
        succession: KeyRotation,
        changing: asyncio.Lock,
        log: Callable[..., None],
    ) -> None:
        self._sequencer, self._certificates, self._epochs = sequencer, certificates, epochs
        self._protocols, self._keys, self._succession = protocols, keys, succession
        self._changing, self._log = changing, log

    async def run(self) -> None:
        """For ever."""
        while True:
            await asyncio.sleep(_LOOK_S)
            if not self._sequencer.replica.may_execute or not self._anything_due():
                continue
            try:
                async with self._changing:
                    await self._sequencer.committed(self._sequencer.store.latest)
                    await self._renew()
                    await self._begin_adapters()
                    await self._keep_keys()
                    await self._rekey()
                    if self._nobody_leaves():
                        await self._succession.run(self._view, self._sequencer.clock.now_ms)
            except ConsensusError:
                continue  # deposed meanwhile

    def _anything_due(self) -> bool:
        view, now_ms = self._view, self._sequencer.clock.now_ms
        due = self._certificates.due(view, now_ms) or self._protocols.due(view) or self._succession.due(view)
        return bool(due or self._keys_due(view, now_ms)) or self._epoch_due(Draft(view), now_ms)

    def _epoch_due(self, draft: Draft, now_ms: int) -> bool:
        began = (draft.document(tables.NODE_SECRETS, tables.SINGLETON) or {}).get("began_ms", now_ms)
        old = now_ms - int(began) >= 1000 * int(draft.settings()["epoch_length_s"])
        return old or bool(self._left(draft.view))

    @property
    def _view(self) -> Any:
        return self._sequencer.store.view(self._sequencer.replica.committed)

    async def _renew(self) -> None:
        view, now_ms = self._view, self._sequencer.clock.now_ms
        due = self._certificates.due(view, now_ms)
        if due:
            rows = self._certificates.renewed(due, view, now_ms)
            await self._sequencer.committed(await self._sequencer.write_rows(rows))
            self._log("certificates.renewed", {"nodes": len(rows)})

    async def _begin_adapters(self) -> None:
        for name, document in self._protocols.due(self._view):
            seqno = await self._protocols.begin(name, document)
            await self._sequencer.committed(seqno)
            self._log("adapter.began", {"seqno": seqno})

    def _keys_due(self, view: Any, now_ms: int) -> list[Row]:
        """Keys that adapters have come to want, that the service's other key brings, or whose certificates end soon."""
        manifests = [runtime.adapter.manifest() for runtime in self._protocols.served]
        missing = [self._keys.missing(manifest.name, manifest.keys, view, now_ms) for manifest in manifests]
        return [*itertools.chain(*missing), *self._keys.due(view, now_ms)]

    async def _keep_keys(self) -> None:
        rows = self._keys_due(self._view, self._sequencer.clock.now_ms)
        if rows:
            await self._sequencer.committed(await self._sequencer.write_rows(rows))
            self._log("keys.renewed", {"keys": len(rows)})

    async def _rekey(self) -> None:
        """Begin an epoch when the last one is old, and when a node has left that knew its secret."""
        view, now_ms = self._view, self._sequencer.clock.now_ms
        if not self._nobody_leaves():
            return  # who leaves gets no secret of the next epoch, and its vote may be needed until it has left
        left, draft = self._left(view), Draft(view)
        if not self._epoch_due(draft, now_ms):
            return
        epoch = partial(self._epochs.begin, draft.share_holders(), draft.node_keys(), now_ms)
        await self._sequencer.committed(await self._sequencer.write_rows(left, epoch=epoch))
        self._log("epoch.began", {"first": self._sequencer.store.journal.current_secret[0], "left": len(left)})

    def _nobody_leaves(self) -> bool:
        trusted = {row.engine for row in nodes.rows(self._view) if row.status == nodes.TRUSTED}
        return self._sequencer.replica.members.all <= trusted

    def _left(self, view: Any) -> list[Row]:
        """Rows of the nodes that have left since this epoch began, as they are once the next one has begun."""
        rows: list[Row] = []
        for key, value in view.scan(tables.NODES_INFO):
            row = json.loads(value)
            if row["status"] == nodes.RETIRED and not row.get("retired_committed"):
                rows.append((tables.NODES_INFO, key, tables.row({**row, "retired_committed": True})))
        return rows
