"""The conformance data that the project ships (tests/vectors): all of three kinds, a part of the state tests."""

from __future__ import annotations

from pathlib import Path

from ethereum_tests import run

VECTORS = Path(__file__).parent.parent / "vectors" / "ethereum-tests"
#: State tests that fail, with the reason. revm decides a collision at creation by nonce and code, so an account that
#: has storage but neither is overwritten (EIP-7610): such an account cannot come about on a chain that began after 2016.
KNOWN = {"RevertInCreateInInitCreate2Paris.json"}


def test_public_conformance_data():
    counts, failures = run(VECTORS)
    for kind in ("TransactionTests", "TrieTests", "RLPTests"):
        passed, failed = counts[kind]
        assert passed > 0 and failed == 0, [f for f in failures if f.startswith(kind)][:5]
    passed, failed = counts["GeneralStateTests"]
    assert passed > 3000
    unexpected = [f for f in failures if not any(name in f for name in KNOWN)]
    assert unexpected == [] and failed <= len(KNOWN)
