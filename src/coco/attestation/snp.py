"""AMD SEV-SNP: attestation reports (AMD 56860, tables 22-24), and the containers of Azure that run under it.

Evidence: the report, 1184 bytes, little-endian. Endorsements: the chip's certificate (VCEK, or VLEK of a cloud), ASK or
ASVK, and ARK, in PEM; perhaps AMD's list of revoked certificates; for a confidential container of Azure also the
signed endorsement of its utility VM, whose measurement the report has, and its policy, whose hash is the host data.
"""

from __future__ import annotations

import base64
import binascii
import datetime
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils

from coco.attestation import signed
from coco.attestation.certificates import check_chain, check_dates, load_der, load_pem, name_of
from coco.attestation.verified import SNP, Verified, check_time, refuse
from coco.crypto import cose

REPORT_BYTES: Final = 1184
_SIGNED_BYTES: Final = 0x2A0
_ECDSA_P384_SHA384 = 1
_COMPONENT_BYTES = 72

#: SHA-256 of the root certificates (ARK) that AMD publishes, and the generation of processors of each.
ROOTS: Final[Mapping[str, str]] = {
    "69d063b45344d26a2e94e1f4210de49ef555308287d4c174445c95639a540bcd": "milan",
    "4c6598d19c18719c5dfd4a7d335f674e5bfe1d8f800cea2cf270c10d103db2f1": "genoa",
    "1f084161a44bb6d93778a904877d4819cafa5d05ef4193b2ded9dd9c73dd3f6a": "turin",
}

#: Where a chip's certificate says which firmware its key belongs to.
_TCB_OIDS = {
    "boot_loader": "1.3.6.1.4.1.3704.1.3.1",
    "tee": "1.3.6.1.4.1.3704.1.3.2",
    "snp": "1.3.6.1.4.1.3704.1.3.3",
    "microcode": "1.3.6.1.4.1.3704.1.3.8",
    "fmc": "1.3.6.1.4.1.3704.1.3.9",
}
_CHIP_OID = "1.3.6.1.4.1.3704.1.4"
#: Places of a TCB version's parts in its eight bytes; from Turin on another one.
_TCB = {"boot_loader": 0, "tee": 1, "snp": 6, "microcode": 7}
_TCB_TURIN = {"fmc": 0, "boot_loader": 1, "tee": 2, "snp": 3, "microcode": 7}
#: Generations by the family and the upper half of the model in a report from version 3 on.
_GENERATIONS = {(0x19, 0): "milan", (0x19, 1): "genoa", (0x19, 0xA): "genoa", (0x1A, 0): "turin", (0x1A, 1): "turin"}
_CHIP_ID_BYTES = 64
#: Bytes of a Turin chip's id.
_SHORT_CHIP_ID = 8
_KEYS = {0: "VCEK", 1: "VLEK"}
_UVM_USAGE_OID = "1.3.6.1.4.1.311.76.59.1.2"


def verify(report: bytes, endorsements: Mapping[str, str], *, now_s: int, roots: Mapping[str, str] = ROOTS) -> Verified:
    """Verify a report under its chip's certificate and AMD's root.

    Args:
        report: as the firmware made it.
        endorsements: ``certificates`` (PEM: VCEK or VLEK, ASK or ASVK, ARK), ``crl`` (base64 DER, optional), ``uvm``
            and ``policy`` (base64, of a confidential container, optional).
        now_s: the time, in seconds since the Unix epoch.
        roots: trusted roots by SHA-256, with the generation of each.

    Raises:
        AttestationError: ``attestation.malformed``, ``.root``, ``.chain``, ``.signature``, ``.stale``, ``.future``,
            ``.revoked``, ``.tcb_mismatch``, ``.chip_mismatch``, ``.uvm``, ``.host_data``.
    """
    if len(report) != REPORT_BYTES:
        raise refuse("an SNP report has 1184 bytes", "malformed")
    chain = load_pem(endorsements.get("certificates", "").encode())
    if len(chain) != 3:
        raise refuse("a chip's certificate comes with those of its signing key and its root", "malformed")
    chip, signer, root = chain
    product = roots.get(name_of(root))
    if product is None:
        raise refuse("the root is none of AMD's", "root")
    path = (root, signer, chip)
    check_chain((root, root, signer, chip))
    begin, end = check_dates(path, now_s)
    begin, end = _check_revocation(endorsements.get("crl", ""), path, now_s, begin, end)
    _check_signature(report, chip)
    fields = _parse(report)
    if fields["key"] not in _KEYS.values():
        raise refuse("the report is signed with no key of a chip", "unsupported")
    tcb = _check_chip(report, fields, chip, product)
    claims: dict[str, Any] = {**fields, "product": product, "tcb": tcb}
    if endorsements.get("uvm"):
        claims["uvm"] = _uvm(endorsements["uvm"], fields["measurement"])
    if endorsements.get("policy"):
        if sha256(_decoded(endorsements["policy"])).hexdigest() != fields["host_data"]:
            raise refuse("the container runs under another policy", "host_data")
        claims["policy_sha256"] = fields["host_data"]
    return Verified(
        platform=SNP,
        measurement=str(claims.pop("measurement")),
        signer=fields["id_key_digest"] if any(report[0xE0:0x110]) else "",
        report_data=report[0x50:0x90],
        debug=bool(fields["policy"] >> 19 & 1),
        tcb_status="",
        valid_from_s=begin,
        valid_until_s=end,
        claims=claims,
    )


