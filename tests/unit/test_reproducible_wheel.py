"""Code identity is the product's claim: wheel and bundle are byte-identical wherever they are built.

Everything is built twice if what decides how others' crates are built has changed since that was last seen to hold
(``scripts/verified.json``, which such a run writes), and by ``make verify-release``, with the profile that ships.
Otherwise others' crates come from ``make build``, and our two crates, the wheel and the bundle are built twice. Without
``make verify-release`` the compiler does less; every path, time and name that must not show is the same.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
COPIED = (".cargo", "src", "rust", "scripts", "pyproject.toml", "requirements.lock", "README.md", "LICENSE")
#: What `make build` leaves.
BUILT = ROOT / "rust" / "target" / "develop"
VERIFIED = ROOT / "scripts" / "verified.json"
#: What others' crates are, and how they are built.
DECIDING = ("rust/Cargo.lock", "requirements.lock", ".cargo/config.toml", "scripts/rustc.sh", "scripts/build_wheel.sh")
#: Our own, and the two that a file tells where the interpreter is.
CRATES_BUILT = {"coco-core", "coco-native", "pyo3", "pyo3-ffi"}

_QUICK = {
    f"CARGO_PROFILE_RELEASE_{name}": value
    for name, value in (("LTO", "off"), ("OPT_LEVEL", "0"), ("CODEGEN_UNITS", "16"))
}
_QUICK_CRATES = [f"--config profile.develop.package.{crate}.opt-level=0" for crate in ("coco-core", "coco-native")]


@dataclass
class Release:
    """What a build makes, and which crates it compiled."""

    wheel: bytes
    bundle: bytes
    compiled: set[str]


def deciding() -> dict[str, str]:
    return {name: sha256((ROOT / name).read_bytes()).hexdigest() for name in DECIDING}


def is_verified() -> bool:
    return VERIFIED.exists() and json.loads(VERIFIED.read_text()) == deciding()


def cold(base: Path) -> dict[str, str]:
    """The environment of a build that has nothing: a CARGO_HOME and PATH of its own."""
    cargo_home, tools = base / "cargo-home", base / "bin"
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
        which = subprocess.run(["rustup", "which", tool], capture_output=True, text=True)
        os.symlink(which.stdout.strip() or str(shutil.which(tool)), tools / tool)
    os.symlink(sys.executable, tools / "python3")
    path = f"{tools}:{Path(sys.executable).parent}:/usr/bin:/bin"
    profile = {} if os.environ.get("COCO_RELEASE_PROFILE") else _QUICK
    return {"CARGO_HOME": str(cargo_home), "PATH": path, "MATURIN_ARGS": f"-i {sys.executable}", **profile}


def warm(base: Path) -> dict[str, str]:
    """The environment of a build that has others' crates as `make build` made them."""
    # Not below the source, where a build would find it by itself: the wheel must not name this folder either.
    target = base / "target"
    ours = shutil.ignore_patterns("*coco*", "*_native*", "incremental", "examples")
    shutil.copytree(BUILT, target / "develop", ignore=ours, symlinks=True)
    homes = {
        name: os.environ.get(name, str(Path.home() / folder))
        for name, folder in (("CARGO_HOME", ".cargo"), ("RUSTUP_HOME", ".rustup"))
    }
    return {
        **homes,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "COCO_WHEEL_PROFILE": "develop",
        "COCO_WHEEL_TARGET": str(target),
        "MATURIN_ARGS": " ".join(["-i", sys.executable, *_QUICK_CRATES]),
    }


def build(base: Path, environment_of: Callable[[Path], dict[str, str]]) -> Release:
    """Wheel and bundle, built from a copy of the source with a HOME of its own."""
    tree, home, out = base / "source", base / "home", base / "dist"
    tree.mkdir(parents=True)
    home.mkdir()
    for item in COPIED:
        ignore = shutil.ignore_patterns("target", "__pycache__", "*.so")
        if (ROOT / item).is_dir():
            shutil.copytree(ROOT / item, tree / item, ignore=ignore)
        else:
            shutil.copy(ROOT / item, tree / item)
    environment = {"HOME": str(home), "VIRTUAL_ENV": sys.prefix, **environment_of(base)}
    built = run(tree, ["sh", "scripts/build_wheel.sh", str(out)], environment)
    compiled = {line.split()[1] for line in built.splitlines() if line.lstrip().startswith("Compiling ")}
    (wheel,) = out.glob("*.whl")
    run(tree, [sys.executable, "scripts/build_bundle.py", str(wheel), str(out)])
    return Release(wheel.read_bytes(), (out / "coco-bundle.tar").read_bytes(), compiled)


def run(tree: Path, command: list[str], environment: dict[str, str] | None = None) -> str:
    """Run a command in a source tree; what it said on its standard error."""
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


def unpacked(wheel: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(wheel)) as files:
        return b"".join(files.read(name) for name in files.namelist())


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_wheel_and_bundle_are_byte_identical_in_two_folders(tmp_path):
    is_warm = is_verified() and BUILT.exists() and not os.environ.get("COCO_RELEASE_PROFILE")
    first, second = (build(tmp_path / name, warm if is_warm else cold) for name in ("one", "a-longer-name-elsewhere"))
    if is_warm:
        assert first.compiled <= CRATES_BUILT, "what `make build` made of others' crates is not what a wheel needs"
    if published := os.environ.get("COCO_WHEEL"):
        assert first.wheel == Path(published).read_bytes(), "the published wheel was built from something else"
    assert sha256(first.wheel).hexdigest() == sha256(second.wheel).hexdigest()
    for place in (str(Path.home()).encode() + b"/", str(tmp_path).encode(), str(ROOT).encode()):
        assert place not in unpacked(first.wheel)
    assert sha256(first.bundle).hexdigest() == sha256(second.bundle).hexdigest()
    for place in (str(tmp_path).encode(), str(ROOT).encode()):
        assert place not in first.bundle
    if not is_warm:
        VERIFIED.write_text(json.dumps(deciding(), indent=1) + "\n")
