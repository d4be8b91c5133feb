"""Whether a ledger continues the service that somebody knows, by its members' statements, which lie in it (J7).

A host may be killed between the moment at which a recovered service opens and the one at which its files say so. Then
the service that an operator names is not the last one in the ledger, and the ledger proves what became of it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from coco._native import Entry
from coco.client.pin import Pin
from coco.errors import AttestationError
from coco.host.persistence import iterate_entries, open_database
from coco.ledger import tables
from coco.ledger.replay import Replay
from coco.ledger.statements import fingerprint


def pin_of(service: str, genesis: dict[str, Any]) -> Pin:
    """A pin of a service and of the members of its genesis, for want of one that has seen more.

    Raises:
        ConfigurationError: the genesis has no such members.
    """
    members = {}
    for member in genesis.get("members", []):
        certificate = x509.load_pem_x509_certificate(str(member["cert"]).encode())
        members[fingerprint(certificate)] = str(member["cert"])
    return Pin(service, members)


def follow(ledger: Path, pin: Pin) -> bool:
    """Move ``pin`` to the service that was open last in a ledger; whether a majority of its members has stated that.

    Raises:
        LedgerError: the ledger is damaged.
        AttestationError: the ledger ends before what was seen (``client.rolled_back``).
    """
    replay, statements = Replay(), list[dict[str, Any]]()
    connection = open_database(ledger)
    try:
        for _, data in iterate_entries(connection):
            replay.feed([data])
            if replay.broken is None:
                rows = Entry.parse(data).public_writes().rows(tables.IDENTITY_STATEMENTS)
                statements += [{"statement": body.hex()} for _, body in rows if body is not None]
    finally:
        connection.close()
    end, _ = replay.end_of_last_opened_life()
    try:
        pin.follow(replay.service_certificate(end).public_bytes(Encoding.PEM).decode(), statements)
    except AttestationError as error:
        if error.code != "client.other_service":
            raise
        return False
    return True
