"""Evidence of TEEs: real samples at their time, made ones for every flaw, each refused with its own code."""

from __future__ import annotations

import base64
import dataclasses
import json
from hashlib import sha256
from typing import Any

import cbor2
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from hypothesis import given, settings
from hypothesis import strategies as st

import made_evidence as made
import tee_matrix
from coco.attestation import azure_vtpm, nitro, policy, sgx, snp, tdx, vbs
from coco.attestation.policy import Policy
from coco.attestation.verified import Verified
from coco.crypto import cose
from coco.errors import AttestationError, ConfigurationError

DAY = 86_400
REAL = made.real()


def refused(work: Any) -> str:
    with pytest.raises(AttestationError) as error:
        work()
    return error.value.code.removeprefix("attestation.")


@pytest.mark.parametrize("name", REAL)
def test_a_real_sample_verifies_at_its_time_and_not_a_day_outside(name):
    sample = REAL[name]
    found = sample.verify()
    assert found.valid_from_s <= sample.now_s <= found.valid_until_s
    assert sample.verify(now_s=found.valid_from_s) == sample.verify(now_s=found.valid_until_s) == found
    assert refused(lambda: sample.verify(now_s=found.valid_from_s - DAY)) == "future"
    assert refused(lambda: sample.verify(now_s=found.valid_until_s + DAY)) == "stale"
    assert found.debug is ("debug" in name)


def flips(sample: made.Sample, step: int = 1) -> dict[int, Verified]:
    """Places whose change is not refused, and what is verified then."""
    accepted = {}
    for at in range(0, len(sample.evidence), step):
        changed = bytearray(sample.evidence)
        changed[at] ^= 1
        try:
            accepted[at] = sample.verify(evidence=bytes(changed))
        except AttestationError:
            continue
    return accepted


@pytest.mark.parametrize("name", ["snp", "snp (Genoa)", "snp (debug policy)", "snp (Azure container)"])
def test_no_byte_of_a_report_can_be_changed(name, capsys):
    assert flips(REAL[name]) == {}
    with capsys.disabled():
        print(f"\n{name}: 1184 of 1184 flips refused", end=" ")


def test_no_byte_of_a_nitro_document_can_be_changed(capsys):
    size = len(REAL["nitro"].evidence)
    assert flips(REAL["nitro"]) == {}
    with capsys.disabled():
        print(f"\nnitro: {size} of {size} flips refused", end=" ")


#: Where header, report and the length of what follows them end.
SIGNED_END = {"sgx": 432, "tdx": 632}


@pytest.mark.parametrize("name", ["sgx", "tdx"])
def test_what_can_be_changed_in_a_quote_changes_no_claim(name, capsys):
    sample = REAL[name]
    good, accepted = sample.verify(), flips(sample)
    signed = SIGNED_END[name]
    # Header and report, then length, signature, attestation key; what follows is framing and the text of certificates.
    assert min(accepted) >= signed
    assert not [at for at in accepted if signed + 4 <= at < signed + 4 + 128], "nor signature or key"
    assert all(found == good for found in accepted.values()), "whoever identifies by claims is not misled"
    size = len(sample.evidence)
    with capsys.disabled():
        print(f"\n{name}: {size - len(accepted)} of {size} flips refused, {len(accepted)} change no claim", end=" ")


