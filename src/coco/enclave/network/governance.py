"""Governance at a node: requests of members go to the primary, one at a time, and are answered once they are committed.

A request is signed, so any node takes it and forwards it as it is; the primary verifies it again. Repeating one is
safe: whoever got no answer, because a primary died, sends the same bytes again and hears what became of them.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import msgspec

from coco.configuration import nodes, succession
from coco.configuration.actions import action_of
from coco.configuration.draft import Draft, state
from coco.configuration.proposals import Change, Proposals, check_time, created_at
from coco.configuration.reads import Page, Paged
from coco.configuration.share_holders import PARTICIPANT
from coco.enclave.keys.certificates import Certificates
from coco.enclave.keys.epochs import Epochs, Row
from coco.enclave.ordering.sequencer import Sequencer
from coco.enclave.transport.links import decode
from coco.errors import BusyError, GovernanceError, NotFoundError, RequestError
from coco.ledger import tables
from coco.ledger.statements import parse_json

GOVERN = "govern"
#: Anyone may rehearse; so that members are served all the same, only so many do at once.
_REHEARSALS_MAX = 2


class Asked(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A member's request on its way to the primary."""

    verb: str
    #: Proposal that it is about, and member whose it should be; empty where neither is named.
    proposal: str
    member: str
    body: bytes


def _somebody_leaves(change: Change) -> bool:
    """Whether a node leaves by this change: the epoch begins once it has left (``primary_tasks.py``)."""
    rows = [json.loads(value) for table, _, value in change.rows if table == tables.NODES_INFO and value is not None]
    return any(row["status"] == nodes.RETIRED for row in rows)


