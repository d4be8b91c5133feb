"""Actors: which certificate stands for whom, in the configuration of this moment (G4).

Rules: TLS has proven that the client holds the certificate's key, and nothing more; a pinned certificate matches by
exact DER and issues nothing unless it is a CA; a leaf belongs to an organisation when exactly one CA anchor issued it
directly; a certificate counts only within its dates and for clients; nobody is remembered from an earlier connection.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.x509.oid import ExtendedKeyUsageOID

from coco.enclave.adapters.base import Caller, CallerKind
from coco.enclave.configuration import settings
from coco.enclave.configuration.reads import Reads
from coco.ledger import tables

ANONYMOUS = Caller()
_ACCOUNT_BYTES = 20
#: A certificate that is nobody's yet may come into its dates.
_ANONYMOUS_MS = 10_000


def is_ca(certificate: x509.Certificate) -> bool:
    """Whether a certificate may issue others, and so stands for an organisation."""
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (x509.ExtensionNotFound, ValueError):
        return False


def _issued(anchor: x509.Certificate, leaf: x509.Certificate) -> bool:
    try:
        leaf.verify_directly_issued_by(anchor)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _for_clients(leaf: x509.Certificate) -> bool:
    try:
        usage = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return True
    except ValueError:
        return False
    return ExtendedKeyUsageOID.CLIENT_AUTH in usage or ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE in usage


def _end_ms(certificate: x509.Certificate) -> int:
    return int(certificate.not_valid_after_utc.timestamp() * 1000)


@dataclass(frozen=True)
class KnownCaller:
    """A caller, and the time until which the certificate says so."""

    caller: Caller
    until_ms: int


class Actors:
    """Looks callers up in one view of the configuration, at one time."""

    def __init__(self, view: Reads, time_ms: int) -> None:
        self._view = view
        self._time_ms = time_ms
        self._now = datetime.fromtimestamp(time_ms / 1000, UTC)

    def caller(self, der: bytes | None) -> KnownCaller:
        """The caller behind a client certificate; anonymous without one, or when it is nobody's (any more)."""
        leaf = self._leaf(der)
        if leaf is None or der is None:
            return KnownCaller(ANONYMOUS, self._time_ms + _ANONYMOUS_MS)
        for table in (tables.USERS_CERTS, tables.MEMBERS_CERTS):
            found = self._actor(der, leaf, table)
            if found is not None:
                name, until_ms = found
                member = table == tables.MEMBERS_CERTS
                caller = Caller(kind=CallerKind.MEMBER, actor=name) if member else self._participant(name, der)
                return KnownCaller(caller, until_ms)
        return KnownCaller(ANONYMOUS, self._time_ms + _ANONYMOUS_MS)

    def member(self, der: bytes) -> tuple[str, x509.Certificate] | None:
        """The member whom a certificate stands for, and the certificate; none when it is nobody's."""
        leaf = self._leaf(der)
        found = self._actor(der, leaf, tables.MEMBERS_CERTS) if leaf is not None else None
        return (found[0], leaf) if found is not None and leaf is not None else None

    def _leaf(self, der: bytes | None) -> x509.Certificate | None:
        """A certificate that may count: within its dates, for clients, and not denied."""
        leaf = None
        if der is not None:
            with suppress(ValueError):
                leaf = x509.load_der_x509_certificate(der)
        if leaf is None or der is None or not self._in_force(leaf) or not _for_clients(leaf):
            return None
        denied = self._view.get(tables.DENIED_CERTIFICATES, sha256(der).hexdigest().encode()) is not None
        return None if denied else leaf

    def _in_force(self, certificate: x509.Certificate) -> bool:
        return certificate.not_valid_before_utc <= self._now <= certificate.not_valid_after_utc

    def _actor(self, der: bytes, leaf: x509.Certificate, table: str) -> tuple[str, int] | None:
        """The actor whom ``leaf`` stands for, and until when: no longer than its issuer's certificate counts."""
        name = sha256(der).hexdigest()
        if self._view.get(table, name.encode()) is not None:
            return name, _end_ms(leaf)
        matches = []
        for key, pem in self._view.scan(table):
            anchor = x509.load_pem_x509_certificate(pem)
            named = anchor.subject == leaf.issuer and is_ca(anchor) and self._in_force(anchor)
            if named and _issued(anchor, leaf):
                matches.append((key.decode(), min(_end_ms(leaf), _end_ms(anchor))))
        return matches[0] if len(matches) == 1 else None

    def _participant(self, actor: str, certificate: bytes) -> Caller:
        row = self._view.get(tables.USERS_INFO, actor.encode())
        data = json.loads(row)["user_data"] if row is not None else {}
        prefix = bytes.fromhex(actor)
        accounts = frozenset(key[len(prefix) :] for key, _ in self._view.scan(tables.ACCOUNTS, prefix))
        to_everyone = settings.in_force(self._view)["default_visibility"] == settings.PARTICIPANTS
        sees_all = data.get("auditor") is True or to_everyone
        recorded = data.get("accounts", [])
        if isinstance(recorded, list):
            accounts |= {bytes.fromhex(str(account).removeprefix("0x")) for account in recorded}
        return Caller(
            kind=CallerKind.PARTICIPANT,
            actor=actor,
            accounts=accounts,
            any_account=data.get("insecure_any_account") is True,
            auditor=sees_all,
            certificate=certificate,
        )


def account_row(actor: str, account: bytes) -> bytes:
    """Key of the row that proves ``account`` for ``actor``."""
    assert len(account) == _ACCOUNT_BYTES
    return bytes.fromhex(actor) + account
