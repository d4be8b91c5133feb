"""``coco verify-node`` and ``coco policy explain``, as an operator uses them, against real nodes and real evidence."""

from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import threading
from hashlib import sha256
from importlib.metadata import Distribution
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

import made_evidence
import tee_matrix
from coco.attestation import wrapper
from coco.cli import measure
from coco.crypto.certificates import pem
from coco.enclave.keys.identity import ServiceIdentity
from conftest import ROOT


def coco(*arguments: str, code: int = 0, env: dict[str, str] | None = None) -> Any:
    command = [sys.executable, "-m", "coco.cli.main", *arguments, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, env={**os.environ, **(env or {})})
    assert done.returncode == code, done.stdout + done.stderr
    return json.loads(done.stdout)


def test_a_client_with_a_policy_refuses_a_node_whose_code_differs_by_one_byte(sandboxes, tmp_path):
    sandbox = sandboxes("verified", "--nodes", "1")
    summary = sandbox.start()
    url, policy = summary["administration_url"], tmp_path / "policy.json"
    accepted = coco("verify-node", url, "--insecure-virtual")
    own = coco("node", "measure")["measurement"]
    assert accepted["measurement"] == own and accepted["accepted"]
    policy.write_text(json.dumps({"insecure_virtual": True, "measurements": {"insecure_virtual": [own]}}))
    assert coco("verify-node", url, "--policy", str(policy))["measurement"] == own
    assert coco("verify-node", url, code=4)["error"]["code"] == "attestation.insecure_platform"
    # The same package with one byte more in a comment.
    copy = tmp_path / "src"
    shutil.copytree(ROOT / "src", copy)
    changed = copy / "coco" / "limits.py"
    changed.write_text(changed.read_text() + "#")
    other = coco("node", "measure", env={"PYTHONPATH": str(copy)})["measurement"]
    assert other != own
    policy.write_text(json.dumps({"insecure_virtual": True, "measurements": {"insecure_virtual": [other]}}))
    refused = coco("verify-node", url, "--policy", str(policy), code=4)
    assert refused["error"]["code"] == "attestation.measurement"
    # What the node's certificate has, and what it answers to a nonce, can be explained offline, too.
    pin = tmp_path / "pin.json"
    connect = ["connect", summary["application_url"], "--admin", url, "--policy", str(policy), "--pin", str(pin)]
    connect += ["--cert", str(sandbox.directory / "participants" / "dapp.pem"), "--port", "0"]
    assert coco(*connect, code=4)["error"]["code"] == "attestation.measurement"
    assert not pin.exists()


def test_the_identity_of_the_code_is_said_part_by_part(tmp_path):
    found = coco("measure")
    assert found["measurements"]["insecure_virtual"] == coco("node", "measure")["measurement"]
    assert {"coco-framework", "cryptography", "dcap-qvl", "cbor2"} <= found["packages"].keys()
    assert "pytest" not in found["packages"] and found["altered"] == []
    assert len(found["constitutions"]) == 5 and "nitro" in found["platforms"]
    copy = tmp_path / "src"
    shutil.copytree(ROOT / "src", copy)
    changed = copy / "coco" / "limits.py"
    changed.write_text(changed.read_text() + "#")
    other = coco("measure", env={"PYTHONPATH": str(copy)})
    assert other["sources"] != found["sources"] and other["packages"] == found["packages"]


def test_a_file_that_is_not_what_was_installed_is_named(tmp_path):
    folder = tmp_path / "one-1.0.dist-info"
    folder.mkdir()
    (tmp_path / "one.py").write_text("x = 1")
    (tmp_path / "two.py").write_text("y = 2")
    digest = base64.urlsafe_b64encode(sha256(b"x = 1").digest()).rstrip(b"=").decode()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: one\nVersion: 1.0\n")
    record = (
        f"one.py,sha256={digest},5\ntwo.py,sha256={digest},5\nthree.py,sha256={digest},5\none-1.0.dist-info/RECORD,,\n"
    )
    (folder / "RECORD").write_text(record)
    found = list(measure._altered(Distribution.at(folder), record))
    assert found == ["one: two.py is another one", "one: three.py is gone"]


