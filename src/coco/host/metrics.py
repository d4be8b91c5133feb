"""What a node tells a monitoring system: numbers of its enclave and of its relays, in the text format of Prometheus.

Rules (H1): numbers only, under fixed names; no label for an actor, a method or a contract. Plain HTTP on an address of
the operator's choice, loopback by default: nothing here is a secret to whoever runs the host.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

_HEAD_SECONDS = 5.0
_HEAD_BYTES_MAX = 8192
#: Numbers that only grow.
_COUNTERS = frozenset(
    (
        *("transactions", "batches", "signatures", "commits", "refused", "crashed", "unexpected"),
        *("checked", "checked_early"),
        *("accepted", "bytes_in", "bytes_out"),
        *("check_us", "execute_us", "seal_us", "sign_us", "commit_us"),
    )
)


def sizes(ledger: Path) -> dict[str, int]:
    """Bytes of a ledger, with what is not merged into its file yet, and of what is free beside it."""
    parts = (ledger, ledger.with_name(f"{ledger.name}-wal"), ledger.with_name("index.db"))
    taken = 0
    for part in parts:
        with contextlib.suppress(FileNotFoundError):
            taken += part.stat().st_size
    found = {"ledger_bytes": taken}
    with contextlib.suppress(OSError):
        found["disk_free_bytes"] = shutil.disk_usage(ledger.parent).free
    return found


def render(numbers: Mapping[str, Mapping[str, int]]) -> str:
    """The exposition: for each number its values by listener ("" for the node itself)."""
    lines = []
    for name, values in sorted(numbers.items()):
        kind = "counter" if name.rpartition(".")[2] in _COUNTERS else "gauge"
        metric = "coco_" + name.replace(".", "_") + ("_total" if kind == "counter" else "")
        lines.append(f"# TYPE {metric} {kind}")
        for listener, value in sorted(values.items()):
            label = f'{{listener="{listener}"}}' if listener else ""
            lines.append(f"{metric}{label} {value}")
    return "\n".join(lines) + "\n"


class MetricsServer:
    """Serves ``GET /metrics``."""

    def __init__(self, collect: Callable[[], Mapping[str, Mapping[str, int]]]) -> None:
        self._collect = collect
        self._server: asyncio.Server | None = None

    @property
    def port(self) -> int:
        """Port that it listens on."""
        assert self._server is not None, "asked once it has started"
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def start(self, host: str, port: int) -> None:
        """Begin to serve.

        Raises:
            OSError: the port is taken.
        """
        self._server = await asyncio.start_server(self._serve, host, port, limit=_HEAD_BYTES_MAX)

    def stop(self) -> None:
        """End."""
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, ValueError, TimeoutError, asyncio.IncompleteReadError):
            async with asyncio.timeout(_HEAD_SECONDS):
                head = await reader.readuntil(b"\r\n\r\n")
                found = head.startswith((b"GET /metrics ", b"GET /metrics?"))
                body = render(self._collect()).encode() if found else b"there is only /metrics\n"
                status = "200 OK" if found else "404 Not Found"
                writer.write(
                    f"HTTP/1.1 {status}\r\ncontent-type: text/plain; version=0.0.4\r\n"
                    f"content-length: {len(body)}\r\nconnection: close\r\n\r\n".encode()
                    + body
                )
                await writer.drain()
        writer.close()
