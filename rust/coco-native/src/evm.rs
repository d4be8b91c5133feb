//! Ethereum: admission, blocks, queries, and the shapes of JSON-RPC.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use alloy_consensus::{Transaction as _, Typed2718 as _};
use alloy_primitives::{Address, B256, Bytes, Signature, U256};
use coco_core::claims::Secret;
use coco_core::evm::block::{self as core, BlockContext, Verdict};
use coco_core::evm::chain::{ChainConfig, GenesisAccount, predeployed};
use coco_core::evm::query::{Answer, Message, Query};
use coco_core::evm::state::{CodeCache, Place, State, StateTables, StateTrie, Tries};
use coco_core::evm::transaction::{self, Recovered, Rules, TransactionError};
use coco_core::evm::{SpecId, rlp, trie, wide};
use coco_core::front::submission::{Check, Checked};
use coco_core::store::StoreError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList, PyTuple};
use revm::context_interface::transaction::{Authorization, SignedAuthorization};

use crate::background::Background;
use crate::errors::{NativeError, guarded, whole};
use crate::json::{Json, Object, list_of};
use crate::store::{Transaction, WriteSet};

fn argument(text: impl ToString) -> NativeError {
    NativeError::new("native.argument", text)
}

fn address(bytes: &[u8]) -> Result<Address, NativeError> {
    Address::try_from(bytes).map_err(|_| argument("an address has 20 bytes"))
}

fn word(bytes: &[u8]) -> Result<B256, NativeError> {
    B256::try_from(bytes).map_err(|_| argument("a hash has 32 bytes"))
}

fn number(bytes: &[u8]) -> Result<U256, NativeError> {
    U256::try_from_be_slice(bytes).ok_or_else(|| argument("a number has at most 32 bytes"))
}

fn fork(name: &str) -> Result<SpecId, NativeError> {
    Ok(match name {
        "frontier" => SpecId::FRONTIER,
        "homestead" => SpecId::HOMESTEAD,
        "tangerine" => SpecId::TANGERINE,
        "spurious_dragon" => SpecId::SPURIOUS_DRAGON,
        "byzantium" => SpecId::BYZANTIUM,
        "petersburg" => SpecId::PETERSBURG,
        "istanbul" => SpecId::ISTANBUL,
        "berlin" => SpecId::BERLIN,
        "london" => SpecId::LONDON,
        "paris" => SpecId::MERGE,
        "shanghai" => SpecId::SHANGHAI,
        "cancun" => SpecId::CANCUN,
        "prague" => SpecId::PRAGUE,
        "osaka" => SpecId::OSAKA,
        other => return Err(argument(format!("there is no fork {other}"))),
    })
}

fn quantity(value: impl std::fmt::LowerHex) -> String {
    format!("{value:#x}")
}

fn hex(bytes: &[u8]) -> String {
    alloy_primitives::hex::encode_prefixed(bytes)
}

fn integer<'py>(py: Python<'py>, value: &U256) -> PyResult<Bound<'py, PyAny>> {
    if let Ok(small) = u64::try_from(value) {
        return Ok(small.into_pyobject(py)?.into_any());
    }
    let bytes = PyBytes::new(py, &value.to_be_bytes::<32>());
    py.import("builtins")?
        .getattr("int")?
        .call_method1("from_bytes", (bytes, "big"))
}

/// An admitted transaction.
#[pyclass(frozen, module = "coco._native")]
pub struct Envelope {
    recovered: Arc<Recovered>,
}

impl Envelope {
    /// Most wei that it can take from its sender.
    fn most_wei(&self) -> U256 {
        let envelope = &self.recovered.envelope;
        U256::from(envelope.gas_limit())
            .saturating_mul(U256::from(envelope.max_fee_per_gas()))
            .saturating_add(envelope.value())
    }
}

#[pymethods]
impl Envelope {
    #[getter]
    fn hash<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, self.recovered.hash().as_slice())
    }

    #[getter]
    fn sender<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, self.recovered.sender.as_slice())
    }

    #[getter]
    fn to<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyBytes>> {
        self.recovered.envelope.to().map(|to| PyBytes::new(py, to.as_slice()))
    }

    #[getter]
    fn raw<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.recovered.raw)
    }

    #[getter]
    fn nonce(&self) -> u64 {
        self.recovered.envelope.nonce()
    }

    #[getter]
    fn gas_limit(&self) -> u64 {
        self.recovered.envelope.gas_limit()
    }

    #[getter]
    fn max_fee(&self) -> u128 {
        self.recovered.envelope.max_fee_per_gas()
    }

    #[getter]
    fn max_priority_fee(&self) -> u128 {
        self.recovered
            .envelope
            .max_priority_fee_per_gas()
            .unwrap_or_else(|| self.max_fee())
    }

    #[getter]
    fn size(&self) -> usize {
        self.recovered.raw.len()
    }

    /// The JSON-RPC object of a transaction that waits in the pool.
    fn describe<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let mut object = transaction_object(&self.recovered);
        for absent in ["blockHash", "blockNumber", "transactionIndex"] {
            object.set(absent, Json::Null);
        }
        object.set("gasPrice", quantity(self.max_fee()));
        object.to_python(py)
    }
}

fn transaction_object(recovered: &Recovered) -> Object {
    let envelope = &recovered.envelope;
    let mut object = Object::default();
    object.set("type", quantity(envelope.ty()));
    object.set("hash", hex(recovered.hash().as_slice()));
    object.set("from", hex(recovered.sender.as_slice()));
    object.set("to", envelope.to().map(|to| hex(to.as_slice())));
    object.set("nonce", quantity(envelope.nonce()));
    object.set("gas", quantity(envelope.gas_limit()));
    object.set("value", quantity(envelope.value()));
    object.set("input", hex(envelope.input()));
    if let Some(chain_id) = envelope.chain_id() {
        object.set("chainId", quantity(chain_id));
    }
    if let Some(tip) = envelope.max_priority_fee_per_gas() {
        object.set("maxFeePerGas", quantity(envelope.max_fee_per_gas()));
        object.set("maxPriorityFeePerGas", quantity(tip));
    }
    if let Some(list) = envelope.access_list() {
        let items = list.iter().map(|item| {
            let mut one = Object::default();
            one.set("address", hex(item.address.as_slice()));
            let keys: Vec<Json> = item.storage_keys.iter().map(|key| hex(key.as_slice()).into()).collect();
            one.set("storageKeys", keys);
            one.into()
        });
        object.set("accessList", items.collect::<Vec<Json>>());
    }
    if let Some(list) = envelope.authorization_list() {
        let items = list.iter().map(|signed| {
            let mut one = Object::default();
            one.set("chainId", quantity(signed.inner().chain_id));
            one.set("address", hex(signed.inner().address.as_slice()));
            one.set("nonce", quantity(signed.inner().nonce));
            one.set("yParity", quantity(signed.y_parity()));
            one.set("r", quantity(signed.r()));
            one.set("s", quantity(signed.s()));
            one.into()
        });
        object.set("authorizationList", items.collect::<Vec<Json>>());
    }
    let signature = envelope.signature();
    object.set("r", quantity(signature.r()));
    object.set("s", quantity(signature.s()));
    if envelope.is_legacy() {
        let base = envelope
            .chain_id()
            .map_or(27, |id| id.saturating_mul(2).saturating_add(35));
        object.set("v", quantity(base.saturating_add(u64::from(signature.v()))));
    } else {
        object.set("v", quantity(u8::from(signature.v())));
        object.set("yParity", quantity(u8::from(signature.v())));
    }
    object
}

