//! One place where Rust errors become Python's.

use std::panic::{AssertUnwindSafe, catch_unwind};

use coco_core::evm::block::BlockError;
use coco_core::evm::query::QueryError;
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
    fn from(QueryError::Store(error): QueryError) -> Self {
        error.into()
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

/// Run without the GIL; a panic becomes the error `native.panic`, its text stays inside (H1).
pub fn guarded<T: Send>(py: Python<'_>, work: impl FnOnce() -> Result<T, NativeError> + Send) -> PyResult<T> {
    let done = py.detach(|| catch_unwind(AssertUnwindSafe(work)));
    match done {
        Ok(result) => result.map_err(PyErr::from),
        Err(_) => Err(NativeError::new("native.panic", "a native call failed; nothing was changed").into()),
    }
}

/// Panics on purpose, so that a test can show that no panic ends the process.
#[pyfunction]
pub fn panic_for_test(py: Python<'_>) -> PyResult<()> {
    guarded(py, || -> Result<(), NativeError> { panic!("on purpose") })
}
