"""Host and enclave: lock-down, start conditions, what leaves the enclave, what happens when one side dies."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from adapters_path import PROBE  # noqa: F401 - puts tests/adapters on the path
from eth_account import Account
from probe import ALLOWED, ATTEMPTS

from coco.channel import messages
from coco.host import launcher
from conftest import verify_with_ccf
from network import ADAPTERS, TestNetwork, run, running

KEY = "0xac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80"
CANARY = "c4n4ryc4n4ryc4n4ry"

pytestmark = pytest.mark.started


@pytest.fixture
def network(tmp_path):
    made = TestNetwork(tmp_path / "network")
    made.genesis["adapters"] |= {"probe": {}, "kv": {}}
    return made


WITH_PROBE = {**ADAPTERS, "probe": "probe:adapter"}


def test_everything_forbidden_fails_inside_and_everything_needed_works(network):
    async def story():
        async with running(network, adapters=WITH_PROBE):
            answer = (await network.client().request("GET", "/probe")).json()
            attempts = answer["attempts"]
            assert {name for name in ATTEMPTS if attempts[name] == "allowed"} == set()
            assert {name for name in ALLOWED if attempts[name] != "allowed"} == set()
            info = (await network.client(listener="administration").request("GET", "/node/info")).json()
            assert info["lockdown"]["seccomp"] == info["lockdown"]["not_dumpable"] == "applied"
            assert info["warning"].startswith("INSECURE: virtual")
            status = Path(f"/proc/{network.node.enclave_pid}/status").read_text()
            fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
            assert (fields["Seccomp"], fields["NoNewPrivs"]) == ("2", "1")
            assert int(fields["CapEff"], 16) == int(fields["CapBnd"], 16) == 0
            for descriptor in (0, 1, 2):
                assert os.readlink(f"/proc/{network.node.enclave_pid}/fd/{descriptor}") == "/dev/null"

    run(story())


@pytest.mark.parametrize("victim", ["enclave", "host"])
def test_if_one_process_dies_the_other_ends(network, victim):
    async def story():
        async with running(network, adapters=WITH_PROBE):
            pid = network.node.enclave_pid
            if victim == "enclave":
                os.kill(pid, signal.SIGKILL)
                reason = await asyncio.wait_for(network.node.ended, 5)
                assert "enclave ended" in reason
            else:
                network.node._transport.abort()  # what a dying host does to the channel
                for _ in range(100):
                    if network.node._enclave.process.poll() is not None:
                        return
                    await asyncio.sleep(0.05)
                raise AssertionError("the enclave outlived its channel")

    run(story())


@pytest.mark.parametrize(
    ("lie", "code"),
    [
        (lambda node: node.send(messages.Appended(10**9)), "channel.false_durability"),
        (lambda node: node._transport.write(bytes(12) + b"x" * 20), "channel.out_of_order"),
        (lambda node: node._transport.write(b"\xff" * 16), "channel.oversized"),
        (lambda node: node.send(messages.Entries(99, [])), "channel.unexpected_message"),
    ],
)
def test_a_lie_ends_the_enclave_with_its_name(network, lie, code):
    async def story():
        async with running(network, adapters=WITH_PROBE):
            lie(network.node)
            assert code in await asyncio.wait_for(network.node.ended, 5)

    run(story())


def test_H1_no_text_of_an_exception_leaves_the_enclave(network, capfd):
    async def story():
        async with running(network, adapters=WITH_PROBE):
            client = network.client()
            raised = await client.request("GET", f"/raise/{CANARY}")
            assert raised.status == 500 and CANARY.encode() not in raised.body
            assert json.loads(raised.body)["error"]["code"] == "node.internal"
            answer = await network.rpc(client, "rpc_raise", CANARY)
            assert answer["error"]["data"]["code"] == "node.internal" and CANARY not in json.dumps(answer)
            assert [line["event"] for line in network.log] == ["enclave.unexpected"] * 2
            assert CANARY not in json.dumps(network.log)
            assert (await client.request("GET", "/probe")).status == 200, "the node goes on"

    run(story())
    output = capfd.readouterr()
    assert CANARY not in output.out + output.err


class Tap:
    """A wire between client and node that keeps what passes."""

    def __init__(self, port):
        self.port, self.seen = port, bytearray()

    async def start(self):
        self.server = await asyncio.start_server(self.carry, "127.0.0.1", 0)
        return self.server.sockets[0].getsockname()[1]

    async def carry(self, reader, writer):
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.port)

        async def pump(source, sink):
            while data := await source.read(65536):
                self.seen += data
                sink.write(data)
            sink.close()

        await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer), return_exceptions=True)


def test_a_canary_is_found_nowhere_on_the_disk_or_the_wire(network, tmp_path):
    async def story():
        async with running(network, adapters=WITH_PROBE):
            tap = Tap(network.node.relays["application"].port)
            client = network.client()
            client.port = await tap.start()
            fields = {"to": "0x" + "33" * 20, "value": 1, "gas": 100_000, "nonce": 0, "chainId": 2017}
            data = CANARY.encode() + bytes.fromhex("33" * 20)
            signed = Account.from_key(KEY).sign_transaction(
                {**fields, "data": data, "maxFeePerGas": 0, "maxPriorityFeePerGas": 0}
            )
            answer = await network.rpc(client, "eth_sendRawTransactionSync", "0x" + signed.raw_transaction.hex())
            assert answer["result"]["status"] == "0x1"
            await client.request("PUT", f"/kv/{CANARY}", CANARY.encode())
            back = await network.rpc(client, "eth_getTransactionByHash", answer["result"]["transactionHash"])
            assert CANARY.encode().hex() in back["result"]["input"], "the canary is in the chain"
            await client.close()
            tap.server.close()
            return bytes(tap.seen), signed.raw_transaction, answer["result"]["transactionHash"]

    wire, raw, identity = run(story())
    secrets = [
        CANARY.encode(),
        CANARY.encode().hex().encode(),
        bytes(raw),
        raw.hex().encode(),
        bytes.fromhex(identity[2:]),
        b"\x33" * 20,
    ]
    assert len(wire) > 1000
    places = {"wire": wire, "log": json.dumps(network.log).encode()}
    places |= {str(p): p.read_bytes() for p in network.files.directory.rglob("*") if p.is_file()}
    assert any(name.endswith(("ledger.db", "ledger.db-wal")) for name in places)
    for name, content in places.items():
        for secret in secrets:
            assert secret not in content, f"a secret lies in {name}"
    verify_with_ccf(network.files.ledger(0), tmp_path / "chunks")


# --- start conditions (H2) ----------------------------------------------------------------------------------------


def boot(tmp_path, *, environment=None, flags=("-I", "-S", "-B"), path=None, prefix=None):
    empty = prefix or tmp_path / "empty"
    empty.mkdir(exist_ok=True)
    script = Path(launcher.__file__).parent.parent / "enclave" / "node" / "boot.py"
    command = [sys.executable, *flags, "-X", f"pycache_prefix={empty}", str(script)]
    command += [
        "--path=" + os.pathsep.join(path or launcher.module_path(None)),
        "--adapters=",
        "--root=",
        "--platform=insecure_virtual",
    ]
    done = subprocess.run(command, env=environment or launcher.ENVIRONMENT, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stderr


def test_H2_a_foreign_environment_is_refused(tmp_path):
    for name in ("LD_PRELOAD", "OPENSSL_CONF", "SSLKEYLOGFILE", "PYTHONPATH", "PYTHONSTARTUP"):
        value = "/nonexistent"
        code, text = boot(tmp_path, environment={**launcher.ENVIRONMENT, name: value})
        assert (code, "lockdown.environment" in text, name in text) == (78, True, True), text


def test_H2_interpreter_flags_are_needed(tmp_path):
    for flags in (("-S", "-B"), ("-I", "-B"), ("-I", "-S")):
        code, text = boot(tmp_path, flags=flags)
        assert (code, "lockdown.interpreter_flags" in text) == (78, True)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x.pyc").touch()
    code, text = boot(tmp_path, prefix=tmp_path / "full")
    assert (code, "lockdown.bytecode" in text) == (78, True)


def test_H2_pth_files_sitecustomize_and_swapped_bytecode_do_not_run(tmp_path):
    """A copy of the packages with a .pth, a sitecustomize and a swapped .pyc: none of them runs in the enclave."""
    evil = tmp_path / "evil"
    evil.mkdir()
    marker = tmp_path / "ran"
    code = f"open({str(marker)!r}, 'w')\n"
    (evil / "evil.pth").write_text(f"import os; {code}")
    (evil / "sitecustomize.py").write_text(code)
    (evil / "usercustomize.py").write_text(code)
    source = evil / "harmless.py"
    source.write_text("value = 1\n")
    (evil / "bad.py").write_text(code)
    subprocess.run(
        [
            sys.executable,
            "-c",
            "import py_compile,sys; py_compile.compile(sys.argv[1], sys.argv[2])",
            str(evil / "bad.py"),
            str(evil / "__pycache__" / f"harmless.{sys.implementation.cache_tag}.pyc"),
        ],
        check=True,
    )
    check = "import sys; sys.path.insert(0, sys.argv[1]); import harmless; assert harmless.value == 1"
    empty = tmp_path / "none"
    empty.mkdir()
    subprocess.run(
        [sys.executable, "-I", "-S", "-B", "-X", f"pycache_prefix={empty}", "-c", check, str(evil)],
        env=launcher.ENVIRONMENT,
        check=True,
    )
    boot(tmp_path, path=[*launcher.module_path(None), str(evil)])
    assert not marker.exists()


def test_H2_a_module_from_elsewhere_is_refused(tmp_path):
    """A shadow module in a folder that is on the path but not named by the launcher."""
    from coco.enclave.platform import bundle
    from coco.errors import LockdownError

    with pytest.raises(LockdownError) as refused:
        bundle.check([str(tmp_path)], None)
    assert refused.value.code == "lockdown.foreign_module"


def test_full_disk_ends_the_node_and_loses_nothing(tmp_path):
    """The ledger lies on a small file system that runs full: the node ends with a reason, and starts again with room."""
    mount = tmp_path / "small"
    mount.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(mount)], capture_output=True).returncode:
        pytest.skip("cannot mount a file system here")
    try:
        network = TestNetwork(mount / "network")
        network.genesis["adapters"] |= {"kv": {}}
        acknowledged = []

        async def fill():
            async with running(network):
                client = network.client()
                for n in range(400):
                    try:
                        written = await asyncio.wait_for(client.request("PUT", f"/kv/k{n}", os.urandom(30_000)), 3)
                    except Exception:
                        break
                    if written.status != 201:
                        break
                    acknowledged.append((n, written.json()["value"]))
                return await asyncio.wait_for(network.node.ended, 10)

        reason = run(fill())
        assert "ledger file failed" in reason, reason
        assert acknowledged
        subprocess.run(["mount", "-o", "remount,size=60m", str(mount)], check=True)

        async def again():
            async with running(network):
                await network.recover()
                client = network.client()
                for n, value in acknowledged:
                    assert (await client.request("GET", f"/kv/k{n}")).json()["value"] == value

        run(again())
    finally:
        subprocess.run(["umount", str(mount)], check=True)
