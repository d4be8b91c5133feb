"""Ledger entries as the engine carries them: with a header, and large ones in pieces.

Rules: a header names view, seqno and piece; pieces of an entry follow each other without anything between; an entry
whose pieces do not all come (its primary was deposed in the middle) never was.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from coco import limits
from coco.errors import ConsensusError
from coco.ledger.transaction_id import TransactionId

#: View, seqno, piece, pieces, whether it is a signature entry.
_HEADER = struct.Struct(">QQHH?")


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """An entry of the ledger, sealed, and where it lies."""

    position: TransactionId
    data: bytes
    is_signature: bool


def cut(entry: LedgerEntry) -> Iterator[tuple[bytes, bytes]]:
    """Context and data of each piece, in order."""
    size = limits.PIECE_BYTES_MAX
    pieces = max(1, -(-len(entry.data) // size))
    for piece in range(pieces):
        header = _HEADER.pack(*entry.position, piece, pieces, entry.is_signature)
        yield header, entry.data[piece * size : (piece + 1) * size]


class Assembler:
    """Puts pieces together again, in the order of the log."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._header: tuple[int, int, int, bool] | None = None
        #: Index of the first piece of the entry under way, or of the one that came last.
        self.first = 0

    @classmethod
    def within(cls, entry: LedgerEntry, first: int) -> Assembler:
        """An entry as if its last pieces had not come yet; :meth:`keep` says which have."""
        made = cls()
        pieces = [data for _, data in cut(entry)]
        made._parts, made.first = pieces, first
        made._header = (*entry.position, len(pieces), entry.is_signature)
        return made

    def keep(self, below: int) -> bool:
        """Forget the pieces at ``below`` and after it; whether any is left of an entry under way."""
        self._parts = self._parts[: max(0, below - self.first)]
        if not self._parts:
            self._header = None
        return self.is_within

    @property
    def following(self) -> int:
        """Index at which the next piece belongs."""
        return self.first + len(self._parts)

    @property
    def is_within(self) -> bool:
        """Whether an entry is under way."""
        return self._header is not None

    def add(self, index: int, context: bytes, data: bytes) -> LedgerEntry | None:
        """The entry that this piece completes, or None.

        Raises:
            ConsensusError: not a piece, or one out of order (``consensus.bad_entry``).
        """
        try:
            view, seqno, piece, pieces, is_signature = _HEADER.unpack(context)
        except struct.error as error:
            raise ConsensusError("an entry has no header", code="consensus.bad_entry") from error
        header = (view, seqno, pieces, is_signature)
        if piece == 0:
            self._parts, self._header, self.first = [], header, index
        if header != self._header or piece != len(self._parts) or piece >= pieces:
            raise ConsensusError("a piece of an entry is out of order", code="consensus.bad_entry")
        self._parts.append(data)
        if sum(map(len, self._parts)) > limits.ENTRY_BYTES_MAX:
            raise ConsensusError("an entry is too large", code="consensus.bad_entry")
        if piece + 1 < pieces:
            return None
        whole = b"".join(self._parts) if pieces > 1 else data
        self._parts, self._header = [], None
        return LedgerEntry(TransactionId(view, seqno), whole, is_signature)
