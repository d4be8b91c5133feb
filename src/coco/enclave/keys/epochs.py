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
from coco.configuration import secrets as wrapping
from coco.configuration.reads import Reads
from coco.configuration.share_holders import ShareHolders
from coco.enclave.keys.identity import EncryptionKey, ServiceIdentity
from coco.enclave.store import Journal
from coco.errors import LedgerError
from coco.ledger import tables

Row = tuple[str, bytes, bytes | None]


class Epochs:
    """The secrets of one node's journal.

    Args:
        journal: holds them.
        service: what secrets are bound to.
        node_id: this node.
        encryption: its key.
    """

    def __init__(self, journal: Journal, service: ServiceIdentity, node_id: str, encryption: EncryptionKey) -> None:
        self._journal, self._service = journal, service
        self._node_id, self._encryption = node_id, encryption

    def wrap(self, share_holders: ShareHolders) -> Row:
        """The row that keeps the current secret for a recovery."""
        first, secret = self._journal.current_secret
        return self._kept(secret, first, share_holders, self._service.spki)

    def _kept(self, secret: LedgerSecret, first: int, share_holders: ShareHolders, service_key: bytes) -> Row:
        return tables.WRAPPED_SECRET, tables.SINGLETON, wrapping.keep(secret, first, share_holders, service_key)

    def found(self, share_holders: ShareHolders, time_ms: int) -> list[Row]:
        """The rows that keep the first secret of a life of the service."""
        first, _ = self._journal.current_secret
        began = tables.row({"first_seqno": first, "began_ms": time_ms, "nodes": {}})
        return [self.wrap(share_holders), (tables.NODE_SECRETS, tables.SINGLETON, began)]

    def begin(
        self,
        share_holders: ShareHolders,
        node_keys: Mapping[str, str],
        time_ms: int,
        first: int,
        following: bytes = b"",
    ) -> tuple[LedgerSecret, list[Row]]:
        """A fresh secret for the entries from ``first`` on, and the rows that keep it.

        Args:
            share_holders: for whom it is kept.
            node_keys: PEM of each trusted node's key.
            time_ms: of this moment, since the Unix epoch.
            first: number of its first entry.
            following: DER SubjectPublicKeyInfo of the service, if it becomes another with that entry.
        """
        former_first, former = self._journal.current_secret
        secret = LedgerSecret.generate(self._journal.tree.root())
        service_key = following or self._service.spki
        for_nodes = {
            node: json.loads(wrapping.seal_for_node(secret, first, node, key, service_key))
            for node, key in node_keys.items()
            if key
        }
        return secret, [
            self._kept(secret, first, share_holders, service_key),
            (
                tables.FORMER_SECRETS,
                former_first.to_bytes(8, "big"),
                wrapping.wrap_former(former, former_first, secret),
            ),
            (
                tables.NODE_SECRETS,
                tables.SINGLETON,
                tables.row({"first_seqno": first, "began_ms": time_ms, "nodes": for_nodes}),
            ),
        ]

    def open_former(self, view: Reads, first: int, successor: LedgerSecret) -> LedgerSecret:
        """A former secret, as the ledger keeps it under its successor.

        Raises:
            LedgerError: it is not kept (``ledger.secret_unavailable``).
        """
        row = view.get(tables.FORMER_SECRETS, first.to_bytes(8, "big"))
        if row is None:
            raise LedgerError(f"the secret of entry {first} is not kept here", code="ledger.secret_unavailable")
        return wrapping.unwrap_former(row, first, successor)

    def entry_applied(self, writes: WriteSet) -> None:
        """Take in the secret of an epoch that another node began; an entry without one changes nothing.

        Raises:
            LedgerError: there is none for this node (``ledger.secret_unavailable``): it is trusted no more.
        """
        row = dict(writes.rows(tables.NODE_SECRETS)).get(tables.SINGLETON)
        if row is None:
            return
        document = json.loads(row)
        first = int(document["first_seqno"])
        if self._journal.current_secret[0] >= first:
            return  # begun here, or welcomed with it
        sealed = document["nodes"].get(self._node_id)
        if sealed is None:
            raise LedgerError("this node gets no secret any more", code="ledger.secret_unavailable")
        opened = wrapping.open_for_node(
            tables.row(sealed), self._node_id, self._encryption.private, self._encryption.pem, self._service.spki
        )
        self._journal.hold(first, opened)
