"""``coco ledger``: export the open format, and show what the administrative ledger says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cryptography import x509

from coco._native import Entry
from coco.audit import Auditor
from coco.enclave.core.rules_worker import call_here
from coco.errors import ConfigurationError, LedgerError
from coco.host.persistence import iterate_entries, open_database
from coco.ledger import tables
from coco.ledger.chunks import write_chunk
from coco.ledger.constitution import Constitution
from coco.ledger.replay import Replay

_CHUNK_BYTES = 5_000_000
_SAY_EVERY = 100


def _entries(ledger: Path) -> Iterator[tuple[int, bytes]]:
    if not ledger.is_file():
        raise ConfigurationError(f"there is no ledger at {ledger}", code="ledger.no_file")
    connection = open_database(ledger)
    try:
        yield from iterate_entries(connection)
    finally:
        connection.close()


def export(ledger: Path, directory: Path, say: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """Write chunk files; each ends on a signature entry, and what no signature covers is left out.

    Raises:
        LedgerError: the ledger has a gap.
    """
    directory.mkdir(parents=True, exist_ok=True)
    if any(directory.glob("ledger_*")):
        raise ConfigurationError(f"{directory} holds chunk files already", code="ledger.not_empty")
    files: list[str] = []
    waiting: list[bytes] = []
    signed, size, first, last = 0, 0, 1, 0
    for seqno, entry in _entries(ledger):
        if seqno != last + 1:
            raise LedgerError(f"entry {last + 1} is missing", code="ledger.gap")
        last = seqno
        if seqno % _SAY_EVERY == 0:
            say(f"exporting: {seqno} entries")
        waiting.append(entry)
        size += len(entry)
        if tables.SIGNATURES in Entry.parse(entry).public_writes().tables():
            signed = len(waiting)
            if size >= _CHUNK_BYTES:
                files.append(write_chunk(directory, first, waiting).name)
                first, waiting, signed, size = seqno + 1, [], 0, 0
    if signed:
        files.append(write_chunk(directory, first, waiting[:signed]).name)
    return {"files": files, "entries": first - 1 + signed, "left_out_unsigned": len(waiting) - signed}


def verify(ledger: Path, service: str, say: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """Check a whole ledger against a pinned service, trusting no node: chain, every signature, and what is committed.

    Args:
        ledger: a node's file.
        service: PEM certificate of the service; empty takes the ledger's own, and says so.
        say: hears of progress.

    Raises:
        LedgerError: damaged, unsigned, or of another service.
    """
    replay = Replay()
    for seqno, entry in _entries(ledger):
        replay.feed([entry])
        if seqno % _SAY_EVERY == 0:
            say(f"verifying: {seqno} entries")
    say("verifying the signatures")
    return _verified(replay, service)


def _verified(replay: Replay, service: str) -> dict[str, Any]:
    end, unsigned = replay.end()
    found = replay.service_certificate(end)
    if service:
        pinned = x509.load_pem_x509_certificate(service.encode())
        if pinned.public_key() != found.public_key():
            raise LedgerError("the ledger belongs to another service", code="ledger.other_service")
    committed = replay.proven_committed(end)
    views = [0, *(entry.view for entry in replay.entries)]
    return {
        "committed": f"{views[committed]}.{committed}",
        "signed_commitment_unproven": end - committed,
        "last_signed": f"{views[end]}.{end}",
        "unsigned": unsigned,
        "signatures": sum(1 for seqno in replay.signatures if seqno <= end),
        "root": replay.tree.root(end).hex(),
        "service_pinned": bool(service),
    }


def audit(ledger: Path, service: str, say: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """Judge every governance step of a ledger again, offline: who proposed and voted what, under which rules.

    Args:
        ledger: a node's file.
        service: as for :func:`verify`.
        say: hears of progress.

    Raises:
        LedgerError: as :func:`verify`.
    """
    replay = Replay()
    auditor = Auditor(call_here, replay.tree)

    async def feed() -> None:
        for seqno, data in _entries(ledger):
            replay.feed([data])
            await auditor.feed(seqno, Entry.parse(data).public_writes())
            if seqno % _SAY_EVERY == 0:
                say(f"auditing: {seqno} entries")

    asyncio.run(feed())
    say("verifying the signatures")
    verified = _verified(replay, service)
    end = int(verified["last_signed"].partition(".")[2])  # what no signature covers is nobody's word
    found = {"events": auditor.events, "violations": auditor.violations}
    return {**verified, **{name: [one for one in told if one["seqno"] <= end] for name, told in found.items()}}


def constitution(ledger: Path, at: int = 1 << 62) -> tuple[dict[str, Any], list[tuple[int, str]]]:
    """The constitution at an entry, and every version up to it: the entry that made it, and its hash.

    Raises:
        ConfigurationError: there is no such ledger.
    """
    found = Constitution()
    for seqno, entry in _entries(ledger):
        if seqno > at:
            break
        found.feed(seqno, Entry.parse(entry).public_writes())
    return found.document(), found.versions


def differences(before: Any, after: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Each place at which two documents differ: where, what it was, what it is (None: nothing there)."""
    if isinstance(before, dict) and isinstance(after, dict):
        for name in sorted({*before, *after}):
            yield from differences(before.get(name), after.get(name), f"{path}/{name}")
    elif before != after:
        yield path, before, after


def describe(ledger: Path, first: int, last: int) -> Iterator[dict[str, Any]]:
    """What anyone may read of each entry: position, public tables, and the size of the sealed part."""
    for seqno, data in _entries(ledger):
        if not first <= seqno <= last:
            continue
        entry = Entry.parse(data)
        writes = entry.public_writes()
        rows: dict[str, Any] = {}
        for table in writes.tables():
            if table in (tables.PREDECESSOR, tables.TREE, tables.SIGNATURES, tables.COSE_SIGNATURES):
                continue
            rows[table] = {_key(key): _value(value) for key, value in writes.rows(table)}
        kind = "signature" if tables.SIGNATURES in writes.tables() else "write set"
        yield {"id": f"{entry.view}.{entry.seqno}", "kind": kind, "bytes": len(data), "public": rows}


def _key(key: bytes) -> str:
    return "" if key == tables.SINGLETON else key.decode("ascii") if key.isascii() and key.isalnum() else key.hex()


def _value(value: bytes | None) -> Any:
    if value is None:
        return None
    try:
        return json.loads(value)
    except ValueError:
        return value.decode(errors="replace") if value.startswith(b"-----BEGIN") else value.hex()[:128]
