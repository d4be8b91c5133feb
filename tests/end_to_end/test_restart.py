"""Restart, kill, damage, cut: what is acknowledged stays, and a damaged ledger is told apart from an unfinished one."""

from __future__ import annotations

import json
import random
import select
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from eth_account import Account

from coco._native import Entry
from coco.ledger import tables

KEY = "0xac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80"
SENDER = Account.from_key(KEY)
TARGET = "0x" + "11" * 20
KILLS = 50


def call(url, method, *params):
    answer = httpx.post(url, json={"jsonrpc": "2.0", "id": 1, "method": method, "params": params}, timeout=40).json()
    if "error" in answer:
        raise RuntimeError(answer["error"])
    return answer["result"]


def transfer(nonce):
    fields = {"to": TARGET, "value": 1, "gas": 21000, "nonce": nonce, "chainId": 2017, "maxFeePerGas": 1}
    return SENDER.sign_transaction({**fields, "maxPriorityFeePerGas": 1})


def send_sync(url, nonce):
    return call(url, "eth_sendRawTransactionSync", "0x" + transfer(nonce).raw_transaction.hex())


def nonce_of(url):
    return int(call(url, "eth_getTransactionCount", SENDER.address, "latest"), 16)


def entries_of(ledger):
    connection = sqlite3.connect(ledger)
    rows = connection.execute("SELECT seqno, entry FROM entries ORDER BY seqno").fetchall()
    connection.close()
    return rows


def rewrite(ledger, seqno, entry):
    connection = sqlite3.connect(ledger)
    connection.execute("UPDATE entries SET entry = ? WHERE seqno = ?", (entry, seqno))
    connection.commit()
    connection.close()


def cut(ledger, above):
    connection = sqlite3.connect(ledger)
    connection.execute("DELETE FROM entries WHERE seqno > ?", (above,))
    connection.commit()
    connection.close()


def flip(entry, at):
    return entry[:at] + bytes([entry[at] ^ 1]) + entry[at + 1 :]


def is_signature(entry):
    return tables.SIGNATURES in Entry.parse(entry).public_writes().tables()


@pytest.mark.started
def test_ctrl_c_and_start_again_keeps_everything(sandboxes):
    sandbox = sandboxes()
    sandbox.start()
    receipts = [send_sync(sandbox.url, nonce) for nonce in range(5)]
    blocks = [call(sandbox.url, "eth_getBlockByNumber", r["blockNumber"], True) for r in receipts]
    sandbox.stop()
    summary = sandbox.start()
    assert summary["recovered"] and summary["discarded_entries"] == 0
    assert [call(sandbox.url, "eth_getTransactionReceipt", r["transactionHash"]) for r in receipts] == receipts
    assert [call(sandbox.url, "eth_getBlockByNumber", b["number"], True) for b in blocks] == blocks
    assert nonce_of(sandbox.url) == 5
    send_sync(sandbox.url, 5)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_kill_9_at_random_moments_loses_nothing_acknowledged(sandboxes):
    sandbox = sandboxes()
    chosen = random.Random(7)
    acknowledged: dict[int, dict[str, Any]] = {}
    for round_number in range(KILLS):
        sandbox.start()
        following = nonce_of(sandbox.url)
        assert following >= len(acknowledged), "an acknowledged transaction is gone"
        for nonce in chosen.sample(sorted(acknowledged), min(3, len(acknowledged))):
            receipt = acknowledged[nonce]
            assert call(sandbox.url, "eth_getTransactionReceipt", receipt["transactionHash"]) == receipt
        stop = threading.Event()

        def load(url=sandbox.url, nonce=following, stop=stop):
            while not stop.is_set():
                try:
                    acknowledged[nonce] = send_sync(url, nonce)
                except (httpx.HTTPError, RuntimeError, json.JSONDecodeError):
                    return  # the node was killed under the request: it was not acknowledged
                nonce += 1

        thread = threading.Thread(target=load)
        thread.start()
        # Mostly there is something to lose, however busy the machine is.
        while following + 1 not in acknowledged and thread.is_alive() and round_number % 5:
            time.sleep(0.005)
        time.sleep(chosen.uniform(0.05, 0.6))
        sandbox.kill(chosen.choice(["host", "enclave"]))
        stop.set()
        thread.join()
    sandbox.start()
    assert len(acknowledged) > KILLS, "there was something to lose"
    for receipt in acknowledged.values():
        assert call(sandbox.url, "eth_getTransactionReceipt", receipt["transactionHash"]) == receipt


