"""What the memory of an enclave holds after a recovery, read as its root can read it on platform ``virtual``."""

from __future__ import annotations

import base64
import json
import os
import sqlite3
from collections import Counter
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from coco._native import Entry
from coco.cli.sandbox_folder import SandboxFiles
from coco.ledger import tables
from coco.ledger.statements import decrypt_share


def scan(pid: int, needles: dict[str, bytes]) -> Counter[str]:
    """How often each needle lies in the memory of a process."""
    found: Counter[str] = Counter()
    with open(f"/proc/{pid}/maps") as regions, open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for region in regions:
            addresses, permissions = region.split()[:2]
            first, end = (int(address, 16) for address in addresses.split("-"))
            if not permissions.startswith("r") or "[v" in region:
                continue
            memory.seek(first)
            data = memory.read(end - first) or b""
            for name, needle in needles.items():
                found[name] += data.count(needle)
    return found


@pytest.mark.started
@pytest.mark.skipif(os.geteuid() != 0, reason="only root reads the memory of a process that is not dumpable")
def test_K5_no_share_is_left_in_memory_after_a_recovery(sandboxes):
    sandbox = sandboxes()
    sandbox.start()
    sandbox.stop()
    sandbox.start()
    member = SandboxFiles(sandbox.directory).member()
    shares = []
    for (entry,) in sqlite3.connect(sandbox.ledger).execute("SELECT entry FROM entries ORDER BY seqno"):
        for _, row in Entry.parse(entry).public_writes().rows(tables.WRAPPED_SECRET):
            for encrypted in json.loads(row or b"")["encrypted_shares"].values():
                shares.append(decrypt_share(base64.b64decode(encrypted), member.encryption_key))
    assert len(shares) == 2, "of the former life, submitted; of this one, made"
    # One member, threshold one: what follows the share's first byte is the wrapping key itself.
    needles = {f"share {n}": share[1:] for n, share in enumerate(shares)}
    needles |= {f"share {n} in base64": base64.b64encode(share) for n, share in enumerate(shares)}
    service = x509.load_pem_x509_certificate(Path(sandbox.summary["service_certificate"]).read_bytes())
    needles["control"] = service.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    found = scan(sandbox.summary["enclave_pid"], needles)
    assert found.pop("control") > 0, "the scan finds what is there"
    assert not +found
