//! tikv's `raft` without I/O and without a clock, narrowed to what a validating node may do with it.
//!
//! * Only the leader of the term that the caller names may propose; no proposal is ever forwarded or taken from a peer:
//!   the engine would give a deposed primary's write set a new term and commit it.
//! * The sender of a message is who the channel says, not what the message says.
//! * Election timeouts are a function of seed, node, term and attempt, so that a run can be repeated.
//! * A start is a new node: there is no way in for a vote, a term or a log, but for [`Engine::revived`], which exists to
//!   show in the simulator what would happen.

mod log;
mod wire;

use bytes::Bytes;
use protobuf::Message as _;
use raft::eraftpb::{
    ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2, ConfState, Entry, EntryType, HardState,
    Message, MessageType, Snapshot,
};
use raft::{Config, RawNode, SnapshotStatus, StateRole, Storage as _};
use thiserror::Error;

use log::Log;

/// Why the engine refuses.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ConsensusError {
    /// Somebody else leads, or this node leads in another term.
    #[error("this node does not lead in term {0}")]
    NotLeader(u64),
    /// Too much is proposed and not committed, or leadership is being handed over.
    #[error("the proposal was dropped")]
    Dropped,
    /// Not a message, or one that no peer may send.
    #[error("a peer's message is refused: {0}")]
    BadMessage(&'static str),
    /// Configuration or arguments that cannot be.
    #[error("{0}")]
    Invalid(String),
}

/// How an engine behaves.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Ticks without a leader before an election; the timeout is drawn between this and twice this.
    pub election_ticks: usize,
    /// Ticks between heartbeats.
    pub heartbeat_ticks: usize,
    /// Entries in one message, in bytes; one entry always fits.
    pub message_bytes: u64,
    /// Messages with entries that may be under way to one follower.
    pub inflight: usize,
    /// Proposed and not yet committed, in bytes.
    pub uncommitted_bytes: u64,
    /// Determines the election timeouts.
    pub seed: u64,
}

/// Where a log begins: the index and the term of the entry before its first, and the configuration there.
#[derive(Clone, Debug, Default)]
pub struct Start {
    /// Index before the first entry.
    pub index: u64,
    /// Term of that entry.
    pub term: u64,
    /// Nodes that vote.
    pub voters: Vec<u64>,
    /// Nodes that only follow.
    pub learners: Vec<u64>,
}

/// What a change of the configuration does to one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It votes from now on.
    Voter(u64),
    /// It follows without a vote.
    Learner(u64),
    /// It is out.
    Removed(u64),
}

/// Nodes of a configuration; `outgoing` is not empty while two configurations hold jointly.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Members {
    /// Nodes that vote.
    pub voters: Vec<u64>,
    /// Nodes that only follow.
    pub learners: Vec<u64>,
    /// Nodes that voted before, and still do.
    pub outgoing: Vec<u64>,
}

impl From<ConfState> for Members {
    fn from(state: ConfState) -> Self {
        Self {
            voters: state.voters,
            learners: state.learners,
            outgoing: state.voters_outgoing,
        }
    }
}

/// What an index of the log holds.
#[derive(Clone, Debug)]
pub struct Slot {
    /// Place in the engine's log; not a seqno.
    pub index: u64,
    /// Term in which it was proposed.
    pub term: u64,
    /// A change of the configuration, or else data (empty: the engine's own entry at an election).
    pub is_configuration: bool,
    /// The owner's header.
    pub context: Bytes,
    /// The owner's data, or the encoded change.
    pub data: Bytes,
}

impl From<Entry> for Slot {
    fn from(entry: Entry) -> Self {
        Self {
            index: entry.index,
            term: entry.term,
            is_configuration: is_configuration(&entry),
            context: entry.context,
            data: entry.data,
        }
    }
}

/// A message to a peer, encoded.
#[derive(Clone, Debug)]
pub struct Outgoing {
    /// Engine id of the peer.
    pub to: u64,
    /// The message.
    pub bytes: Vec<u8>,
    /// It points to a snapshot, whose fate is to be reported.
    pub is_snapshot: bool,
}

