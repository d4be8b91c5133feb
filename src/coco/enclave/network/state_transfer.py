"""How a joiner comes to the ledger of its network, and to the state at the place where it begins to follow.

Order: a snapshot, if anybody has one -> the entries up to it, from this node's own disk as far as they are the same,
else from other nodes: kept and indexed, not applied -> the entries after it, applied -> proof.

Everything is checked by what is signed: entries up to the snapshot by the leaves that it brings, those after it by
their predecessors, all leaves by the root under the service's last signature, the snapshot's state by the evidence in
one of the entries after it. Whatever does not fit stops the joiner.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

import msgspec

from coco import _native, limits
from coco.enclave.network.joining import Joined, Joiner, fetch
from coco.enclave.network.recovery import PAGE
from coco.enclave.network.snapshots import SNAPSHOT, SNAPSHOT_PART, Offer, Reader, WantedPart, parse_evidence
from coco.enclave.ordering.sequencer import Sequencer
from coco.enclave.platform.control import Control
from coco.enclave.store import Store
from coco.enclave.transport.links import Links, decode
from coco.errors import BusyError, CocoError, LedgerError
from coco.ledger import signature, tables
from coco.ledger.transaction_id import TransactionId

#: A snapshot that breaks off is begun anew, so many times; then the ledger is read from its first entry.
_TRIES = 4
#: Versions that stay readable after a join, which knows no times: 10 minutes at full pace.
HISTORY_AFTER_JOIN = 12_000
_FETCH_AGAIN_S = 0.05


class CatchUp:
    """Fills an empty store and journal.

    Args:
        control: the host, who may hold the ledger of this node's former life.
        store: declared for the framework's tables.
        joiner: asks other nodes.
        joined: where to arrive, and under which service.
        begin: takes the genesis document, and declares the adapters' tables.
        adopt: takes what an entry, or the snapshot after it, says of adapters.
    """

    def __init__(
        self,
        control: Control,
        store: Store,
        joiner: Joiner,
        joined: Joined,
        begin: Callable[[bytes], None],
        adopt: Callable[[int, Iterable[tuple[bytes, bytes | None]]], None] = lambda seqno, rows: None,
    ) -> None:
        self._control, self._store, self._joiner, self._joined, self._begin = control, store, joiner, joined, begin
        self._adopt = adopt
        self._journal = store.journal
        self._begun = False
        self._snapshot: Reader | None = None
        #: The last signature entry that was applied, and whether the snapshot is proven.
        self._signature: tuple[TransactionId, _native.WriteSet] | None = None
        self._proven = False

    async def run(self, on_disk: int) -> dict[str, int]:
        """Catch up; ``on_disk`` is the last entry that the host says it holds. Returns what was done, in numbers.

        Raises:
            LedgerError: the ledger or the snapshot is not what it must be (``join.other_ledger``,
                ``join.snapshot_unproven``).
        """
        end = self._joined.start.position.seqno
        self._snapshot = await self._load_snapshot(self._joined.start.signed.seqno)
        base = self._snapshot.offer.seqno if self._snapshot is not None else 0
        kept = await self._keep_own(min(on_disk, base)) if base else 0
        if on_disk:
            await self._control.truncate(kept)
        self._control.begin_at(kept)
        fetched = 0
        while (last := self._journal.last_seqno) < end:
            page = await self._joiner.fetch(last + 1, min(last + PAGE, end))
            self._begin_once(page[0])
            for data in page:
                self._take(data)
                fetched += len(data)
            await self._settle()
            await self._control.room()
        self._check()
        return {"snapshot": base, "kept": kept, "entries": end, "fetched_bytes": fetched}

    # --- the snapshot ---

    async def _load_snapshot(self, signed: int) -> Reader | None:
        """One whose evidence the signature covers with which the ledger ends for this joiner; None: nobody has any.

        Who is asked may have seen more signed than who welcomed this node.
        """
        for _ in range(_TRIES):
            try:
                offers = decode(list[Offer], await self._joiner.ask_any(SNAPSHOT, msgspec.msgpack.encode(signed)))
                if not offers or not 0 < offers[0].seqno < offers[0].evidence <= signed:
                    return None
                return await self._load(offers[0])
            except BusyError:
                pass  # it refused, or its host did: that says nothing about what other nodes have
            except CocoError as error:
                if not error.code.startswith(("snapshot.", "peers.", "node.")):
                    raise
            # The node died, or has another one by now: begin anew with the next.
            self._store.native.unload()
            self._joiner.turn()
        return None

    async def _load(self, offer: Offer) -> Reader:
        reader = Reader(offer, self._journal.secret_at(offer.seqno))
        for number in range(min(offer.parts, limits.SNAPSHOT_PARTS_MAX)):
            wanted = msgspec.msgpack.encode(WantedPart(offer.seqno, number))
            piece = reader.open(await self._joiner.ask_any(SNAPSHOT_PART, wanted))
            if reader.header is not None and not self._begun:
                self._begun = True
                self._begin(reader.header.genesis)
            if piece is not None:
                self._store.native.load(offer.seqno, piece)
            await asyncio.sleep(0)
        self._store.native.begin_at(offer.seqno)
        self._adopt(offer.seqno, self._store.view(offer.seqno).scan(tables.ADAPTERS))
        return reader

    # --- entries ---

    async def _keep_own(self, last: int) -> int:
        """Take what this node's disk holds as far as it is the network's; return the last entry of that."""
        for first in range(1, last + 1, PAGE):
            upto = min(first + PAGE - 1, last)
            for data in await self._control.read(first, upto):
                try:
                    self._note(data)
                except LedgerError:
                    return self._journal.last_seqno
            await self._settle()
            if self._journal.last_seqno < upto:
                break
        return self._journal.last_seqno

    def _begin_once(self, first: bytes) -> None:
        if not self._begun:
            self._begun = True
            rows = _native.Entry.parse(first).public_writes().rows(tables.GENESIS)
            self._begin(dict(rows).get(tables.SINGLETON) or b"")

    def _take(self, data: bytes) -> None:
        """Keep the next entry, that came from another node."""
        seqno = self._journal.last_seqno + 1
        if self._snapshot is not None and seqno <= self._snapshot.offer.seqno:
            self._note(data)
        else:
            writes = self._store.accept(data)
            self._adopt(seqno, writes.rows(tables.ADAPTERS))
            if writes.rows(tables.SIGNATURES):
                self._signature = self._journal.position(seqno), writes
            for _, row in writes.rows(tables.SNAPSHOT_EVIDENCE):
                if self._snapshot is not None:
                    mine = (self._snapshot.offer.seqno, self._snapshot.digest)
                    self._proven |= parse_evidence(row or b"") == mine
        self._control.append(seqno, data)

    def _note(self, data: bytes) -> None:
        """Index an entry at or below the snapshot's.

        Raises:
            LedgerError: it is not the one there.
        """
        assert self._snapshot is not None, "the caller has looked: only what a snapshot covers is noted"
        seqno = self._journal.last_seqno + 1
        entry = _native.Entry.parse(data)
        if entry.seqno != seqno or entry.leaf != self._snapshot.leaf(seqno):
            raise LedgerError(f"entry {seqno} is another than the snapshot's", code="join.other_ledger")
        writes = self._journal.secret_at(seqno).open(data)
        self._store.native.note_places(seqno, writes)
        self._journal.adopt(entry)
        if writes.rows(tables.SIGNATURES):
            self._journal.adopt_signature(seqno)

    async def _settle(self) -> None:
        """Forget what no reader of this node will need."""
        committed = min(self._journal.last_seqno, self._joined.start.signed.seqno)
        if committed > self._store.committed:
            self._store.native.commit(committed)
        if committed > HISTORY_AFTER_JOIN and committed > self._store.native.oldest:
            self._store.native.prune(committed - HISTORY_AFTER_JOIN)
        if self._store.index is not None:
            await self._store.index.relieve_now()

    # --- proof ---

    def _check(self) -> None:
        signed = self._joined.start.signed
        if self._signature is None or self._signature[0] != signed:
            raise LedgerError("the ledger lacks the signature that it should end with", code="join.other_ledger")
        rows = (dict(self._signature[1].rows(t)) for t in (tables.SIGNATURES, tables.COSE_SIGNATURES))
        found = signature.parse_rows(*(row.get(tables.SINGLETON) or b"" for row in rows))
        root = self._journal.tree.root(signed.seqno)
        key = self._joined.service.key.public_key()
        signature.verify_root(found, root=root, position=signed, service_key=key)
        if self._snapshot is None:
            return
        header = self._snapshot.header
        at = self._journal.position(self._snapshot.offer.seqno)
        if not self._proven or header is None or header.position != str(at):
            raise LedgerError("nothing in the ledger proves the snapshot", code="join.snapshot_unproven")


async def install(
    control: Control, links: Links, sequencer: Sequencer, wanted: int
) -> tuple[TransactionId, TransactionId]:
    """This node was away for long: take what it lacks from whoever has it, up to ``wanted`` or further.

    Returns:
        The last entry that it has now, and the last signature entry.
    """
    store, journal, replica = sequencer.store, sequencer.store.journal, sequencer.replica
    control.cut(store.latest)
    while store.latest < wanted:
        for engine in sorted(replica.members.all - {replica.node}):
            link = links.to(engine)
            if link is None:
                continue
            try:
                page = await fetch(link, store.latest + 1, wanted)
            except CocoError:
                continue
            for data in page:
                seqno = store.latest + 1
                parsed = _native.Entry.parse(data)
                control.append(seqno, data)
                await sequencer.apply(TransactionId(parsed.view, seqno), data)
            await control.room()
        await asyncio.sleep(_FETCH_AGAIN_S)
    return journal.position(store.latest), journal.position(journal.last_signature)
