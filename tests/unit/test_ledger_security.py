"""Keys, sealing, receipts: security requirements K, L and J as far as they need no process."""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
from hashlib import sha256
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from coco._native import Entry, LedgerSecret, MerkleTree, Sealer, Share, WrappingKey, WriteSet, panic_for_test
from coco.attestation import evidence, policy
from coco.configuration import secrets as wrapping
from coco.configuration.genesis import Genesis
from coco.configuration.share_holders import ShareHolders
from coco.consensus import Members, Start
from coco.crypto.certificates import pem
from coco.enclave.keys.identity import ServiceIdentity
from coco.enclave.ordering.replica import Replica
from coco.enclave.platform.clock import Agreement, Clock
from coco.enclave.store import Journal, Store
from coco.errors import (
    AttestationError,
    ConfigurationError,
    HostLiedError,
    LedgerError,
    NativeError,
    StoreError,
)
from coco.ledger import receipts, signature, tables
from coco.ledger.replay import Replay
from coco.ledger.transaction_id import TransactionId

TIME_MS = 1_800_000_000_000


class Disk:
    """The host's part of a journal, in memory."""

    def __init__(self):
        self.entries: list[bytes] = []

    def append(self, position, entry, is_signature):
        assert position.seqno == len(self.entries) + 1
        self.entries.append(entry)

    async def read(self, first, last):
        return self.entries[first - 1 : last]


def service_and_node():
    service = ServiceIdentity.generate(TIME_MS)
    key = ec.generate_private_key(ec.SECP384R1())
    return service, key, service.endorse(key.public_key(), 1, ["localhost"], TIME_MS)


class Ledger:
    """A small ledger of one node, written by the production classes."""

    def __init__(self):
        self.disk = Disk()
        self.journal = Journal(append=self.disk.append, read=self.disk.read)
        self.store = Store(self.journal)
        for name in tables.STATE_TABLES:
            self.store.declare(name)
        self.store.declare(tables.CLAIMS, log=True)
        self.store.declare("secret")
        self.service, self.node_key, self.node_certificate = service_and_node()
        self.journal.begin(view=2, secret=LedgerSecret.generate())
        info = {"status": "Open", "cert": pem(self.service.certificate)}
        self.write((tables.SERVICE_INFO, tables.SINGLETON, json.dumps(info).encode()))

    def write(self, *rows, claim=None):
        if claim is not None:
            rows = (*rows, (tables.CLAIMS, (self.journal.last_seqno + 1).to_bytes(8, "big"), claim))
        return self.store.write(WriteSet(list(rows)), claim=claim)

    def sign(self):
        seqno = self.journal.last_seqno + 1
        made = signature.sign_root(
            self.node_key,
            self.service.key,
            node_certificate=pem(self.node_certificate),
            position=TransactionId(2, seqno),
            root=self.journal.tree.root(),
            committed=TransactionId(2, 0),
            time_s=TIME_MS // 1000,
        )
        rows = ((tables.SIGNATURES, made.signatures_row()), (tables.COSE_SIGNATURES, made.cose_row()))
        self.write(*((table, tables.SINGLETON, value) for table, value in rows))
        self.journal.adopt_signature(seqno)
        self.store.native.commit(seqno)
        return seqno


def asyncio_run(work):
    import asyncio

    return asyncio.run(work)


def test_K2_a_position_is_sealed_once():
    sealer, secret = Sealer(2, 5), LedgerSecret.generate()
    sealer.seal(secret, 2, 6, bytes(32), WriteSet([("t", b"a", b"first")]))
    for view, seqno in ((2, 6), (2, 5), (1, 9), (3, 6)):
        with pytest.raises(LedgerError) as refused:
            sealer.seal(secret, view, seqno, bytes(32), WriteSet([("t", b"a", b"second")]))
        assert refused.value.code == "ledger.resealed"
    sealer.seal(secret, 3, 7, bytes(32), WriteSet())


def test_K2_a_position_is_spent_even_if_the_write_set_is_refused():
    ledger = Ledger()
    before = ledger.journal.last_seqno
    with pytest.raises(StoreError):
        ledger.store.write(WriteSet([("unknown", b"", b"")]))
    assert ledger.journal.last_seqno == before == ledger.store.latest, "nothing was sealed, nothing applied"
    ledger.write(("secret", b"k", b"v"))


