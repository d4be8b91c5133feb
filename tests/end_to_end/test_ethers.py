"""ethers (npm), unmodified, against the sandbox."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

CLIENTS = Path(__file__).parent.parent / "clients"


def test_ethers_deploys_transfers_and_decodes(sandbox, tmp_path):
    compiled = subprocess.run(["node", "compile.mjs"], cwd=CLIENTS, capture_output=True, text=True, check=True)
    (tmp_path / "contracts.json").write_text(compiled.stdout)
    story = subprocess.run(
        ["node", "ethers_story.mjs", sandbox.url, str(tmp_path / "contracts.json")],
        cwd=CLIENTS,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert story.returncode == 0, story.stderr
    assert json.loads(story.stdout) == {
        "hashMatches": True,
        "balance": "42",
        "events": 1,
        "reason": "not today",
        "custom": "TooMuch",
        "types": [0, 1, 2, 4],
        "many": 20,
        "estimate": True,
    }
