"""Proposals and votes: a signed request of a member becomes rows of the administrative ledger, or a refusal.

Rules:

* A request is a COSE message (``docs/governance.md``). Who signed it is looked up in what is committed; its replay key
  is the SHA-256 of what was signed, not of the envelope, for a signature has more than one form (G1).
* One vote for each active member; a ballot is data, never code (G2). The same request again gets the same answer.
* The rules in force decide; a change of the rules is decided by the old ones. What the rules gave is recorded, so that
  whoever reads the ledger later can follow, and no other node ever runs them for this.
* A proposal whose effects fail is ``Failed``, with the reason, and changes nothing else.
* Times are those that messages name, which a node takes only near its own: whoever judges again later judges alike.
  Proposals expire, and each member has so many open ones (``open_proposals.py``).
* Whatever the rules say, so many members as the genesis fixed replace them (``supermajority.py``).
* Who leaves takes its ballots along, and what is open then is decided anew.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from coco import limits
from coco.configuration import actions, open_proposals, supermajority
from coco.configuration.actors import Actors
from coco.configuration.draft import ACTIVE, Draft, Validity, state
from coco.configuration.practice import Practice
from coco.configuration.reads import Page, Paged, Reads, ReadsOn
from coco.configuration.share_holders import ShareHolders
from coco.crypto import cose
from coco.errors import AccessError, CocoError, GovernanceError, NotFoundError, RequestError
from coco.ledger import tables
from coco.ledger.statements import CREATED_AT, MESSAGE_TYPE, PROPOSAL_ID, parse_json

OPEN, CLOSED = open_proposals.OPEN, ("Accepted", "Rejected", "Withdrawn", "Dropped", "Failed")
PROPOSAL, BALLOT, WITHDRAWAL, STATE_DIGEST, ACK = "proposal", "ballot", "withdrawal", "state_digest", "ack"
#: Names the service that a proposal is for; it is refused where that is another one (G1).
ASSERT_SERVICE = supermajority.ASSERT_SERVICE
#: How rules fail by themselves; whatever else fails is no word of theirs.
_RULES_FAILED = frozenset({"gov.rules_failed", "gov.rules_too_long", "gov.rules_out_of_memory"})
#: How far the time of a message may be from this one if its signer's certificate is to count: it may have ended.
_LEAF_SKEW_S = 3600
_WINDOW_MAX = 10_000

#: Runs a function of a constitution: source, function, arguments.
CallRules = Callable[..., Awaitable[Any]]


@dataclass
class Signed:
    """A member's request, verified."""

    member: str
    payload: bytes
    body: bytes
    created_at_s: int
    #: SHA-256 of the Sig_structure.
    digest: str


@dataclass
class Change:
    """What a request does: rows to write (none: it was seen before), and its answer."""

    answer: dict[str, Any]
    rows: list[tuple[str, bytes, bytes | None]] = field(default_factory=list)
    #: The current ledger secret is to be wrapped anew; or another one begins.
    reshare: bool = False
    rekey: bool = False
    #: For whom the secret is then to be kept, and trusted nodes' keys.
    share_holders: ShareHolders = field(default_factory=lambda: ShareHolders({}, {}, 0))
    node_keys: dict[str, str] = field(default_factory=dict)
    #: Nodes that get another certificate; the same for the service.
    renew: dict[str, Validity] = field(default_factory=dict)
    renew_service: Validity | None = None


def signed_by_member(
    body: bytes, view: Reads, kind: str, *, proposal: str = "", member: str = "", now_s: int | None = None
) -> Signed:
    """Verify a request.

    Args:
        body: the COSE message.
        view: what is committed.
        kind: what it should be.
        proposal: which it should be about.
        member: whose it should be; empty: any member's.
        now_s: the time; None for a request that was judged before, and is read in a ledger.

    Raises:
        RequestError: malformed, or about something else (``gov.wrong_message_type``, ``gov.wrong_proposal``).
        AccessError: the signer is no member (``gov.not_a_member``) or another one (``gov.wrong_member``).
    """
    message = cose.parse(body)
    if message.headers.get(MESSAGE_TYPE) != kind:
        raise RequestError(f"the message is no {kind}", code="gov.wrong_message_type")
    named = message.headers.get(PROPOSAL_ID, "")
    if named != proposal:
        raise RequestError("the message is about another proposal", code="gov.wrong_proposal")
    created = _created_at(message)
    signer, certificate = _signer(message, view, now_s)
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise AccessError("the signer's key is no elliptic-curve key", code="gov.not_a_member")
    cose.verify(message, key)
    if member and signer != member:
        raise AccessError("the message is another member's", code="gov.wrong_member")
    return Signed(signer, message.payload or b"", body, created, cose.signed_digest(message).hex())


