//! The state tables at one version in pieces, and a store that begins from them.
//!
//! 1. Pieces are cut by the rows alone, in the order of tables and keys, so every node cuts the same state the same way.
//! 2. A store that begins from pieces begins at their version: nothing older is readable in it.
//! 3. Log tables are not in the pieces: their values lie in the ledger, and so does where they lie.

use super::{Current, Key, Store, StoreError, TableId, TableKind, Value, WriteSet};

/// Rows that are looked at before the size of a piece is.
const ROWS: usize = 256;

/// Where a piece ended: the name of a table, and a key in it.
pub type Cursor = (String, Key);

impl Store {
    /// Rows of the state tables at `version`, those after `after`, until they are `bytes_min` bytes or no more are left;
    /// and where to go on.
    ///
    /// # Errors
    /// The version is not readable.
    pub fn snapshot_piece(
        &self,
        version: u64,
        after: Option<(&str, &[u8])>,
        bytes_min: usize,
    ) -> Result<(WriteSet, Option<Cursor>), StoreError> {
        self.check_version(version)?;
        let mut names: Vec<(&str, TableId)> = self.names.iter().map(|(name, id)| (name.as_str(), *id)).collect();
        names.sort_unstable();
        let mut piece = WriteSet::default();
        let mut bytes = 0;
        for (name, id) in names {
            let mut last = match after {
                Some((table, _)) if name < table => continue,
                Some((table, key)) if name == table => Some(Key::from_slice(key)),
                _ => None,
            };
            if self.by_id(id)?.kind == TableKind::Log {
                continue;
            }
            loop {
                let found = self.scan(id, b"", last.as_deref(), version, ROWS)?;
                let whole = found.len() < ROWS;
                for (key, value) in found {
                    let Some(value) = value else {
                        unreachable!("a state table keeps its values")
                    };
                    bytes += key.len() + value.len();
                    let rows = piece.tables.entry(name.to_owned()).or_default();
                    rows.insert(key.clone(), Some(value));
                    if bytes >= bytes_min {
                        return Ok((piece, Some((name.to_owned(), key))));
                    }
                    last = Some(key);
                }
                if whole {
                    break;
                }
            }
        }
        Ok((piece, None))
    }

    /// Take in a piece of the state at `version`, before [`Store::begin_at`].
    ///
    /// # Errors
    /// The store has begun, a table is unknown or a log, a row is removed or was there.
    pub fn load(&mut self, version: u64, piece: &WriteSet) -> Result<(), StoreError> {
        if self.latest != 0 {
            return Err(StoreError::OutOfOrder {
                given: version,
                latest: self.latest,
            });
        }
        for (name, rows) in &piece.tables {
            let id = self.table(name)?;
            let table = &mut self.tables[id as usize];
            if table.kind == TableKind::Log {
                return Err(StoreError::LogIsAppendOnly(name.clone()));
            }
            table.written_at = version;
            for (key, value) in rows {
                let value: Option<Value> = value.clone();
                let new = value.is_some() && table.current.insert(key.clone(), Current { version, value }).is_none();
                if !new {
                    return Err(StoreError::Malformed("a piece of a snapshot does not fit"));
                }
            }
        }
        Ok(())
    }

    /// Forget the pieces that were loaded: they begin anew, from elsewhere.
    ///
    /// # Errors
    /// The store has begun.
    pub fn unload(&mut self) -> Result<(), StoreError> {
        if self.latest != 0 {
            return Err(StoreError::OutOfOrder {
                given: 0,
                latest: self.latest,
            });
        }
        for table in &mut self.tables {
            table.current.clear();
        }
        Ok(())
    }

    /// Note where the rows of log tables lie that the ledger entry `version`, at or below the snapshot's, has written.
    ///
    /// # Errors
    /// A row of a log table was there.
    pub fn note_places(&mut self, version: u64, writes: &WriteSet) -> Result<(), StoreError> {
        for (name, rows) in &writes.tables {
            let Some(&id) = self.names.get(name) else {
                return Err(StoreError::NoTable(name.clone()));
            };
            let table = &mut self.tables[id as usize];
            if table.kind != TableKind::Log {
                continue;
            }
            for key in rows.keys() {
                let place = Current { version, value: None };
                if table.current.insert(key.clone(), place).is_some() {
                    return Err(StoreError::LogIsAppendOnly(name.clone()));
                }
                self.cold += 1;
            }
        }
        Ok(())
    }

    /// The loaded pieces are the whole state at `version`, which is committed.
    ///
    /// # Errors
    /// The store has begun.
    pub fn begin_at(&mut self, version: u64) -> Result<(), StoreError> {
        if self.latest != 0 {
            return Err(StoreError::OutOfOrder {
                given: version,
                latest: self.latest,
            });
        }
        (self.latest, self.committed, self.oldest) = (version, version, version);
        Ok(())
    }
}
