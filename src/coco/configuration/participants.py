"""What is said of a participant (``user_data``), checked before it is written: whoever reads it understands it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from coco import limits
from coco.configuration.identities import ACCOUNTS_OF
from coco.errors import ConfigurationError

_IDENTITY: Final = re.compile(r"(0x)?([0-9a-fA-F]{2})+")
_IDENTITY_CHARACTERS_MAX: Final = 2 + 2 * limits.IDENTITY_BYTES_MAX
_ACCOUNT: Final = re.compile(r"(0x)?[0-9a-fA-F]{40}")


def check(data: Mapping[str, Any], *, production: bool) -> None:
    """Refuse what nobody could read, or what only a sandbox may say.

    Raises:
        ConfigurationError: ``configuration.insecure_any_account``, ``configuration.bad_accounts`` or
            ``configuration.bad_identities``.
    """
    check_alone(data, production=production)
    given = data.get("accounts", [])
    if not isinstance(given, list) or len(given) > limits.ACCOUNTS_MAX or not all(map(_is_account, given)):
        raise ConfigurationError(
            f"accounts are a list of at most {limits.ACCOUNTS_MAX} addresses",
            code="configuration.bad_accounts",
            hint="an address is 0x and 40 hex digits",
        )
    _check_identities(data)


def _check_identities(data: Mapping[str, Any]) -> None:
    given = data.get("identities", {})
    good = isinstance(given, dict) and all(
        isinstance(some, list) and len(some) <= limits.ACCOUNTS_MAX and all(map(_is_identity, some))
        for some in given.values()
    )
    if not good:
        raise ConfigurationError(
            f"identities are at most {limits.ACCOUNTS_MAX} for each adapter, by its name",
            code="configuration.bad_identities",
            hint=f"an identity is hex digits, of at most {limits.IDENTITY_BYTES_MAX} bytes",
        )


def check_alone(data: Mapping[str, Any], *, production: bool) -> None:
    """Refuse only what must never count, also where an earlier version took the rest.

    Raises:
        ConfigurationError: ``configuration.insecure_any_account``.
    """
    if data.get("insecure_any_account") and production:
        raise ConfigurationError(
            "insecure_any_account is for a sandbox only", code="configuration.insecure_any_account"
        )


def identities(data: Mapping[str, Any]) -> dict[str, frozenset[bytes]]:
    """What is recorded, by adapter; what an earlier version took and is none is nobody's."""
    named = data.get("identities", {})
    recorded = {
        adapter: frozenset(bytes.fromhex(text.removeprefix("0x")) for text in some if _is_identity(text))
        for adapter, some in (named if isinstance(named, dict) else {}).items()
        if isinstance(some, list)
    }
    accounts = data.get("accounts", [])
    if isinstance(accounts, list) and accounts:
        given = frozenset(bytes.fromhex(text.removeprefix("0x")) for text in accounts if _is_account(text))
        recorded[ACCOUNTS_OF] = recorded.get(ACCOUNTS_OF, frozenset()) | given
    return recorded


def _is_identity(text: Any) -> bool:
    return isinstance(text, str) and _IDENTITY.fullmatch(text) is not None and len(text) <= _IDENTITY_CHARACTERS_MAX


def _is_account(one: Any) -> bool:
    return isinstance(one, str) and _ACCOUNT.fullmatch(one) is not None