def test_collateral_is_believed_only_as_it_was_signed():
    sample = REAL["sgx"]
    collateral = json.loads(sample.endorsements["collateral"])
    for part, old, new in (
        ("tcb_info", '"tcbEvaluationDataNumber":17', '"tcbEvaluationDataNumber":99'),
        ("tcb_info", "ConfigurationAndSWHardeningNeeded", "UpToDate"),
        ("qe_identity", '"isvsvn":8', '"isvsvn":1'),
    ):
        assert old in collateral[part]
        forged = {**collateral, part: collateral[part].replace(old, new)}
        assert refused(lambda f=forged: sample.verify(endorsements={"collateral": json.dumps(f)})) == "signature"
    for part in ("pck_crl", "root_ca_crl"):
        crl = bytearray(bytes.fromhex(collateral[part]))
        for at in (len(crl) // 2, len(crl) - 1):
            changed = bytearray(crl)
            changed[at] ^= 1
            forged = {**collateral, part: changed.hex()}
            assert refused(lambda f=forged: sample.verify(endorsements={"collateral": json.dumps(f)}))


def test_firmware_that_intel_does_not_list_is_refused():
    name = "tdx/tdx_quote_outdated"
    outdated = made.Sample(
        (made.REAL / f"{name}.bin").read_bytes(),
        {"collateral": (made.REAL / f"{name}_collateral.json").read_text()},
        made.seconds(2026, 3, 1),
        tdx.verify,
    )
    assert refused(outdated.verify) == "tcb_unknown"
    for production in ("gotdx_tdx_prod_quote_SPR_E4.dat", "gotdx_quote_v5_sample.dat"):
        quote = (made.REAL / "tdx" / production).read_bytes()
        assert refused(lambda q=quote: dataclasses.replace(REAL["tdx"], evidence=q).verify())
    assert refused(lambda: dataclasses.replace(REAL["tdx"], verifier=sgx.verify).verify()) == "malformed"
    assert refused(lambda: dataclasses.replace(REAL["sgx"], verifier=tdx.verify).verify()) == "malformed"


# --- SNP -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"certified": {**made.TCB, "microcode": 114}}, "tcb_mismatch"),
        ({"certified": {**made.TCB, "snp": 7}}, "tcb_mismatch"),
        ({"certified_chip": bytes(64)}, "chip_mismatch"),
        ({"chip_days": (-3, -1)}, "stale"),
        ({"chip_days": (1, 2)}, "future"),
        ({"revoked": True}, "revoked"),
        ({"revoked": False, "crl_days": (-3, -2)}, "stale"),
        ({"revoked": False, "crl_days": (1, 2)}, "future"),
        ({"flags": 7 << 2}, "unsupported"),
    ],
    ids=str,
)
def test_a_chip_that_does_not_fit_its_report_is_refused(fields, code):
    assert refused(made.made_snp(**fields).verify) == code


def test_a_report_is_verified_under_its_own_root_only():
    sample = made.made_snp(revoked=False)
    assert sample.verify().claims["product"] == "milan"
    real = REAL["snp"]
    assert real.verify().claims["product"] == "milan"
    chain = real.endorsements["certificates"]
    chip = chain[: chain.index("-----END CERTIFICATE-----") + 26]
    for other in ("genoa", "turin_vcek", "milan_vlek"):
        text = chip + (made.REAL / f"snp/amd_ask_ark_{other}.pem").read_text()
        assert refused(lambda t=text: real.verify(endorsements={"certificates": t})) == "chain"
    assert refused(lambda: dataclasses.replace(sample, options={}).verify()) == "root"
    assert refused(lambda: real.verify(endorsements={"certificates": chip})) == "malformed"
    assert refused(lambda: real.verify(endorsements={})) == "malformed"
    foreign = {**sample.endorsements, "crl": made.made_snp(revoked=True).endorsements["crl"][:-4] + "AAA="}
    assert refused(lambda: sample.verify(endorsements=foreign)) == "chain"


def test_a_later_report_says_which_processor_made_it():
    found = REAL["snp (Genoa)"].verify()
    assert found.claims["product"] == "genoa" and found.claims["version"] == 3 and found.claims["cpuid"] == "191101"
    policy.enforce(found, tee_matrix.accepting(found))


def test_turins_certificate_is_read_though_no_report_of_one_is_here():
    # Serial number 0, a chip id of eight bytes, and another order of the firmware's parts.
    from coco.attestation.certificates import load_der

    certificate = load_der((made.REAL / "snp/virtee_turin_vcek.der").read_bytes())
    parts = {name: snp._number(snp._extension(certificate, oid)) for name, oid in snp._TCB_OIDS.items()}
    assert all(value >= 0 for value in parts.values()) and len(snp._extension(certificate, snp._CHIP_OID) or b"") == 8


