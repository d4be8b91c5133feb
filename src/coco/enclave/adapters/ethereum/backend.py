"""What the methods, the filters and the costs ask of a chain: the adapter is one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from coco._native import Block, Chain
from coco.enclave.adapters.contract import AdapterServices, Caller
from coco.enclave.adapters.ethereum.genesis import EthereumSettings
from coco.enclave.adapters.ethereum.parameters import LogQuery
from coco.enclave.store import StoreView


@dataclass
class Filter:
    """An installed filter."""

    actor: str
    kind: str
    logs: LogQuery
    from_block: int
    next_block: int
    touched_at: float = field(default=0.0)


class Filters(Protocol):
    """Installed filters, as methods and costs see them."""

    def install(self, installed: Filter) -> str:
        """Add a filter; its id, which is random so that nobody guesses another's."""

    def get(self, name: str, caller: Caller) -> Filter:
        """The caller's filter of that name."""

    def uninstall(self, name: str, caller: Caller) -> bool:
        """Remove the caller's filter."""

    def behind(self, name: str, newest: int) -> int:
        """Blocks that a filter was not asked about yet."""

    def begins(self, name: str) -> int | None:
        """The block with which a filter for logs begins."""


class Backend(Protocol):
    """One chain on one node."""

    chain: Chain
    settings: EthereumSettings
    services: AdapterServices

    @property
    def events(self) -> Filters:
        """Filters and streams."""

    @property
    def client_version(self) -> str:
        """What the node says that it is."""

    @property
    def committed_number(self) -> int:
        """Number of the newest committed block."""

    @property
    def blocks_remembered(self) -> int:
        """Newest blocks that are in memory, unless older ones were asked for meanwhile."""

    def items_of(self, number: int) -> int | None:
        """Transactions of a block, if it is in memory; none of one that is not there yet."""

    def redact(self, items: Sequence[Any], caller: Caller, view: StoreView) -> list[Any]:
        """Those that the caller may see."""

    async def block(self, number: int, view: StoreView) -> Block | None:
        """A block by its number: any committed one, and any other that is in ``view``."""

    async def block_there(self, number: int, view: StoreView) -> Block:
        """The same, of a block that must be there."""

    async def block_by_hash(self, identity: bytes, view: StoreView) -> Block | None:
        """A block by its hash."""

    async def locate(self, identity: bytes, view: StoreView) -> tuple[Block, int] | None:
        """A transaction's block and its place in it."""

    async def version_of(self, number: int, view: StoreView) -> int:
        """Number of the entry that a block is in."""
