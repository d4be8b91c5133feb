//! EVM state in tables of the store, and the state trie derived from it.
//!
//! | table | key | value |
//! |---|---|---|
//! | `NAMESPACE.accounts` | address, 20 bytes | RLP list: nonce, balance, code hash (empty without code) |
//! | `NAMESPACE.storage` | address, slot: 52 bytes | value without leading zeros; a zero is a removed key |
//! | `NAMESPACE.code` | code hash | code |
//! | `NAMESPACE.hashes` | block number, 8 bytes | hash of the block; the last 256 |
//!
//! A state may lie *over* another one, in tables of its own, with a prefix before each key of accounts and storage: what
//! is not in it is as below, nothing below is ever written, and what it removes is a row without a value.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, RwLock};

use alloy_consensus::constants::KECCAK_EMPTY;
use alloy_primitives::{Address, B256, U256, keccak256};
use alloy_rlp::{Decodable, Encodable, Header};
use alloy_trie::{EMPTY_ROOT_HASH, TrieAccount};
use revm::database_interface::{DBErrorMarker, Database, DatabaseCommit};
use revm::primitives::{AddressMap, StorageKey, StorageValue};
use revm::state::{Account, AccountInfo, Bytecode};
use smallvec::SmallVec;

use super::trie::Trie;
use crate::store::{StoreError, TableId, Transaction, WriteSet};

/// Names of one state's tables, all of kind *state*.
#[derive(Clone, Debug)]
pub struct StateTables {
    accounts: String,
    storage: String,
    code: String,
    hashes: String,
}

impl StateTables {
    /// Those of a namespace.
    #[must_use]
    pub fn of(namespace: &str) -> Self {
        let table = |name| format!("{namespace}.{name}");
        Self {
            accounts: table("accounts"),
            storage: table("storage"),
            code: table("code"),
            hashes: table("hashes"),
        }
    }

    fn ids(&self, transaction: &Transaction) -> Result<Ids, StoreError> {
        Ok(Ids {
            accounts: transaction.table(&self.accounts)?,
            storage: transaction.table(&self.storage)?,
            code: transaction.table(&self.code)?,
            hashes: transaction.table(&self.hashes)?,
        })
    }
}

/// Where a state is.
#[derive(Clone, Debug)]
pub struct Place {
    /// What it writes.
    pub tables: StateTables,
    /// Before every key of its accounts and storage.
    pub prefix: Vec<u8>,
    /// The state that it lies over.
    pub below: Option<StateTables>,
}

impl Place {
    /// A state of its own, in the tables of a namespace.
    #[must_use]
    pub fn of(namespace: &str) -> Self {
        Self {
            tables: StateTables::of(namespace),
            prefix: Vec::new(),
            below: None,
        }
    }

    fn without_prefix<'a>(
        &self,
        key: &'a [u8],
        size: usize,
        what: &'static str,
    ) -> Result<Option<&'a [u8]>, StoreError> {
        match key.strip_prefix(&*self.prefix) {
            None => Ok(None), // of another state in the same tables
            Some(rest) if rest.len() == size => Ok(Some(rest)),
            Some(_) => Err(StoreError::Malformed(what)),
        }
    }
}

#[derive(Clone, Copy)]
struct Ids {
    accounts: TableId,
    storage: TableId,
    code: TableId,
    hashes: TableId,
}

const ADDRESS_BYTES: usize = 20;
const SLOT_BYTES: usize = 52;

/// A key, with what stands before it.
type Key = SmallVec<[u8; SLOT_BYTES]>;

/// Block hashes that BLOCKHASH can see.
pub const HASHES_KEPT: u64 = 256;
/// Contracts whose analysed code is kept.
const CODE_CACHE_MAX: usize = 1024;

impl DBErrorMarker for StoreError {}

/// Analysed code by hash, shared by all executions of a node.
pub type CodeCache = Arc<RwLock<HashMap<B256, Bytecode>>>;

/// An account as stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredAccount {
    /// Nonce.
    pub nonce: u64,
    /// Balance in wei.
    pub balance: U256,
    /// Code hash; the hash of nothing without code.
    pub code_hash: B256,
}

impl Default for StoredAccount {
    fn default() -> Self {
        Self {
            nonce: 0,
            balance: U256::ZERO,
            code_hash: KECCAK_EMPTY,
        }
    }
}

