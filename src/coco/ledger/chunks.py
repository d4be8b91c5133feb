"""Chunk files of the open format (docs/ledger-format.md, section 2): writing."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from pathlib import Path

from coco.errors import LedgerError

_TABLE = struct.Struct("<Q")
_OFFSET = struct.Struct("<I")


def write_chunk(directory: Path, first: int, entries: Iterable[bytes]) -> Path:
    """Write ``entries``, the first with seqno ``first``, as one committed chunk that ends on a signature entry."""
    kept = list(entries)
    if not kept:
        raise LedgerError("a chunk has at least one entry", code="ledger.empty_chunk")
    path = directory / f"ledger_{first}-{first + len(kept) - 1}.committed"
    offsets, at = [], _TABLE.size
    for entry in kept:
        offsets.append(at)
        at += len(entry)
    partial = path.with_suffix(".part")
    with partial.open("wb") as out:
        out.write(_TABLE.pack(at))
        out.writelines(kept)
        out.writelines(_OFFSET.pack(offset) for offset in offsets)
    partial.replace(path)
    return path
