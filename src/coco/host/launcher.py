"""Start an enclave process on this machine: inherited sockets, no environment, isolated interpreter (H2)."""

from __future__ import annotations

import os
import resource
import socket
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import coco
from coco import code_identity

#: The only environment that an enclave accepts (coco.enclave.core.bundle checks the same list).
ENVIRONMENT = {"LC_ALL": "C.UTF-8"}
#: The platform that is none.
VIRTUAL = "insecure_virtual"
#: Streams that may wait for the enclave to accept them.
BACKLOG = 4096
#: One for each purpose; behind ``dialled`` the host connects what it has dialled for the enclave.
LISTENERS = ("application", "administration", "peers", "dialled")


@dataclass
class EnclaveProcess:
    """A running enclave and the host's ends of its sockets."""

    process: subprocess.Popen[bytes]
    control: socket.socket
    #: Path of the local socket of each listener of ``LISTENERS``.
    listeners: dict[str, Path]
    directory: tempfile.TemporaryDirectory[str]

    def close(self) -> None:
        """Kill the process if it still runs and remove the sockets."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.control.close()
        self.directory.cleanup()


def module_path(bundle: Path | None) -> list[str]:
    """Directories from which the enclave imports: standard library, installed packages, Coco itself."""
    paths = sysconfig.get_paths()
    standard = [paths["stdlib"], str(Path(paths["stdlib"]) / "lib-dynload")]
    if bundle is not None:
        return [*standard, str(bundle / "packages")]
    packages = list(dict.fromkeys([paths["purelib"], paths["platlib"]]))
    source = str(Path(coco.__file__).parent.parent)
    return list(dict.fromkeys([*standard, source, *packages]))


def launch(
    *,
    adapters: Mapping[str, str],
    platform: str = VIRTUAL,
    extra_path: Sequence[str] = (),
    nested_log: int | None = None,
) -> EnclaveProcess:
    """Start an enclave: of no platform, or within the guest of one.

    ``adapters`` names each adapter's factory as ``module:attribute``; they are imported before lock-down.

    ``nested_log`` is a descriptor for the enclave's standard error before lock-down, for diagnosis of a failed start;
    afterwards it leads nowhere.
    """
    bundle = code_identity.bundle_of(Path(coco.__file__).parent)
    # Every connection takes two descriptors here and one in the enclave, which inherits the limit.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    directory = tempfile.TemporaryDirectory(prefix="coco-")
    ours, theirs = socket.socketpair()
    listeners: dict[str, Path] = {}
    inherited: dict[str, socket.socket] = {"control": theirs}
    for name in LISTENERS:
        path = Path(directory.name) / name
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen(BACKLOG)
        listeners[name] = path
        inherited[name] = listener
    empty = Path(directory.name) / "no-bytecode"
    empty.mkdir()
    boot = Path(coco.__file__).parent / "enclave" / "boot.py"
    sockets = [f"{name}={sock.fileno()}" for name, sock in inherited.items()]
    # -P has no meaning beside -I; -B and an empty prefix keep a swapped .pyc from running.
    command = [sys.executable, "-I", "-S", "-B", "-X", f"pycache_prefix={empty}", str(boot)]
    command += [
        f"--platform={platform}",
        f"--root={bundle or ''}",
        "--path=" + os.pathsep.join([*module_path(bundle), *extra_path]),
        "--adapters=" + ",".join(f"{name}:{factory}" for name, factory in adapters.items()),
        *sockets,
    ]
    process = subprocess.Popen(
        command,
        env=ENVIRONMENT,
        pass_fds=[sock.fileno() for sock in inherited.values()],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL if nested_log is None else nested_log,
        start_new_session=True,
    )
    for sock in inherited.values():
        sock.close()
    return EnclaveProcess(process, ours, listeners, directory)
