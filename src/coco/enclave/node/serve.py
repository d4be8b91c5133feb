"""A node serves: its listeners, from the moment when somebody may ask until the end."""

from __future__ import annotations

import asyncio
import json

from starlette.applications import Starlette

from coco import limits
from coco.channel import messages
from coco.crypto.certificates import pem
from coco.enclave.api.admission import Admission
from coco.enclave.api.dispatcher import Dispatcher
from coco.enclave.api.http import Listener
from coco.enclave.api.jsonrpc import JsonRpc
from coco.enclave.api.routes import administration_app, application_app
from coco.enclave.api.streams import Streams
from coco.enclave.keys.identity import private_der
from coco.enclave.node.answers import Answers
from coco.enclave.node.bindings import Bindings
from coco.enclave.node.parts import Parts
from coco.enclave.node.peers import Peers
from coco.enclave.node.recover import Recovering
from coco.enclave.node.states import Life, State
from coco.enclave.store import StoreView
from coco.errors import BusyError, ConsensusError, RequestError
from coco.ledger import tables
from coco.ledger.transaction_id import TransactionId


class Serving:
    """The listeners of one node.

    Args:
        parts: of the node.
        life: its state.
        admission: what callers may cost, on all listeners together.
        answers: what is asked of the node.
    """

    def __init__(self, parts: Parts, life: Life, admission: Admission, answers: Answers) -> None:
        self._parts, self._ground, self._life = parts, parts.ground, life
        self._admission, self._answers = admission, answers
        self._bindings = Bindings(parts, life)
        #: Set by whoever makes this one, before anybody is served.
        self.recovering: Recovering
        #: Entry that opens the service, while that is not committed.
        self._opens_at = 0
        self._header = (-1, b"")
        self._service: Dispatcher
        self._rpc: JsonRpc
        self._application: Listener

    # --- begin ---

    def governed(self) -> None:
        """Be a node of the network; serve participants too, once it is open."""
        parts = self._parts
        newest, committed = parts.store.view(), parts.committed_view()
        state = _state_of(committed if committed is not None else newest)
        if state is State.OPENING:
            self._life.become(State.OPENING)
            if _state_of(newest) is State.OPEN:
                self._opens_at = parts.journal.last_seqno
        subscribers = parts.sequencer.subscribers
        subscribers.applied.append(lambda writes: self._applied(tables.SERVICE_INFO in writes.tables()))
        subscribers.committed.append(self._committed)
        Peers(parts, self._bindings).meet()
        self.administration()
        if state is State.OPEN:
            self._participants()
        self.announce()

    def announce(self) -> None:
        """Tell the host that somebody may ask now."""
        self._ground.control.send(
            messages.Ready(
                node_id=self._parts.identity.node_id,
                status=self._life.state,
                service=pem(self._parts.service.certificate).encode(),
                position=str(self._parts.committed_position()),
                discarded_entries=self.recovering.discarded,
            )
        )

    def _participants(self) -> None:
        self._life.become(State.OPEN)
        parts = self._parts
        parts.registry.newly_served(parts.replica.committed)
        self._service = Dispatcher(parts.sequencer, parts.forwarding, parts.registry.served)
        self._listen_application()

    def _applied(self, says_of_the_service: bool) -> None:
        if says_of_the_service and self._life.state is State.OPENING:
            self._opens_at = self._parts.journal.last_seqno

    def _committed(self) -> None:
        parts, committed = self._parts, self._parts.replica.committed
        parts.snapshots.committed()
        parts.callers.forget()
        if parts.service.others:
            parts.key_rotation.settle(parts.store.view(committed))
        if 0 < self._opens_at <= committed and self._life.state is State.OPENING:
            self._participants()
            self._ground.log("service.opened", {"seqno": self._opens_at})
        if self._life.is_open:
            for runtime in parts.registry.newly_served(committed):
                self._service.add(runtime)
                self._application.serve(self._application_app())
                self._application.check_early(self._service.early_checks(runtime))
                self._ground.log("adapter.served", {"at": committed})

    # --- listeners ---

    def administration(self) -> None:
        """Serve operators and members, if nobody does yet."""
        if "administration" in self._ground.doors:
            listener = Listener(
                self._ground.doors.pop("administration"),
                caller=self._parts.callers.caller,
                app=administration_app(
                    self._answers, self._parts.governance, self.recovering, self._life, self._admission
                ),
                on_error=self._ground.faults.unexpected,
                on_failure=self._ground.ended,
                admission=self._admission,
            )
            # Whoever shows an actor's certificate has a budget of her own; nobody has to.
            self._listen(listener)

    def _listen_application(self) -> None:
        self._rpc = rpc = JsonRpc(self._service, self._ground.faults.unexpected, self._admission)
        streams = Streams(self._service, rpc, self._admission, self._ground.faults.unexpected)
        self._application = listener = Listener(
            self._ground.doors.pop("application"),
            caller=self._parts.callers.caller,
            app=self._application_app(),
            on_error=self._ground.faults.unexpected,
            on_failure=self._ground.ended,
            rpc=rpc.handle,
            submitted=rpc.submitted,
            position=self._position_header,
            websocket=streams.serve,
            readable=self._readable,
            admission=self._admission,
        )
        for runtime in self._parts.registry.served:
            listener.check_early(self._service.early_checks(runtime))
        self._listen(listener)

    def _application_app(self) -> Starlette:
        return application_app(
            self._answers,
            self._bindings,
            self._service,
            self._life,
            self._admission,
            self._rpc,
            self._position_header,
        )

    def _listen(self, listener: Listener) -> None:
        with private_der(self._parts.identity.key) as key:
            listener.start(self._parts.identity.chain(self._parts.service), key, ask_client=True)
        self._parts.callers.listeners.append(listener)

    def close(self) -> None:
        """Take nothing more."""
        for listener in self._parts.callers.listeners:
            listener.close()

    # --- reads ---

    async def _readable(self, floor: bytes | None, confirm: bool) -> None:
        """Wait until this node may answer: a majority has confirmed what it shows, and ``floor`` is committed here."""
        replica, journal = self._parts.replica, self._parts.journal
        if confirm:
            await replica.confirm()
        if floor is None:
            return
        wanted = TransactionId.parse(floor.decode("ascii", "replace"))
        if wanted.seqno > replica.committed:
            try:
                await asyncio.wait_for(self._parts.sequencer.committed(wanted.seqno), limits.READ_INDEX_SECONDS_MAX)
            except (TimeoutError, ConsensusError) as error:
                raise BusyError("this node does not have that transaction yet", code="node.behind") from error
        if journal.position(wanted.seqno) != wanted:
            raise RequestError(f"{wanted} is not in this ledger", code="node.other_history")

    def _position_header(self) -> bytes:
        replica = self._parts.replica
        committed = replica.committed
        if self._header[0] != committed:
            self._header = (committed, str(self._parts.committed_position()).encode())
        if not replica.is_primary:
            # A backup says to whom it forwards.
            return self._header[1] + b"\r\ncoco-primary: %d" % replica.primary
        return self._header[1]


def _state_of(view: StoreView) -> State:
    """What the ledger says of the service; a network that can be joined is opening or open."""
    status = json.loads(view.get(tables.SERVICE_INFO, tables.SINGLETON) or b"{}").get("status")
    return State.OPEN if status == State.OPEN else State.OPENING
