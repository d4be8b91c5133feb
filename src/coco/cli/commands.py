"""The ``coco`` command: noun, verb, ``--json`` everywhere."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import platform
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from typer._click.exceptions import ClickException, NoArgsIsHelpError

import coco
from coco import limits
from coco.attestation.policy import Policy
from coco.cli import account as accounts
from coco.cli import aside, governance
from coco.cli import doctor as examination
from coco.cli import ledger as ledgers
from coco.cli import measure as measuring
from coco.cli import node as nodes
from coco.cli import policy as policies
from coco.cli import receipt as receipts
from coco.cli import sandbox as sandboxes
from coco.cli import simulate as simulations
from coco.cli import status as statuses
from coco.cli.adapters import AdapterCode, AdapterOf, AdapterPath
from coco.cli.eif import registers
from coco.cli.options import PORT_MAX, Json, address
from coco.cli.output import LEFT, console, explained, fail, report, run, show, working
from coco.cli.sandbox_folder import SandboxFiles, begin_anew
from coco.client.connect import ConnectOptions, Connector
from coco.client.http import FailoverClient, HttpsClient
from coco.client.pin import Pin
from coco.client.verify import certificate_check, follow, service_context, verify_node
from coco.errors import CocoError, ConfigurationError

app = typer.Typer(no_args_is_help=True, add_completion=True, pretty_exceptions_enable=False, help=coco.__doc__)
ledger_app = typer.Typer(no_args_is_help=True, help="Export and read a ledger.")
account_app = typer.Typer(no_args_is_help=True, help="Prove which accounts are yours.")
node_app = typer.Typer(no_args_is_help=True, help="One validating node, and the nodes of a network.")
app.add_typer(ledger_app, name="ledger")
app.add_typer(account_app, name="account")
app.add_typer(node_app, name="node")
app.add_typer(governance.member_app, name="member")
app.add_typer(governance.participant_app, name="participant")
app.add_typer(governance.proposal_app, name="proposal")
app.add_typer(governance.constitution_app, name="constitution")
app.add_typer(governance.network_app, name="network")
app.add_typer(policies.policy_app, name="policy")
app.add_typer(receipts.receipt_app, name="receipt")
app.command("verify-node")(policies.verify_node_command)

Directory = Annotated[Path, typer.Option("--dir", help="Folder of the sandbox.")]

AcceptClock = Annotated[
    bool,
    typer.Option(
        "--accept-clock",
        help="The clock is right, though it is far from the end of the ledger. Give it once, never in a unit.",
    ),
]


def _adapters(given: list[str] | None, path: list[Path] | None, as_json: bool) -> AdapterCode:
    try:
        return AdapterCode.parse(given or [], path or [])
    except CocoError as error:
        fail(error, as_json)


@app.command()
def sandbox(
    directory: Directory = Path(".coco"),
    port: Annotated[
        int, typer.Option(help="Port of plain JSON-RPC on loopback; 0 chooses one.", min=0, max=PORT_MAX)
    ] = 8545,
    node_port: Annotated[
        int, typer.Option(help="Port of the node's application listener (TLS).", min=0, max=PORT_MAX)
    ] = 0,
    admin_port: Annotated[
        int, typer.Option(help="Port of the node's administration listener (TLS).", min=0, max=PORT_MAX)
    ] = 0,
    count: Annotated[int, typer.Option("--nodes", help="Validating nodes.", min=1, max=limits.NODES_MAX)] = 3,
    fresh: Annotated[bool, typer.Option("--fresh", help="Move the folder aside first, to DIR.former.")] = False,
    expect: Annotated[str, typer.Option(help="Refuse a ledger that does not contain this view.seqno.")] = "",
    fees: Annotated[str, typer.Option(help="free or eip1559; only for a new sandbox.")] = "free",
    fork: Annotated[str, typer.Option(help="Ethereum fork; only for a new sandbox.")] = "osaka",
    chain_id: Annotated[int, typer.Option(help="Chain id; only for a new sandbox.")] = 2017,
    allow_origin: Annotated[list[str] | None, typer.Option(help="Web origin that may call; repeatable.")] = None,
    adapter: AdapterOf = None,
    adapter_path: AdapterPath = None,
    accept_clock: AcceptClock = False,
    show_accounts: Annotated[bool, typer.Option("--accounts", help="Print the accounts and end.")] = False,
    as_json: Json = False,
) -> None:
    """Run a network on this machine. INSECURE: for development only."""
    if show_accounts:
        listed = [{"address": address, "key": key} for address, key in sandboxes.WELL_KNOWN_ACCOUNTS]

        def text() -> None:
            for one in listed:
                console.print(f"{one['address']}  {one['key']}")

        show({"accounts": listed}, as_json, text)
        return
    files = SandboxFiles(directory.resolve())
    try:
        code = _adapters(adapter, adapter_path, as_json)
        if fresh:
            begin_anew(files)
    except CocoError as error:
        fail(error, as_json)
    work = sandboxes.serve(
        files,
        as_json=as_json,
        port=port,
        node_port=node_port,
        admin_port=admin_port,
        nodes=count,
        expect=expect,
        fees=fees,
        fork=fork,
        chain_id=chain_id,
        origins=tuple(allow_origin or ()),
        accept_clock=accept_clock,
        code=code,
    )
    run(work, as_json)


async def _connect(
    urls: list[str],
    admin: str,
    cert: Path,
    key: Path | None,
    pin_path: Path,
    options: ConnectOptions,
    expect: str,
    policy: Policy,
    as_json: bool,
) -> None:
    pin = Pin.load(pin_path)
    first = pin is None
    if pin is not None and expect:
        pin.saw(expect)
    verified = await verify_node(*address(admin), pin, policy=policy)
    if pin is None:
        pin = Pin(verified.service, dict(verified.network["members"]), expect or "0.0")
        await verify_node(*address(admin), pin, policy=policy)
    pin.save(pin_path)
    known = pin

    def trusting() -> ssl.SSLContext:
        return service_context(known.service, str(cert), str(key) if key else "")

    async def following() -> ssl.SSLContext | None:
        moved = await follow([address(admin)], known, policy=policy)
        known.save(pin_path)
        return trusting() if moved else None

    context = trusting()
    check = certificate_check(policy)
    clients = [HttpsClient(*address(url), context, check=check) for url in urls]
    connector = Connector(options, FailoverClient(clients, lambda: known.position, following), known, pin_path)
    await connector.start()
    local = f"http://{options.host}:{connector.port}{options.secret_path}"
    if as_json:
        print(
            json.dumps({"url": local, "platform": verified.platform, "service": pin.service, "pinned_now": first}),
            flush=True,
        )
    else:
        if verified.platform == "insecure_virtual":
            console.print("[red]INSECURE: virtual. The node's evidence proves nothing.[/]")
        console.print(
            f"serving {local} -> {', '.join(urls)}   service {'pinned now' if first else 'as pinned'} ({pin_path})"
        )
    try:
        await asyncio.Event().wait()
    finally:
        await connector.stop()


@app.command()
def connect(
    url: Annotated[str, typer.Argument(help="Application listener of a node, https://host:port.")],
    admin: Annotated[str, typer.Option(help="Administration listener of the same node, https://host:port.")],
    cert: Annotated[Path, typer.Option(help="Participant certificate, PEM.", exists=True)],
    also: Annotated[list[str] | None, typer.Option(help="Another node, asked when the first is away.")] = None,
    key: Annotated[Path | None, typer.Option(help="Its key, PEM.", exists=True)] = None,
    pin: Annotated[Path, typer.Option(help="What to remember of the service.")] = Path("coco-connect.json"),
    port: Annotated[int, typer.Option(help="Local port; 0 chooses one.", min=0, max=PORT_MAX)] = 8545,
    allow_origin: Annotated[list[str] | None, typer.Option(help="Web origin that may call; repeatable.")] = None,
    secret_path: Annotated[str, typer.Option(help="Serve only below this path, such as /4f2a91.")] = "",
    expect: Annotated[str, typer.Option(help="Refuse a node that does not have this view.seqno committed.")] = "",
    policy: policies.PolicyFile = None,
    insecure_virtual: Annotated[
        bool, typer.Option("--insecure-virtual", help="Accept platform virtual, which proves nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Verify a node, then serve it as plain HTTP on loopback for tools without client certificates."""
    options = ConnectOptions(port=port, origins=tuple(allow_origin or ()), secret_path=secret_path)
    try:
        accepted = policies.read_policy(policy, insecure_virtual=insecure_virtual)
    except CocoError as error:
        fail(error, as_json)
    with contextlib.suppress(KeyboardInterrupt):
        urls = [url, *(also or ())]
        run(_connect(urls, admin, cert, key, pin, options, expect, accepted, as_json), as_json)


