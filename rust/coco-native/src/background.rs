//! Calls that run on a thread of the extension while the event loop goes on.
//!
//! A thread of Python's needs the interpreter twice to hand a call on and to take its result, which for a few
//! signatures costs more than the work. Here results are fetched by the event loop itself, many at once.

use std::io::{Read, Write};
use std::mem;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use coco_core::memory;
use pyo3::prelude::*;

use crate::errors::NativeError;

/// Makes the result, once the event loop has the interpreter.
pub type Finish = Box<dyn FnOnce(Python<'_>) -> PyResult<Py<PyAny>> + Send>;
type Job = Box<dyn FnOnce() -> Finish + Send>;
/// Ticket, result or None, exception or None.
type Outcome = (u64, Option<Py<PyAny>>, Option<PyErr>);

struct Done {
    finished: Mutex<Vec<(u64, Finish)>>,
    signal: UnixStream,
}

enum Thread {
    Waiting(Receiver<(u64, Job)>),
    Running,
}

struct Jobs {
    queue: Sender<(u64, Job)>,
    thread: Thread,
    next: u64,
}

/// One thread for calls that are short and many. Its descriptors are made at once, its thread with the first call, so
/// that it can be made before a lock-down and runs under it.
#[pyclass(frozen, module = "coco._native")]
pub struct Background {
    jobs: Mutex<Jobs>,
    done: Arc<Done>,
    heard: UnixStream,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn work(jobs: &Receiver<(u64, Job)>, done: &Done) {
    while let Ok((ticket, job)) = jobs.recv() {
        let finish =
            memory::within(job).unwrap_or_else(|failure| Box::new(move |_| Err(NativeError::from(failure).into())));
        let mut finished = lock(&done.finished);
        finished.push((ticket, finish));
        if finished.len() == 1 {
            // A full pipe is as good a signal.
            drop((&done.signal).write(&[0]));
        }
    }
}

impl Background {
    /// Queue a call; its ticket.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub fn spawn(&self, job: impl FnOnce() -> Finish + Send + 'static) -> Result<u64, NativeError> {
        let failed = |error: &dyn ToString| NativeError::new("native.no_thread", error.to_string());
        let mut jobs = lock(&self.jobs);
        if let Thread::Waiting(queue) = mem::replace(&mut jobs.thread, Thread::Running) {
            let done = Arc::clone(&self.done);
            std::thread::Builder::new()
                .name("coco-background".into())
                .spawn(move || work(&queue, &done))
                .map_err(|error| failed(&error))?;
        }
        jobs.next += 1;
        let ticket = jobs.next;
        jobs.queue
            .send((ticket, Box::new(job)))
            .map_err(|error| failed(&error))?;
        Ok(ticket)
    }
}

#[pymethods]
impl Background {
    #[new]
    fn new() -> PyResult<Self> {
        let pair = || -> std::io::Result<(UnixStream, UnixStream)> {
            let (signal, heard) = UnixStream::pair()?;
            signal.set_nonblocking(true)?;
            heard.set_nonblocking(true)?;
            Ok((signal, heard))
        };
        let (signal, heard) = pair().map_err(|error| NativeError::new("native.no_descriptor", error))?;
        let (queue, waiting) = channel();
        Ok(Self {
            jobs: Mutex::new(Jobs {
                queue,
                thread: Thread::Waiting(waiting),
                next: 0,
            }),
            done: Arc::new(Done {
                finished: Mutex::default(),
                signal,
            }),
            heard,
        })
    }

    /// Readable when `take` has something.
    fn fileno(&self) -> RawFd {
        self.heard.as_raw_fd()
    }

    /// What has finished since the last call.
    fn take(&self, py: Python<'_>) -> Vec<Outcome> {
        let mut bytes = [0; 64];
        while matches!((&self.heard).read(&mut bytes), Ok(count) if count == bytes.len()) {}
        let finished = mem::take(&mut *lock(&self.done.finished));
        finished
            .into_iter()
            .map(|(ticket, finish)| match finish(py) {
                Ok(result) => (ticket, Some(result), None),
                Err(error) => (ticket, None, Some(error)),
            })
            .collect()
    }
}
