"""A child's keeper: forked before any key is there, it makes the child, passes on what is asked, and replaces it.

Rules:

* The keeper runs none of the adapter's code. It reads from the child with a deadline and a bound, ends it when either
  is passed, and makes a fresh one; it ends itself, and the child with it, when the enclave is gone.
* The child has one process, its two pipes, and nothing else: neither the enclave's socket nor another child.
* A message is ``u32`` length, one letter, bytes. From the enclave: a question, a reply, or "end it"; from the child:
  its answer, a question back, or that it failed. What the child sends while nothing is asked is thrown away with it.
"""

from __future__ import annotations

import errno
import os
import resource
import select
import signal
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, NoReturn

from coco import limits
from coco.enclave.platform import forked

QUESTION, REPLY, END = b"q", b"r", b"k"
ANSWER, BACK, FAILED = b"a", b"b", b"f"

_SIZE: Final = struct.Struct("!I")
_PIECE_BYTES: Final = 65_536
_DESCRIPTORS_MAX: Final = 256
_EXIT_S, _LOOK_S = 1.0, 0.005
#: How a child of ours says that its memory is full, and that it could not begin.
_NO_MEMORY, _NOT_BEGUN = 77, 78
#: Input, output, error.
STANDARD_DESCRIPTORS: Final = 3

#: Answers one question, in the child; the other argument asks back.
Serve = Callable[[bytes, Callable[[bytes], bytes]], bytes]


class _OverError(Exception):
    """The child has to end; why, as a code."""


class _GoneError(_OverError):
    """It has ended, or is about to."""


@dataclass(frozen=True)
class Bounds:
    """What a child may take."""

    answer_seconds: float
    start_seconds: float
    #: Of address space, all in all.
    memory_bytes: int


@dataclass
class _Process:
    """A child, seen from its keeper, with the ends of its pipes that are not its own."""

    pid: int
    reading: int
    writing: int
    is_fresh: bool = True

    def send(self, letter: bytes, body: bytes, until_s: float) -> None:
        """Pass a message on."""
        data = memoryview(_SIZE.pack(len(letter) + len(body)) + letter + body)
        while data:
            _wait(until_s, writing=self.writing)
            try:
                data = data[os.write(self.writing, data[:_PIECE_BYTES]) :]
            except BlockingIOError:
                continue
            except OSError as error:
                raise _GoneError("child.gone") from error

    def receive(self, until_s: float) -> tuple[bytes, bytes]:
        """Its next message."""
        (size,) = _SIZE.unpack(self._exactly(_SIZE.size, until_s))
        if not 1 <= size <= 1 + limits.CHILD_BYTES_MAX:
            raise _OverError("child.bad_answer")
        message = self._exactly(size, until_s)
        return message[:1], message[1:]

    def _exactly(self, size: int, until_s: float) -> bytes:
        data = bytearray()
        while len(data) < size:
            _wait(until_s, reading=(self.reading,))
            try:
                piece = os.read(self.reading, min(_PIECE_BYTES, size - len(data)))
            except BlockingIOError:
                continue
            if not piece:
                raise _GoneError("child.gone")
            data += piece
        return bytes(data)

    def end(self, *, patience_s: float = 0.0) -> bool:
        """Kill it, if it lives; whether it had died of too little memory.

        Args:
            patience_s: how long one that closed its pipe has to say, by its exit, why.
        """
        for descriptor in (self.reading, self.writing):
            os.close(descriptor)
        until_s = time.monotonic() + patience_s
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status) == _NO_MEMORY
            if time.monotonic() >= until_s:
                break
            time.sleep(_LOOK_S)
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        return False

    def has_died(self) -> bool:
        """Whether it is over by itself; what it sent while nothing was asked counts as that."""
        return bool(select.select([self.reading], [], [], 0)[0])


def _wait(until_s: float, *, reading: Sequence[int] = (), writing: int | None = None) -> list[int]:
    poll = select.poll()
    for descriptor in reading:
        poll.register(descriptor, select.POLLIN)
    if writing is not None:
        poll.register(writing, select.POLLOUT)
    left_s = until_s - time.monotonic()
    ready = poll.poll(1000 * left_s) if left_s > 0 else []
    if not ready:
        raise _OverError("child.too_slow")
    return [descriptor for descriptor, _ in ready]


