"""Snapshots: the state at one committed position, sealed in parts that the host keeps, so that a joiner need not
execute, apply or even believe the history before it.

Rules:

* A snapshot is worth nothing without evidence: an entry of the ledger that names its position and its digest, which a
  joiner finds among the entries that it reads after it (:mod:`coco.enclave.network.joining`).
* The digest is over the text, keyed by the epoch (K6), and the same on every node: one that computes another than the
  ledger says has another state, and stops. Each node seals its own copy, under a key and a salt of its own (K3).
* Part 0 is the header, then come the leaves of the Merkle tree, then the state tables. What the host gives back is
  compared with a hash that is kept here before it goes on (L2).
"""

from __future__ import annotations

import json
import secrets as randomness
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import msgspec

from coco import limits
from coco._native import LedgerSecret, SnapshotCipher, WriteSet
from coco.enclave.ordering.registry import with_voted
from coco.enclave.ordering.sequencer import Sequencer
from coco.enclave.platform.control import Control
from coco.enclave.transport.links import decode
from coco.errors import ConsensusError, HostLiedError, LedgerError, NotFoundError, StoreError
from coco.ledger import tables

SNAPSHOT, SNAPSHOT_PART = "snapshot", "snapshot_part"
_SALT_BYTES = 32
_LEAF_BYTES = 32
_LEAVES_OF_A_PART = limits.SNAPSHOT_PART_BYTES_MIN // _LEAF_BYTES


