"""Attacks of a participant on proofs: with one of its own transaction it would learn of others', or show what never was."""

from __future__ import annotations

import asyncio
import json
import random
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar

import pytest
from attacks import attack
from test_participant import (
    ATTACKER,
    AUDITOR,
    MINE,
    OWNER,
    RICH,
    SETTINGS,
    VICTIM,
    Chained,
    of_rich,
    signed,
)

from coco._native import ClaimTree, keccak256, rlp_encode
from coco.client import proofs
from coco.client.http import HttpsClient
from coco.client.pin import Pin
from coco.enclave.adapters.contract import Caller
from coco.enclave.adapters.ethereum.adapter import EthereumAdapter
from coco.errors import AttestationError, CocoError, LedgerError
from coco.ledger import claims, outcomes
from coco.ledger.claims import LEVELS, Claim
from coco.ledger.statements import fingerprint
from network import TestNetwork, running
from network import run as run_within

sys.path.insert(0, str(Path(__file__).parent.parent / "adapters"))

from former_ethereum import FormerEthereum

#: Logs one word with two topics.
LOGGER = "0x" + "10" * 20
SOMEBODY = "0x" + "99" * 20
_HEADER = ("header", "transaction_proof", "receipt_proof")


class Sharing(Chained):
    """A chain on which a victim and an attacker come to stand in one block."""

    settings: ClassVar[dict[str, Any]] = {
        **SETTINGS,
        "alloc": {
            VICTIM.address: {"balance": "1000"},
            MINE.address: {"balance": "1000"},
            LOGGER: {"code": "0x60ff5f52600260016020" + "5fa200"},
        },
    }

    def __init__(self) -> None:
        super().__init__()
        self.nonces = {VICTIM.address: 0, MINE.address: 0}

    async def together(self, *senders: Any, to: str | None = SOMEBODY, data: str = "0x") -> list[bytes]:
        """One committed block with one transaction of each of these in turn; their hashes."""
        made = []
        for sender in senders:
            made.append(signed(sender, self.nonces[sender.address], to, data, value=0 if data != "0x" else 1))
            self.nonces[sender.address] += 1
        assert await self.execute(*made) == []
        self.commit()
        return [keccak256(raw) for raw in made]

    async def proof(self, identity: bytes, caller: Caller) -> dict[str, Any] | None:
        found = await self.adapter.prove(identity, caller, self.store.view(self.store.committed))
        return None if found is None else json.loads(json.dumps(found[1]))

    async def own(self, identity: bytes, caller: Caller = ATTACKER) -> dict[str, Any]:
        found = await self.proof(identity, caller)
        assert found is not None
        return found


def refused(document: dict[str, Any], claim: bytes) -> str:
    with pytest.raises(LedgerError) as error:
        outcomes.verify(document, claim)
    assert error.value.code in ("receipt.invalid", "receipt.malformed")
    return error.value.code


@attack(
    "F",
    was="no proof of one transaction; then one from the block's header, with gas and bloom of everybody and hashes of the "
    "others, so that a party got none where others were in the block, which under load is nearly always",
    now="a party gets the proof of its own outcome, in any block; nothing in it is another's, and of another's there is none",
)
def test_a_proof_of_ones_own_transaction_shows_nothing_of_the_others():
    async def story() -> None:
        chain = Sharing()
        theirs, mine, last = await chain.together(VICTIM, MINE, VICTIM)
        for identity in (theirs, last):
            assert await chain.proof(identity, ATTACKER) is None and await chain.proof(mine, OWNER) is None
        document = await chain.own(mine)
        proven = outcomes.verify(document, chain.claims[0])
        told = await chain.ask("eth_getTransactionReceipt", "0x" + mine.hex(), caller=ATTACKER)
        assert (proven["hash"], proven["index"], proven["status"]) == ("0x" + mine.hex(), 1, "success")
        assert proven["block_hash"] == told["blockHash"] and hex(proven["block_number"]) == told["blockNumber"]
        assert hex(proven["gas_used"]) == told["gasUsed"] and proven["from"] == told["from"]
        assert not set(_HEADER) & set(document)
        # Nothing in it is known of the others, whatever an attacker looks for.
        whole = await chain.own(mine, AUDITOR)
        text = json.dumps(document) + chain.claims[0].hex()
        for hidden in (theirs, last, bytes.fromhex(VICTIM.address[2:])):
            assert hidden.hex() not in text.lower() and sha256(hidden).hexdigest() not in text
            assert keccak256(hidden).hex() not in text
        header = bytes.fromhex(whole["header"][2:])
        assert keccak256(header) == Claim.parse(chain.claims[0]).head[:32]
        # Who sees everything gets both proofs, which agree.
        both = outcomes.verify(whole, chain.claims[0])
        assert proven.items() <= both.items() and both["cumulative_gas_used"] == 2 * 21_000
        for owner, identity, place in ((OWNER, theirs, 0), (OWNER, last, 2)):
            assert outcomes.verify(await chain.own(identity, owner), chain.claims[0])["index"] == place

    asyncio.run(story())


