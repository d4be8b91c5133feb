"""Readers of every platform, against fakes of exactly their files and calls; a real TPM (swtpm) for the virtual one."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import shutil
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cbor2
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import load_pem_public_key

import made_evidence as made
from coco.attestation.evidence import Evidence
from coco.enclave.platform.evidence import Platform, Virtual
from coco.enclave.platform.evidence.attester import pour
from coco.enclave.platform.evidence.gramine import Gramine
from coco.enclave.platform.evidence.nsm import NSM_IOCTL, Nsm
from coco.enclave.platform.evidence.sev_guest import SNP_GET_EXT_REPORT, ExtendedRequest, Response, SevGuest
from coco.enclave.platform.evidence.tpm import AzureVm
from coco.enclave.platform.evidence.tsm import Tsm, endorsements
from coco.enclave.platform.evidence.vbs import VbsEnclave
from coco.errors import CocoError

DATA = made.REPORT_DATA


def refused(work: Any) -> str:
    with pytest.raises(CocoError) as error:
        work()
    assert error.value.code == "platform.no_evidence"
    return str(error.value)


def test_platform_virtual_says_anything():
    platform: Platform = Virtual("aa")
    found = platform.evidence(DATA).verify(now_s=0)
    assert (found.platform, found.measurement, found.report_data) == ("insecure_virtual", "aa", DATA)


# --- Gramine -------------------------------------------------------------------------------------------------------


def test_gramine_quotes_what_was_written(tmp_path):
    sample = made.real()["sgx"]
    (tmp_path / "attestation_type").write_text("dcap")
    (tmp_path / "user_report_data").touch()
    (tmp_path / "quote").write_bytes(sample.evidence)
    found = Gramine(tmp_path).evidence(DATA)
    assert (tmp_path / "user_report_data").read_bytes() == DATA
    assert Evidence("sgx", found.evidence, sample.endorsements).verify(now_s=sample.now_s) == sample.verify()
    (tmp_path / "attestation_type").write_text("none")
    assert "none" in refused(lambda: Gramine(tmp_path).evidence(DATA))
    assert "no quote" in refused(lambda: Gramine(tmp_path / "nowhere").evidence(DATA))


# --- configfs ------------------------------------------------------------------------------------------------------


class Configfs:
    """A folder that behaves as the kernel's: an entry has its files at once, and a report is of what was written."""

    def __init__(
        self, directory: Path, monkeypatch: Any, provider: str, *, table: bytes = b"", others: int = 0
    ) -> None:
        self.directory, self.provider, self.table, self.others = directory, provider, table, others
        self.generation, self.written = 0, b""
        read_bytes, read_text = Path.read_bytes, Path.read_text
        write_bytes, mkdir, rmdir = Path.write_bytes, Path.mkdir, Path.rmdir
        me = self

        def is_mine(path: Path) -> bool:
            return path.parent.parent == directory

        def read(path: Path) -> bytes:
            if not is_mine(path):
                return read_bytes(path)
            if path.name == "outblob":
                if me.others:
                    me.others, me.generation = me.others - 1, me.generation + 1
                return made.snp_report(made.ec_key(), report_data=me.written)
            return me.table

        def text(path: Path, *arguments: Any, **keywords: Any) -> str:
            if not is_mine(path):
                return read_text(path, *arguments, **keywords)
            if not path.parent.exists():
                raise FileNotFoundError(errno.ENOENT, "no entry")
            return {"provider": f"{me.provider}\n", "generation": f"{me.generation}\n"}[path.name]

        def write(path: Path, data: bytes) -> int:
            if is_mine(path) and path.name == "inblob":
                me.written, me.generation = data, me.generation + 1
                return len(data)
            return write_bytes(path, data)

        monkeypatch.setattr(Path, "read_bytes", read)
        monkeypatch.setattr(Path, "read_text", text)
        monkeypatch.setattr(Path, "write_bytes", write)
        del mkdir, rmdir