@dataclass(frozen=True, slots=True)
class Chip:
    """What a report says of the chip that made it: by this its certificate is found."""

    products: tuple[str, ...]
    chip_id: bytes
    tcb: Mapping[str, int]


def chip_of(report: bytes, product: str = "") -> Chip:
    """The chip of an unverified report; one of version 2 does not say which generation it is of.

    Args:
        report: 1184 bytes.
        product: the generation, as far as it is known; it decides where in the report things are.
    """
    products: tuple[str, ...] = ("milan", "genoa", "turin")
    if struct.unpack_from("<I", report)[0] > 2:
        named = _GENERATIONS.get((report[0x188], report[0x189] >> 4))
        products = (named,) if named else products
    chosen = product or products[0]
    places = _TCB_TURIN if chosen == "turin" else _TCB
    size = _SHORT_CHIP_ID if chosen == "turin" else _CHIP_ID_BYTES
    return Chip(products, report[0x1A0 : 0x1A0 + size], {part: report[0x180 + at] for part, at in places.items()})


def _parse(report: bytes) -> dict[str, Any]:
    version, guest_svn, policy = struct.unpack_from("<IIQ", report, 0)
    vmpl, algorithm = struct.unpack_from("<II", report, 0x30)
    platform_info, flags = struct.unpack_from("<QI", report, 0x40)
    if algorithm != _ECDSA_P384_SHA384 or version < 2:
        raise refuse("the report is of a version or an algorithm that is not known", "unsupported")
    if any(report[0x330:]):
        raise refuse("the report goes on after its signature", "malformed")
    return {
        "version": version,
        "guest_svn": guest_svn,
        "policy": policy,
        "vmpl": vmpl,
        "platform_info": platform_info,
        "key": _KEYS.get(flags >> 2 & 7, ""),
        "chip_masked": bool(flags >> 1 & 1),
        "measurement": report[0x90:0xC0].hex(),
        "host_data": report[0xC0:0xE0].hex(),
        "id_key_digest": report[0xE0:0x110].hex(),
        "author_key_digest": report[0x110:0x140].hex(),
        "reported_tcb": report[0x180:0x188].hex(),
        "cpuid": report[0x188:0x18B].hex() if version > 2 else "",
        "chip_id": report[0x1A0:0x1E0].hex(),
    }


def _check_signature(report: bytes, chip: x509.Certificate) -> None:
    key = chip.public_key()
    r, s = (int.from_bytes(report[at : at + _COMPONENT_BYTES], "little") for at in (0x2A0, 0x2E8))
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise refuse("a chip signs with an elliptic-curve key", "chain")
    try:
        key.verify(utils.encode_dss_signature(r, s), report[:_SIGNED_BYTES], ec.ECDSA(hashes.SHA384()))
    except InvalidSignature as error:
        raise refuse("the chip did not sign this report", "signature") from error