def test_K3_and_K5_a_secret_shows_nothing_but_derived_values():
    secret = LedgerSecret.generate()
    assert not [
        name for name in dir(secret) if "root" in name or "bytes" in name or "key" in name.replace("wrapping_key", "")
    ]
    values = {
        secret.fingerprint,
        secret.claims_salt(2, 1),
        secret.state_digest(__import__("coco._native")._native.Store()),
    }
    assert len(values) == 3
    with pytest.raises(TypeError):
        __import__("pickle").dumps(secret)


def test_K3_an_entry_opens_under_its_own_secret_only():
    one, other = LedgerSecret.generate(), LedgerSecret.generate()
    entry, _ = Sealer(2, 0).seal(one, 2, 1, bytes(32), WriteSet([("t", b"k", b"value")]))
    assert one.open(entry).rows("t") == [(b"k", b"value")]
    with pytest.raises(LedgerError) as refused:
        other.open(entry)
    assert refused.value.code == "ledger.seal_broken"


def recovery_members(count=3):
    keys = [rsa.generate_private_key(public_exponent=65537, key_size=2048) for _ in range(count)]
    public = {
        f"{n:064x}": key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        for n, key in enumerate(keys)
    }
    return keys, public


def shares_of(row, keys, public):
    from coco.ledger.statements import decrypt_share

    encrypted = json.loads(row)["encrypted_shares"]
    return [
        Share.adopt(decrypt_share(base64.b64decode(encrypted[name]), key))
        for name, key in zip(sorted(public), keys, strict=True)
    ]


def test_K4_a_wrapped_secret_opens_for_its_own_service_members_and_threshold_only():
    keys, public = recovery_members()
    secret = LedgerSecret.generate()
    row = wrapping.wrap(secret, service_key=b"service", first_seqno=9, members=public, threshold=2)
    shares = shares_of(row, keys, public)
    for chosen in (shares[:2], shares[1:], shares):
        first, opened = wrapping.unwrap(row, chosen, service_key=b"service", members=public)
        assert (first, opened.fingerprint) == (9, secret.fingerprint)
    fewer = dict(list(public.items())[:2])
    moved = json.dumps({**json.loads(row), "first_seqno": 10}).encode()
    lower = json.dumps({**json.loads(row), "threshold": 1}).encode()
    for bad_row, bad_shares, service, members in (
        (row, shares[:1], b"service", public),
        (row, shares[:2], b"other", public),
        (row, shares[:2], b"service", fewer),
        (moved, shares[:2], b"service", public),
        (lower, shares[:1], b"service", public),
        (b"{}", shares[:2], b"service", public),
    ):
        with pytest.raises(LedgerError) as refused:
            wrapping.unwrap(bad_row, bad_shares, service_key=service, members=members)
        assert refused.value.code == "ledger.shares_refused"


def test_an_owner_opens_alone_and_the_members_without_the_owner():
    keys, public = recovery_members()
    names = sorted(public)
    share_holders = ShareHolders({name: public[name] for name in names[:2]}, {names[2]: public[names[2]]}, 2)
    secret = LedgerSecret.generate()
    row = wrapping.keep(secret, 9, share_holders, b"service")
    from coco.ledger.statements import decrypt_share

    def share(name: str) -> Share:
        encrypted = wrapping.encrypted_share(row, name)
        assert encrypted is not None
        return Share.adopt(decrypt_share(encrypted, keys[names.index(name)]))

    assert wrapping.encrypted_share(row, "nobody") is None
    for submitted in ([names[2]], names[:2], names):
        shares = {name: share(name) for name in submitted}
        assert all(wrapping.is_share_of(row, name, one) for name, one in shares.items())
        first, opened = wrapping.recovered(row, shares, share_holders, b"service")
        assert (first, opened.fingerprint) == (9, secret.fingerprint)
    assert not wrapping.is_share_of(row, names[0], share(names[1]))
    for submitted, service in (([names[0]], b"service"), ([names[2]], b"other")):
        with pytest.raises(LedgerError):
            wrapping.recovered(row, {name: share(name) for name in submitted}, share_holders, service)
    # The owner's part says nothing to a member who is made to pass for one.
    other = ShareHolders(share_holders.members, {names[0]: public[names[0]]}, 2)
    with pytest.raises(LedgerError):
        wrapping.recovered(row, {names[0]: share(names[0])}, other, b"service")


