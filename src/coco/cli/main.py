"""Where the ``coco`` command begins, and how it ends by Ctrl-C: at once, with 130 and without a word.

Rules: nothing is imported here that takes time, for what a person interrupts first is the import of everything else;
and nothing of Coco runs before SIGINT is one that a command can clean up after.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

INTERRUPTED = 130


def _end(number: int, frame: FrameType | None) -> None:
    os._exit(INTERRUPTED)  # there is nothing to clean up, and whatever is half imported must not be run


def _set(handler: object, to: object) -> None:
    """Have SIGINT handled otherwise, unless whoever started this has it ignored."""
    if signal.getsignal(signal.SIGINT) is handler:
        signal.signal(signal.SIGINT, to)  # type: ignore[arg-type]


def main(arguments: list[str] | None = None) -> int:
    """Entry point: run a command; the exit code.

    Args:
        arguments: as a program gives them, whose signals stay its own; of this process if there are none.
    """
    if arguments is not None:
        from coco.cli import commands

        return commands.main(arguments)
    _set(signal.default_int_handler, _end)
    from coco.cli import commands

    try:
        _set(_end, signal.default_int_handler)
        code = commands.main(sys.argv[1:])
    except KeyboardInterrupt:
        code = INTERRUPTED
    _set(signal.default_int_handler, _end)
    # Python remembers an interrupt that has ended any `exec`, as libraries use it, and would end by a signal for it
    # though it was handled; the next one makes it forget.
    exec("")  # noqa: S102
    return code


if __name__ == "__main__":
    sys.exit(main())
