//! An optimistic transaction: a snapshot, an overlay of writes, and what was read.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::{
    KEY_BYTES_MAX, Key, SharedStore, Store, StoreError, TableId, TableKind, TableWrites, VALUE_BYTES_MAX, Value,
    WriteSet,
};

/// A point of a transaction to which it can return.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Savepoint(usize);

struct Undo {
    table: TableId,
    key: Key,
    former: Option<Option<Value>>,
}

/// Reads at one version and collects writes; `commit` checks that nothing read has changed since.
pub struct Transaction {
    store: SharedStore,
    version: u64,
    writes: HashMap<TableId, TableWrites>,
    reads: HashMap<TableId, HashMap<Key, Option<u64>>>,
    scanned: HashSet<TableId>,
    track_reads: bool,
    undo: Vec<Undo>,
}

fn read_lock(store: &SharedStore) -> std::sync::RwLockReadGuard<'_, Store> {
    // A poisoned lock means that a panic interrupted a writer: the state may be half applied, so nobody may go on.
    store.read().unwrap_or_else(|_| std::process::abort())
}

impl Transaction {
    /// A transaction over the store at `version`; `track_reads` is false for the single writer and for queries.
    pub fn new(store: SharedStore, version: Option<u64>, track_reads: bool) -> Result<Self, StoreError> {
        let version = {
            let guard = read_lock(&store);
            let version = version.unwrap_or_else(|| guard.latest());
            guard.check_version(version)?;
            version
        };
        Ok(Self {
            store,
            version,
            writes: HashMap::new(),
            reads: HashMap::new(),
            scanned: HashSet::new(),
            track_reads,
            undo: Vec::new(),
        })
    }

    /// Version of the snapshot.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The store below.
    #[must_use]
    pub fn store(&self) -> &SharedStore {
        &self.store
    }

    /// The number of a declared table.
    pub fn table(&self, name: &str) -> Result<TableId, StoreError> {
        read_lock(&self.store).table(name)
    }

    /// Value as this transaction sees it.
    pub fn get(&mut self, table: TableId, key: &[u8]) -> Result<Option<Value>, StoreError> {
        if let Some(value) = self.writes.get(&table).and_then(|writes| writes.get(key)) {
            return Ok(value.clone());
        }
        let found = read_lock(&self.store).get(table, key, self.version)?;
        if self.track_reads {
            let at = found.as_ref().map(|(at, _)| *at);
            self.reads.entry(table).or_default().insert(Key::from_slice(key), at);
        }
        Ok(found.map(|(_, value)| value))
    }

    /// Write a value.
    pub fn put(&mut self, table: TableId, key: &[u8], value: impl Into<Value>) -> Result<(), StoreError> {
        let value = value.into();
        if value.len() > VALUE_BYTES_MAX {
            return Err(StoreError::TooLarge {
                what: "value",
                bytes: value.len(),
                limit: VALUE_BYTES_MAX,
            });
        }
        self.write(table, key, Some(value))
    }

    /// Remove a key, whether it exists or not. A removal of a key that does not exist leaves no trace.
    pub fn remove(&mut self, table: TableId, key: &[u8]) -> Result<(), StoreError> {
        self.write(table, key, None)
    }

    fn write(&mut self, table: TableId, key: &[u8], value: Option<Value>) -> Result<(), StoreError> {
        if key.len() > KEY_BYTES_MAX {
            return Err(StoreError::TooLarge {
                what: "key",
                bytes: key.len(),
                limit: KEY_BYTES_MAX,
            });
        }
        {
            let guard = read_lock(&self.store);
            if guard.kind(table)? == TableKind::Log {
                let overlaid = self.writes.get(&table).is_some_and(|writes| writes.contains_key(key));
                if value.is_none() || overlaid || guard.written_at(table, key, self.version)?.is_some() {
                    return Err(StoreError::LogIsAppendOnly(guard.by_id(table)?.name.clone()));
                }
            }
        }
        let key = Key::from_slice(key);
        let former = self.writes.entry(table).or_default().insert(key.clone(), value);
        self.undo.push(Undo { table, key, former });
        Ok(())
    }

