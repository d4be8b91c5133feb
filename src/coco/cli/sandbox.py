"""``coco sandbox``: a network on this machine, for development only, with its keys and ledger below one folder."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import secrets
import ssl
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from coco import constitutions
from coco.attestation.policy import Policy
from coco.channel.messages import Ready
from coco.cli import continuity
from coco.cli.adapters import AdapterCode
from coco.cli.keys import make_actor, make_encryption_key
from coco.cli.network import read_genesis
from coco.cli.node import ServiceFiles
from coco.cli.output import console, progress, working
from coco.cli.sandbox_folder import (
    LOG,
    MEMBER,
    OPERATOR,
    PARTICIPANT,
    SandboxFiles,
    check,
    examine,
    forget_a_founding,
    move_away,
    prepare,
    unmake,
)
from coco.client.connect import ConnectOptions, Connector
from coco.client.governance import Governance
from coco.client.http import FailoverClient, HttpsClient
from coco.client.members import recover
from coco.client.operators import Owner, nobody, owner
from coco.client.pin import Pin
from coco.client.verify import follow, service_context, unverified_context, verify_node
from coco.enclave.adapters.ethereum.genesis import EthereumSettings
from coco.errors import AttestationError, CocoError, HostError
from coco.host.folder import FolderLock
from coco.host.node import Node, NodeOptions, stop_signal
from coco.host.persistence import last_signed

#: The ten accounts that every development tool knows; their keys are public.
WELL_KNOWN_ACCOUNTS = (
    (
        "0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266",
        "0xac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80",
    ),
    (
        "0x70997970C51812dc3A010C7d01b50e0d17dc79C8",
        "0x59c6995e998f97a5a0044966f0945389dc9e86dae88c7a8412f4603b6b78690d",
    ),
    (
        "0x3C44CdDdB6a900fa2b585dd299e03d12FA4293BC",
        "0x5de4111afa1a4b94908f83103eb1f1706367c2e68ca870fc3fb9a804cdab365a",
    ),
    (
        "0x90F79bf6EB2c4f870365E785982E1f101E93b906",
        "0x7c852118294e51e653712a81e05800f419141751be58f605c371e15141b007a6",
    ),
    (
        "0x15d34AAf54267DB7D7c367839AAf71A00a2C6A65",
        "0x47e179ec197488593b187f80a00eb0da91f1b9d0b13f8733639f19c30a34926a",
    ),
    (
        "0x9965507D1a55bcC2695C58ba16FB37d819B0A4dc",
        "0x8b3a350cf5c34c9194ca85829a2df0ec3153be0318b5e2d3348e872092edffba",
    ),
    (
        "0x976EA74026E726554dB657fA54763abd0C3a0aa9",
        "0x92db14e403b83dfe3df233f83dfa3a0d7096f21ca9b0d6d6b8d88b2b4ec1564e",
    ),
    (
        "0x14dC79964da2C08b23698B3D3cc7Ca32193d9955",
        "0x4bbbf85ce3377467afe5d46f804f221813b2bb87f24d81f60f1fcdbf7cbf4356",
    ),
    (
        "0x23618e81E3f5cdF7f54C3d65f7FBc0aBf5B21E8f",
        "0xdbda1821b80551c9d65939329250298aa3472ba22feea921c0cf5d620ea67b97",
    ),
    (
        "0xa0Ee7A142d267C1f36714E4a8F75612F20a79720",
        "0x2a871d0798f97d79848a013d4936a73bf4cc922c825d33c1cf7073dff6d409c6",
    ),
)
_NO_CODE = AdapterCode()
_BALANCE_WEI = 1000 * 10**18
_HOST = "127.0.0.1"
_RESTART_SECONDS = 0.5
_JOIN_SECONDS, _POLL_SECONDS = 60.0, 0.05


def chain(*, fees: str, fork: str, chain_id: int) -> dict[str, Any]:
    """The settings of the sandbox's chain.

    Raises:
        ConfigurationError: there is no such chain (``configuration.ethereum``).
    """
    alloc = {address: {"balance": str(_BALANCE_WEI)} for address, _ in WELL_KNOWN_ACCOUNTS}
    settings = {"chain_id": chain_id, "fork": fork, "fees": {"policy": fees}, "alloc": alloc}
    EthereumSettings.parse(settings)
    return settings


def make_genesis(
    files: SandboxFiles, *, fees: str, fork: str, chain_id: int, adapters: Iterable[str] = ()
) -> dict[str, Any]:
    """Make the sandbox's actors and its genesis document, with Ethereum and these ``adapters`` besides."""
    member = make_actor(files.directory / "members", MEMBER)
    public = make_encryption_key(files.actor("members", MEMBER, ".encryption.key.pem"))
    participant = make_actor(files.directory / "participants", PARTICIPANT)
    genesis: dict[str, Any] = {
        "network": f"coco-dev-{secrets.token_hex(2)}",
        "members": [{"cert": member, "encryption_public_key": public, "member_data": {"name": MEMBER}}],
        "participants": [{"cert": participant, "user_data": {"name": PARTICIPANT, "insecure_any_account": True}}],
        "operators": [{"cert": make_actor(files.directory / "operators", OPERATOR), "addresses": [_HOST]}],
        "constitution": constitutions.text("sandbox"),
        "insecure_virtual": True,
        "production": False,
        "adapters": {"ethereum": chain(fees=fees, fork=fork, chain_id=chain_id), **{name: {} for name in adapters}},
    }
    files.genesis.write_text(json.dumps(genesis, indent=1))
    return genesis