def test_a_confidential_container_is_its_endorsed_machine_and_its_policy():
    sample = REAL["snp (Azure container)"]
    found = sample.verify()
    assert found.claims["uvm"]["feed"] == "ContainerPlat-AMD-UVM" and found.claims["uvm"]["svn"] == 22
    assert found.claims["policy_sha256"] == found.claims["host_data"]
    rules: dict[str, Any] = {"uvm": {found.claims["uvm"]["issuer"]: {"ContainerPlat-AMD-UVM": 22}}}
    rules["host_data"] = [found.claims["host_data"]]
    accepts = policy.Policy.parse(json.dumps({"snp": rules}).encode())
    policy.enforce(found, accepts)
    for changes, code in (
        ({"uvm": {found.claims["uvm"]["issuer"]: {"ContainerPlat-AMD-UVM": 23}}}, "uvm"),
        ({"uvm": {found.claims["uvm"]["issuer"]: {"Another": 1}}}, "uvm"),
        ({"uvm": {"did:x509:0:sha256:other": {"ContainerPlat-AMD-UVM": 1}}}, "uvm"),
        ({"host_data": ["00" * 32]}, "host_data"),
        ({"host_data": []}, "host_data"),
        ({"uvm": {}}, "measurement"),
    ):
        other = policy.Policy.parse(json.dumps({"snp": {**rules, **changes}}).encode())
        assert refused(lambda p=other: policy.enforce(found, p)) == code
    without = {name: value for name, value in sample.endorsements.items() if name != "uvm"}
    assert refused(lambda: policy.enforce(sample.verify(endorsements=without), accepts)) == "measurement"
    other_policy = {**sample.endorsements, "policy": base64.b64encode(b"package policy").decode()}
    assert refused(lambda: sample.verify(endorsements=other_policy)) == "host_data"
    assert refused(lambda: REAL["snp"].verify(endorsements={**REAL["snp"].endorsements, "uvm": without["policy"]}))
    mixed = {**REAL["snp"].endorsements, "uvm": sample.endorsements["uvm"]}
    assert refused(lambda: REAL["snp"].verify(endorsements=mixed)) == "uvm", "an endorsement of another machine"
    # Certificates, payload and signature are covered; a time stamp beside them, of no use here, is not.
    raw = base64.b64decode(sample.endorsements["uvm"])
    covered = len(cose.parse(raw, tagged=False).protected) + 4
    beside = cbor2.loads(raw).value[1]["timestamp"]
    for at in range(0, len(raw), 61):
        changed = bytearray(raw)
        changed[at] ^= 1
        forged = {**sample.endorsements, "uvm": base64.b64encode(changed).decode()}
        if covered < at < covered + len(beside):
            assert sample.verify(endorsements=forged) == found
        else:
            assert refused(lambda f=forged: sample.verify(endorsements=f)), at


# --- Nitro ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"digest": "SHA512"}, "malformed"),
        ({"pcrs": {}}, "malformed"),
        ({"pcrs": {0: b"short"}}, "malformed"),
        ({"pcrs": {"0": bytes(48)}}, "malformed"),
        ({"cabundle": []}, "malformed"),
        ({"timestamp": "now"}, "malformed"),
        ({"timestamp": 1}, "malformed"),
        ({"certificate": b"none"}, "malformed"),
        ({"nonce": "text"}, "malformed"),
        ({"days": (-3, -2)}, "stale"),
        ({"days": (2, 3)}, "future"),
    ],
    ids=str,
)
def test_a_document_with_other_fields_is_refused(fields, code):
    assert refused(made.made_nitro(**fields).verify) == code


