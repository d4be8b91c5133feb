"""Who may become a node: evidence, owner, and secrets that only the joiner can open."""

from __future__ import annotations

import json
from hashlib import sha256
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from coco._native import LedgerSecret
from coco.attestation.evidence import report_data, virtual
from coco.cli.keys import make_actor
from coco.client.operators import owner
from coco.configuration import nodes
from coco.configuration import secrets as wrapping
from coco.crypto import cose
from coco.crypto.certificates import pem
from coco.enclave.keys.identity import ServiceIdentity
from coco.errors import AccessError, AttestationError, LedgerError
from coco.ledger import tables
from coco.ledger.statements import NODE_STATEMENT, RETIRE_STATEMENT, fingerprint, node_payload

SERVICE = ServiceIdentity.generate(1_800_000_000_000)
NODE = ec.generate_private_key(ec.SECP384R1()).public_key()
WANTED: dict[str, Any] = {
    "network": "test",
    "service": cose.key_id(SERVICE.key.public_key()),
    "constitution": sha256(b"").hexdigest(),
    "node_id": cose.key_id(NODE),
    "address": "10.0.0.1:900",
    "measurement": "m",
    "host_names": ["localhost"],
}


class View:
    """The part of a store view that is asked."""

    def __init__(self, rows: dict[tuple[str, bytes], bytes]) -> None:
        self._rows = rows

    def get(self, table: str, key: bytes) -> bytes | None:
        return self._rows.get((table, key))

    def scan(self, table: str, prefix: bytes = b"") -> Any:
        return iter(sorted((key, row) for (name, key), row in self._rows.items() if name == table))


def rsa_key() -> tuple[rsa.RSAPrivateKey, str]:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return key, key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


@pytest.fixture(scope="module")
def operator(tmp_path_factory):
    """Signs as ``owner`` does; and the configuration that lists the operator for one host."""
    directory = tmp_path_factory.mktemp("operator")
    certificate = make_actor(directory, "operator")
    sign = owner(
        directory / "operator.pem", directory / "operator.key.pem", network="test", service=pem(SERVICE.certificate)
    )
    key = fingerprint(x509.load_pem_x509_certificate(certificate.encode())).encode()
    row = json.dumps({"cert": certificate, "addresses": ["10.0.0.1", "10.0.0.2:901"]}).encode()
    return sign, View({(tables.OPERATORS, key): row})


def check(
    view: View, statement: bytes, expected: dict[str, Any], *, kind: str = NODE_STATEMENT, time_s: int = 0
) -> str:
    return nodes.check_owner(view, statement, expected, kind=kind, address=expected["address"], time_s=time_s)


def test_J2_an_owner_signs_for_one_node_of_one_network(operator):
    sign, view = operator
    statement = sign(WANTED["node_id"], "m", WANTED["address"], WANTED["host_names"])
    expected = node_payload(**WANTED, expires_s=0)
    assert len(check(view, statement, expected)) == 64
    for name in WANTED:
        with pytest.raises(AccessError) as refused:
            check(view, statement, {**expected, name: "another"})
        assert refused.value.code == "join.not_the_owner"
    with pytest.raises(AccessError) as late:
        check(view, statement, expected, time_s=1 << 40)
    assert late.value.code == "join.statement_expired"
    with pytest.raises(AccessError):
        check(view, statement, expected, kind=RETIRE_STATEMENT)
    for stranger in (View({}), View({(tables.OPERATORS, b"x"): b"{}"})):
        with pytest.raises(AccessError) as unknown:
            check(stranger, statement, expected)
        assert unknown.value.code == "join.not_the_owner"
    for broken in (b"", b"\xff", statement[:-1] + bytes([statement[-1] ^ 1])):
        with pytest.raises(AccessError):
            check(view, broken, expected)


@pytest.mark.parametrize(
    ("address", "allowed"),
    [("10.0.0.1:1", True), ("10.0.0.2:901", True), ("10.0.0.2:902", False), ("10.0.0.3:1", False)],
)
def test_J2_an_operator_has_its_addresses(operator, address, allowed):
    sign, view = operator
    expected = node_payload(**{**WANTED, "address": address}, expires_s=0)
    statement = sign(WANTED["node_id"], "m", address, WANTED["host_names"])
    if allowed:
        check(view, statement, expected)
    else:
        with pytest.raises(AccessError):
            check(view, statement, expected)


def test_J1_a_joiners_evidence_is_for_its_keys_its_service_and_its_start():
    _, encryption = rsa_key()
    _, other = rsa_key()

    def request(**changed: Any) -> nodes.JoinRequest:
        made = {"key": NODE, "encryption": encryption, "service": SERVICE.spki, "configuration": b"c", **changed}
        data = report_data(
            cose.spki(made["key"]),
            encryption_key=made["encryption"].encode(),
            service=made["service"],
            configuration=made["configuration"],
        )
        return nodes.JoinRequest(virtual("m", data).to_json(), encryption, b"c", b"n", "a:1", [], b"")

    verified = nodes.check_evidence(request(), NODE, SERVICE.spki, now_s=0)
    assert verified.measurement == "m"
    another = ec.generate_private_key(ec.SECP384R1()).public_key()
    for changed in ({"key": another}, {"encryption": other}, {"service": b"x"}, {"configuration": b"d"}):
        with pytest.raises(AttestationError):
            nodes.check_evidence(request(**changed), NODE, SERVICE.spki, now_s=0)
    sandbox = {(tables.GENESIS, tables.SINGLETON): b'{"insecure_virtual": true}'}
    with pytest.raises(AttestationError) as insecure:
        nodes.check_manifest(View({}), verified)
    assert insecure.value.code == "attestation.insecure_platform"
    with pytest.raises(AccessError) as refused:
        nodes.check_manifest(View(sandbox), verified)
    assert refused.value.code == "join.code_not_allowed"
    nodes.check_manifest(View({**sandbox, (tables.NODE_MEASUREMENTS, b"m"): nodes.ALLOWED}), verified)


def test_J3_secrets_open_at_the_node_that_they_are_sealed_to_and_nowhere_else():
    (key, public), (other, other_public) = rsa_key(), rsa_key()
    secret = LedgerSecret.generate()
    row = wrapping.seal_for_node(secret, 5, "node", public, SERVICE.spki)
    opened = wrapping.open_for_node(row, "node", key, public, SERVICE.spki)
    assert opened.fingerprint == secret.fingerprint
    sealed = wrapping.seal_service_key(SERVICE.key, public)
    assert wrapping.open_service_key(sealed, key).private_numbers() == SERVICE.key.private_numbers()
    for attempt in (
        lambda: wrapping.open_for_node(row, "node", other, other_public, SERVICE.spki),
        lambda: wrapping.open_for_node(row, "node", key, public, b"another service"),
        lambda: wrapping.open_for_node(row, "another", key, public, SERVICE.spki),
        lambda: wrapping.open_service_key(sealed, other),
        lambda: wrapping.open_service_key(sealed[:-1] + bytes([sealed[-1] ^ 1]), key),
    ):
        with pytest.raises(LedgerError) as refused:
            attempt()
        assert refused.value.code == "ledger.shares_refused"
