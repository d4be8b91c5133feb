"""Guests of SEV-SNP by ``/dev/sev-guest`` (Linux 5.19 and later), where the kernel has no configfs for it."""

from __future__ import annotations

import ctypes
import fcntl
from collections.abc import Callable
from pathlib import Path

from coco.attestation.evidence import Evidence
from coco.attestation.snp import REPORT_BYTES
from coco.attestation.verified import SNP
from coco.enclave.platform.evidence.devices import no_evidence, opened
from coco.enclave.platform.evidence.tsm import endorsements

#: _IOWR('S', 2, struct snp_guest_request_ioctl): a report, and the host's certificates.
SNP_GET_EXT_REPORT = 0xC0205302
_TABLE_BYTES = 16 * 1024
_VERSION = 1

Ioctl = Callable[[int, int, ctypes.Structure], int]


class ReportRequest(ctypes.Structure):
    """``struct snp_report_req``."""

    _fields_ = (("user_data", ctypes.c_uint8 * 64), ("vmpl", ctypes.c_uint32), ("reserved", ctypes.c_uint8 * 28))


class ExtendedRequest(ctypes.Structure):
    """``struct snp_ext_report_req``."""

    _fields_ = (("data", ReportRequest), ("certs_address", ctypes.c_uint64), ("certs_len", ctypes.c_uint32))


class Response(ctypes.Structure):
    """``struct snp_report_resp``, whose bytes begin with the firmware's header (MSG_REPORT_RSP)."""

    _fields_ = (
        ("status", ctypes.c_uint32),
        ("report_size", ctypes.c_uint32),
        ("reserved", ctypes.c_uint8 * 24),
        ("report", ctypes.c_uint8 * REPORT_BYTES),
        ("rest", ctypes.c_uint8 * (4000 - 32 - REPORT_BYTES)),
    )


class GuestRequest(ctypes.Structure):
    """``struct snp_guest_request_ioctl``."""

    _fields_ = (
        ("msg_version", ctypes.c_uint8),
        ("req_data", ctypes.c_uint64),
        ("resp_data", ctypes.c_uint64),
        ("exitinfo2", ctypes.c_uint64),
    )


class SevGuest:
    """A guest.

    Args:
        device: of the kernel; opened here, and kept.
        ioctl: the system call.
    """

    name = SNP
    folders: tuple[str, ...] = ()
    commands: tuple[int, ...] = (SNP_GET_EXT_REPORT,)

    def __init__(self, device: Path = Path("/dev/sev-guest"), ioctl: Ioctl = fcntl.ioctl) -> None:
        self._device = opened(device, "SEV-SNP guest")
        self._ioctl = ioctl

    def evidence(self, report_data: bytes) -> Evidence:
        """A report, with the host's certificates, if it has put them there.

        Raises:
            PlatformError: ``platform.no_evidence``.
        """
        table = (ctypes.c_uint8 * _TABLE_BYTES)()
        request, response = ExtendedRequest(), Response()
        request.data.user_data[:] = report_data
        request.certs_address, request.certs_len = ctypes.addressof(table), _TABLE_BYTES
        call = GuestRequest(_VERSION, ctypes.addressof(request), ctypes.addressof(response), 0)
        try:
            self._ioctl(self._device, SNP_GET_EXT_REPORT, call)
        except OSError as error:
            raise no_evidence(f"the firmware gives no report: {error}, {call.exitinfo2:#x}") from error
        if response.status or response.report_size != REPORT_BYTES:
            raise no_evidence(f"the firmware refuses: status {response.status}")
        return Evidence(SNP, bytes(response.report), endorsements(bytes(table)))
