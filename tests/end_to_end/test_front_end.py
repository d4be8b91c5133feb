"""The front end under bad input: limits, codes, bounded memory; JSON-RPC's wire details; the local connector (G6)."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import time
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coco import limits


def tls_context(sandbox):
    context = ssl.create_default_context(cafile=sandbox.summary["service_certificate"])
    context.load_cert_chain(sandbox.summary["participant_certificate"], sandbox.summary["participant_key"])
    return context


def port(sandbox, listener="application"):
    return int(sandbox.summary[f"{listener}_url"].rpartition(":")[2])


@pytest.fixture(scope="module")
def node(sandbox):
    with httpx.Client(verify=tls_context(sandbox), base_url=f"https://localhost:{port(sandbox)}", timeout=30) as client:
        yield client


def raw(sandbox, data, *, wait_s=5.0, half_close=False):
    with (
        socket.create_connection(("127.0.0.1", port(sandbox)), timeout=wait_s) as plain,
        tls_context(sandbox).wrap_socket(plain, server_hostname="localhost") as tls,
    ):
        answer = b""
        try:
            tls.sendall(data)
            while chunk := tls.recv(65536):
                answer += chunk
                if not half_close and b"\r\n\r\n" in answer:
                    break
        except (ssl.SSLError, TimeoutError, ConnectionError):
            pass  # the node may cut the connection at any point
        return answer


def rpc(node, document):
    return node.post("/", json=document).json()


def enclave_rss_mb(sandbox):
    with open(f"/proc/{sandbox.summary['enclave_pid']}/statm") as statm:
        return int(statm.read().split()[1]) * 4096 / 1e6


def test_wire_details_of_json_rpc(node):
    extras: list[dict[str, Any]] = [{}, {"params": None}, {"params": []}]
    for extra in extras:
        assert rpc(node, {"jsonrpc": "2.0", "id": 1, "method": "eth_chainId", **extra})["result"] == "0x7e1"
    for identity in (7, "seven", None, 1.5):
        assert rpc(node, {"jsonrpc": "2.0", "id": identity, "method": "eth_chainId"})["id"] == identity
    unknown = node.post("/", json={"jsonrpc": "2.0", "id": 1, "method": "anvil_nodeInfo"})
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (200, -32601)
    batch = rpc(node, [{"jsonrpc": "2.0", "id": n, "method": "eth_blockNumber"} for n in (3, 1, 2)])
    assert [one["id"] for one in batch] == [3, 1, 2]
    assert rpc(node, [])["error"]["code"] == -32600
    assert rpc(node, [1, {"id": 1, "method": "eth_chainId"}])[0]["error"]["code"] == -32600
    assert node.post("/", content=b"{").json()["error"]["code"] == -32700
    assert rpc(node, {"id": 1, "method": 5})["error"]["code"] == -32600
    assert rpc(node, {"id": 1, "method": "eth_chainId", "params": "x"})["error"]["code"] == -32600
    assert rpc(node, {"id": 1, "method": "eth_getBalance", "params": ["0x12"]})["error"]["code"] == -32602
    assert rpc(node, {"id": 1, "method": "eth_getBalance", "params": []})["error"]["code"] == -32602
    too_many = [{"id": n, "method": "eth_chainId"} for n in range(limits.RPC_BATCH_MAX + 1)]
    assert rpc(node, too_many)["error"]["data"]["code"] == "rpc.batch_too_large"
    history = rpc(node, {"id": 1, "method": "eth_feeHistory", "params": ["0xa", "latest", [20.0]]})["result"]
    assert history["baseFeePerGas"][-1] == "0x0"
    mixed = rpc(
        node,
        {"id": 1, "method": "eth_call", "params": [{"to": None, "input": "0x5f5ff3", "data": "0x5f5ff3"}]},
    )
    assert mixed["result"] == "0x"
    differ = rpc(node, {"id": 1, "method": "eth_call", "params": [{"input": "0x", "data": "0x00"}]})
    assert differ["error"]["code"] == -32602
    upper = "0x" + "AB" * 20
    assert rpc(node, {"id": 1, "method": "eth_getBalance", "params": [upper, "pending"]})["result"] == "0x0"


def test_bodies_heads_and_methods_have_limits_with_codes(node, sandbox):
    large = node.post("/", content=b"x" * (limits.BODY_BYTES_MAX + 1))
    assert (large.status_code, large.json()["error"]["code"]) == (413, "http.body_too_large")
    announced = raw(sandbox, b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 104857600\r\n\r\n")
    assert b"413" in announced.split(b"\r\n")[0], "refused before a byte of it comes"
    head = raw(sandbox, b"GET /node HTTP/1.1\r\nhost: x\r\nx-large: " + b"a" * 40_000 + b"\r\n\r\n")
    assert b"431" in head.split(b"\r\n")[0]
    chunked = (
        b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n" + b"100000\r\n" + b"y" * 0x100000 + b"\r\n"
    )
    assert b"413" in raw(sandbox, chunked[:80] + chunked[80:] * 1 + (b"100000\r\n" + b"y" * 0x100000 + b"\r\n") * 5)
    for garbage in (
        b"\x00" * 100,
        b"GET\r\n\r\n",
        b"POST / HTTP/9.9\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ):
        answer = raw(sandbox, garbage)
        assert answer == b"" or answer.startswith((b"HTTP/1.1 400", b"HTTP/1.1 404")), answer[:80]
    assert node.get("/nowhere").json()["error"]["code"] == "http.not_found"
    assert node.put("/coco/caller").json()["error"]["code"] == "http.method_not_allowed"
    assert node.get("/", headers={"upgrade": "h2c", "connection": "upgrade"}).status_code == 400


def test_pipelined_requests_are_answered_in_order(sandbox):
    one = b'{"id":%d,"method":"eth_chainId"}'
    bodies = [one % n for n in range(40)]
    wire = b"".join(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (len(b), b) for b in bodies)
    wire += b"GET /coco/caller HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    answer = raw(sandbox, wire, half_close=True)
    positions = [answer.find(b'"id":%d,' % n) for n in range(40)]
    assert positions == sorted(positions) and -1 not in positions
    assert answer.rstrip().endswith(b"}") and b"insecure_any_account" in answer


def test_idle_half_open_and_slow_connections_cost_bounded_memory(sandbox, node):
    before = enclave_rss_mb(sandbox)
    opened = []
    try:
        for _ in range(400):
            opened.append(socket.create_connection(("127.0.0.1", port(sandbox))))
        for one in opened[:200]:
            one.sendall(b"\x16\x03\x01")  # a handshake that never goes on
        slow = socket.create_connection(("127.0.0.1", port(sandbox)))
        opened.append(slow)
        tls = tls_context(sandbox).wrap_socket(slow, server_hostname="localhost")
        opened.append(tls)
        ask = json.dumps(
            [{"id": n, "method": "eth_getBlockByNumber", "params": ["latest", False]} for n in range(900)]
        ).encode()
        tls.setblocking(False)
        for _ in range(60):  # asks for 100 MB of answers and reads none
            try:
                tls.send(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (len(ask), ask))
            except (ssl.SSLWantWriteError, BlockingIOError):
                time.sleep(0.02)
        assert rpc(node, {"id": 1, "method": "eth_chainId"})["result"] == "0x7e1", "others are served"
        assert enclave_rss_mb(sandbox) - before < 200
    finally:
        for one in opened:
            one.close()


def test_unfinished_handshakes_are_dropped(sandbox):
    half = socket.create_connection(("127.0.0.1", port(sandbox)))
    half.sendall(b"\x16\x03\x01\x02\x00")
    half.settimeout(15)
    assert half.recv(100) == b"", "the handshake ran into its limit"
    half.close()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(max_size=20),
        lambda c: st.lists(c, max_size=4) | st.dictionaries(st.text(max_size=8), c, max_size=4),
        max_leaves=12,
    )
)
def test_any_json_gets_an_answer_with_a_code(node, document):
    answer = node.post("/", json=document)
    assert answer.status_code == 200
    for one in answer.json() if isinstance(answer.json(), list) else [answer.json()]:
        assert "result" in one or one["error"]["data"]["code"] not in ("node.internal", "native.panic")


METHODS = ["eth_call", "eth_estimateGas", "eth_getBalance", "eth_getBlockByNumber", "eth_getBlockByHash", "eth_getLogs", "eth_newFilter", "eth_feeHistory", "eth_getFilterChanges", "eth_getStorageAt", "eth_getProof", "eth_sendRawTransaction", "eth_getTransactionByHash", "eth_createAccessList", "eth_getTransactionCount", "eth_getCode", "eth_getTransactionReceipt", "eth_getBlockReceipts", "eth_uninstallFilter", "web3_sha3"]  # fmt: skip
hexes = st.sampled_from(
    [
        "0x",
        "0x0",
        "0x1",
        "latest",
        "pending",
        "0xzz",
        "0x" + "ff" * 20,
        "0x" + "00" * 32,
        "0x" + "f" * 70,
        "earliest",
        "0x١",
    ]
)
values = st.recursive(
    hexes | st.none() | st.integers(-1, 5) | st.booleans(),
    lambda c: (
        st.lists(c, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "to",
                    "from",
                    "data",
                    "gas",
                    "value",
                    "address",
                    "topics",
                    "fromBlock",
                    "toBlock",
                    "blockHash",
                    "blockNumber",
                    "accessList",
                    "authorizationList",
                ]
            ),
            c,
            max_size=5,
        )
    ),
    max_leaves=8,
)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(METHODS), st.lists(values, max_size=4))
def test_any_parameters_get_an_answer_with_a_code(node, method, params):
    answer = rpc(node, {"id": 1, "method": method, "params": params})
    assert "result" in answer or answer["error"].get("data", {}).get("code") not in (
        "node.internal",
        "native.panic",
    ), answer


def test_what_the_door_reads_and_checks_is_answered_as_anything_else(sandbox, node):
    from eth_account import Account

    account = Account.from_key("0x92db14e403b83dfe3df233f83dfa3a0d7096f21ca9b0d6d6b8d88b2b4ec1564e")

    def signed(**changes):
        fields = {"to": "0x" + "45" * 20, "value": 0, "gas": 21000, "chainId": 2017, "nonce": 0}
        fees = {"maxFeePerGas": 0, "maxPriorityFeePerGas": 0}
        return "0x" + account.sign_transaction({**fields, **fees, **changes}).raw_transaction.hex()

    def answer(raw, method, more, identity):
        call = {"jsonrpc": "2.0", "id": identity, "method": method, "params": [raw], **more}
        reply = node.post("/", json=call)
        assert reply.status_code == 200 and "x-ms-ccf-transaction-id" in reply.headers
        return reply.json()

    def counter():
        with httpx.Client(
            verify=tls_context(sandbox), base_url=f"https://localhost:{port(sandbox, 'administration')}"
        ) as client:
            return client.get("/node/info").json()["stages"]["checked_early"]

    valid = signed()
    assert answer(valid, "eth_sendRawTransactionSync", {}, 1)["result"]["status"] == "0x1"
    wrong = [
        valid,  # executed already
        signed(chainId=1, nonce=1),
        signed(gas=20_000, nonce=1),
        signed(value=2**200, nonce=1),
        signed(nonce=2**64 - 1),
        valid[:-2],
        valid[:-1],
        valid[2:],
        valid + "00",
        "0x",
        "0xzz",
        "",
        "0x02" + "c0",
        "0x05c0",
    ]
    early = counter()
    for raw in wrong:
        for identity in (0, 7, 2**40, "a b", "\n", "\u00e9", None, -1, 1.5):
            plain = answer(raw, "eth_sendRawTransaction", {}, identity)
            assert plain == answer(raw, "eth_sendRawTransaction", {"more": [1]}, identity), raw
            assert plain["id"] == identity and plain["error"]["data"]["code"], plain
    # 10 of the transactions are plain hexadecimal bytes, and 5 of the ids are plain.
    assert counter() - early == 10 * 5
    waiting = signed(nonce=3)
    accepted = answer(waiting, "eth_sendRawTransaction", {}, 5)
    assert accepted["id"] == 5 and len(accepted["result"]) == 66
    known = answer(waiting, "eth_sendRawTransaction", {}, 5)
    assert known == answer(waiting, "eth_sendRawTransaction", {"more": 1}, 5) and "known" in known["error"]["message"]
    # A stranger's signatures are not looked at.
    early = counter()
    context = ssl.create_default_context(cafile=sandbox.summary["service_certificate"])
    with httpx.Client(verify=context, base_url=f"https://localhost:{port(sandbox)}") as stranger:
        call = {"id": 1, "method": "eth_sendRawTransaction", "params": [signed(nonce=4)]}
        assert stranger.post("/", json=call).json()["error"]["data"]["code"] == "access.not_a_participant"
    assert counter() == early


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=300))
def test_garbage_bytes_behind_tls_end_only_their_connection(sandbox, node, data):
    raw(sandbox, data, wait_s=0.2)
    assert rpc(node, {"id": 1, "method": "eth_chainId"})["result"] == "0x7e1"


def test_receipts_of_the_ledger_are_verified_by_others(sandbox, node, tmp_path):
    import subprocess
    from pathlib import Path

    from cryptography import x509
    from eth_account import Account

    from coco.ledger import outcomes, receipts
    from forks import CCF_PYTHON

    account = Account.from_key("0x2a871d0798f97d79848a013d4936a73bf4cc922c825d33c1cf7073dff6d409c6")
    fields = {"to": "0x" + "44" * 20, "value": 1, "gas": 21000, "nonce": 0, "chainId": 2017}
    signed = account.sign_transaction({**fields, "maxFeePerGas": 0, "maxPriorityFeePerGas": 0})
    answer = node.post(
        "/",
        json={
            "id": 1,
            "method": "eth_sendRawTransactionSync",
            "params": ["0x" + signed.raw_transaction.hex()],
        },
    )
    block = answer.json()["result"]["blockHash"]
    committed = answer.headers["x-ms-ccf-transaction-id"]
    admin = httpx.Client(verify=tls_context(sandbox), base_url=f"https://localhost:{port(sandbox, 'administration')}")
    with admin:
        view, seqno = map(int, committed.split("."))
        found = None
        for candidate in range(seqno, 0, -1):
            reply = admin.get(f"/node/receipt?id={view}.{candidate}")
            claim = reply.json().get("claim") if reply.status_code == 200 else None
            if claim is not None and (outcomes.block_of(bytes.fromhex(claim["value"])) or {}).get("hash") == block:
                found = reply.json()
                break
        assert found, "the receipt's claim names the block"
        service = x509.load_pem_x509_certificate(Path(sandbox.summary["service_certificate"]).read_bytes())
        receipts.verify(found, service)
        assert admin.get(f"/node/tx?id={committed}").json()["status"] == "Committed"
        assert admin.get("/node/tx?id=9.999999").json()["status"] == "Unknown"
        assert admin.get("/node/tx?id=1.2").json()["status"] == "Invalid"
        assert admin.get("/node/tx?id=nonsense").json()["error"]["code"] == "request.bad_transaction_id"
        assert admin.get(f"/node/receipt?id={view}.999999").json()["error"]["code"] == "ledger.no_receipt"
        assert admin.get("/node/attestation?nonce=zz").json()["error"]["code"] == "attestation.bad_nonce"
        assert admin.get("/node/attestation?nonce=" + "00" * 65).json()["error"]["code"] == "attestation.bad_nonce"
    (tmp_path / "receipt.json").write_text(json.dumps(found))
    from conftest import verify_with_ccf

    verify_with_ccf(sandbox.ledger, tmp_path / "chunks")
    script = Path(__file__).parent.parent / "verify_with_ccf.py"
    checked = subprocess.run(
        [
            str(CCF_PYTHON),
            str(script),
            str(tmp_path / "chunks"),
            str(tmp_path / "receipt.json"),
            sandbox.summary["service_certificate"],
        ],
        capture_output=True,
        text=True,
    )
    assert "verified receipt" in checked.stdout, checked.stdout + checked.stderr


# --- coco connect (G6) --------------------------------------------------------------------------------------------


def local(sandbox, headers=(), method="POST", path="/", body=b'{"id":1,"method":"eth_chainId"}'):
    address = ("127.0.0.1", int(sandbox.url.rpartition(":")[2]))
    lines = {"host": f"127.0.0.1:{address[1]}", "content-type": "application/json", **dict(headers)}
    head = f"{method} {path} HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in lines.items() if v)
    with socket.create_connection(address, timeout=5) as plain:
        plain.sendall(head.encode() + b"content-length: %d\r\nconnection: close\r\n\r\n" % len(body) + body)
        answer = b""
        while chunk := plain.recv(65536):
            answer += chunk
    return answer


def test_G6_the_local_listener_serves_local_tools_only(sandbox):
    assert b'"result":"0x7e1"' in local(sandbox)
    assert b"connect.host_refused" in local(sandbox, {"host": "evil.example:8545"}), "DNS rebinding"
    assert b"connect.host_refused" in local(sandbox, {"host": ""})
    refused = local(sandbox, {"origin": "https://evil.example"})
    assert b"connect.origin_refused" in refused and b"access-control" not in refused.lower()
    assert b"connect.origin_refused" in local(sandbox, {"origin": "null"})
    assert b"connect.json_only" in local(sandbox, {"content-type": "text/plain"}), "no form of a web page"
    assert b"connect.post_only" in local(sandbox, method="GET")
    assert b"connect.not_found" in local(sandbox, path="/node/info")
    assert b"access-control-allow-origin: *" not in local(sandbox).lower()


def test_G6_an_allowed_origin_is_echoed_exactly(sandboxes):
    sandbox = sandboxes("origin", "--allow-origin", "https://dapp.example")
    sandbox.start()
    allowed = local(sandbox, {"origin": "https://dapp.example"})
    assert b"access-control-allow-origin: https://dapp.example" in allowed and b'"0x7e1"' in allowed
    preflight = local(sandbox, {"origin": "https://dapp.example"}, method="OPTIONS", body=b"")
    assert preflight.startswith(b"HTTP/1.1 204") and b"access-control-allow-private-network: true" in preflight
    assert b"connect.origin_refused" in local(sandbox, {"origin": "https://dapp.example.evil.com"})
    asyncio.run(asyncio.sleep(0))


def test_what_became_of_a_submitted_transaction(sandbox, node):
    from eth_account import Account

    account = Account.from_key("0xdbda1821b80551c9d65939329250298aa3472ba22feea921c0cf5d620ea67b97")
    fields = {"to": "0x" + "44" * 20, "value": 1, "gas": 21000, "chainId": 2017}

    def send(nonce, price=0, method="eth_sendRawTransaction"):
        signed = account.sign_transaction(
            {**fields, "nonce": nonce, "maxFeePerGas": price, "maxPriorityFeePerGas": price}
        )
        answer = rpc(node, {"id": 1, "method": method, "params": ["0x" + signed.raw_transaction.hex()]})
        assert "error" not in answer, answer
        return "0x" + signed.hash.hex()

    base = f"https://localhost:{port(sandbox, 'administration')}"
    with httpx.Client(verify=tls_context(sandbox), base_url=base) as admin:

        def fate(identity, **more):
            return node.get("/coco/transaction", params={"hash": identity, **more}).json()

        done = fate(send(0, method="eth_sendRawTransactionSync"))
        assert done["status"] == "Committed"
        assert admin.get(f"/node/tx?id={done['transaction_id']}").json()["status"] == "Committed"
        waiting = send(5)
        assert fate(waiting)["status"] == "Pending"
        other = send(5, price=10)
        assert fate(waiting) == {"hash": waiting, "status": "Dropped", "reason": "replaced"}
        assert fate(other)["status"] == "Pending"
        assert fate("0x" + "ab" * 32)["status"] == "Unknown"
        for bad in ("", "zz", "ab" * 65):
            assert fate(bad)["error"]["code"] == "request.bad_hash"
        assert fate(waiting, adapter="none")["error"]["code"] == "adapter.unknown"
        told = admin.get("/node/tx", params={"hash": waiting}).json()["error"]
        assert told["code"] == "request.hash_elsewhere" and "/coco/transaction" in told["hint"]
