"""What an auditor has read so far, and the entry that it reads now.

Rules: every public row of an entry must be *taken* by the step that wrote it, and a step takes only what the model
(:mod:`coco.audit.model`) gives it; whatever is left over was written by nobody who may.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from coco._native import Entry, WriteSet
from coco.audit import model
from coco.audit.model import Step
from coco.errors import ConfigurationError
from coco.ledger import tables

Key = tuple[str, bytes]
Changes = dict[Key, bytes | None]
#: Where an entry says how long its public part is, and where that begins (docs/ledger-format.md).
_PUBLIC_SIZE_AT, _PUBLIC_AT = 36, 44
_NO_CLAIMS = bytes(32)


def illegal(why: str, code: str) -> ConfigurationError:
    """The refusal of a step; the auditor adds the entry."""
    return ConfigurationError(why, code=f"audit.{code}")


def document(value: bytes | None, what: str = "a row") -> dict[str, Any]:
    """The JSON object of a row that a node writes, in the only form in which it does.

    Raises:
        ConfigurationError: it is none (``audit.malformed``).
    """
    try:
        found = json.loads((value or b"").decode())
        if isinstance(found, dict) and tables.row(found) == value:
            return found
    except (ValueError, RecursionError):
        pass
    raise illegal(f"{what} is not as a node writes it", "malformed")


@dataclass
class Rows:
    """The public tables, as far as they were read."""

    by_table: dict[str, dict[bytes, bytes]] = field(default_factory=dict)

    def get(self, table: str, key: bytes) -> bytes | None:
        """Value of a key."""
        return self.by_table.get(table, {}).get(key)

    def scan(self, table: str, prefix: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """Rows of a table, in order."""
        return iter(sorted(one for one in self.by_table.get(table, {}).items() if one[0].startswith(prefix)))

    def document(self, table: str, key: bytes = tables.SINGLETON) -> dict[str, Any]:
        """The JSON object of a row; an empty one where there is none."""
        found: dict[str, Any] = json.loads(self.get(table, key) or b"{}")
        return found

    def apply(self, changes: Changes) -> None:
        """Take the rows of an entry."""
        for (table, key), value in changes.items():
            if value is None:
                self.by_table.get(table, {}).pop(key, None)
            else:
                self.by_table.setdefault(table, {})[key] = value

    def copy(self) -> Rows:
        """The same, to go on from here in another way."""
        return Rows({table: dict(rows) for table, rows in self.by_table.items()})


@dataclass
class Written:
    """One entry: where it lies, what it writes, and which step it is."""

    seqno: int
    view: int
    changes: Changes
    #: Whether it has a sealed part, and a claim.
    sealed: bool = False
    claims: bool = False
    step: Step = Step.APPLICATION
    _left: set[Key] = field(default_factory=set)

    @classmethod
    def parse(cls, data: bytes) -> Written:
        """Read an entry.

        Raises:
            LedgerError: it is none.
        """
        return cls.of(data, Entry.parse(data))

    @classmethod
    def of(cls, data: bytes, entry: Entry) -> Written:
        """The same, when it is parsed already."""
        writes = entry.public_writes()
        public = int.from_bytes(data[_PUBLIC_SIZE_AT:_PUBLIC_AT], "little")
        sealed = len(data) > _PUBLIC_AT + public
        return cls(entry.seqno, entry.view, changes(writes), sealed, entry.claims_digest != _NO_CLAIMS)

    def __post_init__(self) -> None:
        self._left = set(self.changes)

    @property
    def left(self) -> set[str]:
        """Names of the tables with rows that no step has taken yet."""
        return {table for table, _ in self._left}

    def keys(self, table: str) -> list[bytes]:
        """Keys of a table that no step has taken yet."""
        return sorted(key for name, key in self._left if name == table)

    def has(self, table: str, key: bytes = tables.SINGLETON) -> bool:
        """Whether a row is there that no step has taken yet."""
        return (table, key) in self._left

    def value(self, table: str, key: bytes = tables.SINGLETON) -> bytes | None:
        """What a row says, without taking it."""
        return self.changes.get((table, key))

    def take(self, table: str, key: bytes = tables.SINGLETON) -> bytes:
        """A row that this step writes; whoever takes it judges it.

        Raises:
            ConfigurationError: it is not there, or it is removed (``audit.row_missing``).
        """
        found = self.take_any(table, key)
        if found is None:
            raise illegal(f"a row of {table} is removed", "removed")
        return found

    def take_removed(self, table: str, key: bytes = tables.SINGLETON) -> None:
        """The same of a row that this step removes."""
        if self.take_any(table, key) is not None:
            raise illegal(f"a row of {table} is not removed", "other_effect")

    def take_any(self, table: str, key: bytes = tables.SINGLETON) -> bytes | None:
        """The same of a row that may be removed."""
        if not model.writes(self.step, table):
            raise illegal(f"{table} changed in {self.step.value}, which does not write that", "no_request")
        if (table, key) not in self._left:
            raise illegal(f"{self.step.value} without its row of {table}", "row_missing")
        self._left.discard((table, key))
        return self.changes[table, key]

    def expect(self, table: str, key: bytes, value: bytes | None) -> None:
        """Take a row of which it is known what it must be.

        Raises:
            ConfigurationError: it is something else (``audit.other_effect``).
        """
        if self.take_any(table, key) != value:
            raise illegal(f"{self.step.value} gives something else in {table}", "other_effect")

    def nothing_left(self) -> None:
        """Whether every row was taken.

        Raises:
            ConfigurationError: there is one that this step does not write (``audit.no_request``).
        """
        if self._left:
            named = ", ".join(sorted(self.left))
            raise illegal(f"{named} changed in {self.step.value}, which does not write that", "no_request")


def changes(writes: WriteSet) -> Changes:
    """The rows of a write set."""
    return {(table, key): value for table in writes.tables() for key, value in writes.rows(table)}
