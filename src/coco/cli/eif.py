"""Registers of an AWS Nitro enclave image file (EIF), computed from the file alone.

Format, big-endian: a header of 548 bytes (``.eif``, version, flags, default memory and processors, reserved, count of
sections, 32 offsets, 32 sizes, unused, CRC-32 over the rest), and sections, each with a header of 12 bytes (kind,
flags, size). A register is SHA-384(zeros(48) || SHA-384(contents)). Source: aws/aws-nitro-enclaves-image-format.
"""

from __future__ import annotations

import struct
import zlib
from hashlib import sha384
from pathlib import Path
from typing import Final

from coco.errors import ConfigurationError

_HEADER: Final = struct.Struct(">4sHHQQHH32Q32QII")
_SECTION: Final = struct.Struct(">HHQ")
_CRC_BYTES: Final = 4
_SECTIONS_MAX: Final = 32
_KERNEL, _COMMAND_LINE, _RAM_DISK = 1, 2, 3


def registers(path: Path) -> dict[str, str]:
    """PCR0 (the whole image), PCR1 (kernel, command line and first ram disk) and PCR2 (the other ram disks), hex.

    Raises:
        ConfigurationError: it cannot be read or is no such image (``measure.bad_image``).
    """
    try:
        data = path.read_bytes()
        magic, *fields, crc = _HEADER.unpack_from(data)
    except (OSError, struct.error) as error:
        raise _wrong(f"cannot read {path}: {error}") from error
    count, offsets, sizes = fields[5], fields[6:38], fields[38:70]
    if magic != b".eif" or count > _SECTIONS_MAX:
        raise _wrong(f"{path} is no enclave image")
    if zlib.crc32(data[_HEADER.size :], zlib.crc32(data[: _HEADER.size - _CRC_BYTES])) != crc:
        raise _wrong(f"{path} is damaged: its checksum is another one")
    boot, disks = b"", list[bytes]()
    for offset, size in zip(offsets[:count], sizes[:count], strict=True):
        if offset + _SECTION.size + size > len(data):
            raise _wrong(f"{path} is cut")
        kind, _, said = _SECTION.unpack_from(data, offset)
        if said != size:
            raise _wrong(f"{path} gives a section two sizes")
        content = data[offset + _SECTION.size : offset + _SECTION.size + size]
        if kind in (_KERNEL, _COMMAND_LINE):
            boot += content
        elif kind == _RAM_DISK:
            disks.append(content)
    whole = boot + b"".join(disks)
    parts = {"PCR0": whole, "PCR1": boot + b"".join(disks[:1]), "PCR2": b"".join(disks[1:])}
    return {name: sha384(bytes(48) + sha384(part).digest()).hexdigest() for name, part in parts.items()}


def _wrong(reason: str) -> ConfigurationError:
    return ConfigurationError(reason, code="measure.bad_image")
