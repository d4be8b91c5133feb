//! A write set and its one encoding: the map list of a ledger entry's domain (docs/ledger-format.md).
//!
//! Tables and keys are sorted, so equal write sets have equal bytes; decoding accepts nothing else.

use std::collections::BTreeMap;

use super::{KEY_BYTES_MAX, Key, StoreError, VALUE_BYTES_MAX, Value};

/// The writes to one table: a value, or `None` for a removal.
pub type TableWrites = BTreeMap<Key, Option<Value>>;

/// Which half of an entry a table goes to: names that begin with `public:` are readable by all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Domain {
    /// Administrative ledger, in the clear.
    Public,
    /// Application ledger, sealed.
    Private,
}

impl Domain {
    /// The domain of a table.
    #[must_use]
    pub fn of(table: &str) -> Self {
        if table.starts_with("public:") {
            Self::Public
        } else {
            Self::Private
        }
    }
}

/// What one transaction changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WriteSet {
    /// Writes by table name.
    pub tables: BTreeMap<String, TableWrites>,
}

fn put_sized(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
    out.extend_from_slice(bytes);
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, bytes: usize) -> Result<&'a [u8], StoreError> {
        if bytes > self.rest.len() {
            return Err(StoreError::Malformed("it ends early"));
        }
        let (head, tail) = self.rest.split_at(bytes);
        self.rest = tail;
        Ok(head)
    }

    fn u64(&mut self) -> Result<u64, StoreError> {
        let mut word = [0; 8];
        word.copy_from_slice(self.take(8)?);
        Ok(u64::from_le_bytes(word))
    }

    fn sized(&mut self, limit: usize) -> Result<&'a [u8], StoreError> {
        let bytes = self.u64()?;
        if bytes > limit as u64 {
            return Err(StoreError::Malformed("a length is over its limit"));
        }
        self.take(bytes as usize)
    }
}

impl WriteSet {
    /// True when nothing is written.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tables.values().all(BTreeMap::is_empty)
    }

    /// The bytes of one domain.
    #[must_use]
    pub fn encode(&self, domain: Domain) -> Vec<u8> {
        let mut out = Vec::new();
        for (name, writes) in &self.tables {
            if Domain::of(name) != domain || writes.is_empty() {
                continue;
            }
            put_sized(&mut out, name.as_bytes());
            out.extend_from_slice(&[0; 16]); // read version and read count: always 0
            let written = writes.values().filter(|value| value.is_some()).count() as u64;
            out.extend_from_slice(&written.to_le_bytes());
            for (key, value) in writes {
                if let Some(value) = value {
                    put_sized(&mut out, key);
                    put_sized(&mut out, value);
                }
            }
            out.extend_from_slice(&(writes.len() as u64 - written).to_le_bytes());
            for (key, _) in writes.iter().filter(|(_, value)| value.is_none()) {
                put_sized(&mut out, key);
            }
        }
        out
    }

    /// Add the writes of encoded bytes, which must belong to `domain` and be canonical.
    pub fn decode(&mut self, bytes: &[u8], domain: Domain) -> Result<(), StoreError> {
        let mut reader = Reader { rest: bytes };
        let mut last_name: Option<&str> = None;
        while !reader.rest.is_empty() {
            let name = std::str::from_utf8(reader.sized(KEY_BYTES_MAX)?)
                .map_err(|_| StoreError::Malformed("a table name is not UTF-8"))?;
            if last_name.is_some_and(|last| last >= name) {
                return Err(StoreError::Malformed("tables are out of order"));
            }
            if Domain::of(name) != domain {
                return Err(StoreError::Malformed("a table is in the wrong domain"));
            }
            last_name = Some(name);
            if reader.u64()? != 0 || reader.u64()? != 0 {
                return Err(StoreError::Malformed("read versions and reads must be 0"));
            }
            let writes = self.tables.entry(name.to_owned()).or_default();
            let written = reader.u64()?;
            let mut last_key: Option<&[u8]> = None;
            for _ in 0..written {
                let key = next_key(&mut reader, &mut last_key)?;
                let value = reader.sized(VALUE_BYTES_MAX)?;
                writes.insert(key, Some(Value::from(value)));
            }
            let removed = reader.u64()?;
            last_key = None;
            for _ in 0..removed {
                let key = next_key(&mut reader, &mut last_key)?;
                if writes.insert(key, None).is_some() {
                    return Err(StoreError::Malformed("a key is written and removed"));
                }
            }
            if written == 0 && removed == 0 {
                return Err(StoreError::Malformed("a table without writes"));
            }
        }
        Ok(())
    }
}

fn next_key<'a>(reader: &mut Reader<'a>, last: &mut Option<&'a [u8]>) -> Result<Key, StoreError> {
    let key = reader.sized(KEY_BYTES_MAX)?;
    if last.is_some_and(|last| last >= key) {
        return Err(StoreError::Malformed("keys are out of order"));
    }
    *last = Some(key);
    Ok(Key::from_slice(key))
}