/// Transaction, outcome, salt and path: see `Block.outcome`.
type ProvenOutcome<'py> = (
    Bound<'py, PyBytes>,
    Bound<'py, PyBytes>,
    Bound<'py, PyBytes>,
    Vec<Bound<'py, PyBytes>>,
);

/// An executed block.
#[pyclass(frozen, module = "coco._native")]
pub struct Block {
    block: Arc<core::Block>,
    /// What the block makes of the tries, if it was executed here and is not applied.
    tries: Mutex<Option<Tries>>,
}

impl Block {
    fn new(block: core::Block, tries: Option<Tries>) -> Self {
        Self {
            block: Arc::new(block),
            tries: Mutex::new(tries),
        }
    }

    fn check(&self, index: usize) -> Result<(), NativeError> {
        if index < self.block.transactions.len() {
            Ok(())
        } else {
            Err(argument("the block has no such transaction"))
        }
    }

    fn place(&self, object: &mut Object, index: usize) {
        object.set("blockHash", hex(self.block.hash.as_slice()));
        object.set("blockNumber", quantity(self.block.header.number));
        object.set("transactionIndex", quantity(index));
    }

    fn transaction_object(&self, index: usize) -> Result<Object, NativeError> {
        self.check(index)?;
        let mut object = transaction_object(&self.block.transactions[index]);
        self.place(&mut object, index);
        object.set("gasPrice", quantity(self.block.effective_gas_price(index)));
        Ok(object)
    }

    /// `before`: logs in the transactions before this one.
    fn receipt_object(&self, index: usize, before: usize) -> Result<Object, NativeError> {
        self.check(index)?;
        let (recovered, receipt) = (&self.block.transactions[index], &self.block.receipts[index]);
        let envelope = &recovered.envelope;
        let mut object = Object::default();
        object.set("type", quantity(envelope.ty()));
        object.set("status", quantity(u8::from(receipt.status.coerce_status())));
        object.set("transactionHash", hex(recovered.hash().as_slice()));
        self.place(&mut object, index);
        object.set("from", hex(recovered.sender.as_slice()));
        object.set("to", envelope.to().map(|to| hex(to.as_slice())));
        let created = envelope
            .kind()
            .is_create()
            .then(|| recovered.sender.create(envelope.nonce()));
        object.set("contractAddress", created.map(|address| hex(address.as_slice())));
        object.set("cumulativeGasUsed", quantity(receipt.cumulative_gas_used));
        object.set("gasUsed", quantity(self.block.gas_used(index)));
        object.set("effectiveGasPrice", quantity(self.block.effective_gas_price(index)));
        object.set("logsBloom", hex(self.block.receipt_bloom(index).as_slice()));
        let mut logs = Vec::with_capacity(receipt.logs.len());
        for position in 0..receipt.logs.len() {
            logs.push(self.log_object(index, position, before)?.into());
        }
        object.set("logs", logs);
        Ok(object)
    }

    fn log_object(&self, index: usize, position: usize, before: usize) -> Result<Object, NativeError> {
        self.check(index)?;
        let receipt = &self.block.receipts[index];
        let log = receipt
            .logs
            .get(position)
            .ok_or_else(|| argument("the receipt has no such log"))?;
        let mut object = Object::default();
        object.set("address", hex(log.address.as_slice()));
        let topics: Vec<Json> = log
            .data
            .topics()
            .iter()
            .map(|topic| hex(topic.as_slice()).into())
            .collect();
        object.set("topics", topics);
        object.set("data", hex(&log.data.data));
        self.place(&mut object, index);
        object.set("blockTimestamp", quantity(self.block.header.timestamp));
        object.set("transactionHash", hex(self.block.transactions[index].hash().as_slice()));
        object.set("logIndex", quantity(before + position));
        object.set("removed", false);
        Ok(object)
    }

    /// For each transaction, the logs in those before it.
    fn logs_before_each(&self) -> Vec<usize> {
        let counts = self.block.receipts.iter().map(|receipt| receipt.logs.len());
        counts
            .scan(0, |sum, count| {
                let before = *sum;
                *sum += count;
                Some(before)
            })
            .collect()
    }
}

#[pymethods]
impl Block {
    #[staticmethod]
    fn decode(py: Python<'_>, record: &[u8]) -> PyResult<Self> {
        let block = whole(py, || Ok(core::Block::decode_record(record)?))?;
        Ok(Self::new(block, None))
    }

