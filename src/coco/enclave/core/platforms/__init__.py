"""Where an enclave gets evidence: one thin reader for each platform, behind one interface.

A reader asks its platform for a report over 64 bytes, and nothing else: what a report proves is judged elsewhere
(:mod:`coco.attestation`), and what a vendor says about the platform comes from the host, which may lie.
"""

from __future__ import annotations

from typing import Protocol

from coco.attestation.evidence import Evidence, virtual


class Platform(Protocol):
    """A platform that this enclave runs on."""

    @property
    def name(self) -> str:
        """As evidence names it."""

    def evidence(self, report_data: bytes) -> Evidence:
        """Evidence over 64 bytes.

        Raises:
            PlatformError: the platform gives none (``platform.no_evidence``).
        """


class Virtual:
    """No platform: says whatever it likes.

    Args:
        measurement: of the code, as this process has measured itself.
    """

    name = "insecure_virtual"

    def __init__(self, measurement: str) -> None:
        self.measurement = measurement

    def evidence(self, report_data: bytes) -> Evidence:
        """Evidence that nobody vouches for."""
        return virtual(self.measurement, report_data)
