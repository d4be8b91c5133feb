"""The ledger protocols of one node: those of the genesis, and those that members vote in while it runs.

Order: members accept an adapter with its genesis -> every node that applies that entry makes the adapter and declares
its tables -> the primary writes the adapter's first entry, which says that it runs -> once that is committed, it is
served. Whatever of this is rolled back is forgotten, with the adapter.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from coco.configuration.actions.service import ADAPTER_ACCEPTED, ADAPTER_RUNNING
from coco.configuration.reads import Gets, Reads
from coco.enclave.adapters.contract import AdapterServices, BlockContext, LedgerAdapter, Manifest, mounts
from coco.enclave.keys import adapter_keys
from coco.enclave.ordering.composite import composite_runtime
from coco.enclave.ordering.pool import Pool
from coco.enclave.ordering.runtime import AdapterRuntime
from coco.enclave.ordering.sequencer import Sequencer
from coco.enclave.platform.faults import described
from coco.enclave.store import StoreTransaction
from coco.errors import CocoError, ConfigurationError, ConsensusError, GovernanceError
from coco.ledger import tables
from coco.ledger.proofs import COMPOSITE

#: The version that all adapters had before the ledger said so.
_FIRST_VERSION = "1"
AdapterFactory = Callable[[Mapping[str, Any]], LedgerAdapter]


@dataclass
class _Voted:
    """An adapter that members voted in: the entries that accepted it, and that began it (0: not yet)."""

    runtime: AdapterRuntime
    settings: dict[str, Any]
    accepted_at: int
    began_at: int = 0
    served: bool = False


class AdapterRegistry:
    """The adapters.

    Args:
        factories: makes those that this enclave holds.
        sequencer: runs them.
        services: what an adapter is given.
        log: a line for operators.
        first_rows: what the framework writes where an adapter begins.
    """

    def __init__(
        self,
        factories: Mapping[str, AdapterFactory],
        sequencer: Sequencer,
        services: Callable[[AdapterRuntime], AdapterServices],
        log: Callable[..., None],
        first_rows: Callable[[Manifest, Gets], list[tuple[str, bytes, bytes]]] = lambda manifest, view: [],
    ) -> None:
        self._log = log
        sequencer.subscribers.opening.append(self.migrate)
        self._factories, self._sequencer, self._services = factories, sequencer, services
        self._first_rows = first_rows
        self.by_name: dict[str, LedgerAdapter] = {}
        self._voted: dict[str, _Voted] = {}

    def begin_composites(self) -> None:
        """Have transactions of several adapters run as one; once, before any adapter is declared."""
        composite_runtime(self.find, self._run)

    def find(self, name: str) -> AdapterRuntime | None:
        """The adapter of a name, as it runs."""
        return next((runtime for runtime in self._sequencer.runtimes if runtime.name == name), None)

    def declare(self, name: str, settings: Mapping[str, Any]) -> AdapterRuntime:
        """Make an adapter and its tables.

        Raises:
            ConfigurationError: this enclave has none of that name, or it names a table of others, or a mount that is
                no path.
        """
        adapter, mount = self._make(name, settings)
        self.by_name[name] = adapter
        return self._run(adapter, mount)

    def _run(self, adapter: LedgerAdapter, mount: str = mounts.ROOT) -> AdapterRuntime:
        for table in adapter.manifest().tables:
            self._sequencer.store.declare(table.name, log=table.log)
        runtime = AdapterRuntime(adapter, Pool(adapter.pool_policy()), mount=mount)
        self._sequencer.runtimes.append(runtime)
        adapter.start(self._services(runtime))
        return runtime

    def check_clashes(self) -> None:
        """Whether no adapter is in another's way.

        Raises:
            ConfigurationError: one is (``configuration.adapter_clash``).
        """
        mounted = self._mounted()
        for index, (manifest, mount) in enumerate(mounted):
            mounts.check_clash(manifest, mount, mounted[:index])

    def _mounted(self) -> list[tuple[Manifest, str]]:
        # Composite transactions are served below /coco/, which is nobody's but the framework's.
        runtimes = [runtime for runtime in self._sequencer.runtimes if runtime.name != COMPOSITE]
        return [(runtime.manifest, runtime.mount) for runtime in runtimes]

    def _make(self, name: str, settings: Mapping[str, Any]) -> tuple[LedgerAdapter, str]:
        factory = self._factories.get(name)
        if factory is None:
            raise ConfigurationError(f"no adapter {name[:64]} in this enclave", code="configuration.unknown_adapter")
        adapter = factory(mounts.own_settings(settings))
        manifest = adapter.manifest()
        adapter_keys.check(manifest.name, manifest.keys)
        for table in manifest.tables:
            if not table.name.startswith(f"{manifest.name}."):
                raise ConfigurationError(
                    f"table {table.name} is outside its adapter", code="configuration.adapter_table"
                )
        return adapter, mounts.mount_of(manifest, settings)

    # --- by vote ---

    def check(self, asked: Mapping[str, Mapping[str, Any]]) -> None:
        """Whether adapters could be voted in together, by name and genesis: every node must be able to run them, and
        none may be in anybody's way.

        Raises:
            GovernanceError: they could not (``gov.bad_adapter``).
        """
        beside = self._mounted()
        for name, settings in asked.items():
            try:
                adapter, mount = self._make(name, settings)
                mounts.check_clash(adapter.manifest(), mount, beside)
                beside.append((adapter.manifest(), mount))
            except CocoError as error:
                raise GovernanceError(f"the adapter {name[:64]} cannot be: {error}", code="gov.bad_adapter") from error

    def adopt(self, seqno: int, rows: Iterable[tuple[bytes, bytes | None]]) -> None:
        """Take in what the entry ``seqno`` says of adapters, or a snapshot of the state after it."""
        for key, value in rows:
            name, document = key.decode(), json.loads(value or b"{}")
            if name not in self.by_name:
                runtime = self.declare(name, document["genesis"])
                self._voted[name] = _Voted(runtime, document["genesis"], seqno)
            if document["status"] == ADAPTER_RUNNING and name in self._voted:
                self._voted[name].began_at = seqno

    def rolled_back(self, seqno: int) -> None:
        """Everything above ``seqno`` never was; called before the adapters hear of it."""
        for name, voted in list(self._voted.items()):
            if voted.accepted_at <= seqno and (not voted.began_at or voted.began_at <= seqno):
                continue
            self._sequencer.runtimes.remove(voted.runtime)
            del self.by_name[name], self._voted[name]
            if voted.accepted_at <= seqno:  # accepted, but not begun any more: as fresh as it was
                runtime = self.declare(name, voted.settings)
                self._voted[name] = _Voted(runtime, voted.settings, voted.accepted_at)

    def newly_served(self, committed: int) -> list[AdapterRuntime]:
        """Adapters whose first entry is committed, and that are not served yet."""
        found = [one for one in self._voted.values() if 0 < one.began_at <= committed and not one.served]
        for one in found:
            one.served = True
        return [one.runtime for one in found]

    @property
    def served(self) -> list[AdapterRuntime]:
        """Adapters that clients may call."""
        waiting = {id(one.runtime) for one in self._voted.values() if not one.served}
        return [runtime for runtime in self._sequencer.runtimes if id(runtime) not in waiting]

    def due(self, view: Reads) -> list[tuple[str, dict[str, Any]]]:
        """Names and documents of adapters that were accepted and have not begun."""
        rows = ((key.decode(), json.loads(row)) for key, row in view.scan(tables.ADAPTERS))
        return [(name, document) for name, document in rows if document["status"] == ADAPTER_ACCEPTED]

    async def begin(self, name: str, document: dict[str, Any]) -> int:
        """Write the first entry of an adapter, as the primary; its number."""
        row = (tables.ADAPTERS, name.encode(), tables.row({**document, "status": ADAPTER_RUNNING}))
        settings, runtime = mounts.own_settings(document["genesis"]), self._voted[name].runtime

        async def fill(tx: StoreTransaction, block: BlockContext) -> None:
            runtime.adapter.genesis(settings, tx, block)

        keys = self._first_rows(runtime.manifest, self._sequencer.store.view())
        return await self._sequencer.write_adapter(runtime, fill, [row, *version_rows(runtime.manifest), *keys])

    # --- versions ---

    async def migrate(self) -> None:
        """As the primary, before it executes: bring the tables of every adapter to the version of this code.

        An adapter that cannot takes no transactions as long as this node leads.
        """
        for runtime in self._sequencer.runtimes:
            key, manifest = runtime.name.encode(), runtime.manifest
            row = self._sequencer.store.view().get(tables.ADAPTER_VERSIONS, key)
            stored = _FIRST_VERSION if row is None else row.decode()
            runtime.unfit = None
            if stored == manifest.version or self._is_to_begin(runtime):
                continue
            fill = partial(runtime.adapter.migrate, stored)
            rows = [(tables.ADAPTER_VERSIONS, key, manifest.version.encode())]
            try:
                seqno = await self._sequencer.write_adapter(runtime, fill, rows)
                self._log("adapter.migrated", {"at": seqno}, {"adapter": runtime.name})
            except ConsensusError:
                raise
            except Exception as error:  # noqa: BLE001 - an adapter's failure is its own, not the node's
                numbers, ids = described(error)
                self._log("adapter.unfit", numbers, {"adapter": runtime.name, **ids})
                if not isinstance(error, CocoError):
                    error = ConfigurationError("its tables cannot be migrated", code="configuration.adapter_version")
                runtime.unfit = error

    def _is_to_begin(self, runtime: AdapterRuntime) -> bool:
        voted = self._voted.get(runtime.name)
        return voted is not None and not voted.began_at


def version_rows(manifest: Manifest) -> list[tuple[str, bytes, bytes]]:
    """What the ledger says of the version of an adapter's tables, where they are not of the first one."""
    if manifest.version == _FIRST_VERSION:
        return []
    return [(tables.ADAPTER_VERSIONS, manifest.name.encode(), manifest.version.encode())]


def with_voted(genesis: bytes, view: Reads) -> bytes:
    """The genesis as if the adapters that run by a vote had been in it: what a joiner needs before it reads."""
    rows = {key.decode(): json.loads(row) for key, row in view.scan(tables.ADAPTERS)}
    voted = {name: row["genesis"] for name, row in rows.items() if row["status"] == ADAPTER_RUNNING}
    if not voted:
        return genesis
    document = json.loads(genesis)
    return tables.row({**document, "adapters": {**document.get("adapters", {}), **voted}})
