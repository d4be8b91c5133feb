"""Proposals, votes and actions without a node: every state, every refusal, and a model of the majority."""

from __future__ import annotations

import asyncio
import json
from hashlib import sha256
from typing import Any

import cbor2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coco import constitutions
from coco.configuration import nodes
from coco.configuration.actions import ACTIONS
from coco.configuration.draft import Validity
from coco.configuration.reads import Page
from coco.errors import AccessError, GovernanceError, RequestError
from coco.ledger import tables
from governed import NOTHING, OTHER_SERVICE, ROOT, SERVICE, Network, action, refused, rsa_pem
from members import Member, node_row

_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFC7634D81F4372DDF581A0DB248B0A77AECEC196ACCC52973


@pytest.fixture(scope="module")
def members(tmp_path_factory):
    directory = tmp_path_factory.mktemp("members")
    return [Member(directory, f"m{number}") for number in range(4)]


@pytest.fixture
def network(members):
    return Network(members[:3], constitutions.text("majority"))


def test_a_majority_accepts_and_the_ledger_says_who_voted_what(network, members):
    made = network.propose(members[0], action("set_user", cert=members[3].pem, user_data={"name": "x"}))
    assert (made["proposalState"], made["ballotCount"]) == ("Open", 0)
    identity = made["proposalId"]
    assert [one["proposalId"] for one in network.proposals.listed(network, Page()).rows] == [identity]
    assert network.vote(members[0], identity)["proposalState"] == "Open"
    assert network.get(tables.USERS_CERTS, members[3].id.encode()) is None, "no effect before acceptance"
    done = network.vote(members[1], identity)
    assert done["proposalState"] == "Accepted"
    assert done["finalVotes"] == {members[0].id: True, members[1].id: True}
    assert network.get(tables.USERS_CERTS, members[3].id.encode()) == members[3].pem.encode()
    assert network.proposals.listed(network, Page()).rows == []
    assert network.get(tables.COSE_HISTORY, members[1].id.encode())


def test_G1_a_request_counts_once_in_every_form(network, members):
    body = members[0].sign("proposal", {"actions": [NOTHING]})
    made = network.propose(members[0], body=body)
    assert network.propose(members[0], body=body) == made, "the same again is the same"
    # The other form of the same signature, and another envelope around it.
    tagged = cbor2.loads(body)
    protected, unprotected, payload, signature = tagged.value
    s = int.from_bytes(signature[48:], "big")
    flipped = signature[:48] + (_ORDER - s).to_bytes(48, "big")
    for other in ([protected, unprotected, payload, flipped], [protected, {"x": 1}, payload, signature]):
        again = cbor2.dumps(cbor2.CBORTag(18, other))
        assert network.propose(members[0], body=again) == made
    assert len(list(network.scan(tables.PROPOSALS))) == 1
    # A ballot again is the same; another one is refused.
    ballot = members[1].sign("ballot", {"vote": False}, made["proposalId"])
    first = network.vote(members[1], made["proposalId"], body=ballot)
    assert network.vote(members[1], made["proposalId"], body=ballot) == first
    refused(lambda: network.vote(members[1], made["proposalId"], True), "gov.vote_exists")


def test_G1_each_member_has_a_window_of_its_own(network, members):
    old = members[1].sign("proposal", {"actions": [NOTHING]}, at=10)
    made = network.propose(members[1], body=old)
    for number in range(6):
        network.propose(members[0], action("remove_user", user_id=str(number)))
    assert network.propose(members[1], body=old) == made, "another member's requests push none of mine out"
    recent = [key for key, _ in network.scan(tables.COSE_RECENT)]
    assert sum(key.startswith(members[0].id.encode()) for key in recent) == 3
    stale = members[0].sign("proposal", {"actions": [NOTHING]}, at=5)
    refused(lambda: network.propose(members[0], body=stale), "gov.too_old")


