//! Store, transactions and write sets.

use std::sync::{Arc, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Instant;

use coco_core::store as core;
use coco_core::store::{Domain, StoreError, TableKind};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::PyBytes;

use crate::errors::{NativeError, guarded, whole};

/// Rows of a snapshot, and the table and key to go on after.
type Piece<'py> = (WriteSet, Option<(String, Bound<'py, PyBytes>)>);
type Row<'py> = (Bound<'py, PyBytes>, Option<Bound<'py, PyBytes>>);

fn bytes<'py>(py: Python<'py>, value: &[u8]) -> Bound<'py, PyBytes> {
    PyBytes::new(py, value)
}

fn rows<'py>(py: Python<'py>, found: Vec<(core::Key, Option<core::Value>)>) -> Vec<Row<'py>> {
    found
        .into_iter()
        .map(|(key, value)| (bytes(py, &key), value.map(|value| bytes(py, &value))))
        .collect()
}

/// The store; see the stub for its contract.
#[pyclass(frozen, module = "coco._native")]
pub struct Store {
    shared: core::SharedStore,
}

impl Store {
    fn read(&self) -> RwLockReadGuard<'_, core::Store> {
        // Poisoned means that a writer panicked half way: no state may be served from it.
        self.shared.read().unwrap_or_else(|_| std::process::abort())
    }

    pub fn digest_with<'py>(&self, py: Python<'py>, key: &[u8]) -> PyResult<Bound<'py, PyBytes>> {
        let digest = guarded(py, || Ok(self.read().digest(key)))?;
        Ok(bytes(py, &digest))
    }

    fn write(&self) -> RwLockWriteGuard<'_, core::Store> {
        self.shared.write().unwrap_or_else(|_| std::process::abort())
    }
}

#[pymethods]
impl Store {
    #[new]
    #[pyo3(signature = (log_cache_bytes_max = core::LOG_CACHE_BYTES_MAX))]
    fn new(log_cache_bytes_max: usize) -> Self {
        Self {
            shared: Arc::new(RwLock::new(core::Store::new(log_cache_bytes_max))),
        }
    }

    fn declare(&self, name: &str, log: bool) -> PyResult<u16> {
        let kind = if log { TableKind::Log } else { TableKind::State };
        Ok(self.write().declare(name, kind).map_err(NativeError::from)?)
    }

    #[getter]
    fn latest(&self) -> u64 {
        self.read().latest()
    }

    #[getter]
    fn oldest(&self) -> u64 {
        self.read().oldest()
    }

    #[getter]
    fn committed(&self) -> u64 {
        self.read().committed()
    }