def table(chain: list[bytes]) -> bytes:
    """A host's certificates, as the GHCB has them."""
    names: tuple[str, ...] = ("63da758d-e664-4564-adc5-f4b93be8accd", "4ab7b379-bbac-4fe4-a02f-05aef327c782")
    names += ("c0b406a4-a803-4952-9743-3fb6014cd0ae",)
    at, head, body = 24 * (len(chain) + 1), b"", b""
    for name, der in zip(names, chain, strict=True):
        entry = uuid.UUID(name).bytes + (at + len(body)).to_bytes(4, "little") + len(der).to_bytes(4, "little")
        head, body = head + entry, body + der
    return head + bytes(24) + body


def chain_of(sample: made.Sample) -> list[bytes]:
    from coco.attestation.certificates import load_pem

    return [made.der(one) for one in load_pem(sample.endorsements["certificates"].encode())]


def test_the_kernels_reports_are_of_this_process_and_bring_the_hosts_certificates(tmp_path, monkeypatch):
    sample = made.made_snp()
    configfs = Configfs(tmp_path, monkeypatch, "sev_guest", table=table(chain_of(sample)), others=2)
    platform: Platform = Tsm(tmp_path)
    assert platform.name == "snp"
    found = platform.evidence(DATA)
    assert sample.verify(evidence=found.evidence, endorsements=found.endorsements).report_data == DATA
    assert configfs.others == 0 and not list(tmp_path.iterdir()), "two races were noticed, and nothing is left behind"
    configfs.others = 3
    assert "somebody else" in refused(lambda: platform.evidence(DATA))
    configfs.table = b""
    assert platform.evidence(DATA).endorsements == {}, "a host may keep its certificates for itself"
    configfs.table = table([b"garbage"] * 3)
    assert platform.evidence(DATA).endorsements == {}


def test_other_providers_and_kernels_without_reports_are_refused(tmp_path, monkeypatch):
    assert "no reports" in refused(lambda: Tsm(tmp_path / "nowhere"))
    Configfs(tmp_path, monkeypatch, "tdx_guest")
    assert Tsm(tmp_path).name == "tdx" and Tsm(tmp_path).evidence(DATA).endorsements == {}
    Configfs(tmp_path, monkeypatch, "arm_cca_guest")
    assert "arm_cca_guest" in refused(lambda: Tsm(tmp_path))


# --- /dev/sev-guest ------------------------------------------------------------------------------------------------


def test_the_firmware_is_asked_as_the_kernel_wants_it(tmp_path):
    sample = made.made_snp()
    (tmp_path / "sev-guest").touch()
    status, seen = 0, []

    def ioctl(descriptor: int, request: int, call: Any) -> int:
        assert request == SNP_GET_EXT_REPORT and ctypes.sizeof(call) == 32 and call.msg_version == 1
        asked = ExtendedRequest.from_address(call.req_data)
        answer = Response.from_address(call.resp_data)
        assert ctypes.sizeof(asked.data) == 96 and ctypes.sizeof(answer) == 4000
        seen.append(bytes(asked.data.user_data))
        report = made.snp_report(made.ec_key(), report_data=seen[-1])
        answer.status, answer.report_size = status, len(report)
        answer.report[:] = report
        certificates = table(chain_of(sample))
        assert asked.certs_len >= len(certificates) and asked.certs_len % 4096 == 0, "whole pages"
        ctypes.memmove(asked.certs_address, certificates, len(certificates))
        return 0

    platform: Platform = SevGuest(tmp_path / "sev-guest", ioctl)
    found = platform.evidence(DATA)
    assert seen == [DATA]
    assert sample.verify(evidence=found.evidence, endorsements=found.endorsements).report_data == DATA
    status = 22
    assert "status 22" in refused(lambda: platform.evidence(DATA))

    def fails(*_: Any) -> int:
        raise OSError(errno.ENOTTY, "not a guest")

    assert "not a guest" in refused(lambda: SevGuest(tmp_path / "sev-guest", fails).evidence(DATA))
    assert "no SEV-SNP" in refused(lambda: SevGuest(tmp_path / "nowhere"))


# --- /dev/nsm ------------------------------------------------------------------------------------------------------