def make_owner(files: SandboxFiles, service: str, constitution: str | None = None) -> Owner:
    """The sandbox's operator: signs for whatever node starts here (J2), under the rules in force or the first ones."""
    genesis = read_genesis(files.genesis)
    certificate, key = (files.actor("operators", OPERATOR, suffix) for suffix in (".pem", ".key.pem"))
    if not certificate.exists():
        return nobody  # a sandbox of an earlier version
    rules = genesis.get("constitution", "") if constitution is None else constitution
    return owner(certificate, key, network=genesis["network"], service=service, constitution=rules)


async def _votes(client: HttpsClient, node_id: str) -> bool:
    network = (await client.request("GET", "/node/network")).json()
    return bool(network["nodes"].get(node_id, {}).get("votes"))


class Sandbox:
    """A running sandbox: its nodes, each restarted as a new one when it dies, and a connector before them."""

    def __init__(
        self,
        files: SandboxFiles,
        founder: int,
        node: Node,
        ready: Ready,
        *,
        log: Any,
        lock: FolderLock,
        code: AdapterCode,
    ) -> None:
        self.files, self._log, self._lock, self.code = files, log, lock, code
        self.nodes: dict[int, Node] = {founder: node}
        self.connector: Connector | None = None
        self.service = ready.service.decode()
        self.recovered, self.discarded = ready.status != "Open", ready.discarded_entries
        #: The network is lost: why.
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._founder = founder
        self._watching: list[asyncio.Task[None]] = []

    @property
    def node(self) -> Node:
        """The node that founded this life of the service, as long as it lives; then another."""
        return self.nodes.get(self._founder) or next(iter(self.nodes.values()))

    def administration_port(self, number: int | None = None) -> int:
        """Port of a node's administration listener."""
        node = self.node if number is None else self.nodes[number]
        return node.relays["administration"].port

    def application_port(self, number: int | None = None) -> int:
        """Port of a node's application listener (TLS)."""
        node = self.node if number is None else self.nodes[number]
        return node.relays["application"].port

    async def join(self, number: int) -> None:
        """Start one more node, which joins the others, and wait until it votes.

        Raises:
            HostError: it could not.
        """
        ready = await self._launch(
            number,
            NodeOptions(
                ledger=self.files.ledger(number),
                expected_service=self.service.encode(),
            ),
        )

        client = HttpsClient(_HOST, self.administration_port(), unverified_context())
        try:
            async with asyncio.timeout(_JOIN_SECONDS):
                while not await _votes(client, ready.node_id):
                    await asyncio.sleep(_POLL_SECONDS)
        except TimeoutError as error:
            raise HostError(f"n{number} joined but does not vote", code="sandbox.not_joined") from error
        finally:
            await client.close()

    async def _constitution(self) -> str | None:
        """The rules in force, of a node that answers; None when none does."""
        client = HttpsClient(_HOST, self.administration_port(), unverified_context())
        try:
            return await Governance(client).constitution()
        except CocoError:
            return None
        finally:
            await client.close()

    async def follow(self, pin: Pin) -> bool:
        """Whether the service has another identity by now, which members have stated; what is on the disk follows."""
        nodes = [(_HOST, node.relays["administration"].port) for node in self.nodes.values()]
        moved = await follow(nodes, pin, policy=Policy(insecure_virtual=True))
        if pin.service != self.service:
            self.service = pin.service
            ServiceFiles(self.files.directory).opened(pin.service.encode())
            pin.save(self.files.pin)
        return moved

    async def _launch(self, number: int, options: NodeOptions) -> Ready:
        others = [node for other, node in self.nodes.items() if other != number]
        join = [f"{_HOST}:{node.relays['peers'].port}" for node in others]
        owner = make_owner(self.files, self.service, await self._constitution())
        node = Node(self.code.into(dataclasses.replace(options, join=join, owner=owner)), self._log)
        try:
            ready = await node.start()
        except BaseException:
            await node.stop()
            raise
        self.nodes[number] = node
        return ready

    def watch(self) -> None:
        """From now on, start a node again when it dies, as long as others live to be joined."""
        self._watching = [asyncio.ensure_future(self._watch(number)) for number in list(self.nodes)]

    async def _watch(self, number: int) -> None:
        while True:
            node = self.nodes[number]
            reason = await asyncio.shield(node.ended)
            ports = {name: (_HOST, relay.port) for name, relay in node.relays.items()}
            del self.nodes[number]
            await node.stop()
            if not self.nodes:
                if not self.lost.done():
                    self.lost.set_result(reason)
                return
            self._tell({"event": "sandbox.node_ended", "node": f"n{number}", "reason": reason})
            if len(self.nodes) <= len(self._watching) // 2:
                self._tell({"event": "sandbox.majority_lost", "hint": "stop it and start it again: it recovers"})
            options = NodeOptions(
                ledger=self.files.ledger(number),
                application=ports.get("application", (_HOST, 0)),
                administration=ports.get("administration", (_HOST, 0)),
                peers=ports["peers"],
            )
            while number not in self.nodes:
                await asyncio.sleep(_RESTART_SECONDS)
                try:
                    if self.connector is not None:
                        await self.follow(self.connector.pin)
                    await self._launch(number, dataclasses.replace(options, expected_service=self.service.encode()))
                except (HostError, AttestationError) as error:
                    self._tell({"event": "sandbox.node_not_joined", "node": f"n{number}", "reason": str(error)})
            pid = self.nodes[number].enclave_pid
            self._tell({"event": "sandbox.node_joined", "node": f"n{number}", "enclave_pid": pid})

    def _tell(self, line: dict[str, Any]) -> None:
        _tell(self._log, line)

    async def stop(self) -> None:
        """End in good order."""
        for task in self._watching:
            task.cancel()
        await asyncio.gather(*self._watching, return_exceptions=True)
        if self.connector is not None:
            await self.connector.stop()
        await asyncio.gather(*(node.stop() for node in self.nodes.values()))
        self._lock.release()


