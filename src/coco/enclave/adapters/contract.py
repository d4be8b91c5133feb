"""The contract between the framework and a ledger protocol.

Who does what:

* The framework owns sockets, callers, the pool, the order, sealing, commit and time. An adapter opens no socket and no
  file, reads no clock and draws no randomness but what a call gives it.
* The adapter parses requests, checks and executes transactions on a store transaction, answers queries on a store view,
  and decides in :meth:`LedgerAdapter.redact` who sees what. Nothing is taken from a request's own ``from``.
* Replicated state is only in the store. What an adapter derives from it (tries, indexes, filters) it keeps by the hooks
  ``applied``, ``rolled_back`` and ``rebuild``, on every node alike.

The way of one submission: ``parse_submission`` -> ``admit`` -> pool (``PoolPolicy``) -> ``accepted`` ->
``execute`` -> ledger -> ``applied`` -> commit -> ``committed`` -> ``acknowledge``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

import msgspec

from coco._native import Chain, WriteSet
from coco.configuration.callers import Caller as Caller
from coco.configuration.callers import CallerKind as CallerKind
from coco.enclave.store import StoreTransaction, StoreView
from coco.errors import CocoError
from coco.ledger.position import Position

if TYPE_CHECKING:
    from coco._native import Admitted


class RouteKind(Enum):
    """How the framework serves a request."""

    #: Answered by ``query`` from committed state.
    QUERY = "query"
    #: Transactions for the pool, answered by ``accepted`` once they are in it.
    SUBMIT = "submit"
    #: The same, answered by ``acknowledge`` once they are committed.
    SUBMIT_AND_WAIT = "submit_and_wait"
    #: A stream of events, served by ``subscribe`` over a WebSocket.
    SUBSCRIBE = "subscribe"


@dataclass(frozen=True, slots=True)
class Route:
    """One kind of request: a JSON-RPC method (``path`` empty) or an HTTP route of the application listener."""

    name: str
    kind: RouteKind
    #: "GET", "POST", ...; empty for JSON-RPC.
    method: str = ""
    #: Path with ``{names}`` as Starlette writes them, such as ``/kv/{key}``; empty for JSON-RPC.
    path: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """A private table of the adapter; its name begins with the adapter's."""

    name: str
    log: bool = False


@dataclass(frozen=True, slots=True)
class Manifest:
    """What an adapter declares."""

    name: str
    version: str
    routes: Sequence[Route]
    tables: Sequence[Table]
    #: Log table whose keys are the ids of the transactions that were included; empty if there is none.
    transactions: str = ""
    #: Names of keys that the key service makes for it and keeps (used by later protocols).
    keys: Sequence[str] = ()
    #: Names of external processors that it may call through the host: those see what they are given (H4).
    externals: Sequence[str] = ()


class Request(msgspec.Struct, frozen=True):
    """A request as the front end parsed it."""

    #: Name of the route.
    name: str
    #: JSON-RPC parameters; for an HTTP route the path parameters.
    params: Sequence[Any] | Mapping[str, Any]
    body: bytes = b""
    query: Mapping[str, str] = msgspec.field(default_factory=dict)
    #: Random bytes that no other request has; for routes of HTTP.
    nonce: bytes = b""


class Cost(msgspec.Struct, frozen=True):
    """What answering a request takes, at most, as far as that can be known before it runs.

    It is what the caller's budget pays (``api/budget.py``), not what scheduling goes by.
    """

    #: Microseconds of the event loop; what runs on threads of its own is bounded there.
    work_us: int = 40
    #: Memory of the answer while it is made.
    answer_bytes: int = 1024


class Reply(msgspec.Struct, frozen=True):
    """An answer. For JSON-RPC ``value`` is the result; for HTTP it is JSON, or bytes with their type."""

    value: Any
    status: int = 200
    content_type: str = "application/json"


class AdapterError(CocoError):
    """A refusal in the protocol's own terms.

    Attributes:
        rpc_code: JSON-RPC error code.
        data: JSON-RPC error data, such as revert bytes.
    """

    code = "adapter.refused"
    http_status = 400

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        rpc_code: int = -32000,
        data: Any = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message, code=code, hint=hint)
        self.rpc_code = rpc_code
        self.data = data


