"""What parts of the house may import, by name: `.importlinter` says who is above whom, this says who knows whom.

python scripts/allowed_imports.py      exits with 1 and names what is not allowed
"""

from __future__ import annotations

import sys
from typing import Final

import grimp

#: Part: whose modules it may import besides its own, and which packages from outside.
ALLOWED: Final[dict[str, tuple[frozenset[str], frozenset[str]]]] = {
    # An adapter sees its contract, the store, the extension, what is pure and small; no socket, file, clock or process.
    "coco.enclave.adapters": (
        frozenset(
            {
                "coco._native",
                "coco.configuration.callers",
                "coco.enclave.store",
                "coco.errors",
                "coco.ledger",
                "coco.limits",
            }
        ),
        frozenset(
            [
                "abc",
                "asyncio",
                "collections",
                "contextlib",
                "dataclasses",
                "enum",
                "functools",
                "inspect",
                "math",
                "msgspec",
                "re",
                "secrets",
                "types",
                "typing",
                "__future__",
            ]
        ),
    ),
}


def broken(graph: grimp.ImportGraph) -> list[str]:
    """Imports that no entry allows."""
    found: list[str] = []
    for part, (ours, others) in ALLOWED.items():
        for module in sorted(graph.find_descendants(part) | {part}):
            for imported in sorted(graph.find_modules_directly_imported_by(module)):
                of_ours = imported == "coco" or any(
                    imported == allowed or imported.startswith(f"{allowed}.") for allowed in (part, *ours)
                )
                if not of_ours and imported.partition(".")[0] not in others:
                    found.append(f"{module} may not import {imported}")
    return found


def main() -> int:
    """The command."""
    found = broken(grimp.build_graph("coco", include_external_packages=True, cache_dir=None))
    print("\n".join(found) or "every import is allowed")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