@app.command()
def simulate(
    nodes: Annotated[int, typer.Option(help="Nodes of the network.")] = 3,
    seeds: Annotated[str, typer.Option(help="A-B, or one seed.")] = "0-99",
    jobs: Annotated[int, typer.Option(help="Processes; 0 takes one for each processor.")] = 0,
    as_json: Json = False,
) -> None:
    """Run the network in virtual time under faults drawn from seeds, and check what must hold.

    A run that breaks a promise is printed with the line that repeats it; then the exit code is 1.
    """
    summary = simulations.Summary(nodes)
    try:
        simulations.check_nodes(nodes)
        chosen = simulations.parse_seeds(seeds)
        with working("simulating") as progress:
            for report in simulations.reports(nodes, chosen, jobs or os.cpu_count() or 1):
                summary.add(report)
                progress(f"{summary.runs} of {len(chosen)} runs, {len(summary.violations)} broken")
    except CocoError as error:
        fail(error, as_json)

    def text() -> None:
        for one in summary.violations:
            console.print(f"seed {one['seed']} at {one['time_ms']} ms: {one['violation']}\n  again: {one['again']}")
        console.print(f"{summary.runs} runs of {nodes} nodes, {len(summary.violations)} broken")
        console.print("  " + ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in summary.counters.items()))

    value = {"nodes": nodes, "runs": summary.runs, "violations": summary.violations, "counters": summary.counters}
    show(value, as_json, text)
    if summary.violations:
        raise typer.Exit(1)


