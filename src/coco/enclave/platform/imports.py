"""After the lock-down there is no file left to import from. Whatever is imported then is named, at once.

Rules:

* Everything that can be needed is loaded before (``process.py``). What a library loads when it is first asked for it,
  and nobody knew, fails as it would anyway; here it says which module it is, and who asked (``enclave.late_import``).
* A name may leave the enclave only if the bundle chose it and no client did (H1): the name of a module that is there.
* Each is told once: whoever finds a way to ask for one must not fill the host's log.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Callable, Iterable, Sequence
from importlib.machinery import BuiltinImporter, FrozenImporter, ModuleSpec
from types import ModuleType
from typing import Any, Final

#: What is told of a name that is no module's: it may be a client's word.
UNKNOWN: Final = "unknown"
#: Loaded by the interpreter, or by libraries in other languages, when something is first used: no source says so.
_HIDDEN: Final = (
    *("_strptime", "stringprep", "idna", "pwd", "grp"),
    *("encodings.idna", "encodings.punycode", "encodings.ascii", "encodings.latin_1", "encodings.cp1252"),
    *("encodings.utf_8_sig", "encodings.utf_16", "encodings.utf_16_le", "encodings.utf_16_be", "encodings.utf_7"),
    *("encodings.utf_32", "encodings.utf_32_le", "encodings.utf_32_be", "encodings.unicode_escape"),
    *("encodings.raw_unicode_escape", "encodings.hex_codec", "encodings.base64_codec", "encodings.charmap"),
    *("concurrent.futures.thread", "asyncio.taskgroups", "asyncio.timeouts", "asyncio.runners", "tracemalloc"),
    *("email.generator", "email.policy", "http.cookies", "importlib.readers", "importlib.resources"),
    *("starlette.formparsers", "starlette.responses", "starlette.routing", "starlette.concurrency"),
    *("anyio._backends._asyncio", "anyio.to_thread", "anyio.from_thread"),
)
#: Packages of which any part may be asked for; the extension inside imports by names that are in no source.
_WHOLE: Final = ("cryptography.x509", "cryptography.hazmat.primitives", "cryptography.hazmat.bindings")
#: Parts that need what a bundle has not.
_NOT: Final = ("cryptography.hazmat.primitives.serialization.ssh",)


def preload() -> None:
    """Load what is loaded late otherwise; what is not installed cannot be needed."""
    for name in (*_HIDDEN, *_below(_WHOLE)):
        if name not in _NOT and importlib.util.find_spec(name.partition(".")[0]) is not None:
            importlib.import_module(name)


def _below(packages: Iterable[str]) -> Iterable[str]:
    for package in packages:
        found = importlib.import_module(package)
        yield from (one.name for one in pkgutil.walk_packages(found.__path__, f"{package}."))


class Late:
    """Stands where files were looked for, and tells what is asked of it."""

    def __init__(self) -> None:
        self._told: dict[str, str] = {}
        self._tell: Callable[[str, str], None] | None = None
        known = (name.partition(".")[0] for name in (*sys.modules, *sys.stdlib_module_names))
        self._tops = frozenset(known)
        codecs = importlib.import_module("encodings")
        self._codecs = frozenset(f"encodings.{one.name}" for one in pkgutil.iter_modules(codecs.__path__))

    def seal(self) -> None:
        """From now on nothing is imported; call it before the lock-down, so that forked processes have it too."""
        sys.meta_path[:] = [BuiltinImporter, FrozenImporter, self]

    def hear(self, tell: Callable[[str, str], None]) -> None:
        """Give every late import, those before this call too, to ``tell``: the module, and who asked for it."""
        self._tell = tell
        for name, by in self._told.items():
            tell(name, by)

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """As an import asks; there is never one."""
        if self._is_no_module(name):
            return None  # a codec that never was: the interpreter asks for it by a client's word
        shown = name if name.isascii() and name.partition(".")[0] in self._tops else UNKNOWN
        if shown not in self._told:
            self._told[shown] = by = _caller()
            if self._tell is not None:
                self._tell(shown, by)
        raise ModuleNotFoundError(f"{name} is imported after the lock-down", name=name)

    def _is_no_module(self, name: str) -> bool:
        return name.startswith("encodings.") and name not in self._codecs


def _caller() -> str:
    """The module that asks, which is not part of the import itself."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        found = str(frame.f_globals.get("__name__", ""))
        if found != __name__ and not found.startswith(("importlib", "encodings")):
            return found
        frame = frame.f_back
    return UNKNOWN
