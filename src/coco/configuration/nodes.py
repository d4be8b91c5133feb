"""The nodes of a network, as the configuration has them, and who may become one. Sans-I/O.

Rules (J1, J2, J5): a node's row names its engine id, which the ledger gives and never gives again; a joiner is admitted
when its evidence is for its own key, the service and the start that it names, its measurement is allowed, and an
operator whom the constitution lists has signed node, address, measurement and network. Otherwise it is recorded as
pending, and governance decides. A pending node counts for nothing. Where a node was told to leave, by its operator or
members, nobody comes by the same automatic way: a statement names it, and after a removal by vote there is another.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from coco.attestation import policy, wrapper
from coco.attestation.evidence import Evidence, report_data
from coco.attestation.verified import Verified
from coco.configuration import platforms
from coco.configuration.reads import Reads
from coco.crypto import cose
from coco.errors import AccessError, AttestationError, CocoError, RequestError
from coco.ledger import tables
from coco.ledger.statements import MESSAGE_TYPE, fingerprint, parse_json

PENDING, TRUSTED, RETIRED = "Pending", "Trusted", "Retired"
ALLOWED = platforms.ALLOWED
#: In the row of a node that members removed by vote.
REMOVED = "removed"
_ID_DIGITS = 64


@dataclass(frozen=True, slots=True)
class NodeRow:
    """One node."""

    node_id: str
    engine: int
    status: str
    address: str
    #: Fingerprint of the operator's certificate who answers for it; empty: governance does, or it founded a service.
    owner: str
    #: Of its code, as its evidence said when it was admitted.
    measurement: str = ""


class JoinRequest(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a joiner says of itself."""

    #: As ``Evidence.to_json`` makes it.
    evidence: dict[str, str]
    #: PEM of the RSA key that secrets are to be sealed to.
    encryption_key: str
    #: Hash of its start configuration.
    configuration: bytes
    #: Fresh random bytes, which the welcome repeats.
    nonce: bytes
    address: str
    host_names: list[str]
    #: The owner's COSE message; empty: governance is to decide.
    owner_statement: bytes
    #: SHA-256 of the rules that the newcomer has approved: under others it wants nothing. Empty: under any.
    constitution: bytes = b""
    #: What the newcomer's host says of the time, in milliseconds since the Unix epoch; 0: nothing.
    time_ms: int = 0

    def encode(self) -> bytes:
        """As a node sends it; without a time it is what nodes read that know of none (commit fa5f8b7)."""
        fields = msgspec.structs.astuple(self)
        return msgspec.msgpack.encode(fields if self.time_ms else fields[:-1])


def rows(view: Reads) -> list[NodeRow]:
    """Every node that ever was, by engine id."""
    found = []
    for key, value in view.scan(tables.NODES_INFO):
        row = json.loads(value)
        found.append(
            NodeRow(
                key.decode(),
                int(row.get("engine", 0)),
                str(row.get("status", "")),
                str(row.get("peer_address", "")),
                str(row.get("owner", "")),
                str(row.get("measurement", "")),
            )
        )
    return sorted(found, key=lambda node: node.engine)


def next_engine(view: Reads) -> int:
    """An engine id that no node has had."""
    return max((node.engine for node in rows(view)), default=0) + 1


def row_document(
    *,
    engine: int,
    status: str,
    address: str,
    owner: str,
    evidence: Mapping[str, Any],
    verified: Verified,
    context: Mapping[str, bytes],
    encryption_key: str,
    seqno: int,
    host_names: Sequence[str] = (),
    statement: bytes = b"",
) -> dict[str, Any]:
    """Value of a node's row, before it is dumped; ``statement`` is the owner's, for whoever audits the ledger.

    What the evidence proved then is kept: it is judged again whenever the manifest changes (H6).
    """
    return {
        "status": status,
        "retired_committed": False,
        "quote_info": {"format": evidence["platform"], **evidence},
        "measurement": verified.measurement,
        "verified": verified.to_json(),
        "report_context": {name: value.hex() for name, value in context.items()},
        "encryption_pub_key": encryption_key,
        "rpc_interfaces": {},
        "ledger_secret_seqno": seqno,
        "engine": engine,
        "peer_address": address,
        "owner": owner,
        "host_names": list(host_names),
        "owner_statement": statement.hex(),
    }


