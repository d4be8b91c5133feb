"""Signing with what members have: tokens (PKCS#11), the open format's offline tools, files; and giving a share (J8)."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils
from cryptography.hazmat.primitives.hashes import SHA256, SHA384
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from test_consortium import action

from coco import constitutions
from coco.cli.keys import make_actor
from coco.client.signer import Token, TokenKey
from coco.crypto.certificates import pem
from coco.ledger.statements import fingerprint
from conftest import ROOT
from members import Organisation

SOFTHSM = Path("/usr/lib/softhsm/libsofthsm2.so")


def coco(*arguments: str, code: int = 0, env: dict[str, str] | None = None) -> Any:
    command = [sys.executable, "-m", "coco.cli.main", *arguments, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, env={**os.environ, **(env or {})})
    assert done.returncode == code, done.stdout + done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def network(sandboxes, tmp_path):
    sandbox = sandboxes("governed", "--nodes", "1")
    summary = sandbox.start()
    at = ["--admin", summary["administration_url"], "--service", summary["service_certificate"]]
    return sandbox, at


def proposal(tmp_path: Path, *actions: Any) -> str:
    path = tmp_path / "proposal.json"
    path.write_text(json.dumps({"actions": list(actions)}))
    return str(path)


NOTHING = action("remove_user", user_id="nobody")


def test_messages_are_signed_offline_and_sent_by_anybody(network, tmp_path):
    sandbox, at = network
    alice = ["--cert", str(sandbox.directory / "members" / "alice.pem")]
    out = tmp_path / "message.cose"
    signed = coco("member", "sign", "proposal", proposal(tmp_path, NOTHING), *alice, "--out", str(out))
    made = coco("member", "send", str(out), *at)
    assert (made["proposalState"], made["proposerId"]) == ("Accepted", signed["member"])
    assert coco("member", "send", str(out), *at)["proposalId"] == made["proposalId"], "again is the same"
    coco("member", "sign", "state_digest", *alice, "--out", str(out))
    digest = coco("member", "send", str(out), *at)["stateDigest"]
    (tmp_path / "ack.json").write_text(json.dumps({"state_digest": digest}))
    coco("member", "sign", "ack", str(tmp_path / "ack.json"), *alice, "--out", str(out))
    coco("member", "send", str(out), *at)
    coco("member", "sign", "ballot", "--for", "--proposal", made["proposalId"], *alice, "--out", str(out))
    assert coco("member", "send", str(out), *at, code=1)["error"]["code"] == "gov.proposal_closed"
    for wrong in (["ballot"], ["proposal"], ["nonsense"], ["ack", str(tmp_path / "none.json")]):
        found = coco("member", "sign", *wrong, *alice, "--out", str(out), code=2)
        assert found["error"]["code"] == "member.bad_message"
    out.write_bytes(b"no message")
    assert coco("member", "send", str(out), *at, code=1)["error"]["code"] == "cose.malformed"
    # A participant is one command.
    make_actor(tmp_path, "erin")
    added = coco("participant", "add", str(tmp_path / "erin.pem"), *at, *alice)
    shown = coco("proposal", "show", added["proposalId"], *at)["actions"]
    assert [one["name"] for one in shown] == ["assert_service_identity", "set_user"]
    assert shown[1]["args"]["user_data"] == {"name": "erin"}


def test_the_open_formats_tools_prepare_and_finish_what_an_external_signer_signs(network, tmp_path):
    sandbox, at = network
    folder = sandbox.directory / "members"
    content = proposal(tmp_path, NOTHING)
    tools = ROOT / ".venv-ccf" / "bin"
    common = ["--content", content, "--signing-cert", str(folder / "alice.pem"), "--ccf-gov-msg-type", "proposal"]
    common += ["--ccf-gov-msg-created_at", datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")]
    prepared = subprocess.run([str(tools / "ccf_cose_sign1_prepare"), *common], capture_output=True, text=True)
    wanted = json.loads(prepared.stdout)
    assert wanted["alg"] == "ES384"
    key = load_pem_private_key((folder / "alice.key.pem").read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    digest = base64.b64decode(wanted["value"])
    r, s = utils.decode_dss_signature(key.sign(digest, ec.ECDSA(utils.Prehashed(SHA384()))))
    raw = base64.urlsafe_b64encode(r.to_bytes(48, "big") + s.to_bytes(48, "big")).decode()
    (tmp_path / "signature.json").write_text(json.dumps({"value": raw}))
    finish = [str(tools / "ccf_cose_sign1_finish"), *common, "--signature", str(tmp_path / "signature.json")]
    finished = subprocess.run(finish, capture_output=True)
    assert finished.returncode == 0, finished.stderr
    (tmp_path / "message.cose").write_bytes(finished.stdout)
    assert coco("member", "send", str(tmp_path / "message.cose"), *at)["proposalState"] == "Accepted"


def token(directory: Path, **keys: Path) -> dict[str, str]:
    """A new token with these keys; the environment that names it."""
    (directory / "tokens").mkdir()
    (directory / "softhsm2.conf").write_text(f"directories.tokendir = {directory / 'tokens'}\n")
    env = {"SOFTHSM2_CONF": str(directory / "softhsm2.conf"), "COCO_PKCS11_PIN": "1234"}

    def softhsm(*arguments: str) -> None:
        command = ["softhsm2-util", *arguments, "--pin", "1234"]
        done = subprocess.run(command, capture_output=True, env={**os.environ, **env})
        assert done.returncode == 0, done.stderr

    softhsm("--init-token", "--free", "--label", "coco", "--so-pin", "1234")
    for number, (label, key) in enumerate(keys.items(), 1):
        softhsm("--import", str(key), "--token", "coco", "--label", label, "--id", f"{number:02}")
    return env


def rsa_key(file: Path) -> rsa.RSAPrivateKey:
    """A new key, and its file."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return key


