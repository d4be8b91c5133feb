"""Headers between clients and adapters: an adapter is given those that it asks for, and may write those of its own.

Rules: nothing of a request's headers is copied that no route asks for; a reply cannot split itself (RFC 9112, 11.1),
nor write what the framework says: framing, the connection, positions, refusals.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from coco import limits
from coco.enclave.adapters.contract.routes import AdapterFault

#: Written by the listener, or about the connection (RFC 9110, 7.6.1); whatever begins with a prefix is the framework's.
_OWN = frozenset(
    {
        *("content-length", "content-type", "date", "server", "trailer", "transfer-encoding"),
        *("connection", "keep-alive", "proxy-connection", "te", "upgrade"),
    }
)
_OWN_PREFIXES = ("coco-", "sec-websocket-", "x-ms-")
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(r"[ -~]*")


def is_name(text: str) -> bool:
    """Whether it is the lower-case name of a header."""
    return _NAME.fullmatch(text) is not None and text == text.lower()


def wanted(names: Sequence[str], given: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """Those of a request's headers that a route asks for; ``given`` has lower-case names."""
    picked: dict[str, str] = {}
    if names:
        for name, value in given:
            text = name.decode("latin-1")
            if text in names:
                decoded = value.decode("latin-1")
                picked[text] = f"{picked[text]}, {decoded}" if text in picked else decoded
    return picked


def checked(headers: Mapping[str, str]) -> dict[str, str]:
    """What an adapter wants to say in a reply's headers, with lower-case names.

    Raises:
        AdapterFault: it may not (``adapter.bad_header``).
    """
    lower: dict[str, str] = {}
    for name, value in headers.items():
        key = name.lower()
        if _NAME.fullmatch(name) is None or _VALUE.fullmatch(value) is None:
            raise _refusal("a header has a name or a value that HTTP does not carry")
        if key in _OWN or key.startswith(_OWN_PREFIXES):
            raise _refusal(f"the header {key[:64]} is the framework's")
        lower[key] = value
    if sum(len(name) + len(value) for name, value in lower.items()) > limits.REPLY_HEADERS_BYTES_MAX:
        raise _refusal(f"the headers of a reply have at most {limits.REPLY_HEADERS_BYTES_MAX} bytes")
    return lower


def _refusal(message: str) -> AdapterFault:
    return AdapterFault(message, code="adapter.bad_header", hint="this is a fault of the adapter, not of the request")
