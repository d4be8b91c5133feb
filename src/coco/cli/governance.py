"""Governance on the command line: ``coco member``, ``participant``, ``proposal``, ``constitution`` and ``network``."""

from __future__ import annotations

import json
import os
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from coco.cli import ledger as ledgers
from coco.cli import member as governing
from coco.cli import network as networks
from coco.cli.options import Admin, Json, ServicePem, address
from coco.cli.output import console, fail, run, show
from coco.client.governance import Governance
from coco.client.members import Member, Record, Trust, release
from coco.client.signer import Signer, Token
from coco.constitutions import NAMES
from coco.errors import CocoError, ConfigurationError

member_app = typer.Typer(no_args_is_help=True, help="Govern a network as a member.")
participant_app = typer.Typer(no_args_is_help=True, help="Participants of a network.")
proposal_app = typer.Typer(no_args_is_help=True, help="Read proposals, and rehearse one.")
constitution_app = typer.Typer(no_args_is_help=True, help="Read the constitution in a ledger.")
network_app = typer.Typer(no_args_is_help=True, help="Found a network of several organisations.")

_KINDS = ("proposal", "ballot", "withdrawal", "state_digest", "ack")
_PIN = "COCO_PKCS11_PIN"
MemberFile = Annotated[
    Path,
    typer.Option(help="Certificate of the member, PEM; or one that it issued, followed by its own.", exists=True),
]
MemberKey = Annotated[Path | None, typer.Option(help="Its key; by default beside it.", exists=True)]
Pkcs11 = Annotated[
    str | None, typer.Option(help=f"LIBRARY:TOKEN:KEY of a key in a token (PKCS#11); its PIN in {_PIN}.")
]


def _token(where: str) -> Token:
    parts = where.split(":")
    if len(parts) != 3:
        raise ConfigurationError("a key in a token is LIBRARY:TOKEN:KEY", code="client.token")
    return Token(Path(parts[0]), parts[1], parts[2], os.environ.get(_PIN, ""))


def _signer(cert: Path, key: Path | None, pkcs11: str | None, as_json: bool) -> Signer:
    try:
        return Signer.load(cert, _token(pkcs11) if pkcs11 else key or cert.with_name(cert.stem + ".key.pem"))
    except CocoError as error:
        fail(error, as_json)


ProposalFile = Annotated[Path, typer.Argument(help="Proposal, JSON; an argument @FILE is that file's text.")]
ProposalId = Annotated[str, typer.Argument(help="Id of the proposal.")]


def _govern(
    admin: str,
    service: Path,
    as_json: bool,
    work: Callable[[Governance], Awaitable[Any]],
    text: Callable[[Any], None] = governing.print_proposal,
    member_file: Path | None = None,
) -> None:
    """Do something and show it; a member whose certificate is given remembers how far it has seen the service."""
    record_file = Record.beside(member_file) if member_file is not None else None
    found = run(governing.with_governance(address(admin), service, work, record_file), as_json)
    show(found, as_json, lambda: text(found))


def _propose(content: dict[str, Any], admin: str, service: Path, cert: Path, member: Signer, as_json: bool) -> None:
    named = governing.for_service(content, service.read_text())
    _govern(admin, service, as_json, lambda network: network.propose(member, named), member_file=cert)


def _proposal(path: Path, as_json: bool) -> dict[str, Any]:
    try:
        return governing.read_proposal(path)
    except CocoError as error:
        fail(error, as_json)


def _table(rows: Mapping[str, Any]) -> None:
    for name, value in rows.items():
        console.print(f"{name:20} {value}")


@member_app.command("keygen")
def member_keygen(
    name: Annotated[str, typer.Argument(help="Name of the actor, and of its files.")],
    directory: Annotated[Path, typer.Option("--dir", help="Folder for the files.")] = Path(),
    recovery: Annotated[bool, typer.Option("--recovery", help="Also a key for a recovery share.")] = False,
    as_json: Json = False,
) -> None:
    """Make the key and certificate of a member, participant or operator."""
    try:
        files = networks.keygen(directory, name, recovery=recovery)
    except CocoError as error:
        fail(error, as_json)
    show(files, as_json, lambda: _table(files))


