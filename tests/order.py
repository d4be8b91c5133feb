"""In which order tests run, and on which of several workers.

Rules:

* What takes longest goes first, so that nothing long is left to the end: tests marked ``slow``, then those of whole
  networks, then all others.
* Tests that share what is made for a module go to one worker together; every other test goes to whichever is free.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import pytest

#: Folders whose tests start whole networks.
_NETWORKS = ("end_to_end", "adversary")


def shared(item: pytest.Item) -> str:
    """A name for what a test shares with others of its module; empty if it shares nothing."""
    definitions = getattr(item, "_fixtureinfo").name2fixturedefs  # pytest has no other name for it
    names = sorted(
        name
        for name, (*_, definition) in definitions.items()
        if definition.scope in ("module", "class") and not definition.func.__module__.startswith("_pytest")
    )
    return f"{item.path.stem}-{'-'.join(names)}" if names else ""


def arrange(items: Sequence[pytest.Item]) -> list[pytest.Item]:
    """Tests with those they share something with, and what takes longest first."""
    together: defaultdict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        if name := shared(item):
            item.add_marker(pytest.mark.xdist_group(name))
        together[name or item.nodeid].append(item)
    return [item for group in sorted(together.values(), key=_rank) for item in group]


def _rank(group: Sequence[pytest.Item]) -> int:
    if any(item.get_closest_marker("slow") for item in group):
        return 0
    return 1 if group[0].path.parent.name in _NETWORKS else 2
