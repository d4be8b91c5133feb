"""Links between enclaves: mutually authenticated TLS, dialled and carried by untrusted hosts.

Rules (J5):

* A peer is the key of its certificate. A certificate under the service's key names the engine id that the service gave
  its holder; so does one whose key the ledger names for that id, for the service may have another key by now. Any
  other certificate is a stranger's, who may only ask to join.
* The first message says for which service the link is, and for whom; a link for another service, for another node, or
  to oneself closes. Everything is inside TLS, so a host can neither replay, reorder nor cross messages of two links.
* Whoever dials asks and sends; whoever is dialled only answers. Nothing here keeps a message for a peer that is away:
  the engine sends again, and whoever asks hears ``peers.unreachable``.
* A frame is four bytes of length and one message; whatever is malformed closes the link.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from msgspec import Meta

from coco import limits
from coco._native import Front
from coco.crypto import cose
from coco.crypto.certificates import NODE_NAME
from coco.enclave.transport import listener as doors
from coco.errors import AttestationError, BusyError, CocoError, HostLiedError, RequestError, native_error

#: Code of what cannot be read.
MALFORMED = "peers.malformed"
_LENGTH_BYTES = 4
#: A link that could not be made is not tried again for so long.
_REDIAL_S = 0.3


class _Message(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    pass


class Hello(_Message, frozen=True, tag="hello"):
    """The first message of a link."""

    #: Hex SHA-256 of the service's key.
    service: Annotated[str, Meta(max_length=64)]
    #: Engine id of the node that the link is for; 0: whoever answers, of a joiner.
    receiver: Annotated[int, Meta(ge=0, lt=1 << 62)]


class Tell(_Message, frozen=True, tag="tell"):
    """A message that nobody answers."""

    kind: Annotated[str, Meta(max_length=32)]
    body: Annotated[bytes, Meta(max_length=limits.PEER_MESSAGE_BYTES_MAX)]


class Ask(_Message, frozen=True, tag="ask"):
    """A question."""

    number: Annotated[int, Meta(ge=0, lt=1 << 62)]
    kind: Annotated[str, Meta(max_length=32)]
    body: Annotated[bytes, Meta(max_length=limits.PEER_MESSAGE_BYTES_MAX)]


class Answer(_Message, frozen=True, tag="answer"):
    """The answer; or a refusal with its code, and its text as the body."""

    number: Annotated[int, Meta(ge=0, lt=1 << 62)]
    code: Annotated[str, Meta(max_length=64)]
    body: Annotated[bytes, Meta(max_length=limits.MESSAGE_BYTES_MAX)]
    #: Of a refusal: its numbers.
    numbers: Annotated[dict[str, int], Meta(max_length=16)] = {}


class _Short(_Message, frozen=True, tag="answer"):
    """An answer without numbers: all that nodes of the version before those can read (commit fa5f8b7)."""

    number: int
    code: str
    body: bytes


#: What the library says of a certificate that it cannot read: a stranger may show any.
_NO_CERTIFICATE = (ValueError, UnsupportedAlgorithm, x509.InvalidVersion)

_encode = msgspec.msgpack.Encoder().encode
_decoder: msgspec.msgpack.Decoder[Hello | Tell | Ask | Answer] = msgspec.msgpack.Decoder(Hello | Tell | Ask | Answer)


def frame(message: _Message) -> bytes:
    """Bytes of one message on a link."""
    if isinstance(message, Answer) and not message.numbers:
        message = _Short(message.number, message.code, message.body)
    body = _encode(message)
    return len(body).to_bytes(_LENGTH_BYTES, "big") + body


_T = TypeVar("_T")


def decode(kind: type[_T], body: bytes) -> _T:
    """What a question, a message or an answer holds.

    Raises:
        RequestError: it is no such thing (``peers.malformed``).
    """
    try:
        return msgspec.msgpack.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError("a peer's message is malformed", code=MALFORMED) from error


class Frames:
    """Takes bytes in as they come and gives whole messages."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Hello | Tell | Ask | Answer]:
        """The messages that are whole now.

        Raises:
            AttestationError: not a message (``peers.malformed``).
        """
        self._buffer += data
        found, at = [], 0
        while len(self._buffer) - at >= _LENGTH_BYTES:
            size = int.from_bytes(self._buffer[at : at + _LENGTH_BYTES], "big")
            if size > limits.MESSAGE_BYTES_MAX:
                raise AttestationError("a peer's message is too large", code=MALFORMED)
            end = at + _LENGTH_BYTES + size
            if len(self._buffer) < end:
                break
            try:
                found.append(_decoder.decode(self._buffer[at + _LENGTH_BYTES : end]))
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                raise AttestationError("a peer's message is malformed", code=MALFORMED) from error
            at = end
        del self._buffer[:at]
        return found


