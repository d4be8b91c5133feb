"""Child processes of adapters: declared by a factory, forked and measured before the lock-down, asked after it.

Order at the start: the keepers of programs (they need files, so they come before the private root, and get one of
their own that shows what the program may see) -> the first half of the lock-down -> the keepers of functions (no file
is left) -> the second half. A keeper (``keeper.py``) outlives its child, and makes another.

What ran: functions, and as programs a static binary, Python, and a Java 17 virtual machine that echoes
(``tests/unit/test_children.py``). What did not: a program out of a bundle, a virtual machine that does real work, and
any of this under Gramine, which has no walls but those of the processor.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
import struct
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final, NoReturn, Protocol

from coco import limits
from coco.enclave.platform import forked, keeper, lockdown
from coco.errors import ChildError, LockdownError, RequestError

_SIZE: Final = struct.Struct("!I")
_NAME: Final = re.compile(r"[a-z][a-z0-9_-]{0,31}")
_PIECE_BYTES: Final = 65_536
#: Time that a keeper may take beyond what it gives its child: to end that one, and to pass on what is long.
_KEEPER_S: Final = 10.0
_REASONS: Final = {
    "child.gone": "the child process ended",
    "child.too_slow": "the child process took too long",
    "child.out_of_memory": "the child process took too much memory",
    "child.failed": "the child process failed",
    "child.bad_answer": "the child process broke the form of its messages",
}


class Declared(Protocol):
    """A child as a factory declares it (``adapters/contract/declared.py``)."""

    @property
    def name(self) -> str:
        """Lower-case letters, digits, ``-`` and ``_``."""

    @property
    def serve(self) -> keeper.Serve | None:
        """Answers one question; None: a program does."""

    @property
    def command(self) -> Sequence[str]:
        """A program and its arguments; empty: a function answers."""

    @property
    def files(self) -> Sequence[str]:
        """What the program may read and run."""

    @property
    def memory_bytes(self) -> int:
        """Address space: of a program all, of a function what it takes beyond the enclave's."""

    @property
    def answer_seconds(self) -> float:
        """Time of one answer."""

    @property
    def start_seconds(self) -> float:
        """How much longer the first answer of a fresh child may take."""


#: By adapter and name.
Declarations = Mapping[tuple[str, str], Declared]


def declared(factories: Mapping[str, object]) -> dict[tuple[str, str], Declared]:
    """The children that factories declare.

    Args:
        factories: by the name of their adapter.

    Raises:
        LockdownError: a declaration makes no sense (``lockdown.bad_child``).
    """
    children: dict[tuple[str, str], Declared] = {}
    for adapter, factory in factories.items():
        for child in getattr(factory, "children", ()):
            _check(child)
            if (adapter, child.name) in children:
                raise _bad(f"{adapter} declares two children {child.name}")
            children[adapter, child.name] = child
    if len(children) > limits.CHILDREN_MAX:
        raise _bad(f"there are {len(children)} children, more than {limits.CHILDREN_MAX}")
    return children


def _check(child: Declared) -> None:
    if _NAME.fullmatch(child.name) is None:
        raise _bad(f"{child.name[:64]!r} is no name of a child")
    if (child.serve is None) == (not child.command):
        raise _bad(f"child {child.name} is either a function or a program")
    if child.serve is not None and child.files:
        raise _bad(f"child {child.name} is a function, which has no files")
    if not all(Path(path).is_absolute() for path in (*child.command[:1], *child.files)):
        raise _bad(f"child {child.name} names a path that is not absolute")
    if child.memory_bytes <= 0 or child.answer_seconds <= 0 or child.start_seconds < 0:
        raise _bad(f"child {child.name} has no memory or no time")


def _bad(reason: str) -> LockdownError:
    return LockdownError(reason, code="lockdown.bad_child")


def files_of(children: Iterable[Declared]) -> list[Path]:
    """Every file that programs may read or run, for the measurement of the code.

    Raises:
        LockdownError: one is not there (``lockdown.bad_child``).
    """
    files: set[Path] = set()
    for name in (path for child in children for path in child.files):
        path = Path(name).resolve()
        if not path.exists():
            raise _bad(f"there is no {name}")
        files.update((file for file in path.rglob("*") if file.is_file()) if path.is_dir() else (path,))
    return sorted(files)


