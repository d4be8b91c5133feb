"""viem, cast and hardhat, unmodified: ``make test-clients``."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
MORE = HERE / "more"
pytestmark = pytest.mark.clients
KEY = "0x4bbbf85ce3377467afe5d46f804f221813b2bb87f24d81f60f1fcdbf7cbf4356"


@pytest.fixture(scope="module")
def contracts(tmp_path_factory):
    compiled = subprocess.run(["node", "compile.mjs"], cwd=HERE, capture_output=True, text=True, check=True)
    path = tmp_path_factory.mktemp("contracts") / "contracts.json"
    path.write_text(compiled.stdout)
    return path


def run(command, **environment):
    done = subprocess.run(
        command, cwd=MORE, env={**os.environ, **environment}, capture_output=True, text=True, timeout=180
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_viem(sandbox, contracts):
    seen = json.loads(run(["node", "viem_story.mjs", sandbox.url, str(contracts)]))
    assert seen == {"status": "success", "balance": "9", "logs": 1, "reason": "not today"}


def test_cast(sandbox):
    cast = str(MORE / "node_modules" / ".bin" / "cast")
    rpc = ["--rpc-url", sandbox.url]
    assert run([cast, "chain-id", *rpc]).strip() == "2017"
    target = "0x00000000000000000000000000000000000000bb"
    sent = json.loads(run([cast, "send", "--json", *rpc, "--private-key", KEY, target, "--value", "7"]))
    assert sent["status"] == "0x1"
    assert run([cast, "balance", *rpc, target]).strip() == "7"
    assert "blockNumber" in run([cast, "tx", *rpc, sent["transactionHash"]])
    assert json.loads(run([cast, "proof", *rpc, target]))["balance"] == "0x7"
    assert run([cast, "call", *rpc, "0x0000000000000000000000000000000000000004", "0x1234"]).strip() == "0x1234"
    run([cast, "block", *rpc, "latest", "--full"])
    run([cast, "logs", *rpc, "--from-block", "0"])


def test_hardhat(sandbox, contracts):
    hardhat = str(MORE / "node_modules" / ".bin" / "hardhat")
    output = run(
        [hardhat, "run", "--no-compile", "hardhat_story.cjs", "--network", "coco", "--config", "hardhat.config.cjs"],
        COCO_URL=sandbox.url,
        CONTRACTS=str(contracts),
        HARDHAT_DISABLE_TELEMETRY_PROMPT="true",
    )
    assert json.loads(output.strip().splitlines()[-1]) == {"status": "0x1", "to": True, "reverted": True}