class Header(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The first part."""

    position: str
    genesis: bytes
    #: Parts with leaves: those of the entries 0 to the position's.
    leaf_parts: int


class Piece(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Rows of state tables, as the two halves of a write set."""

    public: bytes
    private: bytes


class Offer(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A snapshot that a node has."""

    seqno: int
    #: The entry that says so.
    evidence: int
    salt: bytes
    parts: int


class WantedPart(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A part of a snapshot, for a joiner."""

    seqno: int
    number: int


def evidence_row(seqno: int, digest: bytes) -> bytes:
    """Value of the row that makes a snapshot count."""
    return tables.row({"seqno": seqno, "digest": digest.hex()})


def parse_evidence(row: bytes) -> tuple[int, bytes]:
    """TransactionId and digest that a row names; the row comes from the ledger."""
    document = json.loads(row)
    return int(document["seqno"]), bytes.fromhex(document["digest"])


@dataclass
class Taken:
    """A snapshot on this node's disk."""

    seqno: int
    digest: bytes
    salt: bytes
    #: SHA-256 of each sealed part.
    parts: list[bytes]
    #: The committed entry that names it; 0 while there is none.
    evidence: int = 0


class Snapshots:
    """Takes snapshots, compares them with what the ledger says of them, and gives them to joiners.

    Args:
        control: the host, who keeps them.
        sequencer: whose store they are of; as primary, it writes the evidence.
        genesis: the document with which the network was founded.
        interval: entries after which a primary takes the next one.
        run: calls the extension off the event loop.
        spawn: works in the background.
        log: the host's log.
    """

    def __init__(
        self,
        *,
        control: Control,
        sequencer: Sequencer,
        genesis: bytes,
        interval: int,
        run: Callable[..., Awaitable[Any]],
        spawn: Callable[[Coroutine[Any, Any, None]], None],
        log: Callable[..., None],
    ) -> None:
        self._control, self._sequencer, self._genesis, self._interval = control, sequencer, genesis, interval
        self._run, self._spawn, self._log = run, spawn, log
        self._taken: Taken | None = None
        self._row: bytes | None = None
        #: TransactionId of the newest one that anybody took, and what had been written when it was.
        self._last, self._bytes_then, self._bytes_of_last = 0, 0, 0
        self._busy = False

    # --- taking ---

    def committed(self) -> None:
        """More is committed: there may be evidence of a snapshot, or the next one may be due."""
        if self._busy:
            return
        replica = self._sequencer.replica
        view = self._sequencer.store.view(replica.committed)
        row = view.get(tables.SNAPSHOT_EVIDENCE, tables.SINGLETON)
        if row is not None and row != self._row:
            self._row = row
            at = self._sequencer.store.native.written_at(tables.SNAPSHOT_EVIDENCE, tables.SINGLETON, view.version)
            self._begin(self._follow(row, at or 0))
            return
        written = self._control.appended_bytes - self._bytes_then
        due = replica.committed - self._last >= self._interval and written >= self._bytes_of_last
        if due and replica.may_execute:
            self._begin(self._lead(replica.committed))

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        self._busy = True
        self._spawn(self._do(work))

    async def _do(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except StoreError as error:
            if error.code != "store.version_unavailable":
                raise
            self._log("snapshot.given_up")  # it took longer than history is kept
        except ConsensusError:
            pass  # deposed: the next primary takes the next one
        finally:
            self._busy = False

    async def _lead(self, seqno: int) -> None:
        """As primary, take one and write the evidence."""
        self._last = seqno
        self._taken = await self._take(seqno)
        row = evidence_row(seqno, self._taken.digest)
        await self._sequencer.write_rows([(tables.SNAPSHOT_EVIDENCE, tables.SINGLETON, row)])

    async def _follow(self, row: bytes, evidence: int) -> None:
        """The ledger names a snapshot: have it too, and compare."""
        seqno, digest = parse_evidence(row)
        self._last = max(self._last, seqno)
        if self._taken is None or self._taken.seqno != seqno:
            self._taken = await self._take(seqno)
        if self._taken.digest != digest:
            raise LedgerError(
                "this node has another state than the network", code="ledger.other_state", numbers={"entry": seqno}
            )
        self._taken.evidence = evidence
        self._control.keep_snapshot(seqno)
        self._log("snapshot.taken", {"entry": seqno, "evidence": evidence, "parts": len(self._taken.parts)})

    async def _take(self, seqno: int) -> Taken:
        journal = self._sequencer.store.journal
        salt = randomness.token_bytes(_SALT_BYTES)
        cipher = journal.secret_at(seqno).snapshot_cipher(salt, seqno)
        parts: list[bytes] = []
        size = 0
        self._bytes_then = self._control.appended_bytes
        for make in self._texts(seqno):
            sealed: bytes = await self._run(lambda make=make: cipher.seal(make()))
            parts.append(sha256(sealed).digest())
            size += len(sealed)
            # One part at a time is under way, so that entries never wait long behind a snapshot.
            await self._control.write_snapshot(seqno, len(parts) - 1, sealed)
        self._bytes_of_last = size
        return Taken(seqno, cipher.digest(), salt, parts)

    def _texts(self, seqno: int) -> Iterator[Callable[[], bytes]]:
        """What makes the text of each part, in order, to be called off the event loop one after the other."""
        store = self._sequencer.store
        leaf_parts = -(-(seqno + 1) // _LEAVES_OF_A_PART)
        genesis = with_voted(self._genesis, store.view(seqno))
        header = Header(str(store.journal.position(seqno)), genesis, leaf_parts)
        yield lambda: msgspec.msgpack.encode(header)
        for first in range(0, seqno + 1, _LEAVES_OF_A_PART):
            leaves = store.journal.tree.leaves(first, min(first + _LEAVES_OF_A_PART - 1, seqno))
            yield lambda leaves=leaves: leaves  # type: ignore[misc]
        pieces = _Pieces(store.native.snapshot_piece, seqno)
        while not pieces.over:
            yield pieces.next

    # --- giving ---

    async def serve(self, kind: str, body: bytes) -> bytes:
        """Answer a joiner.

        Raises:
            CocoError: refused, with a stable code; ``snapshot.gone`` is worth asking again from the start.
        """
        taken = self._taken
        if kind == SNAPSHOT:
            upto = decode(int, body)
            offers = []
            if taken is not None and 0 < taken.evidence <= upto:
                offers = [Offer(taken.seqno, taken.evidence, taken.salt, len(taken.parts))]
            return msgspec.msgpack.encode(offers)
        wanted = decode(WantedPart, body)
        if taken is None or taken.seqno != wanted.seqno or not 0 <= wanted.number < len(taken.parts):
            raise NotFoundError("this node has no such snapshot", code="snapshot.gone")
        found = await self._control.read_snapshot(wanted.seqno, wanted.number)
        if sha256(found).digest() != taken.parts[wanted.number]:
            if self._taken is not taken:
                raise NotFoundError("this node has no such snapshot any more", code="snapshot.gone")
            raise HostLiedError("the host gave another part of a snapshot", code="channel.wrong_snapshot")
        return found


class _Pieces:
    def __init__(self, cut: Callable[..., tuple[WriteSet, tuple[str, bytes] | None]], seqno: int) -> None:
        self._cut, self._seqno = cut, seqno
        self._after: tuple[str, bytes] | None = None
        self.over = False

    def next(self) -> bytes:
        piece, self._after = self._cut(self._seqno, self._after, limits.SNAPSHOT_PART_BYTES_MIN)
        self.over = self._after is None
        return msgspec.msgpack.encode(Piece(piece.encode_public(), piece.encode_private()))


class Reader:
    """Opens the parts of a snapshot, in order.

    Args:
        offer: what a node says that it has.
        secret: of the epoch.
    """

    def __init__(self, offer: Offer, secret: LedgerSecret) -> None:
        self._cipher: SnapshotCipher = secret.snapshot_cipher(offer.salt, offer.seqno)
        self.offer = offer
        self._leaves = bytearray()
        self.header: Header | None = None
        self._leaf_parts = 0

    def open(self, sealed: bytes) -> WriteSet | None:
        """Open the next part; a piece of the state, or None when the part was something else.

        Raises:
            LedgerError: it is not what was sealed there.
            RequestError: whoever sealed it made it otherwise than this node would.
        """
        text = self._cipher.open(sealed)
        if self.header is None:
            self.header = decode(Header, text)
            self._leaf_parts = self.header.leaf_parts
            return None
        if self._leaf_parts:
            self._leaf_parts -= 1
            self._leaves += text
            return None
        piece = decode(Piece, text)
        return WriteSet.decode(piece.public, piece.private)

    def leaf(self, seqno: int) -> bytes:
        """Leaf of an entry at or below the snapshot's."""
        return bytes(self._leaves[seqno * _LEAF_BYTES : (seqno + 1) * _LEAF_BYTES])

    @property
    def digest(self) -> bytes:
        """Digest of everything that was opened."""
        return self._cipher.digest()
