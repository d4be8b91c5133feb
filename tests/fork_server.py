"""A process that has imported everything and forks on request: ``python fork_server.py SOCKET KIND OWNER [FOLDER...]``.

Importing takes most of the time that a command, an enclave or the independent reader needs to start, and tests start
hundreds. Each is a process of its own all the same, with the descriptors, environment, folder and arguments that it
would have had (``forks.py`` asks). With its owner, a process, this one ends, and so does whatever it has forked.

What is imported here and by no enclave would change their measurement: nothing is that an enclave does not import.
"""

import contextlib
import fcntl
import json
import os
import select
import signal
import socket
import struct
import sys

_HEADER = struct.Struct("<i")
_DESCRIPTORS_MAX = 64


def prepare(kind, folders):
    """Import what a process of this kind runs; returns what runs it."""
    if kind == "command":
        import forks
        from coco.cli import commands  # noqa: F401 - what the entry point imports by itself
        from coco.cli import main as command

        forks.install()
        return lambda: sys.exit(command.main())
    if kind == "enclave":
        sys.path[:] = folders
        from coco.enclave.node import process  # noqa: F401
        from coco.enclave.platform import imports

        imports.preload()
    else:
        import ccf.cose
        import ccf.ledger
        import ccf.receipt  # noqa: F401
    return run_file


def run_file():
    """Run the file that is the first argument, as the interpreter does."""
    with open(sys.argv[0], "rb") as file:
        code = compile(file.read(), sys.argv[0], "exec")
    exec(code, {"__name__": "__main__", "__builtins__": __builtins__, "__file__": sys.argv[0]})


def receive(connection):
    """A request and the descriptors that come with it; no request if whoever asks has gone."""
    head, descriptors, _, _ = socket.recv_fds(connection, _HEADER.size, _DESCRIPTORS_MAX)
    size, body = _HEADER.unpack(head)[0] if len(head) == _HEADER.size else 0, b""
    while len(body) < size and (part := connection.recv(size - len(body))):
        body += part
    return json.loads(body) if size and len(body) == size else None, descriptors


def become(asked, descriptors):
    """Be, in the forked process, what was asked for, once whoever asked says so."""
    highest = max(*asked["descriptors"], *map(int, os.listdir("/proc/self/fd")))
    go, *given = (fcntl.fcntl(descriptor, fcntl.F_DUPFD, highest + 1) for descriptor in descriptors)
    os.closerange(0, highest + 1)
    for descriptor, number in zip(given, asked["descriptors"], strict=True):
        os.dup2(descriptor, number)
        os.close(descriptor)
    if asked["new_session"]:
        os.setsid()
    os.chdir(asked["folder"])
    if asked["module"]:
        sys.path[0] = asked["folder"]  # as -m has it
    os.environ.clear()
    os.environ.update(asked["environment"])
    sys.argv[:] = asked["arguments"]
    os.read(go, 1)
    os.close(go)


class Server:
    """Forks, and tells whoever asked how each process ended."""

    def __init__(self, listener, owner):
        self._listener, self._owner = listener, os.pidfd_open(owner)
        self._poll = select.poll()
        self._poll.register(listener, select.POLLIN)
        self._poll.register(self._owner, select.POLLIN)
        # Of each process: a descriptor that is readable once it ended, its number, and who asked for it.
        self._forked = {}
        self._asked = {}

    def serve(self):
        """What to become, in a process that was forked; in this one, never."""
        while True:
            for ready, _ in self._poll.poll():
                if ready == self._owner:
                    for pid, _ in self._forked.values():
                        os.kill(pid, signal.SIGKILL)
                    os._exit(0)
                if ready == self._listener.fileno():
                    asked = self._accept()
                    if asked is not None:
                        return asked
                elif ready in self._forked:
                    self._ended(ready)
                elif ready in self._asked:
                    self._deserted(ready)

    def _accept(self):
        connection, _ = self._listener.accept()
        asked, descriptors = receive(connection)
        pid = os.fork() if asked is not None else -1
        if pid == 0:
            return asked, descriptors
        for descriptor in descriptors:
            os.close(descriptor)
        if pid > 0:
            end = os.pidfd_open(pid)
            self._forked[end] = pid, connection
            self._poll.register(end, select.POLLIN)
            connection.sendall(_HEADER.pack(pid))
            if asked["with_asker"]:
                self._asked[connection.fileno()] = pid
                self._poll.register(connection, select.POLLIN)
        return None

    def _ended(self, end):
        pid, connection = self._forked.pop(end)
        _, status = os.waitpid(pid, 0)
        self._poll.unregister(end)
        os.close(end)
        if self._asked.pop(connection.fileno(), None):
            self._poll.unregister(connection)
        with contextlib.suppress(OSError):  # who asked may have gone
            connection.sendall(_HEADER.pack(status))
        connection.close()

    def _deserted(self, connection):
        """An enclave dies with its host."""
        os.kill(self._asked.pop(connection), signal.SIGKILL)
        self._poll.unregister(connection)


def main():
    """Import, serve, and in a forked process run."""
    address, kind, owner, *folders = sys.argv[1:]
    run = prepare(kind, folders)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address + ".new")
    listener.listen(64)
    os.rename(address + ".new", address)
    become(*Server(listener, int(owner)).serve())
    run()


main()
