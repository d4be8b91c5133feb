"""What may be told of an exception: its kind and its place, never its text (H1)."""

from __future__ import annotations

from types import TracebackType


def place_of(error: BaseException | None) -> tuple[str, int]:
    """Module and line where an exception was raised."""
    trace: TracebackType | None = error.__traceback__ if error is not None else None
    module, line = "unknown", 0
    while trace is not None:
        module, line = str(trace.tb_frame.f_globals.get("__name__", "unknown")), trace.tb_lineno
        trace = trace.tb_next
    return module, line