class Impostor:
    """A TLS server that answers nothing and counts the bytes that it was sent."""

    def __init__(self, directory: Path, evidence: bytes) -> None:
        service, key = ServiceIdentity.generate(made_evidence.NOW_S * 1000), ec.generate_private_key(ec.SECP384R1())
        shown: x509.Certificate = service.endorse(
            key.public_key(), 1, ["localhost"], made_evidence.NOW_S * 1000, evidence=evidence
        )
        (directory / "impostor.pem").write_text(pem(shown))
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        (directory / "impostor.key").write_bytes(private)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(directory / "impostor.pem", directory / "impostor.key")
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port, self.heard, self.handshakes = self._listener.getsockname()[1], b"", 0
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
                with self._context.wrap_socket(connection, server_side=True) as tls:
                    self.handshakes += 1
                    tls.settimeout(2)
                    self.heard += tls.recv(1000)
            except OSError:
                if self._listener.fileno() < 0:
                    return

    def close(self) -> None:
        self._listener.close()


@pytest.mark.parametrize("shown", ["none", "of another key", "garbage"])
def test_not_a_byte_is_sent_to_a_node_whose_certificate_proves_nothing(tmp_path, shown):
    from coco.attestation.evidence import virtual

    of_another = wrapper.wrap(virtual("aa", bytes(64)), {})
    impostor = Impostor(tmp_path, {"none": b"", "garbage": b"\x04\x01x", "of another key": of_another}[shown])
    try:
        refused = coco("verify-node", f"https://localhost:{impostor.port}", "--insecure-virtual", code=4)
        codes = {"none": "no_evidence", "garbage": "malformed", "of another key": "report_data"}
        assert refused["error"]["code"] == f"attestation.{codes[shown]}"
        assert impostor.handshakes == 1 and impostor.heard == b""
    finally:
        impostor.close()


def test_a_policy_is_explained_offline(tmp_path):
    sample = made_evidence.real()["tdx"]
    report, endorsements, policy = tmp_path / "quote.bin", tmp_path / "collateral.json", tmp_path / "policy.json"
    report.write_bytes(sample.evidence)
    endorsements.write_text(json.dumps(sample.endorsements))
    raw = ["policy", "explain", str(report), "--platform", "tdx", "--endorsements", str(endorsements)]
    at = ["--now", "2025-07-01T00:00:00", "--policy", str(policy)]
    good = sample.verify()
    import msgspec

    policy.write_bytes(msgspec.json.encode(tee_matrix.accepting(good)))
    found = coco(*raw, *at)
    assert found["accepted"] and found["tcb_status"] == "UpToDate" and len(found["rules"]) > 10
    policy.write_bytes(msgspec.json.encode(tee_matrix.accepting(good, smt=False, attributes="0" * 16)))
    found = coco(*raw, *at, code=4)
    failed = {one["rule"]: one["code"] for one in found["rules"] if not one["passed"]}
    assert failed == {"smt": "attestation.platform_flag", "attributes": "attestation.attributes"}
    assert coco(*raw, "--policy", str(policy), code=4)["error"]["code"] == "attestation.stale"
    assert coco(*raw, "--now", "yesterday", code=2)["error"]["code"] == "policy.bad_time"
    assert coco("policy", "explain", str(report), code=2)["error"]["code"] == "policy.bad_evidence"
    policy.write_text("{")
    assert coco(*raw, *at, code=2)["error"]["code"] == "attestation.bad_policy"
    person = subprocess.run(
        [sys.executable, "-m", "coco.cli.main", *raw, "--now", "2025-07-01"], capture_output=True, text=True, timeout=60
    )
    assert person.returncode == 4 and "fails" in person.stdout and "not in the TEE manifest" in person.stdout
