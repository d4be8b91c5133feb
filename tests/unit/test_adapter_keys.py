"""Keys that adapters sign with: in every enclave that has the ledger, under what the service certifies, shown to nobody."""

from __future__ import annotations

import asyncio
import datetime
import json
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from test_ledger_security import Ledger

from adapter_signatures import certificate, verify
from coco import limits
from coco._native import LedgerSecret
from coco.crypto.certificates import pem
from coco.enclave.adapters.contract import Algorithm, Key
from coco.enclave.keys import adapter_keys
from coco.enclave.keys.adapter_keys import AdapterKeys
from coco.enclave.keys.identity import ServiceIdentity
from coco.enclave.store import Journal, Store
from coco.errors import BusyError, CocoError, ConfigurationError, LedgerError
from coco.ledger import tables

NOW_MS = 1_800_000_000_000
VIEW: Any = SimpleNamespace(get=lambda table, key: None)
DAY_MS = 24 * 3600 * 1000
KEYS = [*(Key(algorithm.value, algorithm) for algorithm in Algorithm), Key("stays", Algorithm.ED25519, stays=True)]
NAMES = [key.name for key in KEYS]


async def here(function: Any, *arguments: Any) -> Any:
    return function(*arguments)


class Node:
    """A node with the keys, on a store that the test writes."""

    def __init__(self) -> None:
        self.ledger = Ledger()
        self.service = self.ledger.service
        self.keys = self.at(self.ledger.journal, self.ledger.store)

    def at(self, journal: Journal, store: Store) -> AdapterKeys:
        return AdapterKeys(journal, self.service, lambda: store.view(store.native.committed), here)

    def write(self, rows: Any) -> None:
        self.ledger.write(*rows)
        self.ledger.sign()

    def begun(self) -> Node:
        self.write(self.keys.made("fake", KEYS, VIEW, NOW_MS))
        return self

    def sign(self, name: str, data: bytes = b"data") -> bytes:
        return asyncio.run(self.keys.sign("fake", name, data))

    def row(self, name: str) -> Any:
        return json.loads(self.ledger.store.view().get(tables.ADAPTER_KEYS, f"fake/{name}".encode()) or b"")


@pytest.mark.parametrize("name", NAMES)
def test_a_key_signs_under_a_certificate_of_the_service(name):
    node = Node().begun()
    (shown,) = node.keys.certificates("fake", name)
    for n in range(8):  # a lower s comes by chance half of the time
        verify(shown, node.sign(name, b"%d" % n), b"%d" % n)
    certificate(shown).verify_directly_issued_by(node.service.certificate)
    assert certificate(shown).subject.rfc4514_string() == f"CN=Coco Key fake/{name}"
    assert not certificate(shown).extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_no_row_and_no_entry_shows_a_private_key():
    node = Node()
    rows = node.keys.made("fake", KEYS, VIEW, NOW_MS)
    node.write(rows)
    for name in NAMES:
        key = node.keys._private("fake", name)
        whole = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
        secret: bytes = (
            key.private_numbers().private_value.to_bytes(key.key_size // 8, "big")
            if isinstance(key, ec.EllipticCurvePrivateKey)
            else key.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())
        )
        for shown in (*(row[2] for row in rows), *node.ledger.disk.entries):
            for form in (whole, secret, secret.hex().encode(), whole.hex().encode()):
                assert form not in shown
    assert all("sealed" not in document for document in adapter_keys.shown(node.ledger.store.view()).values())
    assert sorted(adapter_keys.shown(node.ledger.store.view())) == sorted(f"fake/{name}" for name in NAMES)


def test_another_node_with_the_same_secrets_has_the_same_keys():
    node = Node().begun()
    other = Journal(append=node.ledger.disk.append, read=node.ledger.disk.read)
    for first, secret in node.ledger.journal.secrets:
        other.hold(first, secret)
    keys = node.at(other, node.ledger.store)
    for name in NAMES:
        verify(node.keys.certificates("fake", name)[0], asyncio.run(keys.sign("fake", name, b"data")))
    stranger = Journal(append=node.ledger.disk.append, read=node.ledger.disk.read)
    stranger.hold(1, LedgerSecret.generate())
    with pytest.raises(CocoError):
        asyncio.run(node.at(stranger, node.ledger.store).sign("fake", "ed25519", b"data"))


def test_a_key_outlives_the_epoch_that_sealed_it():
    node = Node().begun()
    node.ledger.journal.hold(node.ledger.journal.last_seqno + 1, LedgerSecret.generate())
    node.write([(tables.SERVICE_CONFIG, b"x", b"y")])
    verify(node.keys.certificates("fake", "ed25519")[0], node.sign("ed25519"))


def test_a_rolled_back_entry_takes_its_keys_with_it():
    node = Node()
    before = node.ledger.sign()
    node.ledger.write(*node.keys.made("fake", KEYS, VIEW, NOW_MS))
    with pytest.raises(CocoError) as unknown:
        node.sign("ed25519")
    assert unknown.value.code == "key.unknown", "nothing is signed with what may yet be gone"
    first = node.row("ed25519")
    node.ledger.store.roll_back(before)
    del node.ledger.disk.entries[before:]
    node.ledger.journal.lead(3)
    with pytest.raises(CocoError) as unknown:
        node.sign("ed25519")
    assert unknown.value.code == "key.unknown"
    node.ledger.write(*node.keys.made("fake", KEYS, VIEW, NOW_MS))
    node.ledger.store.native.commit(node.ledger.store.native.latest)
    assert node.row("ed25519")["certificates"] != first["certificates"]
    verify(node.keys.certificates("fake", "ed25519")[0], node.sign("ed25519"))


