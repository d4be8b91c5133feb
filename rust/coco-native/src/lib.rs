//! The module `coco._native`: thin classes over `coco-core`.
//!
//! Every call that works on a batch releases the GIL. No panic crosses into Python: each guarded call turns one into
//! the error `native.panic`, and memory that it has not got into `native.out_of_memory` (G3). Exceptions are Python's:
//! `coco.errors` makes them from a code and a text.

mod background;
mod consensus;
mod errors;
mod evm;
mod front;
mod host;
mod json;
mod ledger;
mod store;

use coco_core::memory::{self, Allocator};
use pyo3::prelude::*;

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

#[pymodule]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add("CATCHES_EXHAUSTION", memory::install())?;
    module.add_class::<store::Store>()?;
    module.add_class::<store::Transaction>()?;
    module.add_class::<store::WriteSet>()?;
    module.add_class::<ledger::MerkleTree>()?;
    module.add_class::<ledger::ClaimTree>()?;
    module.add_class::<ledger::LedgerSecret>()?;
    module.add_class::<ledger::SnapshotCipher>()?;
    module.add_class::<ledger::WrappingKey>()?;
    module.add_class::<ledger::Share>()?;
    module.add_class::<ledger::Sealer>()?;
    module.add_class::<ledger::Entry>()?;
    module.add_class::<evm::Chain>()?;
    module.add_class::<evm::Envelope>()?;
    module.add_class::<evm::Block>()?;
    module.add_class::<evm::Trie>()?;
    module.add_class::<consensus::Engine>()?;
    module.add_class::<background::Background>()?;
    module.add_class::<front::Front>()?;
    module.add_class::<host::Relay>()?;
    module.add_function(wrap_pyfunction!(ledger::wipe, module)?)?;
    module.add_function(wrap_pyfunction!(evm::keccak256, module)?)?;
    module.add_function(wrap_pyfunction!(evm::recover_signer, module)?)?;
    module.add_function(wrap_pyfunction!(evm::rlp_decode, module)?)?;
    module.add_function(wrap_pyfunction!(evm::rlp_encode, module)?)?;
    module.add_function(wrap_pyfunction!(evm::check_transaction, module)?)?;
    module.add_function(wrap_pyfunction!(errors::limit_memory, module)?)?;
    module.add_function(wrap_pyfunction!(errors::panic_for_test, module)?)?;
    module.add_function(wrap_pyfunction!(errors::exhaust_for_test, module)?)?;
    module.add_function(wrap_pyfunction!(store::benchmark_store, module)?)?;
    Ok(())
}
