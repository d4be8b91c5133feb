"""The simulator's state machine on the production store and journal: sealed entries, Merkle tree, roll-back, signatures."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

from coco._native import LedgerSecret, WriteSet
from coco.consensus import LedgerEntry
from coco.crypto.certificates import pem
from coco.enclave.keys.identity import ServiceIdentity
from coco.enclave.store import Journal, Store
from coco.errors import LedgerError
from coco.ledger import signature, tables
from coco.ledger.transaction_id import TransactionId
from coco.simulator.campaign import Cluster
from coco.simulator.model import State, Violation

EXECUTED, NODES, PADDING = "sim.executed", "public:sim.nodes", "sim.padding"

_SECRET = LedgerSecret.generate(b"simulator")
_SERVICE = ServiceIdentity.generate(1_800_000_000_000)
_NODE_KEY = ec.generate_private_key(ec.SECP384R1())
_CERTIFICATE = pem(_SERVICE.endorse(_NODE_KEY.public_key(), 1, ["localhost"], 1_800_000_000_000))


class Executed(Mapping[str, int]):
    """Transactions and their entries, read from the store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def __getitem__(self, transaction: str) -> int:
        found = self._store.native.get(EXECUTED, transaction.encode())
        if found is None:
            raise KeyError(transaction)
        return int.from_bytes(found, "big")

    def __iter__(self) -> Iterator[str]:
        return (key.decode() for key, _ in self._store.view().scan(EXECUTED))

    def __len__(self) -> int:
        return self._store.native.len(EXECUTED)


class LedgerState(State):
    """A node's tables and ledger."""

    def __init__(self) -> None:
        unread: Any = None
        self.journal = Journal(append=lambda *_: None, read=unread)
        self.journal.hold(1, _SECRET)
        self.store = Store(self.journal)
        for name in (EXECUTED, NODES, PADDING, *tables.STATE_TABLES):
            self.store.declare(name)
        self.entries: list[bytes] = []
        self.leading = 0

    @property
    def position(self) -> TransactionId:  # type: ignore[override]
        return self.journal.position(self.journal.last_seqno)

    @property
    def digest(self) -> str:  # type: ignore[override]
        return self.journal.tree.root().hex() + self.store.native.digest(bytes(32)).hex()

    @property
    def executed(self) -> Executed:  # type: ignore[override]
        return Executed(self.store)

    @property
    def nodes(self) -> dict[int, tuple[int, int]]:  # type: ignore[override]
        rows = self.store.view().scan(NODES)
        return {int.from_bytes(key, "big"): tuple(json.loads(value)) for key, value in rows}

    def copy_at(self, seqno: int) -> LedgerState:
        made = LedgerState()
        for data in self.entries[:seqno]:
            made._accept(data)
        return made

    def make(self, view, operations, *, is_signature, padding=0, root=None):
        if self.leading != view:
            self.journal.lead(view)
            self.leading = view
        position = TransactionId(view, self.journal.last_seqno + 1)
        rows = []
        for kind, first, *rest in operations:
            if kind == "execute":
                rows.append((EXECUTED, first.encode(), position.seqno.to_bytes(8, "big")))
            else:
                rows.append((NODES, first.to_bytes(8, "big"), json.dumps(rest).encode()))
        if padding:
            rows.append((PADDING, b"", bytes(padding)))
        if is_signature:
            signed = signature.sign_root(
                _NODE_KEY,
                _SERVICE.key,
                node_certificate=_CERTIFICATE,
                position=position,
                root=root or self.journal.tree.root(),
                committed=TransactionId(0, 0),
                time_s=0,
            )
            rows.append((tables.SIGNATURES, tables.SINGLETON, signed.signatures_row()))
            rows.append((tables.COSE_SIGNATURES, tables.SINGLETON, signed.cose_row()))
        sealed = self.journal.seal(self.journal.complete(WriteSet(rows)))
        return LedgerEntry(position, sealed.entry, is_signature)

    def apply(self, entry: LedgerEntry) -> None:
        try:
            writes = self._accept(entry.data)
        except LedgerError as error:
            raise Violation(f"{entry.position} after {self.position}: {error}") from error
        if self.position != entry.position:
            raise Violation(f"{entry.position} calls itself {self.position}")
        for key, value in writes.rows(EXECUTED):
            before = self.store.native.get(EXECUTED, key, entry.position.seqno - 1)
            if before is not None:
                raise Violation(
                    f"transaction {key.decode()} was executed twice: {(before or b'').hex()}, {value.hex()}"
                )

    def _accept(self, data: bytes) -> WriteSet:
        writes = self.store.accept(data)
        self.entries.append(data)
        return writes

    def roll_back(self, seqno: int) -> None:
        self.leading = 0
        self.store.roll_back(seqno)
        del self.entries[seqno:]

    def settle(self, seqno: int) -> None:
        self.store.native.commit(seqno)


class LedgerCluster(Cluster):
    """A cluster whose nodes keep real ledgers."""

    def new_state(self) -> LedgerState:
        return LedgerState()
