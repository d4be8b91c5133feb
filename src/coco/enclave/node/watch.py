"""What a node does at every tick of its host's clock, and the numbers that operators see."""

from __future__ import annotations

import msgspec

from coco import limits
from coco.channel import messages
from coco.configuration import settings
from coco.enclave.network.standing import Standing, quorum
from coco.enclave.node.parts import Parts
from coco.enclave.node.peers import TIME
from coco.enclave.node.states import Life


class Watch:
    """Watches over one node."""

    def __init__(self, parts: Parts, life: Life) -> None:
        self._parts, self._ground, self._life = parts, parts.ground, life
        self._standing = Standing(parts.committed_view)
        #: Time without a primary after which the loss of the majority is named next.
        self._lost_after_s = limits.MAJORITY_LOST_SECONDS
        self._ticked_at = self._ground.loop.time()

    def tick(self, time_ms: int) -> None:
        """The host says what time it is."""
        clock, replica, agreement = self._ground.clock, self._parts.replica, self._parts.agreement
        if not self._life.is_governed:
            clock.tick(time_ms)
            return
        self._forget_secrets()
        now = self._ground.loop.time()
        agreement.heard(replica.node, time_ms, now)
        for other in replica.members.all - {replica.node}:
            self._ground.links.tell(other, TIME, msgspec.msgpack.encode(time_ms))
        voters = replica.members.voters
        ceiling_ms, alone_ms = agreement.ceiling_ms(voters, now), None
        if ceiling_ms is None and len(voters) > 1:
            alone_ms = agreement.ceiling_alone_ms(clock.now_ms, now - self._ticked_at)
        self._ticked_at = now
        clock.tick(time_ms, ceiling_ms if alone_ms is None else alone_ms)
        if ceiling_ms is not None and time_ms > ceiling_ms and replica.may_execute:
            # H5: whoever orders entries gives them their time; another host's is nearer to most.
            self._ground.log("clock.ahead_of_the_median", {"ms": time_ms - ceiling_ms})
            self._ground.spawn(replica.hand_over())
        self._name_a_lost_majority()
        self._ground.control.send(messages.Metrics(self._numbers()))

    def _name_a_lost_majority(self) -> None:
        """A node that others do not answer says so, and again after twice the time; a person must decide."""
        replica = self._parts.replica
        missing_s = replica.without_primary_s
        if missing_s < limits.MAJORITY_LOST_SECONDS:
            self._lost_after_s = limits.MAJORITY_LOST_SECONDS
        elif missing_s >= self._lost_after_s:
            self._lost_after_s *= 2
            voters = len(replica.members.voters)
            numbers = {"seconds": int(missing_s), "voters": voters, "needed": voters // 2 + 1}
            self._ground.log("consensus.majority_lost", numbers)

    def _forget_secrets(self) -> None:
        """K5: a former ledger secret is in memory only while something needs it."""
        lifetime_s = settings.in_force(self._parts.store.view())["secret_lifetime_s"]
        journal, committed = self._parts.journal, self._parts.replica.committed
        gone = journal.forget_former(self._ground.loop.time(), float(lifetime_s), committed)
        if gone:
            self._ground.log("epoch.secrets_forgotten", {"secrets": gone})

    def _numbers(self) -> dict[str, int]:
        parts, replica, now = self._parts, self._parts.replica, self._ground.loop.time()
        return {
            **parts.sequencer.counters,
            **stages(parts),
            "view": replica.view,
            "committed": replica.committed,
            "last": parts.journal.last_seqno,
            "leads": int(replica.is_primary),
            "primary_known": int(replica.primary != 0),
            "without_primary_s": int(replica.without_primary_s),
            "voters": len(replica.members.voters),
            **quorum(replica.members.voters, parts.agreement.reached(now)),
            **self._standing.numbers(self._ground.clock.now_ms // 1000, now),
            "pooled": sum(len(runtime.pool) for runtime in parts.sequencer.runtimes),
            "held": parts.forwarding.held,
            "unexpected": self._ground.faults.count,
            "clipped_time_steps": self._ground.clock.clipped,
        }


def stages(parts: Parts) -> dict[str, int]:
    """Where the time goes: counts, and microseconds of each stage."""
    return {
        "checked": parts.forwarding.checked,
        "checked_early": parts.forwarding.checked_early,
        "check_us": parts.forwarding.check_us,
        **parts.sequencer.stages,
    }
