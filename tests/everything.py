"""Every action, route and method of a node, and how each is tried, well and badly: a new one without a row fails a test."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from hashlib import sha256
from typing import Any

from cryptography import x509
from websockets.asyncio.client import connect

from coco import constitutions
from coco.cli.keys import make_actor
from coco.client.governance import Governance
from coco.client.http import HttpsClient
from coco.client.signer import Signer
from coco.enclave.adapters.ethereum import rpc as ethereum
from coco.enclave.api.openapi import API_VERSION, OPERATIONS
from coco.ledger.statements import fingerprint
from governed import rsa_pem
from network import ADAPTERS, ROOT, Several

OPTIONS: dict[str, Any] = {"adapters": ADAPTERS, "extra_path": [str(ROOT / "examples"), str(ROOT / "tests/adapters")]}
HASH, ADDRESS = "0x" + "11" * 32, "0x" + "22" * 20
#: What each part of a path may be, besides what the test finds out: values that are there, and that are none.
PARTS = {"proposal": ["ab" * 32, "x"], "member": ["cd" * 32, "%ff"], "node": ["ef" * 32, "x"], "position": ["2.1", "x"]}
#: Query parameters of routes: each is tried with each value.
QUERIES = {
    "nonce": ["00", "zz"],
    "id": ["2.1", "9.9999", "x"],
    "hash": [HASH, "x"],
    "adapter": ["ethereum", "none"],
    "top": ["1", "0", "x"],
    "after": ["ab", "%ff"],
}
#: Bodies that no route wants: in other encodings, in other forms, nested, cut, or too much of it.
BODIES = [
    b"",
    b"{",
    b"[]",
    b"null",
    b'{"actions": []}',
    "{}".encode("utf-16"),
    "{}".encode("utf-32"),
    b"\xef\xbb\xbf{}",
    b"[" * 5000,
    b"\xd2\x84",
    bytes(300),
]
TYPES = [
    "application/cose",
    "application/json",
    "text/plain; charset=utf-16",
    "application/x-www-form-urlencoded; charset=cp037",
    "multipart/form-data; boundary=x",
    "no type",
]
#: Arguments of JSON-RPC methods: each method gets each of them.
ARGUMENTS: list[list[Any]] = [
    [],
    [ADDRESS, "latest"],
    [{"to": ADDRESS, "data": "0x", "gas": "0x5208"}, "latest"],
    ["0x1", "latest", [10, 90]],
    [HASH, True],
    ["0x0", False],
    [{"fromBlock": "0x0", "toBlock": "latest", "topics": [None, [HASH]]}],
    ["\u0130\ud7ff", {"x": 1e400}],
    ["0x02f8"],
]


class Lab:
    """A network of a founder and one that votes it in, both of them locked down."""

    def __init__(self, network: Several) -> None:
        self.network = network
        folder = network.files.directory / "members"
        self.member = Signer.load(folder / "alice.pem", folder / "alice.key.pem")
        self.at = network.nodes[0]
        made = make_actor(network.files.directory / "participants", "erin")
        self.other, self.other_id = made, fingerprint(x509.load_pem_x509_certificate(made.encode()))
        self.newcomer = ""

    async def propose(self, *actions: dict[str, Any]) -> dict[str, Any]:
        client = self.network.client(self.at)
        try:
            found: dict[str, Any] = await Governance(client).propose(self.member, {"actions": list(actions)})
        finally:
            await client.close()
        return found

    async def pending(self) -> str:
        """A node that waits for a vote."""
        async with asyncio.timeout(30):
            while True:
                rows = (await self.network.ask(self.at, f"/gov/service/nodes?api-version={API_VERSION}"))["value"]
                found = [row["nodeId"] for row in rows if row["status"] == "Pending"]
                if found:
                    return str(found[0])
                await asyncio.sleep(0.2)


Args = Callable[[Lab], dict[str, Any]]
DIGEST, LONG = "ab" * 32, "ab" * 48
FROM = {"valid_from": "2026-01-31T00:00:00Z", "validity_period_days": 3}


def fixed(**args: Any) -> Args:
    return lambda lab: args


#: Every action, in an order that works: its arguments, and what becomes of a proposal with it.
ROWS: dict[str, tuple[Args, str]] = {
    "assert_service_identity": (lambda lab: {"service_identity": lab.network.service}, "Accepted"),
    "transition_node_to_trusted": (lambda lab: {"node_id": lab.newcomer, "valid_from": "261201000000Z"}, "Accepted"),
    "set_node_certificate_validity": (lambda lab: {"node_id": lab.newcomer, **FROM}, "Accepted"),
    "set_all_nodes_certificate_validity": (fixed(validity_period_days=5, valid_from="261201000000Z"), "Accepted"),
    "set_service_certificate_validity": (fixed(validity_period_days=90, valid_from="2026-01-31T00:00:00Z"), "Accepted"),
    "set_member": (
        lambda lab: {"cert": lab.other, "encryption_pub_key": rsa_pem(), "member_data": {"a": 1}},
        "Accepted",
    ),
    "set_member_data": (lambda lab: {"member_id": lab.other_id, "member_data": {}}, "Accepted"),
    "remove_member": (lambda lab: {"member_id": lab.other_id}, "Accepted"),
    "set_user": (lambda lab: {"cert": lab.other, "user_data": {}}, "Accepted"),
    "set_user_data": (lambda lab: {"user_id": lab.other_id, "user_data": {"x": 1}}, "Accepted"),
    "remove_user": (lambda lab: {"user_id": lab.other_id}, "Accepted"),
    "set_operator": (lambda lab: {"cert": lab.other, "addresses": ["10.0.0.1", "10.0.0.2:8445"]}, "Accepted"),
    "remove_operator": (lambda lab: {"operator_id": lab.other_id}, "Accepted"),
    "deny_certificate": (fixed(fingerprint=DIGEST), "Accepted"),
    "allow_certificate": (fixed(fingerprint=DIGEST), "Accepted"),
    "set_service_configuration": (fixed(epoch_length_s=3600, default_visibility="participants"), "Accepted"),
    "set_recovery_threshold": (fixed(recovery_threshold=1), "Accepted"),
    "trigger_recovery_shares_refresh": (fixed(), "Accepted"),
    "trigger_ledger_rekey": (fixed(), "Accepted"),
    "transition_service_to_open": (lambda lab: {"next_service_identity": lab.network.service}, "Failed"),
    "set_adapter": (fixed(name="kv", genesis={}), "Accepted"),
    "add_virtual_measurement": (fixed(measurement="m"), "Accepted"),
    "remove_virtual_measurement": (fixed(measurement="m"), "Accepted"),
    "add_node_code": (fixed(code_id=DIGEST), "Accepted"),
    "remove_node_code": (fixed(code_id=DIGEST, vulnerable=False), "Accepted"),
    "add_snp_measurement": (fixed(measurement=LONG), "Accepted"),
    "remove_snp_measurement": (fixed(measurement=LONG), "Accepted"),
    "add_tdx_measurement": (fixed(measurement=LONG), "Accepted"),
    "remove_tdx_measurement": (fixed(measurement=LONG), "Accepted"),
    "add_measurement": (fixed(platform="nitro", measurement=LONG), "Accepted"),
    "remove_measurement": (fixed(platform="nitro", measurement=LONG), "Accepted"),
    "add_snp_host_data": (fixed(host_data=sha256(b"p").hexdigest(), security_policy="p"), "Accepted"),
    "remove_snp_host_data": (fixed(host_data=sha256(b"p").hexdigest()), "Accepted"),
    "add_snp_uvm_endorsement": (fixed(did="did:x509:a", feed="f", svn="100"), "Accepted"),
    "remove_snp_uvm_endorsement": (fixed(did="did:x509:a", feed="f"), "Accepted"),
    "add_snp_tcb_version": (fixed(cpuid="00a00f11", tcb_version="00" * 8), "Accepted"),
    "remove_snp_tcb_version": (fixed(cpuid="00a00f11"), "Accepted"),
    "set_tee_policy": (fixed(tee="sgx", tcb_states=["UpToDate"]), "Accepted"),
    "set_constitution": (fixed(constitution=constitutions.text("sandbox") + "# again\n"), "Accepted"),
    "rotate_service_identity": (fixed(), "Accepted"),
    "remove_node": (lambda lab: {"node_id": lab.newcomer}, "Accepted"),
}
#: Arguments that fail, of every kind that an action checks.
WRONG: list[dict[str, Any]] = [
    {"name": "set_user", "args": {"cert": "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n"}},
    {"name": "set_member", "args": {"cert": "no", "encryption_pub_key": "no"}},
    {"name": "set_node_certificate_validity", "args": {"node_id": "none", "valid_from": "\u0661\u0662"}},
    {"name": "set_all_nodes_certificate_validity", "args": {"valid_from": "soon"}},
    {"name": "set_constitution", "args": {"constitution": "def f(:"}},
    {"name": "set_constitution", "args": {"constitution": constitutions.text("majority") + "\nfail('\u0130')"}},
    {"name": "set_constitution", "args": {"constitution": constitutions.text("majority") + "\nx = 'a' * 300000000"}},
    {"name": "set_tee_policy", "args": {"tee": "tdx", "tcb_states": ["Perfect"]}},
]


async def at_every_route(lab: Lab, client: HttpsClient, known: dict[str, str]) -> list[tuple[str, int]]:
    """Ask every route of the administration listener, well and badly; paths, and statuses of the answers."""
    answers: list[tuple[str, int]] = []

    async def ask(method: str, path: str, body: bytes = b"", kind: str = "application/cose") -> None:
        reply = await client.request(method, path, body, content_type=kind)
        answers.append((f"{method} {path} {body[:20]!r} {kind}", reply.status))

    for (method, route), operation in OPERATIONS.items():
        names = re.findall(r"{(\w+)}", route)
        assert set(names) <= set(PARTS), f"say what stands for {names}"
        assert {name for name, _ in operation.query} <= set(QUERIES), f"say what {route} is asked with"
        paths = (
            {
                route.replace("{" + name + "}", value)
                for name in names or [""]
                for value in [known.get(name, ""), *PARTS.get(name, [])]
            }
            if names
            else {route}
        )
        paths = {re.sub(r"{(\w+)}", lambda found: known.get(found[1], "x"), path) for path in paths}
        queries = [f"{name}={value}" for name, _ in operation.query for value in QUERIES[name]] or [""]
        version = f"api-version={API_VERSION}" if operation.versioned else ""
        for path in sorted(paths):
            for query in queries:
                for more in {version, ""}:
                    asked = f"{path}?{'&'.join(one for one in (query, more) if one)}"
                    await ask(method, asked, BODIES[0] if method == "GET" else BODIES[4])
            if method == "POST":
                for body in BODIES:
                    await ask(method, f"{path}?{version}", body)
                for kind in TYPES:
                    await ask(method, f"{path}?{version}", BODIES[4], kind)
            await ask("PATCH", f"{path}?{version}")
    await ask("GET", "/%ff%fe/nothing")
    return answers


async def at_every_method(client: HttpsClient) -> None:
    """Every JSON-RPC method with every list of arguments, and what is no call at all."""
    methods = [route.name for route in ethereum.ROUTES] + ["no_such", "\u0130"]
    for method in methods:
        for arguments in ARGUMENTS:
            call = {"jsonrpc": "2.0", "id": 1, "method": method, "params": arguments}
            body = json.dumps(call).encode()
            if method not in ethereum.METHODS or "Sync" in method:
                body = json.dumps({**call, "params": []}).encode()
            assert (await client.request("POST", "/", body)).status < 500, (method, arguments)
    for body in BODIES:
        for kind in TYPES:
            assert (await client.request("POST", "/", body, content_type=kind)).status < 500
    asked = [f"/coco/{route}?hash={found}" for route in ("transaction", "receipt") for found in (HASH, "x", "")]
    for path in ("/coco/caller", "/coco/accounts/bind", "/kv/x", "/%ff", *asked):
        for method in ("GET", "POST", "PUT"):
            for body in BODIES:
                await client.request(method, path, body)


async def over_a_socket(network: Several, port: int) -> None:
    pair = network.client(network.nodes[0], "application")
    async with connect(f"wss://localhost:{port}/", ssl=pair.context) as socket:
        for text in ('{"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["newHeads"]}', "{", "\u0130" * 99):
            await socket.send(text)
            await asyncio.wait_for(socket.recv(), 20)
        await socket.send("{}".encode("utf-16"))
        await socket.close(4000, "\u0130")


async def stated(lab: Lab) -> None:
    """The member states the announced identity."""
    before = lab.network.service
    async with asyncio.timeout(30):
        while True:
            client = lab.network.client(lab.at)
            found = await Governance(client).state(lab.member, before)
            await client.close()
            if found["status"] == "Announced":
                lab.network.service = found["next"]
                break
            await asyncio.sleep(0.2)
        while True:
            try:
                await lab.network.ask(lab.at, "/node/info")
                return
            except Exception:  # until the node shows the other certificate
                await asyncio.sleep(0.2)
