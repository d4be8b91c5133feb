"""What the configuration reads of the store: a view of it, a draft, or a ledger that somebody replays."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol


class Gets(Protocol):
    """Single rows of tables."""

    def get(self, table: str, key: bytes) -> bytes | None:
        """Value of a key."""


class Reads(Gets, Protocol):
    """Rows of tables."""

    def scan(self, table: str, prefix: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """Keys and values."""
