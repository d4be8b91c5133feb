"""Composite transactions: several adapters' transactions in one entry, all of them or none.

    POST /coco/composite   {"parts": [{"adapter": "ethereum", "raw": "0x..."},
                                      {"adapter": "kv", "route": "kv.put", "params": {"key": "k"}, "body": "text"}]}

A part is the raw transaction of an adapter, or a request that hands one in. To the framework this is an adapter like
any other one, whose transactions are made of others'; so they are forwarded, held, sent again and answered as all are.

Rules: a part is admitted, checked, hidden and proven by its own adapter; all parts must be included and succeed, or
nothing was; parts of one adapter run in their order, adapters in the order of their first parts; a batch has one
composite transaction; what waits for somebody outside cannot be a part, since the writer would wait for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from hashlib import sha256
from typing import Any

import msgspec

from coco import limits
from coco._native import WriteSet
from coco.enclave.adapters.contract import (
    AdapterError,
    BatchSession,
    BlockContext,
    Caller,
    Envelope,
    LedgerAdapter,
    Manifest,
    Outcome,
    PoolPolicy,
    Reply,
    Request,
    Route,
    RouteKind,
    Settled,
    Verdict,
    WholeBatchSession,
)
from coco.enclave.ordering import claimed
from coco.enclave.ordering.claimed import Claimed
from coco.enclave.ordering.runtime import AdapterRuntime
from coco.enclave.store import StoreTransaction, StoreView
from coco.errors import CocoError, NotFoundError
from coco.ledger import tables
from coco.ledger.proofs import COMPOSITE, CompositeRecord
from coco.ledger.transaction_id import TransactionId

_LABEL = b"coco composite"
#: Parts of one envelope: the adapter as it runs, and its envelope.
Parts = Sequence[tuple[AdapterRuntime, Envelope]]
_Find = Callable[[str], AdapterRuntime | None]


class _AskedPart(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    adapter: str
    raw: str = ""
    route: str = ""
    params: dict[str, str] | list[Any] = msgspec.field(default_factory=dict)
    query: dict[str, str] = msgspec.field(default_factory=dict)
    body: str = ""


class _Asked(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    parts: list[_AskedPart]


_RawParts = list[tuple[str, bytes]]


def _refused(text: str, code: str) -> AdapterError:
    return AdapterError(text, code=f"composite.{code}")


class CompositeAdapter(LedgerAdapter):
    """Runs others' transactions together.

    Args:
        find: the adapter of a name, as it runs.
    """

    def __init__(self, find: _Find) -> None:
        self._find = find

    def manifest(self) -> Manifest:
        """One route; the table is the framework's."""
        route = Route("composite", RouteKind.SUBMIT_AND_WAIT, "POST", "/coco/composite")
        return Manifest(COMPOSITE, "1", (route,), (), transactions=tables.COMPOSITES)

    def pool_policy(self) -> PoolPolicy:
        """What each part's adapter checks."""
        return _Policy()

    # --- in ---

    def parse_submission(self, request: Request) -> Sequence[bytes]:
        """The parts, each as its adapter's raw transaction.

        Raises:
            AdapterError: ``composite.malformed``, ``composite.unknown_adapter``, or what a part's adapter says.
        """
        try:
            asked = msgspec.json.decode(request.body, type=_Asked)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise _refused(f"the body is no composite transaction: {error}", "malformed") from error
        raw: _RawParts = []
        for index, part in enumerate(asked.parts):
            raw += ((part.adapter, one) for one in self._raw(part, request.nonce + bytes([index % 256])))
        self._check_parts([adapter for adapter, _ in raw])
        return [msgspec.msgpack.encode(raw)]

    def _raw(self, part: _AskedPart, nonce: bytes) -> Sequence[bytes]:
        runtime = self._runtime(part.adapter)
        if bool(part.raw) == bool(part.route):
            raise _refused("a part has either raw or route", "malformed")
        if part.raw:
            try:
                return [bytes.fromhex(part.raw.removeprefix("0x"))]
            except ValueError as error:
                raise _refused("raw is hex", "malformed") from error
        hands_in = (RouteKind.SUBMIT, RouteKind.SUBMIT_AND_WAIT)
        if not any(route.name == part.route and route.kind in hands_in for route in runtime.manifest.routes):
            raise _refused(f"{part.adapter} takes no transactions by {part.route[:64]}", "unknown_route")
        body, query = part.body.encode(), part.query
        try:
            made = Request(part.route, part.params, body=body, query=query, nonce=sha256(nonce).digest()[:16])
            return runtime.adapter.parse_submission(made)
        except (KeyError, IndexError, TypeError, AssertionError) as error:
            raise _refused(f"a request of {part.adapter} is malformed", "malformed") from error

    def _runtime(self, name: str) -> AdapterRuntime:
        runtime = self._find(name)
        if runtime is None or runtime.parts_of is not None:
            raise _refused(f"no adapter {name[:64]} can be a part", "unknown_adapter")
        if runtime.manifest.waits_outside:
            raise _refused(f"{name} waits for somebody outside, and cannot be a part", "waits_outside")
        return runtime

    def _check_parts(self, adapters: Sequence[str]) -> None:
        if not 1 < len(adapters) <= limits.COMPOSITE_PARTS_MAX:
            raise _refused(f"a composite transaction has 2 to {limits.COMPOSITE_PARTS_MAX} parts", "parts")

    async def admit(self, raw: Sequence[bytes], caller: Caller) -> Sequence[Envelope | CocoError]:
        """Every part as its adapter admits it; the first refusal is that of the whole."""
        return [await self._admit(one, caller) for one in raw]

    async def _admit(self, raw: bytes, caller: Caller) -> Envelope | CocoError:
        try:
            named = msgspec.msgpack.decode(raw, type=_RawParts)
            self._check_parts([adapter for adapter, _ in named])
            parts: list[tuple[AdapterRuntime, Envelope]] = []
            for adapter, transaction in named:
                runtime = self._runtime(adapter)
                (admitted,) = await runtime.adapter.admit([transaction], caller)
                if isinstance(admitted, CocoError):
                    return admitted
                admitted.actor = caller.actor
                parts.append((runtime, admitted))
        except msgspec.MsgspecError:
            return _refused("the parts are malformed", "malformed")
        except CocoError as error:
            return error
        names = [(runtime.name, part.id) for runtime, part in parts]
        if len(set(names)) != len(names):
            return _refused("a part is there twice", "parts")
        identity = sha256(_LABEL + msgspec.msgpack.encode(names)).digest()
        return Envelope(identity, parts, sum(part.size for _, part in parts))

    # --- execution ---

    async def open(self, tx: StoreTransaction, block: BlockContext) -> BatchSession:
        """One composite transaction."""
        return CompositeSession(tx, block)

    async def applied(self, position: TransactionId, writes: WriteSet) -> Sequence[bytes]:
        """Nothing is derived."""
        return [identity for identity, _ in writes.rows(tables.COMPOSITES)]

    # --- answers: nobody learns of a whole what a part's adapter hides ---

    def told(self, refusal: CocoError, envelope: Envelope, caller: Caller) -> CocoError | None:
        """What every part's adapter tells of it."""
        told: CocoError | None = refusal
        for runtime, part in envelope.payload:
            told = runtime.adapter.told(told, part, caller) if told is not None else None
        return told

    def check_wait(self, envelope: Envelope, caller: Caller) -> None:
        """Whoever may wait for every part."""
        for runtime, part in envelope.payload:
            runtime.adapter.check_wait(part, caller)

    async def may_learn_fate(self, identity: bytes, caller: Caller, view: StoreView) -> bool:
        """Whoever may learn that of every part."""
        names = await self._names(identity, view)
        learns = False
        for adapter, part in names:
            runtime = self._find(adapter)
            learns = runtime is not None and await runtime.adapter.may_learn_fate(part, caller, view)
            if not learns:
                return False
        return learns

    async def _names(self, identity: bytes, view: StoreView) -> Sequence[tuple[str, bytes]]:
        pooled = self.services.pooled(identity)
        if pooled is not None:
            return [(runtime.name, part.id) for runtime, part in pooled.payload]
        row = await view.fetch(tables.COMPOSITES, identity)
        return () if row is None else msgspec.msgpack.decode(row, type=CompositeRecord).parts

    async def prove(self, identity: bytes, caller: Caller, view: StoreView) -> tuple[int, dict[str, Any]] | None:
        """One proof of all parts, as each part's adapter proves it; null for those that claim nothing."""
        if not await self.may_learn_fate(identity, caller, view):
            return None
        seqno = await view.locate(tables.COMPOSITES, identity)
        combined = await claimed.combined(view, seqno) if seqno is not None else None
        if seqno is None or combined is None:
            return None
        parts: list[dict[str, Any] | None] = []
        for adapter, part in combined.record.parts:
            runtime = self._find(adapter)
            proof = await runtime.adapter.prove(part, caller, view) if runtime is not None else None
            way = combined.within(adapter)
            parts.append({**way, **proof[1]} if proof is not None and way else None)
        return seqno, {"id": identity.hex(), **combined.step(0), "parts": parts}

    async def query(self, request: Request, caller: Caller, view: StoreView) -> Reply:
        """Nothing can be asked."""
        raise NotFoundError("there is nothing to ask here", code="composite.no_queries")

    async def acknowledge(self, request: Request, settled: Sequence[Settled], caller: Caller, view: StoreView) -> Reply:
        """The ids; every part is committed."""
        (whole,) = settled
        whole.require_included()
        names = [{"adapter": runtime.name, "id": part.id.hex()} for runtime, part in whole.envelope.payload]
        return Reply({"id": whole.envelope.id.hex(), "parts": names}, public=True)

    def redact(self, items: Sequence[Any], caller: Caller, view: StoreView) -> list[Any]:
        """Nothing is shown but to whoever has handed it in."""
        return []