/// Term, vote and commit index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Promise {
    /// Current term.
    pub term: u64,
    /// Who got this node's vote in it; 0 for nobody.
    pub vote: u64,
    /// Committed as far as this node knows.
    pub commit: u64,
}

/// What is to be done, in this order: send `messages`; make `slots` and `promise` durable, then call
/// [`Engine::persisted`] with `number`; then send `after`; meanwhile apply `committed`, then call [`Engine::applied`].
#[derive(Clone, Debug, Default)]
pub struct Work {
    /// Names this piece of work.
    pub number: u64,
    /// To send at once.
    pub messages: Vec<Outgoing>,
    /// To send once everything up to `number` is durable.
    pub after: Vec<Outgoing>,
    /// To be stored; what the log held from the first one's index on is gone.
    pub slots: Vec<Slot>,
    /// To be stored with them, if it changed.
    pub promise: Option<Promise>,
    /// Index and pointer of a snapshot that takes the place of everything before.
    pub snapshot: Option<(u64, Bytes)>,
    /// Committed indices, in order, each once; with the encoded change where it changes the configuration.
    pub committed: Vec<(u64, Option<Bytes>)>,
    /// Reads that are linearizable once `index` is applied, by their context.
    pub reads: Vec<(u64, Vec<u8>)>,
}

/// A look at an engine.
#[derive(Clone, Copy, Debug)]
pub struct Status {
    /// Current term.
    pub term: u64,
    /// Who leads, as far as this node knows; 0 for nobody.
    pub leader: u64,
    /// Whether this node does.
    pub leads: bool,
}

/// Where a follower stands, as the leader sees it.
#[derive(Clone, Debug)]
pub struct Progress {
    /// The follower.
    pub node: u64,
    /// Everything up to here is durable there.
    pub matched: u64,
    /// It was heard of lately.
    pub is_active: bool,
}

/// One node's engine.
pub struct Engine {
    raw: RawNode<Log>,
    settings: Settings,
    attempts: u64,
    reads: u64,
}

/// Bytes by which a leader makes the context of every read its own.
const READ_MARK_BYTES: usize = 8;

impl Engine {
    /// A new node. Its id must never have been used before.
    ///
    /// # Errors
    /// The settings cannot be.
    pub fn new(id: u64, start: Start, settings: Settings) -> Result<Self, ConsensusError> {
        let configuration = ConfState::from((start.voters, start.learners));
        Self::over(
            id,
            Log::new(configuration, (start.index, start.term)),
            start.index,
            settings,
        )
    }

    /// A node that believes what a disk says of a former life. FOR EXPERIMENTS ONLY: a host that gives an old disk back
    /// makes such a node vote twice. The simulator shows it; nothing else may call this.
    ///
    /// # Errors
    /// The settings cannot be.
    pub fn revived(
        id: u64,
        start: Start,
        settings: Settings,
        promise: Promise,
        slots: Vec<Slot>,
    ) -> Result<Self, ConsensusError> {
        let configuration = ConfState::from((start.voters, start.learners));
        let mut log = Log::new(configuration, (start.index, start.term));
        let entries: Vec<Entry> = slots.into_iter().map(entry).collect();
        log.append(&entries);
        log.set_hard_state(HardState {
            term: promise.term,
            vote: promise.vote,
            commit: promise.commit.min(log.last()),
            ..HardState::default()
        });
        Self::over(id, log, start.index, settings)
    }

    fn over(id: u64, log: Log, applied: u64, settings: Settings) -> Result<Self, ConsensusError> {
        let config = Config {
            id,
            applied,
            election_tick: settings.election_ticks,
            heartbeat_tick: settings.heartbeat_ticks,
            max_size_per_msg: settings.message_bytes,
            max_inflight_msgs: settings.inflight,
            max_uncommitted_size: settings.uncommitted_bytes,
            max_committed_size_per_ready: settings.message_bytes * 16,
            check_quorum: true,
            pre_vote: true,
            ..Config::default()
        };
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let raw = RawNode::new(&config, log, &logger).map_err(|error| ConsensusError::Invalid(error.to_string()))?;
        let mut engine = Self {
            raw,
            settings,
            attempts: 0,
            reads: 0,
        };
        engine.draw_timeout();
        Ok(engine)
    }

