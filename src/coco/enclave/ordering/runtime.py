"""An adapter as it runs: with its pool and with what is known of its newest transactions."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from functools import cached_property

from coco.enclave.adapters.contract import LedgerAdapter
from coco.enclave.ordering.pool import Pool


@dataclass
class AdapterRuntime:
    """An adapter, its pool, and who waits for its transactions."""

    adapter: LedgerAdapter
    pool: Pool
    waiting: dict[bytes, list[asyncio.Future[str]]] = field(default_factory=dict)
    #: Seqno of the entry that each of the newest transactions is in, committed or not.
    included: dict[bytes, int] = field(default_factory=dict)

    @cached_property
    def name(self) -> str:
        """The adapter's name."""
        return self.adapter.manifest().name