class CompositeSession(BatchSession):
    """One composite transaction under way."""

    def __init__(self, tx: StoreTransaction, block: BlockContext) -> None:
        self._tx, self._block = tx, block
        self.claimed = Claimed()

    async def run(self, envelope: Envelope) -> Outcome:
        """Every part, or nothing."""
        by_adapter: dict[str, tuple[AdapterRuntime, list[Envelope]]] = {}
        for runtime, part in envelope.payload:
            by_adapter.setdefault(runtime.name, (runtime, []))[1].append(part)
        claims, kept = {}, Claimed()
        for name, (runtime, parts) in by_adapter.items():
            secret = claimed.derived(self._block.secret, b"part", name)
            session = await runtime.adapter.open(self._tx, replace(self._block, secret=secret, target_ms=0))
            outcomes = await _run(session, parts)
            for outcome in outcomes:
                if outcome.verdict is not Verdict.INCLUDED or not outcome.succeeded:
                    reason = "it cannot run yet" if outcome.verdict is Verdict.DEFERRED else outcome.reason or "refused"
                    return Outcome(Verdict.REFUSED, f"{name}: {reason}")
            included = [(part.id, outcome.item) for part, outcome in zip(parts, outcomes, strict=True)]
            claims[name] = kept.add(name, await session.close(), included, secret)
        record = CompositeRecord(envelope.id, [(runtime.name, part.id) for runtime, part in envelope.payload])
        self._tx.put(tables.COMPOSITES, envelope.id, record.encode())
        kept.combine(record, claims, self._block.secret)
        self.claimed = kept
        return Outcome(Verdict.INCLUDED)