def _signer(message: cose.Sign1, view: Reads, now_s: int | None) -> tuple[str, x509.Certificate]:
    """The member that a message names, and the certificate whose key should have signed it.

    A message with a certificate (``x5chain``) is of the organisation that issued it: any leaf whose chain leads to it
    signs for it, so rolling one over needs no vote.
    """
    given = message.headers.get(cose.X5_CHAIN, message.unprotected.get(cose.X5_CHAIN))
    shown: list[Any] = given if isinstance(given, list) else [given]
    if all(isinstance(one, bytes) for one in shown):
        # Its dates are judged at the time that the message names: whoever replays the ledger later judges alike.
        created_s = _created_at(message)
        found = Actors(view, 1000 * created_s).member(b"".join(shown))
        if found is None:
            raise AccessError("the certificate is no member's", code="gov.not_a_member")
        if now_s is not None and abs(now_s - created_s) > _LEAF_SKEW_S:
            raise GovernanceError("the message names another time than this one", code="gov.too_old")
        return found
    key_id = message.headers.get(cose.KEY_ID)
    named = key_id.decode("ascii", "replace") if isinstance(key_id, bytes) else ""
    pem = view.get(tables.MEMBERS_CERTS, named.encode()) if len(named) == 64 else None
    if pem is None or view.get(tables.DENIED_CERTIFICATES, named.encode()) is not None:
        raise AccessError("the signer is no member", code="gov.not_a_member")
    return named, x509.load_pem_x509_certificate(pem)


def _created_at(message: cose.Sign1) -> int:
    created = message.headers.get(CREATED_AT)
    if not isinstance(created, int) or isinstance(created, bool) or not 0 <= created < 1 << 36:
        raise RequestError("the message does not say when it was made", code="gov.malformed")
    return created


def check_time(created_at_s: int, now_s: int) -> None:
    """Whether a message is of about this time: one that is kept for years decides nothing then.

    Raises:
        GovernanceError: it is not (``gov.wrong_time``).
    """
    least, most = now_s - limits.MESSAGE_AGE_SECONDS_MAX, now_s + limits.MESSAGE_AHEAD_SECONDS_MAX
    if not least <= created_at_s <= most:
        raise GovernanceError(
            f"the message says that it was made at {created_at_s}; this network takes those of {least} to {most}",
            code="gov.wrong_time",
            hint="set the clock of the machine that signs, and sign again",
        )


def created_at(body: bytes) -> int:
    """When a message says that it was made, in seconds since the Unix epoch.

    Raises:
        RequestError: it is no message, or does not say it.
    """
    return _created_at(cose.parse(body))


def _active(view: Reads, signed: Signed) -> None:
    info = json.loads(view.get(tables.MEMBERS_INFO, signed.member.encode()) or b"{}")
    if info.get("status") != ACTIVE:
        raise AccessError("the signer is no active member", code="gov.not_active")


def _document(payload: bytes) -> Any:
    try:
        return parse_json(payload)
    except ValueError as error:
        raise RequestError("the payload is no JSON", code="gov.malformed") from error


