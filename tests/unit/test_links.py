"""Links between enclaves over real TLS, with a test in the place of both hosts: who is believed, and who is not (J5)."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from coco import limits
from coco.crypto import cose
from coco.enclave.keys.identity import ServiceIdentity, self_signed
from coco.enclave.transport.links import (
    Answer,
    Ask,
    Frames,
    Hello,
    Links,
    Tell,
    endorsed_engine_id,
    frame,
    named_engine_id,
)
from coco.enclave.transport.listener import open_door
from coco.errors import AttestationError, CocoError, HostLiedError, RequestError

TIME_MS = 1_800_000_000_000
SERVICE, OTHER = ServiceIdentity.generate(TIME_MS), ServiceIdentity.generate(TIME_MS)
Story = Callable[["Hosts"], Awaitable[None]]


#: ecdsa-with-SHA384, and an algorithm that nobody knows.
_ECDSA_SHA384, _UNKNOWN = bytes.fromhex("06082a8648ce3d040303"), bytes.fromhex("06082a8648ce3d040363")


def identity(engine: int, service: ServiceIdentity | None = SERVICE) -> tuple[list[bytes], bytes]:
    """Certificate chain and key of a node; without a service, a stranger's."""
    key = ec.generate_private_key(ec.SECP384R1())
    if service is None:
        certificate = self_signed(key, TIME_MS)
    else:
        certificate = service.endorse(key.public_key(), engine, ["localhost"], TIME_MS)
    private = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    return [certificate.public_bytes(Encoding.DER)], private


def named(certificate: bytes) -> str:
    """The node that a certificate is of."""
    key: Any = x509.load_der_x509_certificate(certificate).public_key()
    return cose.key_id(key)


