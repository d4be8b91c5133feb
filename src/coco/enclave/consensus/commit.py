"""When an entry is committed, without I/O.

Rules: an entry is committed when a signature entry covers it and a majority holds that signature entry durably; with
one node the majority is this node's synced disk. What is committed never changes.

    appended --durable on a majority--> durable --covered by a durable signature--> committed
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field


@dataclass
class CommitTracker:
    """Follows durability and signatures, and tells what is committed."""

    #: Last signature entry that is committed: every entry up to it is.
    committed: int = 0
    durable: int = 0
    _signatures: deque[int] = field(default_factory=deque)

    def signed(self, seqno: int) -> None:
        """``seqno`` is a signature entry over every entry before it."""
        assert seqno > self.committed
        assert not self._signatures or seqno > self._signatures[-1]
        self._signatures.append(seqno)

    def made_durable(self, seqno: int) -> int | None:
        """A majority holds everything up to ``seqno``; return the new commit position if it moved."""
        assert seqno >= self.durable
        self.durable = seqno
        moved = None
        while self._signatures and self._signatures[0] <= seqno:
            moved = self._signatures.popleft()
        if moved is not None:
            self.committed = moved
        return moved
