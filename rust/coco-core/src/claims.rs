//! What one entry claims, item by item: a salted Merkle tree, of which any item is proven and no other one is shown.
//!
//! The tree has `LEVELS` levels, however many items there are. A level with an odd number of nodes gets one more, which
//! nobody tells from a hash; so a path has one length, and tells its own place and nothing of the number of items
//! (docs/ledger-format.md, section 9; `coco.ledger.claims` is the verifier's side).

use std::fmt;

use sha2::{Digest, Sha256};

use crate::merkle::Hash;

/// Levels above the leaves, and so steps of every path.
pub const LEVELS: u32 = 20;

const SALT: &[u8; 15] = b"coco claim salt";
const LEAF: &[u8; 15] = b"coco claim leaf";
const NODE: &[u8; 15] = b"coco claim node";
const FILL: &[u8; 15] = b"coco claim fill";

/// What all salts of one entry are made from. Whoever has it can check guesses of every item, so it stays sealed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Secret(pub Hash);

impl fmt::Debug for Secret {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Secret")
    }
}

/// The parts have fixed sizes but for the last one, so no two ways to cut them give one hash.
fn digest(label: &[u8; 15], first: &[u8], second: &[u8]) -> Hash {
    let mut hasher = Sha256::new();
    hasher.update(label);
    hasher.update(first);
    hasher.update(second);
    hasher.finalize().into()
}

/// The leaves of one entry, in their order.
#[derive(Clone, Debug)]
pub struct ClaimTree {
    secret: Secret,
    leaves: Vec<Hash>,
}

impl ClaimTree {
    /// A tree without leaves.
    #[must_use]
    pub fn new(secret: Secret, capacity: usize) -> Self {
        Self {
            secret,
            leaves: Vec::with_capacity(capacity),
        }
    }

    /// The salt of leaf `index`: for whoever may see that item, and nobody else.
    #[must_use]
    pub fn salt(&self, index: u32) -> Hash {
        digest(SALT, &self.secret.0, &index.to_le_bytes())
    }

    /// Add the next item.
    pub fn push(&mut self, item: &[u8]) {
        // More than fit are noticed by `root`.
        let salt = self.salt(self.leaves.len() as u32);
        self.leaves.push(digest(LEAF, &salt, item));
    }

    /// The root; `None` of no leaves, or of more than the levels have room for.
    #[must_use]
    pub fn root(&self) -> Option<Hash> {
        self.climb(0).map(|(root, _)| root)
    }

    /// The siblings from leaf `index` up.
    #[must_use]
    pub fn path(&self, index: usize) -> Option<Vec<Hash>> {
        (index < self.leaves.len())
            .then(|| self.climb(index))
            .flatten()
            .map(|(_, path)| path)
    }

    fn climb(&self, mut index: usize) -> Option<(Hash, Vec<Hash>)> {
        if self.leaves.is_empty() || self.leaves.len() > 1 << LEVELS {
            return None;
        }
        let mut nodes = self.leaves.clone();
        let mut path = Vec::with_capacity(LEVELS as usize);
        for level in 0..LEVELS {
            if nodes.len() % 2 == 1 {
                nodes.push(digest(FILL, &self.secret.0, &level.to_le_bytes()));
            }
            path.push(nodes[index ^ 1]);
            let parents = nodes.len() / 2;
            for at in 0..parents {
                nodes[at] = digest(NODE, &nodes[2 * at], &nodes[2 * at + 1]);
            }
            nodes.truncate(parents);
            index /= 2;
        }
        Some((nodes[0], path))
    }
}
