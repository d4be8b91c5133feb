"""The network's side of joining, and a primary's duties towards its nodes.

Order of a join (J1-J5): evidence and owner are checked -> the joiner's row is written, with its engine id, and
committed -> it becomes a learner -> a read-index round, evidence again -> it gets certificate, secrets and the place to
begin, sealed to its attested key and signed by the service -> it fetches the ledger and follows -> one change makes it
a voter and removes the dead node that it replaces, whose row then says so.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec

from coco import addresses, limits
from coco.attestation.verified import Verified
from coco.configuration import nodes, settings
from coco.configuration import secrets as wrapping
from coco.configuration.nodes import JoinRequest, NodeRow
from coco.configuration.reads import Reads
from coco.configuration.succession import since
from coco.consensus import Start
from coco.crypto import cose
from coco.crypto.certificates import pem
from coco.enclave.keys.certificates import Certificates
from coco.enclave.keys.identity import ServiceIdentity
from coco.enclave.network.evidence import EVIDENCE
from coco.enclave.ordering.replica import Replica
from coco.enclave.ordering.sequencer import Sequencer
from coco.enclave.platform.clock import compare_with_network
from coco.enclave.platform.control import Control
from coco.enclave.store import StoreView
from coco.enclave.transport.links import decode
from coco.errors import (
    AccessError,
    BusyError,
    ConfigurationError,
    ConsensusError,
    HostLiedError,
    NotFoundError,
    RequestError,
)
from coco.ledger import tables
from coco.ledger.statements import (
    MESSAGE_TYPE,
    NODE_STATEMENT,
    RETIRE_STATEMENT,
    node_payload,
    parse_json,
    retire_payload,
)

JOIN, FETCH, RETIRE = "join", "fetch", "retire"
#: Whether the rules in force trust a node, which its operator has signed for, without a vote.
Admits = Callable[[dict[str, Any], StoreView], Awaitable[bool]]

#: Nothing is sent to a newcomer that has approved other rules.
OTHER_RULES = "join.other_constitution"
#: What a joiner hears of a node that knows of nobody who leads.
NO_PRIMARY = "no_primary"
_DUTY_S = 0.1
#: A learner that lacks no more entries of the engine's log than this is made a voter.
_CAUGHT_UP = 20


class Welcome(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="welcome"):
    """What a joiner gets."""

    node_id: str
    nonce: bytes
    engine: int
    constitution_hash: bytes
    #: PEM of the joiner's certificate and of the service's.
    certificate: str
    service: str
    #: First seqno and sealed row of every ledger secret, and the sealed service key.
    secrets: list[tuple[int, bytes]]
    service_key: bytes
    #: Where to begin: engine index and term, voters and learners, last entry, last signature entry at or below it.
    index: int
    term: int
    view_offset: int
    voters: list[int]
    learners: list[int]
    position: str
    signed: str
    time_ms: int
    #: The sealed key that the service is about to have; empty: none is announced.
    following_key: bytes = b""


class Waiting(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="waiting"):
    """Not yet: ask again, at ``primary`` if that is named. ``state`` says what for."""

    state: str
    primary: str = ""


#: The answer to a joiner: the payload of a COSE message under the service's key (J3).
JoinAnswer = Waiting | Welcome
WELCOME_STATEMENT = "coco.welcome"


class FetchRange(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Entries that a node lacks."""

    first: int
    last: int


