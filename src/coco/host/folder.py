"""The lock of a data folder: one process at a time uses what lies in it; and folders for sockets, with the same lock.

Rules: the kernel holds the lock and lets it go when its process ends, however that ends, so nothing is ever left to be
cleaned up; the file stays, for removing it would let two processes lock two files of one name; it names the holder for
whoever comes second.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import weakref
from pathlib import Path

from coco.errors import HostError

#: Name of the lock file in each data folder.
LOCK = "coco.lock"
#: The same of a folder for sockets.
_MARK = "host"


class FolderLock:
    """A folder that is this process's as long as the lock is held."""

    def __init__(self, directory: Path) -> None:
        """Lock ``directory``, which is made if it is not there.

        Raises:
            HostError: another process holds it (``host.folder_in_use``, with its ``pid``), or the folder cannot be
                written (``host.folder_unusable``).
        """
        self.directory = directory
        path = directory / LOCK
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise HostError(
                f"cannot use the folder {directory}: {error.strerror}",
                code="host.folder_unusable",
                hint="give a folder that this user may write",
            ) from error
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            pid = _holder(self._descriptor)
            os.close(self._descriptor)
            raise HostError(
                f"{directory} is in use by process {pid}" if pid else f"{directory} is in use by another process",
                code="host.folder_in_use",
                hint="stop that process first, or give another folder",
                numbers={"pid": pid},
            ) from error
        try:
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, b"%d\n" % os.getpid(), 0)
        except OSError:
            pass  # a full disk: the lock holds without a name

    def release(self) -> None:
        """Let others use the folder; once is enough, and more does no harm."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _holder(descriptor: int) -> int:
    """The process that wrote its id into a lock file; 0 when none did."""
    said = os.pread(descriptor, 20, 0).strip()
    return int(said) if said.isdigit() else 0


class TemporaryFolder:
    """A folder for sockets of a running process; what a killed one has left behind, the next one removes.

    It is marked by a file that is locked before it has its name: one that nobody holds any more is of a process that
    has ended, also where processes of other containers share the place.
    """

    def __init__(self, prefix: str) -> None:
        """Make one, and remove those of ``prefix`` that are marked and whose process has ended."""
        _clear(prefix)
        self.name = tempfile.mkdtemp(prefix=prefix)
        marking = Path(self.name) / f"{_MARK}.new"
        descriptor = os.open(marking, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        marking.rename(marking.with_name(_MARK))
        self._remove = weakref.finalize(self, _remove, self.name, descriptor)

    def close(self) -> None:
        """Remove it."""
        self._remove()


def _remove(name: str, descriptor: int) -> None:
    shutil.rmtree(name, ignore_errors=True)
    os.close(descriptor)


def _clear(prefix: str) -> None:
    for folder in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        with contextlib.suppress(OSError):
            if folder.is_symlink() or folder.stat().st_uid != os.getuid():
                continue
            descriptor = os.open(folder / _MARK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(descriptor)