class Envelope(msgspec.Struct):
    """A checked transaction on its way to a block."""

    #: Identifies the transaction in its protocol: its hash, its header signature.
    id: bytes
    #: The adapter's own form.
    payload: Any
    #: Bytes that it counts for.
    size: int
    #: Envelopes of one lane run in the order of their positions, without gap.
    lane: Hashable = ""
    #: Place in the lane, or None for the order of arrival.
    position: int | None = None
    #: Ids that must have been executed before it.
    depends_on: tuple[bytes, ...] = ()
    #: What executing it may cost at most, in a unit of the adapter's own: for shares, with :attr:`PoolPolicy.turn`.
    cost: int = 1
    #: Who handed it in (:attr:`Caller.actor`); the framework sets it.
    actor: str = ""


class Verdict(Enum):
    """What execution did with one envelope of a batch."""

    #: It is in the block, successful or failed, and has an outcome that can be asked for.
    INCLUDED = "included"
    #: It can never run at this point, and leaves the pool.
    REFUSED = "refused"
    #: It did not fit; it stays in the pool.
    DEFERRED = "deferred"


@dataclass(frozen=True, slots=True)
class Outcome:
    """Verdict of one envelope."""

    verdict: Verdict
    reason: str = ""
    #: How long it ran, if the adapter can tell: whoever handed in what took long has the next turn later.
    took_us: int = 0


@dataclass(frozen=True, slots=True)
class BlockContext:
    """What surrounds one batch."""

    #: Enclave time, never below the last batch's.
    time_ms: int
    #: 32 fresh bytes of enclave randomness; the outcome is recorded, so it may be used.
    randomness: bytes
    #: 32 more bytes, which nobody but enclaves may ever see: what an adapter salts its claims with (``ledger.claims``).
    #: It records what it needs of them again in a private table. Zeros in a genesis, which claims nothing.
    secret: bytes = field(repr=False)
    #: Seqno that the batch will have if nothing else is written before it.
    expected_seqno: int
    #: Time that executing the batch should take: after it nothing more is begun, but one envelope at least. What is
    #: left is DEFERRED. 0: there is no such time.
    target_ms: int = 0


class PoolPolicy:
    """The rules of a pool, which the framework keeps: where lanes go on, state checks, replacement.

    As it stands: first come, first served.
    """

    #: What one actor may take, in the unit of :attr:`Envelope.cost`, before it is another one's turn.
    turn = 16

    def next_positions(self, lanes: Sequence[Hashable], view: StoreView) -> Sequence[int]:
        """The position that each lane would run next on this state."""
        return [0] * len(lanes)

    def check(self, envelopes: Sequence[Envelope], view: StoreView) -> Sequence[CocoError | None]:
        """State checks at the door, such as balance; one answer for each."""
        return [None] * len(envelopes)

    def replaces(self, new: Envelope, old: Envelope) -> CocoError | None:
        """None if ``new`` may take the place of ``old``, else the reason."""
        return AdapterError("the place is taken", code="pool.place_taken")


@dataclass(slots=True)
class Services:
    """What the framework gives an adapter at its start."""

    #: The current pool, for ``pending``: envelope by id, and the position after the last of a lane. At a backup: what
    #: came to this node, and what the primary says.
    pooled: Callable[[bytes], Envelope | None]
    pending_position: Callable[[Hashable], Awaitable[int | None]]
    #: The store at its newest version, committed or not: for ``applied``.
    newest: Callable[[], StoreView]
    #: Asks an external processor that the manifest names; not confidential.
    call_external: Callable[[str, bytes], Awaitable[bytes]]
    #: Runs a call of the extension without holding up the event loop: for executing batches.
    run: Callable[..., Awaitable[Any]]
    #: Runs a call of the extension that is made to run in the background (``begin(background, ...) -> ticket``): for
    #: what is short and often.
    run_background: Callable[..., Awaitable[Any]]
    #: The same as ``run`` for queries, on threads of their own, so that no query can hold up a batch, and in turn by
    #: actor, so that no actor's queries can hold up another's.
    run_query: Callable[..., Awaitable[Any]]
    #: The same for what gives many items, which everything else goes before.
    run_list: Callable[..., Awaitable[Any]]


