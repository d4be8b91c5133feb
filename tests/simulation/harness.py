"""Drivers of consensus on a wire that moves only when it is told to."""

from __future__ import annotations

from collections import deque

from coco.consensus import Action, Driver, Persist, Send, Start

#: Of the election timeouts.
SEED = 1


class Wire:
    """Nodes, and the messages between them; disks are durable at once."""

    def __init__(self) -> None:
        self.nodes: dict[int, Driver] = {}
        self.wire: deque[tuple[int, int, bytes]] = deque()
        #: Nobody hears these nodes, nor they anybody.
        self.cut: set[int] = set()

    def begin(self, node: int, start: Start) -> None:
        """A node takes part from now on."""
        self.nodes[node] = Driver(node, start, seed=SEED)

    def do(self, node: int, actions: list[Action]) -> None:
        for action in actions:
            self.note(node, action)
            if isinstance(action, Send):
                self.wire.append((node, action.to, action.message))
            elif isinstance(action, Persist):
                self.persist(node, action)

    def note(self, node: int, action: Action) -> None:
        """An action is about to be carried out."""

    def persist(self, node: int, action: Persist) -> None:
        self.do(node, self.nodes[node].persisted(action.number))

    def deliver(self) -> None:
        """Deliver every message, and those that follow from it."""
        while self.wire:
            sender, receiver, message = self.wire.popleft()
            if receiver in self.nodes and not {sender, receiver} & self.cut:
                self.do(receiver, self.nodes[receiver].receive(sender, message))

    def tick(self) -> None:
        """One tick for every node that is not cut off."""
        for node, driver in self.nodes.items():
            if node not in self.cut:
                self.do(node, driver.tick())
        self.deliver()
