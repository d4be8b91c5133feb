"""Every command × what a person in a hurry gives it: an error with a code, and never a traceback.

The table has one row for each command, a call that is right in form; the test replaces one value after the other with
what is wrong in its kind. A command without a row fails. No enclave is started: that is refused where a host would.
"""

from __future__ import annotations

import json
import os
import shutil
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from coco.cli import commands, keys, main
from coco.client import governance
from coco.errors import HostError
from coco.host import launcher, node

#: Nothing listens there.
_URL = "https://127.0.0.1:1"
_ADMIN = ["--admin", _URL, "--service", "service.pem"]
_MEMBER = [*_ADMIN, "--cert", "alice.pem"]
_NODE = ["--dir", "node", "--genesis", "genesis.json"]
_OPERATOR = ["--service", "service.pem", "--operator", "alice.pem"]
_JOIN = [*_NODE, "--peer", "127.0.0.1:1", *_OPERATOR]
#: A call of each command that is right in form; most end because no node is there.
ROWS: dict[str, list[str]] = {
    "sandbox": ["--dir", "sandbox", "--nodes", "1"],
    "connect": [_URL, "--admin", _URL, "--cert", "alice.pem", "--key", "alice.key.pem", "--pin", "pin.json"],
    "simulate": ["--nodes", "1", "--seeds", "0", "--jobs", "1"],
    "measure": ["--eif", "image.eif"],
    "status": [_URL, "--service", "service.pem", "--once"],
    "version": [],
    "doctor": [],
    "verify-node": [_URL, "--insecure-virtual", "--pin", "pin.json"],
    "policy explain": ["evidence.json", "--policy", "policy.json"],
    "ledger export": ["out", "--ledger", "ledger.db"],
    "ledger verify": ["--ledger", "ledger.db", "--service", "service.pem"],
    "ledger audit": ["--ledger", "ledger.db", "--service", "service.pem"],
    "ledger show": ["--ledger", "ledger.db"],
    "ledger aside": ["--ledger", "ledger.db"],
    "ledger put-back": ["1", "--ledger", "ledger.db"],
    "ledger set-aside": ["1", "--ledger", "ledger.db"],
    "receipt get": ["2.17", "--url", _URL, "--service", "service.pem", "--cert", "alice.pem", "--key", "alice.key.pem"],
    "receipt verify": ["receipt.json", "--service", "service.pem"],
    "account bind": ["0x" + "11" * 20, "--url", _URL, "--service", "service.pem", "--cert", "alice.pem"],
    "node start": _NODE,
    "node join": _JOIN,
    "node replace": ["abcd", *_NODE, "--admin", _URL, *_OPERATOR],
    "node retire": [_URL, "abcd", *_OPERATOR],
    "node measure": [],
    "node status": [_URL, "--service", "service.pem", "--once"],
    "member keygen": ["bob", "--dir", "keys"],
    "member propose": ["proposal.json", *_MEMBER],
    "member vote": ["00", "--for", *_MEMBER],
    "member withdraw": ["00", *_MEMBER],
    "member ack": _MEMBER,
    "member sign": ["proposal", "proposal.json", "--out", "message.cose", "--cert", "alice.pem"],
    "member send": ["message.cose", *_ADMIN],
    "member share": [*_MEMBER, "--encryption-key", "alice.encryption.key.pem", "--insecure-virtual"],
    "member identity": _MEMBER,
    "participant add": ["alice.pem", *_MEMBER],
    "proposal list": _ADMIN,
    "proposal show": ["00", *_ADMIN],
    "proposal rehearse": ["proposal.json", *_ADMIN],
    "constitution show": ["--ledger", "ledger.db"],
    "constitution diff": ["1", "2", "--ledger", "ledger.db"],
    "network init": ["consortium", "--member", "alice.pem", "--operator", "alice.pem=127.0.0.1", "--out", "made.json"],
}

#: What is wrong in the place of a file or folder; each is made anew.
_WRONG_FILES = ("missing", "folder", "empty", "bytes", "file/below", "/sys/coco", "list.json", "deep.json", "other.pem")
_WRONG_TEXTS = ("", "\udcff", "x" * 70_000, "https://[::1", "http://127.0.0.1:1", "https://h:70000", "*", "1.2.3", "/")
_WRONG_NUMBERS = ("-1", "70000", "9" * 40, "one", "")


