"""What the configuration reads of the store: a view of it, a draft, or a ledger that somebody replays."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

from coco import limits


class Gets(Protocol):
    """Single rows of tables."""

    def get(self, table: str, key: bytes) -> bytes | None:
        """Value of a key."""


class Reads(Gets, Protocol):
    """Rows of tables."""

    def scan(self, table: str, prefix: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """Keys and values."""


class ReadsOn(Reads, Protocol):
    """The same, from anywhere in a table."""

    def scan(self, table: str, prefix: bytes = b"", after: bytes | None = None) -> Iterator[tuple[bytes, bytes]]:
        """Keys and values, those behind a key."""


@dataclass(frozen=True, slots=True)
class Paged:
    """One page of a list."""

    rows: list[Any]
    #: The key behind which the next page begins; empty when this is the last.
    last: str


@dataclass(frozen=True, slots=True)
class Page:
    """Which page of a list is asked for, in rows that are looked at: no page costs more, however long the list is."""

    after: str = ""
    rows: int = limits.PAGE_ROWS_MAX

    @property
    def key(self) -> bytes | None:
        """Where the scan of a table begins."""
        return self.after.encode("utf-8", "replace") or None

    def of(self, scanned: Iterator[tuple[bytes, bytes]]) -> Paged:
        """The keys of this page."""
        keys = [key.decode() for key, _ in islice(scanned, self.rows + 1)]
        return Paged(keys[: self.rows], keys[self.rows - 1] if len(keys) > self.rows else "")