def test_a_nitro_document_of_another_root_or_algorithm_is_refused():
    sample = made.made_nitro()
    assert sample.verify().claims["pcrs"]["3"] == "33" * 48
    assert refused(lambda: dataclasses.replace(sample, options={}).verify()) == "root"
    long = made.made_nitro(user_data=b"x" * 100).verify()
    assert long.report_data == bytes(64), "longer data is never a node's"
    message = cose.parse(sample.evidence, tagged=False)
    assert message.algorithm == cose.ES384
    for data in (b"", b"\x00", b"\xd2", b"\x84\x40\xa0\x40\x40", b"\xd8\x20\x80"):
        assert refused(lambda d=data: nitro.verify(d, {}, now_s=0)) == "malformed"


# --- Azure's virtual TPM -------------------------------------------------------------------------------------------


def test_the_real_steps_of_an_azure_machine_verify_one_by_one():
    """The published samples are not of one machine: each step is real, the whole chain is not."""
    for name, hardware in (("snp", "snp"), ("tdx", "tdx")):
        blob = (made.REAL / f"azure-vtpm/hcl-report-{name}.bin").read_bytes()
        found = azure_vtpm.parse_hcl(blob)
        assert found.hardware == hardware and found.key.key_size == 2048
        for at in range(1236, 1236 + 400, 37):
            changed = bytearray(blob)
            changed[at] ^= 1
            assert refused(lambda c=changed: azure_vtpm.parse_hcl(bytes(c))) in ("hcl", "malformed")
    quote = (made.REAL / "azure-vtpm/quote.bin").read_bytes()
    size = int.from_bytes(quote[:8], "little")
    signature, rest = quote[8 : 8 + size], quote[8 + size :]
    attest = rest[8 : 8 + int.from_bytes(rest[:8], "little")]
    key = load_pem_public_key((made.REAL / "azure-vtpm/akpub.pem").read_bytes())
    assert isinstance(key, rsa.RSAPublicKey)
    azure_vtpm.check_signature(attest, signature, key)
    parsed = azure_vtpm.parse_quote(attest)
    assert len(parsed.digest) == 32 and parsed.selected == tuple(range(24))
    for at in range(len(attest)):
        changed = bytearray(attest)
        changed[at] ^= 1
        assert refused(lambda c=changed: azure_vtpm.check_signature(bytes(c), signature, key)) == "signature"


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"shown": {4: b"\x05" * 32, 11: b"\x0b" * 32}}, "pcrs"),
        ({"shown": {4: b"\x04" * 32}}, "pcrs"),
        ({"extra": b"another"}, "report_data"),
        ({"signer": 5}, "signature"),
        ({"chip_days": (-3, -2)}, "stale"),
        ({"revoked": True}, "revoked"),
    ],
    ids=str,
)
def test_an_azure_machine_with_a_broken_link_is_refused(fields, code):
    assert made.made_azure_vtpm().verify().claims["hardware"] == "snp"
    assert refused(made.made_azure_vtpm(**fields).verify) == code


@given(st.binary(max_size=200))
def test_a_cut_quote_is_malformed(data):
    attest = made.tpm_quote(sha256(b"").digest(), {1: bytes(32)})
    for cut in (attest[: len(data) % len(attest)], attest + b"\0" + data, data):
        assert refused(lambda c=cut: azure_vtpm.parse_quote(c)) in ("malformed", "unsupported")


# --- VBS -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "code"),
    [({"version": 2}, "unsupported"), ({"scheme": 2}, "unsupported"), ({"signer": 4}, "signature")],
    ids=str,
)
def test_a_report_of_windows_in_another_form_is_refused(fields, code):
    assert refused(made.made_vbs(**fields).verify) == code


def test_no_byte_of_a_windows_report_can_be_changed():
    sample = made.made_vbs()
    assert sample.verify().claims["modules"][0]["name"] == "enclave.dll"
    assert flips(sample) == {}
    assert refused(lambda: sample.verify(endorsements={"key": "x"})) == "malformed"
    for cut in (0, 10, 24, 100, len(sample.evidence) - 1):
        assert refused(lambda c=cut: sample.verify(evidence=sample.evidence[:c])) == "malformed"


