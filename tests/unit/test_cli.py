"""The command: JSON, exit codes, help."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


def coco(*arguments):
    done = subprocess.run(
        [sys.executable, "-m", "coco.cli.main", *arguments], capture_output=True, text=True, timeout=120
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.started
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


def _imported(line):
    """The module that a line of ``-X importtime`` names; nothing if it is no such line."""
    return line.rpartition("|")[2].strip() if line.startswith("import time:") else ""


@pytest.mark.parametrize(
    "arguments",
    [
        ["version"],
        ["node", "start", "--help"],
        ["sandbox", "--dir", "{}", "--port", "0", "--nodes", "1", "--json"],
        ["connect", "https://127.0.0.1:1", "--cert", "/dev/null"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_ctrl_c_while_everything_is_imported_ends_a_command_at_once(arguments, tmp_path):
    """The interpreter's own beginning, before anything of Coco, is not Coco's."""
    command = [sys.executable, "-X", "importtime", "-m", "coco.cli.main"]
    whole = subprocess.run([*command, "version"], capture_output=True, text=True, timeout=120)
    names = [name for line in whole.stderr.splitlines() if (name := _imported(line))]
    first, last = names.index("asyncio.constants"), names.index("coco.cli.commands")
    assert last - first > 200, "the command imports what it needs after it has begun"
    for at in range(first, last, (last - first) // 6):
        place = str(tmp_path / f"sandbox{at}")
        running = [*command, *(argument.format(place) for argument in arguments)]
        with subprocess.Popen(running, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            while _imported(line := process.stderr.readline()) != names[at]:
                assert line, "it has ended before"
            process.send_signal(signal.SIGINT)
            out, errors = process.communicate(timeout=60)
        assert process.returncode == 130, (names[at], errors[-2000:])
        assert "Traceback" not in errors and "KeyboardInterrupt" not in errors and not out, errors[-2000:]


@pytest.mark.parametrize("wait_s", [0.0, 0.1, 0.3, 1.0])
def test_ctrl_c_after_that_ends_a_command_without_a_traceback(wait_s, tmp_path):
    command = [sys.executable, "-X", "importtime", "-m", "coco.cli.main", "sandbox", "--dir", str(tmp_path / "s")]
    running = [*command, "--port", "0", "--nodes", "1", "--json"]
    with subprocess.Popen(running, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        while _imported(process.stderr.readline()) != "coco.cli.commands":
            pass
        time.sleep(wait_s)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode in (0, 130), errors[-2000:]
    assert "Traceback" not in errors and "KeyboardInterrupt" not in errors, errors[-2000:]


def test_a_program_that_calls_a_command_keeps_its_signals():
    code = "import signal; from coco.cli.main import main; main(['version']); print(signal.getsignal(signal.SIGINT))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert "default_int_handler" in done.stdout, done.stderr