# --- before and within the lock-down ---


def fork_programs(children: Declarations, *, enclosed: bool) -> dict[tuple[str, str], socket.socket]:
    """Make the keepers of programs, before the first half of the lock-down.

    Args:
        children: what is declared; functions are left out.
        enclosed: whether there are walls to be built: not in tests, and not where the processor has built them.

    Raises:
        LockdownError: walls cannot be built (``lockdown.failed``).
    """
    return {key: _fork_program(child, enclosed) for key, child in children.items() if child.command}


def _fork_program(child: Declared, enclosed: bool) -> socket.socket:
    def serve(enclave: int) -> None:
        # Standard input, output and error of what is started; the pipes of a child lie above them.
        while (nowhere := os.open(os.devnull, os.O_RDWR)) < keeper.STANDARD_DESCRIPTORS:
            pass
        try:
            if enclosed:
                lockdown.enclose(child.files)
        except (LockdownError, OSError) as error:
            forked.write(enclave, str(error).encode())
            return
        forked.write(enclave, b"")

        def begin(reading: int, writing: int) -> NoReturn:
            lockdown.narrow(program=True) if enclosed else lockdown.end_with_parent()
            keeper.run(child.command, reading, writing, nowhere)

        keeper.keep(enclave, begin, _bounds(child, 0))

    ours = forked.fork(serve)
    refusal = forked.read(ours.fileno())
    if refusal != b"":
        reason = refusal.decode() if refusal else "its keeper does not start"
        raise LockdownError(f"child {child.name}: {reason}", code="lockdown.failed")
    return ours


def fork_functions(
    children: Declarations, base: int, seal: Callable[..., object] | None
) -> dict[tuple[str, str], socket.socket]:
    """Make the keepers of functions, between the two halves of the lock-down and before any thread.

    Args:
        children: what is declared; programs are left out.
        base: bytes of address space that this process has.
        seal: the second half of the lock-down, where there is one.
    """
    return {key: _fork_function(child, base, seal) for key, child in children.items() if child.serve is not None}


def _fork_function(child: Declared, base: int, seal: Callable[..., object] | None) -> socket.socket:
    function = child.serve
    assert function is not None, "the caller has left programs out"

    def begin(reading: int, writing: int) -> NoReturn:
        lockdown.narrow() if seal is not None else lockdown.end_with_parent()
        keeper.work(function, reading, writing)

    def serve(enclave: int) -> None:
        if seal is not None:
            seal(keeps=True)
        keeper.keep(enclave, begin, _bounds(child, base))

    return forked.fork(serve)


def _bounds(child: Declared, base: int) -> keeper.Bounds:
    return keeper.Bounds(child.answer_seconds, child.start_seconds, base + child.memory_bytes)


# --- after it ---

#: Answers a child that asks back.
Back = Callable[[bytes], Awaitable[bytes]]


