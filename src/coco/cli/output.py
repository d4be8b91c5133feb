"""How every command speaks: a person reads stdout, a program reads ``--json``, progress goes to stderr.

Exit codes (documented in docs/cli.md): 0 done, 1 refused by a node or a rule, 2 wrong usage, 3 this machine or file
cannot do it, 4 not verified, 70 a fault of Coco.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import typer
import uvloop
from rich.console import Console

from coco.errors import AttestationError, CocoError, ConfigurationError, HostError, LedgerError, LockdownError

console = Console(highlight=False, soft_wrap=True)
progress = Console(stderr=True, highlight=False)

_EXIT: list[tuple[type[CocoError], int]] = [
    (AttestationError, 4),
    (LedgerError, 4),
    (HostError, 3),
    (LockdownError, 3),
    (ConfigurationError, 2),
]


def exit_code(error: CocoError) -> int:
    """Exit code for an error."""
    return next((code for kind, code in _EXIT if isinstance(error, kind)), 1)


def fail(error: CocoError, as_json: bool) -> NoReturn:
    """Report an error and end."""
    if as_json:
        body = {"code": error.code, "message": str(error), **({"hint": error.hint} if error.hint else {})}
        print(json.dumps({"error": body}))
    else:
        print(f"coco: {error.diagnostics()}", file=sys.stderr)
    raise typer.Exit(exit_code(error))


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