@ledger_app.command("export")
def ledger_export(
    directory: Annotated[Path, typer.Argument(help="Folder for the chunk files.")],
    ledger: Annotated[Path, typer.Option(help="Ledger of a node.")] = Path(".coco/n0/ledger.db"),
    as_json: Json = False,
) -> None:
    """Write the ledger as chunk files of the open format."""
    try:
        with working("exporting") as say:
            done = ledgers.export(ledger, directory, say)
    except CocoError as error:
        fail(error, as_json)
    show(
        done,
        as_json,
        lambda: console.print(f"{done['entries']} entries in {len(done['files'])} files below {directory}"),
    )


_ReadLedger = Annotated[Path, typer.Option(help="Ledger of a node, or a folder of exported chunk files.")]
_Expect = Annotated[str, typer.Option(help="Refuse a ledger that does not contain this view.seqno: it was cut.")]
_Receipts = Annotated[
    list[Path] | None,
    typer.Option("--receipt", help="Refuse a ledger without the transaction of this receipt; may be repeated."),
]


@ledger_app.command("verify")
def ledger_verify(
    ledger: _ReadLedger = Path(".coco/n0/ledger.db"),
    service: Annotated[Path | None, typer.Option(help="Service certificate to expect, PEM.", exists=True)] = None,
    expect: _Expect = "",
    receipt: _Receipts = None,
    as_json: Json = False,
) -> None:
    """Check a ledger without trusting a node: chain, signatures, and what a majority is proven to have held."""
    try:
        with working("verifying") as say:
            found = ledgers.verify(
                ledger, service.read_text() if service else "", say, expect=expect, receipts_held=receipt or ()
            )
    except CocoError as error:
        fail(error, as_json)

    def text() -> None:
        console.print(f"committed up to {found['committed']}: a later signature records it")
        if found["signed_commitment_unproven"]:
            count = found["signed_commitment_unproven"]
            console.print(f"{count} more up to {found['last_signed']}: signed, commitment unproven")
        if found["unsigned"]:
            console.print(f"[yellow]{found['unsigned']} after that: covered by no signature[/]")
        _say_what_is_not_known(found)

    show(found, as_json, text)


