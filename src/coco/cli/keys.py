"""Keys and certificates of actors, as files; a private key is readable by its owner only, and none is overwritten."""

from __future__ import annotations

import datetime
import os
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from coco.errors import ConfigurationError

_CERTIFICATE_DAYS = 3650


def _write_new(path: Path, data: bytes, mode: int) -> None:
    """Write a file that is not there yet.

    Raises:
        ConfigurationError: it is (``network.file_exists``).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except FileExistsError as error:
        raise ConfigurationError(
            f"{path} is there already",
            code="network.file_exists",
            hint="no key is ever overwritten: choose another name, or move the file away",
        ) from error
    with os.fdopen(descriptor, "wb") as out:
        out.write(data)


def _private_pem(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def make_actor(directory: Path, name: str) -> str:
    """Make a key and a self-signed certificate as files; return the certificate's PEM.

    Raises:
        ConfigurationError: one of them is there (``network.file_exists``).
    """
    key = ec.generate_private_key(ec.SECP384R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=_CERTIFICATE_DAYS))
        .sign(key, hashes.SHA384())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    _write_new(directory / f"{name}.key.pem", _private_pem(key), 0o600)
    _write_new(directory / f"{name}.pem", pem, 0o644)
    return pem.decode()


def make_encryption_key(path: Path) -> str:
    """Make the key to which a member's recovery share is encrypted, as a file; return the PEM of its public key."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    _write_new(path, _private_pem(key), 0o600)
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return public.decode()
