"""Composite transactions: over Ethereum and the example ledger, all or nothing, by real enclaves and through a failover."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from typing import Any

import pytest
from eth_account import Account

from coco.errors import CocoError, LedgerError
from coco.ledger import proofs, receipts
from conftest import verify_with_ccf
from network import ADAPTERS, ROOT, Several, TestNetwork, run, running

PAYER = Account.from_key("0xac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80")
SHOP = "0x" + "98" * 20
#: Reverts at once.
REVERTING = "0x" + "5f5ffd".zfill(6)


def payment(nonce: int, *, to: str = SHOP, value: int = 7, data: str = "0x", gas: int = 21_000) -> str:
    fields: dict[str, Any] = {"chainId": 2017, "gas": gas, "value": value, "nonce": nonce, "data": data}
    fields["to"] = bytes.fromhex(to.removeprefix("0x"))
    made = PAYER.sign_transaction({**fields, "maxFeePerGas": 0, "maxPriorityFeePerGas": 0})
    return "0x" + made.raw_transaction.hex()


def paid_and_recorded(raw: str, key: str, text: str = "paid") -> bytes:
    record = {"adapter": "kv", "route": "kv.put", "params": {"key": key}, "body": text}
    return json.dumps({"parts": [{"adapter": "ethereum", "raw": raw}, record]}).encode()


def code_of(response: Any) -> str:
    return str(json.loads(response.body)["error"]["code"])


async def balance(network: TestNetwork, client: Any, address: str = SHOP) -> int:
    return int((await network.rpc(client, "eth_getBalance", address, "latest"))["result"], 16)


async def nonce(network: TestNetwork, client: Any) -> int:
    return int((await network.rpc(client, "eth_getTransactionCount", PAYER.address, "latest"))["result"], 16)


@pytest.fixture
def network(tmp_path):
    made = TestNetwork(tmp_path / "network")
    made.genesis["adapters"] |= {"kv": {}, "sawtooth": {}}
    made.add_participant("other")
    yield made
    verify_with_ccf(made.files.ledger(0), tmp_path / "chunks")


def test_paid_and_recorded_in_one_entry_with_one_receipt(network):
    async def story() -> None:
        async with running(network):
            mine, other = network.client("dapp"), network.client("other")
            done = await mine.request("POST", "/coco/composite", paid_and_recorded(payment(0), "order"))
            assert done.status == 200, done.body
            identity, parts = done.json()["id"], done.json()["parts"]
            assert [part["adapter"] for part in parts] == ["ethereum", "kv"]
            assert await balance(network, mine) == 7
            assert bytes.fromhex((await mine.request("GET", "/kv/order")).json()["value"]) == b"paid"
            # Both are in one entry.
            where = [
                (await mine.request("GET", f"/coco/transaction?adapter={name}&hash={at}")).json()["transaction_id"]
                for name, at in [("composite", identity), *((part["adapter"], part["id"]) for part in parts)]
            ]
            assert len(set(where)) == 1
            whole = (await mine.request("GET", f"/coco/receipt?adapter=composite&hash={identity}")).json()
            claim = claimed(whole)
            found = proofs.verify(whole["transaction"], claim)
            paid, recorded = found["parts"]
            assert (paid["status"], paid["from"], paid["hash"]) == (
                "success",
                PAYER.address.lower(),
                "0x" + parts[0]["id"],
            )
            assert json.loads(recorded["item"] and bytes.fromhex(recorded["item"]))["key"] == "order"
            for number, part in enumerate(parts):
                # Each part by itself, too; its document says where in the entry it is.
                alone = await mine.request("GET", f"/coco/receipt?adapter={part['adapter']}&hash={part['id']}")
                assert claimed(alone.json()) == claim
                shown = proofs.verify(alone.json()["transaction"], claim)
                assert shown.items() <= found["parts"][number].items()
            # A stranger to them learns nothing, not even that it is there.
            for name, at in [("composite", identity), ("kv", parts[1]["id"])]:
                hidden = await other.request("GET", f"/coco/receipt?adapter={name}&hash={at}")
                absent = await other.request("GET", f"/coco/receipt?adapter={name}&hash={'77' * 32}")
                assert (hidden.status, hidden.body) == (404, absent.body)
                fate = await other.request("GET", f"/coco/transaction?adapter={name}&hash={at}")
                assert fate.json()["status"] == "Unknown"

    run(story())


def claimed(document: dict[str, Any]) -> bytes:
    return bytes.fromhex(document["receipt"]["claim"]["value"])


def test_a_proof_of_a_composite_transaction_can_be_bent_in_no_way(network):
    async def story() -> tuple[list[Any], list[bytes]]:
        async with running(network):
            mine = network.client("dapp")
            sent = [paid_and_recorded(payment(number), f"order{number}") for number in range(2)]
            ids = [(await mine.request("POST", "/coco/composite", body)).json()["id"] for body in sent]
            got = [(await mine.request("GET", f"/coco/receipt?adapter=composite&hash={at}")).json() for at in ids]
            return got, [claimed(one) for one in got]

    (one, other), (claim, other_claim) = run(story())
    document = one["transaction"]
    proofs.verify(document, claim)
    with pytest.raises(LedgerError):
        proofs.verify(document, other_claim)
    with pytest.raises(LedgerError):
        proofs.verify(other["transaction"] | {"id": document["id"]}, other_claim)
    swapped = {**document, "parts": other["transaction"]["parts"]}
    reordered = {**document, "parts": document["parts"][::-1]}
    shorter = {**document, "parts": document["parts"][:1]}
    inner = {**document["parts"][0]}
    inner.pop("within")
    for bent in (swapped, reordered, shorter, {**document, "parts": [inner, document["parts"][1]]}):
        with pytest.raises(LedgerError):
            proofs.verify(bent, claim)
    # A part whose proof is left out is shown as nothing but its name.
    silent = proofs.verify({**document, "parts": [None, document["parts"][1]]}, claim)["parts"][0]
    assert set(silent) == {"adapter", "id"}
    chosen, tried = random.Random(5), 0
    for _ in range(400):
        bent = json.loads(json.dumps(document))
        at: Any = bent
        while isinstance(at, dict | list):
            keys = list(at) if isinstance(at, dict) else list(range(len(at)))
            key, above = chosen.choice(keys), at
            at = at[key]
        above[key] = (
            at + 1 if isinstance(at, int) else chosen.choice(["", "00", at[:-1] + ("0" if at[-1] != "0" else "1")])
        )
        if bent == document:
            continue
        tried += 1
        with pytest.raises(LedgerError):
            proofs.verify(bent, claim)
    assert tried > 300


def test_neither_if_one_part_is_refused_or_fails(network):
    async def story() -> None:
        async with running(network):
            mine, other = network.client("dapp"), network.client("other")
            assert (await other.request("PUT", "/kv/theirs", b"mine")).status == 201
            before = await balance(network, mine)
            for number in range(3):
                refused = await mine.request("POST", "/coco/composite", paid_and_recorded(payment(0), "theirs"))
                assert (code_of(refused), b"another's" in refused.body) == ("node.dropped", True), number
            assert (await balance(network, mine), await nonce(network, mine)) == (before, 0)
            # The payment fails in its contract: alone it would be included, with the failure; here nothing is.
            create = payment(0, to="", value=0, data="0x62" + "5f5ffd" + "5f526003601df3", gas=100_000)
            made = await network.rpc(mine, "eth_sendRawTransactionSync", create)
            contract = made["result"]["contractAddress"]
            failing = payment(1, to=contract, value=0, gas=60_000)
            refused = await mine.request("POST", "/coco/composite", paid_and_recorded(failing, "failed"))
            assert (code_of(refused), b"the transaction failed" in refused.body) == ("node.dropped", True)
            assert (await mine.request("GET", "/kv/failed")).status == 404
            assert await nonce(network, mine) == 1
            # What was undone is no obstacle to what comes after it, in either ledger or in both.
            assert (await network.rpc(mine, "eth_sendRawTransactionSync", payment(1)))["result"]["status"] == "0x1"
            done = await mine.request("POST", "/coco/composite", paid_and_recorded(payment(2), "after"))
            assert done.status == 200, done.body
            # Two parts of one adapter run in their order.
            parts = [{"adapter": "ethereum", "raw": payment(number)} for number in (3, 4)]
            both = json.dumps({"parts": [*parts, *json.loads(paid_and_recorded(payment(5), "two"))["parts"][1:]]})
            assert (await mine.request("POST", "/coco/composite", both.encode())).status == 200
            assert (await balance(network, mine), await nonce(network, mine)) == (before + 4 * 7, 5)

    run(story())


def test_a_part_that_is_also_sent_alone_runs_once(network):
    async def story() -> None:
        async with running(network):
            mine = network.client("dapp")
            raw = payment(0)
            answers = await asyncio.gather(
                network.rpc(mine, "eth_sendRawTransaction", raw),
                network.client("dapp").request("POST", "/coco/composite", paid_and_recorded(raw, "once")),
            )
            assert answers[0]["result"]
            recorded = (await mine.request("GET", "/kv/once")).status == 200
            assert recorded == (answers[1].status == 200)
            async with asyncio.timeout(10):
                while await nonce(network, mine) == 0:
                    await asyncio.sleep(0.02)
            assert await balance(network, mine) == 7
            again = await mine.request("POST", "/coco/composite", paid_and_recorded(raw, "again"))
            assert again.status != 200 and (await mine.request("GET", "/kv/again")).status == 404
            # The account goes on where it is, in its own pool.
            assert (await network.rpc(mine, "eth_sendRawTransactionSync", payment(1)))["result"]["status"] == "0x1"

    run(story())


def test_what_is_no_composite_transaction_is_told_so(network):
    async def story() -> None:
        async with running(network):
            mine, nobody = network.client("dapp"), network.client(None)
            ethereum = {"adapter": "ethereum", "raw": payment(0)}
            record = {"adapter": "kv", "route": "kv.put", "params": {"key": "k"}, "body": "v"}
            bad = {
                "composite.malformed": [
                    b"",
                    b"[]",
                    b"\xff",
                    b'{"parts": 5}',
                    _parts({"adapter": "kv"}, ethereum),
                    _parts({**record, "raw": "00"}, ethereum),
                    _parts({"adapter": "ethereum", "raw": "0xzz"}, record),
                ],
                "request.no_parameter": [
                    _parts({**record, "params": {}}, ethereum),
                    _parts({**record, "params": []}, ethereum),
                ],
                "composite.parts": [_parts(), _parts(record), _parts(*[record] * 17), _parts(ethereum, ethereum)],
                "composite.unknown_adapter": [
                    _parts({**record, "adapter": "nobody"}, ethereum),
                    _parts({"adapter": "composite", "raw": "00"}, ethereum),
                ],
                "composite.unknown_route": [_parts({**record, "route": "kv.get"}, ethereum)],
                "composite.waits_outside": [_parts({"adapter": "sawtooth", "raw": "00"}, ethereum)],
                "kv.too_large": [_parts({**record, "params": {"key": "k" * 201}}, ethereum)],
            }
            for code, bodies in bad.items():
                for body in bodies:
                    assert code_of(await mine.request("POST", "/coco/composite", body)) == code, body
            refused = await mine.request(
                "POST", "/coco/composite", _parts({"adapter": "ethereum", "raw": "02"}, record)
            )
            assert refused.status == 400 and code_of(refused)
            anonymous = await nobody.request("POST", "/coco/composite", paid_and_recorded(payment(0), "k"))
            assert code_of(anonymous) == "access.not_a_participant"
            assert await nonce(network, mine) == 0

    run(story())


def _parts(*parts: dict[str, Any]) -> bytes:
    return json.dumps({"parts": parts}).encode()


def test_through_a_failover_each_is_there_as_a_whole_or_not_at_all(tmp_path):
    async def story() -> None:
        several = Several(tmp_path / "network")
        several.genesis["adapters"] |= {"kv": {}}
        options = {"adapters": ADAPTERS, "extra_path": [str(ROOT / "examples"), str(ROOT / "tests/adapters")]}
        try:
            first = await several.start(**options)
            backups = [await several.start(**options) for _ in range(2)]
            await several.voters(first, 3)
            client = several.client(backups[0], "application")
            acknowledged: list[int] = []
            ids: list[str] = []

            async def next_nonce() -> int:
                rpc = {
                    "jsonrpc": "2.0",
                    "id": 1,
                    "method": "eth_getTransactionCount",
                    "params": [PAYER.address, "latest"],
                }
                async with asyncio.timeout(60):
                    while True:
                        with contextlib.suppress(CocoError, OSError, KeyError):
                            answer = await client.request("POST", "/", json.dumps(rpc).encode())
                            return int(answer.json()["result"], 16)
                        await asyncio.sleep(0.1)

            following = 0
            for number in range(30):
                if number == 12:
                    victim = asyncio.get_running_loop().create_task(first.stop())
                body = paid_and_recorded(payment(following), f"order{number}")
                with contextlib.suppress(CocoError, OSError):
                    done = await client.request("POST", "/coco/composite", body)
                    if done.status == 200:
                        acknowledged.append(number)
                        ids.append(done.json()["id"])
                        following += 1
                        continue
                # Nobody knows what became of it; there or not, it is that as a whole.
                await asyncio.sleep(0.3)
                following = await next_nonce()
            await victim
            assert len(acknowledged) > 15 and acknowledged[-1] > 12, acknowledged
            fate = await client.request("GET", f"/coco/transaction?adapter=composite&hash={ids[-1]}")
            floor = fate.json()["transaction_id"]
            for node in backups:
                reader = several.client(node, "application")
                rpc = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "eth_getBalance", "params": [SHOP, "latest"]})
                answer = await reader.request("POST", "/", rpc.encode(), floor=floor)
                recorded = [n for n in range(30) if (await reader.request("GET", f"/kv/order{n}")).status == 200]
                assert set(acknowledged) <= set(recorded)
                assert int(answer.json()["result"], 16) == 7 * len(recorded), "each payment has its record"
        finally:
            await several.stop()

    run(story())


def test_a_receipt_of_a_former_life_proves_it_still(network):
    async def story() -> None:
        async with running(network):
            mine = network.client("dapp")
            done = await mine.request("POST", "/coco/composite", paid_and_recorded(payment(0), "order"))
            identity = done.json()["id"]
        async with running(network):
            await network.recover()
            mine = network.client("dapp")
            whole = (await mine.request("GET", f"/coco/receipt?adapter=composite&hash={identity}")).json()
            receipts.verify(whole["receipt"], _certificate(whole["service_certificate"]))
            found = proofs.verify(whole["transaction"], claimed(whole))
            assert [part["adapter"] for part in found["parts"]] == ["ethereum", "kv"]
            done = await mine.request("POST", "/coco/composite", paid_and_recorded(payment(1), "second"))
            assert done.status == 200

    run(story())


def _certificate(pem: str) -> Any:
    from cryptography import x509

    return x509.load_pem_x509_certificate(pem.encode())
