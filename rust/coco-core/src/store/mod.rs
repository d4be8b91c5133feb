//! The replicated persistent store in memory: typed tables of bytes with versions.
//!
//! Rules this module keeps:
//! 1. A version is the seqno of the ledger entry that made it; versions only grow by `apply` and only shrink by
//!    `roll_back`, which never reaches below the committed version (L5).
//! 2. The latest value of a key lies in one ordered map; what a version overwrote lies beside it until it is pruned.
//!    So memory follows the state and the window of readable versions, not history.
//! 3. A *state* table keeps its values here. A *log* table keeps only where a value was written (the version) and a
//!    bounded cache of values: the value itself lives in the sealed ledger entry. Where cold values lie goes to sealed
//!    runs that the host keeps (`run.rs`), so a key that is not here may be there.
//! 4. A read below `oldest` is refused, never answered with a newer value.

mod key;
mod run;
mod snapshot;
mod transaction;
mod write_set;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Bound;
use std::sync::{Arc, RwLock};

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use thiserror::Error;

pub use key::Key;
pub use run::Blocks;
use run::{Place, Runs};
pub use snapshot::Cursor;
pub use transaction::{Savepoint, Transaction};
pub use write_set::{Domain, TableWrites, WriteSet};

/// A value as stored.
pub type Value = Arc<[u8]>;
/// Position of a table in the store.
pub type TableId = u16;

/// Largest key that a table takes, in bytes.
pub const KEY_BYTES_MAX: usize = 4 * 1024;
/// Largest value that a table takes, in bytes (the hard entry limit of the channel).
pub const VALUE_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Most tables of one store.
pub const TABLES_MAX: usize = 4096;
/// Bytes of values that the log tables keep in memory, committed ones only.
pub const LOG_CACHE_BYTES_MAX: usize = 64 * 1024 * 1024;

