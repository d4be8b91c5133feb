"""The bundle (H3): a node out of it, as an ordinary user; one byte anywhere; every forbidden thing, as that user."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from adapters_path import PROBE  # noqa: F401 - puts tests/adapters on the path
from probe import ALLOWED, ATTEMPTS

from bundles import build_here
from coco import code_identity
from coco.host import launcher
from conftest import ROOT

#: Somebody who may do nothing: when the tests run as root they become somebody else.
NOBODY = 65534
SOMEBODY_ELSE = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"] if os.getuid() == 0 else []


@pytest.fixture(scope="module")
def bundle() -> Iterator[Path]:
    folder = build_here()
    yield folder / "bundle"
    shutil.rmtree(folder)


@pytest.fixture
def home() -> Iterator[Path]:
    """A folder of the ordinary user, below folders that it may enter."""
    folder = Path(tempfile.mkdtemp(prefix="coco-home-"))
    if SOMEBODY_ELSE:
        os.chown(folder, NOBODY, NOBODY)
    yield folder
    shutil.rmtree(folder)


def command(bundle: Path, home: Path, *arguments: str) -> dict[str, Any]:
    return {
        "args": [*SOMEBODY_ELSE, str(bundle / "coco"), *arguments],
        "env": {"HOME": str(home), "PATH": "/usr/bin:/bin", "TMPDIR": str(home)},
        "cwd": home,
        "text": True,
    }


def coco(bundle: Path, home: Path, *arguments: str) -> Any:
    done = subprocess.run(**command(bundle, home, *arguments, "--json"), capture_output=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_a_sandbox_runs_out_of_a_bundle_as_an_ordinary_user(bundle, home):
    measured = coco(bundle, home, "measure")
    assert measured["bundle"] == code_identity.check(bundle) and measured["altered"] == []
    wanted = command(bundle, home, "sandbox", "--nodes", "1", "--dir", str(home / "sandbox"), "--json", "--port", "0")
    with (home / "log").open("wb") as log:
        sandbox = subprocess.Popen(**wanted, stdout=subprocess.PIPE, stderr=log, start_new_session=True)
    assert sandbox.stdout is not None
    try:
        summary = json.loads(sandbox.stdout.readline())
        status = Path(f"/proc/{summary['enclave_pid']}/status").read_text()
        assert not SOMEBODY_ELSE or f"Uid:\t{NOBODY}" in status
        assert "CapEff:\t0000000000000000" in status and "Seccomp:\t2" in status
        body = b'{"jsonrpc": "2.0", "id": 1, "method": "eth_chainId", "params": []}'
        request = urllib.request.Request(summary["ethereum_url"], body, {"Content-Type": "application/json"})
        assert json.loads(urllib.request.urlopen(request, timeout=20).read())["result"] == "0x7e1"
        url = summary["administration_url"]
        verified = coco(bundle, home, "verify-node", url, "--insecure-virtual")
        assert verified["measurement"] == measured["measurements"]["insecure_virtual"]
        status = coco(bundle, home, "node", "status", url, "--service", summary["service_certificate"])
        lockdown = status["node"]["lockdown"]
        applied = ("namespaces", "private_root", "seccomp", "not_dumpable", "no_new_executable_memory")
        assert all(lockdown[name].startswith("applied") for name in applied) and lockdown["capabilities"] == "none"
    finally:
        sandbox.terminate()
        sandbox.communicate(timeout=30)
        assert sandbox.returncode == 0
    # Whatever ran wrote nothing into it.
    assert code_identity.check(bundle) == measured["bundle"]


def boot(bundle: Path, folder: Path) -> tuple[int, str]:
    """Begin an enclave of a bundle, and have it end before anything is asked of it."""
    empty = folder / "empty"
    empty.mkdir(exist_ok=True)
    python, packages = bundle / "python" / "bin" / "python3", bundle / "packages"
    library = next((bundle / "python" / "lib").glob("python3.*"))
    start = [
        str(python),
        "-I",
        "-S",
        "-B",
        "-X",
        f"pycache_prefix={empty}",
        str(packages / "coco/enclave/node/boot.py"),
    ]
    start += [f"--path={library}:{library}/lib-dynload:{packages}", "--adapters=", "--platform=insecure_virtual"]
    done = subprocess.run(
        [*start, f"--root={bundle}"], env=launcher.ENVIRONMENT, capture_output=True, text=True, timeout=60
    )
    return done.returncode, done.stderr


def _append(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\n")


CHANGES: dict[str, Callable[[Path], Any]] = {
    "standard library": lambda b: _append(next(b.glob("python/lib/python3.*/json/tool.py"))),
    "interpreter": lambda b: _append(b / "python/bin/python3"),
    "shared library": lambda b: _append(next(b.glob("python/lib/python3.*/lib-dynload/_bisect*.so"))),
    "package": lambda b: _append(b / "packages/starlette/websockets.py"),
    "extension": lambda b: _append(next(b.glob("packages/coco/_native*.so"))),
    "constitution that ships": lambda b: _append(next(b.glob("packages/coco/constitutions/*.star"))),
    "first code": lambda b: _append(b / "packages/coco/enclave/node/boot.py"),
    "a file more": lambda b: (b / "packages/coco/more.py").write_text(""),
    "compiled Python": lambda b: _compiled(b / "packages/coco/limits.py"),
    "a file less": lambda b: next(b.glob("python/lib/python3.*/antigravity.py")).unlink(),
    "a link": lambda b: (b / "packages/coco/link.py").symlink_to("limits.py"),
}


def _compiled(source: Path) -> None:
    (source.parent / "__pycache__").mkdir()
    (source.parent / "__pycache__" / "limits.cpython-311.pyc").write_bytes(b"")


@pytest.mark.parametrize("what", CHANGES)
def test_H3_one_byte_anywhere_is_refused(bundle, tmp_path, what):
    copy = tmp_path / "bundle"
    shutil.copytree(bundle, copy)
    CHANGES[what](copy)
    code, said = boot(copy, tmp_path)
    assert code == 78 and "lockdown.bundle" in said


def test_H2_and_H3_a_bundle_with_another_list_is_other_code_and_nothing_comes_from_elsewhere(bundle, home, tmp_path):
    before = coco(bundle, home, "node", "measure")["measurement"]
    copy = home / "copy"
    shutil.copytree(bundle, copy)
    # The constitution that a network is governed by is in its ledger: it is no part of the code.
    _append(copy / "packages/coco/enclave/node/boot.py")
    code_identity.write_list(copy)
    assert coco(copy, home, "node", "measure")["measurement"] != before
    # A bundle's enclave imports nothing from beside it, whatever its host asks for.
    shutil.copytree(bundle / "packages" / "starlette", tmp_path / "elsewhere" / "starlette")
    shutil.rmtree(copy / "packages" / "starlette")
    code_identity.write_list(copy)
    empty = tmp_path / "empty"
    code, said = boot(copy, tmp_path)
    assert code != 0 and "lockdown" not in said  # it cannot be imported at all
    library = next((copy / "python" / "lib").glob("python3.*"))
    start = [str(copy / "python/bin/python3"), "-I", "-S", "-B", "-X", f"pycache_prefix={empty}"]
    start += [str(copy / "packages/coco/enclave/node/boot.py"), "--adapters=", "--platform=insecure_virtual"]
    start += [f"--path={library}:{library}/lib-dynload:{copy}/packages:{tmp_path}/elsewhere", f"--root={copy}"]
    done = subprocess.run(start, env=launcher.ENVIRONMENT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 78 and "lockdown.foreign_module" in done.stderr


DRIVER = """
import asyncio, json, sys
sys.path[:0] = [sys.argv[1]]
from pathlib import Path
from network import TestNetwork, running

