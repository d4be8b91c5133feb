"""Accounts of a protocol, bound to a participant by the account's own signature."""

from __future__ import annotations

import json
from typing import Any, Final

import msgspec

from coco import _native
from coco.configuration.actors import account_row
from coco.configuration.callers import Caller, CallerKind
from coco.enclave.node.parts import Parts
from coco.enclave.node.states import Life
from coco.enclave.transport.links import decode
from coco.errors import AccessError, BusyError, RequestError
from coco.ledger import tables
from coco.ledger.statements import binding_text, parse_json

#: A question to the primary.
BIND: Final = "bind"


class _Bind(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """An account to bind, for the primary: what the client showed, and its request."""

    certificate: bytes
    body: bytes


class Accounts:
    """Binds accounts, as the primary or through it."""

    def __init__(self, parts: Parts, life: Life) -> None:
        self._parts, self._life = parts, life

    async def answer(self, body: bytes) -> bytes:
        """Bind, for another node's client.

        Raises:
            BusyError: this node is not primary (``node.no_primary``).
        """
        if not self._parts.replica.may_execute:
            raise BusyError("this node is not primary", code="node.no_primary")
        asked = decode(_Bind, body)
        return tables.row(await self.bind(asked.body, self._parts.callers.caller(asked.certificate)))

    async def bind(self, body: bytes, caller: Caller) -> dict[str, Any]:
        """Record that an account belongs to the caller, proven by the account's signature."""
        if caller.kind is not CallerKind.PARTICIPANT:
            raise AccessError("only a participant can bind an account", code="access.not_a_participant")
        if not self._life.is_open:
            raise BusyError("the service is not open", code="node.not_open")
        parts = self._parts
        if not parts.replica.is_primary:
            asked = msgspec.msgpack.encode(_Bind(caller.certificate, body))
            bound: dict[str, Any] = json.loads(await parts.replica.ask_primary(BIND, asked))
            return bound
        try:
            document = parse_json(body)
            account = bytes.fromhex(str(document["account"]).removeprefix("0x"))
            signature = bytes.fromhex(str(document["signature"]).removeprefix("0x"))
            nonce = str(document["nonce"])
        except (ValueError, KeyError, TypeError) as error:
            raise RequestError("account, nonce and signature are needed", code="account.malformed") from error
        if len(account) != 20 or len(signature) != 65 or not 8 <= len(nonce) <= 128 or not nonce.isalnum():
            raise RequestError("account, nonce or signature has the wrong form", code="account.malformed")
        text = binding_text(parts.genesis.network, caller.actor, account, nonce).encode()
        digest = _native.keccak256(b"\x19Ethereum Signed Message:\n" + str(len(text)).encode() + text)
        if _native.recover_signer(digest, signature) != account:
            raise AccessError("the account did not sign this statement", code="account.bad_signature")
        row = tables.row({"nonce": nonce, "signature": signature.hex()})
        seqno = await parts.sequencer.write_rows([(tables.ACCOUNTS, account_row(caller.actor, account), row)])
        await parts.sequencer.committed(seqno)
        return {
            "account": "0x" + account.hex(),
            "actor": caller.actor,
            "transaction_id": str(parts.journal.position(seqno)),
        }
