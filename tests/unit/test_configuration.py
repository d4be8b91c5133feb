"""Organisations, owners, settings, identities and code: what members vote on besides each other."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from test_governance import NOTHING, OTHER_SERVICE, ROOT, SERVICE, TIME_MS, Network, action, refused, rsa_pem

from coco import constitutions
from coco.enclave.certificates import Certificates
from coco.enclave.configuration import nodes
from coco.enclave.configuration.actors import Actors
from coco.enclave.configuration.draft import Draft, Validity
from coco.enclave.configuration.genesis import Genesis
from coco.enclave.configuration.proposals import Proposals
from coco.enclave.core.identity import ServiceIdentity, endorsed_names, pem
from coco.errors import ConfigurationError, GovernanceError
from coco.ledger import tables
from coco.ledger.statements import fingerprint
from members import Leaf, Member, Organisation


@pytest.fixture(scope="module")
def members(tmp_path_factory):
    directory = tmp_path_factory.mktemp("members")
    return [Member(directory, f"m{number}") for number in range(4)]


def test_any_leaf_of_an_organisation_signs_for_it_until_it_ends_or_is_denied(members, tmp_path):
    organisation = Organisation(tmp_path, "org")
    network: Any = Network(members[:2], constitutions.text("majority"))
    network.add(organisation)
    first, second = organisation.leaf("first"), organisation.leaf("second")
    made = network.propose(first, NOTHING)
    assert made["proposerId"] == organisation.id
    network.vote(second, made["proposalId"])
    refused(lambda: network.vote(first, made["proposalId"], False), "gov.vote_exists")
    assert network.vote(members[0], made["proposalId"])["proposalState"] == "Accepted"
    # A leaf of nobody's, one whose time is over, and one that members have denied.
    stranger = Organisation(tmp_path, "other").leaf("x")
    refused(lambda: network.propose(stranger, NOTHING), "gov.not_a_member")
    refused(lambda: network.propose(organisation.leaf("old", days=0), NOTHING), "gov.not_a_member")
    network.put(tables.DENIED_CERTIFICATES, fingerprint(second.certificate).encode(), b"true")
    refused(lambda: network.propose(second, NOTHING), "gov.not_a_member")
    assert network.propose(first, NOTHING)["proposalState"] == "Open"
    # Whoever holds a key whose time is over cannot name an earlier time.
    judge = Proposals(network._call, lambda: 9000)
    with pytest.raises(GovernanceError) as late:
        asyncio.run(judge.create(first.sign("proposal", {"actions": [NOTHING]}), network, ROOT))
    assert late.value.code == "gov.too_old"
    # A leaf shown with another's signature says nothing.
    forged = Leaf(organisation.id, members[3].key, first.certificate)
    refused(lambda: network.propose(forged, NOTHING), "cose.bad_signature")


def test_G4_no_two_actors_share_a_key_and_no_two_organisations_a_name(members, tmp_path):
    network = Network(members[:3], constitutions.text("sandbox"))
    one, other = Organisation(tmp_path, "a"), Organisation(tmp_path, "b")
    same_key = pem(one.issue("leaf", one.key))
    for name in ("set_user", "set_member"):
        assert network.propose(members[0], action(name, cert=one.pem))["proposalState"] == "Accepted"
        for certificate, code in ((other.pem, "gov.duplicate_name"), (same_key, "gov.duplicate_key")):
            done = network.propose(members[0], action(name, cert=certificate))
            assert (done["proposalState"], done["failure"]["code"]) == ("Failed", code)


def test_G4_a_genesis_names_nobody_twice(members, tmp_path):
    one, other = Organisation(tmp_path, "a"), Organisation(tmp_path, "b")
    same_key = pem(one.issue("leaf", one.key))
    genesis: dict[str, Any] = {"network": "test", "members": [{"cert": members[0].pem}], "recovery_threshold": 1}
    genesis["members"][0]["encryption_public_key"] = "x"
    for kind in ("members", "participants", "operators"):
        entry: dict[str, Any] = {"addresses": []} if kind == "operators" else {}
        for twin in (other.pem, same_key, one.pem):
            double = {**genesis, kind: [*genesis.get(kind, []), *({"cert": cert, **entry} for cert in (one.pem, twin))]}
            with pytest.raises(ConfigurationError) as refused_with:
                Genesis.parse(json.dumps(double).encode())
            assert refused_with.value.code == "configuration.genesis" and "another actor" in str(refused_with.value)
    alone = {**genesis, "members": [*genesis["members"], {"cert": one.pem}], "participants": [{"cert": one.pem}]}
    assert len(Genesis.parse(json.dumps(alone).encode()).members) == 2, "one of each kind may be the same"


def test_G1_a_proposal_names_its_service_and_counts_in_no_other(members):
    change = action("set_recovery_threshold", recovery_threshold=1)
    named = action("assert_service_identity", service_identity=SERVICE)
    for rules in ("majority", "unanimous", "m-of-n", "operator"):
        production = Network(members[:3], constitutions.text(rules), production=True)
        refused(lambda network=production: network.propose(members[0], change), "gov.proposal_invalid")
        other = action("assert_service_identity", service_identity=OTHER_SERVICE)
        refused(lambda network=production, other=other: network.propose(members[0], other, change), "gov.other_service")
        assert production.propose(members[0], named, change)["proposalState"] == "Open"
    # Rules of this kind can still be replaced in production.
    network = Network(members[:3], constitutions.text("majority"), production=True)
    rules = action("set_constitution", constitution=constitutions.text("unanimous"))
    made = network.propose(members[0], named, rules)["proposalId"]
    network.vote(members[0], made)
    assert network.vote(members[1], made)["proposalState"] == "Accepted"


def test_an_owner_recovers_alone_and_counts_beside_the_threshold(members):
    network: Any = Network(members[:3], constitutions.text("sandbox"))
    owner = action("set_member", cert=members[1].pem, encryption_pub_key=rsa_pem(), recovery_role="Owner")
    assert network.propose(members[0], owner)["proposalState"] == "Accepted"
    keeping = Draft(network).keepers()
    assert set(keeping.members) == {members[0].id} and set(keeping.owners) == {members[1].id}
    # With an owner, no share of the others is needed.
    gone = network.propose(members[0], action("set_recovery_threshold", recovery_threshold=3))
    assert gone["proposalState"] == "Accepted"
    without = action("set_member", cert=members[1].pem, recovery_role="NonParticipant")
    assert network.propose(members[0], without)["failure"]["code"] == "gov.not_recoverable"


def test_dropped_code_takes_its_nodes_with_it_if_the_others_can_go_on(members):
    network = Network(members[:3], constitutions.text("sandbox"))
    for number in (2, 3):
        row = {"status": nodes.TRUSTED, "engine": number, "measurement": "n", "peer_address": "b:1", "owner": ""}
        network.put(tables.NODES_INFO, b"node%d" % number, tables.row(row))
    network.put(tables.NODE_MEASUREMENTS, b"n", nodes.ALLOWED)
    most = network.propose(members[0], action("remove_virtual_measurement", measurement="n"))
    assert most["failure"]["code"] == "gov.no_quorum_left"
    done = network.propose(members[0], action("remove_virtual_measurement", measurement="m"))
    assert done["proposalState"] == "Accepted"
    statuses = {key: json.loads(row)["status"] for key, row in network.scan(tables.NODES_INFO)}
    assert statuses == {b"founder": nodes.RETIRED, b"node2": nodes.TRUSTED, b"node3": nodes.TRUSTED}


ADMITTED = {"majority": True, "m-of-n": True, "operator": True, "sandbox": True, "unanimous": False}


@pytest.mark.parametrize("rules", ADMITTED)
def test_rules_say_which_nodes_need_no_vote(members, rules):
    network: Any = Network(members[:3], constitutions.text(rules))
    network.put(tables.SERVICE_INFO, tables.SINGLETON, tables.row({"status": "Open", "cert": SERVICE}))
    node = {"address": "a:1", "owner": "x", "measurement": "m", "host_names": [], "replaces": None}
    assert asyncio.run(network.proposals.admits(node, network)) is ADMITTED[rules]


def test_default_visibility_decides_what_every_participant_sees(members):
    network: Any = Network(members[:3], constitutions.text("sandbox"))
    erin = members[3]
    network.propose(members[0], action("set_user", cert=erin.pem))
    der = erin.certificate.public_bytes(Encoding.DER)
    now_ms = int(erin.certificate.not_valid_before_utc.timestamp() * 1000) + 1

    def sees_all() -> bool:
        return Actors(network, now_ms).caller(der).caller.auditor

    assert not sees_all()
    for value, wanted in (("participants", True), ("private", False)):
        network.propose(members[0], action("set_service_configuration", default_visibility=value))
        assert sees_all() is wanted


def test_J9_a_certificate_is_renewed_before_it_ends_with_its_key_and_names(members):
    network: Any = Network(members[:3], constitutions.text("sandbox"))
    day_ms, now_ms = 24 * 3600 * 1000, TIME_MS
    service = ServiceIdentity.generate(now_ms)
    network.put(tables.SERVICE_INFO, tables.SINGLETON, tables.row({"cert": pem(service.certificate)}))
    certificates, key = Certificates(service), ec.generate_private_key(ec.SECP384R1()).public_key()
    row = next(one for one in nodes.rows(network) if one.node_id == "founder")
    issued = certificates.issue(key, row, ["node.example", "10.0.0.1"], network, now_ms)
    network.put(*issued)
    assert certificates.due(network, now_ms) == {} == certificates.due(network, now_ms + 4 * day_ms)
    due = certificates.due(network, now_ms + 5 * day_ms)
    assert due == {"founder": Validity(None, 7)}
    ((table, name, value),) = certificates.renewed(due, network, now_ms + 5 * day_ms)
    renewed = x509.load_pem_x509_certificate(value or b"")
    assert (table, name) == (tables.NODE_CERTIFICATES, b"founder") and renewed.public_key() == key
    assert endorsed_names(renewed) == ["node.example", "10.0.0.1"]
    network.put(table, name, value)
    assert certificates.due(network, now_ms + 6 * day_ms) == {}
    # As long as members have said, and no node that has left.
    network.propose(members[0], action("set_node_certificate_validity", node_id="founder", validity_period_days=2))
    short = certificates.renewed(network.renewed, network, now_ms)
    network.put(*short[0])
    assert certificates.due(network, now_ms + 2 * day_ms) == {"founder": Validity(None, 2)}
    network.put(
        tables.NODES_INFO,
        b"founder",
        tables.row({**json.loads(network.get(tables.NODES_INFO, b"founder")), "status": nodes.RETIRED}),
    )
    assert certificates.due(network, now_ms + 2 * day_ms) == {}
