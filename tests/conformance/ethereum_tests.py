"""Run public Ethereum test data against the machine, below the pool: ``python run.py DIR``.

DIR is laid out like ethereum/tests: any of GeneralStateTests, TransactionTests, TrieTests and RLPTests. Each failure is
printed with its reason; the last line is ``N passed, N failed``. A state test runs in the newest fork that it names.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from coco import _native
from coco.errors import CocoError

#: Names of the suite, oldest first.
FORKS = {
    "Frontier": "frontier",
    "Homestead": "homestead",
    "EIP150": "tangerine",
    "EIP158": "spurious_dragon",
    "Byzantium": "byzantium",
    "Constantinople": "byzantium",
    "ConstantinopleFix": "petersburg",
    "Istanbul": "istanbul",
    "Berlin": "berlin",
    "London": "london",
    "Paris": "paris",
    "Merge": "paris",
    "Shanghai": "shanghai",
    "Cancun": "cancun",
    "Prague": "prague",
    "Osaka": "osaka",
}
_ORDER = list(FORKS)


def data(text: str) -> bytes:
    digits = text.removeprefix("0x")
    return bytes.fromhex(digits if len(digits) % 2 == 0 else "0" + digits)


def number(text: str) -> bytes:
    # The suite writes some numbers that no 256-bit word holds as 0x:bigint 0x...
    value = int(text.removeprefix("0x:bigint "), 16) if text not in ("", "0x") else 0
    if value >= 1 << 256:
        raise OverflowError("over 256 bits")
    return value.to_bytes(32, "big")


def files(directory: Path) -> Iterator[tuple[Path, str, Any]]:
    for path in sorted(directory.rglob("*.json")):
        for name, test in json.loads(path.read_text()).items():
            if name != "_info":
                yield path, name, test


# --- state --------------------------------------------------------------------------------------------------------


def _store() -> _native.Store:
    store = _native.Store()
    for table in ("accounts", "storage", "code", "hashes"):
        store.declare(f"ethereum.{table}", False)
    return store


def state_case(test: dict[str, Any], fork: str, case: dict[str, Any]) -> None:
    env, transaction = test["env"], test["transaction"]
    at = case["indexes"]
    accounts = [
        (
            data(address),
            number(account["balance"]),
            int(account["nonce"], 16),
            data(account["code"]),
            [(number(slot), number(value)) for slot, value in account["storage"].items()],
        )
        for address, account in test["pre"].items()
    ]
    access_lists = transaction.get("accessLists")
    access_list = access_lists[at["data"]] if access_lists else None
    price = transaction.get("gasPrice", transaction.get("maxFeePerGas", "0x0"))
    kind = 0
    if access_list is not None:
        kind = 1
    if "maxFeePerGas" in transaction:
        kind = 2
    if "blobVersionedHashes" in transaction:
        kind = 3
    if "authorizationList" in transaction:
        kind = 4
    expected_exception = case.get("expectException")
    try:
        message = {
            "type": kind,
            "sender": data(transaction["sender"]),
            "to": data(transaction["to"]) if transaction["to"] else b"",
            "nonce": number(transaction["nonce"]),
            "gas_limit": number(transaction["gasLimit"][at["gas"]]),
            "gas_price": number(price),
            "max_priority_fee": number(transaction["maxPriorityFeePerGas"])
            if "maxPriorityFeePerGas" in transaction
            else None,
            "value": number(transaction["value"][at["value"]]),
            "data": data(transaction["data"][at["data"]]),
            "access_list": [
                (data(row["address"]), [number(key) for key in row["storageKeys"]]) for row in access_list or []
            ],
            "blob_hashes": [data(one) for one in transaction.get("blobVersionedHashes", [])],
            "max_fee_per_blob_gas": number(transaction.get("maxFeePerBlobGas", "0x0")),
            "authorization_list": [
                {
                    "chain_id": number(row["chainId"]),
                    "address": data(row["address"]),
                    "nonce": number(row["nonce"]),
                    "v": number(row.get("yParity", row.get("v", "0x0"))),
                    "r": number(row["r"]),
                    "s": number(row["s"]),
                }
                for row in transaction.get("authorizationList", [])
            ]
            or None,
        }
    except OverflowError:
        # Such a transaction cannot be written down at all: the suite expects it to be refused.
        assert expected_exception, "a number over 256 bits without an expected exception"
        return
    surroundings = {
        "number": number(env["currentNumber"]),
        "coinbase": data(env["currentCoinbase"]),
        "timestamp": number(env["currentTimestamp"]),
        "gas_limit": number(env["currentGasLimit"]),
        "base_fee": number(env.get("currentBaseFee", "0x0")),
        "difficulty": number(env.get("currentDifficulty", "0x0")),
        "random": number(env.get("currentRandom", env.get("currentDifficulty", "0x0"))),
        "excess_blob_gas": number(env.get("currentExcessBlobGas", "0x0")),
    }
    included, root, logs, reason = _native.Chain.state_test(
        _store().begin(None, False), fork, accounts, surroundings, message
    )
    if expected_exception:
        assert not included, f"accepted, but the suite expects {expected_exception}"
    else:
        assert included, f"refused: {reason}"
    if included:
        assert logs == data(case["logs"]), "other logs"
        assert root == data(case["hash"]), f"state root {root.hex()}, not {case['hash']}"


def _unknown(forks: list[str]) -> None:
    raise AssertionError(f"unknown forks {forks}")


def state_tests(directory: Path) -> Iterator[tuple[str, Callable[[], None]]]:
    for path, name, test in files(directory):
        fork = max((f for f in test["post"] if f in FORKS), key=_ORDER.index, default=None)
        if fork is None:
            yield (
                f"{path.name}:{name}",
                functools.partial(_unknown, list(test["post"])),
            )
            continue
        for index, case in enumerate(test["post"][fork]):
            yield (
                f"{path.name}:{name}[{fork},{index}]",
                functools.partial(state_case, test, FORKS[fork], case),
            )


# --- transactions -------------------------------------------------------------------------------------------------


def transaction_case(raw: str, fork: str, expected: dict[str, Any]) -> None:
    try:
        identity, sender, gas = _native.check_transaction(data(raw), FORKS[fork], 1)
    except (CocoError, ValueError) as error:
        assert "exception" in expected, f"refused ({error}), but the suite accepts it"
        return
    assert "exception" not in expected, f"accepted, but the suite expects {expected['exception']}"
    assert identity == data(expected["hash"]), "other hash"
    assert sender == data(expected["sender"]), "other sender"
    assert gas == int(expected["intrinsicGas"], 16), f"intrinsic gas {gas}, not {expected['intrinsicGas']}"


def transaction_tests(directory: Path) -> Iterator[tuple[str, Callable[[], None]]]:
    for path, name, test in files(directory):
        for fork, expected in test["result"].items():
            yield (
                f"{path.name}:{name}[{fork}]",
                functools.partial(transaction_case, test["txbytes"], fork, expected),
            )


# --- tries --------------------------------------------------------------------------------------------------------


def _text(value: str | None) -> bytes:
    if value is None:
        return b""
    return data(value) if value.startswith("0x") else value.encode()


def trie_case(test: dict[str, Any], secure: bool) -> None:
    rows = list(test["in"].items()) if isinstance(test["in"], dict) else test["in"]
    trie = _native.Trie()
    for key, value in rows:
        trie.set(_native.keccak256(_text(key)) if secure else _text(key), _text(value))
    assert trie.root() == data(test["root"]), "other root"


def trie_tests(directory: Path) -> Iterator[tuple[str, Callable[[], None]]]:
    for path, name, test in files(directory):
        if "root" in test:  # trietestnextprev.json asks for an order of keys, not for a root
            yield f"{path.name}:{name}", functools.partial(trie_case, test, "secure" in path.name.lower())


# --- RLP ----------------------------------------------------------------------------------------------------------


def _item(value: Any) -> Any:
    if isinstance(value, list):
        return [_item(one) for one in value]
    if isinstance(value, int) or (isinstance(value, str) and value.startswith("#")):
        whole = value if isinstance(value, int) else int(value[1:])
        return whole.to_bytes((whole.bit_length() + 7) // 8, "big")
    return value.encode()


def rlp_case(test: dict[str, Any]) -> None:
    encoded = data(test["out"])
    if test["in"] in ("INVALID", "VALID"):
        try:
            decoded = _native.rlp_decode(encoded)
        except CocoError:
            assert test["in"] == "INVALID", "refused, but valid"
            return
        assert test["in"] == "VALID", f"decoded as {decoded!r}, but invalid"
        assert _native.rlp_encode(decoded) == encoded
        return
    assert _native.rlp_encode(_item(test["in"])) == encoded, "other encoding"
    assert _native.rlp_decode(encoded) == _item(test["in"]), "other decoding"


def rlp_tests(directory: Path) -> Iterator[tuple[str, Callable[[], None]]]:
    for path, name, test in files(directory):
        yield f"{path.name}:{name}", functools.partial(rlp_case, test)


KINDS = {
    "GeneralStateTests": state_tests,
    "TransactionTests": transaction_tests,
    "TrieTests": trie_tests,
    "RLPTests": rlp_tests,
}


def run(directory: Path) -> tuple[dict[str, tuple[int, int]], list[str]]:
    """Counts of passed and failed cases by kind, and the failures with their reasons."""
    counts: dict[str, tuple[int, int]] = {}
    failures: list[str] = []
    for kind, tests in KINDS.items():
        if not (directory / kind).is_dir():
            continue
        passed = failed = 0
        for name, case in tests(directory / kind):
            try:
                case()
                passed += 1
            except Exception as error:  # a case that raises anything has failed, with that reason
                failed += 1
                failures.append(f"{kind} {name}: {type(error).__name__}: {error}")
        counts[kind] = (passed, failed)
    return counts, failures


def main() -> int:
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_dir():
        print(__doc__)
        return 2
    counts, failures = run(Path(sys.argv[1]))
    for failure in failures:
        print("FAILED", failure)
    for kind, (passed, failed) in counts.items():
        print(f"{kind}: {passed} passed, {failed} failed")
    passed = sum(p for p, _ in counts.values())
    print(f"{passed} passed, {len(failures)} failed")
    return 1 if failures or not passed else 0


if __name__ == "__main__":
    sys.exit(main())
