"""Actors: which certificate stands for whom, in the configuration of this moment (G4).

Rules: a pinned certificate matches by exact DER and issues nothing unless it is a CA; a leaf belongs to an organisation
when exactly one CA anchor issued it directly; nobody is remembered from an earlier connection.
"""

from __future__ import annotations

import json
from hashlib import sha256

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from coco.enclave.adapters.base import Caller, CallerKind
from coco.enclave.store import StoreView
from coco.ledger import tables

ANONYMOUS = Caller()
_ACCOUNT_BYTES = 20


def _is_ca(certificate: x509.Certificate) -> bool:
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


class Actors:
    """Looks callers up in one view of the configuration."""

    def __init__(self, view: StoreView) -> None:
        self._view = view

    def anchors(self) -> str:
        """PEM of every actor's certificate: whom the TLS listener lets in with a certificate."""
        every = [value for table in (tables.USERS_CERTS, tables.MEMBERS_CERTS) for _, value in self._view.scan(table)]
        return "".join(dict.fromkeys(value.decode().strip() + "\n" for value in every))

    def caller(self, der: bytes | None) -> Caller:
        """The caller behind a client certificate; anonymous without one, or when it is nobody's (any more)."""
        if der is None:
            return ANONYMOUS
        actor = self._actor(der, tables.USERS_CERTS)
        if actor is not None:
            return self._participant(actor)
        member = self._actor(der, tables.MEMBERS_CERTS)
        if member is not None:
            return Caller(kind=CallerKind.MEMBER, actor=member)
        return ANONYMOUS

    def _actor(self, der: bytes, table: str) -> str | None:
        name = sha256(der).hexdigest()
        if self._view.get(table, name.encode()) is not None:
            return name
        try:
            leaf = x509.load_der_x509_certificate(der)
        except ValueError:
            return None
        matches = []
        for key, pem in self._view.scan(table):
            anchor = x509.load_pem_x509_certificate(pem)
            if _is_ca(anchor) and anchor.subject == leaf.issuer and _issued(anchor, leaf):
                matches.append(key.decode())
        return matches[0] if len(matches) == 1 else None

    def _participant(self, actor: str) -> Caller:
        row = self._view.get(tables.USERS_INFO, actor.encode())
        data = json.loads(row)["user_data"] if row is not None else {}
        prefix = bytes.fromhex(actor)
        accounts = frozenset(key[len(prefix) :] for key, _ in self._view.scan(tables.ACCOUNTS, prefix))
        recorded = data.get("accounts", [])
        if isinstance(recorded, list):
            accounts |= {bytes.fromhex(str(account).removeprefix("0x")) for account in recorded}
        return Caller(
            kind=CallerKind.PARTICIPANT,
            actor=actor,
            accounts=accounts,
            any_account=data.get("insecure_any_account") is True,
            auditor=data.get("auditor") is True,
        )


def account_row(actor: str, account: bytes) -> bytes:
    """Key of the row that proves ``account`` for ``actor``."""
    assert len(account) == _ACCOUNT_BYTES
    return bytes.fromhex(actor) + account
