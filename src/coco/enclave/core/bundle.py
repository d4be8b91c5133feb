"""Which code runs: every module file and every executable mapping must lie in the bundle (H2), and its identity.

The bundle of platform ``virtual`` is the folders that the launcher named: standard library, packages, Coco.
"""

from __future__ import annotations

import sys
from hashlib import sha256
from pathlib import Path

from coco.errors import LockdownError

#: Loader, C library and what it loads by itself: part of the platform, not of the bundle.
_SYSTEM = ("/lib/", "/lib64/", "/usr/lib/", "[vdso]", "[vvar", "[vsyscall]")


def check(paths: list[str]) -> None:
    """Refuse a module or a mapping from elsewhere.

    Raises:
        LockdownError: ``lockdown.foreign_module`` or ``lockdown.foreign_mapping``.
    """
    roots = tuple(str(Path(path).resolve()) + "/" for path in paths)
    for name, module in sorted(sys.modules.items()):
        file = getattr(module, "__file__", None)
        cached = getattr(module, "__cached__", None)
        if name == "__main__" or file is None:
            continue
        if not str(Path(file).resolve()).startswith(roots):
            raise LockdownError(f"module {name} comes from elsewhere", code="lockdown.foreign_module")
        if cached is not None and not str(cached).startswith(str(sys.pycache_prefix)):
            raise LockdownError(f"module {name} has bytecode on the disk", code="lockdown.foreign_module")
    interpreter = (str(Path(sys.executable).resolve()), str(Path(sys.base_prefix).resolve()) + "/")
    allowed = roots + _SYSTEM + interpreter
    for mapping in Path("/proc/self/maps").read_text().splitlines():
        fields = mapping.split(maxsplit=5)
        if "x" in fields[1] and len(fields) == 6 and not fields[5].startswith(allowed):
            raise LockdownError(f"executable mapping {fields[5]}", code="lockdown.foreign_mapping")


def measurement() -> str:
    """Hex SHA-256 over every loaded module file: the code identity that platform ``virtual`` claims.

    A later version measures the whole bundle and the interpreter; nobody vouches for this one.
    """
    whole = sha256(b"coco virtual measurement v1")
    for name, module in sorted(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if name != "__main__" and file is not None and Path(file).is_file():
            whole.update(name.encode() + b"\0" + sha256(Path(file).read_bytes()).digest())
    return whole.hexdigest()