# --- garbage -------------------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(
    st.binary(max_size=1300), st.dictionaries(st.sampled_from(["certificates", "collateral", "key", "crl"]), st.text())
)
def test_garbage_is_refused_and_nothing_else_happens(data, endorsements):
    for verifier in (sgx, tdx, snp, nitro, azure_vtpm, vbs):
        with pytest.raises(AttestationError):
            verifier.verify(data, endorsements, now_s=made.NOW_S)


# --- policy --------------------------------------------------------------------------------------------------------


def _flipped(verified: Verified, name: str, bit: int) -> Verified:
    """A claim of 8 or 16 little-endian bytes in hex, or a number, with another bit."""
    claims = dict(verified.claims)
    if isinstance(claims[name], int):
        claims[name] ^= 1 << bit
    else:
        value = int.from_bytes(bytes.fromhex(claims[name]), "little") ^ 1 << bit
        claims[name] = value.to_bytes(len(claims[name]) // 2, "little").hex()
    return dataclasses.replace(verified, claims=claims)


#: Bits that the default rules allow, by platform and claim; a set one may be cleared.
ALLOWED = {
    ("sgx", "attributes"): {0, 2, *(64 + bit for bit in (0, 1, 2, 5, 6, 7))},
    ("sgx", "misc_select"): set(),
    ("sgx", "config_id"): set(),
    ("tdx", "td_attributes"): {28, 30},
    ("tdx", "xfam"): {0, 1, 2, 5, 6, 7, 9, 17, 18},
    ("tdx", "seam_attributes"): set(),
    ("snp", "policy"): {*range(18), 20},
    ("snp", "platform_info"): {0, 2, 5},
    ("snp", "vmpl"): set(),
}


@pytest.mark.parametrize(("platform", "claim"), ALLOWED)
def test_H6_a_bit_that_nobody_has_named_is_refused(platform, claim):
    good = REAL[platform].verify()
    accepts = tee_matrix.accepting(good)
    policy.enforce(good, accepts)
    width = 4 * len(good.claims[claim]) if isinstance(good.claims[claim], str) else 64 if claim != "misc_select" else 32
    for bit in range(width if claim != "vmpl" else 2):
        changed = _flipped(good, claim, bit)
        passes = all(finding.passed for finding in policy.judge(changed, accepts))
        assert passes is (bit in ALLOWED[platform, claim]), (claim, bit)


@pytest.mark.parametrize(
    ("name", "changes", "code"),
    [
        ("sgx", {"tcb_states": ["UpToDate"]}, "tcb_state"),
        ("sgx", {"denied_advisories": ["INTEL-SA-00289"]}, "advisory"),
        ("sgx", {"minimum_tcb_evaluation": 18}, "tcb_evaluation"),
        ("sgx", {"minimum_isv_svn": 1}, "svn"),
        ("sgx", {"isv_prod_ids": [7]}, "product"),
        ("tdx", {"smt": False}, "platform_flag"),
        ("tdx", {"dynamic_platform": False}, "platform_flag"),
        ("tdx", {"cached_keys": False}, "platform_flag"),
        ("tdx", {"mr_seam": ["00" * 48]}, "module"),
        ("tdx", {"fields": {"rt_mr3": ["11" * 48]}}, "registers"),
        ("tdx", {"fields": {"rt_mr9": ["11" * 48]}}, "registers"),
        ("snp", {"minimum_tcb": {"genoa": {}}}, "product"),
        ("snp", {"minimum_tcb": {"milan": {"microcode": 200}}}, "tcb_version"),
        ("snp", {"minimum_tcb": {"milan": {"other": 0}}}, "tcb_version"),
        ("snp", {"minimum_guest_svn": 1}, "svn"),
        ("snp", {"host_data": ["11" * 32]}, "host_data"),
        ("snp", {"uvm": {"did": {"feed": 1}}, "host_data": ["00" * 32]}, "uvm"),
        ("nitro", {"pcrs": {"8": ["00" * 48]}}, "pcrs"),
        ("nitro", {"pcrs": {"9": ["00" * 48]}}, "pcrs"),
    ],
    ids=str,
)
def test_every_rule_refuses_with_its_code(name, changes, code):
    good = REAL[name].verify()
    policy.enforce(good, tee_matrix.accepting(good))
    refusing = tee_matrix.accepting(good, **changes)
    assert refused(lambda: policy.enforce(good, refusing)) == code
    failed = [finding.code for finding in policy.judge(good, refusing) if not finding.passed]
    assert failed == [f"attestation.{code}"], "and no other rule does"


def test_the_cloud_s_key_a_rank_and_a_signer_are_rules_too():
    cloud = made.made_snp(flags=1 << 2)
    found = cloud.verify()
    assert found.claims["key"] == "VLEK"
    assert refused(lambda: policy.enforce(found, tee_matrix.accepting(found))) == "key"
    policy.enforce(found, tee_matrix.accepting(found, vlek=True))
    windows = made.made_vbs().verify()
    ranked = tee_matrix.accepting(windows)
    policy.enforce(windows, ranked)
    by_default = Policy(vbs=ranked.vbs, measurements=ranked.measurements)
    assert refused(lambda: policy.enforce(windows, by_default)) == "rank"
    assert refused(lambda: policy.enforce(windows, Policy())) == "platform"
    nitro_sample = REAL["nitro"].verify()
    code = {"nitro": [nitro_sample.measurement]}
    policy.enforce(
        nitro_sample, Policy(nitro=policy.Nitro(), measurements=code, signers={"nitro": [nitro_sample.signer]})
    )
    other = Policy(nitro=policy.Nitro(), measurements=code, signers={"nitro": ["00"]})
    assert refused(lambda: policy.enforce(nitro_sample, other)) == "signer"


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"[]",
        b'{"sgx": {"tcb_states": "UpToDate"}}',
        b'{"sgx": {"unknown": 1}}',
        b'{"other": {}}',
        b'{"azure_vtpm": {"pcrs": {}}}',
        b'{"azure_vtpm": {}}',
        b'{"vbs": {"keys": []}}',
        b'{"snp": {"policy": "ff"}}',
        b'{"minimum_rank": 4}',
        b'{"measurements": {"sgx": ["XY"]}}',
        b"\xff",
    ],
)
def test_a_policy_that_says_something_else_is_refused(document):
    with pytest.raises(ConfigurationError) as error:
        Policy.parse(document)
    assert error.value.code == "attestation.bad_policy"


