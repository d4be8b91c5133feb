"""What vendors say of a node's platform, for its host to give to the enclave: from files, or from their service.

Nothing here is trusted: the enclave verifies what it is given, and so does whoever verifies the enclave.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Final

import dcap_qvl
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from coco.attestation.snp import REPORT_BYTES, chip_of
from coco.attestation.verified import SGX, SNP, TDX
from coco.errors import HostError
from coco.ledger.statements import parse_json

#: Evidence of a platform to endorsements, a JSON object of texts.
Source = Callable[[str, bytes], bytes]

AMD_KDS: Final = "https://kdsintf.amd.com"
#: Files of a security context, without ``-base64``.
_SECURITY_CONTEXT: Final = ("host-amd-cert", "reference-info", "security-policy")
_TIMEOUT_S: Final = 20.0
_BYTES_MAX: Final = 256 * 1024
_PARTS: Final = {"boot_loader": "blSPL", "tee": "teeSPL", "snp": "snpSPL", "microcode": "ucodeSPL", "fmc": "fmcSPL"}


def from_file(path: Path) -> Source:
    """Whatever the file says, whenever it is asked: somebody else keeps it fresh."""
    return lambda platform, evidence: path.read_bytes()


def from_vendor(url: str) -> Source:
    """Ask AMD's key distribution service, or Intel's provisioning certification service, or a cache of either.

    Args:
        url: of the service, without a path.

    Raises:
        HostError: from the source: it cannot be reached, or gives something else (``host.no_endorsements``).
    """
    base = url.rstrip("/")

    def ask(platform: str, evidence: bytes) -> bytes:
        if platform == SNP:
            return _amd(base, evidence)
        if platform in (SGX, TDX):
            return _intel(base, evidence)
        raise _failed(f"nobody serves endorsements of {platform}")

    return ask


def _amd(base: str, report: bytes) -> bytes:
    """Certificate of the chip, those of AMD, and AMD's list of revoked ones."""
    if len(report) != REPORT_BYTES:
        raise _failed("this is no report of SNP")
    # A report of version 2 does not say which generation its chip is of.
    for product in chip_of(report).products:
        place = f"{base}/vcek/v1/{product.capitalize()}"
        chip = chip_of(report, product)
        query = urllib.parse.urlencode({_PARTS[part]: version for part, version in chip.tcb.items()})
        try:
            certificate = _get(f"{place}/{chip.chip_id.hex()}?{query}")
        except urllib.error.HTTPError:
            continue
        try:
            vcek = x509.load_der_x509_certificate(certificate).public_bytes(Encoding.PEM).decode()
            chain, revoked = _get(f"{place}/cert_chain").decode(), _get(f"{place}/crl")
        except ValueError as error:
            raise _failed(f"AMD's service gives no certificate: {error}") from error
        return json.dumps({"certificates": vcek + chain, "crl": base64.b64encode(revoked).decode()}).encode()
    raise _failed("AMD's service does not know this chip")


def _intel(base: str, quote: bytes) -> bytes:
    try:
        collateral = asyncio.run(dcap_qvl.get_collateral(base, quote))
    except (ValueError, RuntimeError) as error:
        raise _failed(f"the service gives no collateral: {error}") from error
    return json.dumps({"collateral": collateral.to_json()}).encode()


def _get(url: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as answer:  # noqa: S310 - the operator named the service
            data: bytes = answer.read(_BYTES_MAX + 1)
    except urllib.error.HTTPError:
        raise
    except OSError as error:
        raise _failed(f"the service does not answer: {error}") from error
    if len(data) > _BYTES_MAX:
        raise _failed("the service gives too much")
    return data


def _failed(reason: str) -> HostError:
    return HostError(reason, code="host.no_endorsements")


def from_azure_container(folder: Path) -> Source:
    """What the utility machine of a confidential container shows in its security context.

    Args:
        folder: as ``UVM_SECURITY_CONTEXT_DIR`` names it.

    Raises:
        HostError: from the source: it is not there, or not as documented (``host.no_endorsements``).
    """

    def ask(platform: str, evidence: bytes) -> bytes:
        try:
            read = {name: (folder / f"{name}-base64").read_text().strip() for name in _SECURITY_CONTEXT}
            chip = parse_json(base64.b64decode(read["host-amd-cert"], validate=True))
            certificates = chip["vcekCert"] + chip["certificateChain"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise _failed(f"the security context is not as it should be: {error}") from error
        uvm, policy = read["reference-info"], read["security-policy"]
        return json.dumps({"certificates": certificates, "uvm": uvm, "policy": policy}).encode()

    return ask


def source(text: str) -> Source:
    """A file, a service by its URL, or ``azure-container``; nothing, where a platform needs none.

    Raises:
        HostError: it is none of them (``host.no_endorsements``).
    """
    if text == "azure-container":
        return from_azure_container(Path(os.environ.get("UVM_SECURITY_CONTEXT_DIR", "/security-context")))
    if not text:
        return lambda platform, evidence: b""
    if text.startswith(("https://", "http://")):
        return from_vendor(text)
    if not Path(text).is_file():
        raise _failed(f"there is no file {text}")
    return from_file(Path(text))