async def story():
    network = TestNetwork(Path(sys.argv[2]))
    network.genesis["adapters"] |= {"probe": {}}
    adapters = {"ethereum": "coco.enclave.adapters.ethereum.adapter:adapter", "probe": "probe:adapter"}
    async with running(network, adapters=adapters, extra_path=[sys.argv[1]]):
        answer = (await network.client().request("GET", "/probe")).json()
        print(json.dumps({**answer, "status": Path(f"/proc/{network.node.enclave_pid}/status").read_text()}))

asyncio.run(story())
"""


def test_everything_forbidden_fails_for_an_ordinary_users_enclave_too(bundle, home):
    copy, tests = home / "copy", home / "tests"
    shutil.copytree(bundle, copy)
    (copy / code_identity.LIST).unlink()  # an adapter of the tests is in no bundle
    tests.mkdir()
    for name in ("network.py", "adapters/probe.py"):
        shutil.copy(ROOT / "tests" / name, tests)
    (copy / "run.py").write_text((copy / "run.py").read_text().replace("from coco.cli.main import main", DRIVER))
    done = subprocess.run(**command(copy, home, str(tests), str(home / "net")), capture_output=True, timeout=120)
    found = json.loads(done.stdout.splitlines()[0]) if done.stdout else pytest.fail(done.stderr)
    assert {name for name in ATTEMPTS if found["attempts"][name] == "allowed"} == set()
    assert {name for name in ALLOWED if found["attempts"][name] != "allowed"} == set()
    assert not SOMEBODY_ELSE or f"Uid:\t{NOBODY}" in found["status"]
