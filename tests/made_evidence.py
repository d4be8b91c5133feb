"""Evidence made here, under keys made here: for what no real sample shows. And the real samples, with their times."""

from __future__ import annotations

import base64
import datetime as dt
import functools
import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import cbor2
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from coco.attestation import azure_vtpm, nitro, sgx, snp, tdx, vbs
from coco.attestation.verified import Verified
from coco.enclave.platform.evidence.tsm import endorsements

REAL = Path(__file__).parent / "vectors" / "attestation"
NOW = dt.datetime(2026, 11, 22, tzinfo=dt.UTC)
NOW_S = int(NOW.timestamp())
REPORT_DATA = bytes(range(64))
PSS = padding.PSS(padding.MGF1(hashes.SHA384()), 48)


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def seconds(year: int, month: int, day: int) -> int:
    return int(dt.datetime(year, month, day, tzinfo=dt.UTC).timestamp())


@dataclass(frozen=True)
class Sample:
    """Evidence with what verifies it, and when that does."""

    evidence: bytes
    endorsements: dict[str, str]
    now_s: int
    verifier: Callable[..., Verified]
    options: Mapping[str, Any] = field(default_factory=dict)

    def verify(self, **changes: Any) -> Verified:
        arguments = {"evidence": self.evidence, "endorsements": self.endorsements, "now_s": self.now_s, **changes}
        evidence, endorsements = arguments.pop("evidence"), arguments.pop("endorsements")
        return self.verifier(evidence, endorsements, **{**self.options, **arguments})


def _pem(der: bytes) -> str:
    text = base64.encodebytes(der).decode()
    return f"-----BEGIN CERTIFICATE-----\n{text}-----END CERTIFICATE-----\n"


def _read(name: str) -> bytes:
    return (REAL / name).read_bytes()


def _snp(report: bytes, chip: str, at: int, product: str = "milan") -> Sample:
    chain = _pem(_read(chip)) + _read(f"snp/amd_ask_ark_{product}.pem").decode()
    return Sample(report, {"certificates": chain}, at, snp.verify)


def _intel(kind: Any, name: str, collateral: str, at: int) -> Sample:
    return Sample(_read(name), {"collateral": _read(collateral).decode()}, at, kind.verify)


def tsm_report() -> tuple[bytes, bytes]:
    """Report and certificate table of a real Genoa machine, as its kernel gave them."""
    document = json.loads(_read("snp/veraison_tsm_report.json"))
    padded = (document[name] + "=" * (-len(document[name]) % 4) for name in ("outblob", "auxblob"))
    report, table = (base64.urlsafe_b64decode(one) for one in padded)
    return report, table


def real() -> dict[str, Sample]:
    """Every sample of a real machine that verifies as a whole."""
    genoa, table = tsm_report()
    container = {
        "certificates": _read("azure-aci/uvm_host_amd_certificate.pem").decode(),
        "uvm": _read("azure-aci/body.uvm_reference_info.bin").decode("latin-1"),
        "policy": _read("azure-aci/uvm_security_policy.base64").decode().strip(),
    }
    raw = _read("azure-aci/body.uvm_reference_info.bin")
    container["uvm"] = b64(raw) if raw[0] == 0xD2 else raw.decode().strip()
    return {
        "sgx": _intel(sgx, "sgx/sgx_quote.bin", "sgx/sgx_quote_collateral.json", seconds(2025, 7, 1)),
        "tdx": _intel(tdx, "tdx/tdx_quote_v4.bin", "tdx/tdx_quote_v4_collateral.json", seconds(2025, 7, 1)),
        "snp (debug policy)": _snp(
            _read("snp/google_milan_report.bin"), "snp/google_milan_vcek.der", seconds(2022, 10, 24)
        ),
        "snp": _snp(
            bytes.fromhex(_read("snp/virtee_milan_report.hex").decode().strip()),
            "snp/virtee_milan_vcek.der",
            seconds(2023, 5, 3),
        ),
        "snp (Genoa)": Sample(genoa, endorsements(table), seconds(2025, 9, 1), snp.verify),
        "snp (Azure container)": Sample(_read("azure-aci/snp_report.bin"), container, seconds(2023, 2, 27), snp.verify),
        "nitro": Sample(_read("nitro/evervault_beta_doc.bin"), {}, 1665651482, nitro.verify),
        "nitro (debug)": Sample(_read("nitro/evervault_beta_debug_doc.bin"), {}, 1665582606, nitro.verify),
        "nitro (debug, 2023)": Sample(
            base64.b64decode(_read("nitro/evervault_ga_doc.b64")), {}, 1695049410, nitro.verify
        ),
    }


