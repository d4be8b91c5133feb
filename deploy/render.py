"""Render a deployment kit: ``python deploy/render.py KIT OUT --bundle DIR [name=value ...]``.

A kit is a folder with ``kit.toml``, which names its parameters, and templates, whose ``${names}`` are replaced. What
depends on the bundle (hashes of its files, identity) and on other rendered files (their hashes) is computed here, so
that nobody copies a hash by hand. Needs Python 3.11 and nothing else.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import re
import shutil
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from string import Template

HERE = Path(__file__).parent
KITS = sorted(path.parent.name for path in HERE.glob("*/kit.toml"))
#: What every kit knows of a node; a kit may give others, or none.
COMMON = {
    "listen": "0.0.0.0",
    # Name or address under which the other nodes reach this one, as its operator is listed.
    "advertise": "",
    "peer": "",
    "application_port": "8443",
    "administration_port": "8444",
    "peer_port": "8445",
    "data": "/var/lib/coco",
    "files": "/etc/coco",
}


class Wrong(Exception):
    """What a person gave cannot be rendered."""


def render(kit: str, out: Path, bundle: Path, given: Mapping[str, str]) -> list[Path]:
    """Render a kit into a folder; the files.

    Raises:
        Wrong: a parameter is missing, unknown or malformed, or the bundle is none.
    """
    described = tomllib.loads((HERE / kit / "kit.toml").read_text())
    known = {**COMMON, **{name: one.get("default", "") for name, one in described.get("parameters", {}).items()}}
    needed = {"peer", "advertise"} | {n for n, one in described.get("parameters", {}).items() if "default" not in one}
    if unknown := sorted(given.keys() - known.keys()):
        raise Wrong(f"{kit} has no parameter {unknown[0]}; it has {', '.join(sorted(known))}")
    values = {**known, **given}
    if missing := sorted(name for name in needed if not values[name]):
        raise Wrong(f"{kit} needs {missing[0]}=…")
    for name, value in values.items():
        # A value lands in units, scripts and JSON: nothing in it may end a word or a string there.
        if not re.fullmatch(r"[\w./:@=+,-]*", value):
            raise Wrong(f"{name} has a character that no kit takes: {value}")
    values |= _of_bundle(bundle)
    written = []
    for place in described["files"]:
        source = HERE / kit / place["template"]
        text = Template(source.read_text()).substitute(values)
        target = out / place["to"]
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        target.chmod(0o755 if text.startswith("#!") else 0o644)
        written.append(target)
        # Later templates may hold this file, and whoever starts the machine its hash.
        if "name" in place:
            data = text.encode()
            values[f"{place['name']}_json"] = json.dumps(text)
            values[f"{place['name']}_base64"] = base64.b64encode(data).decode()
            values[f"{place['name']}_sha256"] = hashlib.sha256(data).hexdigest()
    if described.get("bundle"):
        shutil.copytree(bundle, out / described["bundle"], dirs_exist_ok=True)
    return written


def _of_bundle(bundle: Path) -> dict[str, str]:
    try:
        files = json.loads((bundle / "bundle.json").read_text())["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Wrong(f"{bundle} is no bundle: {error}") from error
    whole = hashlib.sha256(b"coco code v1")
    for name, digest in sorted(files.items()):
        whole.update(name.encode() + b"\0" + bytes.fromhex(digest))
    listed = hashlib.sha256((bundle / "bundle.json").read_bytes()).hexdigest()
    trusted = [*sorted(files.items()), ("bundle.json", listed)]
    lines = (f'  {{ uri = "file:bundle/{name}", sha256 = "{digest}" }},' for name, digest in trusted)
    python = next(name.split("/")[2] for name in files if re.match(r"python/lib/python3\.\d+/os\.py", name))
    return {"code_identity": whole.hexdigest(), "trusted_files": "\n".join(lines), "python": python}


def main() -> int:
    """The command; the exit status."""
    parser = argparse.ArgumentParser(description="Render a deployment kit.")
    parser.add_argument("kit", choices=KITS)
    parser.add_argument("out", type=Path)
    parser.add_argument("--bundle", type=Path, required=True, help="a bundle, as `make bundle` builds it")
    parser.add_argument("values", nargs="*", metavar="name=value")
    chosen = parser.parse_intermixed_args()
    given = {}
    for item in chosen.values:
        name, equals, value = item.partition("=")
        if not equals:
            parser.error(f"{item} is no name=value")
        given[name] = value
    try:
        written = render(chosen.kit, chosen.out, chosen.bundle, given)
    except Wrong as error:
        print(f"cannot render: {error}", file=sys.stderr)
        return 2
    for path in written:
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
