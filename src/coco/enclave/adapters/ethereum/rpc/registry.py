"""The methods by name."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from coco.enclave.adapters.contract import Caller, Request
from coco.enclave.adapters.ethereum.backend import Backend
from coco.enclave.store import StoreView

Method = Callable[[Backend, Request, Caller, StoreView], Awaitable[Any]]

METHODS: dict[str, Method] = {}
#: Those whose answers tell of nobody's transactions and accounts.
PUBLIC: set[str] = set()


def method(function: Method) -> Method:
    """Serve a function under its own name; what it answers is :class:`Visible`."""
    METHODS[function.__name__] = function
    return function


def public_method(function: Method) -> Method:
    """Serve a function whose answers tell of nobody's."""
    PUBLIC.add(function.__name__)
    return method(function)
