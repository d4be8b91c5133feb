"""Platform ``snp`` whose chip is made by a test: imported into an enclave, as an adapter, before its lock-down.

``made_chip`` is a module that the test writes: roots, the chip's key and a folder. The reader does what a reader may,
and gives no evidence if it can do anything else.
"""

from __future__ import annotations

import functools
import os
import socket
from pathlib import Path
from typing import Any

import made_chip
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from coco.attestation import evidence, snp
from coco.attestation.evidence import Evidence
from coco.attestation.verified import SNP
from coco.enclave.platform import evidence as platforms
from coco.enclave.platform.evidence.devices import no_evidence
from made_evidence import snp_report

FORBIDDEN: dict[str, Any] = {
    "open a file elsewhere": lambda: open(made_chip.ELSEWHERE),
    "make a file elsewhere": lambda: open(made_chip.ELSEWHERE + ".new", "w"),
    "remove a file": lambda: os.unlink(f"{made_chip.FOLDER}/measurement"),
    "socket": socket.socket,
    "fork": os.fork,
    "signal the parent": lambda: os.kill(os.getppid(), 0),
    "run a program": lambda: os.posix_spawn("/bin/true", ["/bin/true"], {}),
}


class MadeChip:
    name = SNP
    commands = ()

    def __init__(self) -> None:
        self.folders = (made_chip.FOLDER,)
        self._key: Any = load_pem_private_key(made_chip.CHIP_KEY, None)

    def randomness(self) -> bytes:
        Path(made_chip.FOLDER, "mixed").touch()
        return bytes(64)

    def evidence(self, report_data: bytes) -> Evidence:
        for what, attempt in FORBIDDEN.items():
            try:
                attempt()
            except OSError:
                continue
            raise no_evidence(f"the reader can {what}")
        if Path(made_chip.FOLDER, "lies").exists():
            report_data = bytes(64)
        measurement = bytes.fromhex(Path(made_chip.FOLDER, "measurement").read_text())
        return Evidence(SNP, snp_report(self._key, report_data=report_data, measurement=measurement))


evidence._VERIFIERS = {**evidence._VERIFIERS, SNP: functools.partial(snp.verify, roots=made_chip.ROOTS)}
platforms.READERS[SNP] = MadeChip
adapter = None
