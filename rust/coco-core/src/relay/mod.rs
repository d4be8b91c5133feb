//! The host's hot loop: bytes between TCP connections and the enclave's local listeners.
//!
//! One thread per listener, no parsing: what passes is ciphertext. Memory per connection is bounded: a direction holds
//! at most one unwritten buffer and stops reading until it is gone, so back-pressure reaches the sender's kernel. What
//! comes in crumbs that nobody answers waits a little until it has grown together: each costs two processes a turn.

pub(crate) mod pump;

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mio::net::{TcpListener, TcpStream, UnixStream};
use mio::{Events, Interest, Poll, Token, Waker};
use socket2::{SockAddr, Socket, Type};

use crate::memory;
use crate::pace::{CrumbLimits, Crumbs};
use pump::{Direction, Progress, pump, watch};

const BUFFER_BYTES: usize = 64 * 1024;
const LISTENER: Token = Token(usize::MAX);
const WAKER: Token = Token(usize::MAX - 1);
const CONNECT: Duration = Duration::from_millis(500);
const DIAL_RETRY: Duration = Duration::from_millis(2);
const DIAL_GIVE_UP: Duration = Duration::from_secs(5);

/// Counters that the host may show: sizes and times are visible to it anyway.
#[derive(Debug, Default)]
pub struct Counters {
    /// Connections accepted since the start.
    pub accepted: AtomicU64,
    /// Connections refused because the limit was reached.
    pub refused: AtomicU64,
    /// Connections open now.
    pub open: AtomicU64,
    /// Bytes from clients.
    pub bytes_in: AtomicU64,
    /// Bytes to clients.
    pub bytes_out: AtomicU64,
}

type Dialled = Arc<Mutex<Vec<(TcpStream, UnixStream)>>>;

/// A running relay; dropping it stops it.
pub struct Relay {
    address: SocketAddr,
    counters: Arc<Counters>,
    stop: Arc<AtomicBool>,
    dialled: Dialled,
    waker: Waker,
    thread: Option<JoinHandle<()>>,
}

/// Where the enclave listens.
#[derive(Clone, Debug)]
pub enum Target {
    /// A local socket of a process that this host has started.
    Path(PathBuf),
    /// A port of loopback (under Gramine) or of another virtual machine (vsock).
    Port(SockAddr),
}

impl FromStr for Target {
    type Err = io::Error;

    /// `tcp:ADDRESS:PORT`, `vsock:CID:PORT`, or the path of a local socket.
    fn from_str(text: &str) -> io::Result<Self> {
        let wrong = || io::Error::new(ErrorKind::InvalidInput, format!("no enclave listens at {text}"));
        if let Some(place) = text.strip_prefix("tcp:") {
            return Ok(Self::Port(place.parse::<SocketAddr>().map_err(|_| wrong())?.into()));
        }
        if let Some(place) = text.strip_prefix("vsock:") {
            let (cid, port) = place.split_once(':').ok_or_else(wrong)?;
            let numbers = (cid.parse().map_err(|_| wrong())?, port.parse().map_err(|_| wrong())?);
            return Ok(Self::Port(SockAddr::vsock(numbers.0, numbers.1)));
        }
        Ok(Self::Path(text.into()))
    }
}

impl Target {
    fn connect(&self) -> io::Result<UnixStream> {
        match self {
            Self::Path(path) => UnixStream::connect(path),
            Self::Port(address) => {
                let socket = Socket::new(address.domain(), Type::STREAM, None)?;
                // Loopback and vsock answer at once or not at all: this is no connection over a network.
                socket.connect_timeout(address, CONNECT)?;
                if address.is_ipv4() || address.is_ipv6() {
                    socket.set_tcp_nodelay(true)?;
                }
                socket.set_nonblocking(true)?;
                // Reading, writing and shutting down are the same for every stream socket.
                Ok(UnixStream::from_std(OwnedFd::from(socket).into()))
            }
        }
    }
}

