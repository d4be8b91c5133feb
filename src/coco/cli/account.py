"""``coco account bind``: prove to the network that an account belongs to a participant."""

from __future__ import annotations

import json
import secrets
from typing import Any

from coco.client.http import HttpsClient
from coco.ledger.statements import binding_text


async def statement(client: HttpsClient, account: str, nonce: str = "") -> dict[str, Any]:
    """The text that the account has to sign (EIP-191, as wallets do with ``personal_sign``)."""
    who = (await client.request("GET", "/coco/caller")).json()
    chosen = nonce or secrets.token_hex(16)
    text = binding_text(who["network"], who["actor"], bytes.fromhex(account.removeprefix("0x")), chosen)
    return {"text": text, "nonce": chosen, "actor": who["actor"]}


async def bind(client: HttpsClient, account: str, nonce: str, signature: str) -> dict[str, Any]:
    """Send the signed statement."""
    body = json.dumps({"account": account, "nonce": nonce, "signature": signature}).encode()
    answer: dict[str, Any] = (await client.request("POST", "/coco/accounts/bind", body)).json()
    return answer
