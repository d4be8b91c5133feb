"""A bundle of this very tree, without building the release: the extension is the one that is installed."""

from __future__ import annotations

import sys
import tempfile
import zipfile
from importlib.metadata import distribution
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

import build_bundle  # noqa: E402 - scripts are no package


def build_here() -> Path:
    """A folder that everybody may read, with ``bundle`` in it."""
    folder = Path(tempfile.mkdtemp(prefix="coco-bundle-"))
    folder.chmod(0o755)
    wheel = folder / "coco_framework-0.0.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path in sorted((ROOT / "src").rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                archive.write(path, path.relative_to(ROOT / "src"))
        metadata = distribution("coco-framework").read_text("METADATA")
        archive.writestr("coco_framework-0.0.0.dist-info/METADATA", metadata or "")
    build_bundle.build(wheel, folder)
    return folder
