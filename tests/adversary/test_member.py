"""A member as the attacker: what it may vote on, sign and keep, and what must not follow from that."""

from __future__ import annotations

import functools
import json
from typing import Any

import pytest
from attacks import attack

from coco import constitutions, limits
from coco.configuration import participants
from coco.configuration.genesis import Genesis
from coco.configuration.proposals import Proposals
from coco.configuration.reads import Page
from coco.errors import ConfigurationError
from coco.ledger import tables
from governed import NOTHING, Network, action, refused, rsa_pem
from members import Member

MAJORITY = constitutions.text("majority")
DAY_S = 24 * 3600
NOW_S = 1_800_000_000
SANDBOX = {"production": False, "insecure_virtual": True}


@pytest.fixture(scope="module")
def members(tmp_path_factory) -> list[Member]:
    directory = tmp_path_factory.mktemp("members")
    return [Member(directory, f"m{number}") for number in range(4)]


@pytest.fixture
def network(members) -> Network:
    return Network(members[:3], MAJORITY)


def replace_rules(rules: str = MAJORITY) -> dict[str, Any]:
    return action("set_constitution", constitution=rules)


def accept(network: Network, voters: list[Member], *actions: dict[str, Any], at: int | None = None) -> dict[str, Any]:
    """Propose and vote, all at one time."""
    made = network.propose(voters[0], body=voters[0].sign("proposal", {"actions": list(actions)}, at=at))
    for voter in voters:
        if made["proposalState"] == "Open":
            identity = made["proposalId"]
            made = network.vote(voter, identity, body=voter.sign("ballot", {"vote": True}, identity, at=at))
    assert made["proposalState"] == "Accepted", made
    return made


def readmit(network: Network, voters: list[Member], member: Member, at: int) -> None:
    accept(network, voters, action("set_member", cert=member.pem), at=at)
    asked = member.sign("state_digest", {}, at=at)
    digest = network.take(network.proposals.state_digest(member.id, asked, network, bytes(32)))["stateDigest"]
    ack = member.sign("ack", {"state_digest": digest}, at=at)
    network.take(network.proposals.acknowledge(member.id, ack, network))
    assert network.document(tables.MEMBERS_INFO, member.id)["status"] == "Active"


# --- E5: rules that know when they are asked whether they could be replaced -------------------------------------------

#: The framework asks with this text, and with nothing else of the kind.
_TELL = "    asked = [a for a in p['actions'] if a['args'].get('constitution') == '# another']\n"
_HONEST = {"validate": "return None", "resolve": "return 'Accepted'", "apply": "return p['actions']"}
CLOSED = {
    "refuse it": {"validate": "return 'no'"},
    "reject it": {"resolve": "return 'Rejected'"},
    "leave it open": {"resolve": "return 'Open'"},
    "accept it, and do nothing": {"apply": "return []"},
    "accept it, and do something else": {"apply": "return [{'name': 'remove_user', 'args': {'user_id': 'x'}}]"},
    "fail": {"validate": "fail('oh')", "resolve": "fail('oh')"},
    "fail late": {"apply": "fail('oh')"},
    "never end": {"validate": "[x for x in range(1 << 60)]"},
    "decide nothing that there is": {"resolve": "return 'Perhaps'"},
}


def closed(changes: dict[str, str]) -> str:
    """Rules that answer the framework's question well, and every other one as they like."""
    made = []
    for function, arguments in (("validate", "p, s"), ("resolve", "p, v, s"), ("apply", "p, s")):
        otherwise = changes.get(function, _HONEST[function])
        made.append(
            f"def {function}({arguments}):\n{_TELL}    if asked:\n        {_HONEST[function]}\n    {otherwise}\n"
        )
    return "".join(made)


