"""Signatures of adapters' keys, as those check them who get them: with a certificate, and no code of ours."""

from __future__ import annotations

from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

_SECP256K1_ORDER = 0xFFFFFFFF_FFFFFFFF_FFFFFFFF_FFFFFFFE_BAAEDCE6_AF48A03B_BFD25E8C_D0364141


def certificate(text: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate(text.encode())


def verify(found: str, signature: bytes, data: bytes = b"data") -> None:
    """Whether the key of a certificate (PEM) made a signature."""
    key: Any = certificate(found).public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        key.verify(signature, data)
        return
    half = len(signature) // 2
    assert half == key.key_size // 8
    r, s = int.from_bytes(signature[:half], "big"), int.from_bytes(signature[half:], "big")
    koblitz = isinstance(key.curve, ec.SECP256K1)
    assert not koblitz or s <= _SECP256K1_ORDER // 2
    key.verify(encode_dss_signature(r, s), data, ec.ECDSA(hashes.SHA256() if koblitz else hashes.SHA384()))
