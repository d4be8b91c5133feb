//! The relay of the host.

use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::sync::Mutex;
use std::sync::atomic::Ordering;
use std::time::Duration;

use coco_core::pace::CrumbLimits;
use coco_core::relay as core;
use pyo3::prelude::*;

use crate::errors::NativeError;

pub(crate) fn limits((bytes, most, rest_ms): (usize, u32, u64)) -> CrumbLimits {
    CrumbLimits {
        bytes,
        most,
        rest: Duration::from_millis(rest_ms),
    }
}

/// Carries TCP connections to a local socket; runs on its own thread until `stop`.
#[pyclass(frozen, module = "coco._native")]
pub struct Relay {
    relay: Mutex<core::Relay>,
}

impl Relay {
    fn with<T>(&self, use_it: impl FnOnce(&mut core::Relay) -> T) -> T {
        use_it(&mut self.relay.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }
}

#[pymethods]
impl Relay {
    /// `crumbs`: a read of fewer bytes is one, how many at once, milliseconds in which one more is earned.
    #[new]
    fn new(
        host: &str,
        port: u16,
        target: &str,
        connections_max: usize,
        crumbs: Option<(usize, u32, u64)>,
    ) -> PyResult<Self> {
        let address = host
            .parse()
            .map(|ip| std::net::SocketAddr::new(ip, port))
            .map_err(|_| NativeError::new("host.bad_address", format!("{host} is not an IP address")))?;
        let target = target
            .parse()
            .map_err(|error: std::io::Error| NativeError::new("host.bad_enclave", error.to_string()))?;
        let relay = core::Relay::start(address, target, connections_max, crumbs.map(limits))
            .map_err(|error| NativeError::new("host.cannot_listen", format!("{address}: {error}")))?;
        Ok(Self {
            relay: Mutex::new(relay),
        })
    }

    #[getter]
    fn port(&self) -> u16 {
        self.with(|relay| relay.address().port())
    }

    /// Carry a connected TCP socket to a connected local one; takes both descriptors over.
    fn carry(&self, client: RawFd, enclave: RawFd) -> PyResult<()> {
        if client < 0 || enclave < 0 {
            return Err(NativeError::new("host.bad_descriptor", "not a descriptor").into());
        }
        // SAFETY: the caller has given up both descriptors, which are open, so that they have one owner from here on.
        #[expect(unsafe_code, reason = "descriptors of Python's sockets can only be adopted")]
        let (client, enclave) = unsafe { (OwnedFd::from_raw_fd(client), OwnedFd::from_raw_fd(enclave)) };
        Ok(self
            .with(|relay| relay.carry(client, enclave))
            .map_err(|error| NativeError::new("host.cannot_carry", error))?)
    }

    /// `(accepted, refused, open, bytes_in, bytes_out)`.
    fn counters(&self) -> (u64, u64, u64, u64, u64) {
        self.with(|relay| {
            let c = relay.counters();
            let load = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
            (
                load(&c.accepted),
                load(&c.refused),
                load(&c.open),
                load(&c.bytes_in),
                load(&c.bytes_out),
            )
        })
    }

    fn stop(&self, py: Python<'_>) {
        py.detach(|| self.with(core::Relay::stop));
    }
}