@attack(
    "F",
    was="no proof of one transaction; then one that a party got only where nobody else was in the block, which that told",
    now="every proof has 20 steps, whether the block has one transaction or 300, and none has the header",
)
def test_a_proof_tells_not_how_many_others_there_are():
    async def story() -> None:
        chain = Sharing()
        (alone,) = await chain.together(MINE)
        crowd = await chain.together(MINE, *[VICTIM] * 300)
        documents = [await chain.own(alone), await chain.own(crowd[0])]
        assert [len(one["path"]) for one in documents] == [LEVELS, LEVELS]
        assert [set(one) for one in documents] == [set(documents[0])] * 2 and "header" not in documents[0]
        assert len({len(json.dumps(one)) for one in documents}) == 1 and len(set(map(len, chain.claims))) == 1
        nodes = [node for one in documents for node in one["path"]]
        assert len(set(nodes)) == len(nodes), "no step says of itself that nothing is there"

    asyncio.run(story())


@attack(
    "F",
    was="there was no such tree; in the tries of a block a neighbour is a hash of what it is: whoever knows a transaction "
    "guesses what became of it, and has the guess confirmed",
    now="each leaf has a salt of its own, made from what no block shows; no guess is confirmed",
)
def test_the_outcome_of_a_neighbour_is_not_guessed_from_the_path():
    async def story() -> None:
        chain = Sharing()
        theirs, mine = await chain.together(VICTIM, MINE)
        document = await chain.own(mine)
        path = {bytes.fromhex(node[2:]) for node in document["path"]}
        shown = [bytes.fromhex(document[name][2:]) for name in ("salt", "hash", "outcome")]
        block = chain.adapter._committed_head
        assert block is not None
        header = block.header()
        public = [bytes.fromhex(header[name][2:]) for name in ("hash", "mixHash", "parentHash", "stateRoot")]
        # Everything of the victim's but whether it succeeded, which is guessed.
        sender, to_gas = bytes.fromhex(VICTIM.address[2:]), (21_000).to_bytes(2, "big")
        items = [rlp_encode([theirs, sender, success, to_gas, b"", []]) for success in (b"\1", b"")]
        assert bytes.fromhex((await chain.own(theirs, OWNER))["outcome"][2:]) == items[0], "the guess is right"
        salts = [b"", bytes(32), *shown, *public, *(sha256(one).digest() for one in [*shown, *public])]
        for known in [bytes(32), *(one for one in [*shown, *public] if len(one) == 32)]:
            tree = ClaimTree(known)
            tree.extend([b"", b""])
            salts += [tree.proof(index)[0] for index in (0, 1)]
        for item in items:
            assert not {claims.leaf(salt, item) for salt in salts} & path
            assert not {sha256(salt + item).digest() for salt in salts} & path
        salt = bytes.fromhex((await chain.own(theirs, OWNER))["salt"][2:])
        assert claims.leaf(salt, items[0]) in path, "with its salt it would be confirmed"

    asyncio.run(story())


