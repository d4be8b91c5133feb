"""Files that a client must not lose half of."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def write_whole(path: Path, document: Any) -> None:
    """Write a document as JSON, whole or not at all, and on the disk when this returns."""
    write_bytes_whole(path, json.dumps(document, indent=1).encode())


def write_bytes_whole(path: Path, data: bytes) -> None:
    """The same of bytes as they are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".part")
    with partial.open("wb") as out:
        out.write(data)
        out.flush()
        os.fsync(out.fileno())
    partial.replace(path)