def _commands(group: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, f"{path}{name} ")
        else:
            yield path + name, command


COMMANDS = dict(_commands(typer.main.get_command(commands.app)))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keys and certificates, which take a while to make."""
    folder = tmp_path_factory.mktemp("keys")
    for name in ("alice", "service"):
        keys.make_actor(folder, name)
    (folder / "alice.encryption.pem").write_text(keys.make_encryption_key(folder / "alice.encryption.key.pem"))
    return folder


@pytest.fixture
def place(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the rows name, and what is wrong in it."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    (tmp_path / "genesis.json").write_text(json.dumps({"network": "n", "constitution": ""}))
    (tmp_path / "proposal.json").write_text(json.dumps({"actions": [{"name": "remove_user", "args": {}}]}))
    (tmp_path / "policy.json").write_text("{}")
    (tmp_path / "receipt.json").write_text(json.dumps({"format": "coco receipt v1"}))
    (tmp_path / "evidence.json").write_text(json.dumps({"platform": "insecure_virtual"}))
    for name in ("empty", "file"):
        (tmp_path / name).touch()
    for name in ("bytes", "image.eif", "message.cose"):
        (tmp_path / name).write_bytes(bytes(range(128, 256)) * 40)
    (tmp_path / "list.json").write_text("[1, {}]")
    (tmp_path / "deep.json").write_text("[" * 100_000)
    (tmp_path / "other.pem").write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    (tmp_path / "folder").mkdir()

    def no_enclave(**options: Any) -> Any:
        raise HostError("no enclave is started here", code="host.no_enclave")

    command = typer.main.get_command(commands.app)
    monkeypatch.setattr(typer.main, "get_command", lambda app: command)  # made once, not for each call
    monkeypatch.setattr(node, "launch", no_enclave)
    monkeypatch.setattr(node, "take_turns", lambda: None)
    monkeypatch.setattr(governance, "_PATIENCE_S", 0.0)
    monkeypatch.setattr(launcher, "_REACH_SECONDS", 0.0)
    return tmp_path


def _ends_well(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any]]:
    """What a call ends with, which is an error with a code, as JSON, or nothing wrong at all."""
    code = main.main([*arguments, "--json"])
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err, (arguments, out, err)
    assert code in (0, 1, 2, 3, 4), (arguments, out, err)
    lines = [json.loads(line) for line in out.splitlines()]
    error = lines[-1].get("error") if lines else None
    assert (code == 0) == (error is None) or code in (1, 3, 4), (arguments, out)
    if error is not None:
        assert error["code"] and error["code"] != "cli.fault" and error["message"], arguments
        assert error.get("hint") or code == 1, (arguments, error)
    return code, error or {}


def test_every_command_has_a_row():
    assert ROWS.keys() == COMMANDS.keys()


def _wrong(command: Any, row: list[str]) -> Iterator[list[str]]:
    """The row, with one wrong value for each parameter in turn."""
    options = {name: one for one in command.params for name in one.opts}
    arguments = [one for one in command.params if one.param_type_name == "argument"]
    for parameter in command.params:
        if getattr(parameter, "is_flag", False) or parameter.name == "help":
            continue
        kind = parameter.type_descriptor.annotation
        (kind,) = typing.get_args(kind) or (kind,)
        values = {Path: _WRONG_FILES, int: _WRONG_NUMBERS, str: _WRONG_TEXTS}[kind]
        for value in values:
            if parameter in arguments:
                # Where the argument stands among those that are no option and no option's value.
                places = [
                    at
                    for at, text in enumerate(row)
                    if not text.startswith("--")
                    and (at == 0 or row[at - 1] not in options or getattr(options[row[at - 1]], "is_flag", False))
                ]
                number = arguments.index(parameter)
                changed = list(row)
                if number < len(places):
                    changed[places[number]] = value
                yield changed
            else:
                yield [*row, parameter.opts[0], value]


@pytest.mark.parametrize("name", COMMANDS)
def test_whatever_a_command_is_given_it_ends_with_a_code(name: str, place: Path, capsys: pytest.CaptureFixture[str]):
    row = ROWS[name]
    calls = 0
    for arguments in _wrong(COMMANDS[name], row):
        _ends_well([*name.split(), *arguments], capsys)
        assert os.getcwd() == str(place)
        calls += 1
    _ends_well([*name.split(), *row], capsys)
    assert calls or not row