def named_engine_id(certificate: bytes | None, node_id: Callable[[int], str | None]) -> int:
    """The engine id that a certificate (DER) names, if the ledger names its key for that id; 0 otherwise."""
    try:
        parsed = x509.load_der_x509_certificate(certificate or b"")
        key, number = parsed.public_key(), _engine_id(parsed)
    except _NO_CERTIFICATE:
        return 0
    if not isinstance(key, ec.EllipticCurvePublicKey) or node_id(number) != cose.key_id(key):
        return 0
    return number


def endorsed_engine_id(certificate: bytes | None, service: ec.EllipticCurvePublicKey) -> int:
    """The engine id that a certificate (DER) names, if the service signed it; 0 for a stranger's."""
    try:
        parsed = x509.load_der_x509_certificate(certificate or b"")
        algorithm = parsed.signature_hash_algorithm
        if algorithm is None:
            return 0
        service.verify(parsed.signature, parsed.tbs_certificate_bytes, ec.ECDSA(algorithm))
        return _engine_id(parsed)
    except (*_NO_CERTIFICATE, InvalidSignature):
        return 0


def _engine_id(certificate: x509.Certificate) -> int:
    (name,) = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    label, _, number = str(name.value).rpartition(" ")
    return int(number) if label == NODE_NAME else 0


class Link:
    """A link that this node has dialled, or is dialling."""

    def __init__(self, links: Links, number: int, receiver: int) -> None:
        self._links, self.number, self.receiver = links, number, receiver
        self.connection: int | None = None
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.asked: dict[int, asyncio.Future[bytes]] = {}
        self.frames = Frames()

    def send(self, message: _Message) -> None:
        """Send, if the link is open."""
        if self.connection is not None:
            self._links.write(self.connection, frame(message))

    async def ask(self, kind: str, body: bytes, *, timeout_s: float) -> bytes:
        """The answer to a question.

        Raises:
            BusyError: it did not come (``peers.unreachable``).
            CocoError: the peer refused.
        """
        self._links.number += 1
        number = self._links.number
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self.asked[number] = future
        self.send(Ask(number, kind, body))
        try:
            return await asyncio.wait_for(future, timeout_s)
        except TimeoutError as error:
            raise BusyError("another node did not answer", code="peers.unreachable") from error
        finally:
            self.asked.pop(number, None)

    def close(self) -> None:
        """Have no more to do with it."""
        self._links.drop(self)

    def ended(self) -> None:
        """The link is gone."""
        self.connection = None
        gone = BusyError("another node cannot be reached", code="peers.unreachable")
        waiting: list[asyncio.Future[Any]] = [self.opened, *self.asked.values()]
        for future in waiting:
            if not future.done():
                future.set_exception(gone)
                future.exception()  # nobody may be waiting for it


class _Inbound:
    def __init__(self, certificate: bytes | None) -> None:
        self.certificate = certificate
        self.sender: int | None = None
        self.frames = Frames()
        self.questions = 0


#: Serves a question: sender (0: a stranger), its certificate, kind, body.
Serve = Callable[[int, bytes, str, bytes], Any]