def test_who_may_not_is_refused_and_nothing_changes(network, members):
    made = network.propose(members[0], NOTHING)["proposalId"]
    before = dict(network.rows)
    stranger = members[3]
    for call, code in (
        (lambda: network.propose(stranger, NOTHING), "gov.not_a_member"),
        (lambda: network.vote(stranger, made), "gov.not_a_member"),
        (lambda: network.withdraw(members[1], made), "gov.not_the_proposer"),
        (lambda: network.vote(members[1], "ab" * 32), "gov.unknown_proposal"),
        (lambda: network.vote(members[1], made, "yes"), "gov.malformed"),
        (lambda: network.vote(members[1], made, body=members[1].sign("ballot", {}, made)), "gov.malformed"),
        (lambda: network.vote(members[1], made, body=members[1].sign("proposal", {}, made)), "gov.wrong_message_type"),
        (lambda: network.vote(members[1], made, body=members[1].sign("ballot", {"vote": True})), "gov.wrong_proposal"),
        (
            lambda: network.vote(members[1], made, body=members[2].sign("ballot", {"vote": True}, made)),
            "gov.wrong_member",
        ),
        (lambda: network.propose(members[0], body=b"\xff"), "cose.malformed"),
        (lambda: network.propose(members[0], body=members[0].sign("proposal", {"actions": []})), "gov.malformed"),
        (lambda: network.propose(members[0], body=members[0].sign("proposal", [])), "gov.malformed"),
        (lambda: network.propose(members[0], action("no_such")), "gov.unknown_action"),
        (lambda: network.propose(members[0], {"name": [], "args": {}}), "gov.unknown_action"),
        (lambda: network.propose(members[0], {"name": "set_user", "args": []}), "gov.unknown_action"),
    ):
        refused(call, code)
        assert network.rows == before
    broken = bytearray(members[0].sign("proposal", {"actions": [NOTHING]}))
    broken[-1] ^= 1
    refused(lambda: network.propose(members[0], body=bytes(broken)), "cose.bad_signature")
    network.add(members[3], "Accepted")
    refused(lambda: network.propose(members[3], NOTHING), "gov.not_active")
    refused(lambda: network.vote(members[3], made), "gov.not_active")


def test_a_proposal_ends_once(network, members):
    withdrawn = network.propose(members[0], NOTHING)["proposalId"]
    network.vote(members[1], withdrawn)
    assert network.withdraw(members[0], withdrawn)["proposalState"] == "Withdrawn"
    assert network.withdraw(members[0], withdrawn)["proposalState"] == "Withdrawn"
    refused(lambda: network.vote(members[2], withdrawn), "gov.proposal_closed")
    rejected = network.propose(members[0], NOTHING)["proposalId"]
    network.vote(members[1], rejected, False)
    assert network.vote(members[2], rejected, False)["proposalState"] == "Rejected"
    refused(lambda: network.vote(members[0], rejected), "gov.proposal_closed")
    refused(lambda: network.withdraw(members[0], rejected), "gov.proposal_closed")


def test_what_fails_is_failed_with_its_reason_and_changes_nothing_else(network, members):
    good = action("set_user", cert=members[3].pem)
    made = network.propose(members[0], good, action("set_member_data", member_id="nobody", member_data={}))
    network.vote(members[0], made["proposalId"])
    done = network.vote(members[1], made["proposalId"])
    assert done["proposalState"] == "Failed" and done["failure"]["code"] == "gov.unknown_member"
    assert "action 1" in done["failure"]["reason"]
    assert network.get(tables.USERS_CERTS, members[3].id.encode()) is None, "all of it or nothing"