def test_the_security_module_is_asked_in_cbor(tmp_path):
    (tmp_path / "nsm").touch()
    answers: list[Any] = []

    def ioctl(descriptor: int, request: int, call: Any) -> int:
        assert request == NSM_IOCTL and ctypes.sizeof(call) == 32
        asked = cbor2.loads(ctypes.string_at(call.request.base, call.request.size))
        assert asked in ({"Attestation": {"user_data": DATA, "nonce": None, "public_key": None}}, "GetRandom")
        answer = answers.pop()
        assert len(answer) <= call.response.size
        ctypes.memmove(call.response.base, answer, len(answer))
        call.response.size = len(answer)
        return 0

    platform = Nsm(tmp_path / "nsm", ioctl)
    sample = made.made_nitro(user_data=DATA)
    answers.append(cbor2.dumps({"Attestation": {"document": sample.evidence}}))
    assert sample.verify(evidence=platform.evidence(DATA).evidence).report_data == DATA
    for answer in (cbor2.dumps({"Error": "InvalidArgument"}), b"", b"\xff", cbor2.dumps("x")):
        answers.append(answer)
        assert "no document" in refused(lambda: platform.evidence(DATA))
        answers.append(answer)
        assert "no random" in refused(platform.randomness)
    assert "no Nitro" in refused(lambda: Nsm(tmp_path / "nowhere"))


def test_K5_a_platforms_own_randomness_goes_to_the_kernels_generator(tmp_path):
    (tmp_path / "nsm").touch()

    def ioctl(descriptor: int, request: int, call: Any) -> int:
        assert cbor2.loads(ctypes.string_at(call.request.base, call.request.size)) == "GetRandom"
        answer = cbor2.dumps({"GetRandom": {"random": b"r" * 256}})
        ctypes.memmove(call.response.base, answer, len(answer))
        call.response.size = len(answer)
        return 0

    pour(Nsm(tmp_path / "nsm", ioctl), tmp_path / "generator")
    assert (tmp_path / "generator").read_bytes() == b"r" * 256
    pour(Virtual("m"), tmp_path / "untouched")
    assert not (tmp_path / "untouched").exists()


# --- VBS -----------------------------------------------------------------------------------------------------------


def test_windows_is_asked_twice_for_size_and_report():
    sample, result = made.made_vbs(), 0

    def get_report(data: Any, report: Any, room: int, size: Any) -> int:
        assert bytes(data) == DATA
        size._obj.value = len(sample.evidence)
        if report is None:
            return -2147024774  # the buffer is too small
        assert room == len(sample.evidence)
        report[:] = sample.evidence
        return result

    platform: Platform = VbsEnclave(get_report)
    assert sample.verify(evidence=platform.evidence(DATA).evidence).report_data == DATA
    result = -2147467259
    assert "0x80004005" in refused(lambda: platform.evidence(DATA))


# --- a real TPM ----------------------------------------------------------------------------------------------------


class Tpm:
    """A TPM of swtpm with a key and a paravisor's report, as Azure's has them."""

    def __init__(self, directory: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.directory = directory
        (directory / "state").mkdir()
        self.process = subprocess.Popen(
            [
                *("swtpm", "socket", "--tpm2", "--tpmstate", f"dir={directory / 'state'}"),
                *("--server", f"type=tcp,port={self.port},bindaddr=127.0.0.1"),
                *("--ctrl", f"type=tcp,port={self.port + 1},bindaddr=127.0.0.1", "--flags", "startup-clear"),
            ]
        )
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port + 1), 1):
                break
            time.sleep(0.05)

    def run(self, *command: str) -> None:
        tcti = f"swtpm:host=127.0.0.1,port={self.port}"
        done = subprocess.run(
            command, cwd=self.directory, env={**os.environ, "TPM2TOOLS_TCTI": tcti}, capture_output=True, timeout=60
        )
        assert done.returncode == 0, (command, done.stderr)

    def make_key(self) -> rsa.RSAPublicKey:
        self.run("tpm2_createprimary", "-C", "o", "-G", "rsa", "-c", "primary.ctx")
        self.run("tpm2_flushcontext", "-t")
        key = ["-C", "primary.ctx", "-G", "rsa:rsassa-sha256:null", "-u", "key.pub", "-r", "key.priv"]
        attributes = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|restricted|sign"
        self.run("tpm2_create", *key, "-a", attributes)
        self.run("tpm2_flushcontext", "-t")
        self.run("tpm2_load", "-C", "primary.ctx", "-u", "key.pub", "-r", "key.priv", "-c", "key.ctx")
        self.run("tpm2_evictcontrol", "-C", "o", "-c", "key.ctx", "0x81000003")
        self.run("tpm2_flushcontext", "-t")
        self.run("tpm2_readpublic", "-c", "0x81000003", "-f", "pem", "-o", "key.pem")
        found = load_pem_public_key((self.directory / "key.pem").read_bytes())
        assert isinstance(found, rsa.RSAPublicKey)
        return found

    def write_report(self, blob: bytes) -> None:
        (self.directory / "hcl.bin").write_bytes(blob)
        index = "0x01400001"
        self.run("tpm2_nvdefine", "-C", "o", "-s", str(len(blob)), "-a", "ownerread|ownerwrite", index)
        self.run("tpm2_nvwrite", "-C", "o", "-i", "hcl.bin", index)

    @contextlib.contextmanager
    def transmit(self) -> Iterator[Any]:
        with socket.create_connection(("127.0.0.1", self.port), 10) as tpm:

            def send(command: bytes) -> bytes:
                tpm.sendall(command)
                answer = tpm.recv(10)
                while len(answer) < int.from_bytes(answer[2:6], "big"):
                    answer += tpm.recv(4096)
                return answer

            yield send

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(10)


