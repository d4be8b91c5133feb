"""Ledger entries in SQLite: one file, group commit, synced before it is acknowledged.

Rules: entries are numbered without gap; one thread owns the connection; what waits while a commit runs goes into the
next one; an acknowledgement says that everything up to a seqno survives a power cut (WAL, ``synchronous=FULL``). A
start deletes no entry: what it does not believe is *set aside*, in a table of the same file, and can be put back.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from coco import limits
from coco.errors import ConfigurationError, HostError

_SCHEMA = """
CREATE TABLE IF NOT EXISTS entries (seqno INTEGER PRIMARY KEY, entry BLOB NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS snapshots (seqno INTEGER, number INTEGER, part BLOB NOT NULL, PRIMARY KEY (seqno, number))
    STRICT;
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS set_aside (batch INTEGER, seqno INTEGER, entry BLOB NOT NULL, PRIMARY KEY (batch, seqno))
    STRICT;
CREATE TABLE IF NOT EXISTS set_aside_batches (batch INTEGER PRIMARY KEY, at_s INTEGER NOT NULL, reason TEXT NOT NULL)
    STRICT;
"""
SCHEMA_VERSION = "2"
#: From schema 1, which kept no snapshot, to 2.
_MIGRATION = "DROP TABLE snapshots; UPDATE meta SET value = '2' WHERE name = 'schema';"
#: What only a signature entry contains, and where an entry has its view (docs/ledger-format.md).
_SIGNATURES, _IV_VIEW = b"public:ccf.internal.signatures", 32
#: Entries that are set aside in one transaction, from the last one down: a start that is cut short loses none.
_ASIDE_AT_ONCE = 1000
_ASIDE_HINT = "move the file away: a node that joins fetches the ledger from the others; to recover, take another copy"
#: The disk is full, broken or may only be read.
_OF_THE_DISK = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN)

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
        if version == "1":
            connection.executescript(f"BEGIN; {_MIGRATION} COMMIT; {_SCHEMA}")
            version = SCHEMA_VERSION
    except sqlite3.Error as error:
        raise unreadable(path, error) from error
    if version != SCHEMA_VERSION:
        raise HostError(f"the ledger {path} has schema {version}", code="host.ledger_version")
    return connection


def read_entries(connection: sqlite3.Connection, first: int, last: int) -> list[bytes]:
    """Entries ``first`` to ``last``, as far as they are there and fit into one message."""
    rows = connection.execute("SELECT entry FROM entries WHERE seqno BETWEEN ? AND ? ORDER BY seqno", (first, last))
    found: list[bytes] = []
    size = 0
    for (entry,) in rows:
        size += len(entry)
        if found and size > limits.READ_BYTES_SOFT:
            break
        found.append(entry)
    return found


def iterate_entries(connection: sqlite3.Connection) -> Iterator[tuple[int, bytes]]:
    """Every entry with its number, in order."""
    yield from connection.execute("SELECT seqno, entry FROM entries ORDER BY seqno")


def last_seqno(connection: sqlite3.Connection) -> int:
    """Number of the last entry, or 0."""
    (last,) = connection.execute("SELECT COALESCE(MAX(seqno), 0) FROM entries").fetchone()
    return int(last)


def last_signed(path: Path) -> tuple[int, int]:
    """View and seqno of the last entry of a ledger that looks like a signature; (0, 0) when there is none.

    Nothing is verified: this only chooses the ledger that a recovery begins with.

    Raises:
        HostError: it cannot be read (``host.ledger_unreadable``).
    """
    connection = open_database(path)
    try:
        for seqno, data in connection.execute("SELECT seqno, entry FROM entries ORDER BY seqno DESC"):
            if _SIGNATURES in data:
                return int.from_bytes(data[_IV_VIEW : _IV_VIEW + 4], "little") & 0x7FFFFFFF, int(seqno)
        return 0, 0
    except sqlite3.Error as error:
        raise unreadable(path, error) from error
    finally:
        connection.close()


def unreadable(path: Path, error: sqlite3.Error) -> HostError:
    """What to say of a ledger whose file is damaged, or whose disk takes no more."""
    if getattr(error, "sqlite_errorcode", 0) & 0xFF in _OF_THE_DISK:
        return HostError(
            f"the ledger {path} cannot be written: {error}",
            code="host.disk",
            hint="make room on that disk, or look whether it is whole, and start again: what was acknowledged is there",
        )
    return HostError(f"cannot read the ledger {path}: {error}", code="host.ledger_unreadable", hint=_ASIDE_HINT)


# --- what a start did not believe ---


@dataclass(frozen=True)
class Aside:
    """Entries that a start did not believe, as they are kept."""

    batch: int
    at_s: int
    reason: str
    first: int
    last: int
    entries: int
    #: How many of them look like signatures; nothing is verified.
    signed: int


def set_aside(connection: sqlite3.Connection, above: int, reason: str) -> int:
    """Move every entry above ``above`` out of the ledger, but not out of the file; return the batch, 0 for nothing."""
    last = last_seqno(connection)
    if last <= above:
        return 0
    connection.execute("BEGIN IMMEDIATE")
    batch = _new_batch(connection, reason)
    connection.execute("COMMIT")
    while last > above:
        low = max(above, last - _ASIDE_AT_ONCE)
        connection.execute("BEGIN IMMEDIATE")
        _move_aside(connection, batch, low)
        connection.execute("COMMIT")
        last = low
    return batch


def _new_batch(connection: sqlite3.Connection, reason: str) -> int:
    row = connection.execute(
        "INSERT INTO set_aside_batches (at_s, reason) VALUES (?, ?) RETURNING batch", (int(time.time()), reason)
    ).fetchone()
    return int(row[0])


def _move_aside(connection: sqlite3.Connection, batch: int, above: int) -> None:
    connection.execute("INSERT INTO set_aside SELECT ?, seqno, entry FROM entries WHERE seqno > ?", (batch, above))
    connection.execute("DELETE FROM entries WHERE seqno > ?", (above,))


def asides(connection: sqlite3.Connection) -> list[Aside]:
    """What is set aside, oldest first."""
    found = connection.execute(
        "SELECT batch, at_s, reason, MIN(seqno), MAX(seqno), COUNT(*), SUM(INSTR(entry, ?) > 0)"
        " FROM set_aside JOIN set_aside_batches USING (batch) GROUP BY batch ORDER BY batch",
        (_SIGNATURES,),
    )
    return [Aside(*row) for row in found]


def put_back(connection: sqlite3.Connection, batch: int) -> Aside:
    """Make a batch part of the ledger again; entries in its place, and after it, are set aside in their turn.

    Raises:
        ConfigurationError: there is no such batch (``ledger.no_such_aside``), or what comes before it is not there
            (``ledger.aside_does_not_fit``).
    """
    wanted = next((one for one in asides(connection) if one.batch == batch), None)
    if wanted is None:
        raise ConfigurationError(
            f"nothing was set aside under number {batch}", code="ledger.no_such_aside", hint="see coco ledger aside"
        )
    if last_seqno(connection) < wanted.first - 1 or wanted.entries != wanted.last - wanted.first + 1:
        raise ConfigurationError(
            f"entries {wanted.first} to {wanted.last} do not follow the ledger, which ends at {last_seqno(connection)}",
            code="ledger.aside_does_not_fit",
            hint="put back what was set aside before it first",
        )
    connection.execute("BEGIN IMMEDIATE")
    if last_seqno(connection) >= wanted.first:
        _move_aside(connection, _new_batch(connection, f"put_back.{batch}"), wanted.first - 1)
    connection.execute("INSERT INTO entries SELECT seqno, entry FROM set_aside WHERE batch = ?", (batch,))
    _forget(connection, batch)
    connection.execute("COMMIT")
    return wanted


def _forget(connection: sqlite3.Connection, batch: int) -> None:
    connection.execute("DELETE FROM set_aside WHERE batch = ?", (batch,))
    connection.execute("DELETE FROM set_aside_batches WHERE batch = ?", (batch,))


class IndexFile:
    """Sealed runs of the log tables' index, of use only to the process that sealed them; used by one thread."""

    def __init__(self, path: Path) -> None:
        """Begin anew at ``path``; the file is made when there is something to keep."""
        self._path = path
        path.unlink(missing_ok=True)
        self._open: sqlite3.Connection | None = None

    def _connection(self) -> sqlite3.Connection:
        if self._open is None:
            self._open = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
            self._open.execute("PRAGMA journal_mode=OFF")
            self._open.execute("PRAGMA synchronous=OFF")
            self._open.execute(
                "CREATE TABLE runs (run INTEGER, block INTEGER, sealed BLOB NOT NULL, PRIMARY KEY (run, block)) STRICT"
            )
        return self._open

    def write(self, run: int, first: int, blocks: Sequence[bytes]) -> None:
        """Keep blocks of a run."""
        rows = [(run, first + offset, block) for offset, block in enumerate(blocks)]
        self._connection().executemany("INSERT INTO runs VALUES (?, ?, ?)", rows)

    def read(self, run: int, block: int) -> bytes:
        """A block, or nothing."""
        found = self._connection().execute("SELECT sealed FROM runs WHERE run = ? AND block = ?", (run, block))
        row = found.fetchone()
        return b"" if row is None else bytes(row[0])

    def drop(self, run: int) -> None:
        """Forget a run."""
        self._connection().execute("DELETE FROM runs WHERE run = ?", (run,))

    def close(self) -> None:
        """Remove the file."""
        if self._open is not None:
            self._open.close()
        self._path.unlink(missing_ok=True)


def _identities(path: Path) -> dict[str, tuple[int, int]]:
    """Which files the ledger and its log of writes are, by name, as far as they are there."""
    found: dict[str, tuple[int, int]] = {}
    for name in (path.name, f"{path.name}-wal"):
        with contextlib.suppress(OSError):
            status = path.with_name(name).stat()
            found[name] = (status.st_dev, status.st_ino)
    return found


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
        self._path, self._files = path, _identities(path)
        self._index = IndexFile(path.with_name("index.db"))
        self._appended = appended
        self._failed = failed
        self._queue: SimpleQueue[tuple[int, Sequence[bytes]] | _Job | None] = SimpleQueue()
        self._last = last_seqno(self._connection)
        #: What this start has set aside, while it may still come back as it was.
        self._aside = 0
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

    def set_aside(self, seqno: int, reason: str, done: Callable[[], None]) -> None:
        """Queue that every entry above ``seqno`` is set aside; one that is then appended as it was is kept once."""

        def job(connection: sqlite3.Connection) -> None:
            self._aside = set_aside(connection, seqno, reason) or self._aside
            self._last = min(self._last, seqno)
            done()

        self._queue.put(job)

    def settle_aside(self, done: Callable[[Aside | None], None]) -> None:
        """Queue the end of a start; ``done`` hears what of the ledger it has set aside for good."""

        def job(connection: sqlite3.Connection) -> None:
            batch, self._aside = self._aside, 0
            left = next((one for one in asides(connection) if one.batch == batch), None) if batch else None
            if batch and left is None:
                _forget(connection, batch)
            done(left)

        self._queue.put(job)

    def truncate(self, seqno: int, done: Callable[[], None]) -> None:
        """Queue the removal of every entry above ``seqno``: the network has rolled them back."""

        def job(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM entries WHERE seqno > ?", (seqno,))
            self._last = min(self._last, seqno)
            done()

        self._queue.put(job)

    def write_index(self, run: int, first: int, blocks: Sequence[bytes]) -> None:
        """Queue blocks of the index."""
        self._queue.put(lambda _: self._index.write(run, first, blocks))

    def read_index(self, run: int, block: int, done: Callable[[bytes], None]) -> None:
        """Queue a read of the index; it sees every write queued before it."""
        self._queue.put(lambda _: done(self._index.read(run, block)))

    def drop_index(self, run: int) -> None:
        """Queue the end of a run of the index."""
        self._queue.put(lambda _: self._index.drop(run))

    def write_snapshot(self, seqno: int, number: int, part: bytes, done: Callable[[], None]) -> None:
        """Queue a part of a snapshot; ``done`` is called once it is safe."""

        def job(connection: sqlite3.Connection) -> None:
            connection.execute("INSERT OR REPLACE INTO snapshots VALUES (?, ?, ?)", (seqno, number, part))
            done()

        self._queue.put(job)

    def read_snapshot(self, seqno: int, number: int, done: Callable[[bytes], None]) -> None:
        """Queue a read of a part of a snapshot; nothing when there is none."""

        def job(connection: sqlite3.Connection) -> None:
            found = connection.execute("SELECT part FROM snapshots WHERE seqno = ? AND number = ?", (seqno, number))
            row = found.fetchone()
            done(b"" if row is None else bytes(row[0]))

        self._queue.put(job)

    def keep_snapshot(self, seqno: int) -> None:
        """Queue the removal of every snapshot but one."""

        def job(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM snapshots WHERE seqno != ?", (seqno,))

        self._queue.put(job)

    def check(self) -> None:
        """Queue a look whether the file is still the one in its folder."""
        self._queue.put(lambda _: self._is_there())

    def _is_there(self) -> None:
        """Written into a file that is gone, nothing is safe, though every write succeeds.

        Raises:
            HostError: it was removed or replaced (``host.ledger_gone``); what it had is in a new file beside it.
        """
        if all(_identities(self._path).get(name) == found for name, found in self._files.items()):
            return
        rescued = self._path.with_name(f"ledger.rescued.{time.time_ns()}.db")
        try:
            with contextlib.closing(sqlite3.connect(rescued)) as copy:
                self._connection.backup(copy)
            what = f"what it had is in {rescued}"
        except sqlite3.Error as error:
            what = f"it could not be copied: {error}"
        raise HostError(
            f"the ledger {self._path} was removed or replaced while its node ran; {what}",
            code="host.ledger_gone",
            hint="move the copy to where the ledger was and start again",
        )

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
            self._index.close()

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
        self._is_there()
        self._connection.execute("BEGIN IMMEDIATE")
        self._connection.executemany("INSERT INTO entries VALUES (?, ?)", waiting)
        if self._aside:
            same = ((self._aside, seqno, entry) for seqno, entry in waiting)
            self._connection.executemany("DELETE FROM set_aside WHERE batch = ? AND seqno = ? AND entry = ?", same)
        self._connection.execute("COMMIT")
        self._appended(waiting[-1][0])
