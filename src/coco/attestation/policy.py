"""Which verified evidence is good enough: the TEE manifest and the code manifest, as rules that can be explained.

A policy is data: of the constitution, for nodes; in a file, for a client. It says what is allowed, and everything else
is refused: an unknown platform, a state of firmware that is not listed, a bit that nobody has named (H6).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from coco.attestation.verified import AZURE_VTPM, NITRO, SGX, SNP, TDX, VBS, Verified, refuse
from coco.errors import AttestationError, ConfigurationError

INSECURE_VIRTUAL: Final = "insecure_virtual"
#: How much a platform protects from. 3: memory is encrypted, host and cloud are outside; 2: the cloud's hypervisor is
#: inside; 1: so is whoever runs the machine; 0: everybody is.
RANKS: Final[Mapping[str, int]] = {
    SGX: 3,
    TDX: 3,
    SNP: 3,
    NITRO: 2,
    AZURE_VTPM: 2,
    VBS: 1,
    INSECURE_VIRTUAL: 0,
}
#: States of Intel's firmware, best first.
TCB_STATES: Final = (
    "UpToDate",
    "SWHardeningNeeded",
    "ConfigurationNeeded",
    "ConfigurationAndSWHardeningNeeded",
    "OutOfDate",
    "OutOfDateConfigurationNeeded",
)

_INSECURE = "attestation.insecure_platform"
#: Characters of a value that a person is shown: a hash is cut, a name is not.
_SHOWN_MAX = 40
_Hex = Annotated[str, Meta(pattern="^([0-9a-f]{2})*$", max_length=256)]
_Mask = Annotated[str, Meta(pattern="^[0-9a-f]{16}$")]
_Svn = Annotated[int, Meta(ge=0, lt=1 << 32)]


class _Rules(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    pass


class Intel(_Rules, frozen=True):
    """What SGX and TDX have in common."""

    tcb_states: Annotated[list[str], Meta(max_length=16)] = msgspec.field(default_factory=lambda: ["UpToDate"])
    denied_advisories: Annotated[list[str], Meta(max_length=1000)] = []
    #: Least number of Intel's evaluation that the collateral may come from.
    minimum_tcb_evaluation: _Svn = 0
    #: Whether processors may be added to the platform, keep their keys, run two threads on a core.
    dynamic_platform: bool = False
    cached_keys: bool = False
    smt: bool = False


class Sgx(Intel, frozen=True):
    """Enclaves of SGX."""

    minimum_isv_svn: _Svn = 0
    isv_prod_ids: list[_Svn] = []
    #: Bits that ATTRIBUTES.FLAGS, ATTRIBUTES.XFRM and MISCSELECT may have; big-endian. Never DEBUG.
    flags: _Mask = "0000000000000005"
    xfrm: _Mask = "00000000000000e7"
    misc_select: _Svn = 0
    #: What whoever loads the enclave may have given it (CONFIGID); none: nothing.
    config_ids: list[_Hex] = []


class Tdx(Intel, frozen=True):
    """Guests of TDX."""

    #: Bits that TDATTRIBUTES and XFAM may have; big-endian. Never DEBUG.
    attributes: _Mask = "0000000050000000"
    xfam: _Mask = "00000000000602e7"
    #: Modules of Intel, by MRSEAM; none: whichever its collateral accepts.
    mr_seam: list[_Hex] = []
    #: Allowed values of run-time registers and owner's fields, by name (``rt_mr3``, ``mr_config_id``).
    fields: dict[str, list[_Hex]] = {}


class Snp(_Rules, frozen=True):
    """Guests of SEV-SNP."""

    #: Least version of each part of the firmware, by generation of the processor; others are refused.
    minimum_tcb: dict[str, dict[str, Annotated[int, Meta(ge=0, lt=256)]]] = msgspec.field(
        default_factory=lambda: {product: {} for product in ("milan", "genoa", "turin")}
    )
    minimum_guest_svn: _Svn = 0
    #: Bits that the guest's policy and the platform's information may have; big-endian. Never DEBUG or migration.
    policy: _Mask = "000000000013ffff"
    platform_info: _Mask = "0000000000000025"
    vmpl: Annotated[int, Meta(ge=0, le=3)] = 0
    #: Whether a cloud's key (VLEK) may stand for a chip's.
    vlek: bool = False
    #: Policies of containers, by SHA-256; none: no container's policy is asked for. With ``uvm`` one must be named.
    host_data: list[_Hex] = []
    #: Utility VMs by issuer, feed and least version; none: the launch measurement is listed itself.
    uvm: dict[str, dict[str, _Svn]] = {}


class Nitro(_Rules, frozen=True):
    """Enclaves of AWS."""

    #: Allowed values of registers besides register 0, which is the measurement.
    pcrs: dict[str, list[_Hex]] = {}


class AzureVtpm(_Rules, frozen=True):
    """Virtual machines of Azure with a TPM."""

    #: Allowed values of registers; a machine is what its registers say, so one must be named.
    pcrs: Annotated[dict[str, list[_Hex]], Meta(min_length=1)]
    #: Launch measurements of the paravisor; none: any that the hardware vouches for.
    hardware_measurements: list[_Hex] = []
    snp: Snp = Snp()
    tdx: Tdx = Tdx()


class Vbs(_Rules, frozen=True):
    """Enclaves of Windows."""

    #: Keys of secure kernels, by SHA-256 of their SubjectPublicKeyInfo.
    keys: Annotated[list[_Hex], Meta(min_length=1)]
    minimum_enclave_svn: _Svn = 0
    minimum_secure_kernel_svn: _Svn = 0
    minimum_platform_svn: _Svn = 0


class Policy(_Rules, frozen=True):
    """Platforms (TEE manifest) and code (code manifest)."""

    sgx: Sgx | None = None
    tdx: Tdx | None = None
    snp: Snp | None = None
    nitro: Nitro | None = None
    azure_vtpm: AzureVtpm | None = None
    vbs: Vbs | None = None
    insecure_virtual: bool = False
    #: Platforms that protect from less are refused although they are named.
    minimum_rank: Annotated[int, Meta(ge=0, le=3)] = 2
    #: Allowed measurements, by platform.
    measurements: dict[str, list[_Hex]] = {}
    #: Who may have signed the code, by platform; none: whoever did.
    signers: dict[str, list[_Hex]] = {}

    @classmethod
    def parse(cls, document: bytes) -> Policy:
        """Read a policy (JSON).

        Raises:
            ConfigurationError: ``attestation.bad_policy``.
        """
        try:
            return msgspec.json.decode(document, type=cls)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ConfigurationError(f"the policy is wrong: {error}", code="attestation.bad_policy") from error


#: The rules of each platform, as a vote may set them.
PLATFORMS: Final[Mapping[str, type[_Rules]]] = {
    SGX: Sgx,
    TDX: Tdx,
    SNP: Snp,
    NITRO: Nitro,
    AZURE_VTPM: AzureVtpm,
    VBS: Vbs,
}


def parse_rules(platform: str, document: Mapping[str, Any]) -> Any:
    """The rules of one platform.

    Raises:
        ConfigurationError: ``attestation.bad_policy``.
    """
    try:
        return msgspec.convert(document, PLATFORMS[platform])
    except (msgspec.ValidationError, KeyError) as error:
        text = f"the rules of {platform[:32]} are wrong: {error}"
        raise ConfigurationError(text, code="attestation.bad_policy") from error


@dataclass(frozen=True, slots=True)
class Finding:
    """What one rule says of some evidence."""

    rule: str
    passed: bool
    #: For a person: what was found, and what is allowed.
    why: str
    #: Code of the refusal.
    code: str


def judge(verified: Verified, policy: Policy) -> list[Finding]:
    """What every rule says, in the order in which they refuse."""
    rules = getattr(policy, verified.platform, None) if verified.platform in RANKS else None
    if rules is None or rules is False:
        why = f"{verified.platform} is not in the TEE manifest"
        if verified.platform == INSECURE_VIRTUAL:
            return [_rule("platform", False, f"{why}: it proves nothing", "insecure_platform")]
        return [_rule("platform", False, why, "platform")]
    found = [_rule("platform", True, f"{verified.platform} is in the TEE manifest", "platform")]
    rank = RANKS[verified.platform]
    least = 0 if verified.platform == INSECURE_VIRTUAL else policy.minimum_rank
    found.append(_rule("rank", rank >= least, f"rank {rank}, {least} is needed", "rank"))
    found.append(_rule("debug", not verified.debug, f"debugging is {'on' if verified.debug else 'off'}", "debug"))
    found += _code(verified, policy)
    if verified.platform in _JUDGES:
        found += _JUDGES[verified.platform](verified, rules)
    return found


def enforce(verified: Verified, policy: Policy) -> None:
    """Refuse evidence that is not good enough.

    Raises:
        AttestationError: the first rule that does not hold, with its code.
    """
    for finding in judge(verified, policy):
        if not finding.passed:
            hint = "for development only: accept it by --insecure-virtual" if finding.code == _INSECURE else None
            raise AttestationError(f"{finding.rule}: {finding.why}", code=finding.code, hint=hint)


def check_report_data(verified: Verified, expected: bytes) -> None:
    """Whether the evidence is for this key and context.

    Raises:
        AttestationError: ``attestation.report_data``.
    """
    if verified.report_data != expected:
        raise refuse("the evidence is for another key or context", "report_data")


def _rule(rule: str, passed: bool, why: str, code: str) -> Finding:
    return Finding(rule, passed, why, f"attestation.{code}")


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= _SHOWN_MAX else f"{text[: _SHOWN_MAX // 2]}…"


def _one_of(rule: str, value: object, allowed: list[Any], code: str) -> Finding:
    shown = ", ".join(_short(one) for one in allowed[:4]) or "nothing"
    return _rule(rule, value in allowed, f"{_short(value)}; allowed: {shown}", code)


def _within(rule: str, bits: int, mask: str | int, code: str = "attributes") -> Finding:
    allowed = int(mask, 16) if isinstance(mask, str) else mask
    return _rule(rule, not bits & ~allowed, f"{bits:#x}, of which {bits & ~allowed:#x} is not allowed", code)


def _least(rule: str, value: int, least: int, code: str) -> Finding:
    return _rule(rule, value >= least, f"{value}, at least {least} is needed", code)


def _code(verified: Verified, policy: Policy) -> Iterator[Finding]:
    """The code manifest; under an endorsed utility VM and under a TPM the code is named otherwise."""
    uvm = verified.platform == SNP and policy.snp is not None and policy.snp.uvm and "uvm" in verified.claims
    allowed = policy.measurements.get(verified.platform)
    if verified.platform == INSECURE_VIRTUAL and allowed is None:
        return  # whoever accepts what proves nothing need not say which nothing
    if not uvm and verified.platform != AZURE_VTPM:
        yield _one_of("measurement", verified.measurement, allowed or [], "measurement")
    signers = policy.signers.get(verified.platform)
    if signers is not None:
        yield _one_of("signer", verified.signer, signers, "signer")


def _intel(verified: Verified, rules: Intel) -> Iterator[Finding]:
    claims = verified.claims
    yield _one_of("tcb_state", verified.tcb_status, rules.tcb_states, "tcb_state")
    denied = sorted(set(verified.advisories) & set(rules.denied_advisories))
    named = ", ".join(verified.advisories) or "none"
    yield _rule("advisories", not denied, f"{named}; denied: {', '.join(denied) or 'none'}", "advisory")
    yield _least("tcb_evaluation", claims["tcb_evaluation"], rules.minimum_tcb_evaluation, "tcb_evaluation")
    for flag in ("dynamic_platform", "cached_keys", "smt"):
        allowed = getattr(rules, flag)
        yield _rule(flag, allowed or not claims[flag], f"{claims[flag]}, allowed: {allowed}", "platform_flag")


def _sgx(verified: Verified, rules: Sgx) -> Iterator[Finding]:
    claims = verified.claims
    yield from _intel(verified, rules)
    yield _least("isv_svn", claims["isv_svn"], rules.minimum_isv_svn, "svn")
    if rules.isv_prod_ids:
        yield _one_of("isv_prod_id", claims["isv_prod_id"], rules.isv_prod_ids, "product")
    attributes = bytes.fromhex(claims["attributes"])
    yield _within("flags", int.from_bytes(attributes[:8], "little"), rules.flags)
    yield _within("xfrm", int.from_bytes(attributes[8:], "little"), rules.xfrm)
    yield _within("misc_select", claims["misc_select"], rules.misc_select)
    yield _one_of("config_id", claims["config_id"], rules.config_ids or ["00" * 64], "attributes")


def _tdx(verified: Verified, rules: Tdx) -> Iterator[Finding]:
    claims = verified.claims
    yield from _intel(verified, rules)
    yield _within("attributes", int.from_bytes(bytes.fromhex(claims["td_attributes"]), "little"), rules.attributes)
    yield _within("xfam", int.from_bytes(bytes.fromhex(claims["xfam"]), "little"), rules.xfam)
    yield _zero("mr_signer_seam", claims)
    yield _zero("seam_attributes", claims)
    for service in ("mr_service_td", "init_service_td_hash", "cur_service_td_hash"):
        if service in claims:
            yield _zero(service, claims)
    if rules.mr_seam:
        yield _one_of("mr_seam", claims["mr_seam"], rules.mr_seam, "module")
    for name, allowed in sorted(rules.fields.items()):
        yield _one_of(name, claims.get(name, "unknown"), allowed, "registers")


def _zero(name: str, claims: Mapping[str, Any]) -> Finding:
    return _rule(name, not str(claims[name]).strip("0"), f"{_short(claims[name])}, zero is needed", "attributes")


def _snp(verified: Verified, rules: Snp) -> Iterator[Finding]:
    claims = verified.claims
    least = rules.minimum_tcb.get(claims["product"])
    yield _rule(
        "product", least is not None, f"{claims['product']}; allowed: {', '.join(rules.minimum_tcb)}", "product"
    )
    for part, version in sorted((least or {}).items()):
        yield _least(f"tcb {part}", claims["tcb"].get(part, -1), version, "tcb_version")
    yield _least("guest_svn", claims["guest_svn"], rules.minimum_guest_svn, "svn")
    # The low two bytes are a version, and bit 17 is always set.
    yield _within("policy", claims["policy"], int(rules.policy, 16) | 0x2FFFF)
    yield _within("platform_info", claims["platform_info"], rules.platform_info)
    yield _rule("vmpl", claims["vmpl"] <= rules.vmpl, f"{claims['vmpl']}, at most {rules.vmpl}", "vmpl")
    yield _rule("key", rules.vlek or claims["key"] == "VCEK", f"{claims['key']}, VLEK allowed: {rules.vlek}", "key")
    # An endorsed utility VM runs whatever its container's policy lets it: then that is the code.
    if rules.host_data or rules.uvm:
        yield _one_of("host_data", claims["host_data"], rules.host_data, "host_data")
    if rules.uvm:
        uvm = claims.get("uvm", {"issuer": "none", "feed": "", "svn": -1})
        wanted = rules.uvm.get(uvm["issuer"], {}).get(uvm["feed"])
        why = f"{uvm['feed'] or 'no endorsement'} version {uvm['svn']}, at least {wanted} is needed"
        yield _rule("uvm", wanted is not None and uvm["svn"] >= wanted, why, "uvm")


def _nitro(verified: Verified, rules: Nitro) -> Iterator[Finding]:
    yield from _registers(verified.claims["pcrs"], rules.pcrs)


def _registers(values: Mapping[str, str], rules: Mapping[str, list[str]]) -> Iterator[Finding]:
    for number, allowed in sorted(rules.items()):
        yield _one_of(f"pcr {number}", values.get(number, "not there"), allowed, "pcrs")


def _azure(verified: Verified, rules: AzureVtpm) -> Iterator[Finding]:
    claims = verified.claims
    yield from _registers(claims["pcrs"], rules.pcrs)
    if rules.hardware_measurements:
        value = claims["hardware_measurement"]
        yield _one_of("hardware measurement", value, rules.hardware_measurements, "measurement")
    # The hardware below is judged by its own rules.
    hardware = replace(
        verified,
        platform=claims["hardware"],
        measurement=claims["hardware_measurement"],
        claims=claims["hardware_claims"],
    )
    yield from _snp(hardware, rules.snp) if claims["hardware"] == SNP else _tdx(hardware, rules.tdx)


def _vbs(verified: Verified, rules: Vbs) -> Iterator[Finding]:
    claims = verified.claims
    yield _one_of("key", claims["key"], rules.keys, "key")
    yield _least("enclave_svn", claims["enclave_svn"], rules.minimum_enclave_svn, "svn")
    yield _least("secure_kernel_svn", claims["secure_kernel_svn"], rules.minimum_secure_kernel_svn, "svn")
    yield _least("platform_svn", claims["platform_svn"], rules.minimum_platform_svn, "svn")


_JUDGES: Mapping[str, Any] = {SGX: _sgx, TDX: _tdx, SNP: _snp, NITRO: _nitro, AZURE_VTPM: _azure, VBS: _vbs}