impl StoredAccount {
    fn encode(&self) -> Vec<u8> {
        let code_hash: &[u8] = if self.code_hash == KECCAK_EMPTY {
            &[]
        } else {
            self.code_hash.as_slice()
        };
        let payload_length = self.nonce.length() + self.balance.length() + code_hash.length();
        let mut out = Vec::with_capacity(payload_length + 3);
        Header {
            list: true,
            payload_length,
        }
        .encode(&mut out);
        self.nonce.encode(&mut out);
        self.balance.encode(&mut out);
        code_hash.encode(&mut out);
        out
    }

    fn decode(bytes: &[u8]) -> Result<Self, StoreError> {
        let malformed = |_| StoreError::Malformed("an account row");
        let mut rest = bytes;
        let mut payload = Header::decode_bytes(&mut rest, true).map_err(malformed)?;
        let nonce = u64::decode(&mut payload).map_err(malformed)?;
        let balance = U256::decode(&mut payload).map_err(malformed)?;
        let hash = Header::decode_bytes(&mut payload, false).map_err(malformed)?;
        let code_hash = match hash.len() {
            0 => KECCAK_EMPTY,
            32 => B256::from_slice(hash),
            _ => return Err(StoreError::Malformed("an account row")),
        };
        Ok(Self {
            nonce,
            balance,
            code_hash,
        })
    }
}

#[derive(Default)]
struct Dirty {
    wiped: bool,
    slots: HashSet<U256>,
}

/// The machine's database over one store transaction; remembers which accounts and slots changed.
pub struct State<'a> {
    transaction: &'a mut Transaction,
    place: &'a Place,
    own: Ids,
    below: Option<Ids>,
    cache: CodeCache,
    dirty: HashMap<Address, Dirty>,
}

fn storage_key(prefix: &[u8], address: &Address, slot: &U256) -> Key {
    let mut key = Key::from_slice(prefix);
    key.extend_from_slice(address.as_slice());
    key.extend_from_slice(&slot.to_be_bytes::<32>());
    key
}

fn account_key(prefix: &[u8], address: &Address) -> Key {
    let mut key = Key::from_slice(prefix);
    key.extend_from_slice(address.as_slice());
    key
}

impl<'a> State<'a> {
    /// A view of `transaction`.
    pub fn new(transaction: &'a mut Transaction, place: &'a Place, cache: CodeCache) -> Result<Self, StoreError> {
        Ok(Self {
            own: place.tables.ids(transaction)?,
            below: place.below.as_ref().map(|tables| tables.ids(transaction)).transpose()?,
            place,
            transaction,
            cache,
            dirty: HashMap::new(),
        })
    }

    /// An account, or `None` when it does not exist.
    pub fn account(&mut self, address: &Address) -> Result<Option<StoredAccount>, StoreError> {
        let own = self
            .transaction
            .get(self.own.accounts, &account_key(&self.place.prefix, address))?;
        let found = match (own, self.below) {
            (None, Some(below)) => self.transaction.get(below.accounts, address.as_slice())?,
            (own, _) => own,
        };
        found
            .filter(|bytes| !bytes.is_empty())
            .map(|bytes| StoredAccount::decode(&bytes))
            .transpose()
    }

    /// Code by its hash; empty when there is none.
    pub fn code(&mut self, hash: &B256) -> Result<Vec<u8>, StoreError> {
        let own = self.transaction.get(self.own.code, hash.as_slice())?;
        let found = match (own, self.below) {
            (None, Some(below)) => self.transaction.get(below.code, hash.as_slice())?,
            (own, _) => own,
        };
        Ok(found.map(|bytes| bytes.to_vec()).unwrap_or_default())
    }

    /// A storage slot.
    pub fn slot(&mut self, address: &Address, slot: &U256) -> Result<U256, StoreError> {
        let key = storage_key(&self.place.prefix, address, slot);
        let own = self.transaction.get(self.own.storage, &key)?;
        let found = match (own, self.below) {
            (None, Some(below)) => self.transaction.get(below.storage, &storage_key(&[], address, slot))?,
            (own, _) => own,
        };
        Ok(found.map_or(U256::ZERO, |bytes| U256::from_be_slice(&bytes)))
    }

    /// Write an account.
    pub fn set_account(&mut self, address: &Address, account: &StoredAccount) -> Result<(), StoreError> {
        self.dirty.entry(*address).or_default();
        let key = account_key(&self.place.prefix, address);
        self.transaction.put(self.own.accounts, &key, account.encode())
    }

