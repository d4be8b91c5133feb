"""``coco node``: one validating node as its operator runs it, and what a network says of its nodes."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import ipaddress
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from coco import addresses
from coco.attestation.evidence import VIRTUAL
from coco.attestation.verified import AZURE_VTPM, NITRO, SGX, SNP, TDX
from coco.channel.messages import Ready
from coco.cli import continuity
from coco.cli.adapters import AdapterCode
from coco.cli.keys import make_actor
from coco.cli.network import read_genesis
from coco.client.endorsements import source
from coco.client.files import write_bytes_whole
from coco.client.http import HttpsClient, RemoteError
from coco.client.operators import Owner, nobody, owner, retirement
from coco.client.verify import service_context
from coco.errors import ConfigurationError, HostError, NotFoundError, RequestError
from coco.host.folder import TemporaryFolder
from coco.host.hints import HINTS
from coco.host.node import Node, NodeOptions, run_until, stop_signal
from coco.host.persistence import last_signed
from coco.ledger.statements import spki_of

#: Names of evidence, by what an operator calls its platform; VBS has no process of Python.
PLATFORMS = {"virtual": VIRTUAL, "sgx": SGX, "tdx": TDX, "snp": SNP, "nitro": NITRO, "azure-vtpm": AZURE_VTPM}
#: In a node's folder: the service that was open last, and one that is being recovered and that nobody has stated yet.
SERVICE, RECOVERING = "service.pem", "service.recovering.pem"
#: A service that is being founded has one identity only, which members need in order to open it.
_OPEN = ("Open", "Opening")
#: Every address of this machine.
_ANY = "0.0.0.0"
#: The network has let this node go.
RETIRED = "node.retired"
#: One for each second; a primary that is to leave hands over first.
_RETIRE_ATTEMPTS = 15


@dataclass(frozen=True)
class NodeFiles:
    """What an operator gives to one node."""

    directory: Path
    genesis: Path | None = None
    service: Path | None = None
    operator: Path | None = None
    operator_key: Path | None = None
    #: Where the enclave runs, and what says what vendors say of it: a file, or a URL of the vendor's service.
    platform: str = "virtual"
    endorsements: str = ""
    #: Where the enclave listens, if somebody else starts it.
    enclave: str = ""
    #: The rules in force, where they are others than the genesis has.
    constitution: Path | None = None
    #: Name or address under which other nodes reach this one; empty: where it listens.
    advertise: str = ""
    #: Id of the node that was told to leave this address; this one is to come back there all the same.
    returns: str = ""
    #: The clock is right, whatever the end of the ledger says.
    accept_clock: bool = False
    #: Adapters besides the enclave's own.
    code: AdapterCode = field(default_factory=AdapterCode)


def _read(path: Path, what: str) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"cannot read the {what} {path}: {error}", code="node.bad_file") from error


def where_to_listen(reached: str) -> str:
    """Where a node listens that others reach at an address: there; everywhere, if that is a name."""
    try:
        return str(ipaddress.IPv4Address(reached))
    except ValueError:
        return _ANY


def _reached(listen: str, advertise: str) -> str:
    """Where other nodes reach this one.

    Raises:
        ConfigurationError: nowhere (``configuration.bad_address``).
    """
    try:
        ipaddress.IPv4Address(listen)
    except ValueError as error:
        raise ConfigurationError(
            f"cannot listen on {listen[:100]!r}: nodes listen on IPv4 addresses",
            code="configuration.bad_address",
            hint="give an IPv4 address of this machine to --listen, and its name to --advertise",
        ) from error
    if not advertise and listen == _ANY:
        raise ConfigurationError(
            f"other nodes cannot dial {listen}",
            code="configuration.bad_address",
            hint="say with --advertise under which name or address they reach this one",
        )
    return addresses.check_host(advertise or listen)


def options(
    files: NodeFiles, *, join: list[str], listen: str, ports: tuple[int, int, int], metrics_port: int | None = None
) -> NodeOptions:
    """The options of a node.

    Raises:
        ConfigurationError: a file is missing or is something else.
    """
    genesis: dict[str, Any] | None = read_genesis(files.genesis) if files.genesis is not None else None
    service = _read(files.service, "service certificate") if files.service is not None else ""
    if join and (not service or genesis is None):
        raise ConfigurationError(
            "a joiner must know the network and the service",
            code="join.no_service",
            hint="give --genesis and --service",
        )
    sign: Owner = nobody
    rules = b""
    if join and genesis is not None:
        rules = (
            _read(files.constitution, "constitution")
            if files.constitution is not None
            else str(genesis.get("constitution", ""))
        ).encode()
    if join and genesis is not None and files.operator is not None:
        key = files.operator_key or files.operator.with_name(files.operator.stem + ".key.pem")
        sign = owner(
            files.operator,
            key,
            network=str(genesis.get("network", "")),
            service=service,
            constitution=rules.decode(),
            returns=files.returns,
        )
    if files.platform not in PLATFORMS:
        raise ConfigurationError(
            f"no enclave runs on {files.platform}", code="node.unknown_platform", hint=f"one of {', '.join(PLATFORMS)}"
        )
    application, administration, peers = ports
    reached = _reached(listen, files.advertise)
    options = NodeOptions(
        ledger=files.directory / "ledger.db",
        genesis=genesis,
        application=(listen, application),
        administration=(listen, administration),
        peers=(listen, peers),
        metrics=("127.0.0.1", metrics_port) if metrics_port is not None else None,
        platform=PLATFORMS[files.platform],
        enclave=files.enclave,
        endorse=source(files.endorsements),
        join=join,
        advertise=reached,
        accept_clock=files.accept_clock,
        owner=sign,
        expected_service=service.encode(),
        expected_constitution=sha256(rules).digest() if join else b"",
        host_names=list(dict.fromkeys([reached, *([listen] if listen != _ANY else []), "localhost", "127.0.0.1"])),
    )
    return files.code.into(options)


async def measure() -> str:
    """The measurement of the code that this command would run: an enclave of it says so, and is ended.

    Raises:
        HostError: the enclave does not start.
    """
    said: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def hear(node_id: str, measurement: str, address: str, host_names: Sequence[str]) -> bytes:
        if not said.done():
            said.set_result(measurement)
        return b""

    with contextlib.closing(TemporaryFolder("coco-measure-")) as folder:
        nobody_s = make_actor(Path(folder.name), "service")
        node = Node(
            NodeOptions(
                ledger=Path(folder.name) / "ledger.db",
                join=["127.0.0.1:1"],
                owner=hear,
                expected_service=nobody_s.encode(),
            )
        )
        starting = asyncio.ensure_future(node.start())
        first: set[asyncio.Future[Any]] = {starting, said}
        await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
        why = starting.exception() if starting.done() else None
        starting.cancel()
        await asyncio.wait({starting})
        await node.stop()
        if why is not None and not said.done():
            raise why
        if not said.done():
            raise HostError("the enclave did not say what it runs", code="host.enclave_ended")
        return said.result()


class ServiceFiles:
    """The service's certificate in a node's folder.

    ``service.pem`` is of the service that was open last. Another identity takes its place only once it is open; until
    then it lies beside it, so that a recovery which is stopped can be begun again, and the former one is kept.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.open, self.recovering = directory / SERVICE, directory / RECOVERING
        #: Where what the node shows now is written.
        self.current = self.open

    def check_founding(self, ledger: Path) -> None:
        """Refuse to found a service where another one's certificate lies.

        Raises:
            ConfigurationError: ``node.service_of_another``.
        """
        if self.open.exists() and (not ledger.exists() or last_signed(ledger) == (0, 0)):
            raise ConfigurationError(
                f"{self.open} is of a service whose ledger is not in {self.directory}",
                code="node.service_of_another",
                hint="put its ledger there and say --service to recover it; to found another one, give another --dir",
            )

    def keep(self, ready: Ready) -> None:
        """Write what the enclave shows."""
        if ready.status not in _OPEN:
            self.current = self.recovering
            write_bytes_whole(self.recovering, ready.service)
            return
        self.current = self.open
        self.opened(ready.service)
        self.recovering.unlink(missing_ok=True)

    def opened(self, service: bytes) -> None:
        """Have ``service.pem`` name a service that is open; of another one before it the certificate is kept."""
        before = self.open.read_bytes() if self.open.exists() else b""
        if before == service:
            return
        if before and _fingerprint(before) != _fingerprint(service):
            write_bytes_whole(self.directory / f"service.{_fingerprint(before)[:16]}.pem", before)
        write_bytes_whole(self.open, service)


