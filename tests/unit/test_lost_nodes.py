"""The page of what to do when nodes are lost: each row is shown by tests, which are there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
PAGE = ROOT / "docs" / "when-nodes-are-lost.md"


def test_every_row_names_tests_that_are_there():
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")][1:]
    assert len(rows) >= 15
    tests: dict[str, set[str]] = {}
    for path in (ROOT / "tests").glob("*/test_*.py"):
        found = {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}
        tests.setdefault(path.name, set()).update(found)
    for row in rows:
        *_, shown_by, _ = row.split("|")
        named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", shown_by)
        assert named, row
        for file, name in named:
            assert name in tests.get(file, ()), f"{file}::{name}"
