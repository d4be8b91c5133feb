//! A Merkle-Patricia trie that is updated in place and hashed only where it changed.
//!
//! Nodes are shared: cloning a trie is free, and changing a clone copies only the path to the change. So the trie of a
//! rolled-back block is simply the clone that was kept.

use std::sync::{Arc, OnceLock};

use alloy_primitives::{B256, keccak256};
use alloy_rlp::{Encodable, Header};
use alloy_trie::EMPTY_ROOT_HASH;

/// Subtries of this many changes are worth hashing on several threads.
const PARALLEL_MIN: usize = 64;

#[derive(Clone, Debug)]
enum Node {
    Leaf {
        path: Box<[u8]>,
        value: Box<[u8]>,
    },
    Extension {
        path: Box<[u8]>,
        child: Link,
    },
    Branch {
        children: Box<[Option<Link>; 16]>,
        value: Option<Box<[u8]>>,
    },
}

#[derive(Debug)]
struct Cell {
    node: Node,
    /// How the parent refers to this node: its RLP below 32 bytes, else the RLP of its hash.
    reference: OnceLock<Box<[u8]>>,
}

impl Clone for Cell {
    fn clone(&self) -> Self {
        Self {
            node: self.node.clone(),
            reference: OnceLock::new(),
        }
    }
}

type Link = Arc<Cell>;

fn link(node: Node) -> Link {
    Arc::new(Cell {
        node,
        reference: OnceLock::new(),
    })
}

fn change(at: &mut Link) -> &mut Node {
    let cell = Arc::make_mut(at);
    cell.reference = OnceLock::new();
    &mut cell.node
}

fn common(a: &[u8], b: &[u8]) -> usize {
    a.iter().zip(b).take_while(|(x, y)| x == y).count()
}

fn nibbles(key: &[u8]) -> Vec<u8> {
    key.iter().flat_map(|byte| [byte >> 4, byte & 15]).collect()
}

fn compact(path: &[u8], leaf: bool) -> Vec<u8> {
    let flag = if leaf { 2 } else { 0 };
    let mut out = Vec::with_capacity(path.len() / 2 + 1);
    let rest = if path.len() % 2 == 1 {
        out.push((flag + 1) << 4 | path[0]);
        &path[1..]
    } else {
        out.push(flag << 4);
        path
    };
    out.extend(rest.chunks(2).map(|pair| pair[0] << 4 | pair[1]));
    out
}

fn rlp_list(payload: &[u8]) -> Vec<u8> {
    let header = Header {
        list: true,
        payload_length: payload.len(),
    };
    let mut out = Vec::with_capacity(payload.len() + 4);
    header.encode(&mut out);
    out.extend_from_slice(payload);
    out
}

impl Cell {
    fn rlp(&self) -> Vec<u8> {
        let mut payload = Vec::with_capacity(128);
        match &self.node {
            Node::Leaf { path, value } => {
                compact(path, true).as_slice().encode(&mut payload);
                value.as_ref().encode(&mut payload);
            }
            Node::Extension { path, child } => {
                compact(path, false).as_slice().encode(&mut payload);
                payload.extend_from_slice(child.reference());
            }
            Node::Branch { children, value } => {
                for child in children.iter() {
                    match child {
                        Some(child) => payload.extend_from_slice(child.reference()),
                        None => payload.push(0x80),
                    }
                }
                value.as_deref().unwrap_or_default().encode(&mut payload);
            }
        }
        rlp_list(&payload)
    }

    fn reference(&self) -> &[u8] {
        self.reference.get_or_init(|| {
            let rlp = self.rlp();
            if rlp.len() < 32 {
                return rlp.into();
            }
            let mut out = Vec::with_capacity(33);
            keccak256(&rlp).encode(&mut out);
            out.into()
        })
    }
}

/// A trie over byte keys.
#[derive(Clone, Debug, Default)]
pub struct Trie {
    root: Option<Link>,
    changes: usize,
}

impl Trie {
    /// True when it holds nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.root.is_none()
    }

    /// Set `key` to `value`; an empty value removes it.
    pub fn set(&mut self, key: &[u8], value: &[u8]) {
        self.changes += 1;
        let path = nibbles(key);
        if value.is_empty() {
            self.root = self.root.take().and_then(|root| remove(root, &path));
        } else if let Some(root) = &mut self.root {
            insert(root, &path, value);
        } else {
            self.root = Some(link(Node::Leaf {
                path: path.into(),
                value: value.into(),
            }));
        }
    }

    /// Root hash.
    pub fn root(&mut self) -> B256 {
        let Some(root) = &self.root else {
            return EMPTY_ROOT_HASH;
        };
        if self.changes >= PARALLEL_MIN
            && let Node::Branch { children, .. } = &root.node
        {
            use rayon::prelude::*;
            children.par_iter().flatten().for_each(|child| {
                child.reference();
            });
        }
        self.changes = 0;
        keccak256(root.rlp())
    }

    /// The RLP of every node on the path to `key`: the proof of its value or of its absence.
    #[must_use]
    pub fn proof(&self, key: &[u8]) -> Vec<Vec<u8>> {
        let path = nibbles(key);
        let mut rest = path.as_slice();
        let mut nodes = Vec::new();
        let mut at = self.root.as_ref();
        let mut hashed = true;
        while let Some(cell) = at {
            let rlp = cell.rlp();
            if hashed {
                nodes.push(rlp);
            }
            at = match &cell.node {
                Node::Leaf { .. } => None,
                Node::Extension { path, child } if rest.starts_with(path) => {
                    rest = &rest[path.len()..];
                    Some(child)
                }
                Node::Extension { .. } => None,
                Node::Branch { children, .. } => rest.split_first().and_then(|(nibble, tail)| {
                    rest = tail;
                    children[*nibble as usize].as_ref()
                }),
            };
            hashed = at.is_some_and(|child| child.reference().len() == 33);
        }
        nodes
    }
}