    /// Write code and return its hash.
    pub fn set_code(&mut self, code: &[u8]) -> Result<B256, StoreError> {
        if code.is_empty() {
            return Ok(KECCAK_EMPTY);
        }
        let hash = keccak256(code);
        if self.transaction.get(self.own.code, hash.as_slice())?.is_none() {
            self.transaction.put(self.own.code, hash.as_slice(), code)?;
        }
        Ok(hash)
    }

    /// Write a storage slot.
    pub fn set_slot(&mut self, address: &Address, slot: &U256, value: &U256) -> Result<(), StoreError> {
        self.dirty.entry(*address).or_default().slots.insert(*slot);
        let key = storage_key(&self.place.prefix, address, slot);
        if value.is_zero() {
            self.erase(self.own.storage, &key)
        } else {
            self.transaction
                .put(self.own.storage, &key, value.to_be_bytes_trimmed_vec())
        }
    }

    /// Remove a row; over another state, hide what is below.
    fn erase(&mut self, table: TableId, key: &[u8]) -> Result<(), StoreError> {
        if self.below.is_some() {
            self.transaction.put(table, key, Vec::new())
        } else {
            self.transaction.remove(table, key)
        }
    }

    /// Remove an account, its storage included.
    pub fn remove_account(&mut self, address: &Address) -> Result<(), StoreError> {
        self.wipe_storage(address)?;
        self.erase(self.own.accounts, &account_key(&self.place.prefix, address))
    }

    fn wipe_storage(&mut self, address: &Address) -> Result<(), StoreError> {
        let dirty = self.dirty.entry(*address).or_default();
        dirty.wiped = true;
        dirty.slots.clear();
        let prefix = account_key(&self.place.prefix, address);
        loop {
            let page = self.transaction.scan(self.own.storage, &prefix, None, 1024)?;
            if page.is_empty() {
                break;
            }
            for (key, _) in page {
                self.transaction.remove(self.own.storage, &key)?;
            }
        }
        let Some(below) = self.below else {
            return Ok(());
        };
        let mut after: Option<Vec<u8>> = None;
        loop {
            let page = self
                .transaction
                .scan(below.storage, address.as_slice(), after.as_deref(), 1024)?;
            let Some((last, _)) = page.last() else {
                return Ok(());
            };
            after = Some(last.to_vec());
            for (key, _) in page {
                let hidden = [&self.place.prefix, &*key].concat();
                self.transaction.put(self.own.storage, &hidden, Vec::new())?;
            }
        }
    }

    /// Remember the hash of block `number` and forget the one that fell out of reach.
    pub fn set_block_hash(&mut self, number: u64, hash: &B256) -> Result<(), StoreError> {
        self.transaction
            .put(self.own.hashes, &number.to_be_bytes(), hash.as_slice())?;
        match number.checked_sub(HASHES_KEPT) {
            Some(old) => self.transaction.remove(self.own.hashes, &old.to_be_bytes()),
            None => Ok(()),
        }
    }

    fn try_commit(&mut self, changes: AddressMap<Account>) -> Result<(), StoreError> {
        for (address, account) in changes {
            if !account.is_touched() {
                continue;
            }
            if account.is_selfdestructed() {
                self.remove_account(&address)?;
                continue;
            }
            if account.is_created() {
                self.wipe_storage(&address)?;
            }
            // EIP-161: a touched account that is empty goes. No genesis can choose a fork before it.
            if account.is_empty() {
                self.remove_account(&address)?;
                continue;
            }
            let mut code_hash = account.info.code_hash;
            if code_hash.is_zero() {
                code_hash = KECCAK_EMPTY;
            }
            if let Some(code) = &account.info.code
                && code_hash != KECCAK_EMPTY
            {
                self.set_code(code.original_byte_slice())?;
            }
            let stored = StoredAccount {
                nonce: account.info.nonce,
                balance: account.info.balance,
                code_hash,
            };
            if self.account(&address)?.as_ref() != Some(&stored) {
                self.set_account(&address, &stored)?;
            }
            for (slot, value) in &account.storage {
                if value.is_changed() {
                    self.set_slot(&address, slot, &value.present_value)?;
                }
            }
        }
        Ok(())
    }

