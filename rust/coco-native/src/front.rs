//! The front door of a listener, as events and commands.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use coco_core::front::http::HttpLimits;
use coco_core::front::{self as core, Command, Event, Identity, Limits, Protocol};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::{PyBytes, PyList, PyTuple};

use crate::errors::NativeError;
use crate::evm::{Chain, admitted};
use crate::host;

const OPENED: u8 = 0;
const JSON_RPC: u8 = 1;
const REQUEST: u8 = 2;
const DATA: u8 = 3;
const PRESSURE: u8 = 4;
const CLOSED: u8 = 5;
const FAILED: u8 = 6;
const SUBMISSION: u8 = 7;
const NOT_OPENED: u8 = 8;
const MARKED: u8 = 9;

/// Accepts, decrypts and parses on a thread of its own.
#[pyclass(frozen, module = "coco._native")]
pub struct Front {
    front: Mutex<core::Front>,
    dials: bool,
}

impl Front {
    fn lock(&self) -> MutexGuard<'_, core::Front> {
        self.front.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn tuple<'py>(py: Python<'py>, event: Event) -> PyResult<Bound<'py, PyTuple>> {
    let bytes = |data: &[u8]| PyBytes::new(py, data);
    match event {
        Event::Opened { id, peer, dial } => (OPENED, id, peer.as_deref().map(bytes), dial).into_pyobject(py),
        Event::JsonRpc { id, body, freshness } => {
            let floor = freshness.floor.as_deref().map(bytes);
            (JSON_RPC, id, bytes(&body), floor, freshness.linearizable).into_pyobject(py)
        }
        Event::Submission {
            id,
            call,
            method,
            checked,
            time,
        } => {
            let (method, found) = (String::from_utf8_lossy(&method), admitted(py, checked)?);
            (SUBMISSION, id, method, bytes(&call), found, time.as_micros()).into_pyobject(py)
        }
        Event::Request { id, head, body } => {
            let headers = PyList::empty(py);
            for (name, value) in &head.headers {
                headers.append((bytes(name), bytes(value)))?;
            }
            let target = bytes(&head.target);
            (REQUEST, id, head.method, target, headers, bytes(&body), head.upgrade).into_pyobject(py)
        }
        Event::Data { id, bytes: data } => (DATA, id, bytes(&data)).into_pyobject(py),
        Event::Pressure { id, pressed } => (PRESSURE, id, pressed).into_pyobject(py),
        Event::Closed { id } => (CLOSED, id).into_pyobject(py),
        Event::NotOpened { dial } => (NOT_OPENED, dial).into_pyobject(py),
        Event::Marked { mark } => (MARKED, mark).into_pyobject(py),
        Event::Failed => (FAILED, 0).into_pyobject(py),
    }
}

