"""Intel SGX and TDX: quotes (DCAP) under collateral that the host fetched, by the library dcap-qvl.

Evidence: a quote of version 3 (SGX), 4 or 5 (TDX). Endorsements: ``collateral``, the library's JSON: information on
firmware (TCB) and on the quoting enclave, lists of revoked certificates, each signed under Intel's root, which the
library has.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

import dcap_qvl
from cryptography import x509

from coco.attestation.certificates import check_dates, load_pem
from coco.attestation.verified import SGX, TDX, Verified, check_time, refuse

_SGX_DEBUG, _TDX_DEBUG = 0x02, 0x01
_QUOTE_BYTES_MAX: Final = 64 * 1024
#: CONFIGID in a quote of SGX: behind the header, in the report.
_CONFIG_ID: Final = slice(48 + 192, 48 + 256)
#: Words of the library's reasons, and our codes; the first that fits.
_REASONS = (
    ("in the future", "future"),
    ("not yet valid", "future"),
    ("expired", "stale"),
    ("revoked", "revoked"),
    ("no matching tcb level", "tcb_unknown"),
    ("debug mode", "debug"),
    ("root ca crl", "chain"),
    ("certificate chain", "chain"),
    ("unknownissuer", "chain"),
    ("signature", "signature"),
)


def verify(
    quote: bytes, endorsements: Mapping[str, str], *, now_s: int, platform: str, root: bytes | None = None
) -> Verified:
    """Verify a quote of SGX or TDX.

    Args:
        quote: as the quoting enclave made it.
        endorsements: ``collateral``: JSON.
        now_s: the time, in seconds since the Unix epoch.
        platform: ``sgx`` or ``tdx``.
        root: DER of the trusted root; none: Intel's.

    Raises:
        AttestationError: ``attestation.malformed``, ``.chain``, ``.signature``, ``.stale``, ``.future``, ``.revoked``,
            ``.debug``, ``.tcb_unknown`` (the firmware is older than any that Intel lists), ``.refused``.
    """
    if len(quote) > _QUOTE_BYTES_MAX:
        raise refuse("a quote is not that large", "malformed")
    try:
        collateral = dcap_qvl.QuoteCollateralV3.from_json(endorsements.get("collateral", ""))
        parsed = dcap_qvl.parse_quote(quote)
    except (ValueError, OverflowError) as error:
        raise refuse("the quote or its collateral cannot be read", "malformed") from error
    if parsed.is_sgx() != (platform == SGX) or parsed.is_tdx() != (platform == TDX):
        raise refuse("the quote is of another platform", "malformed")
    begin, end = _check_dates(parsed, collateral, now_s)
    try:
        everything = dcap_qvl.QuotePolicy.claims_only(now_s)
        verifier = dcap_qvl.QuoteVerifier(root)
        claims = json.loads(verifier.verify_with_policy(quote, collateral, now_s, everything).to_json())
    except (ValueError, OverflowError) as error:
        text = str(error)
        code = next((code for words, code in _REASONS if words in text.lower()), "refused")
        raise refuse(f"the quote is not Intel's: {text[:200]}", code) from error
    begin = max(begin, int(claims["latest_issue_date"]), int(claims["qe_iden_latest_issue_date"]))
    end = min(end, int(claims["earliest_expiration_date"]), int(claims["qe_iden_earliest_expiration_date"]))
    check_time(now_s, begin, end, "the collateral")
    kind, report = next(iter(claims["report"].items()))
    is_sgx = platform == SGX
    attributes = bytes.fromhex(report["attributes" if is_sgx else "td_attributes"])
    # The library has these bytes among reserved ones: whoever loads an enclave with KSS chooses them.
    more = {"config_id": quote[_CONFIG_ID].hex()} if is_sgx else {}
    return Verified(
        platform=platform,
        measurement=report["mr_enclave" if is_sgx else "mr_td"],
        signer=report["mr_signer"] if is_sgx else report["mr_owner"] if report["mr_owner"].strip("0") else "",
        report_data=bytes.fromhex(report["report_data"]),
        debug=bool(attributes[0] & (_SGX_DEBUG if is_sgx else _TDX_DEBUG)),
        tcb_status=claims["tcb"]["status"],
        valid_from_s=begin,
        valid_until_s=end,
        advisories=tuple(claims["tcb"]["advisory_ids"]),
        claims={
            **_claims(claims),
            "report": kind,
            **{name: report[name] for name in _KEPT[kind] if name in report},
            **more,
        },
    )


def _check_dates(parsed: Any, collateral: Any, now_s: int) -> tuple[int, int]:
    """Check dates, and what is revoked, of certificates; the library would only say that a chain does not hold."""
    chains = (collateral.tcb_info_issuer_chain, collateral.qe_identity_issuer_chain, collateral.pck_crl_issuer_chain)
    shown = [bytes(parsed.cert_chain_pem_bytes() or b""), *(chain.encode() for chain in chains)]
    certificates = [one for pem in shown for one in load_pem(pem)]
    begin, end = check_dates(certificates, now_s)
    for der in (collateral.root_ca_crl, collateral.pck_crl):
        try:
            crl = x509.load_der_x509_crl(bytes(der))
            issued, due = crl.last_update_utc, crl.next_update_utc
            # Whose list it is, the library checks; of whomever it is, what it names is not to be trusted.
            named = [crl.get_revoked_certificate_by_serial_number(one.serial_number) for one in certificates]
            ours = [one.issuer == crl.issuer for one in certificates]
        except ValueError as error:
            raise refuse("a list of revoked certificates cannot be read", "malformed") from error
        if any(of and entry is not None for of, entry in zip(ours, named, strict=True)):
            raise refuse("Intel has revoked a certificate", "revoked")
        begin = max(begin, int(issued.timestamp()))
        # A list counts until its time, exclusive.
        end = min(end, int(due.timestamp()) - 1 if due is not None else end)
    check_time(now_s, begin, end, "a list of revoked certificates")
    return begin, end


_TD10 = (
    *("tee_tcb_svn", "mr_seam", "mr_signer_seam", "seam_attributes", "td_attributes", "xfam", "mr_config_id"),
    *("mr_owner", "mr_owner_config", "rt_mr0", "rt_mr1", "rt_mr2", "rt_mr3"),
)
_TD15 = (*_TD10, "tee_tcb_svn2", "mr_service_td")
_KEPT: Mapping[str, tuple[str, ...]] = {
    "SgxEnclave": ("attributes", "misc_select", "isv_prod_id", "isv_svn", "cpu_svn"),
    "TD10": _TD10,
    "TD15": _TD15,
    "TD15Ex": (*_TD15, "init_service_td_hash", "cur_service_td_hash"),
}


def _claims(claims: Mapping[str, Any]) -> dict[str, Any]:
    """What Intel says of the platform, in words that a policy can name."""
    pck = claims["platform"]["pck"]
    return {
        "tcb_evaluation": int(claims["tcb"]["eval_data_number"]),
        "tcb_date": claims["platform"]["tcb_level"]["tcbDate"],
        "fmspc": bytes(pck["fmspc"]).hex(),
        "dynamic_platform": pck["dynamic_platform"] == "True",
        "cached_keys": pck["cached_keys"] == "True",
        "smt": pck["smt_enabled"] == "True",
    }
