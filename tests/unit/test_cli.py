"""The command: JSON, exit codes, help."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


def coco(*arguments):
    done = subprocess.run(
        [sys.executable, "-m", "coco.cli.main", *arguments], capture_output=True, text=True, timeout=120
    )
    return done.returncode, done.stdout, done.stderr


def test_version_and_doctor_and_accounts_speak_json():
    code, out, _ = coco("version", "--json")
    assert code == 0 and json.loads(out)["platforms"] == ["insecure_virtual"]
    code, out, _ = coco("doctor", "--json")
    checks = {check["name"]: check for check in json.loads(out)["checks"]}
    assert code in (0, 3) and checks["python"]["ok"] and not checks["trusted execution"]["ok"]
    code, out, _ = coco("sandbox", "--accounts", "--json")
    assert code == 0 and len(json.loads(out)["accounts"]) == 10


def test_errors_have_codes_hints_and_exit_codes(tmp_path):
    (tmp_path / "file").touch()
    code, out, _ = coco("sandbox", "--fresh", "--dir", str(tmp_path), "--json")
    assert (code, json.loads(out)["error"]["code"]) == (2, "sandbox.not_a_sandbox")
    assert (tmp_path / "file").exists(), "nothing of another's was erased"
    code, _, err = coco("ledger", "export", str(tmp_path / "out"), "--ledger", str(tmp_path / "none"))
    assert code == 2 and "ledger.no_file" in err and "Traceback" not in err
    (tmp_path / "bad.db").write_text("not a database, but long enough to be looked at" * 100)
    code, _, err = coco("ledger", "show", "--ledger", str(tmp_path / "bad.db"))
    assert code == 3 and "host.ledger_unreadable" in err and "Traceback" not in err
    cert = tmp_path / "c.pem"
    cert.touch()
    code, out, _ = coco(
        "connect",
        "http://x",
        "--admin",
        "https://localhost:1",
        "--cert",
        str(cert),
        "--json",
        "--pin",
        str(tmp_path / "p"),
    )
    assert (code, json.loads(out)["error"]["code"]) == (3, "client.unreachable")


@pytest.mark.parametrize(
    "command",
    [
        *(
            "sandbox",
            "connect",
            "account bind",
            "ledger export",
            "ledger show",
            "ledger verify",
            "status",
            "doctor",
            "version",
        ),
        *("member keygen", "network init"),
        *(
            "member propose",
            "member vote",
            "member withdraw",
            "member ack",
            "member sign",
            "member send",
            "member share",
        ),
        *("participant add", "ledger audit", "node measure", "receipt get", "receipt verify"),
        *("constitution show", "constitution diff"),
        *("proposal list", "proposal show", "proposal rehearse"),
        *("node start", "node join", "node replace", "node retire", "node status"),
    ],
)
def test_every_command_of_the_documentation_exists_and_is_documented(command):
    code, out, _ = coco(*command.split(), "--help")
    assert code == 0 and "--json" in out
    assert f"`coco {command}" in (ROOT / "docs/cli.md").read_text()