    fn record<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.block.encode_record())
    }

    #[getter]
    fn number(&self) -> u64 {
        self.block.header.number
    }

    #[getter]
    fn timestamp(&self) -> u64 {
        self.block.header.timestamp
    }

    #[getter]
    fn gas_used(&self) -> u64 {
        self.block.header.gas_used
    }

    #[getter]
    fn gas_limit(&self) -> u64 {
        self.block.header.gas_limit
    }

    #[getter]
    fn base_fee(&self) -> u64 {
        self.block.header.base_fee_per_gas.unwrap_or_default()
    }

    #[getter]
    fn hash<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, self.block.hash.as_slice())
    }

    #[getter]
    fn state_root<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, self.block.header.state_root.as_slice())
    }

    fn __len__(&self) -> usize {
        self.block.transactions.len()
    }

    /// Root of what the block claims of each transaction, where it was executed; else `None`.
    #[getter]
    fn claims_root<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyBytes>> {
        self.block.claims_root.map(|root| PyBytes::new(py, root.as_slice()))
    }

    /// `(transaction, outcome, salt, path)` that prove one transaction from that root; `None` of a block without claims.
    fn outcome<'py>(&self, py: Python<'py>, index: usize) -> PyResult<Option<ProvenOutcome<'py>>> {
        self.check(index)?;
        let made = guarded(py, || {
            let mut item = Vec::new();
            self.block.encode_outcome(index, &mut item);
            let tree = self.block.claims();
            let proof = tree.and_then(|tree| Some((tree.salt(u32::try_from(index).ok()?), tree.path(index)?)));
            Ok(proof.map(|(salt, path)| (item, salt, path)))
        })?;
        Ok(made.map(|(item, salt, path)| {
            (
                PyBytes::new(py, &self.block.transactions[index].raw),
                PyBytes::new(py, &item),
                PyBytes::new(py, &salt),
                path.iter().map(|node| PyBytes::new(py, node)).collect(),
            )
        }))
    }

    fn transaction_hashes<'py>(&self, py: Python<'py>) -> Vec<Bound<'py, PyBytes>> {
        self.block
            .transactions
            .iter()
            .map(|t| PyBytes::new(py, t.hash().as_slice()))
            .collect()
    }

    /// `(sender, to)` of a transaction.
    fn parties<'py>(
        &self,
        py: Python<'py>,
        index: usize,
    ) -> PyResult<(Bound<'py, PyBytes>, Option<Bound<'py, PyBytes>>)> {
        self.check(index)?;
        let recovered = &self.block.transactions[index];
        let to = recovered.envelope.to().map(|to| PyBytes::new(py, to.as_slice()));
        Ok((PyBytes::new(py, recovered.sender.as_slice()), to))
    }

    /// Indexes of the transactions that one of `accounts` sent or received. One comparison for each transaction and
    /// account, so that the time tells nothing of what is in those of others.
    fn of_accounts(&self, accounts: HashSet<[u8; 20]>) -> Vec<usize> {
        let theirs = |recovered: &Recovered| {
            let to = recovered.envelope.to().is_some_and(|to| accounts.contains(&to.0.0));
            accounts.contains(&recovered.sender.0.0) | to
        };
        let all = self.block.transactions.iter().enumerate();
        all.filter(|(_, one)| theirs(one)).map(|(index, _)| index).collect()
    }

    /// Effective priority fee and gas used of every transaction, for the fee history.
    fn rewards(&self) -> Vec<(u128, u64)> {
        let base = u128::from(self.base_fee());
        (0..self.block.transactions.len())
            .map(|index| {
                (
                    self.block.effective_gas_price(index).saturating_sub(base),
                    self.block.gas_used(index),
                )
            })
            .collect()
    }

    /// Header fields in their JSON-RPC form, `size` included.
    fn header<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let header = &self.block.header;
        let object = PyDict::new(py);
        object.set_item("number", quantity(header.number))?;
        object.set_item("hash", hex(self.block.hash.as_slice()))?;
        object.set_item("parentHash", hex(header.parent_hash.as_slice()))?;
        object.set_item("nonce", hex(header.nonce.as_slice()))?;
        object.set_item("sha3Uncles", hex(header.ommers_hash.as_slice()))?;
        object.set_item("logsBloom", hex(header.logs_bloom.as_slice()))?;
        object.set_item("transactionsRoot", hex(header.transactions_root.as_slice()))?;
        object.set_item("stateRoot", hex(header.state_root.as_slice()))?;
        object.set_item("receiptsRoot", hex(header.receipts_root.as_slice()))?;
        object.set_item("miner", hex(header.beneficiary.as_slice()))?;
        object.set_item("difficulty", quantity(header.difficulty))?;
        object.set_item("extraData", hex(&header.extra_data))?;
        object.set_item("gasLimit", quantity(header.gas_limit))?;
        object.set_item("gasUsed", quantity(header.gas_used))?;
        object.set_item("timestamp", quantity(header.timestamp))?;
        object.set_item("mixHash", hex(header.mix_hash.as_slice()))?;
        object.set_item("size", quantity(self.block.standard_size()))?;
        if let Some(fee) = header.base_fee_per_gas {
            object.set_item("baseFeePerGas", quantity(fee))?;
        }
        if let Some(root) = header.withdrawals_root {
            object.set_item("withdrawalsRoot", hex(root.as_slice()))?;
            object.set_item("withdrawals", PyList::empty(py))?;
        }
        if let (Some(used), Some(excess)) = (header.blob_gas_used, header.excess_blob_gas) {
            object.set_item("blobGasUsed", quantity(used))?;
            object.set_item("excessBlobGas", quantity(excess))?;
        }
        if let Some(root) = header.parent_beacon_block_root {
            object.set_item("parentBeaconBlockRoot", hex(root.as_slice()))?;
        }
        if let Some(hash) = header.requests_hash {
            object.set_item("requestsHash", hex(hash.as_slice()))?;
        }
        Ok(object)
    }

    /// The JSON-RPC object of a transaction.
    fn transaction<'py>(&self, py: Python<'py>, index: usize) -> PyResult<Bound<'py, PyDict>> {
        self.transaction_object(index)?.to_python(py)
    }

    /// The JSON-RPC object of a receipt.
    fn receipt<'py>(&self, py: Python<'py>, index: usize) -> PyResult<Bound<'py, PyDict>> {
        self.check(index)?;
        self.receipt_object(index, self.block.logs_before(index))?.to_python(py)
    }

    /// The JSON-RPC object of one log.
    fn log<'py>(&self, py: Python<'py>, index: usize, position: usize) -> PyResult<Bound<'py, PyDict>> {
        self.check(index)?;
        self.log_object(index, position, self.block.logs_before(index))?
            .to_python(py)
    }

    /// JSON of the list of these transactions; like all of its kind without the interpreter, which others need meanwhile.
    fn transactions_json<'py>(&self, py: Python<'py>, indices: Vec<usize>) -> PyResult<Bound<'py, PyBytes>> {
        let made = guarded(py, || {
            list_of(indices.iter().map(|index| self.transaction_object(*index)))
        })?;
        Ok(PyBytes::new(py, &made))
    }

    /// JSON of the list of these transactions' receipts.
    fn receipts_json<'py>(&self, py: Python<'py>, indices: Vec<usize>) -> PyResult<Bound<'py, PyBytes>> {
        let made = guarded(py, || {
            let before = self.logs_before_each();
            list_of(indices.iter().map(|index| {
                self.check(*index)?;
                self.receipt_object(*index, before[*index])
            }))
        })?;
        Ok(PyBytes::new(py, &made))
    }

    /// JSON of the list of these logs, each given as `(transaction index, log position)`.
    fn logs_json<'py>(&self, py: Python<'py>, places: Vec<(usize, usize)>) -> PyResult<Bound<'py, PyBytes>> {
        let made = guarded(py, || {
            let before = self.logs_before_each();
            list_of(places.iter().map(|(index, position)| {
                self.check(*index)?;
                self.log_object(*index, *position, before[*index])
            }))
        })?;
        Ok(PyBytes::new(py, &made))
    }

    /// `(transaction index, log position)` of every log of these transactions that matches: any of `addresses`, and for
    /// each place any of the topics there; empty means anything.
    fn match_logs(
        &self,
        py: Python<'_>,
        addresses: Vec<[u8; 20]>,
        topics: Vec<Vec<[u8; 32]>>,
        transactions: Vec<usize>,
    ) -> PyResult<Vec<(usize, usize)>> {
        let fits = |log: &alloy_primitives::Log| {
            (addresses.is_empty() || addresses.iter().any(|a| log.address == Address::from(*a)))
                && topics.len() <= log.data.topics().len()
                && topics
                    .iter()
                    .zip(log.data.topics())
                    .all(|(any, topic)| any.is_empty() || any.contains(&topic.0))
        };
        guarded(py, || {
            let mut found = Vec::new();
            for index in transactions {
                self.check(index)?;
                for (position, log) in self.block.receipts[index].logs.iter().enumerate() {
                    if fits(log) {
                        found.push((index, position));
                    }
                }
            }
            Ok(found)
        })
    }
}

