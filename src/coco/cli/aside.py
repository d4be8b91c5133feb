"""``coco ledger aside`` and ``put-back``: what a start did not believe, which no start deletes."""

from __future__ import annotations

import datetime
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from coco.errors import ConfigurationError
from coco.host.folder import FolderLock
from coco.host.persistence import asides, open_database, put_back, set_aside, unreadable

_T = TypeVar("_T")


def _with(ledger: Path, work: Callable[[sqlite3.Connection], _T]) -> _T:
    if not ledger.is_file():
        raise ConfigurationError(f"there is no ledger at {ledger}", code="ledger.no_file")
    connection = open_database(ledger)
    try:
        return work(connection)
    except sqlite3.Error as error:
        raise unreadable(ledger, error) from error
    finally:
        connection.close()


def _alone(ledger: Path, work: Callable[[sqlite3.Connection], _T]) -> _T:
    """The same while no node runs on the ledger."""
    if not ledger.is_file():
        raise ConfigurationError(f"there is no ledger at {ledger}", code="ledger.no_file")
    lock = FolderLock(ledger.parent)
    try:
        return _with(ledger, work)
    finally:
        lock.release()


def listed(ledger: Path) -> list[dict[str, Any]]:
    """What is set aside, oldest first.

    Raises:
        ConfigurationError: there is no such ledger (``ledger.no_file``).
        HostError: its file is damaged (``host.ledger_unreadable``).
    """
    return [
        {
            "number": one.batch,
            "at": datetime.datetime.fromtimestamp(one.at_s, datetime.UTC).isoformat(),
            "reason": one.reason,
            "first": one.first,
            "last": one.last,
            "entries": one.entries,
            "signed": one.signed,
        }
        for one in _with(ledger, asides)
    ]


def restore(ledger: Path, number: int) -> dict[str, Any]:
    """Make what was set aside part of the ledger again; what stands in its place is set aside in its turn.

    Raises:
        ConfigurationError: there is no such ledger or number, or it does not follow what is there.
        HostError: a node runs on the ledger (``host.folder_in_use``).
    """
    done = _alone(ledger, lambda connection: put_back(connection, number))
    return {"number": done.batch, "first": done.first, "last": done.last, "entries": done.entries}


def cut(ledger: Path, first: int) -> dict[str, Any]:
    """Set aside everything from an entry on, as a person decides: the only way past damage that no other copy mends.

    Raises:
        ConfigurationError: there is no such ledger.
        HostError: a node runs on the ledger (``host.folder_in_use``).
    """
    number = _alone(ledger, lambda connection: set_aside(connection, max(0, first - 1), "person"))
    found = next((one for one in listed(ledger) if one["number"] == number), None)
    return found or {"number": 0, "entries": 0}
