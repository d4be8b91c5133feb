"""Evidence in certificates (RFC 9999): what is in one is verified for its key, by a policy, and nothing else passes."""

from __future__ import annotations

from typing import Any

import cbor2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from coco.attestation import wrapper
from coco.attestation.evidence import Evidence, report_data, virtual
from coco.attestation.policy import Policy
from coco.crypto import cose
from coco.enclave.keys.identity import ServiceIdentity
from coco.errors import AttestationError
from made_evidence import NOW_S, made_nitro

SERVICE = ServiceIdentity.generate(NOW_S * 1000)
KEY = ec.generate_private_key(ec.SECP384R1()).public_key()
CONTEXT = {"encryption_key": b"rsa", "service": SERVICE.spki, "configuration": b"c" * 32}
ACCEPTS = Policy(insecure_virtual=True)


def certificate(value: bytes, key: Any = KEY) -> x509.Certificate:
    return SERVICE.endorse(key, 1, ["localhost"], NOW_S * 1000, evidence=value)


def evidence(**changes: bytes) -> Evidence:
    return virtual("aa", report_data(cose.spki(KEY), **{**CONTEXT, **changes}))


def refused(shown: x509.Certificate, policy: Policy = ACCEPTS) -> str:
    with pytest.raises(AttestationError) as error:
        wrapper.verify(shown, policy, now_s=NOW_S)
    return error.value.code.removeprefix("attestation.")


def test_evidence_is_verified_for_the_certificates_key_and_context():
    good = certificate(wrapper.wrap(evidence(), CONTEXT))
    found = wrapper.verify(good, ACCEPTS, now_s=NOW_S)
    assert found is not None and found.measurement == "aa"
    assert refused(good, Policy()) == "insecure_platform"
    assert refused(good, Policy(insecure_virtual=True, measurements={"insecure_virtual": ["bb"]})) == "measurement"
    other = ec.generate_private_key(ec.SECP384R1()).public_key()
    assert refused(certificate(wrapper.wrap(evidence(), CONTEXT), other)) == "report_data"
    for name in CONTEXT:
        assert refused(certificate(wrapper.wrap(evidence(**{name: b"x"}), CONTEXT))) == "report_data"
    assert refused(certificate(b"")) == "no_evidence"


def test_the_form_is_that_of_the_standard():
    value = wrapper.wrap(evidence(), CONTEXT)
    assert value[0] == 0x04, "CHOICE: cbor OCTET STRING"
    kind, body, indicator = cbor2.loads(wrapper._content(value))
    assert (kind, indicator) == ("application/vnd.coco.evidence+json", 4) and isinstance(body, bytes)
    for wrong in (
        b"\x04\x00",
        b"\x0c\x02{}",
        b"\x04\x81\x02\x00\x00",
        value + b"\0",
        wrapper._octets(cbor2.dumps(["other", body, 4])),
        wrapper._octets(cbor2.dumps([kind, body, 1])),
        wrapper._octets(cbor2.dumps([kind, b"{}", 4])),
        wrapper._octets(cbor2.dumps({})),
    ):
        assert refused(certificate(wrong)) == "malformed"
    for size in (0, 127, 128, 255, 256, 70_000):
        assert wrapper._content(wrapper._octets(bytes(size))) == bytes(size)


@given(st.binary(min_size=1, max_size=200))
def test_garbage_is_malformed(data):
    assert refused(certificate(data)) in ("malformed", "unknown_platform")


def test_large_endorsements_stay_at_home():
    sample = made_nitro()
    large = Evidence("nitro", sample.evidence, {"collateral": "x" * 20_000})
    assert wrapper.verify(certificate(wrapper.wrap(large, {})), ACCEPTS, now_s=NOW_S) is None
    assert len(wrapper.wrap(large, {})) < 16_384
