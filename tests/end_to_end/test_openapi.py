"""The administration listener as OpenAPI says it is, and what a fuzzer that believes it finds: no fault of ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import requests

from coco.enclave.api import openapi
from coco.enclave.api.routes import administration_app

SCHEMATHESIS = Path(sys.executable).with_name("schemathesis")


def test_the_document_names_every_route_and_no_other():
    nobody: list[Any] = [MagicMock()] * 5
    routes: list[Any] = administration_app(*nobody).routes
    served = {(method, route.path) for route in routes for method in route.methods if method != "HEAD"}
    assert served == set(openapi.OPERATIONS)


@pytest.mark.timeout(200)
@pytest.mark.slow
def test_schemathesis_finds_no_5xx(sandbox, tmp_path):
    admin, service = sandbox.summary["administration_url"], sandbox.summary["service_certificate"]
    served = requests.get(f"{admin}/openapi.json", verify=service, timeout=10).json()
    assert served == json.loads(json.dumps(openapi.document()))
    command = [str(SCHEMATHESIS), "run", f"{admin}/openapi.json", "--tls-verify", service]
    command += ["--checks", "not_a_server_error", "--max-examples", "25", "--seed", "1", "--no-color"]
    command += ["--phases", "examples,coverage,fuzzing", "--generation-database", "none", "--request-timeout", "20"]
    hooks = {"SCHEMATHESIS_HOOKS": "schemathesis_hooks", "PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, **hooks})
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    info = requests.get(f"{admin}/node/info", verify=service, timeout=10).json()
    assert info["unexpected_errors"] == 0, "nothing happened that nobody expected"
