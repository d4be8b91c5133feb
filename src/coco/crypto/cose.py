"""COSE_Sign1 (RFC 9052): with ES384 as signature entries, receipts and governance messages use it, and with what
vendors sign their evidence with.

Rules: the protected header is kept as the bytes that were signed; algorithm and key must match; a bad message raises.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final, Protocol

import cbor2
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from coco.errors import RequestError

ES384: Final = -35
PS384: Final = -38
ALGORITHM: Final = 1
KEY_ID: Final = 4
#: Certificate of the signer, in DER (RFC 9360).
X5_CHAIN: Final = 33
SIGN1_TAG: Final = 18
MESSAGE_BYTES_MAX: Final = 1024 * 1024
_HALF: Final = 48


@dataclass(frozen=True, slots=True)
class Sign1:
    """A parsed message; ``payload`` is None when it is detached."""

    protected: bytes
    headers: dict[Any, Any]
    unprotected: dict[Any, Any]
    payload: bytes | None
    signature: bytes

    @property
    def algorithm(self) -> Any:
        """Number of the algorithm, as the protected header says."""
        return self.headers.get(ALGORITHM)


def spki(key: ec.EllipticCurvePublicKey) -> bytes:
    """DER SubjectPublicKeyInfo of a public key."""
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def key_id(key: ec.EllipticCurvePublicKey) -> str:
    """Hex SHA-256 of a public key: the name of a node or a service."""
    return sha256(spki(key)).hexdigest()


def _to_be_signed(protected: bytes, payload: bytes) -> bytearray:
    """The Sig_structure (RFC 9052, 4.4), in one buffer of its own: a payload may be a secret, to be wiped after use."""
    before = cbor2.dumps(["Signature1", protected, b""])
    head = bytearray(cbor2.dumps(len(payload)))
    head[0] |= 0x40  # not a number but a byte string of that length (RFC 8949, 3.1)
    signed = bytearray(len(before) + len(head) + len(payload))
    signed[: len(before)] = before
    signed[0] = 0x84  # an array of four
    signed[len(before) : len(before) + len(head)] = head
    signed[len(before) + len(head) :] = payload
    return signed


class SigningKey(Protocol):
    """A private key on P-384: in this process, or in a token that signs for it."""

    def sign(self, data: bytes | bytearray, signature_algorithm: ec.EllipticCurveSignatureAlgorithm) -> bytes:
        """DER of a signature."""


def sign(key: SigningKey, headers: dict[Any, Any], payload: bytes) -> tuple[bytes, bytes]:
    """Sign ``payload``; return the protected header's bytes and the signature, r and s of 48 bytes each."""
    protected = cbor2.dumps({ALGORITHM: ES384, **headers})
    der = key.sign(_to_be_signed(protected, payload), ec.ECDSA(hashes.SHA384()))
    r, s = utils.decode_dss_signature(der)
    return protected, r.to_bytes(_HALF, "big") + s.to_bytes(_HALF, "big")


def encode(
    protected: bytes, signature: bytes, payload: bytes | None, unprotected: dict[Any, Any] | None = None
) -> bytes:
    """Return the tagged message."""
    return cbor2.dumps(cbor2.CBORTag(SIGN1_TAG, [protected, unprotected or {}, payload, signature]))


def parse(message: bytes, *, tagged: bool = True) -> Sign1:
    """Parse a COSE_Sign1.

    Args:
        message: its bytes.
        tagged: whether it must carry the tag that says what it is; what some vendors sign does not.

    Raises:
        RequestError: not such a message (code ``cose.malformed``).
    """
    if len(message) > MESSAGE_BYTES_MAX:
        raise RequestError(
            f"a signed message has at most {MESSAGE_BYTES_MAX} bytes, and this one {len(message)}",
            code="cose.malformed",
            hint="make several of it",
        )
    try:
        parts = cbor2.loads(message)
        if isinstance(parts, cbor2.CBORTag) and parts.tag == SIGN1_TAG:
            parts = parts.value
        elif tagged:
            raise ValueError("no COSE_Sign1 tag")
        protected, unprotected, payload, signature = parts
        headers = cbor2.loads(protected)
        if not isinstance(headers, Mapping) or not isinstance(unprotected, Mapping | type(None)):
            raise ValueError("headers are no maps")
        if not isinstance(payload, bytes | None) or not isinstance(signature, bytes):
            raise ValueError("payload or signature is no byte string")
    except (ValueError, TypeError, cbor2.CBORDecodeError, RecursionError, OverflowError) as error:
        raise RequestError(f"not a COSE_Sign1 message: {error}", code="cose.malformed") from error
    return Sign1(bytes(protected), dict(headers), dict(unprotected or {}), payload, signature)


def to_be_signed(message: Sign1) -> bytearray:
    """What the signature of an attached message is over."""
    return _to_be_signed(message.protected, message.payload or b"")


def signed_digest(message: Sign1) -> bytes:
    """SHA-256 of what an attached message signs: the same for every form of its signature and its envelope."""
    return sha256(to_be_signed(message)).digest()


def verify(message: Sign1, key: ec.EllipticCurvePublicKey, payload: bytes | None = None) -> None:
    """Check the signature over the attached payload, or over ``payload`` when it is detached.

    Raises:
        RequestError: wrong algorithm (``cose.algorithm``) or signature (``cose.bad_signature``).
    """
    signed = message.payload if message.payload is not None else payload
    if message.algorithm != ES384 or key.curve.name != "secp384r1":
        raise RequestError("only ES384 over P-384 is accepted", code="cose.algorithm")
    if 2 in message.headers:
        raise RequestError("a critical header is not understood", code="cose.algorithm")
    if signed is None or len(message.signature) != 2 * _HALF:
        raise RequestError("the signature does not verify", code="cose.bad_signature")
    r = int.from_bytes(message.signature[:_HALF], "big")
    s = int.from_bytes(message.signature[_HALF:], "big")
    structure = _to_be_signed(message.protected, signed)
    try:
        key.verify(utils.encode_dss_signature(r, s), structure, ec.ECDSA(hashes.SHA384()))
    except InvalidSignature as error:
        raise RequestError("the signature does not verify", code="cose.bad_signature") from error
    finally:
        structure[:] = bytes(len(structure))