    #[pyo3(signature = (table, key, version = None))]
    fn get<'py>(
        &self,
        py: Python<'py>,
        table: &str,
        key: &[u8],
        version: Option<u64>,
    ) -> PyResult<Option<Bound<'py, PyBytes>>> {
        let store = self.read();
        let version = version.unwrap_or_else(|| store.latest());
        let id = store.table(table).map_err(NativeError::from)?;
        let found = store.get(id, key, version).map_err(NativeError::from)?;
        Ok(found.map(|(_, value)| bytes(py, &value)))
    }

    #[pyo3(signature = (table, key, version = None))]
    fn written_at(&self, table: &str, key: &[u8], version: Option<u64>) -> PyResult<Option<u64>> {
        let store = self.read();
        let version = version.unwrap_or_else(|| store.latest());
        let id = store.table(table).map_err(NativeError::from)?;
        Ok(store.written_at(id, key, version).map_err(NativeError::from)?)
    }

    #[pyo3(signature = (table, prefix = b"".as_slice(), after = None, version = None, limit = 1000))]
    fn scan<'py>(
        &self,
        py: Python<'py>,
        table: &str,
        prefix: &[u8],
        after: Option<&[u8]>,
        version: Option<u64>,
        limit: usize,
    ) -> PyResult<Vec<Row<'py>>> {
        let store = self.read();
        let version = version.unwrap_or_else(|| store.latest());
        let id = store.table(table).map_err(NativeError::from)?;
        let found = store
            .scan(id, prefix, after, version, limit)
            .map_err(NativeError::from)?;
        drop(store);
        Ok(rows(py, found))
    }

    fn len(&self, table: &str) -> PyResult<usize> {
        let store = self.read();
        let id = store.table(table).map_err(NativeError::from)?;
        Ok(store.len(id).map_err(NativeError::from)?)
    }

    #[pyo3(signature = (version = None, track_reads = true))]
    fn begin(&self, version: Option<u64>, track_reads: bool) -> PyResult<Transaction> {
        let inner =
            core::Transaction::new(Arc::clone(&self.shared), version, track_reads).map_err(NativeError::from)?;
        Ok(Transaction {
            inner: Mutex::new(inner),
        })
    }

    fn apply(&self, py: Python<'_>, version: u64, writes: &WriteSet) -> PyResult<()> {
        whole(py, || Ok(self.write().apply(version, &writes.inner)?))
    }

    fn commit(&self, version: u64) -> PyResult<()> {
        Ok(self.write().commit(version).map_err(NativeError::from)?)
    }

    fn roll_back(&self, py: Python<'_>, version: u64) -> PyResult<()> {
        whole(py, || Ok(self.write().roll_back(version)?))
    }

    fn prune(&self, py: Python<'_>, oldest: u64) -> PyResult<()> {
        whole(py, || Ok(self.write().prune(oldest)?))
    }

    /// Log rows of which only the place is in memory.
    fn cold(&self) -> usize {
        self.read().cold()
    }

    fn spill<'py>(&self, py: Python<'py>) -> PyResult<(u64, u32, Vec<Bound<'py, PyBytes>>)> {
        let blocks = whole(py, || Ok(self.write().spill()?))?;
        Ok(sealed_blocks(py, blocks))
    }

    fn forget_spilled(&self, py: Python<'_>) -> PyResult<()> {
        whole(py, || {
            self.write().forget_spilled();
            Ok(())
        })
    }

    fn candidates(&self, table: &str, key: &[u8]) -> PyResult<Vec<(u64, u32)>> {
        let store = self.read();
        let id = store.table(table).map_err(NativeError::from)?;
        Ok(store.candidates(id, key))
    }

    fn has_run(&self, run: u64) -> bool {
        self.read().has_run(run)
    }

    fn find(&self, run: u64, block: u32, sealed: &[u8], table: &str, key: &[u8]) -> PyResult<Option<u64>> {
        let store = self.read();
        let id = store.table(table).map_err(NativeError::from)?;
        Ok(store.find(run, block, sealed, id, key).map_err(NativeError::from)?)
    }

    fn begin_merge(&self) -> bool {
        self.write().begin_merge()
    }

    fn merge_wants(&self) -> Option<(u64, u32)> {
        self.read().merge_wants()
    }

    fn merge_take<'py>(&self, py: Python<'py>, sealed: &[u8]) -> PyResult<(u64, u32, Vec<Bound<'py, PyBytes>>)> {
        let blocks = whole(py, || Ok(self.write().merge_take(sealed)?))?;
        Ok(sealed_blocks(py, blocks))
    }

    fn end_merge(&self) -> Vec<u64> {
        self.write().end_merge()
    }

    fn runs_size(&self) -> (usize, usize) {
        self.read().runs_size()
    }

    fn digest<'py>(&self, py: Python<'py>, key: &[u8]) -> PyResult<Bound<'py, PyBytes>> {
        self.digest_with(py, key)
    }

    #[pyo3(signature = (version, after, bytes_min))]
    fn snapshot_piece<'py>(
        &self,
        py: Python<'py>,
        version: u64,
        after: Option<(String, PyBackedBytes)>,
        bytes_min: usize,
    ) -> PyResult<Piece<'py>> {
        let (piece, cursor) = guarded(py, || {
            let after = after.as_ref().map(|(table, key)| (table.as_str(), &key[..]));
            Ok(self.read().snapshot_piece(version, after, bytes_min)?)
        })?;
        let cursor = cursor.map(|(table, key)| (table, bytes(py, &key)));
        Ok((WriteSet { inner: piece }, cursor))
    }

    fn load(&self, py: Python<'_>, version: u64, piece: &WriteSet) -> PyResult<()> {
        whole(py, || Ok(self.write().load(version, &piece.inner)?))
    }

    fn unload(&self) -> PyResult<()> {
        Ok(self.write().unload().map_err(NativeError::from)?)
    }

    fn note_places(&self, py: Python<'_>, version: u64, writes: &WriteSet) -> PyResult<()> {
        whole(py, || Ok(self.write().note_places(version, &writes.inner)?))
    }

    fn begin_at(&self, version: u64) -> PyResult<()> {
        Ok(self.write().begin_at(version).map_err(NativeError::from)?)
    }
}

