//! The hot parts of Coco: store, Merkle tree, sealing, EVM, front door and relay.
//!
//! This crate knows nothing of Python and decides no policy; `coco-native` binds it.

#![cfg_attr(catches_exhaustion, feature(alloc_error_hook))]

pub mod claims;
pub mod consensus;
pub mod evm;
pub mod front;
pub mod memory;
pub mod merkle;
pub mod pace;
pub mod relay;
pub mod secret;
pub mod store;
