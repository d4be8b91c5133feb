"""Nodes on a platform, as far as that goes without one: real processes, a chip made here, everything else as it is."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import datetime as dt
import functools
import json
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

import made_evidence as made
from coco.attestation import evidence, snp, wrapper
from coco.attestation.policy import Policy
from coco.cli.ledger import audit
from coco.client.verify import verify_node
from coco.errors import CocoError
from conftest import ROOT
from network import Several, run

MEASUREMENT, OTHER = "07" * 48, "08" * 48
RULES = {"minimum_tcb": {"milan": {"snp": 8}}}
POLICY = Policy.parse(json.dumps({"snp": RULES, "measurements": {"snp": [MEASUREMENT]}}).encode())


class Vendor:
    """AMD, and what a node's host has of it."""

    def __init__(self, folder: Path, measurement: str = MEASUREMENT) -> None:
        self.folder = folder
        for name in ("chip", "module"):
            (folder / name).mkdir(parents=True)
        (folder / "chip" / "measurement").write_text(measurement)
        (folder / "elsewhere").write_text("")
        sample = made.made_snp()
        key = made.ec_key().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        self.roots = dict(sample.options["roots"])
        (folder / "module" / "made_chip.py").write_text(
            f"ROOTS = {self.roots!r}\nCHIP_KEY = {key!r}\nFOLDER = {str(folder / 'chip')!r}\n"
            f"ELSEWHERE = {str(folder / 'elsewhere')!r}\n"
        )
        self.says = self.certificates(days=1)

    @staticmethod
    def certificates(days: int, **changes: Any) -> bytes:
        return json.dumps(made.made_snp(chip_days=(-1, days), **changes).endorsements).encode()

    def options(self, **changes: Any) -> dict[str, Any]:
        places = [ROOT / "tests" / "adapters", ROOT / "tests", self.folder / "module"]
        return {
            "adapters": {"ethereum": "coco.enclave.adapters.ethereum.adapter:adapter", "made": "made_platform:adapter"},
            "extra_path": [str(place) for place in places],
            "platform": "snp",
            "endorse": lambda platform, report: self.says,
            "endorse_seconds": 0.1,
            **changes,
        }


@pytest.fixture
def vendor(tmp_path, monkeypatch):
    monkeypatch.setattr(made, "NOW", dt.datetime.now(dt.UTC))
    made._amd.cache_clear()
    found = Vendor(tmp_path / "vendor")
    verifiers = {**evidence._VERIFIERS, "snp": functools.partial(snp.verify, roots=found.roots)}
    monkeypatch.setattr(evidence, "_VERIFIERS", verifiers)
    yield found
    made._amd.cache_clear()


def proven(node: Any) -> Any:
    """What the certificate proves that a node shows to whoever connects."""
    shown = ssl.get_server_certificate(("127.0.0.1", node.relays["administration"].port))
    return wrapper.verify(x509.load_pem_x509_certificate(shown.encode()), POLICY, now_s=int(time.time()))


def later(node: Any, until_s: float) -> Any:
    """What is proven once it holds for longer than until then."""
    shown = proven(node)
    return shown if shown.valid_until_s > until_s else None


async def eventually(what: Callable[[], Any], seconds: float = 20) -> Any:
    async with asyncio.timeout(seconds):
        while not (found := what()):
            await asyncio.sleep(0.1)
    return found