class Membership:
    """Admits nodes, welcomes them, and keeps the configuration of consensus in step with the rows of the nodes."""

    def __init__(
        self,
        *,
        control: Control,
        sequencer: Sequencer,
        replica: Replica,
        service: ServiceIdentity,
        admits: Admits,
        network: str,
        constitution_hash: Callable[[], bytes],
        log: Callable[..., None],
    ) -> None:
        self._control, self._sequencer, self._replica, self._service = control, sequencer, replica, service
        self._admits = admits
        self.certificates = Certificates(service)
        #: Seals the announced key of the service to a newcomer, by its key and the newest rows.
        self.sealed_following: Callable[[str, Reads], bytes] = lambda key, view: b""
        self._network, self._constitution_hash = network, constitution_hash
        self._log = log
        self._rows: dict[int, NodeRow] | None = None
        #: Engine ids of those whose code and platform the manifest has, as of the same moment.
        self._allowed: frozenset[int] = frozenset()
        #: Last entry that changed a row; 0 once that is committed and seen.
        self._old_at = 0
        #: Held by whoever changes the rows of nodes after having looked at them.
        self.changing = asyncio.Lock()
        #: When nodes were trusted without a vote, by address; an operator lists addresses, so they are few.
        self._admissions: dict[str, list[int]] = {}

    @property
    def _service_name(self) -> str:
        return cose.key_id(self._service.key.public_key())

    # --- who is who ---

    def changed(self, seqno: int) -> None:
        """The entry ``seqno`` changes rows of nodes; it counts once it is committed (J5)."""
        self._old_at = seqno

    def rows(self) -> dict[int, NodeRow]:
        """Every node of this life of the service, by engine id, as it is committed."""
        if 0 < self._old_at <= self._replica.committed:
            self._rows, self._old_at = None, 0
        if self._rows is None:
            view = self._sequencer.store.view(self._replica.committed)
            self._rows = {row.engine: row for row in nodes.rows(view) if row.engine}
            self._allowed = nodes.allowed(view)
        return self._rows

    def address(self, engine: int) -> str | None:
        """Where a node listens for its peers: a trusted one, and one that leaves until consensus does without it.

        None for everybody else, and for a node whose code the network does not run any more.
        """
        row = self.rows().get(engine)
        if row is None or row.engine not in self._allowed:
            return None
        counts = row.status == nodes.TRUSTED or engine in self._replica.members.all
        return row.address if counts else None

    def node_id(self, engine: int) -> str | None:
        """Whose engine id this is."""
        row = self.rows().get(engine)
        return row.node_id if row is not None else None

    def _newest(self) -> list[NodeRow]:
        """Every row, those that are not committed yet too: nobody is admitted twice."""
        return nodes.rows(self._sequencer.store.view())

    def _row_of(self, node_id: str) -> NodeRow | None:
        return next((row for row in self._newest() if row.node_id == node_id), None)

    # --- questions of other nodes ---

    async def serve(self, certificate: bytes, kind: str, body: bytes) -> bytes:
        """Answer a joiner; or a node, that lacks entries or forwards an operator's word.

        Raises:
            CocoError: refused, with a stable code.
        """
        if kind == JOIN:
            return await self._join(certificate, decode(JoinRequest, body))
        if kind == RETIRE:
            return (await self.retire(body)).encode()
        if kind == FETCH:
            return await self._fetch(decode(FetchRange, body))
        if kind == EVIDENCE:
            await self.renew_evidence(_key_of(certificate), decode(dict[str, str], body))
            return b""
        raise RequestError("no node answers this", code="peers.malformed")

    async def _fetch(self, asked: FetchRange) -> bytes:
        journal = self._sequencer.store.journal
        last = min(asked.last, self._replica.anchor.position.seqno, asked.first + limits.READ_ENTRIES_MAX - 1)
        if not 0 < asked.first <= last:
            return msgspec.msgpack.encode([])
        found = await self._control.read_some(asked.first, last)
        for seqno, entry in enumerate(found, asked.first):
            # L2: nothing that comes back from the host goes on unverified.
            if not journal.holds(seqno, entry):
                raise HostLiedError(f"the host gave another entry than {seqno}", code="channel.wrong_entry")
        return msgspec.msgpack.encode(found)

    async def _join(self, certificate: bytes, request: JoinRequest) -> bytes:
        if not self._replica.may_execute:
            primary = self.address(self._replica.primary) or ""
            return self._answer(Waiting(NO_PRIMARY if not primary else "redirected", primary))
        key = _key_of(certificate)
        node_id = cose.key_id(key)
        self._compare_clocks(request)
        if request.constitution and request.constitution != self._constitution_hash():
            raise AccessError("the network has other rules than this node's owner has seen", code=OTHER_RULES)
        async with self.changing:
            row = self._row_of(node_id)
            if row is None:
                row = await self._admit(node_id, key, request)
        if row.status == nodes.RETIRED:
            raise AccessError("this node was retired", code="join.retired")
        if row.status == nodes.PENDING:
            return self._answer(Waiting("pending"))
        await self._endorse(row, key)
        anchor = self._replica.anchor
        if row.engine not in anchor.members.all or anchor.members.outgoing:
            return self._answer(Waiting("admitted"))
        info = self._sequencer.store.view().get(tables.SERVICE_INFO, tables.SINGLETON)
        if anchor.signed.seqno <= since(info):
            return self._answer(Waiting("admitted"))  # nothing is signed yet under the key that the joiner will know
        # J4: still the primary, the row is committed, and the evidence still satisfies what the network demands.
        await self._replica.read_index()
        known = {found.node_id: found for found in nodes.rows(self._sequencer.store.view(self._replica.committed))}
        if node_id not in known:
            return self._answer(Waiting("admitted"))
        if known[node_id].status != nodes.TRUSTED or self._row_of(node_id) != known[node_id]:
            raise AccessError("this node was retired", code="join.retired")
        self._check(key, request)
        issued = self._sequencer.store.view().get(tables.NODE_CERTIFICATES, node_id.encode())
        if issued is None:
            return self._answer(Waiting("admitted"))  # it was rolled back meanwhile: the next question issues it anew
        return self._answer(self._welcome(row, request, self._replica.anchor, issued))

    def _compare_clocks(self, request: JoinRequest) -> None:
        """Nobody comes in whose clock is wrong, before anything of it is written (H5)."""
        if request.time_ms:
            skew_s = int(settings.in_force(self._sequencer.store.view())["start_clock_skew_s"])
            compare_with_network(request.time_ms, self._sequencer.clock.now_ms, skew_s=skew_s)

    def _answer(self, answer: JoinAnswer) -> bytes:
        payload = msgspec.msgpack.encode(answer)
        protected, signature = cose.sign(self._service.key, {MESSAGE_TYPE: WELCOME_STATEMENT}, payload)
        return cose.encode(protected, signature, payload)

    def _check(self, key: ec.EllipticCurvePublicKey, request: JoinRequest) -> Verified:
        now_s = self._sequencer.clock.now_ms // 1000
        verified = nodes.check_evidence(request, key, self._service.spki, now_s=now_s)
        nodes.check_manifest(self._sequencer.store.view(), verified)
        return verified

    async def _admit(self, node_id: str, key: ec.EllipticCurvePublicKey, request: JoinRequest) -> NodeRow:
        try:
            addresses.check(request.address)
        except ConfigurationError as error:
            raise AccessError(str(error), code="join.bad_address") from error
        verified = self._check(key, request)
        measurement = verified.measurement
        view = self._sequencer.store.view()
        others = self._newest()
        status, owner = nodes.PENDING, ""
        if request.owner_statement:
            more, by_rule = nodes.returning(view, request.address, request.owner_statement)
            expected = node_payload(
                network=self._network,
                service=self._service_name,
                constitution=self._constitution_hash().hex(),
                node_id=node_id,
                address=request.address,
                measurement=measurement,
                host_names=request.host_names,
                expires_s=0,
                **more,
            )
            time_s = self._sequencer.clock.now_ms // 1000
            owner = nodes.check_owner(
                view,
                request.owner_statement,
                expected,
                kind=NODE_STATEMENT,
                address=request.address,
                time_s=time_s,
            )
            node = nodes.admission(
                others,
                address=request.address,
                owner=owner,
                measurement=measurement,
                host_names=request.host_names,
            )
            if by_rule and await self._admits(node, view):
                status = nodes.TRUSTED
        most = limits.NODES_MAX if status == nodes.TRUSTED else limits.PENDING_NODES_MAX
        if sum(row.status == status for row in others) >= most:
            raise BusyError(f"the network may have {most} nodes that are {status}", code="join.too_many_nodes")
        heard = {node for node, _, active in self._replica.progress() if active} | {self._replica.node}
        for row in others:
            if row.address == request.address and row.status == nodes.TRUSTED and row.engine in heard:
                raise BusyError("the node at this address is alive", code="join.address_in_use")
        if status == nodes.TRUSTED:
            self._count_admission(request.address)
        engine = nodes.next_engine(view)
        seqno = self._sequencer.store.journal.last_seqno + 1
        document = nodes.row_document(
            engine=engine,
            status=status,
            address=request.address,
            owner=owner,
            evidence=request.evidence,
            verified=verified,
            context=nodes.context_of(request, self._service.spki),
            encryption_key=request.encryption_key,
            seqno=seqno,
            host_names=request.host_names,
            statement=request.owner_statement,
        )
        rows: list[tuple[str, bytes, bytes | None]] = [(tables.NODES_INFO, node_id.encode(), tables.row(document))]
        row = NodeRow(node_id, engine, status, request.address, owner, measurement)
        if status == nodes.TRUSTED:
            now_ms = self._sequencer.clock.now_ms
            rows.append(self.certificates.issue(key, row, request.host_names, view, now_ms, document))
        await self._sequencer.write_rows(rows)
        self._log("join.admitted", {"engine": engine}, {"node": node_id, "status": status})
        return row

    async def _endorse(self, row: NodeRow, key: ec.EllipticCurvePublicKey) -> None:
        """Give a node that governance has trusted its certificate, for the names that members saw: until now none."""
        name = row.node_id.encode()
        async with self.changing:
            view, now_ms = self._sequencer.store.view(), self._sequencer.clock.now_ms
            if view.get(tables.NODE_CERTIFICATES, name) is None:
                names = json.loads(view.get(tables.NODES_INFO, name) or b"{}")["host_names"]
                issued = self.certificates.issue(key, row, names, view, now_ms)
                await self._sequencer.write_rows([issued])

    async def renew_evidence(self, key: ec.EllipticCurvePublicKey, evidence: Mapping[str, str]) -> None:
        """Put newer evidence of a node into its row and into its certificate, as this primary.

        Raises:
            AttestationError: it proves less than the row.
            CocoError: refused, with a stable code.
        """
        if not self._replica.may_execute:
            raise BusyError("this node is not primary", code="node.no_primary")
        node_id, now_ms = cose.key_id(key), self._sequencer.clock.now_ms
        async with self.changing:
            view, row = self._sequencer.store.view(), self._row_of(node_id)
            if row is None or row.status != nodes.TRUSTED:
                raise AccessError("only a trusted node's evidence is renewed", code="node.not_trusted")
            document = json.loads(view.get(tables.NODES_INFO, node_id.encode()) or b"{}")
            document = nodes.renewed(document, evidence, cose.spki(key), now_s=now_ms // 1000)
            nodes.check_manifest(view, Verified.from_json(document["verified"]))
            issued = self.certificates.issue(key, row, document["host_names"], view, now_ms, document)
            await self._sequencer.write_rows([(tables.NODES_INFO, node_id.encode(), tables.row(document)), issued])
        self._log("attestation.renewed", {"engine": row.engine}, {"node": node_id})

    def _count_admission(self, address: str) -> None:
        """A process that dies again and again must not fill the ledger with rows."""
        now_ms = self._sequencer.clock.now_ms
        lately = [at for at in self._admissions.get(address, ()) if now_ms - at < 1000 * limits.ADMISSIONS_SECONDS]
        if len(lately) >= limits.ADMISSIONS_MAX:
            raise BusyError(
                f"{limits.ADMISSIONS_MAX} nodes began at this address in {limits.ADMISSIONS_SECONDS} seconds, which is "
                "as many as may",
                code="join.too_often",
            )
        self._admissions[address] = [*lately, now_ms]

    async def retire(self, statement: bytes) -> str:
        """Have a node leave, as its operator says; its id. A primary that is to leave lets another lead first.

        Raises:
            CocoError: refused; ``node.no_primary`` is worth trying again.
        """
        if not self._replica.may_execute:
            raise BusyError("this node is not primary", code="node.no_primary")
        try:
            node_id = str(parse_json(cose.parse(statement).payload or b"")["node_id"])
        except (ValueError, KeyError, TypeError) as error:
            raise RequestError("not a statement about a node", code="node.malformed") from error
        row = self._row_of(node_id)
        if row is None:
            raise NotFoundError("there is no such node", code="node.unknown")
        expected = retire_payload(
            network=self._network,
            service=self._service_name,
            node_id=node_id,
            expires_s=0,
        )
        view, time_s = self._sequencer.store.view(), self._sequencer.clock.now_ms // 1000
        nodes.check_owner(view, statement, expected, kind=RETIRE_STATEMENT, address=row.address, time_s=time_s)
        if row.status == nodes.RETIRED:
            return node_id
        voters = set(self._replica.members.voters)
        if row.engine in voters and len(voters) == 1:
            raise RequestError("the last node cannot leave", code="node.last")
        if row.engine == self._replica.node:
            await self._replica.hand_over()
            raise BusyError("the primary hands over first; try again", code="node.no_primary")
        async with self.changing:
            seqno = await self._retire(row, statement=statement)
        await self._sequencer.committed(seqno)
        return node_id

    def _welcome(self, row: NodeRow, request: JoinRequest, anchor: Start, certificate: bytes) -> Welcome:
        view = self._sequencer.store.view()
        secrets = [
            (first, wrapping.seal_for_node(secret, first, row.node_id, request.encryption_key, self._service.spki))
            for first, secret in self._sequencer.store.journal.secrets
            # An epoch that is not committed yet may never be; the entry that begins it holds its secret for this node.
            if first <= anchor.position.seqno + 1
        ]
        return Welcome(
            node_id=row.node_id,
            nonce=request.nonce,
            engine=row.engine,
            constitution_hash=self._constitution_hash(),
            certificate=certificate.decode(),
            service=pem(self._service.certificate),
            secrets=secrets,
            service_key=wrapping.seal_service_key(self._service.key, request.encryption_key),
            index=anchor.index,
            term=anchor.term,
            view_offset=self._replica.view_offset,
            voters=list(anchor.members.voters),
            learners=list(anchor.members.learners),
            position=str(anchor.position),
            signed=str(anchor.signed),
            time_ms=self._sequencer.clock.now_ms,
            following_key=self.sealed_following(request.encryption_key, view),
        )

    # --- duties of a primary ---

    async def run(self) -> None:
        """While this node is primary, bring the configuration of consensus in step with the rows; for ever."""
        while True:
            await asyncio.sleep(_DUTY_S)
            members = self._replica.members
            if not self._replica.may_execute or members.outgoing:
                continue
            try:
                await self._attend()
            except ConsensusError:
                continue  # a change is under way, or must wait for a majority; next time

    async def _attend(self) -> None:
        members = self._replica.members
        own = self.rows().get(self._replica.node)
        if own is not None and own.status == nodes.RETIRED and len(members.voters) > 1:
            await self._replica.hand_over()  # members removed the primary: another one takes it out
            return
        for engine in sorted(members.all - {self._replica.node}):
            row = self.rows().get(engine)
            if row is not None and row.status == nodes.RETIRED:
                self._replica.change_members([("removed", engine)])
                return
        trusted = {engine: row for engine, row in self.rows().items() if row.status == nodes.TRUSTED}
        standing = {node: matched for node, matched, active in self._replica.progress() if active}
        mine = standing.get(self._replica.node, 0)
        for engine, row in sorted(trusted.items()):
            newer = [n for n in trusted if n > engine and trusted[n].address == row.address]
            if engine not in members.all:
                if any(n in members.voters for n in newer):
                    async with self.changing:
                        if self._row_of(row.node_id) == row:  # not written already, and not committed yet
                            await self._retire(row, replaced=True)
                elif not newer:
                    self._replica.change_members([("learner", engine)])
                else:
                    continue
                return
            # One that has acknowledged nothing yet is counted as heard of, too: it may not even have been welcomed.
            if engine in members.learners and not newer and standing.get(engine, 0) >= max(1, mine - _CAUGHT_UP):
                replaced = [n for n in trusted if n < engine and trusted[n].address == row.address and n in members.all]
                self._replica.change_members([("voter", engine), *(("removed", n) for n in replaced)])
                return

    async def _retire(self, row: NodeRow, *, replaced: bool = False, statement: bytes = b"") -> int:
        """Write that a node leaves; of one that its successor replaced nothing is left to wait for.

        Rows of those whom it had replaced itself go with it: restarts leave two rows at an address, and no more.
        """
        key = row.node_id.encode()
        document = json.loads(self._sequencer.store.view().get(tables.NODES_INFO, key) or b"{}")
        document |= {"status": nodes.RETIRED, "retired_committed": replaced}
        if statement:
            document["retire_statement"] = statement.hex()
        rows: list[tuple[str, bytes, bytes | None]] = [(tables.NODES_INFO, key, tables.row(document))]
        if replaced:
            view = self._sequencer.store.view()
            for old in nodes.superseded(view, document):
                rows.append((tables.NODES_INFO, old, None))
                if view.get(tables.NODE_CERTIFICATES, old) is not None:
                    rows.append((tables.NODE_CERTIFICATES, old, None))
        seqno = await self._sequencer.write_rows(rows)
        self._log("node.retired", {"engine": row.engine}, {"node": row.node_id})
        return seqno


def _key_of(certificate: bytes) -> ec.EllipticCurvePublicKey:
    """The key of whoever asks; a stranger may show any certificate that TLS takes, or none.

    Raises:
        AccessError: it is none that a node has (``join.bad_key``).
    """
    try:
        key = x509.load_der_x509_certificate(certificate).public_key()
    except (ValueError, UnsupportedAlgorithm, x509.InvalidVersion) as error:
        raise AccessError("a node shows a certificate with a key on P-384", code="join.bad_key") from error
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise AccessError("a node has a key on P-384", code="join.bad_key")
    return key
