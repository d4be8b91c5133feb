"""Certificates: read whole, whoever issued them; and what those of a service say in every ledger, for those who issue
them and those who judge."""

from __future__ import annotations

import datetime
import warnings
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding

#: The service's own certificate and a joiner's live so long, unless members vote for something else.
CERTIFICATE_DAYS: Final = 365
#: A node's live so long where members have set nothing else.
NODE_CERTIFICATE_DAYS: Final = 7
#: The service's own certificate is issued to this name, and by it every node's.
SERVICE_NAME: Final = "Coco Service"
#: A node's certificate is issued to this name and its engine id.
NODE_NAME: Final = "Coco Node"
#: A certificate of a key that an adapter signs with is issued to this name, the adapter's and the key's.
KEY_NAME: Final = "Coco Key"
#: Certificates begin so long before they are issued.
SKEW: Final = datetime.timedelta(hours=1)


def pem(certificate: x509.Certificate) -> str:
    """PEM text of a certificate."""
    return certificate.public_bytes(Encoding.PEM).decode()


def endorsed_names(certificate: x509.Certificate) -> list[str]:
    """The host names of a node's certificate."""
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return [str(name.value) for name in names]


#: What the library raises for certificates that it cannot, or does not want to, read.
UNREADABLE: Final = (
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


def read_der(der: bytes) -> x509.Certificate:
    """A certificate.

    Raises:
        ValueError: it is none.
    """
    try:
        with warnings.catch_warnings():
            # Of oddities that a later release may refuse: AMD's chips have certificates with serial number 0, which the
            # range of versions in pyproject.toml reads.
            warnings.simplefilter("ignore")
            return _whole(x509.load_der_x509_certificate(der))
    except UNREADABLE as error:
        raise ValueError("a certificate cannot be read") from error


def read_pem(pem: bytes) -> list[x509.Certificate]:
    """Certificates in a PEM text.

    Raises:
        ValueError: there are none.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return [_whole(certificate) for certificate in x509.load_pem_x509_certificates(pem)]
    except UNREADABLE as error:
        raise ValueError("certificates cannot be read") from error
