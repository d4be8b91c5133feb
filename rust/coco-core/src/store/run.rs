//! Sealed runs: the cold part of the log tables' index, kept by the host.
//!
//! A run is a sorted list of `(table, key) -> version`, cut into blocks. Each block is sealed with AES-256-GCM under a key that only
//! this process knows, its nonce is the run's number and the block's place, and numbers are never used again: so a block can only
//! be read as what it was written as, and a key that is not in its block is nowhere in the run. Memory keeps the first key of
//! each block and a Bloom filter, about 1.5 bytes for each record.

use std::collections::{BTreeMap, VecDeque};
use std::hash::{BuildHasher, RandomState};

use aes_gcm::aead::{Aead as _, KeyInit as _};
use aes_gcm::{Aes256Gcm, Nonce};
use zeroize::Zeroizing;

use super::{Key, StoreError, TableId};
use crate::secret::random;

/// Plain bytes after which a block is closed.
const BLOCK_BYTES: usize = 32 * 1024;
/// Runs of one size that are merged into one of the next.
const MERGE_RUNS: usize = 8;
const FILTER_BITS: u64 = 10;
const FILTER_HASHES: u64 = 7;

/// A row's place: its table, then its key.
pub(super) type Place = (TableId, Key);

/// Seals and opens blocks; its key lives as long as the process.
pub(super) struct Sealing {
    cipher: Aes256Gcm,
    next_run: u64,
}

impl Sealing {
    pub(super) fn new() -> Result<Self, StoreError> {
        let mut key = Zeroizing::new([0; 32]);
        random(&mut key[..]).map_err(|_| StoreError::Entropy)?;
        let cipher = Aes256Gcm::new_from_slice(&key[..]).map_err(|_| StoreError::Entropy)?;
        Ok(Self { cipher, next_run: 1 })
    }

    fn nonce(run: u64, block: u32) -> [u8; 12] {
        let mut nonce = [0; 12];
        nonce[..8].copy_from_slice(&run.to_be_bytes());
        nonce[8..].copy_from_slice(&block.to_be_bytes());
        nonce
    }

    fn seal(&self, run: u64, block: u32, plain: &[u8]) -> Result<Vec<u8>, StoreError> {
        self.cipher
            .encrypt(&Nonce::from(Self::nonce(run, block)), plain)
            .map_err(|_| StoreError::BadBlock { run, block })
    }

    fn open(&self, run: u64, block: u32, sealed: &[u8]) -> Result<Vec<u8>, StoreError> {
        self.cipher
            .decrypt(&Nonce::from(Self::nonce(run, block)), sealed)
            .map_err(|_| StoreError::BadBlock { run, block })
    }
}

struct Filter {
    bits: Vec<u64>,
    hashers: [RandomState; 2],
}

impl Filter {
    fn new(records: usize) -> Self {
        let words = (records as u64 * FILTER_BITS).div_ceil(64).max(1);
        Self {
            bits: vec![0; words as usize],
            hashers: [RandomState::new(), RandomState::new()],
        }
    }

    fn places(&self, place: &Place) -> impl Iterator<Item = (usize, u64)> {
        let [first, second] = [self.hashers[0].hash_one(place), self.hashers[1].hash_one(place) | 1];
        let count = self.bits.len() as u64 * 64;
        (0..FILTER_HASHES).map(move |n| {
            let bit = first.wrapping_add(n.wrapping_mul(second)) % count;
            ((bit / 64) as usize, 1 << (bit % 64))
        })
    }

    fn add(&mut self, place: &Place) {
        for (word, bit) in self.places(place).collect::<Vec<_>>() {
            self.bits[word] |= bit;
        }
    }

    fn may_have(&self, place: &Place) -> bool {
        self.places(place).all(|(word, bit)| self.bits[word] & bit != 0)
    }
}

/// What memory keeps of a run.
pub(super) struct Run {
    pub(super) number: u64,
    records: usize,
    firsts: Vec<Place>,
    filter: Filter,
}

impl Run {
    fn block_of(&self, place: &Place) -> Option<u32> {
        if !self.filter.may_have(place) {
            return None;
        }
        let after = self.firsts.partition_point(|first| first <= place);
        u32::try_from(after.checked_sub(1)?).ok()
    }

