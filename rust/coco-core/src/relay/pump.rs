//! One direction of a connection that is carried: from one socket into the other.

use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use mio::event::Source;
use mio::net::{TcpStream, UnixStream};
use mio::{Interest, Registry, Token};

use crate::pace::Crumbs;

/// Reads of one direction before other connections get their turn.
const TURNS_MAX: usize = 8;

/// Outward bytes of about one answer, and how many one read can hold at most.
const ANSWER_BYTES: usize = 128;
const ANSWERS_MAX: usize = 8;

#[derive(Default)]
pub(super) struct Direction {
    unwritten: Vec<u8>,
    written: usize,
    pub(super) readable: bool,
    /// The sink would not take more: only then is its becoming writable of interest, because a local stream says so
    /// after every read of its peer, and each time this thread would wake for nothing.
    pub(super) blocked: bool,
    /// What the poll tells of the sink.
    watched: Option<Interest>,
    /// The source has said that it ends: a short read is then not the last one.
    pub(super) ending: bool,
    source_ended: bool,
    pub(super) finished: bool,
    /// What comes in crumbs, of the direction in which that is counted.
    pub(super) crumbs: Option<Crumbs>,
    /// Too many of those: nothing is read for a while, so that they grow together.
    pub(super) resting: bool,
    /// What was read of this direction since that was asked last, as answers to the other.
    answers: usize,
}

impl Direction {
    /// One in which crumbs are counted, if there is a limit.
    pub(super) fn counting(crumbs: Option<Crumbs>) -> Self {
        Self {
            crumbs,
            ..Self::default()
        }
    }

    /// The answers since the last call.
    pub(super) fn take_answers(&mut self) -> u32 {
        // Reads of one turn have a small bound each.
        u32::try_from(std::mem::take(&mut self.answers)).unwrap_or(u32::MAX)
    }
}

pub(super) enum Progress {
    Blocked,
    Again,
    Broken,
}

pub(super) trait Half {
    fn end_writing(&self) -> io::Result<()>;
}

impl Half for TcpStream {
    fn end_writing(&self) -> io::Result<()> {
        self.shutdown(Shutdown::Write)
    }
}

impl Half for UnixStream {
    fn end_writing(&self) -> io::Result<()> {
        self.shutdown(Shutdown::Write)
    }
}

/// Keep the poll's interest in a socket equal to what the direction from it and the one into it need.
pub(super) fn watch(
    registry: &Registry,
    socket: &mut impl Source,
    token: Token,
    from: &Direction,
    into: &mut Direction,
) -> io::Result<()> {
    let interest = interest(!from.resting, into.blocked);
    if interest != into.watched.unwrap_or(Interest::READABLE) {
        registry.reregister(socket, token, interest)?;
        into.watched = Some(interest);
    }
    Ok(())
}

/// What a poll is to tell of a socket. It must tell something: of one that is not read from, that it takes more, which
/// it does only after it took no more.
pub(crate) fn interest(reads: bool, blocked: bool) -> Interest {
    match (reads, blocked) {
        (true, false) => Interest::READABLE,
        (true, true) => Interest::READABLE | Interest::WRITABLE,
        (false, _) => Interest::WRITABLE,
    }
}

pub(super) fn pump<S: Read, D: Write + Half>(
    source: &mut S,
    sink: &mut D,
    state: &mut Direction,
    buffer: &mut [u8],
    counter: &AtomicU64,
    now: Instant,
) -> Progress {
    for _ in 0..TURNS_MAX {
        while state.written < state.unwritten.len() {
            if state.blocked {
                return Progress::Blocked;
            }
            match sink.write(&state.unwritten[state.written..]) {
                Ok(0) => return Progress::Broken,
                Ok(count) => state.written += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => state.blocked = true,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Progress::Broken,
            }
        }
        if !state.unwritten.is_empty() {
            state.unwritten = Vec::new();
            state.written = 0;
        }
        if state.source_ended {
            if !state.finished {
                state.finished = true;
                if sink.end_writing().is_err() {
                    return Progress::Broken;
                }
            }
            return Progress::Blocked;
        }
        if !state.readable || state.resting {
            return Progress::Blocked;
        }
        match source.read(buffer) {
            Ok(0) => state.source_ended = true,
            Ok(count) => {
                counter.fetch_add(count as u64, Ordering::Relaxed);
                // A short read has emptied the socket: the next bytes, or its end, come with an event of their own.
                state.readable = count == buffer.len() || state.ending;
                state.resting = state.crumbs.as_mut().is_some_and(|crumbs| crumbs.read(count, now));
                state.answers += (count / ANSWER_BYTES).clamp(1, ANSWERS_MAX);
                let mut written = 0;
                while written < count {
                    match sink.write(&buffer[written..count]) {
                        Ok(0) => return Progress::Broken,
                        Ok(more) => written += more,
                        Err(error) if error.kind() == ErrorKind::WouldBlock => {
                            state.blocked = true;
                            state.unwritten = buffer[written..count].to_vec();
                            break;
                        }
                        Err(error) if error.kind() == ErrorKind::Interrupted => {}
                        Err(_) => return Progress::Broken,
                    }
                }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                state.readable = false;
                return Progress::Blocked;
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return Progress::Broken,
        }
    }
    Progress::Again
}