    /// Count what another node has written, which the transaction sees, among the changes.
    pub fn follow(&mut self, writes: &WriteSet) -> Result<(), StoreError> {
        let place = self.place;
        let keys = |table: &str| writes.tables.get(table).into_iter().flat_map(|rows| rows.keys());
        for key in keys(&place.tables.accounts) {
            if let Some(key) = place.without_prefix(key, ADDRESS_BYTES, "an account row")? {
                self.dirty.entry(Address::from_slice(key)).or_default();
            }
        }
        for key in keys(&place.tables.storage) {
            if let Some(key) = place.without_prefix(key, SLOT_BYTES, "a storage row")? {
                let (address, slot) = key.split_at(ADDRESS_BYTES);
                let dirty = self.dirty.entry(Address::from_slice(address)).or_default();
                dirty.slots.insert(U256::from_be_slice(slot));
            }
        }
        Ok(())
    }

    /// Bring `trie` up to date with every change so far, and return the state root.
    ///
    /// The former tries of what changed come back too: `StateTrie::exchange` takes them to undo this.
    pub fn update_trie(&mut self, trie: &mut StateTrie) -> Result<(B256, Tries), StoreError> {
        let former_accounts = trie.accounts.clone();
        let mut former_storages = Vec::new();
        for (address, dirty) in std::mem::take(&mut self.dirty) {
            let hashed = keccak256(address);
            let stored = self.account(&address)?;
            if dirty.wiped || !dirty.slots.is_empty() {
                let former = trie.storages.remove(&address);
                former_storages.push((address, former.clone()));
                let mut storage = if dirty.wiped {
                    Trie::default()
                } else {
                    former.unwrap_or_default()
                };
                for slot in &dirty.slots {
                    let value = self.slot(&address, slot)?;
                    set_slot(&mut storage, slot, &value);
                }
                if !storage.is_empty() && stored.is_some() {
                    trie.storages.insert(address, storage);
                }
            }
            match stored {
                Some(account) => {
                    let storage_root = trie.storages.get_mut(&address).map_or(EMPTY_ROOT_HASH, Trie::root);
                    set_account(&mut trie.accounts, &hashed, &account, storage_root);
                }
                None => trie.accounts.set(hashed.as_slice(), &[]),
            }
        }
        Ok((
            trie.accounts.root(),
            Tries {
                accounts: former_accounts,
                storages: former_storages,
            },
        ))
    }
}

fn set_slot(trie: &mut Trie, slot: &U256, value: &U256) {
    let key = keccak256(slot.to_be_bytes::<32>());
    if value.is_zero() {
        trie.set(key.as_slice(), &[]);
    } else {
        trie.set(key.as_slice(), &alloy_rlp::encode(value));
    }
}

fn set_account(trie: &mut Trie, hashed: &B256, account: &StoredAccount, storage_root: B256) {
    let leaf = TrieAccount {
        nonce: account.nonce,
        balance: account.balance,
        storage_root,
        code_hash: account.code_hash,
    };
    trie.set(hashed.as_slice(), &alloy_rlp::encode(leaf));
}

/// The tries of the whole state: derived from the tables, never replicated.
#[derive(Default)]
pub struct StateTrie {
    accounts: Trie,
    storages: HashMap<Address, Trie>,
}

/// The tries of what one block changed: as they were before it, or as they are after it.
pub struct Tries {
    accounts: Trie,
    storages: Vec<(Address, Option<Trie>)>,
}

impl StateTrie {
    /// Build the tries from the tables that `transaction` sees.
    pub fn rebuild(transaction: &mut Transaction, place: &Place) -> Result<Self, StoreError> {
        let mut trie = Self::default();
        let own = place.tables.ids(transaction)?;
        each(transaction, own.storage, &place.prefix, |key, value| {
            let key = place.without_prefix(key, SLOT_BYTES, "a storage row")?.unwrap_or(key);
            let (address, slot) = key.split_at(ADDRESS_BYTES);
            set_slot(
                trie.storages.entry(Address::from_slice(address)).or_default(),
                &U256::from_be_slice(slot),
                &U256::from_be_slice(value),
            );
            Ok(())
        })?;
        trie.storages.retain(|_, storage| !storage.is_empty());
        each(transaction, own.accounts, &place.prefix, |key, value| {
            let key = place
                .without_prefix(key, ADDRESS_BYTES, "an account row")?
                .unwrap_or(key);
            if value.is_empty() {
                return Ok(()); // removed, over another state
            }
            let address = Address::from_slice(key);
            let storage_root = trie.storages.get_mut(&address).map_or(EMPTY_ROOT_HASH, Trie::root);
            let account = StoredAccount::decode(value)?;
            set_account(&mut trie.accounts, &keccak256(address), &account, storage_root);
            Ok(())
        })?;
        Ok(trie)
    }

