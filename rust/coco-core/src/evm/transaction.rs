//! Signed Ethereum transactions: strict decoding, sender recovery, and the checks that need no state.

use std::sync::Arc;

use alloy_consensus::{SignableTransaction as _, Transaction as _, TxEnvelope, Typed2718 as _};
use alloy_eips::eip2718::Decodable2718;
use alloy_primitives::{Address, B256, Bytes, Signature, U256, keccak256};
use rayon::prelude::*;
use revm::context::TxEnv;
use revm::context_interface::cfg::GasParams;
use revm::context_interface::either::Either;
use revm::primitives::hardfork::SpecId;
use revm::primitives::{eip3860, eip7825};
use thiserror::Error;

use super::wide;

/// Largest encoded transaction that is accepted.
pub const TRANSACTION_BYTES_MAX: usize = 128 * 1024;

/// Below this many transactions, waking another thread costs more than it gives.
const PARALLEL_MIN: usize = 64;

/// Half of the order of secp256k1: a higher `s` is the malleable twin of a valid signature.
const HALF_ORDER: U256 = U256::from_limbs([
    0xdfe9_2f46_681b_20a0,
    0x5d57_6e73_57a4_501d,
    0xffff_ffff_ffff_ffff,
    0x7fff_ffff_ffff_ffff,
]);

/// Why a transaction is not acceptable. The names are stable codes of the wire.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum TransactionError {
    /// Not the encoding of a transaction.
    #[error("the transaction cannot be decoded: {0}")]
    Undecodable(String),
    /// Over the size limit.
    #[error("the transaction has {0} bytes, over the limit of {TRANSACTION_BYTES_MAX}")]
    TooLarge(usize),
    /// A type that the fork, or this pool, does not take.
    #[error("transaction type {0} is not supported here")]
    TypeNotSupported(u8),
    /// The signature recovers to no account.
    #[error("the signature is invalid")]
    BadSignature,
    /// Signed for another chain.
    #[error("the transaction is signed for chain {given:?}, this is chain {ours}")]
    WrongChain {
        /// Chain that it names.
        given: Option<u64>,
        /// Chain of this network.
        ours: u64,
    },
    /// Gas limit below the intrinsic cost.
    #[error("the gas limit {limit} is below the intrinsic cost {needed}")]
    IntrinsicGas {
        /// Gas limit.
        limit: u64,
        /// Intrinsic or floor cost.
        needed: u64,
    },
    /// Over the fork's cap on one transaction.
    #[error("the gas limit {limit} is over the cap of {cap}")]
    GasOverCap {
        /// Gas limit.
        limit: u64,
        /// Cap.
        cap: u64,
    },
    /// Init code over the fork's limit.
    #[error("the init code of {0} bytes is over the limit")]
    InitCodeTooLarge(usize),
    /// The nonce is the largest 64-bit number (EIP-2681).
    #[error("the nonce is at its maximum")]
    NonceAtMaximum,
    /// Priority fee above the fee.
    #[error("the priority fee is above the maximum fee")]
    PriorityAboveMaximum,
    /// `gas * price` overflows.
    #[error("gas limit times fee overflows")]
    CostOverflow,
    /// A fee over 128 bits: valid, but more than any account can hold.
    #[error("the fee is higher than any account could pay")]
    FeeTooHigh,
    /// EIP-7702 without an authorisation.
    #[error("the authorisation list is empty")]
    NoAuthorisation,
}

impl TransactionError {
    /// Stable code.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Undecodable(_) => "ethereum.transaction.undecodable",
            Self::TooLarge(_) => "ethereum.transaction.too_large",
            Self::TypeNotSupported(_) => "ethereum.transaction.type_not_supported",
            Self::BadSignature => "ethereum.transaction.bad_signature",
            Self::WrongChain { .. } => "ethereum.transaction.wrong_chain",
            Self::IntrinsicGas { .. } => "ethereum.transaction.intrinsic_gas",
            Self::GasOverCap { .. } => "ethereum.transaction.gas_over_cap",
            Self::InitCodeTooLarge(_) => "ethereum.transaction.init_code_too_large",
            Self::NonceAtMaximum => "ethereum.transaction.nonce_at_maximum",
            Self::PriorityAboveMaximum => "ethereum.transaction.priority_above_maximum",
            Self::FeeTooHigh => "ethereum.transaction.fee_too_high",
            Self::CostOverflow => "ethereum.transaction.cost_overflow",
            Self::NoAuthorisation => "ethereum.transaction.no_authorisation",
        }
    }
}

