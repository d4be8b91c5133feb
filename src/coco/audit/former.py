"""What the version before did otherwise (commit fa5f8b7), for the entries that its nodes wrote (docs/adr/0015).

Rules:

* Whoever audits names the measurements of that version's code; nothing in a ledger makes its entries former ones.
* An entry is the version's whose measurement the evidence of the node proves that signs in its view; where a life of
  the service begins, of the node that begins it. So what today's nodes write is judged by today's rules, before and
  after, also while both lead in turn during an upgrade. Who was let go, or whose code members allow no more, writes
  nothing of the kind.
* Every difference is here, or asks ``Draft.former``: whatever is not named is judged alike.
"""

from __future__ import annotations

import json
from collections.abc import Set
from typing import Any

from coco.audit.model import Step
from coco.audit.rows import Written
from coco.audit.state import State
from coco.configuration import nodes, settings
from coco.configuration.draft import Draft
from coco.configuration.practice import Practice
from coco.configuration.reads import Reads
from coco.ledger import tables


class FormerPractice(Practice):
    """Rules alone decided, proposals stayed open for ever, and ballots of who left stayed, too."""

    def draft(self, view: Reads) -> Draft:
        """See the base."""
        return Draft(view, former=True)

    def is_way(self, draft: Draft, listed: list[Any]) -> bool:
        """See the base."""
        return False

    def make_room(self, draft: Draft, member: str, at_s: int) -> None:
        """See the base."""

    def check_ballot(self, draft: Draft, info: dict[str, Any], member: str, at_s: int) -> None:
        """See the base."""

    def others_withdraw(self, draft: Draft, proposer: str, listed: list[Any]) -> bool:
        """See the base."""
        return False

    def left(self, draft: Draft, active: Set[str]) -> set[str]:
        """See the base."""
        return set()


def first_settings(row: bytes) -> bytes:
    """The row of settings that the version before made of a genesis, by the one that this version makes."""
    known = json.loads(row)
    return tables.row({name: value for name, value in known.items() if name not in settings.SINCE})


def writer(state: State, written: Written) -> str:
    """The node that wrote an entry, as far as entries prove it; nothing where they do not."""
    if written.step in (Step.FOUNDING, Step.RECOVERY):
        found = [key for key in written.keys(tables.NODES_INFO) if _begins(written, key)]
        return found[0].decode() if len(found) == 1 else ""
    same = written.view == state.view_at(written.seqno - 1)
    return state.writer if same and state.is_trusted(state.writer) else ""


def measurement(state: State, written: Written, node_id: str) -> str:
    """What the evidence of a node says that it runs; nothing where there is none."""
    row = json.loads(written.value(tables.NODES_INFO, node_id.encode()) or b"{}") or state.node(node_id)
    return str(row.get("measurement", ""))


def _begins(written: Written, key: bytes) -> bool:
    row = json.loads(written.value(tables.NODES_INFO, key) or b"{}")
    return bool(row.get("status") == nodes.TRUSTED)
