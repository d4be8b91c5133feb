"""Commands, enclaves and the independent reader as forks of processes that have imported everything (``fork_server.py``).

Rules:

* What a process does is not changed, and nothing of the tests: ``subprocess`` makes it, with the descriptors, limits,
  environment and folder that it would have had, and it ends alone. Only what it imports is there already.
* Whatever depends on how a process really starts (its interpreter, its parent, the first half second) is started as it
  is outside: under the marker ``started``, with another interpreter or code, or with an environment that Python reads.
"""

from __future__ import annotations

import fcntl
import inspect
import json
import os
import resource
import select
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parent
ROOT = TESTS.parent
#: The independent ledger reader needs an older cbor2, so it has an environment of its own (Makefile).
CCF_PYTHON = ROOT / ".venv-ccf" / "bin" / "python"
BOOT = ROOT / "src" / "coco" / "enclave" / "node" / "boot.py"
READER = TESTS / "verify_with_ccf.py"
#: Names the folder of the servers, and the process with which they end: that of the whole run of tests.
FOLDER, OWNER = "COCO_TESTS_FORKS", "COCO_TESTS_OWNER"
#: What an environment may have otherwise: nothing that is read before the first line of a command.
_ANY = ("COCO_", "SOFTHSM2_", "PYTEST_")
_HEADER = struct.Struct("<i")
_BEGIN_S = 60.0
_LIMITS = [getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")]

#: What a process that is asked for otherwise is not forked with.
_PLAIN = {"preexec_fn": None, "uid": None, "gid": None, "gids": None, "umask": -1, "process_group": -1, "shell": False}

_Popen = subprocess.Popen
_PARAMETERS = list(inspect.signature(_Popen._execute_child).parameters)[1:]  # type: ignore[attr-defined]
_started = False


def _enclave_folders() -> list[str]:
    from coco.host.launcher import module_path

    return module_path(None)


def _kind(arguments: Any, environment: Any) -> tuple[str, list[str]] | None:
    """Which server makes this process, and the arguments that it has; none does if it is to be started."""
    if not isinstance(arguments, list) or _started or FOLDER not in os.environ:
        return None
    given = [os.fspath(argument) for argument in arguments]
    if given[:3] == [sys.executable, "-m", "coco.cli.main"] and _usual(environment):
        return "command", [str(ROOT / "src" / "coco" / "cli" / "main.py"), *given[3:]]
    if given[:1] == [str(CCF_PYTHON)] and given[1:2] == [str(READER)]:
        return "reader", given[1:]
    if given[:5] == [sys.executable, "-I", "-S", "-B", "-X"] and given[6:7] == [str(BOOT)]:
        folders = os.pathsep.join(_enclave_folders())
        path = next((argument for argument in given if argument.startswith("--path=")), "")
        if "--root=" in given and f"{path}{os.pathsep}".startswith(f"--path={folders}{os.pathsep}"):
            return "enclave", given[6:]
    return None


def _usual(environment: Any) -> bool:
    """Whether an environment differs from that of the server in nothing that it has read already."""
    start("command")
    usual = json.loads(Path(os.environ[FOLDER], "environment").read_text())
    given = dict(os.environ if environment is None else environment)
    return all(name.startswith(_ANY) for name in {*usual, *given} if usual.get(name) != given.get(name))


def start(kind: str) -> Path:
    """Start a server unless this run of tests has it; where it listens, once it does."""
    address = Path(os.environ[FOLDER]) / kind
    with open(f"{address}.lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not lock.tell():
            lock.write("started")
            _start(kind, address)
    return address


def _connect(kind: str) -> socket.socket:
    address, until = start(kind), time.monotonic() + _BEGIN_S
    while not address.exists():
        assert time.monotonic() < until, Path(f"{address}.log").read_text()
        time.sleep(0.005)
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(str(address))
    return connection


def _start(kind: str, address: Path) -> None:
    command, environment = [sys.executable], None
    if kind == "command":
        address.with_name("environment").write_text(json.dumps(dict(os.environ)))
    elif kind == "enclave":
        empty = address.with_name("no-bytecode")
        empty.mkdir()
        command += ["-I", "-S", "-B", "-X", f"pycache_prefix={empty}"]
        environment = {"LC_ALL": "C.UTF-8"}
    elif kind == "reader":
        command = [str(CCF_PYTHON)]
    command += [str(TESTS / "fork_server.py"), str(address), kind, os.environ[OWNER]]
    command += _enclave_folders() if kind == "enclave" else []
    with open(f"{address}.log", "wb") as log:
        server = _Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
        )
    server.returncode = 0  # it ends with its owner, and nobody waits for it


class Popen(_Popen):  # type: ignore[type-arg]
    """``subprocess.Popen``, which has a server make the processes that one can make."""

    _server: socket.socket | None = None

    def _execute_child(self, *given: Any) -> None:
        asked = dict(zip(_PARAMETERS, given, strict=True))
        plain = all(asked.get(name, usual) == usual for name, usual in _PLAIN.items())
        kind = _kind(asked["args"], asked["env"]) if plain else None
        if kind is None:
            super()._execute_child(*given)  # type: ignore[misc]
            return
        name, arguments = kind
        streams = [
            descriptor if descriptor != -1 else number
            for number, descriptor in enumerate((asked["p2cread"], asked["c2pwrite"], asked["errwrite"]))
        ]
        passed = [descriptor for descriptor in asked["pass_fds"] if descriptor > 2]
        body = {
            "arguments": arguments,
            "descriptors": [0, 1, 2, *passed],
            "environment": dict(os.environ if asked["env"] is None else asked["env"]),
            "folder": os.path.abspath(asked["cwd"] or "."),
            "new_session": asked["start_new_session"],
            "module": name == "command",
            "with_asker": name == "enclave",
        }
        waits, go = os.pipe()
        try:
            self._server = _connect(name)
            sent = json.dumps(body).encode()
            socket.send_fds(self._server, [_HEADER.pack(len(sent))], [waits, *streams, *passed])
            self._server.sendall(sent)
            self.pid = self._word()
            self._child_created = True
            for limit in _LIMITS:
                resource.prlimit(self.pid, limit, resource.getrlimit(limit))
            os.sched_setscheduler(self.pid, os.sched_getscheduler(0), os.sched_getparam(0))
            os.write(go, b"!")
        finally:
            os.close(waits)
            os.close(go)
            pipes = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
            self._close_pipe_fds(*(asked[pipe] for pipe in pipes))  # type: ignore[attr-defined]

    def _word(self) -> int:
        assert self._server is not None
        data = self._server.recv(_HEADER.size, socket.MSG_WAITALL)
        assert len(data) == _HEADER.size, "a server of forks has ended"
        return int(_HEADER.unpack(data)[0])

    def _try_wait(self, flags: int) -> tuple[int, int]:
        if self._server is None:
            waited: tuple[int, int] = super()._try_wait(flags)  # type: ignore[misc]
            return waited
        timeout = 0 if flags & os.WNOHANG else None
        poll = select.poll()
        poll.register(self._server, select.POLLIN)
        if not poll.poll(timeout):
            return 0, 0
        status = self._word()
        self._server.close()
        return self.pid, status

    def _internal_poll(self, _deadstate: Any = None, *rest: Any) -> int | None:
        if self._server is None:
            code: int | None = super()._internal_poll(_deadstate, *rest)  # type: ignore[misc]
            return code
        if self.returncode is None and self._waitpid_lock.acquire(False):  # type: ignore[attr-defined]
            try:
                if self.returncode is None:
                    pid, status = self._try_wait(os.WNOHANG)
                    if pid == self.pid:
                        self._handle_exitstatus(status)  # type: ignore[attr-defined]
            finally:
                self._waitpid_lock.release()  # type: ignore[attr-defined]
        return self.returncode


def install() -> None:
    """From now on ``subprocess`` has servers make the processes that they can make."""
    subprocess.Popen = Popen  # type: ignore[misc]


def begin() -> tempfile.TemporaryDirectory[str]:
    """Say where the servers of this run of tests are, to it and to every process that it starts."""
    folder = tempfile.TemporaryDirectory(prefix="coco-forks-")
    os.environ[FOLDER], os.environ[OWNER] = folder.name, str(os.getpid())
    return folder


@contextmanager
def started() -> Iterator[None]:
    """Meanwhile every process is started as it is outside, and so is what the processes start that it starts."""
    global _started
    folder = os.environ.pop(FOLDER, None)
    _started = True
    try:
        yield
    finally:
        _started = False
        if folder is not None:
            os.environ[FOLDER] = folder
