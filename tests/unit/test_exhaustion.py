"""G3: memory that a call has not got ends that call, at every way into the extension and at every allocation in it."""

from __future__ import annotations

import select
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from eth_account import Account

from coco import _native
from coco._native import (
    Background,
    Block,
    Chain,
    LedgerSecret,
    Sealer,
    Store,
    WriteSet,
    check_transaction,
    exhaust_for_test,
    limit_memory,
    rlp_decode,
)
from coco.enclave.adapters.ethereum.adapter import TABLES
from coco.errors import NativeError

SENDER = Account.from_key("0x" + "11" * 32)
PRIVATE, PUBLIC = "coco.test", "public:coco.test"
#: Stores its calldata's first word, logs it, and returns it.
CODE = bytes.fromhex("5f35805f55805f5260205fa15f5260205ff3")
CREATION = bytes([0x60, len(CODE), 0x80, 0x60, 0x0A, 0x5F, 0x39, 0x5F, 0xF3, 0x00]) + CODE


def signed(nonce: int, **changes: Any) -> bytes:
    fields = {"nonce": nonce, "gas": 500_000, "chainId": 1, "value": 1, "to": "0x" + "22" * 20}
    fees = {"maxFeePerGas": 0, "maxPriorityFeePerGas": 0}
    return bytes(SENDER.sign_transaction({**fields, **fees, **changes}).raw_transaction)


class Node:
    """Store, chain and background of a node with one block."""

    def __init__(self) -> None:
        self.background = Background()
        self.store, self.chain = Store(), Chain(1, "osaka", 30_000_000, None)
        for name, is_log in [*((table.name, table.log) for table in TABLES), (PRIVATE, False), (PUBLIC, False)]:
            self.store.declare(name, is_log)
        accounts: list[Any] = [(bytes.fromhex(SENDER.address[2:]), (10**18).to_bytes(32, "big"), 0, b"", [])]
        transaction = self.begin()
        self.head = self.chain.genesis(transaction, accounts, 1, b"coco")
        self.store.apply(1, transaction.write_set())
        self.chain.apply(self.head)
        self.chain.committed(0)
        #: How often the tries were lost.
        self.lost = 0

    def begin(self) -> _native.Transaction:
        return self.store.begin(None, False)

    def admit(self, *raw: bytes) -> list[Any]:
        ticket = self.chain.admit(self.background, raw)
        assert select.select([self.background], [], [], 10)[0]
        ((done, found, error),) = self.background.take()
        assert done == ticket
        if error is not None:
            raise error
        return found

    def execute(self, envelopes: list[Any]) -> tuple[bytes | None, list[str | None]]:
        """The hash of the block, which is not applied; the next one finds the tries as they were, or knows that not."""
        try:
            block, verdicts = self.chain.execute(self.begin(), self.head, 2, bytes(32), bytes(32), envelopes, 0)
            # How long it took differs from run to run.
            return getattr(block, "hash", None), [None if isinstance(one, int) else one for one in verdicts]
        finally:
            if not self.chain.is_whole:
                self.lost += 1
                assert self.chain.rebuild(self.begin()) == self.head.state_root


@pytest.fixture(autouse=True)
def called_off():
    yield
    exhaust_for_test(0)


def every_failure(call: Callable[[], Any]) -> int:
    """Have each allocation of ``call`` fail in turn, and see it end with the code or as it ended before."""
    expected = call()
    for after in range(1, 1_000_000):
        exhaust_for_test(after)
        try:
            found = call()
        except NativeError as error:
            assert error.code == "native.out_of_memory", error
            assert exhaust_for_test(0) == 0
            continue
        if exhaust_for_test(0):
            assert found == expected and call() == expected
            return after - 1
        assert found == expected, "a failure that changes nothing is none"
    raise AssertionError("the call has no end")


def test_the_build_catches_exhaustion():
    assert _native.CATCHES_EXHAUSTION, "without it (docs/adr/0009) a failed allocation ends the process"


