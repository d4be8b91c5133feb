//! Blocks: execute a batch, compute the standard header with true roots, encode and decode the block record.
//!
//! Order of one block (EIPs 4788, 2935, 7002, 7251): system calls, transactions, system calls, roots, header.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use alloy_consensus::constants::EMPTY_WITHDRAWALS;
use alloy_consensus::{
    EMPTY_OMMER_ROOT_HASH, Eip658Value, Header, Receipt, Transaction as _, TxReceipt as _, Typed2718 as _,
};
use alloy_eips::eip1559::BaseFeeParams;
use alloy_eips::{eip2935, eip4788, eip7002, eip7251};
use alloy_primitives::{Address, B64, B256, Bloom, Bytes, Log, U256};
use alloy_rlp::{Decodable, Encodable, Header as RlpHeader};
use alloy_trie::EMPTY_ROOT_HASH;
use alloy_trie::root::ordered_trie_root_with_encoder;
use revm::context::result::{EVMError, ExecutionResult, InvalidTransaction};
use revm::context::{BlockEnv, CfgEnv, Context, Journal, TxEnv};
use revm::database_interface::DatabaseCommit;
use revm::handler::instructions::EthInstructions;
use revm::handler::{EthFrame, EthPrecompiles, PrecompileProvider, SystemCallEvm};
use revm::interpreter::interpreter::EthInterpreter;
use revm::interpreter::{CallInputs, InterpreterResult};
use revm::primitives::AddressSet;
use revm::primitives::hardfork::SpecId;
use revm::{ExecuteEvm, MainBuilder, MainContext};
use sha2::{Digest, Sha256};
use thiserror::Error;

use super::chain::{ChainConfig, GenesisAccount};
use super::state::{CodeCache, State, StoredAccount};
use super::transaction::Recovered;
use super::veil::{self, Veil};
use crate::claims::{ClaimTree, Secret};
use crate::store::{StoreError, Transaction};

/// Bytes of the encoded block over which the fork refuses it (EIP-7934), with room for the header.
pub const BLOCK_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Failures that are nobody's transaction: the block cannot be made.
#[derive(Debug, Error)]
pub enum BlockError {
    /// The store refused.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A block record that does not decode.
    #[error("malformed block record: {0}")]
    Malformed(String),
    /// A system call of the fork failed.
    #[error("system call to {0} failed: {1}")]
    SystemCall(Address, String),
}

/// What surrounds the next block.
#[derive(Clone, Debug)]
pub struct BlockContext {
    /// Seconds since the Unix epoch, at least the parent's.
    pub timestamp: u64,
    /// Enclave randomness.
    pub prev_randao: B256,
    /// Salts what the block claims of each transaction; `None`: it claims nothing.
    pub secret: Option<Secret>,
    /// Fees go here.
    pub beneficiary: Address,
    /// Free bytes of the header, at most 32.
    pub extra_data: Bytes,
    /// Time after which no more transactions begin; whatever is under way is finished. `None`: no such time.
    pub target: Option<Duration>,
}

/// Why a transaction did not enter a block.
#[derive(Clone, Debug)]
pub enum Verdict {
    /// It has a receipt; its execution took so long.
    Included(Duration),
    /// It can never be included at this point: nonce, balance, gas.
    Refused(String),
    /// It does not fit this block any more.
    NextBlock,
}

/// A block that was made; and one verdict for each transaction of the batch.
pub type Executed = (Option<Block>, Vec<Verdict>);

/// An executed block.
#[derive(Clone, Debug)]
pub struct Block {
    /// Header.
    pub header: Header,
    /// Its hash.
    pub hash: B256,
    /// Transactions with their senders.
    pub transactions: Vec<Arc<Recovered>>,
    /// One receipt for each.
    pub receipts: Vec<Receipt<Log>>,
    /// What the claims of its transactions are salted with; none in blocks of former versions, and in block 0.
    pub secret: Option<Secret>,
    /// Root of these claims, where the block was executed.
    pub claims_root: Option<B256>,
}