def admission(
    others: Sequence[NodeRow], *, address: str, owner: str, measurement: str, host_names: Sequence[str]
) -> dict[str, Any]:
    """What rules are told of a node that its operator signed for; ``replaces`` is its owner's node at its address."""
    there = [row for row in others if row.address == address and row.status == TRUSTED]
    return {
        "address": address,
        "owner": owner,
        "measurement": measurement,
        "host_names": list(host_names),
        "replaces": there[-1].node_id if there and there[-1].owner == owner else None,
    }


@dataclass(frozen=True, slots=True)
class Left:
    """The last node at an address, which was told to leave."""

    node_id: str
    #: Members removed it; else its operator had it leave.
    by_vote: bool


def left_at(view: Reads, address: str) -> Left | None:
    """Who left an address last, if somebody told it to and nobody has come there since; a successor tells nobody."""
    found: tuple[int, Left | None] = (0, None)
    for key, value in view.scan(tables.NODES_INFO):
        row = json.loads(value)
        if row.get("peer_address") != address or row["status"] == PENDING or int(row.get("engine", 0)) < found[0]:
            continue
        told = row["status"] == RETIRED and (REMOVED in row or "retire_statement" in row)
        found = (int(row.get("engine", 0)), Left(key.decode(), REMOVED in row) if told else None)
    return found[1]


def returning(view: Reads, address: str, statement: bytes) -> tuple[dict[str, str], bool]:
    """What an operator's statement about a node at an address says besides, and whether the rules may trust it at once.

    Raises:
        AccessError: a node was told to leave this address, and the statement does not say that it is to come back
            (``join.address_left``).
    """
    try:
        said = parse_json(cose.parse(statement).payload or b"")
        named = str(said.get("returns") or "")[:_ID_DIGITS]
    except (ValueError, AttributeError, CocoError):
        named = ""  # whoever checks the statement says what is wrong with it
    left = left_at(view, address)
    if left is not None and named != left.node_id:
        raise AccessError(
            f"node {left.node_id} was told to leave this address: whoever starts one here says that it returns",
            code="join.address_left",
            hint=f"coco node join --returns {left.node_id}",
        )
    return ({"returns": named} if named else {}), left is None or not left.by_vote


def superseded(view: Reads, retired: Mapping[str, Any]) -> list[bytes]:
    """Keys of the nodes that nobody needs a row of once a successor has replaced one at their address.

    They lie in the ledger for ever; who asks for a node's last steps asks about the newest ones.
    """
    found = []
    for key, value in view.scan(tables.NODES_INFO):
        row = json.loads(value)
        done = row["status"] == RETIRED and row.get("retired_committed")
        if done and row.get("peer_address") == retired["peer_address"] and row.get("engine", 0) < retired["engine"]:
            found.append(key)
    return found


def check_evidence(
    request: JoinRequest, node_key: ec.EllipticCurvePublicKey, service_key: bytes, *, now_s: int
) -> Verified:
    """Check that a joiner's evidence is its platform's, and for this key, service and start.

    Raises:
        AttestationError: it is not.
    """
    verified = Evidence.parse(request.evidence).verify(now_s=now_s)
    policy.check_report_data(verified, report_data(cose.spki(node_key), **context_of(request, service_key)))
    return verified


def context_of(request: JoinRequest, service_key: bytes) -> dict[str, bytes]:
    """What a joiner's report data binds besides its key."""
    return {
        "encryption_key": request.encryption_key.encode(),
        "service": service_key,
        "configuration": request.configuration,
    }


