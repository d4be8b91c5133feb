"""Files that a client must not lose half of."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def write_whole(path: Path, document: Any) -> None:
    """Write a document as JSON, whole or not at all, and on the disk when this returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".part")
    with partial.open("w") as out:
        json.dump(document, out, indent=1)
        out.flush()
        os.fsync(out.fileno())
    partial.replace(path)
