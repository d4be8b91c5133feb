"""Rules of the Ethereum pool: one lane for each account, positions are nonces, replacement by price."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from coco._native import Chain
from coco._native import Envelope as Transaction
from coco.enclave.adapters.base import AdapterError, Envelope, PoolPolicy
from coco.enclave.store import StoreView
from coco.errors import CocoError

#: A replacement must pay this many percent more; with free fees any higher price does.
REPLACEMENT_PERCENT = 10


def refused(message: str, code: str) -> AdapterError:
    """A refusal at the door of the pool."""
    return AdapterError(message, code=f"ethereum.transaction.{code}", rpc_code=-32000)


class NonceOrder(PoolPolicy):
    """Nonces without gap."""

    def __init__(self, chain: Chain) -> None:
        self._chain = chain

    def lane(self, envelope: Envelope) -> Hashable:
        """The sender."""
        sender: bytes = envelope.payload.sender
        return sender

    def position(self, envelope: Envelope) -> int | None:
        """The nonce."""
        nonce: int = envelope.payload.nonce
        return nonce

    def next_positions(self, lanes: Sequence[Hashable], view: StoreView) -> Sequence[int]:
        """The accounts' nonces."""
        found = self._chain.accounts(view.native, [lane for lane in lanes if isinstance(lane, bytes)])
        return [nonce for nonce, _ in found]

    def check(self, envelopes: Sequence[Envelope], view: StoreView) -> Sequence[CocoError | None]:
        """Nonce and balance against the newest state."""
        senders = list(dict.fromkeys(envelope.payload.sender for envelope in envelopes))
        states = dict(zip(senders, self._chain.accounts(view.native, senders), strict=True))
        verdicts: list[CocoError | None] = []
        for envelope in envelopes:
            transaction: Transaction = envelope.payload
            nonce, balance = states[transaction.sender]
            if transaction.nonce < nonce:
                verdicts.append(
                    refused(f"nonce too low: next nonce {nonce}, tx nonce {transaction.nonce}", "nonce_too_low")
                )
            elif transaction.cost > balance:
                verdicts.append(
                    refused(
                        f"insufficient funds for gas * price + value: have {balance} want {transaction.cost}",
                        "insufficient_funds",
                    )
                )
            else:
                verdicts.append(None)
        return verdicts

    def replaces(self, new: Envelope, old: Envelope) -> CocoError | None:
        """By price: both fee and priority fee must rise."""
        first, second = old.payload, new.payload

        def enough(mine: int, theirs: int) -> bool:
            return mine > theirs and mine * 100 >= theirs * (100 + REPLACEMENT_PERCENT)

        if enough(second.max_fee, first.max_fee) and enough(second.max_priority_fee, first.max_priority_fee):
            return None
        return refused("replacement transaction underpriced", "replacement_underpriced")
