"""What an accepted proposal can do: each action checks its arguments and writes rows of the administrative ledger.

Rules:

* Actions of one proposal work on one draft, in order; if any fails, none of them happened.
* An action never trusts the rules that let it pass: whatever must hold under any constitution is checked here (G2).
* Names, arguments and tables are those of the open format where it has them (docs/governance.md).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from coco.enclave.configuration import nodes
from coco.errors import GovernanceError
from coco.ledger import tables
from coco.ledger.statements import fingerprint

ACTIVE, ACCEPTED, RETIRED = "Active", "Accepted", "Retired"
_RSA_BITS_MIN = 2048
_TEXT_MAX = 1024 * 1024


class Reads(Protocol):
    """What a draft begins from: a view of the store."""

    def get(self, table: str, key: bytes) -> bytes | None:
        """Value of a key."""

    def scan(self, table: str, prefix: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """Keys and values."""


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

    def recovery_members(self) -> dict[str, bytes]:
        """PEM of the encryption key of every active recovery member."""
        members = self.members()
        keys = self.scan(tables.MEMBERS_ENCRYPTION)
        return {k.decode(): pem for k, pem in keys.items() if members.get(k.decode(), {}).get("status") == ACTIVE}

    def node_keys(self) -> dict[str, str]:
        """PEM of the encryption key of every trusted node."""
        rows = {key.decode(): json.loads(value) for key, value in self.scan(tables.NODES_INFO).items()}
        return {name: row.get("encryption_pub_key", "") for name, row in rows.items() if row["status"] == nodes.TRUSTED}

    def settings(self) -> dict[str, Any]:
        """Settings of the service."""
        return self.document(tables.SERVICE_CONFIG, tables.SINGLETON) or {}


def state(draft: Draft) -> dict[str, Any]:
    """What rules see: public governance tables only (G2)."""
    encryption = draft.scan(tables.MEMBERS_ENCRYPTION)
    genesis = draft.document(tables.GENESIS, tables.SINGLETON) or {}
    return {
        "members": {
            name: {
                "status": info.get("status", ""),
                "recovery": name.encode() in encryption,
                "data": info.get("member_data"),
            }
            for name, info in draft.members().items()
        },
        "users": {k.decode(): json.loads(v).get("user_data") for k, v in draft.scan(tables.USERS_INFO).items()},
        "nodes": {
            key.decode(): {"status": row.get("status"), "address": row.get("peer_address"), "owner": row.get("owner")}
            for key, row in ((k, json.loads(v)) for k, v in draft.scan(tables.NODES_INFO).items())
        },
        "settings": {
            "recovery_threshold": int(draft.settings().get("recovery_threshold", 1)),
            "production": bool(genesis.get("production", True)),
        },
    }


# --- arguments ----------------------------------------------------------------------------------------------------


def _refuse(message: str, code: str = "gov.bad_argument") -> GovernanceError:
    return GovernanceError(message, code=code)


def _text(args: Mapping[str, Any], name: str) -> str:
    value = args.get(name)
    if not isinstance(value, str) or not 0 < len(value) <= _TEXT_MAX:
        raise _refuse(f"{name} must be a text")
    return value


def _certificate(args: Mapping[str, Any]) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(_text(args, "cert").encode())
    except ValueError as error:
        raise _refuse("cert must be a certificate in PEM") from error


def _data(args: Mapping[str, Any], name: str) -> Any:
    value = args.get(name)
    if value is not None and not isinstance(value, dict):
        raise _refuse(f"{name} must be an object")
    return value if value is not None else {}


def _known(draft: Draft, table: str, key: str, what: str) -> dict[str, Any]:
    found = draft.document(table, key.encode())
    if found is None:
        raise _refuse(f"there is no {what} {key[:64]}", f"gov.unknown_{what}")
    return found


# --- members and users --------------------------------------------------------------------------------------------


def _set_member(draft: Draft, args: Mapping[str, Any]) -> None:
    certificate = _certificate(args)
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != "secp384r1":
        raise _refuse("a member signs with a key on P-384")
    name = fingerprint(certificate).encode()
    encryption = args.get("encryption_pub_key")
    if encryption is not None:
        try:
            public = load_pem_public_key(_text(args, "encryption_pub_key").encode())
        except ValueError as error:
            raise _refuse("encryption_pub_key must be a public key in PEM") from error
        if not isinstance(public, rsa.RSAPublicKey) or public.key_size < _RSA_BITS_MIN:
            raise _refuse("a recovery member has an RSA key of 2048 bits or more")
        draft.put(tables.MEMBERS_ENCRYPTION, name, str(encryption).encode())
    former = draft.document(tables.MEMBERS_INFO, name)
    status = ACTIVE if former is not None and former.get("status") == ACTIVE else ACCEPTED
    draft.put(tables.MEMBERS_CERTS, name, _text(args, "cert").encode())
    info = {"status": status, "member_data": _data(args, "member_data")}
    draft.put(tables.MEMBERS_INFO, name, tables.row(info))
    draft.reshare |= status == ACTIVE


def _remove_member(draft: Draft, args: Mapping[str, Any]) -> None:
    name = _text(args, "member_id").encode()
    if draft.get(tables.MEMBERS_INFO, name) is None:
        return  # unknown: nothing to do, as in the open format
    draft.rekey = True
    for table in (tables.MEMBERS_INFO, tables.MEMBERS_CERTS, tables.MEMBERS_ENCRYPTION, tables.MEMBERS_ACKS):
        draft.remove(table, name)


def _set_member_data(draft: Draft, args: Mapping[str, Any]) -> None:
    name = _text(args, "member_id")
    info = _known(draft, tables.MEMBERS_INFO, name, "member")
    draft.put(tables.MEMBERS_INFO, name.encode(), tables.row({**info, "member_data": _data(args, "member_data")}))


def _set_user(draft: Draft, args: Mapping[str, Any]) -> None:
    certificate = _certificate(args)
    data = _data(args, "user_data")
    genesis = draft.document(tables.GENESIS, tables.SINGLETON) or {}
    if data.get("insecure_any_account") and genesis.get("production", True):
        raise _refuse("insecure_any_account is for a sandbox only", "configuration.insecure_any_account")
    name = fingerprint(certificate).encode()
    draft.put(tables.USERS_CERTS, name, _text(args, "cert").encode())
    draft.put(tables.USERS_INFO, name, tables.row({"user_data": data}))


def _remove_user(draft: Draft, args: Mapping[str, Any]) -> None:
    name = _text(args, "user_id").encode()
    draft.rekey |= draft.get(tables.USERS_INFO, name) is not None
    for table in (tables.USERS_INFO, tables.USERS_CERTS):
        draft.remove(table, name)


def _set_user_data(draft: Draft, args: Mapping[str, Any]) -> None:
    name = _text(args, "user_id")
    info = _known(draft, tables.USERS_INFO, name, "user")
    draft.put(tables.USERS_INFO, name.encode(), tables.row({**info, "user_data": _data(args, "user_data")}))


def _set_operator(draft: Draft, args: Mapping[str, Any]) -> None:
    certificate, addresses = _certificate(args), args.get("addresses")
    if not isinstance(addresses, list) or not all(isinstance(one, str) and one for one in addresses):
        raise _refuse("addresses must be a list of texts")
    row = tables.row({"cert": _text(args, "cert"), "addresses": addresses})
    draft.put(tables.OPERATORS, fingerprint(certificate).encode(), row)


def _remove_operator(draft: Draft, args: Mapping[str, Any]) -> None:
    draft.remove(tables.OPERATORS, _text(args, "operator_id").encode())


# --- nodes and code -----------------------------------------------------------------------------------------------


def _trust_node(draft: Draft, args: Mapping[str, Any]) -> None:
    name = _text(args, "node_id")
    row = _known(draft, tables.NODES_INFO, name, "node")
    if row["status"] != nodes.PENDING:
        raise _refuse("only a pending node can become trusted", "gov.node_not_pending")
    draft.put(tables.NODES_INFO, name.encode(), tables.row({**row, "status": nodes.TRUSTED}))


def _remove_node(draft: Draft, args: Mapping[str, Any]) -> None:
    name = _text(args, "node_id")
    row = draft.document(tables.NODES_INFO, name.encode())
    if row is None:
        return
    if row["status"] == nodes.PENDING:
        draft.remove(tables.NODES_INFO, name.encode())
    else:
        draft.put(tables.NODES_INFO, name.encode(), tables.row({**row, "status": nodes.RETIRED}))


def _add_measurement(draft: Draft, args: Mapping[str, Any]) -> None:
    draft.put(tables.NODE_MEASUREMENTS, _text(args, "measurement").encode(), nodes.ALLOWED)
    draft.drops_others = True


def _remove_measurement(draft: Draft, args: Mapping[str, Any]) -> None:
    draft.remove(tables.NODE_MEASUREMENTS, _text(args, "measurement").encode())


# --- rules and recovery -------------------------------------------------------------------------------------------


def _set_constitution(draft: Draft, args: Mapping[str, Any]) -> None:
    draft.put(tables.CONSTITUTION, tables.SINGLETON, tables.row(_text(args, "constitution")))
    draft.drops_others = True


def _set_recovery_threshold(draft: Draft, args: Mapping[str, Any]) -> None:
    threshold = args.get("recovery_threshold")
    if not isinstance(threshold, int) or isinstance(threshold, bool) or not 1 <= threshold <= 254:
        raise _refuse("recovery_threshold must be a number from 1 to 254")
    settings = {**draft.settings(), "recovery_threshold": threshold}
    draft.put(tables.SERVICE_CONFIG, tables.SINGLETON, tables.row(settings))
    draft.reshare = True


def _refresh_shares(draft: Draft, args: Mapping[str, Any]) -> None:
    draft.reshare = True


def _rekey(draft: Draft, args: Mapping[str, Any]) -> None:
    draft.rekey = True


ACTIONS: Mapping[str, Callable[[Draft, Mapping[str, Any]], None]] = {
    "set_member": _set_member,
    "remove_member": _remove_member,
    "set_member_data": _set_member_data,
    "set_user": _set_user,
    "remove_user": _remove_user,
    "set_user_data": _set_user_data,
    "set_operator": _set_operator,
    "remove_operator": _remove_operator,
    "transition_node_to_trusted": _trust_node,
    "remove_node": _remove_node,
    "add_virtual_measurement": _add_measurement,
    "remove_virtual_measurement": _remove_measurement,
    "set_constitution": _set_constitution,
    "set_recovery_threshold": _set_recovery_threshold,
    "trigger_recovery_shares_refresh": _refresh_shares,
    "trigger_ledger_rekey": _rekey,
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
    if name not in ACTIONS or not isinstance(args, dict | None):
        raise _refuse(f"there is no action {str(name)[:64]}", "gov.unknown_action")
    return str(name), args or {}


def _check(draft: Draft) -> None:
    if not any(info.get("status") == ACTIVE for info in draft.members().values()):
        raise _refuse("nobody would govern any more", "gov.no_member_left")
    threshold = int(draft.settings().get("recovery_threshold", 1))
    if len(draft.recovery_members()) < threshold:
        raise _refuse(f"fewer than {threshold} members could recover the service", "gov.not_recoverable")
    rows = [json.loads(value) for value in draft.scan(tables.NODES_INFO).values()]
    if rows and not any(row["status"] == nodes.TRUSTED for row in rows):
        raise _refuse("no node would be left", "gov.no_node_left")
    used = {row.get("measurement") for row in rows if row["status"] == nodes.TRUSTED}
    allowed = {key.decode() for key in draft.scan(tables.NODE_MEASUREMENTS)}
    if used and not used & allowed:
        raise _refuse("every node's code would be disallowed", "gov.no_node_left")
