"""``coco measure``: the identity of the code that an enclave would run, part by part, and how platforms measure it."""

from __future__ import annotations

import base64
import csv
import hashlib
import platform
import re
import sys
from collections.abc import Iterator
from hashlib import sha256
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, Final

from coco import code_identity, constitutions

_PACKAGE: Final = "coco-framework"
_BY_THE_INSTALLER = (".dist-info/INSTALLER", ".dist-info/REQUESTED", ".dist-info/direct_url.json")
#: How the launch measurement of a platform is obtained: of an image, which this machine does not make.
PLATFORMS: Final = {
    "sgx": "gramine-sgx-sigstruct-view prints mr_enclave of the signed manifest (gramine-manifest, gramine-sgx-sign)",
    "tdx": "MRTD is the firmware's, as its builder publishes it; RTMR1-3 follow from kernel, command line, image",
    "snp": "sev-snp-measure --mode snp --ovmf OVMF --kernel K --initrd I --append A --vcpus N --vcpu-type T",
    "snp, confidential container of Azure": "Microsoft endorses the utility VM's; host_data: SHA-256 of the policy",
    "nitro": "coco measure --eif FILE, or nitro-cli build-enclave, print PCR0, PCR1 and PCR2 of the image",
    "azure_vtpm": "the PCRs of a machine that was started from the image once (tpm2_pcrread sha256)",
    "vbs": "the unique id of the signed image (veiid.exe); no enclave of Coco exists for it",
}


def identity() -> dict[str, Any]:
    """Interpreter, packages and constitutions, each by SHA-256; and what on the disk is not what was installed.

    A package's identity is that of its RECORD, which names every file with its hash, without what an installation adds
    (scripts with the path of an interpreter); ``altered`` lists files that are others now. The folder of a development
    installation has no RECORD of its sources: their hashes stand for it.
    """
    found, altered = {}, []
    for one in sorted(needed(), key=lambda one: one.metadata["Name"].lower()):
        record = one.read_text("RECORD") or ""
        lines = "".join(f"{name},{digest}\n" for name, digest in sorted(_named(record)))
        found[one.metadata["Name"]] = {"version": one.version, "record": sha256(lines.encode()).hexdigest()}
        altered += list(_altered(one, record))
    return {
        "interpreter": {
            "version": platform.python_version(),
            "sha256": sha256(Path(sys.executable).resolve().read_bytes()).hexdigest(),
        },
        "packages": found,
        "sources": code_identity.identity(code_identity.hashes(Path(__file__).parent.parent, compiled=False)),
        **({"bundle": code_identity.check(bundle)} if (bundle := _bundle()) is not None else {}),
        "constitutions": {name: sha256(constitutions.text(name).encode()).hexdigest() for name in constitutions.NAMES},
        "altered": altered,
    }


def _bundle() -> Path | None:
    return code_identity.bundle_of(Path(__file__).parent.parent)


def needed() -> list[Distribution]:
    """Coco and whatever it needs to run, each once."""
    found: dict[str, Distribution] = {}
    waiting = [_PACKAGE]
    while waiting:
        name = waiting.pop()
        key = re.sub(r"[-_.]+", "-", name).lower()
        if key in found:
            continue
        try:
            found[key] = distribution(name)
        except PackageNotFoundError:
            continue  # for another system, or another Python
        for requirement in found[key].requires or []:
            if "extra ==" not in requirement:
                waiting.append(re.split(r"[\s<>=!~;\[(]", requirement, maxsplit=1)[0])
    return list(found.values())


def _named(record: str) -> Iterator[tuple[str, str]]:
    """Files of a package, and what they should be."""
    for row in csv.reader(record.splitlines()):
        name, digest = row[0], row[1] if len(row) > 1 else ""
        if digest and not name.startswith("..") and not name.endswith((".pyc", *_BY_THE_INSTALLER)):
            yield name, digest


def _altered(one: Distribution, record: str) -> Iterator[str]:
    for name, digest in _named(record):
        kind, _, expected = digest.partition("=")
        file = Path(str(one.locate_file(name)))
        if not file.is_file():
            yield f"{one.metadata['Name']}: {name} is gone"
        elif _digest(kind, file) != expected:
            yield f"{one.metadata['Name']}: {name} is another one"


def _digest(kind: str, file: Path) -> str:
    digest = hashlib.new(kind, file.read_bytes()).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