def test_the_table_in_the_documentation_is_what_happens():
    assert tee_matrix.table() == tee_matrix.written(), "run: python tests/tee_matrix.py"


@pytest.mark.parametrize("platform", ["sgx", "tdx"])
def test_a_real_machines_quote_is_refused_once_its_enclave_says_something_else(platform):
    """Under a root made here, for nobody has Intel's key: the quote is good but for the one thing."""
    good = made.made_dcap(platform).verify()
    real = made.real()[platform].verify()
    assert (good.measurement, good.tcb_status, good.report_data) == (
        real.measurement,
        real.tcb_status,
        made.REPORT_DATA,
    )
    assert good.claims == real.claims and not good.debug
    assert made.made_dcap(platform, measurement=bytes(32)).verify().measurement[:64] == "00" * 32
    for changes, code in (({"debug": True}, "debug"), ({"revoked": True}, "revoked"), ({"signer": 31}, "signature")):
        with pytest.raises(AttestationError) as error:
            made.made_dcap(platform, **changes).verify()
        assert error.value.code == f"attestation.{code}", changes
    sample = made.made_dcap(platform)
    with pytest.raises(AttestationError) as error:
        sample.verify(root=None)
    assert error.value.code == "attestation.chain"


def test_H6_what_an_enclave_was_loaded_with_is_nothing_unless_the_policy_names_it():
    loaded = made.made_dcap("sgx", config_id=b"\1" * 64).verify()
    with pytest.raises(AttestationError) as error:
        policy.enforce(loaded, tee_matrix.accepting(loaded))
    assert error.value.code == "attestation.attributes" and "config_id" in str(error.value)
    policy.enforce(loaded, tee_matrix.accepting(loaded, config_ids=["01" * 64]))
