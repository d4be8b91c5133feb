"""Arguments of actions: what a member wrote, checked. Each raises ``gov.bad_argument`` unless it says otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from coco.configuration.draft import Draft, Validity
from coco.errors import GovernanceError

_TEXT_MAX = 1024 * 1024
_NAME_MAX = 1024
_HEX = frozenset("0123456789abcdef")
#: Forms of ``valid_from``: the open format's, and ISO 8601.
_TIMES = ("%y%m%d%H%M%SZ", "%Y-%m-%dT%H:%M:%SZ")


def refuse(message: str, code: str = "gov.bad_argument") -> GovernanceError:
    """The refusal of an argument, to be raised."""
    return GovernanceError(message, code=code)


def text(args: Mapping[str, Any], name: str, most: int = _TEXT_MAX) -> str:
    """A text that is not empty."""
    value = args.get(name)
    if not isinstance(value, str) or not 0 < len(value) <= most:
        raise refuse(f"{name} must be a text of 1 to {most} characters")
    return value


def key(args: Mapping[str, Any], name: str) -> str:
    """A text that is the key of a row."""
    return text(args, name, _NAME_MAX)


def digits(args: Mapping[str, Any], name: str, size: int) -> str:
    """So many lower-case hex digits."""
    value = text(args, name, _NAME_MAX).lower()
    if len(value) != size or not _HEX.issuperset(value):
        raise refuse(f"{name} must have {size} hex digits")
    return value


def certificate(args: Mapping[str, Any], name: str = "cert") -> x509.Certificate:
    """A certificate in PEM."""
    try:
        return x509.load_pem_x509_certificate(text(args, name).encode())
    except ValueError as error:
        raise refuse(f"{name} must be a certificate in PEM") from error


def spki(found: x509.Certificate) -> bytes:
    """DER SubjectPublicKeyInfo of a certificate's key, of whatever kind."""
    return found.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def data(args: Mapping[str, Any], name: str) -> dict[str, Any]:
    """An object; an empty one where there is none."""
    value = args.get(name)
    if value is not None and not isinstance(value, dict):
        raise refuse(f"{name} must be an object")
    return value if value is not None else {}


def texts(args: Mapping[str, Any], name: str) -> list[str]:
    """A list of texts."""
    value = args.get(name)
    if not isinstance(value, list) or not all(isinstance(one, str) and 0 < len(one) <= _NAME_MAX for one in value):
        raise refuse(f"{name} must be a list of texts")
    return value


def known(draft: Draft, table: str, key: str, what: str) -> dict[str, Any]:
    """The document of a row that must be there (``gov.unknown_...``)."""
    found = draft.document(table, key.encode())
    if found is None:
        raise refuse(f"there is no {what} {key[:64]}", f"gov.unknown_{what}")
    return found


def validity(draft: Draft, args: Mapping[str, Any]) -> Validity:
    """``valid_from`` and ``validity_period_days``, both optional; never longer than the settings allow."""
    most = int(draft.settings()["maximum_node_certificate_validity_days"])
    days = args.get("validity_period_days")
    if days is None:
        days = most
    if not isinstance(days, int) or isinstance(days, bool) or not 1 <= days <= most:
        raise refuse(f"validity_period_days must be a number from 1 to {most}")
    return Validity(_time(args), days)


def _time(args: Mapping[str, Any]) -> int | None:
    if args.get("valid_from") is None:
        return None
    written = text(args, "valid_from", 64)
    for form in _TIMES:
        try:
            return int(datetime.strptime(written, form).replace(tzinfo=UTC).timestamp())
        except ValueError:
            continue
    raise refuse("valid_from must be a time like 2026-01-31T00:00:00Z")
