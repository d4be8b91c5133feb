"""Start an enclave process on this machine: inherited sockets, no environment, isolated interpreter (H2).

Or reach one that somebody else has started: under Gramine, whose processes inherit no sockets, or in a virtual machine
of its own. It listens on one port for the control channel, and on the ports after it for each purpose.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import resource
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import coco
from coco import code_identity
from coco.errors import HostError
from coco.host.folder import TemporaryFolder

#: The only environment that an enclave accepts (coco.enclave.platform.bundle checks the same list).
ENVIRONMENT = {"LC_ALL": "C.UTF-8"}
#: The platform that is none.
VIRTUAL = "insecure_virtual"
#: An enclave of another process takes a while to start: in SGX, minutes.
_REACH_SECONDS, _REACH_AGAIN_S = 300.0, 0.2
#: Streams that may wait for the enclave to accept them.
BACKLOG = 4096
_PORT_MAX = 65_535
#: One for each purpose; behind ``dialled`` the host connects what it has dialled for the enclave.
LISTENERS = ("application", "administration", "peers", "dialled")


@dataclass
class Enclave:
    """A running enclave and the host's end of its control channel."""

    control: socket.socket
    #: Where each listener of ``LISTENERS`` is, as :func:`connect` takes it.
    listeners: dict[str, str]
    #: Of an enclave that this host has started.
    process: subprocess.Popen[bytes] | None = None
    directory: TemporaryFolder | None = None

    def close(self) -> None:
        """End it: its control channel closes, and a process of this host is killed if it still runs."""
        if self.process is not None:
            if self.process.poll() is None:
                self.process.kill()
            self.process.wait()
        self.control.close()
        if self.directory is not None:
            self.directory.close()


def take_turns() -> None:
    """Have this thread, and every thread and process that it begins, not interrupt others when it is woken.

    A request passes four threads. One that interrupts another as soon as it is woken finds one request to do, and one
    that waits for its turn finds ten: on two busy cores that is a fifth more transactions (``bench/ethereum.py``). With
    a core to spare nothing changes.
    """
    # A container may forbid it; then it is as it was.
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def place(address: str) -> tuple[socket.AddressFamily, Any]:
    """Family and address of an enclave's listener: ``tcp:HOST:PORT``, ``vsock:CID:PORT`` or a path.

    Raises:
        HostError: it is none (``host.bad_enclave``).
    """
    kind, _, rest = address.partition(":")
    if kind not in ("tcp", "vsock"):
        return socket.AF_UNIX, address
    machine, _, port = rest.rpartition(":")
    try:
        if kind == "tcp" and ipaddress.ip_address(machine).is_loopback:
            return socket.AF_INET if "." in machine else socket.AF_INET6, (machine.strip("[]"), int(port))
        if kind == "vsock":
            return socket.AF_VSOCK, (int(machine), int(port))
    except ValueError:
        pass
    raise _no_enclave(address)


def _no_enclave(address: str) -> HostError:
    return HostError(
        f"no enclave listens at {address[:200]}",
        code="host.bad_enclave",
        hint="tcp:127.0.0.1:PORT or vsock:CID:PORT, and the ports after it are the enclave's too",
    )


async def reach(address: str) -> Enclave:
    """Connect to an enclave that somebody else starts, and wait for it if it does not listen yet.

    Raises:
        HostError: it is not there (``host.no_enclave``).
    """
    loop, (family, at) = asyncio.get_running_loop(), place(address)
    if family is socket.AF_UNIX or not 0 < at[1] <= _PORT_MAX - len(LISTENERS):
        raise _no_enclave(address)
    machine, _, first = address.rpartition(":")
    listeners = {name: f"{machine}:{int(first) + number}" for number, name in enumerate(LISTENERS, 1)}
    until = loop.time() + _REACH_SECONDS
    while True:
        control = socket.socket(family)
        control.setblocking(False)
        try:
            async with asyncio.timeout(max(0.0, until - loop.time())):
                await loop.sock_connect(control, at)
            return Enclave(control, listeners)
        except (OSError, OverflowError) as error:  # a timeout is one; a number may be no machine's
            control.close()
            if loop.time() >= until:
                raise HostError(f"no enclave listens at {address}: {error}", code="host.no_enclave") from error
            await asyncio.sleep(_REACH_AGAIN_S)


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
) -> Enclave:
    """Start an enclave: of no platform, or within the guest of one.

    ``adapters`` names each adapter's factory as ``module:attribute``; they are imported before lock-down.

    ``nested_log`` is a descriptor for the enclave's standard error before lock-down, for diagnosis of a failed start;
    afterwards it leads nowhere.
    """
    bundle = code_identity.bundle_of(Path(coco.__file__).parent)
    # Every connection takes two descriptors here and one in the enclave, which inherits the limit.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    directory = TemporaryFolder("coco-")
    ours, theirs = socket.socketpair()
    listeners: dict[str, str] = {}
    inherited: dict[str, socket.socket] = {"control": theirs}
    for name in LISTENERS:
        path = Path(directory.name) / name
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen(BACKLOG)
        listeners[name] = str(path)
        inherited[name] = listener
    empty = Path(directory.name) / "no-bytecode"
    empty.mkdir()
    boot = Path(coco.__file__).parent / "enclave" / "node" / "boot.py"
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
    return Enclave(ours, listeners, process, directory)
