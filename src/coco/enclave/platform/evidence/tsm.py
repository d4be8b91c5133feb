"""Guests of SEV-SNP and TDX by the kernel's configfs (``/sys/kernel/config/tsm/report``, Linux 6.7 and later)."""

from __future__ import annotations

import contextlib
import struct
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from coco.attestation.certificates import load_der, load_pem
from coco.attestation.evidence import Evidence
from coco.attestation.verified import SNP, TDX
from coco.enclave.platform.evidence.devices import no_evidence
from coco.errors import AttestationError

_PROVIDERS: Final[Mapping[str, str]] = {"sev_guest": SNP, "tdx_guest": TDX}
#: Another process may write to the same entry; then the report is of somebody else's data.
_TRIES = 3
#: Certificates in a table of the host, in the order in which a verifier wants them.
_CERTIFICATES = (
    uuid.UUID("63da758d-e664-4564-adc5-f4b93be8accd"),  # VCEK
    uuid.UUID("a8074bc2-a25a-483e-aae6-39c045a0b8a1"),  # VLEK
    uuid.UUID("4ab7b379-bbac-4fe4-a02f-05aef327c782"),  # ASK or ASVK
    uuid.UUID("c0b406a4-a803-4952-9743-3fb6014cd0ae"),  # ARK
)
_ENTRY = struct.Struct("<16sII")


class Tsm:
    """A guest.

    Args:
        reports: the folder of the kernel's reports.
        entry: name of this process's entry.
    """

    commands: tuple[int, ...] = ()

    def __init__(self, reports: Path = Path("/sys/kernel/config/tsm/report"), entry: str = "coco") -> None:
        self._reports, self._entry = reports, entry
        self.folders: tuple[str, ...] = (str(reports),)
        with self._made() as made:
            self.name = _provider(made)

    @contextlib.contextmanager
    def _made(self) -> Iterator[Path]:
        made = self._reports / self._entry
        try:
            made.mkdir()
        except OSError as error:
            raise no_evidence(f"the kernel has no reports: {error}") from error
        try:
            yield made
        finally:
            with contextlib.suppress(OSError):
                made.rmdir()

    def evidence(self, report_data: bytes) -> Evidence:
        """A report or a quote; of SNP with the host's certificates, if it has put them there.

        Raises:
            PlatformError: ``platform.no_evidence``.
        """
        with self._made() as made:
            try:
                for _ in range(_TRIES):
                    (made / "inblob").write_bytes(report_data)
                    written = _generation(made)
                    report = (made / "outblob").read_bytes()
                    table = (made / "auxblob").read_bytes() if _provider(made) == SNP else b""
                    if _generation(made) == written:
                        return Evidence(self.name, report, endorsements(table))
            except OSError as error:
                raise no_evidence(f"the kernel gives no report: {error}") from error
        raise no_evidence("somebody else writes to the entry of this process")


def _provider(made: Path) -> str:
    try:
        found = (made / "provider").read_text().strip()
    except OSError as error:
        raise no_evidence(f"the kernel names no provider: {error}") from error
    if found not in _PROVIDERS:
        raise no_evidence(f"reports of {found[:32]} are not known")
    return _PROVIDERS[found]


def _generation(made: Path) -> int:
    try:
        return int((made / "generation").read_text())
    except ValueError as error:
        raise no_evidence("the kernel's generation is no number") from error


def _certificate(data: bytes) -> x509.Certificate:
    """Hosts put DER there, as they should, or PEM."""
    return load_pem(data)[0] if data.startswith(b"-----") else load_der(data)


def endorsements(table: bytes) -> dict[str, str]:
    """Certificates of a host's table (GHCB, 4.1.8.1); none when it has none: a host may leave it empty."""
    found: dict[uuid.UUID, x509.Certificate] = {}
    at = 0
    while at + _ENTRY.size <= len(table):
        name, begin, size = _ENTRY.unpack_from(table, at)
        if not any(name):
            break
        # A certificate that cannot be read is as good as none: the verifier will ask for it.
        with contextlib.suppress(AttestationError):
            found[uuid.UUID(bytes=name)] = _certificate(table[begin : begin + size])
        at += _ENTRY.size
    chain = [found[name] for name in _CERTIFICATES if name in found]
    text = "".join(one.public_bytes(Encoding.PEM).decode() for one in chain)
    return {"certificates": text} if text else {}
