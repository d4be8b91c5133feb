"""What an accepted proposal can do: each action checks its arguments and writes rows of the administrative ledger.

Rules:

* Actions of one proposal work on one draft, in order; if any fails, none of them happened.
* An action never trusts the rules that let it pass: whatever must hold under any constitution is checked here (G2).
* Names, arguments and tables are those of the open format where it has them (docs/governance.md).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from coco.configuration import nodes, platforms
from coco.configuration.actions import actors, network, service
from coco.configuration.actions.arguments import refuse
from coco.configuration.actions.network import Action
from coco.configuration.draft import ACTIVE, Draft
from coco.errors import GovernanceError
from coco.ledger import tables

ACTIONS: Mapping[str, Action] = {
    **{
        action.__name__: action
        for action in (
            actors.set_member,
            actors.remove_member,
            actors.set_member_data,
            actors.set_user,
            actors.remove_user,
            actors.set_user_data,
            actors.set_operator,
            actors.remove_operator,
            actors.deny_certificate,
            actors.allow_certificate,
            network.transition_node_to_trusted,
            network.remove_node,
            network.set_node_certificate_validity,
            network.set_all_nodes_certificate_validity,
            service.set_constitution,
            service.set_service_configuration,
            service.set_recovery_threshold,
            service.trigger_recovery_shares_refresh,
            service.trigger_ledger_rekey,
            service.assert_service_identity,
            service.transition_service_to_open,
            service.set_service_certificate_validity,
            service.rotate_service_identity,
            service.set_adapter,
        )
    },
    **network.CODE,
}


def perform(draft: Draft, actions: list[Any]) -> None:
    """Do every action on the draft, then check what must hold under any constitution.

    Raises:
        GovernanceError: an action or the whole cannot be.
    """
    for number, action in enumerate(actions):
        name, args = action_of(action)
        try:
            ACTIONS[name](draft, args)
        except GovernanceError as error:
            raise GovernanceError(f"action {number} ({name}): {error}", code=error.code) from error
    _check(draft)


def action_of(action: Any) -> tuple[str, dict[str, Any]]:
    """Name and arguments of an action.

    Raises:
        GovernanceError: it is none (``gov.unknown_action``).
    """
    name = action.get("name") if isinstance(action, dict) else None
    args = action.get("args") if isinstance(action, dict) else None
    if not isinstance(name, str) or name not in ACTIONS or not isinstance(args, dict | None):
        raise refuse(f"there is no action {str(name)[:64]}", "gov.unknown_action")
    return str(name), args or {}


def _check(draft: Draft) -> None:
    if not any(info.get("status") == ACTIVE for info in draft.members().values()):
        raise refuse("nobody would govern any more", "gov.no_member_left")
    keepers = draft.share_holders()
    if not keepers.suffice():
        raise refuse(f"fewer than {keepers.threshold} members could recover the service", "gov.not_recoverable")
    rows = [json.loads(value) for value in draft.scan(tables.NODES_INFO).values()]
    if rows and not any(row["status"] == nodes.TRUSTED for row in rows):
        raise refuse("no node would be left", "gov.no_node_left")
    trusted = [row for row in rows if row["status"] == nodes.TRUSTED]
    manifest = platforms.policy(draft.whole())
    if trusted and not any(nodes.is_allowed(row, manifest) for row in trusted):
        raise refuse("every node's code would be disallowed", "gov.no_node_left")
