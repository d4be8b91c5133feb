"""The folder of a sandbox: what lies in it, how it is made, and which of its copies of the ledger is believed.

Rules:

* A folder is made whole or not at all: keys and genesis are made beside and moved in, the genesis last.
* No key and no genesis is ever overwritten: where something of a sandbox is missing, its start says what.
* Only a folder with the marker is a sandbox's to move away, and it is moved, not erased: one former one is kept.
* Which copy of the ledger is believed is decided by its signatures. A bad copy is named, kept and mended from a good
  one.
"""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding

from coco._native import Entry
from coco.client.files import write_whole
from coco.client.members import Member
from coco.errors import CocoError, ConfigurationError, HostError, LedgerError
from coco.host.folder import LOCK, FolderLock
from coco.host.persistence import iterate_entries, last_signed, open_database, set_aside, unreadable
from coco.ledger import tables
from coco.ledger.replay import Replay
from coco.ledger.statements import spki_of
from coco.ledger.transaction_id import TransactionId

MEMBER, PARTICIPANT, OPERATOR = "alice", "dapp", "operator"
MARKER, LOG = "sandbox.json", "sandbox.log"
_WHAT = "coco sandbox"
_MAKING, _FORMER = ".making", ".former"
_NODE = re.compile(r"n(0|[1-9][0-9]{0,3})\Z")


@dataclass(frozen=True)
class SandboxFiles:
    """Where everything of one sandbox lies."""

    directory: Path

    def ledger(self, number: int) -> Path:
        """Ledger of a node."""
        return self.directory / f"n{number}" / "ledger.db"

    def ledgers(self) -> dict[int, Path]:
        """Every ledger that is there, by node."""
        found = [path.parent.name for path in self.directory.glob("n*/ledger.db")]
        return {int(name[1:]): self.directory / name / "ledger.db" for name in sorted(found) if _NODE.match(name)}

    @property
    def pin(self) -> Path:
        """What the sandbox's client knows of the service."""
        return self.directory / "connect.json"

    @property
    def service(self) -> Path:
        """Service certificate."""
        return self.directory / "service.pem"

    @property
    def genesis(self) -> Path:
        """Genesis document."""
        return self.directory / "genesis.json"

    @property
    def marker(self) -> Path:
        """What says that the folder is a sandbox's."""
        return self.directory / MARKER

    def actor(self, kind: str, name: str, suffix: str) -> Path:
        """A key or certificate file."""
        return self.directory / kind / f"{name}{suffix}"

    def member(self) -> Member:
        """The development member's keys."""
        return Member.load(*(self.actor("members", MEMBER, end) for end in (".pem", ".key.pem", ".encryption.key.pem")))

    def needed(self) -> list[Path]:
        """Files without which a sandbox cannot be started again."""
        member = [self.actor("members", MEMBER, end) for end in (".pem", ".key.pem", ".encryption.key.pem")]
        return [self.genesis, *member, *(self.actor("participants", PARTICIPANT, end) for end in (".pem", ".key.pem"))]

    def is_marked(self) -> bool:
        """Whether the marker says that this is a sandbox."""
        try:
            return bool(json.loads(self.marker.read_text())["what"] == _WHAT)
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def holds(self) -> list[str]:
        """Names in the folder, but for those that say nothing."""
        if not self.directory.is_dir():
            return []
        return sorted(one.name for one in self.directory.iterdir() if one.name not in (LOCK, LOG))


def check(files: SandboxFiles) -> None:
    """Refuse a folder that is something else, before anything is written into it.

    Raises:
        ConfigurationError: ``sandbox.not_a_sandbox``.
    """
    if files.directory.exists() and not files.directory.is_dir():
        raise ConfigurationError(f"{files.directory} is no folder", code="sandbox.not_a_sandbox")
    known = [path.relative_to(files.directory).parts[0] for path in files.needed()]
    known += [MARKER, _MAKING, files.pin.name, files.service.name]
    held = files.holds()
    if held and not any(name in known or _NODE.match(name) for name in held):
        raise _not_a_sandbox(files)


def _not_a_sandbox(files: SandboxFiles) -> ConfigurationError:
    return ConfigurationError(
        f"{files.directory} is not a sandbox: it has no {MARKER} and is not empty",
        code="sandbox.not_a_sandbox",
        hint="give a folder of its own with --dir; of one of an earlier version, move it away yourself",
    )


def prepare(files: SandboxFiles, make: Callable[[SandboxFiles], object]) -> bool:
    """Have everything there that a start needs; whether ``make`` was called for it, in a folder with nothing in it.

    Raises:
        ConfigurationError: something is missing, or damaged, that cannot be made again (``sandbox.incomplete``).
    """
    _finish_making(files)
    held = [name for name in files.holds() if name != MARKER]
    if not held:
        write_whole(files.marker, {"what": _WHAT})
        making = SandboxFiles(files.directory / _MAKING)
        making.directory.mkdir()
        make(making)
        _finish_making(files)
        return True
    if not files.genesis.exists():
        _genesis_from_a_ledger(files)
    missing = [str(path.relative_to(files.directory)) for path in files.needed() if not path.exists()]
    if missing:
        raise ConfigurationError(
            f"the sandbox {files.directory} lacks {', '.join(missing)}",
            code="sandbox.incomplete",
            hint="put it back from a copy; or begin anew with --fresh, which moves this folder aside",
        )
    try:
        whole = isinstance(json.loads(files.genesis.read_text()), dict)
    except ValueError:
        whole = False
    if not whole:
        raise ConfigurationError(
            f"{files.genesis} is damaged",
            code="sandbox.incomplete",
            hint="move it away: it is written again from the ledger",
        )
    return False


