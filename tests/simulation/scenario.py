"""Scenarios of consensus in plain text: what happens, and what each node says, line by line.

A scenario is a list of steps: a command, a line of dashes, and what is expected; text after ``#`` is for the reader.
Messages lie on the wire until they are delivered; disks are durable at once unless they are held.

    nodes 1 2 3          found a network of these
    elect 1              node 1 asks for votes; everything is delivered
    write 1 TEXT         primary 1 executes, seals and proposes an entry
    sign 1               primary 1 proposes a signature over everything before
    deliver              deliver every message, and those that follow from it
    lose                 lose every message on the wire
    tick COUNT           so many ticks for every node that is not cut off, delivering after each
    cut 1 2              nobody hears these nodes, nor they anybody;  heal  ends it
    hold 2 / release 2   the disk of node 2 takes its time / is done
    learner 1 4          primary 1 adds node 4, which starts from the primary's anchor
    replace 1 4 2        primary 1 makes node 4 a voter and removes node 2, at one moment
    remove 1 3           primary 1 removes node 3
    hand-over 1 2        primary 1 lets node 2 lead
    compact 1            primary 1 offers a snapshot and forgets the log before it
    fetch 3              node 3 gets the state that it was told to install
    read 2 NAME          node 2 asks for a linearizable read
    status               where every node is
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from harness import Wire

from coco.consensus import (
    Action,
    Apply,
    Committed,
    Install,
    LedgerEntry,
    Members,
    MembersChanged,
    Persist,
    Promoted,
    ReadReady,
    RollBack,
    Start,
    ViewChanged,
)
from coco.errors import CocoError
from coco.ledger.transaction_id import TransactionId


def _span(entries: tuple[LedgerEntry, ...]) -> str:
    texts = [f"{e.position}{'*' if e.is_signature else ''}" for e in entries]
    return " ".join(texts)


class Scenario(Wire):
    """The nodes of one scenario, and what they said since the last step."""

    def __init__(self) -> None:
        super().__init__()
        self._held: dict[int, list[int]] = {}
        self._said: list[str] = []
        self._installing: dict[int, Install] = {}

    def step(self, command: str) -> str:
        """Carry out a command; return what was said."""
        name, *arguments = command.split()
        self._said = []
        try:
            getattr(self, "do_" + name.replace("-", "_"))(*arguments)
        except CocoError as error:
            self._said.append(f"refused: {error.code}")
            for node, driver in self.nodes.items():
                self.do(node, driver.advance())
        return "\n".join(self._said) or "ok"

    def _say(self, node: int, what: str) -> None:
        self._said.append(f"{node}: {what}")

    def persist(self, node: int, action: Persist) -> None:
        if action.truncate_above is not None:
            self._say(node, f"drops its entries above {action.truncate_above}")
        if node not in self._held:
            super().persist(node, action)
            return
        self._held[node].append(action.number)
        if action.entries:
            self._say(node, f"waits for its disk with {_span(action.entries)}")

    def note(self, node: int, action: Action) -> None:
        match action:
            case Apply(entries):
                self._say(node, f"applies {_span(entries)}")
            case RollBack(seqno):
                self._say(node, f"is deposed, rolls back to {seqno}")
            case Promoted(view, entries):
                self._say(node, f"is primary of view {view}" + (f", inherits {_span(entries)}" if entries else ""))
            case ViewChanged(view, primary):
                if primary and primary != node:
                    self._say(node, f"follows {primary} in view {view}")
            case Committed(position):
                self._say(node, f"reports {position} committed")
            case MembersChanged(members):
                self._say(node, self._members(members))
            case ReadReady(context):
                self._say(node, f"may serve the read {context.decode()}")
            case Install(_, _, pointer):
                self._installing[node] = action
                self._say(node, f"must fetch the state of {pointer.decode()}")

    @staticmethod
    def _members(members: Members) -> str:
        text = "voters " + " ".join(map(str, sorted(members.voters)))
        if members.learners:
            text += ", learners " + " ".join(map(str, sorted(members.learners)))
        if members.outgoing:
            text += ", and jointly " + " ".join(map(str, sorted(members.outgoing)))
        return text

    # --- commands ---

    def do_nodes(self, *nodes: str) -> None:
        members = Members(tuple(int(node) for node in nodes))
        for node in members.voters:
            self.begin(node, Start(members))

    def do_elect(self, node: str) -> None:
        self.do(int(node), self.nodes[int(node)].campaign())
        self.deliver()

    def do_write(self, node: str, text: str) -> None:
        self._propose(int(node), text.encode(), is_signature=False)

    def do_sign(self, node: str) -> None:
        self._propose(int(node), b"signature", is_signature=True)

    def _propose(self, node: int, data: bytes, *, is_signature: bool) -> None:
        driver = self.nodes[node]
        position = TransactionId(driver.view, driver.applied + 1)
        self._say(node, f"proposes {position}{'*' if is_signature else ''}")
        self.do(node, driver.propose(LedgerEntry(position, data, is_signature)))

    def do_deliver(self) -> None:
        self.deliver()

    def do_lose(self) -> None:
        self.wire.clear()

    def do_tick(self, count: str) -> None:
        for _ in range(int(count)):
            self.tick()

    def do_cut(self, *nodes: str) -> None:
        self.cut = {int(node) for node in nodes}

    def do_heal(self) -> None:
        self.cut = set()

    def do_hold(self, node: str) -> None:
        self._held[int(node)] = []

    def do_release(self, node: str) -> None:
        for number in self._held.pop(int(node)):
            self.do(int(node), self.nodes[int(node)].persisted(number))
        self.deliver()

    def do_learner(self, node: str, new: str) -> None:
        primary = self.nodes[int(node)]
        self.do(primary.node, primary.change_members([("learner", int(new))]))
        self.deliver()
        anchor = primary.anchor
        self._say(int(new), f"starts at {anchor.position}, {self._members(anchor.members)}")
        self.begin(int(new), anchor)

    def do_replace(self, node: str, new: str, old: str) -> None:
        self.do(int(node), self.nodes[int(node)].change_members([("voter", int(new)), ("removed", int(old))]))

    def do_remove(self, node: str, old: str) -> None:
        self.do(int(node), self.nodes[int(node)].change_members([("removed", int(old))]))

    def do_hand_over(self, node: str, to: str) -> None:
        self.do(int(node), self.nodes[int(node)].hand_over(int(to)))
        self.deliver()

    def do_compact(self, node: str) -> None:
        driver = self.nodes[int(node)]
        driver.offer_snapshot(driver.anchor, str(driver.anchor.position).encode())
        driver.compact(driver.anchor)

    def do_fetch(self, node: str) -> None:
        position = TransactionId.parse(self._installing.pop(int(node)).pointer.decode())
        source = next(driver for driver in self.nodes.values() if driver.anchor.position >= position)
        signed = min(source.committed, position)
        self.do(int(node), self.nodes[int(node)].installed(position, signed))
        self.deliver()

    def do_read(self, node: str, name: str) -> None:
        self.do(int(node), self.nodes[int(node)].read_index(name.encode()))

    def do_status(self) -> None:
        for node, driver in self.nodes.items():
            role = "primary" if driver.is_primary else "backup"
            self._say(
                node,
                f"{role} in view {driver.view}, applied {driver.applied}, last {driver.last}, "
                f"committed {driver.committed}",
            )


def parse(text: str) -> Iterator[tuple[str, str, str]]:
    """Steps of a scenario: text for the reader, command, expectation."""
    for block in text.strip().split("\n\n"):
        lines = block.splitlines()
        told = [line for line in lines if line.startswith("#")]
        rest = lines[len(told) :]
        if rest:
            command, dashes, *expected = rest
            assert dashes == "----", f"a step is a command and a line of dashes: {rest}"
            yield "\n".join(told), command, "\n".join(expected)
        else:
            yield "\n".join(told), "", ""


def run(path: Path) -> tuple[str, str]:
    """Run a scenario; return it as it is written and as it went."""
    scenario, went = Scenario(), []
    for told, command, _ in parse(path.read_text()):
        parts = [told] if told else []
        if command:
            parts += [command, "----", scenario.step(command)]
        went.append("\n".join(parts))
    return path.read_text(), "\n\n".join(went) + "\n"
