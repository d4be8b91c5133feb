//! The consensus engine for its driver in Python.

use std::sync::Mutex;

use coco_core::consensus as core;
use coco_core::consensus::{Change, ConsensusError, Outgoing, Promise, Settings, Slot, Start};
use coco_core::memory;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyTuple};

use crate::errors::NativeError;

impl From<ConsensusError> for NativeError {
    fn from(error: ConsensusError) -> Self {
        let code = match &error {
            ConsensusError::NotLeader(_) => "consensus.not_primary",
            ConsensusError::Dropped => "consensus.dropped",
            ConsensusError::BadMessage(_) => "consensus.bad_message",
            ConsensusError::Invalid(_) => "consensus.invalid",
        };
        Self::new(code, error)
    }
}

type PySlot<'py> = (u64, u64, bool, Bound<'py, PyBytes>, Bound<'py, PyBytes>);
/// Index, term, whether it changes the configuration, context, data.
type StoredSlot = (u64, u64, bool, Vec<u8>, Vec<u8>);
/// Node, matched, whether it is active.
type Standing = (u64, u64, bool);
type Members = (Vec<u64>, Vec<u64>, Vec<u64>);

/// One node's engine. It is gone after a panic: every later call says `native.panic` too.
#[pyclass(frozen, module = "coco._native")]
pub struct Engine {
    engine: Mutex<Option<core::Engine>>,
}

impl Engine {
    fn call<T>(&self, work: impl FnOnce(&mut core::Engine) -> Result<T, ConsensusError>) -> PyResult<T> {
        let broken = || NativeError::new("native.panic", "the consensus engine failed");
        let mut guard = self.engine.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut engine = guard.take().ok_or_else(broken)?;
        let done = memory::unlimited(|| work(&mut engine));
        let result = done.map_err(|_| broken())?;
        *guard = Some(engine);
        Ok(result.map_err(NativeError::from)?)
    }

    fn tell(&self, work: impl FnOnce(&mut core::Engine)) -> PyResult<()> {
        self.call(|engine| {
            work(engine);
            Ok(())
        })
    }

    fn with(engine: Result<core::Engine, ConsensusError>) -> PyResult<Self> {
        Ok(Self {
            engine: Mutex::new(Some(engine.map_err(NativeError::from)?)),
        })
    }
}

fn slot<'py>(py: Python<'py>, slot: &Slot) -> PySlot<'py> {
    (
        slot.index,
        slot.term,
        slot.is_configuration,
        PyBytes::new(py, &slot.context),
        PyBytes::new(py, &slot.data),
    )
}

fn message<'py>(py: Python<'py>, message: &Outgoing) -> (u64, Bound<'py, PyBytes>, bool) {
    (message.to, PyBytes::new(py, &message.bytes), message.is_snapshot)
}

fn members(members: core::Members) -> Members {
    (members.voters, members.learners, members.outgoing)
}

/// Election ticks, heartbeat ticks, bytes in a message, messages in flight, bytes uncommitted, seed.
type PySettings = (usize, usize, u64, usize, u64, u64);
/// Index and term before the first entry, voters, learners.
type PyStart = (u64, u64, Vec<u64>, Vec<u64>);

fn settings(given: PySettings) -> Settings {
    let (election_ticks, heartbeat_ticks, message_bytes, inflight, uncommitted_bytes, seed) = given;
    Settings {
        election_ticks,
        heartbeat_ticks,
        message_bytes,
        inflight,
        uncommitted_bytes,
        seed,
    }
}

fn start((index, term, voters, learners): PyStart) -> Start {
    Start {
        index,
        term,
        voters,
        learners,
    }
}

#[pymethods]
impl Engine {
    #[new]
    fn new(node: u64, begin: PyStart, given: PySettings) -> PyResult<Self> {
        Self::with(core::Engine::new(node, start(begin), settings(given)))
    }

    /// A former life continued from a disk: for experiments only.
    #[staticmethod]
    fn revived(
        node: u64,
        begin: PyStart,
        given: PySettings,
        promise: (u64, u64, u64),
        slots: Vec<StoredSlot>,
    ) -> PyResult<Self> {
        let (term, vote, commit) = promise;
        let slots = slots
            .into_iter()
            .map(|(index, term, is_configuration, context, data)| Slot {
                index,
                term,
                is_configuration,
                context: context.into(),
                data: data.into(),
            })
            .collect();
        let promise = Promise { term, vote, commit };
        Self::with(core::Engine::revived(
            node,
            start(begin),
            settings(given),
            promise,
            slots,
        ))
    }