async def start(
    files: SandboxFiles,
    *,
    port: int = 8545,
    node_port: int = 0,
    admin_port: int = 0,
    nodes: int = 1,
    expect: str = "",
    fees: str = "free",
    fork: str = "osaka",
    chain_id: int = 2017,
    origins: tuple[str, ...] = (),
    connect: bool = True,
    accept_clock: bool = False,
    code: AdapterCode = _NO_CODE,
    log: Any = None,
    say: Callable[[str], None] = lambda text: None,
) -> Sandbox:
    """Start the sandbox in ``files``, made new or recovered from its ledger.

    Raises:
        ConfigurationError, HostError, AttestationError: with what to do about it.
    """
    check(files)
    if not files.holds():
        chain(fees=fees, fork=fork, chain_id=chain_id)
    existed = files.directory.exists()
    lock = FolderLock(files.directory)
    try:
        made = prepare(
            files, lambda at: make_genesis(at, fees=fees, fork=fork, chain_id=chain_id, adapters=code.factories)
        )
        genesis = read_genesis(files.genesis)
        pin = Pin.load(files.pin)
        if pin is None and files.service.exists():
            pin = continuity.pin_of(files.service.read_text(), genesis)
        service = pin.service if pin is not None else ""
        copies = await asyncio.get_running_loop().run_in_executor(None, examine, files, service, say)
        for number, error in copies.bad.items():
            _tell(log, {"event": "sandbox.ledger_damaged", "node": f"n{number}", "reason": str(error)})
        founder = copies.best or 0
        options = NodeOptions(
            ledger=files.ledger(founder),
            genesis=genesis,
            application=(_HOST, node_port),
            administration=(_HOST, admin_port),
            expected_position=expect,
            accept_clock=accept_clock,
            replaying=lambda entry, last: say(f"replaying the ledger: {entry} of {last} entries"),
        )
        options = code.into(options)
        try:
            node, ready = await _launch(options, pin, log, signed=copies.best is not None or bool(copies.bad))
        except CocoError:
            if made and (not options.ledger.exists() or last_signed(options.ledger) == (0, 0)):
                lock.release()
                unmake(files, keep_folder=existed)
            raise
    except BaseException:
        lock.release()
        raise
    sandbox = Sandbox(files, founder, node, ready, log=log, lock=lock, code=code)
    try:
        if ready.status != "Open":
            await _recover(files, node, pin)
        verified = await verify_node(_HOST, node.relays["administration"].port, pin, accept_insecure_virtual=True)
        if pin is None:
            pin = Pin(verified.service, dict(verified.network["members"]))
        pin.save(files.pin)
        ServiceFiles(files.directory).opened(sandbox.service.encode())
        for number, error in copies.bad.items():
            if error.code == "host.ledger_unreadable":
                moved = move_away(files.ledger(number))
                _tell(log, {"event": "sandbox.ledger_moved", "node": f"n{number}", "to": str(moved)})
        say("joining the other nodes")
        # One after the other: a network of one waits for nobody while it becomes one of two.
        for number in [number for number in range(max(nodes, founder + 1)) if number != founder][: nodes - 1]:
            await sandbox.join(number)
            if number in copies.bad:
                _tell(log, {"event": "sandbox.ledger_mended", "node": f"n{number}", "from": f"n{founder}"})
        sandbox.watch()
        if connect:
            sandbox.connector = await _connect(files, sandbox, pin, port, origins)
    except BaseException:
        await sandbox.stop()
        raise
    return sandbox


