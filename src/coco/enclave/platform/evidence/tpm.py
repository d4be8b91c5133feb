"""Confidential virtual machines of Azure by their virtual TPM (``/dev/tpmrm0``): four commands of TPM 2.0.

The paravisor keeps its report in the NV index 0x01400001, and the key that it reports at the handle 0x81000003.
"""

from __future__ import annotations

import base64
import json
import os
import struct
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Final

from coco.attestation.azure_vtpm import parse_quote
from coco.attestation.evidence import Evidence
from coco.attestation.verified import AZURE_VTPM
from coco.enclave.platform.evidence.devices import no_evidence, opened
from coco.errors import AttestationError

_NO_SESSIONS, _SESSIONS = 0x8001, 0x8002
_NV_READ, _NV_READ_PUBLIC, _QUOTE, _PCR_READ = 0x0000014E, 0x00000169, 0x00000158, 0x0000017E
_GET_RANDOM, _RANDOM_BYTES = 0x0000017B, 32
_RS_PW, _RSASSA, _SHA256 = 0x40000009, 0x0014, 0x000B
_HEADER = struct.Struct(">HII")
_OWNER: Final = 0x40000001
_NV_BYTES, _PCR_BANK_BYTES, _ANSWER_BYTES = 512, 3, 4096
#: A TPM gives eight values at a time.
_PCRS_AT_ONCE = 8
REPORT_INDEX, KEY_HANDLE = 0x01400001, 0x81000003
#: Firmware and boot (0-7), boot loader and kernel (8, 9, 11), and what systemd measures of the image (12-14).
DEFAULT_PCRS: Final = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14)

#: Sends a command and gives the answer.
Transmit = Callable[[bytes], bytes]


def device(path: Path = Path("/dev/tpmrm0")) -> Transmit:
    """The kernel's TPM; opened here, and kept.

    Raises:
        PlatformError: there is none (``platform.no_evidence``).
    """
    descriptor = opened(path, "TPM")

    def transmit(command: bytes) -> bytes:
        os.write(descriptor, command)
        return os.read(descriptor, _ANSWER_BYTES)

    return transmit


class AzureVm:
    """A machine.

    Args:
        transmit: its TPM.
        pcrs: registers that are quoted.
        key: handle of the key that the paravisor reports.
        index: where the paravisor's report is.
    """

    name = AZURE_VTPM
    folders: tuple[str, ...] = ()
    commands: tuple[int, ...] = ()

    def __init__(
        self,
        transmit: Transmit,
        pcrs: Sequence[int] = DEFAULT_PCRS,
        *,
        key: int = KEY_HANDLE,
        index: int = REPORT_INDEX,
    ) -> None:
        self._transmit, self._pcrs, self._key, self._index = transmit, tuple(sorted(pcrs)), key, index

    def evidence(self, report_data: bytes) -> Evidence:
        """Everything but the hardware's endorsements, which the host adds.

        Raises:
            PlatformError: ``platform.no_evidence``.
        """
        attest, signature = self._quote(sha256(report_data).digest())
        parts = {"hcl": self._read_nv(), "quote": attest, "signature": signature, "report_data": report_data}
        document = {name: base64.b64encode(value).decode() for name, value in parts.items()}
        values = {str(number): value.hex() for number, value in self._read_pcrs().items()}
        return Evidence(AZURE_VTPM, json.dumps({**document, "pcrs": values}).encode())

    def randomness(self) -> bytes:
        """32 bytes of the TPM.

        Raises:
            PlatformError: ``platform.no_evidence``.
        """
        return _sized(self._call(_GET_RANDOM, [], struct.pack(">H", _RANDOM_BYTES), authorised=False))

    def _call(self, code: int, handles: Sequence[int], parameters: bytes, *, authorised: bool) -> bytes:
        """The parameters of an answer; authorisation is an empty password."""
        session = struct.pack(">IHBH", _RS_PW, 0, 0, 0)
        body = b"".join(struct.pack(">I", handle) for handle in handles)
        body += (struct.pack(">I", len(session)) + session if authorised else b"") + parameters
        tag = _SESSIONS if authorised else _NO_SESSIONS
        try:
            answer = self._transmit(_HEADER.pack(tag, _HEADER.size + len(body), code) + body)
            _, size, result = _HEADER.unpack_from(answer)
        except (OSError, struct.error) as error:
            raise no_evidence(f"the TPM does not answer: {error}") from error
        if result or size != len(answer):
            raise no_evidence(f"the TPM refuses command {code:#x}: {result:#x}")
        rest = answer[_HEADER.size :]
        if not authorised:
            return rest
        (inner,) = struct.unpack_from(">I", rest)
        return rest[4 : 4 + inner]

    def _read_nv(self) -> bytes:
        public = _sized(self._call(_NV_READ_PUBLIC, [self._index], b"", authorised=False))
        (size,) = struct.unpack_from(">H", public, len(public) - 2)
        found = b""
        while len(found) < size:
            wanted = struct.pack(">HH", min(_NV_BYTES, size - len(found)), len(found))
            found += _sized(self._call(_NV_READ, [_OWNER, self._index], wanted, authorised=True))
        return found

    def _quote(self, extra: bytes) -> tuple[bytes, bytes]:
        scheme = struct.pack(">HH", _RSASSA, _SHA256)
        parameters = struct.pack(">H", len(extra)) + extra + scheme + _selection(self._pcrs)
        answer = self._call(_QUOTE, [self._key], parameters, authorised=True)
        attest = _sized(answer)
        signature = answer[2 + len(attest) :]
        if struct.unpack_from(">HH", signature) != (_RSASSA, _SHA256):
            raise no_evidence("the TPM signs otherwise than it was asked to")
        try:
            parse_quote(attest)
        except AttestationError as error:
            raise no_evidence(f"the TPM gives no quote: {error}") from error
        return attest, _sized(signature[4:])

    def _read_pcrs(self) -> dict[int, bytes]:
        found: dict[int, bytes] = {}
        for at in range(0, len(self._pcrs), _PCRS_AT_ONCE):
            some = self._pcrs[at : at + _PCRS_AT_ONCE]
            answer = self._call(_PCR_READ, [], _selection(some), authorised=False)
            # Update counter, the selection again, and a list of digests.
            values = answer[4 + len(_selection(some)) + 4 :]
            for number in some:
                found[number] = _sized(values)
                values = values[2 + len(found[number]) :]
        return found


def _selection(pcrs: Sequence[int]) -> bytes:
    bits = sum(1 << number for number in pcrs).to_bytes(_PCR_BANK_BYTES, "little")
    return struct.pack(">IHB", 1, _SHA256, _PCR_BANK_BYTES) + bits


def _sized(data: bytes) -> bytes:
    """A TPM2B: two bytes of length and the value."""
    (size,) = struct.unpack_from(">H", data)
    if len(data) < 2 + size:
        raise no_evidence("an answer of the TPM is cut")
    return data[2 : 2 + size]