struct Derived {
    trie: StateTrie,
    /// What each block that is not committed replaced, oldest first.
    former: VecDeque<(u64, Tries)>,
    /// False from the start of an update to its end: a panic in between leaves a trie that only `rebuild` makes good.
    whole: bool,
}

/// The machine of one chain on one node.
#[pyclass(frozen, module = "coco._native")]
pub struct Chain {
    config: ChainConfig,
    rules: Rules,
    cache: CodeCache,
    derived: Mutex<Derived>,
}

/// How the code of an account that delegates begins (EIP-7702).
const DELEGATION: [u8; 3] = [0xef, 0x01, 0x00];

/// What became of one transaction of a batch, as Python sees it: see `Chain.execute`.
#[derive(IntoPyObject)]
enum Fate {
    Included(u64),
    Other(String),
}

type GenesisRow = (Vec<u8>, Vec<u8>, u64, Vec<u8>, Vec<(Vec<u8>, Vec<u8>)>);
type AccessRow = (Vec<u8>, Vec<Vec<u8>>);
/// Chain id, address, nonce, parity, r, s.
type AuthorizationRow = (Vec<u8>, Vec<u8>, u64, u8, Vec<u8>, Vec<u8>);

impl Chain {
    /// What admits one transaction, without this object.
    pub fn check_of_one(&self) -> Check {
        let rules = self.rules;
        Box::new(move |raw| transaction::admit(raw, &rules).map(Arc::new))
    }

    fn lock(&self) -> MutexGuard<'_, Derived> {
        // `Derived::whole` tells whether a panic interrupted an update.
        self.derived.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn whole(&self) -> Result<MutexGuard<'_, Derived>, NativeError> {
        let derived = self.lock();
        if derived.whole {
            Ok(derived)
        } else {
            Err(NativeError::new("ethereum.trie_lost", "the state trie must be rebuilt"))
        }
    }

    /// The root after what `state` has changed. The tries are as before; what it makes of them is for `apply`.
    fn root_after(&self, state: &mut State<'_>, tries: &mut Option<Tries>) -> Result<B256, StoreError> {
        let mut derived = self.lock();
        if !derived.whole {
            return Err(StoreError::Malformed("the state trie, which must be rebuilt"));
        }
        derived.whole = false;
        let (root, former) = state.update_trie(&mut derived.trie)?;
        *tries = Some(derived.trie.exchange(former));
        derived.whole = true;
        Ok(root)
    }

    fn state<T>(
        &self,
        transaction: &Transaction,
        read: impl FnOnce(&mut State<'_>) -> Result<T, StoreError>,
    ) -> PyResult<T> {
        let mut inner = transaction.lock();
        let mut state = State::new(&mut inner, &self.config.place, self.cache.clone()).map_err(NativeError::from)?;
        Ok(read(&mut state).map_err(NativeError::from)?)
    }
}

/// `(envelope, hash, sender, nonce, raw)`, or `(code, text)` of what is wrong.
pub fn admitted(py: Python<'_>, checked: Checked) -> PyResult<Bound<'_, PyTuple>> {
    match checked {
        Ok(recovered) => {
            let hash = PyBytes::new(py, recovered.hash().as_slice());
            let sender = PyBytes::new(py, recovered.sender.as_slice());
            let (nonce, raw) = (recovered.envelope.nonce(), PyBytes::new(py, &recovered.raw));
            (Envelope { recovered }, hash, sender, nonce, raw).into_pyobject(py)
        }
        Err(error) => (error.code(), error.to_string()).into_pyobject(py),
    }
}

fn answer<'py>(py: Python<'py>, answer: &Answer) -> (&'static str, Bound<'py, PyBytes>, u64, String) {
    match answer {
        Answer::Success(output, gas) => ("success", PyBytes::new(py, output), *gas, String::new()),
        Answer::Revert(output, gas) => ("revert", PyBytes::new(py, output), *gas, String::new()),
        Answer::Halt(reason, gas) => ("halt", PyBytes::new(py, &[]), *gas, reason.clone()),
        Answer::Refused(reason) => ("refused", PyBytes::new(py, &[]), 0, reason.clone()),
    }
}

/// Accounts and slots that a message touches.
type Touched<'py> = Vec<(Bound<'py, PyBytes>, Vec<Bound<'py, PyBytes>>)>;
/// RLP of the nodes of a proof.
type Nodes<'py> = Vec<Bound<'py, PyBytes>>;
type Answered<'py> = (&'static str, Bound<'py, PyBytes>, u64, String);

#[allow(clippy::too_many_arguments)]
#[pymethods]
impl Chain {
    #[new]
    #[pyo3(signature = (chain_id, fork_name, gas_limit, base_fee, *, private=false, namespace="ethereum", over=None, prefix=Vec::new()))]
    fn new(
        chain_id: u64,
        fork_name: &str,
        gas_limit: u64,
        base_fee: Option<u64>,
        private: bool,
        namespace: &str,
        over: Option<&str>,
        prefix: Vec<u8>,
    ) -> PyResult<Self> {
        let spec = fork(fork_name)?;
        if spec < SpecId::MERGE {
            return Err(argument("a network starts with Paris or a later fork").into());
        }
        Ok(Self {
            config: ChainConfig {
                chain_id,
                spec,
                gas_limit,
                base_fee,
                private,
                place: Place {
                    tables: StateTables::of(namespace),
                    prefix,
                    below: over.map(StateTables::of),
                },
            },
            rules: Rules {
                spec,
                chain_id,
                allow_unprotected: true,
                allow_blobs: false,
            },
            cache: CodeCache::default(),
            derived: Mutex::new(Derived {
                trie: StateTrie::default(),
                former: VecDeque::new(),
                whole: true,
            }),
        })
    }

