"""Puts tests/adapters on the path of this process, as the launcher does for the enclave."""

import sys
from pathlib import Path

PROBE = Path(__file__).parent.parent / "adapters"
sys.path.insert(0, str(PROBE))