/// Precompiled contracts, which take most of the time of whatever takes long: between two of them a machine can be ended.
pub struct Precompiled {
    all: EthPrecompiles,
    until: Option<Instant>,
}

/// Why a machine was ended.
pub const OUT_OF_TIME: &str = "it takes too long";

impl<'a> PrecompileProvider<MachineContext<'a>> for Precompiled {
    type Output = InterpreterResult;

    fn set_spec(&mut self, spec: SpecId) -> bool {
        PrecompileProvider::<MachineContext<'a>>::set_spec(&mut self.all, spec)
    }

    fn run(
        &mut self,
        context: &mut MachineContext<'a>,
        inputs: &CallInputs,
    ) -> Result<Option<InterpreterResult>, String> {
        if self
            .until
            .is_some_and(|until| self.all.contains(&inputs.bytecode_address) && Instant::now() >= until)
        {
            return Err(OUT_OF_TIME.to_owned());
        }
        self.all.run(context, inputs)
    }

    fn warm_addresses(&self) -> &AddressSet {
        self.all.warm_addresses()
    }
}

type Machine<'a> = revm::context::Evm<
    MachineContext<'a>,
    (),
    EthInstructions<EthInterpreter, MachineContext<'a>>,
    Precompiled,
    EthFrame<EthInterpreter>,
>;
/// The machine's surroundings.
pub type MachineContext<'a> = Context<BlockEnv, TxEnv, CfgEnv, State<'a>, Journal<State<'a>>, ()>;

/// The machine's configuration for a chain.
#[must_use]
pub fn machine_config(chain: &ChainConfig) -> CfgEnv {
    let mut config = CfgEnv::new_with_spec(chain.spec).with_mainnet_gas_params();
    config.chain_id = chain.chain_id;
    config
}

/// The machine's view of a block with this header.
#[must_use]
pub fn block_env(header: &Header, spec: SpecId) -> BlockEnv {
    let mut env = BlockEnv {
        number: U256::from(header.number),
        beneficiary: header.beneficiary,
        timestamp: U256::from(header.timestamp),
        gas_limit: header.gas_limit,
        basefee: header.base_fee_per_gas.unwrap_or_default(),
        difficulty: header.difficulty,
        prevrandao: (spec >= SpecId::MERGE).then_some(header.mix_hash),
        ..BlockEnv::default()
    };
    if spec >= SpecId::CANCUN {
        env.set_blob_excess_gas_and_price(0, revm::primitives::eip4844::BLOB_BASE_FEE_UPDATE_FRACTION_PRAGUE);
    }
    env
}

/// A machine over `state`, which may be ended after `until` with the error `OUT_OF_TIME`.
pub fn machine<'a>(
    state: State<'a>,
    config: CfgEnv,
    block: BlockEnv,
    veil: Veil,
    until: Option<Instant>,
) -> Machine<'a> {
    let spec = config.spec;
    let context: MachineContext<'a> = Context::mainnet().with_db(state).with_cfg(config).with_block(block);
    let mut machine = context.build_mainnet().with_precompiles(Precompiled {
        all: EthPrecompiles::new(spec),
        until,
    });
    veil::draw(&mut machine.instruction, veil);
    machine
}

/// Why a transaction cannot be included, without the numbers: whoever knows its hash may ask for this.
fn refusal(error: &InvalidTransaction) -> String {
    match error {
        InvalidTransaction::NonceTooLow { .. } => "nonce too low".to_owned(),
        InvalidTransaction::NonceTooHigh { .. } => "nonce too high".to_owned(),
        InvalidTransaction::LackOfFundForMaxFee { .. } => "insufficient funds for gas * price + value".to_owned(),
        other => other.to_string(),
    }
}

