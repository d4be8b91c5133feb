"""Addresses of nodes, as operators and members write them: ``host`` or ``host:port``. Pure; both sides read them.

Rules:

* A host is an IPv4 address or a name. The dialling host resolves a name, and nothing rests on what it finds: who
  answers is known by its attested key, and who may be there by the operator's statement, word for word.
* IPv6 is refused, with that reason: nodes reach each other over IPv4. So is what no other machine could dial.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Final

from coco.errors import ConfigurationError

_PORT_MAX: Final = 65_535
_NAME_MAX: Final = 253
_LABEL: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")


def check_host(text: str) -> str:
    """A host that other nodes can dial.

    Raises:
        ConfigurationError: it is none (``configuration.bad_address``).
    """
    if ":" in text or text.startswith("["):
        raise _refuse(text, "nodes reach each other over IPv4, and this is IPv6 or no address")
    labels = text.removesuffix(".").split(".")
    if not labels[-1].isdigit():
        if len(text) > _NAME_MAX or not all(_LABEL.fullmatch(label) for label in labels):
            raise _refuse(text, "it is neither an IPv4 address nor a name")
        return text
    try:
        found = ipaddress.IPv4Address(text)
    except ValueError as error:
        raise _refuse(text, "it is no IPv4 address") from error
    if found.is_unspecified or found.is_multicast or found == ipaddress.IPv4Address("255.255.255.255"):
        raise _refuse(text, "no other machine could dial it")
    return text


def check(text: str) -> str:
    """A host, or a host and a port.

    Raises:
        ConfigurationError: it is none (``configuration.bad_address``).
    """
    host, colon, port = text.rpartition(":")
    if not colon or ":" in host or host.startswith("["):
        return check_host(text)
    if not (port.isascii() and port.isdigit()) or not 0 < int(port) <= _PORT_MAX or port != str(int(port)):
        raise _refuse(text, f"a port is a number from 1 to {_PORT_MAX}")
    check_host(host)
    return text


def _refuse(text: str, why: str) -> ConfigurationError:
    return ConfigurationError(
        f"{text[:100]!r} is no address of a node: {why}",
        code="configuration.bad_address",
        hint="give HOST or HOST:PORT, such as node1.example.org:8445 or 10.0.0.1",
    )
