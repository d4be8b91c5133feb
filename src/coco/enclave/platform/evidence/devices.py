"""What readers of a platform have in common: a device that is opened once and kept, and the error of having none."""

from __future__ import annotations

import os
from pathlib import Path

from coco.errors import NativeError


def no_evidence(reason: str) -> NativeError:
    """The platform gives no evidence."""
    return NativeError(reason, code="platform.no_evidence")


def opened(path: Path, what: str) -> int:
    """Descriptor of a device.

    Raises:
        PlatformError: there is none (``platform.no_evidence``).
    """
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise no_evidence(f"there is no {what}: {error}") from error
