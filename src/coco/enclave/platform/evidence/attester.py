"""The enclave asks for evidence: of its platform itself, or of a process that may reach the platform and nothing else.

In a guest the enclave has no device and no file left once it is locked down. A process that is forked before opens the
platform, is closed off too, and answers 64 bytes by evidence: it holds no key and learns nothing but hashes.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final, Protocol

from coco import limits
from coco.attestation.evidence import Evidence
from coco.enclave.platform import forked, lockdown
from coco.enclave.platform.evidence import READERS, HasRandomness, Platform
from coco.enclave.platform.evidence.devices import no_evidence
from coco.errors import BusyError, CocoError

#: A quote may take seconds.
_TIMEOUT_S: Final = 20.0
_KERNEL: Final = Path("/dev/urandom")


class Attester(Protocol):
    """Gives evidence."""

    @property
    def name(self) -> str:
        """The platform, as evidence names it."""

    async def evidence(self, report_data: bytes) -> Evidence:
        """Evidence over 64 bytes.

        Raises:
            PlatformError: the platform gives none (``platform.no_evidence``).
            BusyError: too many wait for evidence (``platform.busy``).
        """


class InProcess:
    """A platform that this very process reaches: ``virtual``, and SGX, where files stand for instructions."""

    def __init__(self, platform: Platform) -> None:
        self.name, self._platform = platform.name, platform

    async def evidence(self, report_data: bytes) -> Evidence:
        """Evidence over 64 bytes."""
        return self._platform.evidence(report_data)


class Forked:
    """A platform that a forked process reaches.

    Args:
        name: of the platform.
        sock: as :func:`fork` gave it.
    """

    def __init__(self, name: str, sock: socket.socket) -> None:
        self.name = name
        gone = partial(no_evidence, "the process that reads evidence is gone")
        self._process = forked.Exchange(sock, timeout_s=_TIMEOUT_S, gone=gone)
        self._waiting = 0

    async def evidence(self, report_data: bytes) -> Evidence:
        """Evidence over 64 bytes; one after the other."""
        if self._waiting >= limits.EVIDENCE_WAITING_MAX:
            raise BusyError("too many wait for evidence of this node", code="platform.busy")
        self._waiting += 1
        try:
            return _answer(await self._process.ask(report_data))
        finally:
            self._waiting -= 1


def fork(platform: str) -> socket.socket:
    """Make the process that reads evidence, before the lock-down and before any thread.

    Raises:
        PlatformError: this is no such platform (``platform.no_evidence``).
    """
    return _begun(partial(_serve, platform))


def mix(platform: str) -> None:
    """Give the kernel's generator what the platform's own source has, before anything is seeded from it (K5).

    Raises:
        PlatformError: there is no such platform, or it gives nothing (``platform.no_evidence``).
    """
    # A process of its own: the device is closed with it.
    _begun(partial(_mix, platform)).close()


def _begun(work: Callable[[int], None]) -> socket.socket:
    ours = forked.fork(work)
    first = forked.read(ours.fileno())
    if first is None:
        raise no_evidence("the process that reads the platform does not start")
    _checked(json.loads(first))
    return ours


def _mix(platform: str, descriptor: int) -> None:
    try:
        pour(READERS[platform](), _KERNEL)
    except CocoError as error:
        forked.write(descriptor, _refusal(error))
        return
    forked.write(descriptor, b"{}")


def _serve(platform: str, descriptor: int) -> None:
    try:
        reader = READERS[platform]()
        lockdown.confine(reader.folders, reader.commands)
    except CocoError as error:
        forked.write(descriptor, _refusal(error))
        return
    forked.write(descriptor, b"{}")
    while (report_data := forked.read(descriptor)) is not None:
        try:
            answer = json.dumps(reader.evidence(report_data).to_json()).encode()
        except CocoError as error:
            answer = _refusal(error)
        forked.write(descriptor, answer)


def pour(reader: Platform, kernel: Path) -> None:
    """Write what a platform's own source has to the kernel's generator, which takes it besides what it has.

    Args:
        reader: with a source of its own, or without.
        kernel: device of the kernel's generator.
    """
    if isinstance(reader, HasRandomness):
        with kernel.open("wb") as generator:
            generator.write(reader.randomness())


def _refusal(error: CocoError) -> bytes:
    return json.dumps({"reason": str(error)}).encode()


def _checked(answer: dict[str, str]) -> dict[str, str]:
    if "reason" in answer:
        raise no_evidence(answer["reason"])
    return answer


def _answer(data: bytes) -> Evidence:
    return Evidence.parse(_checked(json.loads(data)))
