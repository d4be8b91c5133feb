"""Another key of the service, by vote and without a recovery (J9).

Order: members vote (``rotate_service_identity``, or code is removed as vulnerable) -> once nobody is leaving, the
primary makes a key, *announces* it, and seals it to every trusted node -> a majority of the members state that the
new identity continues the old one (J7) -> one entry is the last under the old identity: from the next one on the
service has the new key, nodes have certificates under it, and another epoch begins.

Clients that pinned the old identity follow the members' statements; the ledger goes on, and so do its ids.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from cryptography import x509

from coco._native import LedgerSecret, WriteSet
from coco.configuration import secrets as wrapping
from coco.configuration import succession
from coco.configuration.draft import Draft
from coco.configuration.reads import Reads
from coco.crypto.certificates import pem
from coco.enclave.keys.certificates import Certificates
from coco.enclave.keys.epochs import Epochs, Row
from coco.enclave.keys.identity import EncryptionKey, ServiceIdentity
from coco.enclave.ordering.sequencer import Sequencer
from coco.errors import LedgerError
from coco.ledger import tables
from coco.ledger.statements import spki_of


class KeyRotation:
    """One node's part in it.

    Args:
        service: what the service is now, and may become.
        node_id: this node.
        encryption: its key.
        sequencer: writes the entries.
        certificates: issues those under the new identity.
        epochs: begins the next one.
        log: takes an event with its numbers.
    """

    def __init__(
        self,
        service: ServiceIdentity,
        node_id: str,
        encryption: EncryptionKey,
        sequencer: Sequencer,
        certificates: Certificates,
        epochs: Epochs,
        log: Callable[..., None],
    ) -> None:
        self._service, self._node_id, self._encryption = service, node_id, encryption
        self._sequencer, self._certificates, self._epochs, self._log = sequencer, certificates, epochs, log

    # --- every node ---

    def entry_applied(self, writes: WriteSet) -> None:
        """Take in a key that is announced, if it is sealed to this node."""
        row = dict(writes.rows(tables.SUCCESSION)).get(tables.SINGLETON)
        document = json.loads(row or b"{}")
        sealed = document.get("keys", {}).get(self._node_id)
        if sealed is not None and self._service.following(_certificate(document)) is None:
            self._service.hold(wrapping.open_service_key(bytes.fromhex(sealed), self._encryption.private))

    def settle(self, view: Reads) -> None:
        """Forget every other key, once what is committed knows of no succession."""
        if self._service.others and succession.current(view) is None and self._is(view):
            self._service.forget_others()

    def _is(self, view: Reads) -> bool:
        return spki_of(Draft(view).service()["cert"]) == self._service.spki

    # --- the primary ---

    def due(self, view: Reads) -> bool:
        """Whether the next step can be taken."""
        found = succession.current(view)
        wanted = found is not None and found["status"] == succession.WANTED
        return wanted or succession.is_stated(view)

    async def run(self, view: Reads, now_ms: int) -> None:
        """Take the next step; the caller has seen to it that no node is leaving, and that ``view`` is the newest."""
        if not self.due(view):
            return
        if succession.is_stated(view):
            await self._succeed(view, now_ms)
        else:
            await self._announce(view, now_ms)

    async def _announce(self, view: Reads, now_ms: int) -> None:
        following = ServiceIdentity.generate(now_ms)
        journal, node_keys = self._sequencer.store.journal, Draft(view).node_keys()

        def announced(first: int) -> tuple[LedgerSecret | None, list[Row]]:
            before = journal.position(first - 2)
            document = {
                "status": succession.ANNOUNCED,
                "number": first - 1,
                "previous": Draft(view).service()["cert"],
                "next": pem(following.certificate),
                "transaction_id": str(before),
                "root": journal.tree.root(before.seqno).hex(),
                "keys": {
                    node: wrapping.seal_service_key(following.key, key).hex() for node, key in node_keys.items() if key
                },
            }
            return None, [(tables.SUCCESSION, tables.SINGLETON, tables.row(document))]

        self._service.hold(following.key)
        seqno = await self._sequencer.write_rows([], epoch=announced)
        await self._sequencer.committed(seqno)
        self._log("service.identity_announced", {"seqno": seqno})

    async def _succeed(self, view: Reads, now_ms: int) -> None:
        draft, found = Draft(view), succession.current(view)
        assert found is not None, "`attend` has found it in the same view"
        following = self._service.following(_certificate(found))
        if following is None:
            raise LedgerError("this node lacks the announced key", code="ledger.secret_unavailable")
        rows: list[Row] = [
            (tables.SUCCESSION, tables.SINGLETON, None),
            *self._certificates.under(following, view, now_ms),
        ]

        def epoch(first: int) -> tuple[LedgerSecret | None, list[Row]]:
            secret, kept = self._epochs.begin(draft.share_holders(), draft.node_keys(), now_ms, first, following.spki)
            info = succession.succeeded(found, draft.service(), first - 1)
            return secret, [(tables.SERVICE_INFO, tables.SINGLETON, tables.row(info)), *kept]

        seqno = await self._sequencer.write_rows(rows, epoch=epoch)
        await self._sequencer.committed(seqno)
        self._log("service.identity_changed", {"seqno": seqno})

    def sealed_for(self, node_key: str, view: Reads) -> bytes:
        """The announced key for a newcomer, who was not there when it was announced; empty when there is none."""
        found = succession.current(view)
        if found is None or found["status"] != succession.ANNOUNCED:
            return b""
        following = self._service.following(_certificate(found))
        return wrapping.seal_service_key(following.key, node_key) if following is not None else b""


def _certificate(announced: dict[str, Any]) -> x509.Certificate:
    return x509.load_pem_x509_certificate(announced["next"].encode())