fn empty_children() -> Box<[Option<Link>; 16]> {
    Box::new([const { None }; 16])
}

/// `node` shortened at its front, below a branch that consumed the nibbles before.
fn with_prefix(prefix: &[u8], child: Link) -> Link {
    if prefix.is_empty() {
        child
    } else {
        link(Node::Extension {
            path: prefix.into(),
            child,
        })
    }
}

fn insert(at: &mut Link, path: &[u8], value: &[u8]) {
    let replacement = match change(at) {
        Node::Leaf { path: own, value: old } => {
            if own.as_ref() == path {
                *old = value.into();
                return;
            }
            let shared = common(own, path);
            let (mut children, mut here) = (empty_children(), None);
            let mut place = |rest: &[u8], value: &[u8]| match rest.split_first() {
                Some((nibble, tail)) => {
                    children[*nibble as usize] = Some(link(Node::Leaf {
                        path: tail.into(),
                        value: value.into(),
                    }));
                }
                None => here = Some(value.into()),
            };
            place(&own[shared..], old);
            place(&path[shared..], value);
            with_prefix(&path[..shared], link(Node::Branch { children, value: here }))
        }
        Node::Extension { path: own, child } => {
            let shared = common(own, path);
            if shared == own.len() {
                insert(child, &path[shared..], value);
                return;
            }
            let (mut children, mut here) = (empty_children(), None);
            children[own[shared] as usize] = Some(with_prefix(&own[shared + 1..], child.clone()));
            match path[shared..].split_first() {
                Some((nibble, tail)) => {
                    children[*nibble as usize] = Some(link(Node::Leaf {
                        path: tail.into(),
                        value: value.into(),
                    }));
                }
                None => here = Some(value.into()),
            }
            with_prefix(&path[..shared], link(Node::Branch { children, value: here }))
        }
        Node::Branch { children, value: here } => {
            match path.split_first() {
                None => *here = Some(value.into()),
                Some((nibble, tail)) => match &mut children[*nibble as usize] {
                    Some(child) => insert(child, tail, value),
                    none => {
                        *none = Some(link(Node::Leaf {
                            path: tail.into(),
                            value: value.into(),
                        }))
                    }
                },
            }
            return;
        }
    };
    *at = replacement;
}

fn remove(mut at: Link, path: &[u8]) -> Option<Link> {
    if !contains(&at, path) {
        return Some(at);
    }
    match change(&mut at) {
        Node::Leaf { .. } => return None,
        Node::Extension { path: own, child } => {
            let prefix = own.clone();
            let below = remove(child.clone(), &path[prefix.len()..])?;
            return Some(joined(&prefix, below));
        }
        Node::Branch { children, value } => {
            match path.split_first() {
                None => *value = None,
                Some((nibble, tail)) => {
                    let slot = &mut children[*nibble as usize];
                    *slot = slot.take().and_then(|child| remove(child, tail));
                }
            }
            let mut left = children
                .iter()
                .enumerate()
                .filter_map(|(n, child)| child.as_ref().map(|c| (n, c)));
            match (left.next(), left.next(), value.as_ref()) {
                (None, _, None) => return None,
                (None, _, Some(value)) => {
                    return Some(link(Node::Leaf {
                        path: [].into(),
                        value: value.clone(),
                    }));
                }
                (Some((nibble, only)), None, None) => {
                    return Some(joined(&[nibble as u8], only.clone()));
                }
                _ => {}
            }
        }
    }
    Some(at)
}

/// `child` below the nibbles of `prefix`, merged with them where the trie's rules ask for it.
fn joined(prefix: &[u8], child: Link) -> Link {
    match &child.node {
        Node::Leaf { path, value } => link(Node::Leaf {
            path: [prefix, path].concat().into(),
            value: value.clone(),
        }),
        Node::Extension { path, child } => link(Node::Extension {
            path: [prefix, path].concat().into(),
            child: child.clone(),
        }),
        Node::Branch { .. } => with_prefix(prefix, child),
    }
}

fn contains(at: &Link, path: &[u8]) -> bool {
    match &at.node {
        Node::Leaf { path: own, .. } => own.as_ref() == path,
        Node::Extension { path: own, child } => path.starts_with(own) && contains(child, &path[own.len()..]),
        Node::Branch { children, value } => match path.split_first() {
            None => value.is_some(),
            Some((nibble, tail)) => children[*nibble as usize]
                .as_ref()
                .is_some_and(|child| contains(child, tail)),
        },
    }
}
