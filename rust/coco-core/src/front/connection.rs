//! One connection of a listener: its TLS, its requests, and what waits to be written to it.

use std::io::{self, ErrorKind, Read, Write};
use std::mem;
use std::net::Shutdown;
use std::sync::Arc;
use std::time::Instant;

use mio::Interest;
use mio::net::UnixStream;
use rustls::pki_types::{IpAddr, Ipv4Addr, ServerName};
use rustls::{ClientConnection, ServerConnection};

use super::http::{Reader, Refusal, Request, Step};
use super::intake::{Gate, Records, read_cost};
use super::{Event, Freshness, Identity, Limits, Protocol};
use crate::pace::Crumbs;

/// Certificates of a client that are passed on: its leaf, and what stands between that and an organisation.
const CHAIN_MAX: usize = 4;
const READ_BYTES: usize = 16 * 1024;
/// Reads of one connection before others get their turn.
const READS_MAX: usize = 8;
/// Of the number with which a dialled stream begins.
const PREAMBLE_BYTES: usize = 8;
/// An empty buffer larger than this goes back to the allocator: most connections are idle most of the time.
const KEPT_BYTES: usize = 4 * 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The number of a dial is to come.
    Preamble,
    Handshake,
    Http,
    /// Another protocol: plain bytes both ways.
    Upgraded,
    /// Everything is said; what the client still sends is thrown away, so that it can read the last reply.
    Lingering,
}

/// What a turn left the connection in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    Done,
    /// There may be more to read at once.
    Again,
    /// There is something to read, which must wait for its turn at a gate.
    Wait,
    Dead,
}

pub(super) struct Connection {
    pub(super) id: u64,
    pub(super) stream: UnixStream,
    pub(super) readable: bool,
    /// The other side sends no more: what is there is followed by its end, without another event.
    pub(super) ending: bool,
    /// The other side is gone in both directions.
    pub(super) hung_up: bool,
    /// The stream would not take more; the poll must tell when it does.
    pub(super) blocked: bool,
    pub(super) watched: Interest,
    pub(super) queued: bool,
    /// The owner knows who it is: it may send and hold as much as those may.
    pub(super) known: bool,
    /// It has shown who it is, and nothing is read from it until the owner has said whether that counts.
    unadmitted: bool,
    /// Its handshake may go on: it has passed the gate of those.
    pub(super) begun: bool,
    /// It waits at a gate.
    pub(super) waiting: bool,
    /// It may read once, whatever the gate of reads says: it has waited there.
    pub(super) passed: bool,
    /// It came in too many crumbs; nothing is read for a while.
    pub(super) resting: bool,
    /// The owner wants its submissions checked before it hears of them.
    pub(super) checks_early: bool,
    tls: rustls::Connection,
    preamble: Vec<u8>,
    reader: Reader,
    phase: Phase,
    /// A request, or bytes, are with the owner, who has not answered yet.
    busy: bool,
    keep_alive: bool,
    closing: bool,
    pressed: bool,
    out: Vec<u8>,
    written: usize,
    /// When the first byte of an unfinished request came.
    began: Option<Instant>,
    active: Instant,
    accepted: Instant,
    records: Records,
    crumbs: Crumbs,
}

/// A stream that counts what was read, and knows whether the last read can have left something: a short one has emptied
/// it, and what comes later comes with an event of its own.
struct Source<'a> {
    stream: &'a mut UnixStream,
    records: &'a mut Records,
    counted: usize,
    may_hold_more: bool,
}

impl Read for Source<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.stream.read(buffer)?;
        self.may_hold_more = count == buffer.len();
        self.counted += self.records.count(&buffer[..count]);
        Ok(count)
    }
}

impl Connection {
    pub(super) fn new(
        id: u64,
        stream: UnixStream,
        identity: &Identity,
        limits: &Limits,
        now: Instant,
    ) -> Result<Self, rustls::Error> {
        let mut tls: rustls::Connection = match identity {
            Identity::Server(config) => ServerConnection::new(Arc::clone(config))?.into(),
            // Who the other side must be, its owner knows and looks at the key; an address as the name sends none.
            Identity::Client(config) => {
                let nobody = ServerName::IpAddress(IpAddr::V4(Ipv4Addr::from([127, 0, 0, 1])));
                ClientConnection::new(Arc::clone(config), nobody)?.into()
            }
        };
        tls.set_buffer_limit(None); // what waits for a slow reader is bounded here, by `unsent_bytes`
        // What this node has dialled itself, it wants.
        let known = limits.protocol == Protocol::Dialled;
        let mut reader = Reader::new(limits.http);
        if !known {
            reader.allow(limits.stranger_body_bytes);
        }
        Ok(Self {
            id,
            stream,
            readable: false,
            ending: false,
            hung_up: false,
            blocked: false,
            watched: Interest::READABLE,
            queued: false,
            known,
            unadmitted: false,
            begun: known,
            waiting: false,
            passed: false,
            resting: false,
            checks_early: false,
            tls,
            preamble: Vec::new(),
            reader,
            phase: if limits.protocol == Protocol::Dialled {
                Phase::Preamble
            } else {
                Phase::Handshake
            },
            busy: false,
            keep_alive: true,
            closing: false,
            pressed: false,
            out: Vec::new(),
            written: 0,
            began: None,
            active: now,
            accepted: now,
            records: Records::default(),
            crumbs: Crumbs::new(limits.crumbs, now),
        })
    }

