"""A joiner's side: from a fresh key to a place in a network that it can check.

Order: key and evidence -> the owner's statement -> ask any node, be led to the primary -> wait to be trusted -> a
welcome signed by the pinned service -> secrets -> the ledger, entry by entry, each checked against its predecessor and
the whole against the service's signature. Whatever cannot heal stops the joiner with its reason.
"""

from __future__ import annotations

import asyncio
import secrets as randomness
from dataclasses import dataclass

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from coco import _native, limits
from coco.channel import messages
from coco.configuration import secrets as wrapping
from coco.configuration.nodes import JoinRequest
from coco.consensus import Members, Start
from coco.crypto import cose
from coco.enclave.keys.identity import EncryptionKey, NodeIdentity, ServiceIdentity, private_der, self_signed
from coco.enclave.network.evidence import NodeEvidence
from coco.enclave.network.membership import (
    FETCH,
    JOIN,
    NO_PRIMARY,
    OTHER_RULES,
    WELCOME_STATEMENT,
    FetchRange,
    JoinAnswer,
    Welcome,
)
from coco.enclave.platform.control import Control
from coco.enclave.transport.links import MALFORMED, Link, Links, decode
from coco.errors import AttestationError, BusyError, CocoError, ConfigurationError, LedgerError
from coco.ledger.statements import MESSAGE_TYPE
from coco.ledger.transaction_id import TransactionId

_AGAIN_S = 0.2
_FETCH_S = 30.0
_NONCE_BYTES = 32
#: A node that does not answer for so long is named in the log, and again as often.
_UNHEARD_S = 3.0
#: Who has answers but no welcome says so after this time, after twice that, and so on.
_WAITING_S = 4.0
#: Refusals after which asking again is of no use.
_FINAL = ("join.", "attestation.", "ledger.")
_NOT_YET = ("join.address_in_use", "join.too_many_nodes", "join.too_often")


@dataclass
class Joined:
    """What a joiner was given."""

    identity: NodeIdentity
    encryption: EncryptionKey
    service: ServiceIdentity
    engine: int
    view_offset: int
    start: Start
    secrets: list[tuple[int, _native.LedgerSecret]]
    constitution_hash: bytes
    time_ms: int