# --- certificates --------------------------------------------------------------------------------------------------


def certificate(
    subject: str,
    key: Any,
    issuer: x509.Certificate | None,
    issuer_key: Any,
    *,
    ca: bool = True,
    days: tuple[int, int] = (-1, 1),
    extensions: Mapping[str, bytes] | None = None,
    usage: str = "",
    pss: bool = False,
) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, subject)])
    builder = (
        x509.CertificateBuilder(
            issuer.subject if issuer is not None else name, name, key.public_key(), x509.random_serial_number()
        )
        .not_valid_before(NOW + dt.timedelta(days=days[0]))
        .not_valid_after(NOW + dt.timedelta(days=days[1]))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    )
    for oid, value in (extensions or {}).items():
        builder = builder.add_extension(x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), value), critical=False)
    if usage:
        builder = builder.add_extension(x509.ExtendedKeyUsage([x509.ObjectIdentifier(usage)]), critical=False)
    return builder.sign(issuer_key, hashes.SHA384(), rsa_padding=PSS if pss else None)


def pem(*chain: x509.Certificate) -> str:
    return "".join(one.public_bytes(Encoding.PEM).decode() for one in chain)


def der(one: x509.Certificate) -> bytes:
    return one.public_bytes(Encoding.DER)


@functools.cache
def rsa_key(number: int = 0, bits: int = 2048) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=bits)


@functools.cache
def ec_key(number: int = 0) -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP384R1())


# --- SNP -----------------------------------------------------------------------------------------------------------

MEASUREMENT = bytes([7]) * 48
CHIP = bytes(range(64))
TCB = {"boot_loader": 3, "tee": 0, "snp": 8, "microcode": 115}
_TCB_OIDS = {name: f"1.3.6.1.4.1.3704.1.3.{n}" for name, n in (("boot_loader", 1), ("tee", 2), ("snp", 3))}
_TCB_OIDS["microcode"] = "1.3.6.1.4.1.3704.1.3.8"
_CHIP_OID = "1.3.6.1.4.1.3704.1.4"


def snp_report(
    key: ec.EllipticCurvePrivateKey,
    *,
    policy: int = 0x30000,
    vmpl: int = 0,
    platform_info: int = 1,
    flags: int = 0,
    guest_svn: int = 0,
    report_data: bytes = REPORT_DATA,
    measurement: bytes = MEASUREMENT,
    host_data: bytes = bytes(32),
    tcb: Mapping[str, int] = TCB,
    chip: bytes = CHIP,
) -> bytes:
    report = bytearray(1184)
    struct.pack_into("<IIQ", report, 0, 2, guest_svn, policy)
    struct.pack_into("<II", report, 0x30, vmpl, 1)
    struct.pack_into("<QI", report, 0x40, platform_info, flags)
    report[0x50:0x90], report[0x90:0xC0], report[0xC0:0xE0] = report_data, measurement, host_data
    for name, place in (("boot_loader", 0), ("tee", 1), ("snp", 6), ("microcode", 7)):
        report[0x180 + place] = tcb[name]
    report[0x1A0:0x1E0] = chip
    r, s = utils.decode_dss_signature(key.sign(bytes(report[:0x2A0]), ec.ECDSA(hashes.SHA384())))
    report[0x2A0:0x2E8], report[0x2E8:0x330] = r.to_bytes(72, "little"), s.to_bytes(72, "little")
    return bytes(report)


@functools.cache
def _amd() -> tuple[x509.Certificate, x509.Certificate]:
    days = (-30, 30)
    root = certificate("ARK-Made", rsa_key(0), None, rsa_key(0), days=days, pss=True)
    return root, certificate("SEV-Made", rsa_key(1), root, rsa_key(0), days=days, pss=True)


