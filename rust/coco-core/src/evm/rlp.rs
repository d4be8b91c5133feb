//! Strict recursive-length-prefix items: what the conformance suite calls RLP.

use alloy_rlp::{Error, Header};

/// Deepest nesting that is accepted: beyond it a hostile input could exhaust the stack.
pub const DEPTH_MAX: usize = 1024;

/// A string or a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// Bytes.
    Bytes(Vec<u8>),
    /// Items.
    List(Vec<Item>),
}

/// Decode exactly one item that fills `bytes`, refusing every non-canonical form.
pub fn decode(bytes: &[u8]) -> Result<Item, Error> {
    let mut rest = bytes;
    let item = next(&mut rest, 0)?;
    if rest.is_empty() {
        Ok(item)
    } else {
        Err(Error::UnexpectedLength)
    }
}

fn next(rest: &mut &[u8], depth: usize) -> Result<Item, Error> {
    if depth > DEPTH_MAX {
        return Err(Error::Custom("nested too deeply"));
    }
    let header = Header::decode(rest)?;
    if header.payload_length > rest.len() {
        return Err(Error::InputTooShort);
    }
    let (mut payload, tail) = rest.split_at(header.payload_length);
    *rest = tail;
    if !header.list {
        return Ok(Item::Bytes(payload.to_vec()));
    }
    let mut items = Vec::new();
    while !payload.is_empty() {
        items.push(next(&mut payload, depth + 1)?);
    }
    Ok(Item::List(items))
}

/// Encode an item.
#[must_use]
pub fn encode(item: &Item) -> Vec<u8> {
    let mut out = Vec::new();
    match item {
        Item::Bytes(bytes) => alloy_rlp::Encodable::encode(bytes.as_slice(), &mut out),
        Item::List(items) => {
            let payload: Vec<u8> = items.iter().flat_map(encode).collect();
            Header {
                list: true,
                payload_length: payload.len(),
            }
            .encode(&mut out);
            out.extend_from_slice(&payload);
        }
    }
    out
}
