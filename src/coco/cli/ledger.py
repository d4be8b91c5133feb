"""``coco ledger``: export the open format, and show what the administrative ledger says."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from coco import limits
from coco._native import Entry
from coco.audit import Auditor, reading, report
from coco.audit.rows import Written
from coco.enclave.platform.rules_worker import call_here
from coco.errors import CocoError, ConfigurationError, LedgerError
from coco.ledger import receipts, tables
from coco.ledger.chunks import write_chunk
from coco.ledger.constitution import Constitution
from coco.ledger.replay import Replay
from coco.ledger.statements import parse_json
from coco.ledger.transaction_id import TransactionId

_MEASUREMENT = re.compile("[0-9a-fA-F]{1,256}")
_CHUNK_BYTES = 5_000_000
_SAY_EVERY = 100

_entries = reading.entries


def _parsed(seqno: int, data: bytes) -> Entry:
    try:
        return Entry.parse(data)
    except CocoError as error:
        why = f"entry {seqno} is damaged: {error}"
        raise LedgerError(why, code="ledger.damaged", numbers={"entry": seqno}) from error


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
        if tables.SIGNATURES in _parsed(seqno, entry).public_writes().tables():
            signed = len(waiting)
            if size >= _CHUNK_BYTES:
                files.append(write_chunk(directory, first, waiting).name)
                first, waiting, signed, size = seqno + 1, [], 0, 0
    if signed:
        files.append(write_chunk(directory, first, waiting[:signed]).name)
    return {"files": files, "entries": first - 1 + signed, "left_out_unsigned": len(waiting) - signed}


def verify(
    ledger: Path,
    service: str,
    say: Callable[[str], None] = lambda text: None,
    *,
    expect: str = "",
    receipts_held: Sequence[Path] = (),
) -> dict[str, Any]:
    """Check a whole ledger against a pinned service, trusting no node: chain, every signature, and what is committed.

    Args:
        ledger: a node's file, or a folder of chunk files.
        service: PEM certificate of the service; empty takes the ledger's own, and says so.
        say: hears of progress.
        expect: transaction id that must be in it; empty: none is known.
        receipts_held: files with receipts of transactions that must be in it.

    Raises:
        LedgerError: damaged, unsigned, of another service, or cut before what should be in it.
    """
    replay = Replay()
    for seqno, entry in _entries(ledger):
        replay.feed([entry])
        if seqno % _SAY_EVERY == 0:
            say(f"verifying: {seqno} entries")
    say("verifying the signatures")
    return _verified(replay, service, expect, receipts_held)


def _verified(replay: Replay, service: str, expect: str, receipts_held: Sequence[Path]) -> dict[str, Any]:
    end, unsigned = replay.end()
    found = replay.service_certificate(end)
    if service:
        pinned = x509.load_pem_x509_certificate(service.encode())
        if pinned.public_key() != found.public_key():
            raise LedgerError("the ledger belongs to another service", code="ledger.other_service")
    committed = replay.proven_committed(end)
    if expect:
        _contains(replay, end, TransactionId.parse(expect))
    held = [str(_holds(replay, end, path)) for path in receipts_held]
    views = [0, *(entry.view for entry in replay.entries)]
    return {
        "committed": f"{views[committed]}.{committed}",
        "signed_commitment_unproven": end - committed,
        "last_signed": f"{views[end]}.{end}",
        "unsigned": unsigned,
        "signatures": sum(1 for seqno in replay.signatures if seqno <= end),
        "root": replay.tree.root(end).hex(),
        "service_pinned": bool(service),
        "cut_excluded_up_to": max(
            [expect, *held], key=lambda one: TransactionId.parse(one) if one else TransactionId(0, 0)
        ),
    }


def _contains(replay: Replay, end: int, position: TransactionId) -> None:
    """Whether the signed part of a ledger has a transaction: who knows it sees a cut before it (L5)."""
    if not 0 < position.seqno <= end or replay.entries[position.seqno - 1].view != position.view:
        raise LedgerError(
            f"the ledger does not contain {position}: what is signed ends at {replay.entries[end - 1].view}.{end}",
            code="ledger.position_missing",
            hint="it was cut, or another one continued from here; ask another node for its ledger",
            numbers={"entry": position.seqno},
        )


def _holds(replay: Replay, end: int, path: Path) -> TransactionId:
    """Whether a ledger has the transaction of a receipt, bit for bit; which one that is."""
    try:
        if path.stat().st_size > limits.BODY_BYTES_MAX:
            raise ValueError("it is too long")
        body = parse_json(path.read_bytes())
        body = body.get("receipt", body)  # of coco receipt get, or as a node gives it
        parts = body["leaf_components"]
        digest, claims = bytes.fromhex(parts["write_set_digest"]), bytes.fromhex(parts["claims_digest"])
        leaf = receipts.leaf(digest, str(parts["commit_evidence"]), claims)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigurationError(f"{path} is no receipt: {error}", code="receipt.malformed") from error
    position, refused = None, None
    for service in replay.services():
        try:
            position = receipts.verify(body, service)
        except LedgerError as error:
            refused = error
    if position is None:
        raise LedgerError(f"{path} is no receipt of this service: {refused}", code="receipt.invalid")
    _contains(replay, end, position)
    if replay.tree.leaf(position.seqno) != leaf:
        why = f"entry {position.seqno} is another one than {path} is a receipt of"
        raise LedgerError(why, code="ledger.other_entry", numbers={"entry": position.seqno})
    return position


def audit(
    ledger: Path,
    service: str,
    say: Callable[[str], None] = lambda text: None,
    *,
    expect: str = "",
    receipts_held: Sequence[Path] = (),
    earlier: Sequence[str] = (),
) -> dict[str, Any]:
    """Judge every step of a ledger again, offline: who did what, under which rules, and whether that was all.

    Args:
        ledger: a node's file, or a folder of chunk files.
        service: as for :func:`verify`.
        say: hears of progress.
        expect: as for :func:`verify`.
        receipts_held: as for :func:`verify`.
        earlier: measurements, in hex, of code of the version before: what its nodes wrote is judged by its rules.

    Raises:
        LedgerError: as :func:`verify`.
        ConfigurationError: what is no measurement (``ledger.bad_measurement``).
    """
    for one in earlier:
        if not _MEASUREMENT.fullmatch(one):
            raise ConfigurationError(f"{one[:64]} is no measurement in hex", code="ledger.bad_measurement")
    replay = Replay()
    auditor = Auditor(call_here, replay.tree, [one.lower() for one in earlier])

    async def feed() -> None:
        for seqno, data in _entries(ledger):
            replay.feed([data])
            if len(replay.entries) == seqno:  # what does not follow is judged by where the ledger ends
                await auditor.feed(Written.of(data, replay.entries[-1]))
            if seqno % _SAY_EVERY == 0:
                say(f"auditing: {seqno} entries")

    asyncio.run(feed())
    replay.verified.update(auditor.signatures)
    say("verifying the signatures")
    verified = _verified(replay, service, expect, receipts_held)
    end = int(verified["last_signed"].partition(".")[2])  # what no signature covers is nobody's word
    found = {"events": auditor.events, "violations": auditor.violations}
    return {
        **verified,
        "steps": {step.value: count for step, count in auditor.steps.items()},
        "code": [one for one in auditor.code if one["seqno"] <= end],
        **{name: [one for one in told if one["seqno"] <= end] for name, told in found.items()},
    }


def write_report(path: Path, found: dict[str, Any], ledger: Path, service: Path | None) -> None:
    """Write what :func:`audit` found as a page.

    Raises:
        ConfigurationError: it cannot be written (``ledger.no_report``).
    """
    pinned = ""
    if service is not None:
        pinned = x509.load_pem_x509_certificate(service.read_bytes()).fingerprint(hashes.SHA256()).hex()
    try:
        path.write_text(report.html(found, str(ledger), pinned))
    except OSError as error:
        raise ConfigurationError(f"cannot write {path}: {error.strerror}", code="ledger.no_report") from error


def constitution(ledger: Path, at: int = 1 << 62) -> tuple[dict[str, Any], list[tuple[int, str]]]:
    """The constitution at an entry, and every version up to it: the entry that made it, and its hash.

    Raises:
        ConfigurationError: there is no such ledger.
    """
    found = Constitution()
    for seqno, entry in _entries(ledger):
        if seqno > at:
            break
        found.feed(seqno, _parsed(seqno, entry).public_writes())
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
        entry = _parsed(seqno, data)
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
        return parse_json(value)
    except ValueError:
        return value.decode(errors="replace") if value.startswith(b"-----BEGIN") else value.hex()[:128]