@attack(
    "F",
    was="there was no such tree; in one whose leaves and nodes are hashed alike, with paths of any length, a node passes for "
    "an item that never was",
    now="leaves, nodes and salts are hashed under labels of their own, at a fixed depth; each such proof is refused",
)
def test_no_node_passes_for_a_leaf_and_no_leaf_for_a_node():
    async def story() -> None:
        chain = Sharing()
        _, mine = await chain.together(VICTIM, MINE)
        document, claim = await chain.own(mine), chain.claims[0]
        outcomes.verify(document, claim)
        salt, item = document["salt"][2:], document["outcome"][2:]
        path = document["path"]
        leaf = claims.leaf(bytes.fromhex(salt), bytes.fromhex(item)).hex()
        for forged in (
            {"salt": path[0], "outcome": "0x" + leaf, "path": [*path[1:], path[-1]]},
            {"salt": path[0], "outcome": "0x" + leaf, "path": path[1:]},
            {"salt": "0x", "outcome": path[0] + leaf, "path": path[1:]},
            {"path": [*path[1:], path[0]]},
            {"path": ["0x" + leaf, *path[1:]]},
            {"salt": "0x" + salt[:-2], "outcome": "0x" + salt[-2:] + item},
            {"index": 0},
            {"index": 1 + (1 << LEVELS)},
            {"index": 3},
        ):
            refused({**document, **forged}, claim)

    asyncio.run(story())


@attack(
    "F",
    was="there was no such tree, and no proof of one transaction",
    now="parts of the proofs of two transactions, of one block or of two, prove nothing together",
)
def test_a_path_of_another_block_or_transaction_proves_nothing():
    async def story() -> None:
        chain = Sharing()
        first = await chain.together(VICTIM, MINE, MINE)
        second = await chain.together(VICTIM, MINE, MINE)
        mine, sibling, later = [await chain.own(one) for one in (first[1], first[2], second[1])]
        failed = await chain.together(MINE, to=None, data="0xfe")
        spent = await chain.own(failed[0])
        proven = outcomes.verify(spent, chain.claims[2])
        assert proven["status"] == "failure" and proven["contract"] is not None and proven["logs"] == []
        documents = [(mine, chain.claims[0]), (sibling, chain.claims[0]), (later, chain.claims[1])]
        for document, claim in documents:
            outcomes.verify(document, claim)
            for other in chain.claims:
                if other != claim:
                    refused(document, other)
            for donor in (mine, sibling, later, spent):
                for name in document:
                    if donor[name] != document[name]:
                        refused({**document, name: donor[name]}, claim)
        # Its own outcome, told better than it was.
        told = bytes.fromhex(spent["outcome"][2:])
        better = rlp_encode([part if place != 2 else b"\1" for place, part in enumerate(_decoded(told))])
        assert len(better) == len(told)
        refused({**spent, "outcome": "0x" + better.hex()}, chain.claims[2])

    asyncio.run(story())


def _decoded(outcome: bytes) -> list[Any]:
    from coco._native import rlp_decode

    found: list[Any] = rlp_decode(outcome)
    return found


@attack(
    "F",
    was="nobody had tried: there was one form of a claim",
    now="a former version's claim is 32 bytes, one of today never is; each takes the proofs of its own form and no other",
)
def test_a_claim_of_a_former_version_passes_for_none_of_today_nor_the_other_way():
    async def story() -> None:
        chain = Sharing()
        _, mine = await chain.together(VICTIM, MINE)
        claim = chain.claims[0]
        parsed = Claim.parse(claim)
        assert parsed is not None
        whole = await chain.own(mine, AUDITOR)
        former = {name: whole[name] for name in ("hash", "index", *_HEADER)}
        today = {name: value for name, value in whole.items() if name not in _HEADER}
        block_hash = parsed.head[:32]
        assert outcomes.verify(former, block_hash)["hash"] == outcomes.verify(today, claim)["hash"]
        for document, shown in ((former, claim), (today, block_hash), (whole, block_hash)):
            refused(document, shown)
        # A root that is presented as what a former version claimed, and claims that were cut or made longer.
        for shown in (parsed.root, sha256(claim).digest(), claim[:-1], claim + b"\0", claim[1:], b""):
            for document in (former, today, whole):
                refused(document, shown)
        # Another adapter's claim, with the same root.
        for other in (Claim("kv", parsed.head, parsed.root), Claim("ethereum", parsed.head[:-1], parsed.root)):
            refused(today, other.encode())
        for odd in ({**today, "more": 1}, {**today, "header": whole["header"]}, {**former, "path": today["path"]}):
            refused(odd, claim)

    asyncio.run(story())


