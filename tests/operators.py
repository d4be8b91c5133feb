"""An operator with nodes of their own, as processes that `coco node` starts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from coco.cli.sandbox import make_genesis
from coco.cli.sandbox_folder import SandboxFiles

COMMAND = [sys.executable, "-m", "coco.cli.main", "node"]
PATIENCE_S = 40


class Operator:
    """One person with a few nodes on one machine."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        files = SandboxFiles(directory)
        make_genesis(files, fees="free", fork="osaka", chain_id=1)
        self.genesis, self.certificate = files.genesis, files.actor("operators", "operator", ".pem")
        genesis = json.loads(self.genesis.read_text())
        genesis["operators"][0]["addresses"].append("127.0.0.2")
        self.genesis.write_text(json.dumps(genesis))
        self.running: dict[str, tuple[subprocess.Popen[str], dict[str, Any]]] = {}

    def run(self, name: str, *arguments: str, code: Path | None = None) -> dict[str, Any]:
        """Start a node, with the code below a folder if one is given; what it says once it serves, or its error."""
        environment = {**os.environ, "PYTHONPATH": str(code)} if code is not None else None
        command = [*COMMAND, *arguments, "--dir", str(self.directory / name), "--genesis", str(self.genesis), "--json"]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
        )
        assert process.stdout is not None
        said = json.loads(process.stdout.readline())
        if "error" in said:
            process.communicate(timeout=30)
        else:
            self.running[name] = process, said
        return said

    @property
    def service(self) -> str:
        return str(self.directory / "n0" / "service.pem")

    def join(self, name: str, *arguments: str, by: str = "n0", code: Path | None = None) -> dict[str, Any]:
        peer = self.running[by][1]["peer_address"]
        known = ("--peer", peer, "--service", self.service, "--operator", str(self.certificate))
        return self.run(name, "join", *known, *arguments, code=code)

    def propose(self, *actions: dict[str, Any], by: str) -> Any:
        """What becomes of a proposal of the only member."""
        path = self.directory / "proposal.json"
        path.write_text(json.dumps({"actions": list(actions)}))
        command = [*COMMAND[:-1], "member", "propose", str(path), "--json", "--service", self.service]
        command += ["--admin", self.running[by][1]["administration_url"]]
        command += ["--cert", str(self.directory / "members" / "alice.pem")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        return json.loads(done.stdout)

    def status(self, name: str) -> dict[str, Any]:
        admin = self.running[name][1]["administration_url"]
        done = subprocess.run(
            [*COMMAND, "status", admin, "--service", self.service, "--json"], capture_output=True, text=True, timeout=30
        )
        return json.loads(done.stdout)

    def voters(self, name: str, wanted: int) -> dict[str, Any]:
        """The nodes that vote, once they are so many."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            nodes = self.status(name)["network"]["nodes"]
            found = {node: row for node, row in nodes.items() if row["votes"]}
            if len(found) == wanted:
                return found
            time.sleep(0.2)
        raise AssertionError(f"not {wanted} voters: {nodes}")

    def retire(self, node_id: str, *, by: str = "n1", owner: Operator | None = None) -> Any:
        """What the network says to an operator who wants a node to leave."""
        admin = self.running[by][1]["administration_url"]
        command = [*COMMAND, "retire", admin, node_id, "--service", self.service, "--json"]
        command += ["--operator", str((owner or self).certificate)]
        return json.loads(subprocess.run(command, capture_output=True, text=True, timeout=60).stdout)

    def kill(self, name: str) -> dict[str, Any]:
        process, said = self.running.pop(name)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate(timeout=10)
        return said

    def stop(self) -> None:
        for process, _ in self.running.values():
            process.send_signal(signal.SIGTERM)
        for process, _ in self.running.values():
            process.communicate(timeout=40)
