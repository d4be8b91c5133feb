"""Doors: the listeners of an enclave, whose TLS and HTTP the extension does on threads of their own.

Whoever serves a door reads its events when its descriptor is readable, writes, and wakes it to have that sent: once for
all that one turn of the event loop has to say.
"""

from __future__ import annotations

import asyncio
import socket
import sys

from coco import limits
from coco._native import Front

#: Events of a door, as ``(kind, connection, ...)``.
OPENED, JSON_RPC, REQUEST, DATA, PRESSURE, CLOSED, FAILED, SUBMISSION, NOT_OPENED, MARKED = range(10)


def open_door(listener: socket.socket, *, protocol: str) -> Front:
    """Make the door of an inherited socket; it makes its descriptors now, before lock-down, and starts later."""
    of_peers = protocol in ("peer", "dialled")
    return Front(
        listener.detach(),
        head_bytes=limits.HEAD_BYTES_MAX,
        body_bytes=limits.BODY_BYTES_MAX,
        bodies_bytes=limits.BODIES_BYTES_MAX,
        # On the administration listener large bodies carry their own signatures.
        stranger_body_bytes=limits.ANONYMOUS_BODY_BYTES_MAX if protocol == "json_rpc" else limits.BODY_BYTES_MAX,
        stranger_bodies_bytes=limits.ANONYMOUS_BODIES_BYTES_MAX,
        replies_bytes=sys.maxsize if of_peers else limits.REPLIES_BYTES_MAX,
        connections=limits.PEER_LINKS_MAX if of_peers else limits.CONNECTIONS_MAX,
        strangers=limits.PEER_STRANGERS_MAX if of_peers else limits.STRANGERS_MAX,
        handshakes=limits.PEER_HANDSHAKES_MAX if of_peers else limits.HANDSHAKES_MAX,
        stranger_us_per_second=limits.STRANGERS_DOOR_US_PER_SECOND,
        stranger_us=limits.STRANGERS_DOOR_US_MAX,
        crumbs=limits.CRUMBS,
        unsent_bytes=limits.PEER_UNSENT_BYTES_MAX if of_peers else limits.REPLY_BYTES_MAX,
        # A link whose other side reads slowly must still be heard: it is cut at the limit, not held back before.
        pressure_bytes=limits.PEER_UNSENT_BYTES_MAX if of_peers else limits.REPLY_BYTES_SOFT,
        handshake_s=limits.HANDSHAKE_SECONDS_MAX,
        request_s=limits.REQUEST_SECONDS_MAX,
        idle_s=limits.IDLE_SECONDS_MAX,
        linger_s=limits.LINGER_SECONDS_MAX,
        protocol=protocol,
    )


class Waker:
    """Wakes one door once for each turn of the event loop."""

    def __init__(self, door: Front) -> None:
        self._door = door
        self._loop = asyncio.get_running_loop()
        self._due = False

    def soon(self) -> None:
        """There is something to send or to read on."""
        if not self._due:
            self._due = True
            self._loop.call_soon(self._wake)

    def _wake(self) -> None:
        self._due = False
        self._door.flush()
