"""Where a network stands, as numbers that an operator watches: what ends soon, who is there, who could recover it.

Rules: numbers only, under fixed names, of everybody at once and nobody by name (H1); the rows are read again only now
and then, for certificates are parsed for this.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

from cryptography import x509

from coco.attestation.evidence import FOR_EVER_S
from coco.configuration import nodes
from coco.configuration.draft import ACTIVE
from coco.configuration.reads import Reads
from coco.configuration.share_holders import share_holders
from coco.ledger import tables

#: How long what the rows say is taken for true; and certificates that are remembered: participants may be thousands.
AGAIN_S: Final = 60.0
_REMEMBERED: Final = 16_384


def quorum(voters: Sequence[int], reached: Iterable[int]) -> dict[str, int]:
    """How many voters are heard of, and how many of those the network could lose; below 0 nothing is decided."""
    heard = len(set(reached).intersection(voters))
    return {"voters_reachable": heard, "quorum_margin": heard - (len(voters) // 2 + 1)}


def of_rows(view: Reads, now_s: int) -> dict[str, int]:
    """Seconds until certificates and evidence end, the first of each kind; and who keeps the ledger secret."""
    found = {f"{kind}_left_s": ends - now_s for kind, ends in _ends(view).items()}
    keeping = share_holders(view)
    row = json.loads(view.get(tables.WRAPPED_SECRET, tables.SINGLETON) or b"{}")
    held = row.get("encrypted_shares", {}).keys() & keeping.members.keys()
    return {
        **found,
        "recovery_threshold": keeping.threshold,
        "recovery_members": len(keeping.members),
        "recovery_owners": len(keeping.owners),
        "recovery_shares_held": len(held),
    }


def _ends(view: Reads) -> dict[str, int]:
    """When the first of each kind ends, in seconds since the Unix epoch; nothing of a kind that there is none of."""
    trusted = {
        key: json.loads(row) for key, row in view.scan(tables.NODES_INFO) if json.loads(row)["status"] == nodes.TRUSTED
    }
    active = [key for key, row in view.scan(tables.MEMBERS_INFO) if json.loads(row).get("status") == ACTIVE]
    operators = [json.loads(row).get("cert", "").encode() for _, row in view.scan(tables.OPERATORS)]
    service = json.loads(view.get(tables.SERVICE_INFO, tables.SINGLETON) or b"{}").get("cert", "").encode()
    kinds: dict[str, list[int]] = {
        "service_certificate": _certificates([service]),
        "node_certificates": _certificates(view.get(tables.NODE_CERTIFICATES, key) for key in trusted),
        "member_certificates": _certificates(view.get(tables.MEMBERS_CERTS, key) for key in active),
        "participant_certificates": _certificates(pem for _, pem in view.scan(tables.USERS_CERTS)),
        "operator_certificates": _certificates(operators),
        # What nobody vouches for (platform virtual) ends never.
        "endorsements": [until for row in trusted.values() if (until := _endorsed_until_s(row)) < FOR_EVER_S],
    }
    return {kind: min(ends) for kind, ends in kinds.items() if ends}


def _endorsed_until_s(row: Mapping[str, Any]) -> int:
    return int(row.get("verified", {}).get("valid_until_s", FOR_EVER_S))


def _certificates(pems: Iterable[bytes | None]) -> list[int]:
    return [_end_s(pem) for pem in pems if pem]


@lru_cache(_REMEMBERED)
def _end_s(pem: bytes) -> int:
    return int(x509.load_pem_x509_certificate(pem).not_valid_after_utc.timestamp())


class Standing:
    """The numbers of one node, read again every few seconds.

    Args:
        view: gives what is committed; None while there is nothing.
    """

    def __init__(self, view: Callable[[], Reads | None]) -> None:
        self._view = view
        self._read: dict[str, int] = {}
        self._read_at = float("-inf")

    def numbers(self, now_s: int, loop_s: float) -> dict[str, int]:
        """As :func:`of_rows`; ``loop_s`` is the event loop's time."""
        if loop_s - self._read_at >= AGAIN_S and (view := self._view()) is not None:
            self._read, self._read_at = of_rows(view, now_s), loop_s
        return self._read
