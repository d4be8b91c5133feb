"""Ledger entries in SQLite: one file, group commit, synced before it is acknowledged.

Rules: entries are numbered without gap; one thread owns the connection; what waits while a commit runs goes into the
next one; an acknowledgement says that everything up to a seqno survives a power cut (WAL, ``synchronous=FULL``).
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from queue import SimpleQueue

from coco.errors import HostError

_SCHEMA = """
CREATE TABLE IF NOT EXISTS entries (seqno INTEGER PRIMARY KEY, entry BLOB NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS snapshots (seqno INTEGER PRIMARY KEY, snapshot BLOB NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
"""
SCHEMA_VERSION = "1"

_Job = Callable[[sqlite3.Connection], None]


def open_database(path: Path) -> sqlite3.Connection:
    """Open or create a ledger file.

    Raises:
        HostError: the file cannot be opened, is no ledger, or has another version.
    """
    try:
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.executescript(_SCHEMA)
        connection.execute("INSERT OR IGNORE INTO meta VALUES ('schema', ?)", (SCHEMA_VERSION,))
        (version,) = connection.execute("SELECT value FROM meta WHERE name = 'schema'").fetchone()
    except sqlite3.Error as error:
        raise HostError(f"cannot open the ledger {path}: {error}", code="host.ledger_unreadable") from error
    if version != SCHEMA_VERSION:
        raise HostError(f"the ledger {path} has schema {version}", code="host.ledger_version")
    return connection


def read_entries(connection: sqlite3.Connection, first: int, last: int) -> list[bytes]:
    """Entries ``first`` to ``last``, as far as they are there."""
    rows = connection.execute("SELECT entry FROM entries WHERE seqno BETWEEN ? AND ? ORDER BY seqno", (first, last))
    return [entry for (entry,) in rows]


def iterate_entries(connection: sqlite3.Connection) -> Iterator[tuple[int, bytes]]:
    """Every entry with its number, in order."""
    yield from connection.execute("SELECT seqno, entry FROM entries ORDER BY seqno")


def last_seqno(connection: sqlite3.Connection) -> int:
    """Number of the last entry, or 0."""
    (last,) = connection.execute("SELECT COALESCE(MAX(seqno), 0) FROM entries").fetchone()
    return int(last)


class LedgerFile:
    """The ledger of one node, written by one thread."""

    def __init__(
        self,
        path: Path,
        *,
        appended: Callable[[int], None],
        failed: Callable[[Exception], None],
    ) -> None:
        """Open ``path``; ``appended`` and ``failed`` are called from the writing thread."""
        self._connection = open_database(path)
        self._appended = appended
        self._failed = failed
        self._queue: SimpleQueue[tuple[int, Sequence[bytes]] | _Job | None] = SimpleQueue()
        self._last = last_seqno(self._connection)
        self._thread = threading.Thread(target=self._run, name="coco-ledger", daemon=True)
        self._thread.start()

    @property
    def last_seqno(self) -> int:
        """Number of the last entry that is written."""
        return self._last

    def append(self, first: int, entries: Sequence[bytes]) -> None:
        """Queue entries; ``appended`` tells when they are safe."""
        self._queue.put((first, entries))

    def read(self, first: int, last: int, done: Callable[[list[bytes]], None]) -> None:
        """Queue a read; it sees every append queued before it."""
        self._queue.put(lambda connection: done(read_entries(connection, first, last)))

    def truncate(self, seqno: int, done: Callable[[], None]) -> None:
        """Queue the removal of every entry above ``seqno``."""

        def job(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM entries WHERE seqno > ?", (seqno,))
            self._last = min(self._last, seqno)
            done()

        self._queue.put(job)

    def close(self) -> None:
        """Write what is queued and close."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        try:
            while self._step():
                pass
        except Exception as error:  # noqa: BLE001 - any failure of the disk ends this node, with its reason
            self._failed(error)
        finally:
            self._connection.close()

    def _step(self) -> bool:
        item: tuple[int, Sequence[bytes]] | _Job | None = self._queue.get()
        waiting: list[tuple[int, bytes]] = []
        while isinstance(item, tuple):
            first, entries = item
            if first != self._last + 1:
                raise HostError(f"entry {first} does not follow {self._last}", code="host.entry_gap")
            waiting.extend((first + offset, entry) for offset, entry in enumerate(entries))
            self._last = first + len(entries) - 1
            if self._queue.empty():
                self._commit(waiting)
                return True
            item = self._queue.get()
        self._commit(waiting)
        if item is None:
            return False
        item(self._connection)
        return True

    def _commit(self, waiting: list[tuple[int, bytes]]) -> None:
        if not waiting:
            return
        self._connection.execute("BEGIN IMMEDIATE")
        self._connection.executemany("INSERT INTO entries VALUES (?, ?)", waiting)
        self._connection.execute("COMMIT")
        self._appended(waiting[-1][0])
