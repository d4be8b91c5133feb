"""Whether times tell what is hidden from what is not there: pairs of questions in turn, and the best single guess.

    python bench/timing.py [--pairs 10000] [--channels logs,receipt,...] [--out FILE]

A node as a process; a victim's payments, logs and account; an attacker with a certificate and an account of its own, or
without any, in another process, on one connection over TLS. Each pair is one question about something hidden and one
about something that is not there, in random order. One half of the pairs teaches the threshold that tells them apart
best, the other half says how often a single answer's time is then judged right: 50 % is a coin. Adds ``timing`` to
bench/out/summary.json. Exits with 1 if a channel is judged right in 55 % or more.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import random
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from eth_account import Account

from ethereum import OUT

TESTS = Path(__file__).parent.parent / "tests"
VICTIM = Account.from_key("0xac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80")
MINE = Account.from_key("0x" + "33" * 32)
ABSENT = "0x" + "ee" * 20
LOGS = 100
RIGHT_PERCENT_MAX = 55.0

Pair = tuple[dict[str, Any], dict[str, Any]]


# --- the node, in a process of its own ----------------------------------------------------------------------------


async def serve(directory: Path) -> None:
    """A node with an attacker and a victim, until standard input ends."""
    sys.path.insert(0, str(TESTS))
    from network import TestNetwork, running

    network = TestNetwork(directory / "network")
    network.add_participant("attacker", accounts=[MINE.address])
    network.add_participant("victim", accounts=[VICTIM.address])
    async with running(network, adapters={"ethereum": "coco.enclave.adapters.ethereum.adapter:adapter"}):
        (directory / "service.pem").write_text(network.service)
        place = {
            "port": network.node.relays["application"].port,
            "actors": str(network.files.directory / "participants"),
        }
        print(json.dumps(place), flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


# --- the attacker -------------------------------------------------------------------------------------------------


class Client:
    """One connection, one question at a time."""

    def __init__(self, place: dict[str, Any], service: Path, actor: str | None) -> None:
        tls = ssl.create_default_context(cafile=str(service))
        if actor is not None:
            tls.load_cert_chain(f"{place['actors']}/{actor}.pem", f"{place['actors']}/{actor}.key.pem")
        self._connection = http.client.HTTPSConnection("localhost", place["port"], context=tls)

    def timed(self, document: dict[str, Any]) -> tuple[int, bytes]:
        """Nanoseconds to the whole answer, and the answer."""
        body = json.dumps({"jsonrpc": "2.0", "id": 1, **document}).encode()
        began = time.perf_counter_ns()
        self._connection.request("POST", "/", body, {"content-type": "application/json"})
        answer = self._connection.getresponse().read()
        return time.perf_counter_ns() - began, answer

    def ask(self, method: str, *params: Any) -> Any:
        """The result of a call."""
        answer = json.loads(self.timed({"method": method, "params": params})[1])
        assert "error" not in answer, answer
        return answer["result"]


def signed(nonce: int, to: str | None, data: str = "0x", value: int = 0) -> str:
    fields = {"nonce": nonce, "gas": 2_000_000, "chainId": 2017, "value": value, "data": data, "maxFeePerGas": 0}
    if to is not None:
        fields["to"] = Account.from_key("0x" + "44" * 32).address
    return "0x" + VICTIM.sign_transaction({**fields, "maxPriorityFeePerGas": 0}).raw_transaction.hex()


def prepared(victim: Client) -> dict[str, Pair]:
    """What there is to ask: something hidden, and something that is not there."""
    loud = victim.ask("eth_sendRawTransactionSync", signed(0, None, "0x" + "5f5fa0" * LOGS + "00"))
    quiet = victim.ask("eth_sendRawTransactionSync", signed(1, ABSENT, value=1))
    assert len(loud["logs"]) == LOGS, loud
    waiting = signed(9, ABSENT)
    victim.ask("eth_sendRawTransaction", waiting)

    def pair(method: str, hidden: list[Any], absent: list[Any]) -> Pair:
        return {"method": method, "params": hidden}, {"method": method, "params": absent}

    def balance(address: str) -> list[Any]:
        return [{"data": "0x73" + address[2:].lower() + "315f5260205ff3"}, "latest"]

    def payment(address: str) -> list[Any]:
        code = "0x5f5f5f5f600173" + address[2:].lower() + "5af100"
        return [{"from": MINE.address, "data": code}, "latest"]

    def log_query(receipt: dict[str, Any]) -> list[Any]:
        return [{"blockHash": receipt["blockHash"]}]

    unknown = "0x" + "ab" * 32
    victims = VICTIM.address.lower()
    return {
        "logs": pair("eth_getLogs", log_query(loud), log_query(quiet)),
        "receipt": pair("eth_getTransactionReceipt", [quiet["transactionHash"]], [unknown]),
        "transaction": pair("eth_getTransactionByHash", [loud["transactionHash"]], [unknown]),
        "receipts": pair("eth_getBlockReceipts", [loud["blockNumber"]], [quiet["blockNumber"]]),
        "block": pair("eth_getBlockByNumber", [loud["blockNumber"], True], [quiet["blockNumber"], True]),
        "balance": pair("eth_getBalance", [victims, "latest"], [ABSENT, "latest"]),
        "nonce": pair("eth_getTransactionCount", [victims, "latest"], [ABSENT, "latest"]),
        "code": pair("eth_call", balance(victims), balance(ABSENT)),
        "estimate": pair("eth_estimateGas", payment(victims), payment(ABSENT)),
        "resubmission": pair("eth_sendRawTransaction", [signed(0, ABSENT)], [waiting]),
    }


def right_percent(hidden: list[int], absent: list[int]) -> float:
    """How often the best threshold of one half judges an answer of the other half rightly."""
    half = len(hidden) // 2
    taught = sorted([(time_ns, True) for time_ns in hidden[:half]] + [(time_ns, False) for time_ns in absent[:half]])
    # Walking up, each hidden one below the threshold is an argument for "below is hidden".
    balance, best, threshold, below_is_hidden = 0, 0, 0, True
    for time_ns, is_hidden in taught:
        balance += 1 if is_hidden else -1
        if abs(balance) > best:
            best, threshold, below_is_hidden = abs(balance), time_ns, balance > 0
    judged = [(time_ns <= threshold) == below_is_hidden for time_ns in hidden[half:]]
    judged += [(time_ns <= threshold) != below_is_hidden for time_ns in absent[half:]]
    return 100 * sum(judged) / len(judged)


def measured(client: Client, pair: Pair, pairs: int, same: Callable[[bytes, bytes], bool]) -> dict[str, Any]:
    """Times of both, in turn."""
    times: tuple[list[int], list[int]] = ([], [])
    client.timed(pair[0]), client.timed(pair[1])
    for _ in range(pairs):
        answers = [b"", b""]
        for which in random.sample((0, 1), 2):
            time_ns, answers[which] = client.timed(pair[which])
            times[which].append(time_ns)
        if not same(*answers):
            return {"answers differ": [one.decode()[:200] for one in answers]}
    medians = [round(statistics.median(one) / 1000) for one in times]
    return {"hidden_us": medians[0], "absent_us": medians[1], "right_percent": round(right_percent(*times), 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=10_000)
    parser.add_argument("--channels", default="")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=OUT / "summary.json")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.serve is not None:
        asyncio.run(serve(asked.serve))
        return
    random.seed(asked.seed)
    found: dict[str, Any] = {"pairs": asked.pairs}
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, __file__, "--serve", directory]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as node:
            assert node.stdin is not None and node.stdout is not None
            place = json.loads(node.stdout.readline())
            service = Path(directory) / "service.pem"
            channels = prepared(Client(place, service, "victim"))
            wanted = [name for name in asked.channels.split(",") if name] or list(channels)
            for actor, name in (("attacker", "participant"), (None, "stranger")):
                client = Client(place, service, actor)
                for channel in wanted:
                    pair = channels[channel]
                    if actor is None and channel in ("code", "estimate", "resubmission"):
                        continue  # not served to strangers at all
                    # A block's number, hash and time are everybody's, a hash that was handed in is answered back.
                    public = channel in ("block", "resubmission")
                    same = (lambda one, other: True) if public else lambda one, other: one == other
                    row = measured(client, pair, asked.pairs, same)
                    found[f"{channel} ({name})"] = row
                    print(f"{channel:14} {name:12} {json.dumps(row)}", flush=True)
            node.stdin.close()
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    summary = json.loads(asked.out.read_text()) if asked.out.exists() else {}
    asked.out.write_text(json.dumps({**summary, "timing": found}, indent=2) + "\n")
    rows = [row for row in found.values() if isinstance(row, dict)]
    sys.exit(any(row.get("right_percent", 100.0) >= RIGHT_PERCENT_MAX for row in rows))


if __name__ == "__main__":
    main()
