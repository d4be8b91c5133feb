"""Identity of code: SHA-256 over every file of a folder with its name; a list in the folder says which there are (H3).

A *bundle* is a folder with everything that a node runs but the system's own libraries: interpreter, standard library,
packages, Coco. Its list is written when it is built, and an enclave that begins in it compares every file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Final

from coco.errors import LockdownError

#: The list, at the root of a bundle.
LIST: Final = "bundle.json"


def hashes(folder: Path, *, compiled: bool = True) -> dict[str, str]:
    """Hex SHA-256 of every file below a folder but the list.

    Args:
        folder: where.
        compiled: whether to take compiled Python, which no enclave ever reads, but no bundle has either.

    Raises:
        LockdownError: something is neither a file nor a folder, as a link is (``lockdown.bundle``).
    """
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise LockdownError(f"{name} is no file", code="lockdown.bundle")
        if path.is_file() and name != LIST and (compiled or "__pycache__" not in path.parts):
            found[name] = sha256(path.read_bytes()).hexdigest()
    return found


def identity(files: Mapping[str, str]) -> str:
    """Hex SHA-256 over names and hashes of files."""
    whole = sha256(b"coco code v1")
    for name, digest in sorted(files.items()):
        whole.update(name.encode() + b"\0" + bytes.fromhex(digest))
    return whole.hexdigest()


def write_list(folder: Path) -> str:
    """Make a folder a bundle; its identity."""
    files = hashes(folder)
    (folder / LIST).write_text(json.dumps({"files": files}, indent=0, sort_keys=True) + "\n")
    return identity(files)


def check(folder: Path) -> str:
    """Identity of a bundle, once every file is compared with the list.

    Raises:
        LockdownError: a file is gone, another one, or not in the list (``lockdown.bundle``).
    """
    try:
        listed = json.loads((folder / LIST).read_text())["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LockdownError(f"the bundle has no list: {error}", code="lockdown.bundle") from error
    found = hashes(folder)
    if found != listed:
        names = sorted(name for name in {*found, *listed} if found.get(name) != listed.get(name))
        raise LockdownError(f"{names[0]} is not what the bundle's list says", code="lockdown.bundle")
    return identity(found)


def bundle_of(package: Path) -> Path | None:
    """The bundle that a package lies in, if it does: its packages are in one folder at the root."""
    root = package.parent.parent
    return root if (root / LIST).is_file() else None