def succeeded(node: Node, following: ServiceIdentity, **info: Any) -> None:
    """The service has another key, and another epoch began with it."""
    previous = pem(node.service.certificate)
    document = {"cert": pem(following.certificate), "previous_service_identity": previous, **info}
    node.ledger.write((tables.SERVICE_INFO, tables.SINGLETON, tables.row(document)))
    node.ledger.journal.hold(node.ledger.journal.last_seqno + 1, LedgerSecret.generate())
    node.service.key, node.service.certificate = following.key, following.certificate
    node.ledger.sign()


def test_another_key_of_the_service_brings_other_keys_that_whoever_was_removed_cannot_read():
    node = Node().begun()
    former = {name: node.row(name) for name in NAMES}
    for name in NAMES:
        verify(former[name]["certificates"][0], node.sign(name))
    _, known = node.ledger.journal.current_secret  # to whoever leaves
    following = ServiceIdentity.generate(NOW_MS)
    succeeded(node, following)
    node.write(node.keys.due(node.ledger.store.view(), NOW_MS))
    for name in NAMES:
        newest, oldest = node.keys.certificates("fake", name)
        verify(newest, node.sign(name))
        certificate(newest).verify_directly_issued_by(following.certificate)
        assert oldest == former[name]["certificates"][0]
        same = certificate(newest).public_key() == certificate(oldest).public_key()
        assert same == (name == "stays")
        if not same:
            document = node.row(name)
            with pytest.raises(LedgerError):
                adapter_keys._cipher(known, bytes.fromhex(document["salt"])).open(bytes.fromhex(document["sealed"]))
    assert node.keys.due(node.ledger.store.view(), NOW_MS) == []


@pytest.mark.parametrize("missed", [False, True], ids=["alone", "after a succession that keys did not follow"])
def test_a_new_life_of_the_service_certifies_the_same_keys(missed):
    node = Node().begun()
    if missed:
        succeeded(node, ServiceIdentity.generate(NOW_MS))
    succeeded(node, ServiceIdentity.generate(NOW_MS), recovery_count=1)
    node.write(node.keys.due(node.ledger.store.view(), NOW_MS))
    for name in NAMES:
        newest, oldest = node.keys.certificates("fake", name)
        same = certificate(newest).public_key() == certificate(oldest).public_key()
        assert same == (not missed or name == "stays")
        verify(newest, node.sign(name))
        certificate(newest).verify_directly_issued_by(node.service.certificate)


def test_certificates_that_end_soon_are_renewed_and_only_those():
    node = Node().begun()
    assert node.keys.due(node.ledger.store.view(), NOW_MS + 200 * DAY_MS) == []
    later = NOW_MS + 300 * DAY_MS
    node.write(node.keys.due(node.ledger.store.view(), later))
    newest, oldest = (certificate(text) for text in node.keys.certificates("fake", "p384"))
    assert newest.not_valid_after_utc - oldest.not_valid_after_utc == datetime.timedelta(days=300)
    assert newest.public_key() == oldest.public_key()
    assert node.keys.due(node.ledger.store.view(), later) == []


def test_of_certificates_the_newest_are_kept():
    node = Node().begun()
    for n in range(limits.KEY_CERTIFICATES_MAX):
        node.write(node.keys.due(node.ledger.store.view(), NOW_MS + 300 * (n + 1) * DAY_MS))
    kept = node.keys.certificates("fake", "ed25519")
    assert len(kept) == limits.KEY_CERTIFICATES_MAX
    assert certificate(kept[0]).not_valid_before_utc > certificate(kept[-1]).not_valid_before_utc


def test_what_an_adapter_has_come_to_want_is_made_and_nothing_twice():
    node = Node()
    node.write(node.keys.made("fake", KEYS[:1], VIEW, NOW_MS))
    missing = node.keys.missing("fake", KEYS, node.ledger.store.view(), NOW_MS)
    assert [row[1].decode() for row in missing] == [f"fake/{name}" for name in NAMES[1:]]


def test_a_node_that_knows_nothing_committed_says_so():
    node = Node()
    keys = AdapterKeys(node.ledger.journal, node.service, lambda: None, here)
    with pytest.raises(BusyError) as busy:
        asyncio.run(keys.sign("fake", "ed25519", b""))
    assert busy.value.code == "key.not_ready"


def test_no_adapter_signs_with_anothers_key():
    node = Node().begun()
    for adapter, name in (("other", "ed25519"), ("fake", "nothing"), ("fake/ed25519", ""), ("", "fake/ed25519")):
        with pytest.raises(CocoError) as unknown:
            asyncio.run(node.keys.sign(adapter, name, b""))
        assert unknown.value.code == "key.unknown"


@pytest.mark.parametrize("wrong", [("a", "rsa"), ("A", "p384"), ("a/b", "p384"), ("", "p384"), ("a" * 33, "p384")])
def test_a_declaration_that_makes_no_sense_is_refused(wrong):
    key: Any = Key(*wrong)
    with pytest.raises(ConfigurationError) as refused:
        adapter_keys.check("fake", [key])
    assert refused.value.code == "configuration.adapter_key"
    with pytest.raises(ConfigurationError):
        adapter_keys.check("fake", [KEYS[0], KEYS[0]])
    adapter_keys.check("fake", KEYS)
