"""A member's part in governance: propose, vote, withdraw, acknowledge; and what anyone may read of it."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

from coco.client.http import HttpsClient, RemoteError
from coco.client.pin import service_key
from coco.client.signer import Signer
from coco.crypto import cose
from coco.errors import AttestationError, ConfigurationError, HostError, RequestError
from coco.ledger.statements import IDENTITY_STATEMENT, MESSAGE_TYPE, PROPOSAL_ID

API_VERSION = "2024-07-01"
_PROPOSALS = "/gov/members/proposals"
#: Refusals that are worth the same request again; it is safe, for a request counts once.
_AGAIN = (
    *("node.no_primary", "node.not_open", "peers.unreachable", "consensus.rolled_back", "consensus.not_primary"),
    "gov.node_leaving",
)
_PATIENCE_S, _PAUSE_S = 15.0, 0.5
#: Pages of a list that are read: a node that names ever another one is not followed for ever.
_PAGES_MAX = 1000


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
        """The JSON of a route below ``/gov``; of a list, all of its pages."""
        found = (await self._client.request("GET", f"/gov{path}?api-version={API_VERSION}")).json()
        following = found.pop("nextLink", None) if isinstance(found, dict) else None
        for _ in range(_PAGES_MAX):
            if following is None:
                break
            page = (await self._client.request("GET", following)).json()
            found["value"] += page["value"]
            following = page.get("nextLink")
        return found

    async def propose(self, signer: Signer, proposal: dict[str, Any]) -> Any:
        """Make a proposal; the state that it is in then."""
        return await self.send(signer.sign("proposal", proposal))

    async def vote(self, signer: Signer, proposal: str, vote: bool) -> Any:
        """Cast a ballot."""
        return await self.send(signer.sign("ballot", {"vote": vote}, proposal))

    async def withdraw(self, signer: Signer, proposal: str) -> Any:
        """Take a proposal of one's own back."""
        return await self.send(signer.sign("withdrawal", {}, proposal))

    async def acknowledge(self, signer: Signer) -> Any:
        """Acknowledge the state, after which the member governs; the digest."""
        digest = await self.send(signer.sign("state_digest", {}))
        await self.send(signer.sign("ack", {"state_digest": digest["stateDigest"]}))
        return digest

    async def state(self, signer: Signer, known: str) -> Any:
        """State that the announced identity of the service continues the one that the member knows (J9).

        Args:
            signer: with the member's own key: clients know no other.
            known: PEM of the service that the member knows.

        Returns:
            What is announced, with the members that have stated it; nothing is signed when nothing is announced.

        Raises:
            AttestationError: the service that it continues is another one (``client.other_service``).
        """
        found = await self.get("/service/succession")
        if found["status"] != "Announced":
            return found
        statement = found["statement"]
        if statement["previous_service"] != service_key(known).hex():
            raise AttestationError("another service has a new identity", code="client.other_service")
        if statement["next_service"] != service_key(found["next"]).hex():
            raise AttestationError("the new identity has another key than it should", code="client.other_service")
        if signer.organisation:
            raise ConfigurationError("this needs the member's own key", code="member.own_key_needed")
        await self.send(signer.sign(IDENTITY_STATEMENT, statement))
        return {**found, "members": sorted({*found["members"], signer.member})}

    async def send(self, message: bytes) -> Any:
        """Send a message that was signed before, perhaps elsewhere, to where its headers say that it belongs.

        Raises:
            RequestError: it says nothing of the kind (``gov.wrong_message_type``).
        """
        headers = cose.parse(message).headers
        member = headers.get(cose.KEY_ID, b"")
        name = member.decode("ascii", "replace") if isinstance(member, bytes) else ""
        proposal = headers.get(PROPOSAL_ID, "")
        paths = {
            "proposal": f"{_PROPOSALS}:create",
            "ballot": f"{_PROPOSALS}/{proposal}/ballots/{name}:submit",
            "withdrawal": f"{_PROPOSALS}/{proposal}:withdraw",
            "state_digest": f"/gov/members/state-digests/{name}:update",
            "ack": f"/gov/members/state-digests/{name}:ack",
            IDENTITY_STATEMENT: "/gov/service/succession/statements",
        }
        path = paths.get(str(headers.get(MESSAGE_TYPE)))
        if path is None:
            raise RequestError("no node takes a message of this type", code="gov.wrong_message_type")
        return await self._post(path, message)

    async def rehearse(self, proposal: dict[str, Any]) -> Any:
        """What a proposal would change."""
        return await self._post(f"{_PROPOSALS}:rehearse", json.dumps(proposal).encode(), "application/json")

    async def constitution(self) -> str:
        """The rules in force."""
        reply = await self._client.request("GET", f"/gov/service/constitution?api-version={API_VERSION}")
        if reply.status != 200:
            reply.json()
        return reply.body.decode()
