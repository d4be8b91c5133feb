"""The parts of a node that has its place in a network, wired; and what each entry, view and peer means to them."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from typing import Any

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from coco._native import WriteSet
from coco.configuration.genesis import Genesis
from coco.configuration.proposals import Proposals
from coco.configuration.reads import Gets
from coco.crypto.certificates import pem
from coco.enclave.adapters.contract import AdapterServices, ExternalSession, Manifest
from coco.enclave.keys.adapter_keys import AdapterKeys
from coco.enclave.keys.epochs import Epochs
from coco.enclave.keys.identity import EncryptionKey, NodeIdentity, ServiceIdentity, private_der
from coco.enclave.network.evidence import EVIDENCE
from coco.enclave.network.governance import GovernanceService
from coco.enclave.network.key_rotation import KeyRotation
from coco.enclave.network.membership import Membership
from coco.enclave.network.primary_tasks import PrimaryTasks
from coco.enclave.network.snapshots import Snapshots
from coco.enclave.network.state_transfer import install
from coco.enclave.node.callers import Callers
from coco.enclave.node.ground import Ground
from coco.enclave.ordering import claimed
from coco.enclave.ordering.forwarding import Forwarding
from coco.enclave.ordering.queries import Queries
from coco.enclave.ordering.registry import AdapterRegistry
from coco.enclave.ordering.runtime import AdapterRuntime
from coco.enclave.ordering.sequencer import Sequencer
from coco.enclave.platform.clock import Agreement
from coco.enclave.store import Store, StoreView
from coco.errors import AccessError
from coco.ledger import tables
from coco.ledger.transaction_id import TransactionId


@dataclass
class Identities:
    """Who this node is, and the service that it is a node of."""

    node: NodeIdentity
    service: ServiceIdentity
    encryption: EncryptionKey


class Parts:
    """Everything that a node is made of once it knows its network.

    Args:
        ground: what it stands on; its replica is there.
        store: over the ground's journal.
        genesis: of the network, as it was signed for.
        identities: this node's and the service's.
    """

    def __init__(self, ground: Ground, store: Store, genesis: bytes, identities: Identities) -> None:
        self.ground, self.replica, self.journal = ground, ground.replica, ground.journal
        self.genesis = Genesis.parse(genesis)
        self.identity, self.service = identities.node, identities.service
        settings, log = self.genesis.settings, ground.log
        self.agreement = Agreement(settings.time_bound_ms)
        if store.index is not None:
            store.index.rows_cold_max = settings.index_rows_max
        self.sequencer = sequencer = Sequencer(
            store=store,
            clock=ground.clock,
            node=self.identity,
            service=self.service,
            replica=self.replica,
            block_interval_ms=settings.block_interval_ms,
            signature_interval_ms=settings.signature_interval_ms,
            run=ground.run_off_loop,
            room=ground.control.room,
            fatal=ground.ended,
            log=log,
        )
        committed = lambda: self.replica.committed  # noqa: E731
        self.callers = Callers(lambda: ground.clock, committed, lambda seqno: self.store.view(seqno))
        self._queries = Queries()
        self.membership = Membership(
            control=ground.control,
            sequencer=sequencer,
            replica=self.replica,
            service=self.service,
            admits=lambda node, view: self.governance.admits(node, view),
            network=self.genesis.network,
            constitution_hash=self.constitution_hash,
            log=log,
        )
        certificates, changing = self.membership.certificates, self.membership.changing
        self.epochs = epochs = Epochs(self.journal, self.service, self.identity.node_id, identities.encryption)
        self.journal.open_former = lambda first, successor: epochs.open_former(self.store.view(), first, successor)
        self.keys = AdapterKeys(self.journal, self.service, self.committed_view, ground.run_off_loop)
        self.registry = AdapterRegistry(ground.factories, sequencer, self._services, log, self.first_rows)
        self.key_rotation = rotation = KeyRotation(
            self.service, self.identity.node_id, identities.encryption, sequencer, certificates, epochs, log
        )
        self.membership.sealed_following = rotation.sealed_for
        proposals = Proposals(ground.rules.call, lambda: ground.clock.now_ms // 1000)
        self.governance = GovernanceService(
            sequencer, proposals, epochs, certificates, changing, self.registry.check, log
        )
        self.primary_tasks = PrimaryTasks(
            sequencer, certificates, epochs, self.registry, self.keys, rotation, changing, log
        )
        self.forwarding = Forwarding(sequencer, ground.links, self.callers.caller)
        self.registry.begin_composites()
        self.snapshots = Snapshots(
            control=ground.control,
            sequencer=sequencer,
            genesis=genesis,
            interval=settings.snapshot_interval_entries,
            run=ground.run_off_loop,
            spawn=ground.spawn,
            log=log,
        )
        sequencer.subscribers.applied.append(self._applied)
        sequencer.subscribers.rolled_back.append(self._rolled_back)
        sequencer.subscribers.view_changed.append(self._view_changed)
        self.replica.on_install = partial(install, ground.control, ground.links, sequencer)
        #: Whether others are shown this node's certificate: before, nobody is.
        self.is_shown = False
        self._view_told: tuple[int, int, object] | None = None

    # --- state ---

    @property
    def store(self) -> Store:
        """The store; a recovered service gets another one when its private ledger is opened."""
        return self.sequencer.store

    def committed_view(self) -> StoreView | None:
        """What is committed; none while this node has not got so far."""
        committed = self.replica.committed
        return self.store.view(committed) if committed >= self.store.native.oldest else None

    def committed_position(self) -> TransactionId:
        """Id of the last committed entry."""
        return self.journal.position(self.replica.committed)

    def constitution_hash(self) -> bytes:
        """Of the rules in force, as they are committed; before anything is, of those of the genesis."""
        view = self.committed_view()
        row = view.get(tables.CONSTITUTION, tables.SINGLETON) if view is not None else None
        source = self.genesis.constitution if row is None else str(json.loads(row))
        return sha256(source.encode()).digest()

    # --- adapters ---

    def declare_adapters(self) -> None:
        """Make those of the genesis."""
        for name, founded_with in self.genesis.adapters.items():
            self.registry.declare(name, founded_with)

    async def rebuild_adapters(self) -> None:
        """Have every adapter build anew what it derives from the tables."""
        for adapter in self.registry.by_name.values():
            await adapter.rebuild(self.store.view())

    def first_rows(self, manifest: Manifest, view: Gets) -> list[tuple[str, bytes, bytes]]:
        """What the framework writes into the entry that an adapter begins with, after ``view``: its keys."""
        return self.keys.made(manifest.name, manifest.keys, view, self.ground.clock.now_ms)

    def _services(self, runtime: AdapterRuntime) -> AdapterServices:
        return AdapterServices(
            pooled=partial(self.forwarding.pooled, runtime),
            pending_position=partial(self.forwarding.pending_position, runtime),
            newest=lambda: self.store.view(),
            prove_item=partial(self._prove_item, runtime),
            call_external=partial(self._call_external, runtime.adapter.manifest().externals),
            external=partial(self._external, runtime.adapter.manifest().externals),
            child=partial(self.ground.children.of, runtime.name),
            sign=partial(self.keys.sign, runtime.name),
            certificates=partial(self.keys.certificates, runtime.name),
            run=self.ground.run_off_loop,
            run_background=self.ground.background.run,
            run_query=self._queries.read,
            run_list=self._queries.list,
        )

    @staticmethod
    async def _prove_item(runtime: AdapterRuntime, identity: bytes, view: StoreView) -> tuple[int, Any] | None:
        seqno = await view.locate(runtime.manifest.transactions, identity)
        proof = await claimed.prove_item(view, runtime.name, seqno, identity) if seqno is not None else None
        return (seqno, proof) if seqno is not None and proof is not None else None

    async def _call_external(self, allowed: Collection[str], name: str, body: bytes) -> bytes:
        _check_declared(allowed, name)
        return await self.ground.control.externals.call(name, body)

    def _external(self, allowed: Collection[str], name: str) -> ExternalSession:
        _check_declared(allowed, name)
        return self.ground.control.externals.session(name)

    # --- entries and views ---

    def _applied(self, writes: WriteSet) -> None:
        """Whatever is remembered of callers and nodes may be old, and another epoch may begin."""
        changed, seqno = writes.tables(), self.journal.last_seqno
        if tables.SUCCESSION in changed:
            self.key_rotation.entry_applied(writes)
        if tables.NODE_CERTIFICATES in changed or tables.SERVICE_INFO in changed:
            own = dict(writes.rows(tables.NODE_CERTIFICATES)).get(self.identity.node_id.encode())
            self._adopt(own, dict(writes.rows(tables.SERVICE_INFO)).get(tables.SINGLETON))
        self.epochs.entry_applied(writes)
        self.registry.adopt(seqno, writes.rows(tables.ADAPTERS))
        if not tables.ACTOR_TABLES.isdisjoint(changed):
            self.callers.changed(seqno)
            self.membership.changed(seqno)

    def _rolled_back(self, seqno: int) -> None:
        self.registry.rolled_back(seqno)
        view = self.store.view()
        own = view.get(tables.NODE_CERTIFICATES, self.identity.node_id.encode())
        self._adopt(own, view.get(tables.SERVICE_INFO, tables.SINGLETON))

    def _view_changed(self) -> None:
        view, primary, members = self.replica.view, self.replica.primary, self.replica.members
        if (view, primary, members) != self._view_told:
            self._view_told = view, primary, members
            numbers = {"view": view, "primary": primary, "voters": len(members.voters), "nodes": len(members.all)}
            self.ground.log("consensus.changed", {"node": self.replica.node, **numbers})
        if primary:
            self.forwarding.view_changed()

    # --- certificates ---

    def _adopt(self, own: bytes | None, info: bytes | None) -> None:
        """Take over what rows of this node's certificate and of the service say; show it, if that is news."""
        news = False
        if info is not None:
            news = self.service.become(x509.load_pem_x509_certificate(json.loads(info)["cert"].encode()))
        if own is not None and own != pem(self.identity.certificate).encode():
            self.identity.certificate, news = x509.load_pem_x509_certificate(own), True
        if not news or not self.is_shown:
            return
        self.dial_as_a_node()
        with private_der(self.identity.key) as key:
            chain = self.identity.chain(self.service)
            self.ground.links.accept_as(self.replica.node, chain, key)
            self.callers.show(chain, key)

    def dial_as_a_node(self) -> None:
        """Show other nodes this one's certificate from now on."""
        dial_as(self.ground, self.identity, self.service)

    async def renew_evidence(self, evidence: dict[str, str]) -> None:
        """Have newer evidence put into this node's row."""
        if self.replica.is_primary:
            await self.membership.renew_evidence(public_key(self.identity.certificate), evidence)
        else:
            await self.replica.ask_primary(EVIDENCE, msgspec.msgpack.encode(evidence))


def _check_declared(allowed: Collection[str], name: str) -> None:
    if name not in allowed:
        raise AccessError("the adapter did not declare this processor", code="external.not_declared")


def dial_as(ground: Ground, identity: NodeIdentity, service: ServiceIdentity) -> None:
    """Dial other nodes as one of this service."""
    with private_der(identity.key) as key:
        ground.links.dial_as(identity.chain(service), key, public_key(service.certificate))


def public_key(certificate: x509.Certificate) -> ec.EllipticCurvePublicKey:
    """The key of a certificate of this service."""
    key = certificate.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey), "this enclave, or the service, has issued it for such a key"
    return key