async def _launch(options: NodeOptions, pin: Pin | None, log: Any, *, signed: bool) -> tuple[Node, Ready]:
    """Start the first node: to recover the service of ``pin``, whatever there is without one, or to found."""
    while True:
        expected = pin.service.encode() if pin is not None else b""
        node = Node(dataclasses.replace(options, expected_service=expected), log)
        try:
            return node, await node.start()
        except HostError as error:
            await node.stop()
            if pin is not None and _moved(error, options.ledger, pin) and pin.service.encode() != expected:
                continue
            if error.code != "ledger.unsigned" or signed or pin is not None:
                where = f"{options.ledger.parent.name}: {error}"
                raise HostError(where, code=error.code, hint=error.hint) from error
            # The very first start was cut short before its first signature: nothing was ever served from this ledger.
            forget_a_founding(options.ledger)
        except BaseException:
            await node.stop()
            raise


def _moved(error: HostError, ledger: Path, pin: Pin) -> bool:
    """Whether a start was refused because the ledger goes on under a later service, to which ``pin`` has moved now."""
    return error.code == "recovery.other_service" and continuity.follow(ledger, pin)


def _tell(log: Any, line: dict[str, Any]) -> None:
    if log is not None:
        log(line)
    else:
        print(json.dumps(line), file=sys.stderr, flush=True)