class GovernanceService:
    """The member's side of the administration listener.

    Args:
        sequencer: writes the rows.
        proposals: decides.
        epochs: keeps ledger secrets for members and nodes.
        certificates: issues those that members ask for.
        changing: held by whoever changes the rows of nodes.
        check_adapters: refuses adapters that no node could run, by name and genesis of all that would come together.
        log: takes an event with its numbers and ids.
    """

    def __init__(
        self,
        sequencer: Sequencer,
        proposals: Proposals,
        epochs: Epochs,
        certificates: Certificates,
        changing: asyncio.Lock,
        check_adapters: Callable[[Mapping[str, Mapping[str, Any]]], None],
        log: Callable[..., None],
    ) -> None:
        self._sequencer, self._proposals, self._epochs = sequencer, proposals, epochs
        self._certificates, self._changing, self._log = certificates, changing, log
        self._check_together = check_adapters
        self._rehearsing = 0

    # --- requests ---

    async def serve(self, asked: Asked) -> dict[str, Any]:
        """Take a request.

        Raises:
            CocoError: refused; ``node.no_primary`` and ``consensus.rolled_back`` are worth sending again.
        """
        replica = self._sequencer.replica
        if not replica.is_primary:
            answer = await replica.ask_primary(GOVERN, msgspec.msgpack.encode(asked))
            forwarded: dict[str, Any] = json.loads(answer)
            return forwarded
        if not replica.may_execute:
            raise BusyError("this node is not primary yet", code="node.no_primary")
        async with self._changing:
            # G1: whoever may sign is looked up in what is committed, and so is everything else.
            await self._sequencer.committed(self._sequencer.store.latest)
            change = await self._decide(asked)
            if change.rows:
                self._check_adapters(change)
                now_ms = self._sequencer.clock.now_ms
                rows, epoch = [*change.rows, *self._renewed(change, now_ms)], None
                if change.rekey and not _somebody_leaves(change):
                    self._nobody_is_leaving()
                    epoch = partial(self._epochs.begin, change.share_holders, change.node_keys, now_ms)
                elif change.reshare:
                    rows.append(self._epochs.wrap(change.share_holders))
                await self._sequencer.committed(await self._sequencer.write_rows(rows, epoch=epoch))
        return change.answer

    def _check_adapters(self, change: Change) -> None:
        """Whether nodes could run what is proposed, and what the rules make of it: no vote may end a node (G2)."""
        accepted: dict[str, Any] = {}
        for table, key, value in change.rows:
            if table == tables.ADAPTERS and value is not None:
                accepted[key.decode()] = json.loads(value)["genesis"]
            elif table == tables.PROPOSALS and value is not None:
                proposed = {
                    str(args.get("name")): args.get("genesis") or {}
                    for name, args in map(action_of, json.loads(value)["actions"])
                    if name == "set_adapter" and isinstance(args.get("genesis", {}), dict)
                }
                self._check_together(proposed)
        self._check_together(accepted)

    async def admits(self, node: dict[str, Any], view: Any) -> bool:
        """Whether the rules in force trust a node without a vote; its operator has signed for it (J2).

        Rules that do not say so, or fail, leave it to a vote.
        """
        try:
            return await self._proposals.admits(node, view)
        except GovernanceError as error:
            self._log("gov.admit_failed", {}, {"code": error.code})
            return False

    def _renewed(self, change: Change, now_ms: int) -> list[Row]:
        rows = self._certificates.renewed(change.renew, self._view, now_ms)
        if change.renew_service is not None:
            written = {table: value for table, _, value in change.rows}
            info = written.get(tables.SERVICE_INFO) or self._view.get(tables.SERVICE_INFO, tables.SINGLETON)
            rows.append(self._certificates.renewed_service(change.renew_service, info or b"{}", now_ms))
        return rows

    def _nobody_is_leaving(self) -> None:
        """A node that leaves gets no secret of the next epoch, and its vote may be needed until it has left."""
        trusted = {row.engine for row in nodes.rows(self._view) if row.status == nodes.TRUSTED}
        if not self._sequencer.replica.members.all <= trusted:
            raise BusyError("a node is leaving; try again", code="gov.node_leaving")

    async def answer(self, body: bytes) -> bytes:
        """Answer a node that forwards a request."""
        if not self._sequencer.replica.is_primary:
            raise BusyError("this node is not primary", code="node.no_primary")
        return tables.row(await self.serve(decode(Asked, body)))

    async def _decide(self, asked: Asked) -> Change:
        store = self._sequencer.store
        view, root = store.view(self._sequencer.replica.committed), store.journal.tree.root()
        match asked.verb:
            case "create":
                return await self._proposals.create(asked.body, view, root)
            case "vote":
                return await self._proposals.vote(asked.proposal, asked.member, asked.body, view)
            case "withdraw":
                return self._proposals.withdraw(asked.proposal, asked.body, view)
            case "state_digest":
                return self._proposals.state_digest(asked.member, asked.body, view, root)
            case "ack":
                return self._proposals.acknowledge(asked.member, asked.body, view)
            case "state":
                check_time(created_at(asked.body), self._sequencer.clock.now_ms // 1000)
                return Change({}, [succession.statement_row(view, asked.body)])
        raise RequestError("there is no such request", code="gov.malformed")

    # --- reading ---

    @property
    def _view(self) -> Any:
        return self._sequencer.store.view(self._sequencer.replica.committed)

    def open_proposals(self, page: Page) -> Paged:
        """Open proposals."""
        return self._proposals.listed(self._view, page)

    def proposal(self, identity: str) -> dict[str, Any]:
        """One proposal, open or not."""
        return self._proposals.show(self._view, identity)

    def actions_of(self, identity: str) -> dict[str, Any]:
        """What a proposal would do."""
        row = self._view.get(tables.PROPOSALS, identity.encode())
        if row is None:
            raise NotFoundError("there is no such proposal", code="gov.unknown_proposal")
        found: dict[str, Any] = json.loads(row)
        return found

    def ballot(self, identity: str, member: str) -> dict[str, Any]:
        """How a member voted."""
        row = self._view.get(tables.PROPOSALS_INFO, identity.encode())
        ballots = json.loads(row)["ballots"] if row is not None else {}
        if member not in ballots:
            raise NotFoundError("that member has not voted on it", code="gov.unknown_ballot")
        return {"vote": ballots[member]}

    async def rehearse(self, body: bytes) -> dict[str, Any]:
        """What actions would change, if they were accepted now; nothing is written."""
        try:
            listed = parse_json(body)["actions"]
        except (ValueError, TypeError, KeyError) as error:
            raise RequestError("a proposal is an object with actions", code="gov.malformed") from error
        if not isinstance(listed, list):
            raise GovernanceError("a proposal has a list of actions", code="gov.malformed")
        if self._rehearsing >= _REHEARSALS_MAX:
            raise BusyError("others are rehearsing; try again", code="gov.busy")
        self._rehearsing += 1
        try:
            found = await self._proposals.rehearse(listed, self._view)
            return {**found, **{name: _without_accounts(found[name]) for name in ("before", "after")}}
        finally:
            self._rehearsing -= 1

    def constitution(self) -> str:
        """The rules in force."""
        return str(json.loads(self._view.get(tables.CONSTITUTION, tables.SINGLETON) or b'""'))

    def members(self, page: Page) -> Paged:
        """Members, with certificate and status."""
        found = page.of(self._view.scan(tables.MEMBERS_INFO, after=page.key))
        return Paged([self.member(key) for key in found.rows], found.last)

    def member(self, identity: str) -> dict[str, Any]:
        """One member.

        Raises:
            NotFoundError: there is none (``gov.unknown_member``).
        """
        view, key = self._view, identity.encode()
        info = json.loads(self._row(tables.MEMBERS_INFO, identity, "member"))
        one = {"memberId": identity, "status": info["status"], "memberData": info.get("member_data")}
        one["certificate"] = (view.get(tables.MEMBERS_CERTS, key) or b"").decode()
        encryption = view.get(tables.MEMBERS_ENCRYPTION, key)
        if encryption is not None:
            one["publicEncryptionKey"] = encryption.decode()
            one["recoveryRole"] = info.get("recovery_role", PARTICIPANT)
        return one

    def state_digest(self, member: str) -> dict[str, Any]:
        """What a member asked for last, to acknowledge it."""
        row = json.loads(self._row(tables.MEMBERS_ACKS, member, "state_digest"))
        return {"memberId": member, "stateDigest": row["state_digest"]}

    def nodes(self, page: Page) -> Paged:
        """Nodes, also those that have left."""
        found = page.of(self._view.scan(tables.NODES_INFO, after=page.key))
        return Paged([self.node(key) for key in found.rows], found.last)

    def node(self, identity: str) -> dict[str, Any]:
        """One node.

        Raises:
            NotFoundError: there is none (``gov.unknown_node``).
        """
        row = json.loads(self._row(tables.NODES_INFO, identity, "node"))
        certificate = self._view.get(tables.NODE_CERTIFICATES, identity.encode())
        return {
            "nodeId": identity,
            "status": row["status"],
            "certificate": certificate.decode() if certificate is not None else None,
            "retiredCommitted": bool(row.get("retired_committed")),
            "quoteInfo": row["quote_info"],
            "rpcInterfaces": row["rpc_interfaces"],
            "peerAddress": row["peer_address"],
            "owner": row["owner"],
            "measurement": row["measurement"],
        }

    def info(self) -> dict[str, Any]:
        """The service: status, certificate, and what members have set."""
        draft = Draft(self._view)
        service, configured = draft.service(), draft.settings()
        return {
            "status": service.get("status"),
            "certificate": service.get("cert"),
            "recoveryCount": service.get("recovery_count", 0),
            "configuration": {
                "maximumNodeCertificateValidityDays": configured["maximum_node_certificate_validity_days"],
                "recentCoseProposalsWindowSize": configured["recent_cose_proposals_window_size"],
                "recoveryThreshold": configured["recovery_threshold"],
                "epochLengthSeconds": configured["epoch_length_s"],
                "secretLifetimeSeconds": configured["secret_lifetime_s"],
                "defaultVisibility": configured["default_visibility"],
            },
        }

    def succession(self) -> dict[str, Any]:
        """How far the service is on its way to another identity, and what members state about it."""
        found = succession.current(self._view)
        if found is None:
            return {"status": "None"}
        if found["status"] != succession.ANNOUNCED:
            return {"status": found["status"]}
        shown = {name: found[name] for name in ("status", "previous", "next")}
        return {**shown, "statement": succession.payload(found), "members": succession.stated_by(self._view)}

    def join_policy(self) -> dict[str, Any]:
        """Which code on which platforms may join."""

        def rows(table: str) -> dict[str, Any]:
            return {key.decode(): json.loads(row) for key, row in self._view.scan(table)}

        def named(table: str) -> list[str]:
            return sorted(rows(table))

        policies = rows(tables.TEE_POLICY)
        return {
            "virtual": {"measurements": named(tables.NODE_MEASUREMENTS)},
            "sgx": {"measurements": named(tables.NODE_CODE_IDS), **policies.get("sgx", {})},
            "tdx": {"measurements": named(tables.NODE_TDX_MEASUREMENTS), **policies.get("tdx", {})},
            "snp": {
                "measurements": named(tables.NODE_SNP_MEASUREMENTS),
                "hostData": rows(tables.NODE_SNP_HOST_DATA),
                "uvmEndorsements": rows(tables.NODE_SNP_UVM_ENDORSEMENTS),
                "tcbVersions": rows(tables.NODE_SNP_TCB_VERSIONS),
            },
        }

    def _row(self, table: str, identity: str, what: str) -> bytes:
        row: bytes | None = self._view.get(table, identity.encode())
        if row is None:
            raise NotFoundError(f"there is no such {what.replace('_', ' ')}", code=f"gov.unknown_{what}")
        return row

    def state(self) -> dict[str, Any]:
        """What the rules see, without the accounts of participants: this is told to anybody."""
        return _without_accounts(state(Draft(self._view)))


#: What is said of a participant that nobody else is told.
_OF_ITS_OWN = ("accounts", "identities")


def _without_accounts(seen: dict[str, Any]) -> dict[str, Any]:
    """What rules see, without the accounts that a genesis or a vote has recorded for participants."""
    users = {
        name: {key: value for key, value in data.items() if key not in _OF_ITS_OWN} if isinstance(data, dict) else data
        for name, data in seen["users"].items()
    }
    return {**seen, "users": users}