@pytest.mark.skipif(not SOFTHSM.exists(), reason="needs softhsm2")
def test_a_token_says_of_every_message_that_is_not_its_keys_that_it_is_not(tmp_path, monkeypatch):
    held = tmp_path / "key.pem"
    key = rsa_key(held)
    monkeypatch.setenv("SOFTHSM2_CONF", token(tmp_path, share=held)["SOFTHSM2_CONF"])
    found = TokenKey(Token(SOFTHSM, "coco", "share", "1234"))
    oaep = padding.OAEP(padding.MGF1(SHA256()), SHA256(), None)
    assert found.decrypt(key.public_key().encrypt(b"share", oaep), oaep) == b"share"
    modulus = key.public_key().public_numbers().n
    # Numbers below the modulus and not, as the message of another key may be; and another key's size.
    for number, size in ((modulus - 2, 256), (modulus, 256), (2**2048 - 1, 256), (5, 256), (5, 384), (5, 128)):
        with pytest.raises(ValueError, match="not encrypted to this key"):
            found.decrypt(number.to_bytes(size, "big"), oaep)


@pytest.mark.skipif(not SOFTHSM.exists(), reason="needs softhsm2")
def test_a_key_in_a_token_governs_and_never_leaves_it(network, tmp_path):
    sandbox, at = network
    folder = sandbox.directory / "members"
    env = token(tmp_path, alice=folder / "alice.key.pem")
    alone = tmp_path / "alice.pem"
    alone.write_bytes((folder / "alice.pem").read_bytes())
    hsm = ["--cert", str(alone), "--pkcs11", f"{SOFTHSM}:coco:alice"]
    made = coco("member", "propose", proposal(tmp_path, NOTHING), *at, *hsm, env=env)
    assert made["proposalState"] == "Accepted"
    certificate = x509.load_pem_x509_certificate(alone.read_bytes())
    assert made["proposerId"] == fingerprint(certificate)
    for wrong, changed in (
        (f"{SOFTHSM}:coco:bob", {}),
        (f"{SOFTHSM}:other:alice", {}),
        ("/no/such/library:coco:alice", {}),
        ("nonsense", {}),
        (f"{SOFTHSM}:coco:alice", {"COCO_PKCS11_PIN": "0000"}),
    ):
        bad = ["--cert", str(alone), "--pkcs11", wrong]
        answer = coco("member", "propose", proposal(tmp_path, NOTHING), *at, *bad, code=2, env={**env, **changed})
        assert answer["error"]["code"] == "client.token", (wrong, answer)


