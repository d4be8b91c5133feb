"""What creating a service and recovering one share: identities, a first place in consensus, rows of the first node."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

from coco.attestation import policy, wrapper
from coco.attestation.evidence import Evidence
from coco.configuration import nodes, platforms
from coco.configuration.genesis import Genesis
from coco.configuration.reads import Reads
from coco.consensus import Members, Start
from coco.crypto import cose
from coco.crypto.certificates import endorsed_names, pem
from coco.enclave.keys.identity import EncryptionKey, NodeIdentity, ServiceIdentity
from coco.enclave.node.ground import Ground
from coco.enclave.node.parts import Identities
from coco.enclave.node.states import State
from coco.enclave.ordering.replica import Replica
from coco.errors import ConfigurationError
from coco.ledger import tables
from coco.ledger.transaction_id import TransactionId

Row = tuple[str, bytes, bytes]


@dataclass(frozen=True)
class Founder:
    """The first node of a life of the service: who it is, and the evidence that says so."""

    identities: Identities
    evidence: Evidence
    #: What the evidence binds besides the node's key.
    context: dict[str, bytes]

    def rows(self, ground: Ground, seqno: int) -> list[Row]:
        """This node's rows in the entry ``seqno``."""
        identity, node_id = self.identities.node, self.identities.node.node_id.encode()
        info = nodes.row_document(
            engine=ground.replica.node,
            status=nodes.TRUSTED,
            address=ground.start.peer_address,
            owner="",
            evidence=self.evidence.to_json(),
            verified=ground.evidence.verified,
            context=self.context,
            encryption_key=self.identities.encryption.pem,
            seqno=seqno,
            host_names=endorsed_names(identity.certificate),
        )
        code = platforms.code_row(ground.evidence.verified)
        return [
            (tables.NODES_INFO, node_id, tables.row(info)),
            (tables.NODE_CERTIFICATES, node_id, pem(identity.certificate).encode()),
            *([code] if code is not None else []),
        ]


async def make_founder(ground: Ground, engine: int) -> Founder:
    """Fresh identities of a service and of its first node, with evidence.

    Args:
        ground: what the node stands on.
        engine: its id in consensus.
    """
    service = ServiceIdentity.generate(ground.clock.now_ms)
    key = ec.generate_private_key(ec.SECP384R1())
    names = list(dict.fromkeys([*ground.start.host_names, "localhost", "127.0.0.1"]))
    encryption = EncryptionKey.generate()
    context = {"service": service.spki, "configuration": ground.configuration_hash}
    evidence = await ground.evidence.begin(cose.spki(key.public_key()), context)
    wrapped = wrapper.wrap(evidence, context)
    endorsed = service.endorse(key.public_key(), engine, names, ground.clock.now_ms, evidence=wrapped)
    return Founder(Identities(NodeIdentity(key, endorsed), service, encryption), evidence, context)


async def found(ground: Ground, engine: int, first_view: int, position: TransactionId | None = None) -> None:
    """Begin a life of the service after ``position``, as its only node."""
    start = Start(Members((engine,)))
    if position is not None:
        start = Start(Members((engine,)), position=position, signed=position)
    ground.replica = Replica(
        ground.control, ground.links, node=engine, start=start, view_offset=first_view - 1, fatal=ground.ended
    )
    await ground.replica.found()


def check_platform(ground: Ground, genesis: Genesis) -> None:
    """Whether the network may run on what proves nothing.

    Raises:
        ConfigurationError: it may not (``configuration.insecure_virtual``).
    """
    if ground.evidence.is_virtual and not genesis.insecure_virtual:
        raise ConfigurationError(
            "this enclave runs on platform virtual, which the genesis does not accept",
            code="configuration.insecure_virtual",
        )


def check_policy(ground: Ground, view: Reads) -> None:
    """Whether the network accepts the platform of this node, which founds a life of it.

    Raises:
        AttestationError: the rule that does not hold, with its code.
    """
    if not ground.evidence.is_virtual:
        policy.enforce(ground.evidence.verified, platforms.policy(view))


def service_row(
    service: ServiceIdentity, status: State, recovery_count: int, *, previous: str = "", since: int = 0
) -> bytes:
    """What the ledger says of the service.

    Args:
        service: its identity.
        status: of its life.
        recovery_count: lives before this one.
        previous: PEM of the former life's certificate; empty in the first.
        since: first entry of this life, where there was a former one.
    """
    info: dict[str, Any] = {"status": str(status), "cert": pem(service.certificate), "recovery_count": recovery_count}
    if previous:
        info |= {"previous_service_identity": previous, "since": since}
    return tables.row(info)