    /// The engine draws timeouts from the thread's own generator; this replaces them after every call.
    fn draw_timeout(&mut self) {
        let raft = &mut self.raw.raft;
        let drawn = mix(self.settings.seed ^ mix(raft.id) ^ mix(raft.term).rotate_left(17) ^ mix(self.attempts << 1));
        let span = self.settings.election_ticks;
        #[expect(clippy::cast_possible_truncation, reason = "only the lower bits count")]
        raft.set_randomized_election_timeout(span + (drawn as usize) % span);
    }

    // --- events ---

    /// One tick of the clock.
    pub fn tick(&mut self) {
        let was_leader = self.raw.raft.state == StateRole::Leader;
        if self.raw.tick() && !was_leader {
            self.attempts += 1;
        }
        self.draw_timeout();
    }

    /// A message that came over the channel of `sender`.
    ///
    /// # Errors
    /// It is not the sender's to send.
    pub fn receive(&mut self, sender: u64, bytes: &[u8]) -> Result<(), ConsensusError> {
        let mut message = parse(bytes)?;
        if message.from != sender {
            return Err(ConsensusError::BadMessage("another sender"));
        }
        if message.to != self.raw.raft.id {
            return Err(ConsensusError::BadMessage("another receiver"));
        }
        if message.get_msg_type() == MessageType::MsgPropose {
            return Err(ConsensusError::BadMessage("of a kind that no peer may send"));
        }
        // A follower would pass these on in the sender's name, which nobody accepts; they are asked again.
        let for_leader = matches!(
            message.get_msg_type(),
            MessageType::MsgReadIndex | MessageType::MsgTransferLeader
        );
        if for_leader && self.raw.raft.state != StateRole::Leader {
            return Ok(());
        }
        if message.get_msg_type() == MessageType::MsgReadIndex
            && let Some(entry) = message.mut_entries().first_mut()
        {
            entry.data = self.mark_read(&entry.data).into();
        }
        let stepped = self.raw.step(message);
        self.draw_timeout();
        match stepped {
            // Answers of a node that is removed by now.
            Ok(()) | Err(raft::Error::StepPeerNotFound) => Ok(()),
            Err(raft::Error::StepLocalMsg) => Err(ConsensusError::BadMessage("of a kind that no peer may send")),
            Err(_) => Err(ConsensusError::Dropped),
        }
    }

    fn check_leader(&self, term: u64) -> Result<(), ConsensusError> {
        let raft = &self.raw.raft;
        if raft.state != StateRole::Leader || raft.term != term {
            return Err(ConsensusError::NotLeader(term));
        }
        Ok(())
    }

    /// Append data as the leader of `term`.
    ///
    /// # Errors
    /// This node does not lead in that term, or too much is uncommitted: then nothing was appended.
    pub fn propose(&mut self, term: u64, context: Vec<u8>, data: Vec<u8>) -> Result<(), ConsensusError> {
        self.check_leader(term)?;
        self.raw.propose(context, data).map_err(|_| ConsensusError::Dropped)
    }

    /// Change the configuration as the leader of `term`: one node directly, several jointly, which ends by itself.
    ///
    /// # Errors
    /// As for [`Self::propose`]; a change that is not yet applied drops this one.
    pub fn propose_changes(&mut self, term: u64, changes: &[Change]) -> Result<(), ConsensusError> {
        self.check_leader(term)?;
        if self.raw.raft.has_pending_conf() {
            return Err(ConsensusError::Dropped);
        }
        let mut change = ConfChangeV2::default();
        change.set_transition(ConfChangeTransition::Auto);
        change.changes = changes.iter().map(single).collect::<Vec<_>>().into();
        self.raw
            .propose_conf_change(Vec::new(), change)
            .map_err(|_| ConsensusError::Dropped)
    }