    /// Whether the owner has heard of it.
    pub(super) fn is_open(&self) -> bool {
        !matches!(self.phase, Phase::Preamble | Phase::Handshake)
    }

    /// Number of the dial, of a connection that was dialled.
    pub(super) fn dial(&self) -> Option<u64> {
        self.preamble.as_slice().try_into().ok().map(u64::from_be_bytes)
    }

    /// Bytes of requests that it holds.
    pub(super) fn held(&self) -> usize {
        self.reader.held()
    }

    /// Bytes of replies that it holds.
    pub(super) fn unsent(&self) -> usize {
        self.out.len() - self.written
    }

    /// When it was heard of last.
    pub(super) fn active(&self) -> Instant {
        self.active
    }

    // --- from the owner ---

    /// Read on, as somebody who is known or as a stranger.
    pub(super) fn admit(&mut self, known: bool, limits: &Limits) {
        self.unadmitted = false;
        if known {
            self.known = true;
            self.reader.allow(limits.http.body_bytes);
        }
    }

    /// Write the reply of the request under way, whose `head` lacks its last line.
    pub(super) fn respond(&mut self, head: &[u8], body: &[u8]) {
        if self.phase != Phase::Http || !self.busy {
            return;
        }
        let mut reply = Vec::with_capacity(head.len() + body.len() + 24);
        reply.extend_from_slice(head);
        if !self.keep_alive {
            reply.extend_from_slice(b"connection: close\r\n");
            self.closing = true;
        }
        reply.extend_from_slice(b"\r\n");
        reply.extend_from_slice(body);
        self.write(&reply);
        self.busy = false;
        self.crumbs.answered(1);
    }

    /// Write bytes of another protocol.
    pub(super) fn tell(&mut self, data: &[u8]) {
        self.write(data);
        self.crumbs.answered(1);
    }

    fn write(&mut self, data: &[u8]) {
        if self.phase != Phase::Lingering {
            // Writing to memory cannot fail.
            drop(self.tls.writer().write_all(data));
            self.encrypt();
        }
    }

    /// Speak another protocol from now on; what has come after the request belongs to it.
    pub(super) fn upgrade(&mut self) {
        if self.phase == Phase::Http {
            self.phase = Phase::Upgraded;
            self.busy = false;
        }
    }

    /// The owner has taken the last bytes.
    pub(super) fn more(&mut self) {
        if self.phase == Phase::Upgraded {
            self.busy = false;
        }
    }

    /// End once everything is written.
    pub(super) fn close(&mut self) {
        self.closing = true;
    }

    // --- from the socket ---

    /// Write and read as far as it goes.
    pub(super) fn turn(
        &mut self,
        limits: &Limits,
        now: Instant,
        held_by_others: usize,
        reads: &mut Gate,
        events: &mut Vec<Event>,
    ) -> Turn {
        for _ in 0..READS_MAX {
            if self.advance(limits, now, held_by_others, events).is_err() || self.flush(limits, now, events).is_err() {
                return Turn::Dead;
            }
            if self.hung_up && self.busy {
                return Turn::Dead;
            }
            // Nothing would take what is read now; it stays in the kernel, and so does the sender's back-pressure.
            let held_back =
                self.phase != Phase::Lingering && (self.busy || self.unadmitted || self.pressed || self.closing);
            if !self.readable || held_back || self.resting {
                return Turn::Done;
            }
            if !self.begun && self.ending {
                return Turn::Dead; // it has gone without waiting for its handshake
            }
            if !self.may_read(reads, now) {
                return Turn::Wait;
            }
            if self.read(limits, reads, now).is_err() {
                // Tell the client why, if it can still hear it.
                drop(self.flush(limits, now, events));
                return Turn::Dead;
            }
        }
        Turn::Again
    }

    fn may_read(&mut self, reads: &Gate, now: Instant) -> bool {
        self.begun && (self.known || mem::take(&mut self.passed) || reads.is_open(now))
    }

