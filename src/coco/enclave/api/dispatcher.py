"""What every way in shares: find the adapter, submit to its pool, query committed state.

A reply is made from the last committed version; a submission that waits is answered once its entry is committed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

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
    Subscriptions,
    Verdict,
    Visible,
    mounts,
    visible,
)
from coco.enclave.ordering import records
from coco.enclave.ordering.forwarding import Forwarding
from coco.enclave.ordering.runtime import AdapterRuntime
from coco.enclave.ordering.sequencer import Sequencer
from coco.enclave.ordering.turns import ASKING
from coco.enclave.store import StoreView
from coco.errors import CocoError

if TYPE_CHECKING:
    from coco._native import Chain


def require_public(reply: Reply, name: str) -> Reply:
    """An answer that is told without ``redact``.

    Raises:
        AdapterFault: it does not say that it may be (``adapter.not_redacted``).
    """
    if not reply.public or isinstance(reply.value, Visible):
        raise visible.not_redacted(name)
    return reply


class Dispatcher:
    """The adapters of a node, as the front end uses them."""

    def __init__(self, sequencer: Sequencer, submissions: Forwarding, served: Sequence[AdapterRuntime]) -> None:
        self._sequencer, self.forwarding = sequencer, submissions
        #: JSON-RPC methods at ``/``, and at other mounts.
        self._rpc: dict[str, tuple[AdapterRuntime, Route]] = {}
        self._rpc_below: dict[str, dict[str, tuple[AdapterRuntime, Route]]] = {}
        #: Adapters with streams that JSON-RPC begins.
        self._streaming: list[AdapterRuntime] = []
        #: Of HTTP; their paths are below the mounts of their adapters.
        self.routes: list[tuple[AdapterRuntime, Route]] = []
        for runtime in served:
            self.add(runtime)

    def add(self, runtime: AdapterRuntime) -> None:
        """Serve an adapter from now on."""
        root = runtime.mount == mounts.ROOT
        if runtime.manifest.subscriptions is not None:
            self._streaming.append(runtime)
            if not root:
                self._rpc_below.setdefault(runtime.mount, {})
        for route in runtime.manifest.routes:
            if route.path:
                self.routes.append((runtime, route))
            else:
                methods = self._rpc if root else self._rpc_below.setdefault(runtime.mount, {})
                methods.setdefault(route.name, (runtime, route))

    def rpc_route(self, name: str) -> tuple[AdapterRuntime, Route] | None:
        """The adapter that has a JSON-RPC method at ``/``."""
        return self._rpc.get(name)

    def rpc_route_below(self, mount: str, name: str) -> tuple[AdapterRuntime, Route] | None:
        """The same, at another mount."""
        return self._rpc_below.get(mount, {}).get(name)

    def subscription(self, method: str, mount: str) -> tuple[AdapterRuntime, Subscriptions] | None:
        """The adapter at a mount whose streams a JSON-RPC method begins or ends."""
        for runtime in self._streaming:
            named = runtime.manifest.subscriptions
            if runtime.mount == mount and named is not None and method in (named.subscribe, named.unsubscribe):
                return runtime, named
        return None

    @property
    def rpc_mounts(self) -> list[str]:
        """Mounts with JSON-RPC, except ``/``, the longest first."""
        return sorted(self._rpc_below, key=len, reverse=True)

    def early_checks(self, runtime: AdapterRuntime) -> dict[str, Chain]:
        """Checks of an adapter while a request is read: the door looks only into JSON-RPC at ``/``, so only methods
        that are this adapter's there.
        """
        if runtime.mount != mounts.ROOT:
            return {}
        checks = runtime.adapter.early_checks()
        ours = {method: self._rpc.get(method) for method in checks}
        return {
            method: checks[method]
            for method, route in ours.items()
            if route is not None and route[0] is runtime and route[1].kind is RouteKind.SUBMIT
        }

    def cost(self, route: tuple[AdapterRuntime, Route] | None, request: Request) -> Cost:
        """What a JSON-RPC call costs; little, when nobody has the method."""
        return Cost() if route is None else route[0].adapter.cost(request)

    async def serve(self, runtime: AdapterRuntime, route: Route, request: Request, caller: Caller) -> Reply:
        """Serve a request of an adapter."""
        ASKING.set(caller.actor)
        if route.kind is RouteKind.QUERY:
            view = self.view()
            return await self._told(runtime, await runtime.adapter.query(request, caller, view), request, caller, view)
        raw = runtime.adapter.parse_submission(request)
        wait = route.kind is RouteKind.SUBMIT_AND_WAIT
        submitted = await asyncio.gather(*(self._submit(runtime, one, caller, wait) for one in raw))
        if not wait:
            return require_public(
                runtime.adapter.accepted(request, [envelope for envelope, _ in submitted]), request.name
            )
        settled = [await self._settled(runtime, envelope, fate) for envelope, fate in submitted if fate is not None]
        view = self.view()
        reply = await runtime.adapter.acknowledge(request, settled, caller, view)
        return await self._told(runtime, reply, request, caller, view)

    @staticmethod
    async def _told(runtime: AdapterRuntime, reply: Reply, request: Request, caller: Caller, view: StoreView) -> Reply:
        redact = runtime.adapter.redact
        value = await visible.told(reply.value, redact, caller, view, public=reply.public, name=request.name)
        return reply if value is reply.value else msgspec.structs.replace(reply, value=value, public=True)

    def view(self) -> StoreView:
        """Committed state."""
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

        self.forwarding.add(runtime, caller, [(raw, answered)])
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
        if runtime.manifest.reply is not None:
            recorded = await records.read(self.view(), runtime.manifest, envelope.id)
            if recorded is not None:
                return Settled(envelope, recorded)
        return Settled(envelope, Outcome(Verdict.REFUSED if reason else Verdict.INCLUDED, reason))
