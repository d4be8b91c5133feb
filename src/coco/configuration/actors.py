"""Actors: which certificate stands for whom, in the configuration of this moment (G4).

Rules: TLS has proven that the client holds the certificate's key, and nothing more; a pinned certificate matches by
exact DER and issues nothing unless it is a CA; a leaf belongs to an organisation when exactly one CA anchor stands
behind the chain that is shown; a certificate counts only within its dates and for clients, and no denied one does;
nobody is remembered from an earlier connection.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from coco.configuration import identities, participants, settings
from coco.configuration.callers import Caller, CallerKind
from coco.configuration.draft import ACTIVE
from coco.configuration.reads import Reads
from coco.crypto import chains, cose
from coco.errors import AccessError, RequestError
from coco.ledger import tables
from coco.ledger.statements import MESSAGE_TYPE, fingerprint

ANONYMOUS = Caller()
#: A certificate that is nobody's yet may come into its dates.
_ANONYMOUS_MS = 10_000


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

    def caller(self, chain: bytes | None) -> KnownCaller:
        """The caller behind a client's certificates (:mod:`~coco.crypto.chains`).

        Anonymous without one, or when the leaf is nobody's (any more).
        """
        shown = self._shown(chain)
        for table in (tables.USERS_CERTS, tables.MEMBERS_CERTS):
            found = self._actor(shown, table) if shown else None
            if found is not None and chain is not None:
                name, until_ms = found
                member = table == tables.MEMBERS_CERTS
                caller = Caller(kind=CallerKind.MEMBER, actor=name) if member else self._participant(name, chain)
                return KnownCaller(caller, until_ms)
        return KnownCaller(ANONYMOUS, self._time_ms + _ANONYMOUS_MS)

    def member(self, chain: bytes) -> tuple[str, x509.Certificate] | None:
        """The member whom a leaf stands for, and the leaf; none when it is nobody's."""
        shown = self._shown(chain)
        found = self._actor(shown, tables.MEMBERS_CERTS) if shown else None
        return (found[0], shown[0]) if found is not None else None

    def _shown(self, chain: bytes | None) -> list[x509.Certificate]:
        """The certificates, if the leaf may count: within its dates, for clients, and not denied; else none."""
        shown: list[x509.Certificate] = []
        with suppress(ValueError):
            shown = chains.load(chain or b"")
        if not shown or not chains.in_force(shown[0], self._now) or not _for_clients(shown[0]):
            return []
        return [] if self._is_denied(shown[0]) else shown

    def _is_denied(self, certificate: x509.Certificate) -> bool:
        return self._view.get(tables.DENIED_CERTIFICATES, fingerprint(certificate).encode()) is not None

    def _actor(self, shown: list[x509.Certificate], table: str) -> tuple[str, int] | None:
        """The actor whom the leaf stands for, and until when: no longer than what stands behind it counts."""
        name = fingerprint(shown[0])
        if self._view.get(table, name.encode()) is not None:
            return name, _end_ms(shown[0])
        matches: dict[str, int] = {}
        anchors = [(key.decode(), x509.load_pem_x509_certificate(pem)) for key, pem in self._view.scan(table)]
        until_ms = _end_ms(shown[0])
        for between, subject in enumerate(chains.links(shown[0], shown[1:], self._now)):
            if self._is_denied(subject):
                break
            until_ms = min(until_ms, _end_ms(subject))
            for actor, anchor in anchors:
                if chains.issues(anchor, subject, between, self._now):
                    matches[actor] = max(matches.get(actor, 0), min(until_ms, _end_ms(anchor)))
        return next(iter(matches.items())) if len(matches) == 1 else None

    def _participant(self, actor: str, certificate: bytes) -> Caller:
        row = self._view.get(tables.USERS_INFO, actor.encode())
        data = json.loads(row)["user_data"] if row is not None else {}
        to_everyone = settings.in_force(self._view)["default_visibility"] == settings.PARTICIPANTS
        sees_all = data.get("auditor") is True or to_everyone
        proven = identities.proven(self._view, actor)
        for adapter, recorded in participants.identities(data).items():
            proven[adapter] = proven.get(adapter, frozenset()) | recorded
        return Caller(
            kind=CallerKind.PARTICIPANT,
            actor=actor,
            identities=proven,
            any_account=data.get("insecure_any_account") is True,
            auditor=sees_all,
            certificate=certificate,
        )


def signed_by_its_own_key(body: bytes, kind: str, view: Reads) -> tuple[str, bytes]:
    """Verify a message that a member signs itself, and no leaf of it: clients that know the member can follow it.

    Returns:
        The member, and the payload.

    Raises:
        RequestError: it is no such message.
        AccessError: no active member signed it (``gov.not_a_member``).
    """
    message = cose.parse(body)
    key_id = message.headers.get(cose.KEY_ID)
    if message.headers.get(MESSAGE_TYPE) != kind:
        raise RequestError(f"the message is no {kind}", code="gov.wrong_message_type")
    member = key_id.decode("ascii", "replace") if isinstance(key_id, bytes) else ""
    info = view.get(tables.MEMBERS_INFO, member.encode())
    pem = view.get(tables.MEMBERS_CERTS, member.encode())
    if info is None or pem is None or json.loads(info).get("status") != ACTIVE:
        raise AccessError("the signer is no active member", code="gov.not_a_member")
    key = x509.load_pem_x509_certificate(pem).public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise AccessError("the member's key is no elliptic-curve key", code="gov.not_a_member")
    cose.verify(message, key)
    return member, message.payload or b""
