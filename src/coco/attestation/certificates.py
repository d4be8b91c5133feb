"""X.509 chains of vendors: from a pinned root down, each signature, CA flag and date checked."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Sequence

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes

from coco.attestation.verified import check_time, refuse
from coco.crypto.certificates import UNREADABLE, read_der, read_pem


def load_der(der: bytes) -> x509.Certificate:
    """A certificate.

    Raises:
        AttestationError: it is none (``attestation.malformed``).
    """
    try:
        return read_der(der)
    except ValueError as error:
        raise refuse(str(error), "malformed") from error


def load_pem(pem: bytes) -> list[x509.Certificate]:
    """Certificates in a PEM text.

    Raises:
        AttestationError: there are none (``attestation.malformed``).
    """
    try:
        return read_pem(pem)
    except ValueError as error:
        raise refuse(str(error), "malformed") from error


def name_of(certificate: x509.Certificate) -> str:
    """Hex SHA-256 of the DER."""
    return certificate.fingerprint(hashes.SHA256()).hex()


def check_chain(path: Sequence[x509.Certificate]) -> None:
    """Check that each certificate of ``path``, root first, issued the next one, and may issue.

    Raises:
        AttestationError: ``attestation.chain``.
    """
    for issuer, subject in itertools.pairwise(path):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                constraints = issuer.extensions.get_extension_for_class(x509.BasicConstraints).value
                subject.verify_directly_issued_by(issuer)
        except (InvalidSignature, x509.ExtensionNotFound, *UNREADABLE) as error:
            raise refuse("a certificate is not its issuer's", "chain") from error
        if not constraints.ca:
            raise refuse("a certificate was issued by one that issues none", "chain")


def check_dates(path: Sequence[x509.Certificate], now_s: int) -> tuple[int, int]:
    """Check that every certificate is valid now; when all of them are, in seconds since the Unix epoch.

    Raises:
        AttestationError: ``attestation.stale`` or ``attestation.future``.
    """
    begin = max(int(one.not_valid_before_utc.timestamp()) for one in path)
    end = min(int(one.not_valid_after_utc.timestamp()) for one in path)
    check_time(now_s, begin, end, "a certificate")
    return begin, end
