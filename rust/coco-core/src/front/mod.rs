//! The enclave's front door: TLS 1.3 of one listener, and what is spoken in it, on one thread, without the
//! interpreter's lock.
//!
//! Whole requests go to the owner as events, replies come back as commands; nothing here decides who may ask what.
//! Memory of a connection is bounded: one request at a time is with the owner, nothing is read meanwhile, and a reader
//! that does not take its replies gets no more of them. Every phase has its time.

mod connection;
pub mod http;
mod intake;
pub mod submission;
mod tls;

use std::collections::{HashMap, VecDeque};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream as StdStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use std::{mem, panic};

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};
use rustls::{ClientConfig, ServerConfig};
use socket2::Socket;

use crate::memory;
use crate::pace::CrumbLimits;
use crate::relay::pump::interest;
use connection::{Connection, Turn};
use http::{Head, HttpLimits};
use intake::Gate;
use submission::{Check, Checked};
pub use tls::{client_config, server_config};

const LISTENER: Token = Token(usize::MAX);
const WAKER: Token = Token(usize::MAX - 1);
const SWEEP: Duration = Duration::from_millis(500);
const ACCEPTS_PER_TURN: usize = 64;
/// Handshakes that begin, and reads of strangers that have waited, before others get their turn.
const HANDSHAKES_PER_TURN: usize = 4;
const WAITED_READS_PER_TURN: usize = 8;
/// A check of a signature takes long enough for the owner to go on meanwhile with those before it.
const CHECKS_PER_PUBLISHING: usize = 4;
const INDEX_BITS: u32 = 32;

/// What is spoken on a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1.
    Http,
    /// The same; `POST /` comes as [`Event::JsonRpc`].
    JsonRpc,
    /// Plain bytes of a peer, who has dialled this node.
    Peer,
    /// Plain bytes of a peer whom the host has dialled for this node. A stream begins with eight bytes of the host's
    /// in the clear, the number of the dial; then this side speaks TLS as the client.
    Dialled,
}

/// Who this node is, as the server or as the client of its connections.
#[derive(Clone)]
pub enum Identity {
    /// Connections are accepted from outside.
    Server(Arc<ServerConfig>),
    /// Connections lead outside: for [`Protocol::Dialled`].
    Client(Arc<ClientConfig>),
}

/// What a listener allows; see `coco.limits`.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Of one request.
    pub http: HttpLimits,
    /// Requests that all connections may hold at once.
    pub bodies_bytes: usize,
    /// Body of one request of whoever is not known.
    pub stranger_body_bytes: usize,
    /// Requests that all of those may hold at once.
    pub stranger_bodies_bytes: usize,
    /// Replies that all connections may hold at once; the one with the most is cut beyond that.
    pub replies_bytes: usize,
    /// Connections at once.
    pub connections: usize,
    /// Those of them whose holders are not known; the one that was quiet longest is cut beyond that.
    pub strangers: usize,
    /// Those of them whose handshake is not done; the same.
    pub handshakes: usize,
    /// Time of this thread that handshakes, and as much that reads, of those who are not known may take: microseconds of
    /// each second, and at once.
    pub stranger_us_per_second: u32,
    /// The same, at once.
    pub stranger_us: u32,
    /// What comes in crumbs.
    pub crumbs: CrumbLimits,
    /// Unsent bytes of one connection, after which it is cut.
    pub unsent_bytes: usize,
    /// Unsent bytes of one connection, after which it gets no more.
    pub pressure_bytes: usize,
    /// For the handshake.
    pub handshake_time: Duration,
    /// From the first byte of a request to its last, and for a reader that takes nothing.
    pub request_time: Duration,
    /// Without any request.
    pub idle_time: Duration,
    /// After the last reply.
    pub linger_time: Duration,
    /// What it speaks.
    pub protocol: Protocol,
}

/// How new an answer must be, as a client's headers say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Freshness {
    /// `coco-min-transaction-id`: not before this transaction.
    pub floor: Option<Vec<u8>>,
    /// `coco-read: linearizable`: not before anything that is committed by now.
    pub linearizable: bool,
}