def test_blocks_of_a_former_version_are_proven_as_they_were():
    """An upgrade opens nothing: such a block claims its hash alone, so a party gets no proof where others are in it."""

    class Upgraded(Sharing):
        async def upgrade(self) -> None:
            """What a restart with another version does to an adapter."""
            former, self.adapter = self.adapter, EthereumAdapter(self.settings)
            self.adapter.start(former.services)
            await self.adapter.rebuild(self.store.view())

    async def story() -> None:
        chain = Upgraded()
        began = chain.adapter
        chain.adapter = FormerEthereum(chain.settings)
        chain.adapter.start(began.services)
        await chain.adapter.rebuild(chain.store.view())
        (alone,) = await chain.together(MINE)
        _, shared = await chain.together(VICTIM, MINE)
        await chain.upgrade()
        for name, identity, claim in (("alone", alone, chain.claims[0]), ("shared", shared, chain.claims[1])):
            assert len(claim) == 32
            document = await chain.own(identity, AUDITOR)
            proven = outcomes.verify(document, claim)
            assert proven["block_hash"] == "0x" + claim.hex() and set(_HEADER) < set(document), name
            assert "path" not in document
        assert outcomes.verify(await chain.own(alone), chain.claims[0])["index"] == 0
        with pytest.raises(CocoError) as denied:
            await chain.proof(shared, ATTACKER)
        assert denied.value.code == "ethereum.proof_tells_of_others"
        _, after = await chain.together(VICTIM, MINE)
        assert outcomes.verify(await chain.own(after), chain.claims[2])["index"] == 1
        assert await chain.proof(shared, OWNER) is None

    asyncio.run(story())


def test_logs_and_contracts_are_part_of_an_outcome():
    async def story() -> None:
        chain = Sharing()
        _, logged = await chain.together(VICTIM, MINE, to=LOGGER, data="0x00")
        proven = outcomes.verify(await chain.own(logged), chain.claims[0])
        told = await chain.ask("eth_getTransactionReceipt", "0x" + logged.hex(), caller=ATTACKER)
        kept = [{name: log[name] for name in ("address", "topics", "data")} for log in told["logs"]]
        assert proven["logs"] == kept and len(kept) == 1 and len(kept[0]["topics"]) == 2
        (created,) = await chain.together(MINE, to=None, data="0x5f5ff3")
        proven = outcomes.verify(await chain.own(created), chain.claims[1])
        told = await chain.ask("eth_getTransactionReceipt", "0x" + created.hex(), caller=ATTACKER)
        assert proven["contract"] == told["contractAddress"].lower() and proven["status"] == "success"
        # Another node, which has the block from the ledger alone, gives the same proof.
        before = await chain.own(created)
        chain.adapter._cache.clear()
        chain.adapter._committed_head = None
        assert await chain.own(created) == before

    asyncio.run(story())


# --- with real nodes ---


@pytest.fixture
def network(tmp_path: Path) -> TestNetwork:
    made = TestNetwork(tmp_path / "network")
    made.add_participant("attacker", accounts=[MINE.address])
    made.add_participant("victim", accounts=[RICH.address])
    return made


