"""Which code runs: every module file and every executable mapping must lie where it may (H2), and its identity (H3).

In a bundle every file is compared with its list. A development installation has none: there the folders that the
launcher named are the bundle (standard library, packages, Coco), and what was loaded of them is the identity.
"""

from __future__ import annotations

import ssl
import sys
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

from coco import code_identity
from coco.errors import LockdownError

#: Loader, C library and what it loads by itself: part of the platform, not of the bundle.
_SYSTEM = ("/lib/", "/lib64/", "/usr/lib/", "[vdso]", "[vvar", "[vsyscall]")


def check(paths: list[str], bundle: Path | None) -> None:
    """Refuse a module or a mapping from elsewhere.

    Args:
        paths: folders that may be imported from; in a bundle it is the bundle alone.
        bundle: its root.

    Raises:
        LockdownError: ``lockdown.foreign_module`` or ``lockdown.foreign_mapping``.
    """
    folders = [str(bundle)] if bundle is not None else paths
    roots = tuple(str(Path(path).resolve()) + "/" for path in folders)
    for name, module in sorted(sys.modules.items()):
        file = getattr(module, "__file__", None)
        cached = getattr(module, "__cached__", None)
        if name == "__main__" or file is None:
            continue
        if not str(Path(file).resolve()).startswith(roots):
            raise LockdownError(f"module {name} comes from elsewhere", code="lockdown.foreign_module")
        if cached is not None and not str(cached).startswith(str(sys.pycache_prefix)):
            raise LockdownError(f"module {name} has bytecode on the disk", code="lockdown.foreign_module")
    allowed = roots + _SYSTEM
    if bundle is None:
        allowed += (str(Path(sys.executable).resolve()), str(Path(sys.base_prefix).resolve()) + "/")
    for mapping in _mappings():
        if not mapping.startswith(allowed):
            raise LockdownError(f"executable mapping {mapping}", code="lockdown.foreign_mapping")


def _mappings() -> list[str]:
    """What is mapped to be executed, by name."""
    lines = (line.split(maxsplit=5) for line in Path("/proc/self/maps").read_text().splitlines())
    return sorted({fields[5] for fields in lines if "x" in fields[1] and len(fields) == 6})


def measurement(bundle: Path | None, files: Sequence[Path] = ()) -> str:
    """Hex SHA-256 over the code: what platform ``virtual`` claims, and nobody vouches for.

    Over the identity of the bundle, or in a development installation every loaded module; and over the interpreter,
    every shared library that is loaded, and the configuration that the system's OpenSSL reads.

    Args:
        bundle: its root.
        files: what programs may read and run that are started later (``children.py``).

    Raises:
        LockdownError: the bundle is not what its list says (``lockdown.bundle``), or a program's file is neither in it
            nor the system's (``lockdown.foreign_program``).
    """
    whole = sha256(b"coco virtual measurement v2")
    parts = [Path(sys.executable).resolve(), *(Path(name) for name in _mappings() if name.startswith("/"))]
    if (openssl := Path(ssl.get_default_verify_paths().openssl_cafile).with_name("openssl.cnf")).is_file():
        parts.append(openssl)
    if bundle is not None:
        whole.update(bytes.fromhex(code_identity.check(bundle)))
    else:
        for name, module in sorted(sys.modules.items()):
            file = getattr(module, "__file__", None)
            if name != "__main__" and file is not None and Path(file).is_file():
                whole.update(name.encode() + b"\0" + sha256(Path(file).read_bytes()).digest())
    for file in files:
        if bundle is not None and not str(file).startswith((str(bundle.resolve()) + "/", *_SYSTEM)):
            raise LockdownError(f"{file} comes from elsewhere", code="lockdown.foreign_program")
        whole.update(b"program\0" + str(file).encode() + b"\0" + _hash(file))
    for part in sorted(set(parts), key=lambda part: (part.name, str(part))):
        whole.update(part.name.encode() + b"\0" + _hash(part))
    return whole.hexdigest()


def _hash(path: Path) -> bytes:
    try:
        return sha256(path.read_bytes()).digest()
    except OSError as error:
        raise LockdownError(f"executable mapping {path}: {error}", code="lockdown.foreign_mapping") from error
