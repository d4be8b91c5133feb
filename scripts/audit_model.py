"""Write the auditor's model of every step into ``docs/ledger.md``; ``--check`` compares only.

Usage: python scripts/audit_model.py [--check]
"""

from __future__ import annotations

import sys
from pathlib import Path

from coco.audit.model import markdown

PAGE = Path(__file__).parent.parent / "docs" / "ledger.md"
BEGIN, END = "<!-- written by scripts/audit_model.py -->\n", "<!-- end -->\n"


def page(text: str) -> str:
    """The page with the model in its place."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{markdown()}\n{END}{after}"


def main() -> None:
    """Write, or compare."""
    text = PAGE.read_text()
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(page(text))
    elif text != page(text):
        sys.exit("docs/ledger.md is not what the model says: run python scripts/audit_model.py")


if __name__ == "__main__":
    main()
