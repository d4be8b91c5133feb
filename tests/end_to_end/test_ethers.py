"""ethers (npm), unmodified, against the sandbox: one node, and a network whose primary dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from test_failover import eventually, primary_of, whole

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


PAYMENTS = 30


def test_ethers_pointed_at_a_backup_goes_on_through_a_failover(sandboxes, tmp_path):
    network = sandboxes("network", "--nodes", "3")
    summary = network.start()
    eventually(lambda: whole(network), "three nodes vote")
    primary = primary_of(network)
    # A connector of its own: to a backup, and to the other one when that is away; never to the primary.
    backups = [row for name, row in summary["nodes"].items() if name != primary]
    connect = [sys.executable, "-m", "coco.cli.main", "connect", backups[0]["application_url"]]
    connect += ["--admin", backups[0]["administration_url"], "--also", backups[1]["application_url"]]
    connect += ["--cert", summary["participant_certificate"], "--key", summary["participant_key"]]
    connect += ["--pin", str(tmp_path / "pin.json"), "--port", "0", "--insecure-virtual", "--json"]
    with subprocess.Popen(connect, stdout=subprocess.PIPE, text=True) as connector:
        try:
            assert connector.stdout is not None
            url = json.loads(connector.stdout.readline())["url"]
            command = ["node", "ethers_failover.mjs", url, str(PAYMENTS)]
            with subprocess.Popen(
                command, cwd=CLIENTS, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            ) as story:
                seen = []
                for line in story.stdout:
                    seen.append(line.strip())
                    if line.strip() == str(PAYMENTS // 3):
                        os.kill(summary["nodes"][primary]["enclave_pid"], signal.SIGKILL)
                said = story.stderr.read()
            assert story.returncode == 0, said
            assert seen == [*map(str, range(PAYMENTS)), f"balance {PAYMENTS}"]
        finally:
            connector.send_signal(signal.SIGINT)
    eventually(lambda: whole(network), "the dead node is replaced")