class Joiner:
    """Joins one network.

    Args:
        control: the host, who dials and knows the owner.
        links: the links; strangers' until the welcome.
        start: how the host began this process.
        attesting: gives evidence.
        configuration: hash of ``start``.
        time_ms: for the certificate that this node shows before the service's.
    """

    def __init__(
        self,
        control: Control,
        links: Links,
        start: messages.Start,
        *,
        attesting: NodeEvidence,
        configuration: bytes,
        time_ms: int,
    ) -> None:
        try:
            certificate = x509.load_pem_x509_certificate(start.expected_service)
            service = certificate.public_key()
        except ValueError as error:
            raise ConfigurationError(
                "a joiner must know the service that it joins", code="join.no_service", hint="give its certificate"
            ) from error
        if not isinstance(service, ec.EllipticCurvePublicKey):
            raise ConfigurationError("the service has no elliptic-curve key", code="join.no_service")
        if not start.peers:
            raise ConfigurationError("a joiner must know a node to ask", code="join.no_peers")
        self._control, self._links, self._start = control, links, start
        self._addresses = list(start.peers)
        self._started_at = asyncio.get_running_loop().time()
        self._source: Link | None = None
        #: Addresses of nodes that read requests of an earlier version only.
        self._earlier: set[str] = set()
        self._service, self._attesting, self._configuration = service, attesting, configuration
        self._key = ec.generate_private_key(ec.SECP384R1())
        self._certificate = self_signed(self._key, time_ms)
        self._node_id = cose.key_id(self._key.public_key())
        self._encryption = EncryptionKey.generate()

    async def join(self) -> Joined:
        """Ask until this node is welcome.

        Raises:
            CocoError: it never will be, with the reason.
        """
        context = {
            "encryption_key": self._encryption.pem.encode(),
            "service": cose.spki(self._service),
            "configuration": self._configuration,
        }
        evidence = await self._attesting.begin(cose.spki(self._key.public_key()), context)
        self._control.send(messages.Identity(self._node_id, self._attesting.verified.measurement))
        statement = await self._control.owner_statement
        with private_der(self._key) as private:
            self._links.dial_as([self._certificate.public_bytes(Encoding.DER)], private, self._service)
        request = JoinRequest(
            evidence=evidence.to_json(),
            encryption_key=self._encryption.pem,
            configuration=self._configuration,
            nonce=randomness.token_bytes(_NONCE_BYTES),
            address=self._start.peer_address,
            host_names=self._start.host_names,
            owner_statement=statement,
            constitution=self._start.expected_constitution,
        )
        loop = asyncio.get_running_loop()
        said, heard_at, unheard = "", loop.time(), dict.fromkeys(self._addresses, loop.time())
        began, waits_s = heard_at, _WAITING_S
        led_at, lost_s = heard_at, limits.MAJORITY_LOST_SECONDS
        while True:
            for address in list(self._addresses):
                passed_ms = int(1000 * (loop.time() - self._started_at))
                request = msgspec.structs.replace(request, time_ms=self._start.time_ms + passed_ms)
                answer = await self._ask(address, request)
                if answer is not None:
                    heard_at = unheard[address] = loop.time()
                elif loop.time() - unheard.setdefault(address, loop.time()) > _UNHEARD_S:
                    unheard[address] = loop.time()
                    self._control.log("join.no_answer", {"seconds": int(_UNHEARD_S)}, {"address": address})
                if isinstance(answer, Welcome):
                    # It leads: it has the whole ledger, and whatever snapshot there is.
                    self._addresses.remove(address)
                    self._addresses.insert(0, address)
                    return self._accept(answer, request)
                if answer is not None and answer.state != NO_PRIMARY:
                    led_at = loop.time()
                if answer is not None and answer.state != said:
                    said = answer.state
                    self._control.log(f"join.{said}")
                if answer is not None and answer.primary and answer.primary not in self._addresses:
                    self._addresses.append(answer.primary)
            if said == NO_PRIMARY and loop.time() - led_at > lost_s:
                # Two of three that are started again would wait for ever: they are new ones, and may not vote for it.
                self._control.log("join.majority_lost", {"seconds": int(lost_s)})
                lost_s *= 2
            if said and loop.time() - began > waits_s:
                self._control.log("join.waiting", {"seconds": int(waits_s)}, {"state": said})
                waits_s *= 2
            if loop.time() - heard_at > limits.JOIN_SECONDS_MAX:
                raise BusyError("no node of the network answers", code="join.nobody_answers")
            await asyncio.sleep(_AGAIN_S)

    async def _ask(self, address: str, request: JoinRequest) -> JoinAnswer | None:
        """The answer of the node at an address; None when it cannot answer now."""
        if address in self._earlier:
            request = msgspec.structs.replace(request, time_ms=0)  # it compares no clocks
        try:
            link = await self._links.open(address, timeout_s=limits.PEER_SECONDS_MAX)
        except BusyError:
            return None
        try:
            signed = cose.parse(await link.ask(JOIN, request.encode(), timeout_s=2 * limits.PEER_SECONDS_MAX))
        except CocoError as error:
            if error.code == MALFORMED and address not in self._earlier:
                self._earlier.add(address)
                self._control.log("join.earlier_version", {}, {"address": address})
            if error.code.startswith(_FINAL) and error.code not in _NOT_YET:
                raise AttestationError(
                    f"the network refused this node: {error}", code=error.code, numbers=error.numbers
                ) from error
            return None
        finally:
            link.close()
        if signed.headers.get(MESSAGE_TYPE) != WELCOME_STATEMENT:
            raise AttestationError("the answer is not the service's", code="join.other_service")
        cose.verify(signed, self._service)
        return decode(JoinAnswer, signed.payload or b"")  # type: ignore[arg-type]

    def _accept(self, welcome: Welcome, request: JoinRequest) -> Joined:
        expected = self._start.expected_constitution
        if expected and welcome.constitution_hash != expected:
            raise AttestationError("the network has other rules than this node's owner has seen", code=OTHER_RULES)
        if welcome.node_id != self._node_id or welcome.nonce != request.nonce:
            raise AttestationError("the welcome is another node's", code="join.other_node")
        certificate = x509.load_pem_x509_certificate(welcome.certificate.encode())
        if certificate.public_key() != self._key.public_key():
            raise AttestationError("the certificate is another node's", code="join.other_node")
        service = ServiceIdentity(
            wrapping.open_service_key(welcome.service_key, self._encryption.private),
            x509.load_pem_x509_certificate(welcome.service.encode()),
        )
        if welcome.following_key:
            service.hold(wrapping.open_service_key(welcome.following_key, self._encryption.private))
        if service.key.public_key() != self._service:
            raise AttestationError("the service key is another service's", code="join.other_service")
        secrets = [
            (
                first,
                wrapping.open_for_node(
                    row, self._node_id, self._encryption.private, self._encryption.pem, service.spki
                ),
            )
            for first, row in welcome.secrets
        ]
        members = Members(tuple(welcome.voters), tuple(welcome.learners))
        start = Start(
            members,
            welcome.index,
            welcome.term,
            TransactionId.parse(welcome.position),
            TransactionId.parse(welcome.signed),
        )
        return Joined(
            NodeIdentity(self._key, certificate),
            self._encryption,
            service,
            welcome.engine,
            welcome.view_offset,
            start,
            secrets,
            welcome.constitution_hash,
            welcome.time_ms,
        )

    async def fetch(self, first: int, last: int) -> list[bytes]:
        """Some of the entries ``first`` to ``last``, from whichever node has them.

        Raises:
            CocoError: none gave them in time.
        """
        deadline = asyncio.get_running_loop().time() + _FETCH_S
        while True:
            try:
                return _entries(await self.ask_any(FETCH, _range(first, last)), first, last)
            except CocoError:
                # It died, or is behind the node that said where to begin.
                self.turn()
                if asyncio.get_running_loop().time() > deadline:
                    raise
                await asyncio.sleep(_AGAIN_S)

    async def ask_any(self, kind: str, body: bytes) -> bytes:
        """The answer of the node that welcomed this one; of another one after :meth:`turn`.

        Raises:
            CocoError: it refused, or did not answer.
        """
        if self._source is None:
            self._source = await self._open_source()
        return await self._source.ask(kind, body, timeout_s=2 * limits.PEER_SECONDS_MAX)

    def turn(self) -> None:
        """Ask another node from now on."""
        self._addresses.append(self._addresses.pop(0))
        if self._source is not None:
            self._source.close()
            self._source = None

    async def _open_source(self) -> Link:
        return await self._links.open(self._addresses[0], timeout_s=limits.PEER_SECONDS_MAX)


async def fetch(link: Link, first: int, last: int) -> list[bytes]:
    """Some of the entries ``first`` to ``last``, from another node.

    Raises:
        CocoError: the node does not answer, or has none of them (``ledger.no_entry``).
    """
    return _entries(await link.ask(FETCH, _range(first, last), timeout_s=2 * limits.PEER_SECONDS_MAX), first, last)


def _range(first: int, last: int) -> bytes:
    return msgspec.msgpack.encode(FetchRange(first, last))


def _entries(answer: bytes, first: int, last: int) -> list[bytes]:
    found = decode(list[bytes], answer)
    if not found or len(found) > last - first + 1:
        raise LedgerError(f"another node has no entry {first}", code="ledger.no_entry")
    return found
