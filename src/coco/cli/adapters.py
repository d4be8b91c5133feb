"""Ledger protocols of one's own: ``--adapter NAME=MODULE:ATTRIBUTE``, from folders that ``--adapter-path`` names.

For development: an enclave that is to be trusted runs what its bundle holds, and nothing beside it.
"""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final

import typer

from coco.errors import ConfigurationError
from coco.host.node import NodeOptions

_FORM: Final = re.compile(r"([a-z][a-z0-9_-]{0,31})=([A-Za-z_][\w.]*):([A-Za-z_]\w*)")
_SECONDS: Final = 60
#: Run by another interpreter, so that nothing of the adapter is left in this process; prints what its manifest says.
_LOOK: Final = """
import importlib, sys
sys.path[:0] = sys.argv[3:]
manifest = getattr(importlib.import_module(sys.argv[1]), sys.argv[2])({}).manifest()
print(manifest.name)
"""

AdapterOf = Annotated[
    list[str] | None,
    typer.Option(
        "--adapter", help="NAME=MODULE:ATTRIBUTE, a ledger protocol of your own; repeatable. For development."
    ),
]
AdapterPath = Annotated[
    list[Path] | None,
    typer.Option(help="Folder with its module, instead of the current one; repeatable.", file_okay=False, exists=True),
]


@dataclass(frozen=True)
class AdapterCode:
    """Adapters that an enclave is given besides its own."""

    #: ``module:attribute`` of each factory, by name.
    factories: dict[str, str] = field(default_factory=dict)
    path: list[str] = field(default_factory=list)

    @classmethod
    def parse(cls, given: Sequence[str], path: Sequence[Path]) -> AdapterCode:
        """Read options, and load what they name once, apart.

        Raises:
            ConfigurationError: they are malformed (``adapter.bad_option``), or the adapter cannot be loaded
                (``adapter.cannot_load``), with what Python says.
        """
        folders = [str(folder.resolve()) for folder in path or [Path.cwd()]]
        factories: dict[str, str] = {}
        for option in given:
            match = _FORM.fullmatch(option)
            if match is None or match[1] in factories:
                raise ConfigurationError(
                    f"{option[:200]} is no adapter",
                    code="adapter.bad_option",
                    hint="NAME=MODULE:ATTRIBUTE, such as kv=kv_ledger:adapter, each name once",
                )
            factories[match[1]] = f"{match[2]}:{match[3]}"
            _look(match[1], match[2], match[3], folders)
        return cls(factories, folders if factories else [])

    def into(self, options: NodeOptions) -> NodeOptions:
        """The options of a node that has these, too."""
        return dataclasses.replace(
            options,
            adapters={**options.adapters, **self.factories},
            extra_path=[*options.extra_path, *self.path],
        )


def _look(name: str, module: str, attribute: str, folders: list[str]) -> None:
    # What an operator names runs, here as in the enclave.
    command = [sys.executable, "-c", _LOOK, module, attribute, *folders]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise ConfigurationError(f"the adapter {name} takes too long to load", code="adapter.cannot_load") from error
    if done.returncode != 0:
        said = done.stderr.strip().splitlines()
        raise ConfigurationError(
            f"the adapter {name} cannot be loaded: {said[-1] if said else 'it ends the interpreter'}",
            code="adapter.cannot_load",
            hint=f"PYTHONPATH={':'.join(folders)} python -c 'import {module}' shows where",
        )
    if done.stdout.strip() != name:
        raise ConfigurationError(
            f"the adapter calls itself {done.stdout.strip()[:64]}, and not {name}", code="adapter.other_name"
        )