def test_K4_a_former_secret_opens_under_its_successor_only():
    former, successor, stranger = (LedgerSecret.generate() for _ in range(3))
    row = wrapping.wrap_former(former, 7, successor)
    assert wrapping.unwrap_former(row, 7, successor).fingerprint == former.fingerprint
    for first, secret in ((8, successor), (7, stranger)):
        with pytest.raises(LedgerError):
            wrapping.unwrap_former(row, first, secret)


@given(st.integers(1, 6), st.integers(0, 5))
@settings(max_examples=30, deadline=None)
def test_K5_any_threshold_of_shares_gives_the_key_back(threshold, more):
    key, secret = WrappingKey.generate(), LedgerSecret.generate()
    wrapped = secret.wrap(key, b"aad")
    shares = key.split(threshold, threshold + more)
    again = WrappingKey.combine(threshold, shares[-threshold:])
    assert LedgerSecret.unwrap(wrapped, again, b"aad").fingerprint == secret.fingerprint
    if threshold > 1:
        with pytest.raises(LedgerError):
            LedgerSecret.unwrap(wrapped, WrappingKey.combine(threshold - 1, shares[: threshold - 1]), b"aad")


def test_K5_shares_are_handles_and_wipe_what_they_take_over():
    key = WrappingKey.generate()
    share, _ = key.split(2, 2)
    assert not hasattr(share, "bytes") and str(share).startswith("<"), "a handle shows nothing"
    for made in (2, 3):
        given = bytes([made]) + secrets.token_bytes(32)
        Share.adopt(given)
        assert given == bytes(33), "wiped"
    for wrong in (b"", b"ab", bytes(34)):
        with pytest.raises(LedgerError):
            Share.adopt(wrong)
    small = rsa.generate_private_key(public_exponent=65537, key_size=1024).public_key()
    pem = small.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo).decode()
    for bad in (pem, "", "no key"):
        with pytest.raises(ConfigurationError) as refused:
            share.encrypt(bad)
        assert refused.value.code == "configuration.encryption_key"


def test_K6_no_public_byte_tells_a_guessable_claim():
    ledger = Ledger()
    claim = b"balance=42"
    seqno = ledger.write(("secret", b"k", b"v"), claim=claim)
    entry = ledger.disk.entries[seqno - 1]
    guesses = [sha256(claim).digest(), sha256(receipts.CLAIMS_LABEL + claim).digest(), claim]
    guesses.append(receipts.claims_digest(bytes(32), claim))
    assert not any(guess in entry for guess in guesses)
    ledger.sign()
    receipt = asyncio_run(ledger.journal.receipt(seqno, ledger.journal.last_seqno))
    assert receipts.claims_digest(receipt.claim_salt, claim) == receipt.claims_digest


def test_L1_an_entry_names_its_predecessor_and_its_own_number():
    ledger = Ledger()
    for n in range(5):
        ledger.write(("secret", b"k", bytes([n])))
    ledger.sign()
    replay = Replay()
    replay.feed(ledger.disk.entries)
    assert replay.end() == (7, 0)
    swapped = [*ledger.disk.entries]
    swapped[2], swapped[3] = swapped[3], swapped[2]
    replay = Replay()
    replay.feed(swapped)
    with pytest.raises(LedgerError) as refused:
        replay.end()
    assert refused.value.code == "ledger.damaged"
    for entry, previous in zip(ledger.disk.entries[1:], ledger.disk.entries, strict=False):
        rows = dict(Entry.parse(entry).public_writes().rows(tables.PREDECESSOR))
        assert rows[tables.SINGLETON] == Entry.parse(previous).leaf


@pytest.mark.parametrize("damaged", [2, 3, 4, 5])
def test_L1_a_changed_entry_is_named(damaged):
    ledger = Ledger()
    for n in range(6):
        ledger.write(("secret", b"k", bytes([n])))
    ledger.sign()
    entries = [*ledger.disk.entries]
    entry = entries[damaged - 1]
    for at in (20, len(entry) - 1):  # in the tag, in the cipher text: only leaf and predecessor can tell
        entries[damaged - 1] = entry[:at] + bytes([entry[at] ^ 1]) + entry[at + 1 :]
        replay = Replay()
        replay.feed(entries)
        with pytest.raises(LedgerError) as refused:
            replay.end()
        assert (refused.value.code, refused.value.numbers) == ("ledger.damaged", {"entry": damaged})