    /// For each of `raw` what `admitted` makes of it; in the background.
    fn admit(&self, background: &Background, raw: Vec<Vec<u8>>) -> PyResult<u64> {
        let rules = self.rules;
        let ticket = background.spawn(move || {
            let checked = transaction::admit_batch(&raw, &rules);
            Box::new(move |py| {
                let out = PyList::empty(py);
                for one in checked {
                    out.append(admitted(py, one)?)?;
                }
                Ok(out.into_any().unbind())
            })
        })?;
        Ok(ticket)
    }

    /// Nonce and balance of each envelope's sender against the state: None, or `(code, text)` of the refusal.
    fn check(
        &self,
        transaction: &Transaction,
        envelopes: Vec<PyRef<'_, Envelope>>,
    ) -> PyResult<Vec<Option<(&'static str, String)>>> {
        self.state(transaction, |state| {
            envelopes
                .iter()
                .map(|envelope| {
                    let account = state.account(&envelope.recovered.sender)?.unwrap_or_default();
                    let (nonce, cost) = (envelope.nonce(), envelope.most_wei());
                    Ok(if nonce < account.nonce {
                        let text = format!("nonce too low: next nonce {}, tx nonce {nonce}", account.nonce);
                        Some(("nonce_too_low", text))
                    } else if cost > account.balance {
                        let have = account.balance;
                        let text = format!("insufficient funds for gas * price + value: have {have} want {cost}");
                        Some(("insufficient_funds", text))
                    } else {
                        None
                    })
                })
                .collect()
        })
    }

    /// Write the genesis accounts and the fork's own contracts; returns block 0.
    fn genesis(
        &self,
        py: Python<'_>,
        transaction: &Transaction,
        accounts: Vec<GenesisRow>,
        timestamp: u64,
        extra_data: Vec<u8>,
    ) -> PyResult<Block> {
        let mut all = predeployed(self.config.spec);
        for (at, balance, nonce, code, storage) in accounts {
            let slots: Result<Vec<_>, NativeError> = storage
                .iter()
                .map(|(slot, value)| Ok((number(slot)?, word(value)?)))
                .collect();
            all.push(GenesisAccount {
                address: address(&at)?,
                balance: number(&balance)?,
                nonce,
                code: code.into(),
                storage: slots?,
            });
        }
        let context = BlockContext {
            timestamp,
            prev_randao: B256::ZERO,
            secret: None,
            beneficiary: Address::ZERO,
            extra_data: extra_data.into(),
            target: None,
        };
        let (block, tries) = whole(py, || {
            let mut tries = None;
            let root = |state: &mut State<'_>| self.root_after(state, &mut tries);
            let block = core::genesis(
                &self.config,
                &all,
                &context,
                &mut transaction.lock(),
                self.cache.clone(),
                root,
            )?;
            Ok((block, tries))
        })?;
        Ok(Block::new(block, tries))
    }

    /// Execute the block after `parent`: `(block or None, verdicts)`; a verdict is the microseconds that an included
    /// transaction took, "" for *does not fit this block*, else why the transaction is refused. After `target_ms` no more
    /// transactions begin, unless none is in the block yet; 0 sets no such time.
    fn execute(
        &self,
        py: Python<'_>,
        transaction: &Transaction,
        parent: &Block,
        timestamp: u64,
        prev_randao: &[u8],
        secret: &[u8],
        envelopes: Vec<PyRef<'_, Envelope>>,
        target_ms: u64,
    ) -> PyResult<(Option<Block>, Vec<Fate>)> {
        let batch: Vec<Arc<Recovered>> = envelopes.iter().map(|one| Arc::clone(&one.recovered)).collect();
        drop(envelopes);
        let context = BlockContext {
            timestamp,
            prev_randao: word(prev_randao)?,
            secret: Some(Secret(word(secret)?.0)),
            beneficiary: Address::ZERO,
            extra_data: Bytes::new(),
            target: (target_ms > 0).then(|| Duration::from_millis(target_ms)),
        };
        let (block, tries, verdicts) = guarded(py, || {
            drop(self.whole()?);
            let mut tries = None;
            let (done, verdicts) = core::execute(
                &self.config,
                (&parent.block.header, parent.block.hash),
                &context,
                &batch,
                &mut transaction.lock(),
                self.cache.clone(),
                |state| self.root_after(state, &mut tries),
            )?;
            Ok((done, tries, verdicts))
        })?;
        let verdicts = verdicts
            .into_iter()
            .map(|verdict| match verdict {
                Verdict::Included(took) => Fate::Included(u64::try_from(took.as_micros()).unwrap_or(u64::MAX)),
                Verdict::NextBlock => Fate::Other(String::new()),
                Verdict::Refused(reason) => Fate::Other(reason),
            })
            .collect();
        Ok((block.map(|block| Block::new(block, tries)), verdicts))
    }

    /// Whether the tries are those of the tables, and not lost by an update that was broken off: then `rebuild` makes them.
    #[getter]
    fn is_whole(&self) -> bool {
        self.lock().whole
    }

    /// Bring the tries up to date with a block that was executed here, as the next one; once.
    fn apply(&self, block: &Block) -> PyResult<()> {
        let mut tries = block.tries.lock().unwrap_or_else(PoisonError::into_inner);
        let tries = tries
            .take()
            .ok_or_else(|| argument("the block is applied, or was not executed here"))?;
        let mut derived = self.whole()?;
        let former = derived.trie.exchange(tries);
        derived.former.push_back((block.block.header.number, former));
        Ok(())
    }