@attack(
    "E5",
    was="rules that recognise the self-check were accepted, and nobody could ever replace them",
    now="a supermajority that the genesis fixed replaces them, whatever they say",
)
@pytest.mark.parametrize("changes", CLOSED.values(), ids=CLOSED.keys())
def test_rules_that_recognise_the_self_check_are_replaced_all_the_same(network, members, changes):
    accept(network, members[:2], replace_rules(closed(changes)))
    made = network.propose(members[2], replace_rules())
    assert made["proposalState"] == "Open", "not ended before anybody could vote"
    identity = made["proposalId"]
    assert network.vote(members[0], identity, False)["proposalState"] == "Open", "one against is not enough"
    assert network.vote(members[1], identity)["proposalState"] == "Open"
    assert network.vote(members[2], identity)["proposalState"] == "Accepted"
    assert network.document(tables.CONSTITUTION, "\0" * 8) == MAJORITY
    accept(network, members[:2], NOTHING)


@attack(
    "E5",
    was="whoever the rules obey had every proposal dropped, again and again, with new rules of its own",
    now="what replaces the rules is dropped by a supermajority alone",
)
def test_one_member_cannot_drop_what_replaces_its_rules(network, members):
    mine = closed(
        {"validate": "return None", "resolve": f"return 'Accepted' if p['proposer'] == '{members[0].id}' else 'Open'"}
    )
    accept(network, members[:2], replace_rules(mine))
    good = network.propose(members[1], replace_rules())["proposalId"]
    network.vote(members[1], good)
    assert network.propose(members[0], replace_rules(mine + "# more\n"))["proposalState"] == "Accepted"
    assert (
        network.propose(members[0], action("add_virtual_measurement", measurement="x"))["proposalState"] == "Accepted"
    )
    shown = network.proposals.show(network, good)
    assert shown["proposalState"] == "Open" and shown["onlyBySupermajority"]
    assert network.vote(members[2], good)["proposalState"] == "Accepted"
    assert network.document(tables.CONSTITUTION, "\0" * 8) == MAJORITY


@attack(
    "E5",
    was="there was no such way, so nothing bounded it",
    now="the way is for rules alone, and only with so many votes as the genesis says",
)
def test_the_way_out_is_for_rules_alone_and_for_the_share_of_the_genesis(members):
    shut = closed({"resolve": "return 'Open'"})
    for share, accepted in (("2/3", "Accepted"), ("1/1", "Open")):
        network = Network(members[:3], shut)
        network.put(tables.GENESIS, tables.SINGLETON, tables.row({**SANDBOX, "rules_supermajority": share}))
        made = network.propose(members[0], replace_rules())["proposalId"]
        network.vote(members[0], made)
        assert network.vote(members[1], made)["proposalState"] == accepted
    more = network.propose(members[0], replace_rules(), action("remove_member", member_id=members[2].id))["proposalId"]
    assert [network.vote(member, more)["proposalState"] for member in members[:3]] == ["Open"] * 3
    rejected = network.propose(members[0], replace_rules())["proposalId"]
    assert network.vote(members[0], rejected, False)["proposalState"] == "Open", "only the rules would reject it"
    refuse = closed({"resolve": "return 'Rejected'"})
    network = Network(members[:3], refuse)
    made = network.propose(members[0], replace_rules())["proposalId"]
    network.vote(members[0], made, False)
    assert network.vote(members[1], made, False)["proposalState"] == "Rejected", "no supermajority is left for it"
    document = {"network": "n", "members": [{"cert": members[0].pem}], "insecure_virtual": True, "production": False}
    document |= {"recovery_threshold": 1}
    for share in ("1/2", "3/2", "0/1", "2/0", "two thirds", "", "67"):
        with pytest.raises(ConfigurationError):
            Genesis.parse(json.dumps({**document, "rules_supermajority": share}).encode())


def test_in_production_the_way_out_names_the_service(members):
    shut = Network(members[:3], closed({"validate": "return 'no'"}), production=True)
    refused(lambda: shut.propose(members[0], replace_rules()), "gov.proposal_invalid")


# --- E5: how long, how many, and of when --------------------------------------------------------------------------------