def made_snp(
    *,
    chip_days: tuple[int, int] = (-1, 1),
    certified: Mapping[str, int] = TCB,
    certified_chip: bytes = CHIP,
    revoked: bool | None = None,
    crl_days: tuple[int, int] = (-1, 1),
    **fields: Any,
) -> Sample:
    root, signer = _amd()
    numbers = {_TCB_OIDS[name]: b"\x02\x01" + bytes([value]) for name, value in certified.items()}
    chip = certificate(
        "SEV-VCEK",
        ec_key(),
        signer,
        rsa_key(1),
        ca=False,
        days=chip_days,
        extensions={**numbers, _CHIP_OID: certified_chip},
        pss=True,
    )
    endorsements = {"certificates": pem(chip, signer, root)}
    if revoked is not None:
        crl = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(root.subject)
            .last_update(NOW + dt.timedelta(days=crl_days[0]))
            .next_update(NOW + dt.timedelta(days=crl_days[1]))
        )
        if revoked:
            one = x509.RevokedCertificateBuilder().serial_number(signer.serial_number).revocation_date(NOW)
            crl = crl.add_revoked_certificate(one.build())
        signed = crl.sign(rsa_key(0), hashes.SHA384(), rsa_padding=PSS)
        endorsements["crl"] = b64(signed.public_bytes(Encoding.DER))
    roots = {root.fingerprint(hashes.SHA256()).hex(): "milan"}
    return Sample(snp_report(ec_key(), **fields), endorsements, NOW_S, snp.verify, {"roots": roots})


# --- SGX and TDX ---------------------------------------------------------------------------------------------------

#: Where a quote's body begins, its size, and places in it.
_BODY = 48
_BODIES = {"sgx": 384, "tdx": 584}
_PLACES = {
    "sgx": {"attributes": 48, "measurement": 64, "report_data": 320},
    "tdx": {"attributes": 120, "measurement": 136, "report_data": 520},
}
_QE_REPORT, _PCK_EXTENSION = 384, "1.2.840.113741.1.13.1"


def _p256(number: int) -> ec.EllipticCurvePrivateKey:
    return _p256_keys.setdefault(number, ec.generate_private_key(ec.SECP256R1()))


_p256_keys: dict[int, ec.EllipticCurvePrivateKey] = {}


def _intel_certificate(
    subject: str,
    number: int,
    issuer: x509.Certificate | None,
    signer: int,
    at: dt.datetime,
    extension: bytes = b"",
    *,
    ca: bool = True,
) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, subject)])
    builder = (
        x509.CertificateBuilder(
            issuer.subject if issuer else name, name, _p256(number).public_key(), x509.random_serial_number()
        )
        .not_valid_before(at - dt.timedelta(days=900))
        .not_valid_after(at + dt.timedelta(days=900))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(_p256(number).public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(_p256(signer).public_key()), critical=False)
        .add_extension(x509.KeyUsage(not ca, False, False, False, False, ca, ca, False, False), critical=True)
    )
    if extension:
        builder = builder.add_extension(
            x509.UnrecognizedExtension(x509.ObjectIdentifier(_PCK_EXTENSION), extension), False
        )
    return builder.sign(_p256(signer), hashes.SHA256())


def _intel_crl(issuer: x509.Certificate, signer: int, at: dt.datetime, revoked: x509.Certificate | None = None) -> str:
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.subject)
        .last_update(at - dt.timedelta(days=10))
        .next_update(at + dt.timedelta(days=20))
        .add_extension(x509.CRLNumber(1), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(_p256(signer).public_key()), critical=False)
    )
    if revoked is not None:
        one = x509.RevokedCertificateBuilder().serial_number(revoked.serial_number).revocation_date(at)
        builder = builder.add_revoked_certificate(one.build())
    return builder.sign(_p256(signer), hashes.SHA256()).public_bytes(Encoding.DER).hex()


