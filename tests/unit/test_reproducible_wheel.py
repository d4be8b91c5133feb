"""Code identity is the product's claim: wheel and bundle are byte-identical wherever they are built.

The release's profile takes minutes to optimise; ``make verify-release`` builds with it. Here the compiler does less, and
every path, time and name that must not show is the same.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
COPIED = (".cargo", "src", "rust", "scripts", "pyproject.toml", "requirements.lock", "README.md", "LICENSE")

_QUICK = {
    f"CARGO_PROFILE_RELEASE_{name}": value
    for name, value in (("LTO", "off"), ("OPT_LEVEL", "0"), ("CODEGEN_UNITS", "16"))
}


def build(base: Path, name: str) -> tuple[bytes, bytes]:
    """Wheel and bundle, built in a folder, with a HOME, CARGO_HOME and PATH of its own."""
    tree = base / name / "source"
    tree.mkdir(parents=True)
    for item in COPIED:
        ignore = shutil.ignore_patterns("target", "__pycache__", "*.so")
        if (ROOT / item).is_dir():
            shutil.copytree(ROOT / item, tree / item, ignore=ignore)
        else:
            shutil.copy(ROOT / item, tree / item)
    home, cargo_home, tools = base / name / "home", base / name / "cargo-home", base / name / "bin"
    home.mkdir()
    tools.mkdir()
    # Downloaded sources are shared, but reached by another path: the path is what must not show in the wheel.
    cargo_home.mkdir()
    original = Path(os.environ.get("CARGO_HOME", Path.home() / ".cargo"))
    for item in ("registry", "git", "config.toml"):
        if (original / item).is_dir():
            shutil.copytree(original / item, cargo_home / item, symlinks=True)
        elif (original / item).exists():
            shutil.copy(original / item, cargo_home / item)
    for tool in ("cargo", "rustc"):
        found = subprocess.run(["rustup", "which", tool], capture_output=True, text=True)
        os.symlink(found.stdout.strip() or str(shutil.which(tool)), tools / tool)
    os.symlink(sys.executable, tools / "python3")
    path = f"{tools}:{Path(sys.executable).parent}:/usr/bin:/bin"
    environment = {
        "HOME": str(home),
        "CARGO_HOME": str(cargo_home),
        "PATH": path,
        "MATURIN_ARGS": f"-i {sys.executable}",
        **({} if os.environ.get("COCO_RELEASE_PROFILE") else _QUICK),
    }
    out = base / name / "dist"
    done = subprocess.run(
        ["sh", "scripts/build_wheel.sh", str(out)], cwd=tree, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (wheel,) = out.glob("*.whl")
    command = [sys.executable, "scripts/build_bundle.py", str(wheel), str(out)]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return wheel.read_bytes(), (out / "coco-bundle.tar").read_bytes()


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_wheel_and_bundle_are_byte_identical_in_two_folders(tmp_path):
    (first, bundle), (second, other) = build(tmp_path, "one"), build(tmp_path, "a-longer-name-elsewhere")
    if published := os.environ.get("COCO_WHEEL"):
        assert first == Path(published).read_bytes(), "the published wheel was built from something else"
    assert sha256(first).hexdigest() == sha256(second).hexdigest()
    for place in (str(Path.home()).encode() + b"/", str(tmp_path).encode(), str(ROOT).encode()):
        assert place not in first
    assert sha256(bundle).hexdigest() == sha256(other).hexdigest()
    for place in (str(tmp_path).encode(), str(ROOT).encode()):
        assert place not in bundle
