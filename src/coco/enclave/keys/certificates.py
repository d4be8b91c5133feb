"""Certificates of nodes and of the service: who gets another one, and when (J9).

Rules: a node's certificate counts for days, as members have set it, and the primary renews it before it ends; key and
host names stay those that the node was admitted with; the service's certificate changes by vote alone, as does its key
(``succession.py``).
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from coco.configuration import nodes, settings
from coco.configuration.draft import Validity
from coco.configuration.reads import Reads
from coco.crypto.certificates import endorsed_names, pem
from coco.enclave.keys.identity import ServiceIdentity
from coco.ledger import tables

Row = tuple[str, bytes, bytes | None]

#: A certificate is renewed when this share of its time is left.
_LEFT = 1 / 3


class Certificates:
    """Issues certificates.

    Args:
        service: signs them.
    """

    def __init__(self, service: ServiceIdentity) -> None:
        self._service = service

    def issue(
        self,
        key: ec.EllipticCurvePublicKey,
        row: nodes.NodeRow,
        names: list[str],
        view: Reads,
        now_ms: int,
        document: Mapping[str, Any] | None = None,
    ) -> Row:
        """The first certificate of a node; ``document`` is its row, while that is not written yet."""
        validity, said = self._validity(view, row.node_id), document or self._said(view, row.node_id)
        return self._issued(key, row.node_id, row.engine, names, validity, now_ms, said)

    def renewed(
        self, wanted: Mapping[str, Validity], view: Reads, now_ms: int, service: ServiceIdentity | None = None
    ) -> list[Row]:
        """Another certificate for each node that has one; who has none yet gets it with its welcome."""
        rows = []
        engines = {row.node_id: row.engine for row in nodes.rows(view)}
        for node_id, validity in wanted.items():
            current = self._current(view, node_id)
            if current is not None:
                key = current.public_key()
                assert isinstance(key, ec.EllipticCurvePublicKey), "no other is ever issued"
                names = endorsed_names(current)
                rows.append(
                    self._issued(
                        key, node_id, engines[node_id], names, validity, now_ms, self._said(view, node_id), service
                    )
                )
        return rows

    def under(self, following: ServiceIdentity, view: Reads, now_ms: int) -> list[Row]:
        """A certificate of another identity of the service for every trusted node."""
        trusted = [row.node_id for row in nodes.rows(view) if row.status == nodes.TRUSTED]
        return self.renewed({name: self._validity(view, name) for name in trusted}, view, now_ms, following)

    def renewed_service(self, wanted: Validity, info: bytes, now_ms: int) -> Row:
        """The service's row with another certificate of the same identity."""
        from_ms = now_ms if wanted.from_s is None else 1000 * wanted.from_s
        document = {**json.loads(info), "cert": pem(self._service.renewed(from_ms, wanted.days))}
        return tables.SERVICE_INFO, tables.SINGLETON, tables.row(document)

    def due(self, view: Reads, now_ms: int) -> dict[str, Validity]:
        """Trusted nodes whose certificates end soon."""
        found = {}
        for row in nodes.rows(view):
            current = self._current(view, row.node_id) if row.status == nodes.TRUSTED else None
            if current is None:
                continue
            begin, end = current.not_valid_before_utc, current.not_valid_after_utc
            now = datetime.datetime.fromtimestamp(now_ms / 1000, datetime.UTC)
            if end - now < (end - begin) * _LEFT:
                found[row.node_id] = Validity(None, self._validity(view, row.node_id).days)
        return found

    def _issued(
        self,
        key: ec.EllipticCurvePublicKey,
        node_id: str,
        engine: int,
        names: list[str],
        validity: Validity,
        now_ms: int,
        said: Mapping[str, Any],
        service: ServiceIdentity | None = None,
    ) -> Row:
        from_ms = now_ms if validity.from_s is None else 1000 * validity.from_s
        certificate = (service or self._service).endorse(
            key, engine, names, from_ms, validity.days, nodes.wrapped_evidence(said)
        )
        return tables.NODE_CERTIFICATES, node_id.encode(), pem(certificate).encode()

    def _validity(self, view: Reads, node_id: str) -> Validity:
        """As members have said for this node, or for every node."""
        said = self._said(view, node_id).get("certificate_validity")
        if said is not None:
            return Validity(said["from_s"], int(said["days"]))
        return Validity(None, int(settings.in_force(view)["maximum_node_certificate_validity_days"]))

    def _said(self, view: Reads, node_id: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(view.get(tables.NODES_INFO, node_id.encode()) or b"{}")
        return found

    def _current(self, view: Reads, node_id: str) -> x509.Certificate | None:
        found = view.get(tables.NODE_CERTIFICATES, node_id.encode())
        return x509.load_pem_x509_certificate(found) if found is not None else None
