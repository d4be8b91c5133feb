"""Evidence in a certificate: the conceptual message wrapper of RFC 9999, extension id-pe-cmw, as a CBOR record.

A verifier has it when the handshake is done, before anything is sent. It is as old as the certificate; a fresh one,
for a nonce, is at ``/node/attestation``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

import cbor2
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from coco.attestation import policy as policies
from coco.attestation.evidence import Evidence, report_data
from coco.attestation.verified import Verified, refuse

OID: Final = x509.ObjectIdentifier("1.3.6.1.5.5.7.1.35")
#: Media type of the record, and its indicator: evidence.
TYPE, _EVIDENCE = "application/vnd.coco.evidence+json", 4
#: Larger evidence goes without its endorsements: some TLS stacks refuse large certificates.
_BYTES_MAX: Final = 16 * 1024
_OCTET_STRING, _LONG = 0x04, 0x80
_CONTEXT = ("encryption_key", "service", "constitution", "configuration")


def wrap(evidence: Evidence, context: Mapping[str, bytes]) -> bytes:
    """The extension's value.

    Args:
        evidence: of the certificate's holder.
        context: what its report data binds besides the key, by the names of
            :func:`~coco.attestation.evidence.report_data`.
    """
    said: dict[str, Any] = {"context": {name: value.hex() for name, value in context.items()}}
    body = json.dumps({**evidence.to_json(), **said}).encode()
    if len(body) > _BYTES_MAX:
        body = json.dumps({**evidence.to_json(), "endorsements": None, **said}).encode()
    return _octets(cbor2.dumps([TYPE, body, _EVIDENCE]))


def verify(certificate: x509.Certificate, policy: policies.Policy, *, now_s: int) -> Verified | None:
    """Verify the evidence in a certificate, for its key, by a policy.

    Args:
        certificate: which its holder has shown to have the key of.
        policy: which code on which platforms is good enough.
        now_s: the time, in seconds since the Unix epoch.

    Returns:
        What it proves; None when its endorsements are elsewhere, because they are too large.

    Raises:
        AttestationError: there is none (``attestation.no_evidence``), or it does not prove what it should.
    """
    evidence, context = _unwrap(certificate)
    if evidence is None:
        return None
    verified = evidence.verify(now_s=now_s)
    policies.enforce(verified, policy)
    spki = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    policies.check_report_data(verified, report_data(spki, **context))
    return verified


def same(one: bytes, other: bytes) -> bool:
    """Whether two values of the extension say the same; the names in a record have no order.

    Raises:
        AttestationError: one is no record (``attestation.malformed``).
    """
    return _record(one) == _record(other)


def _record(value: bytes) -> tuple[Any, Any, Any]:
    try:
        kind, body, indicator = cbor2.loads(_content(value))
        return kind, json.loads(body.decode()), indicator
    except (cbor2.CBORError, ValueError, TypeError, AttributeError, EOFError, RecursionError) as error:
        raise refuse("the evidence in the certificate is malformed", "malformed") from error


def _unwrap(certificate: x509.Certificate) -> tuple[Evidence | None, dict[str, bytes]]:
    try:
        value = certificate.extensions.get_extension_for_oid(OID).value
    except x509.ExtensionNotFound as error:
        raise refuse("the certificate has no evidence", "no_evidence") from error
    except (ValueError, x509.DuplicateExtension) as error:
        raise refuse("the certificate's extensions cannot be read", "malformed") from error
    assert isinstance(value, x509.UnrecognizedExtension), "the library knows no class for this one"
    try:
        kind, body, indicator = cbor2.loads(_content(value.value))
        document = json.loads(body.decode())
        context = {name: bytes.fromhex(document["context"][name]) for name in _CONTEXT if name in document["context"]}
    except (cbor2.CBORError, ValueError, KeyError, TypeError, AttributeError, EOFError, RecursionError) as error:
        raise refuse("the evidence in the certificate is malformed", "malformed") from error
    if kind != TYPE or not isinstance(indicator, int) or not indicator & _EVIDENCE:
        raise refuse("the certificate has another message than evidence", "malformed")
    if document.get("endorsements") is None:
        return None, context
    return Evidence.parse(document), context


def _octets(content: bytes) -> bytes:
    """DER OCTET STRING."""
    size = len(content)
    if size < _LONG:
        return bytes([_OCTET_STRING, size]) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([_OCTET_STRING, _LONG | len(length)]) + length + content


def _content(der: bytes) -> bytes:
    """What a DER OCTET STRING holds.

    Raises:
        ValueError: it is none.
    """
    at = 2
    size = der[1] if len(der) > 1 else 0
    if size & _LONG:
        at += size & ~_LONG
        size = int.from_bytes(der[2:at], "big")
    content = der[at : at + size]
    if der != _octets(content):
        raise ValueError("not an octet string")
    return content