def renewed(row: Mapping[str, Any], evidence: Mapping[str, Any], node_key: bytes, *, now_s: int) -> dict[str, Any]:
    """A node's row with newer evidence, for the same key and context, of the same code on the same platform.

    Raises:
        AttestationError: it is something else (``attestation.other_code``), or ends earlier (``attestation.older``).
    """
    verified, before = Evidence.parse(evidence).verify(now_s=now_s), Verified.from_json(row["verified"])
    context = {name: bytes.fromhex(value) for name, value in row["report_context"].items()}
    policy.check_report_data(verified, report_data(node_key, **context))
    if (verified.platform, verified.measurement) != (before.platform, before.measurement):
        raise AttestationError("the evidence is of other code", code="attestation.other_code")
    if verified.valid_until_s < before.valid_until_s:
        raise AttestationError("the evidence ends earlier than the one that is there", code="attestation.older")
    return {**row, "quote_info": {"format": evidence["platform"], **evidence}, "verified": verified.to_json()}


def wrapped_evidence(document: Mapping[str, Any]) -> bytes:
    """The evidence in a node's row, as its certificate has it; empty where the row has none."""
    said = document.get("quote_info")
    if said is None:
        return b""
    context = {name: bytes.fromhex(value) for name, value in document["report_context"].items()}
    return wrapper.wrap(Evidence.parse(said), context)


def check_manifest(view: Reads, verified: Verified) -> None:
    """Whether the network runs this code on this platform.

    Raises:
        AccessError: it does not run this code (``join.code_not_allowed``).
        AttestationError: it does not on this platform, in this state; the code says why.
    """
    try:
        policy.enforce(verified, platforms.policy(view))
    except AttestationError as error:
        if error.code != "attestation.measurement":
            raise
        raise AccessError("the code of this node is not allowed to join", code="join.code_not_allowed") from error


def is_allowed(row: Mapping[str, Any], manifest: policy.Policy) -> bool:
    """Whether a node may run on, by what its evidence proved when it was admitted (H6)."""
    verified = Verified.from_json(row["verified"])
    return all(finding.passed for finding in policy.judge(verified, manifest))


def allowed(view: Reads) -> frozenset[int]:
    """Engine ids of the nodes whose code and platform are in the manifest."""
    manifest = platforms.policy(view)
    found = (json.loads(value) for _, value in view.scan(tables.NODES_INFO))
    return frozenset(int(row["engine"]) for row in found if is_allowed(row, manifest))


def check_owner(
    view: Reads, statement: bytes, expected: Mapping[str, Any], *, kind: str, address: str, time_s: int
) -> str:
    """Check an operator's statement of a kind about a node at an address; the fingerprint of its certificate.

    Raises:
        AccessError: nobody who may says so (``join.not_the_owner``), or no longer (``join.statement_expired``).
    """
    try:
        message = cose.parse(statement)
        payload = parse_json(message.payload or b"")
        key_id = message.headers.get(cose.KEY_ID)
        operator = key_id.decode("ascii", "replace") if isinstance(key_id, bytes) else ""
        row = json.loads(view.get(tables.OPERATORS, operator.encode()) or b"{}")
        certificate = x509.load_pem_x509_certificate(str(row.get("cert", "")).encode())
        key = certificate.public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey) or message.headers.get(MESSAGE_TYPE) != kind:
            raise RequestError("not a node statement", code="join.not_the_owner")
        cose.verify(message, key)
    except (ValueError, CocoError) as error:
        raise AccessError("no operator of this network signed for this node", code="join.not_the_owner") from error
    expires_s = payload.get("expires_s") if isinstance(payload, dict) else None
    if payload != {**expected, "expires_s": expires_s} or not isinstance(expires_s, int):
        raise AccessError("the operator signed for another node", code="join.not_the_owner")
    if expires_s < time_s:
        raise AccessError("the operator's signature has expired", code="join.statement_expired")
    if not {address.rpartition(":")[0], address} & set(row.get("addresses", [])):
        raise AccessError("the operator may not run a node at this address", code="join.not_the_owner")
    return fingerprint(certificate)
