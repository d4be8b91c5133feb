//! Transactions whose fees do not fit 128 bits: valid by the protocol's own rules, though no account could ever pay them.
//!
//! The transaction types in use hold fees in 128 bits. A wider one is checked here by its bytes: everything but the fees
//! on a copy in which they are narrowed, the signature and the hash on the original. The pool refuses such transactions;
//! the conformance suite wants to know their hash and sender.

use alloy_primitives::{Address, B256, Signature, U256, keccak256};

use super::rlp::{self, Item};
use super::transaction::{self, Recovered, Rules, TransactionError};

/// What can be said of a transaction with wide fees.
#[derive(Clone, Debug)]
pub struct Wide {
    /// Transaction hash.
    pub hash: B256,
    /// Sender.
    pub sender: Address,
    /// The same transaction with narrow fees, for its intrinsic gas.
    pub narrowed: Recovered,
}

fn undecodable(text: &str) -> TransactionError {
    TransactionError::Undecodable(text.to_owned())
}

fn word(item: &Item) -> Option<U256> {
    match item {
        Item::Bytes(bytes) if bytes.len() <= 32 && bytes.first() != Some(&0) => Some(U256::from_be_slice(bytes)),
        _ => None,
    }
}

fn uint(value: U256) -> Item {
    Item::Bytes(value.to_be_bytes_trimmed_vec())
}

/// Check a transaction at least one of whose fees exceeds 128 bits.
pub fn check(raw: &[u8], rules: &Rules) -> Result<Wide, TransactionError> {
    let (kind, body) = match raw.first() {
        Some(kind @ 1..=4) => (*kind, &raw[1..]),
        Some(0xc0..) => (0, raw),
        _ => return Err(undecodable("it has no known type")),
    };
    let Ok(Item::List(fields)) = rlp::decode(body) else {
        return Err(undecodable("it is no RLP list"));
    };
    // Nonce, fees, gas limit, ... behind the chain id in typed transactions; the signature is the last three.
    let (fees, gas_at, fields_count): (&[usize], usize, usize) = match kind {
        0 => (&[1], 2, 9),
        1 => (&[2], 3, 11),
        2 => (&[2, 3], 4, 12),
        3 => (&[2, 3], 4, 14),
        _ => (&[2, 3], 4, 13),
    };
    if fields.len() != fields_count {
        return Err(undecodable("it has the wrong number of fields"));
    }
    let mut narrow = fields.clone();
    let mut largest = U256::ZERO;
    let mut wide = false;
    for &at in fees {
        let fee = word(&fields[at]).ok_or_else(|| undecodable("a fee is malformed"))?;
        if fee < largest {
            return Err(TransactionError::PriorityAboveMaximum);
        }
        largest = fee;
        wide |= fee > U256::from(u128::MAX);
        narrow[at] = uint(fee.min(U256::from(1)));
    }
    if !wide {
        return Err(undecodable("its fees are not wide"));
    }
    let gas = word(&fields[gas_at]).ok_or_else(|| undecodable("the gas limit is malformed"))?;
    gas.checked_mul(largest).ok_or(TransactionError::CostOverflow)?;
    let mut narrow_raw = if kind == 0 { Vec::new() } else { vec![kind] };
    narrow_raw.extend_from_slice(&rlp::encode(&Item::List(narrow)));
    let mut narrowed = transaction::decode_checked(&narrow_raw, rules)?;
    let (hash, signature) = signing_hash(kind, &fields, rules)?;
    narrowed.sender = transaction::signer_of(&hash, &signature, rules)?;
    Ok(Wide {
        hash: keccak256(raw),
        sender: narrowed.sender,
        narrowed,
    })
}

fn signing_hash(kind: u8, fields: &[Item], rules: &Rules) -> Result<(B256, Signature), TransactionError> {
    let (unsigned, signature) = fields.split_at(fields.len() - 3);
    let [v, r, s] = [0, 1, 2].map(|at| word(&signature[at]).ok_or(TransactionError::BadSignature));
    let (v, r, s) = (v?, r?, s?);
    let mut signed = unsigned.to_vec();
    let odd = if kind > 0 {
        v
    } else if v >= U256::from(35) {
        signed.extend([uint(U256::from(rules.chain_id)), uint(U256::ZERO), uint(U256::ZERO)]);
        v.checked_sub(U256::from(35 + 2 * rules.chain_id))
            .ok_or(TransactionError::BadSignature)?
    } else {
        v.checked_sub(U256::from(27)).ok_or(TransactionError::BadSignature)?
    };
    if odd > U256::from(1) {
        return Err(TransactionError::BadSignature);
    }
    let mut bytes = if kind == 0 { Vec::new() } else { vec![kind] };
    bytes.extend_from_slice(&rlp::encode(&Item::List(signed)));
    Ok((keccak256(bytes), Signature::new(r, s, odd == U256::from(1))))
}
