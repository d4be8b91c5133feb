"""Read a ledger from its first entry and find what of it can be believed. Sans-I/O; used by recovery and by auditors.

Rules:
1. Entry n+1 names the leaf of entry n, and has number n+1; views never fall.
2. A signature entry counts when both its signatures verify over the root of everything before it, under the service
   certificate that the ledger itself last declared before it.
3. The last such entry is the end: what follows is an *unsigned tail*, counted and not believed. But if a damaged place
   has a signed entry behind it, the damage is *interior*, and the ledger is refused with the entry named. Which service
   signed cannot be asked there: the damaged entry may be the one that declares it. A write that was cut short leaves
   nothing signed behind it, so whatever carries a node's true signature proves the damage.
4. A cut exactly at a signature cannot be seen here: whoever knows a later transaction id must compare.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from coco._native import Entry, MerkleTree, WriteSet
from coco.errors import CocoError, LedgerError
from coco.ledger import signature, tables
from coco.ledger.transaction_id import TransactionId


@dataclass
class Replay:
    """Feed entries in order, then ask for the end."""

    tree: MerkleTree = field(default_factory=MerkleTree)
    entries: list[Entry] = field(default_factory=list)
    #: Signature entries in the chain, verified or not yet.
    signatures: list[int] = field(default_factory=list)
    _services: list[tuple[int, x509.Certificate]] = field(default_factory=list)
    #: First seqno that does not fit, and why.
    broken: tuple[int, str] | None = None
    #: First entry of a life that began to recover and never opened: nothing was ever acknowledged in it.
    unopened: int | None = None
    _signed_after_break: bool = False
    #: Signature entries that were verified already, by this object or by whoever judges the same entries.
    verified: dict[int, signature.RootSignature] = field(default_factory=dict)
    _count: int = 0
    _last_bad: bytes | None = None

    def feed(self, entries: Iterable[bytes]) -> None:
        """Take the next entries, as they come from the disk."""
        for data in entries:
            self._count += 1
            if self.broken is None:
                self._next(data)
            else:
                self._behind_break(data)

    def _next(self, data: bytes) -> None:
        seqno = len(self.entries) + 1
        try:
            entry = Entry.parse(data)
            writes = entry.public_writes()
        except CocoError as error:
            self.broken = (seqno, str(error))
            return
        named = dict(writes.rows(tables.PREDECESSOR)).get(tables.SINGLETON)
        previous = self.tree.leaf(seqno - 1)
        if entry.seqno != seqno or (self.entries and entry.view < self.entries[-1].view):
            self.broken = (seqno, f"it calls itself {entry.view}.{entry.seqno}")
            self._look_for_signature(writes)
            return
        if named != previous:
            # Either this entry or the one before was changed; the next one tells which.
            self.broken = (max(1, seqno - 1), f"entry {seqno} names another predecessor")
            self._last_bad = data
            self._look_for_signature(writes)
            return
        self.entries.append(entry)
        self.tree.append(entry.leaf)
        self._note(seqno, writes)

    def _note(self, seqno: int, writes: WriteSet) -> None:
        info = dict(writes.rows(tables.SERVICE_INFO)).get(tables.SINGLETON)
        if info is not None:
            try:
                parsed = json.loads(info)
                certificate = x509.load_pem_x509_certificate(parsed["cert"].encode())
                status = str(parsed["status"])
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                why = f"entry {seqno} declares no service"
                raise LedgerError(why, code="ledger.damaged", numbers={"entry": seqno}) from error
            self._services.append((seqno, certificate))
            if status == "Open":
                self.unopened = None
            elif status == "Recovering" and self.unopened is None:
                self.unopened = seqno
        if writes.rows(tables.SIGNATURES):
            self.signatures.append(seqno)

    def _behind_break(self, data: bytes) -> None:
        assert self.broken is not None, "the caller has just looked"
        try:
            entry = Entry.parse(data)
            writes = entry.public_writes()
        except CocoError:
            return
        if self._last_bad is not None:
            named = dict(writes.rows(tables.PREDECESSOR)).get(tables.SINGLETON)
            try:
                if named != Entry.parse(self._last_bad).leaf:
                    self.broken = (self.broken[0] + 1, "its bytes are not what the next entry names")
            except CocoError:
                pass
            self._last_bad = None
        self._look_for_signature(writes)

    def _look_for_signature(self, writes: WriteSet) -> None:
        """Whether an entry that does not fit the chain was signed nevertheless: then what lacks was there once."""
        rows, cose_rows = writes.rows(tables.SIGNATURES), writes.rows(tables.COSE_SIGNATURES)
        if rows and cose_rows:
            try:
                signature.verify_node(signature.parse_rows(rows[0][1] or b"", cose_rows[0][1] or b""))
                self._signed_after_break = True
            except LedgerError:
                pass

    def _service_key(self, seqno: int) -> ec.EllipticCurvePublicKey:
        known = [certificate for first, certificate in self._services if first < seqno]
        if not known:
            raise LedgerError("the ledger declares no service", code="ledger.damaged")
        key = known[-1].public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise LedgerError("the service has no elliptic-curve key", code="ledger.damaged")
        return key

    def service_certificate(self, seqno: int) -> x509.Certificate:
        """The service certificate in force just before entry ``seqno``."""
        return [certificate for first, certificate in self._services if first < seqno][-1]

    def services(self) -> list[x509.Certificate]:
        """Every certificate that the service ever had, the newest first."""
        return [certificate for _, certificate in reversed(self._services)]

    def verify_signature(self, seqno: int) -> signature.RootSignature:
        """Check the signature entry ``seqno`` of the chain.

        Raises:
            LedgerError: it does not verify.
        """
        if seqno in self.verified:
            return self.verified[seqno]
        writes = self.entries[seqno - 1].public_writes()
        rows = dict(writes.rows(tables.SIGNATURES)), dict(writes.rows(tables.COSE_SIGNATURES))
        try:
            found = signature.parse_rows(*(row[tables.SINGLETON] or b"" for row in rows))
        except KeyError as error:
            raise LedgerError("a signature entry lacks a row", code="ledger.bad_signature_row") from error
        position = TransactionId(self.entries[seqno - 1].view, seqno)
        root = self.tree.root(seqno)
        signature.verify_root(found, root=root, position=position, service_key=self._service_key(seqno))
        self.verified[seqno] = found
        return found

    def end(self) -> tuple[int, int]:
        """``(last verified signature, entries discarded behind it)``.

        Raises:
            LedgerError: interior damage (``ledger.damaged``), or nothing is signed (``ledger.unsigned``).
        """
        if self.broken is not None and self._signed_after_break:
            seqno, reason = self.broken
            raise LedgerError(
                f"entry {seqno} is damaged: {reason}",
                code="ledger.damaged",
                hint="restore the ledger from a copy",
                numbers={"entry": seqno},
            )
        for seqno in reversed(self.signatures):
            try:
                self.verify_signature(seqno)
            except LedgerError:
                if seqno != self.signatures[-1]:
                    raise
                continue
            return seqno, self._count - seqno
        raise LedgerError("the ledger holds no verified signature", code="ledger.unsigned")

    def proven_committed(self, end: int) -> int:
        """The last entry that a majority is proven to have held: 0 to ``end``, the last verified signature (L3).

        A primary that is cut off goes on signing what only it holds. So an entry counts as committed only when a later
        signature entry records that it was, and that record is itself covered by a verified signature.

        Raises:
            LedgerError: a signature before the last one does not verify.
        """
        proven = 0
        for seqno in self.signatures:
            if seqno < end:
                proven = max(proven, min(self.verify_signature(seqno).committed.seqno, seqno - 1))
        return proven

    def end_of_last_opened_life(self) -> tuple[int, int]:
        """The same as :meth:`end`, without a recovery that was begun and never finished: that one begins anew."""
        end, discarded = self.end()
        if self.unopened is None or self.unopened > end:
            return end, discarded
        before = self.unopened - 1
        self.verify_signature(before)
        return before, discarded + end - before
