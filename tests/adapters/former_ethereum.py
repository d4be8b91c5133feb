"""The Ethereum adapter as former versions had it: an entry claims the hash of its block, and no outcomes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from coco._native import Block, rlp_decode, rlp_encode
from coco.enclave.adapters.contract import BlockContext, Envelope, Outcome
from coco.enclave.adapters.ethereum.adapter import EthereumAdapter
from coco.enclave.store import StoreTransaction


class FormerEthereum(EthereumAdapter):
    """Writes the records and the claims of former versions."""

    async def execute(
        self, batch: Sequence[Envelope], tx: StoreTransaction, block: BlockContext
    ) -> tuple[Sequence[Outcome], bytes | None]:
        ran, claim = await super().execute(batch, tx, block)
        if claim is None or self._unapplied is None:
            return ran, None
        self._unapplied = _as_formerly(self._unapplied)
        return ran, self._unapplied.hash

    def _record(self, tx: StoreTransaction, block: Block) -> None:
        super()._record(tx, _as_formerly(block))


def _as_formerly(block: Block) -> Block:
    return Block.decode(rlp_encode(rlp_decode(block.record())[:3]))


def adapter(settings: Mapping[str, Any]) -> FormerEthereum:
    return FormerEthereum(settings)