fn next_base_fee(chain: &ChainConfig, parent: &Header) -> Option<u64> {
    if chain.spec < SpecId::LONDON {
        return None;
    }
    match chain.base_fee {
        None => Some(0),
        Some(first) if parent.number == 0 => Some(first),
        Some(_) => parent.next_block_base_fee(BaseFeeParams::ethereum()),
    }
}

/// The header of the block after `parent`, before execution.
#[must_use]
pub fn next_header(chain: &ChainConfig, parent: &Header, parent_hash: B256, context: &BlockContext) -> Header {
    let since = |fork: SpecId| chain.spec >= fork;
    Header {
        parent_hash,
        ommers_hash: EMPTY_OMMER_ROOT_HASH,
        beneficiary: context.beneficiary,
        state_root: EMPTY_ROOT_HASH,
        transactions_root: EMPTY_ROOT_HASH,
        receipts_root: EMPTY_ROOT_HASH,
        logs_bloom: Bloom::ZERO,
        difficulty: U256::ZERO,
        number: parent.number + 1,
        gas_limit: chain.gas_limit,
        gas_used: 0,
        timestamp: context.timestamp.max(parent.timestamp),
        extra_data: context.extra_data.clone(),
        mix_hash: context.prev_randao,
        nonce: B64::ZERO,
        base_fee_per_gas: next_base_fee(chain, parent),
        withdrawals_root: since(SpecId::SHANGHAI).then_some(EMPTY_WITHDRAWALS),
        blob_gas_used: since(SpecId::CANCUN).then_some(0),
        excess_blob_gas: since(SpecId::CANCUN).then_some(0),
        parent_beacon_block_root: since(SpecId::CANCUN).then_some(B256::ZERO),
        requests_hash: since(SpecId::PRAGUE).then(|| requests_hash(&[])),
        ..Header::default()
    }
}

fn requests_hash(requests: &[Bytes]) -> B256 {
    let mut all = Sha256::new();
    for request in requests.iter().filter(|request| request.len() > 1) {
        all.update(Sha256::digest(request));
    }
    B256::from_slice(&all.finalize())
}

