"""Commands and folders of an operator in a hurry, for tests/adversary/test_operator.py."""

from __future__ import annotations

import json
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import requests
from eth_account import Account

from coco._native import Entry
from coco.cli.sandbox import WELL_KNOWN_ACCOUNTS
from coco.ledger import tables
from operators import Operator

COCO = [sys.executable, "-m", "coco.cli.main"]
PATIENCE_S = 40


def coco(*arguments: str | Path, timeout_s: float = PATIENCE_S) -> dict[str, Any]:
    """What a command that ends says, as a program reads it."""
    done = subprocess.run([*COCO, *map(str, arguments), "--json"], capture_output=True, text=True, timeout=timeout_s)
    said: dict[str, Any] = json.loads(done.stdout.splitlines()[0])
    return said


def rpc(url: str, method: str, *params: Any, **tls: Any) -> Any:
    body: dict[str, Any] = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
    answer = requests.post(url, json=body, timeout=40, **tls).json()
    assert "result" in answer, answer
    return answer["result"]


def pay(url: str, nonce: int, *, chain_id: int = 2017, **tls: Any) -> str:
    """Have a payment of a well-known account acknowledged; its hash."""
    fields = {"to": WELL_KNOWN_ACCOUNTS[1][0], "value": 1, "gas": 21_000, "nonce": nonce, "chainId": chain_id}
    fees = {"maxFeePerGas": 0, "maxPriorityFeePerGas": 0}
    signed = Account.from_key(WELL_KNOWN_ACCOUNTS[0][1]).sign_transaction({**fields, **fees})
    receipt = rpc(url, "eth_sendRawTransactionSync", "0x" + signed.raw_transaction.hex(), **tls)
    assert receipt["status"] == "0x1"
    return str(receipt["transactionHash"])


def rows(ledger: Path) -> list[tuple[int, bytes]]:
    connection = sqlite3.connect(ledger)
    try:
        return connection.execute("SELECT seqno, entry FROM entries ORDER BY seqno").fetchall()
    finally:
        connection.close()


def change(ledger: Path, statement: str, *values: Any) -> None:
    connection = sqlite3.connect(ledger)
    connection.execute(statement, values)
    connection.commit()
    connection.close()


def flipped(entry: bytes, at: int) -> bytes:
    return entry[:at] + bytes([entry[at] ^ 1]) + entry[at + 1 :]


def writes(entry: bytes) -> Any:
    return Entry.parse(entry).public_writes()


def status_in(entry: bytes) -> str:
    """What an entry says of the service; nothing if it says nothing."""
    info = dict(writes(entry).rows(tables.SERVICE_INFO)).get(tables.SINGLETON)
    return str(json.loads(info)["status"]) if info else ""


class Lives:
    """A node's folder whose ledger holds three lives: two that opened, and one whose recovery nobody finished."""

    def __init__(self, directory: Path) -> None:
        self.operator = Operator(directory)
        self.folder = directory / "n0"
        self.ledger = self.folder / "ledger.db"
        self.services: list[Path] = []
        self.said = [self._life("start"), self._life("start", *self._known()), self._life("start", *self._known())]
        self.begins = [seqno for seqno, entry in rows(self.ledger) if status_in(entry) == "Recovering"]

    def _known(self) -> tuple[str, ...]:
        return "--service", str(self.services[-1])

    def _life(self, *arguments: str) -> dict[str, Any]:
        said = self.operator.run("n0", *arguments)
        assert "error" not in said, said
        finish = len(self.services) < 2
        if said["status"] != "Open" and finish:
            keys = self.operator.directory / "members"
            known = ("--service", self.services[-1], "--cert", keys / "alice.pem", "--insecure-virtual")
            done = coco("member", "share", "--admin", said["administration_url"], *known)
            assert done["status"] == "Open", done
        if finish:
            kept = self.operator.directory / f"service-{len(self.services)}.pem"
            shutil.copy(self.folder / "service.pem", kept)
            self.services.append(kept)
        self.operator.kill("n0")
        return said

    def copy(self, to: Path) -> Path:
        """The folder, for a test of its own."""
        shutil.copytree(self.folder, to / "n0")
        return to / "n0"

    def start(self, folder: Path, *arguments: str | Path) -> dict[str, Any]:
        """A start of the copy; it ends again at once."""
        process = subprocess.Popen(
            [*COCO, "node", "start", "--dir", folder, "--genesis", self.operator.genesis, *arguments, "--json"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        said: dict[str, Any] = json.loads(process.stdout.readline())
        process.send_signal(signal.SIGTERM)
        _, told = process.communicate(timeout=PATIENCE_S)
        lines = [json.loads(line) for line in told.splitlines() if line.startswith("{")]
        return {**said, "told": {line["event"]: line for line in lines}}
