"""Where a host gets endorsements: a file, and AMD's service, of which a fake answers exactly its paths."""

from __future__ import annotations

import asyncio
import base64
import datetime as dt
import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

import made_evidence as made
from coco.attestation import evidence as dispatch
from coco.attestation import snp
from coco.attestation.evidence import Evidence
from coco.client.endorsements import source
from coco.configuration import nodes
from coco.enclave.platform import forked
from coco.enclave.platform.evidence.attester import Forked
from coco.errors import CocoError


@pytest.fixture
def amd():
    """AMD's service for one Genoa chip, which it does not know as a Milan; and what was asked of it."""
    sample, asked = made.made_snp(revoked=False), []
    chip, signer, root = x509.load_pem_x509_certificates(sample.endorsements["certificates"].encode())
    answers = {
        f"/vcek/v1/Genoa/{made.CHIP.hex()}": chip.public_bytes(Encoding.DER),
        "/vcek/v1/Genoa/cert_chain": made.pem(signer, root).encode(),
        "/vcek/v1/Genoa/crl": base64.b64decode(sample.endorsements["crl"]),
    }

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            answer = answers.get(urlsplit(self.path).path)
            self.send_response(200 if answer is not None else 404)
            self.end_headers()
            self.wfile.write(answer or b"")

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", sample, asked, answers
    server.shutdown()
    server.server_close()


def test_the_chips_certificate_comes_from_amd_by_what_its_report_says(amd):
    url, sample, asked, _ = amd
    found = json.loads(source(url)("snp", sample.evidence))
    assert sample.verify(endorsements=found).measurement == made.MEASUREMENT.hex()
    assert found["crl"] == sample.endorsements["crl"]
    assert parse_qs(urlsplit(asked[0]).query) == {"blSPL": ["3"], "teeSPL": ["0"], "snpSPL": ["8"], "ucodeSPL": ["115"]}
    # A report of version 2 does not say which generation: each is tried.
    assert [urlsplit(path).path.split("/")[3] for path in asked] == ["Milan", "Genoa", "Genoa", "Genoa"]


def test_a_report_names_its_generation_from_version_3_on():
    report, _ = made.tsm_report()
    chip = snp.chip_of(report)
    assert chip.products == ("genoa",) and len(chip.chip_id) == 64
    assert set(snp.chip_of(report, "turin").tcb) == {"fmc", "boot_loader", "tee", "snp", "microcode"}
    assert len(snp.chip_of(report, "turin").chip_id) == 8


def refused(work: Any) -> str:
    with pytest.raises(CocoError) as error:
        work()
    return error.value.code


def test_a_service_that_fails_is_named(amd, tmp_path):
    url, sample, _, answers = amd
    ask = source(url)
    assert refused(lambda: ask("nitro", b"")) == "host.no_endorsements"
    assert refused(lambda: ask("snp", b"short")) == "host.no_endorsements"
    chip = f"/vcek/v1/Genoa/{made.CHIP.hex()}"
    for wrong in (b"no certificate", bytes(300_000)):
        answers[chip] = wrong
        assert refused(lambda: ask("snp", sample.evidence)) == "host.no_endorsements"
    del answers[chip]
    assert refused(lambda: ask("snp", sample.evidence)) == "host.no_endorsements"
    assert refused(lambda: source("http://127.0.0.1:1")("snp", sample.evidence)) == "host.no_endorsements"
    assert refused(lambda: source("http://127.0.0.1:1")("sgx", made.real()["sgx"].evidence)) == "host.no_endorsements"
    assert refused(lambda: source(str(tmp_path / "none"))) == "host.no_endorsements"
    (tmp_path / "some").write_text('{"certificates": ""}')
    assert source(str(tmp_path / "some"))("snp", b"") == b'{"certificates": ""}'
    assert source("")("nitro", b"") == b""


def test_a_row_takes_newer_evidence_of_the_same_alone(monkeypatch):
    key, context = b"key", {"service": b"s"}

    def made_by(days: int, **fields: Any) -> dict[str, str]:
        data = dispatch.report_data(fields.pop("key", key), **context)
        sample = made.made_snp(chip_days=(-1, days), report_data=data, **fields)
        monkeypatch.setattr(dispatch, "_VERIFIERS", {"snp": lambda *a, **k: snp.verify(*a, **{**k, **sample.options})})
        return Evidence("snp", sample.evidence, sample.endorsements).to_json()

    first = made_by(2)
    verified = Evidence.parse(first).verify(now_s=made.NOW_S)
    row: dict[str, Any] = {
        "status": "Trusted",
        "verified": verified.to_json(),
        "report_context": {"service": b"s".hex()},
    }
    newer = made_by(5)
    renewed = nodes.renewed(row, newer, key, now_s=made.NOW_S)
    assert renewed["verified"]["valid_until_s"] - row["verified"]["valid_until_s"] == 3 * 86400
    assert renewed["quote_info"] == {"format": "snp", **newer} and renewed["status"] == "Trusted"
    assert refused(lambda: nodes.renewed(row, made_by(1), key, now_s=made.NOW_S)) == "attestation.older"
    other = made_by(5, measurement=bytes(48))
    assert refused(lambda: nodes.renewed(row, other, key, now_s=made.NOW_S)) == "attestation.other_code"
    elsewhere = made_by(5, key=b"other")
    assert refused(lambda: nodes.renewed(row, elsewhere, key, now_s=made.NOW_S)) == "attestation.report_data"
    late = made.NOW_S + int(dt.timedelta(days=9).total_seconds())
    assert refused(lambda: nodes.renewed(row, newer, key, now_s=late)) == "attestation.stale"


def test_who_asks_a_platform_too_often_waits_his_turn_or_is_told():
    async def story() -> None:
        ours, theirs = socket.socketpair()
        apart = Forked("snp", ours)
        asked = [asyncio.ensure_future(apart.evidence(bytes([n]) * 64)) for n in range(20)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        busy = [one for one in asked if one.done()]
        assert len(busy) == 4 and {one.exception().code for one in busy} == {"platform.busy"}
        loop = asyncio.get_running_loop()
        for number in range(16):
            question = await loop.run_in_executor(None, forked.read, theirs.fileno())
            assert question == bytes([number]) * 64
            answer = Evidence("snp", question).to_json() if number else {"reason": "not now"}
            forked.write(theirs.fileno(), json.dumps(answer).encode())
        with pytest.raises(CocoError) as error:
            await asked[0]
        assert error.value.code == "platform.no_evidence"
        assert [(await one).evidence[0] for one in asked[1:16]] == list(range(1, 16))
        # The process dies: whoever asks is told, now and later.
        theirs.close()
        for _ in range(2):
            with pytest.raises(CocoError) as error:
                await apart.evidence(bytes(64))
            assert error.value.code == "platform.no_evidence"
        ours.close()

    asyncio.run(asyncio.wait_for(story(), 30))
