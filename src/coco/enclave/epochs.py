"""Epochs: one ledger secret each. Begins the next one, keeps secrets for members and nodes, takes in this node's.

Rules (K1, K3, J4):

* The entry that begins an epoch is the last one under the old secret. It holds the new secret for recovery members,
  the old one under the new one, and the new one for exactly those nodes that are trusted once it is applied.
* Whoever was removed by that entry, or before, gets nothing; what a secret sealed, only it opens.
* An entry that is rolled back takes its epoch with it; nothing was sealed under that secret that anyone keeps.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from coco._native import LedgerSecret, WriteSet
from coco.enclave.configuration import secrets as wrapping
from coco.enclave.core.identity import EncryptionKey
from coco.enclave.store import Journal
from coco.errors import LedgerError
from coco.ledger import tables

Row = tuple[str, bytes, bytes | None]


class Epochs:
    """The secrets of one node's journal.

    Args:
        journal: holds them.
        service_key: DER SubjectPublicKeyInfo of the service.
        node_id: this node.
        encryption: its key.
    """

    def __init__(self, journal: Journal, service_key: bytes, node_id: str, encryption: EncryptionKey) -> None:
        self._journal, self._service_key = journal, service_key
        self._node_id, self._encryption = node_id, encryption

    def wrap(self, members: Mapping[str, bytes], threshold: int) -> Row:
        """The row that keeps the current secret for recovery members."""
        first, secret = self._journal.secrets[-1]
        return self._wrapped(secret, first, members, threshold)

    def _wrapped(self, secret: LedgerSecret, first: int, members: Mapping[str, bytes], threshold: int) -> Row:
        row = wrapping.wrap(
            secret, service_key=self._service_key, first_seqno=first, members=members, threshold=threshold
        )
        return tables.WRAPPED_SECRET, tables.SINGLETON, row

    def begin(
        self, recovery: tuple[Mapping[str, bytes], int], node_keys: Mapping[str, str], first: int
    ) -> tuple[LedgerSecret, list[Row]]:
        """A fresh secret for the entries from ``first`` on, and the rows that keep it.

        Args:
            recovery: PEM of each recovery member's key, and the threshold.
            node_keys: PEM of each trusted node's key.
            first: number of its first entry.
        """
        former_first, former = self._journal.secrets[-1]
        secret = LedgerSecret.generate(self._journal.tree.root())
        for_nodes = {
            node: json.loads(wrapping.seal_for_node(secret, first, node, key, self._service_key))
            for node, key in node_keys.items()
            if key
        }
        return secret, [
            self._wrapped(secret, first, *recovery),
            (
                tables.FORMER_SECRETS,
                former_first.to_bytes(8, "big"),
                wrapping.wrap_former(former, former_first, secret),
            ),
            (tables.NODE_SECRETS, tables.SINGLETON, tables.row({"first_seqno": first, "nodes": for_nodes})),
        ]

    def followed(self, writes: WriteSet) -> None:
        """Take in the secret of an epoch that another node began; an entry without one changes nothing.

        Raises:
            LedgerError: there is none for this node (``ledger.secret_unavailable``): it is trusted no more.
        """
        row = dict(writes.rows(tables.NODE_SECRETS)).get(tables.SINGLETON)
        if row is None:
            return
        document = json.loads(row)
        first = int(document["first_seqno"])
        if self._journal.secrets[-1][0] >= first:
            return  # begun here, or welcomed with it
        sealed = document["nodes"].get(self._node_id)
        if sealed is None:
            raise LedgerError("this node gets no secret any more", code="ledger.secret_unavailable")
        opened = wrapping.open_for_node(
            tables.row(sealed), self._node_id, self._encryption.private, self._encryption.pem, self._service_key
        )
        self._journal.hold(first, opened)
