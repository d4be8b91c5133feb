"""What is said of a participant (``user_data``), checked before it is written: whoever reads it understands it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from coco import limits
from coco.errors import ConfigurationError

_ACCOUNT: Final = re.compile(r"(0x)?[0-9a-fA-F]{40}")


def check(data: Mapping[str, Any], *, production: bool) -> None:
    """Refuse what nobody could read, or what only a sandbox may say.

    Raises:
        ConfigurationError: ``configuration.insecure_any_account`` or ``configuration.bad_accounts``.
    """
    check_alone(data, production=production)
    given = data.get("accounts", [])
    if not isinstance(given, list) or len(given) > limits.ACCOUNTS_MAX or not all(map(_is_account, given)):
        raise ConfigurationError(
            f"accounts are a list of at most {limits.ACCOUNTS_MAX} addresses",
            code="configuration.bad_accounts",
            hint="an address is 0x and 40 hex digits",
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


def accounts(data: Mapping[str, Any]) -> frozenset[bytes]:
    """The accounts that are recorded; what an earlier version took and is no address is nobody's."""
    given = data.get("accounts", [])
    if not isinstance(given, list):
        return frozenset()
    return frozenset(bytes.fromhex(one.removeprefix("0x")) for one in given if _is_account(one))


def _is_account(one: Any) -> bool:
    return isinstance(one, str) and _ACCOUNT.fullmatch(one) is not None
