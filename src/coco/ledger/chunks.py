"""Chunk files of the open format (docs/ledger-format.md, section 2): writing, and reading back entry by entry."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
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


def read_chunk(path: Path) -> Iterator[bytes]:
    """Yield the entries of one closed chunk.

    Raises:
        LedgerError: the file is damaged (``ledger.bad_chunk``).
    """
    data = path.read_bytes()
    if len(data) < _TABLE.size:
        raise LedgerError(f"{path.name} is too short", code="ledger.bad_chunk")
    (end,) = _TABLE.unpack_from(data)
    if not _TABLE.size <= end <= len(data) or (len(data) - end) % _OFFSET.size:
        raise LedgerError(f"{path.name} has no valid offset table", code="ledger.bad_chunk")
    offsets = [offset for (offset,) in _OFFSET.iter_unpack(data[end:])]
    for start, stop in zip(offsets, [*offsets[1:], end], strict=True):
        if not _TABLE.size <= start < stop <= end:
            raise LedgerError(f"{path.name} has a bad offset {start}", code="ledger.bad_chunk")
        yield data[start:stop]
