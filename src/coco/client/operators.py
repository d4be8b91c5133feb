"""An operator's part: saying which processes are its nodes, so that a restart needs no other person."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from coco.crypto.cose import key_id
from coco.errors import ConfigurationError
from coco.ledger.statements import NODE_STATEMENT, RETIRE_STATEMENT, node_payload, retire_payload, sign_as_member

_STATEMENT_SECONDS = 24 * 3600

#: Signs for a node: id, measurement, address and host names in, COSE Sign1 out.
Owner = Callable[[str, str, str, Sequence[str]], bytes]


def _load(certificate: Path, key: Path, service: str) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate, str]:
    try:
        signer = serialization.load_pem_private_key(key.read_bytes(), None)
        shown = x509.load_pem_x509_certificate(certificate.read_bytes())
        service_key = x509.load_pem_x509_certificate(service.encode()).public_key()
    except (OSError, ValueError, TypeError) as error:
        raise ConfigurationError(f"cannot read the operator's key: {error}", code="operator.bad_key") from error
    if not isinstance(signer, ec.EllipticCurvePrivateKey) or not isinstance(service_key, ec.EllipticCurvePublicKey):
        raise ConfigurationError("an operator signs with a key on P-384", code="operator.bad_key")
    return signer, shown, key_id(service_key)


def owner(
    certificate: Path, key: Path, *, network: str, service: str, constitution: str = "", returns: str = ""
) -> Owner:
    """Sign, with an operator's key, for whatever node asks.

    Args:
        certificate: PEM of the operator's certificate, which the constitution lists with the addresses it may use.
        key: PEM of its key.
        network: name of the network.
        service: PEM of the service's certificate.
        constitution: text of the constitution.
        returns: id of the node that was told to leave the address; this one is to come back there.

    Raises:
        ConfigurationError: a file is no such thing (``operator.bad_key``).
    """
    signer, shown, name = _load(certificate, key, service)

    def sign(node_id: str, measurement: str, address: str, host_names: Sequence[str]) -> bytes:
        now_s = int(time.time())
        payload = node_payload(
            network=network,
            service=name,
            constitution=hashlib.sha256(constitution.encode()).hexdigest(),
            node_id=node_id,
            address=address,
            measurement=measurement,
            host_names=host_names,
            expires_s=now_s + _STATEMENT_SECONDS,
            returns=returns,
        )
        return sign_as_member(signer, shown, NODE_STATEMENT, payload, created_at_s=now_s)

    return sign


def retirement(certificate: Path, key: Path, *, network: str, service: str, node_id: str) -> bytes:
    """The statement with which an operator has a node leave; see :func:`owner`."""
    signer, shown, name = _load(certificate, key, service)
    now_s = int(time.time())
    payload = retire_payload(network=network, service=name, node_id=node_id, expires_s=now_s + _STATEMENT_SECONDS)
    return sign_as_member(signer, shown, RETIRE_STATEMENT, payload, created_at_s=now_s)


def nobody(node_id: str, measurement: str, address: str, host_names: Sequence[str]) -> bytes:
    """No operator: governance decides about the node."""
    return b""