def test_an_unsigned_tail_is_discarded_and_reported(sandboxes):
    sandbox = sandboxes()
    sandbox.start()
    receipt = send_sync(sandbox.url, 0)
    sandbox.stop()
    rows = entries_of(sandbox.ledger)
    last_signature = max(seqno for seqno, entry in rows if is_signature(entry))
    before = max(seqno for seqno, entry in rows if is_signature(entry) and seqno < last_signature)
    # The last signature never reached the disk: what it covered was never acknowledged ... so use entries after it.
    connection = sqlite3.connect(sandbox.ledger)
    connection.execute("INSERT INTO entries VALUES (?, ?)", (last_signature + 1, rows[before - 1][1][:100]))
    connection.commit()
    connection.close()
    summary = sandbox.start()
    assert summary["discarded_entries"] == 1
    assert call(sandbox.url, "eth_getTransactionReceipt", receipt["transactionHash"]) == receipt


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A stopped sandbox with some blocks, to be copied and damaged."""
    from conftest import SandboxProcess

    made = SandboxProcess(tmp_path_factory.mktemp("written") / "sandbox")
    made.start()
    for nonce in range(4):
        send_sync(made.url, nonce)
    made.stop()
    return made.directory


def damaged_copy(sandboxes, written, tmp_path, name):
    sandbox = sandboxes(name)
    shutil.copytree(written, sandbox.directory)
    (sandbox.directory / "damaged").touch()
    return sandbox


@pytest.mark.parametrize("place", ["header", "iv", "public", "ciphertext", "last byte"])
def test_interior_damage_is_refused_with_the_entry_named(sandboxes, written, tmp_path, place):
    sandbox = damaged_copy(sandboxes, written, tmp_path, f"interior-{place.replace(' ', '-')}")
    rows = entries_of(sandbox.ledger)
    middle = next(seqno for seqno, entry in rows if seqno > 4 and not is_signature(entry))
    entry = rows[middle - 1][1]
    at = {"header": 3, "iv": 25, "public": 60, "ciphertext": len(entry) - 40, "last byte": len(entry) - 1}[place]
    rewrite(sandbox.ledger, middle, flip(entry, at))
    answer = sandbox.start()
    assert answer["error"]["code"] == "ledger.damaged", answer
    assert f"entry={middle}" in answer["error"]["message"]


@pytest.mark.parametrize("place", [1, 10, 30, 50, 90, 130])
def test_damage_in_the_last_signature_entry_is_noticed(sandboxes, written, tmp_path, place):
    """Only the next signature covers a signature entry; its own seal must catch what nothing else does."""
    sandbox = damaged_copy(sandboxes, written, tmp_path, f"last-{place}")
    rows = entries_of(sandbox.ledger)
    seqno, entry = rows[-1]
    assert is_signature(entry)
    rewrite(sandbox.ledger, seqno, flip(entry, place))
    answer = sandbox.start()
    if "error" in answer:
        assert answer["error"]["code"] in ("ledger.damaged", "client.rolled_back"), answer
    else:
        assert answer["discarded_entries"] > 0


def test_a_cut_at_a_signature_is_refused_by_who_has_seen_more(sandboxes, written, tmp_path):
    sandbox = damaged_copy(sandboxes, written, tmp_path, "cut")
    rows = entries_of(sandbox.ledger)
    signatures = [seqno for seqno, entry in rows if is_signature(entry)]
    last = Entry.parse(rows[-1][1])
    cut(sandbox.ledger, signatures[-3])
    answer = sandbox.start()
    assert answer["error"]["code"] == "client.rolled_back", "the sandbox's own pin has seen more"
    (sandbox.directory / "connect.json").unlink()
    answer = sandbox.start("--expect", f"{last.view}.{last.seqno}")
    assert answer["error"]["code"] == "recovery.position_missing"
    answer = sandbox.start()
    assert answer.get("recovered"), "without anyone who knows better, one node alone cannot see the cut"


def test_recovering_twice_from_one_copy_shares_no_key(sandboxes, written, tmp_path):
    """K1: no (key, IV) pair repeats over all files ever written, although positions do."""
    twins = [damaged_copy(sandboxes, written, tmp_path, f"twin-{n}") for n in range(2)]
    original = dict(entries_of(written / "n0" / "ledger.db"))
    written_by: list[dict[int, bytes]] = []
    for twin in twins:
        (twin.directory / "damaged").unlink()
        twin.start()
        send_sync(twin.url, 4)
        twin.stop()
        written_by.append({s: e for s, e in entries_of(twin.ledger) if s not in original})
    first, second = written_by
    shared = [s for s in first if s in second and Entry.parse(first[s]).view == Entry.parse(second[s]).view]
    assert shared, "the twins wrote at the same positions, so only the secrets can differ"
    fingerprints = []
    for twin in twins:
        wrapped = [dict(Entry.parse(e).public_writes().rows(tables.WRAPPED_SECRET)) for _, e in entries_of(twin.ledger)]
        fingerprints.append([json.loads(row[tables.SINGLETON] or b"")["wrapped_secret"] for row in wrapped if row])
    assert fingerprints[0][0] == fingerprints[1][0], "the common past"
    assert not set(fingerprints[0][1:]) & set(fingerprints[1][1:])
    # Sealed with the same key and IV, the same plain text would give the same key stream: the same first bytes.
    for seqno in shared:
        assert Entry.parse(first[seqno]).leaf != Entry.parse(second[seqno]).leaf
    services = [json.loads((twin.directory / "connect.json").read_text())["service"] for twin in twins]
    assert services[0] != services[1]


def test_export_and_show_speak_json(sandboxes, written, tmp_path):
    command = [sys.executable, "-m", "coco.cli.main", "ledger"]
    ledger = str(written / "n0" / "ledger.db")
    shown = subprocess.run(
        [*command, "show", "--json", "--to", "3", "--ledger", ledger], capture_output=True, text=True
    )
    lines = [json.loads(line) for line in shown.stdout.splitlines()]
    assert [line["id"] for line in lines] == ["2.1", "2.2", "2.3"]
    assert "public:ccf.gov.service.info" in lines[0]["public"]
    missing = subprocess.run(
        [*command, "export", str(tmp_path / "x"), "--json", "--ledger", str(tmp_path / "none")],
        capture_output=True,
        text=True,
    )
    assert missing.returncode == 2
    assert json.loads(missing.stdout)["error"]["code"] == "ledger.no_file"
    assert Path(ledger).exists()


def has_a_folder(process: subprocess.Popen[bytes], directory: Path) -> bool:
    return directory.exists()


def has_an_enclave(process: subprocess.Popen[bytes], directory: Path) -> bool:
    return bool(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text())


def has_a_ledger(process: subprocess.Popen[bytes], directory: Path) -> bool:
    return any(directory.glob("n*/ledger.db"))


def has_said_where(process: subprocess.Popen[bytes], directory: Path) -> bool:
    assert process.stdout is not None
    return bool(select.select([process.stdout], [], [], 0)[0])


@pytest.mark.started
@pytest.mark.parametrize("moment", [has_a_folder, has_an_enclave, has_a_ledger, has_said_where])
def test_a_signal_at_any_moment_of_the_start_ends_it_in_good_order(sandboxes, moment):
    sandbox = sandboxes()
    command = [sys.executable, "-m", "coco.cli.main", "sandbox", "--json", "--port", "0"]
    command += ["--dir", str(sandbox.directory)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
    until = time.monotonic() + 60
    while not moment(process, sandbox.directory):
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    output, said = process.communicate(timeout=30)
    assert process.returncode in (0, 130), said
    assert b"Traceback" not in said
    # Whoever was told where to find the sandbox gets an orderly end.
    assert not output or process.returncode == 0
    sandbox.start()


def test_a_ledger_larger_than_one_message_comes_back_whole(sandboxes):
    """Found by a long load: a page of large entries did not fit into one answer of the host."""
    sandbox = sandboxes()
    sandbox.start()
    last = 0
    for first in range(0, 160, 20):
        calls = []
        for nonce in range(first, first + 20):
            fields = {
                "to": TARGET,
                "value": 0,
                "gas": 2_000_000,
                "nonce": nonce,
                "chainId": 2017,
                "data": bytes(120_000),
            }
            signed = SENDER.sign_transaction({**fields, "maxFeePerGas": 0, "maxPriorityFeePerGas": 0})
            raw = "0x" + signed.raw_transaction.hex()
            calls.append({"jsonrpc": "2.0", "id": nonce, "method": "eth_sendRawTransactionSync", "params": [raw]})
        answers = httpx.post(sandbox.url, json=calls, timeout=60).json()
        assert all(answer["result"]["status"] == "0x1" for answer in answers), answers[0]
        last = first + 20
    assert sandbox.ledger.stat().st_size > 16 * 1024 * 1024
    sandbox.stop()
    sandbox.start()
    assert int(call(sandbox.url, "eth_getTransactionCount", SENDER.address, "latest"), 16) == last