@attack(
    "E5",
    was="a proposal of years ago was accepted by the ballot that it still lacked",
    now="it expires after what members have set (30 days), and its ballot is refused",
)
def test_a_proposal_expires_and_a_later_request_says_so(network, members):
    old = network.propose(members[0], body=members[0].sign("proposal", {"actions": [NOTHING]}, at=NOW_S))
    identity, ends_s = old["proposalId"], NOW_S + 30 * DAY_S
    assert old["expiresAtSeconds"] == ends_s
    ballot = lambda member, at: member.sign("ballot", {"vote": True}, identity, at=at)  # noqa: E731
    network.vote(members[0], identity, body=ballot(members[0], ends_s))
    late = ballot(members[1], ends_s + 1)
    refused(lambda: network.vote(members[1], identity, body=late), "gov.proposal_expired")
    # A request that names a later time closes it; one that is ahead by no more than it may be does not.
    slack = limits.MESSAGE_AHEAD_SECONDS_MAX
    for at, state in ((ends_s + slack, "Open"), (ends_s + slack + 1, "Dropped")):
        network.propose(members[2], body=members[2].sign("proposal", {"actions": [NOTHING]}, at=at))
        assert network.proposals.show(network, identity)["proposalState"] == state
    assert network.proposals.show(network, identity)["failure"]["code"] == "gov.proposal_expired"


def test_what_has_expired_is_not_listed_as_open(network, members):
    network.propose(members[0], body=members[0].sign("proposal", {"actions": [NOTHING]}, at=NOW_S))
    for days, open_ones in ((0, 1), (30, 1), (31, 0)):
        network.proposals = Proposals(network._call, functools.partial(int, NOW_S + days * DAY_S))
        assert len(network.proposals.listed(network, Page()).rows) == open_ones


@attack(
    "E5",
    was="one member filled the ledger and everybody's list with open proposals",
    now="each member has so many open at once, and the refusal says how many",
)
def test_a_member_has_so_many_open_proposals_and_the_others_theirs(network, members):
    made = [
        network.propose(members[0], action("remove_user", user_id=str(n))) for n in range(limits.OPEN_PROPOSALS_MAX)
    ]
    with pytest.raises(Exception, match=f"may have {limits.OPEN_PROPOSALS_MAX}") as error:
        network.propose(members[0], NOTHING)
    assert getattr(error.value, "code", "") == "gov.too_many_proposals"
    network.propose(members[1], NOTHING)
    network.withdraw(members[0], made[0]["proposalId"])
    network.propose(members[0], NOTHING)


@attack(
    "E5",
    was="messages dated 1970 or 2100 were taken",
    now="a node takes those of about its own time, and says which",
)
@pytest.mark.parametrize("at", [0, NOW_S - 8 * DAY_S, NOW_S + 2 * 3600, 4_102_444_800])
def test_messages_of_another_time_are_refused(network, members, at):
    first, second, third = members[:3]
    made = network.propose(first, body=first.sign("proposal", {"actions": [NOTHING]}, at=NOW_S))["proposalId"]
    network.proposals = Proposals(network._call, lambda: NOW_S)
    before = dict(network.rows)
    sign = lambda kind, payload, about="": second.sign(kind, payload, about, at=at)  # noqa: E731
    for call in (
        lambda: network.propose(second, body=sign("proposal", {"actions": [NOTHING]})),
        lambda: network.vote(second, made, body=sign("ballot", {"vote": True}, made)),
        lambda: network.take(network.proposals.withdraw(made, first.sign("withdrawal", {}, made, at=at), network)),
        lambda: network.proposals.state_digest(second.id, sign("state_digest", {}), network, bytes(32)),
        lambda: network.proposals.acknowledge(second.id, sign("ack", {"state_digest": ""}), network),
    ):
        refused(call, "gov.wrong_time")
        assert network.rows == before
    network.vote(third, made, body=third.sign("ballot", {"vote": True}, made, at=NOW_S - 6 * DAY_S))