async def _recover(files: SandboxFiles, node: Node, pin: Pin | None) -> None:
    client = HttpsClient("127.0.0.1", node.relays["administration"].port, unverified_context())
    try:
        if pin is None:
            # The pin file is gone: this folder's own ledger is all that there is to go by.
            state = (await client.request("GET", "/gov/recovery")).json()
            pin = Pin(state["previous_service"])
        state = await recover(client, files.member(), pinned_service=pin.service, seen=pin.position)
        if state["status"] != "Open":
            raise HostError("the service did not open after the member's share", code="sandbox.not_open")
    finally:
        await client.close()


async def _connect(files: SandboxFiles, sandbox: Sandbox, pin: Pin, port: int, origins: tuple[str, ...]) -> Connector:
    certificate = files.actor("participants", PARTICIPANT, ".pem")
    key = files.actor("participants", PARTICIPANT, ".key.pem")

    def trusting() -> ssl.SSLContext:
        return service_context(sandbox.service, str(certificate), str(key))

    async def following() -> ssl.SSLContext | None:
        return trusting() if await sandbox.follow(pin) else None

    context = trusting()
    ports = [sandbox.application_port(number) for number in sandbox.nodes]
    upstream = FailoverClient([HttpsClient(_HOST, port, context) for port in ports], lambda: pin.position, following)
    connector = Connector(ConnectOptions(port=port, origins=origins), upstream, pin, files.pin)
    await connector.start()
    return connector


def banner(sandbox: Sandbox, seconds: float) -> None:
    """Print what a person needs first."""
    network = json.loads(sandbox.files.genesis.read_text())
    chain = network["adapters"]["ethereum"]["chain_id"]
    how = f"recovered from its ledger ({sandbox.discarded} entries set aside)" if sandbox.recovered else "new"
    assert sandbox.connector is not None
    console.print(
        "[bold]Coco sandbox[/]  [red](INSECURE: virtual enclave, no confidentiality; for development only)[/]"
    )
    console.print(f"  network   {network['network']}   chain id {chain}   {how}, ready in {seconds:.1f} s")
    console.print(f"  ethereum  [bold]http://127.0.0.1:{sandbox.connector.port}[/]   for web3.py, ethers, MetaMask")
    for name, factory in sandbox.code.factories.items():
        served = "served" if name in network["adapters"] else "waits for a vote: set_adapter"
        console.print(f"  adapter   {name}   {factory}   {served}")
    for number in sandbox.nodes:
        application, administration = sandbox.application_port(number), sandbox.administration_port(number)
        console.print(f"  node n{number}   application https://127.0.0.1:{application} (TLS, client certificate)")
        console.print(f"            administration https://127.0.0.1:{administration}/node/network")
    console.print(f"  keys      {sandbox.files.directory}/participants/dapp.pem, service {sandbox.files.service}")
    console.print("  accounts  1000 ETH each, with keys that everybody knows:")
    for address, key in WELL_KNOWN_ACCOUNTS[:3]:
        console.print(f"            {address}  {key}")
    console.print(f"            and {len(WELL_KNOWN_ACCOUNTS) - 3} more: coco sandbox --accounts")
    console.print(f"Ctrl-C stops it; state stays in {sandbox.files.directory} (--fresh moves it aside).")


