"""Reads a ledger that somebody gave: a node's file, or a folder of chunk files.

Rules:

* Nothing is written, not even beside the file: it may lie on a medium that cannot be written, or be evidence.
* The file is hostile: ``entries`` must be a table with two stored columns, numbers without gap and bytes of at most one
  entry's length; everything else is refused with its place named, before it can take memory or time.
"""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path

from coco import limits
from coco.errors import ConfigurationError, HostError, LedgerError
from coco.ledger.chunks import read_chunks

_COLUMNS = (("seqno", "INTEGER"), ("entry", "BLOB"))


def entries(ledger: Path) -> Iterator[tuple[int, bytes]]:
    """Every entry with its number, in order.

    Args:
        ledger: a node's file, or a folder that ``coco ledger export`` wrote.

    Raises:
        ConfigurationError: there is none (``ledger.no_file``).
        HostError: it is none (``host.ledger_unreadable``).
        LedgerError: a place in it holds no entry (``ledger.damaged``, ``ledger.gap``, ``ledger.bad_chunk``).
    """
    if ledger.is_dir():
        if not any(ledger.glob("ledger_*.committed")):
            raise ConfigurationError(f"there are no chunk files in {ledger}", code="ledger.no_file")
        yield from read_chunks(ledger)
        return
    if not ledger.is_file():
        raise ConfigurationError(f"there is no ledger at {ledger}", code="ledger.no_file")
    try:
        with contextlib.ExitStack() as stack:
            connection = stack.enter_context(contextlib.closing(_open(ledger, stack)))
            yield from _rows(connection, ledger)
    except sqlite3.Error as error:
        raise HostError(f"cannot open the ledger {ledger}: {error}", code="host.ledger_unreadable") from error


def _open(ledger: Path, stack: contextlib.ExitStack) -> sqlite3.Connection:
    """Open for reading, so that nothing is left behind.

    What a host that runs, or was killed, has not moved into its file yet lies in a log beside it. SQLite reads that
    with an index of its own, which it would leave behind; where there is none, a copy is read.
    """
    log, index = (ledger.with_name(ledger.name + end) for end in ("-wal", "-shm"))
    waits = log.is_file() and log.stat().st_size > 0
    if waits and not index.exists():
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="coco-audit-")))
        for path in (ledger, log):
            shutil.copyfile(path, folder / path.name)
        ledger = folder / ledger.name
    how = "mode=ro" if waits else "mode=ro&immutable=1"
    connection = sqlite3.connect(f"{ledger.absolute().as_uri()}?{how}", uri=True, isolation_level=None)
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, limits.ENTRY_BYTES_MAX + limits.KIB)
    connection.execute("PRAGMA trusted_schema = OFF")
    connection.execute("PRAGMA query_only = ON")
    return connection


def _rows(connection: sqlite3.Connection, ledger: Path) -> Iterator[tuple[int, bytes]]:
    kinds = connection.execute("SELECT type, sql LIKE 'CREATE VIRTUAL%' FROM sqlite_schema WHERE name = 'entries'")
    columns = connection.execute(
        "SELECT name, type FROM pragma_table_xinfo('entries') WHERE hidden = 0 AND dflt_value IS NULL"
    )
    whole = connection.execute("SELECT count(*) FROM pragma_table_xinfo('entries')").fetchone()
    if kinds.fetchall() != [("table", 0)] or tuple(columns.fetchall()) != _COLUMNS or whole != (len(_COLUMNS),):
        raise HostError(f"{ledger} is no ledger of a node", code="host.ledger_unreadable")
    rows = connection.execute("SELECT seqno, typeof(entry), CAST(entry AS BLOB) FROM entries ORDER BY seqno")
    for expected, (seqno, kind, entry) in enumerate(rows, 1):
        if seqno != expected:
            raise LedgerError(f"entry {expected} is missing", code="ledger.gap", numbers={"entry": expected})
        if kind != "blob":
            why = f"entry {seqno} is damaged: it is {kind}, not bytes"
            raise LedgerError(why, code="ledger.damaged", numbers={"entry": seqno})
        yield seqno, entry
