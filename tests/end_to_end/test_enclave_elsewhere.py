"""An enclave that somebody else starts, and a host that reaches it over a port: as under Gramine and in Nitro."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from coco.errors import CocoError
from coco.host import launcher
from network import TestNetwork, run, running

ETHEREUM = "ethereum:coco.enclave.adapters.ethereum.adapter:adapter"


def five_free_ports() -> int:
    """The first of five ports in a row that nobody has."""
    for first in range(20_000 + os.getpid() % 5_000, 60_000, 7):
        with contextlib.ExitStack() as held, contextlib.suppress(OSError):
            for port in range(first, first + 5):
                held.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return first
    raise AssertionError("no ports are free")


@contextlib.contextmanager
def enclave(tmp_path: Path, listens: str) -> Iterator[subprocess.Popen[str]]:
    empty = tmp_path / "empty"
    empty.mkdir(exist_ok=True)
    boot = Path(launcher.__file__).parent.parent / "enclave" / "node" / "boot.py"
    command = [sys.executable, "-I", "-S", "-B", "-X", f"pycache_prefix={empty}", str(boot)]
    command += ["--path=" + os.pathsep.join(launcher.module_path(None)), "--root=", f"--adapters={ETHEREUM}"]
    command += ["--platform=insecure_virtual", f"--listens={listens}"]
    process = subprocess.Popen(command, env=launcher.ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_host_reaches_its_enclave_over_ports_and_they_end_together(tmp_path):
    async def story() -> None:
        address = f"tcp:127.0.0.1:{five_free_ports()}"
        network = TestNetwork(tmp_path / "network")
        ethereum = {"ethereum": ETHEREUM.partition(":")[2]}
        with enclave(tmp_path, address) as process:
            async with running(network, adapters=ethereum, enclave=address):
                assert network.node.enclave_pid == 0
                info = (await network.client(listener="administration").request("GET", "/node/info")).json()
                assert info["lockdown"]["seccomp"] == "applied"
                account = "0x" + "11" * 20
                for _ in range(3):
                    answer = await network.rpc(network.client(), "eth_getBalance", account, "latest")
                    assert answer["result"].startswith("0x")
                status = Path(f"/proc/{process.pid}/status").read_text()
                assert "Seccomp:\t2" in status and "CapEff:\t0000000000000000" in status
                # Nobody else gets the control channel: there is one host, and it has come.
                with pytest.raises(ConnectionRefusedError):
                    socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])), timeout=5)
            assert process.wait(10) == 0  # its host went in good order
        # What was acknowledged is there for the next enclave; and one that dies is named.
        with enclave(tmp_path, address) as process:
            async with running(network, adapters=ethereum, enclave=address):
                client = network.client(listener="administration")
                assert (await client.request("GET", "/gov/recovery")).json()["status"]
                process.send_signal(signal.SIGKILL)
                assert "enclave ended" in await asyncio.wait_for(network.node.ended, 10)

    run(story())


@pytest.mark.parametrize(
    "address",
    ["tcp:10.0.0.1:7000", "tcp:localhost:7000", "tcp:127.0.0.1:x", "tcp:127.0.0.1", "vsock:x:1", "vsock:7000"],
)
def test_only_loopback_and_other_machines_of_this_one_have_enclaves(tmp_path, address):
    async def story() -> None:
        network = TestNetwork(tmp_path / "network")
        with pytest.raises(CocoError) as error:
            await network.start(enclave=address)
        await network.node.stop()
        assert error.value.code == "host.bad_enclave"

    run(story())


def test_an_enclave_that_does_not_come_is_named(tmp_path, monkeypatch):
    async def story() -> None:
        monkeypatch.setattr(launcher, "_REACH_SECONDS", 1.0)
        network = TestNetwork(tmp_path / "network")
        for address in (f"tcp:127.0.0.1:{five_free_ports()}", "vsock:3:7000"):
            with pytest.raises(CocoError) as error:
                await network.start(enclave=address)
            await network.node.stop()
            assert error.value.code == "host.no_enclave"

    run(story())


def test_an_enclave_listens_on_vsock(tmp_path):
    """Listening is all that can be tried here: nothing carries vsock on a machine without guests."""
    if not Path("/dev/vsock").exists():
        pytest.skip("the kernel has no vsock")
    with enclave(tmp_path, "vsock:7100") as process:
        for _ in range(100):
            assert process.poll() is None
            with socket.socket(socket.AF_VSOCK) as mine:
                try:
                    mine.bind((socket.VMADDR_CID_ANY, 7104))
                except OSError:
                    return  # it has the last of its five ports
            time.sleep(0.05)
        raise AssertionError("nobody listens")
