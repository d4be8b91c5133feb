"""Who signs for a member: a key in a file, or one that a token (PKCS#11) never gives away."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, utils

from coco.crypto.cose import SigningKey
from coco.errors import ConfigurationError
from coco.ledger.statements import fingerprint, sign_as_member

_T = TypeVar("_T")


@dataclass(frozen=True)
class Token:
    """A key in a token: the vendor's library, label of the token, label of the key, and its PIN."""

    module: Path
    token: str
    label: str
    pin: str


class TokenKey:
    """Signs or decrypts in a token, which the key never leaves.

    Raises:
        ConfigurationError: no such library, token, key or PIN (``client.token``), or the package python-pkcs11 is not
            installed (``client.no_pkcs11``).
    """

    def __init__(self, token: Token) -> None:
        try:
            import pkcs11
        except ImportError as error:
            raise ConfigurationError(
                "keys in tokens need python-pkcs11", code="client.no_pkcs11", hint="pip install 'coco[hsm]'"
            ) from error
        self._pkcs11, self._token = pkcs11, token

    def sign(self, data: bytes | bytearray, signature_algorithm: ec.EllipticCurveSignatureAlgorithm) -> bytes:
        """DER of an ECDSA signature over the SHA-384 of ``data``."""
        mechanism = self._pkcs11.Mechanism.ECDSA
        raw = self._use(lambda key: key.sign(hashlib.sha384(data).digest(), mechanism=mechanism))
        half = len(raw) // 2
        return utils.encode_dss_signature(int.from_bytes(raw[:half], "big"), int.from_bytes(raw[half:], "big"))

    def decrypt(self, ciphertext: bytes, padding: object) -> bytes:
        """What was encrypted with RSA-OAEP (SHA-256); a token that has no such mechanism does the exponentiation alone.

        Raises:
            ValueError: it was encrypted to another key.
        """
        found = self._pkcs11
        oaep = (found.Mechanism.SHA256, found.MGF.SHA256, None)

        def work(key: Any) -> tuple[bool, bytes]:
            # Some tokens call it a general error of theirs when a message is no number below the key's modulus.
            modulus = key[found.Attribute.MODULUS].lstrip(b"\0")
            if len(ciphertext) != len(modulus) or ciphertext >= modulus:
                raise ValueError("not encrypted to this key")
            try:
                return True, key.decrypt(ciphertext, mechanism=found.Mechanism.RSA_PKCS_OAEP, mechanism_param=oaep)
            except (found.exceptions.MechanismParamInvalid, found.exceptions.ArgumentsBad):
                return False, key.decrypt(ciphertext, mechanism=found.Mechanism.RSA_X_509)
            except found.exceptions.EncryptedDataInvalid as error:
                raise ValueError("not encrypted to this key") from error

        whole, plain = self._use(work)
        return plain if whole else _without_oaep(plain)

    def _use(self, work: Callable[[Any], _T]) -> _T:
        pkcs11, wanted = self._pkcs11, self._token
        try:
            token = pkcs11.lib(str(wanted.module)).get_token(token_label=wanted.token)
            with token.open(user_pin=wanted.pin) as session:
                return work(session.get_key(object_class=pkcs11.ObjectClass.PRIVATE_KEY, label=wanted.label))
        except (pkcs11.PKCS11Error, RuntimeError) as error:
            reason = str(error) or type(error).__name__
            raise ConfigurationError(f"the token refuses: {reason}", code="client.token") from error


def _without_oaep(block: bytes) -> bytes:
    """The message in an OAEP block (RFC 8017, 7.1.2) with SHA-256 and an empty label.

    The token's owner runs this, on a message that nobody else chose: it need not take the same time for every block.
    """
    size = hashlib.sha256().digest_size
    seed = _xor(block[1 : 1 + size], _mgf1(block[1 + size :], size))
    data = _xor(block[1 + size :], _mgf1(seed, len(block) - size - 1))
    label, separator, message = data[:size], *data[size:].lstrip(b"\0").partition(b"\1")[1:]
    filled = data[size : len(data) - len(message) - len(separator)]
    if block[:1] != b"\0" or label != hashlib.sha256(b"").digest() or separator != b"\1" or filled.strip(b"\0"):
        raise ValueError("not encrypted to this key")
    return message


def _mgf1(seed: bytes, length: int) -> bytes:
    blocks = (hashlib.sha256(seed + number.to_bytes(4, "big")).digest() for number in range(length // 32 + 1))
    return b"".join(blocks)[:length]


def _xor(one: bytes, other: bytes) -> bytes:
    return bytes(a ^ b for a, b in zip(one, other, strict=True))


@dataclass(frozen=True)
class Signer:
    """A member's certificate and key."""

    certificate: x509.Certificate
    key: SigningKey
    #: The member that stands behind the certificate; empty: the certificate is the member's own.
    organisation: str = ""
    between: tuple[x509.Certificate, ...] = ()

    @classmethod
    def load(cls, certificate: Path, key: Path | Token) -> Signer:
        """Read PEM files; a certificate that is followed by those that lead to its organisation's signs for that.

        Raises:
            ConfigurationError: a file holds something else (``client.bad_key_file``).
        """
        try:
            chain = x509.load_pem_x509_certificates(certificate.read_bytes())
            signing: Any
            if isinstance(key, Token):
                signing = TokenKey(key)
            else:
                signing = serialization.load_pem_private_key(key.read_bytes(), None)
        except (OSError, ValueError, TypeError) as error:
            raise ConfigurationError(f"{error}", code="client.bad_key_file") from error
        public = chain[0].public_key()
        if not isinstance(public, ec.EllipticCurvePublicKey) or public.curve.name != "secp384r1":
            raise ConfigurationError("a member signs with P-384", code="client.bad_key_file")
        if not isinstance(signing, TokenKey | ec.EllipticCurvePrivateKey):
            raise ConfigurationError("a member signs with P-384", code="client.bad_key_file")
        return cls(chain[0], signing, fingerprint(chain[-1]) if len(chain) > 1 else "", tuple(chain[1:-1]))

    @property
    def member(self) -> str:
        """The member's id."""
        return self.organisation or fingerprint(self.certificate)

    def sign(self, kind: str, payload: Any, proposal: str = "") -> bytes:
        """A COSE message."""
        return sign_as_member(
            self.key,
            self.certificate,
            kind,
            payload,
            created_at_s=int(time.time()),
            proposal_id=proposal,
            organisation=self.organisation,
            between=self.between,
        )
