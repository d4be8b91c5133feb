"""Identities of protocols, bound to a participant by a proof that the adapter verifies."""

from __future__ import annotations

import json
from typing import Any, Final

import msgspec

from coco.configuration import identities
from coco.configuration.callers import Caller, CallerKind
from coco.enclave.node.parts import Parts
from coco.enclave.node.states import Life
from coco.enclave.transport.links import decode
from coco.errors import AccessError, BusyError, NotFoundError, RequestError
from coco.ledger import tables
from coco.ledger.statements import parse_json

#: A question to the primary.
BIND: Final = "bind"
_NONCE_MIN, _NONCE_MAX = 8, 128


class _Bind(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """An identity to bind, for the primary: what the client showed, and its request."""

    certificate: bytes
    body: bytes


class Bindings:
    """Binds identities, as the primary or through it."""

    def __init__(self, parts: Parts, life: Life) -> None:
        self._parts, self._life = parts, life

    def statement(self, adapter: str, identity: bytes, nonce: str, caller: Caller) -> str:
        """The text that has to be proven (:meth:`LedgerAdapter.verify_binding`).

        Raises:
            NotFoundError: no such adapter runs here (``adapter.unknown``).
        """
        runtime = self._parts.registry.find(adapter)
        if runtime is None:
            raise NotFoundError(f"no adapter {adapter[:64]} runs here", code="adapter.unknown")
        return runtime.adapter.binding_text(self._parts.genesis.network, caller.actor, identity, nonce)

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
        """Record that an identity belongs to the caller.

        Args:
            body: JSON of ``adapter``, ``identity``, ``proof`` and ``nonce``; or, of Ethereum, of ``account``,
                ``signature`` and ``nonce``.
            caller: whose it is to be.

        Raises:
            CocoError: the caller is no participant, the request is malformed, or the adapter does not accept the proof.
        """
        if caller.kind is not CallerKind.PARTICIPANT:
            raise AccessError("only a participant can bind an account", code="access.not_a_participant")
        if not self._life.is_open:
            raise BusyError("the service is not open", code="node.not_open")
        parts = self._parts
        if not parts.replica.is_primary:
            asked = msgspec.msgpack.encode(_Bind(caller.certificate, body))
            bound: dict[str, Any] = json.loads(await parts.replica.ask_primary(BIND, asked))
            return bound
        adapter, identity, proof, nonce = _parse(body)
        text = self.statement(adapter, identity, nonce, caller)
        runtime = parts.registry.find(adapter)
        assert runtime is not None, "there is a statement only of those that run"
        runtime.adapter.verify_binding(identity, text.encode(), proof)
        table, key = identities.place(caller.actor, adapter, identity)
        row = tables.row({"nonce": nonce, "signature": proof.hex()})
        seqno = await parts.sequencer.write_rows([(table, key, row)])
        await parts.sequencer.committed(seqno)
        named = "account" if adapter == identities.ACCOUNTS_OF else "identity"
        return {
            named: "0x" + identity.hex(),
            "adapter": adapter,
            "actor": caller.actor,
            "transaction_id": str(parts.journal.position(seqno)),
        }


def _parse(body: bytes) -> tuple[str, bytes, bytes, str]:
    try:
        document = parse_json(body)
        of_accounts = "account" in document
        adapter = identities.ACCOUNTS_OF if of_accounts else str(document["adapter"])
        identity, proof = (
            bytes.fromhex(str(document[name]).removeprefix("0x"))
            for name in (("account", "signature") if of_accounts else ("identity", "proof"))
        )
        nonce = str(document["nonce"])
    except (ValueError, KeyError, TypeError) as error:
        raise RequestError("account, nonce and signature are needed", code="account.malformed") from error
    if not _NONCE_MIN <= len(nonce) <= _NONCE_MAX or not nonce.isalnum():
        raise RequestError("the nonce has the wrong form", code="account.malformed")
    return adapter, identity, proof, nonce