def _raw(number: int, data: bytes) -> bytes:
    r, s = utils.decode_dss_signature(_p256(number).sign(data, ec.ECDSA(hashes.SHA256())))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def made_dcap(
    platform: str,
    *,
    debug: bool = False,
    measurement: bytes = b"",
    report_data: bytes = REPORT_DATA,
    config_id: bytes = b"",
    revoked: bool = False,
    signer: int = 34,
) -> Sample:
    """A real quote whose enclave says something else, signed again under a root made here, with its collateral.

    What Intel says of firmware, and what the certificate says of the processor, are the real machine's.
    """
    sample = real()[platform]
    quote, at = sample.evidence, dt.datetime.fromtimestamp(sample.now_s, dt.UTC)
    places, end = _PLACES[platform], _BODY + _BODIES[platform]
    signed = bytearray(quote[:end])
    attributes = _BODY + places["attributes"]
    signed[attributes] = (
        signed[attributes] & ~3 | (1 if platform == "sgx" else 0) | (2 if platform == "sgx" else 1) * debug
    )
    if measurement:
        signed[_BODY + places["measurement"] : _BODY + places["measurement"] + len(measurement)] = measurement
    signed[_BODY + places["report_data"] : _BODY + places["report_data"] + 64] = report_data
    signed[_BODY + 192 : _BODY + 192 + len(config_id)] = config_id
    # Behind the body: a length, a signature, the attestation key; of version 4 a header of six bytes; then the report of
    # the quoting enclave, whose data are the hash of that key.
    report_at = end + 4 + 128 + (0 if platform == "sgx" else 6)
    qe_report = bytearray(quote[report_at : report_at + _QE_REPORT])
    numbers = _p256(30).public_key().public_numbers()
    key = numbers.x.to_bytes(32, "big") + numbers.y.to_bytes(32, "big")
    (size,) = struct.unpack_from("<H", quote, report_at + _QE_REPORT + 64)
    authentication = quote[report_at + _QE_REPORT + 66 :][:size]
    qe_report[320:384] = sha256(key + authentication).digest() + bytes(32)
    shown = x509.load_pem_x509_certificates(quote[quote.index(b"-----BEGIN") :].rstrip(b"\0"))
    extension = shown[0].extensions.get_extension_for_oid(x509.ObjectIdentifier(_PCK_EXTENSION)).value
    assert isinstance(extension, x509.UnrecognizedExtension)
    root = _intel_certificate("Intel SGX Root CA", 31, None, 31, at)
    middle = _intel_certificate("Intel SGX PCK Platform CA", 32, root, 31, at)
    leaf = _intel_certificate("Intel SGX PCK Certificate", 33, middle, 32, at, extension.value, ca=False)
    tcb = _intel_certificate("Intel SGX TCB Signing", 34, root, 31, at, ca=False)
    chain = pem(leaf, middle, root).encode()
    end_of_report = bytes(qe_report) + _raw(33, bytes(qe_report)) + struct.pack("<H", size) + authentication
    certified = end_of_report + struct.pack("<HI", 5, len(chain)) + chain
    if platform == "tdx":
        certified = struct.pack("<HI", 6, len(certified)) + certified
    tail = _raw(30, bytes(signed)) + key + certified
    said = json.loads(sample.endorsements["collateral"])
    collateral = {
        "pck_crl_issuer_chain": pem(middle, root),
        "root_ca_crl": _intel_crl(root, 31, at, middle if revoked else None),
        "pck_crl": _intel_crl(middle, 32, at),
        "tcb_info_issuer_chain": pem(tcb, root),
        "tcb_info": said["tcb_info"],
        "tcb_info_signature": _raw(signer, said["tcb_info"].encode()).hex(),
        "qe_identity_issuer_chain": pem(tcb, root),
        "qe_identity": said["qe_identity"],
        "qe_identity_signature": _raw(signer, said["qe_identity"].encode()).hex(),
    }
    return Sample(
        bytes(signed) + struct.pack("<I", len(tail)) + tail,
        {"collateral": json.dumps(collateral)},
        sample.now_s,
        sample.verifier,
        {"root": der(root)},
    )


# --- Nitro ---------------------------------------------------------------------------------------------------------


def made_nitro(*, days: tuple[int, int] = (-1, 1), debug: bool = False, **changes: Any) -> Sample:
    root = certificate("aws.made", ec_key(10), None, ec_key(10))
    zone = certificate("zone", ec_key(11), root, ec_key(10))
    instance = certificate("instance", ec_key(12), zone, ec_key(11), ca=False, days=days)
    pcrs = {number: bytes([number + 1] if not debug else [0]) * 48 for number in (0, 1, 2)}
    body = {
        "module_id": "i-0-enc0",
        "digest": "SHA384",
        "timestamp": NOW_S * 1000,
        "pcrs": {**pcrs, 3: b"\x33" * 48, 4: bytes(48)},
        "certificate": der(instance),
        "cabundle": [der(root), der(zone)],
        "public_key": None,
        "user_data": REPORT_DATA,
        "nonce": None,
        **changes,
    }
    protected, payload = cbor2.dumps({1: -35}), cbor2.dumps(body)
    signed = cbor2.dumps(["Signature1", protected, b"", payload])
    r, s = utils.decode_dss_signature(ec_key(12).sign(signed, ec.ECDSA(hashes.SHA384())))
    signature = r.to_bytes(48, "big") + s.to_bytes(48, "big")
    document = cbor2.dumps([protected, {}, payload, signature])
    options = {"root": root.fingerprint(hashes.SHA256()).hex()}
    return Sample(document, {}, NOW_S, nitro.verify, options)


