"""An adapter with children: a function that may ask back, and a program that breaks the form of its messages.

GET /asked/{child}/{question}    what the child answers
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from coco.enclave.adapters.contract import (
    AskBack,
    BatchSession,
    Caller,
    Child,
    LedgerAdapter,
    Manifest,
    Reply,
    Request,
    Route,
    RouteKind,
)


def serve(question: bytes, ask: AskBack) -> bytes:
    match question:
        case b"die":
            os._exit(1)
        case b"loop":
            while True:
                pass
        case b"memory":
            return bytes(len(b"x" * (1 << 30)) % 2)
        case b"open":
            return Path("/etc/passwd").read_bytes()
        case b"import":
            import xml.dom.minidom  # noqa: F401
    return b"the child says " + ask(question)


class Asker(LedgerAdapter):
    def manifest(self) -> Manifest:
        return Manifest("asker", "1", (Route("ask", RouteKind.QUERY, "GET", "/asked/{child}/{question}"),), ())

    async def admit(self, raw: Sequence[bytes], caller: Caller) -> Sequence[Any]:
        return []

    async def open(self, tx: Any, block: Any) -> BatchSession:
        raise NotImplementedError

    async def query(self, request: Request, caller: Caller, view: Any) -> Reply:
        params: Any = request.params

        async def back(question: bytes) -> bytes:
            return question.upper()

        child = self.services.child(params["child"])
        return Reply((await child.ask(params["question"].encode(), back)).decode(), public=True)

    def redact(self, items: Sequence[Any], caller: Caller, view: Any) -> list[Any]:
        return list(items)


def adapter(settings: Mapping[str, Any]) -> Asker:
    return Asker()


_LOADED = [line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines()]
_FILES = sorted({path for path in _LOADED if Path(path).name.startswith(("libc.so", "libc-", "ld-linux", "ld-2"))})
adapter.children = (  # type: ignore[attr-defined]
    Child("function", serve=serve, memory_bytes=64 << 20, answer_seconds=1.0),
    # What it is asked comes back as it went, which is no answer.
    Child("program", command=("/bin/cat",), files=("/bin/cat", "/lib64/ld-linux-x86-64.so.2", *_FILES)),
)