def _say_what_is_not_known(found: dict[str, Any]) -> None:
    if not found["service_pinned"]:
        console.print("[yellow]no service was given: whoever rewrites a whole ledger goes unnoticed (--service)[/]")
    if not found["cut_excluded_up_to"]:
        console.print("[yellow]nothing to compare: a cut at a signature goes unnoticed (--expect, --receipt)[/]")


@ledger_app.command("audit")
def ledger_audit(
    ledger: _ReadLedger = Path(".coco/n0/ledger.db"),
    service: Annotated[Path | None, typer.Option(help="Service certificate to expect, PEM.", exists=True)] = None,
    expect: _Expect = "",
    receipt: _Receipts = None,
    html: Annotated[Path | None, typer.Option(help="Write a page for people here.")] = None,
    former: Annotated[
        list[str] | None,
        typer.Option(help="Measurement of the version before (commit fa5f8b7): its nodes are judged by its rules."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Judge every step of a ledger again, without any node: who did what, under which rules, and what proves it."""
    try:
        with working("auditing") as say:
            found = ledgers.audit(
                ledger,
                service.read_text() if service else "",
                say,
                expect=expect,
                receipts_held=receipt or (),
                earlier=former or (),
            )
        if html is not None:
            ledgers.write_report(html, found, ledger, service)
    except CocoError as error:
        fail(error, as_json)

    def text() -> None:
        for event in found["events"]:
            who = event.get("member") or event.get("node") or ""
            vote = {True: "for", False: "against"}.get(event.get("vote"), "")
            more = " ".join(one for one in (event.get("proposal", "")[:16], event.get("state"), vote) if one)
            console.print(f"{event['seqno']:>10}  {event['what']:<20} {who[:16]}  {more}")
        for one in found["violations"]:
            console.print(f"[red]{one['seqno']:>10}  ILLEGAL: {escape(one['why'])}[/]")
        for one in found["code"]:
            judged = ", judged by the rules of the version before" if one["former"] else ""
            console.print(f"{one['seqno']:>10}  from here code {one['measurement']} writes{judged}")
        console.print(f"{len(found['events'])} steps up to {found['last_signed']}, {len(found['violations'])} illegal")
        _say_what_is_not_known(found)

    show(found, as_json, text)
    if found["violations"]:
        raise typer.Exit(4)


@ledger_app.command("show")
def ledger_show(
    first: Annotated[int, typer.Option("--from", help="First entry.")] = 1,
    last: Annotated[int, typer.Option("--to", help="Last entry.")] = 1 << 62,
    ledger: Annotated[Path, typer.Option(help="Ledger of a node.")] = Path(".coco/n0/ledger.db"),
    as_json: Json = False,
) -> None:
    """Show what anyone may read of a ledger: one line for each entry."""
    try:
        for entry in ledgers.describe(ledger, first, last):
            if as_json:
                print(json.dumps(entry))
            else:
                named = ", ".join(entry["public"]) or "sealed only"
                console.print(f"{entry['id']:>12}  {entry['kind']:<10} {entry['bytes']:>9} B  {named}")
    except CocoError as error:
        fail(error, as_json)


LedgerFile = Annotated[Path, typer.Option(help="Ledger of a node.")]


@ledger_app.command("aside")
def ledger_aside(ledger: LedgerFile = Path(".coco/n0/ledger.db"), as_json: Json = False) -> None:
    """What starts of this node did not believe: set aside in the same file, never deleted."""
    try:
        found = aside.listed(ledger)
    except CocoError as error:
        fail(error, as_json)

    def text() -> None:
        for one in found:
            what = f"entries {one['first']} to {one['last']}, {one['signed']} of {one['entries']} signed"
            console.print(f"{one['number']:>6}  {one['at']}  {one['reason']:<10} {what}")
        if not found:
            console.print("nothing is set aside")

    show({"aside": found}, as_json, text)


@ledger_app.command("put-back")
def ledger_put_back(
    number: Annotated[int, typer.Argument(help="Number, as coco ledger aside prints it.", min=1)],
    ledger: LedgerFile = Path(".coco/n0/ledger.db"),
    as_json: Json = False,
) -> None:
    """Make what was set aside part of the ledger again; what stands in its place is set aside.

    The node must be stopped.
    """
    try:
        done = aside.restore(ledger, number)
    except CocoError as error:
        fail(error, as_json)
    show(done, as_json, lambda: console.print(f"entries {done['first']} to {done['last']} are in the ledger again"))


@ledger_app.command("set-aside")
def ledger_set_aside(
    first: Annotated[int, typer.Argument(help="First entry that is to go.", min=1)],
    ledger: LedgerFile = Path(".coco/n0/ledger.db"),
    as_json: Json = False,
) -> None:
    """Set aside everything from an entry on, where it is damaged and no other copy is left.

    The node must be stopped.
    """
    try:
        done = aside.cut(ledger, first)
    except CocoError as error:
        fail(error, as_json)
    show(done, as_json, lambda: console.print(f"{done['entries']} entries are set aside under number {done['number']}"))


@account_app.command("bind")
def account_bind(
    account: Annotated[str, typer.Argument(help="Address, 0x and 40 hex digits.")],
    url: Annotated[str, typer.Option(help="Application listener of a node, https://host:port.")],
    service: Annotated[Path, typer.Option(help="Service certificate, PEM.", exists=True)],
    cert: Annotated[Path, typer.Option(help="Participant certificate, PEM.", exists=True)],
    key: Annotated[Path | None, typer.Option(help="Its key, PEM.", exists=True)] = None,
    nonce: Annotated[str, typer.Option(help="Nonce of the signed statement.")] = "",
    signature: Annotated[
        str, typer.Option(help="Signature of the statement; without it the statement is printed.")
    ] = "",
    as_json: Json = False,
) -> None:
    """Prove that an account is yours: print the statement to sign, or send its signature."""

    async def work() -> dict[str, Any]:
        digits = account.removeprefix("0x")
        if len(digits) != 40 or any(digit not in "0123456789abcdefABCDEF" for digit in digits):
            raise ConfigurationError(f"{account} is no address", code="cli.bad_address")
        context = service_context(service.read_text(), str(cert), str(key) if key else "")
        client = HttpsClient(*address(url), context)
        try:
            if signature:
                return await accounts.bind(client, account, nonce, signature)
            return await accounts.statement(client, account, nonce)
        finally:
            await client.close()

    done = run(work(), as_json)
    if signature:
        show(done, as_json, lambda: console.print(f"{account} is bound, transaction {done['transaction_id']}"))
    else:
        show(
            done,
            as_json,
            lambda: print(
                f"{done['text']}\nsign this with personal_sign, then add --nonce {done['nonce']} --signature 0x…"
            ),
        )


NodeDirectory = Annotated[Path, typer.Option("--dir", help="Folder of the node.")]
Listen = Annotated[str, typer.Option(help="IPv4 address to listen on.")]
Advertise = Annotated[
    str, typer.Option(help="Name or IPv4 address under which other nodes reach this one; by default where it listens.")
]
ApplicationPort = Annotated[
    int, typer.Option(help="Port of the application listener (TLS); 0 chooses one.", min=0, max=PORT_MAX)
]
AdministrationPort = Annotated[
    int, typer.Option(help="Port of the administration listener (TLS).", min=0, max=PORT_MAX)
]
MetricsPort = Annotated[
    int | None, typer.Option(help="Port of GET /metrics on loopback (plain HTTP).", min=0, max=PORT_MAX)
]
PeerPort = Annotated[int, typer.Option(help="Port for the other nodes (TLS).", min=0, max=PORT_MAX)]
ConstitutionFile = Annotated[
    Path | None, typer.Option(help="The rules in force, if they are not the genesis's any more.", exists=True)
]
GenesisFile = Annotated[Path, typer.Option(help="Genesis document, JSON.", exists=True)]
PlatformName = Annotated[str, typer.Option(help=f"Where the enclave runs: {', '.join(nodes.PLATFORMS)}.")]
EnclaveAt = Annotated[
    str, typer.Option(help="Where an enclave listens that somebody else starts: tcp:127.0.0.1:PORT, vsock:CID:PORT.")
]
EndorsementsOf = Annotated[
    str,
    typer.Option(
        help="What vendors say of the platform: a JSON file that is kept fresh, a service's URL, or azure-container."
    ),
]


def _serve(
    files: nodes.NodeFiles,
    join: list[str],
    listen: str,
    ports: tuple[int, int, int],
    metrics_port: int | None,
    as_json: bool,
    joined: Callable[[], Awaitable[object]] | None = None,
    *,
    left_is_done: bool = False,
) -> None:
    try:
        chosen = nodes.options(files, join=join, listen=listen, ports=ports, metrics_port=metrics_port)
    except CocoError as error:
        fail(error, as_json)
    try:
        run(nodes.serve(chosen, as_json=as_json, joined=joined), as_json)
    except typer.Exit as ended:
        raise typer.Exit(0 if left_is_done and ended.exit_code == LEFT else ended.exit_code) from None


@node_app.command("start")
def node_start(
    directory: NodeDirectory,
    genesis: GenesisFile,
    service: Annotated[Path | None, typer.Option(help="Service certificate to recover, PEM.", exists=True)] = None,
    listen: Listen = "127.0.0.1",
    advertise: Advertise = "",
    application_port: ApplicationPort = 0,
    administration_port: AdministrationPort = 0,
    peer_port: PeerPort = 0,
    metrics_port: MetricsPort = None,
    platform: PlatformName = "virtual",
    endorsements: EndorsementsOf = "",
    enclave: EnclaveAt = "",
    adapter: AdapterOf = None,
    adapter_path: AdapterPath = None,
    accept_clock: AcceptClock = False,
    as_json: Json = False,
) -> None:
    """Found a network with its first node; or recover it from this node's ledger, when all nodes are lost."""
    files = nodes.NodeFiles(
        directory,
        genesis,
        service,
        platform=platform,
        endorsements=endorsements,
        enclave=enclave,
        accept_clock=accept_clock,
        advertise=advertise,
        code=_adapters(adapter, adapter_path, as_json),
    )
    ports = (application_port, administration_port, peer_port)
    _serve(files, [], listen, ports, metrics_port, as_json)


@node_app.command("join")
def node_join(
    directory: NodeDirectory,
    peer: Annotated[list[str], typer.Option(help="host:port where a node listens for its peers; repeatable.")],
    genesis: GenesisFile,
    service: Annotated[Path, typer.Option(help="Service certificate, PEM.", exists=True)],
    operator: Annotated[Path | None, typer.Option(help="Certificate of the operator, PEM.", exists=True)] = None,
    operator_key: Annotated[Path | None, typer.Option(help="Its key; by default beside it.", exists=True)] = None,
    constitution: ConstitutionFile = None,
    listen: Listen = "127.0.0.1",
    advertise: Advertise = "",
    application_port: ApplicationPort = 0,
    administration_port: AdministrationPort = 0,
    peer_port: PeerPort = 0,
    metrics_port: MetricsPort = None,
    platform: PlatformName = "virtual",
    endorsements: EndorsementsOf = "",
    enclave: EnclaveAt = "",
    adapter: AdapterOf = None,
    adapter_path: AdapterPath = None,
    returns: Annotated[
        str, typer.Option(help="Id of the node that was told to leave this address: this one comes back there.")
    ] = "",
    left_is_done: Annotated[
        bool, typer.Option("--left-is-done", help="End with 0, not 5, once the network has let this node go.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Join a network as a new node; at the address of a dead one, replace it. A restart is a join.

    Once members or its operator have let this node go it ends with 5: a supervisor must not start it again.
    """
    files = nodes.NodeFiles(
        *(directory, genesis, service, operator, operator_key, platform, endorsements, enclave, constitution),
        returns=returns,
        advertise=advertise,
        code=_adapters(adapter, adapter_path, as_json),
    )
    ports = (application_port, administration_port, peer_port)
    _serve(files, peer, listen, ports, metrics_port, as_json, left_is_done=left_is_done)


@node_app.command("replace")
def node_replace(
    node_id: Annotated[str, typer.Argument(help="Id of the dead node, or its beginning.")],
    directory: NodeDirectory,
    admin: Annotated[str, typer.Option(help="Administration listener of a living node, https://host:port.")],
    genesis: GenesisFile,
    service: Annotated[Path, typer.Option(help="Service certificate, PEM.", exists=True)],
    operator: Annotated[Path, typer.Option(help="Certificate of the operator, PEM.", exists=True)],
    operator_key: Annotated[Path | None, typer.Option(help="Its key; by default beside it.", exists=True)] = None,
    constitution: ConstitutionFile = None,
    listen: Annotated[str, typer.Option(help="IPv4 address to listen on; by default that of the dead node.")] = "",
    advertise: Annotated[
        str, typer.Option(help="Name or IPv4 address under which others reach it; by default that of the dead node.")
    ] = "",
    application_port: ApplicationPort = 0,
    administration_port: AdministrationPort = 0,
    peer_port: PeerPort = 0,
    metrics_port: MetricsPort = None,
    platform: PlatformName = "virtual",
    endorsements: EndorsementsOf = "",
    enclave: EnclaveAt = "",
    as_json: Json = False,
) -> None:
    """Join in the place of a dead node: at its address, or at another one; then the dead one leaves."""
    host, port = address(admin)
    dead = run(nodes.find_dead(host, port, service, node_id), as_json)
    dead_host, _, dead_port = dead.address.rpartition(":")
    reached = advertise or listen or dead_host
    same = reached == dead_host and peer_port in (0, int(dead_port))
    files = nodes.NodeFiles(
        *(directory, genesis, service, operator, operator_key, platform, endorsements, enclave, constitution),
        advertise=reached,
    )
    ports = (application_port, administration_port, int(dead_port) if same else peer_port)

    async def let_go() -> None:
        await nodes.retire(host, port, service, operator, operator_key, dead.node_id)

    # At the same address one change of the members lets the new one in and the dead one go.
    listen = listen or nodes.where_to_listen(reached)
    _serve(files, dead.others, listen, ports, metrics_port, as_json, joined=None if same else let_go)


@node_app.command("retire")
def node_retire(
    admin: Annotated[str, typer.Argument(help="Administration listener of a node, https://host:port.")],
    node_id: Annotated[str, typer.Argument(help="Id of the node that is to leave.")],
    service: Annotated[Path, typer.Option(help="Service certificate, PEM.", exists=True)],
    operator: Annotated[Path, typer.Option(help="Certificate of its operator, PEM.", exists=True)],
    operator_key: Annotated[Path | None, typer.Option(help="Its key; by default beside it.", exists=True)] = None,
    as_json: Json = False,
) -> None:
    """Have a node leave its network, as its operator; a primary hands over first."""

    async def work() -> Any:
        return await nodes.retire(*address(admin), service, operator, operator_key, node_id)

    done = run(work(), as_json)
    show(done, as_json, lambda: console.print(f"{done['retired']} has left"))


Administration = Annotated[str, typer.Argument(help="Administration listener of a node, https://host:port.")]
ServiceFile = Annotated[Path, typer.Option(help="Service certificate, PEM.", exists=True)]


@node_app.command("measure")
def node_measure(as_json: Json = False) -> None:
    """The measurement of the code that this command runs: what members vote for before a node may run it."""
    found = run(nodes.measure(), as_json)
    show({"measurement": found, "platform": "insecure_virtual"}, as_json, lambda: console.print(found))


@app.command()
def measure(
    eif: Annotated[
        Path | None, typer.Option(help="An enclave image of AWS Nitro: print its registers instead.", exists=True)
    ] = None,
    as_json: Json = False,
) -> None:
    """The identity of the code that an enclave would run, part by part; and how each platform measures it."""
    if eif is not None:
        try:
            image = registers(eif)
        except CocoError as error:
            fail(error, as_json)
        show(image, as_json, lambda: console.print("\n".join(f"{name}  {value}" for name, value in image.items())))
        return
    found = measuring.identity()
    virtual = run(nodes.measure(), as_json)
    known = {**found, "measurements": {"insecure_virtual": virtual}, "platforms": measuring.PLATFORMS}

    def text() -> None:
        console.print(f"interpreter  {found['interpreter']['version']}  {found['interpreter']['sha256']}")
        for name, package in found["packages"].items():
            console.print(f"package      {name} {package['version']}  {package['record']}", markup=False)
        console.print(f"sources      {found['sources']}")
        for name, digest in found["constitutions"].items():
            console.print(f"constitution {name}  {digest}")
        for line in found["altered"]:
            console.print(f"[red]altered[/]      {line}")
        console.print(f"virtual      {virtual}")
        for name, how in measuring.PLATFORMS.items():
            console.print(f"{name}: {how}", markup=False)

    show(known, as_json, text)
    if found["altered"]:
        raise typer.Exit(4)


@node_app.command("status")
@app.command("status")
def network_status(
    admin: Administration,
    service: ServiceFile,
    once: Annotated[bool, typer.Option("--once", help="Print it once, on a terminal too.")] = False,
    as_json: Json = False,
) -> None:
    """A network as one of its nodes sees it, and what that node does; on a terminal it renews itself every second."""
    host, port = address(admin)
    if as_json or once or not console.is_terminal:
        found = run(nodes.status(host, port, service), as_json)
        if lost := statuses.majority_lost(found):
            found["majority_lost"] = lost
        show(found, as_json, lambda: console.print(statuses.view(found, None, 1.0)))
        return
    with contextlib.suppress(KeyboardInterrupt):
        run(statuses.watch(host, port, service), as_json)


@app.command()
def version(as_json: Json = False) -> None:
    """Print versions."""
    from coco._native import __version__ as native

    found = {"coco": native, "python": platform.python_version(), "platforms": ["insecure_virtual"]}
    show(
        found,
        as_json,
        lambda: console.print(f"coco {native}, Python {found['python']}, platform virtual only (INSECURE)"),
    )


@app.command()
def doctor(as_json: Json = False) -> None:
    """Say what is missing on this machine and how to get it."""
    findings = examination.examine()

    def text() -> None:
        for finding in findings:
            mark = "[green]ok[/]  " if finding["ok"] else "[red]MISSING[/]" if finding["needed"] else "[yellow]note[/]"
            console.print(f"{mark} {finding['name']}: {finding['says']}")
            if not finding["ok"] and finding["hint"]:
                console.print(f"     {finding['hint']}")

    show({"checks": findings}, as_json, text)
    if any(finding["needed"] and not finding["ok"] for finding in findings):
        raise typer.Exit(3)


def main(given: list[str]) -> int:
    """Run a command, and tell what went wrong as an error with a code; the exit code."""
    as_json = "--json" in given
    try:
        code = typer.main.get_command(app).main(given, prog_name="coco", standalone_mode=False)
    except NoArgsIsHelpError as error:
        return error.exit_code  # which has printed the help
    except ClickException as error:
        asked = f"coco {' '.join(one for one in given[:2] if not one.startswith('-'))} --help"
        return report(ConfigurationError(error.format_message(), code="cli.usage", hint=asked), as_json)
    except Exception as error:  # noqa: BLE001 - whatever it is, nobody is shown a traceback
        return report(explained(error), as_json)
    return code if isinstance(code, int) else 0