class Links:
    """Every link of this node.

    Args:
        inbound, outbound: the doors of the listeners ``peers`` and ``dialled``.
        dial: has the host connect: number of the dial, address.
        failed: a door has failed, or the host lied in what a peer asked for; ends the process.
        unexpected: hears of an exception that nobody expected; the link that it came from is cut.
        log: of links that open and close.
    """

    def __init__(
        self,
        inbound: Front,
        outbound: Front,
        *,
        dial: Callable[[int, str], None],
        failed: Callable[[BaseException], None],
        unexpected: Callable[[BaseException], None],
        log: Callable[..., None],
    ) -> None:
        self._inbound, self._outbound = inbound, outbound
        self._dial, self._failed, self._unexpected, self._log = dial, failed, unexpected, log
        self._loop = asyncio.get_running_loop()
        self._service: ec.EllipticCurvePublicKey | None = None
        self._service_name = ""
        self._node = 0
        self.number = 0
        self._dialling: dict[int, Link] = {}
        self._open: dict[int, Link] = {}
        self._peers: dict[int, Link] = {}
        self._not_before: dict[int, float] = {}
        self._accepted: dict[int, _Inbound] = {}
        self._wake_inbound, self._wake_outbound = doors.Waker(inbound), doors.Waker(outbound)
        #: Where an engine id listens, in the configuration of this moment; None: it is no node's, or no longer.
        self.address: Callable[[int], str | None] = lambda node: None
        #: Whose an engine id is, in the configuration of this moment.
        self.node_id: Callable[[int], str | None] = lambda node: None
        self.on_tell: Callable[[int, str, bytes], None] = lambda sender, kind, body: None
        #: A link from or to a node has ended: what was told over it may not have been heard.
        self.on_lost: Callable[[int], None] = lambda node: None
        self.serve: Serve | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._marks: dict[int, asyncio.Future[None]] = {}

    # --- life ---

    def dial_as(self, chain: list[bytes], key: bytes, service: ec.EllipticCurvePublicKey) -> None:
        """Be able to dial nodes of a service, with a certificate chain and its key (DER)."""
        first = self._service is None
        self._service, self._service_name = service, cose.key_id(service)
        self._outbound.start(chain, key, False)
        if first:
            self._loop.add_reader(self._outbound.fileno(), self._outbound_ready)

    def accept_as(self, node: int, chain: list[bytes], key: bytes) -> None:
        """Be dialled, as the node with this engine id."""
        self._node = node
        self._inbound.start(chain, key, True)
        self._loop.add_reader(self._inbound.fileno(), self._inbound_ready)

    def close(self) -> None:
        """Close every link."""
        for door in (self._inbound, self._outbound):
            self._loop.remove_reader(door.fileno())
            door.stop()

    # --- dialling ---

    async def open(self, address: str, *, timeout_s: float) -> Link:
        """A link to whoever answers at an address and is a node of the service.

        Raises:
            BusyError: nobody answers (``peers.unreachable``).
            AttestationError: it is no node of the service (``peers.not_of_the_service``).
        """
        link = self._begin(address, 0)
        try:
            await asyncio.wait_for(asyncio.shield(link.opened), timeout_s)
        except TimeoutError as error:
            link.close()
            raise BusyError("another node cannot be reached", code="peers.unreachable") from error
        return link

    def to(self, node: int) -> Link | None:
        """The link to a node, which is dialled if it is not there; None while it cannot be reached."""
        link = self._peers.get(node)
        if link is not None:
            return link if link.connection is not None else None
        address = self.address(node)
        if address is not None and node != self._node and self._loop.time() >= self._not_before.get(node, 0.0):
            self._not_before[node] = self._loop.time() + _REDIAL_S
            link = self._peers[node] = self._begin(address, node)
            self._loop.call_later(limits.PEER_SECONDS_MAX, self._give_up, link)
        return None

    def _give_up(self, link: Link) -> None:
        """A connection whose handshake never ends says nothing when it closes: dial anew."""
        if link.number in self._dialling:
            self.drop(link)

    def tell(self, node: int, kind: str, body: bytes) -> bool:
        """Send a message that nobody answers; False when the node cannot be reached now."""
        link = self.to(node)
        if link is None:
            return False
        link.send(Tell(kind, body))
        return True

    def _begin(self, address: str, receiver: int) -> Link:
        self.number += 1
        link = Link(self, self.number, receiver)
        self._dialling[link.number] = link
        self._dial(link.number, address)
        return link

    def dial_failed(self, dial: int) -> None:
        """The host could not connect; it may say so of what it knows nothing of."""
        link = self._dialling.pop(dial, None)
        if link is not None:
            self._forget(link)

    def drop(self, link: Link) -> None:
        """Close a link."""
        self._dialling.pop(link.number, None)
        if link.connection is not None:
            self._open.pop(link.connection, None)
            self._outbound.close(link.connection)
            self._outbound.flush()
        self._forget(link)

    def _forget(self, link: Link) -> None:
        if link.connection is not None and link.receiver:
            self._log("link.closed", {"node": link.receiver})
        if self._peers.get(link.receiver) is link:
            del self._peers[link.receiver]
        link.ended()
        if link.receiver:
            self.on_lost(link.receiver)

    def _outbound_ready(self) -> None:
        for kind, connection, *rest in self._outbound.take():
            if kind == doors.OPENED:
                self._dialled(connection, *rest)
            elif kind == doors.DATA:
                link = self._open.get(connection)
                if link is not None:
                    self._hear_answers(link, rest[0])
                self._outbound.more(connection)
                self._wake_outbound.soon()
            elif kind == doors.CLOSED:
                link = self._open.pop(connection, None)
                if link is not None:
                    self._forget(link)
            elif kind == doors.MARKED:
                self._marks.pop(connection).set_result(None)  # it has no connection, but the number of the mark
            elif kind == doors.NOT_OPENED:
                self.dial_failed(connection)  # it has no connection, but the number of its dial
            elif kind == doors.FAILED:
                self._failed(native_error("front.failed", "the door of the dialled links failed"))

    def _dialled(self, connection: int, certificate: bytes | None, dial: int) -> None:
        link = self._dialling.pop(dial, None)
        assert self._service is not None, "nothing is dialled before `dial_as`"
        found = named_engine_id(certificate, self.node_id) or endorsed_engine_id(certificate, self._service)
        if link is None or found == 0 or found == self._node or link.receiver not in (0, found):
            self._log("link.refused", {"node": found, "wanted": link.receiver if link is not None else 0})
            self._outbound.close(connection)
            self._wake_outbound.soon()
            if link is not None:
                wrong = AttestationError("this is no node of the service", code="peers.not_of_the_service")
                if not link.opened.done():
                    link.opened.set_exception(wrong)
                    link.opened.exception()
                self._forget(link)
            return
        if link.receiver:
            self._log("link.opened", {"node": found})
        link.connection = connection
        self._open[connection] = link
        link.send(Hello(self._service_name, link.receiver))
        if not link.opened.done():
            link.opened.set_result(None)

    def _hear_answers(self, link: Link, data: bytes) -> None:
        try:
            for message in link.frames.feed(data):
                if not isinstance(message, Answer):
                    raise AttestationError("who is dialled only answers", code=MALFORMED)
                future = link.asked.pop(message.number, None)
                if future is None or future.done():
                    continue  # too late
                if message.code:
                    future.set_exception(_refusal(message))
                else:
                    future.set_result(message.body)
        except CocoError:
            link.close()

    async def written(self) -> None:
        """Wait until all that was told by now has left this process, as far as the other nodes take it."""
        self.number += 1
        self._marks[self.number] = self._loop.create_future()
        self._outbound.mark(self.number)
        await self._marks[self.number]

    def write(self, connection: int, data: bytes) -> None:
        """Write to a dialled link."""
        self._outbound.write(connection, data)
        self._wake_outbound.soon()

    # --- being dialled ---

    def _inbound_ready(self) -> None:
        for kind, connection, *rest in self._inbound.take():
            if kind == doors.OPENED:
                self._accepted[connection] = _Inbound(rest[0])
                self._inbound.admit(connection, False, False)
                self._wake_inbound.soon()
                self._loop.call_later(limits.STRANGER_SECONDS_MAX, self._end_stranger, connection)
            elif kind == doors.DATA:
                try:
                    self._hear(connection, self._accepted[connection], rest[0])
                except Exception as error:  # noqa: BLE001 - no peer may keep another one from being heard
                    if not isinstance(error, CocoError):
                        self._unexpected(error)
                    code = error.code if isinstance(error, CocoError) else "peers.failed"
                    self._log("link.cut", {"node": self._accepted[connection].sender or 0}, {"code": code})
                    self._inbound.close(connection)
                self._inbound.more(connection)
                self._wake_inbound.soon()
            elif kind == doors.CLOSED:
                sender = self._accepted.pop(connection).sender
                if sender:
                    self.on_lost(sender)
            elif kind == doors.FAILED:
                self._failed(native_error("front.failed", "the door of the peers failed"))

    def _end_stranger(self, connection: int) -> None:
        inbound = self._accepted.get(connection)
        if inbound is not None and not inbound.sender:
            self._inbound.close(connection)
            self._wake_inbound.soon()

    def _hear(self, connection: int, inbound: _Inbound, data: bytes) -> None:
        for message in inbound.frames.feed(data):
            if inbound.sender is None:
                inbound.sender = self._greeted(inbound, message)
                if inbound.sender:
                    self._inbound.admit(connection, True, True)
            elif isinstance(message, Tell):
                if inbound.sender == 0 or self.address(inbound.sender) is None:
                    raise AttestationError("a stranger may only ask", code="peers.not_of_the_service")
                self.on_tell(inbound.sender, message.kind, message.body)
            elif isinstance(message, Ask):
                inbound.questions += 1
                if inbound.questions > limits.PEER_QUESTIONS_MAX:
                    raise AttestationError("a peer asks too much at once", code=MALFORMED)
                task = self._loop.create_task(self._answer(connection, inbound, message))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            else:
                raise AttestationError("who dials only asks", code=MALFORMED)

    def _greeted(self, inbound: _Inbound, message: _Message) -> int:
        assert self._service is not None, "nobody is accepted before `accept_as`, which comes after `dial_as`"
        # A process is a node of one service only; which key that has now, one of the two may not have heard yet.
        sender = named_engine_id(inbound.certificate, self.node_id)
        if not isinstance(message, Hello) or (message.service != self._service_name and not sender):
            raise AttestationError("the link is for another service", code="peers.other_service")
        sender = sender or endorsed_engine_id(inbound.certificate, self._service)
        if message.receiver not in (0, self._node) or sender == self._node or inbound.certificate is None:
            raise AttestationError("the link is for another node", code="peers.other_node")
        return sender

    async def _answer(self, connection: int, inbound: _Inbound, message: Ask) -> None:
        try:
            if self.serve is None or inbound.sender is None:
                raise BusyError("this node answers nobody yet", code="node.not_open")
            body = await self.serve(inbound.sender, inbound.certificate or b"", message.kind, message.body)
            answer = Answer(message.number, "", body)
        except HostLiedError as error:
            # It is this node that ends for it, not whoever asked.
            answer = Answer(message.number, "node.ended", b"the host of this node lied")
            self._failed(error)
        except CocoError as error:
            # Only who wants to join is told numbers; a node of the network may be one that reads none (`_Short`).
            numbers = {} if inbound.sender else error.numbers
            answer = Answer(message.number, error.code, str(error).encode(), numbers)
        except Exception as error:  # noqa: BLE001 - no question of a peer stays without an answer
            self._unexpected(error)
            answer = Answer(message.number, "peers.failed", b"this node could not answer")
        inbound.questions -= 1
        if connection in self._accepted:
            self._inbound.write(connection, frame(answer))
            self._wake_inbound.soon()


def _refusal(said: Answer) -> CocoError:
    return BusyError(said.body.decode("utf-8", "replace"), code=said.code, numbers=said.numbers)