impl Relay {
    /// Listen on `address` and carry every connection to the enclave's listener at `target`; without a limit of crumbs
    /// where nodes tell each other what needs no answer.
    pub fn start(
        address: SocketAddr,
        target: Target,
        connections_max: usize,
        crumbs: Option<CrumbLimits>,
    ) -> io::Result<Self> {
        let mut listener = TcpListener::bind(address)?;
        let address = listener.local_addr()?;
        let poll = Poll::new()?;
        poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
        let waker = Waker::new(poll.registry(), WAKER)?;
        let counters = Arc::new(Counters::default());
        let stop = Arc::new(AtomicBool::new(false));
        let dialled = Dialled::default();
        let mut work = Loop {
            poll,
            listener,
            target,
            connections_max,
            crumbs,
            resting: VecDeque::new(),
            pairs: Vec::new(),
            free: Vec::new(),
            ready: VecDeque::new(),
            waiting: VecDeque::new(),
            buffer: vec![0; BUFFER_BYTES],
            counters: Arc::clone(&counters),
            stop: Arc::clone(&stop),
            dialled: Arc::clone(&dialled),
        };
        let thread = std::thread::Builder::new()
            .name("coco-relay".into())
            .spawn(move || work.run())?;
        Ok(Self {
            address,
            counters,
            stop,
            dialled,
            waker,
            thread: Some(thread),
        })
    }

    /// The address that it listens on.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Counters, live.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Carry a connection that the host has dialled, and whose end in the enclave it has opened; both are connected.
    pub fn carry(&self, client: OwnedFd, enclave: OwnedFd) -> io::Result<()> {
        let client = std::net::TcpStream::from(client);
        let enclave = std::os::unix::net::UnixStream::from(enclave);
        client.set_nonblocking(true)?;
        enclave.set_nonblocking(true)?;
        let pair = (TcpStream::from_std(client), UnixStream::from_std(enclave));
        self.dialled.lock().unwrap_or_else(PoisonError::into_inner).push(pair);
        self.waker.wake()
    }

    /// Close the listener and every connection.
    pub fn stop(&mut self) {
        self.stop.store(true, Ordering::Release);
        let woken = self.waker.wake();
        if let Some(thread) = self.thread.take()
            && woken.is_ok()
        {
            // A panic of the relay thread was already a closed service; there is nothing to add here.
            drop(thread.join());
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.stop();
    }
}

struct Pair {
    client: TcpStream,
    enclave: UnixStream,
    inward: Direction,
    outward: Direction,
}

struct Loop {
    poll: Poll,
    listener: TcpListener,
    target: Target,
    connections_max: usize,
    crumbs: Option<CrumbLimits>,
    /// Connections that come in crumbs, and until when nothing of them is read: the same time for all, so in order.
    resting: VecDeque<(Instant, usize)>,
    pairs: Vec<Option<Pair>>,
    free: Vec<usize>,
    ready: VecDeque<usize>,
    waiting: VecDeque<(TcpStream, Instant)>,
    buffer: Vec<u8>,
    counters: Arc<Counters>,
    stop: Arc<AtomicBool>,
    dialled: Dialled,
}

impl Loop {
    fn run(&mut self) {
        let mut events = Events::with_capacity(1024);
        while !self.stop.load(Ordering::Acquire) {
            let timeout = if !self.ready.is_empty() {
                Some(Duration::ZERO)
            } else if !self.waiting.is_empty() {
                Some(DIAL_RETRY)
            } else {
                let rested = self.resting.front();
                rested.map(|(until, _)| until.saturating_duration_since(Instant::now()))
            };
            match self.poll.poll(&mut events, timeout) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(_) => return,
                Ok(()) => {}
            }
            for event in &events {
                match event.token() {
                    LISTENER => self.accept(),
                    WAKER => {}
                    token => self.note(token, event),
                }
            }
            let now = Instant::now();
            self.end_rests(now);
            self.take_dialled();
            self.dial_waiting();
            for _ in 0..self.ready.len() {
                if let Some(number) = self.ready.pop_front()
                    && memory::within(|| self.serve(number, now)).is_err()
                {
                    self.close(number);
                }
            }
        }
    }

    fn end_rests(&mut self, now: Instant) {
        while let Some((until, number)) = self.resting.front().copied()
            && until <= now
        {
            self.resting.pop_front();
            if let Some(Some(pair)) = self.pairs.get_mut(number) {
                pair.inward.resting = false;
                self.ready.push_back(number);
            }
        }
    }

    fn note(&mut self, token: Token, event: &mio::event::Event) {
        let number = token.0 / 2;
        let Some(Some(pair)) = self.pairs.get_mut(number) else {
            return;
        };
        let readable = event.is_readable() || event.is_read_closed() || event.is_error();
        let writable = event.is_writable() || event.is_error();
        let (from, into) = if token.0.is_multiple_of(2) {
            (&mut pair.inward, &mut pair.outward)
        } else {
            (&mut pair.outward, &mut pair.inward)
        };
        from.readable |= readable;
        from.ending |= event.is_read_closed() || event.is_error();
        into.blocked &= !writable;
        self.ready.push_back(number);
    }

