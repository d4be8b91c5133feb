"""A second, small model of what is legal, written apart from the auditor: who may have caused which change.

It shares with the auditor the reader of entries, the check of one COSE signature and the names of tables, and nothing
else. It is weaker: it knows the two sets of rules that the ledgers of ``consortium.py`` have, and platform virtual. It
says why a ledger is illegal, or nothing.
"""

from __future__ import annotations

import base64
import json
from hashlib import sha256
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from coco import constitutions
from coco._native import Entry, MerkleTree
from coco.crypto import cose
from coco.ledger import tables

ONE = tables.SINGLETON
MEMBERS = {tables.MEMBERS_INFO, tables.MEMBERS_CERTS, tables.MEMBERS_ENCRYPTION, tables.MEMBERS_ACKS}
USERS = {tables.USERS_INFO, tables.USERS_CERTS}
SECRETS = {tables.WRAPPED_SECRET, tables.NODE_SECRETS, tables.FORMER_SECRETS}
SIGNED = {tables.SIGNATURES, tables.COSE_SIGNATURES, tables.TREE}
NEVER = {
    *(tables.OPERATORS, tables.TEE_POLICY, tables.DENIED_CERTIFICATES, tables.SERVICE_CONFIG, tables.NODE_CODE_IDS),
    *(tables.NODE_SNP_HOST_DATA, tables.NODE_SNP_UVM_ENDORSEMENTS, tables.NODE_SNP_TCB_VERSIONS),
    *(tables.NODE_SNP_MEASUREMENTS, tables.NODE_TDX_MEASUREMENTS, tables.NODE_OTHER_MEASUREMENTS),
}
UNANIMOUS = constitutions.text("unanimous")
#: How far a time may lie before another that was read earlier.
SKEW_S = 600


class Illegal(Exception):
    """Why."""


def need(true: Any, why: str) -> None:
    if not true:
        raise Illegal(why)


def why_illegal(sealed: list[bytes]) -> str:
    """Why a ledger, to its end, is none that could have come about; empty: it is one."""
    reference = Reference()
    for data in sealed:
        try:
            reference.entry(data)
        except Illegal as error:
            return f"entry {reference.seqno}: {error}"
        except Exception as error:  # a row that is no such row
            return f"entry {reference.seqno}: malformed: {type(error).__name__} {error}"
    return ""


def spki(certificate: x509.Certificate) -> bytes:
    return certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def load(pem: Any) -> x509.Certificate:
    return x509.load_pem_x509_certificate(pem if isinstance(pem, bytes) else pem.encode())


def name(certificate: x509.Certificate) -> str:
    return sha256(certificate.public_bytes(Encoding.DER)).hexdigest()


def verified(body: bytes, certificate: x509.Certificate, kind: str) -> tuple[dict[Any, Any], Any]:
    message = cose.parse(body)
    need(message.headers.get("ccf.gov.msg.type") == kind, f"a message is no {kind}")
    cose.verify(message, certificate.public_key())  # type: ignore[arg-type]
    return message.headers, json.loads(message.payload or b"null")


