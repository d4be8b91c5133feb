"""The methods by name."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from coco.enclave.adapters.contract import Caller, Request
from coco.enclave.adapters.ethereum.backend import Backend
from coco.enclave.store import StoreView

Method = Callable[[Backend, Request, Caller, StoreView], Awaitable[Any]]

METHODS: dict[str, Method] = {}


def method(function: Method) -> Method:
    """Serve a function under its own name."""
    METHODS[function.__name__] = function
    return function
