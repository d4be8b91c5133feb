"""What every way in shares: find the adapter, submit to its pool, query committed state.

A reply is made from the last committed version; a submission that waits is answered once its entry is committed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from coco import limits
from coco.enclave.adapters.contract import (
    AdapterError,
    Caller,
    Cost,
    Envelope,
    Outcome,
    Reply,
    Request,
    Route,
    RouteKind,
    Settled,
    Verdict,
)
from coco.enclave.ordering import records
from coco.enclave.ordering.forwarding import Submissions
from coco.enclave.ordering.runtime import AdapterRuntime
from coco.enclave.ordering.sequencer import Sequencer
from coco.enclave.ordering.turns import ASKING
from coco.errors import CocoError


class Service:
    """The adapters of a node, as the front end uses them."""

    def __init__(self, sequencer: Sequencer, submissions: Submissions, served: Sequence[AdapterRuntime]) -> None:
        self._sequencer, self.submissions = sequencer, submissions
        self._rpc: dict[str, tuple[AdapterRuntime, Route]] = {}
        self.routes: list[tuple[AdapterRuntime, Route]] = []
        #: Methods and routes of the framework itself, by name.
        self.own: dict[str, Callable[[Request, Caller], Awaitable[Any]]] = {}
        for runtime in served:
            self.add(runtime)

    def add(self, runtime: AdapterRuntime) -> None:
        """Serve an adapter from now on."""
        for route in runtime.adapter.manifest().routes:
            if route.path:
                self.routes.append((runtime, route))
            else:
                self._rpc[route.name] = (runtime, route)

    def rpc_route(self, name: Any) -> tuple[AdapterRuntime, Route] | None:
        """The adapter that has a JSON-RPC method."""
        return self._rpc.get(name) if isinstance(name, str) else None

    def cost(self, route: tuple[AdapterRuntime, Route] | None, request: Request) -> Cost:
        """What a JSON-RPC call costs; little, when nobody has the method."""
        return Cost() if route is None else route[0].adapter.cost(request)

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
        ASKING.set(caller.actor)
        if route.kind is RouteKind.QUERY:
            return await runtime.adapter.query(request, caller, self._view())
        raw = runtime.adapter.parse_submission(request)
        wait = route.kind is RouteKind.SUBMIT_AND_WAIT
        submitted = await asyncio.gather(*(self._submit(runtime, one, caller, wait) for one in raw))
        if not wait:
            return runtime.adapter.accepted(request, [envelope for envelope, _ in submitted])
        settled = [await self._settled(runtime, envelope, fate) for envelope, fate in submitted if fate is not None]
        return await runtime.adapter.acknowledge(request, settled, caller, self._view())

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
                try:
                    if wait:
                        runtime.adapter.check_wait(answer, caller)
                except CocoError as error:
                    future.set_exception(error)
                    return
                # Asked for before the transaction can run, so that its outcome cannot be missed.
                future.set_result((answer, self._sequencer.outcome(runtime, answer.id) if wait else None))

        self.submissions.add(runtime, caller, [(raw, answered)])
        return await future

    async def _settled(self, runtime: AdapterRuntime, envelope: Envelope, fate: asyncio.Future[str]) -> Settled:
        """What became of a transaction, once that is known; what the ledger tells of is committed then."""
        try:
            reason = await asyncio.wait_for(fate, limits.COMMIT_SECONDS_MAX)
        except TimeoutError as error:
            raise AdapterError(
                "the transaction was accepted but is not committed yet",
                code="node.not_committed_in_time",
                rpc_code=4,
                data="0x" + envelope.id.hex(),
            ) from error
        if reason:
            return Settled(envelope, Outcome(Verdict.REFUSED, reason))
        recorded = None
        if runtime.manifest.reply is not None:
            recorded = await records.read(self._view(), runtime.manifest, envelope.id)
        return Settled(envelope, recorded or Outcome(Verdict.INCLUDED))
