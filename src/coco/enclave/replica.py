"""This node's place in the network: carries out, in order, what the driver of consensus says.

For now a network is one node, so nothing is sent and nobody else's entries are applied; the driver is the one that the
simulator runs in networks of many.
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Callable, Sequence

from coco import limits
from coco.enclave.consensus import (
    Action,
    Committed,
    Driver,
    LedgerEntry,
    Members,
    MembersChanged,
    Persist,
    Promoted,
    Start,
    ViewChanged,
)
from coco.enclave.core.control import Control
from coco.ledger.position import Position

#: Engine id of the node that founds a life of the service; ids are never used again in it.
_FOUNDER = 1


class Replica:
    """The driver, and the disk behind the control channel.

    Args:
        control: where entries are made durable.
        position: where the former life of the service ended.
        first_view: the least view that this life may begin with.
        fatal: ends the process; a node whose engine failed starts again as a new one.
    """

    def __init__(
        self, control: Control, *, position: Position, first_view: int, fatal: Callable[[BaseException], None]
    ) -> None:
        start = Start(Members((_FOUNDER,)), position=position, signed=position)
        self.on_committed: Callable[[int], None] = lambda seqno: None
        self._driver = Driver(_FOUNDER, start, seed=secrets.randbits(63), view_offset=first_view - 1)
        self._control, self._fatal = control, fatal
        #: Work under way to the disk: the number to report, and the seqno that must be durable first.
        self._persisting: deque[tuple[int, int]] = deque()
        self._written = self._durable = position.seqno
        control.on_appended = self._appended
        self._do(self._driver.campaign())
        assert self._driver.is_primary, "a network of one elects itself"

    @property
    def view(self) -> int:
        """View in which this node is primary."""
        return self._driver.view

    @property
    def committed(self) -> int:
        """Everything up to this seqno is committed."""
        return self._driver.committed.seqno

    def append(self, position: Position, entry: bytes, is_signature: bool) -> None:
        """Propose the next entry, which is sealed and applied."""
        self._do(self._driver.propose(LedgerEntry(position, entry, is_signature)))

    def _appended(self, seqno: int) -> None:
        self._durable = seqno
        try:
            self._report_persisted()
        except Exception as error:  # noqa: BLE001 - nobody above can do anything about a broken engine
            self._fatal(error)

    def _report_persisted(self) -> None:
        number = None
        while self._persisting and self._persisting[0][1] <= self._durable:
            number, _ = self._persisting.popleft()
        if number is not None:
            self._do(self._driver.persisted(number))

    def _do(self, actions: Sequence[Action]) -> None:
        for action in actions:
            match action:
                case Persist(number, None, entries):
                    for entry in entries:
                        self._written = entry.position.seqno
                        self._control.append(self._written, entry.data)
                    self._persisting.append((number, self._written))
                case Committed(position):
                    self.on_committed(position.seqno)
                    if self._driver.held_bytes > limits.LOG_ALONE_BYTES_MAX:
                        self._driver.compact(self._driver.anchor)
                case ViewChanged() | MembersChanged() | Promoted(_, ()):
                    pass
                case _:
                    raise AssertionError(f"a network of one does not know {type(action).__name__}")
        if self._persisting and self._persisting[0][1] <= self._durable:
            self._report_persisted()
