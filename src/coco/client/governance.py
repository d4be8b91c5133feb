"""A member's part in governance: propose, vote, withdraw, acknowledge; and what anyone may read of it."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from coco.client.http import HttpsClient, RemoteError
from coco.errors import ConfigurationError, HostError
from coco.ledger.statements import fingerprint, sign_as_member

API_VERSION = "2024-07-01"
_PROPOSALS = "/gov/members/proposals"
#: Refusals that are worth the same request again; it is safe, for a request counts once.
_AGAIN = (
    *("node.no_primary", "node.not_open", "peers.unreachable", "consensus.rolled_back", "consensus.not_primary"),
    "gov.node_leaving",
)
_PATIENCE_S, _PAUSE_S = 15.0, 0.5


@dataclass(frozen=True)
class Signer:
    """A member's certificate and key, from files."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def load(cls, certificate: Path, key: Path) -> Signer:
        """Read PEM files.

        Raises:
            ConfigurationError: a file holds something else (``client.bad_key_file``).
        """
        try:
            signing = serialization.load_pem_private_key(key.read_bytes(), None)
            loaded = x509.load_pem_x509_certificate(certificate.read_bytes())
        except (OSError, ValueError, TypeError) as error:
            raise ConfigurationError(f"{error}", code="client.bad_key_file") from error
        if not isinstance(signing, ec.EllipticCurvePrivateKey):
            raise ConfigurationError("a member signs with P-384", code="client.bad_key_file")
        return cls(loaded, signing)

    @property
    def member(self) -> str:
        """The member's id."""
        return fingerprint(self.certificate)

    def sign(self, kind: str, payload: Any, proposal: str = "") -> bytes:
        """A COSE message."""
        now = int(time.time())
        return sign_as_member(self.key, self.certificate, kind, payload, created_at_s=now, proposal_id=proposal)


class Governance:
    """The routes of governance of one node.

    Args:
        client: its administration listener.
    """

    def __init__(self, client: HttpsClient) -> None:
        self._client = client

    async def _post(self, path: str, message: bytes, content_type: str = "application/cose") -> Any:
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            try:
                reply = await self._client.request(
                    "POST", f"{path}?api-version={API_VERSION}", message, content_type=content_type
                )
                if reply.status == 204:
                    return {}
                return reply.json()
            except (RemoteError, HostError) as error:
                if error.code not in (*_AGAIN, "client.unreachable") or time.monotonic() > deadline:
                    raise
            await asyncio.sleep(_PAUSE_S)

    async def get(self, path: str) -> Any:
        """The JSON of a route below ``/gov``."""
        return (await self._client.request("GET", f"/gov{path}?api-version={API_VERSION}")).json()

    async def propose(self, signer: Signer, proposal: dict[str, Any]) -> Any:
        """Make a proposal; the state that it is in then."""
        return await self._post(f"{_PROPOSALS}:create", signer.sign("proposal", proposal))

    async def vote(self, signer: Signer, proposal: str, vote: bool) -> Any:
        """Cast a ballot."""
        path = f"{_PROPOSALS}/{proposal}/ballots/{signer.member}:submit"
        return await self._post(path, signer.sign("ballot", {"vote": vote}, proposal))

    async def withdraw(self, signer: Signer, proposal: str) -> Any:
        """Take a proposal of one's own back."""
        return await self._post(f"{_PROPOSALS}/{proposal}:withdraw", signer.sign("withdrawal", {}, proposal))

    async def acknowledge(self, signer: Signer) -> Any:
        """Acknowledge the state, after which the member governs; the digest."""
        path = f"/gov/members/state-digests/{signer.member}"
        digest = await self._post(f"{path}:update", signer.sign("state_digest", {}))
        await self._post(f"{path}:ack", signer.sign("ack", {"state_digest": digest["stateDigest"]}))
        return digest

    async def rehearse(self, proposal: dict[str, Any]) -> Any:
        """What a proposal would change."""
        return await self._post(f"{_PROPOSALS}:rehearse", json.dumps(proposal).encode(), "application/json")

    async def constitution(self) -> str:
        """The rules in force."""
        reply = await self._client.request("GET", f"/gov/service/constitution?api-version={API_VERSION}")
        if reply.status != 200:
            reply.json()
        return reply.body.decode()