    /// Bring the trie up to date with what another node's block `number` wrote, which `transaction` sees; the state root.
    fn follow<'py>(
        &self,
        py: Python<'py>,
        transaction: &Transaction,
        writes: &WriteSet,
        number: u64,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let root = whole(py, || {
            let (mut inner, mut derived) = (transaction.lock(), self.whole()?);
            derived.whole = false;
            let mut state = State::new(&mut inner, &self.config.place, self.cache.clone())?;
            state.follow(&writes.inner)?;
            let (root, former) = state.update_trie(&mut derived.trie)?;
            derived.former.push_back((number, former));
            derived.whole = true;
            Ok(root)
        })?;
        Ok(PyBytes::new(py, root.as_slice()))
    }

    /// Blocks up to `number` are final: what undoes them is dropped.
    fn committed(&self, number: u64) {
        let mut derived = self.lock();
        while derived.former.front().is_some_and(|(block, _)| *block <= number) {
            derived.former.pop_front();
        }
    }

    /// Undo the trie of every block above `number`.
    fn roll_back(&self, py: Python<'_>, number: u64) -> PyResult<()> {
        whole(py, || {
            let mut derived = self.whole()?;
            while derived.former.back().is_some_and(|(block, _)| *block > number) {
                if let Some((_, former)) = derived.former.pop_back() {
                    drop(derived.trie.exchange(former));
                }
            }
            Ok(())
        })
    }

    /// Build the trie anew from the tables; returns the state root.
    fn rebuild<'py>(&self, py: Python<'py>, transaction: &Transaction) -> PyResult<Bound<'py, PyBytes>> {
        let root = whole(py, || {
            let mut trie = StateTrie::rebuild(&mut transaction.lock(), &self.config.place)?;
            let root = trie.root();
            *self.lock() = Derived {
                trie,
                former: VecDeque::new(),
                whole: true,
            };
            Ok(root)
        })?;
        Ok(PyBytes::new(py, root.as_slice()))
    }

    /// `(nonce, balance)` of each account.
    fn accounts<'py>(
        &self,
        py: Python<'py>,
        transaction: &Transaction,
        addresses: Vec<Vec<u8>>,
    ) -> PyResult<Vec<(u64, Bound<'py, PyAny>)>> {
        let mut found = Vec::with_capacity(addresses.len());
        for bytes in addresses {
            let at = address(&bytes)?;
            found.push(self.state(transaction, |state| Ok(state.account(&at)?.unwrap_or_default()))?);
        }
        found
            .into_iter()
            .map(|account| Ok((account.nonce, integer(py, &account.balance)?)))
            .collect()
    }

    /// Whether code lives at an address: not what an account delegates to (EIP-7702), which is a person's.
    fn is_contract(&self, transaction: &Transaction, at: &[u8]) -> PyResult<bool> {
        let at = address(at)?;
        self.state(transaction, |state| {
            let hash = state.account(&at)?.unwrap_or_default().code_hash;
            let code = state.code(&hash)?;
            Ok(!code.is_empty() && !code.starts_with(&DELEGATION))
        })
    }

    fn code<'py>(&self, py: Python<'py>, transaction: &Transaction, at: &[u8]) -> PyResult<Bound<'py, PyBytes>> {
        let at = address(at)?;
        let code = self.state(transaction, |state| {
            let account = state.account(&at)?.unwrap_or_default();
            state.code(&account.code_hash)
        })?;
        Ok(PyBytes::new(py, &code))
    }

    fn storage<'py>(
        &self,
        py: Python<'py>,
        transaction: &Transaction,
        at: &[u8],
        slot: &[u8],
    ) -> PyResult<Bound<'py, PyBytes>> {
        let (at, slot) = (address(at)?, number(slot)?);
        let value = self.state(transaction, |state| state.slot(&at, &slot))?;
        Ok(PyBytes::new(py, &value.to_be_bytes::<32>()))
    }

    /// Run a message on the state of `transaction` in the surroundings of `block`. `kind` is `call`, `estimate` or
    /// `access_list`. `sees_all`: nothing is hidden from who asks. Returns `(outcome, output, gas, reason)` and the access list.
    fn query<'py>(
        &self,
        py: Python<'py>,
        kind: &str,
        transaction: &Transaction,
        block: &Block,
        sender: &[u8],
        to: Option<&[u8]>,
        gas: Option<u64>,
        gas_price: Option<u128>,
        value: &[u8],
        data: Vec<u8>,
        access_list: Vec<AccessRow>,
        authorizations: Vec<AuthorizationRow>,
        sees_all: bool,
    ) -> PyResult<(Answered<'py>, Touched<'py>)> {
        let list: Result<Vec<_>, NativeError> = access_list
            .iter()
            .map(|(at, keys)| {
                let keys: Result<Vec<_>, _> = keys.iter().map(|key| word(key)).collect();
                Ok((address(at)?, keys?))
            })
            .collect();
        let message = Message {
            from: address(sender)?,
            to: to.map(address).transpose()?,
            gas,
            gas_price,
            value: number(value)?,
            data: data.into(),
            access_list: list?,
            authorizations: authorizations
                .iter()
                .map(|(chain_id, at, nonce, parity, r, s)| {
                    let inner = Authorization {
                        chain_id: number(chain_id)?,
                        address: address(at)?,
                        nonce: *nonce,
                    };
                    Ok(SignedAuthorization::new_unchecked(
                        inner,
                        *parity,
                        number(r)?,
                        number(s)?,
                    ))
                })
                .collect::<Result<_, NativeError>>()?,
        };
        let (outcome, touched) = guarded(py, || {
            let query = Query {
                chain: &self.config,
                header: &block.block.header,
                cache: self.cache.clone(),
                sees_all,
            };
            let mut inner = transaction.lock();
            Ok(match kind {
                "estimate" => (query.estimate(&mut inner, &message)?, Vec::new()),
                "access_list" => query.access_list(&mut inner, &message)?,
                _ => (query.call(&mut inner, &message)?, Vec::new()),
            })
        })?;
        let touched = touched
            .into_iter()
            .map(|(at, keys)| {
                let keys = keys.iter().map(|key| PyBytes::new(py, key.as_slice())).collect();
                (PyBytes::new(py, at.as_slice()), keys)
            })
            .collect();
        Ok((answer(py, &outcome), touched))
    }

    /// `(account proof, storage root, proof of each slot)` at the latest state.
    fn proof<'py>(
        &self,
        py: Python<'py>,
        at: &[u8],
        slots: Vec<Vec<u8>>,
    ) -> PyResult<(Nodes<'py>, Bound<'py, PyBytes>, Vec<Nodes<'py>>)> {
        let at = address(at)?;
        let slots: Result<Vec<_>, NativeError> = slots.iter().map(|slot| number(slot)).collect();
        let slots = slots?;
        let (account, root, storage) = guarded(py, || {
            let mut derived = self.whole()?;
            let storage: Vec<_> = slots.iter().map(|slot| derived.trie.storage_proof(&at, slot)).collect();
            Ok((derived.trie.account_proof(&at), derived.trie.storage_root(&at), storage))
        })?;
        let list = |nodes: Vec<Vec<u8>>| nodes.iter().map(|node| PyBytes::new(py, node)).collect::<Vec<_>>();
        Ok((
            list(account),
            PyBytes::new(py, root.as_slice()),
            storage.into_iter().map(list).collect(),
        ))
    }

    /// One test of the conformance suite, below the pool: `(included, state root, hash of the logs' RLP, reason)`.
    #[staticmethod]
    fn state_test<'py>(
        py: Python<'py>,
        transaction: &Transaction,
        fork_name: &str,
        accounts: Vec<GenesisRow>,
        env: &Bound<'py, PyDict>,
        message: &Bound<'py, PyDict>,
    ) -> PyResult<(bool, Bound<'py, PyBytes>, Bound<'py, PyBytes>, String)> {
        crate::evm::conformance::state_test(py, transaction, fork_name, accounts, env, message)
    }
}

