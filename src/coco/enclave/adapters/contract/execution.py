"""What becomes of transactions: envelopes on their way to a block, the block around them, and their outcomes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import msgspec

from coco.enclave.adapters.contract.routes import AdapterError
from coco.enclave.store import StoreView
from coco.errors import CocoError
from coco.ledger.claims import Claim


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
    #: Ids that must be done, included or refused, before it is begun: see :meth:`PoolPolicy.executed`.
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
    """Verdict of one envelope, and what whoever handed it in is told of it."""

    verdict: Verdict
    reason: str = ""
    #: How long it ran, if the adapter can tell: whoever handed in what took long has the next turn later.
    took_us: int = 0
    #: Whether an included one did what it is for. One that did not undoes the composite transaction that it is part of.
    succeeded: bool = True
    #: What the entry claims of an included one. The framework salts it, keeps it and proves it
    #: (:attr:`AdapterServices.prove_item`); whoever is shown the proof learns nothing of the others. All of a batch
    #: have one, or none has.
    item: bytes | None = None
    #: What :meth:`LedgerAdapter.acknowledge` answers from: a value of the type :attr:`Manifest.reply`.
    reply: Any = None
    #: Keep verdict, reason and reply in the ledger, so that every node can answer, now and after a restart; of a
    #: refused one too, which without it is forgotten. The first refusal counts, and an inclusion before any refusal.
    recorded: bool = False


@dataclass(frozen=True, slots=True)
class Settled:
    """What became of a transaction, at whichever node it was handed in; if it is in the ledger, it is committed."""

    envelope: Envelope
    outcome: Outcome

    def require_included(self) -> None:
        """Raise what a client hears of a refusal that needs no words of the protocol.

        Raises:
            AdapterError: it was refused (``node.dropped``).
        """
        if self.outcome.verdict is not Verdict.INCLUDED:
            raise AdapterError(f"the transaction was dropped: {self.outcome.reason}", code="node.dropped")


class BatchSession(ABC):
    """One batch of an adapter under way on one store transaction: opened, run, and closed or left.

    It may be left at any moment, with everything that it wrote; so it changes nothing but the store transaction and
    itself. What an adapter derives from the store follows in :meth:`LedgerAdapter.applied`, and only there.
    """

    @abstractmethod
    async def run(self, envelope: Envelope) -> Outcome:
        """Run one envelope after those before it.

        What it writes is undone by the framework's savepoint unless it is INCLUDED. An exception refuses this envelope
        and no other one (G3); nothing that the session remembers of it may be in its way afterwards.
        """

    async def close(self) -> Claim | None:
        """Write what concerns the batch as a whole. At least one envelope was INCLUDED; called once, and last.

        Returns:
            What receipts of the entry prove, of an adapter with proofs of its own; None: its outcomes' items, if any.
        """
        return None


class WholeBatchSession(BatchSession):
    """For engines that take many at once: ``run_all`` has the meaning of ``run`` for each."""

    async def run(self, envelope: Envelope) -> Outcome:
        """One batch of one."""
        (outcome,) = await self.run_all([envelope])
        return outcome

    @abstractmethod
    async def run_all(self, envelopes: Sequence[Envelope]) -> Sequence[Outcome]:
        """Run them in order; one outcome for each. Called once.

        If none is INCLUDED, nothing may be written. An exception leaves the session; the framework then runs halves of
        the batch, each in a session of its own, to find whose fault it is (G3).
        """

    def succeeded(self, index: int) -> bool:
        """Whether the envelope ``index``, which was INCLUDED, did what it is for (:attr:`Outcome.succeeded`); asked of
        parts of composite transactions.
        """
        return True


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
    #: Envelopes of one batch, at most; the framework has a limit of its own.
    batch_max = 1 << 30

    def next_positions(self, lanes: Sequence[Hashable], view: StoreView) -> Sequence[int]:
        """The position that each lane would run next on this state."""
        return [0] * len(lanes)

    def executed(self, identities: Sequence[bytes], view: StoreView) -> Sequence[bool]:
        """Whether what an envelope depends on has been executed; else it is waited for until it is done, or whoever
        waits expires. As it stands, an envelope waits only for what is in the pool when its turn comes.
        """
        return [True] * len(identities)

    def check(self, envelopes: Sequence[Envelope], view: StoreView) -> Sequence[CocoError | None]:
        """State checks at the door, such as balance; one answer for each."""
        return [None] * len(envelopes)

    def replaces(self, new: Envelope, old: Envelope) -> CocoError | None:
        """None if ``new`` may take the place of ``old``, else the reason."""
        return AdapterError("the place is taken", code="pool.place_taken")