def test_nodes_of_a_platform_prove_themselves_and_others_do_not_come_in(vendor, tmp_path, monkeypatch):
    async def story() -> None:
        network = Several(tmp_path / "network", insecure_virtual=False, platforms={"snp": RULES})
        said = lambda event: [line for line in network.log if line.get("event") == event]  # noqa: E731
        try:
            first = await network.start(**vendor.options())
            backup = await network.start(**vendor.options())
            assert (vendor.folder / "chip" / "mixed").exists()  # K5
            await network.voters(first, 2)
            info = await network.ask(backup, "/node/info")
            assert info["platform"] == "snp" and info["measurement"] == MEASUREMENT and "warning" not in info
            # A client with a policy verifies each, freshly and in its certificate.
            for node in (first, backup):
                port = node.relays["administration"].port
                found = await verify_node("localhost", port, None, policy=POLICY)
                assert found.platform == "snp" and found.measurement == MEASUREMENT
                assert (await asyncio.to_thread(proven, node)).platform == "snp"
            # Other code, no platform, a host without endorsements, and one with another chip's.
            other = Vendor(tmp_path / "other", measurement=OTHER)
            for options, code in (
                (other.options(), "join.code_not_allowed"),
                ({}, "attestation.insecure_platform"),
                (vendor.options(endorse=lambda platform, report: b""), "attestation.malformed"),
                (vendor.options(endorse=lambda platform, report: b"[]"), "attestation.malformed"),
                (
                    vendor.options(endorse=lambda platform, report: Vendor.certificates(1, certified_chip=bytes(64))),
                    "attestation.chip_mismatch",
                ),
            ):
                with pytest.raises(CocoError) as error:
                    await network.start(**options)
                assert error.value.code == code
            # Newer endorsements go into the rows and certificates of both, by the primary.
            until_s = (await asyncio.to_thread(proven, backup)).valid_until_s
            vendor.says = Vendor.certificates(days=5)
            await eventually(lambda: len(said("attestation.renewed")) >= 2)
            for node in (first, backup):
                newer = await eventually(functools.partial(later, node, until_s + 3 * 86400))
                assert newer.measurement == MEASUREMENT
                assert (await network.ask(node, "/node/info"))["endorsed_until_s"] == newer.valid_until_s
            # What ends earlier, is another chip's, is no JSON or is over is refused and named; nothing changes.
            for lie, code in (
                (Vendor.certificates(days=2), "attestation.older"),
                (Vendor.certificates(days=9, certified_chip=bytes(64)), "attestation.chip_mismatch"),
                (b"\xff", "attestation.malformed"),
                (b"", "attestation.malformed"),
            ):
                before = len(said("attestation.endorsements_refused"))
                vendor.says = lie
                await eventually(lambda: len(said("attestation.endorsements_refused")) >= before + 2)
                assert {line["code"] for line in said("attestation.endorsements_refused")[before:]} == {code}
            assert (await asyncio.to_thread(proven, first)).valid_until_s > until_s + 3 * 86400
            assert len(said("attestation.renewed")) == 2 and not said("attestation.renewal_refused")
        finally:
            await network.stop()

    run(story())
    # Whoever reads the ledger judges the newer evidence again.
    ledger = tmp_path / "network" / "n0" / "ledger.db"
    found = audit(ledger, "")
    assert [event["what"] for event in found["events"]].count("node_evidence_renewed") == 2
    assert found["violations"] == []
    monkeypatch.setattr(evidence, "_VERIFIERS", {**evidence._VERIFIERS, "snp": functools.partial(_lies, vendor.roots)})
    violations = audit(ledger, "")["violations"]
    judged = [one["step"] for one in violations]
    assert judged.count("renewal of evidence") == 2 and len(judged) == 4, "and who founded, and who was admitted"
    renewals = [one["why"] for one in violations if one["step"] == "renewal of evidence"]
    assert all("something else than its row" in why for why in renewals)


def _lies(roots: dict[str, str], *arguments: Any, **options: Any) -> Any:
    """As if the evidence proved another version of the guest than its row says."""
    found = snp.verify(*arguments, **options, roots=roots)
    return dataclasses.replace(found, claims={**found.claims, "guest_svn": 1})


@pytest.mark.parametrize(
    ("genesis", "measurement", "code"),
    [
        ({"platforms": {}}, MEASUREMENT, "attestation.platform"),
        ({"platforms": {"snp": {"minimum_tcb": {"milan": {"snp": 9}}}}}, MEASUREMENT, "attestation.tcb_version"),
        ({"platforms": {"snp": {"minimum_tcb": {"milan": {"colour": "red"}}}}}, MEASUREMENT, "attestation.bad_policy"),
        ({"platforms": {"snp": RULES}}, "not hexadecimal", "platform.no_evidence"),
        ({"platforms": {"snp": RULES}}, "lies", "attestation.report_data"),
    ],
)
def test_nobody_founds_a_network_that_would_not_have_it(vendor, tmp_path, genesis, measurement, code):
    async def story() -> None:
        network = Several(tmp_path / "network", insecure_virtual=False, **genesis)
        if measurement == "lies":
            (vendor.folder / "chip" / "lies").touch()
        else:
            (vendor.folder / "chip" / "measurement").write_text(measurement)
        try:
            with pytest.raises(CocoError) as error:
                await network.start(**vendor.options())
            assert error.value.code == code
        finally:
            await network.stop()

    run(story())


@pytest.mark.parametrize("platform", ["snp", "tdx", "sgx", "nitro", "azure_vtpm", "no_such"])
def test_an_enclave_without_its_platform_does_not_start(tmp_path, platform, capfd):
    async def story() -> None:
        network = Several(tmp_path / "network")
        try:
            with pytest.raises(CocoError) as error:
                await network.start(platform=platform)
            # Under Gramine files are asked when they are needed; a guest's device is opened before the lock-down.
            assert error.value.code == ("platform.no_evidence" if platform == "sgx" else "host.enclave_ended")
        finally:
            await network.stop()

    run(story())
    assert platform == "sgx" or "platform.no_evidence" in capfd.readouterr().err


def test_base64_of_the_report_is_what_the_platform_gave(vendor):
    """The fake is the made evidence of the unit tests: a report that AMD's real root refuses."""
    sample = made.made_snp()
    document = {"platform": "snp", "evidence": base64.b64encode(sample.evidence).decode()}
    document["endorsements"] = base64.b64encode(json.dumps(sample.endorsements).encode()).decode()
    assert evidence.Evidence.parse(document).verify(now_s=int(time.time())).measurement == MEASUREMENT
    with pytest.raises(CocoError) as error:
        snp.verify(sample.evidence, sample.endorsements, now_s=int(time.time()))
    assert error.value.code == "attestation.root"
