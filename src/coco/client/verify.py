"""Verify a node before a byte of application data is sent: evidence, node key, service identity, position."""

from __future__ import annotations

import secrets
import ssl
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from coco.attestation import evidence, wrapper
from coco.attestation import policy as policies
from coco.attestation.certificates import load_der
from coco.attestation.policy import Policy
from coco.attestation.verified import Verified
from coco.client.http import HttpsClient
from coco.client.pin import Pin
from coco.crypto import cose
from coco.errors import AttestationError, ConfigurationError, HostError


@dataclass(frozen=True)
class VerifiedNode:
    """What was verified."""

    platform: str
    measurement: str
    service: str
    network: dict[str, Any]
    #: Everything that its evidence proves.
    evidence: Verified


def unverified_context() -> ssl.SSLContext:
    """TLS without a trust anchor: only for fetching the evidence that is then verified against the very key."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def service_context(service: str, certificate: str = "", key: str = "") -> ssl.SSLContext:
    """TLS that trusts one service and shows a client certificate, given as file paths.

    Raises:
        ConfigurationError: one of them is no such thing (``client.bad_certificate``, ``client.bad_key_file``).
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_verify_locations(cadata=service)
    except (ssl.SSLError, ValueError) as error:
        raise ConfigurationError(
            "the service's certificate is none",
            code="client.bad_certificate",
            hint="it is the PEM file that a node writes as service.pem, or that an operator gave you",
        ) from error
    if certificate:
        try:
            context.load_cert_chain(certificate, key or None)
        except (OSError, ValueError) as error:
            raise ConfigurationError(
                f"{certificate} and {key or 'no key'} are no certificate and its key: {error}",
                code="client.bad_key_file",
                hint="both are PEM; without --key, the file of the certificate holds the key too",
            ) from error
    return context


def _public_key(certificate: x509.Certificate) -> ec.EllipticCurvePublicKey:
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise AttestationError("a certificate has no elliptic-curve key", code="attestation.malformed")
    return key


def certificate_check(policy: Policy) -> Callable[[bytes], None]:
    """Refuses a node whose certificate (DER) has no evidence that a policy accepts; for :class:`HttpsClient`."""

    def check(der: bytes) -> None:
        wrapper.verify(load_der(der), policy, now_s=int(time.time()))

    return check


async def verify_node(
    host: str,
    port: int,
    pin: Pin | None,
    *,
    accept_insecure_virtual: bool = False,
    policy: Policy | None = None,
) -> VerifiedNode:
    """Verify the node whose administration listener is at ``host:port``; ``pin`` follows the members' statements.

    Args:
        host: its name.
        port: its port.
        pin: the service that the client knows; None: whichever it shows.
        accept_insecure_virtual: whether platform virtual is good enough, with any code.
        policy: which code on which platforms is good enough; instead of ``accept_insecure_virtual``.

    Raises:
        AttestationError: the evidence, the key, the service or the position is not what it must be.
    """
    accepted = policy or Policy(insecure_virtual=accept_insecure_virtual)
    client = HttpsClient(host, port, unverified_context(), check=certificate_check(accepted))
    try:
        shown = x509.load_der_x509_certificate(await client.peer_certificate())
        nonce = secrets.token_bytes(32)
        document = (await client.request("GET", f"/node/attestation?nonce={nonce.hex()}")).json()
        service = x509.load_pem_x509_certificate(document["service_certificate"].encode())
        found = evidence.Evidence.parse(document).verify(now_s=int(time.time()))
        policies.enforce(found, accepted)
        policies.check_report_data(
            found,
            evidence.report_data(
                cose.spki(_public_key(shown)),
                nonce=nonce,
                service=cose.spki(_public_key(service)),
                constitution=bytes.fromhex(document["constitution_hash"]),
                configuration=bytes.fromhex(document["configuration_hash"]),
            ),
        )
        try:
            _public_key(service).verify(shown.signature, shown.tbs_certificate_bytes, ec.ECDSA(hashes.SHA384()))
        except InvalidSignature as error:
            raise AttestationError("the service did not endorse this node", code="attestation.not_endorsed") from error
        network = (await client.request("GET", "/node/network")).json()
        pem = service.public_bytes(Encoding.PEM).decode()
        if pin is not None:
            await _check_pin(client, pin, pem)
        return VerifiedNode(found.platform, found.measurement, pem, network, found)
    except (KeyError, ValueError, TypeError) as error:
        raise AttestationError("the node's answer is malformed", code="attestation.malformed") from error
    finally:
        await client.close()


async def follow(nodes: Sequence[tuple[str, int]], pin: Pin, *, policy: Policy) -> bool:
    """Whether members say that the service goes on under another identity, which is pinned then.

    Args:
        nodes: administration listeners, asked in order until one answers.
        pin: what is known of the service.
        policy: which code on which platforms is good enough.

    Raises:
        AttestationError: a node runs another service, that members do not name.
    """
    before = pin.service
    for host, port in nodes:
        try:
            await verify_node(host, port, pin, policy=policy)
        except HostError:
            continue
        break
    return pin.service != before


async def _check_pin(client: HttpsClient, pin: Pin, service: str) -> None:
    identities = (await client.request("GET", "/node/service/identities")).json()
    if not pin.follow(service, identities["statements"]) and pin.position != "0.0":
        answer = (await client.request("GET", f"/node/tx?id={pin.position}")).json()
        if answer["status"] != "Committed":
            raise AttestationError(
                f"{pin.position} was seen committed, the node says {answer['status']}",
                code="client.rolled_back",
                hint="the ledger was cut or rolled back: do not use this node",
            )
