"""Rules of the Ethereum pool: one lane for each account, positions are nonces, replacement by price.

Lane and position are in the envelope, from admission on.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from coco._native import Chain
from coco.enclave.adapters.contract import AdapterError, Envelope, PoolPolicy
from coco.enclave.store import StoreView
from coco.errors import CocoError

#: A replacement must pay this many percent more; with free fees any higher price does.
REPLACEMENT_PERCENT = 10
#: Gas of one turn: some twenty transfers of a token.
TURN_GAS = 1_000_000


def refused(message: str, code: str) -> AdapterError:
    """A refusal at the door of the pool."""
    return AdapterError(message, code=f"ethereum.transaction.{code}", rpc_code=-32000)


class NonceOrder(PoolPolicy):
    """Nonces without gap; turns by gas."""

    turn = TURN_GAS

    def __init__(self, chain: Chain) -> None:
        self._chain = chain

    def next_positions(self, lanes: Sequence[Hashable], view: StoreView) -> Sequence[int]:
        """The accounts' nonces."""
        found = self._chain.accounts(view.native, [lane for lane in lanes if isinstance(lane, bytes)])
        return [nonce for nonce, _ in found]

    def check(self, envelopes: Sequence[Envelope], view: StoreView) -> Sequence[CocoError | None]:
        """Nonce and balance against the newest state."""
        found = self._chain.check(view.native, [envelope.payload for envelope in envelopes])
        return [None if refusal is None else refused(refusal[1], refusal[0]) for refusal in found]

    def replaces(self, new: Envelope, old: Envelope) -> CocoError | None:
        """By price: both fee and priority fee must rise."""
        first, second = old.payload, new.payload

        def enough(mine: int, theirs: int) -> bool:
            return mine > theirs and mine * 100 >= theirs * (100 + REPLACEMENT_PERCENT)

        if enough(second.max_fee, first.max_fee) and enough(second.max_priority_fee, first.max_priority_fee):
            return None
        return refused("replacement transaction underpriced", "replacement_underpriced")
