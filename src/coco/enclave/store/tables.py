"""Typed tables of bytes: views at a version, transactions with savepoints, log tables that read through the ledger."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from coco import _native
from coco.enclave.store.index import LogIndex
from coco.enclave.store.journal import Journal, SealedEntry
from coco.errors import CocoError, StoreError
from coco.ledger import tables

#: Rows that one page of an iteration takes from the store.
_PAGE = 1000


class StoreView:
    """What the store held at one version. State tables answer at once, log tables may ask the host."""

    def __init__(self, store: Store, version: int) -> None:
        self.version = version
        self._store = store
        self._native: _native.Transaction | None = None

    @property
    def native(self) -> _native.Transaction:
        """The view for the extension."""
        if self._native is None:
            self._native = self._store.native.begin(self.version, False)
        return self._native

    def at(self, version: int) -> StoreView:
        """The same store at another version."""
        return self._store.view(version)

    def newest(self) -> StoreView:
        """The same store at its newest version, which may not be committed."""
        return self._store.view()

    def get(self, table: str, key: bytes) -> bytes | None:
        """Value of a key in a state table."""
        return self._store.native.get(table, key, self.version)

    async def locate(self, table: str, key: bytes) -> int | None:
        """Seqno of the entry that wrote a row of a log table: from memory, else from the index that spilled."""
        seqno = self._store.native.written_at(table, key, self.version)
        if seqno is None and self._store.index is not None:
            seqno = await self._store.index.locate(table, key)
        return seqno if seqno is not None and seqno <= self.version else None

    async def fetch(self, table: str, key: bytes) -> bytes | None:
        """Value of a key in a log table: from memory, else from the ledger entry that holds it, verified."""
        try:
            value = self._store.native.get(table, key, self.version)
        except StoreError as error:
            if error.code != "store.in_ledger":
                raise
            value = None
        if value is not None:
            return value
        seqno = await self.locate(table, key)
        if seqno is None:
            return None
        writes = await self._store.journal.fetch(seqno)
        return dict(writes.rows(table)).get(key)

    def scan(self, table: str, prefix: bytes = b"", after: bytes | None = None) -> Iterator[tuple[bytes, bytes]]:
        """Keys and values of a state table that begin with ``prefix``, in order; those behind the key ``after``."""
        while True:
            page = self._store.native.scan(table, prefix, after, self.version, _PAGE)
            for key, value in page:
                yield key, value or b""
            if len(page) < _PAGE:
                return
            after = page[-1][0]


class StoreTransaction:
    """Reads at a snapshot and collects writes, until the framework commits them as one entry."""

    def __init__(self, native: _native.Transaction) -> None:
        self.native = native

    @property
    def version(self) -> int:
        """Version of the snapshot."""
        return self.native.version

    def get(self, table: str, key: bytes) -> bytes | None:
        """Value as this transaction sees it."""
        return self.native.get(table, key)

    def put(self, table: str, key: bytes, value: bytes) -> None:
        """Write a value."""
        self.native.put(table, key, value)

    def put_rows(self, table: str, rows: Sequence[tuple[bytes, bytes]]) -> None:
        """Write several values."""
        self.native.put_rows(table, rows)

    def remove(self, table: str, key: bytes) -> None:
        """Remove a key."""
        self.native.remove(table, key)

    def scan(self, table: str, prefix: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """Keys and values that begin with ``prefix``, in order; the transaction must not write meanwhile."""
        after: bytes | None = None
        while True:
            page = self.native.scan(table, prefix, after, _PAGE)
            for key, value in page:
                yield key, value or b""
            if len(page) < _PAGE:
                return
            after = page[-1][0]

    @contextmanager
    def savepoint(self) -> Iterator[None]:
        """Make a part atomic: an exception undoes what the part wrote, and passes on."""
        point = self.native.savepoint()
        try:
            yield
        except BaseException:
            self.native.roll_back(point)
            raise


class Store:
    """The tables of one node, and their journal."""

    def __init__(self, journal: Journal, native: _native.Store | None = None) -> None:
        self.native = native or _native.Store()
        self.journal = journal
        #: Where the cold part of the log tables' index went; None while it never leaves memory.
        self.index: LogIndex | None = None

    def declare(self, name: str, *, log: bool = False) -> None:
        """Make a table known; log tables are append-only and keep their values in the ledger."""
        self.native.declare(name, log)

    @property
    def latest(self) -> int:
        """Newest version."""
        return self.native.latest

    @property
    def committed(self) -> int:
        """Newest version that can never be rolled back."""
        return self.native.committed

    def view(self, version: int | None = None) -> StoreView:
        """The store at ``version``, or at the newest one.

        Raises:
            StoreError: the version is gone or not there yet (``store.version_unavailable``).
        """
        wanted = self.native.latest if version is None else version
        if not self.native.oldest <= wanted <= self.native.latest:
            raise StoreError(f"version {wanted} is not readable", code="store.version_unavailable")
        return StoreView(self, wanted)

    def begin(self) -> StoreTransaction:
        """A transaction over the newest version, for the single writer."""
        return StoreTransaction(self.native.begin(None, False))

    def begin_optimistic(self) -> StoreTransaction:
        """A transaction whose commit fails with ``store.conflict`` if what it read has changed."""
        return StoreTransaction(self.native.begin(None, True))

    def commit(self, transaction: StoreTransaction, *, claim: bytes | None = None) -> int | None:
        """Seal and apply a transaction as the next entry; return its seqno, or None when it wrote nothing."""
        writes = transaction.native.write_set()
        return None if writes.is_empty() else self.write(writes, claim=claim)

    def write(self, writes: _native.WriteSet, *, claim: bytes | None = None, is_signature: bool = False) -> int:
        """Apply and seal a write set as the next entry, and give it to the journal; return its seqno."""
        return self.journal.append(self.prepare(writes, claim=claim), is_signature=is_signature)

    def prepare(self, writes: _native.WriteSet, *, claim: bytes | None = None) -> SealedEntry:
        """The first part of ``write``: apply and seal.

        It may run off the event loop, as long as nobody else writes until ``journal.append`` has the result.
        """
        assert self.journal.last_seqno == self.native.latest, "store and journal move together"
        complete = self.journal.complete(writes)
        # Applying comes first: it checks the write set, and a refused one must leave no entry behind.
        self.native.apply(self.native.latest + 1, complete)
        try:
            return self.journal.seal(complete, claim=claim)
        except CocoError:
            self.native.roll_back(self.native.latest - 1)
            raise

    def accept(self, data: bytes) -> _native.WriteSet:
        """Apply the next entry, which another node has written and consensus has ordered; return its write set.

        Raises:
            LedgerError: it does not go on from the last one (``ledger.does_not_follow``), signs another root
                (``ledger.other_root``), or its seal is broken. Such a node must stop: it has another past.
        """
        entry = _native.Entry.parse(data)
        writes = self.journal.secret_at(entry.seqno).open(data)
        self.journal.check_next(entry, writes)
        self.native.apply(entry.seqno, writes)
        self.journal.adopt(entry)
        if writes.rows(tables.SIGNATURES):
            self.journal.adopt_signature(entry.seqno)
        return writes

    def roll_back(self, seqno: int) -> None:
        """Undo everything above ``seqno``, which must not be committed, and write no more."""
        self.native.roll_back(seqno)
        self.journal.cut(seqno)
        self.journal.follow()