/// What the checks compare with.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Fork.
    pub spec: SpecId,
    /// Chain of this network.
    pub chain_id: u64,
    /// Whether a transaction without a chain id passes (the conformance suite needs it; a network does too, by custom).
    pub allow_unprotected: bool,
    /// Whether blob transactions pass; only the conformance suite says yes.
    pub allow_blobs: bool,
}

/// A decoded transaction whose sender is known.
#[derive(Clone, Debug)]
pub struct Recovered {
    /// The transaction.
    pub envelope: TxEnvelope,
    /// Its canonical bytes (EIP-2718).
    pub raw: Bytes,
    /// Its account.
    pub sender: Address,
}

impl Recovered {
    /// Transaction hash.
    #[must_use]
    pub fn hash(&self) -> &B256 {
        self.envelope.tx_hash()
    }

    /// Decode without any check, for bytes that passed them before (a block record).
    pub fn trusted(raw: Bytes, sender: Address) -> Result<Self, TransactionError> {
        Ok(Self {
            envelope: decode(&raw)?,
            raw,
            sender,
        })
    }

    /// The form that the machine executes.
    #[must_use]
    pub fn to_tx_env(&self) -> TxEnv {
        let transaction = &self.envelope;
        TxEnv {
            tx_type: transaction.ty(),
            caller: self.sender,
            gas_limit: transaction.gas_limit(),
            gas_price: transaction.max_fee_per_gas(),
            gas_priority_fee: transaction.max_priority_fee_per_gas(),
            kind: transaction.kind(),
            value: transaction.value(),
            data: transaction.input().clone(),
            nonce: transaction.nonce(),
            chain_id: transaction.chain_id(),
            access_list: transaction.access_list().cloned().unwrap_or_default(),
            blob_hashes: transaction.blob_versioned_hashes().unwrap_or_default().to_vec(),
            max_fee_per_blob_gas: transaction.max_fee_per_blob_gas().unwrap_or_default(),
            authorization_list: transaction
                .authorization_list()
                .unwrap_or_default()
                .iter()
                .cloned()
                .map(Either::Left)
                .collect(),
        }
    }
}

fn decode(raw: &[u8]) -> Result<TxEnvelope, TransactionError> {
    let undecodable = |error: &dyn ToString| TransactionError::Undecodable(error.to_string());
    let mut rest = raw;
    let envelope = TxEnvelope::decode_2718(&mut rest).map_err(|error| undecodable(&error))?;
    if !rest.is_empty() {
        return Err(undecodable(&"bytes after its end"));
    }
    Ok(envelope)
}

/// Account that made `signature` over `hash`, by libsecp256k1.
#[must_use]
pub fn recover_signer(hash: &B256, signature: &Signature) -> Option<Address> {
    use secp256k1::Message;
    use secp256k1::ecdsa::{RecoverableSignature, RecoveryId};
    let mut compact = [0; 64];
    compact[..32].copy_from_slice(&signature.r().to_be_bytes::<32>());
    compact[32..].copy_from_slice(&signature.s().to_be_bytes::<32>());
    let id = if signature.v() {
        RecoveryId::One
    } else {
        RecoveryId::Zero
    };
    let parsed = RecoverableSignature::from_compact(&compact, id).ok()?;
    let key = parsed.recover_ecdsa(Message::from_digest(hash.0)).ok()?;
    Some(Address::from_slice(
        &keccak256(&key.serialize_uncompressed()[1..])[12..],
    ))
}

fn signing_hash(envelope: &TxEnvelope) -> (B256, Signature) {
    match envelope {
        TxEnvelope::Legacy(signed) => (signed.signature_hash(), *signed.signature()),
        TxEnvelope::Eip2930(signed) => (signed.signature_hash(), *signed.signature()),
        TxEnvelope::Eip1559(signed) => (signed.signature_hash(), *signed.signature()),
        TxEnvelope::Eip4844(signed) => (signed.tx().tx().signature_hash(), *signed.signature()),
        TxEnvelope::Eip7702(signed) => (signed.signature_hash(), *signed.signature()),
    }
}

/// Decode, check and recover one transaction.
pub fn admit(raw: &[u8], rules: &Rules) -> Result<Recovered, TransactionError> {
    if raw.len() > TRANSACTION_BYTES_MAX {
        return Err(TransactionError::TooLarge(raw.len()));
    }
    let mut recovered = decode_checked(raw, rules).map_err(|error| match error {
        // A fee over 128 bits does not decode, but deserves its own answer.
        TransactionError::Undecodable(_) if wide::check(raw, rules).is_ok() => TransactionError::FeeTooHigh,
        other => other,
    })?;
    let (hash, signature) = signing_hash(&recovered.envelope);
    recovered.sender = signer_of(&hash, &signature, rules)?;
    Ok(recovered)
}

