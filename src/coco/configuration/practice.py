"""What nodes of one version do with proposals besides asking the rules; an auditor knows the version before's, too.

Sans-I/O. :mod:`coco.audit.former` has the other one.
"""

from __future__ import annotations

from collections.abc import Set
from typing import Any

from coco.configuration import open_proposals, supermajority
from coco.configuration.draft import ACTIVE, Draft
from coco.configuration.reads import Reads


class Practice:
    """That of this version."""

    def draft(self, view: Reads) -> Draft:
        """The tables, to try a request on."""
        return Draft(view)

    def is_way(self, draft: Draft, listed: list[Any]) -> bool:
        """Whether so many members as the genesis fixed decide about these actions, whatever the rules say."""
        return supermajority.is_way(draft, listed)

    def make_room(self, draft: Draft, member: str, at_s: int) -> None:
        """Before a member proposes.

        Raises:
            GovernanceError: it has too many open ones (``gov.too_many_proposals``).
        """
        open_proposals.expire(draft, at_s)
        open_proposals.check_room(draft, member)

    def check_ballot(self, draft: Draft, info: dict[str, Any], member: str, at_s: int) -> None:
        """Before a ballot counts.

        Raises:
            GovernanceError: the proposal has expired (``gov.proposal_expired``), or the ballot is void
                (``gov.ballot_void``).
        """
        open_proposals.check_ballot(draft, info, member, at_s)

    def others_withdraw(self, draft: Draft, proposer: str, listed: list[Any]) -> bool:
        """Whether a proposal is withdrawn by others than its proposer.

        Not one that only a supermajority may decide: rules that remove members would close that way with it.
        """
        return proposer not in draft.members() and not self.is_way(draft, listed)

    def left(self, draft: Draft, active: Set[str]) -> set[str]:
        """Who of those that were active is not any more: what they voted is void."""
        return {name for name in active if draft.members().get(name, {}).get("status") != ACTIVE}
