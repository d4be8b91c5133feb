"""What an operator can do when a port cannot be listened on."""

from __future__ import annotations

import errno
import re
from pathlib import Path

from coco.errors import HostError

_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")


def outgoing() -> range:
    """The ports that this machine gives to its outgoing connections; none if it does not say."""
    try:
        first, last = map(int, _RANGE.read_text().split())
    except (OSError, ValueError):
        return range(0)
    return range(first, last + 1)


def cannot_listen(address: tuple[str, int], error: Exception) -> HostError:
    """The error of an address that the system refuses, with what to do about it.

    Args:
        address: host and port.
        error: an ``OSError``, or one whose text ends with ``(os error NUMBER)``.
    """
    host, port = address
    named = re.search(r"\(os error (\d+)\)", str(error))
    number = int(named[1]) if named else error.errno if isinstance(error, OSError) else None
    text = str(error).removeprefix(f"{host}:{port}: ")
    return HostError(f"cannot listen on {host}:{port}: {text}", code="host.cannot_listen", hint=_hint(port, number))


def _hint(port: int, number: int | None) -> str:
    if number == errno.EADDRNOTAVAIL:
        return "listen on an address that this machine has (ip address shows them); others may reach it by --advertise"
    if number == errno.EACCES:
        return "choose a port from 1024 on, or allow this one: sysctl net.ipv4.ip_unprivileged_port_start"
    if number != errno.EADDRINUSE:
        return "coco doctor says what this machine lacks"
    who = f"ss -tanp 'sport = :{port}' says who has it; end that, or choose another port"
    given = outgoing()
    if port in given:
        who += (
            f" below {given.start}: those from {given.start} to {given.stop - 1} this machine gives to outgoing "
            "connections, any of which may hold one for as long as it lasts"
        )
    return who
