"""An adapter in a real enclave converses with a processor behind its host, which asks back, dies, floods and is not there."""

from __future__ import annotations

import asyncio
import contextlib
import json
import struct

from conftest import verify_with_ccf
from network import ADAPTERS, TestNetwork, run, running

TALKER = {**ADAPTERS, "talker": "talker:adapter"}


async def read(reader):
    return await reader.readexactly(struct.unpack("!I", await reader.readexactly(4))[0])


def put(writer, body):
    writer.write(struct.pack("!I", len(body)) + body)


async def processor(reader, writer):
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
        word, _, rest = (await read(reader)).partition(b"-")
        if word == b"add":
            put(writer, b"get counter")
            found = int(await read(reader))
            put(writer, b"set counter %d" % (found + int(rest)))
            assert await read(reader) == b"ok"
            put(writer, b"done")
        elif word == b"die":
            put(writer, b"get counter")
            await read(reader)
            writer.transport.abort()
        elif word == b"flood":
            while True:
                put(writer, bytes(100_000))
                await writer.drain()
        elif word == b"garbage":
            writer.write(b"\xff" * 1000)
            await reader.read()
        await writer.drain()
    writer.close()


async def talk(client, processor, payload):
    reply = await client.request("GET", f"/talked/{processor}/{payload}")
    answer = json.loads(reply.body)
    return answer["error"]["code"] if "error" in answer else answer


def test_a_processor_asks_back_and_whatever_it_does_the_node_goes_on(tmp_path):
    network = TestNetwork(tmp_path / "network")
    network.genesis["adapters"] |= {"talker": {}, "kv": {}}

    async def story():
        server = await asyncio.start_unix_server(processor, tmp_path / "xo")
        async with server, running(network, adapters=TALKER, externals={"xo": f"unix:{tmp_path}/xo"}):
            clients = [network.client() for _ in range(8)]
            client = clients[0]
            whole = {"said": ["get counter", "set counter 7", "done"], "counter": "7"}
            assert await talk(client, "xo", "add-2") == whole
            found = await asyncio.gather(*(talk(one, "xo", f"add-{n}") for n, one in enumerate(clients)))
            assert [answer["counter"] for answer in found] == [str(5 + n) for n in range(len(clients))]
            # What ends in the middle ends; it is the adapter that knows whether it heard the last word.
            assert await talk(client, "xo", "die") == {"said": ["get counter"], "counter": "5"}
            # Whichever bound is met first: of what waits to be read, or of the whole session.
            assert await talk(client, "xo", "flood") in ("external.flooded", "external.too_long")
            assert await talk(client, "xo", "garbage") == "external.broken"
            assert await talk(client, "nobody", "add-1") == "external.unreachable"
            assert await talk(client, "stranger", "add-1") == "external.not_declared"
            assert await talk(client, "xo", "add-2") == whole
            assert (await client.request("PUT", "/kv/colour", b"blue")).status == 201

    run(story())
    assert not [line for line in network.log if line["event"] in ("enclave.unexpected", "enclave.exit")]
    verify_with_ccf(network.files.ledger(0), tmp_path / "chunks")