fn sealed_blocks<'py>(py: Python<'py>, (run, first, blocks): core::Blocks) -> (u64, u32, Vec<Bound<'py, PyBytes>>) {
    (run, first, blocks.iter().map(|block| bytes(py, block)).collect())
}

/// A transaction over one snapshot.
#[pyclass(frozen, module = "coco._native")]
pub struct Transaction {
    inner: Mutex<core::Transaction>,
}

impl Transaction {
    pub fn lock(&self) -> MutexGuard<'_, core::Transaction> {
        // A panic left this overlay half written; it is thrown away by whoever got the error.
        self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

#[pymethods]
impl Transaction {
    #[getter]
    fn version(&self) -> u64 {
        self.lock().version()
    }

    fn get<'py>(&self, py: Python<'py>, table: &str, key: &[u8]) -> PyResult<Option<Bound<'py, PyBytes>>> {
        let mut inner = self.lock();
        let id = inner.table(table).map_err(NativeError::from)?;
        Ok(inner
            .get(id, key)
            .map_err(NativeError::from)?
            .map(|value| bytes(py, &value)))
    }

    fn put(&self, table: &str, key: &[u8], value: &[u8]) -> PyResult<()> {
        let mut inner = self.lock();
        let id = inner.table(table).map_err(NativeError::from)?;
        Ok(inner.put(id, key, value).map_err(NativeError::from)?)
    }

    fn put_rows(&self, table: &str, rows: Vec<(PyBackedBytes, PyBackedBytes)>) -> PyResult<()> {
        let mut inner = self.lock();
        let id = inner.table(table).map_err(NativeError::from)?;
        for (key, value) in rows {
            inner.put(id, &key, &value[..]).map_err(NativeError::from)?;
        }
        Ok(())
    }

    fn remove(&self, table: &str, key: &[u8]) -> PyResult<()> {
        let mut inner = self.lock();
        let id = inner.table(table).map_err(NativeError::from)?;
        Ok(inner.remove(id, key).map_err(NativeError::from)?)
    }

    #[pyo3(signature = (table, prefix = b"".as_slice(), after = None, limit = 1000))]
    fn scan<'py>(
        &self,
        py: Python<'py>,
        table: &str,
        prefix: &[u8],
        after: Option<&[u8]>,
        limit: usize,
    ) -> PyResult<Vec<Row<'py>>> {
        let mut inner = self.lock();
        let id = inner.table(table).map_err(NativeError::from)?;
        Ok(rows(
            py,
            inner.scan(id, prefix, after, limit).map_err(NativeError::from)?,
        ))
    }

    fn savepoint(&self) -> Savepoint {
        Savepoint(self.lock().savepoint())
    }

    fn roll_back(&self, savepoint: &Savepoint) -> PyResult<()> {
        Ok(self.lock().roll_back(savepoint.0).map_err(NativeError::from)?)
    }

    fn write_set(&self, py: Python<'_>) -> PyResult<WriteSet> {
        guarded(py, || {
            Ok(WriteSet {
                inner: self.lock().write_set()?,
            })
        })
    }
}