class Hosts:
    """Every host of the network: connects what the enclaves ask for, or something else."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.made: list[Links] = []
        self.heard: list[tuple[int, int, str, bytes]] = []
        self.logged: list[str] = []
        #: What ended a node, and what nobody expected.
        self.failed: list[BaseException] = []
        self.unexpected: list[BaseException] = []
        #: Where an address really leads; for hosts that cross connections.
        self.really: dict[str, str] = {}
        self.tasks: set[asyncio.Task[None]] = set()
        #: Whose an engine id is, as a ledger would say.
        self.node_ids: dict[int, str] = {}

    def node(
        self,
        engine: int,
        *,
        service: ServiceIdentity | None = SERVICE,
        pinned: ServiceIdentity = SERVICE,
        certified: int | None = None,
    ) -> Links:
        """A node whose peers listen at the address ``n<engine>``; ``certified`` is the id in its certificate."""
        name = f"n{engine}"
        doors = {}
        for kind, protocol in (("peers", "peer"), ("dialled", "dialled")):
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(str(self._directory / f"{name}-{kind}"))
            listener.listen()
            doors[kind] = open_door(listener, protocol=protocol)
        links = Links(
            doors["peers"],
            doors["dialled"],
            dial=lambda dial, address: self._dial(links, name, dial, address),
            failed=self.failed.append,
            unexpected=self.unexpected.append,
            log=lambda code, *rest: self.logged.append(code),
        )
        chain, key = identity(certified or engine, service)
        self.node_ids[engine] = named(chain[0])
        links.dial_as(chain, key, pinned.key.public_key())
        links.accept_as(engine, chain, key)
        links.address = lambda other: f"n{other}"
        links.on_tell = lambda sender, kind, body: self.heard.append((engine, sender, kind, body))

        async def serve(sender: int, certificate: bytes, kind: str, body: bytes) -> bytes:
            if kind == "refuse":
                raise RequestError("no", code="test.no")
            return b"%d:%d:" % (engine, sender) + body

        links.serve = serve
        self.made.append(links)
        return links

    def _dial(self, links: Links, name: str, dial: int, address: str) -> None:
        task = asyncio.get_running_loop().create_task(self._connect(links, name, dial, address))
        self.tasks.add(task)

    async def _connect(self, links: Links, name: str, dial: int, address: str) -> None:
        try:
            target = self.really.get(address, address)
            far = await asyncio.open_unix_connection(str(self._directory / f"{target}-peers"))
        except OSError:
            links.dial_failed(dial)
            return
        near = await asyncio.open_unix_connection(str(self._directory / f"{name}-dialled"))
        near[1].write(dial.to_bytes(8, "big"))

        async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError):
                while data := await reader.read(65536):
                    writer.write(data)
                writer.write_eof()

        try:
            await asyncio.gather(pump(near[0], far[1]), pump(far[0], near[1]))
        finally:
            for _, writer in (near, far):
                writer.close()

    async def gives_up(self, check: Callable[[], Any]) -> Any:
        """What a check gives within a second: nothing, if no link comes to be."""
        with contextlib.suppress(TimeoutError):
            return await asyncio.wait_for(self.until(check), 1)
        return None

    async def until(self, check: Callable[[], Any]) -> Any:
        async with asyncio.timeout(10):
            while not (found := check()):
                await asyncio.sleep(0.01)
        return found


@pytest.fixture
def network(tmp_path):
    def run(story: Story) -> None:
        async def told() -> None:
            hosts = Hosts(tmp_path)
            try:
                await story(hosts)
            finally:
                for links in hosts.made:
                    links.close()
                for task in hosts.tasks:
                    task.cancel()
                await asyncio.gather(*hosts.tasks, return_exceptions=True)
                await asyncio.sleep(0.01)  # transports close in the next turn

        asyncio.run(told())

    return run


def test_nodes_tell_and_ask_under_the_ids_that_the_service_gave_them(network):
    async def story(hosts: Hosts) -> None:
        one, two = hosts.node(1), hosts.node(2)
        link = await hosts.until(lambda: one.to(2))
        assert one.tell(2, "engine", b"hello")
        assert await link.ask("question", b"x" * 500_000, timeout_s=10) == b"2:1:" + b"x" * 500_000
        await hosts.until(lambda: hosts.heard)
        assert hosts.heard == [(2, 1, "engine", b"hello")]
        with pytest.raises(CocoError) as refused:
            await link.ask("refuse", b"", timeout_s=10)
        assert refused.value.code == "test.no"
        # The other way has a link of its own.
        back = await hosts.until(lambda: two.to(1))
        assert await back.ask("question", b"y", timeout_s=10) == b"1:2:y"

    network(story)


def test_J5_a_host_that_crosses_connections_is_noticed(network):
    async def story(hosts: Hosts) -> None:
        one, *_ = hosts.node(1), hosts.node(2), hosts.node(3)
        hosts.really = {"n2": "n3"}
        for _ in range(5):
            assert one.to(2) is None
            await asyncio.sleep(0.1)
        hosts.really = {"n2": "n1"}  # a reflection
        for _ in range(10):
            assert one.to(2) is None
            await asyncio.sleep(0.1)
        assert set(hosts.logged) == {"link.refused"}, "whoever dials looks first"
        hosts.really = {}
        await hosts.until(lambda: one.to(2))
        assert not hosts.heard

    network(story)


def test_J5_another_service_is_no_peer(network):
    async def story(hosts: Hosts) -> None:
        one = hosts.node(1)
        hosts.node(2, service=OTHER, pinned=OTHER)
        with pytest.raises(AttestationError) as refused:
            await one.open("n2", timeout_s=10)
        assert refused.value.code == "peers.not_of_the_service"
        # And towards it: its greeting names another service.
        theirs = hosts.made[1]
        with pytest.raises(AttestationError):
            await theirs.open("n1", timeout_s=10)

    network(story)


@pytest.mark.parametrize("wrong", ["service", "receiver"])
def test_J5_who_is_dialled_looks_too(network, monkeypatch, wrong):
    async def story(hosts: Hosts) -> None:
        one, _ = hosts.node(1), hosts.node(2)
        greeting = Hello("ab", 0) if wrong == "service" else Hello(cose.key_id(SERVICE.key.public_key()), 3)
        monkeypatch.setattr(
            "coco.enclave.transport.links.frame", lambda said: frame(greeting if type(said) is Hello else said)
        )
        await one.open("n2", timeout_s=10)
        await hosts.until(lambda: "link.cut" in hosts.logged)

    network(story)


def test_J9_nodes_that_know_each_other_talk_though_the_service_has_another_key_for_one_of_them(network):
    async def story(hosts: Hosts) -> None:
        # The first has taken the step to the other identity, the second has not heard of it.
        one, two = hosts.node(1, service=OTHER, pinned=OTHER), hosts.node(2)
        assert not await hosts.gives_up(lambda: one.to(2)) and not await hosts.gives_up(lambda: two.to(1))
        for links in (one, two):
            links.node_id = lambda engine: hosts.node_ids[engine]
        for asks, answers in ((one, 2), (two, 1)):
            link = await hosts.until(functools.partial(asks.to, answers))
            assert (await link.ask("question", b"x", timeout_s=10)).endswith(b":x")
        # Who shows the same name with another key, under the identity that is over, is nobody.
        hosts.node_ids[2] = "0" * 64
        three = hosts.node(3, pinned=OTHER, service=OTHER)
        three.node_id = lambda engine: hosts.node_ids[engine]
        assert not await hosts.gives_up(lambda: three.to(2))

    network(story)


def test_J5_nobody_else_comes_under_ones_own_id(network):
    async def story(hosts: Hosts) -> None:
        hosts.node(1)
        twin = hosts.node(5, certified=1)
        twin._node = 5
        await twin.open("n1", timeout_s=10)
        await hosts.until(lambda: "link.cut" in hosts.logged)

    network(story)


def test_a_stranger_may_ask_and_nothing_else(network):
    async def story(hosts: Hosts) -> None:
        hosts.node(1)
        joiner = hosts.node(9, service=None)
        link = await joiner.open("n1", timeout_s=10)
        assert await link.ask("join", b"x", timeout_s=10) == b"1:0:x", "its sender is nobody"
        link.send(Tell("engine", b"vote"))
        await hosts.until(lambda: link.connection is None)
        assert not hosts.heard

    network(story)


def test_a_certificate_that_cannot_be_read_is_a_strangers(network):
    chain, _ = identity(9, None)
    odd = chain[0].replace(_ECDSA_SHA384, _UNKNOWN)
    assert odd != chain[0]
    assert endorsed_engine_id(odd, SERVICE.key.public_key()) == 0
    assert named_engine_id(odd, lambda engine: None) == 0

    async def story(hosts: Hosts) -> None:
        one, two = hosts.node(1), hosts.node(2)
        stranger = hosts.node(9, service=None)
        chain, key = identity(9, None)
        stranger.dial_as([chain[0].replace(_ECDSA_SHA384, _UNKNOWN)], key, SERVICE.key.public_key())
        link = await stranger.open("n1", timeout_s=10)
        assert await link.ask("join", b"x", timeout_s=10) == b"1:0:x"
        assert not hosts.unexpected
        await hosts.until(lambda: two.to(1))
        assert one.serve is not None

    network(story)


def test_a_question_that_nobody_expected_is_answered_all_the_same(network):
    async def story(hosts: Hosts) -> None:
        one = hosts.node(1)
        joiner = hosts.node(9, service=None)
        link = await joiner.open("n1", timeout_s=10)

        async def fails(*asked: Any) -> bytes:
            raise KeyError("nobody expected this")

        one.serve = fails
        with pytest.raises(CocoError) as refused:
            await link.ask("join", b"x", timeout_s=10)
        assert refused.value.code == "peers.failed"
        assert len(hosts.unexpected) == 1 and not hosts.failed

    network(story)


def test_L2_a_lie_of_the_host_that_a_peer_meets_ends_this_node_and_not_the_peer(network):
    async def story(hosts: Hosts) -> None:
        one, two = hosts.node(1), hosts.node(2)

        async def lied_to(*asked: Any) -> bytes:
            raise HostLiedError("another part", code="channel.wrong_snapshot")

        one.serve = lied_to
        link = await hosts.until(lambda: two.to(1))
        with pytest.raises(CocoError) as refused:
            await link.ask("snapshot_part", b"x", timeout_s=10)
        assert refused.value.code == "node.ended", "what the other one's host did is no word about one's own"
        assert [getattr(error, "code", "") for error in hosts.failed] == ["channel.wrong_snapshot"]

    network(story)


def test_a_stranger_does_not_keep_a_link(network, monkeypatch):
    monkeypatch.setattr(limits, "STRANGER_SECONDS_MAX", 0.3)

    async def story(hosts: Hosts) -> None:
        one, joiner = hosts.node(1), hosts.node(9, service=None)
        hosts.node(2)
        link = await joiner.open("n2", timeout_s=10)
        peer = await hosts.until(lambda: one.to(2))
        await hosts.until(lambda: link.connection is None)
        assert peer.connection is not None

    network(story)


def test_a_peer_that_asks_too_much_at_once_is_cut(network, monkeypatch):
    monkeypatch.setattr(limits, "PEER_QUESTIONS_MAX", 3)

    async def story(hosts: Hosts) -> None:
        one, two = hosts.node(1), hosts.node(2)
        link = await hosts.until(lambda: one.to(2))
        two.serve = lambda *asked: asyncio.sleep(60)
        for number in range(5):
            link.send(Ask(number, "question", b""))
        await hosts.until(lambda: link.connection is None)

    network(story)


def test_a_node_that_the_configuration_no_longer_has_is_cut(network):
    async def story(hosts: Hosts) -> None:
        one, two = hosts.node(1), hosts.node(2)
        link = await hosts.until(lambda: one.to(2))
        two.address = lambda other: None
        one.tell(2, "engine", b"late")
        await hosts.until(lambda: link.connection is None)
        assert not hosts.heard

    network(story)


def test_who_asks_hears_that_a_link_is_gone(network):
    async def story(hosts: Hosts) -> None:
        one, two = hosts.node(1), hosts.node(2)
        link = await hosts.until(lambda: one.to(2))
        two.serve = lambda *asked: asyncio.sleep(60)
        asked = asyncio.ensure_future(link.ask("question", b"", timeout_s=30))
        await asyncio.sleep(0.1)
        two.close()
        hosts.made.remove(two)
        with pytest.raises(CocoError) as gone:
            await asked
        assert gone.value.code == "peers.unreachable"
        with pytest.raises(CocoError):
            await one.open("n7", timeout_s=10)

    network(story)


def test_J5_only_the_services_signature_gives_an_engine_id():
    public = SERVICE.key.public_key()
    (certificate,), _ = identity(7)
    assert endorsed_engine_id(certificate, public) == 7
    for service in (OTHER, None):
        (foreign,), _ = identity(7, service)
        assert endorsed_engine_id(foreign, public) == 0
    assert endorsed_engine_id(None, public) == endorsed_engine_id(b"garbage", public) == 0
    own = SERVICE.certificate.public_bytes(Encoding.DER)
    assert endorsed_engine_id(own, public) == 0, "the service itself is no node"


def test_J9_a_key_that_the_ledger_names_counts_under_any_service_and_no_other_key_does():
    known = {7: identity(7)[0][0]}

    def node_id(engine: int) -> str | None:
        found = known.get(engine)
        return named(found) if found is not None else None

    assert named_engine_id(known[7], node_id) == 7
    (forged,), _ = identity(7, OTHER)  # whoever has a key of the service may write any name
    assert named_engine_id(forged, node_id) == 0
    assert named_engine_id(None, node_id) == named_engine_id(b"garbage", node_id) == 0
    del known[7]
    assert named_engine_id(forged, node_id) == 0
    own = SERVICE.certificate.public_bytes(Encoding.DER)
    assert named_engine_id(own, node_id) == 0, "the service itself is no node"


@settings(deadline=None)
@given(st.lists(st.binary(max_size=50), max_size=10), st.integers(1, 60))
def test_frames_come_back_however_they_are_cut(bodies, size):
    sent = [Hello("ab", 3), *(Tell("kind", body) for body in bodies), Ask(4, "kind", b"x"), Answer(4, "", b"y")]
    stream = b"".join(frame(message) for message in sent)
    frames, found = Frames(), []
    for at in range(0, len(stream), size):
        found += frames.feed(stream[at : at + size])
    assert found == sent


@given(st.binary(min_size=1, max_size=60))
def test_garbage_is_no_frame(data):
    for stream in (data, len(data).to_bytes(4, "big") + data):
        try:
            Frames().feed(stream)
        except AttestationError as error:
            assert error.code == "peers.malformed"


def test_a_dial_that_ends_in_its_handshake_is_known_at_once(network, tmp_path):
    async def story(hosts: Hosts) -> None:
        one = hosts.node(1)

        async def cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(1)
            writer.close()

        async with await asyncio.start_unix_server(cut, str(tmp_path / "broken-peers")):
            hosts.really = {"n2": "broken"}
            assert one.to(2) is None and one._dialling
            await hosts.gives_up(lambda: not one._dialling)
            assert not one._dialling and not one._peers, "long before its time is over"
        hosts.really = {}
        hosts.node(2)
        await hosts.until(lambda: one.to(2))

    network(story)


def test_who_lost_a_link_is_told_whose_it_was(network):
    async def story(hosts: Hosts) -> None:
        one, two = hosts.node(1), hosts.node(2)
        lost: list[tuple[int, int]] = []
        one.on_lost = lambda node: lost.append((1, node))
        two.on_lost = lambda node: lost.append((2, node))
        link = await hosts.until(lambda: one.to(2))
        await link.ask("question", b"", timeout_s=10)
        link.close()
        await hosts.until(lambda: len(lost) == 2)
        assert sorted(lost) == [(1, 2), (2, 1)]

    network(story)


def test_a_connection_that_never_becomes_a_link_is_given_up_and_dialled_anew(network, monkeypatch):
    monkeypatch.setattr(limits, "PEER_SECONDS_MAX", 0.3)

    async def story(hosts: Hosts) -> None:
        # The other one has a listener, and nobody behind it yet: nothing is ever said on the connection.
        deaf = socket.socket(socket.AF_UNIX)
        deaf.bind(str(hosts._directory / "deaf-peers"))
        deaf.listen()
        one, _ = hosts.node(1), hosts.node(2)
        hosts.really["n2"] = "deaf"
        assert not one.tell(2, "x", b"lost")
        await asyncio.sleep(0.1)
        del hosts.really["n2"]
        assert not one.tell(2, "x", b"lost")
        await hosts.until(lambda: one.tell(2, "x", b"heard"))
        await hosts.until(lambda: (2, 1, "x", b"heard") in hosts.heard)
        deaf.close()

    network(story)
