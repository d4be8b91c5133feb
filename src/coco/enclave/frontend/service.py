"""What every way in shares: find the adapter, submit to its pool, query committed state.

A reply is made from the last committed version; a submission that waits is answered once its entry is committed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

from coco import limits
from coco.enclave.adapters.base import (
    AdapterError,
    Caller,
    CallerKind,
    Envelope,
    Reply,
    Request,
    Route,
    RouteKind,
)
from coco.enclave.sequencer import AdapterRuntime, Sequencer
from coco.errors import AccessError, BusyError, CocoError

Answer = Callable[[Envelope | CocoError], None]
_Waiting = tuple[AdapterRuntime, bytes, Caller, Answer]

#: Parts in which submissions that gathered are checked, and the least size of one. Few large parts cost less; many let
#: the first be answered, and its client go on, while the others are checked.
_PARTS, _PART_MIN = 4, 8


class Submissions:
    """Collects raw transactions that arrive close together, so that one call of the extension checks a few of them."""

    def __init__(self, sequencer: Sequencer) -> None:
        self._sequencer = sequencer
        self._waiting: dict[tuple[int, int], list[_Waiting]] = {}
        #: The newest check of each adapter and caller.
        self._checks: dict[tuple[int, int], asyncio.Task[None]] = {}
        self._count = 0

    def add(self, runtime: AdapterRuntime, raw: bytes, caller: Caller, answer: Answer) -> None:
        """Queue one; ``answer`` gets its envelope in the pool, or the refusal."""
        if caller.kind is not CallerKind.PARTICIPANT:
            answer(AccessError("only participants may submit transactions", code="access.not_a_participant"))
            return
        if self._count >= limits.POOL_TRANSACTIONS_MAX:
            answer(BusyError("the node is full; try again later", code="pool.full"))
            return
        self._count += 1
        key = id(runtime), id(caller)
        waiting = self._waiting.setdefault(key, [])
        waiting.append((runtime, raw, caller, answer))
        if len(waiting) == 1:
            # After everything that has arrived by now has been read: so submissions gather without waiting.
            asyncio.get_running_loop().call_soon(self._check, key)

    def _check(self, key: tuple[int, int]) -> None:
        waiting = self._waiting.pop(key)
        size = max(_PART_MIN, len(waiting) // _PARTS)
        for first in range(0, len(waiting), size):
            batch = waiting[first : first + size]
            task = asyncio.get_running_loop().create_task(self._admit(batch, self._checks.get(key)))
            self._checks[key] = task
            task.add_done_callback(partial(self._checked, key))

    def _checked(self, key: tuple[int, int], task: asyncio.Task[None]) -> None:
        if self._checks[key] is task:
            del self._checks[key]

    async def _admit(self, batch: list[_Waiting], before: asyncio.Task[None] | None) -> None:
        runtime, _, caller, _ = batch[0]
        admitted: Sequence[Envelope | CocoError]
        try:
            admitted = await runtime.adapter.admit([raw for _, raw, _, _ in batch], caller)
        except Exception:  # noqa: BLE001 - an adapter's failure is this batch's refusal, not the node's end
            admitted = [AdapterError("the transaction could not be checked", code="adapter.failed")] * len(batch)
        if before is not None:
            await before  # one client's transactions enter the pool in the order in which they came
        self._settle(batch, admitted)

    def _settle(self, batch: list[_Waiting], admitted: Sequence[Envelope | CocoError]) -> None:
        self._count -= len(batch)
        envelopes = [one for one in admitted if isinstance(one, Envelope)]
        refusals = iter(self._sequencer.accept(batch[0][0], envelopes))
        for (_, _, _, answer), one in zip(batch, admitted, strict=True):
            answer(one if isinstance(one, CocoError) else next(refusals) or one)


class Service:
    """The adapters of a node, as the front end uses them."""

    def __init__(self, sequencer: Sequencer) -> None:
        self._sequencer = sequencer
        self.submissions = Submissions(sequencer)
        self._rpc: dict[str, tuple[AdapterRuntime, Route]] = {}
        self.routes: list[tuple[AdapterRuntime, Route]] = []
        #: Methods and routes of the framework itself, by name.
        self.own: dict[str, Callable[[Request, Caller], Awaitable[Any]]] = {}
        for runtime in sequencer.runtimes:
            for route in runtime.adapter.manifest().routes:
                if route.path:
                    self.routes.append((runtime, route))
                else:
                    self._rpc[route.name] = (runtime, route)

    def rpc_route(self, name: Any) -> tuple[AdapterRuntime, Route] | None:
        """The adapter that has a JSON-RPC method."""
        return self._rpc.get(name) if isinstance(name, str) else None

    async def call(self, name: str, request: Request, caller: Caller) -> Reply | None:
        """Serve a JSON-RPC call; None when nobody has the method."""
        own = self.own.get(name)
        if own is not None:
            return Reply(await own(request, caller))
        found = self._rpc.get(name)
        if found is None or found[1].kind is RouteKind.SUBSCRIBE:
            return None
        return await self.serve(*found, request, caller)

    async def serve(self, runtime: AdapterRuntime, route: Route, request: Request, caller: Caller) -> Reply:
        """Serve a request of an adapter."""
        if route.kind is RouteKind.QUERY:
            return await runtime.adapter.query(request, caller, self._view())
        raw = runtime.adapter.parse_submission(request)
        wait = route.kind is RouteKind.SUBMIT_AND_WAIT
        submitted = await asyncio.gather(*(self._submit(runtime, one, caller, wait) for one in raw))
        envelopes = [envelope for envelope, _ in submitted]
        for envelope, outcome in submitted:
            if outcome is not None:
                await self._wait(envelope, outcome)
        if not wait:
            return runtime.adapter.accepted(request, envelopes)
        return await runtime.adapter.acknowledge(request, envelopes, caller, self._view())

    def _view(self) -> Any:
        return self._sequencer.store.view(self._sequencer.replica.committed)

    async def _submit(
        self, runtime: AdapterRuntime, raw: bytes, caller: Caller, wait: bool
    ) -> tuple[Envelope, asyncio.Future[str] | None]:
        future: asyncio.Future[tuple[Envelope, asyncio.Future[str] | None]] = asyncio.get_running_loop().create_future()

        def answered(answer: Envelope | CocoError) -> None:
            if future.done():
                return  # the client is gone
            if isinstance(answer, CocoError):
                future.set_exception(answer)
            else:
                # Asked for before the transaction can run, so that its outcome cannot be missed.
                future.set_result((answer, self._sequencer.outcome(runtime, answer.id) if wait else None))

        self.submissions.add(runtime, raw, caller, answered)
        return await future

    async def _wait(self, envelope: Envelope, outcome: asyncio.Future[str]) -> None:
        try:
            reason = await asyncio.wait_for(outcome, limits.COMMIT_SECONDS_MAX)
        except TimeoutError as error:
            raise AdapterError(
                "the transaction was accepted but is not committed yet",
                code="node.not_committed_in_time",
                rpc_code=4,
                data="0x" + envelope.id.hex(),
            ) from error
        if reason:
            raise AdapterError(f"the transaction was dropped: {reason}", code="node.dropped")
