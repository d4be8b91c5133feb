"""The adapter: what a ledger protocol implements."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from coco._native import Chain, WriteSet
from coco.configuration.callers import Caller, CallerKind
from coco.enclave.adapters.contract.execution import BatchSession, BlockContext, Envelope, PoolPolicy, Settled
from coco.enclave.adapters.contract.routes import AdapterError, Cost, Manifest, Reply, Request
from coco.enclave.adapters.contract.services import AdapterServices
from coco.enclave.adapters.contract.streams import Stream
from coco.enclave.store import StoreTransaction, StoreView
from coco.errors import CocoError, ConfigurationError
from coco.ledger import statements
from coco.ledger.transaction_id import TransactionId

if TYPE_CHECKING:
    from coco._native import Admitted


#: An adapter does not say what its transactions are.
_HIDES_NONE: Final = object()


class LedgerAdapter(ABC):
    """Runs one ledger protocol on the Coco store."""

    @abstractmethod
    def manifest(self) -> Manifest:
        """Declare name, routes, tables and wishes; the same on every call."""

    def start(self, services: AdapterServices) -> None:
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
    async def open(self, tx: StoreTransaction, block: BlockContext) -> BatchSession:
        """Begin a batch on ``tx``, after everything that is applied."""

    async def migrate(self, stored: str, tx: StoreTransaction, block: BlockContext) -> None:
        """Bring the tables from those of the manifest's version ``stored`` to this one's, on ``tx``.

        Called at the primary before it executes anything, and written as an entry of its own.

        Raises:
            ConfigurationError: it cannot be; the adapter's transactions are refused while this code leads.
        """
        manifest = self.manifest()
        raise ConfigurationError(
            f"{manifest.name} has tables of version {stored}, and no way from there to {manifest.version}",
            code="configuration.adapter_version",
        )

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
        """Answer a submission that the pool has taken; this says nothing of commit, and of nothing but the submission:
        it is ``public``, and must not take long.
        """
        return Reply([envelope.id.hex() for envelope in envelopes], public=True)

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

    def binding_text(self, network: str, actor: str, identity: bytes, nonce: str) -> str:
        """What whoever has an identity of this protocol signs, to say that it is the actor's."""
        return statements.identity_text(network, actor, self.manifest().name, identity, nonce)

    def verify_binding(self, identity: bytes, text: bytes, proof: bytes) -> None:
        """Whether the proof shows that ``identity`` says ``text``. From then on it is among the caller's
        (:attr:`Caller.identities`).

        Raises:
            CocoError: it does not, or it is no identity of this protocol.
        """
        raise AdapterError("this protocol binds no identities", code="adapter.no_identities")

    async def item(self, identity: bytes, view: StoreView) -> Any:
        """A transaction that waits or is included, as :meth:`redact` takes it; None: there is none such.

        As it stands the protocol hides none: every participant may know what became of each, and no item is proven.
        """
        return _HIDES_NONE

    async def may_learn_fate(self, identity: bytes, caller: Caller, view: StoreView) -> bool:
        """Whether the caller may know what became of the transaction with this id: whoever may see it."""
        item = await self.item(identity, view)
        if item is _HIDES_NONE:
            return caller.kind is CallerKind.PARTICIPANT
        return item is not None and bool(self.redact([item], caller, view))

    async def prove(self, identity: bytes, caller: Caller, view: StoreView) -> tuple[int, dict[str, Any]] | None:
        """Seqno of the entry that a transaction is in, and the proof, from the claim of that entry, of the transaction
        and its outcome; None where the caller may see none. As it stands, of its :attr:`Outcome.item`.
        """
        item = await self.item(identity, view)
        if item is None or item is _HIDES_NONE or not self.redact([item], caller, view):
            return None
        return await self.services.prove_item(identity, view)

    async def acknowledge(self, request: Request, settled: Sequence[Settled], caller: Caller, view: StoreView) -> Reply:
        """Answer a submission of kind SUBMIT_AND_WAIT, once what became of it is known; ``view`` is committed.

        It hears refusals, too. Whatever node is asked answers alike: from ``settled``, from ``view``, and with
        signatures of keys that the service has (:attr:`AdapterServices.sign`).
        """
        for one in settled:
            one.require_included()
        return self.accepted(request, [one.envelope for one in settled])

    async def stream(self, request: Request, caller: Caller, stream: Stream) -> None:
        """Serve a stream until it ends: of a route of kind STREAM, or a subscription of JSON-RPC, whose request has the
        name of :attr:`Manifest.subscriptions`. Only what is committed is told.

        Raises:
            CocoError: refused, or ended.
        """
        raise AdapterError("this protocol has no streams", code="adapter.no_streams")

    @abstractmethod
    def redact(self, items: Sequence[Any], caller: Caller, view: StoreView) -> list[Any]:
        """The part of ``items`` that the caller may see; the one place that decides it. The framework calls it for the
        items of every reply and of every event (``visible.py``).
        """

    async def applied(self, position: TransactionId, writes: WriteSet) -> Sequence[bytes]:
        """An entry with these writes is in the store; derived state follows. Returns the ids of its transactions.

        Called at every node in the order of entries, and nothing else is written meanwhile: after a session was closed,
        where the entry was executed, and where it came from another node. What takes long is awaited.

        Raises:
            LedgerError: derived state shows that the entry is not what it claims to be; the node stops.
        """
        return ()

    def committed(self, position: TransactionId) -> None:
        """Everything up to ``position`` is committed; events may be told."""

    def rolled_back(self, position: TransactionId) -> None:
        """Entries above ``position`` are gone; derived state follows backwards."""

    async def rebuild(self, view: StoreView) -> None:
        """Build derived state anew from the store."""
