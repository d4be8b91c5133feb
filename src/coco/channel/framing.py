"""Frames on the control channel: ``u32 length | u64 number | message``, big-endian.

Rules: a length over the limit is refused before a byte of it is kept; numbers count up from 1 without gap, so that a
lost, repeated or reordered message is noticed at once.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

from coco import limits
from coco.errors import HostLiedError, RequestError

_HEADER: Final = struct.Struct(">IQ")


class FrameWriter:
    """Numbers and frames messages."""

    def __init__(self) -> None:
        self._number = 0

    def frame(self, message: bytes) -> bytes:
        """Return the frame of the next message.

        Raises:
            RequestError: it is longer than the other side takes (``channel.too_large``).
        """
        if len(message) > limits.MESSAGE_BYTES_MAX:
            raise RequestError(f"a message of {len(message)} bytes", code="channel.too_large")
        self._number += 1
        return _HEADER.pack(len(message), self._number) + message


class FrameReader:
    """Cuts a stream of bytes into messages."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._number = 0

    @property
    def number(self) -> int:
        """Of the last message that was whole."""
        return self._number

    @property
    def held(self) -> int:
        """Bytes of a message that is not whole yet."""
        return len(self._buffer)

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Take bytes and yield the messages that they complete.

        Raises:
            HostLiedError: ``channel.oversized`` or ``channel.out_of_order``.
        """
        self._buffer += data
        at = 0
        try:
            while len(self._buffer) - at >= _HEADER.size:
                length, number = _HEADER.unpack_from(self._buffer, at)
                if length > limits.MESSAGE_BYTES_MAX:
                    raise HostLiedError(f"a message of {length} bytes", code="channel.oversized")
                if number != self._number + 1:
                    raise HostLiedError(f"message {number} after {self._number}", code="channel.out_of_order")
                end = at + _HEADER.size + length
                if len(self._buffer) < end:
                    return
                self._number = number
                message = bytes(self._buffer[at + _HEADER.size : end])
                at = end
                yield message
        finally:
            del self._buffer[:at]
