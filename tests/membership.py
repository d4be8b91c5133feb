"""A primary's membership over a real store, whose consensus the test plays; and a joiner's side."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from hashlib import sha256
from types import SimpleNamespace
from typing import Any

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from coco._native import LedgerSecret, WriteSet
from coco.attestation.evidence import report_data, virtual
from coco.configuration import nodes
from coco.consensus import Members, Start
from coco.crypto import cose
from coco.enclave.keys.identity import ServiceIdentity, self_signed
from coco.enclave.network.membership import JOIN, JoinAnswer, Membership, Waiting, Welcome
from coco.enclave.store import Journal, Store
from coco.ledger import tables
from coco.ledger.statements import fingerprint

TIME_MS = time.time_ns() // 1_000_000
SERVICE = ServiceIdentity.generate(TIME_MS)
ADDRESS = "10.0.0.1:900"


async def _everybody(node: dict[str, Any], view: Any) -> bool:
    return True


class Primary:
    """The membership of a primary over a real store, whose consensus the test plays."""

    def __init__(self, certificate: str) -> None:
        self.journal = Journal(append=lambda *entry: None, read=None)  # type: ignore[arg-type]
        self.journal.begin(view=2, secret=LedgerSecret.generate())
        self.store = Store(self.journal)
        for name in tables.STATE_TABLES:
            self.store.declare(name)
        key = fingerprint(x509.load_pem_x509_certificate(certificate.encode())).encode()
        founder = nodes.row_document(
            engine=1,
            status=nodes.TRUSTED,
            address="10.0.0.9:1",
            owner="",
            evidence=virtual("m", bytes(64)).to_json(),
            verified=virtual("m", bytes(64)).verify(now_s=0),
            context={},
            encryption_key="",
            seqno=1,
        )
        self.write(
            (tables.OPERATORS, key, tables.row({"cert": certificate, "addresses": ["10.0.0.1"]})),
            (tables.NODE_MEASUREMENTS, b"m", nodes.ALLOWED),
            (tables.GENESIS, tables.SINGLETON, b'{"insecure_virtual": true}'),
            (tables.NODES_INFO, b"founder", tables.row(founder)),
        )
        self.committed, self.may_execute, self.node, self.primary, self.view_offset = 1, True, 1, 1, 1
        self.members = Members((1,))
        self.clock = SimpleNamespace(now_ms=TIME_MS)
        #: What happens while a read-index round goes on.
        self.during: Callable[[], Awaitable[None]] | None = None
        self.rounds = 0
        me: Any = self
        self.membership = Membership(
            control=me,
            sequencer=me,
            replica=me,
            service=SERVICE,
            admits=_everybody,
            network="test",
            constitution_hash=_empty_constitution,
            log=lambda *line: None,
        )

    def write(self, *rows: tuple[str, bytes, bytes | None]) -> int:
        return self.store.write(WriteSet(list(rows)))

    async def write_rows(self, rows: Any) -> int:
        seqno = self.write(*rows)
        self.membership.changed(seqno)
        return seqno

    def progress(self) -> list[tuple[int, int, bool]]:
        return [(1, 10, True)]

    @property
    def anchor(self) -> Start:
        at = self.journal.position(self.committed)
        return Start(self.members, 5, 1, at, at)

    async def read_index(self) -> None:
        self.rounds += 1
        if self.during is not None:
            await self.during()

    def commit(self) -> None:
        self.committed = self.store.latest

    def joiners(self, *, committed: bool = False) -> list[nodes.NodeRow]:
        """Rows of everybody but the founder."""
        rows = self.membership.rows().values() if committed else self.membership._newest()
        return [row for row in rows if row.engine != self.node]


class JoinerSide:
    """A joiner's key, certificate and request."""

    def __init__(self, sign: Any) -> None:
        self.key = ec.generate_private_key(ec.SECP384R1())
        self.node_id = cose.key_id(self.key.public_key())
        self.certificate = self_signed(self.key, TIME_MS).public_bytes(Encoding.DER)
        public = rsa.generate_private_key(public_exponent=65537, key_size=2048).public_key()
        encryption = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
        data = report_data(
            cose.spki(self.key.public_key()),
            encryption_key=encryption.encode(),
            service=SERVICE.spki,
            configuration=b"c",
        )
        evidence = virtual("m", data).to_json()
        statement = sign(self.node_id, "m", ADDRESS, ["localhost"]) if sign else b""
        self.request = nodes.JoinRequest(evidence, encryption, b"c", b"n" * 32, ADDRESS, ["localhost"], statement)

    async def ask(self, primary: Primary) -> Waiting | Welcome:
        body = msgspec.msgpack.encode(self.request)
        signed = cose.parse(await primary.membership.serve(self.certificate, JOIN, body))
        cose.verify(signed, SERVICE.key.public_key())
        return msgspec.msgpack.decode(signed.payload or b"", type=JoinAnswer)


def _empty_constitution() -> bytes:
    return sha256(b"").digest()
