//! The ledger's Merkle tree: SHA-256, `parent = SHA-256(left || right)`, an odd last node moves up unchanged.
//!
//! Leaf 0 is 32 zero bytes, leaf n is the ledger entry with seqno n (docs/ledger-format.md, section 5).

use sha2::{Digest, Sha256};

/// A node of the tree.
pub type Hash = [u8; 32];

/// One step of a proof: the sibling, and whether it stands on the left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// True when the sibling is the left one.
    pub left: bool,
    /// The sibling.
    pub hash: Hash,
}

/// Append-only tree that can also be cut back, and prove any leaf in any earlier tree.
#[derive(Clone, Debug)]
pub struct MerkleTree {
    /// `levels[h][i]` is the root of the complete subtree over leaves `i << h .. (i + 1) << h`.
    levels: Vec<Vec<Hash>>,
}

fn parent(left: &Hash, right: &Hash) -> Hash {
    let mut hasher = Sha256::new();
    hasher.update(left);
    hasher.update(right);
    hasher.finalize().into()
}

impl Default for MerkleTree {
    fn default() -> Self {
        let mut tree = Self {
            levels: vec![Vec::new()],
        };
        tree.append([0; 32]);
        tree
    }
}

impl MerkleTree {
    /// Number of leaves, leaf 0 included.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.levels[0].len() as u64
    }

    /// Never true: leaf 0 is always there.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.levels[0].is_empty()
    }

    /// Add the next leaf.
    pub fn append(&mut self, leaf: Hash) {
        self.levels[0].push(leaf);
        let mut height = 0;
        while self.levels[height].len().is_multiple_of(2) {
            let level = &self.levels[height];
            let node = parent(&level[level.len() - 2], &level[level.len() - 1]);
            if self.levels.len() == height + 1 {
                self.levels.push(Vec::new());
            }
            self.levels[height + 1].push(node);
            height += 1;
        }
    }

    /// Keep the first `leaves` leaves.
    pub fn truncate(&mut self, leaves: u64) {
        assert!(leaves >= 1, "leaf 0 always stays");
        for (height, level) in self.levels.iter_mut().enumerate() {
            level.truncate((leaves >> height) as usize);
        }
    }

    /// Leaf `index`.
    #[must_use]
    pub fn leaf(&self, index: u64) -> Option<Hash> {
        self.levels[0].get(index as usize).copied()
    }

    fn node(&self, height: usize, index: u64, leaves: u64) -> Hash {
        if (index + 1) << height <= leaves {
            return self.levels[height][index as usize];
        }
        let left = self.node(height - 1, 2 * index, leaves);
        if (2 * index + 1) << (height - 1) < leaves {
            return parent(&left, &self.node(height - 1, 2 * index + 1, leaves));
        }
        left
    }

    /// Root over the first `leaves` leaves.
    #[must_use]
    pub fn root_of(&self, leaves: u64) -> Option<Hash> {
        if leaves == 0 || leaves > self.len() {
            return None;
        }
        let height = leaves.next_power_of_two().trailing_zeros() as usize;
        Some(self.node(height, 0, leaves))
    }

    /// Root over all leaves.
    #[must_use]
    pub fn root(&self) -> Hash {
        self.root_of(self.len()).unwrap_or_default()
    }

    /// Path from leaf `index` to the root over the first `leaves` leaves.
    #[must_use]
    pub fn proof(&self, index: u64, leaves: u64) -> Option<Vec<Step>> {
        if index >= leaves || leaves > self.len() {
            return None;
        }
        let mut steps = Vec::new();
        let mut height = 0;
        let mut position = index;
        while 1u64 << height < leaves {
            let sibling = position ^ 1;
            if sibling << height < leaves {
                steps.push(Step {
                    left: sibling < position,
                    hash: self.node(height, sibling, leaves),
                });
            }
            position >>= 1;
            height += 1;
        }
        Some(steps)
    }

    /// The tree as stored in the signature entry: all leaves flushed but the last, big-endian counts.
    #[must_use]
    pub fn serialise(&self) -> Vec<u8> {
        let flushed = self.len() - 1;
        let mut out = Vec::with_capacity(16 + 32 * 34);
        out.extend_from_slice(&1u64.to_be_bytes());
        out.extend_from_slice(&flushed.to_be_bytes());
        out.extend_from_slice(&self.levels[0][flushed as usize]);
        let mut start = flushed;
        for height in 0..64 {
            let size = 1u64 << height;
            if size > flushed {
                break;
            }
            if flushed & size != 0 {
                start -= size;
                out.extend_from_slice(&self.levels[height][(start >> height) as usize]);
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn naive_root(leaves: &[Hash]) -> Hash {
        let mut level = leaves.to_vec();
        while level.len() > 1 {
            level = level
                .chunks(2)
                .map(|c| if c.len() == 2 { parent(&c[0], &c[1]) } else { c[0] })
                .collect();
        }
        level[0]
    }

    #[test]
    fn every_proof_of_every_size_leads_to_the_naive_root() {
        let mut tree = MerkleTree::default();
        let mut leaves = vec![[0; 32]];
        for number in 1..70u8 {
            tree.append([number; 32]);
            leaves.push([number; 32]);
        }
        for size in 1..=leaves.len() {
            let root = naive_root(&leaves[..size]);
            assert_eq!(tree.root_of(size as u64), Some(root));
            for (index, leaf) in leaves[..size].iter().enumerate() {
                let steps = tree.proof(index as u64, size as u64).expect("in range");
                let folded = steps.iter().fold(*leaf, |node, step| {
                    if step.left {
                        parent(&step.hash, &node)
                    } else {
                        parent(&node, &step.hash)
                    }
                });
                assert_eq!(folded, root, "leaf {index} of {size}");
            }
        }
        tree.truncate(33);
        assert_eq!(tree.root(), naive_root(&leaves[..33]));
        tree.append([9; 32]);
        leaves.truncate(33);
        leaves.push([9; 32]);
        assert_eq!(tree.root(), naive_root(&leaves));
    }
}