    fn accept(&mut self) {
        loop {
            match self.listener.accept() {
                Ok((client, _)) => {
                    let open = self.pairs.len() - self.free.len() + self.waiting.len();
                    if open >= self.connections_max {
                        self.counters.refused.fetch_add(1, Ordering::Relaxed);
                        continue; // dropping it closes it
                    }
                    self.counters.accepted.fetch_add(1, Ordering::Relaxed);
                    self.waiting.push_back((client, Instant::now()));
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // Out of descriptors, or a connection that died in the queue: the next event tries again.
                Err(_) => return,
            }
        }
    }

    fn take_dialled(&mut self) {
        let dialled = std::mem::take(&mut *self.dialled.lock().unwrap_or_else(PoisonError::into_inner));
        for (client, enclave) in dialled {
            if self.register(client, enclave).is_err() {
                self.counters.refused.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    fn dial_waiting(&mut self) {
        while let Some((client, since)) = self.waiting.pop_front() {
            match self.target.connect() {
                Ok(enclave) => {
                    if self.register(client, enclave).is_err() {
                        self.counters.refused.fetch_add(1, Ordering::Relaxed);
                    }
                }
                // The enclave's backlog is full: keep the client waiting, not the loop.
                Err(_) if since.elapsed() < DIAL_GIVE_UP => {
                    self.waiting.push_front((client, since));
                    return;
                }
                Err(_) => {
                    self.counters.refused.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    }

    fn register(&mut self, mut client: TcpStream, mut enclave: UnixStream) -> io::Result<()> {
        client.set_nodelay(true)?;
        let number = self.free.pop().unwrap_or_else(|| {
            self.pairs.push(None);
            self.pairs.len() - 1
        });
        let registry = self.poll.registry();
        let done = registry
            .register(&mut client, Token(2 * number), Interest::READABLE)
            .and_then(|()| registry.register(&mut enclave, Token(2 * number + 1), Interest::READABLE));
        if let Err(error) = done {
            self.free.push(number);
            return Err(error);
        }
        self.pairs[number] = Some(Pair {
            client,
            enclave,
            inward: Direction::counting(self.crumbs.map(|limits| Crumbs::new(limits, Instant::now()))),
            outward: Direction::default(),
        });
        self.counters.open.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn serve(&mut self, number: usize, now: Instant) {
        let Some(Some(pair)) = self.pairs.get_mut(number) else {
            return;
        };
        let rested = pair.inward.resting;
        let inward = pump(
            &mut pair.client,
            &mut pair.enclave,
            &mut pair.inward,
            &mut self.buffer,
            &self.counters.bytes_in,
            now,
        );
        let outward = pump(
            &mut pair.enclave,
            &mut pair.client,
            &mut pair.outward,
            &mut self.buffer,
            &self.counters.bytes_out,
            now,
        );
        if let Some(crumbs) = &mut pair.inward.crumbs {
            crumbs.answered(pair.outward.take_answers());
            if pair.inward.resting && !rested {
                self.resting.push_back((now + crumbs.rest(), number));
            }
        }
        let over = pair.inward.finished && pair.outward.finished;
        let registry = self.poll.registry();
        let (token, back) = (Token(2 * number), Token(2 * number + 1));
        let watched = watch(registry, &mut pair.client, token, &pair.inward, &mut pair.outward)
            .and_then(|()| watch(registry, &mut pair.enclave, back, &pair.outward, &mut pair.inward));
        match (inward, outward) {
            (Progress::Broken, _) | (_, Progress::Broken) => self.close(number),
            _ if watched.is_err() => self.close(number),
            _ if over => self.close(number),
            (Progress::Again, _) | (_, Progress::Again) => self.ready.push_back(number),
            _ => {}
        }
    }

    fn close(&mut self, number: usize) {
        if let Some(mut pair) = self.pairs[number].take() {
            // Both descriptors close with the pair; deregistering first keeps a stale event from a reused number.
            drop(self.poll.registry().deregister(&mut pair.client));
            drop(self.poll.registry().deregister(&mut pair.enclave));
            self.free.push(number);
            self.counters.open.fetch_sub(1, Ordering::Relaxed);
        }
    }
}
