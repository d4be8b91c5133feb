"""Who signs for a member: a key in a file, or one that a token (PKCS#11) never gives away."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, utils

from coco.errors import ConfigurationError
from coco.ledger.cose import SigningKey
from coco.ledger.statements import fingerprint, sign_as_member


@dataclass(frozen=True)
class Token:
    """A key in a token: the vendor's library, label of the token, label of the key, and its PIN."""

    module: Path
    token: str
    label: str
    pin: str


class TokenKey:
    """Signs in a token; only digests go in and signatures come out.

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
        pkcs11, wanted = self._pkcs11, self._token
        try:
            token = pkcs11.lib(str(wanted.module)).get_token(token_label=wanted.token)
            with token.open(user_pin=wanted.pin) as session:
                key = session.get_key(object_class=pkcs11.ObjectClass.PRIVATE_KEY, label=wanted.label)
                raw: bytes = key.sign(hashlib.sha384(data).digest(), mechanism=pkcs11.Mechanism.ECDSA)
        except (pkcs11.PKCS11Error, RuntimeError) as error:
            reason = str(error) or type(error).__name__
            raise ConfigurationError(f"the token does not sign: {reason}", code="client.token") from error
        half = len(raw) // 2
        return utils.encode_dss_signature(int.from_bytes(raw[:half], "big"), int.from_bytes(raw[half:], "big"))


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
