"""The Ethereum adapter: blocks on the store, one for each batch, no empty blocks.

| table | kind | key | value |
|---|---|---|---|
| `ethereum.accounts`, `.storage`, `.code`, `.hashes` | state | see the extension | EVM state |
| `ethereum.head` | state | one row | number of the newest block |
| `ethereum.settings` | state | one row | settings of the genesis, JSON |
| `ethereum.blocks` | log | block number, 8 bytes | block record: header, transactions, receipts, secret of the claims |
| `ethereum.numbers` | log | block hash | block number |
| `ethereum.transactions` | log | transaction hash | block number, 8 bytes, and index, 4 bytes |
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from coco._native import Block, Chain, WriteSet, keccak256, recover_signer
from coco.enclave.adapters.contract import (
    AdapterError,
    AdapterServices,
    BlockContext,
    Caller,
    Cost,
    Envelope,
    LedgerAdapter,
    Manifest,
    PoolPolicy,
    Reply,
    Request,
    Settled,
    Stream,
    Table,
)
from coco.enclave.adapters.ethereum import costs, rpc, visibility
from coco.enclave.adapters.ethereum.events import EventHub
from coco.enclave.adapters.ethereum.genesis import EthereumSettings
from coco.enclave.adapters.ethereum.parameters import raw_transaction
from coco.enclave.adapters.ethereum.policy import NonceOrder
from coco.enclave.adapters.ethereum.session import BlockSession
from coco.enclave.store import StoreTransaction, StoreView
from coco.errors import AccessError, CocoError, ConfigurationError, LedgerError, RequestError
from coco.ledger import outcomes, statements
from coco.ledger.transaction_id import TransactionId

if TYPE_CHECKING:
    from coco._native import Admitted

_SINGLETON = bytes(8)
_BLOCKS_CACHED = 512
_ACCOUNT_BYTES, _SIGNATURE_BYTES = 20, 65
_CLIENT = "Coco/0.1.0"

TABLES = (
    Table("ethereum.accounts"),
    Table("ethereum.storage"),
    Table("ethereum.code"),
    Table("ethereum.hashes"),
    Table("ethereum.head"),
    Table("ethereum.settings"),
    Table("ethereum.blocks", log=True),
    Table("ethereum.numbers", log=True),
    Table("ethereum.transactions", log=True),
)


def _number_key(number: int) -> bytes:
    return number.to_bytes(8, "big")


class EthereumAdapter(LedgerAdapter):
    """Runs one Ethereum chain."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.settings = EthereumSettings.parse(settings)
        fees = self.settings.fees
        base_fee = fees.initial_base_fee if fees.policy == "eip1559" else None
        is_private = self.settings.visibility == "private"
        self.chain = Chain(
            self.settings.chain_id, self.settings.fork, self.settings.gas_limit, base_fee, private=is_private
        )
        self.events = EventHub(self)
        #: The newest block, and the newest committed one: what readers do to the cache must never push one of them out.
        self._head: Block | None = None
        self._committed_head: Block | None = None
        #: Blocks executed and not committed yet, oldest first, with the seqno of their entry.
        self._speculative: list[tuple[int, Block]] = []
        self._unapplied: Block | None = None
        self._cache: OrderedDict[int, Block] = OrderedDict()
        self._committed_number = 0
        #: The trie was built anew with blocks in it that were not committed: it cannot undo those up to this one.
        self._rebuilt_with = 0

    # --- declarations ---

    def manifest(self) -> Manifest:
        """Tables, and the JSON-RPC methods."""
        return Manifest(
            "ethereum",
            "1",
            rpc.ROUTES,
            TABLES,
            transactions="ethereum.transactions",
            subscriptions=rpc.SUBSCRIPTIONS,
        )

    def start(self, services: AdapterServices) -> None:
        """Take the services."""
        super().start(services)

    def pool_policy(self) -> PoolPolicy:
        """Nonce order."""
        return NonceOrder(self.chain)

    @property
    def client_version(self) -> str:
        """What ``web3_clientVersion`` says."""
        return f"{_CLIENT}/{self.settings.fork}"

    # --- writing ---

    def genesis(self, settings: Mapping[str, Any], tx: StoreTransaction, block: BlockContext) -> None:
        """Write the accounts of the genesis and block 0."""
        timestamp = self.settings.timestamp or block.time_ms // 1000
        genesis = self.chain.genesis(tx.native, self.settings.rows(), timestamp, b"coco")
        tx.put("ethereum.settings", _SINGLETON, msgspec.json.encode(self.settings, order="deterministic"))
        self.executed(tx, genesis)

    def _record(self, tx: StoreTransaction, block: Block) -> None:
        number = _number_key(block.number)
        tx.put("ethereum.head", _SINGLETON, number)
        tx.put("ethereum.blocks", number, block.record())
        tx.put("ethereum.numbers", block.hash, number)
        places = enumerate(block.transaction_hashes())
        tx.put_rows(
            "ethereum.transactions", [(identity, number + index.to_bytes(4, "big")) for index, identity in places]
        )

    def parse_submission(self, request: Request) -> Sequence[bytes]:
        """The raw transaction of ``eth_sendRawTransaction`` and its kin."""
        return [raw_transaction(request)]

    async def admit(self, raw: Sequence[bytes], caller: Caller) -> Sequence[Envelope | CocoError]:
        """Decode, check and recover senders, in the extension and without the GIL."""
        admitted = [self.checked(one) for one in await self.services.run_background(self.chain.admit, raw)]
        return [one if isinstance(one, CocoError) else one[0] for one in admitted]

    def early_checks(self) -> Mapping[str, Chain]:
        """``eth_sendRawTransaction``: what wallets send one by one."""
        return {"eth_sendRawTransaction": self.chain}

    def checked(self, found: Admitted) -> tuple[Envelope, bytes] | CocoError:
        """An envelope whose lane is the sender, or the refusal."""
        if len(found) == 2:
            code, text = found
            return AdapterError(text, code=code, rpc_code=-32000)
        transaction, identity, sender, nonce, raw = found
        return Envelope(identity, transaction, len(raw), sender, nonce, cost=transaction.gas_limit), raw

    async def open(self, tx: StoreTransaction, block: BlockContext) -> BlockSession:
        """One block."""
        if not self.chain.is_whole:
            await self.rebuild(self.services.newest())
        if self._head is None:
            raise LedgerError("this chain has no block to go on from", code="ethereum.no_head")
        return BlockSession(self.chain, self.services.run, self._head, tx, block, self.executed)

    def executed(self, tx: StoreTransaction, block: Block) -> None:
        """Write the record of a block that was executed on ``tx``."""
        self._record(tx, block)
        self._unapplied = block

    # --- derived state ---

    async def applied(self, position: TransactionId, writes: WriteSet) -> Sequence[bytes]:
        """The head moves; where another node executed the block, the trie follows and must come to the same root."""
        record = writes.rows("ethereum.blocks")
        if not record:
            return ()
        ((_, encoded),) = record
        block, self._unapplied = self._unapplied, None
        if block is not None and writes.rows("ethereum.numbers")[0][0] == block.hash:
            self.chain.apply(block)
        else:
            block = Block.decode(encoded or b"")
            newest = self.services.newest().native
            if await self.services.run(self.chain.follow, newest, writes, block.number) != block.state_root:
                raise LedgerError("a block has another state than its root", code="ethereum.state_root")
        self._head = block
        self._speculative.append((position.seqno, block))
        return block.transaction_hashes()

    def committed(self, position: TransactionId) -> None:
        """Blocks become visible, and events are told."""
        done = [block for seqno, block in self._speculative if seqno <= position.seqno]
        if not done:
            return
        del self._speculative[: len(done)]
        for block in done:
            self._remember(block)
        self._committed_head, self._committed_number = done[-1], done[-1].number
        self.chain.committed(done[-1].number)
        self.events.publish(done)

    def rolled_back(self, position: TransactionId) -> None:
        """The head and the trie go back."""
        kept = [item for item in self._speculative if item[0] <= position.seqno]
        self._speculative, self._unapplied = kept, None
        number = kept[-1][1].number if kept else self._committed_number
        self.chain.roll_back(number)
        self._head = kept[-1][1] if kept else self._committed_head
        if self._head is not None and number < self._rebuilt_with:
            self._rebuilt_with = 0
            self._check_root(self.chain.rebuild(self.services.newest().native), self._head)

    async def rebuild(self, view: StoreView) -> None:
        """Build the trie from the tables, and compare its root with the newest block's.

        Raises:
            LedgerError: they differ (``ethereum.state_root``).
        """
        head = view.get("ethereum.head", _SINGLETON)
        if head is None:
            return
        number = int.from_bytes(head, "big")
        speculative = {block.number: block for _, block in self._speculative}
        block = speculative.get(number) or await self.block(number, view)
        root = await self.services.run(self.chain.rebuild, view.native)
        self._check_root(root, block)
        self._head, self._unapplied = block, None
        self._rebuilt_with = number if self._speculative else 0
        if not self._speculative and block is not None:
            self._committed_head, self._committed_number = block, number
            self._remember(block)

    @staticmethod
    def _check_root(root: bytes, block: Block | None) -> None:
        if block is None or root != block.state_root:
            raise LedgerError("the state does not have the root that its block names", code="ethereum.state_root")

    def _remember(self, block: Block) -> None:
        self._cache[block.number] = block
        self._cache.move_to_end(block.number)
        while len(self._cache) > _BLOCKS_CACHED:
            self._cache.popitem(last=False)

    # --- reading ---

    @property
    def committed_number(self) -> int:
        """Number of the last committed block."""
        return self._committed_number

    async def block(self, number: int, view: StoreView) -> Block | None:
        """A block by its number: any committed one, and any other that is in ``view``."""
        if number == self._committed_number and self._committed_head is not None:
            return self._committed_head
        cached = self._cache.get(number)
        if cached is not None:
            return cached
        if number <= self._committed_number:
            view = view.newest()  # more may have been committed since the caller's view was taken
        record = await view.fetch("ethereum.blocks", _number_key(number))
        if record is None:
            return None
        block: Block = await self.services.run_query(Block.decode, record)
        self._remember(block)
        return block

    async def block_there(self, number: int, view: StoreView) -> Block:
        """The same, of a block that must be there.

        Raises:
            AdapterError: it is not (``ethereum.block_not_found``).
        """
        block = await self.block(number, view)
        if block is None:
            raise AdapterError("header not found", code="ethereum.block_not_found")
        return block

    async def block_by_hash(self, identity: bytes, view: StoreView) -> Block | None:
        """A block by its hash."""
        number = await view.fetch("ethereum.numbers", identity)
        return None if number is None else await self.block(int.from_bytes(number, "big"), view)

    async def locate(self, identity: bytes, view: StoreView) -> tuple[Block, int] | None:
        """Block and index of a transaction."""
        place = await view.fetch("ethereum.transactions", identity)
        if place is None:
            return None
        block = await self.block_there(int.from_bytes(place[:8], "big"), view)
        return block, int.from_bytes(place[8:], "big")

    async def version_of(self, number: int, view: StoreView) -> int:
        """Store version that holds the state after block ``number``."""
        seqno = await view.locate("ethereum.blocks", _number_key(number))
        if seqno is None:
            raise AdapterError("header not found", code="ethereum.block_not_found")
        return seqno

    @property
    def blocks_remembered(self) -> int:
        """Newest blocks that are in memory, unless older ones were asked for meanwhile."""
        return _BLOCKS_CACHED

    def items_of(self, number: int) -> int | None:
        """Transactions of a block, if it is in memory; none of one that is not there yet."""
        cached = self._cache.get(number)
        if cached is not None:
            return len(cached)
        return None if number <= self._committed_number else 0

    def cost(self, request: Request) -> Cost:
        """See the table."""
        return costs.cost(self, request)

    async def query(self, request: Request, caller: Caller, view: StoreView) -> Reply:
        """Serve a JSON-RPC method."""
        value = await rpc.METHODS[request.name](self, request, self.viewer(caller), view)
        return Reply(value, public=request.name in rpc.PUBLIC)

    def viewer(self, caller: Caller) -> Caller:
        """The caller, as far as this chain's policy lets it see."""
        return visibility.viewer(caller, self.settings.visibility)

    def accepted(self, request: Request, envelopes: Sequence[Envelope]) -> Reply:
        """The hash."""
        return Reply("0x" + envelopes[0].id.hex(), public=True)

    def told(self, refusal: CocoError, envelope: Envelope, caller: Caller) -> CocoError | None:
        """Nothing about an account that the caller may not see."""
        return visibility.told(refusal, envelope.payload.sender, self.viewer(caller))

    def check_wait(self, envelope: Envelope, caller: Caller) -> None:
        """Only whoever may see the sender's account may wait for what becomes of its transaction."""
        visibility.require(visibility.account(self.viewer(caller), envelope.payload.sender), "this account")

    def binding_text(self, network: str, actor: str, identity: bytes, nonce: str) -> str:
        """Of an account."""
        if len(identity) != _ACCOUNT_BYTES:
            raise RequestError("an account has 20 bytes", code="account.malformed")
        return statements.binding_text(network, actor, identity, nonce)

    def verify_binding(self, identity: bytes, text: bytes, proof: bytes) -> None:
        """An account's signature, as wallets make it of a text (EIP-191)."""
        if len(identity) != _ACCOUNT_BYTES or len(proof) != _SIGNATURE_BYTES:
            raise RequestError("account, nonce or signature has the wrong form", code="account.malformed")
        digest = keccak256(b"\x19Ethereum Signed Message:\n" + str(len(text)).encode() + text)
        if recover_signer(digest, proof) != identity:
            raise AccessError("the account did not sign this statement", code="account.bad_signature")

    async def may_learn_fate(self, identity: bytes, caller: Caller, view: StoreView) -> bool:
        """Whoever may see the transaction."""
        caller = self.viewer(caller)
        async with visibility.one_time(caller) as held:
            if not held.shown and visibility.accounts(caller):
                found, pooled = await self.locate(identity, view), self.services.pooled(identity)
                if found is not None:
                    held.shown = visibility.may_see(caller, *found[0].parties(found[1]))
                elif pooled is not None:
                    held.shown = visibility.may_see(caller, pooled.payload.sender, pooled.payload.to)
        return held.shown

    async def prove(self, identity: bytes, caller: Caller, view: StoreView) -> tuple[int, dict[str, Any]] | None:
        """The outcome, from what the entry claims of the transaction; for who sees everything, from the header as well.

        A header shows gas, bloom and neighbours. No party gets it, not even of a block that is all its own: that it is
        would tell that nobody else's transactions are there.

        Raises:
            AccessError: the block is of a former version, which claims no outcomes, and its header tells of others'
                transactions (``ethereum.proof_tells_of_others``).
        """
        caller = self.viewer(caller)
        async with visibility.one_time(caller) as held:
            found = None
            if visibility.sees_all(caller) or visibility.accounts(caller):
                found = await self.locate(identity, view)
            if found is None or not self.redact([visibility.Transactions(found[0], [found[1]])], caller, view):
                return None
            held.shown = True
        block, index = found
        outcome = await self.services.run_query(block.outcome, index)
        shows_header = self.settings.proofs_to_parties or visibility.sees_all(caller)
        if outcome is None and not (shows_header or visibility.may_see_whole(block, caller)):
            raise AccessError(
                "the proof takes the header of the block, which tells of others' transactions in it",
                code="ethereum.proof_tells_of_others",
                hint="an auditor may get it for you; blocks that were made since the upgrade are proven without it",
            )
        proof = outcomes.prove(index, *outcome) if outcome is not None else {}
        if outcome is None or shows_header:
            proof |= await self.services.run_query(outcomes.prove_in_block, block.record(), index)
        return await self.version_of(block.number, view), proof

    async def acknowledge(self, request: Request, settled: Sequence[Settled], caller: Caller, view: StoreView) -> Reply:
        """The receipt, for ``eth_sendRawTransactionSync``."""
        settled[0].require_included()
        found = await self.locate(settled[0].envelope.id, view)
        if found is None:
            raise AdapterError("the transaction is in no block", code="ethereum.transaction_not_found")
        return Reply(rpc.transactions.receipt(visibility.Transactions(found[0], [found[1]])))

    async def stream(self, request: Request, caller: Caller, stream: Stream) -> None:
        """``newHeads`` and ``logs``."""
        await self.events.stream(request, stream)

    def redact(self, items: Sequence[Any], caller: Caller, view: StoreView) -> list[Any]:
        """Those of the items (``visibility.py``) that the caller may see."""
        return list(visibility.visible(items, self.viewer(caller)))


def adapter(settings: Mapping[str, Any]) -> EthereumAdapter:
    """Make the adapter of a genesis document's ``ethereum`` section."""
    if not settings:
        raise ConfigurationError("ethereum needs a chain_id", code="configuration.ethereum")
    return EthereumAdapter(settings)
