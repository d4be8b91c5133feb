"""An adapter as it runs: with its pool and with what is known of its newest transactions."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from coco.enclave.adapters.contract import Envelope, LedgerAdapter, Manifest
from coco.enclave.ordering.pool import Pool
from coco.errors import CocoError


@dataclass
class AdapterRuntime:
    """An adapter, its pool, and who waits for its transactions."""

    adapter: LedgerAdapter
    pool: Pool
    waiting: dict[bytes, list[asyncio.Future[str]]] = field(default_factory=dict)
    #: Seqno of the entry that each of the newest transactions is in, committed or not.
    included: dict[bytes, int] = field(default_factory=dict)
    #: Path below which it is served (``contract/mounts.py``).
    mount: str = "/"
    #: Of a composite transaction's envelope: what it is made of. None: the adapter has none such.
    parts_of: Callable[[Envelope], Sequence[tuple[AdapterRuntime, Envelope]]] | None = None
    #: Why this node, as primary, takes no transactions of it: its tables are of a version that this code cannot bring
    #: to its own.
    unfit: CocoError | None = None
    #: When the batch under way was taken from its pool.
    taken_at_s: float = 0.0
    #: A batch of it waits for somebody outside the enclave; the next one waits for that.
    is_outside: bool = False

    @cached_property
    def manifest(self) -> Manifest:
        """What the adapter declares."""
        return self.adapter.manifest()

    @cached_property
    def name(self) -> str:
        """The adapter's name."""
        return self.manifest.name