async def _run(session: BatchSession, parts: Sequence[Envelope]) -> Sequence[Outcome]:
    if not isinstance(session, WholeBatchSession):
        return [await session.run(part) for part in parts]
    outcomes = await session.run_all(parts)
    return [
        replace(outcome, succeeded=False, reason="the transaction failed")
        if outcome.verdict is Verdict.INCLUDED and not session.succeeded(index)
        else outcome
        for index, outcome in enumerate(outcomes)
    ]


class _Policy(PoolPolicy):
    """What each part's own pool would say at its door; the order among composite transactions is that of arrival."""

    batch_max = 1

    def check(self, envelopes: Sequence[Envelope], view: StoreView) -> Sequence[CocoError | None]:
        """The first refusal of a part."""
        return [next(self._refusals(envelope, view), None) for envelope in envelopes]

    @staticmethod
    def _refusals(envelope: Envelope, view: StoreView) -> Iterator[CocoError]:
        for runtime, part in envelope.payload:
            (refusal,) = runtime.pool.policy.check([part], view)
            if refusal is not None:
                yield refusal
            elif part.position is not None:
                (following,) = runtime.pool.policy.next_positions([part.lane], view)
                if part.position < following:
                    yield AdapterError("nonce too low", code="pool.position_passed")


def composite_runtime(find: _Find, make: Callable[[LedgerAdapter], AdapterRuntime]) -> AdapterRuntime:
    """The adapter of composite transactions, as it runs."""
    runtime = make(CompositeAdapter(find))
    runtime.parts_of = lambda envelope: envelope.payload
    return runtime
