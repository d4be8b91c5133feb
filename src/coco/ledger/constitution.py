"""The constitution as the administrative ledger holds it: its five lists and its settings, at any entry. Sans-I/O.

Feed it the public writes of every entry, in order; its document is the same for everybody who reads the same ledger,
and so is its hash.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from coco._native import WriteSet
from coco.ledger import tables

_READ = (
    *(tables.MEMBERS_INFO, tables.MEMBERS_CERTS, tables.MEMBERS_ENCRYPTION, tables.USERS_INFO, tables.USERS_CERTS),
    *(tables.OPERATORS, tables.NODES_INFO, tables.NODE_MEASUREMENTS, tables.CONSTITUTION, tables.SERVICE_CONFIG),
    *(tables.GENESIS, tables.NODE_CODE_IDS, tables.NODE_SNP_MEASUREMENTS, tables.NODE_SNP_HOST_DATA),
    *(tables.NODE_SNP_UVM_ENDORSEMENTS, tables.NODE_SNP_TCB_VERSIONS, tables.NODE_TDX_MEASUREMENTS, tables.TEE_POLICY),
    *(tables.DENIED_CERTIFICATES, tables.ADAPTERS),
)


@dataclass
class Constitution:
    """Its tables so far, and the entries that changed them."""

    rows: dict[str, dict[bytes, bytes]] = field(default_factory=lambda: {name: {} for name in _READ})
    #: Number and hash of every version.
    versions: list[tuple[int, str]] = field(default_factory=list)

    def feed(self, seqno: int, writes: WriteSet) -> None:
        """Take the public writes of the next entry."""
        changed = False
        for name in _READ:
            for key, value in writes.rows(name):
                changed = True
                if value is None:
                    self.rows[name].pop(key, None)
                else:
                    self.rows[name][key] = value
        if changed:
            digest = self.digest()
            if not self.versions or self.versions[-1][1] != digest:
                self.versions.append((seqno, digest))

    def digest(self) -> str:
        """Hex SHA-256 of the document: the name of this version."""
        return sha256(tables.row(self.document())).hexdigest()

    def document(self) -> dict[str, Any]:
        """The five lists and the settings."""
        genesis = self._one(tables.GENESIS)
        rules = str(self._one(tables.CONSTITUTION) or "")
        return {
            "membership": {
                "members": self._actors(tables.MEMBERS_INFO, tables.MEMBERS_CERTS, tables.MEMBERS_ENCRYPTION),
                "participants": self._actors(tables.USERS_INFO, tables.USERS_CERTS),
                "operators": self._documents(tables.OPERATORS),
                "denied_certificates": self._names(tables.DENIED_CERTIFICATES),
            },
            "code_manifest": {
                "virtual": self._names(tables.NODE_MEASUREMENTS),
                "sgx": self._names(tables.NODE_CODE_IDS),
                "snp": self._names(tables.NODE_SNP_MEASUREMENTS),
                "tdx": self._names(tables.NODE_TDX_MEASUREMENTS),
            },
            "tee_manifest": {
                "insecure_virtual": bool((genesis or {}).get("insecure_virtual")),
                "policies": self._documents(tables.TEE_POLICY),
                "snp": {
                    "host_data": self._documents(tables.NODE_SNP_HOST_DATA),
                    "uvm_endorsements": self._documents(tables.NODE_SNP_UVM_ENDORSEMENTS),
                    "tcb_versions": self._documents(tables.NODE_SNP_TCB_VERSIONS),
                },
            },
            "node_list": {key.decode(): _node(json.loads(value)) for key, value in self._sorted(tables.NODES_INFO)},
            "voting_policy": {"sha256": sha256(rules.encode()).hexdigest(), "rules": rules},
            "adapters": {**(genesis or {}).get("adapters", {}), **self._documents(tables.ADAPTERS)},
            "settings": {**(self._one(tables.SERVICE_CONFIG) or {}), **((genesis or {}).get("settings") or {})},
        }

    def _names(self, table: str) -> list[str]:
        return [key.decode() for key, _ in self._sorted(table)]

    def _documents(self, table: str) -> dict[str, Any]:
        return {key.decode(): json.loads(value) for key, value in self._sorted(table)}

    def _sorted(self, table: str) -> list[tuple[bytes, bytes]]:
        return sorted(self.rows[table].items())

    def _one(self, table: str) -> Any:
        row = self.rows[table].get(tables.SINGLETON)
        return None if row is None else json.loads(row)

    def _actors(self, info: str, certificates: str, keys: str = "") -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in self._sorted(info):
            one = dict(json.loads(value))
            one["cert"] = self.rows[certificates].get(key, b"").decode()
            if keys and key in self.rows[keys]:
                one["encryption_public_key"] = self.rows[keys][key].decode()
            found[key.decode()] = one
        return found


def _node(row: dict[str, Any]) -> dict[str, Any]:
    named = ("status", "peer_address", "owner", "measurement", "engine")
    return {name: row[name] for name in named if name in row}
