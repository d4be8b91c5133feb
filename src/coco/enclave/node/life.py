"""A validating node's life: create, recover or join a service, serve it, end in good order. Wires the parts together.

States of the service: Opening -> Open; or, after a disaster, Recovering -> WaitingForRecoveryShares -> Open. A process
start is a new node identity, always: no key, vote or term is ever read back.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from hashlib import sha256
from typing import Any

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from coco import _native, limits
from coco._native import Front
from coco.attestation import policy, wrapper
from coco.channel import messages
from coco.configuration import nodes, platforms, settings
from coco.configuration import secrets as wrapping
from coco.configuration.actors import Actors, KnownCaller, account_row
from coco.configuration.genesis import Genesis
from coco.configuration.keepers import keepers
from coco.configuration.proposals import Proposals
from coco.configuration.reads import Reads
from coco.configuration.succession import since
from coco.consensus import Members, Start
from coco.crypto import cose
from coco.crypto.certificates import endorsed_names, pem
from coco.enclave.adapters.contract import BlockContext, Caller, CallerKind, Services
from coco.enclave.api.admission import Admission
from coco.enclave.api.http import Listener
from coco.enclave.api.jsonrpc import JsonRpc
from coco.enclave.api.routes import administration_app, application_app
from coco.enclave.api.service import Service
from coco.enclave.api.streams import Streams
from coco.enclave.keys.epochs import Epochs
from coco.enclave.keys.identity import EncryptionKey, NodeIdentity, ServiceIdentity, private_der
from coco.enclave.network.evidence import EVIDENCE, Attesting
from coco.enclave.network.governance import GOVERN, Governing
from coco.enclave.network.joining import Joined, Joiner, fetch
from coco.enclave.network.key_rotation import Succession
from coco.enclave.network.membership import JOIN, RETIRE, Membership
from coco.enclave.network.primary_tasks import Duties
from coco.enclave.network.recovery import PAGE, Recovery, read_former_life
from coco.enclave.network.snapshots import SNAPSHOT, SNAPSHOT_PART, Snapshots
from coco.enclave.network.standing import Standing, quorum
from coco.enclave.network.state_transfer import HISTORY_AFTER_JOIN, CatchUp
from coco.enclave.ordering.forwarding import DROPPED, EXECUTING, PENDING, SUBMIT, Submissions
from coco.enclave.ordering.queries import Queries
from coco.enclave.ordering.registry import AdapterFactory, Protocols
from coco.enclave.ordering.replica import ENGINE, Replica
from coco.enclave.ordering.sequencer import AdapterRuntime, Sequencer
from coco.enclave.platform.background import Background
from coco.enclave.platform.clock import Agreement, Clock, compare_with_ledger
from coco.enclave.platform.control import Control
from coco.enclave.platform.evidence.attester import Attester
from coco.enclave.platform.faults import place_of
from coco.enclave.platform.rules_worker import Rules
from coco.enclave.store import Journal, LogIndex, Store, StoreView
from coco.enclave.transport.links import Links, decode
from coco.errors import (
    AccessError,
    BusyError,
    CocoError,
    ConfigurationError,
    ConsensusError,
    LedgerError,
    NotFoundError,
    RequestError,
)
from coco.ledger import tables
from coco.ledger.position import Position
from coco.ledger.receipts import Receipt
from coco.ledger.signature import verify_root
from coco.ledger.statements import binding_text, parse_json

_FIRST_VIEW = 2
#: Engine id of the node that founds a service; ids are never used again in it.
_FOUNDER = 1
_EXTERNAL_SECONDS = 10.0
_FETCH_AGAIN_S = 0.05
#: A retired node that hears of no other for so long has been let go.
_QUIET_S = 4
#: A question to the primary.
_BIND = "bind"
_INSECURE = "INSECURE: virtual. No trusted execution environment protects this node."
#: What a node's host says of the time.
TIME = "time"


class _Bind(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """An account to bind, for the primary: what the client showed, and its request."""

    certificate: bytes
    body: bytes


class EnclaveNode:
    """The trusted half of one node."""

    governing: Governing

    def __init__(
        self,
        control: Control,
        doors: dict[str, Front],
        background: _native.Background,
        rules: Rules,
        *,
        report: dict[str, str],
        attester: Attester,
        factories: Mapping[str, AdapterFactory],
        ended: Callable[[BaseException | None], None],
    ) -> None:
        self.status = "Starting"
        self._control, self._doors = control, doors
        self._report = report
        self._attesting = Attesting(attester, control, lambda: self.clock.now_ms // 1000)
        self._factories, self._ended = factories, ended
        self._loop = asyncio.get_running_loop()
        self._background, self._rules = Background(background), rules
        self._callers: dict[bytes | None, KnownCaller] = {}
        #: Entries that change who is who and are not committed yet.
        self._callers_old_at: deque[int] = deque()
        self._listeners: list[Listener] = []
        self.admission = Admission()
        self._recovery: Recovery | None = None
        self._failures = 0
        self._standing = Standing(self._committed_view)
        #: Time without a primary after which the loss of the majority is named next.
        self._lost_after_s = limits.MAJORITY_LOST_SECONDS
        self._ticked_at = self._loop.time()
        self._position = (-1, b"")
        self._configuration_hash = bytes(32)
        self._logged: Any = None
        #: Entry that opens the service, while that is not committed.
        self._opens_at = 0
        self._open_lock = asyncio.Lock()
        self._queries = Queries()

    # --- start ---

    async def run(self) -> None:
        """Start as the host asks; serves until the control channel ends."""
        self._control.on_stop = lambda: self._spawn(self._stop())
        start = await self._control.started
        self.clock = Clock(start.time_ms)
        self._configuration_hash = sha256(messages.encode(start)).digest()
        self.journal = Journal(append=self._append, read=self._control.read)
        self.store = self._make_store()
        self._control.keep_snapshot(0)  # a former process's are sealed under keys that died with it
        self._peer_address = start.peer_address
        self.links = Links(
            self._doors.pop("peers"),
            self._doors.pop("dialled"),
            dial=lambda dial, address: self._control.send(messages.Dial(dial, address)),
            failed=self._ended,
            unexpected=self.unexpected,
            log=self._control.log,
        )
        self._control.on_dial_failed = self.links.dial_failed
        if start.mode == "create":
            await self._create(start)
        elif start.mode == "recover":
            await self._recover(start)
        else:
            await self._join(start)
        self._control.on_tick = self._tick

    def _make_store(self) -> Store:
        store = Store(self.journal)
        store.index = LogIndex(store.native, self._control, run=self._run_off_loop, spawn=self._spawn)
        for name in tables.STATE_TABLES:
            store.declare(name)
        for name in tables.LOG_TABLES:
            store.declare(name, log=True)
        return store

    async def _identities_for(self, start: messages.Start, engine: int) -> None:
        self.service = ServiceIdentity.generate(self.clock.now_ms)
        key = ec.generate_private_key(ec.SECP384R1())
        names = list(dict.fromkeys([*start.host_names, "localhost", "127.0.0.1"]))
        self._encryption = EncryptionKey.generate()
        self._founding = {"service": self.service.spki, "configuration": self._configuration_hash}
        self._evidence = await self._attesting.begin(cose.spki(key.public_key()), self._founding)
        said = wrapper.wrap(self._evidence, self._founding)
        endorsed = self.service.endorse(key.public_key(), engine, names, self.clock.now_ms, evidence=said)
        self.identity = NodeIdentity(key, endorsed)

    def _make_sequencer(self, genesis: bytes) -> None:
        settings = self.genesis.settings
        self._agreement = Agreement(settings.time_bound_ms)
        if self.store.index is not None:
            self.store.index.rows_cold_max = settings.index_rows_max
        self.sequencer = Sequencer(
            store=self.store,
            clock=self.clock,
            node=self.identity,
            service=self.service,
            replica=self.replica,
            block_interval_ms=settings.block_interval_ms,
            signature_interval_ms=settings.signature_interval_ms,
            run=self._run_off_loop,
            room=self._control.room,
            fatal=self._ended,
            log=self._control.log,
        )
        self.sequencer.on_followed = self._followed
        self.replica.on_view = self._view_changed
        self.replica.on_install = self._install
        self.membership = Membership(
            control=self._control,
            sequencer=self.sequencer,
            replica=self.replica,
            service=self.service,
            admits=lambda node, view: self.governing.admits(node, view),
            network=self.genesis.network,
            constitution_hash=self._constitution_hash,
            log=self._control.log,
        )
        self._epochs = epochs = Epochs(self.journal, self.service, self.identity.node_id, self._encryption)
        self.journal.open_former = lambda first, successor: epochs.open_former(self.store.view(), first, successor)
        certificates, changing, log = self.membership.certificates, self.membership.changing, self._control.log
        self.protocols = protocols = Protocols(self._factories, self.sequencer, self._services)
        self.sequencer.on_rolled_back = self._rolled_back
        self._succession = succession = Succession(
            self.service, self.identity.node_id, self._encryption, self.sequencer, certificates, epochs, log
        )
        self.membership.sealed_following = succession.sealed_for
        proposals = Proposals(self._rules.call, lambda: self.clock.now_ms // 1000)
        self.governing = Governing(self.sequencer, proposals, epochs, certificates, changing, protocols.check, log)
        self._duties = Duties(self.sequencer, certificates, epochs, protocols, succession, changing, log)
        self.submissions = Submissions(self.sequencer, self.links, self.caller)
        self.snapshots = Snapshots(
            control=self._control,
            sequencer=self.sequencer,
            genesis=genesis,
            interval=settings.snapshot_interval_entries,
            run=self._run_off_loop,
            spawn=self._spawn,
            log=self._control.log,
        )

    async def _found(self, engine: int, first_view: int, position: Position | None = None) -> None:
        """Begin a life of the service after ``position``, as its only node."""
        start = Start(Members((engine,)))
        if position is not None:
            start = Start(Members((engine,)), position=position, signed=position)
        self.replica = Replica(
            self._control, self.links, node=engine, start=start, view_offset=first_view - 1, fatal=self._ended
        )
        await self.replica.found()

    def _dial_as_a_node(self) -> None:
        with private_der(self.identity.key) as key:
            self.links.dial_as(self.identity.chain(self.service), key, _public(self.service.certificate))

    def _dress(self, writes: _native.WriteSet) -> None:
        """Show another certificate from now on, if an entry gives this node or the service one."""
        own = dict(writes.rows(tables.NODE_CERTIFICATES)).get(self.identity.node_id.encode())
        info = dict(writes.rows(tables.SERVICE_INFO)).get(tables.SINGLETON)
        self._show(own, info)

    def _show(self, own: bytes | None, info: bytes | None) -> None:
        """Show what rows of this node's certificate and of the service say, if that is news."""
        news = False
        if info is not None:
            news = self.service.become(x509.load_pem_x509_certificate(json.loads(info)["cert"].encode()))
        if own is not None and own != pem(self.identity.certificate).encode():
            self.identity.certificate, news = x509.load_pem_x509_certificate(own), True
        if not news or not self.is_governed:
            return  # nobody is shown anything yet
        self._dial_as_a_node()
        with private_der(self.identity.key) as key:
            chain = self.identity.chain(self.service)
            self.links.accept_as(self.replica.node, chain, key)
            for listener in self._listeners:
                listener.show(chain, key)

    def _meet_peers(self) -> None:
        """Be a node among others from now on."""
        self.links.address, self.links.node_id = self.membership.address, self.membership.node_id
        self.links.on_tell = self._told
        self.links.on_lost = self.submissions.link_lost
        self.links.serve = self._serve_peer
        with private_der(self.identity.key) as key:
            self.links.accept_as(self.replica.node, self.identity.chain(self.service), key)
        self.replica.follow()
        self._spawn(self.membership.attend())
        self._spawn(self._duties.attend())
        self._spawn(self._leave_when_retired())
        self._spawn(self._attesting.attend(self._renew_evidence))

    async def _renew_evidence(self, evidence: dict[str, str]) -> None:
        if self.replica.is_primary:
            await self.membership.renew_evidence(_public(self.identity.certificate), evidence)
        else:
            await self.replica.ask_primary(EVIDENCE, msgspec.msgpack.encode(evidence))

    async def _leave_when_retired(self) -> None:
        """End once this node is retired and no node talks to it any more; until then its vote may be needed."""
        known = retired = False
        while not retired or self.replica.quiet_s < _QUIET_S:
            await asyncio.sleep(1)
            own = self.membership.rows().get(self.replica.node)
            known |= own is not None
            # Of one that others have replaced again and again the network keeps no row.
            retired = own.status == nodes.RETIRED if own is not None else known
        self._ended(AccessError("this node was retired", code="node.retired"))

    def _told(self, sender: int, kind: str, body: bytes) -> None:
        if kind == ENGINE:
            self.replica.receive(sender, body)
        elif kind == DROPPED and sender == self.replica.primary:
            self.submissions.dropped(body)
        elif kind == EXECUTING and sender == self.replica.primary:
            self.submissions.executing(sender, body)
        elif kind == TIME:
            self._agreement.heard(sender, decode(int, body), self._loop.time())

    async def _serve_peer(self, sender: int, certificate: bytes, kind: str, body: bytes) -> bytes:
        if kind != JOIN and self.membership.address(sender) is None:
            raise AccessError("only nodes of this network may ask this", code="peers.not_of_the_service")
        if kind in (SUBMIT, PENDING):
            return await self.submissions.serve(sender, kind, body)
        if kind in (SNAPSHOT, SNAPSHOT_PART):
            return await self.snapshots.serve(kind, body)
        if kind == _BIND:
            if not self.replica.may_execute:
                raise BusyError("this node is not primary", code="node.no_primary")
            asked = decode(_Bind, body)
            return tables.row(await self.bind_account(asked.body, self.caller(asked.certificate)))
        if kind == GOVERN:
            return await self.governing.answer(body)
        return await self.membership.serve(certificate, kind, body)

    def _followed(self, writes: _native.WriteSet) -> None:
        """Whatever is remembered of callers and nodes may be old, and another epoch may begin."""
        changed = writes.tables()
        if tables.SUCCESSION in changed:
            self._succession.followed(writes)
        if tables.NODE_CERTIFICATES in changed or tables.SERVICE_INFO in changed:
            self._dress(writes)
        self._epochs.followed(writes)
        self.protocols.adopt(self.journal.last_seqno, writes.rows(tables.ADAPTERS))
        if tables.SERVICE_INFO in changed and self.status == "Opening":
            self._opens_at = self.journal.last_seqno
        if not tables.ACTOR_TABLES.isdisjoint(changed):
            seqno = self.journal.last_seqno
            while self._callers_old_at and self._callers_old_at[-1] >= seqno:
                self._callers_old_at.pop()  # that entry was rolled back
            self._callers_old_at.append(seqno)
            self.membership.changed(self.journal.last_seqno)

    def _rolled_back(self, seqno: int) -> None:
        self.protocols.rolled_back(seqno)
        view = self.store.view()
        own = view.get(tables.NODE_CERTIFICATES, self.identity.node_id.encode())
        self._show(own, view.get(tables.SERVICE_INFO, tables.SINGLETON))

    def _view_changed(self) -> None:
        now = (self.replica.view, self.replica.primary, self.replica.members)
        if now != self._logged:
            self._logged = now
            view, primary, members = now
            numbers = {"view": view, "primary": primary, "voters": len(members.voters), "nodes": len(members.all)}
            self._control.log("consensus.changed", {"node": self.replica.node, **numbers})
        if self.replica.primary:
            self.submissions.view_changed()

    def _append(self, position: Position, entry: bytes, is_signature: bool) -> None:
        self.replica.append(position, entry, is_signature)

    async def _run_off_loop(self, function: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
        return await self._loop.run_in_executor(None, partial(function, *arguments, **keywords))

    def _declare_adapters(self) -> None:
        for name, founded_with in self.genesis.adapters.items():
            self.protocols.declare(name, founded_with)

    def _services(self, runtime: AdapterRuntime) -> Services:
        return Services(
            pooled=partial(self.submissions.pooled, runtime),
            pending_position=partial(self.submissions.pending_position, runtime),
            newest=lambda: self.store.view(),
            call_external=partial(self._call_external, runtime.adapter.manifest().externals),
            run=self._run_off_loop,
            run_background=self._background.run,
            run_query=self._queries.read,
            run_list=self._queries.list,
        )

    async def _call_external(self, allowed: Any, name: str, body: bytes) -> bytes:
        if name not in allowed:
            raise AccessError("the adapter did not declare this processor", code="external.not_declared")
        return await self._control.call_external(name, body, timeout_s=_EXTERNAL_SECONDS)

    # --- create ---

    async def _create(self, start: messages.Start) -> None:
        self.genesis = Genesis.parse(start.genesis)
        self.genesis.check_founding()
        self._check_platform()
        await self._identities_for(start, _FOUNDER)
        secret = _native.LedgerSecret.generate(start.genesis)
        await self._found(_FOUNDER, _FIRST_VIEW)
        self.journal.begin(view=self.replica.view, secret=secret)
        self._make_sequencer(start.genesis)
        self._declare_adapters()
        transaction = self.store.begin()
        for table, key, value in self.genesis.rows(start.genesis):
            transaction.put(table, key, value)
        for table, key, value in self._node_rows():
            transaction.put(table, key, value)
        self._check_manifest(transaction)
        transaction.put(tables.SERVICE_INFO, tables.SINGLETON, self._service_info("Opening", 0))
        context = BlockContext(self.clock.now_ms, bytes(32), bytes(32), 1)
        for name, founded_with in self.genesis.adapters.items():
            self.protocols.by_name[name].genesis(founded_with, transaction, context)
        for table, row_key, row in self._epochs.found(keepers(transaction), self.clock.now_ms):
            transaction.put(table, row_key, row or b"")
        writes = transaction.native.write_set()
        seqno = self.store.write(writes)
        for adapter in self.protocols.by_name.values():
            adapter.applied(self.journal.position(seqno), writes)
        await self.sequencer.committed(await self.sequencer.sign())
        if self.genesis.opens_by_vote:
            self.sequencer.start()
            self._dial_as_a_node()
            self._serve()
        else:
            await self._open(0)

    def _check_platform(self) -> None:
        if self._attesting.is_virtual and not self.genesis.insecure_virtual:
            raise ConfigurationError(
                "this enclave runs on platform virtual, which the genesis does not accept",
                code="configuration.insecure_virtual",
            )

    def _check_manifest(self, view: Reads) -> None:
        """Whether the network accepts the platform of this node, which founds a life of it.

        Raises:
            AttestationError: the rule that does not hold, with its code.
        """
        if not self._attesting.is_virtual:
            policy.enforce(self._attesting.verified, platforms.policy(view))

    def _node_rows(self) -> list[tuple[str, bytes, bytes]]:
        node_id = self.identity.node_id.encode()
        info = nodes.row_document(
            engine=self.replica.node,
            status=nodes.TRUSTED,
            address=self._peer_address,
            owner="",
            evidence=self._evidence.to_json(),
            verified=self._attesting.verified,
            context=self._founding,
            encryption_key=self._encryption.pem,
            seqno=self.journal.last_seqno + 1,
            host_names=endorsed_names(self.identity.certificate),
        )
        code = platforms.code_row(self._attesting.verified)
        return [
            (tables.NODES_INFO, node_id, tables.row(info)),
            (tables.NODE_CERTIFICATES, node_id, pem(self.identity.certificate).encode()),
            *([code] if code is not None else []),
        ]

    def _service_info(self, status: str, recovery_count: int, previous: str = "") -> bytes:
        info: dict[str, Any] = {
            "status": status,
            "cert": pem(self.service.certificate),
            "recovery_count": recovery_count,
        }
        if previous:
            assert self._recovery is not None, "only a recovery has a previous identity"
            info |= {"previous_service_identity": previous, "since": self._recovery.former.end.seqno + 1}
        return tables.row(info)

    async def _open(self, recovery_count: int, previous: str = "") -> None:
        seqno = await self.sequencer.write_rows(
            [(tables.SERVICE_INFO, tables.SINGLETON, self._service_info("Open", recovery_count, previous))]
        )
        self.sequencer.start()
        await self.sequencer.committed(seqno)
        self._dial_as_a_node()
        self._serve()

    def _serve(self) -> None:
        """Be a node of the network; serve participants too, once it is open."""
        newest, committed = self.store.view(), self._committed_view()
        self.status = _service_status(committed if committed is not None else newest)
        if self.status == "Opening" and _service_status(newest) == "Open":
            self._opens_at = self.journal.last_seqno
        self.sequencer.on_committed = self._committed
        self._meet_peers()
        self._listen_administration()
        if self.status == "Open":
            self._serve_participants()
        self._announce()

    def _serve_participants(self) -> None:
        self.status = "Open"
        self.protocols.newly_served(self.replica.committed)
        self.service_front = Service(self.sequencer, self.submissions, self.protocols.served)
        self._listen_application()

    def _committed(self) -> None:
        self.snapshots.committed()
        self._forget_callers()
        if self.service.others:
            self._succession.settle(self.store.view(self.replica.committed))
        if 0 < self._opens_at <= self.replica.committed and self.status == "Opening":
            self._serve_participants()
            self._control.log("service.opened", {"seqno": self._opens_at})
        if self.status == "Open":
            for runtime in self.protocols.newly_served(self.replica.committed):
                self.service_front.add(runtime)
                self._application.serve(application_app(self, self.service_front))
                self._application.check_early(runtime.adapter.early_checks())
                self._control.log("adapter.served", {"at": self.replica.committed})

    @property
    def is_governed(self) -> bool:
        """Whether nodes join and members govern: the service is open, or members are about to open it."""
        return self.status in ("Open", "Opening")

    @property
    def is_ready(self) -> bool:
        """Whether the service is open and somebody leads, as far as this node knows."""
        return self.status == "Open" and self.replica.primary != 0

    def _announce(self) -> None:
        discarded = self._recovery.former.discarded if self._recovery else 0
        self._control.send(
            messages.Ready(
                node_id=self.identity.node_id,
                status=self.status,
                service=pem(self.service.certificate).encode(),
                position=str(self.committed_position()),
                discarded_entries=discarded,
            )
        )

    # --- join ---

    async def _join(self, start: messages.Start) -> None:
        self.status = "Joining"
        joiner = Joiner(
            self._control,
            self.links,
            start,
            attesting=self._attesting,
            configuration=self._configuration_hash,
            time_ms=self.clock.now_ms,
        )
        joined = await joiner.join()
        self.identity, self.service, self._encryption = joined.identity, joined.service, joined.encryption
        self._dial_as_a_node()
        self.clock = Clock(joined.time_ms)  # the network's, which goes on by what most hosts say
        for first, secret in joined.secrets:
            self.journal.hold(first, secret)
        begin, adopt = partial(self._begin_joined, joined), lambda seqno, rows: self.protocols.adopt(seqno, rows)
        catch_up = CatchUp(self._control, self.store, joiner, joined, begin, adopt)
        began = self._loop.time()
        numbers = await catch_up.run(start.last_seqno)
        self._control.log("join.caught_up", {**numbers, "ms": int(1000 * (self._loop.time() - began))})
        if joined.constitution_hash != self._constitution_hash():
            raise LedgerError("the ledger has another constitution", code="join.other_ledger")
        for adapter in self.protocols.by_name.values():
            await adapter.rebuild(self.store.view())
        self.sequencer.start()
        self._serve()

    def _begin_joined(self, joined: Joined, genesis: bytes) -> None:
        """What needs to know the network, before its ledger is read."""
        self.genesis = Genesis.parse(genesis)
        self._check_platform()
        self.replica = Replica(
            self._control,
            self.links,
            node=joined.engine,
            start=joined.start,
            view_offset=joined.view_offset,
            fatal=self._ended,
        )
        self._make_sequencer(genesis)
        self._declare_adapters()

    async def _install(self, wanted: int) -> tuple[Position, Position]:
        """This node was away for long: take what it lacks from whoever has it, up to ``wanted`` or further."""
        self._control.cut(self.store.latest)
        while self.store.latest < wanted:
            for engine in sorted(self.replica.members.all - {self.replica.node}):
                link = self.links.to(engine)
                if link is None:
                    continue
                try:
                    page = await fetch(link, self.store.latest + 1, wanted)
                except CocoError:
                    continue
                for data in page:
                    seqno = self.store.latest + 1
                    parsed = _native.Entry.parse(data)
                    self._control.append(seqno, data)
                    self.sequencer.apply(Position(parsed.view, seqno), data)
                await self._control.room()
            await asyncio.sleep(_FETCH_AGAIN_S)
        return self.journal.position(self.store.latest), self.journal.position(self.journal.last_signature)

    # --- recover ---

    async def _recover(self, start: messages.Start) -> None:
        public = _native.Store()
        for name in tables.STATE_TABLES:
            public.declare(name, False)
        former = await read_former_life(self._control, self.journal, public, start)
        self.genesis = Genesis.parse(former.genesis)
        self._check_platform()
        self.clock = self._compare_clock(start, former.committed_ms, settings.in_force(public))
        engine = former.last_engine + 1
        await self._identities_for(start, engine)
        # K1: nothing of this life is sealed under a secret of a former one.
        await self._found(engine, former.end.view + 2, former.end)
        self.journal.begin(view=self.replica.view, secret=_native.LedgerSecret.generate(former.root))
        self.store = Store(self.journal, public)
        self._make_sequencer(former.genesis)
        self._recovery = Recovery(former, self.service.spki)
        self._recovery_count = former.recovery_count + 1
        rows: list[tuple[str, bytes, bytes | None]] = [*self._node_rows()]
        following = self.store.begin()
        for table, key, row in rows:
            following.put(table, key, row or b"")
        self._check_manifest(following)
        if former.discarded:
            await self._control.truncate(former.end.seqno)
        self._control.begin_at(former.end.seqno)
        for node_id in former.node_ids:
            info = json.loads(public.get(tables.NODES_INFO, node_id.encode()) or b"{}")
            retired = {**info, "status": nodes.RETIRED, "retired_committed": True}
            rows.append((tables.NODES_INFO, node_id.encode(), tables.row(retired)))
        rows.append((tables.SERVICE_INFO, tables.SINGLETON, self._recovering_info("Recovering")))
        if public.get(tables.SUCCESSION, tables.SINGLETON) is not None:
            # Whatever key was announced is gone with the nodes that had it; this life has another one anyway.
            rows.append((tables.SUCCESSION, tables.SINGLETON, None))
        await self.sequencer.write_rows(rows)
        await self.sequencer.committed(await self.sequencer.sign())
        waiting = self._recovering_info("WaitingForRecoveryShares")
        await self.sequencer.write_rows([(tables.SERVICE_INFO, tables.SINGLETON, waiting)])
        await self.sequencer.committed(await self.sequencer.sign())
        self.status = "WaitingForRecoveryShares"
        if former.discarded:
            self._control.log("recovery.tail_discarded", {"entries": former.discarded, "end": former.end.seqno})
        self._listen_administration()
        self._announce()

    def _compare_clock(self, start: messages.Start, end_ms: int, voted: Mapping[str, Any]) -> Clock:
        """The time in which a recovered ledger goes on: not before its end, unless the operator says so.

        Raises:
            LedgerError: the host's clock cannot be right (``clock.ahead_of_the_ledger``, ``clock.behind_the_ledger``).
        """
        try:
            gap_s, skew_s = int(voted["start_clock_gap_s"]), int(voted["start_clock_skew_s"])
            compare_with_ledger(start.time_ms, end_ms, gap_s=gap_s, skew_s=skew_s)
        except LedgerError as error:
            if not start.accept_clock:
                raise
            self._control.log("clock.accepted", error.numbers, {"instead": error.code})
            return Clock(start.time_ms)
        return Clock(start.time_ms, end_ms)

    def _recovering_info(self, status: str) -> bytes:
        assert self._recovery is not None, "made a few lines before the first call"
        previous = pem(self._recovery.former.service)
        return self._service_info(status, self._recovery_count, previous)

    def _recovering(self) -> Recovery:
        if self._recovery is None or self.status != "WaitingForRecoveryShares":
            raise RequestError("the service is not being recovered", code="recovery.not_recovering")
        return self._recovery

    def recovery_state(self) -> dict[str, Any]:
        """What members need to know to state the new identity."""
        recovery = self._recovery
        if recovery is None:
            return {"status": self.status}
        former = recovery.former
        return {
            "status": self.status,
            "previous_service": pem(former.service),
            "next_service": pem(self.service.certificate),
            "time_ms": self.clock.now_ms,
            "ledger_time_ms": former.committed_ms,
            "previous_service_key": former.service_key.hex(),
            "next_service_key": self.service.spki.hex(),
            "transaction_id": str(former.end),
            "root": former.root.hex(),
            "discarded_entries": former.discarded,
            "statements": sorted(recovery.statements),
            "shares": sorted(recovery.shares),
        }

    async def accept_statement(self, body: bytes) -> dict[str, Any]:
        """Take a member's statement that the new identity continues the old one."""
        recovery = self._recovering()
        member = recovery.accept_statement(body, self.store.view())
        key = self._recovery_count.to_bytes(8, "big") + member.encode()
        async with self._open_lock:
            self._recovering()
            await self.sequencer.write_rows([(tables.IDENTITY_STATEMENTS, key, body)])
        await self._open_recovered()
        return self.recovery_state()

    def encrypted_share(self, member: str) -> bytes:
        """A member's share of the former ledger secret, encrypted to the member."""
        row = self.store.view().get(tables.WRAPPED_SECRET, tables.SINGLETON)
        share = wrapping.encrypted_share(row, member)
        if share is None:
            raise NotFoundError("there is no share for this member", code="recovery.no_share")
        return share

    async def accept_share(self, member: str, body: bytes) -> dict[str, Any]:
        """Take a member's share; at the threshold the private ledger is recovered and the service opens."""
        recovery = self._recovering()
        view = self.store.view()
        recovery.accept_share(member, body, view)
        threshold, submitted = keepers(view).threshold, len(recovery.shares)
        await self._open_recovered()
        return {
            "message": f"{submitted} of {threshold} shares",
            "submittedCount": submitted,
            "recoveryThreshold": threshold,
        }

    async def _open_recovered(self) -> None:
        async with self._open_lock:
            if self._recovery is None:
                return
            if self.status != "WaitingForRecoveryShares":
                self._recovery.shares.clear()  # this one came too late to be needed
                return
            recovery, view = self._recovery, self.store.view()
            if not recovery.enough(view) or not recovery.stated(view):
                return
            secrets = recovery.secrets(view)
            await self.sequencer.committed(await self.sequencer.sign())
            self.journal.restore_secrets(secrets)
            await self._replay_private()
            await self._rewrap(secrets)
            await self._open(self._recovery_count, pem(recovery.former.service))

    async def _replay_private(self) -> None:
        """Build the whole store anew from the ledger, private tables included."""
        self.store = self.sequencer.store = store = self._make_store()
        assert store.index is not None, "`_make_store` gives it one"
        store.index.rows_cold_max = self.genesis.settings.index_rows_max
        self._declare_adapters()
        last, kept = self.journal.last_seqno, list[int]()
        for first in range(1, last + 1, PAGE):
            upto = min(first + PAGE - 1, last)
            entries = await self._control.read(first, upto)
            if len(entries) != upto - first + 1:
                raise LedgerError("the host lost entries during recovery", code="ledger.damaged")
            for seqno, data in enumerate(entries, first):
                if _native.Entry.parse(data).leaf != self.journal.tree.leaf(seqno):
                    raise LedgerError(
                        f"entry {seqno} changed during recovery",
                        code="ledger.damaged",
                        numbers={"entry": seqno},
                    )
                writes = await self._run_off_loop(self._open_entry, seqno, data)
                store.native.apply(seqno, writes)
                self.protocols.adopt(seqno, writes.rows(tables.ADAPTERS))
                if any(not table.startswith("public:") for table in writes.tables()):
                    kept.append(seqno)
            store.native.commit(upto)
            kept = kept[-HISTORY_AFTER_JOIN:]
            store.native.prune(kept[0] if kept else upto)
            await store.index.relieve_now()
        for adapter in self.protocols.by_name.values():
            await adapter.rebuild(store.view())

    def _open_entry(self, seqno: int, data: bytes) -> _native.WriteSet:
        try:
            return self.journal.secret_at(seqno).open(data)
        except LedgerError as error:
            raise LedgerError(
                f"entry {seqno} is damaged: its seal is broken",
                code="ledger.damaged",
                numbers={"entry": seqno},
            ) from error

    async def _rewrap(self, former: list[tuple[int, _native.LedgerSecret]]) -> None:
        """Keep the new secret among the members, and the last former one under the new one."""
        _, current = self.journal.current_secret
        last_first, last = former[-1]
        await self.sequencer.write_rows(
            [
                *self._epochs.found(keepers(self.store.view()), self.clock.now_ms),
                (
                    tables.FORMER_SECRETS,
                    last_first.to_bytes(8, "big"),
                    wrapping.wrap_former(last, last_first, current),
                ),
            ]
        )

    # --- serving ---

    def _listen(self, listener: Listener, *, ask_client: bool) -> None:
        with private_der(self.identity.key) as key:
            listener.start(self.identity.chain(self.service), key, ask_client=ask_client)
        self._listeners.append(listener)

    def _listen_administration(self) -> None:
        if "administration" in self._doors:
            listener = Listener(
                self._doors.pop("administration"),
                caller=self.caller,
                app=administration_app(self),
                on_error=self.unexpected,
                on_failure=self._ended,
                admission=self.admission,
            )
            # Whoever shows an actor's certificate has a budget of her own; nobody has to.
            self._listen(listener, ask_client=True)

    def _listen_application(self) -> None:
        rpc = JsonRpc(self.service_front, self.unexpected, self.admission)
        streams = Streams(self.service_front, rpc, self.admission)
        listener = Listener(
            self._doors.pop("application"),
            caller=self.caller,
            app=application_app(self, self.service_front),
            on_error=self.unexpected,
            on_failure=self._ended,
            rpc=rpc.handle,
            submitted=rpc.submitted,
            position=self._position_header,
            websocket=streams.serve,
            readable=self._readable,
            admission=self.admission,
        )
        self._application = listener
        for runtime in self.protocols.served:
            listener.check_early(runtime.adapter.early_checks())
        self._listen(listener, ask_client=True)

    async def _readable(self, floor: bytes | None, confirm: bool) -> None:
        """Wait until this node may answer: a majority has confirmed what it shows, and ``floor`` is committed here."""
        if confirm:
            await self.replica.confirm()
        if floor is None:
            return
        wanted = Position.parse(floor.decode("ascii", "replace"))
        if wanted.seqno > self.replica.committed:
            try:
                await asyncio.wait_for(self.sequencer.committed(wanted.seqno), limits.READ_INDEX_SECONDS_MAX)
            except (TimeoutError, ConsensusError) as error:
                raise BusyError("this node does not have that transaction yet", code="node.behind") from error
        if self.journal.position(wanted.seqno) != wanted:
            raise RequestError(f"{wanted} is not in this ledger", code="node.other_history")

    def _position_header(self) -> bytes:
        committed = self.replica.committed
        if self._position[0] != committed:
            self._position = (committed, str(self.committed_position()).encode())
        if not self.replica.is_primary:
            # A backup says to whom it forwards.
            return self._position[1] + b"\r\ncoco-primary: %d" % self.replica.primary
        return self._position[1]

    def caller(self, certificate: bytes | None) -> Caller:
        """Who is behind a connection, in the configuration of this moment.

        The answer is kept only until the next change of the configuration tables, or the end of the certificate.
        """
        self._forget_callers()
        found = self._callers.get(certificate)
        if found is None or found.until_ms < self.clock.now_ms:
            view = self.store.view(self.replica.committed)
            found = Actors(view, self.clock.now_ms).caller(certificate)
            if len(self._callers) > limits.CONNECTIONS_MAX:
                # Whoever is connected stays known: only so is it noticed that somebody is nobody any more.
                connected = {der for listener in self._listeners for der in listener.certificates}
                self._callers = {der: one for der, one in self._callers.items() if der in connected}
            self._callers[certificate] = found
        return found.caller

    def _forget_callers(self) -> None:
        """Look everybody up again once who is who has changed; who is nobody any more loses its connections (G4)."""
        committed = self.replica.committed
        if not self._callers_old_at or self._callers_old_at[0] > committed:
            return
        while self._callers_old_at and self._callers_old_at[0] <= committed:
            self._callers_old_at.popleft()
        known, self._callers = self._callers, {}
        somebody = [der for der, found in known.items() if found.caller.kind is not CallerKind.ANONYMOUS]
        gone = {der for der in somebody if self.caller(der).kind is CallerKind.ANONYMOUS}
        for listener in self._listeners if gone else ():
            listener.close_those(gone)

    def _tick(self, time_ms: int) -> None:
        if not self.is_governed:
            self.clock.tick(time_ms)
            return
        self._forget_secrets()
        now = self._loop.time()
        self._agreement.heard(self.replica.node, time_ms, now)
        for other in self.replica.members.all - {self.replica.node}:
            self.links.tell(other, TIME, msgspec.msgpack.encode(time_ms))
        voters = self.replica.members.voters
        ceiling_ms, alone_ms = self._agreement.ceiling_ms(voters, now), None
        if ceiling_ms is None and len(voters) > 1:
            alone_ms = self._agreement.ceiling_alone_ms(self.clock.now_ms, now - self._ticked_at)
        self._ticked_at = now
        self.clock.tick(time_ms, ceiling_ms if alone_ms is None else alone_ms)
        if ceiling_ms is not None and time_ms > ceiling_ms and self.replica.may_execute:
            # H5: whoever orders entries gives them their time; another host's is nearer to most.
            self._control.log("clock.ahead_of_the_median", {"ms": time_ms - ceiling_ms})
            self._spawn(self.replica.hand_over())
        self._name_a_lost_majority()
        self._control.send(messages.Metrics(self._numbers()))

    def _name_a_lost_majority(self) -> None:
        """A node that others do not answer says so, and again after twice the time; a person must decide."""
        missing_s = self.replica.without_primary_s
        if missing_s < limits.MAJORITY_LOST_SECONDS:
            self._lost_after_s = limits.MAJORITY_LOST_SECONDS
        elif missing_s >= self._lost_after_s:
            self._lost_after_s *= 2
            voters = len(self.replica.members.voters)
            numbers = {"seconds": int(missing_s), "voters": voters, "needed": voters // 2 + 1}
            self._control.log("consensus.majority_lost", numbers)

    def _forget_secrets(self) -> None:
        """K5: a former ledger secret is in memory only while something needs it."""
        lifetime_s = settings.in_force(self.store.view())["secret_lifetime_s"]
        gone = self.journal.forget_former(self._loop.time(), float(lifetime_s), self.replica.committed)
        if gone:
            self._control.log("epoch.secrets_forgotten", {"secrets": gone})

    def _numbers(self) -> dict[str, int]:
        replica, counters = self.replica, self.sequencer.counters
        return {
            **counters,
            **self._stages(),
            "view": replica.view,
            "committed": replica.committed,
            "last": self.journal.last_seqno,
            "leads": int(replica.is_primary),
            "primary_known": int(replica.primary != 0),
            "without_primary_s": int(replica.without_primary_s),
            "voters": len(replica.members.voters),
            **quorum(replica.members.voters, self._agreement.reached(self._loop.time())),
            **self._standing.numbers(self.clock.now_ms // 1000, self._loop.time()),
            "pooled": sum(len(runtime.pool) for runtime in self.sequencer.runtimes),
            "held": self.submissions.held,
            "unexpected": self._failures,
            "clipped_time_steps": self.clock.clipped,
        }

    def _stages(self) -> dict[str, int]:
        """Where the time goes: counts, and microseconds of each stage."""
        return {
            "checked": self.submissions.checked,
            "checked_early": self.submissions.checked_early,
            "check_us": self.submissions.check_us,
            **self.sequencer.stages,
        }

    def _spawn(self, work: Any) -> None:
        task = self._loop.create_task(work)
        task.add_done_callback(lambda t: self._ended(t.exception()) if not t.cancelled() and t.exception() else None)

    async def _stop(self) -> None:
        for listener in self._listeners:
            listener.close()
        if self.is_governed:
            await self.sequencer.drain()
            await self.replica.hand_over()
            self.replica.stop()
        self._ended(None)

    def unexpected(self, error: BaseException | None) -> None:
        """An exception that nobody expected: its code and place go to the log; a host's lie ends the enclave."""
        if isinstance(error, CocoError) and error.code.startswith("channel."):
            self._ended(error)
            return
        self._failures += 1
        module, line = place_of(error)
        kind = type(error).__name__ if error is not None else "unknown"
        self._control.log("enclave.unexpected", {"line": line}, {"module": module, "kind": kind})

    def late_import(self, module: str, by: str) -> None:
        """Something asked for a module that was not loaded before the lock-down: what needed it fails."""
        self._failures += 1
        self._control.log("enclave.late_import", {}, {"module": module, "by": by})

    # --- answers of the routes ---

    @property
    def network_name(self) -> str:
        """Name in the genesis."""
        return self.genesis.network

    def committed_position(self) -> Position:
        """Id of the last committed entry."""
        return self.journal.position(self.replica.committed)

    def transaction_status(self, position: Position) -> str:
        """Unknown, Pending, Committed or Invalid."""
        if position.seqno == 0 or position.seqno > self.journal.last_seqno:
            return "Invalid" if position.view < self.journal.view else "Unknown"
        if self.journal.position(position.seqno) != position:
            return "Invalid"
        return "Committed" if position.seqno <= self.replica.committed else "Pending"

    async def transaction_fate(self, adapter: str, identity: bytes, caller: Caller) -> dict[str, Any]:
        """What became of a submitted transaction, as far as this node knows, and as the caller may know.

        ``status`` is Unknown, Pending, Committed (with its ``transaction_id``) or Dropped (with the ``reason``).

        Raises:
            NotFoundError: no such adapter runs here (``adapter.unknown``).
        """
        runtime = next((one for one in self.sequencer.runtimes if one.name == adapter), None)
        if runtime is None:
            raise NotFoundError(f"no adapter {adapter[:64]} runs here", code="adapter.unknown")
        if not await runtime.adapter.may_learn_fate(identity, caller, self.store.view()):
            # What was dropped is nowhere any more: its reason is for whoever handed it in.
            reason = self.submissions.why_dropped(runtime, identity, caller.actor)
            return {"status": "Dropped", "reason": reason} if reason else {"status": "Unknown"}
        seqno = runtime.included.get(identity)
        table = runtime.adapter.manifest().transactions
        if seqno is None and table:
            seqno = await self.store.view().locate(table, identity)
        if seqno is not None and seqno <= self.replica.committed:
            return {"status": "Committed", "transaction_id": str(self.journal.position(seqno))}
        if seqno is not None or self.submissions.pooled(runtime, identity) is not None:
            return {"status": "Pending"}
        reason = self.submissions.why_dropped(runtime, identity)
        return {"status": "Dropped", "reason": reason} if reason else {"status": "Unknown"}

    async def receipt(self, position: Position) -> Receipt:
        """Receipt of a committed transaction.

        Raises:
            NotFoundError: not committed here.
        """
        if self.transaction_status(position) != "Committed":
            raise NotFoundError(f"{position} is not committed here", code="ledger.no_receipt")
        committed = self.replica.committed
        info = self.store.view(committed).get(tables.SERVICE_INFO, tables.SINGLETON)
        return await self.journal.receipt(position.seqno, committed, since(info))

    async def proof(self, adapter: str, identity: bytes, caller: Caller) -> dict[str, Any]:
        """Receipt of one transaction with its outcome, for a caller who may see it.

        Raises:
            NotFoundError: there is none, or none for this caller (``ledger.no_receipt``).
            AccessError: the caller may see the transaction, but not what its proof tells besides.
        """
        runtime = next((one for one in self.sequencer.runtimes if one.name == adapter), None)
        view = self._committed_view()
        found = (
            await runtime.adapter.prove(identity, caller, view) if runtime is not None and view is not None else None
        )
        if found is None:
            raise NotFoundError("there is no such transaction", code="ledger.no_receipt")
        seqno, proven = found
        return {**await self.whole_receipt(self.journal.position(seqno)), "transaction": proven}

    async def whole_receipt(self, position: Position) -> dict[str, Any]:
        """A receipt under the service's key of today, with what ties that to the former ones."""
        made = await self.receipt(position)
        today = self.service.key.public_key()
        try:
            verify_root(made.signature, root=made.signature.root, position=made.signature.position, service_key=today)
        except LedgerError:
            # Signed in a former life of the service: what is signed today covers it as well.
            committed = self.replica.committed
            made = await self.journal.receipt(position.seqno, committed, committed - 1)
        return {"format": "coco receipt v2", "receipt": made.to_json(), **self.identities()}

    def _committed_view(self) -> StoreView | None:
        """What is committed; none while this node has not got so far."""
        committed = self.replica.committed
        return self.store.view(committed) if committed >= self.store.native.oldest else None

    def _constitution_hash(self) -> bytes:
        """Of the rules in force, as they are committed; before anything is, of those of the genesis."""
        view = self._committed_view()
        row = view.get(tables.CONSTITUTION, tables.SINGLETON) if view is not None else None
        source = self.genesis.constitution if row is None else str(json.loads(row))
        return sha256(source.encode()).digest()

    async def attest(self, nonce: bytes) -> dict[str, Any]:
        """Evidence for this nonce, with what a verifier needs to recompute its report data.

        Raises:
            CocoError: the platform gives none (``platform.no_evidence``), or too many ask (``platform.busy``).
        """
        bound = {
            "service": self.service.spki,
            "constitution": self._constitution_hash(),
            "configuration": self._configuration_hash,
        }
        shown = {
            "node_certificate": pem(self.identity.certificate),
            "service_certificate": pem(self.service.certificate),
            "constitution_hash": bound["constitution"].hex(),
            "configuration_hash": bound["configuration"].hex(),
        }
        evidence = await self._attesting.evidence(_spki(self.identity.certificate), {"nonce": nonce, **bound})
        insecure = {"insecure": "platform virtual proves nothing"} if self._attesting.is_virtual else {}
        return {**evidence.to_json(), **insecure, **shown}

    def network(self) -> dict[str, Any]:
        """The network as everyone may see it."""
        return {
            "network": self.genesis.network,
            "status": self.status,
            "service_certificate": pem(self.service.certificate),
            "committed": str(self.committed_position()),
            "view": self.journal.view,
            "without_primary_s": int(self.replica.without_primary_s),
            "nodes": self._nodes(),
            "members": {key.decode(): value.decode() for key, value in self.store.view().scan(tables.MEMBERS_CERTS)},
        }

    def _nodes(self) -> dict[str, Any]:
        members = self.replica.members
        return {
            row.node_id: {
                "status": row.status,
                "primary": row.engine == self.replica.primary,
                "votes": row.engine in members.voters,
                "engine": row.engine,
                "address": row.address,
            }
            for row in self.membership.rows().values()
        }

    def identities(self) -> dict[str, Any]:
        """Members' statements that tie former service identities to this one, oldest first."""
        statements = [
            {"recovery": int.from_bytes(key[:8], "big"), "member": key[8:].decode(), "statement": body.hex()}
            for key, body in self.store.view().scan(tables.IDENTITY_STATEMENTS)
        ]
        return {"service_certificate": pem(self.service.certificate), "statements": statements}

    def info(self) -> dict[str, Any]:
        """What this node is, says and lacks."""
        return {
            "node_id": self.identity.node_id,
            "status": self.status,
            "platform": self._attesting.platform,
            **({"warning": _INSECURE} if self._attesting.is_virtual else {}),
            "measurement": self._attesting.verified.measurement,
            "endorsed_until_s": self._attesting.verified.valid_until_s,
            "lockdown": self._report,
            "network": self.genesis.network,
            "adapters": sorted(self.protocols.by_name),
            "committed": str(self.committed_position()),
            "time_ms": self.clock.now_ms,
            "clipped_time_steps": self.clock.clipped,
            "unexpected_errors": self._failures,
            "counters": self.sequencer.counters,
            "stages": self._stages() if self.is_governed else {},
            # Not what waits: by that count whoever hands in another's transaction would see whether a pool took it.
        }

    async def retire(self, statement: bytes) -> dict[str, Any]:
        """Have a node leave the network, as its operator says."""
        if not self.is_governed:
            raise BusyError("the service is not open", code="node.not_open")
        if self.replica.is_primary:
            return {"retired": await self.membership.retire(statement)}
        return {"retired": (await self.replica.ask_primary(RETIRE, statement)).decode()}

    # --- accounts ---

    async def bind_account(self, body: bytes, caller: Caller) -> dict[str, Any]:
        """Record that an account belongs to the caller, proven by the account's signature."""
        if caller.kind is not CallerKind.PARTICIPANT:
            raise AccessError("only a participant can bind an account", code="access.not_a_participant")
        if self.status != "Open":
            raise BusyError("the service is not open", code="node.not_open")
        if not self.replica.is_primary:
            asked = msgspec.msgpack.encode(_Bind(caller.certificate, body))
            bound: dict[str, Any] = json.loads(await self.replica.ask_primary(_BIND, asked))
            return bound
        try:
            document = parse_json(body)
            account = bytes.fromhex(str(document["account"]).removeprefix("0x"))
            signature = bytes.fromhex(str(document["signature"]).removeprefix("0x"))
            nonce = str(document["nonce"])
        except (ValueError, KeyError, TypeError) as error:
            raise RequestError("account, nonce and signature are needed", code="account.malformed") from error
        if len(account) != 20 or len(signature) != 65 or not 8 <= len(nonce) <= 128 or not nonce.isalnum():
            raise RequestError("account, nonce or signature has the wrong form", code="account.malformed")
        text = binding_text(self.genesis.network, caller.actor, account, nonce).encode()
        digest = _native.keccak256(b"\x19Ethereum Signed Message:\n" + str(len(text)).encode() + text)
        if _native.recover_signer(digest, signature) != account:
            raise AccessError("the account did not sign this statement", code="account.bad_signature")
        row = tables.row({"nonce": nonce, "signature": signature.hex()})
        seqno = await self.sequencer.write_rows([(tables.ACCOUNTS, account_row(caller.actor, account), row)])
        await self.sequencer.committed(seqno)
        return {
            "account": "0x" + account.hex(),
            "actor": caller.actor,
            "transaction_id": str(self.journal.position(seqno)),
        }


def _service_status(view: StoreView) -> str:
    return str(json.loads(view.get(tables.SERVICE_INFO, tables.SINGLETON) or b"{}").get("status"))


def _public(certificate: x509.Certificate) -> ec.EllipticCurvePublicKey:
    key = certificate.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey), "this enclave, or the service, has issued it for such a key"
    return key


def _spki(certificate: x509.Certificate) -> bytes:
    return cose.spki(_public(certificate))
