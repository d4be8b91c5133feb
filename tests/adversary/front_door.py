"""A front door of the test's own process, so that its limits and its owner are the test's."""

from __future__ import annotations

import contextlib
import datetime
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from coco.enclave.transport import listener as doors


def headers_of(count):
    """The head of a request whose body has so many bytes."""
    return b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % count


class Door:
    """A front door of this process, on a local socket, whose owner answers what the test says."""

    def __init__(self, directory, protocol="json_rpc"):
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "x")])
        key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
        made = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + datetime.timedelta(1))
        certificate = made.sign(key, hashes.SHA256())
        self.path, self.pem = str(directory / "door"), directory / "client.pem"
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        self.pem.write_bytes(pem + certificate.public_bytes(Encoding.PEM))
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(self.path)
        listener.listen(64)
        self.front = doors.open_door(listener, protocol=protocol)
        der = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
        self.front.start([certificate.public_bytes(Encoding.DER)], der, True)
        self.closed, self.held = [], []

    def stop(self):
        self.front.stop()
        for one in self.held:
            one.close()

    def context(self, *, shows=False):
        """The client's side, with a certificate or without one."""
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
        if shows:
            tls.load_cert_chain(self.pem)
        return tls

    def begin(self, *, hello=True):
        """A connection that has sent the beginning of a handshake, or nothing."""
        plain = socket.socket(socket.AF_UNIX)
        plain.settimeout(10)
        plain.connect(self.path)
        self.held.append(plain)
        if hello:
            outgoing = ssl.MemoryBIO()
            with contextlib.suppress(ssl.SSLWantReadError):
                self.context().wrap_bio(ssl.MemoryBIO(), outgoing).do_handshake()
            plain.sendall(outgoing.read())
        return plain

    def connect(self, *, shows=False):
        """A connection whose handshake is done."""
        made = self.context(shows=shows).wrap_socket(self.begin(hello=False))
        self.held.append(made)
        return made

    def events(self, kind, count):
        """The connections of so many events of a kind; those that are closed meanwhile are noted."""
        found: list[Any] = []
        deadline = time.monotonic() + 10
        while len(found) < count and time.monotonic() < deadline:
            for event in self.front.take():
                self.closed += [event[1]] * (event[0] == doors.CLOSED)
                found += [event[1]] * (event[0] == kind)
            time.sleep(0.01)
        assert len(found) == count, (kind, found)
        return found

    def seen(self, kind, seconds):
        """Whether an event of a kind comes within a time."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if any(event[0] == kind for event in self.front.take()):
                return True
            time.sleep(0.01)
        return False

    def admit(self, connection, known, paid=True):
        if hasattr(self.front, "admit"):  # the former one read on at once
            self.front.admit(connection, known, paid)
            self.front.flush()


@contextlib.contextmanager
def making(directory: Path) -> Iterator[Callable[..., Door]]:
    """What makes doors, which end with it."""
    made: list[Door] = []

    def make(protocol: str = "json_rpc") -> Door:
        made.append(Door(directory, protocol))
        return made[-1]

    yield make
    for door in made:
        door.stop()