    fn tier(&self) -> u32 {
        (self.records.max(1)).ilog2() / MERGE_RUNS.ilog2()
    }
}

fn put(out: &mut Vec<u8>, place: &Place, version: u64) {
    out.extend_from_slice(&place.0.to_be_bytes());
    out.extend_from_slice(&(place.1.len() as u32).to_be_bytes());
    out.extend_from_slice(&place.1);
    out.extend_from_slice(&version.to_be_bytes());
}

/// The records of an opened block. Its bytes are authentic, so a malformed one is a fault of this module.
fn records(mut plain: &[u8]) -> Option<Vec<(Place, u64)>> {
    fn take<'a>(from: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
        let (head, tail) = from.split_at_checked(count)?;
        *from = tail;
        Some(head)
    }
    let mut found = Vec::new();
    while !plain.is_empty() {
        let table = TableId::from_be_bytes(take(&mut plain, 2)?.try_into().ok()?);
        let length = u32::from_be_bytes(take(&mut plain, 4)?.try_into().ok()?);
        let key = Key::from_slice(take(&mut plain, length as usize)?);
        let version = u64::from_be_bytes(take(&mut plain, 8)?.try_into().ok()?);
        found.push(((table, key), version));
    }
    Some(found)
}

/// Builds a run from records in order.
struct Builder {
    run: Run,
    plain: Vec<u8>,
    blocks: Vec<Vec<u8>>,
}

impl Builder {
    fn new(number: u64, records: usize) -> Self {
        Self {
            run: Run {
                number,
                records: 0,
                firsts: Vec::new(),
                filter: Filter::new(records),
            },
            plain: Vec::new(),
            blocks: Vec::new(),
        }
    }

    fn add(&mut self, sealing: &Sealing, place: &Place, version: u64) -> Result<(), StoreError> {
        if self.plain.is_empty() {
            self.run.firsts.push(place.clone());
        }
        put(&mut self.plain, place, version);
        self.run.filter.add(place);
        self.run.records += 1;
        if self.plain.len() >= BLOCK_BYTES {
            self.close_block(sealing)?;
        }
        Ok(())
    }

    fn close_block(&mut self, sealing: &Sealing) -> Result<(), StoreError> {
        if !self.plain.is_empty() {
            let block = self.run.firsts.len() as u32 - 1;
            self.blocks.push(sealing.seal(self.run.number, block, &self.plain)?);
            self.plain.clear();
        }
        Ok(())
    }
}

/// Blocks on their way to the host: the run's number, the place of the first, the blocks.
pub type Blocks = (u64, u32, Vec<Vec<u8>>);

struct Input {
    number: u64,
    blocks: u32,
    next: u32,
    waiting: VecDeque<(Place, u64)>,
}

struct Merge {
    inputs: Vec<Input>,
    builder: Builder,
    given_out: u32,
}

/// Every run, and what is being made of them.
pub(super) struct Runs {
    sealing: Sealing,
    runs: Vec<Run>,
    merge: Option<Merge>,
}

impl Runs {
    pub(super) fn new() -> Result<Self, StoreError> {
        Ok(Self {
            sealing: Sealing::new()?,
            runs: Vec::new(),
            merge: None,
        })
    }

    fn number(&mut self) -> u64 {
        self.sealing.next_run += 1;
        self.sealing.next_run - 1
    }

    /// Seal sorted rows as a new run.
    pub(super) fn add(&mut self, rows: &BTreeMap<Place, u64>) -> Result<Blocks, StoreError> {
        let number = self.number();
        let mut builder = Builder::new(number, rows.len());
        for (place, version) in rows {
            builder.add(&self.sealing, place, *version)?;
        }
        builder.close_block(&self.sealing)?;
        self.runs.push(builder.run);
        Ok((number, 0, builder.blocks))
    }

    /// Blocks that may hold a row, newest run first.
    pub(super) fn candidates(&self, place: &Place) -> Vec<(u64, u32)> {
        let found = self.runs.iter().rev();
        found
            .filter_map(|run| run.block_of(place).map(|block| (run.number, block)))
            .collect()
    }

    /// Whether a run still exists; merging replaces runs.
    pub(super) fn has(&self, number: u64) -> bool {
        self.runs.iter().any(|run| run.number == number)
    }

