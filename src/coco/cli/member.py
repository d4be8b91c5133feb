"""``coco member`` and ``coco proposal``: govern a network, and read how it is governed."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from coco.cli.output import console
from coco.client.governance import Governance
from coco.client.http import HttpsClient
from coco.client.members import Record
from coco.client.verify import service_context
from coco.errors import ConfigurationError
from coco.ledger.statements import parse_json


async def with_governance(
    address: tuple[str, int],
    service: Path,
    work: Callable[[Governance], Awaitable[Any]],
    record_file: Path | None = None,
) -> Any:
    """Do something with the governance of the network that a node belongs to.

    Args:
        address: administration listener of the node.
        service: PEM file of the service's certificate.
        work: what to do.
        record_file: where the member remembers how far it has seen the service.

    Raises:
        CocoError: refused, or the node cannot be reached or is another service's.
    """
    known = service.read_text()
    client = HttpsClient(*address, service_context(known))
    try:
        done = await work(Governance(client))
        if record_file is not None:
            record = Record.load(record_file)
            if record.saw(known, (await client.request("GET", "/node/commit")).json()["transaction_id"]):
                record.save(record_file)
        return done
    finally:
        await client.close()


def read_proposal(path: Path) -> dict[str, Any]:
    """The proposal in a file: ``{"actions": [{"name", "args"}]}``; an argument ``@FILE`` is that file's text.

    Raises:
        ConfigurationError: it is none (``member.bad_proposal``).
    """
    try:
        document = parse_json(path.read_bytes())
        for action in document["actions"]:
            for name, value in (action.get("args") or {}).items():
                if isinstance(value, str) and value.startswith("@"):
                    action["args"][name] = (path.parent / value[1:]).read_text()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigurationError(f"{path} is no proposal: {error}", code="member.bad_proposal") from error
    found: dict[str, Any] = document
    return found


def for_service(proposal: dict[str, Any], service: str) -> dict[str, Any]:
    """The proposal, naming the service that it is for, so that it counts in no other network (G1)."""
    listed = proposal.get("actions")
    if isinstance(listed, list) and not any(one.get("name") == "assert_service_identity" for one in listed):
        named = {"name": "assert_service_identity", "args": {"service_identity": service}}
        return {**proposal, "actions": [named, *listed]}
    return proposal


def message(kind: str, content: Path | None, vote: bool | None, service: Path | None) -> Any:
    """The payload of a message that is to be signed.

    Raises:
        ConfigurationError: something is missing for this type (``member.bad_message``).
    """
    if kind == "proposal" and content is not None:
        proposal = read_proposal(content)
        return proposal if service is None else for_service(proposal, service.read_text())
    if kind == "ballot" and vote is not None:
        return {"vote": vote}
    if kind in ("withdrawal", "state_digest"):
        return {}
    if kind == "ack" and content is not None:
        try:
            return parse_json(content.read_bytes())
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"{content} is no JSON: {error}", code="member.bad_message") from error
    raise ConfigurationError(f"a {kind} needs more than that, or is none", code="member.bad_message")


def print_proposal(found: dict[str, Any]) -> None:
    """A proposal for a person."""
    console.print(f"{found['proposalId']}  {found['proposalState']}  by {found['proposerId'][:16]}")
    votes = found.get("finalVotes")
    if votes:
        for member, vote in votes.items():
            console.print(f"  {member[:16]}  {'for' if vote else 'against'}")
    else:
        console.print(f"  {found['ballotCount']} ballots: {', '.join(one[:16] for one in found['ballotSubmitters'])}")
    if "failure" in found:
        console.print(f"  failed: {found['failure']['reason']}")


def print_rehearsal(found: dict[str, Any]) -> None:
    """What would change, for a person."""
    for row, value in found["rows"].items():
        shown = "removed" if value is None else json.dumps(value)
        console.print(f"{row}\n  {shown if len(shown) < 300 else shown[:300] + ' ...'}")
    if found["drops_others"]:
        console.print("[yellow]every other open proposal is dropped[/]")
