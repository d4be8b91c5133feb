"""Intel SGX under Gramine: its files below ``/dev/attestation`` stand for the instructions of the processor."""

from __future__ import annotations

from pathlib import Path

from coco.attestation.evidence import Evidence
from coco.attestation.verified import SGX
from coco.enclave.platform.evidence.devices import no_evidence

_KIND = "dcap"


class Gramine:
    """An enclave of SGX.

    Args:
        files: where Gramine shows its files.
    """

    name = SGX
    folders: tuple[str, ...] = ()
    commands: tuple[int, ...] = ()

    def __init__(self, files: Path = Path("/dev/attestation")) -> None:
        self._files = files

    def evidence(self, report_data: bytes) -> Evidence:
        """A quote; the host adds the collateral.

        Raises:
            PlatformError: ``platform.no_evidence``.
        """
        try:
            kind = (self._files / "attestation_type").read_text().strip("\0\n ")
            if kind != _KIND:
                raise no_evidence(f"Gramine was started with attestation of kind {kind[:16]}")
            (self._files / "user_report_data").write_bytes(report_data)
            quote = (self._files / "quote").read_bytes()
        except (OSError, UnicodeDecodeError) as error:
            raise no_evidence(f"Gramine gives no quote: {error}") from error
        return Evidence(SGX, quote)