    /// Everything up to work `number` is durable here.
    pub fn persisted(&mut self, number: u64) {
        self.raw.on_persist_ready(number);
        self.draw_timeout();
    }

    /// Everything up to `index` is applied.
    pub fn applied(&mut self, index: u64) {
        self.raw.advance_apply_to(index);
    }

    /// A committed change of the configuration comes into force; it must be told before [`Self::applied`].
    ///
    /// # Errors
    /// Not a change, or one that cannot be.
    pub fn apply_change(&mut self, index: u64, change: &[u8]) -> Result<Members, ConsensusError> {
        let change = ConfChangeV2::parse_from_bytes(change)
            .map_err(|_| ConsensusError::Invalid("a malformed change of the configuration".to_owned()))?;
        let state = self
            .raw
            .apply_conf_change(&change)
            .map_err(|error| ConsensusError::Invalid(error.to_string()))?;
        self.raw.mut_store().set_configuration(index, state.clone());
        Ok(state.into())
    }

    /// Ask for an election at once.
    pub fn campaign(&mut self) {
        // Refused only where an election makes no sense.
        drop(self.raw.campaign());
        self.draw_timeout();
    }

    /// Lead no longer, in this term; some other term's leader will be heard of.
    pub fn step_down(&mut self) {
        let raft = &mut self.raw.raft;
        if raft.state == StateRole::Leader {
            raft.become_follower(raft.term, raft::INVALID_ID);
        }
        self.draw_timeout();
    }

    /// Hand leadership over to a follower that is up to date.
    pub fn transfer(&mut self, to: u64) {
        self.raw.transfer_leader(to);
    }

    /// Ask how far a read must wait to be linearizable; the answer comes in [`Work::reads`], or never.
    pub fn read_index(&mut self, context: &[u8]) {
        // A follower's read is marked by the leader.
        let leads = self.raw.raft.state == StateRole::Leader;
        let context = if leads {
            self.mark_read(context)
        } else {
            context.to_vec()
        };
        self.raw.read_index(context);
    }

    /// The engine releases every read that waits before the one that a majority answered. If a request came twice, late
    /// answers to the first would count for the second, and release what was asked for in between: so no context is
    /// ever the same.
    fn mark_read(&mut self, context: &[u8]) -> Vec<u8> {
        self.reads += 1;
        [context, &self.reads.to_be_bytes()].concat()
    }

    /// A snapshot reached its peer, or did not.
    pub fn snapshot_sent(&mut self, node: u64, arrived: bool) {
        let status = if arrived {
            SnapshotStatus::Finish
        } else {
            SnapshotStatus::Failure
        };
        self.raw.report_snapshot(node, status);
    }

    /// Offer a snapshot of the state after `index`, an applied one, to whoever needs entries that are forgotten.
    pub fn offer_snapshot(&mut self, index: u64, pointer: Vec<u8>) {
        self.raw.mut_store().offer(index, pointer.into());
    }

    /// Forget entries up to and including `index`, an applied one.
    pub fn compact(&mut self, index: u64) {
        self.raw.mut_store().compact(index);
    }

    // --- work ---

