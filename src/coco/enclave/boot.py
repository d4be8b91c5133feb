"""First code of the enclave process: check how it was started, import everything, lock the door, then listen.

Runs as a script, because at this point nothing of Coco is importable. Order (H2): start conditions ->
module path -> imports -> bundle check -> lock-down -> first outside byte.
"""

import os
import sys

ENVIRONMENT_ALLOWED = {"LC_ALL": "C.UTF-8"}


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


def main() -> None:
    """Boot the enclave."""
    check_start()
    arguments = dict(argument.split("=", 1) for argument in sys.argv[1:])
    sys.path[:] = arguments.pop("--path").split(os.pathsep)
    chosen = {name: arguments.pop(f"--{name}") for name in ("adapters", "platform", "root")}
    sockets = {name: int(descriptor) for name, descriptor in arguments.items()}
    from coco.enclave import process

    process.run(sockets, sys.path[:], **chosen)


if __name__ == "__main__":
    main()