def summary(sandbox: Sandbox) -> dict[str, Any]:
    """The same for a program."""
    assert sandbox.connector is not None
    return {
        "ethereum_url": f"http://127.0.0.1:{sandbox.connector.port}",
        "application_url": f"https://127.0.0.1:{sandbox.application_port()}",
        "administration_url": f"https://127.0.0.1:{sandbox.administration_port()}",
        "service_certificate": str(sandbox.files.service),
        "participant_certificate": str(sandbox.files.actor("participants", PARTICIPANT, ".pem")),
        "participant_key": str(sandbox.files.actor("participants", PARTICIPANT, ".key.pem")),
        "insecure": "platform virtual, well-known accounts, any_account",
        "recovered": sandbox.recovered,
        "discarded_entries": sandbox.discarded,
        "enclave_pid": sandbox.node.enclave_pid,
        "nodes": {
            f"n{number}": {
                "application_url": f"https://127.0.0.1:{sandbox.application_port(number)}",
                "administration_url": f"https://127.0.0.1:{sandbox.administration_port(number)}",
                "enclave_pid": node.enclave_pid,
            }
            for number, node in sandbox.nodes.items()
        },
        "host_pid": os.getpid(),
    }


def _log_for_a_person(files: SandboxFiles) -> Callable[[dict[str, Any]], None]:
    """Keep every line of the nodes in ``sandbox.log``; show what concerns whoever is looking."""

    def write(line: dict[str, Any]) -> None:
        # Opened for each line: until the first one nobody knows whether the folder is a sandbox's.
        with (files.directory / LOG).open("a") as log:
            log.write(json.dumps(line) + "\n")
        event, node = line.get("event"), line.get("node")
        said = {
            "sandbox.node_ended": f"{node} ended: {line.get('reason')}; starting it as a new node",
            "sandbox.node_joined": f"{node} has joined again",
            "sandbox.node_not_joined": f"{node} could not join: {line.get('reason')}",
            "sandbox.ledger_damaged": f"the ledger of {node} is damaged: {line.get('reason')}",
            "sandbox.ledger_moved": f"the unreadable ledger of {node} is kept as {line.get('to')}",
            "sandbox.ledger_mended": f"the ledger of {node} is whole again, from {line.get('from')}",
            "ledger.set_aside": f"{line.get('entries')} entries are set aside; {line.get('hint')}",
            "sandbox.majority_lost": f"the majority of the nodes is lost; {line.get('hint')}",
        }.get(str(event))
        if said is not None:
            progress.print(said)

    return write


async def serve(files: SandboxFiles, *, as_json: bool, **options: Any) -> None:
    """Run a sandbox until a signal.

    Raises:
        HostError: the enclave ended by itself (``sandbox.ended``).
    """
    began = time.monotonic()
    stopped = stop_signal()
    with working("starting the enclave") as say:
        log = None if as_json else _log_for_a_person(files)
        starting = asyncio.ensure_future(start(files, say=say, log=log, **options))
        first: set[asyncio.Future[Any]] = {starting, stopped}
        await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        starting.cancel()
        await asyncio.wait({starting})
        raise KeyboardInterrupt
    sandbox = starting.result()
    if as_json:
        print(json.dumps(summary(sandbox)), flush=True)
    else:
        banner(sandbox, time.monotonic() - began)
    await asyncio.wait({stopped, sandbox.lost}, return_when=asyncio.FIRST_COMPLETED)
    ended = sandbox.lost.result() if sandbox.lost.done() else ""
    await sandbox.stop()
    if ended:
        raise HostError(ended, code="sandbox.ended", hint="start it again: everything acknowledged is in the ledger")
    if not as_json:
        print("stopped", file=sys.stderr)