#[pymethods]
impl Front {
    /// Takes the listening socket over: the caller must have detached `descriptor`.
    #[new]
    #[pyo3(signature = (descriptor, *, head_bytes, body_bytes, bodies_bytes, stranger_body_bytes, stranger_bodies_bytes,
                        replies_bytes, connections, strangers, handshakes, stranger_us_per_second, stranger_us, crumbs, unsent_bytes, pressure_bytes, handshake_s,
                        request_s, idle_s, linger_s, protocol))]
    #[expect(clippy::too_many_arguments, reason = "named limits, one argument each")]
    fn new(
        descriptor: RawFd,
        head_bytes: usize,
        body_bytes: usize,
        bodies_bytes: usize,
        stranger_body_bytes: usize,
        stranger_bodies_bytes: usize,
        replies_bytes: usize,
        connections: usize,
        strangers: usize,
        handshakes: usize,
        stranger_us_per_second: u32,
        stranger_us: u32,
        crumbs: (usize, u32, u64),
        unsent_bytes: usize,
        pressure_bytes: usize,
        handshake_s: u64,
        request_s: u64,
        idle_s: u64,
        linger_s: u64,
        protocol: &str,
    ) -> PyResult<Self> {
        let limits = Limits {
            http: HttpLimits { head_bytes, body_bytes },
            bodies_bytes,
            stranger_body_bytes,
            stranger_bodies_bytes,
            replies_bytes,
            connections,
            strangers,
            handshakes,
            stranger_us_per_second,
            stranger_us,
            crumbs: host::limits(crumbs),
            unsent_bytes,
            pressure_bytes,
            handshake_time: Duration::from_secs(handshake_s),
            request_time: Duration::from_secs(request_s),
            idle_time: Duration::from_secs(idle_s),
            linger_time: Duration::from_secs(linger_s),
            protocol: match protocol {
                "http" => Protocol::Http,
                "json_rpc" => Protocol::JsonRpc,
                "peer" => Protocol::Peer,
                "dialled" => Protocol::Dialled,
                other => return Err(NativeError::new("front.bad_protocol", format!("there is no {other}")).into()),
            },
        };
        let dials = limits.protocol == Protocol::Dialled;
        if descriptor < 0 {
            return Err(NativeError::new("front.bad_descriptor", "not a descriptor".to_owned()).into());
        }
        // SAFETY: the caller has given up the descriptor, which is open, so that it has one owner from here on.
        #[expect(unsafe_code, reason = "a descriptor that was inherited can only be adopted")]
        let listener = unsafe { OwnedFd::from_raw_fd(descriptor) };
        let front = core::Front::new(listener, limits)
            .map_err(|error| NativeError::new("front.cannot_listen", error.to_string()))?;
        Ok(Self {
            front: Mutex::new(front),
            dials,
        })
    }

    /// Begin to accept, with a certificate chain and a PKCS#8 key in DER; or change them for what comes from now on.
    fn start(&self, chain: Vec<Vec<u8>>, key: Vec<u8>, ask_client: bool) -> PyResult<()> {
        let identity = if self.dials {
            core::client_config(chain, key).map(Identity::Client)
        } else {
            core::server_config(chain, key, ask_client).map(Identity::Server)
        };
        let identity = identity.map_err(|error| NativeError::new("front.bad_identity", error.to_string()))?;
        Ok(self
            .lock()
            .start(identity)
            .map_err(|error| NativeError::new("front.cannot_start", error.to_string()))?)
    }

    /// Check early what is handed in by `method`, as `chain` admits it.
    fn check(&self, method: &str, chain: &Chain) {
        self.lock().check(method.as_bytes().to_vec(), chain.check_of_one());
    }

    /// Read on from a connection that has shown a certificate, as from somebody who is known and has `paid` for the
    /// handshake or not, or as from a stranger.
    fn admit(&self, id: u64, known: bool, paid: bool) {
        self.lock().command(Command::Admit(id, known, paid));
    }

    /// Submissions of this connection are checked early from now on.
    fn check_early(&self, id: u64) {
        self.lock().command(Command::CheckEarly(id));
    }

    /// Readable when `take` has something.
    fn fileno(&self) -> RawFd {
        self.lock().descriptor().as_raw_fd()
    }

    fn take<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyTuple>>> {
        let events = self.lock().take();
        events.into_iter().map(|event| tuple(py, event)).collect()
    }

    /// The reply of the request under way.
    fn respond(&self, id: u64, status_line: &[u8], headers: Vec<(PyBackedBytes, PyBackedBytes)>, body: &[u8]) {
        let mut head = Vec::with_capacity(256);
        head.extend_from_slice(status_line);
        for (name, value) in &headers {
            for part in [name, &b": "[..], value, b"\r\n"] {
                head.extend_from_slice(part);
            }
        }
        self.lock().command(Command::Respond(id, head, body.to_vec()));
    }

    /// The reply of a JSON-RPC request.
    fn respond_json(&self, id: u64, position: &[u8], body: &[u8]) {
        let mut head = Vec::with_capacity(160);
        head.extend_from_slice(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: ");
        head.extend_from_slice(body.len().to_string().as_bytes());
        head.extend_from_slice(b"\r\nx-ms-ccf-transaction-id: ");
        head.extend_from_slice(position);
        head.extend_from_slice(b"\r\n");
        self.lock().command(Command::Respond(id, head, body.to_vec()));
    }

    fn write(&self, id: u64, data: &[u8]) {
        self.lock().command(Command::Write(id, data.to_vec()));
    }

    fn upgrade(&self, id: u64) {
        self.lock().command(Command::Upgrade(id));
    }

    fn more(&self, id: u64) {
        self.lock().command(Command::More(id));
    }

    fn close(&self, id: u64) {
        self.lock().command(Command::Close(id));
    }

    /// The same, and an event says when it is done.
    fn mark(&self, mark: u64) {
        self.lock().mark(mark);
    }

    /// Have everything since the last call carried out.
    fn flush(&self) {
        self.lock().flush();
    }

    fn stop(&self, py: Python<'_>) {
        py.detach(|| self.lock().stop());
    }
}
