"""``coco receipt``: get the proof of one transaction from a node, and verify one offline, trusting no node.

What is proven, from the inside out: the transaction and its outcome are part of what a ledger entry claims
(``ledger.outcomes``), the entry is under a signature (``ledger.receipts``), of a node that the service endorsed, and
the service is the one that is known, or one that most of its members say continues it (``client.pin``). Every part of
a receipt is verified but the members' statements where none is needed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

from coco.client.http import HttpsClient
from coco.client.pin import Pin, service_key
from coco.errors import AttestationError, ConfigurationError, LedgerError
from coco.ledger import outcomes, proofs, receipts
from coco.ledger.claims import HASH_BYTES
from coco.ledger.statements import parse_json
from coco.ledger.transaction_id import TransactionId

FORMAT: Final = "coco receipt v2"
#: What nodes of former versions wrote, whose entries claim the hash of a block and nothing else.
FORMER: Final = "coco receipt v1"
_PARTS: Final = frozenset({"format", "receipt", "service_certificate", "statements"})
_FILE_BYTES_MAX: Final = 64 * 1024 * 1024
_HASH = re.compile(r"0[xX][0-9a-fA-F]{64}")


async def get(client: HttpsClient, transaction: str) -> dict[str, Any]:
    """The proof of a transaction, by its Ethereum hash or its id in the ledger.

    Args:
        client: application listener of a node, with the certificate of a participant who may see the transaction.
        transaction: ``0x`` and 64 hex digits, or ``view.seqno``.

    Raises:
        CocoError: there is no such transaction, or not for this caller.
    """
    query = f"hash={transaction}" if _HASH.fullmatch(transaction) else f"id={TransactionId.parse(transaction)}"
    found: dict[str, Any] = (await client.request("GET", f"/coco/receipt?{query}")).json()
    return found


def read(path: Path) -> dict[str, Any]:
    """A file that :func:`get`'s answer was written to.

    Raises:
        ConfigurationError: it is none (``receipt.bad_file``).
    """
    data = path.read_bytes() if path.stat().st_size <= _FILE_BYTES_MAX else b""
    try:
        document = parse_json(data)
    except ValueError:
        document = None
    if not isinstance(document, dict) or document.get("format") not in (FORMAT, FORMER):
        raise ConfigurationError(
            f"{path} is no receipt", code="receipt.bad_file", hint="coco receipt get TX|HASH --out FILE writes one"
        )
    return document


def verify(document: Mapping[str, Any], known: Pin) -> dict[str, Any]:
    """What the document proves to whoever knows a service, and perhaps its members.

    Args:
        document: as :func:`read` gives it.
        known: the service; its members are needed when it has another identity by now.

    Raises:
        LedgerError: it proves nothing (``receipt.malformed``, ``receipt.invalid``).
        AttestationError: it is another service's (``receipt.other_service``).
    """
    body, said = document.get("receipt"), document.get("service_certificate")
    statements, transaction = document.get("statements", []), document.get("transaction")
    if not isinstance(body, dict) or not isinstance(said, str) or not isinstance(statements, list):
        raise LedgerError("the receipt is malformed", code="receipt.malformed")
    if set(document) not in (_PARTS, _PARTS | {"transaction"}):
        raise LedgerError("the receipt has other parts than a receipt has", code="receipt.malformed")
    try:
        service_key(said)
        signer = x509.load_pem_x509_certificate(said.encode())
        signer.verify_directly_issued_by(signer)
        if not receipts.is_canonical(said):
            raise ValueError("it has another form than it is written in")
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm, ConfigurationError) as error:
        raise LedgerError("the service in the receipt is none", code="receipt.malformed") from error
    followed = _follow(known, said, statements)
    position = receipts.verify(body, signer)
    found: dict[str, Any] = {
        "transaction_id": str(position),
        "signed_at": str(body["signed_at"]),
        "service": "followed by statements of its members" if followed else "as known",
    }
    claim = bytes.fromhex(body["claim"]["value"]) if "claim" in body else None
    if "transaction" not in document:
        return found if claim is None else {**found, "claim": claim.hex(), "block": outcomes.block_of(claim)}
    if not isinstance(transaction, dict) or claim is None:
        raise LedgerError("the ledger's entry claims no block", code="receipt.invalid")
    if document.get("format") != FORMAT and len(claim) != HASH_BYTES:
        raise LedgerError("a receipt of a former version has no such claim", code="receipt.malformed")
    return {**found, "transaction": proofs.verify(transaction, claim)}


def _follow(known: Pin, service: str, statements: list[Any]) -> bool:
    """Whether statements were needed to come from the known service to the one that signed."""
    if service_key(known.service) == service_key(service):
        return False
    try:
        Pin(known.service, dict(known.members)).follow(service, statements)
    except AttestationError as error:
        raise AttestationError(
            "the receipt is another service's than the known one, and no majority of the known members says that it"
            " follows",
            code="receipt.other_service",
            hint="get the receipt again from a node of today, which signs for the service of today; or name the members"
            " of the service that you know, with --pin or --member",
        ) from error
    return True