    /// At most `limit` keys with `prefix` that are greater than `after`, with the writes of this transaction.
    pub fn scan(
        &mut self,
        table: TableId,
        prefix: &[u8],
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<(Key, Option<Value>)>, StoreError> {
        if self.track_reads {
            self.scanned.insert(table);
        }
        let overlay = self.writes.get(&table);
        let removed = overlay.map_or(0, |writes| writes.values().filter(|value| value.is_none()).count());
        let base = read_lock(&self.store).scan(table, prefix, after, self.version, limit.saturating_add(removed))?;
        let Some(overlay) = overlay else {
            return Ok(base);
        };
        // When the base was cut off by its limit, overlay keys beyond its end must wait for the next page.
        let end = (base.len() == limit.saturating_add(removed))
            .then(|| base.last().map(|(key, _)| key.clone()))
            .flatten();
        let mut merged: BTreeMap<Key, Option<Value>> = base.into_iter().collect();
        for (key, value) in overlay
            .range(Key::from_slice(prefix)..)
            .take_while(|(key, _)| key.starts_with(prefix))
        {
            if after.is_some_and(|after| &key[..] <= after) || end.as_ref().is_some_and(|end| key > end) {
                continue;
            }
            match value {
                Some(value) => merged.insert(key.clone(), Some(value.clone())),
                None => merged.remove(key),
            };
        }
        Ok(merged.into_iter().take(limit).collect())
    }

    /// Remember this point.
    #[must_use]
    pub fn savepoint(&self) -> Savepoint {
        Savepoint(self.undo.len())
    }

    /// Undo every write after the savepoint.
    pub fn roll_back(&mut self, savepoint: Savepoint) -> Result<(), StoreError> {
        if savepoint.0 > self.undo.len() {
            return Err(StoreError::NoSavepoint);
        }
        while self.undo.len() > savepoint.0 {
            let Some(Undo { table, key, former }) = self.undo.pop() else {
                break;
            };
            let writes = self.writes.entry(table).or_default();
            match former {
                Some(value) => writes.insert(key, value),
                None => writes.remove(&key),
            };
        }
        Ok(())
    }

    /// What the transaction changes, without no-op removals; fails if what it read has changed since.
    pub fn write_set(&self) -> Result<WriteSet, StoreError> {
        let guard = read_lock(&self.store);
        self.check_reads(&guard)?;
        let mut set = WriteSet::default();
        for (&table, writes) in &self.writes {
            let described = guard.by_id(table)?;
            let kept: TableWrites = writes
                .iter()
                .filter(|(key, value)| value.is_some() || described.current.contains_key(*key))
                .map(|(key, value)| (key.clone(), value.clone()))
                .collect();
            if !kept.is_empty() {
                set.tables.insert(described.name.clone(), kept);
            }
        }
        Ok(set)
    }

    fn check_reads(&self, store: &Store) -> Result<(), StoreError> {
        let conflict = |table: TableId| -> Result<(), StoreError> {
            Err(StoreError::Conflict {
                table: store.by_id(table)?.name.clone(),
                version: self.version,
            })
        };
        for &table in &self.scanned {
            if store.written_after(table, self.version) {
                return conflict(table);
            }
        }
        for (&table, keys) in &self.reads {
            if !store.written_after(table, self.version) {
                continue;
            }
            for (key, &seen) in keys {
                if store.written_at(table, key, store.latest())? != seen {
                    return conflict(table);
                }
            }
        }
        Ok(())
    }

    /// Apply the writes to the store as `version` and return them.
    pub fn commit(self, version: u64) -> Result<WriteSet, StoreError> {
        let set = self.write_set()?;
        let mut store = self.store.write().unwrap_or_else(|_| std::process::abort());
        // Between the check above and this lock another transaction may have come in.
        self.check_reads(&store)?;
        store.apply(version, &set)?;
        Ok(set)
    }
}
