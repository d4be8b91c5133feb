"""Adapters with the same JSON-RPC methods, side by side at different paths."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from eth_account import Account
from websockets.asyncio.client import connect

from conftest import verify_with_ccf
from network import TestNetwork, run, running

KEY = "0xac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80"


@pytest.fixture
def network(tmp_path):
    made = TestNetwork(tmp_path / "network")
    made.genesis["adapters"] |= {"kv": {"mount": "/books/"}, "twin": {"colour": "blue"}}
    yield made
    verify_with_ccf(made.files.ledger(0), tmp_path / "chunks")


def call(method: str, *params: Any) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode()


async def post(network: Any, path: str, body: bytes, headers: dict[str, str]) -> Any:
    """The result of JSON-RPC in an answer to a request with these headers."""
    port = network.node.relays["application"].port
    reader, writer = await asyncio.open_connection("localhost", port, ssl=network.tls("dapp"))
    given = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {len(body)}\r\n{given}\r\n"
    writer.write(head.encode() + body)
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    said, _, result = answer.partition(b"\r\n\r\n")
    assert b" 200 " in said and b"x-ms-ccf-transaction-id: " in said
    return json.loads(result).get("result")


def test_the_same_methods_are_served_by_two_adapters_at_two_paths(network):
    async def story() -> None:
        async with running(network):
            client = network.client()

            async def ask(path: str, method: str, *params: Any, **headers: str) -> Any:
                return await post(network, path, call(method, *params), headers)

            assert await ask("/", "eth_chainId") == hex(2017)
            alone = {"twin": {"rest": "", "query": {}, "headers": {}}, "settings": {"colour": "blue"}}
            assert await ask("/twin", "eth_chainId") == alone
            deeper = await ask("/twin/one%20two/three?PSI=a%26b", "eth_chainId", PSI="private", cookie="x")
            assert deeper["twin"] == {
                "rest": "/one two/three",
                "query": {"PSI": "a&b"},
                "headers": {"psi": "private"},
            }
            # A transaction goes to whoever it was handed to, however it looks: the door looks into those at / alone.
            fields = {"to": "0x" + "22" * 20, "value": 1, "gas": 21000, "nonce": 0, "chainId": 2017}
            signed = Account.from_key(KEY).sign_transaction({**fields, "maxFeePerGas": 0, "maxPriorityFeePerGas": 0})
            raw = signed.raw_transaction
            (identity,) = await ask("/twin", "eth_sendRawTransaction", "0x" + raw.hex())
            async with asyncio.timeout(10):
                while json.loads((await client.request("GET", f"/twin/rows/{identity}")).body) != raw.hex():
                    await asyncio.sleep(0.05)
            assert await ask("/", "eth_getTransactionByHash", "0x" + identity) is None
            assert await ask("/", "eth_sendRawTransaction", "0x" + raw.hex()) == "0x" + identity
            batch = b"[" + call("eth_chainId") + b"," + call("eth_blockNumber") + b"]"
            first, second = json.loads((await client.request("POST", "/twin/", batch)).body)
            assert "twin" in first["result"] and second["error"]["code"] == -32601, "no other mount's method"

            assert (await client.request("PUT", "/books/kv/colour", b"blue")).status == 201
            assert (await client.request("PUT", "/kv/colour", b"blue")).status == 404
            assert (await client.request("POST", "/twins", call("eth_chainId"))).status == 404

            port = network.node.relays["application"].port
            async with connect(f"wss://localhost:{port}/twin/x?y=1", ssl=network.tls("dapp")) as stream:
                await stream.send(call("eth_chainId").decode())
                told = json.loads(await asyncio.wait_for(stream.recv(), 5))["result"]["twin"]
                assert (told["rest"], told["query"]) == ("/x", {"y": "1"})
                await stream.send(call("eth_subscribe", 7).decode())
                identity = json.loads(await asyncio.wait_for(stream.recv(), 5))["result"]
                told = json.loads(await asyncio.wait_for(stream.recv(), 5))
                assert told["method"] == "twin_told", "as this adapter names it"
                assert told["params"] == {"subscription": identity, "result": {"params": [7]}}
            async with connect(f"wss://localhost:{port}/twin/echo/a%20b?x=1", ssl=network.tls("dapp")) as stream:
                begun = json.loads(await asyncio.wait_for(stream.recv(), 5))
                assert begun == {"room": {"room": "a b"}, "query": {"x": "1"}}
                for message in ("text", b"\x00bytes"):
                    await stream.send(message)
                    answer = await asyncio.wait_for(stream.recv(), 5)
                    assert answer == (json.dumps(message) if isinstance(message, str) else message)
                await stream.send("enough")
                await asyncio.wait_for(stream.wait_closed(), 5)
                assert stream.close_code == 1000
            async with connect(f"wss://localhost:{port}/", ssl=network.tls("dapp")) as stream:
                await stream.send(call("eth_chainId").decode())
                assert json.loads(await asyncio.wait_for(stream.recv(), 5))["result"] == hex(2017)

    run(story())
