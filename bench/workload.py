"""The workload of the 2017 paper: 2,000 mixed transactions in batches of 100 on one node of Coco.

    python bench/workload.py

Transfers of ether, deployments, token transfers and calls of an exchange, from 100 accounts, until all are mined; TLS,
sealing, signing and fsync are on. The paper reports about 1,600 a second. Merged into bench/out/summary.json.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from eth_abi import encode
from eth_account import Account
from eth_utils import keccak, to_checksum_address

from ethereum import CONNECTIONS, SENDERS, contracts, key, sign, transfer, wait_receipt
from load import run
from systems import FUNDER_KEY, Coco, running

OUT = Path(__file__).parent / "out" / "summary.json"
TRANSACTIONS, BATCH = 2000, 100
SHARES = {"ether": 0.4, "token": 0.35, "exchange": 0.2, "deployment": 0.05}


def created(sender: str, nonce: int) -> str:
    number = b"\x80" if nonce == 0 else bytes([nonce])
    return to_checksum_address(keccak(b"\xd6\x94" + bytes.fromhex(sender[2:]) + number)[12:])


def selector(text: str, *values) -> bytes:
    kinds = text[text.index("(") + 1 : -1]
    return keccak(text=text)[:4] + encode(kinds.split(","), values)


def prepare() -> tuple[list[tuple[str, str]], list[tuple[int, str, str]]]:
    """Set-up and load, signed."""
    senders = [Account.from_key(key(i)).address for i in range(SENDERS)]
    owner = Account.from_key(key(SENDERS)).address
    compiled = contracts()
    code = compiled["Token"]["bytecode"] + encode(["uint256"], [10**24]).hex()
    left, right, exchange = (created(owner, nonce) for nonce in (0, 1, 2))
    pair = compiled["Exchange"]["bytecode"] + encode(["address", "address"], [left, right]).hex()
    setup = [
        sign((FUNDER_KEY, {"nonce": n, "gas": 21_000, "to": a, "value": 10**18}))
        for n, a in enumerate([owner, *senders])
    ]
    rows = [{"gas": 5_000_000, "data": code}, {"gas": 5_000_000, "data": code}, {"gas": 5_000_000, "data": pair}]
    rows += [{"gas": 200_000, "to": left, "data": transfer(address, 10**20)} for address in senders]
    rows += [{"gas": 200_000, "to": right, "data": transfer(exchange, 10**23)}]
    setup += [sign((key(SENDERS), {"nonce": nonce, **row})) for nonce, row in enumerate(rows)]
    approve = "0x" + selector("approve(address,uint256)", exchange, 2**255).hex()
    setup += [sign((key(i), {"nonce": 0, "gas": 200_000, "to": left, "data": approve})) for i in range(SENDERS)]
    kinds = [kind for kind, share in SHARES.items() for _ in range(round(share * 100))]
    swap = "0x" + selector("swap(uint256)", 5).hex()
    load = []
    for n in range(TRANSACTIONS):
        lane, turn = n % SENDERS, n // SENDERS
        other = senders[(lane + 1) % SENDERS]
        kind = kinds[(n * 37) % 100]
        row = {
            "ether": {"gas": 21_000, "to": other, "value": 1},
            "token": {"gas": 200_000, "to": left, "data": transfer(other, 1)},
            "exchange": {"gas": 300_000, "to": exchange, "data": swap},
            "deployment": {"gas": 5_000_000, "data": code},
        }[kind]
        load.append((lane, *sign((key(lane), {"nonce": 1 + turn, **row}))))
    return setup, load


def measure(system, setup, load) -> dict[str, Any]:
    target = system.target
    client = target.connect()
    for _, raw in setup:
        client.call("eth_sendRawTransaction", raw)
    for identity, _ in setup[-3:]:
        wait_receipt(client, identity)
    result = run(target, load, connections=CONNECTIONS, batch=BATCH)
    failed = 0
    for _, identity, _ in load[:: len(load) // 200]:
        receipt = client.call("eth_getTransactionReceipt", identity)
        failed += receipt["status"] != "0x1"
    client.close()
    assert failed == 0, f"{failed} of 200 sampled transactions failed"
    return {
        "transactions": TRANSACTIONS,
        "mix": SHARES,
        "batch": BATCH,
        "tx_per_s": round(result.tx_per_s, 1),
        "p50_ms": round(result.percentile(0.5), 1),
        "p99_ms": round(result.percentile(0.99), 1),
        "paper_tx_per_s": 1600,
    }


def main() -> None:
    setup, load = prepare()
    runs = []
    for _ in range(3):
        with running(Coco) as system:
            runs.append(measure(system, setup, load))
        print("paper's workload", runs[-1], flush=True)
    figures = sorted(runs, key=lambda one: one["tx_per_s"])[1]
    OUT.parent.mkdir(exist_ok=True)
    summary = json.loads(OUT.read_text()) if OUT.exists() else {}
    OUT.write_text(
        json.dumps({**summary, "paper_workload": {**figures, "runs": [r["tx_per_s"] for r in runs]}}, indent=1)
    )


if __name__ == "__main__":
    main()
