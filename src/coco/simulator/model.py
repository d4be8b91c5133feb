"""The state machine of simulated nodes: transactions that are executed once, and the rows of the nodes.

An entry names its predecessor by hash, as entries of the ledger do, and holds operations; each can be undone.
"""

from __future__ import annotations

import json
from collections import deque
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from coco.consensus import NOWHERE, LedgerEntry
from coco.ledger.transaction_id import TransactionId


class Violation(Exception):
    """A promise of the system was broken. The run stops here."""


@dataclass
class State:
    """What the entries so far amount to."""

    position: TransactionId = NOWHERE
    digest: str = ""
    #: Transactions, and the entry that executed each.
    executed: dict[str, int] = field(default_factory=dict)
    #: Nodes: engine id -> host and process that the id was given to.
    nodes: dict[int, tuple[int, int]] = field(default_factory=dict)
    #: What was there before each entry that may still be undone, and its operations.
    _undo: deque[tuple[TransactionId, str, list[list[Any]]]] = field(default_factory=deque)

    @property
    def next_node(self) -> int:
        """The engine id that the next process gets: from a counter in the ledger, and never again (J5)."""
        return max(self.nodes) + 1

    def copy_at(self, seqno: int) -> State:
        """A snapshot of it after the entry ``seqno``."""
        snapshot = State(self.position, self.digest, dict(self.executed), dict(self.nodes), deque(self._undo))
        snapshot.roll_back(seqno)
        snapshot._undo.clear()
        return snapshot

    def make(self, view: int, operations: list[list[Any]], *, is_signature: bool, padding: int = 0) -> LedgerEntry:
        """The entry that follows in ``view``; it is not applied yet."""
        text = json.dumps({"previous": self.digest, "operations": operations}, separators=(",", ":"))
        position = TransactionId(view, self.position.seqno + 1)
        return LedgerEntry(position, text.encode() + b"\0" + bytes(padding), is_signature)

    def apply(self, entry: LedgerEntry) -> None:
        """Apply the entry that follows."""
        document = json.loads(entry.data[: entry.data.index(b"\0")])
        if entry.position.seqno != self.position.seqno + 1 or document["previous"] != self.digest:
            raise Violation(f"entry {entry.position} does not follow {self.position}")
        self._undo.append((self.position, self.digest, document["operations"]))
        for kind, *arguments in document["operations"]:
            if kind == "execute":
                (transaction,) = arguments
                if transaction in self.executed:
                    raise Violation(f"transaction {transaction} was executed twice")
                self.executed[transaction] = entry.position.seqno
            elif kind == "admit":
                node, host, process = arguments
                self.nodes[node] = (host, process)
        self.position = entry.position
        self.digest = sha256(str(entry.position).encode() + entry.data).hexdigest()

    def roll_back(self, seqno: int) -> None:
        """Undo everything above ``seqno``."""
        while self.position.seqno > seqno:
            self.position, self.digest, operations = self._undo.pop()
            for kind, first, *_ in reversed(operations):
                if kind == "execute":
                    del self.executed[first]
                elif kind == "admit":
                    del self.nodes[first]

    def settle(self, seqno: int) -> None:
        """Nothing up to ``seqno`` will be undone."""
        while self._undo and self._undo[0][0].seqno < seqno:
            self._undo.popleft()
