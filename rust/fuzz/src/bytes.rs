//! One target for every reader of bytes; the first byte of an input chooses which.
//!
//! A reader may refuse, and what it accepts must survive a second way through it.

#![no_main]

use coco_core::consensus;
use coco_core::evm::{SpecId, rlp, transaction};
use coco_core::front::http::{HttpLimits, Reader, Refusal, Request, Step};
use coco_core::front::submission;
use coco_core::secret::Entry;
use coco_core::store::{Domain, WriteSet};
use libfuzzer_sys::fuzz_target;

const LIMITS: HttpLimits = HttpLimits {
    head_bytes: 512,
    body_bytes: 1024,
};

fn requests(wire: &[u8], size: usize) -> (Vec<Request>, Option<Refusal>) {
    let (mut reader, mut found) = (Reader::new(LIMITS), Vec::new());
    for piece in wire.chunks(size) {
        reader.push(piece);
        assert!(reader.held() <= LIMITS.head_bytes + LIMITS.body_bytes + wire.len());
        loop {
            match reader.step() {
                Ok(Step::Request(request)) => {
                    assert!(request.body.len() <= LIMITS.body_bytes);
                    found.push(*request);
                }
                Ok(_) => break,
                Err(refusal) => return (found, Some(refusal)),
            }
        }
    }
    (found, None)
}

fn http(wire: &[u8]) {
    let (whole, refused) = requests(wire, wire.len().max(1));
    let (pieces, _) = requests(wire, 1);
    // Cutting the stream differently may refuse earlier or later, but never finds other requests.
    for (one, other) in whole.iter().zip(&pieces) {
        assert_eq!(
            (&one.head.method, &one.head.target, &one.body),
            (&other.head.method, &other.head.target, &other.body)
        );
        assert_eq!(one.head.headers, other.head.headers);
    }
    if refused.is_none() {
        assert_eq!(whole.len(), pieces.len());
    }
}

fn write_set(bytes: &[u8]) {
    for domain in [Domain::Public, Domain::Private] {
        let mut writes = WriteSet::default();
        if writes.decode(bytes, domain).is_ok() {
            let encoded = writes.encode(domain);
            let mut again = WriteSet::default();
            assert!(again.decode(&encoded, domain).is_ok());
            assert_eq!(again.encode(domain), encoded);
        }
    }
}

fuzz_target!(|input: &[u8]| {
    let Some((which, bytes)) = input.split_first() else {
        return;
    };
    match which % 7 {
        0 => {
            if let Ok(item) = rlp::decode(bytes) {
                assert_eq!(rlp::encode(&item), bytes, "only the canonical form is accepted");
            }
        }
        1 => {
            let rules = transaction::Rules {
                chain_id: 1,
                spec: SpecId::OSAKA,
                allow_unprotected: true,
                allow_blobs: false,
            };
            if let Ok(recovered) = transaction::admit(bytes, &rules) {
                assert_eq!(&recovered.raw[..], bytes);
            }
        }
        2 => http(bytes),
        3 => write_set(bytes),
        4 => _ = consensus::is_message(bytes),
        5 => _ = submission::read(bytes),
        _ => drop(Entry::parse(bytes)),
    }
});