def test_G3_a_block_may_fail_at_every_allocation():
    node = Node()
    raw = [signed(0), signed(1, to=b"", value=0, data=CREATION), signed(2, gas=10**9)]
    envelopes = [found[0] for found in node.admit(*raw) if len(found) == 5]
    assert len(envelopes) == 2
    block, verdicts = node.execute(envelopes)
    assert block is not None and verdicts == [None, None]
    failures = every_failure(lambda: node.execute(envelopes))
    assert failures > 100 and 0 < node.lost < failures, "only what fails amid an update of the tries loses them"
    assert node.chain.rebuild(node.begin()) == node.head.state_root


def test_G3_queries_may_fail_at_every_allocation():
    node = Node()
    sender = bytes.fromhex(SENDER.address[2:])
    for kind in ("call", "estimate", "access_list"):
        arguments: Any = (node.head, sender, None, 10**7, 0, bytes(32), CREATION, [], [], False)
        assert every_failure(lambda: node.chain.query(kind, node.begin(), *arguments)) > 10
    assert every_failure(lambda: node.chain.proof(sender, [bytes(32)])) > 3


def test_G3_checks_may_fail_at_every_allocation():
    node, raw = Node(), signed(0)

    def admitted() -> list[tuple[Any, ...]]:
        # What fits in no envelope: every admission makes a new one.
        return [found[1:] for found in node.admit(raw, b"\x02\xc0", raw)]

    assert every_failure(admitted) > 3
    assert every_failure(lambda: check_transaction(raw, "osaka", 1)) > 1
    assert every_failure(lambda: rlp_decode(bytes.fromhex("c88363617483646f67"))) > 1


def test_G3_what_others_have_encoded_may_fail_at_every_allocation():
    writes = WriteSet([(PRIVATE, b"k%d" % n, b"v" * 40) for n in range(5)])
    public, private = writes.encode_public(), writes.encode_private()
    assert every_failure(lambda: WriteSet.decode(public, private).encode_private()) > 3
    node = Node()
    transaction = node.begin()
    transaction.put(PRIVATE, b"k", b"v")
    assert every_failure(lambda: transaction.write_set().encode_private()) >= 1


def test_G3_what_must_not_end_half_way_has_no_budget():
    node = Node()
    secret, sealer, tree = LedgerSecret.generate(), Sealer(2, 0), _native.MerkleTree()
    writes = WriteSet([(PRIVATE, b"k", b"v" * 100), (PUBLIC, b"k", b"w")])
    version = node.store.latest

    def one_entry(seqno: int) -> None:
        node.store.apply(version + seqno, writes)
        entry, leaf = sealer.seal(secret, 2, seqno, bytes(32), writes)
        tree.append(leaf)
        assert secret.open(entry).rows(PRIVATE) == [(b"k", b"v" * 100)]
        node.store.commit(version + seqno)

    exhaust_for_test(1)
    for seqno in range(1, 50):
        one_entry(seqno)
    node.store.roll_back(version + 49)
    node.store.prune(version + 40)
    node.chain.rebuild(node.begin())
    assert Block.decode(node.head.record()).hash == node.head.hash
    assert exhaust_for_test(0) == 1, "nothing of this counts"


def test_G3_a_call_has_its_budget():
    node = Node()
    # Writes to the end of two megabytes.
    greedy = bytes.fromhex("5f621fffe05200")
    query = partial(node.chain.query, "call", node.begin(), node.head, bytes(20), None, 2**24, 0, bytes(32), greedy)
    assert query([], [], False)[0][0] == "success"
    limit_memory(1 << 20, 0)
    try:
        with pytest.raises(NativeError) as refused:
            query([], [], False)
        assert refused.value.code == "native.out_of_memory"
        assert node.execute([node.admit(signed(0))[0][0]])[1] == [None]
    finally:
        limit_memory(2**62, 0)
    assert query([], [], False)[0][0] == "success"