    /// Pay for a read, and rest if there were too many small ones.
    fn pay(&mut self, bytes: usize, records: usize, limits: &Limits, reads: &mut Gate, now: Instant) {
        if !self.known {
            reads.spend(read_cost(bytes, records), now);
        }
        // What nodes of the service tell each other may be short, and must not wait.
        let of_peers = matches!(limits.protocol, Protocol::Peer | Protocol::Dialled);
        if !(self.known && of_peers) && self.crumbs.read(bytes, now) {
            self.resting = true;
        }
    }

    fn read(&mut self, limits: &Limits, reads: &mut Gate, now: Instant) -> io::Result<()> {
        if self.phase == Phase::Lingering {
            let mut thrown_away = [0; READ_BYTES];
            return match self.stream.read(&mut thrown_away) {
                Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
                Ok(count) => {
                    self.pay(count, 0, limits, reads, now);
                    Ok(())
                }
                Err(error) => self.no_read(error),
            };
        }
        if self.phase == Phase::Preamble {
            return self.read_preamble(now);
        }
        let mut source = Source {
            stream: &mut self.stream,
            records: &mut self.records,
            counted: 0,
            may_hold_more: true,
        };
        match self.tls.read_tls(&mut source) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(count) => {
                let records = source.counted;
                self.readable = source.may_hold_more || self.ending;
                self.pay(count, records, limits, reads, now);
            }
            Err(error) => return self.no_read(error),
        }
        let state = self.tls.process_new_packets();
        self.encrypt(); // handshake messages, or the alert that says what was wrong
        let state = state.map_err(|_| io::Error::from(ErrorKind::InvalidData))?;
        let waiting = state.plaintext_bytes_to_read();
        if waiting > 0 {
            self.active = now; // records without anything in them do not keep a connection
            let mut plain = vec![0; waiting];
            self.tls.reader().read_exact(&mut plain)?;
            self.reader.push(&plain);
        }
        if state.peer_has_closed() {
            // TLS cannot stay half open here; requests that came before are still in the reader.
            self.keep_alive = false;
            if !self.busy && self.reader.held() == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(())
    }

    fn read_preamble(&mut self, now: Instant) -> io::Result<()> {
        let mut bytes = [0; PREAMBLE_BYTES];
        match self.stream.read(&mut bytes[self.preamble.len()..]) {
            Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
            Ok(count) => {
                let before = self.preamble.len();
                self.preamble.extend_from_slice(&bytes[before..before + count]);
                if self.preamble.len() == PREAMBLE_BYTES {
                    self.phase = Phase::Handshake;
                    self.active = now;
                    self.encrypt();
                }
                Ok(())
            }
            Err(error) => self.no_read(error),
        }
    }

    fn no_read(&mut self, error: io::Error) -> io::Result<()> {
        match error.kind() {
            ErrorKind::WouldBlock => {
                self.readable = false;
                Ok(())
            }
            ErrorKind::Interrupted => Ok(()),
            _ => Err(error),
        }
    }

    fn encrypt(&mut self) {
        while self.tls.wants_write() {
            // Writing to memory cannot fail.
            drop(self.tls.write_tls(&mut self.out));
        }
    }

    /// Turn the bytes that are there into events.
    fn advance(
        &mut self,
        limits: &Limits,
        now: Instant,
        held_by_others: usize,
        events: &mut Vec<Event>,
    ) -> io::Result<()> {
        if self.phase == Phase::Handshake && !self.tls.is_handshaking() {
            self.phase = match limits.protocol {
                Protocol::Http | Protocol::JsonRpc => Phase::Http,
                Protocol::Peer | Protocol::Dialled => Phase::Upgraded,
            };
            // Who a node is, its key says alone; a client may need what stands between its leaf and an organisation.
            let shown = match limits.protocol {
                Protocol::Http | Protocol::JsonRpc => CHAIN_MAX,
                Protocol::Peer | Protocol::Dialled => 1,
            };
            let peer = self.tls.peer_certificates();
            self.unadmitted = peer.is_some() && !self.known;
            events.push(Event::Opened {
                id: self.id,
                peer: peer.map(|chain| chain.iter().take(shown).flat_map(|one| one.to_vec()).collect()),
                dial: self.dial(),
            });
        }
        if self.busy || self.unadmitted || self.closing || self.pressed {
            return Ok(());
        }
        if self.phase == Phase::Upgraded && self.reader.held() > 0 {
            self.busy = true;
            self.began = None;
            let bytes = self.reader.take_rest();
            events.push(Event::Data { id: self.id, bytes });
        }
        if self.phase != Phase::Http || self.reader.held() == 0 {
            return Ok(());
        }
        let together = if self.known {
            limits.bodies_bytes
        } else {
            limits.stranger_bodies_bytes
        };
        let step = if held_by_others + self.reader.held() > together {
            Err(Refusal::Busy)
        } else {
            self.reader.step()
        };
        match step {
            Ok(Step::Request(request)) => {
                self.began = None;
                self.busy = true;
                self.keep_alive &= request.head.keep_alive;
                events.push(self.event(*request, limits));
            }
            Ok(Step::Wait) => self.began = self.began.or(Some(now)),
            Ok(Step::WaitAfterContinue) => {
                self.began = self.began.or(Some(now));
                self.write(b"HTTP/1.1 100 Continue\r\n\r\n");
            }
            Err(refusal) => {
                self.reader = Reader::new(limits.http);
                let reply = refused(refusal, limits, self.known);
                self.write(&reply);
                self.closing = true;
            }
        }
        Ok(())
    }

