"""Where an enclave gets evidence: one thin reader for each platform, behind one interface.

A reader asks its platform for a report over 64 bytes, and nothing else: what a report proves is judged elsewhere
(:mod:`coco.attestation`), and what a vendor says about the platform comes from the host, which may lie.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol, runtime_checkable

from coco.attestation.evidence import VIRTUAL, Evidence, virtual
from coco.attestation.verified import AZURE_VTPM, NITRO, SGX, SNP, TDX
from coco.enclave.platform.evidence import tpm
from coco.enclave.platform.evidence.devices import no_evidence
from coco.enclave.platform.evidence.gramine import Gramine
from coco.enclave.platform.evidence.nsm import Nsm
from coco.enclave.platform.evidence.sev_guest import SevGuest
from coco.enclave.platform.evidence.tsm import Tsm
from coco.errors import CocoError


class Platform(Protocol):
    """A platform that this enclave runs on."""

    @property
    def name(self) -> str:
        """As evidence names it."""

    @property
    def folders(self) -> tuple[str, ...]:
        """Below which it opens files whenever it is asked."""

    @property
    def commands(self) -> tuple[int, ...]:
        """That it gives to its device (``ioctl``)."""

    def evidence(self, report_data: bytes) -> Evidence:
        """Evidence over 64 bytes.

        Raises:
            PlatformError: the platform gives none (``platform.no_evidence``).
        """


@runtime_checkable
class HasRandomness(Protocol):
    """A platform with a source of randomness that the kernel does not use by itself (K5)."""

    def randomness(self) -> bytes:
        """Fresh bytes.

        Raises:
            PlatformError: it gives none (``platform.no_evidence``).
        """


class Virtual:
    """No platform: says whatever it likes.

    Args:
        measurement: of the code, as this process has measured itself.
    """

    name = VIRTUAL
    folders: tuple[str, ...] = ()
    commands: tuple[int, ...] = ()

    def __init__(self, measurement: str) -> None:
        self.measurement = measurement

    def evidence(self, report_data: bytes) -> Evidence:
        """Evidence that nobody vouches for."""
        return virtual(self.measurement, report_data)


def _snp() -> Platform:
    """By the kernel's files; by its device, where it has none."""
    try:
        return _guest(SNP)
    except CocoError:
        return SevGuest()


def _guest(name: str) -> Platform:
    found = Tsm()
    if found.name != name:
        raise no_evidence(f"the kernel gives reports of {found.name}, not of {name}")
    return found


#: How a process opens its platform, by the name that an operator chooses. VBS has no process of Python.
READERS: Final[dict[str, Callable[[], Platform]]] = {
    SGX: Gramine,
    SNP: _snp,
    TDX: lambda: _guest(TDX),
    NITRO: Nsm,
    AZURE_VTPM: lambda: tpm.AzureVm(tpm.device()),
}
