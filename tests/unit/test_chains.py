"""Chains of certificates: from a leaf, over an organisation's own CAs, to the anchor that members know."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from coco.configuration.actors import Actors
from coco.crypto import chains
from coco.enclave.adapters.contract import CallerKind
from coco.ledger import tables
from coco.ledger.statements import fingerprint

NOW = datetime(2026, 11, 22, tzinfo=UTC)
USAGE = dict.fromkeys(
    (
        *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement"),
        *("key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
    ),
    False,
)


class Authority:
    def __init__(self, name: str, issuer: Authority | None = None, **flaws: Any) -> None:
        self.name, self.key = name, ec.generate_private_key(ec.SECP384R1())
        self.certificate = (issuer or self).issue(name, self.key.public_key(), ca=True, **flaws)

    def issue(
        self,
        name: str,
        key: Any,
        *,
        ca: bool = False,
        path_length: int | None = None,
        days: tuple[int, int] = (-1, 1),
        issuer: str = "",
        critical: bool = False,
        signs: bool | None = None,
    ) -> x509.Certificate:
        named = [x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, one)]) for one in (name, issuer or self.name)]
        builder = (
            x509.CertificateBuilder(named[1], named[0], key, x509.random_serial_number())
            .not_valid_before(NOW + timedelta(days=days[0]))
            .not_valid_after(NOW + timedelta(days=days[1]))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=path_length), critical=True)
        )
        if critical:
            constraints = x509.NameConstraints([x509.DNSName("example.org")], None)
            builder = builder.add_extension(constraints, critical=True)
        if signs is not None:
            builder = builder.add_extension(x509.KeyUsage(**{**USAGE, "key_cert_sign": signs}), critical=True)
        return builder.sign(self.key, hashes.SHA384())

    def leaf(self, **fields: Any) -> x509.Certificate:
        return self.issue("somebody", ec.generate_private_key(ec.SECP384R1()).public_key(), **fields)


class Rows:
    def __init__(self, *anchors: x509.Certificate) -> None:
        self.rows = {(tables.USERS_CERTS, fingerprint(one).encode()): one.public_bytes(Encoding.PEM) for one in anchors}

    def deny(self, certificate: x509.Certificate) -> None:
        self.rows[tables.DENIED_CERTIFICATES, fingerprint(certificate).encode()] = b"{}"

    def get(self, table: str, key: bytes) -> bytes | None:
        return self.rows.get((table, key))

    def scan(self, table: str, prefix: bytes = b"") -> Any:
        return iter(sorted((key, row) for (name, key), row in self.rows.items() if name == table))

    def actor(self, *shown: x509.Certificate) -> str:
        chain = b"".join(one.public_bytes(Encoding.DER) for one in shown)
        found = Actors(self, int(NOW.timestamp() * 1000)).caller(chain)
        if found.caller.kind is CallerKind.ANONYMOUS:
            return ""
        assert found.until_ms == min(int(one.not_valid_after_utc.timestamp() * 1000) for one in shown)
        return found.caller.actor


ROOT = Authority("organisation")
DEPARTMENT = Authority("department", ROOT)
TEAM = Authority("team", DEPARTMENT)
OTHER = Authority("other")


def test_a_leaf_stands_for_the_anchor_at_the_end_of_its_chain():
    rows, name = Rows(ROOT.certificate, OTHER.certificate), fingerprint(ROOT.certificate)
    department, team = DEPARTMENT.certificate, TEAM.certificate
    assert rows.actor(ROOT.leaf()) == name
    assert rows.actor(DEPARTMENT.leaf(), department) == name
    assert rows.actor(TEAM.leaf(), team, department) == name
    assert rows.actor(TEAM.leaf(), team, department, ROOT.certificate) == name, "the anchor may be shown, too"
    assert rows.actor(DEPARTMENT.leaf()) == "", "what leads to the anchor must be shown"
    assert rows.actor(TEAM.leaf(), department, team) == "", "in its order"
    assert rows.actor(TEAM.leaf(), team, department, ROOT.certificate, OTHER.certificate) == "", "and no more than that"


@pytest.mark.parametrize(
    "flaws",
    [
        {"days": (-3, -2)},
        {"days": (1, 2)},
        {"critical": True},
        {"signs": False},
    ],
    ids=str,
)
def test_a_flawed_authority_in_between_issues_nothing(flaws):
    department = Authority("department", ROOT, **flaws)
    assert Rows(ROOT.certificate).actor(department.leaf(), department.certificate) == ""
    assert Rows(department.certificate).actor(department.leaf()) == "", "nor as an anchor"


def test_who_is_no_authority_issues_nothing():
    key = ec.generate_private_key(ec.SECP384R1())
    person = Authority("person", ROOT)
    person.key, person.certificate = key, ROOT.issue("person", key.public_key())
    rows = Rows(ROOT.certificate)
    assert rows.actor(person.certificate) == fingerprint(ROOT.certificate)
    assert rows.actor(person.leaf(), person.certificate) == ""
    stranger = Authority("department", OTHER)
    assert rows.actor(stranger.leaf(), stranger.certificate) == ""
    stranger.name = "department"
    assert rows.actor(stranger.leaf(), DEPARTMENT.certificate) == "", "a name is no signature"
    assert rows.actor(DEPARTMENT.leaf(issuer="elsewhere"), DEPARTMENT.certificate) == "", "nor a signature a name"


def test_a_path_length_is_kept():
    short = Authority("short", path_length=0)
    below = Authority("below", short)
    rows = Rows(short.certificate)
    assert rows.actor(short.leaf()) == fingerprint(short.certificate)
    assert rows.actor(below.leaf(), below.certificate) == ""
    one = Authority("one", ROOT, path_length=0)
    two = Authority("two", one)
    rows = Rows(ROOT.certificate)
    assert rows.actor(one.leaf(), one.certificate) == fingerprint(ROOT.certificate)
    assert rows.actor(two.leaf(), two.certificate, one.certificate) == ""


def test_a_chain_that_leads_to_two_organisations_is_nobodys():
    rows = Rows(ROOT.certificate, DEPARTMENT.certificate)
    assert rows.actor(ROOT.leaf()) == fingerprint(ROOT.certificate)
    assert rows.actor(DEPARTMENT.leaf()) == fingerprint(DEPARTMENT.certificate)
    assert rows.actor(DEPARTMENT.leaf(), DEPARTMENT.certificate) == "", "exactly one anchor (G4)"


def test_a_denied_authority_takes_its_leaves_along():
    rows, name = Rows(ROOT.certificate), fingerprint(ROOT.certificate)
    leaf = DEPARTMENT.leaf()
    assert rows.actor(leaf, DEPARTMENT.certificate) == name
    rows.deny(DEPARTMENT.certificate)
    assert rows.actor(leaf, DEPARTMENT.certificate) == ""
    assert rows.actor(ROOT.leaf()) == name


def test_chains_come_apart_as_they_were_put_together():
    parts = [one.public_bytes(Encoding.DER) for one in (TEAM.leaf(), TEAM.certificate, DEPARTMENT.certificate)]
    assert chains.split(b"".join(parts)) == parts
    assert chains.split(b"") == []
    for cut in (1, 2, 3, 100, len(parts[0]) - 1):
        with pytest.raises(ValueError, match="certificate"):
            chains.split(parts[0][:cut])
    with pytest.raises(ValueError, match="too many"):
        chains.split(parts[0] * (chains.CERTIFICATES_MAX + 1))


@given(st.binary(max_size=300))
def test_garbage_is_nobodys(data):
    assert Actors(Rows(ROOT.certificate), 0).caller(data).caller.kind is CallerKind.ANONYMOUS
