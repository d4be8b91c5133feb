"""Actions about the service: its rules, settings, secrets, identity, and that it opens."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from coco.configuration import nodes, settings, succession
from coco.configuration.actions.arguments import certificate, data, key, refuse, spki, text, texts, validity
from coco.configuration.draft import Draft, Validity
from coco.ledger import tables

_SERVICE_DAYS_MAX = 3650
#: An adapter that members voted in: accepted, and once its first entry is written.
ADAPTER_ACCEPTED, ADAPTER_RUNNING = "Accepted", "Running"


def set_constitution(draft: Draft, args: Mapping[str, Any]) -> None:
    """New rules, judged by those in force."""
    draft.put(tables.CONSTITUTION, tables.SINGLETON, tables.row(text(args, "constitution")))
    draft.drops_others = True


def set_service_configuration(draft: Draft, args: Mapping[str, Any]) -> None:
    """Settings; those that are not named stay."""
    settings.check(args)
    if "recovery_threshold" in args:
        draft.reshare = True
    draft.put(tables.SERVICE_CONFIG, tables.SINGLETON, tables.row({**draft.settings(), **args}))


def set_recovery_threshold(draft: Draft, args: Mapping[str, Any]) -> None:
    """How many shares recover the service."""
    set_service_configuration(draft, {"recovery_threshold": args.get("recovery_threshold")})


def trigger_recovery_shares_refresh(draft: Draft, args: Mapping[str, Any]) -> None:
    """New shares of the same secret."""
    draft.reshare = True


def trigger_ledger_rekey(draft: Draft, args: Mapping[str, Any]) -> None:
    """Another ledger secret from the next entry on."""
    draft.rekey = True


def _is_the_service(draft: Draft, args: Mapping[str, Any], name: str) -> None:
    if spki(certificate(args, name)) != spki(certificate(draft.service())):
        raise refuse(f"{name} is another service's", "gov.other_service")


def assert_service_identity(draft: Draft, args: Mapping[str, Any]) -> None:
    """Fails in every other service: a proposal that was signed for one network does nothing in another (G1)."""
    _is_the_service(draft, args, "service_identity")


def transition_service_to_open(draft: Draft, args: Mapping[str, Any]) -> None:
    """Participants may come. Names the service and the nodes that it opens with (J2)."""
    service = draft.service()
    if service.get("status") != "Opening":
        raise refuse("the service is not opening", "gov.not_opening")
    _is_the_service(draft, args, "next_service_identity")
    if args.get("nodes") is not None:
        rows = draft.scan(tables.NODES_INFO)
        trusted = {key.decode() for key, row in rows.items() if json.loads(row)["status"] == nodes.TRUSTED}
        if set(texts(args, "nodes")) != trusted:
            raise refuse("the service would open with other nodes", "gov.other_nodes")
    elif draft.production:
        raise refuse("nodes must name the nodes that the service opens with")
    draft.put(tables.SERVICE_INFO, tables.SINGLETON, tables.row({**service, "status": "Open"}))


def set_adapter(draft: Draft, args: Mapping[str, Any]) -> None:
    """Another ledger protocol, with its genesis; nodes have checked that they can run it."""
    name, genesis = key(args, "name"), data(args, "genesis")
    founded = (draft.document(tables.GENESIS, tables.SINGLETON) or {}).get("adapters", {})
    if name in founded or draft.get(tables.ADAPTERS, name.encode()) is not None:
        raise refuse(f"there is an adapter {name} already", "gov.adapter_exists")
    draft.put(tables.ADAPTERS, name.encode(), tables.row({"status": ADAPTER_ACCEPTED, "genesis": genesis}))


def rotate_service_identity(draft: Draft, args: Mapping[str, Any]) -> None:
    """Another key for the service, once members have stated that it continues this one; another epoch with it."""
    succession.want(draft)


def set_service_certificate_validity(draft: Draft, args: Mapping[str, Any]) -> None:
    """The same identity under another certificate."""
    days = args.get("validity_period_days")
    if not isinstance(days, int) or isinstance(days, bool) or not 1 <= days <= _SERVICE_DAYS_MAX:
        raise refuse(f"validity_period_days must be a number from 1 to {_SERVICE_DAYS_MAX}")
    draft.renew_service = Validity(validity(draft, {"valid_from": args.get("valid_from")}).from_s, days)