def test_what_was_taken_in_time_has_its_answer_for_ever(network, members):
    body = members[0].sign("proposal", {"actions": [NOTHING]}, at=NOW_S)
    made = network.propose(members[0], body=body)
    ballot = members[1].sign("ballot", {"vote": False}, made["proposalId"], at=NOW_S)
    voted = network.vote(members[1], made["proposalId"], body=ballot)
    network.proposals = Proposals(network._call, lambda: NOW_S + 20 * DAY_S)
    assert network.propose(members[0], body=body) == voted
    assert network.vote(members[1], made["proposalId"], body=ballot) == voted


# --- G4: who leaves takes its ballots along --------------------------------------------------------------------------------


@attack(
    "G4",
    was="a ballot of a member who was removed and readmitted counted again",
    now="removal voids it, and so it stays when it is sent again; a ballot signed afterwards counts",
)
def test_a_ballot_of_a_member_who_was_removed_counts_no_more(members):
    network = Network(members, MAJORITY)
    leaver, others = members[3], members[:3]
    made = network.propose(others[0], body=others[0].sign("proposal", {"actions": [NOTHING]}, at=NOW_S))["proposalId"]
    ballot = leaver.sign("ballot", {"vote": True}, made, at=NOW_S + 20)
    network.vote(leaver, made, body=ballot)
    accept(network, others, action("remove_member", member_id=leaver.id), at=NOW_S + 10)
    assert network.proposals.show(network, made)["ballotSubmitters"] == []
    readmit(network, others, leaver, at=NOW_S + 30)
    refused(lambda: network.vote(leaver, made, body=ballot), "gov.ballot_void")
    assert network.proposals.show(network, made)["ballotCount"] == 0
    fresh = leaver.sign("ballot", {"vote": True}, made, at=NOW_S + 40)
    assert network.vote(leaver, made, body=fresh)["ballotSubmitters"] == [leaver.id]


@attack(
    "G4",
    was="a proposal that lacked the vote of a member who left stayed open for ever: everybody else had voted",
    now="it is decided when the member leaves, and so is whatever that decides in turn",
)
def test_what_only_a_member_who_left_held_up_is_decided_at_once(members):
    network = Network(members, constitutions.text("m-of-n").replace("M = 2", "M = 3"))
    first, second, third, fourth = members
    waits = network.propose(first, action("set_user", cert=fourth.pem))["proposalId"]
    for member, vote in ((first, True), (second, True), (third, False)):
        network.vote(member, waits, vote)
    against = network.propose(first, NOTHING)["proposalId"]
    network.vote(fourth, against, True)
    network.vote(second, against, False)
    accept(network, [first, second, third], action("remove_member", member_id=fourth.id))
    # Three are left; one of them is against each of the two, and three would be needed.
    assert network.proposals.show(network, waits)["proposalState"] == "Rejected"
    assert network.proposals.show(network, against)["proposalState"] == "Rejected"
    assert network.get(tables.USERS_CERTS, fourth.id.encode()) is None

    network = Network(members, constitutions.text("unanimous"))
    chain = network.propose(first, action("remove_member", member_id=third.id))["proposalId"]
    last = network.propose(first, action("set_user", cert=third.pem))["proposalId"]
    for voter in (first, second):
        network.vote(voter, chain)
        network.vote(voter, last)
    network.put(tables.CONSTITUTION, tables.SINGLETON, tables.row(MAJORITY))
    accept(network, [first, second, third], action("remove_member", member_id=fourth.id))
    assert network.proposals.show(network, chain)["proposalState"] == "Accepted", "two of three are enough"
    assert network.document(tables.MEMBERS_INFO, third.id) is None
    assert network.proposals.show(network, last)["proposalState"] == "Accepted", "both of two"
    assert network.get(tables.USERS_CERTS, third.id.encode()) is not None


