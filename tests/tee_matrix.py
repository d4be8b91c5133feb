"""What every platform's verifier and the policy answer to good and bad evidence, as a table for ``docs/tee.md``.

``python tests/tee_matrix.py`` writes it there; a test compares. Where no real sample shows a case, evidence is made
under keys made here (``made``), or claims of a verified sample are altered before the policy sees them (``altered``).
"""

from __future__ import annotations

import base64
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

import made_evidence as made
from coco.attestation import policy
from coco.attestation.evidence import report_data
from coco.attestation.policy import Policy
from coco.attestation.verified import Verified
from coco.errors import AttestationError

DOCUMENT = Path(__file__).parent.parent / "docs" / "tee.md"
BEGIN, END = "<!-- matrix -->", "<!-- end of matrix -->"
CASES = (
    *("good", "debug", "another key", "replayed nonce", "wrong measurement", "stale endorsements"),
    *("endorsements not valid yet", "revoked or denied", "another root", "tampered"),
)
#: The key, service and nonce that a verifier asks for, and answers of another key or to another nonce.
_KEY, _NONCE = b"key", b"n" * 32
BOUND = report_data(_KEY, nonce=_NONCE)
OTHER_KEY, OTHER_NONCE = report_data(b"another", nonce=_NONCE), report_data(_KEY, nonce=b"o" * 32)
_DAY = 86_400
_LONG = (-1000, 1000)

Work = Callable[[], Verified]


def accepting(verified: Verified, **changes: Any) -> Policy:
    """A policy that accepts this code on its platform, as few other things as it can, and what ``changes`` say."""
    smt = {"smt": True, "dynamic_platform": True, "cached_keys": True}
    every: dict[str, dict[str, Any]] = {
        "sgx": {"tcb_states": ["UpToDate", "ConfigurationAndSWHardeningNeeded"]},
        "tdx": smt,
        "snp": {},
        "nitro": {},
        "azure_vtpm": {"pcrs": {"4": ["04" * 32], "11": ["0b" * 32]}},
        "vbs": {"keys": [made.vbs_key()]},
    }
    document = {
        verified.platform: {**every[verified.platform], **changes},
        "measurements": {verified.platform: [verified.measurement]},
        "minimum_rank": 1,
    }
    return msgspec.convert(document, Policy)


def answer(work: Work, decided_by: Policy | None = None, bound: bytes = b"") -> str:
    """``accepted``, or the code of the refusal."""
    try:
        verified = work()
        policy.enforce(verified, decided_by if decided_by is not None else accepting(verified))
        if bound:
            policy.check_report_data(verified, bound)
    except AttestationError as error:
        return error.code.removeprefix("attestation.")
    return "accepted"


def _real(name: str, denied: Callable[[Verified], Policy], flip: int) -> dict[str, tuple[str, str]]:
    """Of a sample of a real machine; what it binds is its own, so that other keys are asked of it."""
    sample = made.real()[name]
    good = sample.verify()

    known = made.made_dcap(name, report_data=BOUND).verify()

    def again(bound: bytes = BOUND, **changes: Any) -> tuple[str, str]:
        """The same machine's, of an enclave that says something else, signed under a root made here."""
        found = made.made_dcap(name, report_data=bound, **changes)
        return answer(found.verify, accepting(known), BOUND), "made"

    tampered = bytearray(sample.evidence)
    tampered[flip] ^= 1
    return {
        "good": (answer(sample.verify, bound=good.report_data), "real"),
        "debug": again(debug=True),
        "another key": (answer(sample.verify, bound=OTHER_KEY), "real"),
        "replayed nonce": again(OTHER_NONCE),
        "wrong measurement": again(measurement=bytes(32)),
        "stale endorsements": (answer(lambda: sample.verify(now_s=good.valid_until_s + _DAY)), "real"),
        "endorsements not valid yet": (answer(lambda: sample.verify(now_s=good.valid_from_s - _DAY)), "real"),
        "revoked or denied": (answer(sample.verify, denied(good)), "real"),
        "another root": (answer(lambda: sample.verify(endorsements=_of_another_root(sample))), "made"),
        "tampered": (answer(lambda: sample.verify(evidence=bytes(tampered))), "real"),
    }


def _of_another_root(sample: made.Sample) -> dict[str, str]:
    """The collateral of a quote, signed under a root that calls itself Intel's."""
    root = made.certificate("Intel SGX Root CA", made.ec_key(20), None, made.ec_key(20), days=_LONG)
    leaf = made.certificate("Intel SGX TCB Signing", made.ec_key(21), root, made.ec_key(20), ca=False, days=_LONG)
    collateral = json.loads(sample.endorsements["collateral"])
    r, s = decode_dss_signature(made.ec_key(21).sign(collateral["tcb_info"].encode(), ec.ECDSA(hashes.SHA256())))
    signature = (r.to_bytes(48, "big") + s.to_bytes(48, "big")).hex()
    forged = {**collateral, "tcb_info_issuer_chain": made.pem(leaf, root), "tcb_info_signature": signature}
    return {"collateral": json.dumps(forged)}


def _made(make: Callable[..., made.Sample], *, debug: dict[str, Any], denied: Work, flip: int) -> dict[str, Any]:
    """Of evidence under keys made here."""
    known = make(report_data=BOUND).verify()

    def of(bound: bytes = BOUND, **fields: Any) -> tuple[str, str]:
        return answer(lambda: make(report_data=bound, **fields).verify(), accepting(known), BOUND), "made"

    sample = make(report_data=BOUND)
    tampered = bytearray(sample.evidence)
    tampered[flip] ^= 1
    found: dict[str, Any] = {
        "good": of(),
        "debug": of(**debug),
        "another key": of(OTHER_KEY),
        "replayed nonce": of(OTHER_NONCE),
        "tampered": (answer(lambda: sample.verify(evidence=bytes(tampered))), "made"),
        "revoked or denied": (answer(denied, accepting(known)), "made"),
    }
    return found