/// A Merkle-Patricia trie, for the conformance suite.
#[pyclass(module = "coco._native")]
#[derive(Default)]
pub struct Trie {
    trie: trie::Trie,
}

#[pymethods]
impl Trie {
    #[new]
    fn new() -> Self {
        Self::default()
    }

    fn set(&mut self, key: &[u8], value: &[u8]) {
        self.trie.set(key, value);
    }

    fn root<'py>(&mut self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, self.trie.root().as_slice())
    }

    fn proof<'py>(&self, py: Python<'py>, key: &[u8]) -> Vec<Bound<'py, PyBytes>> {
        self.trie.proof(key).iter().map(|node| PyBytes::new(py, node)).collect()
    }
}

/// Keccak-256.
#[pyfunction]
pub fn keccak256<'py>(py: Python<'py>, data: &[u8]) -> Bound<'py, PyBytes> {
    PyBytes::new(py, alloy_primitives::keccak256(data).as_slice())
}

/// The account that signed `hash` with the 65 bytes `r ‖ s ‖ v`, or `None`.
#[pyfunction]
pub fn recover_signer<'py>(py: Python<'py>, hash: &[u8], signature: &[u8]) -> PyResult<Option<Bound<'py, PyBytes>>> {
    let hash = word(hash)?;
    let Ok(signature) = Signature::from_raw(signature) else {
        return Ok(None);
    };
    let signer = transaction::recover_signer(&hash, &signature);
    Ok(signer.map(|signer| PyBytes::new(py, signer.as_slice())))
}

fn item_to_python<'py>(py: Python<'py>, item: &rlp::Item) -> PyResult<Bound<'py, PyAny>> {
    Ok(match item {
        rlp::Item::Bytes(bytes) => PyBytes::new(py, bytes).into_any(),
        rlp::Item::List(items) => {
            let list = PyList::empty(py);
            for item in items {
                list.append(item_to_python(py, item)?)?;
            }
            list.into_any()
        }
    })
}

fn item_from_python(value: &Bound<'_, PyAny>, depth: usize) -> PyResult<rlp::Item> {
    if depth > rlp::DEPTH_MAX {
        return Err(argument("nested too deeply").into());
    }
    if let Ok(bytes) = value.cast::<PyBytes>() {
        return Ok(rlp::Item::Bytes(bytes.as_bytes().to_vec()));
    }
    let list = value
        .cast::<PyList>()
        .map_err(|_| argument("RLP holds bytes and lists"))?;
    let items: PyResult<Vec<_>> = list.iter().map(|item| item_from_python(&item, depth + 1)).collect();
    Ok(rlp::Item::List(items?))
}

/// Strict RLP: bytes or nested lists of bytes.
#[pyfunction]
pub fn rlp_decode<'py>(py: Python<'py>, data: &[u8]) -> PyResult<Bound<'py, PyAny>> {
    let item = guarded(py, || {
        rlp::decode(data).map_err(|error| NativeError::new("ethereum.rlp", error))
    })?;
    item_to_python(py, &item)
}

/// The RLP of bytes or nested lists of bytes.
#[pyfunction]
pub fn rlp_encode<'py>(py: Python<'py>, value: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyBytes>> {
    Ok(PyBytes::new(py, &rlp::encode(&item_from_python(value, 0)?)))
}

/// `(hash, sender, intrinsic gas)` of a transaction under a fork's rules, blobs allowed; for the conformance suite.
#[pyfunction]
pub fn check_transaction<'py>(
    py: Python<'py>,
    raw: &[u8],
    fork_name: &str,
    chain_id: u64,
) -> PyResult<(Bound<'py, PyBytes>, Bound<'py, PyBytes>, u64)> {
    let spec = fork(fork_name)?;
    let rules = Rules {
        spec,
        chain_id,
        allow_unprotected: true,
        allow_blobs: true,
    };
    let (hash, recovered) = guarded(py, || match transaction::admit(raw, &rules) {
        Ok(recovered) => Ok((*recovered.hash(), recovered)),
        Err(TransactionError::FeeTooHigh) => {
            let wide = wide::check(raw, &rules).map_err(|error| NativeError::new(error.code(), error))?;
            Ok((wide.hash, wide.narrowed))
        }
        Err(error) => Err(NativeError::new(error.code(), error)),
    })?;
    let gas = transaction::intrinsic_gas(&recovered, spec);
    let hash = PyBytes::new(py, hash.as_slice());
    Ok((hash, PyBytes::new(py, recovered.sender.as_slice()), gas))
}

mod conformance {
    //! The machine driven as the suite's state tests want it: any block environment, an unsigned message.

    use alloy_primitives::keccak256;
    use coco_core::evm::block::{block_env, machine, machine_config};
    use coco_core::evm::state::StoredAccount;
    use revm::context::TxEnv;
    use revm::context::result::ExecutionResult;
    use revm::context_interface::either::Either;
    use revm::context_interface::transaction::{AccessList, AccessListItem};
    use revm::database_interface::DatabaseCommit;
    use revm::primitives::TxKind;
    use revm::{ExecuteEvm, primitives::eip4844};

    use super::*;

