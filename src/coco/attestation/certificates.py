"""X.509 chains of vendors: from a pinned root down, each signature, CA flag and date checked."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Sequence

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes

from coco.attestation.verified import check_time, refuse

#: What the library raises for certificates that it cannot, or does not want to, read.
_UNREADABLE = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)


def _whole(certificate: x509.Certificate) -> x509.Certificate:
    """The certificate, once every part that is read later was read: the library does so only when it is asked."""
    _ = certificate.version, certificate.extensions, certificate.public_key(), certificate.signature_algorithm_oid
    _ = certificate.subject, certificate.issuer, certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return certificate


def load_der(der: bytes) -> x509.Certificate:
    """A certificate.

    Raises:
        AttestationError: it is none (``attestation.malformed``).
    """
    try:
        with warnings.catch_warnings():
            # Of oddities that a later release may refuse: AMD's chips have certificates with serial number 0, which the
            # range of versions in pyproject.toml reads.
            warnings.simplefilter("ignore")
            return _whole(x509.load_der_x509_certificate(der))
    except _UNREADABLE as error:
        raise refuse("a certificate cannot be read", "malformed") from error


def load_pem(pem: bytes) -> list[x509.Certificate]:
    """Certificates in a PEM text.

    Raises:
        AttestationError: there are none (``attestation.malformed``).
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return [_whole(one) for one in x509.load_pem_x509_certificates(pem)]
    except _UNREADABLE as error:
        raise refuse("certificates cannot be read", "malformed") from error


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
        except (InvalidSignature, x509.ExtensionNotFound, *_UNREADABLE) as error:
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
