"""First code of the enclave process: check how it was started, import everything, lock the door, then listen.

Runs as a script, because at this point nothing of Coco is importable. Order (H2): start conditions ->
module path -> imports -> bundle check -> lock-down -> first outside byte.
"""

import os
import sys

ENVIRONMENT_ALLOWED = {"LC_ALL": "C.UTF-8"}
PURPOSES = ("control", "application", "administration", "peers", "dialled")
BACKLOG = 4096


def _refuse(reason: str) -> None:
    os.write(2, f"coco enclave: refused to start: {reason}\n".encode())
    os._exit(78)


def check_start() -> None:
    """Refuse an interpreter that could run anything but the bundle."""
    flags = sys.flags
    if not (flags.isolated and flags.no_site and flags.dont_write_bytecode):
        _refuse("lockdown.interpreter_flags: it needs -I -S -B")
    if not sys.pycache_prefix or not os.path.isdir(sys.pycache_prefix) or os.listdir(sys.pycache_prefix):
        _refuse("lockdown.bytecode: pycache_prefix must name an empty folder")
    extra = {name for name, value in os.environ.items() if ENVIRONMENT_ALLOWED.get(name) != value}
    if extra:
        _refuse(f"lockdown.environment: {sorted(extra)[0]} is set")


def listen(address: str) -> dict[str, int]:
    """Descriptors for an enclave that inherits none: of the control channel, once the host is there, and of listeners.

    Args:
        address: ``tcp:HOST:PORT`` or ``vsock:PORT``; the listeners have the ports after it, as ``PURPOSES`` has them.
    """
    import socket

    kind, _, place = address.partition(":")
    host, _, first = place.rpartition(":")
    found, family = {}, socket.AF_INET if kind == "tcp" else socket.AF_VSOCK
    for number, name in enumerate(PURPOSES):
        listener = socket.socket(family)
        if kind == "tcp":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host if kind == "tcp" else socket.VMADDR_CID_ANY, int(first) + number))
        listener.listen(1 if name == "control" else BACKLOG)
        found[name] = listener
    # There is one host, and it comes once.
    control, _ = found["control"].accept()
    found["control"].close()
    return {name: listener.detach() for name, listener in {**found, "control": control}.items()}


def main() -> None:
    """Boot the enclave."""
    check_start()
    arguments = dict(argument.split("=", 1) for argument in sys.argv[1:])
    sys.path[:] = arguments.pop("--path").split(os.pathsep)
    chosen = {name: arguments.pop(f"--{name}") for name in ("adapters", "platform", "root")}
    address = arguments.pop("--listens", "")
    sockets = listen(address) if address else {name: int(descriptor) for name, descriptor in arguments.items()}
    from coco.enclave.node import process

    process.run(sockets, sys.path[:], **chosen)


if __name__ == "__main__":
    main()