/// Write the genesis accounts and return block 0.
pub fn genesis(
    chain: &ChainConfig,
    accounts: &[GenesisAccount],
    context: &BlockContext,
    transaction: &mut Transaction,
    cache: CodeCache,
    root: impl FnOnce(&mut State<'_>) -> Result<B256, StoreError>,
) -> Result<Block, BlockError> {
    let mut state = State::new(transaction, &chain.place, cache)?;
    for account in accounts {
        let code_hash = state.set_code(&account.code)?;
        let stored = StoredAccount {
            nonce: account.nonce,
            balance: account.balance,
            code_hash,
        };
        state.set_account(&account.address, &stored)?;
        for (slot, value) in &account.storage {
            state.set_slot(&account.address, slot, &U256::from_be_bytes(value.0))?;
        }
    }
    let state_root = root(&mut state)?;
    let mut header = next_header(chain, &Header::default(), B256::ZERO, context);
    header.number = 0;
    header.state_root = state_root;
    header.base_fee_per_gas = (chain.spec >= SpecId::LONDON).then(|| chain.base_fee.unwrap_or(0));
    let hash = header.hash_slow();
    state.set_block_hash(0, &hash)?;
    Ok(Block {
        header,
        hash,
        transactions: Vec::new(),
        receipts: Vec::new(),
        secret: None,
        claims_root: None,
    })
}

/// Execute `batch` as the block after `parent`; `None` when nothing of it could be included.
///
/// On success the state and the block hash are written; on `None` or an error the caller must roll the store transaction
/// back. `root` brings the tries up to date with what the state has changed, and gives the root; it is asked at most once.
#[allow(clippy::too_many_arguments)]
pub fn execute(
    chain: &ChainConfig,
    parent: (&Header, B256),
    context: &BlockContext,
    batch: &[Arc<Recovered>],
    transaction: &mut Transaction,
    cache: CodeCache,
    root: impl FnOnce(&mut State<'_>) -> Result<B256, StoreError>,
) -> Result<Executed, BlockError> {
    let mut header = next_header(chain, parent.0, parent.1, context);
    let state = State::new(transaction, &chain.place, cache)?;
    let env = block_env(&header, chain.spec);
    let mut machine = machine(state, machine_config(chain), env, chain.veil(false), None);
    if chain.spec >= SpecId::CANCUN {
        let root = header.parent_beacon_block_root.unwrap_or_default();
        system_call(&mut machine, eip4788::BEACON_ROOTS_ADDRESS, root.0.into())?;
    }
    if chain.spec >= SpecId::PRAGUE {
        system_call(
            &mut machine,
            eip2935::HISTORY_STORAGE_ADDRESS,
            header.parent_hash.0.into(),
        )?;
    }
    let mut block = Block {
        header: Header::default(),
        hash: B256::ZERO,
        transactions: Vec::new(),
        receipts: Vec::new(),
        secret: context.secret,
        claims_root: None,
    };
    let mut verdicts = Vec::with_capacity(batch.len());
    let mut bytes = 0;
    // Once one of an account's is put off, so are those behind it: their nonces have a gap before them.
    let mut put_off: HashSet<Address> = HashSet::new();
    let began = Instant::now();
    let mut now = began;
    for recovered in batch {
        if recovered.envelope.gas_limit() > header.gas_limit {
            verdicts.push(Verdict::Refused("its gas limit is over the block's".to_owned()));
            continue;
        }
        let late = context.target.is_some_and(|target| now - began >= target) && !block.transactions.is_empty();
        if late
            || header.gas_used + recovered.envelope.gas_limit() > header.gas_limit
            || bytes + recovered.raw.len() > BLOCK_BYTES_MAX
            || put_off.contains(&recovered.sender)
        {
            put_off.insert(recovered.sender);
            verdicts.push(Verdict::NextBlock);
            continue;
        }
        bytes += recovered.raw.len();
        match machine.transact(recovered.to_tx_env()) {
            Ok(outcome) => {
                machine.ctx.journaled_state.database.commit(outcome.state);
                header.gas_used += outcome.result.tx_gas_used();
                let (success, logs) = match outcome.result {
                    ExecutionResult::Success { logs, .. } => (true, logs),
                    ExecutionResult::Revert { .. } | ExecutionResult::Halt { .. } => (false, Vec::new()),
                };
                block.receipts.push(Receipt {
                    status: Eip658Value::Eip658(success),
                    cumulative_gas_used: header.gas_used,
                    logs,
                });
                block.transactions.push(Arc::clone(recovered));
                let ended = Instant::now();
                verdicts.push(Verdict::Included(ended - now));
                now = ended;
            }
            Err(EVMError::Database(error)) => return Err(error.into()),
            Err(EVMError::Transaction(error)) => verdicts.push(Verdict::Refused(refusal(&error))),
            Err(error) => verdicts.push(Verdict::Refused(error.to_string())),
        }
    }
    if block.transactions.is_empty() {
        return Ok((None, verdicts));
    }
    if chain.spec >= SpecId::PRAGUE {
        let mut requests = Vec::new();
        for (kind, address) in [
            (1u8, eip7002::WITHDRAWAL_REQUEST_PREDEPLOY_ADDRESS),
            (2u8, eip7251::CONSOLIDATION_REQUEST_PREDEPLOY_ADDRESS),
        ] {
            let output = system_call(&mut machine, address, Bytes::new())?;
            requests.push(Bytes::from([&[kind], output.as_ref()].concat()));
        }
        header.requests_hash = Some(requests_hash(&requests));
    }
    let state = &mut machine.ctx.journaled_state.database;
    header.state_root = root(state)?;
    seal(&mut block, header);
    state.set_block_hash(block.header.number, &block.hash)?;
    Ok((Some(block), verdicts))
}

fn system_call(machine: &mut Machine<'_>, address: Address, data: Bytes) -> Result<Bytes, BlockError> {
    let failed = |error: String| BlockError::SystemCall(address, error);
    let outcome = machine
        .system_call(address, data)
        .map_err(|error| failed(error.to_string()))?;
    if !outcome.result.is_success() {
        return Err(failed("it reverted".to_owned()));
    }
    let output = outcome.result.output().cloned().unwrap_or_default();
    machine.ctx.journaled_state.database.commit(outcome.state);
    Ok(output)
}

fn seal(block: &mut Block, mut header: Header) {
    header.transactions_root = ordered_trie_root_with_encoder(&block.transactions, |recovered, out| {
        out.extend_from_slice(&recovered.raw)
    });
    let numbered: Vec<usize> = (0..block.receipts.len()).collect();
    header.receipts_root = ordered_trie_root_with_encoder(&numbered, |index, out| {
        let kind = block.transactions[*index].envelope.ty();
        if kind > 0 {
            out.push(kind);
        }
        block.receipts[*index].with_bloom_ref().encode(out);
    });
    header.logs_bloom = block
        .receipts
        .iter()
        .fold(Bloom::ZERO, |bloom, receipt| bloom | receipt.bloom());
    block.hash = header.hash_slow();
    block.header = header;
    block.claims_root = block.claims().and_then(|tree| tree.root()).map(B256::from);
}

impl Block {
    /// Bloom of one receipt.
    #[must_use]
    pub fn receipt_bloom(&self, index: usize) -> Bloom {
        self.receipts[index].bloom()
    }

    /// Gas used by one transaction alone.
    #[must_use]
    pub fn gas_used(&self, index: usize) -> u64 {
        let before = index
            .checked_sub(1)
            .map_or(0, |before| self.receipts[before].cumulative_gas_used);
        self.receipts[index].cumulative_gas_used - before
    }

    /// The claims of its transactions, if it has such.
    #[must_use]
    pub fn claims(&self) -> Option<ClaimTree> {
        let mut tree = ClaimTree::new(self.secret?, self.transactions.len());
        let mut item = Vec::new();
        for index in 0..self.transactions.len() {
            item.clear();
            self.encode_outcome(index, &mut item);
            tree.push(&item);
        }
        Some(tree)
    }

    /// What is claimed of one transaction, which tells nothing of the others: RLP of hash, sender, success, gas that it
    /// used itself, the contract that it creates or nothing, and logs.
    pub fn encode_outcome(&self, index: usize, out: &mut Vec<u8>) {
        let (recovered, receipt) = (&self.transactions[index], &self.receipts[index]);
        let (success, gas_used) = (receipt.status.coerce_status(), self.gas_used(index));
        let created =
            (recovered.envelope.kind().is_create()).then(|| recovered.sender.create(recovered.envelope.nonce()));
        let created: &[u8] = created.as_ref().map_or(&[], |address| address.as_slice());
        RlpHeader {
            list: true,
            payload_length: recovered.hash().length()
                + recovered.sender.length()
                + success.length()
                + gas_used.length()
                + created.length()
                + receipt.logs.length(),
        }
        .encode(out);
        recovered.hash().encode(out);
        recovered.sender.encode(out);
        success.encode(out);
        gas_used.encode(out);
        created.encode(out);
        receipt.logs.encode(out);
    }

    /// Logs in earlier transactions of the block.
    #[must_use]
    pub fn logs_before(&self, index: usize) -> usize {
        self.receipts[..index].iter().map(|receipt| receipt.logs.len()).sum()
    }

    /// Price that one transaction pays per gas.
    #[must_use]
    pub fn effective_gas_price(&self, index: usize) -> u128 {
        self.transactions[index]
            .envelope
            .effective_gas_price(self.header.base_fee_per_gas)
    }

    /// Size of the block in its standard encoding.
    #[must_use]
    pub fn standard_size(&self) -> usize {
        let transactions: usize = self
            .transactions
            .iter()
            .map(|t| {
                if t.envelope.is_legacy() {
                    t.raw.len()
                } else {
                    t.raw.as_ref().length()
                }
            })
            .sum();
        let list = RlpHeader {
            list: true,
            payload_length: transactions,
        }
        .length()
            + transactions;
        let withdrawals = usize::from(self.header.withdrawals_root.is_some());
        let payload = self.header.length() + list + 1 + withdrawals;
        RlpHeader {
            list: true,
            payload_length: payload,
        }
        .length()
            + payload
    }

    /// The record that the ledger keeps: everything that cannot be computed from the rest.
    #[must_use]
    pub fn encode_record(&self) -> Vec<u8> {
        let mut transactions = Vec::new();
        for recovered in &self.transactions {
            recovered.sender.encode(&mut transactions);
            recovered.raw.encode(&mut transactions);
        }
        let mut receipts = Vec::new();
        for receipt in &self.receipts {
            let success = receipt.status.coerce_status();
            let payload_length = success.length() + receipt.cumulative_gas_used.length() + receipt.logs.length();
            RlpHeader {
                list: true,
                payload_length,
            }
            .encode(&mut receipts);
            success.encode(&mut receipts);
            receipt.cumulative_gas_used.encode(&mut receipts);
            receipt.logs.encode(&mut receipts);
        }
        let mut payload = Vec::new();
        self.header.encode(&mut payload);
        for part in [&transactions, &receipts] {
            RlpHeader {
                list: true,
                payload_length: part.len(),
            }
            .encode(&mut payload);
            payload.extend_from_slice(part);
        }
        if let Some(secret) = self.secret {
            secret.0.encode(&mut payload);
        }
        let mut out = Vec::with_capacity(payload.len() + 4);
        RlpHeader {
            list: true,
            payload_length: payload.len(),
        }
        .encode(&mut out);
        out.extend_from_slice(&payload);
        out
    }

    /// The block of a record.
    pub fn decode_record(record: &[u8]) -> Result<Self, BlockError> {
        Self::decode_rlp(record).map_err(|error| BlockError::Malformed(error.to_string()))
    }

    fn decode_rlp(mut record: &[u8]) -> Result<Self, alloy_rlp::Error> {
        let mut payload = RlpHeader::decode_bytes(&mut record, true)?;
        let header = Header::decode(&mut payload)?;
        let mut list = RlpHeader::decode_bytes(&mut payload, true)?;
        let mut transactions = Vec::new();
        while !list.is_empty() {
            let sender = Address::decode(&mut list)?;
            let raw = Bytes::decode(&mut list)?;
            let recovered = Recovered::trusted(raw, sender).map_err(|_| alloy_rlp::Error::Custom("a transaction"))?;
            transactions.push(Arc::new(recovered));
        }
        let mut list = RlpHeader::decode_bytes(&mut payload, true)?;
        let mut receipts = Vec::new();
        while !list.is_empty() {
            let mut one = RlpHeader::decode_bytes(&mut list, true)?;
            receipts.push(Receipt {
                status: Eip658Value::Eip658(bool::decode(&mut one)?),
                cumulative_gas_used: u64::decode(&mut one)?,
                logs: Vec::<Log>::decode(&mut one)?,
            });
        }
        if receipts.len() != transactions.len() {
            return Err(alloy_rlp::Error::Custom("receipts and transactions differ in number"));
        }
        let secret = (!payload.is_empty())
            .then(|| <[u8; 32]>::decode(&mut payload).map(Secret))
            .transpose()?;
        if !payload.is_empty() {
            return Err(alloy_rlp::Error::Custom("more than a block"));
        }
        Ok(Self {
            hash: header.hash_slow(),
            header,
            transactions,
            receipts,
            secret,
            claims_root: None,
        })
    }
}
