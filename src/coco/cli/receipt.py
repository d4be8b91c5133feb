"""``coco receipt``: the proof of one transaction and its outcome, fetched from a node, verified without any."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from cryptography import x509

from coco.cli.options import Json, address
from coco.cli.output import console, run, show
from coco.client import proofs
from coco.client.files import write_whole
from coco.client.http import HttpsClient
from coco.client.pin import Pin
from coco.client.verify import service_context
from coco.errors import ConfigurationError
from coco.ledger.statements import fingerprint

receipt_app = typer.Typer(no_args_is_help=True, help="Prove that a transaction is in the ledger, and its outcome.")


@receipt_app.command("get")
def receipt_get(
    transaction: Annotated[str, typer.Argument(help="Hash of an Ethereum transaction, or view.seqno of an entry.")],
    url: Annotated[str, typer.Option(help="Application listener of a node, https://host:port.")],
    service: Annotated[Path, typer.Option(help="Service certificate, PEM.", exists=True)],
    cert: Annotated[Path, typer.Option(help="Participant certificate, PEM.", exists=True)],
    key: Annotated[Path | None, typer.Option(help="Its key, PEM.", exists=True)] = None,
    out: Annotated[Path | None, typer.Option(help="File for the receipt; by default it is printed.")] = None,
    as_json: Json = False,
) -> None:
    """Get the receipt of a transaction that you may see; it is verified before it is written."""

    async def work() -> dict[str, Any]:
        known = service.read_text()
        client = HttpsClient(*address(url), service_context(known, str(cert), str(key) if key else ""))
        try:
            found = await proofs.get(client, transaction)
        finally:
            await client.close()
        proofs.verify(found, Pin(known))
        return found

    found = run(work(), as_json)
    if out is None:
        print(json.dumps(found, indent=None if as_json else 1))
        return
    write_whole(out, found)
    show({"receipt": str(out)}, as_json, lambda: console.print(f"the receipt is in {out}", markup=False))


@receipt_app.command("verify")
def receipt_verify(
    file: Annotated[Path, typer.Argument(help="What coco receipt get wrote.", exists=True, dir_okay=False)],
    service: Annotated[Path | None, typer.Option(help="Certificate of the service that you know, PEM.")] = None,
    pin: Annotated[Path | None, typer.Option(help="Instead of it: what coco connect remembers.")] = None,
    member: Annotated[
        list[Path] | None,
        typer.Option(
            help="Certificate of a member, PEM; all of them, when the service has had another identity since."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Verify a receipt offline: outcome in the block, block in the entry, entry under a signature of the service."""
    found = proofs.verify(proofs.read(file), _known(service, pin, member or []))

    def text() -> None:
        console.print(
            f"verified: {found['transaction_id']}, signed at {found['signed_at']}, service {found['service']}"
        )
        one = found.get("transaction")
        if one is not None:
            console.print(f"transaction {one['hash']}  {one['status']}")
            console.print(f"block {one['block_number']}  {one['block_hash']}  index {one['index']}")
            for log in one["logs"]:
                console.print(
                    f"  log of {log['address']}  {' '.join(log['topics'])}  {log['data'][:200]}", markup=False
                )

    show(found, as_json, text)


def _known(service: Path | None, pin: Path | None, members: list[Path]) -> Pin:
    if (service is None) == (pin is None):
        raise ConfigurationError(
            "say which service you know", code="receipt.no_service", hint="either --service or --pin"
        )
    if pin is not None:
        found = Pin.load(pin)
        if found is None:
            raise ConfigurationError(f"there is no pin file {pin}", code="client.bad_pin")
        return found
    assert service is not None
    try:
        known = Pin(service.read_text())
        known.key()
        for path in members:
            text = path.read_text()
            known.members[fingerprint(x509.load_pem_x509_certificate(text.encode()))] = text
    except ValueError as error:
        raise ConfigurationError(
            f"a certificate is none: {error}", code="client.bad_certificate", hint="files are PEM"
        ) from error
    return known
