"""Write ``docs/security-tests.md`` from the marks in ``tests/adversary``; ``--check`` compares only.

Usage: python scripts/security_tests.py [--check]
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "security-tests.md"
_HEAD = """# Attacks that are tested

Written by `python scripts/security_tests.py` from the marks in `tests/adversary`; `make check` compares. One file for
each attacker. *Before* is what the attack did to commit fa5f8b7, where its test was seen to fail; *now* is what the
test asserts. Run one with `make test ARGS="tests/adversary -k NAME"`.
"""


@dataclass(frozen=True)
class Attack:
    """One marked test."""

    point: str
    name: str
    was: str
    now: str

    def row(self) -> str:
        """As a line of the table."""
        return f"| {self.point} | `{self.name}` | {self.was} | {self.now} |"


def attacks(path: Path) -> Iterator[Attack]:
    """The marked tests of a file, in its order."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        for mark in node.decorator_list:
            if isinstance(mark, ast.Call) and isinstance(mark.func, ast.Name) and mark.func.id == "attack":
                said = {word.arg: ast.literal_eval(word.value) for word in mark.keywords}
                yield Attack(ast.literal_eval(mark.args[0]), node.name, said["was"], said["now"])


def page() -> str:
    """The whole page."""
    parts = [_HEAD]
    for path in sorted((ROOT / "tests" / "adversary").glob("test_*.py")):
        marked = sorted(attacks(path), key=lambda attack: attack.point)
        if not marked:
            continue
        title = (ast.get_docstring(ast.parse(path.read_text())) or path.stem).splitlines()[0].rstrip(".")
        rows = "\n".join(attack.row() for attack in marked)
        parts.append(
            f"## {title}\n`{path.relative_to(ROOT)}`\n\n| | test | before | now |\n|---|---|---|---|\n{rows}\n"
        )
    return "\n".join(parts)


def main() -> None:
    """Write, or compare."""
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(page())
    elif not PAGE.exists() or PAGE.read_text() != page():
        sys.exit("docs/security-tests.md is not what the tests say: run python scripts/security_tests.py")


if __name__ == "__main__":
    main()
