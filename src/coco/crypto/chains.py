"""Certificate chains: what somebody shows besides a leaf, and whether it leads to an anchor. Sans-I/O.

A chain travels as the DER of its certificates one after another, the leaf first. Every certificate between leaf and
anchor must be a CA in its dates, issue the one before it within its path length, and make no critical demand that is
not understood here.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtensionOID

from coco.crypto.certificates import read_der

#: Certificates of one chain, the leaf and an anchor that is shown included.
CERTIFICATES_MAX = 4
_UNDERSTOOD = (ExtensionOID.BASIC_CONSTRAINTS, ExtensionOID.KEY_USAGE, ExtensionOID.EXTENDED_KEY_USAGE)
_SEQUENCE, _LONG_LENGTH = 0x30, 0x80
_LENGTH_BYTES_MAX = 3


def split(chain: bytes) -> list[bytes]:
    """DER of each certificate.

    Raises:
        ValueError: it is cut, too long, or no DER.
    """
    found, at = list[bytes](), 0
    while at < len(chain):
        size = _size(chain[at : at + 2 + _LENGTH_BYTES_MAX])
        if at + size > len(chain) or len(found) == CERTIFICATES_MAX:
            raise ValueError("the chain is cut, or has too many certificates")
        found.append(chain[at : at + size])
        at += size
    return found


def load(chain: bytes) -> list[x509.Certificate]:
    """The certificates, each of which can be read to its end.

    Raises:
        ValueError: they are none.
    """
    return [read_der(der) for der in split(chain)]


def _size(begin: bytes) -> int:
    if len(begin) < 2 or begin[0] != _SEQUENCE:
        raise ValueError("a certificate begins otherwise")
    if begin[1] < _LONG_LENGTH:
        return 2 + begin[1]
    more = begin[1] - _LONG_LENGTH
    if not 0 < more <= _LENGTH_BYTES_MAX or len(begin) < 2 + more:
        raise ValueError("a certificate has no such length")
    return 2 + more + int.from_bytes(begin[2 : 2 + more], "big")


def is_ca(certificate: x509.Certificate) -> bool:
    """Whether a certificate may issue others, and so stands for an organisation."""
    return _path_length(certificate) >= 0


def marks(certificate: x509.Certificate) -> dict[bytes, str]:
    """What no other actor of the kind may have (G4), for a leaf must have one anchor at most: a key, a CA's name."""
    found = {certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo): "key"}
    if is_ca(certificate):
        found[certificate.subject.public_bytes()] = "name"
    return found


def _path_length(certificate: x509.Certificate) -> int:
    """How many CAs may stand between this one and a leaf; -1 if it is none."""
    try:
        found = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    except (x509.ExtensionNotFound, ValueError):
        return -1
    if not found.ca:
        return -1
    return CERTIFICATES_MAX if found.path_length is None else found.path_length


def _may_issue(certificate: x509.Certificate) -> bool:
    try:
        extensions = list(certificate.extensions)
    except ValueError:
        return False
    if any(one.critical and one.oid not in _UNDERSTOOD for one in extensions):
        return False
    usage = [one.value for one in extensions if isinstance(one.value, x509.KeyUsage)]
    return all(one.key_cert_sign for one in usage)


def _issued(issuer: x509.Certificate, subject: x509.Certificate) -> bool:
    try:
        subject.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def in_force(certificate: x509.Certificate, now: datetime) -> bool:
    """Whether a certificate is within its dates."""
    return certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc


def issues(anchor: x509.Certificate, subject: x509.Certificate, between: int, now: datetime) -> bool:
    """Whether one certificate stands behind another, with so many between the other and the leaf, itself included."""
    if anchor.subject != subject.issuer or _path_length(anchor) < between or not in_force(anchor, now):
        return False
    return _may_issue(anchor) and _issued(anchor, subject)


def links(leaf: x509.Certificate, others: list[x509.Certificate], now: datetime) -> Iterator[x509.Certificate]:
    """The certificates that an anchor may stand behind: the leaf, then each of the others that leads on from it."""
    subject = leaf
    yield subject
    for between, issuer in enumerate(others):
        if not issues(issuer, subject, between, now):
            return
        subject = issuer
        yield subject
