"""How every command speaks: a person reads stdout, a program reads ``--json``, progress goes to stderr.

Exit codes (documented in docs/cli.md): 0 done, 1 refused by a node or a rule, 2 wrong usage, 3 this machine or file
cannot do it, 4 not verified, 5 this node has left its network and must not be started again as it was, 70 a fault of
Coco, 130 ended by Ctrl-C. Whatever goes wrong is told as one error with a code: usage, files and disks too; nobody is
shown a traceback who did not ask for it (``COCO_TRACEBACK=1``).
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sqlite3
import ssl
import sys
import traceback
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, Final, NoReturn

import typer
import uvloop
from rich.console import Console

from coco.errors import (
    AttestationError,
    CocoError,
    ConfigurationError,
    FaultError,
    HostError,
    LedgerError,
    LockdownError,
)

console = Console(highlight=False, soft_wrap=True)
progress = Console(stderr=True, highlight=False)

_EXIT: list[tuple[type[CocoError], int]] = [
    (AttestationError, 4),
    (LedgerError, 4),
    (HostError, 3),
    (LockdownError, 3),
    (ConfigurationError, 2),
    (FaultError, 70),
]
#: Failures of a disk; every other one that names a file is about that file.
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}
#: What to do about an error that does not say it itself, by its exit code.
_HINTS = {
    2: "the command's --help and docs/cli.md say what it takes",
    3: "coco doctor says what this machine lacks",
    4: "use nothing that comes from there until you know why",
}
_MACHINE = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN}


#: A supervisor must not undo what an operator or members decided (``RestartPreventExitStatus`` in deploy/).
LEFT = 5
_LEFT: Final = frozenset({"node.retired", "join.retired", "join.address_left"})


def exit_code(error: CocoError) -> int:
    """Exit code for an error."""
    if error.code in _LEFT:
        return LEFT
    return next((code for kind, code in _EXIT if isinstance(error, kind)), 1)


def explained(error: Exception) -> CocoError:
    """The error that a person is told for any exception that a command ended with."""
    match error:
        case CocoError():
            return error
        case ssl.SSLError():
            return ConfigurationError(
                f"a certificate or key is no such thing: {error.reason or error}",
                code="client.bad_certificate",
                hint="files are PEM, and a key is the one of its certificate",
            )
        case OSError() if error.errno in _DISK:
            return HostError(
                f"cannot write {error.filename or 'a file'}: {error.strerror}",
                code="host.disk",
                hint="make room on that disk, or choose another folder",
            )
        case OSError() if error.errno in _MACHINE or error.filename is None:
            return HostError(f"this machine cannot do it: {error}", code="host.error", hint="see coco doctor")
        case OSError():
            return ConfigurationError(
                f"{error.filename}: {error.strerror}",
                code="cli.bad_file",
                hint="give a path that is there, and that you may read and write",
            )
        case UnicodeError():
            return ConfigurationError(f"this is no text: {error}", code="cli.bad_text", hint="texts are UTF-8")
        case sqlite3.Error():
            return HostError(
                f"the ledger cannot be read: {error}", code="host.ledger_unreadable", hint="is the disk whole, or full?"
            )
    if os.environ.get("COCO_TRACEBACK"):
        traceback.print_exception(error)
    return FaultError(
        f"a fault of coco: {type(error).__name__}: {error}", hint="report it, with what COCO_TRACEBACK=1 prints"
    )


def report(error: CocoError, as_json: bool) -> int:
    """Tell an error; the exit code for it."""
    error.hint = error.hint or _HINTS.get(exit_code(error))
    with contextlib.suppress(OSError):  # where it should be printed there may be no room either
        if as_json:
            body = {"code": error.code, "message": str(error), **({"hint": error.hint} if error.hint else {})}
            print(json.dumps({"error": body}), flush=True)
        else:
            print(f"coco: {error.diagnostics()}".encode(errors="replace").decode(), file=sys.stderr, flush=True)
    return exit_code(error)


def fail(error: CocoError, as_json: bool) -> NoReturn:
    """Report an error and end."""
    raise typer.Exit(report(error, as_json))


def show(value: dict[str, Any], as_json: bool, text: Callable[[], None]) -> None:
    """Print a result: as JSON, or by ``text`` for a person."""
    if as_json:
        print(json.dumps(value, default=str))
    else:
        text()


@contextmanager
def working(what: str) -> Iterator[Callable[[str], None]]:
    """Show on a terminal that something is under way; the function given changes the text."""
    if not progress.is_terminal:
        yield lambda _: None
        return
    with progress.status(what) as status:
        yield status.update


def run(work: Coroutine[Any, Any, Any], as_json: bool) -> Any:
    """Run a coroutine and report its error."""
    try:
        return uvloop.run(work)
    except CocoError as error:
        fail(error, as_json)
