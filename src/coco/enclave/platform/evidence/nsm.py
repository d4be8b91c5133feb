"""AWS Nitro Enclaves by ``/dev/nsm``, the Nitro security module."""

from __future__ import annotations

import ctypes
import fcntl
from collections.abc import Callable
from pathlib import Path

import cbor2

from coco.attestation.evidence import Evidence
from coco.attestation.verified import NITRO
from coco.enclave.platform.evidence.devices import no_evidence, opened

#: _IOWR(0x0A, 0, struct nsm_message).
NSM_IOCTL = 0xC0200A00
_RESPONSE_BYTES = 0x3000

Ioctl = Callable[[int, int, ctypes.Structure], int]


class Iovec(ctypes.Structure):
    """``struct iovec``."""

    _fields_ = (("base", ctypes.c_void_p), ("size", ctypes.c_size_t))


class Message(ctypes.Structure):
    """``struct nsm_message``: CBOR both ways."""

    _fields_ = (("request", Iovec), ("response", Iovec))


class Nsm:
    """An enclave.

    Args:
        device: of the kernel; opened here, and kept.
        ioctl: the system call.
    """

    name = NITRO
    folders: tuple[str, ...] = ()
    commands: tuple[int, ...] = (NSM_IOCTL,)

    def __init__(self, device: Path = Path("/dev/nsm"), ioctl: Ioctl = fcntl.ioctl) -> None:
        self._device = opened(device, "Nitro enclave")
        self._ioctl = ioctl

    def evidence(self, report_data: bytes) -> Evidence:
        """A document whose ``user_data`` is the report data; it needs no endorsements.

        Raises:
            PlatformError: ``platform.no_evidence``.
        """
        asked = {"Attestation": {"user_data": report_data, "nonce": None, "public_key": None}}
        return Evidence(NITRO, self._ask(asked, "Attestation", "document"))

    def randomness(self) -> bytes:
        """256 bytes of the security module: an enclave's kernel has hardly anything else when it starts.

        Raises:
            PlatformError: ``platform.no_evidence``.
        """
        return self._ask("GetRandom", "GetRandom", "random")

    def _ask(self, question: object, kind: str, part: str) -> bytes:
        asked = cbor2.dumps(question)
        request = ctypes.create_string_buffer(asked, len(asked))
        response = ctypes.create_string_buffer(_RESPONSE_BYTES)
        call = Message(Iovec(ctypes.addressof(request), len(asked)), Iovec(ctypes.addressof(response), _RESPONSE_BYTES))
        try:
            self._ioctl(self._device, NSM_IOCTL, call)
            answer = cbor2.loads(response.raw[: call.response.size])
            return bytes(answer[kind][part])
        except (OSError, cbor2.CBORError, ValueError, KeyError, TypeError, EOFError) as error:
            raise no_evidence(f"the security module gives no {part}: {error}") from error
