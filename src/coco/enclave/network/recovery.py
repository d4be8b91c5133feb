"""Disaster recovery of one service life by another, in small: one node, members' statements and shares.

Order: replay the public ledger -> refuse damage, another service, a missing position, a clock that cannot be right ->
have the host set aside the unsigned tail ->
fresh service identity and ledger secret (K1) -> members state that the new identity continues the old one (J7) and
submit shares -> replay the private ledger -> open.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from coco import _native
from coco.channel import messages
from coco.configuration import secrets as wrapping
from coco.configuration.actors import signed_by_its_own_key
from coco.configuration.share_holders import share_holders
from coco.crypto import cose
from coco.enclave.platform.control import Control
from coco.enclave.store import Journal, StoreView
from coco.errors import AccessError, LedgerError, RequestError
from coco.ledger import tables
from coco.ledger.replay import Replay
from coco.ledger.statements import IDENTITY_STATEMENT, RECOVERY_SHARE, identity_payload
from coco.ledger.transaction_id import TransactionId

#: Entries read from the disk at once.
PAGE = 1000


@dataclass
class FormerLife:
    """What the public ledger of the former life said, once it was believed."""

    #: The last verified signature entry: where the former life ends.
    end: TransactionId
    root: bytes
    discarded: int
    service: x509.Certificate
    committed_ms: int
    recovery_count: int
    node_ids: list[str]
    #: Highest engine id that any node had.
    last_engine: int
    genesis: bytes

    @property
    def service_key(self) -> bytes:
        """DER SubjectPublicKeyInfo of the former service."""
        key = self.service.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey), "it has verified the last signature of its life"
        return cose.spki(key)


async def read_former_life(
    control: Control, journal: Journal, public: _native.Store, start: messages.Start
) -> FormerLife:
    """Replay the public ledger into ``journal`` and ``public``; nothing on the disk is touched yet.

    Raises:
        LedgerError: damaged, unsigned, of another service, or without the expected position.
    """
    replay = Replay()
    for first in range(1, start.last_seqno + 1, PAGE):
        replay.feed(await control.read(first, min(first + PAGE - 1, start.last_seqno)))
    end, discarded = replay.end_of_last_opened_life()
    signature = replay.verify_signature(end)
    service = replay.service_certificate(end)
    if start.expected_service:
        expected = x509.load_pem_x509_certificate(start.expected_service)
        if expected.public_key() != service.public_key():
            raise LedgerError("the ledger belongs to another service", code="recovery.other_service")
    view = replay.entries[end - 1].view
    if start.expected_position:
        expected_position = TransactionId.parse(start.expected_position)
        within = 0 < expected_position.seqno <= end
        if not within or replay.entries[expected_position.seqno - 1].view != expected_position.view:
            raise LedgerError(f"the ledger does not contain {expected_position}", code="recovery.position_missing")
    for entry in replay.entries[:end]:
        journal.adopt(entry)
        public.apply(entry.seqno, entry.public_writes())
    for seqno in replay.signatures:
        if seqno <= end:
            journal.adopt_signature(seqno)
    public.commit(end)
    info = json.loads(public.get(tables.SERVICE_INFO, tables.SINGLETON) or b"{}")
    return FormerLife(
        end=TransactionId(view, end),
        root=signature.root,
        discarded=discarded,
        service=service,
        committed_ms=signature.issued_s * 1000,
        recovery_count=int(info.get("recovery_count", 0)),
        node_ids=[
            key.decode()
            for key, value in public.scan(tables.NODES_INFO)
            if json.loads(value or b"{}").get("status") == "Trusted"
        ],
        last_engine=max(
            (int(json.loads(value or b"{}").get("engine", 0)) for _, value in public.scan(tables.NODES_INFO)), default=0
        ),
        genesis=public.get(tables.GENESIS, tables.SINGLETON) or b"",
    )


class _SubmittedShare(msgspec.Struct):
    #: Base64 in JSON, and so never a string here, which could not be wiped (K5).
    share: bytes


_T = TypeVar("_T")


def _decode(payload: bytes, kind: type[_T]) -> _T:
    try:
        return msgspec.json.decode(payload, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError("the payload has not the form that it should have", code="gov.malformed") from error


@dataclass
class Recovery:
    """What members have said and given so far."""

    former: FormerLife
    following_key: bytes
    statements: dict[str, bytes] = field(default_factory=dict)
    shares: dict[str, _native.Share] = field(default_factory=dict)

    def accept_statement(self, body: bytes, view: StoreView) -> str:
        """Take a member's statement; return the member."""
        member, payload = signed_by_its_own_key(body, IDENTITY_STATEMENT, view)
        expected = identity_payload(
            self.former.service_key, self.following_key, str(self.former.end), self.former.root.hex()
        )
        if _decode(payload, dict[str, Any]) != expected:
            raise RequestError("the statement is about something else", code="recovery.other_statement")
        self.statements[member] = body
        return member

    def accept_share(self, member: str, body: bytes, view: StoreView) -> None:
        """Take a member's share, and wipe ``body``, to which the caller must hold the only reference (K5)."""
        try:
            signer, payload = signed_by_its_own_key(body, RECOVERY_SHARE, view)
        finally:
            _native.wipe(body)
        try:
            if signer != member:
                raise AccessError("the share is another member's", code="gov.wrong_member")
            submitted = _decode(payload, _SubmittedShare)
        finally:
            _native.wipe(payload)
        try:
            share = _native.Share.adopt(submitted.share)
        except LedgerError as error:
            raise RequestError("the share has the wrong length", code="gov.malformed") from error
        if not wrapping.is_share_of(view.get(tables.WRAPPED_SECRET, tables.SINGLETON), member, share):
            raise RequestError("that is not this member's share", code="recovery.bad_share")
        self.shares[member] = share

    def stated(self, view: StoreView) -> bool:
        """Whether a majority of the active members stated the new identity."""
        active = sum(1 for _, info in view.scan(tables.MEMBERS_INFO) if json.loads(info).get("status") == "Active")
        return len(self.statements) > active // 2

    def enough(self, view: StoreView) -> bool:
        """Whether so many members gave their shares, or one owner did."""
        keeping = share_holders(view)
        return len(self.shares.keys() & keeping.members) >= keeping.threshold or bool(
            self.shares.keys() & keeping.owners
        )

    def secrets(self, view: StoreView) -> list[tuple[int, _native.LedgerSecret]]:
        """Every former ledger secret, oldest first, from the shares, which are gone afterwards (K5).

        Raises:
            LedgerError: the shares do not open the ledger (``ledger.shares_refused``).
        """
        row = view.get(tables.WRAPPED_SECRET, tables.SINGLETON)
        if row is None:
            raise LedgerError("the ledger holds no wrapped secret", code="ledger.shares_refused")
        shares = dict(self.shares)
        self.shares.clear()
        first, secret = wrapping.recovered(row, shares, share_holders(view), self.former.service_key)
        found = [(first, secret)]
        for key, wrapped in sorted(view.scan(tables.FORMER_SECRETS), reverse=True):
            at = int.from_bytes(key, "big")
            secret = wrapping.unwrap_former(wrapped, at, secret)
            found.append((at, secret))
        return found[::-1]
