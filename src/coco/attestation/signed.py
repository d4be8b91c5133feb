"""Messages that vendors sign (COSE_Sign1): with ES384 as Nitro does, with PS384 as Microsoft does."""

from __future__ import annotations

from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

from coco.attestation.verified import refuse
from coco.crypto import cose
from coco.errors import RequestError


def parse(data: bytes) -> tuple[cose.Sign1, bytes]:
    """Read a message, tagged or not; it and its payload, which is believed only once it is verified.

    Raises:
        AttestationError: it is none (``attestation.malformed``).
    """
    try:
        message = cose.parse(data, tagged=False)
    except RequestError as error:
        raise refuse("not a signed message", "malformed") from error
    if message.payload is None:
        raise refuse("not a signed message", "malformed")
    return message, message.payload


def certificates(message: cose.Sign1) -> list[bytes]:
    """DER of the certificates in the protected header, the signer's first.

    Raises:
        AttestationError: they are no byte strings (``attestation.malformed``).
    """
    shown = message.headers.get(cose.X5_CHAIN, [])
    chain = [shown] if isinstance(shown, bytes) else list(shown) if isinstance(shown, list | tuple) else []
    if not all(isinstance(der, bytes) for der in chain):
        raise refuse("the certificates of a message cannot be read", "malformed")
    return chain


def verify(message: cose.Sign1, key: Any) -> None:
    """Check the signature.

    Raises:
        InvalidSignature: it is not of this key, or of another algorithm than the header says.
    """
    if message.algorithm == cose.PS384 and isinstance(key, rsa.RSAPublicKey):
        pss = padding.PSS(padding.MGF1(hashes.SHA384()), hashes.SHA384().digest_size)
        key.verify(message.signature, bytes(cose.to_be_signed(message)), pss, hashes.SHA384())
        return
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise InvalidSignature
    try:
        cose.verify(message, key)
    except RequestError as error:
        raise InvalidSignature from error