def keep(enclave: int, begin: Callable[[int, int], NoReturn], bounds: Bounds) -> None:
    """Serve the enclave, until it is gone.

    Args:
        enclave: descriptor of the keeper's end of its socket.
        begin: becomes the child, with the descriptors that it reads from and writes to.
        bounds: of the child.
    """
    process = _make(enclave, begin, bounds)
    while (message := forked.read(enclave)) is not None:
        if message[:1] != QUESTION:
            continue  # to be ended, after it has answered
        if process.has_died():
            process.end()
            process = _make(enclave, begin, bounds)
        try:
            answer = _ask(enclave, process, message[1:], bounds)
        except _OverError as error:
            code = str(error)
            if process.end(patience_s=_EXIT_S if isinstance(error, _GoneError) else 0.0):
                code = "child.out_of_memory"
            forked.write(enclave, FAILED + code.encode())
            process = _make(enclave, begin, bounds)
        else:
            forked.write(enclave, ANSWER + answer)
    process.end()


def _ask(enclave: int, process: _Process, question: bytes, bounds: Bounds) -> bytes:
    until_s = time.monotonic() + bounds.answer_seconds + (bounds.start_seconds if process.is_fresh else 0.0)
    process.send(QUESTION, question, until_s)
    while True:
        ready = _wait(until_s, reading=(enclave, process.reading))
        if process.reading in ready:
            letter, body = process.receive(until_s)
            if letter == ANSWER:
                process.is_fresh = False
                return body
            if letter == FAILED:
                raise _OverError("child.failed")
            if letter != BACK:
                raise _OverError("child.bad_answer")
            forked.write(enclave, BACK + body)
        if enclave in ready:
            message = forked.read(enclave)
            if message is None or message[:1] != REPLY:
                raise _OverError("child.gone")
            process.send(REPLY, message[1:], until_s)


def _make(enclave: int, begin: Callable[[int, int], NoReturn], bounds: Bounds) -> _Process:
    theirs_in, ours_out = os.pipe()
    ours_in, theirs_out = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            for descriptor in (enclave, ours_in, ours_out):
                os.close(descriptor)
            resource.setrlimit(resource.RLIMIT_NOFILE, (_DESCRIPTORS_MAX, _DESCRIPTORS_MAX))
            resource.setrlimit(resource.RLIMIT_AS, (bounds.memory_bytes, bounds.memory_bytes))
            begin(theirs_in, theirs_out)
        except MemoryError:
            os._exit(_NO_MEMORY)
        finally:
            os._exit(_NOT_BEGUN)
    os.close(theirs_in)
    os.close(theirs_out)
    for descriptor in (ours_in, ours_out):
        os.set_blocking(descriptor, False)
    return _Process(pid, ours_in, ours_out)


# --- in the child ---


def work(serve: Serve, reading: int, writing: int) -> NoReturn:
    """Answer questions with a function; never returns."""

    def back(question: bytes) -> bytes:
        forked.write(writing, BACK + question)
        reply = forked.read(reading)
        if reply is None:
            os._exit(0)
        return reply[1:]

    try:
        while (message := forked.read(reading)) is not None:
            forked.write(writing, ANSWER + bytes(serve(message[1:], back)))
    except MemoryError:
        os._exit(_NO_MEMORY)
    except Exception:  # noqa: BLE001 - whatever it is, the child is replaced; its text says what it was asked
        forked.write(writing, FAILED)
    os._exit(0)


def run(command: Sequence[str], reading: int, writing: int, nowhere: int) -> NoReturn:
    """Become a program, which has its questions and answers as standard input and output; never returns.

    Args:
        command: absolute path, and arguments.
        reading: a descriptor above 2.
        writing: another.
        nowhere: a third, for standard error.
    """
    for number, descriptor in enumerate((reading, writing, nowhere)):
        os.dup2(descriptor, number)
    try:
        os.execve(command[0], list(command), {"LC_ALL": "C.UTF-8"})  # noqa: S606 - no shell
    except OSError as error:
        os._exit(_NO_MEMORY if error.errno == errno.ENOMEM else _NOT_BEGUN)
