"""Confidential virtual machines of Azure: a virtual TPM whose key the hardware vouches for.

Evidence: JSON with the report of the paravisor (``hcl``, of NV index 0x01400001), a quote of the TPM (``quote``, a
TPMS_ATTEST), its ``signature`` (RSASSA-PKCS1-v1_5 with SHA-256), the values of the quoted ``pcrs``, the ``report_data``
that the quote binds, and for TDX the ``td_quote`` that Azure gave for the report; binary values in base64.
Endorsements: as of SNP, or as of TDX.

The chain: vendor's root -> hardware report -> hash of the paravisor's JSON -> the TPM's key -> quote -> PCRs and report
data. What runs in the machine is in the PCRs; the launch measurement is the paravisor's alone.
"""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from coco.attestation import snp, tdx
from coco.attestation.verified import AZURE_VTPM, REPORT_DATA_BYTES, Verified, refuse

_MAGIC, _HEADER_BYTES, _SLOT_BYTES = b"HCLA", 32, snp.REPORT_BYTES
_DATA_HEADER = struct.Struct("<5I")
_SNP, _TDX, _SHA256 = 2, 4, 1
_TDREPORT_DATA = slice(128, 192)
_KEY_ID = "HCLAkPub"

_TPM_GENERATED, _ATTEST_QUOTE, _ALG_SHA256 = 0xFF544347, 0x8018, 0x000B
_CLOCK_BYTES, _FIRMWARE_BYTES = 17, 8
_PCR_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class Quote:
    """What a TPM signed."""

    extra_data: bytes
    #: Numbers of the registers in its bank of SHA-256.
    selected: tuple[int, ...]
    #: SHA-256 over their values in order.
    digest: bytes


class _Reader:
    """Reads big-endian fields of a TPM structure, front to back."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def take(self, size: int) -> bytes:
        if self._at + size > len(self._data):
            raise refuse("a structure of the TPM is cut", "malformed")
        self._at += size
        return self._data[self._at - size : self._at]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def sized(self) -> bytes:
        return self.take(self.number(2))

    def end(self) -> None:
        if self._at != len(self._data):
            raise refuse("a structure of the TPM goes on after its end", "malformed")


def parse_quote(attest: bytes) -> Quote:
    """Read a TPMS_ATTEST of the kind quote, with one bank of SHA-256 (TPM 2.0 library, part 2, 10.12).

    Raises:
        AttestationError: ``attestation.malformed``.
    """
    reader = _Reader(attest)
    if reader.number(4) != _TPM_GENERATED or reader.number(2) != _ATTEST_QUOTE:
        raise refuse("not a quote that a TPM made", "malformed")
    reader.sized()  # the name of the key, which is known otherwise
    extra = reader.sized()
    reader.take(_CLOCK_BYTES + _FIRMWARE_BYTES)
    if reader.number(4) != 1 or reader.number(2) != _ALG_SHA256:
        raise refuse("the quote is of other registers than those of SHA-256", "unsupported")
    bits = reader.take(reader.number(1))
    selected = tuple(8 * i + bit for i, byte in enumerate(bits) for bit in range(8) if byte >> bit & 1)
    digest = reader.sized()
    reader.end()
    return Quote(extra, selected, digest)


def check_signature(attest: bytes, signature: bytes, key: rsa.RSAPublicKey) -> None:
    """Check that a TPM's key signed a structure.

    Raises:
        AttestationError: ``attestation.signature``.
    """
    try:
        key.verify(signature, attest, padding.PKCS1v15(), hashes.SHA256())
    except InvalidSignature as error:
        raise refuse("the TPM did not sign this quote", "signature") from error


def check_registers(quote: Quote, values: Mapping[int, bytes]) -> None:
    """Check that these are the values of the quoted registers.

    Raises:
        AttestationError: ``attestation.pcrs``.
    """
    if set(values) != set(quote.selected) or any(len(value) != _PCR_BYTES for value in values.values()):
        raise refuse("the values are of other registers than the quote", "pcrs")
    if sha256(b"".join(values[number] for number in quote.selected)).digest() != quote.digest:
        raise refuse("the registers have other values", "pcrs")


@dataclass(frozen=True, slots=True)
class Hcl:
    """The paravisor's report."""

    #: ``snp`` or ``tdx``.
    hardware: str
    #: SNP report, or TDREPORT.
    report: bytes
    #: What the hardware's report data must begin with: the hash of its JSON.
    bound: bytes
    #: The TPM's key.
    key: rsa.RSAPublicKey


