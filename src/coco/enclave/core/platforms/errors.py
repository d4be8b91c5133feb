"""The error that every reader raises."""

from __future__ import annotations

from coco.errors import NativeError


def no_evidence(reason: str) -> NativeError:
    """The platform gives no evidence."""
    return NativeError(reason, code="platform.no_evidence")