    /// The version of a row in one of its candidate blocks.
    pub(super) fn find(
        &self,
        number: u64,
        block: u32,
        sealed: &[u8],
        place: &Place,
    ) -> Result<Option<u64>, StoreError> {
        let plain = self.sealing.open(number, block, sealed)?;
        let all = records(&plain).ok_or(StoreError::BadBlock { run: number, block })?;
        Ok(all
            .binary_search_by(|(other, _)| other.cmp(place))
            .ok()
            .map(|index| all[index].1))
    }

    /// Begin to merge runs of like size, if there are enough and no merge is under way.
    pub(super) fn begin_merge(&mut self) -> bool {
        if self.merge.is_some() {
            return true;
        }
        let mut tiers = BTreeMap::<u32, Vec<usize>>::new();
        for (index, run) in self.runs.iter().enumerate() {
            tiers.entry(run.tier()).or_default().push(index);
        }
        let Some(chosen) = tiers.into_values().find(|tier| tier.len() >= MERGE_RUNS) else {
            return false;
        };
        let total = chosen.iter().map(|index| self.runs[*index].records).sum();
        let inputs = chosen
            .iter()
            .map(|index| Input {
                number: self.runs[*index].number,
                blocks: self.runs[*index].firsts.len() as u32,
                next: 0,
                waiting: VecDeque::new(),
            })
            .collect();
        let number = self.number();
        self.merge = Some(Merge {
            inputs,
            builder: Builder::new(number, total),
            given_out: 0,
        });
        true
    }

    /// The block that the merge needs next.
    pub(super) fn merge_wants(&self) -> Option<(u64, u32)> {
        let merge = self.merge.as_ref()?;
        let hungry = merge.inputs.iter();
        hungry
            .clone()
            .find(|input| input.waiting.is_empty() && input.next < input.blocks)
            .map(|input| (input.number, input.next))
    }

    /// Take the block that the merge wanted, and merge as far as that goes; returns sealed blocks for the host.
    pub(super) fn merge_take(&mut self, sealed: &[u8]) -> Result<Blocks, StoreError> {
        let Some((number, block)) = self.merge_wants() else {
            return Err(StoreError::BadBlock { run: 0, block: 0 });
        };
        let plain = self.sealing.open(number, block, sealed)?;
        let all = records(&plain).ok_or(StoreError::BadBlock { run: number, block })?;
        let Some(merge) = self.merge.as_mut() else {
            return Err(StoreError::BadBlock { run: number, block });
        };
        for input in &mut merge.inputs {
            if input.number == number {
                input.waiting.extend(all);
                input.next += 1;
                break;
            }
        }
        while !merge.inputs.iter().any(|i| i.waiting.is_empty() && i.next < i.blocks) {
            let least = merge.inputs.iter_mut().filter(|input| !input.waiting.is_empty());
            let Some(input) = least.min_by(|a, b| a.waiting[0].0.cmp(&b.waiting[0].0)) else {
                merge.builder.close_block(&self.sealing)?;
                break;
            };
            if let Some((place, version)) = input.waiting.pop_front() {
                merge.builder.add(&self.sealing, &place, version)?;
            }
        }
        let blocks = std::mem::take(&mut merge.builder.blocks);
        let first = merge.given_out;
        merge.given_out += blocks.len() as u32;
        Ok((merge.builder.run.number, first, blocks))
    }

    /// Put the merged run in the place of its inputs, once it needs nothing more; returns the numbers that are free now.
    pub(super) fn end_merge(&mut self) -> Vec<u64> {
        if self.merge_wants().is_some() {
            return Vec::new();
        }
        let Some(merge) = self.merge.take() else {
            return Vec::new();
        };
        let old: Vec<u64> = merge.inputs.iter().map(|input| input.number).collect();
        self.runs.retain(|run| !old.contains(&run.number));
        self.runs.push(merge.builder.run);
        old
    }

    /// Runs, and bytes of memory that they take.
    pub(super) fn size(&self) -> (usize, usize) {
        let bytes = self
            .runs
            .iter()
            .map(|run| run.filter.bits.len() * 8 + run.firsts.len() * size_of::<Place>())
            .sum();
        (self.runs.len(), bytes)
    }
}