@pytest.mark.parametrize(
    ("actions", "code"),
    [
        ([action("remove_node", node_id="founder")], "gov.no_node_left"),
        ([action("remove_virtual_measurement", measurement="m")], "gov.no_node_left"),
        ([action("set_recovery_threshold", recovery_threshold=2)], "gov.not_recoverable"),
        ([action("set_recovery_threshold", recovery_threshold=0)], "gov.bad_argument"),
        ([action("set_recovery_threshold", recovery_threshold=True)], "gov.bad_argument"),
        ([action("transition_node_to_trusted", node_id="founder")], "gov.node_not_pending"),
        ([action("transition_node_to_trusted", node_id="none")], "gov.unknown_node"),
        ([action("set_user", cert="no pem")], "gov.bad_argument"),
        ([action("set_user", cert="x", user_data=[])], "gov.bad_argument"),
        ([action("set_member", cert="no pem")], "gov.bad_argument"),
        ([action("set_operator", cert="no pem", addresses=["a"])], "gov.bad_argument"),
        ([action("set_operator", cert=SERVICE, addresses=[1])], "gov.bad_argument"),
        ([action("set_member", cert=SERVICE, recovery_role="Owner")], "gov.bad_argument"),
        ([action("set_service_configuration", epoch_length_s=1)], "gov.bad_argument"),
        ([action("set_service_configuration", no_such=1)], "gov.bad_argument"),
        ([action("set_service_configuration", default_visibility="everyone")], "gov.bad_argument"),
        ([action("set_node_certificate_validity", node_id="founder", validity_period_days=8)], "gov.bad_argument"),
        ([action("set_node_certificate_validity", node_id="founder", valid_from="soon")], "gov.bad_argument"),
        ([action("set_node_certificate_validity", node_id="none")], "gov.unknown_node"),
        ([action("set_service_certificate_validity", validity_period_days=0)], "gov.bad_argument"),
        ([action("transition_service_to_open", next_service_identity=OTHER_SERVICE)], "gov.other_service"),
        ([action("transition_service_to_open", next_service_identity=SERVICE, nodes=["x"])], "gov.other_nodes"),
        ([action("add_node_code", code_id="short")], "gov.bad_argument"),
        ([action("add_snp_measurement", measurement="z" * 96)], "gov.bad_argument"),
        ([action("add_snp_host_data", host_data="0" * 64, security_policy="p")], "gov.bad_argument"),
        ([action("add_snp_tcb_version", cpuid="00a00f11", tcb_version={"snp": 256})], "gov.bad_argument"),
        ([action("remove_snp_tcb_version", cpuid="00a00f11")], "gov.unknown_processor"),
        ([action("set_tee_policy", tee="sgx", tcb_states=["Perfect"])], "gov.bad_argument"),
        ([action("set_tee_policy", tee="virtual", tcb_states=["UpToDate"])], "gov.bad_argument"),
        ([action("deny_certificate", fingerprint="xyz")], "gov.bad_argument"),
        ([action("set_user_data", user_id="none", user_data={})], "gov.unknown_user"),
        ([action("set_constitution", constitution="def f(:")], "gov.rules_failed"),
        ([action("set_constitution", constitution=constitutions.text("majority") + "\nfail('x')")], "gov.rules_failed"),
    ],
)
def test_what_must_hold_holds_under_any_constitution(members, actions, code):
    network = Network(members[:3], constitutions.text("sandbox"))
    before = network.document(tables.SERVICE_CONFIG, "\0" * 8)
    done = network.propose(members[0], *actions)
    assert (done["proposalState"], done["failure"]["code"]) == ("Failed", code)
    assert network.document(tables.SERVICE_CONFIG, "\0" * 8) == before


