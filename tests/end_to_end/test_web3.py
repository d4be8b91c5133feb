"""web3.py, unmodified, against the sandbox: what a dApp developer does first."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from eth_account import Account
from web3 import Web3
from web3.exceptions import ContractCustomError, ContractLogicError

CLIENTS = Path(__file__).parent.parent / "clients"
KEY = "0xac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80"
OTHER_KEY = "0x59c6995e998f97a5a0044966f0945389dc9e86dae88c7a8412f4603b6b78690d"


@pytest.fixture(scope="module")
def contracts():
    compiled = subprocess.run(["node", str(CLIENTS / "compile.mjs")], capture_output=True, text=True, check=True)
    return json.loads(compiled.stdout)


@pytest.fixture(scope="module")
def w3(sandbox):
    web3 = Web3(Web3.HTTPProvider(sandbox.url))
    yield web3
    web3.provider.disconnect() if hasattr(web3.provider, "disconnect") else None


def send(w3, account, transaction):
    signed = account.sign_transaction(transaction)
    returned = w3.eth.send_raw_transaction(signed.raw_transaction)
    assert returned == signed.hash, "E5: the hash is the wallet's own"
    return w3.eth.wait_for_transaction_receipt(returned, poll_latency=0.02)


@pytest.fixture(scope="module")
def token(w3, contracts):
    account = Account.from_key(KEY)
    factory = w3.eth.contract(abi=contracts["Token"]["abi"], bytecode=contracts["Token"]["bytecode"])
    built = factory.constructor(10**24).build_transaction(
        {"from": account.address, "nonce": w3.eth.get_transaction_count(account.address)}
    )
    receipt = send(w3, account, built)
    assert receipt.status == 1
    return w3.eth.contract(address=receipt.contractAddress, abi=contracts["Token"]["abi"])


def test_deploy_transfer_and_read_events(w3, token):
    account, other = Account.from_key(KEY), Account.from_key(OTHER_KEY)
    installed = token.events.Transfer.create_filter(from_block="latest")
    built = token.functions.transfer(other.address, 123).build_transaction(
        {"from": account.address, "nonce": w3.eth.get_transaction_count(account.address)}
    )
    receipt = send(w3, account, built)
    (event,) = token.events.Transfer().process_receipt(receipt)
    assert (event.args["from"], event.args.to, event.args.value) == (account.address, other.address, 123)
    assert token.functions.balanceOf(other.address).call() == 123
    assert [e.transactionHash for e in installed.get_new_entries()] == [receipt.transactionHash]
    assert installed.get_new_entries() == []
    logs = token.events.Transfer().get_logs(from_block=0, argument_filters={"to": other.address})
    assert [log.args.value for log in logs] == [123]
    block = w3.eth.get_block(receipt.blockNumber, full_transactions=True)
    assert [t.hash for t in block.transactions] == [receipt.transactionHash]
    assert block.transactions[0]["from"] == account.address
    for log in receipt.logs:
        assert int.from_bytes(block.logsBloom, "big") != 0 and log.blockHash == block.hash


def test_reverts_carry_reason_and_data(w3, token):
    with pytest.raises(ContractLogicError, match="not today"):
        token.functions.refuse().call()
    with pytest.raises(ContractCustomError) as custom:
        token.functions.limited(5000).call()
    assert custom.value.data == token.encode_abi("limited", [5000])[:0] + (
        "0x" + Web3.keccak(text="TooMuch(uint256,uint256)")[:4].hex() + f"{5000:064x}{1000:064x}"
    )
    with pytest.raises(ContractLogicError, match="not today"):
        token.functions.refuse().estimate_gas()


def test_estimates_are_enough_and_not_far_above(w3, token):
    account, other = Account.from_key(KEY), Account.create()
    gas = token.functions.transfer(other.address, 7).estimate_gas({"from": account.address})
    built = token.functions.transfer(other.address, 7).build_transaction(
        {"from": account.address, "gas": gas, "nonce": w3.eth.get_transaction_count(account.address)}
    )
    receipt = send(w3, account, built)
    assert receipt.status == 1
    assert receipt.gasUsed <= gas <= receipt.gasUsed * 1.1


@pytest.mark.parametrize("kind", [0, 1, 2, 4])
def test_every_transaction_type(w3, kind):
    account = Account.from_key(OTHER_KEY)
    nonce = w3.eth.get_transaction_count(account.address)
    target = Account.create().address
    transaction = {"nonce": nonce, "to": target, "value": 5, "gas": 100_000, "chainId": w3.eth.chain_id}
    if kind in (0, 1):
        transaction["gasPrice"] = 1
    else:
        transaction |= {"maxFeePerGas": 1, "maxPriorityFeePerGas": 1}
    if kind == 1:
        transaction["accessList"] = [{"address": target, "storageKeys": ["0x" + "00" * 31 + "01"]}]
    if kind == 4:
        delegate = "0x" + "ab" * 20
        authorization = account.sign_authorization(
            {"chainId": w3.eth.chain_id, "address": delegate, "nonce": nonce + 1}
        )
        transaction["authorizationList"] = [authorization]
    receipt = send(w3, account, transaction)
    assert (receipt.status, receipt.type) == (1, kind)
    found = w3.eth.get_transaction(receipt.transactionHash)
    assert (found.type, found.nonce, found.value) == (kind, nonce, 5)
    assert w3.eth.get_balance(target) == 5
    if kind == 4:
        assert w3.eth.get_code(account.address) == bytes.fromhex("ef0100") + bytes.fromhex("ab" * 20)


def test_a_failed_transaction_has_a_receipt_with_status_zero(w3, token):
    """E6"""
    account = Account.from_key(KEY)
    transaction = {
        "nonce": w3.eth.get_transaction_count(account.address),
        "to": token.address,
        "data": token.encode_abi("refuse"),
        "gas": 100_000,
        "maxFeePerGas": 1,
        "maxPriorityFeePerGas": 1,
        "chainId": w3.eth.chain_id,
    }
    receipt = send(w3, account, transaction)
    assert receipt.status == 0 and receipt.logs == [] and receipt.gasUsed < 100_000


def test_pending_counts_the_pool_and_gaps_wait(w3):
    account = Account.create()
    funder = Account.from_key(KEY)
    value = {
        "to": account.address,
        "value": 10**18,
        "gas": 21000,
        "maxFeePerGas": 1,
        "maxPriorityFeePerGas": 1,
    }
    send(
        w3,
        funder,
        {**value, "nonce": w3.eth.get_transaction_count(funder.address), "chainId": w3.eth.chain_id},
    )

    def raw(nonce, fee=1):
        fields = {"to": funder.address, "value": 1, "gas": 21000, "nonce": nonce, "chainId": w3.eth.chain_id}
        return account.sign_transaction({**fields, "maxFeePerGas": fee, "maxPriorityFeePerGas": fee})

    late, early, dearer = raw(1), raw(0), raw(1, fee=5)
    w3.eth.send_raw_transaction(late.raw_transaction)
    assert w3.eth.get_transaction_count(account.address, "pending") == 0
    assert w3.eth.get_transaction(late.hash)["blockNumber"] is None
    with pytest.raises(Exception, match="already known"):
        w3.eth.send_raw_transaction(late.raw_transaction)
    w3.eth.send_raw_transaction(dearer.raw_transaction)
    with pytest.raises(Exception, match="underpriced"):
        w3.eth.send_raw_transaction(late.raw_transaction)
    w3.eth.send_raw_transaction(early.raw_transaction)
    w3.eth.wait_for_transaction_receipt(dearer.hash, poll_latency=0.02)
    assert w3.eth.get_transaction_count(account.address) == 2
    with pytest.raises(Exception, match="nonce too low"):
        w3.eth.send_raw_transaction(early.raw_transaction)


def test_a_proof_of_an_account_leads_to_the_state_root(w3):
    from eth_utils import keccak

    account = Account.from_key(KEY)
    proof = w3.eth.get_proof(account.address, [0], "latest")
    block = w3.eth.get_block("latest")
    assert keccak(proof.accountProof[0]) == block.stateRoot


def test_a_header_hashes_to_its_hash(w3):
    import rlp
    from eth_utils import keccak

    block = w3.eth.get_block("latest")
    fields = [
        block.parentHash, block.sha3Uncles, bytes.fromhex(block.miner[2:]), block.stateRoot, block.transactionsRoot,
        block.receiptsRoot, block.logsBloom, block.difficulty, block.number, block.gasLimit, block.gasUsed,
        block.timestamp, block.get("proofOfAuthorityData") or block.extraData, block.mixHash, block.nonce,
        block.baseFeePerGas, block.withdrawalsRoot, block.blobGasUsed, block.excessBlobGas,
        block.parentBeaconBlockRoot, bytes.fromhex(str(block.requestsHash).removeprefix("0x"))
        if isinstance(block.requestsHash, str) else block.requestsHash,
    ]  # fmt: skip
    encoded = [f.to_bytes((f.bit_length() + 7) // 8, "big") if isinstance(f, int) else bytes(f) for f in fields]
    assert keccak(rlp.encode(encoded)) == block.hash


def test_state_stays_readable_for_128_blocks_and_more(w3):
    account = Account.create()
    funder = Account.from_key(OTHER_KEY)
    fields = {"to": account.address, "value": 1, "gas": 21000, "maxFeePerGas": 1, "maxPriorityFeePerGas": 1}
    fields["chainId"] = w3.eth.chain_id
    first = 0
    nonce = w3.eth.get_transaction_count(funder.address)
    for turn in range(135):
        signed = funder.sign_transaction({**fields, "nonce": nonce + turn})
        answer = w3.provider.make_request("eth_sendRawTransactionSync", ["0x" + signed.raw_transaction.hex()])
        block = int(answer["result"]["blockNumber"], 16)
        first = first or block
    assert block - first >= 130, "one block for each"
    for turn in (0, 1, 60, 134):
        assert w3.eth.get_balance(account.address, first + turn) == turn + 1
    with pytest.raises(Exception, match="header not found"):
        w3.eth.get_balance(account.address, block + 1000)
