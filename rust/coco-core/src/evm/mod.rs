//! The Ethereum virtual machine on the store: transactions, state, tries, blocks, queries.
//!
//! `revm` executes; this module reads and writes the store's tables around it and makes standard blocks of the results.

pub mod block;
pub mod chain;
pub mod query;
pub mod rlp;
pub mod state;
pub mod transaction;
pub mod trie;
pub mod veil;
pub mod wide;

pub use revm::primitives::hardfork::SpecId;