def test_every_action_is_accepted_and_leaves_its_rows(members):
    network = Network(members[:3], constitutions.text("sandbox"))
    pending = node_row(status=nodes.PENDING, engine=2, measurement="m", peer_address="b:1", owner="")
    network.put(tables.NODES_INFO, b"second", tables.row(pending))
    network.put(tables.NODES_INFO, b"third", tables.row({**pending, "engine": 3}))
    new, pem = members[3], rsa_pem()
    done = set()

    def accepted(name: str, **args: Any) -> None:
        answer = network.propose(members[0], action(name, **args))
        assert answer["proposalState"] == "Accepted", answer
        done.add(name)

    accepted("set_member", cert=new.pem, encryption_pub_key=pem, member_data={"name": "new"})
    assert network.document(tables.MEMBERS_INFO, new.id) == {"status": "Accepted", "member_data": {"name": "new"}}
    assert network.reshared == [], "a member gets a share once it is active"
    digest = network.take(network.proposals.state_digest(new.id, new.sign("state_digest", {}), network, ROOT))
    wrong = new.sign("ack", {"state_digest": "00"})
    refused(lambda: network.proposals.acknowledge(new.id, wrong, network), "gov.wrong_state_digest")
    right = new.sign("ack", {"state_digest": digest["stateDigest"]})
    network.take(network.proposals.acknowledge(new.id, right, network))
    assert network.document(tables.MEMBERS_INFO, new.id)["status"] == "Active"
    assert network.reshared == [({members[0].id, new.id}, 1)]
    accepted("set_recovery_threshold", recovery_threshold=2)
    accepted("trigger_recovery_shares_refresh")
    assert network.reshared[1:] == [({members[0].id, new.id}, 2)] * 2
    accepted("set_member_data", member_id=new.id, member_data={"a": 1})
    assert network.document(tables.MEMBERS_INFO, new.id) == {"status": "Active", "member_data": {"a": 1}}
    refusal = network.propose(members[0], action("remove_member", member_id=new.id))
    assert refusal["failure"]["code"] == "gov.not_recoverable"
    accepted("set_recovery_threshold", recovery_threshold=1)
    accepted("remove_member", member_id=new.id)
    assert network.get(tables.MEMBERS_CERTS, new.id.encode()) is None
    assert network.rekeyed == 1, "who left takes no later secret"
    accepted("remove_member", member_id=new.id)  # idempotent, as the open format has it
    accepted("set_user", cert=new.pem, user_data={"x": 1})
    accepted("set_user_data", user_id=new.id, user_data={"x": 2})
    assert network.document(tables.USERS_INFO, new.id) == {"user_data": {"x": 2}}
    accepted("remove_user", user_id=new.id)
    assert network.get(tables.USERS_INFO, new.id.encode()) is None
    accepted("set_operator", cert=new.pem, addresses=["10.0.0.1"])
    assert network.document(tables.OPERATORS, new.id)["addresses"] == ["10.0.0.1"]
    accepted("remove_operator", operator_id=new.id)
    accepted("transition_node_to_trusted", node_id="second")
    assert network.document(tables.NODES_INFO, "second")["status"] == nodes.TRUSTED
    accepted("remove_node", node_id="second")
    assert network.document(tables.NODES_INFO, "second")["status"] == nodes.RETIRED
    accepted("remove_node", node_id="third")
    assert network.get(tables.NODES_INFO, b"third") is None, "a pending one is forgotten"
    accepted("add_virtual_measurement", measurement="n")
    assert network.get(tables.NODE_MEASUREMENTS, b"n") == nodes.ALLOWED
    accepted("remove_virtual_measurement", measurement="n")
    accepted("deny_certificate", fingerprint="AB" * 32)
    assert network.get(tables.DENIED_CERTIFICATES, b"ab" * 32)
    accepted("allow_certificate", fingerprint="ab" * 32)
    assert not network.get(tables.DENIED_CERTIFICATES, b"ab" * 32)
    accepted("set_node_certificate_validity", node_id="founder", validity_period_days=3)
    assert network.renewed == {"founder": Validity(None, 3)}
    accepted("set_all_nodes_certificate_validity", valid_from="270115080000Z")
    assert network.renewed == {"founder": Validity(1_800_000_000, 7)}
    accepted("set_service_certificate_validity", validity_period_days=30, valid_from="2027-01-15T08:00:00Z")
    assert network.renewed_service == Validity(1_800_000_000, 30)
    accepted("set_service_configuration", epoch_length_s=60, default_visibility="participants")
    configured = network.document(tables.SERVICE_CONFIG, "\0" * 8)
    assert configured["epoch_length_s"] == 60 and configured["recent_cose_proposals_window_size"] == 3
    accepted("transition_service_to_open", next_service_identity=SERVICE, nodes=["founder"])
    assert network.document(tables.SERVICE_INFO, "\0" * 8)["status"] == "Open"
    again = network.propose(members[0], action("transition_service_to_open", next_service_identity=SERVICE))
    assert again["failure"]["code"] == "gov.not_opening"
    policy = sha256(b"policy").hexdigest()
    for add, table, key, args in (
        ("add_node_code", tables.NODE_CODE_IDS, "ab" * 32, {"code_id": "AB" * 32}),
        (
            "add_measurement",
            tables.NODE_OTHER_MEASUREMENTS,
            "nitro:" + "ab" * 48,
            {"platform": "nitro", "measurement": "ab" * 48},
        ),
        ("add_snp_measurement", tables.NODE_SNP_MEASUREMENTS, "ab" * 48, {"measurement": "ab" * 48}),
        ("add_tdx_measurement", tables.NODE_TDX_MEASUREMENTS, "ab" * 48, {"measurement": "ab" * 48}),
        (
            "add_snp_host_data",
            tables.NODE_SNP_HOST_DATA,
            policy,
            {"host_data": policy, "security_policy": "policy"},
        ),
        (
            "add_snp_uvm_endorsement",
            tables.NODE_SNP_UVM_ENDORSEMENTS,
            "did:x509:a",
            {"did": "did:x509:a", "feed": "ContainerPlat", "svn": "100"},
        ),
        (
            "add_snp_tcb_version",
            tables.NODE_SNP_TCB_VERSIONS,
            "00A00F11",
            {"cpuid": "00a00f11", "tcb_version": "00" * 8},
        ),
    ):
        accepted(add, **args)
        assert network.get(table, key.encode()) is not None, add
        accepted(add.replace("add_", "remove_"), **args)
        assert network.get(table, key.encode()) is None, add
    accepted("set_tee_policy", tee="sgx", tcb_states=["UpToDate", "SWHardeningNeeded"])
    assert network.document(tables.TEE_POLICY, "sgx") == {"tcb_states": ["SWHardeningNeeded", "UpToDate"]}
    accepted("set_tee_policy", tee="sgx", tcb_states=[])
    assert network.get(tables.TEE_POLICY, b"sgx") is None
    adapter = {"name": "set_adapter", "args": {"name": "kv", "genesis": {"a": 1}}}
    done.add("set_adapter")
    assert network.propose(members[0], adapter)["proposalState"] == "Accepted"
    assert network.document(tables.ADAPTERS, "kv") == {"status": "Accepted", "genesis": {"a": 1}}
    assert network.propose(members[0], adapter)["failure"]["code"] == "gov.adapter_exists"
    accepted("assert_service_identity", service_identity=SERVICE)
    network.rekeyed = 0
    accepted("trigger_ledger_rekey")
    assert network.rekeyed == 1
    accepted("rotate_service_identity")
    assert json.loads(network.get(tables.SUCCESSION, tables.SINGLETON) or b"") == {"status": "Wanted"}
    accepted("set_constitution", constitution=constitutions.text("unanimous"))
    assert done == set(ACTIONS), "every action is tried"
    assert network.propose(members[0], NOTHING)["proposalState"] == "Open", "the new rules are in force"


