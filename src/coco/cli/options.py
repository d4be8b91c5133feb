"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import typer

from coco.errors import ConfigurationError

Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Admin = Annotated[str, typer.Option(help="Administration listener of a node, https://host:port.")]
ServicePem = Annotated[Path, typer.Option(help="Service certificate, PEM.", exists=True)]


def address(url: str) -> tuple[str, int]:
    """Host and port of a listener.

    Raises:
        ConfigurationError: it is none (``cli.bad_url``).
    """
    parts = urlsplit(url)
    if parts.scheme != "https" or not parts.hostname or not parts.port:
        raise ConfigurationError(f"{url} is no https://host:port", code="cli.bad_url")
    return parts.hostname, parts.port