# --- Azure virtual machines ----------------------------------------------------------------------------------------


def hcl_blob(key: rsa.RSAPrivateKey, report_for: Callable[[bytes], bytes], *, kind: int = 2) -> bytes:
    numbers = key.public_key().public_numbers()
    url = lambda n: base64.urlsafe_b64encode(n.to_bytes((n.bit_length() + 7) // 8, "big")).rstrip(b"=").decode()  # noqa: E731
    keys = [{"kid": "HCLAkPub", "kty": "RSA", "n": url(numbers.n), "e": url(numbers.e)}]
    data = json.dumps({"keys": keys, "vm-configuration": {}}).encode()
    report = report_for(sha256(data).digest().ljust(64, b"\0"))
    return b"HCLA" + bytes(28) + report + struct.pack("<5I", len(data) + 20, 1, kind, 1, len(data)) + data


def tpm_quote(extra: bytes, pcrs: Mapping[int, bytes]) -> bytes:
    bits = bytearray(3)
    for number in pcrs:
        bits[number // 8] |= 1 << number % 8
    digest = sha256(b"".join(pcrs[number] for number in sorted(pcrs))).digest()
    sized = lambda value: struct.pack(">H", len(value)) + value  # noqa: E731
    head = struct.pack(">IH", 0xFF544347, 0x8018) + sized(b"\0\x0b" + bytes(32)) + sized(extra) + bytes(25)
    return head + struct.pack(">IHB", 1, 0x000B, 3) + bytes(bits) + sized(digest)


def made_azure_vtpm(
    *,
    pcrs: Mapping[int, bytes] | None = None,
    shown: Mapping[int, bytes] | None = None,
    report_data: bytes = REPORT_DATA,
    extra: bytes | None = None,
    signer: int = 2,
    **fields: Any,
) -> Sample:
    pcrs = pcrs if pcrs is not None else {4: b"\x04" * 32, 11: b"\x0b" * 32}
    below = made_snp(**{name: value for name, value in fields.items() if name in ("chip_days", "revoked")})
    inner = {name: value for name, value in fields.items() if name not in ("chip_days", "revoked")}
    blob = hcl_blob(rsa_key(2), lambda bound: snp_report(ec_key(), report_data=bound, **inner))
    attest = tpm_quote(sha256(report_data).digest() if extra is None else extra, pcrs)
    document = {
        "hcl": b64(blob),
        "quote": b64(attest),
        "signature": b64(rsa_key(signer).sign(attest, padding.PKCS1v15(), hashes.SHA256())),
        "report_data": b64(report_data),
        "pcrs": {str(number): value.hex() for number, value in (shown or pcrs).items()},
    }
    return Sample(
        json.dumps(document).encode(),
        below.endorsements,
        NOW_S,
        functools.partial(_azure, roots=below.options["roots"]),
    )


def _azure(evidence: bytes, endorsements: Any, *, now_s: int, roots: Mapping[str, str]) -> Verified:
    return azure_vtpm.verify(evidence, endorsements, now_s=now_s, roots=roots)


# --- VBS -----------------------------------------------------------------------------------------------------------


def made_vbs(
    *,
    flags: int = 0,
    version: int = 1,
    signer: int = 3,
    scheme: int = 1,
    report_data: bytes = REPORT_DATA,
    unique: bytes = b"\2" * 32,
    **svns: int,
) -> Sample:
    numbers = (svns.get("enclave", 1), svns.get("kernel", 1), svns.get("platform", 1), flags, 0, 16)
    parts = (report_data, b"\1" * 32, unique, b"\3" * 32, b"\4" * 16, b"\5" * 16)
    name = "enclave.dll".encode("utf-16-le") + b"\0\0"
    module = struct.pack("<2I32s32s16s16sI", 1, 108 + len(name), *parts[2:4], *parts[4:], 1) + name
    report = struct.pack("<2I64s32s32s32s16s16s6I", 224, version, *parts, *numbers)
    statement = report + module
    pss = padding.PSS(padding.MGF1(hashes.SHA256()), 32)
    signature = rsa_key(signer).sign(statement, pss, hashes.SHA256())
    head = struct.pack("<6I", 24 + len(statement) + len(signature), 1, scheme, len(statement), len(signature), 0)
    public = rsa_key(3).public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    return Sample(head + statement + signature, {"key": public}, NOW_S, vbs.verify)


def vbs_key() -> str:
    public = rsa_key(3).public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return sha256(public).hexdigest()
