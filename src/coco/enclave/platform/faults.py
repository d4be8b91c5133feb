"""What nobody expected: counted, and told by its kind and its place, never by its text (H1)."""

from __future__ import annotations

import re
from collections.abc import Callable
from types import TracebackType

from coco.errors import CocoError

_OTHERS = re.compile(r"[^0-9a-zA-Z_.:-]")
_ID_CHARACTERS_MAX = 128


def place_of(error: BaseException | None) -> tuple[str, int]:
    """Module and line where an exception was raised."""
    trace: TracebackType | None = error.__traceback__ if error is not None else None
    module, line = "unknown", 0
    while trace is not None:
        module, line = str(trace.tb_frame.f_globals.get("__name__", "unknown")), trace.tb_lineno
        trace = trace.tb_next
    return module, line


def described(error: BaseException | None) -> tuple[dict[str, int], dict[str, str]]:
    """Numbers and ids of a line of the log: where an exception was raised, and of which kind it is."""
    module, line = place_of(error)
    kind = type(error).__name__ if error is not None else "unknown"
    # Whoever wrote the class or the module may have named it in any script; a line of the log takes none but these.
    return {"line": line}, {"module": _plain(module), "kind": _plain(kind)}


def _plain(name: str) -> str:
    return _OTHERS.sub("_", name)[:_ID_CHARACTERS_MAX]


class Faults:
    """Those of one process.

    Args:
        ended: ends the process, with a reason.
        log: takes an event with its numbers and ids.
    """

    def __init__(self, ended: Callable[[BaseException | None], None], log: Callable[..., None]) -> None:
        self._ended, self._log = ended, log
        #: How many there were.
        self.count = 0

    def unexpected(self, error: BaseException | None) -> None:
        """An exception that nobody expected: its code and place go to the log; a host's lie ends the enclave."""
        if isinstance(error, CocoError) and error.code.startswith("channel."):
            self._ended(error)
            return
        self.count += 1
        self._log("enclave.unexpected", *described(error))

    def late_import(self, module: str, by: str) -> None:
        """Something asked for a module that was not loaded before the lock-down: what needed it fails."""
        self.count += 1
        self._log("enclave.late_import", {}, {"module": _plain(module), "by": _plain(by)})
