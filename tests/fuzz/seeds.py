"""Write well-formed inputs for the fuzzers to start from: seeds.py FOLDER_FOR_RUST FOLDER_FOR_PYTHON."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from eth_account import Account

from coco._native import WriteSet
from coco.channel import messages
from coco.channel.framing import FrameWriter
from coco.consensus import Driver, LedgerEntry, Members, Send, Start
from coco.ledger.transaction_id import TransactionId

_KEY = "0x" + "11" * 32
#: Whose transactions they are.
SENDER = Account.from_key(_KEY).address
_TO = "0x" + "22" * 20


def transactions() -> list[bytes]:
    common = {"to": _TO, "value": 1, "gas": 50_000, "nonce": 0, "chainId": 1, "data": "0x1234"}
    fees = {"maxFeePerGas": 2, "maxPriorityFeePerGas": 1}
    access = [{"address": _TO, "storageKeys": ["0x" + "00" * 32]}]
    permit = Account.sign_authorization({"chainId": 1, "address": _TO, "nonce": 1}, _KEY)
    kinds = [
        {**common, "gasPrice": 1},
        {**common, "type": 1, "gasPrice": 1, "accessList": access},
        {**common, "type": 2, **fees},
        {**common, "type": 4, **fees, "authorizationList": [permit]},
    ]
    return [bytes(Account.sign_transaction(kind, _KEY).raw_transaction) for kind in kinds]


def peers() -> list[bytes]:
    """What a node says to its peers around an election and an entry."""
    driver = Driver(1, Start(Members((1, 2, 3))))
    votes = [action.message for action in driver.campaign() + driver.persisted(9) if isinstance(action, Send)]
    alone = Driver(1, Start(Members((1,))))
    alone.campaign()
    alone.propose(LedgerEntry(TransactionId(2, 1), b"entry", False))
    alone.propose(LedgerEntry(TransactionId(2, 2), b"signature", True))
    alone.persisted(9)
    joining = alone.change_members([("learner", 2)]) + alone.persisted(99) + alone.tick() + alone.tick()
    return votes + [action.message for action in joining if isinstance(action, Send)]


def main(rust: Path, python: Path) -> None:
    http = [
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}GET /a HTTP/1.1\r\nconnection: close\r\n\r\n",
        b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n2;a=b\r\nhi\r\n0\r\nt: v\r\n\r\n",
        b"PUT /a?b=c HTTP/1.0\r\nexpect: 100-continue\r\nconnection: keep-alive, upgrade\r\nupgrade: h2c\r\n\r\n",
    ]
    writes = WriteSet([("public:t", b"k", b"v"), ("t", b"k", b"v"), ("t", b"gone", None)])
    sets = [writes.encode_private(), writes.encode_public()]
    seeds = [b"\x00" + one for one in transactions()] + [b"\x01" + one for one in transactions()]
    seeds += [b"\x02" + one for one in http] + [b"\x03" + one for one in sets]
    seeds += [b"\x04" + one for one in peers()]
    seeds.append(b'\x05{"jsonrpc":"2.0","id":"a","method":"eth_sendRawTransaction","params":["0x02"]}')
    for number, seed in enumerate(seeds):
        (rust / f"seed-{number}").write_bytes(seed)
    calls = [
        {"jsonrpc": "2.0", "id": 1, "method": "eth_sendRawTransaction", "params": ["0x" + transactions()[2].hex()]},
        {"id": None, "method": "eth_call", "params": [{"to": _TO, "data": "0x"}, "latest"]},
        [{"id": "a", "method": "eth_chainId"}, {"id": 2, "method": "eth_getLogs", "params": [{"topics": [None]}]}],
    ]
    raw, block = "0x" + transactions()[0].hex(), {"blockNumber": "0x0"}
    calls += [
        {"id": 1, "method": "eth_sendRawTransactionSync", "params": [raw, "0x1"]},
        {"id": 2, "method": "eth_getProof", "params": [SENDER, ["0x0"], block]},
        {"id": 3, "method": "eth_feeHistory", "params": ["0x2", "latest", [1.5, 50]]},
        {"id": 4, "method": "eth_getBlockByNumber", "params": ["0x0", True]},
        {"id": 5, "method": "eth_estimateGas", "params": [{"from": SENDER, "to": _TO, "value": "0x1"}]},
        {"id": 6, "method": "eth_newFilter", "params": [{"fromBlock": "0x0", "address": [_TO]}]},
    ]
    start = messages.Start("create", 0, 1, b"{}", b"", "", ["localhost"], "127.0.0.1:1", ["127.0.0.1:2"])
    spoken: list[messages.ToEnclave] = [
        start,
        messages.Entries(1, [b"x"]),
        messages.OwnerStatement(b"x"),
        messages.DialFailed(1),
    ]
    spoken += [
        messages.Appended(4),
        messages.Tick(5),
        messages.Stop(),
        messages.ExternalReceived(1, b"x"),
        messages.ExternalClosed(1, "ended"),
    ]
    told: list[messages.ToHost] = [
        messages.Append(1, [b"x"]),
        messages.Log("a.b", {"n": 1}, {}),
        messages.Exit("a", {}, {}),
    ]
    told += [messages.Identity("aa", "bb"), messages.Dial(1, "127.0.0.1:2")]
    frames = [b"\x00\x00" + FrameWriter().frame(messages.encode(one)) for one in spoken]
    frames += [b"\x00\x01" + messages.encode(one) for one in spoken]
    frames += [b"\x01" + messages.encode(one) for one in told]
    frames += [b"\x02" + json.dumps(call).encode() for call in calls]
    frames += [b"\x03\x81\x85abcd" + bytes(x ^ y for x, y in zip(b"hello", b"abcda", strict=True))]
    for number, seed in enumerate(frames):
        (python / f"seed-{number}").write_bytes(seed)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
