"""The node's and the service's keys and certificates, made in the enclave (docs/ledger-format.md, section 7).

A private key is a handle of the crypto library and stays in this process. The node key is handed once to the
extension, whose TLS signs with it; the service key never is.
"""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeAlias

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from coco._native import wipe
from coco.attestation import wrapper
from coco.crypto import cose
from coco.crypto.certificates import (
    CERTIFICATE_DAYS,
    KEY_NAME,
    NODE_CERTIFICATE_DAYS,
    NODE_NAME,
    SERVICE_NAME,
    SKEW,
)
from coco.errors import ConfigurationError, LedgerError

_RSA_BITS = 2048


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _usage(**chosen: bool) -> x509.KeyUsage:
    every = [
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
        "crl_sign",
        "encipher_only",
        "decipher_only",
    ]
    return x509.KeyUsage(**{name: chosen.get(name, False) for name in every})


#: Of nodes and services, and of adapters.
PublicKey: TypeAlias = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey


def _builder(
    subject: str, issuer: str, key: PublicKey, time_ms: int, days: int = CERTIFICATE_DAYS
) -> x509.CertificateBuilder:
    now = datetime.datetime.fromtimestamp(time_ms / 1000, datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(_name(subject))
        .issuer_name(_name(issuer))
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SKEW)
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        pass
    try:
        return x509.DNSName(name)
    except ValueError as error:
        raise ConfigurationError(
            "a node has a host name that no certificate can hold",
            code="join.bad_host_name",
            hint="write it in ASCII, as DNS does (xn--…)",
        ) from error


@contextmanager
def private_der(key: ec.EllipticCurvePrivateKey) -> Iterator[bytes]:
    """PKCS#8 of a key, for the extension's TLS; wiped afterwards (K5)."""
    plain = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    try:
        yield plain
    finally:
        wipe(plain)


@dataclass
class ServiceIdentity:
    """Key and self-signed certificate of the service; members may renew the certificate, or ask for another key."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate
    #: Keys that it is about to have or had just now: an entry that changes the key may yet be rolled back.
    others: list[ec.EllipticCurvePrivateKey] = field(default_factory=list)

    @classmethod
    def generate(cls, time_ms: int) -> ServiceIdentity:
        """A fresh identity."""
        key = ec.generate_private_key(ec.SECP384R1())
        return cls(key, cls._self_signed(key, time_ms, CERTIFICATE_DAYS))

    @staticmethod
    def _self_signed(key: ec.EllipticCurvePrivateKey, time_ms: int, days: int) -> x509.Certificate:
        public = key.public_key()
        return (
            _builder(SERVICE_NAME, SERVICE_NAME, public, time_ms, days)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(key_cert_sign=True, digital_signature=True), critical=True)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(public), critical=False)
            .sign(key, hashes.SHA384())
        )

    def renewed(self, time_ms: int, days: int) -> x509.Certificate:
        """Another certificate of the same identity."""
        return self._self_signed(self.key, time_ms, days)

    def hold(self, key: ec.EllipticCurvePrivateKey) -> None:
        """Keep a key that may become the service's."""
        self.others.append(key)

    def following(self, certificate: x509.Certificate) -> ServiceIdentity | None:
        """The identity under another certificate, if its key is here."""
        found = [one for one in (self.key, *self.others) if one.public_key() == certificate.public_key()]
        return ServiceIdentity(found[0], certificate) if found else None

    def become(self, certificate: x509.Certificate) -> bool:
        """Be what an entry says that the service is; whether that is news.

        Raises:
            LedgerError: the key is not here (``ledger.secret_unavailable``).
        """
        if certificate == self.certificate:
            return False
        following = self.following(certificate)
        if following is None:
            raise LedgerError("this node gets no key of the service any more", code="ledger.secret_unavailable")
        if following.key is not self.key:
            self.others = [self.key, *(one for one in self.others if one is not following.key)]
        self.key, self.certificate = following.key, certificate
        return True

    def forget_others(self) -> None:
        """No entry that changes the key is pending any more."""
        self.others = []

    @property
    def spki(self) -> bytes:
        """DER SubjectPublicKeyInfo."""
        return cose.spki(self.key.public_key())

    def certify(self, key: PublicKey, name: str, time_ms: int) -> x509.Certificate:
        """Certificate of a key that an adapter signs with, under this service.

        Args:
            key: the public key.
            name: ``adapter/key``.
            time_ms: of this moment, since the Unix epoch.
        """
        return (
            _builder(f"{KEY_NAME} {name}", SERVICE_NAME, key, time_ms)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(digital_signature=True), critical=True)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
            .sign(self.key, hashes.SHA384())
        )

    def endorse(
        self,
        node_key: ec.EllipticCurvePublicKey,
        engine_id: int,
        host_names: Sequence[str],
        time_ms: int,
        days: int = NODE_CERTIFICATE_DAYS,
        evidence: bytes = b"",
    ) -> x509.Certificate:
        """Certificate of a node, under this service; it names the node's engine id (J5), and has its evidence."""
        builder = (
            _builder(f"{NODE_NAME} {engine_id}", SERVICE_NAME, node_key, time_ms, days)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(digital_signature=True), critical=True)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
            .add_extension(x509.SubjectAlternativeName([_alternative(name) for name in host_names]), critical=False)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
                critical=False,
            )
        )
        if evidence:
            builder = builder.add_extension(x509.UnrecognizedExtension(wrapper.OID, evidence), critical=False)
        return builder.sign(self.key, hashes.SHA384())


def self_signed(key: ec.EllipticCurvePrivateKey, time_ms: int) -> x509.Certificate:
    """A certificate that says nothing but that its holder has the key: of a node before a service endorses it."""
    return _builder("Coco Joiner", "Coco Joiner", key.public_key(), time_ms).sign(key, hashes.SHA384())


@dataclass(frozen=True)
class EncryptionKey:
    """A node's RSA key, to which ledger secrets are sealed; made in the enclave, gone with the process."""

    private: rsa.RSAPrivateKey
    #: PEM of the public key.
    pem: str

    @classmethod
    def generate(cls) -> EncryptionKey:
        """A fresh one."""
        private = rsa.generate_private_key(public_exponent=65537, key_size=_RSA_BITS)
        public = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        return cls(private, public.decode())


@dataclass
class NodeIdentity:
    """Key and endorsed certificate of one process: never reused by another start; the certificate is renewed."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    def chain(self, service: ServiceIdentity) -> list[bytes]:
        """DER of the certificates that this node shows."""
        return [one.public_bytes(Encoding.DER) for one in (self.certificate, service.certificate)]

    @property
    def node_id(self) -> str:
        """Hex SHA-256 of the public key."""
        return cose.key_id(self.key.public_key())