@attack(
    "G4",
    was="a proposal whose proposer left could not be withdrawn by anybody",
    now="any active member withdraws it; one that replaces the rules is left to the votes",
)
def test_a_proposal_whose_proposer_left_can_be_withdrawn_or_decided(members):
    network = Network(members, MAJORITY)
    leaver, others = members[3], members[:3]
    orphans = [
        network.propose(leaver, one)["proposalId"]
        for one in (NOTHING, replace_rules(MAJORITY + "#"), action("remove_user", user_id="y"))
    ]
    refused(lambda: network.withdraw(others[0], orphans[0]), "gov.not_the_proposer")
    accept(network, others, action("remove_member", member_id=leaver.id))
    refused(lambda: network.withdraw(leaver, orphans[0]), "gov.not_a_member")
    refused(lambda: network.withdraw(others[0], orphans[1]), "gov.not_the_proposer")
    assert network.withdraw(others[0], orphans[0])["proposalState"] == "Withdrawn"
    network.vote(others[0], orphans[2])
    assert network.vote(others[1], orphans[2])["proposalState"] == "Accepted"


# --- F: what is no text, and accounts that are none ------------------------------------------------------------------


@attack("F", was="half a surrogate pair in the name of an action: node.internal, 500", now="gov.malformed, 400")
@pytest.mark.parametrize(
    "content",
    [
        {"actions": [{"name": "\ud800", "args": {}}]},
        {"actions": [action("set_member_data", member_id="\udfff", member_data={})]},
        {"actions": [action("set_member_data", member_id="00", member_data={"\ud800": 1})]},
        {"actions": [action("set_constitution", constitution="\ud800")]},
        {"actions": [{"name": "set_user", "args": {"\udbff": 1}}]},
        {"actions": [], "\ud800": 1},
    ],
)
def test_half_a_surrogate_pair_is_no_text_anywhere_in_a_proposal(network, members, content):
    body = members[0].sign("proposal", content)
    refused(lambda: network.propose(members[0], body=body), "gov.malformed")


@attack("F", was="the same in any other message", now="gov.malformed, or no message of that kind")
@pytest.mark.parametrize("payload", [{"vote": "\ud800"}, {"vote": True, "\ud800": 1}, "\udfff"])
def test_half_a_surrogate_pair_is_no_text_in_a_ballot(network, members, payload):
    made = network.propose(members[0], action("set_member_data", member_id=members[1].id, member_data={}))
    body = members[1].sign("ballot", payload, made["proposalId"])
    refused(lambda: network.vote(members[1], made["proposalId"], body=body), "gov.malformed")


BAD_ACCOUNTS = [
    ["zz"],
    ["0x00"],
    [7],
    [None],
    ["0x" + "1" * 41],
    "0x" + "11" * 20,
    {"0x": 1},
    ["0x" + "11" * 20] * 1001,
]


@attack(
    "F",
    was='user_data {"accounts": ["zz"]} is accepted, and makes the participant\'s connections close without a word',
    now="configuration.bad_accounts; where a ledger has it, it is nobody's account",
)
@pytest.mark.parametrize("accounts", BAD_ACCOUNTS, ids=repr)
def test_accounts_that_are_none_are_never_written(network, members, accounts):
    said = {"accounts": accounts}
    made = network.propose(members[0], action("set_user", cert=members[3].pem, user_data=said))
    for voter in members[:2]:
        made = network.vote(voter, made["proposalId"]) if made["proposalState"] == "Open" else made
    assert made["proposalState"] == "Failed" and "accounts" in made["failure"]["reason"]
    assert network.document(tables.USERS_INFO, members[3].id) is None
    document: dict[str, Any] = {
        "network": "n",
        "members": [{"cert": members[0].pem}],
        "participants": [{"cert": members[3].pem, "user_data": said}],
        **SANDBOX,
    }
    document["members"][0]["encryption_public_key"] = rsa_pem()
    with pytest.raises(ConfigurationError) as error:
        Genesis.parse(json.dumps(document).encode()).check_founding()
    assert error.value.code == "configuration.bad_accounts"
    assert participants.identities(said).get("ethereum", frozenset()) <= {bytes.fromhex("11" * 20)}
