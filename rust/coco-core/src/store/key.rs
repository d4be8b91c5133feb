//! Keys of tables.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::hash::{Hash, Hasher};
use std::ops::Deref;

use smallvec::SmallVec;

/// A key, ordered as its bytes; up to 56 of them lie inside the map node (an EVM storage key has 52).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key(SmallVec<[u8; 56]>);

impl Key {
    /// A key of these bytes.
    #[must_use]
    pub fn from_slice(bytes: &[u8]) -> Self {
        Self(SmallVec::from_slice(bytes))
    }

    /// The least key that is greater than every key with this prefix; None when there is none.
    #[must_use]
    pub fn after_prefix(prefix: &[u8]) -> Option<Self> {
        let kept = prefix.iter().rposition(|byte| *byte < 0xff)?;
        let mut end = SmallVec::from_slice(&prefix[..=kept]);
        end[kept] += 1;
        Some(Self(end))
    }
}

impl Ord for Key {
    fn cmp(&self, other: &Self) -> Ordering {
        // The order of byte strings; the first eight as one number, because most comparisons of a search end there.
        match (self.0.split_first_chunk::<8>(), other.0.split_first_chunk::<8>()) {
            (Some((a, rest)), Some((b, other_rest))) => u64::from_be_bytes(*a)
                .cmp(&u64::from_be_bytes(*b))
                .then_with(|| rest.cmp(other_rest)),
            _ => self.0[..].cmp(&other.0[..]),
        }
    }
}

impl PartialOrd for Key {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0[..].hash(state);
    }
}

impl Borrow<[u8]> for Key {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

impl Deref for Key {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl From<&[u8]> for Key {
    fn from(bytes: &[u8]) -> Self {
        Self::from_slice(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::Key;

    #[test]
    fn keys_are_ordered_as_their_bytes() {
        let mut samples = vec![Vec::new()];
        for length in [1, 7, 8, 9, 20, 70] {
            for fill in [0, 1, 0x7f, 0x80, 0xff] {
                samples.push(vec![fill; length]);
                for place in [0, length / 2, length - 1] {
                    let mut other = vec![fill; length];
                    other[place] ^= 0x81;
                    samples.push(other);
                }
            }
        }
        for a in &samples {
            for b in &samples {
                assert_eq!(Key::from_slice(a).cmp(&Key::from_slice(b)), a.cmp(b), "{a:?} {b:?}");
            }
        }
    }

    #[test]
    fn a_prefix_ends_where_no_key_has_it_any_more() {
        assert_eq!(Key::after_prefix(b"ab"), Some(Key::from_slice(b"ac")));
        assert_eq!(Key::after_prefix(b"a\xff\xff"), Some(Key::from_slice(b"b")));
        assert_eq!(Key::after_prefix(b"\xff"), None);
        assert_eq!(Key::after_prefix(b""), None);
    }
}
