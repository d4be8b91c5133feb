"""Who keeps the ledger secret for a recovery: members with a share each, and owners, each of whom can do it alone."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from coco.configuration import settings
from coco.configuration.reads import Gets
from coco.ledger import tables

#: Roles of a member with an encryption key.
PARTICIPANT, OWNER = "Participant", "Owner"


class _Rows(Gets, Protocol):
    def scan(self, table: str) -> Mapping[bytes, bytes] | Iterator[tuple[bytes, bytes]]: ...


@dataclass(frozen=True)
class ShareHolders:
    """PEM of each keeper's RSA key by member id, and how many of the members' shares are needed."""

    members: Mapping[str, bytes]
    owners: Mapping[str, bytes]
    threshold: int

    def suffice(self) -> bool:
        """Whether all of them together could recover the service."""
        return len(self.members) >= self.threshold or bool(self.owners)


def share_holders(rows: _Rows) -> ShareHolders:
    """The active ones, as a view or a draft has them."""
    members: dict[str, bytes] = {}
    owners: dict[str, bytes] = {}
    for key, pem in dict(rows.scan(tables.MEMBERS_ENCRYPTION)).items():
        info: dict[str, Any] = json.loads(rows.get(tables.MEMBERS_INFO, key) or b"{}")
        if info.get("status") == "Active":
            (owners if info.get("recovery_role") == OWNER else members)[key.decode()] = pem
    return ShareHolders(members, owners, int(settings.in_force(rows)["recovery_threshold"]))
