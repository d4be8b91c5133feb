"""The administrative tables as they would be after a proposal, and what rules see of them. Sans-I/O."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from coco.configuration import nodes, settings
from coco.configuration.reads import Reads
from coco.configuration.share_holders import ShareHolders, share_holders
from coco.ledger import tables

#: What a member is: it governs only while it is active.
ACTIVE, ACCEPTED = "Active", "Accepted"


@dataclass(frozen=True)
class Validity:
    """How long a certificate is to count: from a time in seconds since the Unix epoch (none: from now), for days."""

    from_s: int | None
    days: int


@dataclass
class Draft:
    """The administrative tables as they would be, and what the node must do besides."""

    view: Reads
    writes: dict[tuple[str, bytes], bytes | None] = field(default_factory=dict)
    #: Recovery members or their threshold changed: the ledger secret is to be wrapped anew.
    reshare: bool = False
    #: Somebody left: what is written from now on is sealed under another secret.
    rekey: bool = False
    #: What other members have voted on means something else now: other open proposals are dropped.
    drops_others: bool = False
    #: Nodes that get another certificate, and how long the service's is to count from now on.
    renew: dict[str, Validity] = field(default_factory=dict)
    renew_service: Validity | None = None
    #: Effects are as the version before gave them (commit fa5f8b7): an auditor judges what its nodes wrote.
    former: bool = False

    def get(self, table: str, key: bytes) -> bytes | None:
        """Value of a key, as the draft has it."""
        if (table, key) in self.writes:
            return self.writes[table, key]
        return self.view.get(table, key)

    def document(self, table: str, key: bytes) -> dict[str, Any] | None:
        """The JSON of a row."""
        row = self.get(table, key)
        return json.loads(row) if row is not None else None

    def scan(self, table: str) -> dict[bytes, bytes]:
        """Every row of a table."""
        rows = dict(self.view.scan(table))
        for (name, key), value in self.writes.items():
            if name == table and value is None:
                rows.pop(key, None)
            elif name == table and value is not None:
                rows[key] = value
        return dict(sorted(rows.items()))

    def whole(self) -> Reads:
        """The tables as they would be, for whoever reads a view."""
        return _Whole(self)

    def put(self, table: str, key: bytes, value: bytes) -> None:
        """Write a row."""
        self.writes[table, key] = value

    def remove(self, table: str, key: bytes) -> None:
        """Remove a row."""
        self.writes[table, key] = None

    def rows(self) -> list[tuple[str, bytes, bytes | None]]:
        """Everything that was written; what was removed and never was there is left out."""
        return [
            (table, key, value)
            for (table, key), value in self.writes.items()
            if value is not None or self.view.get(table, key) is not None
        ]

    def members(self) -> dict[str, dict[str, Any]]:
        """Every member that ever was."""
        return {key.decode(): json.loads(value) for key, value in self.scan(tables.MEMBERS_INFO).items()}

    def share_holders(self) -> ShareHolders:
        """Who keeps the ledger secret for a recovery."""
        return share_holders(self)

    def node_keys(self) -> dict[str, str]:
        """PEM of the encryption key of every trusted node."""
        rows = {key.decode(): json.loads(value) for key, value in self.scan(tables.NODES_INFO).items()}
        return {name: row.get("encryption_pub_key", "") for name, row in rows.items() if row["status"] == nodes.TRUSTED}

    def settings(self) -> dict[str, Any]:
        """Settings of the service, with the default of each that was never set."""
        found = settings.in_force(self)
        if self.former:
            known = self.document(tables.SERVICE_CONFIG, tables.SINGLETON) or {}
            return {name: value for name, value in found.items() if name in known or name not in settings.SINCE}
        return found

    def service(self) -> dict[str, Any]:
        """Status and certificate of the service."""
        return self.document(tables.SERVICE_INFO, tables.SINGLETON) or {}

    @property
    def genesis(self) -> dict[str, Any]:
        """The document that the network was founded with."""
        return self.document(tables.GENESIS, tables.SINGLETON) or {}

    @property
    def production(self) -> bool:
        """Whether the genesis refuses what only a sandbox may have."""
        return bool(self.genesis.get("production", True))


class _Whole:
    """A draft with the methods of a view."""

    def __init__(self, draft: Draft) -> None:
        self._draft = draft

    def get(self, table: str, key: bytes) -> bytes | None:
        return self._draft.get(table, key)

    def scan(self, table: str, prefix: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        return (one for one in self._draft.scan(table).items() if one[0].startswith(prefix))


def state(draft: Draft) -> dict[str, Any]:
    """What rules see: public governance tables only (G2)."""
    keeping = draft.share_holders()
    return {
        "members": {
            name: {
                "status": info.get("status", ""),
                "recovery": name in keeping.members or name in keeping.owners,
                "data": info.get("member_data"),
            }
            for name, info in draft.members().items()
        },
        "users": {k.decode(): json.loads(v).get("user_data") for k, v in draft.scan(tables.USERS_INFO).items()},
        "nodes": {
            key.decode(): {
                "status": row.get("status"),
                "address": row.get("peer_address"),
                "owner": row.get("owner"),
                "measurement": row.get("measurement"),
            }
            for key, row in ((k, json.loads(v)) for k, v in draft.scan(tables.NODES_INFO).items())
        },
        "service": {"status": draft.service().get("status", "")},
        "settings": {**draft.settings(), "production": draft.production},
    }
