"""What an adapter declares to be made for it: keys, in its manifest; child processes, on its factory.

A factory, which an operator names as ``module:attribute``, declares them by an attribute ``children``::

    def adapter(settings): ...
    adapter.children = (Child("handlers", serve=apply, memory_bytes=64 << 20),)

They are forked before the lock-down, when nobody knows yet whether a genesis or a vote will ask for the adapter.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

#: Asks the adapter back, within a child, for as long as a question is open.
AskBack = Callable[[bytes], bytes]
#: Answers a child that asks back, within the adapter.
Back = Callable[[bytes], Awaitable[bytes]]


class Algorithm(StrEnum):
    """What a key signs with; signatures of ECDSA are r ‖ s, each of the curve's length."""

    ED25519 = "ed25519"
    #: Over the SHA-256, with the lower of the two values of s.
    SECP256K1 = "secp256k1"
    #: Over the SHA-384.
    P384 = "p384"


@dataclass(frozen=True, slots=True)
class Key:
    """A key that the adapter signs with and never sees: one for the service, the same at every node."""

    #: Lower-case letters, digits, ``-`` and ``_``; at most 32.
    name: str
    algorithm: Algorithm
    #: When the service gets another key by vote, this one is made anew too, unless it stays: others may have written
    #: it into what they cannot change.
    stays: bool = False


@dataclass(frozen=True, slots=True)
class Child:
    """A process of the adapter's own: it has no network, no keys, and no file but those declared here.

    Exactly one of ``serve`` and ``command`` is given. Nothing that a child remembers may matter: it is replaced by a
    fresh one whenever it died, failed or took too long.
    """

    #: Lower-case letters, digits, ``-`` and ``_``; at most 32.
    name: str
    #: Answers one question, in a process that is a copy of the enclave as it was before it had keys. It may ask the
    #: adapter back; it can make neither threads nor processes.
    serve: Callable[[bytes, AskBack], bytes] | None = None
    #: A program and its arguments, the program by its absolute path. It reads questions from its standard input and
    #: writes to its standard output; a message is a big-endian ``u32`` of the length of what follows, one letter, and
    #: bytes: in come ``q`` (a question) and ``r`` (the adapter's reply), out go ``a`` (the answer), ``b`` (it asks the
    #: adapter back) and ``f`` (it failed). It can make threads, but no processes.
    command: Sequence[str] = ()
    #: Files and folders that a program may read and run, its own and its libraries' among them; they are part of the
    #: code's identity.
    files: Sequence[str] = ()
    #: Address space: of a program all that it has, of ``serve`` what it takes beyond what the enclave has.
    memory_bytes: int = 256 << 20
    #: Time of one answer, whatever the child asks back meanwhile.
    answer_seconds: float = 10.0
    #: Time that the first answer of a fresh child may take longer.
    start_seconds: float = 0.0


class Asked(Protocol):
    """A child, as its adapter asks it."""

    async def ask(self, question: bytes, back: Back | None = None) -> bytes:
        """The answer; one question at a time, in turn.

        Args:
            question: at most ``limits.CHILD_BYTES_MAX`` bytes.
            back: answers what the child asks back; a child that asks back where there is none is ended.

        Raises:
            ChildError: it died (``child.gone``), took too long (``child.too_slow``) or too much memory
                (``child.out_of_memory``), failed (``child.failed``), broke the form (``child.bad_answer``), or too
                many ask it (``child.busy``).
            RequestError: the question, or a reply, is too long (``child.too_large``).
        """