def test_a_change_of_rules_is_judged_by_the_old_ones_and_drops_what_is_open(network, members):
    other = network.propose(members[2], NOTHING)["proposalId"]
    network.vote(members[0], other)
    change = network.propose(members[0], action("set_constitution", constitution=constitutions.text("unanimous")))
    network.vote(members[0], change["proposalId"])
    assert network.vote(members[1], change["proposalId"])["proposalState"] == "Accepted"
    assert network.proposals.show(network, other)["proposalState"] == "Dropped"
    refused(lambda: network.vote(members[1], other), "gov.proposal_closed")
    # Two of three were enough; now they are not.
    now = network.propose(members[0], NOTHING)["proposalId"]
    network.vote(members[0], now)
    assert network.vote(members[1], now)["proposalState"] == "Open"
    assert network.vote(members[2], now)["proposalState"] == "Accepted"


HOSTILE = {
    "never accepts": "def validate(p, s):\n    return None\ndef resolve(p, v, s):\n    return 'Open'\ndef apply(p, s):\n    return []\n",
    "refuses every change": "def validate(p, s):\n    return 'no'\ndef resolve(p, v, s):\n    return 'Accepted'\ndef apply(p, s):\n    return p['actions']\n",
    "keeps itself": "def validate(p, s):\n    return None\ndef resolve(p, v, s):\n    return 'Accepted'\ndef apply(p, s):\n    return [a for a in p['actions'] if a['name'] != 'set_constitution']\n",
}