class Reference:
    """Reads entries one after the other."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, bytes], bytes] = {}
        self.tree = MerkleTree()
        self.seqno, self.view, self.signer, self.time_s = 0, 0, "", 0
        self.views: list[int] = [0]
        self.last_was_signature = False
        self.keys: set[bytes] = set()
        self.nodes_ever: dict[str, int] = {}
        #: What members signed: (member, proposal) to vote; proposals' signers.
        self.votes: dict[tuple[str, str], set[bool]] = {}
        self.began: dict[str, Any] = {}

    # --- reading ---

    def get(self, table: str, key: bytes = ONE) -> bytes | None:
        return self.rows.get((table, key))

    def json(self, table: str, key: bytes = ONE) -> Any:
        return json.loads(self.rows.get((table, key)) or b"{}")

    def all(self, table: str) -> dict[str, Any]:
        return {k.decode(): json.loads(v) for (t, k), v in self.rows.items() if t == table}

    @property
    def status(self) -> str:
        return str(self.json(tables.SERVICE_INFO).get("status", ""))

    def active(self, rows: dict[tuple[str, bytes], bytes] | None = None) -> set[str]:
        found = self.rows if rows is None else rows
        return {
            k.decode()
            for (t, k), v in found.items()
            if t == tables.MEMBERS_INFO and json.loads(v)["status"] == "Active"
        }

    # --- one entry ---

    def entry(self, data: bytes) -> None:
        self.seqno += 1
        parsed = Entry.parse(data)
        writes = parsed.public_writes()
        new = {(t, k): v for t in writes.tables() for k, v in writes.rows(t)}
        need(new.pop((tables.PREDECESSOR, ONE), None) == self.tree.leaf(self.seqno - 1), "it follows something else")
        need(parsed.seqno == self.seqno and parsed.view >= self.view, "its place")
        need(all(t in tables.STATE_TABLES for t, _ in new), "an unknown table")
        self.after = {k: v for k, v in {**self.rows, **new}.items() if v is not None}
        self.new, self.touched = new, {t for t, _ in new}
        #: Rows that mean something else than before.
        self.changed = {k: v for k, v in new.items() if self.rows.get(k) != v}
        info = json.loads(self.after.get((tables.SERVICE_INFO, ONE)) or b"{}")
        self.recovering = info.get("status") == "Recovering" and self.status != "Recovering"
        self.succeeds = bool(self.rows) and not self.recovering and self._key(info) != self._key_now()
        if parsed.view > self.view and self.seqno > 1:
            need(self.touched & SIGNED or self.recovering, "a view begins with something else")
            self.signer = ""
        self._check_sealed(len(data) > 44 + int.from_bytes(data[36:44], "little"), parsed.claims_digest != bytes(32))
        self.view = parsed.view
        self._check_status(info)
        self.accepted = self._requests()
        for (table, key), value in self.changed.items():
            self._row(table, key, value, info)
        if self.touched & SIGNED:
            need(self.touched == SIGNED, "a signature with other rows")
            self._signature()
        self.last_was_signature = bool(self.touched & SIGNED)
        self.rows = self.after
        self.views.append(self.view)
        if info:
            self.keys.add(self._key(info))
        for node, row in self.all(tables.NODES_INFO).items():
            if row["status"] != "Pending":
                self.nodes_ever[node] = row["engine"]
        self.tree.append(parsed.leaf)

    def _key(self, info: dict[str, Any]) -> bytes:
        return spki(load(info["cert"]))

    def _key_now(self) -> bytes:
        return self._key(self.json(tables.SERVICE_INFO))

    def _check_sealed(self, sealed: bool, claims: bool) -> None:
        if sealed or claims:
            adapter = self.touched == {tables.ADAPTERS}
            need(self.seqno == 1 or not self.touched or (adapter and not claims), "a sealed part where none is")
        elif not self.touched:
            need(False, "an entry with nothing in it")

    def _check_status(self, info: dict[str, Any]) -> None:
        before, after = self.status, info.get("status")
        if not self.rows:
            need(after == "Opening", "founded otherwise")
            return
        if before in ("Recovering", "WaitingForRecoveryShares"):
            quiet = SIGNED | SECRETS | {tables.IDENTITY_STATEMENTS, tables.SERVICE_INFO}
            need(self.touched <= quiet and self.touched, "something else during a recovery")
        if before == after:
            return
        step = before, after
        if self.recovering:
            need(before in ("Open", "Opening") and self.last_was_signature, "a recovery at another place")
            need(self._key(info) not in self.keys, "a key once more")
            need(info["previous_service_identity"] == self.json(tables.SERVICE_INFO)["cert"], "another former one")
            need(info["recovery_count"] == self.json(tables.SERVICE_INFO)["recovery_count"] + 1, "its count")
            need(info["since"] == self.seqno, "its place")
            self.began = {
                "count": info["recovery_count"],
                "since": self.seqno,
                "payload": {
                    "previous_service": self._key_now().hex(),
                    "next_service": self._key(info).hex(),
                    "transaction_id": f"{self.views[-1]}.{self.seqno - 1}",
                    "root": self.tree.root(self.seqno - 1).hex(),
                },
            }
        elif step == ("WaitingForRecoveryShares", "Open"):
            need(2 * self._stated() > len(self.active()), "too few statements")
            need(self.json(tables.WRAPPED_SECRET)["first_seqno"] == self.began["since"], "the secret of a former life")
        else:
            need(step in (("Opening", "Open"), ("Recovering", "WaitingForRecoveryShares")), f"from {before} to {after}")

    def _stated(self) -> int:
        prefix = self.began["count"].to_bytes(8, "big")
        return sum(1 for (t, k) in self.rows if t == tables.IDENTITY_STATEMENTS and k.startswith(prefix))

    # --- requests ---

    def _requests(self) -> list[dict[str, Any]]:
        """Actions of the proposal that this entry accepts."""
        bodies = [(k.decode(), v) for (t, k), v in self.new.items() if t == tables.COSE_HISTORY]
        self.said: tuple[str, str, Any, str] | None = None
        need(len(bodies) <= 1, "two requests")
        for member, body in bodies:
            need(body is not None, "a request removed")
            message = cose.parse(body or b"")
            kind = str(message.headers["ccf.gov.msg.type"])
            _, payload = verified(body or b"", load(self.rows[tables.MEMBERS_CERTS, member.encode()]), kind)
            need(message.headers[4].decode() == member, "another member's request")
            proposal = str(message.headers.get("ccf.gov.msg.proposal_id", ""))
            if kind in ("proposal", "ballot"):
                need(member in self.active(), "a request of nobody active")
            if kind == "ballot":
                self.votes.setdefault((member, proposal), set()).add(payload["vote"])
            self.said = member, kind, payload, proposal
            if kind == "proposal":
                digest = sha256(cose._to_be_signed(message.protected, message.payload or b"")).hexdigest()
                self._proposed(member, payload, digest)
        accepted: list[dict[str, Any]] = []
        for (table, key), value in self.changed.items():
            if table == tables.PROPOSALS_INFO:
                need(value is not None, "a proposal removed")
                before, after = self.json(table, key), json.loads(value or b"{}")
                need(self.said is not None, "a proposal changed without a request")
                accepted += self._decided(key.decode(), before, after)
        return accepted

    def _proposed(self, member: str, payload: Any, digest: str) -> None:
        made = [(k.decode(), v) for (t, k), v in self.new.items() if t == tables.PROPOSALS]
        need(len(made) == 1, "a proposal without its row")
        identity, row = made[0]
        need(json.loads(row or b"{}") == {"actions": payload["actions"]}, "other actions than proposed")
        roots = (self.tree.root(n) for n in range(self.seqno, 0, -1))
        listed = tables.row(payload["actions"])
        need(any(sha256(listed + r + digest.encode()).hexdigest() == identity for r in roots), "a proposal's id")

    def _decided(self, identity: str, before: dict[str, Any], after: dict[str, Any]) -> list[dict[str, Any]]:
        need(before.get("state", "Open") == "Open", "a closed proposal changed")
        for member, vote in after["ballots"].items():
            need(vote in self.votes.get((member, identity), ()), "a ballot that nobody cast")
        for member in before.get("ballots", {}):
            need(member in after["ballots"] or member not in self.active(self.after), "a ballot that is gone")
        actions: list[dict[str, Any]] = json.loads(self.after[tables.PROPOSALS, identity.encode()])["actions"]
        yes = sum(1 for member in self.active() if after["ballots"].get(member) is True)
        rules, members = self.json(tables.CONSTITUTION), len(self.active())
        enough = yes == members if rules == UNANIMOUS else 2 * yes > members
        only_rules = {one["name"] for one in actions} == {"set_constitution"} and 3 * yes >= 2 * members
        if after["state"] == "Accepted":
            need(enough or only_rules, "accepted by too few")
            return actions
        if after["state"] == "Open":
            need(not enough, "open though it was accepted")
        if after["state"] == "Withdrawn":
            need(
                self.said is not None and self.said[:2] == (before["proposer_id"], "withdrawal"), "withdrawn by others"
            )
        return []

    def _acts(self, *names: str) -> list[dict[str, Any]]:
        return [one["args"] for one in self.accepted if one["name"] in names]

    # --- rows ---

    def _row(self, table: str, key: bytes, value: bytes | None, info: dict[str, Any]) -> None:
        first = self.seqno == 1
        if table in SIGNED:
            need(value is not None and key == ONE, "a signature removed")
        elif table == tables.GENESIS:
            need(first, "another genesis")
        elif table in NEVER:
            need(first, f"{table} changed")
        elif table == tables.NODE_MEASUREMENTS:
            need((first or self.recovering) and value is not None, "another code")
        elif table in MEMBERS or table in USERS:
            need(first or self._actor(table, key, value), f"{table} changed without a vote")
        elif table == tables.CONSTITUTION:
            wanted = [tables.row(args["constitution"]) for args in self._acts("set_constitution")]
            need(first or value in wanted, "other rules without a vote")
        elif table == tables.ADAPTERS:
            self._adapter(key, value)
        elif table == tables.PROPOSALS:
            need(
                value is not None and self.said and self.said[1] == "proposal" and key not in self._keys(table), "made"
            )
        elif table == tables.COSE_RECENT:
            need(value is not None and self.said and self.said[1] == "proposal", "the window of requests changed")
            need(key.startswith(f"{self.said[0]}:".encode()), "another member's window")  # type: ignore[index]
        elif table == tables.NODES_INFO:
            self._node(key.decode(), value, info)
        elif table == tables.NODE_CERTIFICATES:
            if value is None:
                row = self.json(tables.NODES_INFO, key)
                need((tables.NODES_INFO, key) not in self.after and self._superseded(row), "a certificate removed")
                return
            self._certificate(key.decode(), value or b"", info)
        elif table == tables.SERVICE_INFO:
            self._service(value, info)
        elif table == tables.SUCCESSION:
            self._succession(value)
        elif table == tables.IDENTITY_STATEMENTS:
            self._statement(key, value)
        elif table in SECRETS:
            self._secret(table, key, value)
        elif table == tables.SNAPSHOT_EVIDENCE:
            need(0 < json.loads(value or b"{}")["seqno"] < self.seqno, "a snapshot of what is not there")

    def _keys(self, table: str) -> set[bytes]:
        return {k for t, k in self.rows if t == table}

    def _actor(self, table: str, key: bytes, value: bytes | None) -> bool:
        who = key.decode()
        if self.said and self.said[0] == who and table == tables.MEMBERS_ACKS and self.said[1] == "state_digest":
            return value is not None
        if self.said and self.said[0] == who and table == tables.MEMBERS_INFO and self.said[1] == "ack":
            before = self.json(table, key)
            asked = self.json(tables.MEMBERS_ACKS, key).get("state_digest")
            return self.said[2].get("state_digest") == asked and json.loads(value or b"{}") == {
                **before,
                "status": "Active",
            }
        kind = "member" if table in MEMBERS else "user"
        if value is None:
            removed = [args[f"{kind}_id"] for args in self._acts(f"remove_{kind}")]
            return who in removed or (table == tables.MEMBERS_ENCRYPTION and bool(self._acts("set_member")))
        for args in self._acts(f"set_{kind}"):
            if name(load(args["cert"])) == who:
                return {
                    tables.MEMBERS_CERTS: lambda: value.decode() == args["cert"],
                    tables.USERS_CERTS: lambda: value.decode() == args["cert"],
                    tables.USERS_INFO: lambda: json.loads(value) == {"user_data": args.get("user_data") or {}},
                    tables.MEMBERS_INFO: lambda: json.loads(value)["status"] == "Accepted",
                    tables.MEMBERS_ENCRYPTION: lambda: value.decode() == args.get("encryption_pub_key"),
                }.get(table, lambda: False)()
        for args in self._acts("set_user_data"):
            if args["user_id"] == who and table == tables.USERS_INFO:
                return bool(json.loads(value)["user_data"] == args["user_data"])
        return False

    def _adapter(self, key: bytes, value: bytes | None) -> None:
        before, after = self.json(tables.ADAPTERS, key), json.loads(value or b"{}")
        if not before:
            named = [args["name"] for args in self._acts("set_adapter")]
            need(key.decode() in named and after["status"] == "Accepted", "an adapter without a vote")
        else:
            need(after == {**before, "status": "Running"}, "an adapter changed")

    # --- nodes ---

    def _node(self, node: str, value: bytes | None, info: dict[str, Any]) -> None:
        before = self.json(tables.NODES_INFO, node.encode())
        if value is None:
            gone = [args["node_id"] for args in self._acts("remove_node")]
            need((before["status"] == "Pending" and node in gone) or self._superseded(before), "a node removed")
            return
        after = json.loads(value)
        need(tables.row(after) == value, "a row that no node writes")
        if not before:
            self._newcomer(node, after, info)
            return
        changed = {name for name in {*before, *after} if before.get(name) != after.get(name)}
        step = before["status"], after["status"]
        if step == ("Trusted", "Retired"):
            voted = node in [args["node_id"] for args in self._acts("remove_node")]
            told = {"retire_statement", *(["removed"] if voted else [])}
            need(changed <= {"status", "retired_committed", *told}, "a node that left changed")
            newer = [
                row
                for row in self.all(tables.NODES_INFO).values()
                if row["status"] == "Trusted"
                and row["peer_address"] == after["peer_address"]
                and row["engine"] > after["engine"]
            ]
            if "retire_statement" in changed:
                wanted = {"network": "test", "service": self._named(), "node_id": node}
                self._operator(after["retire_statement"], "coco.retire_statement", wanted, after["peer_address"])
            else:
                need(voted or newer or self.recovering, "a node left that nobody sent away")
        elif step == ("Pending", "Trusted"):
            voted = node in [args["node_id"] for args in self._acts("transition_node_to_trusted")]
            need(voted and changed <= {"status", "certificate_validity"}, "a node trusted without a vote")
        elif changed == {"retired_committed"}:
            need(after["retired_committed"] is True and self.touched >= SECRETS, "a node that is gone for no reason")
        else:
            need(changed <= {"quote_info", "verified"} and step[0] == "Trusted", "a node changed")
            self._evidence(node, after)

    def _superseded(self, row: dict[str, Any]) -> bool:
        """Whether a node is long gone, and another of its address is replaced by this entry."""
        replaced = [
            json.loads(value)
            for (table, key), value in self.changed.items()
            if table == tables.NODES_INFO and value is not None and self.json(table, key).get("status") == "Trusted"
        ]
        return row.get("retired_committed") is True and any(
            one["status"] == "Retired" and one["peer_address"] == row["peer_address"] and one["engine"] > row["engine"]
            for one in replaced
        )

    def _named(self) -> str:
        return sha256(self._key_now()).hexdigest()

    def _newcomer(self, node: str, row: dict[str, Any], info: dict[str, Any]) -> None:
        founds = self.seqno == 1 or self.recovering
        engines = [*self.nodes_ever.values(), *(one["engine"] for one in self.all(tables.NODES_INFO).values())]
        need(node not in self.nodes_ever and row["engine"] > max(engines, default=0), "an id that was given already")
        self._evidence(node, row)
        context = {name: bytes.fromhex(part) for name, part in row["report_context"].items()}
        need(context["service"] == self._key(info), "evidence for another service")
        if founds:
            need(row["status"] == "Trusted" and not row["owner_statement"], "a founder is another")
            return
        need(row["status"] in ("Trusted", "Pending"), "a node that begins as something else")
        need(context["encryption_key"].decode() == row["encryption_pub_key"], "another encryption key")
        need((tables.NODE_MEASUREMENTS, row["measurement"].encode()) in self.rows, "code that is not allowed")
        if row["status"] == "Trusted" or row["owner_statement"]:
            rules = self.json(tables.CONSTITUTION)
            need(rules != UNANIMOUS or row["status"] == "Pending", "a node without a vote")
            wanted = {
                "network": "test",
                "service": self._named(),
                "constitution": sha256(rules.encode()).hexdigest(),
                "node_id": node,
                "address": row["peer_address"],
                "measurement": row["measurement"],
                "host_names": row["host_names"],
            }
            operator = self._operator(row["owner_statement"], "coco.node_statement", wanted, row["peer_address"])
            need(operator == row["owner"], "another operator's node")
        else:
            need(not row["owner"], "an owner who has not signed")

    def _operator(self, statement: str, kind: str, wanted: dict[str, Any], address: str) -> str:
        body = bytes.fromhex(statement)
        who = cose.parse(body).headers[4].decode()
        row = self.json(tables.OPERATORS, who.encode())
        need(row and address.rpartition(":")[0] in row["addresses"], "no operator of this address")
        _, payload = verified(body, load(row["cert"]), kind)
        need(
            payload.pop("expires_s") >= self.time_s - SKEW_S and payload == wanted, "an operator signed something else"
        )
        return str(who)

    def _evidence(self, node: str, row: dict[str, Any]) -> None:
        said = json.loads(base64.b64decode(row["quote_info"]["evidence"]))
        need(row["quote_info"]["platform"] == row["quote_info"]["format"] == "insecure_virtual", "another platform")
        need(said["measurement"] == row["measurement"] == row["verified"]["measurement"], "evidence of other code")
        context = {name: bytes.fromhex(part) for name, part in row["report_context"].items()}
        parts = [
            context.get(one, b"") for one in ("nonce", "encryption_key", "service", "constitution", "configuration")
        ]
        text = b"coco report data v1" + b"".join(len(part).to_bytes(4, "big") + part for part in parts)
        need(said["report_data"] == node + sha256(text).hexdigest(), "evidence for something else")
        need(row["verified"]["report_data"] == said["report_data"], "a row that says something else")

    def _certificate(self, node: str, value: bytes, info: dict[str, Any]) -> None:
        found = load(value)
        issuer = load(json.loads(self.after[tables.SERVICE_INFO, ONE])["cert"])
        issuer.public_key().verify(  # type: ignore[call-arg]
            found.signature,
            found.tbs_certificate_bytes,
            ec.ECDSA(hashes.SHA384()),  # type: ignore[arg-type]
        )
        need(sha256(spki(found)).hexdigest() == node, "a certificate for another key")
        row = json.loads(self.after[tables.NODES_INFO, node.encode()])
        need(row["status"] == "Trusted", "a certificate for a node that is not trusted")
        need(found.subject.rfc4514_string() == f"CN=Coco Node {row['engine']}", "a certificate for another name")
        names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        need([str(one.value) for one in names] == row["host_names"], "a certificate for other hosts")
        need(not found.extensions.get_extension_for_class(x509.BasicConstraints).value.ca, "a certificate that issues")
        need((found.not_valid_after_utc - found.not_valid_before_utc).days == 7, "a certificate for longer")

    # --- the service ---

    def _service(self, value: bytes | None, info: dict[str, Any]) -> None:
        need(value is not None, "the service removed")
        before = self.json(tables.SERVICE_INFO)
        if self.seqno == 1 or self.recovering:
            need(
                info.keys() <= {"status", "cert", "recovery_count", "previous_service_identity", "since"}, "other words"
            )
        elif self.succeeds:
            found = self.json(tables.SUCCESSION)
            need(
                found.get("status") == "Announced" and found["next"] == info["cert"], "another identity than announced"
            )
            wanted = {**before, "cert": found["next"], "previous_service_identity": found["previous"]}
            need(info == {**wanted, "since": self.seqno}, "other words")
            prefix = ((1 << 63) | found["number"]).to_bytes(8, "big")
            stated = {k[8:].decode() for t, k in self.rows if t == tables.IDENTITY_STATEMENTS and k.startswith(prefix)}
            need(2 * len(stated & self.active()) > len(self.active()), "too few statements")
            need(self.new.get((tables.SUCCESSION, ONE), b"") is None, "an announcement that stays")
        elif before["cert"] != info["cert"]:
            need(self._acts("set_service_certificate_validity"), "another certificate without a vote")
            need({**before, "cert": ""} == {**info, "cert": ""}, "more than a certificate")
        else:
            need({**before, "status": ""} == {**info, "status": ""}, "more than a status")

    def _succession(self, value: bytes | None) -> None:
        before = self.json(tables.SUCCESSION)
        if value is None:
            need(self.succeeds or self.recovering, "an announcement dropped")
            return
        after = json.loads(value)
        if after["status"] == "Wanted":
            need(after == {"status": "Wanted"} and (self._acts("rotate_service_identity", "remove_node")), "unasked")
            return
        need(before.get("status") == "Wanted" and self.touched == {tables.SUCCESSION}, "announced unasked")
        need(self._key({"cert": after["next"]}) not in self.keys, "a key once more")
        need(after["previous"] == self.json(tables.SERVICE_INFO)["cert"] and after["number"] == self.seqno, "another")
        need(after["transaction_id"] == f"{self.views[-1]}.{self.seqno - 1}", "another place")
        need(after["root"] == self.tree.root(self.seqno - 1).hex(), "another root")
        trusted = {n for n, row in self.all(tables.NODES_INFO).items() if row["status"] == "Trusted"}
        need(after["keys"].keys() == trusted, "the key for others than trusted nodes")

    def _statement(self, key: bytes, value: bytes | None) -> None:
        need(value is not None and self.touched == {tables.IDENTITY_STATEMENTS}, "a statement removed")
        member = key[8:].decode()
        need(member in self.active(), "a statement of nobody active")
        certificate = load(self.rows[tables.MEMBERS_CERTS, member.encode()])
        _, payload = verified(value or b"", certificate, "coco.identity_statement")
        if self.status == "WaitingForRecoveryShares":
            need(key[:8] == self.began["count"].to_bytes(8, "big"), "a statement filed elsewhere")
            need(payload == self.began["payload"], "a statement about something else")
            return
        found = self.json(tables.SUCCESSION)
        need(found.get("status") == "Announced", "a statement about nothing")
        need(key[:8] == ((1 << 63) | found["number"]).to_bytes(8, "big"), "a statement filed elsewhere")
        wanted = {
            "previous_service": self._key({"cert": found["previous"]}).hex(),
            "next_service": self._key({"cert": found["next"]}).hex(),
            "transaction_id": found["transaction_id"],
            "root": found["root"],
            "goes_on": True,
        }
        need(payload == wanted, "a statement about something else")

    # --- secrets ---

    def _secret(self, table: str, key: bytes, value: bytes | None) -> None:
        need(value is not None, "a secret removed")
        body = value or b""
        keeping = self.status == "WaitingForRecoveryShares"
        after = self.after
        first = {True: self.began.get("since"), False: self.seqno + 1}[keeping] if self.seqno > 1 else 1
        if table == tables.FORMER_SECRETS:
            need((table, key) not in self.rows, "a former secret changed")
            need(key == self.json(tables.WRAPPED_SECRET)["first_seqno"].to_bytes(8, "big"), "another former secret")
            return
        row = json.loads(body)
        begins = (tables.FORMER_SECRETS in self.touched) or self.seqno == 1
        if table == tables.WRAPPED_SECRET:
            members = {
                k.decode(): v
                for (t, k), v in after.items()
                if t == tables.MEMBERS_ENCRYPTION and k.decode() in self.active(after)
            }
            need(row["encrypted_shares"].keys() == members.keys() == row["share_commitments"].keys(), "other keepers")
            need(row["threshold"] == json.loads(after[tables.SERVICE_CONFIG, ONE])["recovery_threshold"], "threshold")
            for member, share in row["encrypted_shares"].items():
                size = load_pem_public_key(members[member]).key_size // 8
                need(len(base64.b64decode(share)) == size, "a share of another size")
            wanted = first if begins else self.json(tables.WRAPPED_SECRET)["first_seqno"]
            need(row["first_seqno"] == wanted, "the secret of another epoch")
        else:
            need(begins and row["first_seqno"] == first, "the secrets of another epoch")
            trusted = {
                k.decode()
                for (t, k), v in after.items()
                if t == tables.NODES_INFO and json.loads(v)["status"] == "Trusted"
            }
            need(set(row["nodes"]) == (set() if keeping or self.seqno == 1 else trusted), "a secret for other nodes")
        if self.seqno > 1 and not keeping and not self.succeeds and not self.accepted:
            left = any(t == tables.NODES_INFO for t, _ in self.changed)
            began = self.json(tables.NODE_SECRETS)["began_ms"]
            now = json.loads(self.new.get((tables.NODE_SECRETS, ONE)) or b"{}").get("began_ms", 0)
            age = json.loads(self.rows[tables.SERVICE_CONFIG, ONE])["epoch_length_s"]
            acknowledged = self.said is not None and self.said[1] == "ack"
            need(left or now - began >= 1000 * age or acknowledged, "an epoch that was not due")

    # --- signatures ---

    def _signature(self) -> None:
        record = json.loads(self.new[tables.SIGNATURES, ONE] or b"{}")
        root = self.tree.root(self.seqno)
        certificate = load(record["cert"])
        need(record["root"] == root.hex() and (record["view"], record["seqno"]) == (self.view, self.seqno), "its place")
        certificate.public_key().verify(  # type: ignore[call-arg]
            base64.b64decode(record["sig"]),
            root,
            ec.ECDSA(utils.Prehashed(hashes.SHA256())),  # type: ignore[arg-type]
        )
        message = cose.parse(base64.b64decode(json.loads(self.new[tables.COSE_SIGNATURES, ONE] or b"")))
        service = load(self.json(tables.SERVICE_INFO)["cert"])
        cose.verify(message, service.public_key(), root)  # type: ignore[arg-type]
        need(message.headers["ccf.v1"] == {"txid": f"{self.view}.{self.seqno}"}, "signed for another place")
        node = record["node"]
        need(node == sha256(spki(certificate)).hexdigest(), "another node")
        row = self.json(tables.NODES_INFO, node.encode())
        leaving = row.get("status") == "Retired" and not row["retired_committed"]
        need(row.get("status") == "Trusted" or leaving, "signed by a node that is not trusted")
        need(self.get(tables.NODE_CERTIFICATES, node.encode()) == record["cert"].encode(), "another certificate")
        time_s = message.headers[15][6]
        began, ends = certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp()
        need(began <= time_s <= ends, "signed outside its certificate's time")
        need(time_s >= self.time_s or self.status == "Recovering", "signed earlier than before")
        need(self.signer in ("", node), "two signers in one view")
        place = record["commit_seqno"]
        need(
            place < self.seqno and (place == 0 or self.views[place] == record["commit_view"]),
            "committed where nothing is",
        )
        self.signer, self.time_s = node, time_s
