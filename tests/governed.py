"""A network's administrative tables without a node: what members send is judged by the code that nodes run."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from coco.configuration import nodes
from coco.configuration.proposals import Change, Proposals
from coco.crypto.certificates import pem
from coco.enclave.keys.identity import ServiceIdentity
from coco.enclave.platform import rules_worker
from coco.errors import CocoError, GovernanceError
from coco.ledger import tables
from members import Member, node_row

ROOT = bytes(range(32))
TIME_MS = 1_800_000_000_000
SERVICE, OTHER_SERVICE = (pem(ServiceIdentity.generate(TIME_MS).certificate) for _ in range(2))


def rsa_pem() -> str:
    public = rsa.generate_private_key(public_exponent=65537, key_size=2048).public_key()
    return public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


class Network:
    """Administrative tables in a dictionary, and the rules called here."""

    def __init__(self, members: list[Member], rules: str, *, production: bool = False) -> None:
        self.rows: dict[tuple[str, bytes], bytes] = {}
        self.proposals = Proposals(self._call)
        self.reshared: list[tuple[set[str], int]] = []
        self.rekeyed = 0
        self.put(tables.CONSTITUTION, tables.SINGLETON, tables.row(rules))
        self.put(tables.GENESIS, tables.SINGLETON, tables.row({"production": production, "insecure_virtual": True}))
        settings_row = {"recovery_threshold": 1, "recent_cose_proposals_window_size": 3}
        self.put(tables.SERVICE_CONFIG, tables.SINGLETON, tables.row(settings_row))
        self.put(tables.SERVICE_INFO, tables.SINGLETON, tables.row({"status": "Opening", "cert": SERVICE}))
        self.put(tables.NODE_MEASUREMENTS, b"m", nodes.ALLOWED)
        node = node_row(status=nodes.TRUSTED, engine=1, measurement="m", peer_address="a:1", owner="")
        self.put(tables.NODES_INFO, b"founder", tables.row(node))
        for member in members:
            self.add(member)
        self.put(tables.MEMBERS_ENCRYPTION, members[0].id.encode(), rsa_pem().encode())

    def add(self, member: Member, status: str = "Active") -> None:
        self.put(tables.MEMBERS_CERTS, member.id.encode(), member.pem.encode())
        self.put(tables.MEMBERS_INFO, member.id.encode(), tables.row({"status": status, "member_data": {}}))

    async def _call(self, source: str, function: str, *arguments: Any) -> Any:
        answer = rules_worker.call(source, function, list(json.loads(json.dumps(arguments))))
        if "code" in answer:
            raise GovernanceError(answer["reason"], code=answer["code"])
        return answer["value"]

    def put(self, table: str, key: bytes, value: bytes | None) -> None:
        if value is None:
            self.rows.pop((table, key), None)
        else:
            self.rows[table, key] = value

    def get(self, table: str, key: bytes) -> bytes | None:
        return self.rows.get((table, key))

    def scan(self, table: str, prefix: bytes = b"", after: bytes | None = None) -> Any:
        rows = sorted((k, v) for (t, k), v in self.rows.items() if t == table and k.startswith(prefix))
        return iter([row for row in rows if after is None or row[0] > after])

    def take(self, change: Change) -> Any:
        for row in change.rows:
            self.put(*row)
        self.rekeyed += change.rekey
        self.renewed, self.renewed_service = change.renew, change.renew_service
        if change.reshare:
            self.reshared.append((set(change.share_holders.members), change.share_holders.threshold))
        return change.answer

    def propose(self, member: Member, *actions: Any, body: bytes = b"") -> Any:
        message = body or member.sign("proposal", {"actions": list(actions)})
        return self.take(asyncio.run(self.proposals.create(message, self, ROOT)))

    def vote(self, member: Member, proposal: str, vote: Any = True, body: bytes = b"") -> Any:
        message = body or member.sign("ballot", {"vote": vote}, proposal)
        return self.take(asyncio.run(self.proposals.vote(proposal, member.id, message, self)))

    def withdraw(self, member: Member, proposal: str) -> Any:
        return self.take(self.proposals.withdraw(proposal, member.sign("withdrawal", {}, proposal), self))

    def document(self, table: str, key: str) -> Any:
        row = self.get(table, key.encode())
        return None if row is None else json.loads(row)


def action(name: str, **args: Any) -> dict[str, Any]:
    return {"name": name, "args": args}


NOTHING = action("remove_user", user_id="nobody")


def refused(call: Any, code: str) -> None:
    with pytest.raises(CocoError) as error:
        call()
    assert error.value.code == code