/// An opaque point of a transaction.
#[pyclass(frozen, module = "coco._native")]
pub struct Savepoint(core::Savepoint);

/// What one entry changes.
#[pyclass(frozen, module = "coco._native")]
pub struct WriteSet {
    pub inner: core::WriteSet,
}

#[pymethods]
impl WriteSet {
    #[new]
    #[pyo3(signature = (rows = Vec::new()))]
    fn new(rows: Vec<(String, Vec<u8>, Option<Vec<u8>>)>) -> Self {
        let mut inner = core::WriteSet::default();
        for (table, key, value) in rows {
            inner
                .tables
                .entry(table)
                .or_default()
                .insert(key.as_slice().into(), value.map(core::Value::from));
        }
        Self { inner }
    }

    #[staticmethod]
    fn decode(py: Python<'_>, public: &[u8], private: &[u8]) -> PyResult<Self> {
        guarded(py, || {
            let mut inner = core::WriteSet::default();
            inner.decode(public, Domain::Public)?;
            inner.decode(private, Domain::Private)?;
            Ok(Self { inner })
        })
    }

    /// These writes and one row more.
    fn with_row(&self, table: &str, key: &[u8], value: &[u8]) -> Self {
        let mut inner = self.inner.clone();
        inner
            .tables
            .entry(table.to_owned())
            .or_default()
            .insert(key.into(), Some(value.into()));
        Self { inner }
    }

    fn encode_public<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        bytes(py, &self.inner.encode(Domain::Public))
    }

    fn encode_private<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        bytes(py, &self.inner.encode(Domain::Private))
    }

    fn is_empty(&self) -> bool {
        self.inner.is_empty()
    }

    fn tables(&self) -> Vec<&str> {
        self.inner.tables.keys().map(String::as_str).collect()
    }

    fn rows<'py>(&self, py: Python<'py>, table: &str) -> Vec<Row<'py>> {
        let Some(writes) = self.inner.tables.get(table) else {
            return Vec::new();
        };
        writes
            .iter()
            .map(|(key, value)| (bytes(py, key), value.as_ref().map(|value| bytes(py, value))))
            .collect()
    }
}

/// Puts and gets a second over `count` entries, from Rust; for `bench/` only.
#[pyfunction]
pub fn benchmark_store(py: Python<'_>, count: u64) -> PyResult<(f64, f64)> {
    guarded(py, || {
        let mut store = core::Store::default();
        let table = store.declare("bench", TableKind::State)?;
        let key = |number: u64| -> [u8; 20] {
            let mut key = [0; 20];
            // A bijection, so that keys are distinct and in no order.
            key[..8].copy_from_slice(&number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
            key
        };
        let start = Instant::now();
        for version in 1..=count.div_ceil(1000) {
            let mut writes = core::WriteSet::default();
            let rows = writes.tables.entry("bench".to_owned()).or_default();
            for number in (version - 1) * 1000..(version * 1000).min(count) {
                rows.insert(key(number)[..].into(), Some(vec![number as u8; 32].into()));
            }
            store.apply(version, &writes)?;
            store.commit(version)?;
        }
        let puts = count as f64 / start.elapsed().as_secs_f64();
        let start = Instant::now();
        let latest = store.latest();
        for number in 0..count {
            if store
                .get(table, &key(number.wrapping_mul(7919) % count), latest)?
                .is_none()
            {
                return Err(StoreError::Malformed("a key is missing").into());
            }
        }
        Ok((puts, count as f64 / start.elapsed().as_secs_f64()))
    })
}
