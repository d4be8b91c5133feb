"""The scenarios of consensus; ``COCO_REWRITE=1`` writes down what happens, to be read before it is committed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from scenario import run

SCENARIOS = sorted((Path(__file__).parent / "scenarios").glob("*.txt"))


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_scenario(path):
    written, went = run(path)
    if os.environ.get("COCO_REWRITE"):
        path.write_text(went)
    assert went == written