class LedgerAdapter(ABC):
    """Runs one ledger protocol on the Coco store."""

    @abstractmethod
    def manifest(self) -> Manifest:
        """Declare name, routes, tables and wishes; the same on every call."""

    def start(self, services: Services) -> None:
        """Take the framework's services; called once, before anything else but ``manifest``."""
        self.services = services

    def pool_policy(self) -> PoolPolicy:
        """The rules of this protocol's pool."""
        return PoolPolicy()

    def genesis(self, settings: Mapping[str, Any], tx: StoreTransaction, block: BlockContext) -> None:
        """Write the first state, as ``settings`` of the genesis document ask.

        Raises:
            ConfigurationError: the settings are wrong.
        """

    def parse_submission(self, request: Request) -> Sequence[bytes]:
        """The raw transactions in a request of kind SUBMIT.

        Raises:
            CocoError: the request is malformed.
        """
        return [request.body]

    @abstractmethod
    async def admit(self, raw: Sequence[bytes], caller: Caller) -> Sequence[Envelope | CocoError]:
        """Checks that need no state, for many at once; one answer for each, in order. Never raises for bad input.

        The same bytes of the same caller give the same id at every node: a backup forwards them to the primary.
        What takes long in it is awaited through ``services``.
        """

    def early_checks(self) -> Mapping[str, Chain]:
        """Methods of kind SUBMIT that hand in one raw transaction, and the chain of the extension that admits it while
        the request is read: a short way for what is often. None as it stands.
        """
        return {}

    def checked(self, found: Admitted) -> tuple[Envelope, bytes] | CocoError:
        """What ``admit`` would have answered to what the extension has checked early, and the raw transaction."""
        raise NotImplementedError("an adapter with early checks has an answer to them")

    @abstractmethod
    async def execute(
        self, batch: Sequence[Envelope], tx: StoreTransaction, block: BlockContext
    ) -> tuple[Sequence[Outcome], bytes | None]:
        """Run ``batch`` on ``tx``; one outcome for each, and the claim that receipts of the entry prove (or None).

        A claim is a :class:`coco.ledger.claims.Claim`, encoded; whoever asks for the receipt of an entry is shown it.

        If nothing is INCLUDED, nothing may be written. An exception discards the whole transaction; the framework then
        runs halves of the batch to find the offender (G3).
        """

    @abstractmethod
    async def query(self, request: Request, caller: Caller, view: StoreView) -> Reply:
        """Answer from committed state.

        Raises:
            CocoError: refused, with a stable code.
        """

    def cost(self, request: Request) -> Cost:
        """What a request costs at most. Never raises for bad input, which costs little; reads no more than memory."""
        return Cost()

    def accepted(self, request: Request, envelopes: Sequence[Envelope]) -> Reply:
        """Answer a submission that the pool has taken; this says nothing of commit."""
        return Reply([envelope.id.hex() for envelope in envelopes])

    def told(self, refusal: CocoError, envelope: Envelope, caller: Caller) -> CocoError | None:
        """What a caller hears when the pool refuses its transaction; None: nothing, as if it had been taken.

        For protocols where a caller may hand in what another has signed, and a refusal tells of that other.
        """
        return refusal

    def check_wait(self, envelope: Envelope, caller: Caller) -> None:
        """Whether the caller may wait for what becomes of a transaction that it hands in.

        Raises:
            CocoError: it may not.
        """

    async def may_learn_fate(self, identity: bytes, caller: Caller, view: StoreView) -> bool:
        """Whether the caller may know what became of the transaction with this id; every participant, as it stands."""
        return caller.kind is CallerKind.PARTICIPANT

    async def prove(self, identity: bytes, caller: Caller, view: StoreView) -> tuple[int, dict[str, Any]] | None:
        """Seqno of the entry that a transaction is in, and the proof, from the claim of that entry, of the transaction
        and its outcome; None where the caller may see none. A protocol without such proofs has none, as it stands.
        """
        return None

    async def acknowledge(
        self, request: Request, envelopes: Sequence[Envelope], caller: Caller, view: StoreView
    ) -> Reply:
        """Answer a submission of kind SUBMIT_AND_WAIT, which is committed in ``view``."""
        return self.accepted(request, envelopes)

    def subscribe(self, request: Request, caller: Caller) -> AsyncIterator[Any]:
        """Events from now on, as JSON values; only committed ones.

        Raises:
            CocoError: refused.
        """
        raise AdapterError("this protocol has no events", code="adapter.no_events")

    @abstractmethod
    def redact(self, items: Sequence[Any], caller: Caller, view: StoreView) -> list[Any]:
        """The part of ``items`` that the caller may see; the one place that decides it. Every reply passes it."""

    def applied(self, position: Position, writes: WriteSet) -> Sequence[bytes]:
        """An entry with these writes is in the store; derived state follows. Returns the ids of its transactions.

        Called at every node: after ``execute`` where it was executed, and where it came from another node.

        Raises:
            LedgerError: derived state shows that the entry is not what it claims to be; the node stops.
        """
        return ()

    def committed(self, position: Position) -> None:
        """Everything up to ``position`` is committed; events may be told."""

    def rolled_back(self, position: Position) -> None:
        """Entries above ``position`` are gone; derived state follows backwards."""

    async def rebuild(self, view: StoreView) -> None:
        """Build derived state anew from the store."""
