"""``coco policy`` and ``coco verify-node``: what evidence proves, and which rule of a policy holds or does not."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from coco.attestation.evidence import Evidence
from coco.attestation.policy import RANKS, Finding, Policy, judge
from coco.attestation.verified import Verified
from coco.cli.options import Json, address
from coco.cli.output import console, fail, run, show
from coco.client.pin import Pin
from coco.client.verify import verify_node
from coco.errors import CocoError, ConfigurationError
from coco.ledger.statements import parse_json

policy_app = typer.Typer(no_args_is_help=True, help="Decide about evidence offline.")

PolicyFile = Annotated[Path | None, typer.Option(help="Policy, JSON (docs/tee.md).", exists=True)]


def read_policy(path: Path | None, *, insecure_virtual: bool = False) -> Policy:
    """The policy in a file; without one, a policy that accepts nothing, or platform virtual.

    Raises:
        ConfigurationError: the file holds something else (``attestation.bad_policy``).
    """
    if path is None:
        return Policy(insecure_virtual=insecure_virtual)
    return Policy.parse(path.read_bytes())


def _read_evidence(path: Path, platform: str, endorsements: Path | None) -> Evidence:
    data = path.read_bytes()
    if not platform:
        try:
            return Evidence.parse(parse_json(data))
        except (ValueError, AttributeError) as error:
            text = f"{path} is no JSON of a node; a report as the platform made it needs --platform"
            raise ConfigurationError(text, code="policy.bad_evidence") from error
    if platform not in RANKS:
        known = ", ".join(RANKS)
        raise ConfigurationError(f"--platform is one of {known}", code="policy.bad_evidence")
    try:
        given = parse_json(endorsements.read_bytes()) if endorsements is not None else {}
        return Evidence(platform, data, {str(name): str(value) for name, value in given.items()})
    except (ValueError, AttributeError) as error:
        raise ConfigurationError(f"{endorsements} is no JSON object", code="policy.bad_evidence") from error


def _shown(verified: Verified, findings: list[Finding]) -> dict[str, Any]:
    return {
        **verified.to_json(),
        "accepted": all(finding.passed for finding in findings),
        "rules": [
            {"rule": one.rule, "passed": one.passed, "why": one.why, **({} if one.passed else {"code": one.code})}
            for one in findings
        ],
    }


def _print(verified: Verified, findings: list[Finding]) -> None:
    until = datetime.fromtimestamp(min(verified.valid_until_s, 1 << 35), UTC)
    console.print(f"platform     {verified.platform}")
    console.print(f"measurement  {verified.measurement}")
    if verified.signer:
        console.print(f"signer       {verified.signer}")
    console.print(f"report data  {verified.report_data.hex()}")
    if verified.tcb_status:
        console.print(f"firmware     {verified.tcb_status}  {', '.join(verified.advisories)}")
    console.print(f"endorsed     until {until:%Y-%m-%d %H:%M} UTC")
    for one in findings:
        console.print("  [green]passes[/]  " if one.passed else "  [red]fails[/]   ", end="")
        console.print(f"{one.rule:18} {one.why}" + ("" if one.passed else f"  [{one.code}]"), markup=False)


@policy_app.command("explain")
def policy_explain(
    evidence: Annotated[
        Path, typer.Argument(help="Evidence: JSON of /node/attestation, or a raw report.", exists=True)
    ],
    policy: PolicyFile = None,
    platform: Annotated[str, typer.Option(help="Platform of a raw report.")] = "",
    endorsements: Annotated[Path | None, typer.Option(help="Endorsements of a raw report, JSON.", exists=True)] = None,
    now: Annotated[str, typer.Option(help="Verify at this time (ISO 8601); by default now.")] = "",
    as_json: Json = False,
) -> None:
    """Verify evidence, and show which rule of a policy it passes or fails, and why. Exit code 4: not accepted."""
    try:
        now_s = int(datetime.fromisoformat(now).replace(tzinfo=UTC).timestamp()) if now else int(time.time())
    except ValueError:
        fail(ConfigurationError(f"{now} is no time", code="policy.bad_time"), as_json)
    try:
        verified = _read_evidence(evidence, platform, endorsements).verify(now_s=now_s)
        findings = judge(verified, read_policy(policy))
    except CocoError as error:
        fail(error, as_json)
    show(_shown(verified, findings), as_json, lambda: _print(verified, findings))
    if not all(finding.passed for finding in findings):
        raise typer.Exit(4)


def verify_node_command(
    url: Annotated[str, typer.Argument(help="Administration listener of the node, https://host:port.")],
    policy: PolicyFile = None,
    pin: Annotated[Path | None, typer.Option(help="Pin file: the service must be, or follow, the one in it.")] = None,
    insecure_virtual: Annotated[
        bool, typer.Option("--insecure-virtual", help="Accept platform virtual, which proves nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Verify a node by fresh evidence, before anything else is sent to it."""

    async def work() -> dict[str, Any]:
        known = Pin.load(pin) if pin is not None else None
        if pin is not None and known is None:
            raise ConfigurationError(f"there is no pin file {pin}", code="client.bad_pin")
        accepted = read_policy(policy, insecure_virtual=insecure_virtual)
        node = await verify_node(*address(url), known, policy=accepted)
        if pin is not None and known is not None:
            known.save(pin)
        return {**_shown(node.evidence, judge(node.evidence, accepted)), "service": node.service}

    found = run(work(), as_json)

    def text() -> None:
        if found["platform"] == "insecure_virtual":
            console.print("[red]INSECURE: virtual. The node's evidence proves nothing.[/]")
        console.print(f"verified: {found['platform']} {found['measurement']}")
        for rule in found["rules"]:
            console.print(f"  passes  {rule['rule']:18} {rule['why']}", markup=False)

    show(found, as_json, text)