@network_app.command("init")
def network_init(
    name: Annotated[str, typer.Argument(help="Name of the network: a-z, 0-9 and -.")],
    member: Annotated[list[Path], typer.Option(help="Certificate of a member; NAME.encryption.pem beside it.")],
    participant: Annotated[list[Path] | None, typer.Option(help="Certificate of a participant; repeatable.")] = None,
    operator: Annotated[list[str] | None, typer.Option(help="CERTIFICATE=ADDRESS,...; repeatable.")] = None,
    constitution: Annotated[str, typer.Option(help=f"One of {', '.join(NAMES)}, or a file.")] = "majority",
    recovery_threshold: Annotated[int, typer.Option(help="Shares that recover the service.", min=1)] = 1,
    rules_supermajority: Annotated[
        str, typer.Option(help="Share of the members that replaces rules whatever they say; 2/3, or 1/1 for unanimous.")
    ] = "",
    chain_id: Annotated[int, typer.Option(help="Chain id of the Ethereum adapter.")] = 2017,
    fees: Annotated[str, typer.Option(help="free or eip1559.")] = "free",
    out: Annotated[Path, typer.Option(help="File for the genesis.")] = Path("genesis.json"),
    insecure_virtual: Annotated[
        bool, typer.Option("--insecure-virtual", help="Accept platform virtual, which proves nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Write the genesis of a network that several organisations found; compare its hash among you."""
    founding = networks.Founding(
        name,
        member,
        participant or [],
        operator or [],
        constitution,
        recovery_threshold,
        chain_id,
        fees,
        insecure_virtual,
        rules_supermajority,
    )
    try:
        written = networks.write(founding, out)
    except CocoError as error:
        fail(error, as_json)
    show(written, as_json, lambda: _table(written))


@member_app.command("propose")
def member_propose(
    proposal: ProposalFile,
    admin: Admin,
    service: ServicePem,
    cert: MemberFile,
    key: MemberKey = None,
    pkcs11: Pkcs11 = None,
    as_json: Json = False,
) -> None:
    """Make a proposal; it names the service that it is for, so that it counts nowhere else."""
    member = _signer(cert, key, pkcs11, as_json)
    _propose(_proposal(proposal, as_json), admin, service, cert, member, as_json)


@member_app.command("vote")
def member_vote(
    proposal: ProposalId,
    vote: Annotated[bool, typer.Option("--for/--against", help="The vote.")],
    admin: Admin,
    service: ServicePem,
    cert: MemberFile,
    key: MemberKey = None,
    pkcs11: Pkcs11 = None,
    as_json: Json = False,
) -> None:
    """Vote on a proposal, once."""
    member = _signer(cert, key, pkcs11, as_json)
    _govern(admin, service, as_json, lambda network: network.vote(member, proposal, vote), member_file=cert)


@member_app.command("withdraw")
def member_withdraw(
    proposal: ProposalId,
    admin: Admin,
    service: ServicePem,
    cert: MemberFile,
    key: MemberKey = None,
    pkcs11: Pkcs11 = None,
    as_json: Json = False,
) -> None:
    """Take a proposal of your own back."""
    member = _signer(cert, key, pkcs11, as_json)
    _govern(admin, service, as_json, lambda network: network.withdraw(member, proposal), member_file=cert)


@member_app.command("ack")
def member_ack(
    admin: Admin,
    service: ServicePem,
    cert: MemberFile,
    key: MemberKey = None,
    pkcs11: Pkcs11 = None,
    as_json: Json = False,
) -> None:
    """Acknowledge the state of the network: from then on you govern."""
    member = _signer(cert, key, pkcs11, as_json)
    said = lambda found: console.print(f"{found['memberId']} knows the state {found['stateDigest']}")  # noqa: E731
    _govern(admin, service, as_json, lambda network: network.acknowledge(member), said, cert)


@member_app.command("sign")
def member_sign(
    kind: Annotated[str, typer.Argument(help=f"One of {', '.join(_KINDS)}.")],
    out: Annotated[Path, typer.Option(help="File for the signed message.")],
    cert: MemberFile,
    content: Annotated[
        Path | None, typer.Argument(help="A proposal, or the JSON of another message; needed for proposal and ack.")
    ] = None,
    proposal: Annotated[str, typer.Option(help="Id of the proposal that a ballot or a withdrawal is about.")] = "",
    vote: Annotated[bool | None, typer.Option("--for/--against", help="The vote of a ballot.")] = None,
    service: Annotated[
        Path | None, typer.Option(help="Service certificate, PEM, which a proposal then names.", exists=True)
    ] = None,
    key: MemberKey = None,
    pkcs11: Pkcs11 = None,
    as_json: Json = False,
) -> None:
    """Sign a message without any network, to be sent later and by anybody (coco member send)."""
    member = _signer(cert, key, pkcs11, as_json)
    try:
        payload = governing.message(kind, content, vote, service)
        out.write_bytes(member.sign(kind, payload, proposal))
    except CocoError as error:
        fail(error, as_json)
    done = {"message": str(out), "type": kind, "member": member.member}
    show(done, as_json, lambda: _table(done))


@member_app.command("send")
def member_send(
    message: Annotated[Path, typer.Argument(help="A message that was signed before.", exists=True)],
    admin: Admin,
    service: ServicePem,
    as_json: Json = False,
) -> None:
    """Send a signed message to where it belongs."""
    signed = message.read_bytes()

    def text(found: Any) -> None:
        if "proposalId" in found:
            governing.print_proposal(found)
        else:
            _table(found)

    _govern(admin, service, as_json, lambda network: network.send(signed), text)


@member_app.command("share")
def member_share(
    admin: Admin,
    service: Annotated[Path, typer.Option(help="Certificate of the service that you knew, PEM.", exists=True)],
    cert: MemberFile,
    key: MemberKey = None,
    encryption_key: Annotated[
        Path | None, typer.Option(help="Key of your recovery share; by default NAME.encryption.key.pem.", exists=True)
    ] = None,
    encryption_pkcs11: Annotated[
        str | None, typer.Option(help=f"LIBRARY:TOKEN:KEY of that key in a token (PKCS#11); its PIN in {_PIN}.")
    ] = None,
    measurement: Annotated[
        list[str] | None, typer.Option(help="Code that the recovering node may run; repeatable. See coco constitution.")
    ] = None,
    insecure_virtual: Annotated[
        bool, typer.Option("--insecure-virtual", help="Accept platform virtual, which proves nothing.")
    ] = False,
    again: Annotated[
        bool, typer.Option("--again", help="A share went to another service before: that is over.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Help a service that lost all its nodes: state that it continues the one you knew, and give your share."""
    if not measurement and not insecure_virtual:
        fail(ConfigurationError("say which code you know, with --measurement", code="member.no_measurement"), as_json)
    signing = key or cert.with_name(cert.stem + ".key.pem")
    try:
        decrypting: Path | Token = encryption_key or cert.with_name(cert.stem + ".encryption.key.pem")
        if encryption_pkcs11:
            decrypting = _token(encryption_pkcs11)
        member = Member.load(cert, signing, decrypting)
    except CocoError as error:
        fail(error, as_json)
    trust = Trust(service.read_text(), tuple(measurement or ()), insecure_virtual, again)
    state = run(release(address(admin), member, trust, Record.beside(cert)), as_json)

    def text() -> None:
        given = len(state.get("shares", [])), len(state.get("statements", []))
        console.print(f"the service is {state['status']}; {given[0]} shares and {given[1]} statements wait")

    show(state, as_json, text)


@member_app.command("identity")
def member_identity(
    admin: Admin,
    service: ServicePem,
    cert: MemberFile,
    key: MemberKey = None,
    pkcs11: Pkcs11 = None,
    out: Annotated[Path | None, typer.Option(help="Write the announced certificate here, PEM.")] = None,
    as_json: Json = False,
) -> None:
    """State that the service's announced identity continues the one you know: clients follow a majority of members."""
    member, known = _signer(cert, key, pkcs11, as_json), service.read_text()

    def text(found: Any) -> None:
        if found["status"] != "Announced":
            console.print(f"no new identity is announced ({found['status']})")
            return
        console.print(f"{len(found['members'])} members have stated that it continues this one")
        if out is not None:
            console.print(f"once most have, the service is known by {out}")

    async def work(network: Governance) -> Any:
        found = await network.state(member, known)
        if out is not None and "next" in found:
            out.write_text(found["next"])
        return found

    _govern(admin, service, as_json, work, text)


@participant_app.command("add")
def participant_add(
    certificate: Annotated[Path, typer.Argument(help="Certificate of the participant, PEM.", exists=True)],
    admin: Admin,
    service: ServicePem,
    cert: MemberFile,
    key: MemberKey = None,
    pkcs11: Pkcs11 = None,
    name: Annotated[str, typer.Option(help="Name in its data; by default the name of the file.")] = "",
    as_json: Json = False,
) -> None:
    """Propose a participant, a certificate or an organisation's: what coco member propose does with set_user."""
    member = _signer(cert, key, pkcs11, as_json)
    args = {"cert": certificate.read_text(), "user_data": {"name": name or certificate.stem}}
    _propose({"actions": [{"name": "set_user", "args": args}]}, admin, service, cert, member, as_json)


@proposal_app.command("list")
def proposal_list(admin: Admin, service: ServicePem, as_json: Json = False) -> None:
    """Open proposals."""

    def text(found: Any) -> None:
        for one in found["value"]:
            governing.print_proposal(one)

    _govern(admin, service, as_json, lambda network: network.get("/members/proposals"), text)


@proposal_app.command("show")
def proposal_show(proposal: ProposalId, admin: Admin, service: ServicePem, as_json: Json = False) -> None:
    """A proposal, open or not, and what it would do."""

    async def work(network: Governance) -> Any:
        path = f"/members/proposals/{proposal}"
        return {**await network.get(path), **await network.get(f"{path}/actions")}

    def text(found: Any) -> None:
        governing.print_proposal(found)
        for action in found["actions"]:
            console.print(f"  {action['name']} {json.dumps(action.get('args'))[:500]}")

    _govern(admin, service, as_json, work, text)


@proposal_app.command("rehearse")
def proposal_rehearse(proposal: ProposalFile, admin: Admin, service: ServicePem, as_json: Json = False) -> None:
    """What a proposal would change if it were accepted now; nothing is written."""
    content = _proposal(proposal, as_json)
    _govern(admin, service, as_json, lambda network: network.rehearse(content), governing.print_rehearsal)


LedgerFile = Annotated[Path, typer.Option(help="Ledger of a node.")]


@constitution_app.command("show")
def constitution_show(
    at: Annotated[int, typer.Option("--at", help="Entry; by default the last one.")] = 1 << 62,
    ledger: LedgerFile = Path(".coco/n0/ledger.db"),
    as_json: Json = False,
) -> None:
    """The constitution at an entry of a ledger, as anyone can read it, and its versions so far."""
    try:
        document, versions = ledgers.constitution(ledger, at)
    except CocoError as error:
        fail(error, as_json)

    def text() -> None:
        for seqno, digest in versions:
            console.print(f"{seqno:>10}  {digest}")
        console.print_json(json.dumps(document))

    show({"constitution": document, "versions": versions}, as_json, text)


@constitution_app.command("diff")
def constitution_diff(
    before: Annotated[int, typer.Argument(help="Entry.")],
    after: Annotated[int, typer.Argument(help="A later entry.")],
    ledger: LedgerFile = Path(".coco/n0/ledger.db"),
    as_json: Json = False,
) -> None:
    """What changed in the constitution between two entries."""
    try:
        one, other = (ledgers.constitution(ledger, at)[0] for at in (before, after))
    except CocoError as error:
        fail(error, as_json)
    found = [{"at": at, "before": old, "after": new} for at, old, new in ledgers.differences(one, other)]

    def text() -> None:
        for row in found:
            console.print(f"{row['at']}\n  - {json.dumps(row['before'])}\n  + {json.dumps(row['after'])}")

    show({"changes": found}, as_json, text)
