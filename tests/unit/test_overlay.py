"""A chain's state in a namespace of its own, and over another one: what is not in it is as below, and nothing below changes."""

from __future__ import annotations

import select
from typing import Any

from eth_account import Account

from coco._native import Background, Block, Chain, Store, Transaction

SENDER = Account.from_key("0xac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80")
WHO = bytes.fromhex(SENDER.address[2:])
CONTRACT = b"\xcc" * 20
SLOT = bytes(32)
#: Stores the word that it is called with in slot 0.
SETTER = bytes.fromhex("5f355f5500")
RICH = 10**18


class Chains:
    """A public chain, and two private ones over it in one namespace."""

    def __init__(self) -> None:
        self.store, self.background, self.version = Store(), Background(), 0
        for namespace in ("ethereum", "private"):
            for name in ("accounts", "storage", "code", "hashes"):
                self.store.declare(f"{namespace}.{name}", False)
        self.public = Chain(1, "osaka", 30_000_000, None)
        self.one, self.other = (
            Chain(1, "osaka", 30_000_000, None, namespace="private", over="ethereum", prefix=prefix)
            for prefix in (b"one/", b"other/")
        )
        rows: list[Any] = [
            (WHO, RICH.to_bytes(32, "big"), 0, b"", []),
            (CONTRACT, bytes(32), 1, SETTER, [(SLOT, (7).to_bytes(32, "big"))]),
        ]
        self.heads: dict[Chain, Block] = {}
        for chain, accounts in ((self.public, rows), (self.one, []), (self.other, [])):
            transaction = self.begin()
            self.take(chain, transaction, chain.genesis(transaction, accounts, 1, b""))

    def begin(self) -> Transaction:
        return self.store.begin(None, False)

    def take(self, chain: Chain, transaction: Transaction, block: Block) -> None:
        self.version += 1
        self.store.apply(self.version, transaction.write_set())
        chain.apply(block)
        self.heads[chain] = block

    def call(self, chain: Chain, nonce: int, value: int) -> None:
        """A block in which the sender has the contract store a value."""
        fields = {
            "chainId": 1,
            "gas": 100_000,
            "to": CONTRACT,
            "value": 5,
            "nonce": nonce,
            "data": value.to_bytes(32, "big"),
        }
        raw = bytes(SENDER.sign_transaction({**fields, "maxFeePerGas": 0, "maxPriorityFeePerGas": 0}).raw_transaction)
        chain.admit(self.background, [raw])
        assert select.select([self.background], [], [], 10)[0]
        ((_, admitted, _),) = self.background.take()
        transaction = self.begin()
        block, fates = chain.execute(
            transaction, self.heads[chain], nonce + 2, bytes(32), bytes(32), [admitted[0][0]], 0
        )
        assert block is not None and isinstance(fates[0], int) and block.receipt(0)["status"] == "0x1", fates
        self.take(chain, transaction, block)

    def slot(self, chain: Chain) -> int:
        return int.from_bytes(chain.storage(self.begin(), CONTRACT, SLOT), "big")

    def account(self, chain: Chain, at: bytes = WHO) -> tuple[int, int]:
        return chain.accounts(self.begin(), [at])[0]


def test_what_is_not_there_is_as_below():
    chains = Chains()
    for chain in (chains.public, chains.one, chains.other):
        assert (chains.slot(chain), chains.account(chain)) == (7, (0, RICH))
    chains.call(chains.public, 0, 8)
    assert (chains.slot(chains.one), chains.account(chains.one)) == (8, (1, RICH - 5))


def test_what_is_written_hides_what_is_below_and_changes_nothing_there():
    chains = Chains()
    below = {name: chains.store.scan(f"ethereum.{name}") for name in ("accounts", "storage", "code", "hashes")}
    chains.call(chains.one, 0, 9)
    assert (chains.slot(chains.one), chains.account(chains.one)) == (9, (1, RICH - 5))
    assert chains.account(chains.one, CONTRACT) == (1, 5)
    for chain in (chains.public, chains.other):
        assert (chains.slot(chain), chains.account(chain), chains.account(chain, CONTRACT)) == (7, (0, RICH), (1, 0))
    assert below == {name: chains.store.scan(f"ethereum.{name}") for name in below}
    keys = [key for key, _ in chains.store.scan("private.storage")]
    assert b"one/" + CONTRACT + SLOT in keys and all(key.startswith((b"one/", b"other/")) for key in keys)


def test_a_zero_hides_what_is_below_too():
    chains = Chains()
    chains.call(chains.one, 0, 0)
    assert (chains.slot(chains.one), chains.slot(chains.public)) == (0, 7)
    chains.call(chains.one, 1, 3)
    assert chains.slot(chains.one) == 3


def test_the_tries_of_each_are_its_own():
    chains = Chains()
    chains.call(chains.one, 0, 9)
    chains.call(chains.public, 0, 8)
    chains.call(chains.other, 1, 0)  # its nonce is the one below
    for chain in (chains.public, chains.one, chains.other):
        assert chain.rebuild(chains.begin()) == chains.heads[chain].state_root
    roots = {chains.heads[chain].state_root for chain in (chains.public, chains.one, chains.other)}
    assert len(roots) == 3