def _finish_making(files: SandboxFiles) -> None:
    """Move in what was made, the genesis last; what was not finished was never used by anybody."""
    making = SandboxFiles(files.directory / _MAKING)
    if not making.directory.is_dir() or not files.is_marked():
        return
    if making.genesis.exists():
        for one in sorted(making.directory.iterdir(), key=lambda path: path.name == making.genesis.name):
            one.rename(files.directory / one.name)
    shutil.rmtree(making.directory)


def _genesis_from_a_ledger(files: SandboxFiles) -> None:
    for ledger in files.ledgers().values():
        try:
            _, first = next(_entries(ledger))
            row = dict(Entry.parse(first).public_writes().rows(tables.GENESIS)).get(tables.SINGLETON)
            document = json.loads(row or b"")
        except (StopIteration, CocoError, ValueError):
            continue
        write_whole(files.genesis, document)
        return


def unmake(files: SandboxFiles, *, keep_folder: bool) -> None:
    """Take away what this very start has made, and nobody has used: a setting of its genesis was wrong."""
    for name in files.holds():
        path = files.directory / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for name in (LOG, LOCK):
        (files.directory / name).unlink(missing_ok=True)
    if not keep_folder:
        files.directory.rmdir()


def begin_anew(files: SandboxFiles) -> Path | None:
    """Move a sandbox aside, so that another one can be made; return where it is, None if there was none.

    Raises:
        ConfigurationError: the folder, or the one that it would be moved to, is something else
            (``sandbox.not_a_sandbox``).
        HostError: it is in use (``host.folder_in_use``), or cannot be moved (``host.folder_unusable``).
    """
    if not files.directory.is_dir() or not files.holds():
        return None
    if not files.is_marked():
        raise _not_a_sandbox(files)
    former = SandboxFiles(files.directory.with_name(files.directory.name + _FORMER))
    lock = FolderLock(files.directory)
    try:
        if former.directory.exists():
            if not former.is_marked():
                raise _not_a_sandbox(former)
            shutil.rmtree(former.directory)
        files.directory.rename(former.directory)
    except OSError as error:
        raise HostError(
            f"cannot move {files.directory} aside: {error.strerror}",
            code="host.folder_unusable",
            hint="give another folder with --dir",
        ) from error
    finally:
        lock.release()
    return former.directory


# --- copies of the ledger ---


def _entries(ledger: Path) -> Iterator[tuple[int, bytes]]:
    connection = open_database(ledger)
    try:
        yield from iterate_entries(connection)
    except sqlite3.Error as error:
        raise unreadable(ledger, error) from error
    finally:
        connection.close()


@dataclass
class Copies:
    """The copies of the ledger that a sandbox's nodes hold."""

    #: The one to recover from; None: nothing was ever signed in any.
    best: int | None = None
    #: Why others cannot be believed, by node.
    bad: dict[int, CocoError] = field(default_factory=dict)


def examine(files: SandboxFiles, service: str, say: Callable[[str], None] = lambda text: None) -> Copies:
    """Find the copy whose believable part goes furthest.

    Args:
        files: of the sandbox.
        service: PEM of the service that it must be of, or end in; empty: any.
        say: hears of progress.
    """
    found, claimed = Copies(), dict[int, tuple[int, int]]()
    for number, ledger in files.ledgers().items():
        try:
            claimed[number] = last_signed(ledger)
        except HostError as error:
            found.bad[number] = error
    ordered = sorted((number for number, end in claimed.items() if end != (0, 0)), key=lambda n: (claimed[n], -n))[::-1]
    if len(ordered) + len(found.bad) < 2:
        found.best = ordered[0] if ordered else None
        return found  # there is no choice: the enclave says what is wrong with it
    believed: dict[int, TransactionId] = {}
    for number in ordered:
        if believed and max(believed.values()) >= TransactionId(*claimed[number]):
            break
        say(f"looking at the ledger of n{number}")
        try:
            believed[number] = _believable(files.ledger(number), service)
        except CocoError as error:
            found.bad[number] = error
    if believed:
        found.best = max(believed, key=lambda number: (believed[number], -number))
    elif ordered:
        found.best = ordered[0]
        del found.bad[ordered[0]]
    return found


def _believable(ledger: Path, service: str) -> TransactionId:
    """Where the last life that opened ends.

    Raises:
        LedgerError: the ledger is damaged, or another service's (``ledger.other_service``).
        HostError: its file is.
    """
    replay = Replay()
    for _, entry in _entries(ledger):
        replay.feed([entry])
    end, _ = replay.end_of_last_opened_life()
    keys = {spki_of(one.public_bytes(Encoding.PEM).decode()) for one in replay.services()}
    if service and spki_of(service) not in keys:
        raise LedgerError("the ledger belongs to another service", code="ledger.other_service")
    return TransactionId(replay.entries[end - 1].view, end)


def move_away(ledger: Path) -> Path:
    """Move a ledger file that cannot be read out of the way, and what SQLite has beside it."""
    at = time.strftime("%Y%m%dT%H%M%S")
    for end in ("-wal", "-shm", ""):
        beside = ledger.with_name(ledger.name + end)
        if beside.exists():
            beside.rename(ledger.with_name(f"ledger.damaged-{at}.db{end}"))
    return ledger.with_name(f"ledger.damaged-{at}.db")


def forget_a_founding(ledger: Path) -> None:
    """Set aside what a first start wrote that was cut short before its first signature."""
    connection = open_database(ledger)
    try:
        set_aside(connection, 0, "founding")
    finally:
        connection.close()
