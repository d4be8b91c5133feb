"""Parameters of the methods: what is no quantity, no data, no address is refused (``rpc.invalid_params``)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from coco._native import Block
from coco.enclave.adapters.contract import AdapterError, Caller, Request
from coco.enclave.adapters.ethereum import visibility

_INVALID_PARAMS = -32602


@dataclass(frozen=True)
class LogQuery:
    """Which logs: any of the addresses, and at each place any of the topics."""

    addresses: tuple[bytes, ...] = ()
    topics: tuple[tuple[bytes, ...], ...] = ()

    @property
    def size(self) -> int:
        """With how much each log is compared, at most."""
        return 1 + len(self.addresses) + sum(len(any_of) for any_of in self.topics)

    def matches(self, block: Block, caller: Caller) -> list[tuple[int, int]]:
        """``(transaction index, log position)`` of every match that the caller may see."""
        return self.among(block, visibility.transactions(block, caller))

    def among(self, block: Block, transactions: Sequence[int]) -> list[tuple[int, int]]:
        """The matches in these transactions of a block."""
        if not transactions:
            return []
        return block.match_logs(list(self.addresses), [list(any_of) for any_of in self.topics], transactions)


def bad_params(message: str) -> AdapterError:
    """The error for parameters of the wrong form."""
    return AdapterError(message, code="rpc.invalid_params", rpc_code=_INVALID_PARAMS)


def param(request: Request, index: int, default: Any = ...) -> Any:
    """A parameter by its place; ``default`` where it is absent or null, if there is one."""
    params = request.params
    if not isinstance(params, list):
        if not params and default is not ...:
            return default
        raise bad_params("params must be a list")
    if index < len(params) and not (params[index] is None and default is not ...):
        return params[index]
    if default is ...:
        raise bad_params(f"missing value for required argument {index}")
    return default


def quantity(value: Any, *, most: int = (1 << 256) - 1) -> int:
    """A number written as 0x-prefixed hex."""
    if isinstance(value, str) and value.startswith("0x") and 2 < len(value) <= 66:
        try:
            number = int(value[2:], 16) if value[2:].isalnum() else -1
        except ValueError:
            number = -1
        if 0 <= number <= most:
            return number
    raise bad_params(f"{str(value)[:80]!r} is not a quantity")


def data(value: Any, *, size: int | None = None) -> bytes:
    """Bytes written as 0x-prefixed hex."""
    if isinstance(value, str) and value[:2] in ("0x", "0X"):
        try:
            found = bytes.fromhex(value[2:])
        except ValueError:
            found = b""
        # ``fromhex`` skips white space, which then is missing from the length.
        if 2 * len(found) + 2 == len(value) and (size is None or len(found) == size):
            return found
    raise bad_params(f"{str(value)[:80]!r} is not {'data' if size is None else f'{size} bytes'} in hex")


def address(value: Any) -> bytes:
    """An address in any case."""
    return data(value, size=20)


def raw_transaction(request: Request) -> bytes:
    """The raw transaction of a submission."""
    return data(param(request, 0))


def log_query(value: Any) -> LogQuery:
    """Addresses and topics of a filter object."""
    if not isinstance(value, dict):
        raise bad_params("a filter is an object")
    wanted = value.get("address") or []
    addresses = tuple(address(one) for one in (wanted if isinstance(wanted, list) else [wanted]))
    topics: list[tuple[bytes, ...]] = []
    given = value.get("topics") or []
    if not isinstance(given, list) or len(given) > 4 or len(addresses) > 1000:
        raise bad_params("too many topics or addresses")
    for place in given:
        if place is None:
            topics.append(())
        elif isinstance(place, list):
            # A null inside a list of alternatives means anything.
            alternatives = () if None in place else tuple(data(one, size=32) for one in place)
            topics.append(alternatives)
        else:
            topics.append((data(place, size=32),))
    return LogQuery(addresses, tuple(topics))