class _PublicOnly:
    """A key of which only the public half is here, for :func:`made_evidence.hcl_blob`."""

    def __init__(self, public: rsa.RSAPublicKey) -> None:
        self._public = public

    def public_key(self) -> rsa.RSAPublicKey:
        return self._public


@pytest.mark.skipif(shutil.which("swtpm") is None or shutil.which("tpm2_quote") is None, reason="needs swtpm")
def test_a_real_tpm_quotes_and_the_quote_is_verified(tmp_path):
    """The TPM and its quote are real; the hardware report that vouches for its key is made here."""
    tpm = Tpm(tmp_path)
    try:
        key: Any = _PublicOnly(tpm.make_key())
        blob = made.hcl_blob(key, lambda bound: made.snp_report(made.ec_key(), report_data=bound))
        tpm.write_report(blob)
        tpm.run("tpm2_pcrextend", "4:sha256=" + "44" * 32)
        azure = made.made_azure_vtpm()
        with tpm.transmit() as send:
            platform = AzureVm(send)
            assert len({platform.randomness() for _ in range(3)}) == 3 and len(platform.randomness()) == 32
            evidence = platform.evidence(DATA)
            found = azure.verify(evidence=evidence.evidence)
            assert found.report_data == DATA and len(found.claims["pcrs"]) == 14
            assert found.claims["pcrs"]["4"] != "00" * 32 and found.claims["pcrs"]["5"] == "00" * 32
            document = json.loads(evidence.evidence)
            changed = {**document, "pcrs": {**document["pcrs"], "4": "00" * 32}}
            with pytest.raises(CocoError) as wrong:
                azure.verify(evidence=json.dumps(changed).encode())
            assert wrong.value.code == "attestation.pcrs"
            assert "refuses" in refused(lambda: AzureVm(send, index=0x01400002).evidence(DATA))
            assert "refuses" in refused(lambda: AzureVm(send, key=0x81000009).evidence(DATA))
            few = azure.verify(evidence=AzureVm(send, pcrs=(4,)).evidence(DATA).evidence)
            assert list(few.claims["pcrs"]) == ["4"] and few.measurement != found.measurement
        # After another extension the same machine is another one.
        tpm.run("tpm2_pcrextend", "4:sha256=" + "55" * 32)
        with tpm.transmit() as send:
            assert azure.verify(evidence=AzureVm(send).evidence(DATA).evidence).measurement != found.measurement
    finally:
        tpm.close()


def test_the_table_of_a_real_machine_is_read():
    report, certificates = made.tsm_report()
    sample = made.real()["snp (Genoa)"]
    assert sample.verify(evidence=report, endorsements=endorsements(certificates)).claims["product"] == "genoa"


def test_a_table_that_is_cut_gives_what_it_has():
    whole = table(chain_of(made.made_snp()))
    for cut in range(0, len(whole), 97):
        assert endorsements(whole[:cut]).keys() <= {"certificates"}
