"""`coco receipt` and `coco ledger audit --receipt` with real nodes: over another version, another key and a recovery."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from eth_account import Account
from test_consortium import action
from test_epochs import until

from coco.cli.main import main
from coco.client import proofs
from coco.client.files import write_whole
from coco.client.governance import Governance
from coco.client.signer import Signer
from network import ADAPTERS, TestNetwork, running

pytestmark = pytest.mark.usefixtures("verified")

PAYER, OTHER = Account.from_key("0xac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80"), Account.create()
FORMER = {**ADAPTERS, "ethereum": "former_ethereum:adapter"}


def payment(account: Any, nonce: int) -> str:
    fields = {"chainId": 2017, "gas": 21_000, "to": "0x" + "98" * 20, "value": 0, "nonce": nonce}
    made = account.sign_transaction({**fields, "maxFeePerGas": 0, "maxPriorityFeePerGas": 0})
    return "0x" + made.raw_transaction.hex()


async def coco(*arguments: str | Path, code: int = 0) -> Any:
    """A command as a user runs it, while the network's host goes on in this process."""
    command = [sys.executable, "-m", "coco.cli.main", *map(str, arguments), "--json"]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=60)
    assert done.returncode == code, done.stdout + done.stderr
    return json.loads(done.stdout)


async def offline(*arguments: str | Path, code: int = 0) -> Any:
    """A command that needs no node, without a process of its own: there are many of them."""

    def command() -> int:
        with contextlib.redirect_stdout(said):
            return main([*map(str, arguments), "--json"])

    said = io.StringIO()
    assert await asyncio.to_thread(command) == code, said.getvalue()
    return json.loads(said.getvalue())


