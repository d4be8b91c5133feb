"""Judges a ledger again, entry by entry: who did what, under which rules, and whether that was all.

Rules:

* Every public row is the effect of a step that the model (:mod:`coco.audit.model`) has, with what it wants before it;
  anything else is a violation, named with its entry.
* A change of a table of governance is the effect of one member's signed request, which the ledger holds, under the
  rules that were in force, which it holds too; the request is judged again by the code that nodes run, and must give
  the very same rows. Nothing else is believed, no node and no host.
* What the framework writes by itself is checked for what proves it: evidence, operators' and members' statements,
  certificates and signatures of the service.
* Whatever an entry holds, the auditor goes on to the next one.

That entries follow each other, and where the ledger ends, is another matter (:mod:`coco.ledger.replay`).
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable
from typing import Any

from coco._native import MerkleTree
from coco.audit import former, lives, membership, requests, signing
from coco.audit.model import SEALED, Step
from coco.audit.rows import Written, illegal
from coco.audit.state import OPEN, OPENING, RECOVERING, WAITING, State
from coco.configuration import nodes
from coco.configuration.proposals import CallRules, Proposals
from coco.errors import CocoError
from coco.ledger import tables
from coco.ledger.signature import RootSignature

#: While the service is being recovered nothing else happens.
_RECOVERS = frozenset(
    {Step.SIGNATURE, Step.STATEMENT, Step.WAITING, Step.KEEPING, Step.RECOVERED, Step.APPLICATION, Step.FOUNDING}
)
_SIGNED = {tables.SIGNATURES, tables.COSE_SIGNATURES, tables.TREE}
#: What a row that is no such row gives: it was named as a violation.
_NAMED = (ValueError, KeyError, TypeError, AttributeError, RecursionError, CocoError)
_KEPT = {tables.WRAPPED_SECRET, tables.NODE_SECRETS, tables.FORMER_SECRETS}


class Auditor:
    """Feed it every entry, in order.

    Args:
        call: runs rules; whoever audits needs the same limits as nodes have.
        tree: of the ledger; it has every entry before the one that is fed, and may have that one already.
        earlier: measurements (hex) of the version before, whose nodes' entries are judged by its rules
            (:mod:`coco.audit.former`).
    """

    def __init__(self, call: CallRules, tree: MerkleTree, earlier: Iterable[str] = ()) -> None:
        practised = Proposals(call, practice=former.FormerPractice())
        self.state = State(Proposals(call), tree, former_proposals=practised)
        self._earlier = frozenset(earlier)
        #: Whose code wrote the entries from one on.
        self.code: list[dict[str, Any]] = []
        #: Entries that change what nobody was allowed to change so, and why.
        self.violations: list[dict[str, Any]] = []
        #: Signatures that verify, by their entry.
        self.signatures: dict[int, RootSignature] = {}
        #: How many entries each step has.
        self.steps: dict[Step, int] = {}

    @property
    def events(self) -> list[dict[str, Any]]:
        """What members and operators did: entry, who, what, and what became of it."""
        return self.state.events

    def fork(self, tree: MerkleTree) -> Auditor:
        """Another one that goes on from here, with a tree that is cut to here."""
        other = Auditor.__new__(Auditor)
        other.state, other.violations = self.state.copy(tree), [*self.violations]
        other.signatures, other.steps = {}, dict(self.steps)
        other._earlier, other.code = self._earlier, [*self.code]
        return other

    async def feed(self, written: Written) -> None:
        """Take the next entry."""
        state = self.state
        events = len(state.events)
        try:
            written.step = _step(state, written)
            self._whose(written)
            self._check_place(written)
            await self._judge(written)
            written.nothing_left()
        except CocoError as error:
            self._violates(written, events, f"{error} ({error.code})")
        except Exception as error:  # noqa: BLE001 - whatever is wrong with an entry, its number is said
            self._violates(written, events, f"a row is malformed: {type(error).__name__} {str(error)[:200]}")
        self.steps[written.step] = self.steps.get(written.step, 0) + 1
        self._apply(written)

    def _whose(self, written: Written) -> None:
        state = self.state
        state.by_former = False
        node_id = former.writer(state, written)
        code = former.measurement(state, written, node_id) if node_id else ""
        state.by_former = code in self._earlier
        if code and (not self.code or self.code[-1]["measurement"] != code):
            self.code.append({"seqno": written.seqno, "measurement": code, "former": state.by_former})

    def _violates(self, written: Written, events: int, why: str) -> None:
        del self.state.events[events:]
        self.violations.append({"seqno": written.seqno, "step": written.step.value, "why": why})

    def _check_place(self, written: Written) -> None:
        state, step = self.state, written.step
        written.expect(tables.PREDECESSOR, tables.SINGLETON, state.tree.leaf(written.seqno - 1))
        before = state.view_at(written.seqno - 1)
        begins = written.view != before and written.seqno > 1
        if written.view < before or (begins and step not in (Step.SIGNATURE, Step.RECOVERY)):
            raise illegal("a view begins with a signature", "view")
        if not state.is_governed() and step not in _RECOVERS:
            raise illegal(f"{step.value} while the service is not open", "service")
        if step is Step.APPLICATION and (not written.sealed or state.status != OPEN):
            raise illegal("an entry with nothing in it, or before the service opened", "application")
        if (written.sealed and step not in SEALED) or (written.claims and step is not Step.APPLICATION):
            raise illegal(f"{step.value} with a sealed part", "sealed")

    async def _judge(self, written: Written) -> None:
        state = self.state
        match written.step:
            case Step.APPLICATION:
                pass
            case Step.SIGNATURE:
                self.signatures[written.seqno] = signing.signature(state, written)
            case Step.REQUEST:
                await requests.request(state, written)
            case Step.ADMISSION:
                await membership.admission(state, written)
            case Step.UNKNOWN:
                named = ", ".join(sorted(written.left))
                raise illegal(f"{named} changed without a request", "no_request")
            case _:
                _BY_ITSELF[written.step](state, written)

    def _apply(self, written: Written) -> None:
        """Whether it was right or not, it is what the next entries build on."""
        state, found = self.state, self.signatures.get(written.seqno)
        before = state.view_at(written.seqno - 1)
        if written.view != before:
            state.views.append((written.seqno, written.view))
            state.signer = state.writer = ""
        if written.step is Step.SIGNATURE:
            state.last_signature = written.seqno
        if found is not None:
            state.signer, state.time_s, state.issued_s = found.node_id, found.issued_s, 0
            state.writer = found.node_id
        state.rows.apply(written.changes)
        for (table, key), value in written.changes.items():
            if table == tables.NODES_INFO and value is not None:
                self._note_node(key, value)
            elif table == tables.SERVICE_INFO and value is not None:
                self._note_service(value)

    def _note_node(self, key: bytes, value: bytes) -> None:
        with contextlib.suppress(*_NAMED):
            row = json.loads(value)
            if row["status"] != nodes.PENDING:
                self.state.trusted.add(key.decode())
                self.state.engines.add(int(row["engine"]))

    def _note_service(self, value: bytes) -> None:
        with contextlib.suppress(*_NAMED):
            self.state.note_identity(json.loads(value)["cert"])


_BY_ITSELF = {
    Step.FOUNDING: lives.founding,
    Step.OPENING: lives.opening,
    Step.ENDORSEMENT: membership.endorsement,
    Step.CERTIFICATES: membership.renewal,
    Step.EVIDENCE: membership.newer_evidence,
    Step.RETIREMENT: membership.retirement,
    Step.EPOCH: membership.epoch,
    Step.SNAPSHOT: lives.snapshot,
    Step.ADAPTER: lives.adapter,
    Step.ANNOUNCEMENT: lives.announcement,
    Step.STATEMENT: lives.statement,
    Step.SUCCESSION: lives.succeeded,
    Step.RECOVERY: lives.recovery,
    Step.WAITING: lives.waiting,
    Step.KEEPING: lives.keeping,
    Step.RECOVERED: lives.recovered,
}


def _step(state: State, written: Written) -> Step:
    """What an entry is, by the tables that it writes."""
    there = {table for table, _ in written.changes} - {tables.PREDECESSOR}
    if written.seqno == 1:
        return Step.FOUNDING
    if not there:
        return Step.APPLICATION
    if there & _SIGNED:
        return Step.SIGNATURE
    if tables.COSE_HISTORY in there:
        return Step.REQUEST
    if tables.SERVICE_INFO in there:
        return _step_of_service(state, written, there)
    for table, step in (
        (tables.IDENTITY_STATEMENTS, Step.STATEMENT),
        (tables.SUCCESSION, Step.ANNOUNCEMENT),
        (tables.ADAPTERS, Step.ADAPTER),
        (tables.SNAPSHOT_EVIDENCE, Step.SNAPSHOT),
    ):
        if table in there:
            return step
    if there & _KEPT:
        return Step.EPOCH if state.is_governed() else Step.KEEPING
    if tables.NODES_INFO in there:
        return _step_of_node(state, written)
    if tables.NODE_CERTIFICATES in there:
        names = written.keys(tables.NODE_CERTIFICATES)
        first = len(names) == 1 and state.rows.get(tables.NODE_CERTIFICATES, names[0]) is None
        return Step.ENDORSEMENT if first else Step.CERTIFICATES
    return Step.UNKNOWN


def _step_of_service(state: State, written: Written, there: set[str]) -> Step:
    status, _ = lives.status_of(written)
    if status == RECOVERING:
        return Step.RECOVERY
    if status == WAITING:
        return Step.WAITING
    if status == OPEN and state.status == WAITING:
        return Step.RECOVERED
    if status == OPEN and state.status == OPENING and tables.SUCCESSION not in there:
        return Step.OPENING
    return Step.SUCCESSION


def _step_of_node(state: State, written: Written) -> Step:
    names = written.keys(tables.NODES_INFO)
    if len(names) > 1:  # with who is retired go rows of those who retired before it
        names = [name for name in names if written.value(tables.NODES_INFO, name) is not None]
    if len(names) != 1:
        return Step.UNKNOWN
    before = state.rows.get(tables.NODES_INFO, names[0])
    if before is None:
        return Step.ADMISSION
    value = written.value(tables.NODES_INFO, names[0])
    if value is None:
        return Step.UNKNOWN
    return Step.RETIREMENT if json.loads(value).get("status") == nodes.RETIRED else Step.EVIDENCE