/// What went wrong in the store. The names are the stable codes of the Python errors.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum StoreError {
    /// The version is older than what is kept, or newer than the store.
    #[error("version {version} is not readable: the store holds {oldest} to {latest}")]
    VersionUnavailable {
        /// Version asked for.
        version: u64,
        /// Oldest readable version.
        oldest: u64,
        /// Newest version.
        latest: u64,
    },
    /// Something that the transaction read was written after its snapshot.
    #[error("table {table} changed after version {version}")]
    Conflict {
        /// Name of the table.
        table: String,
        /// Version of the transaction's snapshot.
        version: u64,
    },
    /// A version that does not follow.
    #[error("version {given} does not follow {latest}")]
    OutOfOrder {
        /// Version given.
        given: u64,
        /// Version that the store is at.
        latest: u64,
    },
    /// Roll back below what is committed.
    #[error("cannot roll back to {to}: {committed} is committed")]
    Committed {
        /// Version asked for.
        to: u64,
        /// Committed version.
        committed: u64,
    },
    /// No table of this name or number.
    #[error("no table {0}")]
    NoTable(String),
    /// A table declared twice with different kinds, or too many tables.
    #[error("table {0} cannot be declared: {1}")]
    BadTable(String, &'static str),
    /// A log table is append-only.
    #[error("table {0} is a log: a key is written once and never removed")]
    LogIsAppendOnly(String),
    /// The value lies in the ledger entry of this version.
    #[error("the value lies in ledger entry {0}")]
    InLedger(u64),
    /// A key or value over its limit.
    #[error("{what} of {bytes} bytes is over the limit of {limit}")]
    TooLarge {
        /// "key" or "value".
        what: &'static str,
        /// Its size.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// No randomness for the key of the sealed runs.
    #[error("no randomness for a key")]
    Entropy,
    /// A block of a run is not what this process sealed.
    #[error("block {block} of run {run} is not what was written")]
    BadBlock {
        /// Number of the run.
        run: u64,
        /// Place of the block.
        block: u32,
    },
    /// Encoded bytes that are not a canonical write set.
    #[error("malformed write set: {0}")]
    Malformed(&'static str),
    /// A savepoint that does not belong to this transaction or was passed already.
    #[error("the savepoint is not open")]
    NoSavepoint,
}

/// How a table keeps its values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableKind {
    /// Latest values in memory.
    State,
    /// Append-only; values live in the ledger.
    Log,
}

#[derive(Clone, Debug)]
struct Current {
    version: u64,
    value: Option<Value>, // None in a log table whose cache dropped it
}

/// A value that was readable from version `from` until just before version `until`.
#[derive(Clone, Debug)]
struct Past {
    from: u64,
    until: u64,
    value: Value,
}

struct Table {
    name: String,
    kind: TableKind,
    current: BTreeMap<Key, Current>,
    past: BTreeMap<Key, Vec<Past>>,
    written_at: u64,
}

impl Table {
    fn read(&self, key: &[u8], version: u64) -> Result<Option<(u64, Value)>, StoreError> {
        let key = &Key::from_slice(key);
        if let Some(current) = self.current.get(key)
            && current.version <= version
        {
            return match &current.value {
                Some(value) => Ok(Some((current.version, value.clone()))),
                None => Err(StoreError::InLedger(current.version)),
            };
        }
        let past = self
            .past
            .get(key)
            .and_then(|all| all.iter().find(|p| p.from <= version && version < p.until));
        Ok(past.map(|p| (p.from, p.value.clone())))
    }
}

/// The keys that one version touched: what rolling back and pruning need.
struct Touched {
    version: u64,
    /// Keys that did not exist before; forgotten once the version is committed.
    created: Vec<(TableId, Key)>,
    /// Keys whose former value lies in `past`.
    overwritten: Vec<(TableId, Key)>,
}

/// The store. Share it as [`SharedStore`].
pub struct Store {
    tables: Vec<Table>,
    names: HashMap<String, TableId>,
    latest: u64,
    committed: u64,
    oldest: u64,
    touched: VecDeque<Touched>,
    log_cache: VecDeque<(TableId, Key, usize)>,
    log_cache_bytes: usize,
    log_cache_bytes_max: usize,
    /// Log rows whose value the cache has dropped.
    cold: usize,
    /// Rows of the newest run that are still here as well.
    spilled: Vec<Place>,
    runs: Option<Runs>,
}

/// The store behind a lock: readers share it, `apply`, `roll_back` and `prune` own it for a moment.
pub type SharedStore = Arc<RwLock<Store>>;

fn prefix_end(prefix: &[u8]) -> Bound<Key> {
    Key::after_prefix(prefix).map_or(Bound::Unbounded, Bound::Excluded)
}

impl Default for Store {
    fn default() -> Self {
        Self::new(LOG_CACHE_BYTES_MAX)
    }
}

impl Store {
    /// An empty store at version 0 whose log tables keep at most `log_cache_bytes_max` bytes of committed values.
    #[must_use]
    pub fn new(log_cache_bytes_max: usize) -> Self {
        Self {
            tables: Vec::new(),
            names: HashMap::new(),
            latest: 0,
            committed: 0,
            oldest: 0,
            touched: VecDeque::new(),
            log_cache: VecDeque::new(),
            log_cache_bytes: 0,
            log_cache_bytes_max,
            cold: 0,
            spilled: Vec::new(),
            runs: None,
        }
    }

    /// Declare a table, or find it if it is declared already with the same kind.
    pub fn declare(&mut self, name: &str, kind: TableKind) -> Result<TableId, StoreError> {
        if let Some(&id) = self.names.get(name) {
            return if self.tables[id as usize].kind == kind {
                Ok(id)
            } else {
                Err(StoreError::BadTable(
                    name.to_owned(),
                    "it is declared with another kind",
                ))
            };
        }
        if self.tables.len() >= TABLES_MAX {
            return Err(StoreError::BadTable(name.to_owned(), "too many tables"));
        }
        let id = self.tables.len() as TableId;
        self.tables.push(Table {
            name: name.to_owned(),
            kind,
            current: BTreeMap::new(),
            past: BTreeMap::new(),
            written_at: 0,
        });
        self.names.insert(name.to_owned(), id);
        Ok(id)
    }

    /// The number of a declared table.
    pub fn table(&self, name: &str) -> Result<TableId, StoreError> {
        self.names
            .get(name)
            .copied()
            .ok_or_else(|| StoreError::NoTable(name.to_owned()))
    }

    /// The kind of a table.
    pub fn kind(&self, id: TableId) -> Result<TableKind, StoreError> {
        Ok(self.by_id(id)?.kind)
    }

    fn by_id(&self, id: TableId) -> Result<&Table, StoreError> {
        self.tables
            .get(id as usize)
            .ok_or_else(|| StoreError::NoTable(id.to_string()))
    }

    /// Newest version.
    #[must_use]
    pub fn latest(&self) -> u64 {
        self.latest
    }

    /// Oldest readable version.
    #[must_use]
    pub fn oldest(&self) -> u64 {
        self.oldest
    }

    /// Newest version that can never be rolled back.
    #[must_use]
    pub fn committed(&self) -> u64 {
        self.committed
    }

    fn check_version(&self, version: u64) -> Result<(), StoreError> {
        if version < self.oldest || version > self.latest {
            return Err(StoreError::VersionUnavailable {
                version,
                oldest: self.oldest,
                latest: self.latest,
            });
        }
        Ok(())
    }

    /// Value of `key` at `version`, with the version that wrote it.
    pub fn get(&self, id: TableId, key: &[u8], version: u64) -> Result<Option<(u64, Value)>, StoreError> {
        self.check_version(version)?;
        self.by_id(id)?.read(key, version)
    }

    /// The version that wrote the value which `key` has at `version`; works for evicted log values too.
    pub fn written_at(&self, id: TableId, key: &[u8], version: u64) -> Result<Option<u64>, StoreError> {
        match self.get(id, key, version) {
            Ok(found) => Ok(found.map(|(at, _)| at)),
            Err(StoreError::InLedger(at)) => Ok(Some(at)),
            Err(error) => Err(error),
        }
    }

    /// At most `limit` keys that begin with `prefix` and are greater than `after`, in order, as of `version`.
    ///
    /// Log values that the cache dropped come as `None`.
    pub fn scan(
        &self,
        id: TableId,
        prefix: &[u8],
        after: Option<&[u8]>,
        version: u64,
        limit: usize,
    ) -> Result<Vec<(Key, Option<Value>)>, StoreError> {
        self.check_version(version)?;
        let table = self.by_id(id)?;
        let start = match after {
            Some(key) if key >= prefix => Bound::Excluded(Key::from_slice(key)),
            _ => Bound::Included(Key::from_slice(prefix)),
        };
        let range = (start, prefix_end(prefix));
        if !range_is_valid(&range) {
            return Ok(Vec::new());
        }
        let mut now = table.current.range(range.clone()).peekable();
        let mut then = table.past.range(range).peekable();
        let mut found = Vec::new();
        while found.len() < limit {
            let key = match (now.peek(), then.peek()) {
                (None, None) => break,
                (Some((key, _)), None) | (None, Some((key, _))) => (*key).clone(),
                (Some((a, _)), Some((b, _))) => (*a).min(*b).clone(),
            };
            now.next_if(|(k, _)| **k == key);
            then.next_if(|(k, _)| **k == key);
            match table.read(&key, version) {
                Ok(Some((_, value))) => found.push((key, Some(value))),
                Ok(None) => {}
                Err(StoreError::InLedger(_)) => found.push((key, None)),
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }

    /// Apply the write set of `version`, which must be the next one.
    pub fn apply(&mut self, version: u64, writes: &WriteSet) -> Result<(), StoreError> {
        if version != self.latest + 1 {
            return Err(StoreError::OutOfOrder {
                given: version,
                latest: self.latest,
            });
        }
        // Everything is checked before anything changes, so that a refused write set leaves no trace.
        let mut ids = Vec::with_capacity(writes.tables.len());
        for (name, table_writes) in &writes.tables {
            let id = self.table(name)?;
            let table = &self.tables[id as usize];
            if table.kind == TableKind::Log {
                let rewritten = |key: &Key| table.current.contains_key(key);
                if table_writes
                    .iter()
                    .any(|(key, value)| value.is_none() || rewritten(key))
                {
                    return Err(StoreError::LogIsAppendOnly(name.clone()));
                }
            }
            ids.push(id);
        }
        let mut touched = Touched {
            version,
            created: Vec::new(),
            overwritten: Vec::new(),
        };
        for (id, (_, table_writes)) in ids.into_iter().zip(&writes.tables) {
            self.apply_table(id, version, table_writes, &mut touched);
        }
        self.latest = version;
        if !touched.created.is_empty() || !touched.overwritten.is_empty() {
            self.touched.push_back(touched);
        }
        Ok(())
    }

    fn apply_table(&mut self, id: TableId, version: u64, writes: &TableWrites, touched: &mut Touched) {
        let table = &mut self.tables[id as usize];
        table.written_at = version;
        for (key, value) in writes {
            let former = match value {
                Some(value) => {
                    if table.kind == TableKind::Log {
                        let bytes = key.len() + value.len();
                        self.log_cache.push_back((id, key.clone(), bytes));
                        self.log_cache_bytes += bytes;
                    }
                    table.current.insert(
                        key.clone(),
                        Current {
                            version,
                            value: Some(value.clone()),
                        },
                    )
                }
                None => table.current.remove(key),
            };
            match former {
                Some(Current {
                    version: from,
                    value: Some(old),
                }) => {
                    let past = Past {
                        from,
                        until: version,
                        value: old,
                    };
                    table.past.entry(key.clone()).or_default().push(past);
                    touched.overwritten.push((id, key.clone()));
                }
                Some(Current { value: None, .. }) => {
                    unreachable!("log tables are append-only: checked before")
                }
                None if value.is_some() => touched.created.push((id, key.clone())),
                None => {}
            }
        }
    }

    /// Nothing up to `version` will ever be rolled back.
    pub fn commit(&mut self, version: u64) -> Result<(), StoreError> {
        if version > self.latest || version < self.committed {
            return Err(StoreError::OutOfOrder {
                given: version,
                latest: self.latest,
            });
        }
        for touched in self.touched.iter_mut().rev() {
            if touched.version <= version && touched.version > self.committed {
                touched.created = Vec::new();
            }
            if touched.version <= self.committed {
                break;
            }
        }
        self.committed = version;
        self.trim_log_cache();
        Ok(())
    }

    fn trim_log_cache(&mut self) {
        while self.log_cache_bytes > self.log_cache_bytes_max {
            let Some((id, key, bytes)) = self.log_cache.pop_front() else {
                return;
            };
            let table = &mut self.tables[id as usize];
            if let Some(current) = table.current.get_mut(&key) {
                if current.version > self.committed {
                    // Only committed values may be fetched back: keep the rest in memory.
                    self.log_cache.push_front((id, key, bytes));
                    return;
                }
                current.value = None;
                self.cold += 1;
            }
            self.log_cache_bytes -= bytes;
        }
    }

    /// Log rows of which only the place is left here; when they are many, they are to be spilled.
    #[must_use]
    pub fn cold(&self) -> usize {
        self.cold
    }

    /// Seal where the cold rows lie as a run; they stay readable here until [`Store::forget_spilled`].
    ///
    /// # Errors
    /// There is no randomness for the key.
    pub fn spill(&mut self) -> Result<Blocks, StoreError> {
        let runs = match &mut self.runs {
            Some(runs) => runs,
            none => none.insert(Runs::new()?),
        };
        let mut rows = BTreeMap::new();
        for (id, table) in self.tables.iter().enumerate() {
            if table.kind == TableKind::Log {
                let cold = table.current.iter().filter(|(_, current)| current.value.is_none());
                rows.extend(cold.map(|(key, current)| ((id as TableId, key.clone()), current.version)));
            }
        }
        let blocks = runs.add(&rows)?;
        self.spilled = rows.into_keys().collect();
        Ok(blocks)
    }

    /// Drop the rows of the newest run from memory: the host has its blocks.
    pub fn forget_spilled(&mut self) {
        for (id, key) in std::mem::take(&mut self.spilled) {
            if self.tables[id as usize].current.remove(&key).is_some() {
                self.cold -= 1;
            }
        }
    }

    /// Blocks of runs that may say where a row lies, most likely first; none when it is nowhere.
    #[must_use]
    pub fn candidates(&self, id: TableId, key: &[u8]) -> Vec<(u64, u32)> {
        let place = (id, Key::from_slice(key));
        self.runs.as_ref().map_or_else(Vec::new, |runs| runs.candidates(&place))
    }

    /// Whether a run still exists.
    #[must_use]
    pub fn has_run(&self, run: u64) -> bool {
        self.runs.as_ref().is_some_and(|runs| runs.has(run))
    }

    /// The version that wrote a row, if the block says so.
    ///
    /// # Errors
    /// The block is not the one that was sealed.
    pub fn find(
        &self,
        run: u64,
        block: u32,
        sealed: &[u8],
        id: TableId,
        key: &[u8],
    ) -> Result<Option<u64>, StoreError> {
        let runs = self.runs.as_ref().ok_or(StoreError::BadBlock { run, block })?;
        runs.find(run, block, sealed, &(id, Key::from_slice(key)))
    }

    /// Begin to merge runs; false when there is nothing to merge.
    pub fn begin_merge(&mut self) -> bool {
        self.runs.as_mut().is_some_and(Runs::begin_merge)
    }

    /// The block that the merge needs next, or None when it can end.
    #[must_use]
    pub fn merge_wants(&self) -> Option<(u64, u32)> {
        self.runs.as_ref()?.merge_wants()
    }

    /// Take the block that the merge wanted; returns blocks of the new run.
    ///
    /// # Errors
    /// The block is not the one that was sealed.
    pub fn merge_take(&mut self, sealed: &[u8]) -> Result<Blocks, StoreError> {
        let runs = self.runs.as_mut().ok_or(StoreError::BadBlock { run: 0, block: 0 })?;
        runs.merge_take(sealed)
    }

    /// Put the merged run in its inputs' place; returns the runs that nobody needs any more.
    pub fn end_merge(&mut self) -> Vec<u64> {
        self.runs.as_mut().map_or_else(Vec::new, Runs::end_merge)
    }

    /// Number of runs, and bytes of memory that they take.
    #[must_use]
    pub fn runs_size(&self) -> (usize, usize) {
        self.runs.as_ref().map_or((0, 0), Runs::size)
    }

    /// Undo every version above `to`.
    pub fn roll_back(&mut self, to: u64) -> Result<(), StoreError> {
        if to < self.committed {
            return Err(StoreError::Committed {
                to,
                committed: self.committed,
            });
        }
        if to > self.latest {
            return Err(StoreError::OutOfOrder {
                given: to,
                latest: self.latest,
            });
        }
        while self.touched.back().is_some_and(|touched| touched.version > to) {
            let Some(touched) = self.touched.pop_back() else {
                break;
            };
            for (id, key) in touched.created {
                let table = &mut self.tables[id as usize];
                table.current.remove(&key);
                if table.kind == TableKind::Log {
                    while let Some((last_id, last_key, bytes)) = self.log_cache.back() {
                        if *last_id != id || *last_key != key {
                            break;
                        }
                        self.log_cache_bytes -= bytes;
                        self.log_cache.pop_back();
                    }
                }
            }
            for (id, key) in touched.overwritten {
                let table = &mut self.tables[id as usize];
                if let Some(all) = table.past.get_mut(&key) {
                    if let Some(past) = all.pop() {
                        table.current.insert(
                            key.clone(),
                            Current {
                                version: past.from,
                                value: Some(past.value),
                            },
                        );
                    }
                    if all.is_empty() {
                        table.past.remove(&key);
                    }
                }
            }
        }
        self.latest = to;
        self.oldest = self.oldest.min(to);
        Ok(())
    }

    /// Forget what only reads below `oldest` need.
    pub fn prune(&mut self, oldest: u64) -> Result<(), StoreError> {
        if oldest > self.committed {
            return Err(StoreError::VersionUnavailable {
                version: oldest,
                oldest: self.oldest,
                latest: self.committed,
            });
        }
        if oldest <= self.oldest {
            return Ok(());
        }
        while self.touched.front().is_some_and(|touched| touched.version <= oldest) {
            let Some(touched) = self.touched.pop_front() else {
                break;
            };
            for (id, key) in touched.overwritten {
                let table = &mut self.tables[id as usize];
                if let Some(all) = table.past.get_mut(&key) {
                    all.retain(|past| past.until > oldest);
                    if all.is_empty() {
                        table.past.remove(&key);
                    }
                }
            }
        }
        self.oldest = oldest;
        Ok(())
    }

    /// HMAC-SHA-256 over every state table at the latest version, tables and keys in order.
    ///
    /// Keyed, because a plain digest of low-entropy state can be guessed (K6).
    #[must_use]
    pub fn digest(&self, key: &[u8]) -> [u8; 32] {
        let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key) else {
            unreachable!("HMAC takes keys of any length")
        };
        let mut names: Vec<_> = self.names.iter().collect();
        names.sort();
        let sized = |mac: &mut Hmac<Sha256>, bytes: &[u8]| {
            mac.update(&(bytes.len() as u64).to_le_bytes());
            mac.update(bytes);
        };
        for (name, id) in names {
            let table = &self.tables[*id as usize];
            if table.kind == TableKind::Log || table.current.is_empty() {
                continue;
            }
            sized(&mut mac, name.as_bytes());
            mac.update(&(table.current.len() as u64).to_le_bytes());
            for (key, current) in &table.current {
                sized(&mut mac, key);
                sized(&mut mac, current.value.as_deref().unwrap_or_default());
            }
        }
        mac.finalize().into_bytes().into()
    }

    /// Number of keys that a table holds at the latest version.
    pub fn len(&self, id: TableId) -> Result<usize, StoreError> {
        Ok(self.by_id(id)?.current.len())
    }

    fn written_after(&self, id: TableId, version: u64) -> bool {
        self.tables[id as usize].written_at > version
    }
}

fn range_is_valid(range: &(Bound<Key>, Bound<Key>)) -> bool {
    match range {
        (Bound::Included(a), Bound::Excluded(b)) | (Bound::Excluded(a), Bound::Excluded(b)) => a < b,
        _ => true,
    }
}