def _dated(make: Callable[..., made.Sample], days: str) -> dict[str, tuple[str, str]]:
    return {
        "stale endorsements": (answer(lambda: make(**{days: (-3, -2)}).verify()), "made"),
        "endorsements not valid yet": (answer(lambda: make(**{days: (2, 3)}).verify()), "made"),
    }


def _with_another_report(sample: made.Sample) -> bytes:
    """The evidence of a machine whose hardware report has another measurement than was signed."""
    document = json.loads(sample.evidence)
    blob = bytearray(base64.b64decode(document["hcl"]))
    blob[32 + 0x91] ^= 1
    return json.dumps({**document, "hcl": made.b64(bytes(blob))}).encode()


def _amd(make: Callable[..., made.Sample], **code: Any) -> dict[str, Any]:
    known = make(report_data=BOUND).verify()
    flip = 0x91 if make is made.made_snp else 200
    found = _made(make, debug={"policy": 0xB0000}, denied=lambda: make(revoked=True).verify(), flip=flip)
    changed = answer(lambda: make(report_data=BOUND, **code).verify(), accepting(known), BOUND)
    stranger = make(report_data=BOUND)
    if make is made.made_azure_vtpm:
        found["tampered"] = answer(lambda: stranger.verify(evidence=_with_another_report(stranger))), "made"
    unknown = dataclasses.replace(stranger, verifier=_without_made_roots(stranger))
    return {
        **found,
        **_dated(make, "chip_days"),
        "wrong measurement": (changed, "made"),
        "another root": (answer(unknown.verify), "made"),
    }


def _without_made_roots(sample: made.Sample) -> Callable[..., Verified]:
    from coco.attestation import azure_vtpm, snp

    module = snp if "roots" in sample.options else azure_vtpm

    def verify(evidence: bytes, endorsements: Any, *, now_s: int, **options: Any) -> Verified:
        return module.verify(evidence, endorsements, now_s=now_s)

    return verify


def matrix() -> dict[str, dict[str, tuple[str, str]]]:
    """Code and origin of the evidence, by platform and case."""

    def vbs(*, report_data: bytes = BOUND, **fields: Any) -> made.Sample:
        return made.made_vbs(report_data=report_data, **fields)

    def nitro(*, report_data: bytes = BOUND, **fields: Any) -> made.Sample:
        return made.made_nitro(user_data=report_data, **fields)

    known_nitro, known_vbs = nitro().verify(), vbs().verify()
    foreign = dataclasses.replace(nitro(), options={})
    advisory = lambda good: accepting(  # noqa: E731
        good, tcb_states=["ConfigurationAndSWHardeningNeeded"], denied_advisories=["INTEL-SA-00615"]
    )
    state = lambda good: accepting(good, tcb_states=["SWHardeningNeeded"])  # noqa: E731
    real_nitro = made.real()["nitro"]
    return {
        "sgx": _real("sgx", advisory, 48 + 64),
        "tdx": _real("tdx", state, 48 + 140),
        "snp": _amd(made.made_snp, measurement=bytes(48)),
        "nitro": {
            **_made(
                nitro,
                debug={"debug": True},
                denied=lambda: dataclasses.replace(known_nitro, platform="nitro", signer="x"),
                flip=1200,
            ),
            **_dated(nitro, "days"),
            "good": (answer(real_nitro.verify), "real"),
            "debug": (answer(made.real()["nitro (debug)"].verify), "real"),
            "wrong measurement": (answer(lambda: nitro(pcrs={0: b"x" * 48}).verify(), accepting(known_nitro)), "made"),
            "another root": (answer(foreign.verify), "made"),
            "revoked or denied": ("none exist", ""),
        },
        "azure_vtpm": _amd(made.made_azure_vtpm, pcrs={4: b"x" * 32, 11: b"\x0b" * 32}),
        "vbs": {
            **_made(
                vbs,
                debug={"flags": 1},
                denied=lambda: dataclasses.replace(known_vbs, claims={**known_vbs.claims, "key": "00" * 32}),
                flip=100,
            ),
            "wrong measurement": (answer(lambda: vbs(unique=b"x" * 32).verify(), accepting(known_vbs)), "made"),
            "another root": (answer(lambda: vbs(signer=4).verify(), accepting(known_vbs)), "made"),
        },
    }


def table() -> str:
    """The matrix in Markdown."""
    found = matrix()
    lines = ["| | " + " | ".join(found) + " |", "|---" * (len(found) + 1) + "|"]
    for case in CASES:
        cells = []
        for platform in found:
            code, origin = found[platform].get(case, ("", ""))
            cells.append(f"`{code}` {origin}".rstrip() if origin else code or "–")
        lines.append(f"| {case} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def written() -> str:
    """The table that the document has."""
    text = DOCUMENT.read_text()
    return text[text.index(BEGIN) + len(BEGIN) : text.index(END)].strip()


if __name__ == "__main__":
    text = DOCUMENT.read_text()
    head, tail = text[: text.index(BEGIN) + len(BEGIN)], text[text.index(END) :]
    DOCUMENT.write_text(f"{head}\n{table()}\n{tail}")
