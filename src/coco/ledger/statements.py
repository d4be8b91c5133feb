"""What members and accounts sign, word for word: both sides of each statement use this file."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from hashlib import sha256
from typing import Any, Final, Protocol

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding
from cryptography.hazmat.primitives.serialization import Encoding

from coco.crypto import cose
from coco.errors import RequestError

MESSAGE_TYPE: Final = "ccf.gov.msg.type"
CREATED_AT: Final = "ccf.gov.msg.created_at"
PROPOSAL_ID: Final = "ccf.gov.msg.proposal_id"
IDENTITY_STATEMENT: Final = "coco.identity_statement"
NODE_STATEMENT: Final = "coco.node_statement"
RETIRE_STATEMENT: Final = "coco.retire_statement"
RECOVERY_SHARE: Final = "recovery_share"

#: Encryption of recovery shares: RSA-OAEP with SHA-256, as the format's tools expect.
SHARE_PADDING: Final = padding.OAEP(mgf=padding.MGF1(hashes.SHA256()), algorithm=hashes.SHA256(), label=None)


def parse_json(data: bytes) -> Any:
    """JSON that somebody sent: in UTF-8 and nothing else, for an enclave has no other codec, and not nested for ever.

    Half a surrogate pair is no text: ``"\\ud800"`` could be written nowhere afterwards (RFC 8259, 8.2).

    Raises:
        ValueError: it is none.
    """
    try:
        text = data.decode()
        document = json.loads(text)
        if "\\u" in text:
            json.dumps(document, ensure_ascii=False).encode()
        return document
    except UnicodeEncodeError as error:
        raise ValueError("a text has half a surrogate pair") from error
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def fingerprint(certificate: x509.Certificate) -> str:
    """Hex SHA-256 of the DER: the id of a member or participant."""
    return sha256(certificate.public_bytes(Encoding.DER)).hexdigest()


def spki_of(certificate: str) -> bytes:
    """DER SubjectPublicKeyInfo of a service's certificate (PEM).

    Raises:
        ValueError: it is none, or has another kind of key.
    """
    try:
        key = x509.load_pem_x509_certificate(certificate.encode()).public_key()
    except (UnsupportedAlgorithm, x509.InvalidVersion) as error:
        raise ValueError(f"{error}") from error
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise ValueError("a service has an elliptic-curve key")
    return cose.spki(key)


def identity_payload(
    previous: bytes, following: bytes, position: str, root: str, *, goes_on: bool = False
) -> dict[str, Any]:
    """What members sign: that one service identity continues another, from this place of the ledger on (J7).

    Args:
        previous: DER SubjectPublicKeyInfo of the former service.
        following: the same of the new one.
        position: transaction id of the last signature of the former life; or of the entry before the announcement.
        root: hex Merkle root up to there.
        goes_on: the ledger ends nowhere: whatever was committed stays so, under its id (J9).
    """
    stated: dict[str, Any] = {
        "previous_service": previous.hex(),
        "next_service": following.hex(),
        "transaction_id": position,
        "root": root,
    }
    return {**stated, "goes_on": True} if goes_on else stated


def sign_as_member(
    key: cose.SigningKey,
    certificate: x509.Certificate,
    kind: str,
    payload: Any,
    *,
    created_at_s: int,
    proposal_id: str = "",
    organisation: str = "",
    between: Sequence[x509.Certificate] = (),
) -> bytes:
    """A member's COSE message.

    Args:
        key: signs.
        certificate: of the key.
        kind: type of the message.
        payload: JSON.
        created_at_s: the time.
        proposal_id: of what is about a proposal.
        organisation: the member that stands behind the certificate, which is then shown: nobody knows it.
        between: certificates between the two, from the one that issued this one on.
    """
    body = json.dumps(payload, sort_keys=True).encode()
    headers: dict[Any, Any] = {
        cose.KEY_ID: (organisation or fingerprint(certificate)).encode(),
        MESSAGE_TYPE: kind,
        CREATED_AT: created_at_s,
    }
    if proposal_id:
        headers[PROPOSAL_ID] = proposal_id
    if organisation:
        chain = [one.public_bytes(Encoding.DER) for one in (certificate, *between)]
        headers[cose.X5_CHAIN] = chain if between else chain[0]
    protected, signature = cose.sign(key, headers, body)
    return cose.encode(protected, signature, body)


def share_payload(share: bytes) -> dict[str, str]:
    """What a member sends to recover."""
    return {"share": base64.b64encode(share).decode()}


class DecryptingKey(Protocol):
    """A private RSA key: in this process, or in a token that decrypts for it."""

    def decrypt(self, ciphertext: bytes, padding: padding.OAEP) -> bytes:
        """What was encrypted to it; ValueError if nothing was."""


def decrypt_share(encrypted: bytes, key: DecryptingKey) -> bytes:
    """A member's share, on the member's side.

    Raises:
        RequestError: it is not encrypted to this key (``recovery.share_not_ours``).
    """
    try:
        return key.decrypt(encrypted, SHARE_PADDING)
    except ValueError as error:
        raise RequestError("the share is not encrypted to this key", code="recovery.share_not_ours") from error


def binding_text(network: str, actor: str, account: bytes, nonce: str) -> str:
    """What an account signs (EIP-191) to say that it belongs to an actor."""
    return f"Coco account binding\nnetwork: {network}\nactor: {actor}\naccount: 0x{account.hex()}\nnonce: {nonce}\n"


def identity_text(network: str, actor: str, adapter: str, identity: bytes, nonce: str) -> str:
    """What an identity of a protocol signs to say that it belongs to an actor."""
    named = f"network: {network}\nactor: {actor}\nadapter: {adapter}\nidentity: 0x{identity.hex()}"
    return f"Coco identity binding\n{named}\nnonce: {nonce}\n"


def node_payload(
    *,
    network: str,
    service: str,
    constitution: str,
    node_id: str,
    address: str,
    measurement: str,
    host_names: Sequence[str],
    expires_s: int,
    returns: str = "",
) -> dict[str, Any]:
    """What an owner signs: that this process at this address, under these names, is its node (J2, J9).

    ``returns`` names the node that was told to leave this address, if this one is to be there all the same.
    """
    more = {"returns": returns} if returns else {}
    return {
        **more,
        "network": network,
        "service": service,
        "constitution": constitution,
        "node_id": node_id,
        "address": address,
        "measurement": measurement,
        "host_names": list(host_names),
        "expires_s": expires_s,
    }


def retire_payload(*, network: str, service: str, node_id: str, expires_s: int) -> dict[str, Any]:
    """What an operator signs to have a node of its addresses leave the network."""
    return {"network": network, "service": service, "node_id": node_id, "expires_s": expires_s}