/// What the owner hears. An id is never used again.
#[derive(Debug)]
pub enum Event {
    /// A handshake is done.
    Opened {
        /// Connection.
        id: u64,
        /// DER of the other side's certificates, one after another, first the one whose key it holds; of a node that alone.
        peer: Option<Vec<u8>>,
        /// Number of the dial, of a connection that was dialled.
        dial: Option<u64>,
    },
    /// `POST /`.
    JsonRpc {
        /// Connection, which waits for [`Command::Respond`].
        id: u64,
        /// Its body.
        body: Vec<u8>,
        /// What it says of how new its answer must be.
        freshness: Freshness,
    },
    /// The same, of a connection whose submissions are checked early, with one transaction for a method that has a check.
    Submission {
        /// Connection, which waits for [`Command::Respond`].
        id: u64,
        /// The caller's name for the call, as JSON.
        call: Vec<u8>,
        /// Its method.
        method: Vec<u8>,
        /// The transaction.
        checked: Checked,
        /// What the check took.
        time: Duration,
    },
    /// Any other request.
    Request {
        /// Connection, which waits for [`Command::Respond`] or [`Command::Upgrade`].
        id: u64,
        /// Request line and headers.
        head: Head,
        /// Its body.
        body: Vec<u8>,
    },
    /// Bytes after an upgrade.
    Data {
        /// Connection, which waits for [`Command::More`].
        id: u64,
        /// The bytes.
        bytes: Vec<u8>,
    },
    /// The client reads too slowly, or has caught up.
    Pressure {
        /// Connection.
        id: u64,
        /// It reads too slowly.
        pressed: bool,
    },
    /// The connection is gone.
    Closed {
        /// Connection.
        id: u64,
    },
    /// A connection that was dialled is gone before its handshake was done.
    NotOpened {
        /// Number of the dial.
        dial: u64,
    },
    /// What was commanded before [`Front::mark`] is done, and written as far as the other sides take it.
    Marked {
        /// The owner's number.
        mark: u64,
    },
    /// The thread has failed; nothing comes any more.
    Failed,
}

/// What the owner asks for; a connection that is gone ignores it.
#[derive(Debug)]
pub enum Command {
    /// The reply: status line and headers without the empty line, and body.
    Respond(u64, Vec<u8>, Vec<u8>),
    /// Bytes as they are.
    Write(u64, Vec<u8>),
    /// The connection speaks another protocol from now on.
    Upgrade(u64),
    /// The last [`Event::Data`] is taken.
    More(u64),
    /// Whether the owner knows the holder of the certificate that the connection has shown, who is read from only then;
    /// and whether that holder has paid for the handshake.
    Admit(u64, bool, bool),
    /// Submissions of this connection are checked early from now on.
    CheckEarly(u64),
    /// End after what is written.
    Close(u64),
}

#[derive(Default)]
struct Inbox {
    commands: Vec<Command>,
    identity: Option<Identity>,
    checks: Vec<(Vec<u8>, Check)>,
    marks: Vec<u64>,
    stop: bool,
}

struct Shared {
    events: Mutex<Vec<Event>>,
    inbox: Mutex<Inbox>,
    signal: StdStream,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A listener and its thread; dropping it stops it.
pub struct Front {
    shared: Arc<Shared>,
    waker: Waker,
    heard: StdStream,
    idle: Option<(Poll, Socket, Limits)>,
    thread: Option<JoinHandle<()>>,
}

impl Front {
    /// Take over a listening socket. Makes every descriptor that it will need besides those of connections, so that it
    /// can be made before a lock-down and started after it.
    pub fn new(listener: OwnedFd, limits: Limits) -> io::Result<Self> {
        let listener = Socket::from(listener);
        listener.set_nonblocking(true)?;
        let poll = Poll::new()?;
        poll.registry()
            .register(&mut SourceFd(&listener.as_raw_fd()), LISTENER, Interest::READABLE)?;
        let waker = Waker::new(poll.registry(), WAKER)?;
        let (signal, heard) = StdStream::pair()?;
        signal.set_nonblocking(true)?;
        heard.set_nonblocking(true)?;
        let shared = Arc::new(Shared {
            events: Mutex::default(),
            inbox: Mutex::default(),
            signal,
        });
        Ok(Self {
            shared,
            waker,
            heard,
            idle: Some((poll, listener, limits)),
            thread: None,
        })
    }

