"""Actions about actors: members, participants, operators, and certificates that stand for nobody any more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from coco import addresses
from coco.configuration import participants
from coco.configuration.actions.arguments import (
    certificate,
    data,
    digits,
    key,
    known,
    refuse,
    text,
    texts,
)
from coco.configuration.draft import ACCEPTED, ACTIVE, Draft
from coco.configuration.share_holders import OWNER, PARTICIPANT
from coco.crypto import chains
from coco.errors import ConfigurationError
from coco.ledger import tables
from coco.ledger.statements import fingerprint

_RSA_BITS_MIN = 2048


def _check_alone(draft: Draft, table: str, new: x509.Certificate) -> None:
    """G4: as :func:`chains.marks` says."""
    mine = chains.marks(new)
    for other, pem in draft.scan(table).items():
        shared = mine.keys() & chains.marks(x509.load_pem_x509_certificate(pem)).keys()
        if shared and other.decode() != fingerprint(new):
            what = mine[shared.pop()]
            raise refuse(f"another one has this {what} already", f"gov.duplicate_{what}")


def set_member(draft: Draft, args: Mapping[str, Any]) -> None:
    """A member, accepted until it acknowledges; a certificate that may issue stands for an organisation."""
    found = certificate(args)
    signs = found.public_key()
    if not chains.is_ca(found) and (
        not isinstance(signs, ec.EllipticCurvePublicKey) or signs.curve.name != "secp384r1"
    ):
        raise refuse("a member signs with a key on P-384")
    _check_alone(draft, tables.MEMBERS_CERTS, found)
    name = fingerprint(found).encode()
    encryption, role = args.get("encryption_pub_key"), args.get("recovery_role")
    if role not in (None, PARTICIPANT, OWNER, "NonParticipant") or (
        encryption is None and role in (PARTICIPANT, OWNER)
    ):
        raise refuse("recovery_role is Participant or Owner, with an encryption key, or NonParticipant")
    draft.remove(tables.MEMBERS_ENCRYPTION, name)
    if encryption is not None and role != "NonParticipant":
        try:
            public = load_pem_public_key(text(args, "encryption_pub_key").encode())
        except ValueError as error:
            raise refuse("encryption_pub_key must be a public key in PEM") from error
        if not isinstance(public, rsa.RSAPublicKey) or public.key_size < _RSA_BITS_MIN:
            raise refuse("a recovery member has an RSA key of 2048 bits or more")
        draft.put(tables.MEMBERS_ENCRYPTION, name, str(encryption).encode())
    former = draft.document(tables.MEMBERS_INFO, name)
    status = ACTIVE if former is not None and former.get("status") == ACTIVE else ACCEPTED
    info: dict[str, Any] = {"status": status, "member_data": data(args, "member_data")}
    if role == OWNER:
        info["recovery_role"] = role
    draft.put(tables.MEMBERS_CERTS, name, text(args, "cert").encode())
    draft.put(tables.MEMBERS_INFO, name, tables.row(info))
    draft.reshare |= status == ACTIVE


def remove_member(draft: Draft, args: Mapping[str, Any]) -> None:
    """A member governs no more; an unknown one is nothing to remove, as in the open format."""
    name = key(args, "member_id").encode()
    if draft.get(tables.MEMBERS_INFO, name) is None:
        return
    draft.rekey = True
    for table in (tables.MEMBERS_INFO, tables.MEMBERS_CERTS, tables.MEMBERS_ENCRYPTION, tables.MEMBERS_ACKS):
        draft.remove(table, name)


def set_member_data(draft: Draft, args: Mapping[str, Any]) -> None:
    """What is said of a member."""
    name = key(args, "member_id")
    info = known(draft, tables.MEMBERS_INFO, name, "member")
    draft.put(tables.MEMBERS_INFO, name.encode(), tables.row({**info, "member_data": data(args, "member_data")}))


def _check_user_data(draft: Draft, said: Mapping[str, Any]) -> None:
    try:
        check = participants.check_alone if draft.former else participants.check
        check(said, production=draft.production)
    except ConfigurationError as error:
        raise refuse(str(error), error.code) from error


def set_user(draft: Draft, args: Mapping[str, Any]) -> None:
    """A participant; a certificate that may issue stands for an organisation."""
    found = certificate(args)
    said = data(args, "user_data")
    _check_user_data(draft, said)
    _check_alone(draft, tables.USERS_CERTS, found)
    name = fingerprint(found).encode()
    draft.put(tables.USERS_CERTS, name, text(args, "cert").encode())
    draft.put(tables.USERS_INFO, name, tables.row({"user_data": said}))


def remove_user(draft: Draft, args: Mapping[str, Any]) -> None:
    """A participant transacts no more."""
    name = key(args, "user_id").encode()
    draft.rekey |= draft.get(tables.USERS_INFO, name) is not None
    for table in (tables.USERS_INFO, tables.USERS_CERTS):
        draft.remove(table, name)


def set_user_data(draft: Draft, args: Mapping[str, Any]) -> None:
    """What is said of a participant."""
    name = key(args, "user_id")
    info = known(draft, tables.USERS_INFO, name, "user")
    said = data(args, "user_data")
    _check_user_data(draft, said)
    draft.put(tables.USERS_INFO, name.encode(), tables.row({**info, "user_data": said}))


def set_operator(draft: Draft, args: Mapping[str, Any]) -> None:
    """Who may sign for nodes, and at which addresses."""
    found = certificate(args)
    listed = texts(args, "addresses")
    for one in () if draft.former else listed:
        try:
            addresses.check(one)
        except ConfigurationError as error:
            raise refuse(f"addresses: {error}") from error
    document = {"cert": text(args, "cert"), "addresses": listed}
    draft.put(tables.OPERATORS, fingerprint(found).encode(), tables.row(document))


def remove_operator(draft: Draft, args: Mapping[str, Any]) -> None:
    """An operator signs for no node any more; nodes that it signed for stay."""
    draft.remove(tables.OPERATORS, key(args, "operator_id").encode())


def deny_certificate(draft: Draft, args: Mapping[str, Any]) -> None:
    """One leaf of an organisation stands for nobody any more: a key was lost, the organisation stays (G4)."""
    draft.put(tables.DENIED_CERTIFICATES, digits(args, "fingerprint", 64).encode(), b"true")


def allow_certificate(draft: Draft, args: Mapping[str, Any]) -> None:
    """The contrary."""
    draft.remove(tables.DENIED_CERTIFICATES, digits(args, "fingerprint", 64).encode())
