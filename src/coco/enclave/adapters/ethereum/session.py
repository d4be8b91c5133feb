"""A block under way: the extension runs a whole batch in one call, and says what became of each transaction."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import lru_cache
from typing import Any

from coco._native import Block, Chain
from coco.enclave.adapters.contract import BlockContext, Envelope, Outcome, Verdict, WholeBatchSession
from coco.enclave.store import StoreTransaction
from coco.ledger import outcomes
from coco.ledger.claims import Claim

_DEFERRED = Outcome(Verdict.DEFERRED)


@lru_cache(maxsize=1024)
def _outcome(verdict: int | str) -> Outcome:
    """Of what the extension says: microseconds, a reason, or "" for the next block."""
    if isinstance(verdict, int):
        return Outcome(Verdict.INCLUDED, took_us=verdict)
    return Outcome(Verdict.REFUSED, verdict) if verdict else _DEFERRED


class BlockSession(WholeBatchSession):
    """The block after ``head``.

    Args:
        chain: runs it.
        run: has the extension do it off the event loop (:attr:`AdapterServices.run`).
        head: the newest block.
        tx: what it writes.
        context: of the batch.
        executed: is given the block, to write its record.
    """

    def __init__(
        self,
        chain: Chain,
        run: Callable[..., Awaitable[Any]],
        head: Block,
        tx: StoreTransaction,
        context: BlockContext,
        executed: Callable[[StoreTransaction, Block], None],
    ) -> None:
        self._chain, self._run, self._head = chain, run, head
        self._tx, self._context, self._executed = tx, context, executed
        self._block: Block | None = None

    async def run_all(self, envelopes: Sequence[Envelope]) -> Sequence[Outcome]:
        """One block of them."""
        context = self._context
        self._block, verdicts = await self._run(
            self._chain.execute,
            self._tx.native,
            self._head,
            context.time_ms // 1000,
            context.randomness,
            context.secret,
            [envelope.payload for envelope in envelopes],
            context.target_ms,
        )
        return [_outcome(verdict) for verdict in verdicts]

    def succeeded(self, index: int) -> bool:
        """Its status."""
        return self._block is not None and self._block.receipt(index)["status"] == "0x1"

    async def close(self) -> Claim:
        """Write the block's record."""
        block = self._block
        assert block is not None, "closed only if a transaction is included, and then there is a block"
        self._executed(self._tx, block)
        assert block.claims_root is not None, "it was executed here, and 8 MiB hold fewer transactions than claims may"
        return outcomes.claim(block.hash, block.number, block.timestamp, block.claims_root)