class Proposals:
    """Decides; sans-I/O but for the rules.

    Args:
        call: runs the rules.
        now_s: the time, in seconds since the Unix epoch; None where requests of the past are judged again.
        practice: of the version whose nodes decide.
    """

    def __init__(
        self, call: CallRules, now_s: Callable[[], int] | None = None, practice: Practice | None = None
    ) -> None:
        self._call, self._now_s, self._practice = call, now_s, practice or Practice()

    def _signed(self, body: bytes, view: Reads, kind: str, *, proposal: str = "", member: str = "") -> Signed:
        now_s = self._now_s() if self._now_s is not None else None
        return signed_by_member(body, view, kind, proposal=proposal, member=member, now_s=now_s)

    def _in_time(self, signed: Signed) -> None:
        """Asked after what was seen before: a request that is sent again is answered, however late."""
        if self._now_s is not None:
            check_time(signed.created_at_s, self._now_s())

    # --- requests ---

    async def create(self, body: bytes, view: Reads, root: bytes) -> Change:
        """A member proposes; ``root`` is the ledger's Merkle root now, which makes the id of the proposal.

        Raises:
            CocoError: refused, with a stable code; nothing changes.
        """
        signed = self._signed(body, view, PROPOSAL)
        _active(view, signed)
        draft = self._practice.draft(view)
        if (known := self._recent(draft, signed)) is not None:
            return Change(self.show(view, known))
        self._in_time(signed)
        content = _document(signed.payload)
        listed = _listed(content.get("actions") if isinstance(content, dict) else None)
        for action in listed:
            name, args = actions.action_of(action)
            if name == ASSERT_SERVICE:
                actions.ACTIONS[name](draft, args)
        self._practice.make_room(draft, signed.member, signed.created_at_s)
        info: dict[str, Any] = {
            "proposer_id": signed.member,
            "state": OPEN,
            "ballots": {},
            "created_at": signed.created_at_s,
        }
        try:
            await self._validate(draft, {"proposer": signed.member, "actions": listed})
        except GovernanceError as error:
            if error.code not in _RULES_FAILED | {"gov.proposal_invalid"} or not self._practice.is_way(draft, listed):
                raise
            info[supermajority.ONLY] = True
        identity = sha256(tables.row(listed) + root + signed.digest.encode()).hexdigest()
        draft.put(tables.PROPOSALS, identity.encode(), tables.row({"actions": listed}))
        self._remember(draft, signed, identity)
        return await self._decide(draft, identity, info, signed.created_at_s)

    async def vote(self, identity: str, member: str, body: bytes, view: Reads) -> Change:
        """A member casts its ballot: ``{"vote": true | false}``."""
        signed = self._signed(body, view, BALLOT, proposal=identity, member=member)
        _active(view, signed)
        info = self._info(view, identity)
        content = _document(signed.payload)
        ballot = content.get("vote") if isinstance(content, dict) else None
        if not isinstance(ballot, bool):
            raise RequestError('a ballot is {"vote": true} or {"vote": false}', code="gov.malformed")
        if signed.member in info["ballots"]:
            if info["ballots"][signed.member] == ballot:
                return Change(self.show(view, identity))
            raise GovernanceError("this member has voted already", code="gov.vote_exists")
        self._is_open(info)
        self._in_time(signed)
        draft = self._practice.draft(view)
        self._practice.check_ballot(draft, info, signed.member, signed.created_at_s)
        draft.put(tables.COSE_HISTORY, signed.member.encode(), body)
        info["ballots"][signed.member] = ballot
        return await self._decide(draft, identity, info, signed.created_at_s)

    def withdraw(self, identity: str, body: bytes, view: Reads) -> Change:
        """Its proposer takes a proposal back; one whose proposer has left, any active member does."""
        signed = self._signed(body, view, WITHDRAWAL, proposal=identity)
        info, draft = self._info(view, identity), Draft(view)
        if signed.member != info["proposer_id"]:
            listed = (draft.document(tables.PROPOSALS, identity.encode()) or {})["actions"]
            if not self._practice.others_withdraw(draft, info["proposer_id"], listed):
                raise AccessError("only its proposer withdraws a proposal", code="gov.not_the_proposer")
            _active(view, signed)
        if info["state"] == "Withdrawn":
            return Change(self.show(view, identity))
        self._is_open(info)
        self._in_time(signed)
        draft.put(tables.COSE_HISTORY, signed.member.encode(), body)
        info["state"] = "Withdrawn"
        self._save(draft, identity, info)
        return Change(self.show(draft, identity), draft.rows())

    def state_digest(self, member: str, body: bytes, view: Reads, root: bytes) -> Change:
        """A member asks for the state that it will acknowledge."""
        signed = self._signed(body, view, STATE_DIGEST, member=member)
        self._in_time(signed)
        draft = Draft(view)
        draft.put(tables.MEMBERS_ACKS, signed.member.encode(), tables.row({"state_digest": root.hex()}))
        draft.put(tables.COSE_HISTORY, signed.member.encode(), body)
        return Change({"memberId": signed.member, "stateDigest": root.hex()}, draft.rows())

    def acknowledge(self, member: str, body: bytes, view: Reads) -> Change:
        """A member says that it knows the state: from now on it governs."""
        signed = self._signed(body, view, ACK, member=member)
        self._in_time(signed)
        content = _document(signed.payload)
        expected = json.loads(view.get(tables.MEMBERS_ACKS, signed.member.encode()) or b"{}").get("state_digest")
        given = content.get("state_digest", content.get("stateDigest")) if isinstance(content, dict) else None
        if expected is None or given != expected:
            raise GovernanceError("that is not the state to acknowledge", code="gov.wrong_state_digest")
        draft = Draft(view)
        key = signed.member.encode()
        info = draft.document(tables.MEMBERS_INFO, key) or {}
        draft.put(tables.COSE_HISTORY, key, body)
        draft.put(tables.MEMBERS_INFO, key, tables.row({**info, "status": ACTIVE}))
        becomes = info.get("status") != ACTIVE and draft.get(tables.MEMBERS_ENCRYPTION, key) is not None
        return self._change({}, draft, reshare=becomes)

    # --- answers ---

    def show(self, view: Reads | Draft, identity: str) -> dict[str, Any]:
        """A proposal as the open format shows it.

        Raises:
            NotFoundError: there is none (``gov.unknown_proposal``).
        """
        info = self._info(view, identity)
        found: dict[str, Any] = {
            "proposalId": identity,
            "proposerId": info["proposer_id"],
            "proposalState": info["state"],
            "ballotCount": len(info["ballots"]),
            "ballotSubmitters": sorted(info["ballots"]),
        }
        if info["state"] == OPEN:
            found["expiresAtSeconds"] = open_proposals.ends_s(view, info)
        else:
            found["finalVotes"] = info.get("final_votes", info["ballots"])
        if supermajority.ONLY in info:
            found["onlyBySupermajority"] = True
        if "failure" in info:
            found["failure"] = info["failure"]
        return found

    def listed(self, view: ReadsOn, page: Page) -> Paged:
        """Open proposals among the rows that one page looks at; the others of these rows are closed.

        One that has expired is none, even if nothing has closed it yet.
        """
        now_s = self._now_s() if self._now_s is not None else 0
        found = page.of(view.scan(tables.PROPOSALS_INFO, after=page.key))
        shown = [self.show(view, key) for key in found.rows]
        return Paged(
            [one for one in shown if one["proposalState"] == OPEN and one["expiresAtSeconds"] >= now_s], found.last
        )

    async def rehearse(self, listed: list[Any], view: Reads) -> dict[str, Any]:
        """What an accepted proposal with these actions would change, without proposing anything.

        Raises:
            CocoError: it would fail, with the reason.
        """
        draft = Draft(view)
        proposal = {"proposer": "", "actions": _listed(listed)}
        await self._validate(draft, proposal)
        before = state(draft)
        effects = await self._call(self._rules(draft), "apply", proposal, before)
        await self._perform(draft, effects)
        rows = {f"{table} {_name(key)}": _value(value) for table, key, value in draft.rows()}
        return {"before": before, "after": state(draft), "rows": rows, "drops_others": draft.drops_others}

    async def admits(self, node: dict[str, Any], view: Reads) -> bool:
        """Whether the rules in force trust a node (``nodes.admission``), which its operator signed for, without a vote.

        While a service opens, the vote to open names every node; where there are no rules, there are no votes either.
        """
        draft = Draft(view)
        rules = str(json.loads(draft.get(tables.CONSTITUTION, tables.SINGLETON) or b'""'))
        if not rules or draft.service().get("status") == "Opening":
            return True
        return bool(await self._call(rules, "admit", node, state(draft)) == "Trusted")

    # --- deciding ---

    async def _validate(self, draft: Draft, proposal: dict[str, Any]) -> None:
        reason = await self._call(self._rules(draft), "validate", proposal, state(draft))
        if reason is not None:
            raise GovernanceError(str(reason)[:500], code="gov.proposal_invalid")

    async def _decide(self, draft: Draft, identity: str, info: dict[str, Any], at_s: int) -> Change:
        """Decide a proposal, and whatever else is open if members have left by it; ``at_s`` is the request's time."""
        draft, gone = await self._settle(draft, identity, info, state(draft))
        again = bool(gone)
        while again:  # each time one more is accepted, and so closed
            open_proposals.void(draft, gone, at_s)
            open_proposals.expire(draft, at_s)
            again, seen = False, state(draft)
            for other in open_proposals.opened(draft):
                info = self._info(draft, other)
                try:
                    draft, gone = await self._settle(draft, other, info, seen)
                except GovernanceError as error:
                    if error.code not in _RULES_FAILED:
                        raise
                    continue  # it stays open, as after a ballot that the rules could not count
                if info["state"] == "Accepted":
                    again = True
                    break
        return self._change(self.show(draft, identity), draft, reshare=draft.reshare)

    async def _settle(
        self, draft: Draft, identity: str, info: dict[str, Any], before: dict[str, Any]
    ) -> tuple[Draft, set[str]]:
        """Decide one proposal; the draft with what that does, and the active members who left by it."""
        listed = (draft.document(tables.PROPOSALS, identity.encode()) or {})["actions"]
        verdict, given = await self._verdict(draft, {"proposer": info["proposer_id"], "actions": listed}, info, before)
        active = {name for name, one in before["members"].items() if one["status"] == ACTIVE}
        gone: set[str] = set()
        if verdict == "Accepted":
            info["final_votes"] = dict(info["ballots"])
            effects = replace(draft, writes=dict(draft.writes), renew=dict(draft.renew), drops_others=False)
            try:
                await self._perform(effects, given)
                info["state"] = "Accepted"
                draft = effects
                gone = self._practice.left(draft, active)
            except CocoError as error:
                info["state"] = "Failed"
                info["failure"] = {"reason": str(error)[:1000], "code": error.code}
        elif verdict == "Rejected":
            info["state"], info["final_votes"] = "Rejected", dict(info["ballots"])
        elif verdict != OPEN:
            raise GovernanceError("the rules decided nothing that there is", code="gov.rules_failed")
        if draft.document(tables.PROPOSALS_INFO, identity.encode()) != info:
            self._save(draft, identity, info)
        if info["state"] == "Accepted" and draft.drops_others:
            final = supermajority.is_reached(draft.genesis, active, info["ballots"])
            self._drop_others(draft, identity, all_of_them=final and self._practice.is_way(draft, listed))
        return draft, gone

    async def _verdict(
        self, draft: Draft, proposal: dict[str, Any], info: dict[str, Any], seen: dict[str, Any]
    ) -> tuple[str, Any]:
        """What becomes of a proposal, and the actions to do; the way that no rules close comes first."""
        rules, listed, ballots = self._rules(draft), proposal["actions"], info["ballots"]
        active = {name for name, one in seen["members"].items() if one["status"] == ACTIVE}
        if not self._practice.is_way(draft, listed):
            verdict = await self._call(rules, "resolve", proposal, ballots, seen)
            return verdict, await self._apply(rules, proposal, seen) if verdict == "Accepted" else None
        if supermajority.is_reached(draft.genesis, active, ballots):
            return "Accepted", listed
        reachable = supermajority.is_reachable(draft.genesis, active, ballots)
        if supermajority.ONLY in info:
            return OPEN if reachable else "Rejected", None
        try:
            verdict = await self._call(rules, "resolve", proposal, ballots, seen)
            # Rules that accept it and do something else have decided nothing about it.
            if verdict == "Accepted" and await self._call(rules, "apply", proposal, seen) == listed:
                return verdict, listed
        except GovernanceError as error:
            if error.code not in _RULES_FAILED:
                raise
            verdict = OPEN
        return ("Rejected" if verdict == "Rejected" and not reachable else OPEN), None

    async def _apply(self, rules: str, proposal: dict[str, Any], seen: dict[str, Any]) -> Any:
        """What accepted rules make of a proposal; or why not, which fails it."""
        try:
            return await self._call(rules, "apply", proposal, seen)
        except GovernanceError as error:
            return error

    async def _perform(self, draft: Draft, effects: Any) -> None:
        if isinstance(effects, GovernanceError):
            raise effects
        if not isinstance(effects, list) or len(effects) > limits.PROPOSAL_ACTIONS_MAX:
            most = limits.PROPOSAL_ACTIONS_MAX
            raise GovernanceError(f"the rules gave no list of at most {most} actions", code="gov.rules_failed")
        actions.perform(draft, effects)
        if (tables.CONSTITUTION, tables.SINGLETON) in draft.writes:
            await self._can_be_replaced(draft)

    async def _can_be_replaced(self, draft: Draft) -> None:
        """G2: with every vote for it, a new constitution must let itself be replaced by another."""
        rules, seen = self._rules(draft), state(draft)
        votes = {name: True for name, info in seen["members"].items() if info["status"] == ACTIVE}
        change = {"name": "set_constitution", "args": {"constitution": "# another"}}
        named = {"name": ASSERT_SERVICE, "args": {"service_identity": draft.service().get("cert", "")}}
        proposal = {"proposer": next(iter(votes), ""), "actions": [named, change]}
        refused = await self._call(rules, "validate", proposal, seen)
        verdict = await self._call(rules, "resolve", proposal, votes, seen)
        effects = await self._call(rules, "apply", proposal, seen)
        if refused is not None or verdict != "Accepted" or effects != proposal["actions"]:
            raise GovernanceError("nobody could ever replace these rules", code="gov.rules_for_ever")

    def _drop_others(self, draft: Draft, identity: str, *, all_of_them: bool) -> None:
        """Drop what was voted on under other rules or for other code.

        What would replace the rules is dropped by a supermajority alone: else rules that let one member drop it again
        and again close that way, too. Until then nothing but a supermajority decides about it.
        """
        for other in open_proposals.opened(draft):
            if other == identity:
                continue
            info = self._info(draft, other)
            listed = (draft.document(tables.PROPOSALS, other.encode()) or {})["actions"]
            if not all_of_them and self._practice.is_way(draft, listed):
                self._save(draft, other, {**info, supermajority.ONLY: True})
            else:
                self._save(draft, other, {**info, "state": "Dropped"})

    # --- rows ---

    def _change(self, answer: dict[str, Any], draft: Draft, *, reshare: bool) -> Change:
        return Change(
            answer,
            draft.rows(),
            reshare,
            draft.rekey,
            draft.share_holders(),
            draft.node_keys(),
            draft.renew,
            draft.renew_service,
        )

    def _rules(self, draft: Draft) -> str:
        source = json.loads(draft.get(tables.CONSTITUTION, tables.SINGLETON) or b'""')
        if not source:
            raise GovernanceError("this network was founded without rules to govern it", code="gov.no_constitution")
        return str(source)

    def _info(self, view: Reads | Draft, identity: str) -> dict[str, Any]:
        row = view.get(tables.PROPOSALS_INFO, identity.encode())
        if row is None:
            raise NotFoundError("there is no such proposal", code="gov.unknown_proposal")
        info: dict[str, Any] = json.loads(row)
        return info

    def _is_open(self, info: dict[str, Any]) -> None:
        if info["state"] != OPEN:
            raise GovernanceError(f"the proposal is {info['state']}", code="gov.proposal_closed")

    def _save(self, draft: Draft, identity: str, info: dict[str, Any]) -> None:
        draft.put(tables.PROPOSALS_INFO, identity.encode(), tables.row(info))

    def _recent(self, draft: Draft, signed: Signed) -> str | None:
        """The proposal that this very request made; a request older than what is remembered is refused."""
        window = self._window(draft, signed.member)
        known = window.get(f"{signed.created_at_s:013d}:{signed.digest}")
        if known is None and len(window) >= self._window_size(draft) and signed.created_at_s < int(min(window)[:13]):
            raise GovernanceError("the request is older than those that are remembered", code="gov.too_old")
        return known

    def _window(self, draft: Draft, member: str) -> dict[str, str]:
        prefix = f"{member}:"
        rows = {key.decode(): value.decode() for key, value in draft.scan(tables.COSE_RECENT).items()}
        return {key.removeprefix(prefix): value for key, value in rows.items() if key.startswith(prefix)}

    def _window_size(self, draft: Draft) -> int:
        return min(_WINDOW_MAX, int(draft.settings()["recent_cose_proposals_window_size"]))

    def _remember(self, draft: Draft, signed: Signed, identity: str) -> None:
        """Each member has a window of its own: one cannot push another's requests out (G1)."""
        window = self._window(draft, signed.member)
        for old in sorted(window)[: max(0, len(window) + 1 - self._window_size(draft))]:
            draft.remove(tables.COSE_RECENT, f"{signed.member}:{old}".encode())
        name = f"{signed.member}:{signed.created_at_s:013d}:{signed.digest}"
        draft.put(tables.COSE_RECENT, name.encode(), identity.encode())
        draft.put(tables.COSE_HISTORY, signed.member.encode(), signed.body)


def _listed(listed: Any) -> list[Any]:
    """The actions of a proposal.

    Raises:
        RequestError: they are none, or too many (``gov.malformed``).
    """
    most = limits.PROPOSAL_ACTIONS_MAX
    if not isinstance(listed, list):
        raise RequestError("a proposal is an object with a list of actions", code="gov.malformed")
    if not 0 < len(listed) <= most:
        raise RequestError(f"a proposal has 1 to {most} actions, and this one {len(listed)}", code="gov.malformed")
    return listed


def _name(key: bytes) -> str:
    return "" if key == tables.SINGLETON else key.decode("utf-8", "replace")


def _value(value: bytes | None) -> Any:
    if value is None:
        return None
    try:
        return json.loads(value)
    except ValueError:
        return value.decode("utf-8", "replace")
