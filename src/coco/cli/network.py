"""``coco member keygen`` and ``coco network init``: keys of an actor, and the genesis of a network of several.

Nothing here is secret but the files whose names end in ``.key.pem``; the genesis holds certificates and public keys,
and every founding organisation can compare the file that it was given with the others'.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from cryptography import x509

from coco import addresses as known
from coco import constitutions
from coco.cli.keys import make_actor, make_encryption_key
from coco.configuration import supermajority
from coco.errors import ConfigurationError
from coco.ledger.statements import parse_json

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,59}")


def keygen(directory: Path, name: str, *, recovery: bool) -> dict[str, str]:
    """Make an actor's key and self-signed certificate; with ``recovery`` also the key for its recovery share.

    Returns:
        The files, by what they are.

    Raises:
        ConfigurationError: a file of that name is there (``network.file_exists``), or it is no name
            (``network.bad_name``).
    """
    if _NAME.fullmatch(name) is None:
        raise ConfigurationError(
            f"{name[:80]!r} names no files", code="network.bad_name", hint="1 to 60 of a-z, A-Z, 0-9, ., _ and -"
        )
    wanted = {"certificate": f"{name}.pem", "key": f"{name}.key.pem"}
    if recovery:
        wanted |= {"encryption": f"{name}.encryption.pem", "encryption_key": f"{name}.encryption.key.pem"}
    files = {what: directory / file for what, file in wanted.items()}
    for path in files.values():
        if path.exists():
            raise ConfigurationError(f"{path} is there already", code="network.file_exists")
    make_actor(directory, name)
    if recovery:
        files["encryption"].write_text(make_encryption_key(files["encryption_key"]))
    return {what: str(path) for what, path in files.items()}


@dataclass(frozen=True)
class Founding:
    """What the founders have agreed on."""

    name: str
    members: list[Path]
    participants: list[Path]
    #: ``CERTIFICATE=ADDRESS[,ADDRESS...]``
    operators: list[str]
    #: Name of one that ships, or a file.
    rules: str
    recovery_threshold: int
    chain_id: int
    fees: str
    insecure_virtual: bool
    #: How many of the members replace the rules whatever these say; empty: all under ``unanimous``, else two thirds.
    rules_supermajority: str = ""


def read_genesis(path: Path) -> dict[str, Any]:
    """A genesis document, as far as a host needs to understand it.

    Raises:
        ConfigurationError: there is none in the file (``node.bad_file``).
    """
    try:
        document = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise _no_genesis(path, str(error)) from error
    if not isinstance(document, dict) or not isinstance(document.get("network"), str):
        raise _no_genesis(path, "it names no network")
    return document


def _no_genesis(path: Path, why: str) -> ConfigurationError:
    return ConfigurationError(
        f"{path} is no genesis: {why}",
        code="node.bad_file",
        hint="take the file that coco network init or coco sandbox wrote, whole; founders compare its SHA-256",
    )


def _certificate(path: Path) -> str:
    try:
        text = path.read_text()
        x509.load_pem_x509_certificate(text.encode())
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{path} is no certificate: {error}", code="network.bad_certificate") from error
    return text


def _member(path: Path) -> dict[str, Any]:
    member: dict[str, Any] = {"cert": _certificate(path), "member_data": {"name": path.stem}}
    encryption = path.with_name(f"{path.stem}.encryption.pem")
    if encryption.exists():
        member["encryption_public_key"] = encryption.read_text()
    return member


def _operator(text: str) -> dict[str, Any]:
    path, separator, addresses = text.partition("=")
    if not separator or not addresses:
        raise ConfigurationError(f"{text}: an operator is CERTIFICATE=ADDRESS,...", code="network.bad_operator")
    return {"cert": _certificate(Path(path)), "addresses": [known.check(one) for one in addresses.split(",")]}


def _rules(text: str) -> str:
    if text in constitutions.NAMES:
        return constitutions.text(text)
    try:
        return Path(text).read_text()
    except OSError as error:
        names = ", ".join(constitutions.NAMES)
        raise ConfigurationError(f"{text} is neither a file nor one of {names}", code="network.bad_rules") from error


def _supermajority(founding: Founding) -> str:
    chosen = founding.rules_supermajority or ("1/1" if founding.rules == "unanimous" else supermajority.DEFAULT)
    supermajority.fraction(chosen)
    return chosen


def genesis(founding: Founding) -> dict[str, Any]:
    """The document.

    Raises:
        ConfigurationError: something in it is no such thing.
    """
    members = [_member(path) for path in founding.members]
    holders = sum("encryption_public_key" in member for member in members)
    if holders < founding.recovery_threshold:
        raise ConfigurationError(
            f"{founding.recovery_threshold} shares are to recover it, {holders} members have an encryption key",
            code="network.not_recoverable",
            hint="coco member keygen --recovery; NAME.encryption.pem lies beside NAME.pem",
        )
    return {
        "network": founding.name,
        "members": members,
        "participants": [
            {"cert": _certificate(path), "user_data": {"name": path.stem}} for path in founding.participants
        ],
        "operators": [_operator(text) for text in founding.operators],
        "recovery_threshold": founding.recovery_threshold,
        "constitution": _rules(founding.rules),
        "rules_supermajority": _supermajority(founding),
        "insecure_virtual": founding.insecure_virtual,
        "production": not founding.insecure_virtual,
        "adapters": {"ethereum": {"chain_id": founding.chain_id, "fees": {"policy": founding.fees}}},
    }


def write(founding: Founding, out: Path) -> dict[str, Any]:
    """Write the document where nothing is yet; what founders compare.

    Raises:
        ConfigurationError: as :func:`genesis`, or the file is there (``network.file_exists``).
    """
    if out.exists():
        raise ConfigurationError(f"{out} is there already", code="network.file_exists")
    document = genesis(founding)
    text = json.dumps(document, indent=1)
    out.write_text(text)
    return {
        "genesis": str(out),
        "sha256": sha256(text.encode()).hexdigest(),
        "members": len(document["members"]),
        "participants": len(document["participants"]),
        "constitution_sha256": sha256(document["constitution"].encode()).hexdigest(),
    }