@attack(
    "F",
    was="no proof of one transaction and its outcome, only of its block's place in the ledger",
    now="`coco receipt`: who may see a transaction gets its proof, for others it does not exist; its verification trusts "
    "no node, and refuses another service's; after a recovery the service of today signs for it",
)
def test_a_receipt_of_one_transaction_is_for_who_may_see_it(network: TestNetwork, tmp_path: Path):
    network.add_participant("auditor", auditor=True)

    async def refused(client: HttpsClient, what: str) -> str:
        with pytest.raises(CocoError) as found:
            await proofs.get(client, what)
        return found.value.code

    async def together(*clients: HttpsClient) -> str:
        """A transaction of the first in one block with one of the second."""
        nonce = 1
        while True:
            raw = [of_rich(nonce), of_mine(nonce - 1)]
            done = await asyncio.gather(
                *(
                    network.rpc(client, "eth_sendRawTransactionSync", one[0])
                    for client, one in zip(clients, raw, strict=True)
                )
            )
            nonce += 1
            if len({one["result"]["blockNumber"] for one in done}) == 1:
                return raw[0][1]

    async def story() -> None:
        async with running(network):
            victim, attacker = network.client("victim"), network.client("attacker")
            raw, identity = of_rich(0)
            sent = (await network.rpc(victim, "eth_sendRawTransactionSync", raw))["result"]
            found = await proofs.get(victim, identity)
            (tmp_path / "receipt.json").write_text(json.dumps(found))
            proven = proofs.verify(proofs.read(tmp_path / "receipt.json"), Pin(network.service))
            assert proven["transaction"]["status"] == "success" and proven["transaction"]["hash"] == identity
            assert proven["transaction"]["block_hash"] == sent["blockHash"]
            by_place = await proofs.get(victim, proven["transaction_id"])
            assert proofs.verify(by_place, Pin(network.service))["block"]["hash"] == sent["blockHash"]
            touched(found, tmp_path / "touched.json", Pin(network.service))
            # For who may not see it there is none, as for one that there is not.
            assert await refused(attacker, identity) == await refused(attacker, "0x" + "00" * 32) == "ledger.no_receipt"
            assert await refused(network.client(None), identity) == "access.no_participant"
            # Its own, in one block with another's; the header, which would tell of that other's, is an auditor's.
            shared = await together(victim, attacker)
            mine = await proofs.get(victim, shared)
            assert "header" not in mine["transaction"]
            whole = await proofs.get(network.client("auditor"), shared)
            assert mine["transaction"].items() < whole["transaction"].items()
            for document in (mine, whole):
                assert proofs.verify(document, Pin(network.service))["transaction"]["hash"] == shared
            touched(whole, tmp_path / "touched.json", Pin(network.service))
            # What is of one and of the other proves nothing together.
            for part in ("receipt", "transaction"):
                with pytest.raises(LedgerError):
                    proofs.verify({**found, part: whole[part]}, Pin(network.service))
        former = network.service
        async with running(network):
            await network.recover()
            again = await proofs.get(network.client("victim"), identity)
            assert proofs.verify(again, Pin(network.service))["transaction"] == proven["transaction"]
            assert again["transaction"] == found["transaction"], "salts are recorded: a recovery changes nothing"
            with pytest.raises(AttestationError):
                proofs.verify(found, Pin(network.service))
            # Whoever knows only the former service needs its members to say that this one follows.
            members = {fingerprint(network.files.member().certificate): _member_pem(network)}
            followed = proofs.verify(again, Pin(former, members))
            assert followed["transaction"] == proven["transaction"] and "followed" in followed["service"]
            with pytest.raises(AttestationError):
                proofs.verify(again, Pin(former))
            with pytest.raises(AttestationError):
                proofs.verify({**again, "statements": []}, Pin(former, members))

    run_within(story())


def touched(document: dict[str, Any], path: Path, known: Pin, times: int = 250) -> None:
    """A receipt of which one bit is another one, anywhere in its file, is refused with a stable code."""
    whole, dice = json.dumps(document).encode(), random.Random(14)
    proofs.verify(document, known)
    for _ in range(times):
        at, bit = dice.randrange(len(whole)), 1 << dice.randrange(8)
        path.write_bytes(whole[:at] + bytes([whole[at] ^ bit]) + whole[at + 1 :])
        accepted, code = "", ""
        try:
            accepted = str(proofs.verify(proofs.read(path), known))
        except CocoError as error:
            code = error.code
        assert code.startswith("receipt."), (whole[max(0, at - 30) : at + 30], bit, code, accepted)
    body = document["receipt"]
    salt, value = body["claim"]["salt"], body["claim"]["value"]
    for claim in (
        {"salt": salt[:-2], "value": salt[-2:] + value},
        {"salt": salt + value[:2], "value": value[2:]},
        {"salt": "", "value": salt + value},
        {"salt": salt, "value": value.upper()},
    ):
        with pytest.raises(LedgerError):
            proofs.verify({**document, "receipt": {**body, "claim": claim}}, known)
    with pytest.raises(LedgerError):
        proofs.verify({**document, "format": proofs.FORMER}, known)


def of_mine(nonce: int) -> tuple[str, str]:
    """The same of the attacker's account, which has nothing."""
    fields = {"chainId": 2017, "gas": 100_000, "to": "0x" + "98" * 20, "value": 0, "maxFeePerGas": 0, "nonce": nonce}
    made = MINE.sign_transaction({**fields, "maxPriorityFeePerGas": 0})
    return "0x" + made.raw_transaction.hex(), "0x" + made.hash.hex()


def _member_pem(network: TestNetwork) -> str:
    return network.files.actor("members", "alice", ".pem").read_text()