    fn tick(&self) -> PyResult<()> {
        self.tell(|engine| engine.tick())
    }

    fn receive(&self, sender: u64, message: &[u8]) -> PyResult<()> {
        self.call(|engine| engine.receive(sender, message))
    }

    fn propose(&self, term: u64, context: Vec<u8>, data: Vec<u8>) -> PyResult<()> {
        self.call(|engine| engine.propose(term, context, data))
    }

    fn propose_changes(&self, term: u64, changes: Vec<(String, u64)>) -> PyResult<()> {
        let changes = changes
            .into_iter()
            .map(|(kind, node)| match kind.as_str() {
                "voter" => Ok(Change::Voter(node)),
                "learner" => Ok(Change::Learner(node)),
                "removed" => Ok(Change::Removed(node)),
                _ => Err(NativeError::new("native.argument", "no such change")),
            })
            .collect::<Result<Vec<_>, _>>()?;
        self.call(|engine| engine.propose_changes(term, &changes))
    }

    fn persisted(&self, number: u64) -> PyResult<()> {
        self.tell(|engine| engine.persisted(number))
    }

    fn applied(&self, index: u64) -> PyResult<()> {
        self.tell(|engine| engine.applied(index))
    }

    /// `(voters, learners, outgoing voters)` after a committed change.
    fn apply_change(&self, index: u64, change: &[u8]) -> PyResult<Members> {
        self.call(|engine| engine.apply_change(index, change).map(members))
    }

    fn campaign(&self) -> PyResult<()> {
        self.tell(|engine| engine.campaign())
    }

    fn step_down(&self) -> PyResult<()> {
        self.tell(|engine| engine.step_down())
    }

    fn transfer(&self, node: u64) -> PyResult<()> {
        self.tell(|engine| engine.transfer(node))
    }

    fn read_index(&self, context: &[u8]) -> PyResult<()> {
        self.tell(|engine| engine.read_index(context))
    }

    fn snapshot_sent(&self, node: u64, arrived: bool) -> PyResult<()> {
        self.tell(|engine| engine.snapshot_sent(node, arrived))
    }

    fn offer_snapshot(&self, index: u64, pointer: Vec<u8>) -> PyResult<()> {
        self.tell(|engine| engine.offer_snapshot(index, pointer))
    }

    fn compact(&self, index: u64) -> PyResult<()> {
        self.tell(|engine| engine.compact(index))
    }

    /// `(number, messages, after, slots, promise, snapshot, committed, reads)`, or None.
    fn work<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyTuple>>> {
        let Some(work) = self.call(|engine| Ok(engine.work()))? else {
            return Ok(None);
        };
        let messages = |list: &[Outgoing]| list.iter().map(|one| message(py, one)).collect::<Vec<_>>();
        let slots = |list: &[Slot]| list.iter().map(|one| slot(py, one)).collect::<Vec<_>>();
        let promise = work.promise.map(|p| (p.term, p.vote, p.commit));
        let snapshot = work
            .snapshot
            .map(|(index, pointer)| (index, PyBytes::new(py, &pointer)));
        let reads: Vec<_> = work
            .reads
            .iter()
            .map(|(index, context)| (*index, PyBytes::new(py, context)))
            .collect();
        let committed: Vec<_> = work
            .committed
            .iter()
            .map(|(index, change)| (*index, change.as_ref().map(|change| PyBytes::new(py, change))))
            .collect();
        let tuple = (
            work.number,
            messages(&work.messages),
            messages(&work.after),
            slots(&work.slots),
            promise,
            snapshot,
            committed,
            reads,
        );
        Ok(Some(tuple.into_pyobject(py)?))
    }

    /// `(term, leader, whether this node leads)`.
    fn status(&self) -> PyResult<(u64, u64, bool)> {
        self.call(|engine| {
            let status = engine.status();
            Ok((status.term, status.leader, status.leads))
        })
    }

    fn held_bytes(&self) -> PyResult<usize> {
        self.call(|engine| Ok(engine.held_bytes()))
    }

    fn term_at(&self, index: u64) -> PyResult<u64> {
        self.call(|engine| engine.term_at(index))
    }

    fn members(&self) -> PyResult<Members> {
        self.call(|engine| Ok(members(engine.members())))
    }

    /// `(node, matched, is active)` of each.
    fn progress(&self) -> PyResult<Vec<Standing>> {
        self.call(|engine| {
            Ok(engine
                .progress()
                .into_iter()
                .map(|p| (p.node, p.matched, p.is_active))
                .collect())
        })
    }
}
