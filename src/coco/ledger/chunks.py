"""Chunk files of the open format (docs/ledger-format.md, section 2): writing, and reading what others wrote.

A file that is read may be anything: its sizes are compared with the file's before anything is allocated, and whatever
does not fit is refused with the file and the entry named.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

from coco import limits
from coco.errors import LedgerError

_TABLE = struct.Struct("<Q")
_OFFSET = struct.Struct("<I")
_NAME = re.compile(r"ledger_([0-9]{1,19})-([0-9]{1,19})\.committed")
#: Version and flags of an entry, and the size of its rest in 48 bits.
_HEADER_BYTES, _SIZE_AT = 8, 2


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


def read_chunks(directory: Path) -> Iterator[tuple[int, bytes]]:
    """Every entry of the committed chunks in a folder, with its number, in order.

    Raises:
        LedgerError: a file is no chunk (``ledger.bad_chunk``), or one is missing (``ledger.gap``).
    """
    named = ((_NAME.fullmatch(path.name), path) for path in directory.iterdir())
    found = sorted((int(name[1]), int(name[2]), path) for name, path in named if name)
    expected = 1
    for first, last, path in found:
        if first != expected:
            raise LedgerError(f"entry {expected} is missing", code="ledger.gap", numbers={"entry": expected})
        yield from _entries(path, first, last)
        expected = last + 1


def _entries(path: Path, first: int, last: int) -> Iterator[tuple[int, bytes]]:
    def refuse(seqno: int, why: str) -> LedgerError:
        return LedgerError(f"{path.name}: entry {seqno}: {why}", code="ledger.bad_chunk", numbers={"entry": seqno})

    size = path.stat().st_size
    with path.open("rb") as chunk:
        head = chunk.read(_TABLE.size)
        (table,) = _TABLE.unpack(head) if len(head) == _TABLE.size else (0,)
        if last < first or size - table != _OFFSET.size * (last - first + 1):
            raise refuse(first, "the file does not hold as many entries as its name says")
        at = _TABLE.size
        for seqno in range(first, last + 1):
            header = chunk.read(_HEADER_BYTES)
            rest = int.from_bytes(header[_SIZE_AT:], "little")
            if len(header) < _HEADER_BYTES or at + _HEADER_BYTES + rest > table:
                raise refuse(seqno, "it is longer than its file")
            if _HEADER_BYTES + rest > limits.ENTRY_BYTES_MAX:
                raise refuse(seqno, f"it is longer than {limits.ENTRY_BYTES_MAX} bytes")
            yield seqno, header + chunk.read(rest)
            at += _HEADER_BYTES + rest
        if at != table:
            raise refuse(last, "something follows the last entry")
