"""A stranger, who has no certificate, wants to keep a node busy before anything it sends is a request.

Nothing here asserts a speed: what is counted is how often a thread of the node wakes, and who waits for whom.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from pathlib import Path

import pytest
from attacks import attack
from front_door import headers_of, making

from coco import limits
from coco._native import Relay
from coco.enclave.transport import listener as doors

_CRUMBS = 1500
_CHUNKED = b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"


@pytest.fixture
def door(tmp_path):
    with making(tmp_path) as make:
        yield make


def wakeups(name):
    """How often the threads of this process with a name have woken."""
    sum_ = 0
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):
            if (task / "comm").read_text().strip() == name:
                line = next(one for one in (task / "status").read_text().splitlines() if one.startswith("voluntary"))
                sum_ += int(line.split()[1])
    return sum_


def trickle(connection, pieces):
    """Send piece after piece, so slowly that each comes alone; how long it took."""
    began = time.monotonic()
    for piece in pieces:
        connection.sendall(piece)
        time.sleep(0.001)
    return time.monotonic() - began


def heard(connection, seconds):
    """Whether the node says anything within a time."""
    connection.settimeout(seconds)
    try:
        return bool(connection.recv(65536))
    except TimeoutError:
        return False


def allowed(seconds):
    """Times that a thread may wake for one connection that sends crumbs for so long: it reads, it rests; and sweeps."""
    return limits.CRUMBS_MAX + 4 * seconds * 1000 / limits.CRUMB_REST_MS + 4 * seconds + 50


@pytest.mark.parametrize(
    ("first", "crumb", "last"),
    [
        (b"POST / HTTP/1.1\r\ncontent-length: 0\r\nx: ", b"y", b"\r\n\r\n"),
        (headers_of(_CRUMBS + 2), b"[", b"]]"),
        (_CHUNKED, b"1\r\n[\r\n", b"0\r\n\r\n"),
    ],
    ids=["head", "body", "chunks"],
)
@pytest.mark.parametrize("known", [False, True], ids=["stranger", "known"])
@attack(
    "C5",
    was="each byte of a request, sent alone, wakes the node's threads: from 30 connections writes fall to half",
    now="after a hundred reads of next to nothing a connection is read from 20 times a second, whoever holds it, and its "
    "bytes grow together till then; the request is served all the same",
)
def test_C5_crumbs_of_a_request_grow_together(door, first, crumb, last, known):
    front = door()
    connection = front.connect(shows=known)
    (identity,) = front.events(doors.OPENED, 1)
    if known:
        front.admit(identity, True)
    connection.sendall(first)
    before = wakeups("coco-front")
    took_s = trickle(connection, [crumb] * _CRUMBS)
    woken = wakeups("coco-front") - before
    assert woken < min(allowed(took_s), _CRUMBS), f"{woken} times for {_CRUMBS} crumbs in {took_s:.1f} s"
    connection.sendall(last)
    assert front.events(doors.JSON_RPC, 1) == [identity], "a slow client is served"


@attack(
    "C5",
    was="each byte wakes the host's relay, too, which takes longer for it than the enclave",
    now="the relay carries what comes in crumbs 20 times a second; an answer makes place for more at once",
)
def test_C5_crumbs_grow_together_at_the_host(tmp_path):
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "enclave"))
    listener.listen()
    relay = Relay("127.0.0.1", 0, str(tmp_path / "enclave"), 10, limits.CRUMBS)
    try:
        with socket.create_connection(("127.0.0.1", relay.port)) as client:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            enclave, _ = listener.accept()
            with enclave:
                # A conversation is no crumbs, however long.
                for _ in range(3 * limits.CRUMBS_MAX):
                    client.sendall(b"x" * 60)
                    assert len(enclave.recv(100)) == 60
                    enclave.sendall(b"y" * 60)
                    assert len(client.recv(100)) == 60
                before = wakeups("coco-relay")
                took_s = trickle(client, [b"z"] * _CRUMBS)
                woken = wakeups("coco-relay") - before
                assert woken < min(allowed(took_s), _CRUMBS), f"{woken} times for {_CRUMBS} bytes in {took_s:.1f} s"
                enclave.settimeout(10)
                got = b""
                while len(got) < _CRUMBS:
                    got += enclave.recv(65536)
                assert got == b"z" * _CRUMBS
                client.shutdown(socket.SHUT_WR)
                assert enclave.recv(1) == b"", "its end comes after a rest, too"
    finally:
        relay.stop()
        listener.close()


@attack(
    "C5",
    was="a handshake for whoever comes, as fast as they come: from 30 connections writes fall to three quarters",
    now="handshakes have a share of the time and wait for it; who is connected is served meanwhile, and an actor's "
    "handshake is paid by that actor",
)
def test_C5_handshakes_have_a_share_of_the_time(door, monkeypatch):
    monkeypatch.setattr(limits, "STRANGERS_DOOR_US_PER_SECOND", 200, raising=False)
    monkeypatch.setattr(limits, "STRANGERS_DOOR_US_MAX", 3000, raising=False)
    front = door()
    known = front.connect(shows=True)
    (identity,) = front.events(doors.OPENED, 1)
    front.admit(identity, True)
    for _ in range(4):  # with the one that was given back there are so many
        front.connect()
    front.events(doors.OPENED, 4)
    late = front.begin()
    known.sendall(headers_of(2) + b"{}")
    assert front.events(doors.JSON_RPC, 1) == [identity], "who is connected is served"
    assert not heard(late, 0.2), "the handshake waits"
    assert heard(late, 5), "and has its turn"


@attack(
    "C5",
    was="an actor who connects without end costs as much as strangers do, and pays nothing",
    now="what its budget does not cover comes out of the strangers' share, and its handshakes wait with theirs",
)
def test_C5_a_handshake_that_its_actor_cannot_pay_is_not_given_back(door, monkeypatch):
    monkeypatch.setattr(limits, "STRANGERS_DOOR_US_PER_SECOND", 200, raising=False)
    monkeypatch.setattr(limits, "STRANGERS_DOOR_US_MAX", 3000, raising=False)
    front = door()
    for _ in range(6):
        front.connect(shows=True)
        (identity,) = front.events(doors.OPENED, 1)
        front.admit(identity, True)
    for _ in range(4):
        front.connect(shows=True)
        (identity,) = front.events(doors.OPENED, 1)
        front.admit(identity, True, paid=False)
    assert not heard(front.begin(), 0.2), "the handshake waits"


@attack(
    "C5",
    was="a TLS record for each byte: what decrypting them takes, nobody pays, and others wait for it",
    now="what strangers send has a share of the time, by records and bytes; beyond it they wait, in turn, and nobody else",
)
def test_C5_small_records_have_a_share_of_the_time(door, monkeypatch):
    monkeypatch.setattr(limits, "STRANGERS_DOOR_US_PER_SECOND", 20, raising=False)
    monkeypatch.setattr(limits, "STRANGERS_DOOR_US_MAX", 2000, raising=False)
    front = door()
    known = front.connect(shows=True)
    (identity,) = front.events(doors.OPENED, 1)
    front.admit(identity, True)
    greedy, other = front.begin(hello=False), front.connect()
    front.events(doors.OPENED, 1)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = front.context().wrap_bio(incoming, outgoing)
    while True:
        try:
            tls.do_handshake()
            break
        except ssl.SSLWantReadError:
            greedy.sendall(outgoing.read())
            incoming.write(greedy.recv(65536))
    tls.write(b"GET / HTTP/1.1\r\nx: ")
    for _ in range(4000):
        tls.write(b"y")
    greedy.sendall(outgoing.read())
    front.events(doors.OPENED, 1)
    time.sleep(0.2)  # till some are read: 4,000 records are 8 ms, which are minutes of that share
    other.sendall(headers_of(2) + b"{}")
    known.sendall(headers_of(2) + b"{}")
    assert front.events(doors.JSON_RPC, 1) == [identity], "nobody who is known waits"
    assert not front.seen(doors.JSON_RPC, 0.3), "strangers wait together"


@attack(
    "C5",
    was="a handshake that sends a byte now and then never ends: its time began anew with each",
    now="its time counts from the connection's first byte",
)
def test_C5_a_handshake_in_crumbs_ends(door, monkeypatch):
    monkeypatch.setattr(limits, "HANDSHAKE_SECONDS_MAX", 1, raising=False)
    front = door()
    plain = front.begin(hello=False)
    plain.sendall(b"\x16\x03\x01\x3f\xff")
    deadline = time.monotonic() + 6
    with pytest.raises(OSError):
        while time.monotonic() < deadline:
            plain.sendall(b"\x01")
            time.sleep(0.2)


@attack(
    "C5",
    was="256 links of a stranger to the listener of peers, each with a certificate that it made itself, keep the nodes of "
    "the network out",
    now="strangers have half of the links, and the one that was quiet longest makes place; a node keeps its own",
)
def test_C5_links_of_strangers_leave_those_of_nodes(door, monkeypatch):
    monkeypatch.setattr(limits, "PEER_LINKS_MAX", 6)
    monkeypatch.setattr(limits, "PEER_STRANGERS_MAX", 3, raising=False)
    monkeypatch.setattr(limits, "PEER_HANDSHAKES_MAX", 2, raising=False)
    front = door("peer")
    node = front.connect(shows=True)
    (identity,) = front.events(doors.OPENED, 1)
    front.admit(identity, True)
    for _ in range(8):
        front.connect(shows=True)
        (stranger,) = front.events(doors.OPENED, 1)
        front.admit(stranger, False)
    assert len(front.closed) == 5 and identity not in front.closed, "they make place for each other"
    node.sendall(b"heard")
    assert front.events(doors.DATA, 1) == [identity]