def test_J8_a_share_is_given_to_a_node_that_proves_itself_and_to_one_service_only(operator, tmp_path):
    operator.run("n0", "start")
    measurement = coco("node", "measure")["measurement"]
    alice = tmp_path / "members" / "alice.pem"
    admin = operator.running["n0"][1]["administration_url"]
    known = tmp_path / "known.pem"
    known.write_bytes(Path(operator.service).read_bytes())
    # What the member has seen is remembered beside its certificate.
    at = ["--admin", admin, "--service", str(known)]
    coco("member", "propose", proposal(tmp_path, NOTHING), *at, "--cert", str(alice))
    seen = json.loads((tmp_path / "members" / "alice.record.json").read_text())["seen"]
    assert len(seen) == 1
    operator.kill("n0")
    shutil.copytree(tmp_path / "n0", tmp_path / "n1")
    said = operator.run("n0", "start", "--service", str(known))
    assert said["status"] == "WaitingForRecoveryShares"
    share = ["member", "share", "--admin", said["administration_url"], "--cert", str(alice)]
    keys = tmp_path / "members" / "alice.encryption.key.pem"
    share += ["--encryption-key", str(keys)] if keys.exists() else []

    def state() -> Any:
        service = str(tmp_path / "n0" / "service.recovering.pem")  # until it is open
        return coco("node", "status", said["administration_url"], "--service", service)["node"]

    virtual = ["--insecure-virtual", "--measurement", measurement]
    other = tmp_path / "other.pem"
    other.write_text(make_actor(tmp_path, "other"))
    for wrong, code, error in (
        (["--service", str(known)], 2, "member.no_measurement"),
        (["--service", str(known), "--measurement", measurement], 4, "attestation.insecure_platform"),
        (["--service", str(known), "--insecure-virtual", "--measurement", "00"], 4, "client.other_code"),
        (["--service", str(other), *virtual], 4, "client.other_service"),
    ):
        assert coco(*share, *wrong, code=code)["error"]["code"] == error
        assert state()["status"] == "WaitingForRecoveryShares"
    # A ledger that ends before what the member saw.
    record = tmp_path / "members" / "alice.record.json"
    (service,) = seen
    record.write_text(json.dumps({"seen": {service: "9.999"}, "released": {}}))
    assert coco(*share, "--service", str(known), *virtual, code=4)["error"]["code"] == "client.rolled_back"
    record.write_text(json.dumps({"seen": seen, "released": {}}))
    assert coco(*share, "--service", str(known), *virtual)["status"] == "Open"
    # Another copy of the same ledger cannot become a second continuation.
    second = operator.run("n1", "start", "--service", str(known))
    share[share.index("--admin") + 1] = second["administration_url"]
    assert coco(*share, "--service", str(known), *virtual, code=4)["error"]["code"] == "client.released_before"
    env: dict[str, str] = {}
    if SOFTHSM.exists():
        # The key of the share may lie in a token; another key there opens nothing.
        rsa_key(tmp_path / "other.rsa.pem")
        env = token(tmp_path, share=keys, other=tmp_path / "other.rsa.pem")
        share += ["--encryption-pkcs11", f"{SOFTHSM}:coco:other"]
        refused = coco(*share, "--service", str(known), *virtual, "--again", code=1, env=env)
        assert refused["error"]["code"] == "recovery.share_not_ours"
        share[-1] = f"{SOFTHSM}:coco:share"
    assert coco(*share, "--service", str(known), *virtual, "--again", env=env)["status"] == "Open"


def chain_of_three(directory: Path) -> tuple[str, list[str]]:
    """An organisation's certificate, and the options of somebody whom a CA of it has issued."""
    keys = [ec.generate_private_key(ec.SECP384R1()) for _ in range(3)]
    names = [x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, one)]) for one in ("anchor", "team", "cleo")]
    shown = []
    for number, key in enumerate(keys):
        issuer = max(0, number - 1)
        shown.append(
            x509.CertificateBuilder(names[issuer], names[number], key.public_key(), x509.random_serial_number())
            .not_valid_before(datetime.now(UTC) - timedelta(hours=1))
            .not_valid_after(datetime.now(UTC) + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=number < 2, path_length=None), critical=True)
            .sign(keys[issuer], SHA384())
        )
    (directory / "cleo.pem").write_text("".join(map(pem, reversed(shown))))
    private = keys[2].private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (directory / "cleo.key.pem").write_bytes(private)
    return pem(shown[0]), ["--cert", str(directory / "cleo.pem")]