def test_L2_what_the_host_gives_back_is_compared_before_use():
    ledger = Ledger()
    ledger.write(("secret", b"k", b"one"))
    ledger.write(("secret", b"k", b"two"))
    ledger.disk.entries[1], ledger.disk.entries[2] = ledger.disk.entries[2], ledger.disk.entries[1]
    with pytest.raises(HostLiedError) as lied:
        asyncio_run(ledger.journal.fetch(2))
    assert lied.value.code == "channel.wrong_entry"
    # A validly sealed entry of another life at the same position is no better.
    twin = Ledger()
    twin.write(("secret", b"k", b"one"))
    ledger.disk.entries[1] = twin.disk.entries[1]
    with pytest.raises(HostLiedError):
        asyncio_run(ledger.journal.fetch(2))
    ledger.disk.entries.clear()
    with pytest.raises(HostLiedError):
        asyncio_run(ledger.journal.fetch(2))


def test_L4_a_receipt_proves_one_transaction_and_nothing_else():
    ledger = Ledger()
    written = [ledger.write(("secret", b"k", bytes([n])), claim=b"claim %d" % n) for n in range(6)]
    signed = ledger.sign()
    service = ledger.service.certificate
    bodies = [asyncio_run(ledger.journal.receipt(seqno, signed)).to_json() for seqno in written]
    for seqno, body in zip(written, bodies, strict=True):
        assert receipts.verify(json.loads(json.dumps(body)), service) == TransactionId(2, seqno)

    def refused(body, by=service):
        with pytest.raises(LedgerError) as error:
            receipts.verify(body, by)
        assert error.value.code in ("receipt.invalid", "receipt.malformed")

    good, other = bodies[2], bodies[3]
    refused(good, ServiceIdentity.generate(TIME_MS).certificate)
    refused({**good, "leaf_components": other["leaf_components"]})
    parts = good["leaf_components"]
    wrong_index = parts["commit_evidence"].replace(f"2.{written[2]}", f"2.{written[3]}")
    refused({**good, "leaf_components": {**parts, "commit_evidence": wrong_index}})
    refused({**good, "proof": good["proof"][1:]})
    refused({**good, "proof": []})
    refused({**good, "proof": good["proof"] * 20})
    refused({**good, "claim": {"value": b"lie".hex(), "salt": good["claim"]["salt"]}})
    refused({**good, "signed_at": f"2.{signed + 1}"})
    refused({})
    with pytest.raises(Exception, match="signature entry"):
        asyncio_run(ledger.journal.receipt(signed, signed))
    with pytest.raises(Exception, match="not committed"):
        asyncio_run(ledger.journal.receipt(written[0], signed - 1))


def test_L4_a_leaf_that_names_another_place_is_refused_though_it_is_signed():
    """Even a signer cannot make a receipt whose evidence names another transaction than its place in the tree."""
    service, node_key, node_certificate = service_and_node()
    tree = MerkleTree()
    evidence_text = "ce:2.5:" + "ab" * 32
    for index in range(1, 8):
        leaf = receipts.leaf(bytes(32), evidence_text, bytes(32)) if index in (3, 5) else bytes([index]) * 32
        tree.append(leaf)
    signed = signature.sign_root(
        node_key,
        service.key,
        node_certificate=pem(node_certificate),
        position=TransactionId(2, 8),
        root=tree.root(),
        committed=TransactionId(2, 0),
        time_s=TIME_MS // 1000,
    )

    def body(index):
        path = tuple(tree.proof(index, 8))
        return receipts.Receipt(TransactionId(2, 5), bytes(32), evidence_text, bytes(32), path, signed).to_json()

    assert receipts.verify(body(5), service.certificate) == TransactionId(2, 5)
    with pytest.raises(LedgerError) as refused:
        receipts.verify(body(3), service.certificate)
    assert refused.value.code == "receipt.invalid"


