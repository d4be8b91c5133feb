"""One load against Coco and its peers, in one run on one machine; prints ratios and writes bench/out/summary.json.

    python bench/ethereum.py [--transactions 20000] [--runs 3] [--systems coco,anvil,geth]

The load: pre-signed ERC-20 transfers from 100 senders over 32 connections, as single requests and in batches of 100,
until every one is mined (found in a block by polling); afterwards balances are checked. Shared machines are noisy:
compare ratios within one run only.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any

from eth_abi import encode
from eth_account import Account
from eth_utils import keccak, to_checksum_address

from load import Connection, run
from systems import CHAIN_ID, FUNDER_KEY, Anvil, Coco, Geth, System, cpu_seconds, disk_bytes, rss_mb, running, there

HERE = Path(__file__).parent
OUT = HERE / "out"
SENDERS, CONNECTIONS, BATCH = 100, 32, 100
MAX_FEE, TIP = 20 * 10**9, 10**9
TRANSFER_GAS = 200_000


def contracts() -> dict[str, Any]:
    compiled = subprocess.run(
        ["node", str(HERE.parent / "tests/clients/compile.mjs")], capture_output=True, text=True, check=True
    )
    return json.loads(compiled.stdout)


def key(index: int) -> str:
    return "0x" + hashlib.sha256(b"coco benchmark sender %d" % index).hexdigest()


def sign(job: tuple[str, dict[str, Any]]) -> tuple[str, str]:
    secret, transaction = job
    fields = {
        "type": 2,
        "chainId": CHAIN_ID,
        "maxFeePerGas": MAX_FEE,
        "maxPriorityFeePerGas": TIP,
        "value": 0,
        **transaction,
    }
    signed = Account.sign_transaction(fields, secret)
    return "0x" + signed.hash.hex(), "0x" + signed.raw_transaction.hex()


def transfer(to: str, amount: int) -> str:
    return "0x" + (keccak(text="transfer(address,uint256)")[:4] + encode(["address", "uint256"], [to, amount])).hex()


def prepare(count: int) -> dict[str, Any]:
    """Every transaction of the load, signed; kept in a file because signing in Python takes longer than the load."""
    path = OUT / f"transactions-{count}.json"
    if path.exists():
        return json.loads(path.read_text())
    senders = [Account.from_key(key(i)).address for i in range(SENDERS)]
    deployer = Account.from_key(key(SENDERS)).address
    token_code = contracts()["Token"]["bytecode"] + encode(["uint256"], [10**24]).hex()
    nonce_rlp = bytes.fromhex("d694" + deployer[2:] + "80")
    token = to_checksum_address(keccak(nonce_rlp)[12:])
    jobs = [(key(SENDERS), {"nonce": 0, "gas": 5_000_000, "data": token_code})]
    jobs += [
        (key(SENDERS), {"nonce": 1 + i, "gas": TRANSFER_GAS, "to": token, "data": transfer(sender, 10**20)})
        for i, sender in enumerate(senders)
    ]
    for run_number in range(2):  # one set for single requests, one for batches
        for n in range(count):
            lane, turn = n % SENDERS, n // SENDERS
            nonce = run_number * (count // SENDERS) + turn
            to = senders[(lane + 1 + turn) % SENDERS]
            jobs.append(
                (
                    key(lane),
                    {"nonce": nonce, "gas": TRANSFER_GAS, "to": token, "data": transfer(to, 1 + n % 7)},
                )
            )
    print(f"signing {len(jobs)} transactions ...", flush=True)
    with multiprocessing.Pool() as pool:
        signed = pool.map(sign, jobs, chunksize=200)
    head = 1 + SENDERS
    prepared = {
        "senders": senders,
        "deployer": deployer,
        "token": token,
        "setup": signed[:head],
        "single": [(n % SENDERS, *one) for n, one in enumerate(signed[head : head + count])],
        "batch": [(n % SENDERS, *one) for n, one in enumerate(signed[head + count :])],
    }
    OUT.mkdir(exist_ok=True)
    path.write_text(json.dumps(prepared))
    return prepared


def wait_receipt(client: Connection, identity: str) -> dict[str, Any]:
    for _ in range(600):
        receipt = client.call("eth_getTransactionReceipt", identity)
        if receipt is not None:
            assert receipt["status"] == "0x1", receipt
            return receipt
        time.sleep(0.05)
    raise RuntimeError("a transaction of the set-up was not mined")


def set_up(system: System, prepared: dict[str, Any]) -> None:
    """Give every sender ether for fees, deploy the token, share it out."""
    client = system.target.connect()
    wei = 5 * 10**18
    everyone = [prepared["deployer"], *prepared["senders"]]
    last = ""
    if isinstance(system, Geth):
        (funder,) = client.call("eth_accounts")[:1]
        # Nonces of our own: while a block is made, geth hands the same one out twice.
        first = int(client.call("eth_getTransactionCount", funder, "latest"), 16)
        for number, address in enumerate(everyone):
            funding = {"from": funder, "to": address, "value": hex(wei), "nonce": hex(first + number)}
            last = client.call("eth_sendTransaction", funding)
    else:
        for nonce, address in enumerate(everyone):
            _, raw = sign((FUNDER_KEY, {"nonce": nonce, "gas": 21_000, "to": address, "value": wei}))
            last = client.call("eth_sendRawTransaction", raw)
    wait_receipt(client, last)
    time.sleep(1.5)  # geth shows a receipt a moment before its pool sees the balance
    for _, raw in prepared["setup"]:
        client.call("eth_sendRawTransaction", raw)
    wait_receipt(client, prepared["setup"][0][0])
    wait_receipt(client, prepared["setup"][-1][0])
    client.close()


def check_balances(system: System, prepared: dict[str, Any], sets: list[str]) -> None:
    expected = dict.fromkeys(prepared["senders"], 10**20)
    for name in sets:
        for n, (lane, _, _) in enumerate(prepared[name]):
            amount, turn = 1 + n % 7, n // SENDERS
            expected[prepared["senders"][lane]] -= amount
            expected[prepared["senders"][(lane + 1 + turn) % SENDERS]] += amount
    client = system.target.connect()
    for address, amount in expected.items():
        data = "0x" + (keccak(text="balanceOf(address)")[:4] + encode(["address"], [address])).hex()
        found = client.call("eth_call", {"to": prepared["token"], "data": data}, "latest")
        assert int(found, 16) == amount, f"{system.name}: balance of {address} is {int(found, 16)}, not {amount}"
    client.close()


def load(system: System, prepared: dict[str, Any]) -> dict[str, Any]:
    """Set a running system up, give it single requests and then batches, and check the balances."""
    figures: dict[str, Any] = {}
    set_up(system, prepared)
    for name, batch in (("single", 1), ("batch", BATCH)):
        before = cpu_seconds(system.process.pid)
        result = run(system.target, prepared[name], connections=CONNECTIONS, batch=batch)
        figures[name] = {
            "tx_per_s": round(result.tx_per_s, 1),
            "p50_ms": round(result.percentile(0.5), 1),
            "p99_ms": round(result.percentile(0.99), 1),
            "system_cpu_us_per_tx": round((cpu_seconds(system.process.pid) - before) / result.transactions * 1e6, 1),
            "generator_cpu_us_per_tx": round(result.generator_cpu_s / result.transactions * 1e6, 1),
        }
        print(f"  {system.name:<7} {name:<7} {figures[name]}", flush=True)
    figures["rss_mb"] = round(rss_mb(system.process.pid), 1)
    check_balances(system, prepared, ["single", "batch"])
    return figures


def measure(kind: type[System], prepared: dict[str, Any]) -> dict[str, Any]:
    with running(kind) as system:
        before_disk = disk_bytes(system.directory)
        figures = load(system, prepared)
        figures["version"], figures["settings"] = system.version, system.settings
        total = len(prepared["setup"]) + len(prepared["single"]) + len(prepared["batch"])
        figures["disk_bytes_per_tx"] = round((disk_bytes(system.directory) - before_disk) / total, 1)
    return figures


def median(runs: list[dict[str, Any]], name: str, figure: str) -> float:
    return statistics.median(run[name][figure] for run in runs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--transactions", type=int, default=20_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--systems", default="coco,anvil,geth")
    chosen = parser.parse_args()
    kinds = there([kind for kind in (Coco, Anvil, Geth) if kind.name in chosen.systems.split(",")])
    prepared = prepare(chosen.transactions)
    runs: dict[str, list[dict[str, Any]]] = {kind.name: [] for kind in kinds}
    for number in range(chosen.runs):
        print(f"run {number + 1} of {chosen.runs}, load {os.getloadavg()[0]:.1f}", flush=True)
        for kind in kinds:  # interleaved, so that a slow minute hits everyone
            runs[kind.name].append(measure(kind, prepared))
    summary: dict[str, Any] = {
        "settings": {
            "transactions": chosen.transactions,
            "senders": SENDERS,
            "connections": CONNECTIONS,
            "batch": BATCH,
            "cores": os.cpu_count(),
            "date": time.strftime("%Y-%m-%d"),
        },
        "systems": {},
        "ratios": {},
    }
    for name, results in runs.items():
        summary["systems"][name] = {
            "version": results[0]["version"],
            "settings": results[0]["settings"],
            "rss_mb": statistics.median(r["rss_mb"] for r in results),
            "disk_bytes_per_tx": statistics.median(r["disk_bytes_per_tx"] for r in results),
        }
        for mode in ("single", "batch"):
            summary["systems"][name][mode] = {
                "tx_per_s": [r[mode]["tx_per_s"] for r in results],
                **{f: median(results, mode, f) for f in results[0][mode] if f != "tx_per_s"},
                "tx_per_s_median": median(results, mode, "tx_per_s"),
            }
    peers = [name for name in runs if name != "coco"]
    if "coco" in runs and peers:
        for mode in ("single", "batch"):
            best = max(peers, key=lambda peer: summary["systems"][peer][mode]["tx_per_s_median"])
            ratio = (
                summary["systems"]["coco"][mode]["tx_per_s_median"] / summary["systems"][best][mode]["tx_per_s_median"]
            )
            summary["ratios"][mode] = {"fastest_peer": best, "coco_over_it": round(ratio, 2)}
            print(f"{mode}: coco does {ratio:.2f} times the transactions per second of {best}, the faster peer")
    OUT.mkdir(exist_ok=True)
    path = OUT / "summary.json"
    others = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**others, **summary}, indent=1))
    print(f"wrote {OUT / 'summary.json'}")


if __name__ == "__main__":
    main()