    /// What is to be done now, or None.
    pub fn work(&mut self) -> Option<Work> {
        if !self.raw.has_ready() {
            return None;
        }
        let mut ready = self.raw.ready();
        let mut work = Work {
            number: ready.number(),
            messages: outgoing(ready.take_messages()),
            after: outgoing(ready.take_persisted_messages()),
            slots: ready.entries().iter().cloned().map(Slot::from).collect(),
            reads: ready
                .take_read_states()
                .into_iter()
                .map(|mut read| {
                    let unmarked = read.request_ctx.len().saturating_sub(READ_MARK_BYTES);
                    read.request_ctx.truncate(unmarked);
                    (read.index, read.request_ctx)
                })
                .collect(),
            ..Work::default()
        };
        let log = self.raw.mut_store();
        if *ready.snapshot() != Snapshot::default() {
            let snapshot = ready.snapshot();
            work.snapshot = Some((snapshot.get_metadata().index, snapshot.data.clone()));
            log.restore(snapshot);
        }
        log.append(ready.entries());
        if let Some(hard) = ready.hs() {
            work.promise = Some(Promise {
                term: hard.term,
                vote: hard.vote,
                commit: hard.commit,
            });
            log.set_hard_state(hard.clone());
        }
        let committed = ready.take_committed_entries().into_iter();
        work.committed = committed
            .map(|entry| (entry.index, is_configuration(&entry).then_some(entry.data)))
            .collect();
        self.raw.advance_append_async(ready);
        Some(work)
    }

    /// A look at the engine.
    #[must_use]
    pub fn status(&self) -> Status {
        let raft = &self.raw.raft;
        Status {
            term: raft.term,
            leader: raft.leader_id,
            leads: raft.state == StateRole::Leader,
        }
    }

    /// Bytes of the entries held.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.raw.store().bytes()
    }

    /// Term of an index that is held, or of the one before the first.
    ///
    /// # Errors
    /// It is not held.
    pub fn term_at(&self, index: u64) -> Result<u64, ConsensusError> {
        let found = self.raw.raft.raft_log.term(index);
        found.map_err(|error| ConsensusError::Invalid(error.to_string()))
    }

    /// The configuration in force.
    #[must_use]
    pub fn members(&self) -> Members {
        self.raw
            .store()
            .initial_state()
            .map(|state| state.conf_state.into())
            .unwrap_or_default()
    }

    /// Where the followers stand, by node; of use on the leader.
    #[must_use]
    pub fn progress(&self) -> Vec<Progress> {
        let mut found: Vec<Progress> = self
            .raw
            .raft
            .prs()
            .iter()
            .map(|(node, progress)| Progress {
                node: *node,
                matched: progress.matched,
                is_active: progress.recent_active,
            })
            .collect();
        found.sort_by_key(|progress| progress.node);
        found
    }
}

fn parse(bytes: &[u8]) -> Result<Message, ConsensusError> {
    let malformed = ConsensusError::BadMessage("malformed");
    if wire::check(bytes).is_none() {
        return Err(malformed);
    }
    Message::parse_from_bytes(bytes).map_err(|_| malformed)
}

/// Whether bytes have the form of a peer's message; for fuzzing the reader.
#[must_use]
pub fn is_message(bytes: &[u8]) -> bool {
    parse(bytes).is_ok()
}

fn is_configuration(entry: &Entry) -> bool {
    entry.get_entry_type() != EntryType::EntryNormal
}

fn single(change: &Change) -> ConfChangeSingle {
    let (kind, node) = match change {
        Change::Voter(node) => (ConfChangeType::AddNode, node),
        Change::Learner(node) => (ConfChangeType::AddLearnerNode, node),
        Change::Removed(node) => (ConfChangeType::RemoveNode, node),
    };
    let mut single = ConfChangeSingle::default();
    single.set_change_type(kind);
    single.node_id = *node;
    single
}

fn entry(slot: Slot) -> Entry {
    let mut entry = Entry {
        index: slot.index,
        term: slot.term,
        context: slot.context,
        data: slot.data,
        ..Entry::default()
    };
    if slot.is_configuration {
        entry.set_entry_type(EntryType::EntryConfChangeV2);
    }
    entry
}

fn outgoing(messages: Vec<Message>) -> Vec<Outgoing> {
    let sent = messages
        .into_iter()
        .filter(|message| message.get_msg_type() != MessageType::MsgPropose);
    sent.map(|message| Outgoing {
        to: message.to,
        is_snapshot: message.get_msg_type() == MessageType::MsgSnapshot,
        bytes: message.write_to_bytes().unwrap_or_default(),
    })
    .collect()
}

/// Spreads the bits of a number (the finaliser of SplitMix64).
fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}