    /// The state root.
    pub fn root(&mut self) -> B256 {
        self.accounts.root()
    }

    /// Put the tries of one block's changes in the place of those that are there, which come back: what undoes an update
    /// gives what does it again. Updates are undone in reverse order.
    #[must_use]
    pub fn exchange(&mut self, others: Tries) -> Tries {
        let accounts = std::mem::replace(&mut self.accounts, others.accounts);
        let storages = others
            .storages
            .into_iter()
            .map(|(address, trie)| {
                let there = match trie {
                    Some(trie) => self.storages.insert(address, trie),
                    None => self.storages.remove(&address),
                };
                (address, there)
            })
            .collect();
        Tries { accounts, storages }
    }

    /// Proof of an account (EIP-1186).
    #[must_use]
    pub fn account_proof(&self, address: &Address) -> Vec<Vec<u8>> {
        self.accounts.proof(keccak256(address).as_slice())
    }

    /// Root of an account's storage.
    pub fn storage_root(&mut self, address: &Address) -> B256 {
        self.storages.get_mut(address).map_or(EMPTY_ROOT_HASH, Trie::root)
    }

    /// Proof of a storage slot.
    #[must_use]
    pub fn storage_proof(&self, address: &Address, slot: &U256) -> Vec<Vec<u8>> {
        let key = keccak256(slot.to_be_bytes::<32>());
        self.storages
            .get(address)
            .map(|trie| trie.proof(key.as_slice()))
            .unwrap_or_default()
    }
}

fn each(
    transaction: &mut Transaction,
    table: TableId,
    prefix: &[u8],
    mut visit: impl FnMut(&[u8], &[u8]) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let mut after: Option<Vec<u8>> = None;
    loop {
        let page = transaction.scan(table, prefix, after.as_deref(), 4096)?;
        let Some((last, _)) = page.last() else {
            return Ok(());
        };
        after = Some(last.to_vec());
        for (key, value) in &page {
            visit(key, value.as_deref().unwrap_or_default())?;
        }
    }
}

impl Database for State<'_> {
    type Error = StoreError;

    fn basic(&mut self, address: Address) -> Result<Option<AccountInfo>, StoreError> {
        Ok(self.account(&address)?.map(|account| AccountInfo {
            balance: account.balance,
            nonce: account.nonce,
            code_hash: account.code_hash,
            ..AccountInfo::default().without_code()
        }))
    }

    fn code_by_hash(&mut self, code_hash: B256) -> Result<Bytecode, StoreError> {
        if code_hash == KECCAK_EMPTY || code_hash.is_zero() {
            return Ok(Bytecode::default());
        }
        let cached = self.cache.read().ok().and_then(|cache| cache.get(&code_hash).cloned());
        if let Some(code) = cached {
            return Ok(code);
        }
        let code = Bytecode::new_raw_checked(self.code(&code_hash)?.into())
            .map_err(|_| StoreError::Malformed("a code row"))?;
        if let Ok(mut cache) = self.cache.write() {
            if cache.len() >= CODE_CACHE_MAX {
                cache.clear();
            }
            cache.insert(code_hash, code.clone());
        }
        Ok(code)
    }

    fn storage(&mut self, address: Address, index: StorageKey) -> Result<StorageValue, StoreError> {
        self.slot(&address, &index)
    }

    fn block_hash(&mut self, number: u64) -> Result<B256, StoreError> {
        let hashes = self.below.map_or(self.own.hashes, |below| below.hashes);
        let found = self.transaction.get(hashes, &number.to_be_bytes())?;
        Ok(found.map_or(B256::ZERO, |bytes| B256::from_slice(&bytes)))
    }
}

impl DatabaseCommit for State<'_> {
    fn commit(&mut self, changes: AddressMap<Account>) {
        // The only failures left here are limits and missing tables, which `State::new` has ruled out.
        if let Err(error) = self.try_commit(changes) {
            unreachable!("the store refused a state change: {error}");
        }
    }
}
