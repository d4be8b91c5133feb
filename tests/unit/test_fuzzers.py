"""The fuzzer of the readers in Python still runs: what it starts from passes it (``make fuzz`` searches from there)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

FUZZ = Path(__file__).parent.parent / "fuzz"


def test_what_the_fuzzers_start_from_passes(tmp_path):
    rust, python = tmp_path / "rust", tmp_path / "python"
    rust.mkdir(), python.mkdir()
    subprocess.run([sys.executable, FUZZ / "seeds.py", rust, python], check=True)
    seeds = sorted(python.iterdir())
    assert len(seeds) > 20 and len(list(rust.iterdir())) > 10
    ran = subprocess.run([sys.executable, FUZZ / "readers.py", *seeds], cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert ran.stderr.count("Executed ") == len(seeds)
