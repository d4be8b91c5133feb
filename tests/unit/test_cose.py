"""COSE_Sign1: what is signed, and what is refused."""

from __future__ import annotations

import secrets

import cbor2
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from coco.crypto import cose
from coco.errors import RequestError

KEY = ec.generate_private_key(ec.SECP384R1())


@pytest.mark.parametrize("size", [0, 1, 23, 24, 255, 256, 65_535, 65_536, 100_000])
def test_the_signed_structure_is_the_standard_one(size):
    payload = secrets.token_bytes(size)
    protected = cbor2.dumps({1: -35})
    assert cose._to_be_signed(protected, payload) == cbor2.dumps(["Signature1", protected, b"", payload])
    protected, signature = cose.sign(KEY, {4: b"k"}, payload)
    message = cose.parse(cose.encode(protected, signature, payload))
    cose.verify(message, KEY.public_key())
    detached = cose.parse(cose.encode(protected, signature, None))
    cose.verify(detached, KEY.public_key(), payload)
    with pytest.raises(RequestError) as refused:
        cose.verify(detached, KEY.public_key(), payload + b"x")
    assert refused.value.code == "cose.bad_signature"
