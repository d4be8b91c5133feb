"""A node joins a network that runs, and comes to its ledger."""

from __future__ import annotations

from coco.configuration.genesis import Genesis
from coco.enclave.network.joining import Joined, Joiner
from coco.enclave.network.state_transfer import CatchUp
from coco.enclave.node.founding import check_platform
from coco.enclave.node.ground import Ground
from coco.enclave.node.parts import Identities, Parts, dial_as
from coco.enclave.ordering.replica import Replica
from coco.enclave.platform.clock import Clock
from coco.enclave.store import Store
from coco.errors import LedgerError


async def join(ground: Ground) -> Parts:
    """Be admitted, and read the ledger until it can be followed.

    Raises:
        CocoError: nobody admits this node, or what it was given does not fit together.
    """
    joiner = Joiner(
        ground.control,
        ground.links,
        ground.start,
        attesting=ground.evidence,
        configuration=ground.configuration_hash,
        time_ms=ground.clock.now_ms,
    )
    joined = await joiner.join()
    dial_as(ground, joined.identity, joined.service)
    ground.clock = Clock(joined.time_ms)  # the network's, which goes on by what most hosts say
    for first, secret in joined.secrets:
        ground.journal.hold(first, secret)
    store, wired = ground.new_store(), list[Parts]()

    def begin(genesis: bytes) -> None:
        """What needs to know the network, before its ledger is read."""
        wired.append(_wire(ground, store, joined, genesis))

    catch_up = CatchUp(
        ground.control, store, joiner, joined, begin, lambda seqno, rows: wired[0].registry.adopt(seqno, rows)
    )
    began = ground.loop.time()
    numbers = await catch_up.run(ground.start.last_seqno)
    (parts,) = wired
    ground.log("join.caught_up", {**numbers, "ms": int(1000 * (ground.loop.time() - began))})
    if joined.constitution_hash != parts.constitution_hash():
        raise LedgerError("the ledger has another constitution", code="join.other_ledger")
    await parts.rebuild_adapters()
    return parts


def _wire(ground: Ground, store: Store, joined: Joined, genesis: bytes) -> Parts:
    check_platform(ground, Genesis.parse(genesis))
    ground.replica = Replica(
        ground.control,
        ground.links,
        node=joined.engine,
        start=joined.start,
        view_offset=joined.view_offset,
        fatal=ground.ended,
    )
    parts = Parts(ground, store, genesis, Identities(joined.identity, joined.service, joined.encryption))
    parts.declare_adapters()
    return parts