class Child:
    """A child, as the enclave asks it.

    Args:
        declaration: of its factory.
        sock: of its keeper.
        replaced: hears of every end of it, by its code.
    """

    def __init__(self, declaration: Declared, sock: socket.socket, replaced: Callable[[str], None]) -> None:
        sock.setblocking(False)
        self._socket, self._replaced = sock, replaced
        self._timeout_s = declaration.answer_seconds + declaration.start_seconds + _KEEPER_S
        self._lock = asyncio.Lock()
        self._waiting = 0
        self._is_lost = False
        self._open: set[asyncio.Task[bytes]] = set()

    async def ask(self, question: bytes, back: Back | None = None) -> bytes:
        """The answer (``Asked.ask`` of the contract says what it raises)."""
        if len(question) > limits.CHILD_BYTES_MAX:
            raise RequestError("that is too long for a child process", code="child.too_large")
        if self._waiting >= limits.CHILD_QUESTIONS_MAX:
            raise ChildError("too many ask this child process", code="child.busy")
        self._waiting += 1
        # Whoever asked may leave; the exchange comes to its end, so that the next one begins at a beginning.
        left = asyncio.Event()
        task = asyncio.get_running_loop().create_task(self._exchange(question, back, left))
        self._open.add(task)
        task.add_done_callback(self._over)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            left.set()
            raise

    def _over(self, task: asyncio.Task[bytes]) -> None:
        self._open.discard(task)
        self._waiting -= 1
        if not task.cancelled():
            task.exception()  # heard, though whoever asked may have left

    async def _exchange(self, question: bytes, back: Back | None, left: asyncio.Event) -> bytes:
        async with self._lock:
            if left.is_set() or self._is_lost:
                raise ChildError("the keeper of the child process is gone", code="child.gone")
            self._is_lost = True
            try:
                async with asyncio.timeout(self._timeout_s):
                    answer = await self._converse(question, back, left)
            except (OSError, TimeoutError) as error:
                self._replaced("child.gone")
                raise ChildError("the keeper of the child process is gone", code="child.gone") from error
            self._is_lost = False
        if isinstance(answer, bytes):
            return answer
        raise answer

    async def _converse(self, question: bytes, back: Back | None, left: asyncio.Event) -> bytes | Exception:
        """The answer, or what is to be raised instead; the keeper waits for the next question either way."""
        failure: Exception | None = None
        await self._send(keeper.QUESTION, question)
        letter, body = await self._receive()
        while letter == keeper.BACK:
            # The keeper's next word comes without a reply only when the child is over: then nobody needs one.
            word = asyncio.ensure_future(self._receive())
            replying = asyncio.ensure_future(self._reply(body, back))
            leaving = asyncio.ensure_future(left.wait())
            try:
                await asyncio.wait((word, replying, leaving), return_when=asyncio.FIRST_COMPLETED)
                if not word.done():
                    try:
                        if not replying.done():
                            raise ChildError("whoever asked the child process has left", code="child.gone")
                        await self._send(keeper.REPLY, replying.result())
                    except Exception as error:  # noqa: BLE001 - it goes to whoever asked, once the child is ended
                        failure = error
                        await self._send(keeper.END, b"")
                letter, body = await word
            finally:
                for task in (word, replying, leaving):
                    task.cancel()
        if letter == keeper.ANSWER:
            return failure or body
        code = body.decode()
        self._replaced(code)
        return failure or ChildError(_REASONS.get(code, "the child process gave no answer"), code=code)

    async def _reply(self, body: bytes, back: Back | None) -> bytes:
        if back is None:
            raise ChildError("nobody answers what the child process asks back", code="child.bad_answer")
        reply = await back(body)
        if len(reply) > limits.CHILD_BYTES_MAX:
            raise RequestError("that is too long for a child process", code="child.too_large")
        return reply

    async def _send(self, letter: bytes, body: bytes) -> None:
        data = _SIZE.pack(len(letter) + len(body)) + letter + body
        await asyncio.get_running_loop().sock_sendall(self._socket, data)

    async def _receive(self) -> tuple[bytes, bytes]:
        (size,) = _SIZE.unpack(await self._exactly(_SIZE.size))
        message = await self._exactly(size)
        return message[:1], message[1:]

    async def _exactly(self, size: int) -> bytes:
        loop, data = asyncio.get_running_loop(), bytearray()
        while len(data) < size:
            piece = await loop.sock_recv(self._socket, min(_PIECE_BYTES, size - len(data)))
            if not piece:
                raise ConnectionResetError
            data += piece
        return bytes(data)


class Children:
    """Every child of one enclave.

    Args:
        declarations: of the factories.
        keepers: as :func:`fork_programs` and :func:`fork_functions` gave them.
    """

    def __init__(self, declarations: Declarations, keepers: Mapping[tuple[str, str], socket.socket]) -> None:
        self._declarations, self._keepers = declarations, keepers
        self._children: dict[tuple[str, str], Child] = {}
        #: Takes an event with its numbers and ids.
        self.log: Callable[..., None] = lambda code, numbers, ids: None

    def of(self, adapter: str, name: str) -> Child:
        """A child of an adapter.

        Raises:
            ChildError: its factory declared no such child (``child.not_declared``).
        """
        key = adapter, name
        if key not in self._children:
            if key not in self._keepers:
                raise ChildError(f"the factory of {adapter} declared no child {name[:32]}", code="child.not_declared")
            replaced = partial(self._say, f"{adapter}.{name}")
            self._children[key] = Child(self._declarations[key], self._keepers[key], replaced)
        return self._children[key]

    def _say(self, name: str, code: str) -> None:
        self.log(code, {}, {"child": name})