    /// Begin to accept; or, once begun, be somebody else towards the connections that come from now on.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub fn start(&mut self, identity: Identity) -> io::Result<()> {
        let Some((poll, listener, limits)) = self.idle.take() else {
            lock(&self.shared.inbox).identity = Some(identity);
            self.flush();
            return Ok(());
        };
        let shared = Arc::clone(&self.shared);
        let gate = || Gate::new(limits.stranger_us_per_second, limits.stranger_us, Instant::now());
        let mut work = Loop {
            handshakes: gate(),
            reads: gate(),
            resting: VecDeque::new(),
            poll,
            listener,
            limits,
            identity,
            shared: Arc::clone(&shared),
            slots: Vec::new(),
            free: Vec::new(),
            ready: Vec::new(),
            events: Vec::new(),
            checks: HashMap::new(),
            marks: Vec::new(),
            checked: 0,
            accepting: true,
            open: 0,
            opened: [0; 2],
            held: [0; 2],
            unsent: 0,
        };
        self.thread = Some(std::thread::Builder::new().name("coco-front".into()).spawn(move || {
            let ended = panic::catch_unwind(panic::AssertUnwindSafe(|| work.run()));
            if !matches!(ended, Ok(Ok(()))) {
                publish(&shared, &mut vec![Event::Failed]);
            }
        })?);
        Ok(())
    }

    /// Becomes readable when there are events.
    #[must_use]
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.heard.as_fd()
    }

    /// The events since the last call.
    pub fn take(&self) -> Vec<Event> {
        let mut bytes = [0; 64];
        while matches!((&self.heard).read(&mut bytes), Ok(count) if count == bytes.len()) {}
        mem::take(&mut lock(&self.shared.events))
    }

    /// Queue a command; it is carried out after [`Front::flush`].
    pub fn command(&self, command: Command) {
        lock(&self.shared.inbox).commands.push(command);
    }

    /// Check early what is handed in by `method`, from now on.
    pub fn check(&self, method: Vec<u8>, check: Check) {
        lock(&self.shared.inbox).checks.push((method, check));
        self.flush();
    }

    /// Have the queued commands carried out, and [`Event::Marked`] say when that is done.
    pub fn mark(&self, mark: u64) {
        lock(&self.shared.inbox).marks.push(mark);
        self.flush();
    }

    /// Have the queued commands carried out.
    pub fn flush(&self) {
        // Without a waker the thread would sleep over it until its next sweep: late, not lost.
        drop(self.waker.wake());
    }

    /// Carry out what is queued, then close everything.
    pub fn stop(&mut self) {
        lock(&self.shared.inbox).stop = true;
        self.flush();
        if let Some(thread) = self.thread.take() {
            drop(thread.join()); // it never unwinds
        }
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        self.stop();
    }
}

fn publish(shared: &Shared, events: &mut Vec<Event>) {
    if events.is_empty() {
        return;
    }
    let mut all = lock(&shared.events);
    let first = all.is_empty();
    all.append(events);
    drop(all);
    if first {
        // A full pipe is as good a signal.
        drop((&shared.signal).write(&[0]));
    }
}

/// The submission that an event is, if it is one that is checked here.
fn check(event: &Event, checks: &HashMap<Vec<u8>, Check>) -> Option<Event> {
    let Event::JsonRpc { id, body, freshness } = event else {
        return None;
    };
    let call = submission::read(body)?;
    let check = checks.get(call.method)?;
    // Who wants more than any answer waits for it before anything else.
    if *freshness != Freshness::default() {
        return None;
    }
    // A check that fails is made again where that becomes an error.
    let began = Instant::now();
    let checked = memory::within(|| check(&call.raw)).ok()?;
    Some(Event::Submission {
        id: *id,
        call: call.id.to_vec(),
        method: call.method.to_vec(),
        checked,
        time: began.elapsed(),
    })
}

