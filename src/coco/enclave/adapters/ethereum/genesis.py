"""Settings of the Ethereum adapter in the genesis document."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from coco.errors import ConfigurationError

_Hex = Annotated[str, Meta(pattern=r"^0x[0-9a-fA-F]*$", max_length=100_000)]
_Address = Annotated[str, Meta(pattern=r"^0x[0-9a-fA-F]{40}$")]


class Account(msgspec.Struct, forbid_unknown_fields=True):
    """An account that exists from the start."""

    balance: Annotated[str, Meta(pattern=r"^(0x[0-9a-fA-F]{1,64}|[0-9]{1,78})$")] = "0"
    nonce: Annotated[int, Meta(ge=0, lt=1 << 62)] = 0
    code: _Hex = "0x"
    storage: dict[_Hex, _Hex] = {}


class Fees(msgspec.Struct, forbid_unknown_fields=True):
    """Fee policy: ``free`` (zero base fee; gas limits still hold) or ``eip1559``."""

    policy: Literal["free", "eip1559"] = "free"
    initial_base_fee: Annotated[int, Meta(ge=0, lt=1 << 62)] = 1_000_000_000


class EthereumSettings(msgspec.Struct, forbid_unknown_fields=True):
    """All settings of the chain."""

    chain_id: Annotated[int, Meta(ge=1, lt=1 << 53)]
    fork: Literal["paris", "shanghai", "cancun", "prague", "osaka"] = "osaka"
    gas_limit: Annotated[int, Meta(ge=5_000_000, lt=1 << 53)] = 500_000_000
    fees: Fees = msgspec.field(default_factory=Fees)
    alloc: dict[_Address, Account] = {}
    timestamp: Annotated[int, Meta(ge=0, lt=1 << 40)] = 0
    #: ``private``: what is a participant's is hidden from others and from code that runs for them, and no price tells
    #: of it. ``transparent``: every participant sees everything, and the machine is Ethereum's. docs/confidentiality.md
    visibility: Literal["private", "transparent"] = "private"
    #: Whether the parties of a transaction get its receipt (``coco receipt``) though others' transactions are in its
    #: block: the header that a receipt takes has their gas and the bloom of their logs. Auditors always get it.
    proofs_to_parties: bool = False

    @classmethod
    def parse(cls, settings: Mapping[str, Any]) -> EthereumSettings:
        """Check settings.

        Raises:
            ConfigurationError: ``configuration.ethereum``.
        """
        try:
            return msgspec.convert(dict(settings), cls)
        except msgspec.ValidationError as error:
            raise ConfigurationError(f"ethereum settings: {error}", code="configuration.ethereum") from error

    def rows(self) -> list[tuple[bytes, bytes, int, bytes, list[tuple[bytes, bytes]]]]:
        """The accounts in the extension's form."""
        return [
            (
                bytes.fromhex(address[2:]),
                int(account.balance, 0).to_bytes(32, "big"),
                account.nonce,
                _data(account.code),
                [(_word(slot), _word(value)) for slot, value in account.storage.items()],
            )
            for address, account in self.alloc.items()
        ]


def _data(text: str) -> bytes:
    try:
        return bytes.fromhex(text[2:])
    except ValueError as error:
        raise ConfigurationError("odd hex in the alloc", code="configuration.ethereum") from error


def _word(text: str) -> bytes:
    number = int(text, 16) if len(text) > 2 else 0
    if number >= 1 << 256:
        raise ConfigurationError("a storage word is over 32 bytes", code="configuration.ethereum")
    return number.to_bytes(32, "big")