def _check_chip(report: bytes, fields: Mapping[str, Any], chip: x509.Certificate, product: str) -> dict[str, int]:
    """Whether the certificate is of the firmware and the chip that the report names; the firmware's versions."""
    places = _TCB_TURIN if product == "turin" else _TCB
    tcb = {name: report[0x180 + place] for name, place in places.items()}
    for name, version in tcb.items():
        if _number(_extension(chip, _TCB_OIDS[name])) != version:
            raise refuse(f"the chip's key is of other firmware: {name.replace('_', ' ')}", "tcb_mismatch")
    certified = _extension(chip, _CHIP_OID)
    if fields["key"] == "VCEK" and not fields["chip_masked"]:
        size = _SHORT_CHIP_ID if product == "turin" else len(report[0x1A0:0x1E0])
        if certified is None or certified[-size:] != report[0x1A0 : 0x1A0 + size]:
            raise refuse("the key is of another chip", "chip_mismatch")
    return tcb


def _extension(certificate: x509.Certificate, oid: str) -> bytes | None:
    for extension in certificate.extensions:
        if extension.oid.dotted_string == oid and isinstance(extension.value, x509.UnrecognizedExtension):
            return extension.value.value
    return None


def _number(der: bytes | None) -> int:
    """A DER INTEGER of one byte or two; -1 for anything else."""
    if der is None or len(der) < 3 or der[0] != 2 or der[1] != len(der) - 2:
        return -1
    return int.from_bytes(der[2:], "big")


def _check_revocation(
    crl: str, path: tuple[x509.Certificate, ...], now_s: int, begin: int, end: int
) -> tuple[int, int]:
    """Check AMD's list of revoked certificates, if it is given; until when everything is valid, then."""
    if not crl:
        return begin, end
    root = path[0].public_key()
    try:
        revoked = x509.load_der_x509_crl(_decoded(crl))
        if not isinstance(root, rsa.RSAPublicKey):
            raise refuse("AMD's root is an RSA key", "chain")
        pss = padding.PSS(padding.MGF1(hashes.SHA384()), hashes.SHA384().digest_size)
        root.verify(revoked.signature, revoked.tbs_certlist_bytes, pss, hashes.SHA384())
    except (ValueError, InvalidSignature) as error:
        raise refuse("the list of revoked certificates is not AMD's", "chain") from error
    after = revoked.next_update_utc or datetime.datetime.fromtimestamp(now_s, datetime.UTC)
    begin = max(begin, int(revoked.last_update_utc.timestamp()))
    end = min(end, int(after.timestamp()))
    check_time(now_s, begin, end, "the list of revoked certificates")
    for certificate in path[1:]:
        if certificate.issuer == revoked.issuer and revoked.get_revoked_certificate_by_serial_number(
            certificate.serial_number
        ):
            raise refuse("AMD has revoked a certificate", "revoked")
    return begin, end


def _uvm(text: str, measurement: str) -> dict[str, Any]:
    """What Microsoft endorses about a container's utility VM, if that is the one that was measured.

    Its certificates live a year; the endorsement says what was good when it was signed, and a policy which version is
    the least: they are not checked against the time.
    """
    message, payload = signed.parse(_decoded(text))
    chain = [load_der(der) for der in signed.certificates(message)]
    if message.algorithm != cose.PS384 or not chain:
        raise refuse("the endorsement of the VM has no known form", "uvm")
    check_chain(chain[::-1])
    try:
        signed.verify(message, chain[0].public_key())
        usage = chain[0].extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        body = json.loads(payload)
        endorsed, version = str(body["x-ms-sevsnpvm-launchmeasurement"]), int(body["x-ms-sevsnpvm-guestsvn"])
    except (InvalidSignature, ValueError, KeyError, TypeError, x509.ExtensionNotFound) as error:
        raise refuse("the endorsement of the VM is not signed, or says nothing", "uvm") from error
    root = base64.urlsafe_b64encode(chain[-1].fingerprint(hashes.SHA256())).rstrip(b"=").decode()
    issuer = f"did:x509:0:sha256:{root}::eku:{_UVM_USAGE_OID}"
    if _UVM_USAGE_OID not in [one.dotted_string for one in usage] or message.headers.get("iss") != issuer:
        raise refuse("the endorsement of the VM names another issuer than its own", "uvm")
    if endorsed.lower() != measurement:
        raise refuse("the endorsement is of another VM", "uvm")
    return {"issuer": issuer, "feed": str(message.headers.get("feed", "")), "svn": version}


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise refuse("an endorsement is no base64", "malformed") from error
