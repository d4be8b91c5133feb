"""A port that cannot be listened on: what an operator is told to do about it."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys

import pytest

from coco._native import Relay
from coco.errors import HostError
from coco.host import ports


@pytest.fixture
def taken():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def refused(host, port):
    """What the relay says of an address."""
    with pytest.raises(HostError) as told:
        Relay(host, port, "/nowhere", 10, None)
    assert told.value.code == "host.cannot_listen"
    return told.value


@pytest.mark.parametrize("given", [True, False], ids=["outgoing", "not outgoing"])
def test_a_port_that_is_taken_names_how_to_find_who_has_it(taken, given, monkeypatch, tmp_path):
    said = tmp_path / "range"
    said.write_text(f"{taken}\t{taken + 7}\n" if given else f"{taken + 1}\t{taken + 7}\n")
    monkeypatch.setattr(ports, "_RANGE", said)
    error = ports.cannot_listen(("127.0.0.1", taken), refused("127.0.0.1", taken))
    assert (str(error).count(f"127.0.0.1:{taken}"), error.code) == (1, "host.cannot_listen")
    assert error.hint and f"ss -tanp 'sport = :{taken}'" in error.hint
    assert (f"below {taken}" in error.hint) == given, error.hint


def test_an_address_of_another_machine_is_told_as_one():
    error = ports.cannot_listen(("192.0.2.1", 4000), refused("192.0.2.1", 4000))
    assert error.hint and "--advertise" in error.hint


def test_other_reasons_have_hints_too(monkeypatch, tmp_path):
    for number, word in ((errno.EACCES, "1024"), (errno.EMFILE, "doctor"), (errno.EADDRINUSE, "ss ")):
        error = ports.cannot_listen(("127.0.0.1", 80), OSError(number, os.strerror(number)))
        assert error.hint and word in error.hint
    monkeypatch.setattr(ports, "_RANGE", tmp_path / "none")
    assert not ports.outgoing(), "a machine need not say"


@pytest.mark.parametrize("option", ["--node-port", "--admin-port"])
def test_a_command_whose_port_is_taken_says_so(option, taken, tmp_path):
    command = [sys.executable, "-m", "coco.cli.main", "sandbox", "--json", "--dir", str(tmp_path / "s"), "--nodes", "1"]
    done = subprocess.run(
        [*command, "--port", "0", option, str(taken)], capture_output=True, text=True, timeout=120, check=False
    )
    error = json.loads(done.stdout)["error"]
    assert (done.returncode, error["code"]) == (3, "host.cannot_listen")
    assert f"sport = :{taken}" in error["hint"]
