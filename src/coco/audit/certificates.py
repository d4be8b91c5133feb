"""Certificates that entries issue: the service's, for a node's key, names, evidence and time (J9)."""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Mapping, Sequence
from typing import Any

from cryptography import x509
from cryptography.x509.oid import NameOID

from coco import limits
from coco.attestation import wrapper
from coco.audit.rows import Written, illegal
from coco.audit.state import State, issued_by, key_of, name_of
from coco.configuration import nodes, settings
from coco.configuration.draft import Validity
from coco.crypto.certificates import NODE_NAME, SERVICE_NAME, SKEW, pem
from coco.ledger import tables

#: A certificate is renewed when this share of its time is left.
_LEFT = 1 / 3
_EXTENSIONS_OF_NODE = frozenset(
    {
        x509.OID_SUBJECT_KEY_IDENTIFIER,
        x509.OID_BASIC_CONSTRAINTS,
        x509.OID_KEY_USAGE,
        x509.OID_AUTHORITY_KEY_IDENTIFIER,
        x509.OID_SUBJECT_ALTERNATIVE_NAME,
        x509.OID_EXTENDED_KEY_USAGE,
    }
)


def parse(value: bytes | str) -> x509.Certificate:
    """A certificate in the one form in which a node writes it.

    Raises:
        ConfigurationError: it is none (``audit.certificate``).
    """
    text = value.decode("ascii", "replace") if isinstance(value, bytes) else value
    try:
        found = x509.load_pem_x509_certificate(text.encode())
    except ValueError as error:
        raise illegal("a certificate is malformed", "certificate") from error
    if pem(found) != text:
        raise illegal("a certificate is not as a node writes it", "certificate")
    return found


def issued_at_s(certificate: x509.Certificate) -> int:
    """When it was issued, as it says."""
    return int((certificate.not_valid_before_utc + SKEW).timestamp())


def days_of(certificate: x509.Certificate) -> float:
    """How long it counts from when it was issued."""
    return (certificate.not_valid_after_utc - certificate.not_valid_before_utc - SKEW) / datetime.timedelta(days=1)


def check_service(certificate: x509.Certificate, days: int) -> None:
    """Whether a service could have made this for itself.

    Raises:
        ConfigurationError: it could not (``audit.certificate``).
    """
    issued_by(certificate, certificate)
    key = key_of(certificate)
    named = {attribute.value for attribute in certificate.subject}
    if named != {SERVICE_NAME} or key.curve.name != "secp384r1" or days_of(certificate) != days:
        raise illegal("the service's certificate is not as one is made", "certificate")


def validity(state: State, node_id: str) -> Validity:
    """As members have said for this node, or for every node."""
    said = state.node(node_id).get("certificate_validity")
    if said is not None:
        return Validity(said["from_s"], int(said["days"]))
    return Validity(None, int(settings.in_force(state.rows)["maximum_node_certificate_validity_days"]))


def take(
    state: State,
    written: Written,
    node_id: str,
    row: Mapping[str, Any],
    *,
    service: x509.Certificate | None = None,
    wanted: Validity,
) -> x509.Certificate:
    """Take a node's certificate.

    Args:
        state: before the entry.
        written: the entry.
        node_id: the node.
        row: what the ledger says of it once the entry is applied.
        service: who issues it; the service as it is, if that is not said.
        wanted: how long it is to count.

    Raises:
        ConfigurationError: the service would not issue it (``audit.certificate``).
    """
    found = parse(written.take(tables.NODE_CERTIFICATES, node_id.encode()))
    issued_by(found, service if service is not None else parse(str(state.service["cert"])))
    if name_of(key_of(found)) != node_id:
        raise illegal("a node's certificate is another node's", "certificate")
    names = found.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    if [one.value for one in names] != [f"{NODE_NAME} {row['engine']}"]:
        raise illegal("a node's certificate names another engine id", "certificate")
    try:
        shown = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        constraints = found.extensions.get_extension_for_class(x509.BasicConstraints).value
    except (ValueError, x509.ExtensionNotFound, x509.DuplicateExtension) as error:
        raise illegal("a node's certificate is not as one is issued", "certificate") from error
    if [str(one.value) for one in shown] != [_normal(name) for name in row["host_names"]]:
        raise illegal("a node's certificate has other names than it was admitted with", "certificate")
    evidence = nodes.wrapped_evidence(row)
    told = {one.oid: one.value for one in found.extensions}
    if constraints.ca or told.keys() != _EXTENSIONS_OF_NODE | ({wrapper.OID} if evidence else set()):
        raise illegal("a node's certificate is not as one is issued", "certificate")
    given = told.get(wrapper.OID)
    if isinstance(given, x509.UnrecognizedExtension) and not wrapper.same(given.value, evidence):
        raise illegal("a node's certificate has other evidence than its row", "certificate")
    _check_time(state, found, wanted)
    return found


def _normal(name: str) -> str:
    try:
        return str(ipaddress.ip_address(name))
    except ValueError:
        return name


def _check_time(state: State, found: x509.Certificate, wanted: Validity) -> None:
    issued_s = issued_at_s(found)
    if days_of(found) != wanted.days:
        raise illegal("a certificate counts for another time than members have set", "certificate")
    if wanted.from_s is not None:
        if issued_s != wanted.from_s:
            raise illegal("a certificate begins at another time than members have set", "certificate")
    elif issued_s < state.time_s - limits.AUDIT_SKEW_SECONDS:
        raise illegal("a certificate was issued before what the ledger had signed", "certificate")
    else:
        state.issued_s = max(state.issued_s, issued_s)


def check_due(before: x509.Certificate, after: x509.Certificate) -> None:
    """Whether a certificate had to be renewed.

    Raises:
        ConfigurationError: it had not (``audit.certificate``).
    """
    now = after.not_valid_before_utc + SKEW
    whole = before.not_valid_after_utc - before.not_valid_before_utc
    # Both times are cut to seconds, and the moment itself is known to the second only.
    if before.not_valid_after_utc - now >= whole * _LEFT + datetime.timedelta(seconds=2):
        raise illegal("a certificate was renewed that counts for long yet", "certificate")


def counts_at(certificate: x509.Certificate, time_s: int, row: Mapping[str, Any]) -> bool:
    """Whether a node's certificate counts; members may have it begin when they like."""
    voted: Sequence[Any] = [(row.get("certificate_validity") or {}).get("from_s")]
    begins = certificate.not_valid_before_utc.timestamp() <= time_s or issued_at_s(certificate) in voted
    return begins and time_s <= certificate.not_valid_after_utc.timestamp()
