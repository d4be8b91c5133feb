"""Windows VBS enclaves by ``EnclaveGetAttestationReport``, which only runs inside one.

CPython does not: a shell in C++ inside the enclave would call it. What is here is the shape of the call, tested with a
function of the same shape, and never with Windows.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

from coco.attestation.evidence import Evidence
from coco.attestation.verified import VBS
from coco.enclave.platform.evidence.devices import no_evidence

#: HRESULT EnclaveGetAttestationReport(const UINT8 EnclaveData[64], PVOID Report, UINT32 BufferSize, UINT32 *OutputSize)
GetReport = Callable[[Any, Any, int, Any], int]
_OK = 0


class VbsEnclave:
    """An enclave.

    Args:
        get_report: the function of the system.
    """

    name = VBS
    folders: tuple[str, ...] = ()
    commands: tuple[int, ...] = ()

    def __init__(self, get_report: GetReport) -> None:
        self._get_report = get_report

    def evidence(self, report_data: bytes) -> Evidence:
        """A report; the host adds the key of the secure kernel.

        Raises:
            PlatformError: ``platform.no_evidence``.
        """
        data, size = (ctypes.c_uint8 * 64)(*report_data), ctypes.c_uint32()
        self._get_report(data, None, 0, ctypes.byref(size))
        report = (ctypes.c_uint8 * size.value)()
        result = self._get_report(data, report, size.value, ctypes.byref(size))
        if result != _OK or not 0 < size.value <= len(report):
            raise no_evidence(f"the secure kernel gives no report: {result & 0xFFFFFFFF:#x}")
        return Evidence(VBS, bytes(report[: size.value]))
