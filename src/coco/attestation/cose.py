"""COSE_Sign1 (RFC 9052) as vendors use it: ES384 of Nitro, PS384 of Microsoft."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import cbor2
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils

from coco.attestation.verified import refuse

ES384: Final = -35
PS384: Final = -38
_SIGN1_TAG = 18
_ALGORITHM, _X5_CHAIN = 1, 33
_HALF = 48


@dataclass(frozen=True, slots=True)
class Sign1:
    """One message; what its protected header says is believed only once it is verified."""

    protected: bytes
    headers: Mapping[Any, Any]
    payload: bytes
    signature: bytes

    @property
    def algorithm(self) -> Any:
        """Number of the algorithm."""
        return self.headers.get(_ALGORITHM)

    @property
    def x5chain(self) -> list[bytes]:
        """DER of the certificates in the protected header, the signer's first."""
        shown = self.headers.get(_X5_CHAIN, [])
        chain = [shown] if isinstance(shown, bytes) else list(shown) if isinstance(shown, list | tuple) else []
        if not all(isinstance(one, bytes) for one in chain):
            raise refuse("the certificates of a message cannot be read", "malformed")
        return chain

    def verify(self, key: Any) -> None:
        """Check the signature.

        Raises:
            InvalidSignature: it is not of this key, or of another algorithm than the header says.
        """
        signed = cbor2.dumps(["Signature1", self.protected, b"", self.payload])
        if self.algorithm == ES384 and isinstance(key, ec.EllipticCurvePublicKey) and len(self.signature) == 2 * _HALF:
            r, s = (int.from_bytes(self.signature[at : at + _HALF], "big") for at in (0, _HALF))
            key.verify(utils.encode_dss_signature(r, s), signed, ec.ECDSA(hashes.SHA384()))
        elif self.algorithm == PS384 and isinstance(key, rsa.RSAPublicKey):
            pss = padding.PSS(padding.MGF1(hashes.SHA384()), hashes.SHA384().digest_size)
            key.verify(self.signature, signed, pss, hashes.SHA384())
        else:
            raise InvalidSignature


def parse(data: bytes) -> Sign1:
    """Read a message, tagged or not.

    Raises:
        AttestationError: it is none (``attestation.malformed``).
    """
    try:
        found = cbor2.loads(data)
        if isinstance(found, cbor2.CBORTag):
            if found.tag != _SIGN1_TAG:
                raise refuse("not a signed message", "malformed")
            found = found.value
        protected, _, payload, signature = found
        headers = cbor2.loads(protected)
    except (cbor2.CBORError, ValueError, TypeError, EOFError, RecursionError) as error:
        raise refuse("not a signed message", "malformed") from error
    parts = (protected, payload, signature)
    if not isinstance(headers, Mapping) or not all(isinstance(part, bytes) for part in parts):
        raise refuse("not a signed message", "malformed")
    return Sign1(protected, headers, payload, signature)
