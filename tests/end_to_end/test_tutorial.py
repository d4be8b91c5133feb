"""The commands of ``docs/tutorial``, as they stand there."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TUTORIAL = ROOT / "docs" / "tutorial" / "README.md"


@pytest.mark.timeout(280)
@pytest.mark.slow
def test_the_tutorial_does_what_it_says(tmp_path):
    blocks = re.findall(r"```bash\n(.*?)```", TUTORIAL.read_text(), re.DOTALL)
    assert len(blocks) > 8
    script = tmp_path / "tutorial.sh"
    # A command that fails ends the story; nodes are in its process group, and end with it.
    script.write_text("set -eu\n" + "\n".join(f"echo '## block {n}'\n{block}" for n, block in enumerate(blocks)))
    work = tmp_path / "work"
    work.mkdir()
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "coco").write_text(f'#!/bin/sh\nexec {sys.executable} -m coco.cli.main "$@"\n')
    (tools / "python3").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    for tool in tools.iterdir():
        tool.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"}
    with subprocess.Popen(
        ["bash", str(script)],
        cwd=work,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as running:
        try:
            said, _ = running.communicate(timeout=260)
        except subprocess.TimeoutExpired:
            os.killpg(running.pid, signal.SIGKILL)
            said, _ = running.communicate()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(running.pid, signal.SIGKILL)
    assert running.returncode == 0, said[-4000:]
    assert ", 0 illegal" in said
    document = json.loads((work / "constitution.json").read_text())["constitution"]
    names = {one["member_data"]["name"] for one in document["membership"]["members"].values()}
    assert names == {"alice", "bob", "dave"}
    assert "M = 2" in document["voting_policy"]["rules"]
    assert len(document["code_manifest"]["virtual"]) == 1
    trusted = [row for row in document["node_list"].values() if row["status"] == "Trusted"]
    assert len(trusted) == 3