    fn event(&self, request: Request, limits: &Limits) -> Event {
        let Request { head, body } = request;
        let id = self.id;
        if limits.protocol == Protocol::JsonRpc && head.method == "POST" && head.target == b"/" && !head.upgrade {
            let freshness = freshness(&head.headers);
            return Event::JsonRpc { id, body, freshness };
        }
        Event::Request { id, head, body }
    }

    fn flush(&mut self, limits: &Limits, now: Instant, events: &mut Vec<Event>) -> io::Result<()> {
        while self.unsent() > 0 && !self.blocked {
            match self.stream.write(&self.out[self.written..]) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(count) => {
                    self.written += count;
                    self.active = now;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.blocked = true,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if self.unsent() == 0 {
            self.written = 0;
            self.out.clear();
            if self.out.capacity() > KEPT_BYTES {
                self.out = Vec::new();
            }
            if self.closing && self.phase != Phase::Lingering {
                self.tls.send_close_notify();
                self.encrypt();
                self.phase = Phase::Lingering;
                // The alert is a few bytes into an empty buffer; if it does not fit, the end itself says enough.
                drop(self.stream.write(&self.out));
                self.out = Vec::new();
                self.stream.shutdown(Shutdown::Write)?;
                self.active = now;
            }
        }
        if self.unsent() > limits.unsent_bytes {
            return Err(ErrorKind::OutOfMemory.into());
        }
        let pressed = self.unsent()
            > if self.pressed {
                limits.pressure_bytes / 4
            } else {
                limits.pressure_bytes
            };
        if pressed != self.pressed {
            self.pressed = pressed;
            if self.is_open() {
                events.push(Event::Pressure { id: self.id, pressed });
            }
        }
        Ok(())
    }

    /// Whether its time is over.
    pub(super) fn is_late(&self, limits: &Limits, now: Instant) -> bool {
        let quiet = now.duration_since(self.active);
        let slow = self
            .began
            .is_some_and(|began| now.duration_since(began) > limits.request_time);
        match self.phase {
            Phase::Preamble | Phase::Handshake => now.duration_since(self.accepted) > limits.handshake_time,
            Phase::Lingering => quiet > limits.linger_time,
            _ if self.unsent() > 0 => quiet > limits.request_time,
            _ if self.busy => false,
            Phase::Http => slow || quiet > limits.idle_time,
            Phase::Upgraded => false,
        }
    }
}

fn freshness(headers: &[(Vec<u8>, Vec<u8>)]) -> Freshness {
    let mut found = Freshness::default();
    for (name, value) in headers {
        if name.eq_ignore_ascii_case(b"coco-min-transaction-id") {
            found.floor = Some(value.clone());
        } else if name.eq_ignore_ascii_case(b"coco-read") {
            found.linearizable |= value.eq_ignore_ascii_case(b"linearizable");
        }
    }
    found
}

fn refused(refusal: Refusal, limits: &Limits, known: bool) -> Vec<u8> {
    let (status, code, message) = match refusal {
        Refusal::Malformed => ("400 Bad Request", "http.malformed", "this is not HTTP/1.1".to_owned()),
        Refusal::HeadTooLarge => (
            "431 Request Header Fields Too Large",
            "http.head_too_large",
            format!("request line and headers exceed {} bytes", limits.http.head_bytes),
        ),
        Refusal::BodyTooLarge => (
            "413 Request Entity Too Large",
            "http.body_too_large",
            if known {
                format!("a body has at most {} bytes", limits.http.body_bytes)
            } else {
                let most = limits.stranger_body_bytes;
                format!("a body of whoever shows no certificate of an actor has at most {most} bytes")
            },
        ),
        Refusal::Busy => (
            "503 Service Unavailable",
            "node.busy",
            "too many requests are arriving at once".to_owned(),
        ),
    };
    let body = format!(r#"{{"error":{{"code":"{code}","message":"{message}"}}}}"#);
    format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}
