"""``coco doctor``: what this machine lacks, and how to get it."""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import platform
import resource
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from coco import limits
from coco.host.ports import outgoing

_LANDLOCK_CREATE_RULESET = 444
#: Where each platform shows itself to whoever runs on it.
_PLACES = {
    "/dev/attestation/quote": "sgx",
    "/dev/tdx_guest": "tdx",
    "/dev/sev-guest": "snp",
    "/dev/nsm": "nitro",
    "/dev/tpmrm0": "azure-vtpm, on Azure",
}


@dataclass(frozen=True)
class Finding:
    """One check."""

    name: str
    ok: bool
    needed: bool
    says: str
    hint: str = ""


def _system() -> Finding:
    machine = f"{platform.system()} {platform.release()} {platform.machine()}"
    ok = platform.system() == "Linux" and platform.machine() == "x86_64"
    return Finding("system", ok, True, machine, "platform virtual needs Linux on x86-64")


def _python() -> Finding:
    version = platform.python_version()
    return Finding("python", sys.version_info >= (3, 11), True, version, "install Python 3.11 or newer")


def _extension() -> Finding:
    try:
        from coco import _native
    except ImportError as error:
        return Finding("extension", False, True, str(error), "run `make build` (needs Rust 1.91 or newer)")
    return Finding("extension", True, True, f"coco._native {_native.__version__}")


def _seccomp() -> Finding:
    found = ctypes.util.find_library("seccomp")
    return Finding("libseccomp", found is not None, True, found or "missing", "install the package libseccomp2")


def _namespaces() -> Finding:
    code = "import ctypes,sys; sys.exit(ctypes.CDLL(None).unshare(0x10000000 | 0x20000 | 0x40000000) != 0)"
    done = subprocess.run([sys.executable, "-B", "-c", code], check=False)
    hint = "allow user namespaces: sysctl kernel.unprivileged_userns_clone=1, or an AppArmor profile that permits them"
    return Finding("user namespaces", done.returncode == 0, True, "open" if done.returncode == 0 else "refused", hint)


def _landlock() -> Finding:
    libc = ctypes.CDLL(None, use_errno=True)
    abi = libc.syscall(_LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint(1))
    says = f"abi {abi}" if abi > 0 else os.strerror(ctypes.get_errno())
    return Finding("landlock", abi > 0, False, says, "the lock-down works without it, with one wall less")


def _memory_lock() -> Finding:
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    ok = soft == resource.RLIM_INFINITY
    return Finding("locked memory", ok, False, str(soft), "raise memlock in limits.conf, else keys may reach swap")


def _descriptors() -> Finding:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 2 * limits.CONNECTIONS_MAX
    return Finding(
        "open files", hard >= needed, False, str(hard), f"{needed} serve {limits.CONNECTIONS_MAX} connections"
    )


def _sqlite() -> Finding:
    ok = sqlite3.sqlite_version_info >= (3, 37)
    return Finding("sqlite", ok, True, sqlite3.sqlite_version, "3.37 or newer is needed for STRICT tables")


def _port() -> Finding:
    with socket.socket() as probe:
        free = probe.connect_ex(("127.0.0.1", 8545)) != 0
    return Finding("port 8545", free, False, "free" if free else "taken", "choose another with `coco sandbox --port`")


def _outgoing_ports() -> Finding:
    given = outgoing()
    says = f"{given.start} to {given.stop - 1}: choose ports of nodes below" if given else "not said"
    return Finding("ports of outgoing connections", bool(given), False, says, "there is no /proc/sys/net")


def _tee() -> Finding:
    found = [f"{path} (--platform {name})" for path, name in _PLACES.items() if os.path.exists(path)]
    hint = "without a platform nothing is proven: INSECURE. See docs/tee.md for what was never run"
    return Finding("trusted execution", bool(found), False, ", ".join(found) or "none", hint)


CHECKS: tuple[Callable[[], Finding], ...] = (
    _system, _python, _extension, _seccomp, _namespaces, _landlock, _memory_lock, _descriptors, _sqlite, _port,
    _outgoing_ports, _tee,
)  # fmt: skip


def examine() -> list[dict[str, Any]]:
    """Run every check."""
    return [asdict(check()) for check in CHECKS]