def _fingerprint(certificate: bytes) -> str:
    """Which key a certificate is of; of a file that is none, which bytes it has."""
    try:
        return sha256(spki_of(certificate.decode())).hexdigest()
    except ValueError:
        return sha256(certificate).hexdigest()


def _continued(chosen: NodeOptions, starting: asyncio.Future[Ready]) -> bytes:
    """The service that the ledger ends in, if the one to recover is a former one of it, as members have stated."""
    error = starting.exception() if starting.done() and not starting.cancelled() else None
    if not isinstance(error, HostError) or error.code != "recovery.other_service" or chosen.genesis is None:
        return b""
    pin = continuity.pin_of(chosen.expected_service.decode(), chosen.genesis)
    return pin.service.encode() if continuity.follow(chosen.ledger, pin) else b""


async def serve(chosen: NodeOptions, *, as_json: bool, joined: Callable[[], Awaitable[object]] | None = None) -> None:
    """Run a node until a signal; ``joined`` is called once it serves.

    Raises:
        HostError: the enclave ended by itself, with its reason.
    """
    stopped = stop_signal()
    kept = ServiceFiles(chosen.ledger.parent)
    if not chosen.join:
        kept.check_founding(chosen.ledger)
    node = Node(chosen)
    node.announced = kept.keep
    try:
        starting = asyncio.ensure_future(node.start())
        first: set[asyncio.Future[Any]] = {starting, stopped}
        await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
        if following := _continued(chosen, starting):
            await node.stop()
            node = Node(dataclasses.replace(chosen, expected_service=following))
            node.announced = kept.keep
            starting = asyncio.ensure_future(node.start())
            again: set[asyncio.Future[Any]] = {starting, stopped}
            await asyncio.wait(again, return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            starting.cancel()
            await asyncio.wait({starting})
            return
        ready = starting.result()
        urls = {name: f"https://{chosen.peers[0]}:{relay.port}" for name, relay in node.relays.items()}
        summary = {
            "node_id": ready.node_id,
            "status": ready.status,
            "application_url": urls["application"],
            "administration_url": urls["administration"],
            "peer_address": node.address,
            "service_certificate": str(kept.current),
            "enclave_pid": node.enclave_pid,
        }
        if node.metrics is not None:
            summary["metrics_url"] = f"http://127.0.0.1:{node.metrics.port}/metrics"
        if joined is not None:
            await joined()
        if as_json:
            print(json.dumps(summary), flush=True)
        else:
            for name, value in summary.items():
                print(f"{name:20} {value}", flush=True)
        reason = await run_until(node, stopped)
        if node.ended.done():
            if node.failure is not None:
                raise node.failure
            if node.end_code == RETIRED:
                raise HostError(reason, code=RETIRED, hint=HINTS[RETIRED])
            raise HostError(reason, code="node.ended", hint="start it again: it joins its network as a new node")
    finally:
        await node.stop()


async def status(host: str, port: int, service: Path) -> dict[str, Any]:
    """What a node says of its network, over TLS under the service's certificate.

    Raises:
        CocoError: the node cannot be reached, or is another service's.
    """
    client = HttpsClient(host, port, service_context(_read(service, "service certificate")))
    try:
        info = (await client.request("GET", "/node/info")).json()
        network = (await client.request("GET", "/node/network")).json()
    finally:
        await client.close()
    return {"node": info, "network": network}


async def retire(host: str, port: int, service: Path, operator: Path, operator_key: Path | None, node_id: str) -> Any:
    """Have a node leave its network.

    Raises:
        CocoError: refused, or no primary was there in time.
    """
    certificate = _read(service, "service certificate")
    client = HttpsClient(host, port, service_context(certificate))
    try:
        network = (await client.request("GET", "/node/network")).json()["network"]
        statement = retirement(
            operator,
            operator_key or operator.with_name(operator.stem + ".key.pem"),
            network=network,
            service=certificate,
            node_id=node_id,
        )
        for attempt in range(_RETIRE_ATTEMPTS):
            try:
                return (await client.request("POST", "/node/retire", statement)).json()
            except RemoteError as error:
                if error.code != "node.no_primary" or attempt == _RETIRE_ATTEMPTS - 1:
                    raise
            await asyncio.sleep(1)
    finally:
        await client.close()


@dataclass(frozen=True)
class Dead:
    """A node that is to be replaced, as a living one knows it."""

    node_id: str
    #: ``host:port`` where its peers reached it.
    address: str
    #: The same of the nodes that vote now and are not it.
    others: list[str]


async def find_dead(host: str, port: int, service: Path, node_id: str) -> Dead:
    """Ask a living node about one that is dead; ``node_id`` may be the beginning of its id.

    Raises:
        NotFoundError: there is no such node, or more than one (``node.unknown``).
        RequestError: it has left already (``node.retired``).
    """
    nodes = (await status(host, port, service))["network"]["nodes"]
    found = [name for name in nodes if node_id and name.startswith(node_id.lower())]
    if len(found) != 1:
        raise NotFoundError(f"{len(found)} nodes begin with {node_id[:64]!r}", code="node.unknown")
    row = nodes[found[0]]
    if row["status"] == "Retired":
        raise RequestError("that node has left already", code="node.retired", hint="use coco node join")
    others = [one["address"] for name, one in nodes.items() if one["votes"] and name != found[0]]
    return Dead(found[0], row["address"], others)
