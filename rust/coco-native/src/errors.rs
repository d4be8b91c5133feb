//! One place where Rust errors become Python's.

use coco_core::evm::block::BlockError;
use coco_core::evm::query::QueryError;
use coco_core::memory::{self, Failure};
use coco_core::secret::SecretError;
use coco_core::store::StoreError;
use pyo3::prelude::*;

/// An error on its way to Python: a stable code and a text.
pub struct NativeError {
    code: &'static str,
    text: String,
}

impl NativeError {
    pub fn new(code: &'static str, text: impl ToString) -> Self {
        Self {
            code,
            text: text.to_string(),
        }
    }
}

impl From<StoreError> for NativeError {
    fn from(error: StoreError) -> Self {
        let code = match &error {
            StoreError::VersionUnavailable { .. } => "store.version_unavailable",
            StoreError::Conflict { .. } => "store.conflict",
            StoreError::OutOfOrder { .. } => "store.out_of_order",
            StoreError::Committed { .. } => "store.committed",
            StoreError::NoTable(_) => "store.no_table",
            StoreError::BadTable(..) => "store.bad_table",
            StoreError::LogIsAppendOnly(_) => "store.log_is_append_only",
            StoreError::InLedger(_) => "store.in_ledger",
            StoreError::TooLarge { .. } => "store.too_large",
            StoreError::Malformed(_) => "store.malformed",
            StoreError::Entropy => "store.no_entropy",
            StoreError::BadBlock { .. } => "store.bad_block",
            StoreError::NoSavepoint => "store.no_savepoint",
        };
        Self::new(code, error)
    }
}

impl From<SecretError> for NativeError {
    fn from(error: SecretError) -> Self {
        let code = match &error {
            SecretError::Resealed { .. } => "ledger.resealed",
            SecretError::SealBroken => "ledger.seal_broken",
            SecretError::MalformedEntry(_) => "ledger.malformed_entry",
            SecretError::TooLarge(_) => "ledger.entry_too_large",
            SecretError::BadShares => "ledger.bad_shares",
            SecretError::BadRecoveryKey => "configuration.encryption_key",
            SecretError::NoRandomness => "platform.no_randomness",
        };
        Self::new(code, error)
    }
}

impl From<BlockError> for NativeError {
    fn from(error: BlockError) -> Self {
        match error {
            BlockError::Store(error) => error.into(),
            error => Self::new("ethereum.block", error),
        }
    }
}

impl From<QueryError> for NativeError {
    fn from(error: QueryError) -> Self {
        match error {
            QueryError::Store(error) => error.into(),
            error => Self::new("ethereum.call_too_long", error),
        }
    }
}

impl From<NativeError> for PyErr {
    fn from(error: NativeError) -> Self {
        Python::attach(|py| {
            let made = py
                .import("coco.errors")
                .and_then(|module| module.getattr("native_error"))
                .and_then(|make| make.call1((error.code, error.text)));
            match made {
                Ok(exception) => PyErr::from_value(exception),
                Err(failure) => failure,
            }
        })
    }
}

impl From<Failure> for NativeError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Exhausted => Self::new("native.out_of_memory", "a native call took too much memory"),
            // What it said stays inside (H1).
            Failure::Panicked => Self::new("native.panic", "a native call failed; nothing was changed"),
        }
    }
}

/// Run without the GIL and with the budget of a call. A panic becomes the error `native.panic`, too much memory
/// `native.out_of_memory` (G3).
pub fn guarded<T: Send>(py: Python<'_>, work: impl FnOnce() -> Result<T, NativeError> + Send) -> PyResult<T> {
    Ok(py.detach(|| memory::within(work)).map_err(NativeError::from)??)
}

/// The same without a budget, for what must not end half way: it changes the ledger, the store or the trie, and is
/// bounded otherwise.
pub fn whole<T: Send>(py: Python<'_>, work: impl FnOnce() -> Result<T, NativeError> + Send) -> PyResult<T> {
    Ok(py.detach(|| memory::unlimited(work)).map_err(NativeError::from)??)
}

/// How much a call may take, and how much is kept for what must not fail, in bytes.
#[pyfunction]
pub fn limit_memory(call: usize, spare: usize) {
    memory::limit_calls(call);
    memory::keep_spare(spare);
}

/// Have the allocation after so many others fail, of those within budgets, on any thread; 0 calls that off. Returns how
/// many were still to come.
#[pyfunction]
pub fn exhaust_for_test(after: u64) -> u64 {
    memory::exhaust_for_test(after)
}

/// Panics on purpose, so that a test can show that no panic ends the process.
#[pyfunction]
pub fn panic_for_test(py: Python<'_>) -> PyResult<()> {
    guarded(py, || -> Result<(), NativeError> { panic!("on purpose") })
}