/// Decode and check everything but the signature; the sender is still zero.
pub(super) fn decode_checked(raw: &[u8], rules: &Rules) -> Result<Recovered, TransactionError> {
    let envelope = decode(raw)?;
    check(&envelope, rules)?;
    let recovered = Recovered {
        envelope,
        raw: Bytes::copy_from_slice(raw),
        sender: Address::ZERO,
    };
    check_gas(&recovered, rules)?;
    Ok(recovered)
}

/// The account behind a signature, under the fork's rules for signatures.
pub(super) fn signer_of(hash: &B256, signature: &Signature, rules: &Rules) -> Result<Address, TransactionError> {
    if rules.spec >= SpecId::HOMESTEAD && signature.s() > HALF_ORDER {
        return Err(TransactionError::BadSignature);
    }
    recover_signer(hash, signature).ok_or(TransactionError::BadSignature)
}

/// The same for many, on as many threads as there are cores; results stand in the order of the input.
#[must_use]
pub fn admit_batch(raw: &[Vec<u8>], rules: &Rules) -> Vec<Result<Arc<Recovered>, TransactionError>> {
    let one = |raw: &Vec<u8>| admit(raw, rules).map(Arc::new);
    if raw.len() < PARALLEL_MIN {
        return raw.iter().map(one).collect();
    }
    raw.par_iter().with_min_len(PARALLEL_MIN / 2).map(one).collect()
}

fn check(envelope: &TxEnvelope, rules: &Rules) -> Result<(), TransactionError> {
    let kind = envelope.ty();
    let since = match kind {
        0 => SpecId::FRONTIER,
        1 => SpecId::BERLIN,
        2 => SpecId::LONDON,
        3 => SpecId::CANCUN,
        _ => SpecId::PRAGUE,
    };
    if rules.spec < since || (kind == 3 && !rules.allow_blobs) {
        return Err(TransactionError::TypeNotSupported(kind));
    }
    let given = envelope.chain_id();
    let replay_protected_ok = rules.spec >= SpecId::SPURIOUS_DRAGON;
    match given {
        Some(id) if id == rules.chain_id && replay_protected_ok => {}
        None if rules.allow_unprotected => {}
        _ => {
            return Err(TransactionError::WrongChain {
                given,
                ours: rules.chain_id,
            });
        }
    }
    if envelope.nonce() == u64::MAX {
        return Err(TransactionError::NonceAtMaximum);
    }
    let max_fee = envelope.max_fee_per_gas();
    if envelope
        .max_priority_fee_per_gas()
        .is_some_and(|priority| priority > max_fee)
    {
        return Err(TransactionError::PriorityAboveMaximum);
    }
    U256::from(envelope.gas_limit())
        .checked_mul(U256::from(max_fee))
        .ok_or(TransactionError::CostOverflow)?;
    let creates = envelope.kind().is_create();
    if creates && rules.spec >= SpecId::SHANGHAI && envelope.input().len() > eip3860::MAX_INITCODE_SIZE {
        return Err(TransactionError::InitCodeTooLarge(envelope.input().len()));
    }
    if envelope.authorization_list().is_some_and(|list| list.is_empty()) {
        return Err(TransactionError::NoAuthorisation);
    }
    let limit = envelope.gas_limit();
    if rules.spec >= SpecId::OSAKA && limit > eip7825::TX_GAS_LIMIT_CAP {
        return Err(TransactionError::GasOverCap {
            limit,
            cap: eip7825::TX_GAS_LIMIT_CAP,
        });
    }
    Ok(())
}

/// Gas that `recovered` needs before its first instruction.
#[must_use]
pub fn intrinsic_gas(recovered: &Recovered, spec: SpecId) -> u64 {
    let cost = GasParams::new_spec(spec).initial_tx_gas_for_tx(recovered.to_tx_env(), None);
    let floor = if spec >= SpecId::PRAGUE { cost.floor_gas() } else { 0 };
    cost.initial_total_gas().max(floor)
}

fn check_gas(recovered: &Recovered, rules: &Rules) -> Result<(), TransactionError> {
    let (limit, needed) = (recovered.envelope.gas_limit(), intrinsic_gas(recovered, rules.spec));
    if limit < needed {
        return Err(TransactionError::IntrinsicGas { limit, needed });
    }
    Ok(())
}
