"""An adapter that tries, inside the locked enclave, what must fail there (H4, lock-down)."""

from __future__ import annotations

import ctypes
import os
import socket
import ssl
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

from coco.enclave.adapters.contract import (
    BatchSession,
    Caller,
    LedgerAdapter,
    Manifest,
    Reply,
    Request,
    Route,
    RouteKind,
)


def _thread() -> None:
    thread = threading.Thread(target=lambda: None)
    thread.start()
    thread.join()


ATTEMPTS = {
    "open a host file": lambda: open("/etc/passwd"),
    "open /proc": lambda: open("/proc/self/maps"),
    "create a file": lambda: open("/created", "w"),
    "list the root": lambda: os.listdir("/"),
    "make a folder": lambda: os.mkdir("/keys/x"),
    "socket": socket.socket,
    "unix socket": lambda: socket.socket(socket.AF_UNIX),
    "vsock": lambda: socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM),
    "fork": os.fork,
    "signal the parent": lambda: os.kill(os.getppid(), 0),
    "memfd": lambda: os.memfd_create("x"),
    "pipe": os.pipe,
    "late import": lambda: __import__("xml.dom.minidom"),
    "load a library": lambda: ctypes.CDLL("libsqlite3.so.0"),
    "executable memory": lambda: __import__("mmap").mmap(-1, 4096, prot=7),
    "change user": lambda: os.setuid(12345),
}
ALLOWED = {
    "thread": _thread,
    "key": lambda: ec.generate_private_key(ec.SECP384R1()),
    "tls context": lambda: ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
    "randomness": lambda: os.urandom(32),
    "time": time.time,
}


class Probe(LedgerAdapter):
    def manifest(self) -> Manifest:
        return Manifest(
            "probe",
            "1",
            (
                Route("probe", RouteKind.QUERY, "GET", "/probe"),
                Route("raise", RouteKind.QUERY, "GET", "/raise/{text}"),
                Route("rpc_raise", RouteKind.QUERY),
            ),
            (),
        )

    async def admit(self, raw: Sequence[bytes], caller: Caller) -> Sequence[Any]:
        return []

    async def open(self, tx: Any, block: Any) -> BatchSession:
        raise NotImplementedError("it takes no transactions")

    async def query(self, request: Request, caller: Caller, view: Any) -> Reply:
        params: Any = request.params
        if request.name == "raise":
            raise ValueError(params["text"])
        if request.name == "rpc_raise":
            raise KeyError(params[0])
        result = {}
        for name, attempt in {**ATTEMPTS, **ALLOWED}.items():
            try:
                attempt()
                result[name] = "allowed"
            except Exception as error:
                result[name] = type(error).__name__
        return Reply({"attempts": result, "descriptors": sorted(self._descriptors())}, public=True)

    def _descriptors(self) -> list[int]:
        found = []
        for descriptor in range(64):
            try:
                os.fstat(descriptor)
                found.append(descriptor)
            except OSError:
                pass
        return found

    def redact(self, items: Sequence[Any], caller: Caller, view: Any) -> list[Any]:
        return list(items)


def adapter(settings: Mapping[str, Any]) -> Probe:
    return Probe()
