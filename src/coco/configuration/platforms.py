"""The TEE manifest and the code manifest of the constitution, as the policy that evidence is judged by. Sans-I/O."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from coco.attestation.evidence import VIRTUAL
from coco.attestation.policy import AzureVtpm, Policy, Snp, parse_rules
from coco.attestation.verified import AZURE_VTPM, NITRO, SGX, SNP, TDX, VBS, Verified
from coco.configuration.reads import Reads
from coco.ledger import tables

#: Lists of allowed code; keys of the last one begin with their platform.
CODE: Final[Mapping[str, str]] = {
    VIRTUAL: tables.NODE_MEASUREMENTS,
    SGX: tables.NODE_CODE_IDS,
    SNP: tables.NODE_SNP_MEASUREMENTS,
    TDX: tables.NODE_TDX_MEASUREMENTS,
}
#: Value of a row of a list.
ALLOWED: Final = b'"AllowedToJoin"'
#: Platforms whose code is listed in one table, for the open format has none for them.
OTHERS: Final = (NITRO, VBS)
#: Generations of AMD's processors, by the first digits of a CPUID.
_PRODUCTS = {"00A00F": "milan", "00A10F": "genoa", "00B00F": "turin"}
_PARTS = {"milan": (0, 1, 6, 7), "genoa": (0, 1, 6, 7), "turin": (1, 2, 3, 7)}
_NAMES = ("boot_loader", "tee", "snp", "microcode")


def policy(view: Reads) -> Policy:
    """What the constitution says of platforms and code."""
    genesis = json.loads(view.get(tables.GENESIS, tables.SINGLETON) or b"{}")
    rules: dict[str, Any] = {}
    for key, row in view.scan(tables.TEE_POLICY):
        platform = key.decode()
        rules[platform] = parse_rules(platform, json.loads(row))
    listed = _snp(view)
    if SNP in rules:
        rules[SNP] = msgspec.structs.replace(rules[SNP], **listed)
    if AZURE_VTPM in rules and "minimum_tcb" in listed:
        below: AzureVtpm = rules[AZURE_VTPM]
        inner: Snp = msgspec.structs.replace(below.snp, minimum_tcb=listed["minimum_tcb"])
        rules[AZURE_VTPM] = msgspec.structs.replace(below, snp=inner)
    measurements = {name: [key.decode() for key, _ in view.scan(table)] for name, table in CODE.items()}
    for platform in OTHERS:
        prefix = f"{platform}:".encode()
        found = view.scan(tables.NODE_OTHER_MEASUREMENTS, prefix)
        measurements[platform] = [key[len(prefix) :].decode() for key, _ in found]
    return Policy(
        **rules,
        insecure_virtual=bool(genesis.get("insecure_virtual")),
        # Whatever members have named is wanted, whether or not it protects from who runs the machine.
        minimum_rank=0,
        measurements=measurements,
    )


def code_row(verified: Verified) -> tuple[str, bytes, bytes] | None:
    """The row that lists the code of a node that founds a life of the service; none where code is named otherwise."""
    if verified.platform in CODE:
        return CODE[verified.platform], verified.measurement.encode(), ALLOWED
    if verified.platform in OTHERS:
        return tables.NODE_OTHER_MEASUREMENTS, f"{verified.platform}:{verified.measurement}".encode(), ALLOWED
    return None


def _snp(view: Reads) -> dict[str, Any]:
    """What the open format keeps in tables of their own."""
    found: dict[str, Any] = {}
    hosts = [key.decode() for key, _ in view.scan(tables.NODE_SNP_HOST_DATA)]
    if hosts:
        found["host_data"] = hosts
    endorsed = {key.decode(): json.loads(row) for key, row in view.scan(tables.NODE_SNP_UVM_ENDORSEMENTS)}
    if endorsed:
        found["uvm"] = {
            issuer: {feed: int(one["svn"]) for feed, one in feeds.items()} for issuer, feeds in endorsed.items()
        }
    versions = {key.decode(): json.loads(row) for key, row in view.scan(tables.NODE_SNP_TCB_VERSIONS)}
    least: dict[str, dict[str, int]] = {}
    for cpuid, version in versions.items():
        product = _PRODUCTS.get(cpuid[:6])
        if product is not None:
            least[product] = _parts(product, version)
    if least:
        found["minimum_tcb"] = least
    return found


def _parts(product: str, version: Mapping[str, Any]) -> dict[str, int]:
    """Versions of the firmware's parts; in 16 hex digits they stand as in the processor, highest byte first."""
    if "hexstring" not in version:
        return {name: int(value) for name, value in version.items() if name in (*_NAMES, "fmc")}
    packed = bytes.fromhex(version["hexstring"])[::-1]
    return {name: packed[place] for name, place in zip(_NAMES, _PARTS[product], strict=True)}
