//! The engine's log in memory: what may still have to be sent to a follower, and nothing else. Nothing is ever read back
//! into it from a disk: a process start is a new node.

use std::collections::VecDeque;

use bytes::Bytes;
use raft::eraftpb::{ConfState, Entry, HardState, Snapshot};
use raft::{Error, GetEntriesContext, RaftState, Result, Storage, StorageError};

/// Entries above the last compaction, and the offer of a snapshot for whoever needs older ones.
#[derive(Debug, Default)]
pub(super) struct Log {
    hard: HardState,
    /// Configurations with the index from which each holds, oldest first; the last is in force.
    configurations: Vec<(u64, ConfState)>,
    /// Index and term of the entry before the first one.
    before: (u64, u64),
    entries: VecDeque<Entry>,
    bytes: usize,
    /// Index and content of the snapshot on offer.
    offer: Option<(u64, Bytes)>,
}

impl Log {
    pub(super) fn new(configuration: ConfState, before: (u64, u64)) -> Self {
        let hard = HardState {
            commit: before.0,
            term: before.1,
            ..HardState::default()
        };
        Self {
            hard,
            configurations: vec![(before.0, configuration)],
            before,
            ..Self::default()
        }
    }

    /// Bytes of the entries held.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn first(&self) -> u64 {
        self.before.0 + 1
    }

    pub(super) fn last(&self) -> u64 {
        self.before.0 + self.entries.len() as u64
    }

    pub(super) fn set_hard_state(&mut self, hard: HardState) {
        self.hard = hard;
    }

    /// The configuration in force after `index`.
    pub(super) fn set_configuration(&mut self, index: u64, configuration: ConfState) {
        self.configurations.push((index, configuration));
    }

    /// Take entries in; those from the first one's index on are overwritten.
    pub(super) fn append(&mut self, entries: &[Entry]) {
        let Some(first) = entries.first() else { return };
        assert!(
            self.before.0 < first.index && first.index <= self.last() + 1,
            "a gap in the log"
        );
        while self.last() >= first.index {
            self.bytes -= self.entries.pop_back().map_or(0, |entry| size(&entry));
        }
        self.bytes += entries.iter().map(size).sum::<usize>();
        self.entries.extend(entries.iter().cloned());
    }

    /// Take the place that a snapshot leaves the log in.
    pub(super) fn restore(&mut self, snapshot: &Snapshot) {
        let metadata = snapshot.get_metadata();
        let mut hard = self.hard.clone();
        hard.commit = metadata.index;
        hard.term = hard.term.max(metadata.term);
        *self = Self {
            hard,
            ..Self::new(metadata.get_conf_state().clone(), (metadata.index, metadata.term))
        };
    }

    /// Forget entries up to and including `index`, which must be applied.
    pub(super) fn compact(&mut self, index: u64) {
        while self.before.0 < index.min(self.hard.commit) {
            let Some(entry) = self.entries.pop_front() else { break };
            self.bytes -= size(&entry);
            self.before = (entry.index, entry.term);
        }
        let older = self
            .configurations
            .iter()
            .take_while(|(from, _)| *from <= self.before.0);
        let superseded = older.count().saturating_sub(1);
        self.configurations.drain(..superseded);
    }

    /// Offer a snapshot of the state after `index`.
    pub(super) fn offer(&mut self, index: u64, content: Bytes) {
        self.offer = Some((index, content));
    }

    fn entry(&self, index: u64) -> Option<&Entry> {
        let place = index.checked_sub(self.first())?;
        self.entries.get(usize::try_from(place).ok()?)
    }
}

fn size(entry: &Entry) -> usize {
    entry.data.len() + entry.context.len()
}

impl Storage for Log {
    fn initial_state(&self) -> Result<RaftState> {
        let configuration = self
            .configurations
            .last()
            .map(|(_, configuration)| configuration.clone());
        Ok(RaftState::new(self.hard.clone(), configuration.unwrap_or_default()))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> Result<Vec<Entry>> {
        if low < self.first() {
            return Err(Error::Store(StorageError::Compacted));
        }
        let max_size = max_size.into().unwrap_or(u64::MAX);
        let (mut found, mut bytes) = (Vec::new(), 0);
        for index in low..high {
            let Some(entry) = self.entry(index) else {
                return Err(Error::Store(StorageError::Unavailable));
            };
            bytes += size(entry) as u64;
            if !found.is_empty() && bytes > max_size {
                break;
            }
            found.push(entry.clone());
        }
        Ok(found)
    }

    fn term(&self, index: u64) -> Result<u64> {
        if index == self.before.0 {
            return Ok(self.before.1);
        }
        match self.entry(index) {
            Some(entry) => Ok(entry.term),
            None if index < self.before.0 => Err(Error::Store(StorageError::Compacted)),
            None => Err(Error::Store(StorageError::Unavailable)),
        }
    }

    fn first_index(&self) -> Result<u64> {
        Ok(self.first())
    }

    fn last_index(&self) -> Result<u64> {
        Ok(self.last())
    }

    fn snapshot(&self, request_index: u64, _to: u64) -> Result<Snapshot> {
        let Some((index, content)) = self.offer.as_ref().filter(|(index, _)| *index >= request_index) else {
            return Err(Error::Store(StorageError::SnapshotTemporarilyUnavailable));
        };
        let configuration = self.configurations.iter().rev().find(|(from, _)| from <= index);
        let (Ok(term), Some((_, configuration))) = (self.term(*index), configuration) else {
            return Err(Error::Store(StorageError::SnapshotTemporarilyUnavailable));
        };
        let mut snapshot = Snapshot {
            data: content.clone(),
            ..Snapshot::default()
        };
        let metadata = snapshot.mut_metadata();
        metadata.index = *index;
        metadata.term = term;
        metadata.set_conf_state(configuration.clone());
        Ok(snapshot)
    }
}