@given(st.integers(1, 200), st.data())
@settings(max_examples=60, deadline=None)
def test_L4_the_path_gives_the_index(leaves, data):
    tree = MerkleTree()
    for n in range(1, leaves):
        tree.append(sha256(bytes([n % 256, n // 256])).digest())
    index = data.draw(st.integers(0, leaves - 1))
    path = tree.proof(index, leaves)
    assert receipts.index_of(path, leaves) == index
    leaf = tree.leaf(index)
    assert leaf is not None and receipts.fold(leaf, path) == tree.root()


def test_the_python_face_commits_optimistic_transactions():
    ledger = Ledger()
    first, second = ledger.store.begin_optimistic(), ledger.store.begin_optimistic()
    for transaction in (first, second):
        assert transaction.get("secret", b"k") is None
        with pytest.raises(ZeroDivisionError), transaction.savepoint():
            transaction.put("secret", b"gone", b"")
            raise ZeroDivisionError
        transaction.put("secret", b"k", b"v")
    seqno = ledger.store.commit(first)
    assert seqno == ledger.journal.last_seqno
    assert dict(ledger.store.view().scan("secret")) == {b"k": b"v"}
    with pytest.raises(StoreError) as refused:
        ledger.store.commit(second)
    assert refused.value.code == "store.conflict"
    assert ledger.store.commit(ledger.store.begin()) is None, "nothing written, no entry"


def test_L5_truncation_never_reaches_below_what_is_committed():
    ledger = Ledger()
    ledger.sign()
    ledger.write(("secret", b"k", b"v"))
    with pytest.raises(StoreError) as refused:
        ledger.store.native.roll_back(1)
    assert refused.value.code == "store.committed"
    ledger.store.native.roll_back(2)


def test_J1_evidence_of_another_key_nonce_network_or_configuration_is_refused():
    context = {"nonce": b"n", "service": b"s", "constitution": b"c", "configuration": b"f"}
    made = evidence.virtual("m", evidence.report_data(b"key", **context))
    verified = made.verify(now_s=0)
    policy.check_report_data(verified, evidence.report_data(b"key", **context))
    policy.enforce(verified, policy.Policy(insecure_virtual=True))
    for change in context:
        other = evidence.report_data(b"key", **{**context, change: b"other"})
        with pytest.raises(AttestationError) as refused:
            policy.check_report_data(verified, other)
        assert refused.value.code == "attestation.report_data"
    shifted = evidence.report_data(b"key", **{**context, "nonce": b"", "service": b"ns"})
    assert shifted != verified.report_data, "fields cannot flow into each other"
    with pytest.raises(AttestationError) as insecure:
        policy.enforce(verified, policy.Policy())
    assert insecure.value.code == "attestation.insecure_platform"
    assert evidence.Evidence.parse(made.to_json()) == made


def test_J10_production_never_accepts_platform_virtual(tmp_path):
    from coco.cli.sandbox import make_genesis
    from coco.cli.sandbox_folder import SandboxFiles

    genesis = make_genesis(SandboxFiles(tmp_path), fees="free", fork="osaka", chain_id=1)
    Genesis.parse(json.dumps(genesis).encode())
    with pytest.raises(ConfigurationError) as refused:
        Genesis.parse(json.dumps({**genesis, "production": True}).encode())
    assert refused.value.code == "configuration.insecure_virtual"
    with pytest.raises(ConfigurationError) as any_account:
        Genesis.parse(json.dumps({**genesis, "production": True, "insecure_virtual": False}).encode())
    assert any_account.value.code == "configuration.insecure_any_account"
    for broken in (b"", b"[]", b"{}", json.dumps({**genesis, "extra": 1}).encode(), b"\xff" * 10):
        with pytest.raises(ConfigurationError):
            Genesis.parse(broken)


def test_H5_time_follows_the_host_in_bounded_steps_and_never_goes_back():
    clock = Clock(1_000_000, committed_ms=2_000_000)
    assert clock.now_ms == 2_000_000, "never before what is committed"
    clock.tick(1_000)
    assert clock.now_ms == 2_000_000
    ten_years_ms = 10 * 365 * 24 * 3600 * 1000
    clock.tick(2_000_000 + ten_years_ms)
    assert clock.now_ms == 2_060_000
    assert clock.clipped == 1
    clock.tick(clock.now_ms + 1000)
    assert clock.now_ms == 2_061_000


def test_K2_an_epoch_that_is_rolled_back_takes_its_secret_with_it():
    unread: Any = None
    journal = Journal(append=lambda *entry: None, read=unread)
    journal.begin(view=2, secret=LedgerSecret.generate())
    store = Store(journal)
    for name in tables.STATE_TABLES:
        store.declare(name)
    for _ in range(4):
        store.write(WriteSet([(tables.SERVICE_CONFIG, tables.SINGLETON, b"{}")]))
    second = LedgerSecret.generate()
    journal.hold(5, second)  # entry 4 began it
    store.write(WriteSet([(tables.SERVICE_CONFIG, tables.SINGLETON, b"{}")]))
    assert journal.secret_at(5) is second and journal.secret_at(4) is not second
    store.roll_back(4)
    assert journal.secret_at(5) is second, "the entry that began it is still there"
    store.roll_back(3)
    assert journal.secret_at(5) is not second and len(journal.secrets) == 1


def test_H5_the_clock_stays_near_what_most_voters_say():
    clock, agreement = Clock(1_000_000), Agreement(5_000)
    voters = (1, 2, 3)
    agreement.heard(1, 9_000_000, 10.0)
    assert agreement.ceiling_ms(voters, 10.0) is None, "one of three is no majority"
    agreement.heard(2, 1_000_000, 10.0)
    agreement.heard(9, 1, 10.0)
    # Of two the lower counts; a node that does not vote does not; time goes on between the ticks.
    assert agreement.ceiling_ms(voters, 12.0) == 1_002_000 + 5_000
    agreement.heard(3, 1_001_000, 10.0)
    assert agreement.ceiling_ms(voters, 10.0) == 1_001_000 + 5_000
    clock.tick(9_000_000, agreement.ceiling_ms(voters, 10.0))
    assert clock.now_ms == 1_006_000
    assert agreement.ceiling_ms(voters, 30.0) is None, "what was said long ago counts no more"
    assert Agreement(5_000).ceiling_ms((1,), 0.0) is None
    clock.at_least(1_010_000)
    clock.at_least(1_000)
    assert clock.now_ms == 1_010_000


def test_G3_a_panic_of_the_extension_becomes_an_error():
    with pytest.raises(NativeError) as failed:
        panic_for_test()
    assert failed.value.code == "native.panic"
    assert "on purpose" not in str(failed.value)


class SlowDisk:
    """The part of the control channel that a replica uses."""

    on_appended: Any = None
    last = 0

    def append(self, seqno, entry):
        assert seqno == self.last + 1
        self.last = seqno


@given(st.lists(st.sampled_from(["sign", "write", "durable"]), max_size=40), st.integers(0, 50))
def test_commit_needs_a_signature_that_is_durable(steps, former):
    asyncio.run(commit_story(steps, former))


async def founded(disk, former, fatal):
    """The replica of a network of one, in view 5."""
    start = Start(Members((1,)), position=former, signed=former)
    links: Any = None
    replica = Replica(disk, links, node=1, start=start, view_offset=4, fatal=fatal)
    await replica.found()
    return replica


async def commit_story(steps, former):
    disk, signatures, durable = SlowDisk(), [], former
    told: list[Any] = []
    disk.last = former
    replica = await founded(disk, TransactionId(3, former), told.append)
    replica.on_committed = told.append
    for step in steps:
        if step == "durable" and disk.last > durable:
            durable = disk.last
            disk.on_appended(durable)
        elif step != "durable":
            if step == "sign":
                signatures.append(disk.last + 1)
            replica.append(TransactionId(5, disk.last + 1), b"entry", step == "sign")
        expected = max((s for s in signatures if s <= durable), default=former)
        assert replica.committed == expected
        assert told == sorted(set(told)) and set(told) <= set(signatures)


def test_a_broken_engine_ends_the_process(monkeypatch):
    disk = SlowDisk()
    ended: list[Any] = []

    async def story():
        replica = await founded(disk, TransactionId(0, 0), ended.append)
        replica.append(TransactionId(5, 1), b"entry", False)
        monkeypatch.setattr(replica._driver, "persisted", lambda number: replica._driver._engine.applied(99))
        disk.on_appended(1)

    asyncio.run(story())
    assert [error.code for error in ended] == ["native.panic"]


@given(st.binary(max_size=400))
@settings(max_examples=300, deadline=None)
def test_garbage_is_no_entry(data):
    with pytest.raises(LedgerError) as refused:
        Entry.parse(data)
    assert refused.value.code == "ledger.malformed_entry"


def test_every_changed_byte_of_an_entry_is_noticed():
    secret = LedgerSecret.generate()
    entry, leaf = Sealer(2, 0).seal(
        secret, 2, 1, bytes(32), WriteSet([("public:t", b"a", b"b"), ("t", b"k", b"value")])
    )
    for at in range(len(entry)):
        changed = entry[:at] + bytes([entry[at] ^ 0x40]) + entry[at + 1 :]
        try:
            assert Entry.parse(changed).leaf != leaf
            secret.open(changed)
        except LedgerError as error:
            assert error.code in ("ledger.malformed_entry", "ledger.seal_broken")
        else:
            raise AssertionError(f"byte {at} can be changed")
