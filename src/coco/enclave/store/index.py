"""The cold part of the log tables' index: sealed runs that the host keeps, so that memory follows state, not history.

Rules: a row leaves memory only after its block is on its way to the host, over the same ordered channel by which it is
read back; what comes back is authenticated as that block of that run before anything of it is used; runs live no longer
than this process, because a restart replays the ledger. What a run is: ``rust/coco-core/src/store/run.rs``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Protocol

from coco import _native, limits
from coco.errors import HostLiedError, StoreError


class RunStorage(Protocol):
    """Where sealed blocks lie; :class:`coco.enclave.platform.control.Control` in an enclave."""

    def write_index(self, run: int, first: int, blocks: Sequence[bytes]) -> None:
        """Keep blocks of a run, the first of which has the number ``first``."""

    async def read_index(self, run: int, block: int) -> bytes:
        """A block, unverified."""

    def drop_index(self, run: int) -> None:
        """Forget a run."""


class LogIndex:
    """Finds rows that memory has forgotten, and makes it forget."""

    def __init__(
        self,
        native: _native.Store,
        storage: RunStorage,
        *,
        run: Callable[..., Awaitable[Any]],
        spawn: Callable[[Coroutine[Any, Any, None]], None],
        rows_cold_max: int = limits.INDEX_ROWS_COLD_MAX,
    ) -> None:
        """``run`` calls the extension off the event loop; ``spawn`` works in the background."""
        self._native, self._storage, self._run, self._spawn = native, storage, run, spawn
        #: Cold rows that memory keeps.
        self.rows_cold_max = rows_cold_max
        self._busy = False

    async def locate(self, table: str, key: bytes) -> int | None:
        """Seqno of the entry that wrote a row which memory does not know; None when it was never written.

        Raises:
            HostLiedError: the host gave another block (``channel.wrong_index_block``).
        """
        while True:
            for run, block in self._native.candidates(table, key):
                sealed = await self._storage.read_index(run, block)
                if not self._native.has_run(run):
                    break  # merged into another one meanwhile: look again
                found: int | None = self._checked(self._native.find, run, block, sealed, table, key)
                if found is not None:
                    return found
            else:
                return None

    def relieve(self) -> None:
        """Spill in the background when too many rows are cold."""
        if not self._busy and self._native.cold() >= self.rows_cold_max:
            self._busy = True
            self._spawn(self._relieve())

    async def _relieve(self) -> None:
        await self.spill()
        self._busy = False

    async def relieve_now(self) -> None:
        """The same, before going on: for a replay, which is faster than what spills behind it."""
        if self._native.cold() >= self.rows_cold_max:
            await self.spill()

    async def spill(self) -> None:
        """Move every cold row into a run, and merge runs of like size."""
        run, first, blocks = await self._run(self._native.spill)
        self._storage.write_index(run, first, blocks)
        await self._run(self._native.forget_spilled)
        while self._native.begin_merge():
            await self._merge()

    async def _merge(self) -> None:
        while (wanted := self._native.merge_wants()) is not None:
            sealed = await self._storage.read_index(*wanted)
            run, first, blocks = self._checked(self._native.merge_take, sealed)
            self._storage.write_index(run, first, blocks)
        for old in self._native.end_merge():
            self._storage.drop_index(old)

    @staticmethod
    def _checked(call: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return call(*arguments)
        except StoreError as error:
            if error.code != "store.bad_block":
                raise
            raise HostLiedError(
                "a block of the index is not what was written", code="channel.wrong_index_block"
            ) from error