class Story:
    """One node, of which the service comes to have three identities, and what a participant keeps of it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.network = TestNetwork(directory / "network")
        for name, account in (("payer", PAYER), ("other", OTHER)):
            self.network.add_participant(name, accounts=[account.address])
        self.member = self.network.files.actor("members", "alice", ".pem")
        self.nonces = {PAYER.address: 0, OTHER.address: 0}

    def keep(self, name: str) -> Path:
        """The service of now, as somebody keeps it."""
        path = self.directory / f"{name}.pem"
        path.write_text(self.network.service)
        return path

    async def pay(self, name: str, account: Any) -> dict[str, Any]:
        raw = payment(account, self.nonces[account.address])
        self.nonces[account.address] += 1
        done = await self.network.rpc(self.network.client(name), "eth_sendRawTransactionSync", raw)
        receipt: dict[str, Any] = done["result"]
        return receipt

    async def shared(self) -> str:
        """A transaction that shares its block with one of somebody else; its hash."""
        while True:
            mine, other = await asyncio.gather(self.pay("payer", PAYER), self.pay("other", OTHER))
            if mine["blockNumber"] == other["blockNumber"]:
                return str(mine["transactionHash"])

    async def get(self, what: str, name: str, code: int = 0) -> Any:
        """``coco receipt get`` into a file; the file, or what was said."""
        out = self.directory / f"{name}.json"
        cert, key = (self.network.files.actor("participants", "payer", end) for end in (".pem", ".key.pem"))
        assert self.network.node is not None
        url = f"https://localhost:{self.network.node.relays['application'].port}"
        who = ("--service", self.keep("today"), "--cert", cert, "--key", key)
        said = await coco("receipt", "get", what, "--url", url, *who, "--out", out, code=code)
        return out if code == 0 else said["error"]["code"]

    async def get_quickly(self, what: str, name: str) -> Path:
        """The same, without a process of its own."""
        out = self.directory / f"{name}.json"
        write_whole(out, await proofs.get(self.network.client("payer"), what))
        return out

    async def verify(self, receipt: Path, service: Path, *more: str | Path, code: int = 0) -> Any:
        said = await offline("receipt", "verify", receipt, "--service", service, *more, code=code)
        return said if code == 0 else said["error"]["code"]

    async def rotate(self) -> None:
        """The service gets another key by vote."""
        folder = self.network.files.directory / "members"
        alice = Signer.load(folder / "alice.pem", folder / "alice.key.pem")
        governance = Governance(self.network.client(listener="administration"))
        await governance.propose(alice, {"actions": [action("rotate_service_identity")]})

        async def announced() -> Any:
            said = await governance.get("/service/succession")
            return said if said["status"] == "Announced" else None

        following = (await until(announced))["next"]
        await governance.state(alice, self.network.service)

        async def rotated() -> bool:
            return bool((await governance.get("/service/info"))["certificate"] == following)

        await until(rotated)
        self.network.service = following


def test_receipts_hold_for_whoever_knows_the_first_service_and_for_an_auditor(tmp_path):
    async def story() -> None:
        at = Story(tmp_path)
        # A former version, whose entries claim the hash of a block and nothing else.
        async with running(at.network, adapters=FORMER):
            first = at.keep("first")
            former = await at.shared()
            assert await at.get(former, "former", code=1) == "ethereum.proof_tells_of_others"
            alone = (await at.pay("payer", PAYER))["transactionHash"]
            old = await at.get_quickly(alone, "old")
            outcome = (await at.verify(old, first))["transaction"]
            assert outcome["hash"] == alone and "gas_used" not in outcome
            # As the former version's own client would have written it.
            (tmp_path / "v1.json").write_text(json.dumps({**json.loads(old.read_text()), "format": "coco receipt v1"}))
            assert (await at.verify(tmp_path / "v1.json", first))["transaction"] == outcome

        # This version recovers that ledger.
        async with running(at.network):
            await at.network.recover()
            second = at.keep("second")
            again = await at.get_quickly(alone, "again")
            assert (await at.verify(again, first, "--member", at.member))["transaction"] == outcome
            shared = await at.shared()
            mine = await at.get(shared, "mine")
            proven = await at.verify(mine, second)
            assert proven["service"] == "as known" and proven["transaction"]["gas_used"] == 21_000

            await at.rotate()
            third = at.keep("third")
            # What was kept still proves the same to who knows the service that signed it, and to nobody else.
            assert await at.verify(mine, second) == proven
            assert await at.verify(mine, third, code=4) == "receipt.other_service"
            rotated = await at.get_quickly(shared, "rotated")
            assert (await at.verify(rotated, third))["transaction"] == proven["transaction"]
            # From the first service over a recovery and a rotation, and from the second over the rotation.
            for known in (first, second):
                assert await at.verify(rotated, known, code=4) == "receipt.other_service"
                followed = await at.verify(rotated, known, "--member", at.member)
                assert followed["transaction"] == proven["transaction"] and "followed" in followed["service"]
            parts = [json.loads(path.read_text())["transaction"] for path in (mine, rotated)]
            assert parts[0] == parts[1], "another key is no other proof"

        # An auditor holds the files as they were written, against the ledger as it lies there.
        ledger = at.network.files.ledger(0)
        held = [part for path in (old, again, mine, rotated) for part in ("--receipt", path)]
        found = await coco("ledger", "audit", "--ledger", ledger, "--service", third, *held)
        place = (await at.verify(rotated, third))["transaction_id"]
        assert found["violations"] == [] and found["cut_excluded_up_to"] == place
        document = json.loads(mine.read_text())
        body = document["receipt"]
        digest = body["leaf_components"]["write_set_digest"]
        changed = "00" + digest[2:] if digest[:2] != "00" else "11" + digest[2:]
        body["leaf_components"]["write_set_digest"] = changed
        (tmp_path / "changed.json").write_text(json.dumps(document))
        for path in (tmp_path / "changed.json", first):
            said = await coco("ledger", "audit", "--ledger", ledger, "--receipt", path, code=2 if path == first else 4)
            assert said["error"]["code"] in ("receipt.malformed", "receipt.invalid"), said

    asyncio.run(asyncio.wait_for(story(), 240))
