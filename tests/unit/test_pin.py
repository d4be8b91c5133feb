"""A pinned client moves on the signatures of a majority of the members that it knew, and never backwards (J7)."""

from __future__ import annotations

from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from coco.cli.keys import make_actor
from coco.client.pin import Pin
from coco.crypto.certificates import pem
from coco.enclave.keys.identity import ServiceIdentity
from coco.errors import AttestationError
from coco.ledger.statements import IDENTITY_STATEMENT, fingerprint, identity_payload, sign_as_member


class Members:
    def __init__(self, directory, count):
        directory.mkdir()
        self.keys = {}
        for n in range(count):
            certificate = x509.load_pem_x509_certificate(make_actor(directory, f"m{n}").encode())
            key: Any = serialization.load_pem_private_key((directory / f"m{n}.key.pem").read_bytes(), None)
            self.keys[fingerprint(certificate)] = (key, certificate)

    def pems(self):
        return {name: pem(certificate) for name, (_, certificate) in self.keys.items()}

    def state(self, how_many, previous, following, position="2.9", kind=IDENTITY_STATEMENT):
        payload = identity_payload(previous.spki, following.spki, position, "00" * 32)
        chosen = list(self.keys.items())[:how_many]
        return [{"statement": sign_as_member(*pair, kind, payload, created_at_s=1).hex()} for _, pair in chosen]


@pytest.fixture
def services():
    return [ServiceIdentity.generate(1_800_000_000_000) for _ in range(3)]


def test_J7_a_majority_is_needed(tmp_path, services):
    old, new, newer = services
    members, strangers = Members(tmp_path / "members", 3), Members(tmp_path / "strangers", 3)

    def refused(statements, position="2.9"):
        pin = Pin(pem(old.certificate), members.pems(), position)
        with pytest.raises(AttestationError) as error:
            pin.follow(pem(new.certificate), statements)
        assert pin.service == pem(old.certificate), "a refused pin stays as it was"
        return error.value.code

    assert refused([]) == "client.other_service"
    assert refused(members.state(1, old, new)) == "client.other_service"
    assert refused(members.state(1, old, new) * 3) == "client.other_service", "one member three times is one"
    assert refused(strangers.state(3, old, new)) == "client.other_service"
    assert refused(members.state(3, old, newer)) == "client.other_service"
    assert refused(members.state(3, old, new, kind="ballot")) == "client.other_service"
    mixed = [*members.state(1, old, new, "2.9"), *members.state(2, old, new, "2.7")[1:]]
    assert refused(mixed) == "client.other_service", "they must agree on the place"
    assert refused(members.state(2, old, new, "2.8")) == "client.rolled_back"
    assert refused([{"statement": "zz"}, {"statement": "00"}, {}]) == "client.other_service"
    pin = Pin(pem(old.certificate), members.pems(), "2.9")
    assert pin.follow(pem(new.certificate), members.state(2, old, new)) is True
    assert (pin.service, pin.position) == (pem(new.certificate), "0.0")
    two_steps = Pin(pem(old.certificate), members.pems(), "2.9")
    chain = [*members.state(2, old, new), *members.state(2, new, newer, "4.3")]
    assert two_steps.follow(pem(newer.certificate), chain) is True
    assert two_steps.follow(pem(newer.certificate), []) is False


def test_a_pin_survives_its_file(tmp_path, services):
    pin = Pin(pem(services[0].certificate), {}, "2.4")
    pin.save(tmp_path / "pin.json")
    assert Pin.load(tmp_path / "pin.json") == pin
    assert Pin.load(tmp_path / "none.json") is None
    assert pin.saw("2.5") and not pin.saw("2.4") and not pin.saw("")
    assert isinstance(services[0].key.public_key(), ec.EllipticCurvePublicKey)
