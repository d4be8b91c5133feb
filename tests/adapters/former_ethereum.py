"""The Ethereum adapter as former versions had it: an entry claims the hash of its block, and no outcomes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from coco._native import Block, rlp_decode, rlp_encode
from coco.enclave.adapters.contract import BlockContext
from coco.enclave.adapters.ethereum.adapter import EthereumAdapter
from coco.enclave.adapters.ethereum.session import BlockSession
from coco.enclave.store import StoreTransaction
from coco.ledger.claims import Claim


class FormerClaim(Claim):
    """The hash of a block, and nothing else."""

    def encode(self) -> bytes:
        return self.head[:32]


class FormerEthereum(EthereumAdapter):
    """Writes the records and the claims of former versions."""

    async def open(self, tx: StoreTransaction, block: BlockContext) -> FormerSession:
        assert self._head is not None
        return FormerSession(self.chain, self.services.run, self._head, tx, block, self.executed)

    def executed(self, tx: StoreTransaction, block: Block) -> None:
        super().executed(tx, block)
        self._unapplied = None  # it is read again from its record, as where another node has executed it

    def _record(self, tx: StoreTransaction, block: Block) -> None:
        super()._record(tx, _as_formerly(block))


class FormerSession(BlockSession):
    async def close(self) -> FormerClaim:
        claim = await super().close()
        return FormerClaim(claim.adapter, claim.head, claim.root)


def _as_formerly(block: Block) -> Block:
    return Block.decode(rlp_encode(rlp_decode(block.record())[:3]))


def adapter(settings: Mapping[str, Any]) -> FormerEthereum:
    return FormerEthereum(settings)
