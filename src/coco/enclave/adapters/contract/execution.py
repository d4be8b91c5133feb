"""What becomes of transactions: envelopes on their way to a block, the block around them, and their outcomes."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import msgspec

from coco.enclave.adapters.contract.routes import AdapterError
from coco.enclave.store import StoreView
from coco.errors import CocoError


class Envelope(msgspec.Struct):
    """A checked transaction on its way to a block."""

    #: Identifies the transaction in its protocol: its hash, its header signature.
    id: bytes
    #: The adapter's own form.
    payload: Any
    #: Bytes that it counts for.
    size: int
    #: Envelopes of one lane run in the order of their positions, without gap.
    lane: Hashable = ""
    #: Place in the lane, or None for the order of arrival.
    position: int | None = None
    #: Ids that must have been executed before it.
    depends_on: tuple[bytes, ...] = ()
    #: What executing it may cost at most, in a unit of the adapter's own: for shares, with :attr:`PoolPolicy.turn`.
    cost: int = 1
    #: Who handed it in (:attr:`Caller.actor`); the framework sets it.
    actor: str = ""


class Verdict(Enum):
    """What execution did with one envelope of a batch."""

    #: It is in the block, successful or failed, and has an outcome that can be asked for.
    INCLUDED = "included"
    #: It can never run at this point, and leaves the pool.
    REFUSED = "refused"
    #: It did not fit; it stays in the pool.
    DEFERRED = "deferred"


@dataclass(frozen=True, slots=True)
class Outcome:
    """Verdict of one envelope."""

    verdict: Verdict
    reason: str = ""
    #: How long it ran, if the adapter can tell: whoever handed in what took long has the next turn later.
    took_us: int = 0


@dataclass(frozen=True, slots=True)
class BlockContext:
    """What surrounds one batch."""

    #: Enclave time, never below the last batch's.
    time_ms: int
    #: 32 fresh bytes of enclave randomness; the outcome is recorded, so it may be used.
    randomness: bytes
    #: 32 more bytes, which nobody but enclaves may ever see: what an adapter salts its claims with (``ledger.claims``).
    #: It records what it needs of them again in a private table. Zeros in a genesis, which claims nothing.
    secret: bytes = field(repr=False)
    #: Seqno that the batch will have if nothing else is written before it.
    expected_seqno: int
    #: Time that executing the batch should take: after it nothing more is begun, but one envelope at least. What is
    #: left is DEFERRED. 0: there is no such time.
    target_ms: int = 0


class PoolPolicy:
    """The rules of a pool, which the framework keeps: where lanes go on, state checks, replacement.

    As it stands: first come, first served.
    """

    #: What one actor may take, in the unit of :attr:`Envelope.cost`, before it is another one's turn.
    turn = 16

    def next_positions(self, lanes: Sequence[Hashable], view: StoreView) -> Sequence[int]:
        """The position that each lane would run next on this state."""
        return [0] * len(lanes)

    def check(self, envelopes: Sequence[Envelope], view: StoreView) -> Sequence[CocoError | None]:
        """State checks at the door, such as balance; one answer for each."""
        return [None] * len(envelopes)

    def replaces(self, new: Envelope, old: Envelope) -> CocoError | None:
        """None if ``new`` may take the place of ``old``, else the reason."""
        return AdapterError("the place is taken", code="pool.place_taken")
