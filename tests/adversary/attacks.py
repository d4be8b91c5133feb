"""The mark of a test that attacks: which point, what the attacker got before, what it gets now.

``scripts/security_tests.py`` reads the marks (as text, nothing is run) and writes ``docs/security-tests.md``.
"""

from __future__ import annotations

import pytest


def attack(point: str, *, was: str, now: str) -> pytest.MarkDecorator:
    """Mark a test as one attack.

    Args:
        point: letter and number of the finding, such as ``A`` or ``E2``; its siblings carry the same.
        was: what the attack did to the former code (commit fa5f8b7), where the test was seen red.
        now: what the attacker gets instead.
    """
    return pytest.mark.attack(point=point, was=was, now=now)
