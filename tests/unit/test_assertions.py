"""E1: no assertion in an enclave, or in whoever reads what others wrote, may be reachable by what a client, a peer, a host or a cache does.

An assertion that stays says why it cannot fail; whatever could is an error with a code.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCES = Path(__file__).parent.parent.parent / "src" / "coco"
FOLDERS = ("enclave", "ledger", "channel", "attestation", "audit", "host", "client")


def without_reason(source: str) -> list[int]:
    """Lines of assertions that do not say why they hold, and of ones raised by hand."""
    found = []
    for node in ast.walk(ast.parse(source)):
        says = isinstance(node, ast.Assert) and (
            isinstance(node.msg, ast.JoinedStr) or (isinstance(node.msg, ast.Constant) and bool(node.msg.value))
        )
        if isinstance(node, ast.Assert) and not says:
            found.append(node.lineno)
        if isinstance(node, ast.Raise) and node.exc is not None and "AssertionError" in ast.dump(node.exc):
            found.append(node.lineno)
    return sorted(found)


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_assertion_says_why_it_cannot_fail(folder):
    files = sorted((SOURCES / folder).rglob("*.py"))
    assert files
    wrong = [f"{path}:{line}" for path in files for line in without_reason(path.read_text())]
    assert wrong == []


def test_the_check_sees_what_it_looks_for():
    assert without_reason("assert x\nassert y, ''\nassert z, 'because'\nraise AssertionError('no')\n") == [1, 2, 4]
