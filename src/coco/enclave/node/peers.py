"""What other nodes tell and ask this one, and when it leaves them."""

from __future__ import annotations

import asyncio

from coco.configuration import nodes
from coco.enclave.keys.identity import private_der
from coco.enclave.network.governance import GOVERN
from coco.enclave.network.membership import JOIN
from coco.enclave.network.snapshots import SNAPSHOT, SNAPSHOT_PART
from coco.enclave.node.bindings import BIND, Bindings
from coco.enclave.node.parts import Parts
from coco.enclave.ordering.forwarding import DROPPED, EXECUTING, EXECUTING_FORMERLY, PENDING, SUBMIT
from coco.enclave.ordering.replica import ENGINE
from coco.enclave.transport.links import decode
from coco.errors import AccessError

#: What a node's host says of the time.
TIME = "time"
#: A retired node that hears of no other for so long has been let go.
_QUIET_S = 4


class Peers:
    """This node among others.

    Args:
        parts: of the node.
        bindings: binds what clients of other nodes ask for.
    """

    def __init__(self, parts: Parts, bindings: Bindings) -> None:
        self._parts, self._bindings = parts, bindings

    def meet(self) -> None:
        """Be a node among others from now on."""
        parts, ground = self._parts, self._parts.ground
        links = ground.links
        links.address, links.node_id = parts.membership.address, parts.membership.node_id
        links.on_tell = self._told
        links.on_lost = parts.forwarding.link_lost
        links.serve = self._serve
        parts.is_shown = True
        with private_der(parts.identity.key) as key:
            links.accept_as(parts.replica.node, parts.identity.chain(parts.service), key)
        parts.replica.follow()
        ground.spawn(parts.membership.run())
        ground.spawn(parts.primary_tasks.run())
        ground.spawn(self._leave_when_retired())
        ground.spawn(ground.evidence.run(parts.renew_evidence))

    def _told(self, sender: int, kind: str, body: bytes) -> None:
        parts = self._parts
        if kind == ENGINE:
            parts.replica.receive(sender, body)
        elif kind == DROPPED and sender == parts.replica.primary:
            parts.forwarding.dropped(body)
        elif kind in (EXECUTING, EXECUTING_FORMERLY) and sender == parts.replica.primary:
            parts.forwarding.executing(sender, kind, body)
        elif kind == TIME:
            parts.agreement.heard(sender, decode(int, body), parts.ground.loop.time())

    async def _serve(self, sender: int, certificate: bytes, kind: str, body: bytes) -> bytes:
        parts = self._parts
        if kind != JOIN and parts.membership.address(sender) is None:
            raise AccessError("only nodes of this network may ask this", code="peers.not_of_the_service")
        if kind in (SUBMIT, PENDING):
            return await parts.forwarding.serve(sender, kind, body)
        if kind in (SNAPSHOT, SNAPSHOT_PART):
            return await parts.snapshots.serve(kind, body)
        if kind == BIND:
            return await self._bindings.answer(body)
        if kind == GOVERN:
            return await parts.governance.answer(body)
        return await parts.membership.serve(certificate, kind, body)

    async def _leave_when_retired(self) -> None:
        """End once this node is retired and no node talks to it any more; until then its vote may be needed."""
        replica, known, retired = self._parts.replica, False, False
        while not retired or replica.quiet_s < _QUIET_S:
            await asyncio.sleep(1)
            own = self._parts.membership.rows().get(replica.node)
            known |= own is not None
            # Of one that others have replaced again and again the network keeps no row.
            retired = own.status == nodes.RETIRED if own is not None else known
        self._parts.ground.ended(AccessError("this node was retired", code="node.retired"))
