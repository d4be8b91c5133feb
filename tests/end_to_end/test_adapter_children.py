"""Children of an adapter in a real enclave: asked through a route, replaced, measured, and gone with the enclave."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys

from conftest import verify_with_ccf
from network import ADAPTERS, TestNetwork, run, running

ASKER = {**ADAPTERS, "asker": "asker:adapter"}


def made(tmp_path):
    network = TestNetwork(tmp_path / "network")
    network.genesis["adapters"] |= {"asker": {}, "kv": {}}
    return network


async def ask(client, child, question):
    reply = await client.request("GET", f"/asked/{child}/{question}")
    answer = json.loads(reply.body)
    return answer["error"]["code"] if isinstance(answer, dict) else answer


def descendants(pid):
    """Every process below this one."""
    rows = [line.split() for line in subprocess.check_output(["ps", "-eo", "pid=,ppid="], text=True).splitlines()]
    below = {pid}
    while more := {int(own) for own, parent in rows if int(parent) in below} - below:
        below |= more
    return below - {pid}


def test_children_in_a_locked_enclave(tmp_path):
    network = made(tmp_path)

    async def story():
        async with running(network, adapters=ASKER):
            client = network.client()
            assert await ask(client, "function", "hello") == "the child says HELLO"
            for question, code in {
                "die": "child.gone",
                "loop": "child.too_slow",
                "memory": "child.out_of_memory",
                "open": "child.failed",
                "import": "child.failed",
            }.items():
                assert await ask(client, "function", question) == code
                assert await ask(client, "function", "again") == "the child says AGAIN"
            assert await ask(client, "program", "hello") == "child.bad_answer"
            assert await ask(client, "nobody", "hello") == "child.not_declared"
            written = await client.request("PUT", "/kv/colour", b"blue")
            assert written.status == 201, "the node goes on meanwhile"
            processes = descendants(network.node.enclave_pid)
            assert len(processes) == 5, "rules, and two keepers with their children"
        for _ in range(100):
            left = {pid for pid in processes if alive(pid)}
            if not left:
                break
            await asyncio.sleep(0.05)
        assert not left, "they end with their enclave"

    run(story())
    replaced = [line["event"] for line in network.log if line.get("child") == "asker.function"]
    assert replaced == ["child.gone", "child.too_slow", "child.out_of_memory", "child.failed", "child.failed"]
    verify_with_ccf(network.files.ledger(0), tmp_path / "chunks")


def alive(pid):
    return subprocess.run(["ps", "-p", str(pid)], capture_output=True).returncode == 0


def test_the_measurement_tells_a_program_from_another(tmp_path):
    def measure(content):
        (tmp_path / "program").write_bytes(content)
        source = f"""
from pathlib import Path
from coco.enclave.platform import bundle
print(bundle.measurement(None, [Path({str(tmp_path / "program")!r})]))
"""
        return subprocess.check_output([sys.executable, "-c", source], text=True)

    assert measure(b"a") == measure(b"a") != measure(b"b")
