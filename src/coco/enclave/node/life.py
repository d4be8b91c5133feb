"""A validating node's life: it creates, joins or recovers a service (``create.py``, ``join.py``, ``recover.py``),
serves it (``serve.py``), and ends in good order. Which state may follow which is in ``states.py``.
"""

from __future__ import annotations

from coco.enclave.api.admission import Admission
from coco.enclave.network.recovery import Recovery
from coco.enclave.node.answers import Answers
from coco.enclave.node.create import create
from coco.enclave.node.founding import service_row
from coco.enclave.node.ground import Ground, Handed
from coco.enclave.node.join import join
from coco.enclave.node.parts import Parts
from coco.enclave.node.recover import Recovering, begin_recovery
from coco.enclave.node.serve import Serving
from coco.enclave.node.states import Life, State
from coco.enclave.node.watch import Watch
from coco.enclave.platform.faults import Faults
from coco.ledger import tables


class EnclaveNode:
    """The trusted half of one node.

    Args:
        handed: what its process hands to it.
    """

    def __init__(self, handed: Handed) -> None:
        self._handed, self._life, self._admission = handed, Life(), Admission()
        self.faults = Faults(handed.ended, handed.control.log)
        self._ground: Ground | None = None
        self._parts: Parts | None = None
        self._serving: Serving | None = None

    async def run(self) -> None:
        """Start as the host asks; serves until the control channel ends."""
        control = self._handed.control
        control.on_stop = self._stopped
        start = await control.started
        self._ground = ground = Ground(self._handed, start, self.faults)
        control.keep_snapshot(0)  # a former process's are sealed under keys that died with it
        if start.mode == "create":
            parts = await create(ground)
            serving = self._wire(parts)
            if not parts.genesis.opens_by_vote:
                await self._open(parts)
            else:
                parts.sequencer.start()
            self._serve(parts, serving)
        elif start.mode == "recover":
            self._life.become(State.RECOVERING)
            parts, recovery = await begin_recovery(ground)
            self._life.become(State.WAITING_FOR_SHARES)
            serving = self._wire(parts, recovery)
            serving.administration()
            serving.announce()
        else:
            self._life.become(State.JOINING)
            parts = await join(ground)
            parts.sequencer.start()
            self._serve(parts, self._wire(parts))
        control.on_tick = Watch(parts, self._life).tick

    def _wire(self, parts: Parts, recovery: Recovery | None = None) -> Serving:
        answers = Answers(parts, self._life)
        serving = Serving(parts, self._life, self._admission, answers)

        async def opened() -> None:
            self._serve(parts, serving)

        serving.recovering = Recovering(self._life, parts, recovery, opened)
        self._parts, self._serving = parts, serving
        return serving

    async def _open(self, parts: Parts) -> None:
        row = service_row(parts.service, State.OPEN, 0)
        seqno = await parts.sequencer.write_rows([(tables.SERVICE_INFO, tables.SINGLETON, row)])
        parts.sequencer.start()
        await parts.sequencer.committed(seqno)

    def _serve(self, parts: Parts, serving: Serving) -> None:
        parts.dial_as_a_node()
        serving.governed()

    # --- end ---

    def _stopped(self) -> None:
        if self._ground is None:
            self._handed.ended(None)
        else:
            self._ground.spawn(self._stop(self._ground))

    async def _stop(self, ground: Ground) -> None:
        if self._serving is not None:
            self._serving.close()
        if self._parts is not None and self._life.is_governed:
            await self._parts.sequencer.drain()
            await self._parts.replica.hand_over()
            self._parts.replica.stop()
        ground.ended(None)
