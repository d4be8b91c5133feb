"""Organisations, owners, settings, identities and code: what members vote on besides each other."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from coco import constitutions
from coco.configuration import nodes, platforms
from coco.configuration.actors import Actors
from coco.configuration.draft import Draft, Validity
from coco.configuration.genesis import Genesis
from coco.configuration.proposals import Proposals
from coco.crypto.certificates import endorsed_names, pem
from coco.enclave.keys.certificates import Certificates
from coco.enclave.keys.identity import ServiceIdentity
from coco.errors import ConfigurationError, GovernanceError
from coco.ledger import tables
from coco.ledger.statements import fingerprint
from governed import NOTHING, OTHER_SERVICE, ROOT, SERVICE, TIME_MS, Network, action, refused, rsa_pem
from made_evidence import TCB, made_snp
from members import Leaf, Member, Organisation, node_row


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
    replaced = action("set_constitution", constitution=constitutions.text("unanimous"))
    made = network.propose(members[0], named, replaced)["proposalId"]
    network.vote(members[0], made)
    assert network.vote(members[1], made)["proposalState"] == "Accepted"


def test_an_owner_recovers_alone_and_counts_beside_the_threshold(members):
    network: Any = Network(members[:3], constitutions.text("sandbox"))
    owner = action("set_member", cert=members[1].pem, encryption_pub_key=rsa_pem(), recovery_role="Owner")
    assert network.propose(members[0], owner)["proposalState"] == "Accepted"
    keeping = Draft(network).share_holders()
    assert set(keeping.members) == {members[0].id} and set(keeping.owners) == {members[1].id}
    # With an owner, no share of the others is needed.
    gone = network.propose(members[0], action("set_recovery_threshold", recovery_threshold=3))
    assert gone["proposalState"] == "Accepted"
    without = action("set_member", cert=members[1].pem, recovery_role="NonParticipant")
    assert network.propose(members[0], without)["failure"]["code"] == "gov.not_recoverable"


def test_dropped_code_takes_its_nodes_with_it_if_the_others_can_go_on(members):
    network = Network(members[:3], constitutions.text("sandbox"))
    for number in (2, 3):
        row = node_row(status=nodes.TRUSTED, engine=number, measurement="n", peer_address="b:1", owner="")
        network.put(tables.NODES_INFO, b"node%d" % number, tables.row(row))
    network.put(tables.NODE_MEASUREMENTS, b"n", nodes.ALLOWED)
    most = network.propose(members[0], action("remove_virtual_measurement", measurement="n"))
    assert most["failure"]["code"] == "gov.no_quorum_left"
    done = network.propose(members[0], action("remove_virtual_measurement", measurement="m"))
    assert done["proposalState"] == "Accepted"
    statuses = {key: json.loads(row)["status"] for key, row in network.scan(tables.NODES_INFO)}
    assert statuses == {b"founder": nodes.RETIRED, b"node2": nodes.TRUSTED, b"node3": nodes.TRUSTED}


def snp_row(engine: int, **fields: Any) -> bytes:
    """The row of a node under SEV-SNP, with evidence made here."""
    verified = made_snp(**fields).verify()
    row = {
        "status": nodes.TRUSTED,
        "engine": engine,
        "measurement": verified.measurement,
        "verified": verified.to_json(),
    }
    return tables.row({**row, "peer_address": f"c:{engine}", "owner": ""})


def test_H6_running_nodes_are_judged_again_when_the_manifest_changes(members):
    """Three nodes under SEV-SNP with firmware of three ages, and one without a TEE."""
    network = Network(members[:3], constitutions.text("sandbox"))

    def done(name: str, **args: Any) -> Any:
        found = network.propose(members[0], action(name, **args))
        return found["proposalState"], found.get("failure", {}).get("code")

    def trusted() -> set[bytes]:
        rows = {key: json.loads(row) for key, row in network.scan(tables.NODES_INFO)}
        return {key for key, row in rows.items() if row["status"] == nodes.TRUSTED}

    code = made_snp().verify().measurement
    assert done("add_snp_measurement", measurement=code) == ("Accepted", None)
    assert done("set_tee_policy", tee="snp") == ("Accepted", None)
    for number, microcode in ((2, 115), (3, 200), (4, 210)):
        tcb = {**TCB, "microcode": microcode}
        network.put(tables.NODES_INFO, b"snp%d" % number, snp_row(number, tcb=tcb, certified=tcb))
    assert done("add_virtual_measurement", measurement="other") == ("Accepted", None)
    assert trusted() == {b"founder", b"snp2", b"snp3", b"snp4"}, "nothing changed for any of them"
    # A floor of firmware takes the oldest out; one that would take most of them is no floor yet.
    too_high = {"boot_loader": 3, "tee": 0, "snp": 8, "microcode": 205}
    assert done("add_snp_tcb_version", cpuid="00a00f11", tcb_version=too_high) == ("Failed", "gov.no_quorum_left")
    assert done("add_snp_tcb_version", cpuid="00a00f11", tcb_version="b908000000000003") == ("Accepted", None)
    assert trusted() == {b"founder", b"snp3", b"snp4"}
    # A rule of the platform: no more than two bits of its information.
    assert done("set_tee_policy", tee="snp", platform_info="0" * 16) == ("Failed", "gov.no_quorum_left")
    assert done("remove_snp_measurement", measurement=code) == ("Failed", "gov.no_quorum_left")
    assert done("remove_virtual_measurement", measurement="m") == ("Accepted", None)
    assert trusted() == {b"snp3", b"snp4"}
    assert done("remove_snp_measurement", measurement=code) == ("Failed", "gov.no_node_left")
    assert done("set_tee_policy", tee="snp", remove=True) == ("Failed", "gov.no_node_left")
    for wrong in (
        {"tee": "other"},
        {"tee": "snp", "policy": 1},
        {"tee": "azure_vtpm"},
        {"tee": "sgx", "tcb_states": ["x"]},
    ):
        assert done("set_tee_policy", **wrong) == ("Failed", "gov.bad_argument")


def test_the_constitution_says_what_evidence_must_be(members):
    network = Network(members[:3], constitutions.text("sandbox"))

    def accept(name: str, **args: Any) -> None:
        assert network.propose(members[0], action(name, **args))["proposalState"] == "Accepted", name

    assert platforms.policy(network).snp is None
    accept("set_tee_policy", tee="snp", vlek=True)
    accept("set_tee_policy", tee="azure_vtpm", pcrs={"4": ["04" * 32]})
    accept("set_tee_policy", tee="nitro")
    accept("set_tee_policy", tee="vbs", keys=["ab" * 32])
    accept("add_snp_host_data", host_data="ab" * 32)
    accept("add_snp_uvm_endorsement", did="did:x", feed="F", svn="7")
    accept("add_snp_tcb_version", cpuid="00b00f21", tcb_version="49000000000b0001")
    accept("add_measurement", platform="nitro", measurement="cd" * 48)
    accept("add_measurement", platform="vbs", measurement="cd" * 32)
    found = platforms.policy(network)
    assert found.snp is not None and found.azure_vtpm is not None and found.vbs is not None
    assert found.snp.host_data == ["ab" * 32] and found.snp.uvm == {"did:x": {"F": 7}} and found.snp.vlek
    turin = {"boot_loader": 0, "tee": 0x0B, "snp": 0, "microcode": 0x49}
    assert found.snp.minimum_tcb == {"turin": turin} == found.azure_vtpm.snp.minimum_tcb
    assert found.measurements["nitro"] == ["cd" * 48] and found.measurements["vbs"] == ["cd" * 32]
    for platform, measurement in (("sgx", "cd" * 32), ("nitro", "cd" * 32)):
        wrong = network.propose(members[0], action("add_measurement", platform=platform, measurement=measurement))
        assert wrong["proposalState"] == "Failed"
    endorsement = action("add_snp_uvm_endorsement", did="did:x", feed="F", svn="seven")
    assert network.propose(members[0], endorsement)["failure"]["code"] == "gov.bad_argument"


ADMITTED = {"majority": True, "m-of-n": True, "operator": True, "sandbox": True, "unanimous": False}


@pytest.mark.parametrize("rules", ADMITTED)
def test_rules_say_which_nodes_need_no_vote(members, rules):
    network: Any = Network(members[:3], constitutions.text(rules))
    network.put(tables.SERVICE_INFO, tables.SINGLETON, tables.row({"status": "Open", "cert": SERVICE}))
    node: dict[str, Any] = {"address": "a:1", "owner": "x", "measurement": "m", "host_names": [], "replaces": None}
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
