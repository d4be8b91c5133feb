"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final
from urllib.parse import urlsplit

import typer

from coco.errors import ConfigurationError

#: Of an option that names a port; 0 chooses one.
PORT_MAX: Final = 65_535
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Admin = Annotated[str, typer.Option(help="Administration listener of a node, https://host:port.")]
ServicePem = Annotated[Path, typer.Option(help="Service certificate, PEM.", exists=True)]


def address(url: str) -> tuple[str, int]:
    """Host and port of a listener.

    Raises:
        ConfigurationError: it is none (``cli.bad_url``).
    """
    try:
        parts = urlsplit(url)
        host, at = parts.hostname, parts.port
    except ValueError:  # of a bracket or a port that is none
        host, at = None, None
    if not host or not at or parts.scheme != "https":
        raise ConfigurationError(
            f"{url[:200]} is no https://host:port",
            code="cli.bad_url",
            hint="a node prints its URLs when it starts, such as https://127.0.0.1:17102",
        )
    return host, at