struct Loop {
    poll: Poll,
    /// Of whatever family: a local one, loopback, or vsock.
    listener: Socket,
    limits: Limits,
    identity: Identity,
    shared: Arc<Shared>,
    /// Connections by their index, with the number of times that the index was used.
    slots: Vec<(u32, Option<Box<Connection>>)>,
    free: Vec<usize>,
    ready: Vec<usize>,
    /// Those who wait until there is time for their handshake.
    handshakes: Gate,
    /// The same for what else strangers send.
    reads: Gate,
    /// Those who came in crumbs, and until when nothing of them is read: the same time for all, so in order.
    resting: VecDeque<(Instant, usize)>,
    events: Vec<Event>,
    /// What submissions are checked by, for each method.
    checks: HashMap<Vec<u8>, Check>,
    /// The owner's marks whose commands were obeyed, until what these led to is written.
    marks: Vec<u64>,
    /// Checks since events were published.
    checked: usize,
    accepting: bool,
    open: usize,
    /// Connections whose handshake is done: of strangers, and of those who are known.
    opened: [usize; 2],
    /// Bytes of requests that they hold.
    held: [usize; 2],
    /// Bytes of replies that all hold.
    unsent: usize,
}

impl Loop {
    fn run(&mut self) -> io::Result<()> {
        let mut polled = Events::with_capacity(1024);
        let mut next_sweep = Instant::now() + SWEEP;
        loop {
            let wait = if self.ready.is_empty() {
                self.due(next_sweep).saturating_duration_since(Instant::now())
            } else {
                Duration::ZERO
            };
            match self.poll.poll(&mut polled, Some(wait)) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                other => other?,
            }
            let now = Instant::now();
            self.release(now);
            for event in &polled {
                match event.token() {
                    LISTENER => self.accepting = true,
                    WAKER => {}
                    token => self.note(token.0, event),
                }
            }
            let stop = self.obey();
            if self.accepting {
                self.accept(now);
            }
            let mut stop = stop;
            for index in mem::take(&mut self.ready) {
                if memory::within(|| self.serve(index, now)).is_err() {
                    // What one connection brings ends that connection at most (G3).
                    self.count_all();
                    self.drop_connection(index);
                }
                if self.checked >= CHECKS_PER_PUBLISHING {
                    self.publish();
                    stop |= self.obey();
                }
            }
            if stop {
                return Ok(());
            }
            if now >= next_sweep {
                self.sweep(now);
                next_sweep = now + SWEEP;
            }
            if self.ready.is_empty() {
                self.events
                    .extend(self.marks.drain(..).map(|mark| Event::Marked { mark }));
            }
            self.publish();
        }
    }

    /// When there is something to do without any event.
    fn due(&self, sweep: Instant) -> Instant {
        let rested = self.resting.front().map(|(until, _)| *until);
        let all = [self.handshakes.due(), self.reads.due(), rested];
        all.into_iter().flatten().fold(sweep, Instant::min)
    }

    /// Let those go on whose time has come.
    fn release(&mut self, now: Instant) {
        for _ in 0..HANDSHAKES_PER_TURN {
            let Some(index) = self.handshakes.next(now) else { break };
            if let Some((_, Some(connection))) = self.slots.get_mut(index)
                && mem::take(&mut connection.waiting)
            {
                connection.begun = true;
                self.handshakes.spend(intake::HANDSHAKE, now);
                self.enqueue(index);
            }
        }
        for _ in 0..WAITED_READS_PER_TURN {
            let Some(index) = self.reads.next(now) else { break };
            if let Some((_, Some(connection))) = self.slots.get_mut(index)
                && mem::take(&mut connection.waiting)
            {
                connection.passed = true;
                self.enqueue(index);
            }
        }
        while let Some((until, index)) = self.resting.front().copied()
            && until <= now
        {
            self.resting.pop_front();
            if let Some((_, Some(connection))) = self.slots.get_mut(index) {
                connection.resting = false;
                self.enqueue(index);
            }
        }
    }

    fn publish(&mut self) {
        self.checked = 0;
        publish(&self.shared, &mut self.events);
    }

    fn note(&mut self, index: usize, event: &mio::event::Event) {
        if let Some((_, Some(connection))) = self.slots.get_mut(index) {
            connection.readable |= event.is_readable() || event.is_read_closed() || event.is_error();
            connection.blocked &= !(event.is_writable() || event.is_error());
            connection.ending |= event.is_read_closed() || event.is_error();
            connection.hung_up |= event.is_write_closed() || event.is_error();
            self.enqueue(index);
        }
    }

    fn enqueue(&mut self, index: usize) {
        if let Some((_, Some(connection))) = self.slots.get_mut(index)
            && !mem::replace(&mut connection.queued, true)
        {
            self.ready.push(index);
        }
    }

    fn obey(&mut self) -> bool {
        let inbox = mem::take(&mut *lock(&self.shared.inbox));
        if let Some(identity) = inbox.identity {
            self.identity = identity;
        }
        self.checks.extend(inbox.checks);
        self.marks.extend(inbox.marks);
        for command in inbox.commands {
            let (Command::Respond(id, ..)
            | Command::Write(id, _)
            | Command::Upgrade(id)
            | Command::More(id)
            | Command::Admit(id, ..)
            | Command::CheckEarly(id)
            | Command::Close(id)) = command;
            let index = (id & u64::from(u32::MAX)) as usize;
            let Some((_, Some(connection))) = self.slots.get_mut(index) else {
                continue;
            };
            if connection.id != id {
                continue;
            }
            let unsent = connection.unsent();
            match command {
                Command::Respond(_, head, body) => connection.respond(&head, &body),
                Command::Write(_, data) => connection.tell(&data),
                Command::Upgrade(_) => connection.upgrade(),
                Command::More(_) => connection.more(),
                Command::Admit(_, known, paid) => {
                    if known && paid {
                        self.handshakes.give_back(intake::HANDSHAKE);
                    }
                    let before = usize::from(connection.known);
                    connection.admit(known, &self.limits);
                    let now = usize::from(connection.known);
                    for (counts, count) in [(&mut self.opened, 1), (&mut self.held, connection.held())] {
                        counts[before] -= count;
                        counts[now] += count;
                    }
                }
                Command::CheckEarly(_) => connection.checks_early = true,
                Command::Close(_) => connection.close(),
            }
            self.unsent = self.unsent + connection.unsent() - unsent;
            self.enqueue(index);
        }
        inbox.stop
    }

    fn accept(&mut self, now: Instant) {
        for _ in 0..ACCEPTS_PER_TURN {
            match self.listener.accept() {
                // Over the limit, or out of memory for TLS: dropping it closes it.
                Ok((stream, _)) if self.open < self.limits.connections => drop(self.take(stream, now)),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => {
                    // Nobody waits; or out of descriptors, and then the next event or sweep tries again.
                    self.accepting = false;
                    return;
                }
            }
        }
        // Some may still wait, and no event tells of them again: registering anew does, in the next turn.
        let registry = self.poll.registry();
        let mut listener = SourceFd(&self.listener.as_raw_fd());
        drop(registry.reregister(&mut listener, LISTENER, Interest::READABLE));
    }

    fn take(&mut self, stream: Socket, now: Instant) -> Result<(), Box<dyn std::error::Error>> {
        stream.set_nonblocking(true)?;
        // Reading, writing and shutting down are the same for every stream socket.
        let stream = StdStream::from(OwnedFd::from(stream));
        self.register(mio::net::UnixStream::from_std(stream), now)
    }

    fn register(&mut self, mut stream: mio::net::UnixStream, now: Instant) -> Result<(), Box<dyn std::error::Error>> {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push((0, None));
            self.slots.len() - 1
        });
        let (uses, slot) = &mut self.slots[index];
        let made = self
            .poll
            .registry()
            .register(&mut stream, Token(index), Interest::READABLE)
            .map_err(Into::into)
            .and_then(|()| {
                let id = u64::from(*uses) << INDEX_BITS | index as u64;
                let connection = Connection::new(id, stream, &self.identity, &self.limits, now)?;
                Ok(Box::new(connection))
            });
        match made {
            Ok(connection) => {
                *slot = Some(connection);
                self.open += 1;
                if self.open - self.opened[0] - self.opened[1] > self.limits.handshakes {
                    self.cut_quietest(|connection| !connection.is_open());
                }
                Ok(())
            }
            Err(error) => {
                self.free.push(index);
                Err(error)
            }
        }
    }

    fn serve(&mut self, index: usize, now: Instant) {
        let Some((_, Some(connection))) = self.slots.get_mut(index) else {
            return;
        };
        connection.queued = false;
        let (class, was_open) = (usize::from(connection.known), connection.is_open());
        let others = self.held[class] - connection.held();
        let unsent = self.unsent - connection.unsent();
        let (first, rested) = (self.events.len(), connection.resting);
        let turn = connection.turn(&self.limits, now, others, &mut self.reads, &mut self.events);
        if connection.resting && !rested {
            self.resting.push_back((now + self.limits.crumbs.rest, index));
        }
        if turn == Turn::Wait && !mem::replace(&mut connection.waiting, true) {
            let gate = if connection.begun {
                &mut self.reads
            } else {
                &mut self.handshakes
            };
            gate.wait(index);
        }
        self.held[class] = others + connection.held();
        self.unsent = unsent + connection.unsent();
        let opens = connection.is_open() && !was_open;
        self.opened[class] += usize::from(opens);
        if connection.checks_early {
            for event in &mut self.events[first..] {
                if let Some(submission) = check(event, &self.checks) {
                    *event = submission;
                    self.checked += 1;
                }
            }
        }
        let mut dead = turn == Turn::Dead;
        // Whoever is not read from now must not wake this thread with each byte either.
        let interest = interest(!connection.resting && !connection.waiting, connection.blocked);
        if !dead && interest != connection.watched {
            let registry = self.poll.registry();
            dead = registry
                .reregister(&mut connection.stream, Token(index), interest)
                .is_err();
            connection.watched = interest;
        }
        if dead {
            self.drop_connection(index);
        } else if turn == Turn::Again {
            self.enqueue(index);
        }
        if opens && self.opened[0] > self.limits.strangers {
            self.cut_quietest(|connection| connection.is_open() && !connection.known);
        }
        while self.unsent > self.limits.replies_bytes && self.cut_fullest() {}
    }

    /// Make place for somebody new among those who only stay.
    fn cut_quietest(&mut self, among: impl Fn(&Connection) -> bool) {
        let open = self.slots.iter().enumerate();
        let those =
            open.filter_map(|(index, (_, slot))| slot.as_ref().filter(|one| among(one)).map(|one| (index, one)));
        if let Some((index, _)) = those.min_by_key(|(_, connection)| connection.active()) {
            self.drop_connection(index);
        }
    }

    /// End the connection that holds the most of what nobody reads.
    fn cut_fullest(&mut self) -> bool {
        let open = self.slots.iter().enumerate();
        let those = open.filter_map(|(index, (_, slot))| slot.as_ref().map(|one| (one.unsent(), index)));
        let Some((_, index)) = those.max().filter(|(unsent, _)| *unsent > 0) else {
            return false;
        };
        self.drop_connection(index);
        true
    }

    /// Count anew what was not counted when a call ended early.
    fn count_all(&mut self) {
        (self.opened, self.held, self.unsent) = ([0; 2], [0; 2], 0);
        for connection in self.slots.iter().filter_map(|(_, slot)| slot.as_ref()) {
            let class = usize::from(connection.known);
            self.opened[class] += usize::from(connection.is_open());
            self.held[class] += connection.held();
            self.unsent += connection.unsent();
        }
    }

    fn sweep(&mut self, now: Instant) {
        self.accepting = true;
        for index in 0..self.slots.len() {
            if let (_, Some(connection)) = &self.slots[index]
                && connection.is_late(&self.limits, now)
            {
                self.drop_connection(index);
            }
        }
    }

    fn drop_connection(&mut self, index: usize) {
        let (uses, slot) = &mut self.slots[index];
        if let Some(mut connection) = slot.take() {
            *uses = uses.wrapping_add(1);
            let class = usize::from(connection.known);
            self.held[class] -= connection.held();
            self.unsent -= connection.unsent();
            if connection.is_open() {
                self.opened[class] -= 1;
                self.events.push(Event::Closed { id: connection.id });
            } else if let Some(dial) = connection.dial() {
                self.events.push(Event::NotOpened { dial });
            }
            // Deregistering first keeps a stale event from whoever gets the index next.
            drop(self.poll.registry().deregister(&mut connection.stream));
            self.free.push(index);
            self.open -= 1;
        }
    }
}