    fn get<'py, T>(dict: &Bound<'py, PyDict>, key: &str) -> PyResult<T>
    where
        T: for<'a> FromPyObject<'a, 'py, Error = PyErr>,
    {
        let value = dict
            .get_item(key)?
            .ok_or_else(|| argument(format!("{key} is missing")))?;
        value.extract()
    }

    fn optional<'py>(dict: &Bound<'py, PyDict>, key: &str) -> PyResult<Option<Bound<'py, PyAny>>> {
        Ok(dict.get_item(key)?.filter(|value| !value.is_none()))
    }

    fn uint(dict: &Bound<'_, PyDict>, key: &str) -> PyResult<U256> {
        let bytes: Vec<u8> = get(dict, key)?;
        Ok(number(&bytes)?)
    }

    fn saturated_u64(value: U256) -> u64 {
        value.try_into().unwrap_or(u64::MAX)
    }

    pub fn state_test<'py>(
        py: Python<'py>,
        transaction: &Transaction,
        fork_name: &str,
        accounts: Vec<GenesisRow>,
        env: &Bound<'py, PyDict>,
        message: &Bound<'py, PyDict>,
    ) -> PyResult<(bool, Bound<'py, PyBytes>, Bound<'py, PyBytes>, String)> {
        let spec = fork(fork_name)?;
        let chain = ChainConfig {
            chain_id: 1,
            spec,
            gas_limit: 0,
            base_fee: None,
            private: false,
            place: Place::of("ethereum"),
        };
        let header = alloy_consensus::Header {
            number: saturated_u64(uint(env, "number")?),
            beneficiary: address(&get::<Vec<u8>>(env, "coinbase")?)?,
            timestamp: saturated_u64(uint(env, "timestamp")?),
            gas_limit: saturated_u64(uint(env, "gas_limit")?),
            base_fee_per_gas: Some(saturated_u64(uint(env, "base_fee")?)),
            difficulty: uint(env, "difficulty")?,
            mix_hash: B256::from(uint(env, "random")?.to_be_bytes::<32>()),
            ..Default::default()
        };
        let mut block = block_env(&header, spec);
        if spec >= SpecId::CANCUN {
            let fraction = if spec >= SpecId::PRAGUE {
                eip4844::BLOB_BASE_FEE_UPDATE_FRACTION_PRAGUE
            } else {
                eip4844::BLOB_BASE_FEE_UPDATE_FRACTION_CANCUN
            };
            block.set_blob_excess_gas_and_price(saturated_u64(uint(env, "excess_blob_gas")?), fraction);
        }
        let mut access_list = Vec::new();
        for (at, keys) in get::<Vec<AccessRow>>(message, "access_list")? {
            let storage_keys: Result<Vec<_>, NativeError> = keys.iter().map(|key| word(key)).collect();
            access_list.push(AccessListItem {
                address: address(&at)?,
                storage_keys: storage_keys?,
            });
        }
        let mut authorizations = Vec::new();
        if let Some(list) = optional(message, "authorization_list")? {
            for row in list.extract::<Vec<Bound<'py, PyDict>>>()? {
                let inner = Authorization {
                    chain_id: uint(&row, "chain_id")?,
                    address: address(&get::<Vec<u8>>(&row, "address")?)?,
                    nonce: saturated_u64(uint(&row, "nonce")?),
                };
                let parity = uint(&row, "v")?.try_into().unwrap_or(u8::MAX);
                let signed = SignedAuthorization::new_unchecked(inner, parity, uint(&row, "r")?, uint(&row, "s")?);
                authorizations.push(Either::Left(signed));
            }
        }
        let to: Vec<u8> = get(message, "to")?;
        let blob_hashes: Result<Vec<_>, NativeError> = get::<Vec<Vec<u8>>>(message, "blob_hashes")?
            .iter()
            .map(|hash| word(hash))
            .collect();
        let priority = match optional(message, "max_priority_fee")? {
            Some(_) => Some(uint(message, "max_priority_fee")?.try_into().unwrap_or(u128::MAX)),
            None => None,
        };
        let mut tx = TxEnv {
            caller: address(&get::<Vec<u8>>(message, "sender")?)?,
            gas_limit: saturated_u64(uint(message, "gas_limit")?),
            gas_price: uint(message, "gas_price")?.try_into().unwrap_or(u128::MAX),
            gas_priority_fee: priority,
            kind: if to.is_empty() {
                TxKind::Create
            } else {
                TxKind::Call(address(&to)?)
            },
            value: uint(message, "value")?,
            data: get::<Vec<u8>>(message, "data")?.into(),
            nonce: saturated_u64(uint(message, "nonce")?),
            chain_id: Some(1),
            access_list: AccessList(access_list),
            blob_hashes: blob_hashes?,
            max_fee_per_blob_gas: uint(message, "max_fee_per_blob_gas")?.try_into().unwrap_or(u128::MAX),
            authorization_list: authorizations,
            ..TxEnv::default()
        };
        tx.tx_type = get::<u8>(message, "type")?;
        let (included, root, logs, reason) = guarded(py, || {
            let mut inner = transaction.lock();
            let mut trie = StateTrie::default();
            let mut state = State::new(&mut inner, &chain.place, CodeCache::default())?;
            for (at, balance, nonce, code, storage) in &accounts {
                let at = address(at)?;
                let code_hash = state.set_code(code)?;
                state.set_account(
                    &at,
                    &StoredAccount {
                        nonce: *nonce,
                        balance: number(balance)?,
                        code_hash,
                    },
                )?;
                for (slot, value) in storage {
                    state.set_slot(&at, &number(slot)?, &number(value)?)?;
                }
            }
            // The suite defines the hash of block n as the hash of n in decimal.
            for past in header.number.saturating_sub(256)..header.number {
                state.set_block_hash(past, &keccak256(past.to_string()))?;
            }
            let mut machine = machine(state, machine_config(&chain), block, chain.veil(true), None);
            let (included, logs, reason) = match machine.transact(tx) {
                Ok(outcome) => {
                    machine.ctx.journaled_state.database.commit(outcome.state);
                    match outcome.result {
                        ExecutionResult::Success { logs, .. } => (true, logs, String::new()),
                        _ => (true, Vec::new(), String::new()),
                    }
                }
                Err(error) => (false, Vec::new(), error.to_string()),
            };
            if included {
                // A coinbase that is touched with nothing is gone after EIP-161; before that it would stay.
                let state = &mut machine.ctx.journaled_state.database;
                let coinbase = state.account(&header.beneficiary)?;
                if coinbase.is_some_and(|account| account == StoredAccount::default()) {
                    state.remove_account(&header.beneficiary)?;
                }
            }
            let (root, _) = machine.ctx.journaled_state.database.update_trie(&mut trie)?;
            Ok((included, root, keccak256(alloy_rlp::encode(&logs)), reason))
        })?;
        Ok((
            included,
            PyBytes::new(py, root.as_slice()),
            PyBytes::new(py, logs.as_slice()),
            reason,
        ))
    }
}
