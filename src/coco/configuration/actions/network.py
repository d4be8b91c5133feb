"""Actions about nodes, the code that they may run, and the platforms that they may run on."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from hashlib import sha256
from typing import Any

import msgspec

from coco.attestation.policy import PLATFORMS, TCB_STATES, parse_rules
from coco.attestation.verified import NITRO
from coco.configuration import nodes, platforms, succession
from coco.configuration.actions.arguments import digits, key, known, refuse, text, validity
from coco.configuration.draft import Draft
from coco.errors import ConfigurationError
from coco.ledger import tables

Action = Callable[[Draft, Mapping[str, Any]], None]

_SHA384_DIGITS, _SHA256_DIGITS, _SVN_DIGITS_MAX = 96, 64, 9


def transition_node_to_trusted(draft: Draft, args: Mapping[str, Any]) -> None:
    """A pending node becomes one of the network."""
    name = key(args, "node_id")
    row = known(draft, tables.NODES_INFO, name, "node")
    if row["status"] != nodes.PENDING:
        raise refuse("only a pending node can become trusted", "gov.node_not_pending")
    _set_validity(draft, name, {**row, "status": nodes.TRUSTED}, args)


def _set_validity(draft: Draft, name: str, row: dict[str, Any], args: Mapping[str, Any]) -> None:
    wanted = validity(draft, args)
    said = {"from_s": wanted.from_s, "days": wanted.days}
    draft.put(tables.NODES_INFO, name.encode(), tables.row({**row, "certificate_validity": said}))
    draft.renew[name] = wanted


def remove_node(draft: Draft, args: Mapping[str, Any]) -> None:
    """A node leaves; one that waits is forgotten; an unknown one is nothing to remove."""
    name = key(args, "node_id")
    row = draft.document(tables.NODES_INFO, name.encode())
    if row is None:
        return
    if row["status"] == nodes.PENDING:
        draft.remove(tables.NODES_INFO, name.encode())
    elif row["status"] == nodes.TRUSTED:
        gone = {**row, "status": nodes.RETIRED, **({} if draft.former else {nodes.REMOVED: True})}
        draft.put(tables.NODES_INFO, name.encode(), tables.row(gone))
        draft.renew.pop(name, None)
        succession.somebody_left(draft)


def set_node_certificate_validity(draft: Draft, args: Mapping[str, Any]) -> None:
    """A trusted node gets another certificate."""
    name = key(args, "node_id")
    row = known(draft, tables.NODES_INFO, name, "node")
    if row["status"] != nodes.TRUSTED:
        raise refuse("only a trusted node has a certificate", "gov.node_not_trusted")
    _set_validity(draft, name, row, args)


def set_all_nodes_certificate_validity(draft: Draft, args: Mapping[str, Any]) -> None:
    """Every trusted node gets another certificate."""
    for name, value in draft.scan(tables.NODES_INFO).items():
        row = json.loads(value)
        if row["status"] == nodes.TRUSTED:
            _set_validity(draft, name.decode(), row, args)


def _eject(draft: Draft) -> None:
    """Nodes whose code or platform is not allowed any more leave; the others must be able to go on without them."""
    trusted = ejected = 0
    manifest = platforms.policy(draft.whole())
    for name, value in draft.scan(tables.NODES_INFO).items():
        row = json.loads(value)
        if row["status"] != nodes.TRUSTED:
            continue
        trusted += 1
        if not nodes.is_allowed(row, manifest):
            ejected += 1
            draft.put(tables.NODES_INFO, name, tables.row({**row, "status": nodes.RETIRED}))
    if ejected:
        succession.somebody_left(draft)
    if 0 < ejected < trusted and 2 * (trusted - ejected) <= trusted:
        raise refuse("most nodes run like this: replace them first", "gov.no_quorum_left")


def _allow(
    table: str, argument: str, digits_wanted: int = 0, named: Callable[[Mapping[str, Any]], bytes] | None = None
) -> tuple[Action, Action]:
    """What adds a key to a list of allowed code, and what removes it; adding changes what others vote on."""

    def name(args: Mapping[str, Any]) -> bytes:
        if named is not None:
            return named(args)
        return (digits(args, argument, digits_wanted) if digits_wanted else key(args, argument)).encode()

    def add(draft: Draft, args: Mapping[str, Any]) -> None:
        draft.put(table, name(args), nodes.ALLOWED)
        draft.drops_others = True

    def remove(draft: Draft, args: Mapping[str, Any]) -> None:
        vulnerable = args.get("vulnerable", False)
        if not isinstance(vulnerable, bool):
            raise refuse("vulnerable is true or false")
        draft.remove(table, name(args))
        if vulnerable:  # who has broken it may know every key that its nodes knew (J9)
            draft.rekey = True
            succession.want(draft)

    return add, remove


def _add_host_data(draft: Draft, args: Mapping[str, Any]) -> None:
    value = digits(args, "host_data", _SHA256_DIGITS)
    policy = args.get("security_policy", "")
    if not isinstance(policy, str) or (policy and sha256(policy.encode()).hexdigest() != value):
        raise refuse("host_data must be the SHA-256 of security_policy")
    draft.put(tables.NODE_SNP_HOST_DATA, value.encode(), tables.row(policy))
    draft.drops_others = True


def _remove_host_data(draft: Draft, args: Mapping[str, Any]) -> None:
    draft.remove(tables.NODE_SNP_HOST_DATA, digits(args, "host_data", _SHA256_DIGITS).encode())


def _add_uvm_endorsement(draft: Draft, args: Mapping[str, Any]) -> None:
    issuer, feed, version = key(args, "did"), key(args, "feed"), key(args, "svn")
    if not version.isascii() or not version.isdigit() or len(version) > _SVN_DIGITS_MAX:
        raise refuse("svn must be a number, in digits")
    feeds = draft.document(tables.NODE_SNP_UVM_ENDORSEMENTS, issuer.encode()) or {}
    draft.put(tables.NODE_SNP_UVM_ENDORSEMENTS, issuer.encode(), tables.row({**feeds, feed: {"svn": version}}))
    draft.drops_others = True


def _remove_uvm_endorsement(draft: Draft, args: Mapping[str, Any]) -> None:
    issuer, feed = key(args, "did"), key(args, "feed")
    feeds = draft.document(tables.NODE_SNP_UVM_ENDORSEMENTS, issuer.encode()) or {}
    feeds.pop(feed, None)
    if feeds:
        draft.put(tables.NODE_SNP_UVM_ENDORSEMENTS, issuer.encode(), tables.row(feeds))
    else:
        draft.remove(tables.NODE_SNP_UVM_ENDORSEMENTS, issuer.encode())


def _processor(args: Mapping[str, Any]) -> bytes:
    return digits(args, "cpuid", 8).upper().encode()


def _add_tcb_version(draft: Draft, args: Mapping[str, Any]) -> None:
    version = args.get("tcb_version")
    if isinstance(version, str):
        document: Any = {"hexstring": digits(args, "tcb_version", 16)}
    elif isinstance(version, dict) and version and all(_small(value) for value in version.values()):
        document = version
    else:
        raise refuse("tcb_version must be 16 hex digits, or an object of numbers below 256")
    draft.put(tables.NODE_SNP_TCB_VERSIONS, _processor(args), tables.row(document))
    draft.drops_others = True


def _small(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 256


def _remove_tcb_version(draft: Draft, args: Mapping[str, Any]) -> None:
    name = _processor(args)
    if draft.get(tables.NODE_SNP_TCB_VERSIONS, name) is None:
        raise refuse("there is no version for this processor", "gov.unknown_processor")
    draft.remove(tables.NODE_SNP_TCB_VERSIONS, name)


def set_tee_policy(draft: Draft, args: Mapping[str, Any]) -> None:
    """Rules of one platform of the TEE manifest, as :mod:`coco.attestation.policy` has them; ``remove`` takes it off.

    Of SNP, what tables of their own have is added: measurements, host data, utility VMs, least versions.
    """
    tee = text(args, "tee", 16)
    if tee not in PLATFORMS:
        raise refuse(f"tee must be one of {', '.join(PLATFORMS)}")
    rules = {name: value for name, value in args.items() if name not in ("tee", "remove")}
    if args.get("remove") is True or rules.get("tcb_states") == []:
        draft.remove(tables.TEE_POLICY, tee.encode())
    else:
        try:
            parsed = parse_rules(tee, rules)
        except ConfigurationError as error:
            raise refuse(str(error)) from error
        if not set(rules.get("tcb_states", ())) <= set(TCB_STATES):
            raise refuse(f"tcb_states are {', '.join(TCB_STATES)}")
        document = msgspec.to_builtins(parsed)
        if "tcb_states" in document:
            document["tcb_states"] = sorted(set(parsed.tcb_states))
        draft.put(tables.TEE_POLICY, tee.encode(), tables.row(document))
    draft.drops_others = True


def _other(args: Mapping[str, Any]) -> bytes:
    tee = text(args, "platform", 16)
    if tee not in platforms.OTHERS:
        raise refuse(f"platform must be one of {', '.join(platforms.OTHERS)}")
    size = _SHA384_DIGITS if tee == NITRO else _SHA256_DIGITS
    return f"{tee}:{digits(args, 'measurement', size)}".encode()


def _judged_again(action: Action) -> Action:
    """H6: whatever changes the manifest, running nodes are judged by it."""

    def judging(draft: Draft, args: Mapping[str, Any]) -> None:
        action(draft, args)
        _eject(draft)

    return judging


_virtual = _allow(tables.NODE_MEASUREMENTS, "measurement")
_sgx = _allow(tables.NODE_CODE_IDS, "code_id", _SHA256_DIGITS)
_snp = _allow(tables.NODE_SNP_MEASUREMENTS, "measurement", _SHA384_DIGITS)
_tdx = _allow(tables.NODE_TDX_MEASUREMENTS, "measurement", _SHA384_DIGITS)

_others = _allow(tables.NODE_OTHER_MEASUREMENTS, "measurement", named=_other)

_CODE: Mapping[str, Action] = {
    "add_virtual_measurement": _virtual[0],
    "remove_virtual_measurement": _virtual[1],
    "add_node_code": _sgx[0],
    "remove_node_code": _sgx[1],
    "add_snp_measurement": _snp[0],
    "remove_snp_measurement": _snp[1],
    "add_tdx_measurement": _tdx[0],
    "remove_tdx_measurement": _tdx[1],
    "add_measurement": _others[0],
    "remove_measurement": _others[1],
    "add_snp_host_data": _add_host_data,
    "remove_snp_host_data": _remove_host_data,
    "add_snp_uvm_endorsement": _add_uvm_endorsement,
    "remove_snp_uvm_endorsement": _remove_uvm_endorsement,
    "add_snp_tcb_version": _add_tcb_version,
    "remove_snp_tcb_version": _remove_tcb_version,
    "set_tee_policy": set_tee_policy,
}

CODE: Mapping[str, Action] = {name: _judged_again(action) for name, action in _CODE.items()}
