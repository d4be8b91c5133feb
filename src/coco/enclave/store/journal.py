"""The journal: the ledger as one node writes it. Seals write sets into entries and reads entries back, verified.

Rules: an entry names its predecessor's leaf (L1); an entry that comes back from the host is compared with the leaf held
here before anything of it is used (L2); a position is sealed once (K2); each epoch has its own secret (K1).
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from itertools import pairwise

from coco._native import Entry, LedgerSecret, MerkleTree, Sealer, WriteSet
from coco.errors import ConsensusError, HostLiedError, LedgerError, NotFoundError
from coco.ledger import receipts, signature, tables
from coco.ledger.transaction_id import TransactionId

ReadEntries = Callable[[int, int], Awaitable[list[bytes]]]
#: Takes the next entry: where it lies, its bytes, and whether it is a signature.
AppendEntry = Callable[[TransactionId, bytes, bool], None]


def _nothing_kept(first: int, successor: LedgerSecret) -> LedgerSecret:
    raise LedgerError(f"the secret of entry {first} is not kept here", code="ledger.secret_unavailable")


@dataclass(frozen=True, slots=True)
class SealedEntry:
    """An entry on its way to the disk, and its leaf in the Merkle tree."""

    seqno: int
    entry: bytes
    leaf: bytes


@dataclass(slots=True)
class _Epoch:
    """A ledger secret, or the place of one that left memory."""

    first: int
    secret: LedgerSecret | None
    #: It was needed since :meth:`Journal.forget_former` last looked, and when that was.
    needed: bool = True
    needed_at_s: float = 0.0


class Journal:
    """Writes and reads the entries of one service life, and reads those of former lives."""

    def __init__(self, *, append: AppendEntry, read: ReadEntries) -> None:
        self.tree = MerkleTree()
        self._append, self._read = append, read
        self._views: list[tuple[int, int]] = []
        self._epochs: list[_Epoch] = []
        #: Opens a former secret, by its first seqno, with its successor.
        self.open_former: Callable[[int, LedgerSecret], LedgerSecret] = _nothing_kept
        self._sealer: Sealer | None = None
        self._signatures = array("Q")
        #: When the last signature entry of another node was signed, in seconds since the Unix epoch.
        self.issued_s = 0

    # --- state ---

    @property
    def last_seqno(self) -> int:
        """Number of the last entry."""
        return len(self.tree) - 1

    @property
    def view(self) -> int:
        """View in which this node writes."""
        return self._views[-1][1]

    def position(self, seqno: int) -> TransactionId:
        """Id of the entry ``seqno``."""
        index = bisect_right(self._views, seqno, key=lambda item: item[0]) - 1
        return TransactionId(self._views[index][1] if index >= 0 else 0, seqno)

    def begin(self, *, view: int, secret: LedgerSecret) -> None:
        """Start to write in ``view`` under a secret that has sealed nothing yet."""
        self.hold(self.last_seqno + 1, secret)
        self.lead(view)

    @property
    def last_signature(self) -> int:
        """Number of the last signature entry; 0 when there is none."""
        return self._signatures[-1] if self._signatures else 0

    def hold(self, first: int, secret: LedgerSecret) -> None:
        """Take over the secret that seals the entries from ``first`` on."""
        self._epochs.append(_Epoch(first, secret))

    def lead(self, view: int) -> None:
        """Write in ``view``, after whatever is there; positions that a former view of this node sealed stay sealed."""
        self._views.append((self.last_seqno + 1, view))
        self._sealer = Sealer(view, self.last_seqno)

    def follow(self) -> None:
        """Write no more: another node does. A position of the view that ends here is never sealed again (K2)."""
        self._sealer = None

    def check_next(self, entry: Entry, writes: WriteSet) -> None:
        """Whether an entry that another node wrote goes on from the last one here (L1), and signs the same root.

        Raises:
            LedgerError: it does not (``ledger.does_not_follow``, ``ledger.other_root``).
        """
        seqno = self.last_seqno + 1
        named = dict(writes.rows(tables.PREDECESSOR)).get(tables.SINGLETON)
        # A view that this node began and wrote nothing in does not count.
        last_view = self.position(self.last_seqno).view
        if entry.seqno != seqno or entry.view < last_view or named != self.tree.leaf(seqno - 1):
            raise LedgerError(f"{entry.view}.{entry.seqno} does not follow here", code="ledger.does_not_follow")
        rows = [dict(writes.rows(table)).get(tables.SINGLETON) for table in (tables.SIGNATURES, tables.COSE_SIGNATURES)]
        if rows[0] is not None:
            signed = signature.parse_rows(rows[0], rows[1] or b"")
            if signed.root != self.tree.root():
                raise LedgerError(f"{entry.view}.{entry.seqno} signs another ledger", code="ledger.other_root")
            self.issued_s = signed.issued_s

    def adopt(self, entry: Entry) -> None:
        """Take over a verified entry of a former life."""
        while self._views and self._views[-1][0] >= entry.seqno:
            self._views.pop()  # begun here, and nothing was written in it
        if not self._views or self._views[-1][1] != entry.view:
            self._views.append((entry.seqno, entry.view))
        self.tree.append(entry.leaf)

    def adopt_signature(self, seqno: int) -> None:
        """``seqno`` is a signature entry."""
        self._signatures.append(seqno)

    def cut(self, seqno: int) -> None:
        """Forget every adopted entry above ``seqno``, and an epoch that one of them began."""
        while self._epochs and self._epochs[-1].first > seqno + 1:
            self._epochs.pop()
        self.tree.truncate(seqno + 1)
        self._views = [(first, view) for first, view in self._views if first <= seqno]
        while self._signatures and self._signatures[-1] > seqno:
            self._signatures.pop()

    def restore_secrets(self, secrets: list[tuple[int, LedgerSecret]]) -> None:
        """Put the secrets of former lives, each with its first seqno, before the current one."""
        current = self._epochs[-1]
        former = sorted((item for item in secrets if item[0] < current.first), key=lambda item: item[0])
        self._epochs = [*(_Epoch(first, secret) for first, secret in former), current]

    @property
    def current_secret(self) -> tuple[int, LedgerSecret]:
        """The secret that seals the next entry, and the first entry that it sealed."""
        newest = self._epochs[-1]
        assert newest.secret is not None, "the newest secret never leaves memory"
        return newest.first, newest.secret

    @property
    def secrets(self) -> list[tuple[int, LedgerSecret]]:
        """Every secret with the first seqno that it sealed; those that left memory are fetched back."""
        return [(epoch.first, self._secret(index)) for index, epoch in enumerate(self._epochs)]

    def secret_at(self, seqno: int) -> LedgerSecret:
        """The secret that sealed ``seqno``; fetched back if it had left memory.

        Raises:
            LedgerError: there is none (``ledger.secret_unavailable``).
        """
        index = bisect_right(self._epochs, seqno, key=lambda epoch: epoch.first) - 1
        if index < 0:
            raise LedgerError(f"the secret of entry {seqno} is not recovered", code="ledger.secret_unavailable")
        return self._secret(index)

    def _secret(self, index: int) -> LedgerSecret:
        """Each secret rests in the ledger under its successor, so the nearest later one that is held leads to it."""
        later = next(i for i in range(index, len(self._epochs)) if self._epochs[i].secret is not None)
        secret = self._epochs[later].secret
        assert secret is not None, "the epoch was chosen because it has one"
        for epoch in reversed(self._epochs[index:later]):
            secret = self.open_former(epoch.first, secret)
        wanted = self._epochs[index]
        wanted.secret, wanted.needed = secret, True
        return secret

    def forget_former(self, now_s: float, lifetime_s: float, committed: int) -> int:
        """Let go of former secrets that nothing needed for so long; how many that were.

        One whose successor's first entry may still be rolled back stays.
        """
        gone = 0
        for epoch, successor in pairwise(self._epochs):
            if successor.first > committed + 1:
                break
            if epoch.needed:
                epoch.needed, epoch.needed_at_s = False, now_s
            elif epoch.secret is not None and now_s - epoch.needed_at_s >= lifetime_s:
                epoch.secret = None  # the handle wipes its keys
                gone += 1
        return gone

    # --- writing ---

    def complete(self, writes: WriteSet) -> WriteSet:
        """``writes`` with the row that ties the entry to its predecessor."""
        leaf = self.tree.leaf(self.last_seqno)
        assert leaf is not None, "the tree has its last leaf"
        return writes.with_row(tables.PREDECESSOR, tables.SINGLETON, leaf)

    def seal(self, writes: WriteSet, *, claim: bytes | None = None) -> SealedEntry:
        """Seal a completed write set as the next entry."""
        if self._sealer is None:
            raise ConsensusError("this node does not write now", code="consensus.not_primary")
        view, seqno = self._views[-1][1], self.last_seqno + 1
        _, secret = self.current_secret
        digest = receipts.NO_CLAIMS
        if claim is not None:
            digest = receipts.claims_digest(secret.claims_salt(view, seqno), claim)
        entry, leaf = self._sealer.seal(secret, view, seqno, digest, writes)
        return SealedEntry(seqno, entry, leaf)

    def append(self, sealed: SealedEntry, *, is_signature: bool = False) -> int:
        """Give the next entry to consensus and to the disk; return its seqno."""
        assert sealed.seqno == self.last_seqno + 1, "whoever seals holds `order` until it is appended"
        self.tree.append(sealed.leaf)
        self._append(TransactionId(self.view, sealed.seqno), sealed.entry, is_signature)
        return sealed.seqno

    # --- reading back ---

    def holds(self, seqno: int, data: bytes) -> bool:
        """Whether ``data`` is the entry ``seqno`` of this ledger (L2)."""
        try:
            return Entry.parse(data).leaf == self.tree.leaf(seqno)
        except LedgerError:
            return False

    async def entry(self, seqno: int) -> bytes:
        """The bytes of an entry, as this enclave knows them to be.

        Raises:
            HostLiedError: the host gave something else (``channel.wrong_entry``).
        """
        if not 0 < seqno <= self.last_seqno:
            raise NotFoundError(f"there is no entry {seqno}", code="ledger.no_entry")
        found = await self._read(seqno, seqno)
        if len(found) == 1 and self.holds(seqno, found[0]):
            return found[0]
        raise HostLiedError(f"the host gave another entry than {seqno}", code="channel.wrong_entry")

    async def fetch(self, seqno: int) -> WriteSet:
        """The write set of an entry."""
        return self.secret_at(seqno).open(await self.entry(seqno))

    async def receipt(self, seqno: int, committed_signature: int, since: int = 0) -> receipts.Receipt:
        """Proof that ``seqno`` is in the ledger.

        Args:
            seqno: an entry that is no signature.
            committed_signature: the last signature entry that is committed.
            since: entry that gave the service the key that it has; what a former one signed proves nothing any more.

        Raises:
            NotFoundError: not committed yet, or a signature entry (``ledger.no_receipt``).
        """
        index = bisect_right(self._signatures, seqno)
        if seqno in self._signatures[max(0, index - 1) : index]:
            raise NotFoundError("a signature entry has no transaction receipt", code="ledger.no_receipt")
        index = bisect_right(self._signatures, max(seqno, since))
        if not seqno > 0 or index >= len(self._signatures) or self._signatures[index] > committed_signature:
            raise NotFoundError(f"entry {seqno} is not committed here", code="ledger.no_receipt")
        at = self._signatures[index]
        rows = dict[str, bytes]()
        writes = Entry.parse(await self.entry(at)).public_writes()
        for table in (tables.SIGNATURES, tables.COSE_SIGNATURES):
            rows[table] = dict(writes.rows(table))[tables.SINGLETON] or b""
        parsed = Entry.parse(await self.entry(seqno))
        position = self.position(seqno)
        secret = self.secret_at(seqno)
        claim = None
        if parsed.claims_digest != receipts.NO_CLAIMS:
            private = await self.fetch(seqno)
            claim = dict(private.rows(tables.CLAIMS)).get(seqno.to_bytes(8, "big"))
        return receipts.Receipt(
            position=position,
            write_set_digest=parsed.write_set_digest,
            commit_evidence=secret.commit_evidence(*position),
            claims_digest=parsed.claims_digest,
            path=tuple(self.tree.proof(seqno, at)),
            signature=signature.parse_rows(rows[tables.SIGNATURES], rows[tables.COSE_SIGNATURES]),
            claim=claim,
            claim_salt=secret.claims_salt(*position) if claim is not None else None,
        )