def test_anybody_of_an_organisation_signs_for_it_on_a_real_node(network, tmp_path):
    sandbox, at = network
    alice = ["--cert", str(sandbox.directory / "members" / "alice.pem")]
    organisation = Organisation(tmp_path, "org", now=datetime.now(UTC))
    (tmp_path / "org.ca.pem").write_text(organisation.pem)
    add = action("set_member", cert="@org.ca.pem", member_data={"name": "org"})
    assert coco("member", "propose", proposal(tmp_path, add), *at, *alice)["proposalState"] == "Accepted"
    people = []
    for name in ("ann", "ben"):
        leaf = organisation.leaf(name)
        (tmp_path / f"{name}.pem").write_text(pem(leaf.certificate) + organisation.pem)
        (tmp_path / f"{name}.key.pem").write_bytes(
            leaf.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        )
        people.append((leaf, ["--cert", str(tmp_path / f"{name}.pem")]))
    (ann, by_ann), (_, by_ben) = people
    # Of another organisation somebody whom a CA of it knows: the file has the whole chain.
    anchor, by_chain = chain_of_three(tmp_path)
    (tmp_path / "chain.ca.pem").write_text(anchor)
    add = action("set_member", cert="@chain.ca.pem", member_data={"name": "chain"})
    assert coco("member", "propose", proposal(tmp_path, add), *at, *alice)["proposalState"] == "Accepted"
    assert len(coco("member", "ack", *at, *by_chain)["memberId"]) == 64
    assert coco("member", "propose", proposal(tmp_path, NOTHING), *at, *by_chain)["proposalState"] == "Accepted"
    assert coco("member", "ack", *at, *by_ann)["memberId"] == organisation.id
    made = coco("member", "propose", proposal(tmp_path, NOTHING), *at, *by_ben)
    assert (made["proposerId"], made["proposalState"]) == (organisation.id, "Accepted")
    # One of them loses a key: she is nobody, the organisation stays.
    deny = action("deny_certificate", fingerprint=fingerprint(ann.certificate))
    assert coco("member", "propose", proposal(tmp_path, deny), *at, *by_ben)["proposalState"] == "Accepted"
    again = coco("member", "propose", proposal(tmp_path, NOTHING), *at, *by_ann, code=1)
    assert again["error"]["code"] == "gov.not_a_member"
    assert coco("member", "propose", proposal(tmp_path, NOTHING), *at, *by_ben)["proposalState"] == "Accepted"


LOOP = """
def validate(proposal, state):
    for action in proposal["actions"]:
        if action["name"] == "remove_operator":
            for step in range(1000000000):
                pass
    return None

def resolve(proposal, votes, state):
    return "Accepted"

def apply(proposal, state):
    for action in proposal["actions"]:
        if action["name"] == "remove_node":
            "a" * (len(proposal["actions"]) * 300000000)
        if action["name"] == "set_user_data":
            fail("no data today")
    return proposal["actions"]

def admit(node, state):
    return "Trusted"
"""


def test_hostile_rules_leave_a_real_network_working_and_name_their_line(network, tmp_path):
    sandbox, at = network
    alice = ["--cert", str(sandbox.directory / "members" / "alice.pem")]

    def propose(*actions: Any, code: int = 0) -> Any:
        return coco("member", "propose", proposal(tmp_path, *actions), *at, *alice, code=code)

    assert propose(action("set_constitution", constitution=LOOP))["proposalState"] == "Accepted"
    loops = propose(action("remove_operator", operator_id="x"), code=1)
    assert loops["error"]["code"] == "gov.rules_too_long"
    allocates = propose(action("remove_node", node_id="x"))
    assert (allocates["proposalState"], allocates["failure"]["code"]) == ("Failed", "gov.rules_out_of_memory")
    fails = propose(action("set_user_data", user_id="x"))
    assert fails["proposalState"] == "Failed" and "constitution:17" in fails["failure"]["reason"], fails
    assert propose(NOTHING)["proposalState"] == "Accepted"
    back = action("set_constitution", constitution=constitutions.text("sandbox"))
    assert propose(back)["proposalState"] == "Accepted"
