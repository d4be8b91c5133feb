"""What a node says of itself, of its network and of the ledger."""

from __future__ import annotations

from typing import Any, Final

from coco.configuration.callers import Caller
from coco.configuration.succession import since
from coco.crypto import cose
from coco.crypto.certificates import pem
from coco.enclave.keys import adapter_keys
from coco.enclave.network.membership import RETIRE
from coco.enclave.node.parts import Parts, public_key
from coco.enclave.node.states import Life
from coco.enclave.node.watch import stages
from coco.enclave.ordering import claimed
from coco.errors import BusyError, LedgerError, NotFoundError
from coco.ledger import tables
from coco.ledger.receipts import Receipt
from coco.ledger.signature import verify_root
from coco.ledger.transaction_id import TransactionId

_INSECURE: Final = "INSECURE: virtual. No trusted execution environment protects this node."


class Answers:
    """The answers of one node."""

    def __init__(self, parts: Parts, life: Life) -> None:
        self._parts, self._life = parts, life

    @property
    def status(self) -> str:
        """Of the service, as this node knows it."""
        return self._life.state

    @property
    def is_ready(self) -> bool:
        """Whether the service is open and somebody leads, as far as this node knows."""
        return self._life.is_open and self._parts.replica.primary != 0

    @property
    def network_name(self) -> str:
        """Name in the genesis."""
        return self._parts.genesis.network

    # --- ledger ---

    def committed_position(self) -> TransactionId:
        """Id of the last committed entry."""
        return self._parts.committed_position()

    def transaction_status(self, position: TransactionId) -> str:
        """Unknown, Pending, Committed or Invalid."""
        journal = self._parts.journal
        if position.seqno == 0 or position.seqno > journal.last_seqno:
            return "Invalid" if position.view < journal.view else "Unknown"
        if journal.position(position.seqno) != position:
            return "Invalid"
        return "Committed" if position.seqno <= self._parts.replica.committed else "Pending"

    async def transaction_fate(self, adapter: str, identity: bytes, caller: Caller) -> dict[str, Any]:
        """What became of a submitted transaction, as far as this node knows, and as the caller may know.

        ``status`` is Unknown, Pending, Committed (with its ``transaction_id``) or Dropped (with the ``reason``).

        Raises:
            NotFoundError: no such adapter runs here (``adapter.unknown``).
        """
        parts, submissions = self._parts, self._parts.forwarding
        runtime = next((runtime for runtime in parts.sequencer.runtimes if runtime.name == adapter), None)
        if runtime is None:
            raise NotFoundError(f"no adapter {adapter[:64]} runs here", code="adapter.unknown")
        if not await runtime.adapter.may_learn_fate(identity, caller, parts.store.view()):
            # What was dropped is nowhere any more: its reason is for whoever handed it in.
            reason = submissions.why_dropped(runtime, identity, caller.actor)
            return {"status": "Dropped", "reason": reason} if reason else {"status": "Unknown"}
        seqno = runtime.included.get(identity)
        table = runtime.adapter.manifest().transactions
        if seqno is None and table:
            seqno = await parts.store.view().locate(table, identity)
        if seqno is not None and seqno <= parts.replica.committed:
            return {"status": "Committed", "transaction_id": str(parts.journal.position(seqno))}
        if seqno is not None or submissions.pooled(runtime, identity) is not None:
            return {"status": "Pending"}
        reason = submissions.why_dropped(runtime, identity)
        return {"status": "Dropped", "reason": reason} if reason else {"status": "Unknown"}

    async def receipt(self, position: TransactionId) -> Receipt:
        """Receipt of a committed transaction.

        Raises:
            NotFoundError: not committed here.
        """
        if self.transaction_status(position) != "Committed":
            raise NotFoundError(f"{position} is not committed here", code="ledger.no_receipt")
        parts, committed = self._parts, self._parts.replica.committed
        info = parts.store.view(committed).get(tables.SERVICE_INFO, tables.SINGLETON)
        return await parts.journal.receipt(position.seqno, committed, since(info))

    async def proof(self, adapter: str, identity: bytes, caller: Caller) -> dict[str, Any]:
        """Receipt of one transaction with its outcome, for a caller who may see it.

        Raises:
            NotFoundError: there is none, or none for this caller (``ledger.no_receipt``).
            AccessError: the caller may see the transaction, but not what its proof tells besides.
        """
        parts, view = self._parts, self._parts.committed_view()
        runtime = next((runtime for runtime in parts.sequencer.runtimes if runtime.name == adapter), None)
        proof = None
        if runtime is not None and view is not None:
            proof = await runtime.adapter.prove(identity, caller, view)
        if proof is None:
            raise NotFoundError("there is no such transaction", code="ledger.no_receipt")
        seqno, proven = proof
        assert runtime is not None and view is not None, "who else has given it"
        if runtime.parts_of is None and (combined := await claimed.combined(view, seqno)) is not None:
            proven = {**combined.within(runtime.name), **proven}
        return {**await self.whole_receipt(parts.journal.position(seqno)), "transaction": proven}

    async def whole_receipt(self, position: TransactionId) -> dict[str, Any]:
        """A receipt under the service's key of today, with what ties that to the former ones."""
        receipt, today = await self.receipt(position), self._parts.service.key.public_key()
        signature = receipt.signature
        try:
            verify_root(signature, root=signature.root, position=signature.position, service_key=today)
        except LedgerError:
            # Signed in a former life of the service: what is signed today covers it as well.
            committed = self._parts.replica.committed
            receipt = await self._parts.journal.receipt(position.seqno, committed, committed - 1)
        return {"format": "coco receipt v2", "receipt": receipt.to_json(), **self.identities()}

    def identities(self) -> dict[str, Any]:
        """Members' statements that tie former service identities to this one, oldest first."""
        statements = [
            {"recovery": int.from_bytes(key[:8], "big"), "member": key[8:].decode(), "statement": body.hex()}
            for key, body in self._parts.store.view().scan(tables.IDENTITY_STATEMENTS)
        ]
        return {"service_certificate": pem(self._parts.service.certificate), "statements": statements}

    def keys(self) -> dict[str, Any]:
        """Keys that adapters sign with, by ``adapter/key``: algorithm and certificates, the newest first."""
        view = self._parts.committed_view()
        return {"keys": adapter_keys.shown(view) if view is not None else {}}

    # --- this node and its network ---

    async def attest(self, nonce: bytes) -> dict[str, Any]:
        """Evidence for this nonce, with what a verifier needs to recompute its report data.

        Raises:
            CocoError: the platform gives none (``platform.no_evidence``), or too many ask (``platform.busy``).
        """
        parts, ground = self._parts, self._parts.ground
        bound = {
            "service": parts.service.spki,
            "constitution": parts.constitution_hash(),
            "configuration": ground.configuration_hash,
        }
        shown = {
            "node_certificate": pem(parts.identity.certificate),
            "service_certificate": pem(parts.service.certificate),
            "constitution_hash": bound["constitution"].hex(),
            "configuration_hash": bound["configuration"].hex(),
        }
        key = cose.spki(public_key(parts.identity.certificate))
        evidence = await ground.evidence.evidence(key, {"nonce": nonce, **bound})
        insecure = {"insecure": "platform virtual proves nothing"} if ground.evidence.is_virtual else {}
        return {**evidence.to_json(), **insecure, **shown}

    def network(self) -> dict[str, Any]:
        """The network as everyone may see it."""
        parts, members = self._parts, self._parts.replica.members
        nodes = {
            row.node_id: {
                "status": row.status,
                "primary": row.engine == parts.replica.primary,
                "votes": row.engine in members.voters,
                "engine": row.engine,
                "address": row.address,
            }
            for row in parts.membership.rows().values()
        }
        return {
            "network": self.network_name,
            "status": self._life.state,
            "service_certificate": pem(parts.service.certificate),
            "committed": str(self.committed_position()),
            "view": parts.journal.view,
            "without_primary_s": int(parts.replica.without_primary_s),
            "nodes": nodes,
            "members": {key.decode(): value.decode() for key, value in parts.store.view().scan(tables.MEMBERS_CERTS)},
        }

    def info(self) -> dict[str, Any]:
        """What this node is, says and lacks."""
        parts, ground = self._parts, self._parts.ground
        evidence = ground.evidence
        return {
            "node_id": parts.identity.node_id,
            "status": self._life.state,
            "platform": evidence.platform,
            **({"warning": _INSECURE} if evidence.is_virtual else {}),
            "measurement": evidence.verified.measurement,
            "endorsed_until_s": evidence.verified.valid_until_s,
            "lockdown": ground.report,
            "network": self.network_name,
            "adapters": sorted(parts.registry.by_name),
            "committed": str(self.committed_position()),
            "time_ms": ground.clock.now_ms,
            "clipped_time_steps": ground.clock.clipped,
            "unexpected_errors": ground.faults.count,
            "counters": parts.sequencer.counters,
            "stages": stages(parts) if self._life.is_governed else {},
            # Not what waits: by that count whoever hands in another's transaction would see whether a pool took it.
        }

    async def retire(self, statement: bytes) -> dict[str, Any]:
        """Have a node leave the network, as its operator says.

        Raises:
            BusyError: the service is not open (``node.not_open``).
        """
        if not self._life.is_governed:
            raise BusyError("the service is not open", code="node.not_open")
        parts = self._parts
        if parts.replica.is_primary:
            return {"retired": await parts.membership.retire(statement)}
        return {"retired": (await parts.replica.ask_primary(RETIRE, statement)).decode()}