@pytest.mark.parametrize("rules", HOSTILE.values(), ids=HOSTILE.keys())
def test_G2_rules_that_nobody_could_replace_are_no_rules(members, rules):
    network = Network(members[:3], constitutions.text("sandbox"))
    done = network.propose(members[0], action("set_constitution", constitution=rules))
    assert (done["proposalState"], done["failure"]["code"]) == ("Failed", "gov.rules_for_ever")


def test_rules_that_fail_leave_the_proposal_as_it_was(members):
    rules = constitutions.text("majority").replace(
        "def apply(proposal, state):", "def apply(proposal, state):\n    fail('oh')"
    )
    network = Network(members[:3], rules)
    made = network.propose(members[0], NOTHING)["proposalId"]
    network.vote(members[0], made)
    done = network.vote(members[1], made)
    assert done["proposalState"] == "Failed" and "constitution:" in done["failure"]["reason"]
    broken = Network(members[:3], rules.replace("def resolve(", "def resolved("))
    refused(lambda: broken.propose(members[0], NOTHING), "gov.rules_failed")
    refused(lambda: Network(members[:3], "").propose(members[0], NOTHING), "gov.no_constitution")


def test_rehearsing_writes_nothing(network, members):
    before = dict(network.rows)
    wanted = [action("set_user", cert=members[3].pem, user_data={"a": 1})]
    found = asyncio.run(network.proposals.rehearse(wanted, network))
    assert network.rows == before
    assert found["before"]["users"] == {} and found["after"]["users"] == {members[3].id: {"a": 1}}
    with pytest.raises(GovernanceError):
        asyncio.run(network.proposals.rehearse([action("no_such")], network))


steps = st.lists(
    st.tuples(st.sampled_from(["propose", "for", "against", "withdraw"]), st.integers(0, 2), st.integers(0, 3)),
    max_size=25,
)


@settings(max_examples=60, deadline=None)
@given(steps)
def test_random_votes_end_as_a_small_model_says(members, story):
    network = Network(members[:3], constitutions.text("majority"))
    model: list[dict[str, Any]] = []
    for step, who, which in story:
        member = members[who]
        if step == "propose":
            made = network.propose(member, action("remove_user", user_id=str(len(model))))
            model.append({"id": made["proposalId"], "by": who, "state": "Open", "votes": {}})
            continue
        if not model:
            continue
        one = model[which % len(model)]
        try:
            if step == "withdraw":
                network.withdraw(member, one["id"])
            else:
                network.vote(member, one["id"], step == "for")
        except (GovernanceError, AccessError, RequestError):
            pass
        if one["state"] == "Open" and step == "withdraw" and who == one["by"]:
            one["state"] = "Withdrawn"
        elif one["state"] == "Open" and step != "withdraw" and who not in one["votes"]:
            one["votes"][who] = step == "for"
            ayes = sum(one["votes"].values())
            one["state"] = "Accepted" if ayes > 1 else "Rejected" if len(one["votes"]) - ayes > 1 else "Open"
    for one in model:
        shown = network.proposals.show(network, one["id"])
        assert (shown["proposalState"], shown["ballotCount"]) == (one["state"], len(one["votes"]))