def parse_hcl(blob: bytes) -> Hcl:
    """Read the paravisor's report and check that its JSON is what the hardware report binds.

    Raises:
        AttestationError: ``attestation.malformed``, or ``attestation.hcl``: the JSON is another one.
    """
    at = _HEADER_BYTES + _SLOT_BYTES
    if blob[: len(_MAGIC)] != _MAGIC or len(blob) < at + _DATA_HEADER.size:
        raise refuse("not a report of Azure's paravisor", "malformed")
    _, _, kind, hash_kind, size = _DATA_HEADER.unpack_from(blob, at)
    data = blob[at + _DATA_HEADER.size :][:size]
    if kind not in (_SNP, _TDX) or hash_kind != _SHA256 or len(data) != size:
        raise refuse("the paravisor's report has no known form", "malformed")
    report = blob[_HEADER_BYTES:at]
    bound = sha256(data).digest()
    named = report[0x50:0x90] if kind == _SNP else report[_TDREPORT_DATA]
    if named != bound.ljust(REPORT_DATA_BYTES, b"\0"):
        raise refuse("the hardware report binds another JSON", "hcl")
    try:
        (jwk,) = (one for one in json.loads(data.decode())["keys"] if one["kid"] == _KEY_ID)
        n, e = (int.from_bytes(base64.urlsafe_b64decode(jwk[part] + "=="), "big") for part in ("n", "e"))
        key = rsa.RSAPublicNumbers(e, n).public_key()
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise refuse("the paravisor's JSON names no key of the TPM", "malformed") from error
    return Hcl("snp" if kind == _SNP else "tdx", report, bound, key)


def verify(
    evidence: bytes, endorsements: Mapping[str, str], *, now_s: int, roots: Mapping[str, str] = snp.ROOTS
) -> Verified:
    """Verify a machine's evidence.

    The measurement is the digest over the quoted registers; the paravisor's is the claim ``hardware_measurement``.

    Args:
        evidence: as the module says.
        endorsements: as of the hardware.
        now_s: the time, in seconds since the Unix epoch.
        roots: trusted roots of SNP.

    Raises:
        AttestationError: as the hardware's; ``attestation.hcl``, ``.pcrs``, ``.signature``, ``.report_data``.
    """
    try:
        document = json.loads(evidence.decode())
        part = {name: base64.b64decode(document[name], validate=True) for name in _PARTS}
        td_quote = base64.b64decode(document.get("td_quote", ""), validate=True)
        values = {int(number): bytes.fromhex(value) for number, value in document["pcrs"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise refuse("the evidence has no known form", "malformed") from error
    hcl = parse_hcl(part["hcl"])
    if hcl.hardware == "snp":
        hardware = snp.verify(hcl.report, endorsements, now_s=now_s, roots=roots)
    else:
        hardware = tdx.verify(td_quote, endorsements, now_s=now_s)
        if hardware.report_data[: len(hcl.bound)] != hcl.bound:
            raise refuse("the quote is of another machine than the paravisor's report", "hcl")
    quote = parse_quote(part["quote"])
    check_signature(part["quote"], part["signature"], hcl.key)
    check_registers(quote, values)
    if len(part["report_data"]) != REPORT_DATA_BYTES or quote.extra_data != sha256(part["report_data"]).digest():
        raise refuse("the quote binds other report data", "report_data")
    claims: dict[str, Any] = {
        "hardware": hcl.hardware,
        "hardware_measurement": hardware.measurement,
        "hardware_claims": dict(hardware.claims),
        "pcrs": {str(number): values[number].hex() for number in quote.selected},
    }
    return replace(
        hardware,
        platform=AZURE_VTPM,
        measurement=quote.digest.hex(),
        report_data=part["report_data"],
        claims=claims,
    )


_PARTS = ("hcl", "quote", "signature", "report_data")
