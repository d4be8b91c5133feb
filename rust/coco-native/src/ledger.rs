//! Merkle tree, secrets, sealing, entries.

use std::sync::Mutex;

use coco_core::claims;
use coco_core::merkle;
use coco_core::secret as core;
use coco_core::store::Domain;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::errors::{NativeError, guarded, whole};
use crate::store::WriteSet;

fn hash(value: &[u8], what: &str) -> PyResult<[u8; 32]> {
    value
        .try_into()
        .map_err(|_| NativeError::new("native.argument", format!("{what} must have 32 bytes")).into())
}

/// The ledger's tree.
#[pyclass(module = "coco._native")]
#[derive(Default)]
pub struct MerkleTree {
    tree: merkle::MerkleTree,
}

#[pymethods]
impl MerkleTree {
    #[new]
    fn new() -> Self {
        Self::default()
    }

    fn __len__(&self) -> usize {
        self.tree.len() as usize
    }

    fn append(&mut self, leaf: &[u8]) -> PyResult<()> {
        self.tree.append(hash(leaf, "a leaf")?);
        Ok(())
    }

    fn truncate(&mut self, leaves: u64) -> PyResult<()> {
        if leaves == 0 || leaves > self.tree.len() {
            return Err(NativeError::new("native.argument", "the tree has no such size").into());
        }
        self.tree.truncate(leaves);
        Ok(())
    }

    fn leaf<'py>(&self, py: Python<'py>, index: u64) -> Option<Bound<'py, PyBytes>> {
        self.tree.leaf(index).map(|leaf| PyBytes::new(py, &leaf))
    }

    /// The leaves `first` to `last`, 32 bytes each.
    fn leaves<'py>(&self, py: Python<'py>, first: u64, last: u64) -> PyResult<Bound<'py, PyBytes>> {
        let leaves: Option<Vec<[u8; 32]>> = (first..=last).map(|index| self.tree.leaf(index)).collect();
        let leaves = leaves.ok_or_else(|| NativeError::new("native.argument", "the tree has no such leaf"))?;
        Ok(PyBytes::new(py, leaves.as_flattened()))
    }

    #[pyo3(signature = (leaves = None))]
    fn root<'py>(&self, py: Python<'py>, leaves: Option<u64>) -> PyResult<Bound<'py, PyBytes>> {
        let root = self.tree.root_of(leaves.unwrap_or_else(|| self.tree.len()));
        let root = root.ok_or_else(|| NativeError::new("native.argument", "the tree has no such size"))?;
        Ok(PyBytes::new(py, &root))
    }

    fn proof<'py>(&self, py: Python<'py>, index: u64, leaves: u64) -> PyResult<Vec<(bool, Bound<'py, PyBytes>)>> {
        let steps = self.tree.proof(index, leaves);
        let steps = steps.ok_or_else(|| NativeError::new("native.argument", "the tree has no such leaf"))?;
        Ok(steps
            .into_iter()
            .map(|step| (step.left, PyBytes::new(py, &step.hash)))
            .collect())
    }

    fn serialise<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.tree.serialise())
    }
}

/// The claims of one entry, item by item: see `coco_core::claims`.
#[pyclass(module = "coco._native")]
pub struct ClaimTree {
    tree: claims::ClaimTree,
}

#[pymethods]
impl ClaimTree {
    #[new]
    fn new(secret: &[u8]) -> PyResult<Self> {
        let secret = claims::Secret(hash(secret, "a secret")?);
        Ok(Self {
            tree: claims::ClaimTree::new(secret, 0),
        })
    }

    fn extend(&mut self, items: Vec<Vec<u8>>) {
        for item in items {
            self.tree.push(&item);
        }
    }

    fn root<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        let root = self.tree.root();
        let root = root.ok_or_else(|| NativeError::new("native.argument", "no claim has so many items"))?;
        Ok(PyBytes::new(py, &root))
    }

    /// `(salt, path)` of one item.
    fn proof<'py>(&self, py: Python<'py>, index: u32) -> PyResult<(Bound<'py, PyBytes>, Vec<Bound<'py, PyBytes>>)> {
        let path = self.tree.path(index as usize);
        let path = path.ok_or_else(|| NativeError::new("native.argument", "the claim has no such item"))?;
        let salt = PyBytes::new(py, &self.tree.salt(index));
        Ok((salt, path.iter().map(|node| PyBytes::new(py, node)).collect()))
    }
}

/// Root secret of one epoch; its bytes never reach Python.
#[pyclass(frozen, module = "coco._native")]
pub struct LedgerSecret {
    secret: core::LedgerSecret,
}

#[pymethods]
impl LedgerSecret {
    #[staticmethod]
    #[pyo3(signature = (extra = b"".as_slice()))]
    fn generate(extra: &[u8]) -> PyResult<Self> {
        Ok(Self {
            secret: core::LedgerSecret::generate(extra).map_err(NativeError::from)?,
        })
    }

    #[staticmethod]
    fn unwrap(wrapped: &[u8], key: &WrappingKey, aad: &[u8]) -> PyResult<Self> {
        let secret = core::LedgerSecret::unwrap(wrapped, &key.key, aad).map_err(NativeError::from)?;
        Ok(Self { secret })
    }

    fn wrap<'py>(&self, py: Python<'py>, key: &WrappingKey, aad: &[u8]) -> PyResult<Bound<'py, PyBytes>> {
        Ok(PyBytes::new(
            py,
            &self.secret.wrap(&key.key, aad).map_err(NativeError::from)?,
        ))
    }

    fn wrapping_key(&self) -> WrappingKey {
        WrappingKey {
            key: self.secret.wrapping_key(),
        }
    }

    /// HMAC-SHA-256 over the state tables of `store` under this epoch's digest key (K6).
    fn state_digest<'py>(&self, py: Python<'py>, store: &crate::store::Store) -> PyResult<Bound<'py, PyBytes>> {
        store.digest_with(py, self.secret.digest_key())
    }

    #[getter]
    fn fingerprint<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.secret.fingerprint())
    }

    fn commit_evidence(&self, view: u64, seqno: u64) -> String {
        self.secret.commit_evidence(view, seqno)
    }

    fn claims_salt<'py>(&self, py: Python<'py>, view: u64, seqno: u64) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.secret.claims_salt(view, seqno))
    }

    fn snapshot_cipher(&self, salt: &[u8], seqno: u64) -> PyResult<SnapshotCipher> {
        let salt = hash(salt, "a salt")?;
        Ok(SnapshotCipher {
            cipher: Mutex::new(self.secret.snapshot_cipher(&salt, seqno)),
        })
    }

    /// The write set of a sealed entry; fails unless this secret sealed it.
    fn open(&self, py: Python<'_>, entry: &[u8]) -> PyResult<WriteSet> {
        whole(py, || {
            let parsed = core::Entry::parse(entry)?;
            let private = self.secret.open(&parsed)?;
            let mut inner = coco_core::store::WriteSet::default();
            inner.decode(parsed.public_maps, Domain::Public)?;
            inner.decode(&private, Domain::Private)?;
            Ok(WriteSet { inner })
        })
    }
}

/// Seals or opens the parts of one snapshot, in order.
#[pyclass(frozen, module = "coco._native")]
pub struct SnapshotCipher {
    cipher: Mutex<core::SnapshotCipher>,
}

impl SnapshotCipher {
    fn lock(&self) -> std::sync::MutexGuard<'_, core::SnapshotCipher> {
        self.cipher.lock().unwrap_or_else(|_| std::process::abort())
    }
}

#[pymethods]
impl SnapshotCipher {
    fn seal<'py>(&self, py: Python<'py>, text: &[u8]) -> PyResult<Bound<'py, PyBytes>> {
        let sealed = whole(py, || Ok(self.lock().seal(text)?))?;
        Ok(PyBytes::new(py, &sealed))
    }

    fn open<'py>(&self, py: Python<'py>, sealed: &[u8]) -> PyResult<Bound<'py, PyBytes>> {
        let text = whole(py, || Ok(self.lock().open(sealed)?))?;
        Ok(PyBytes::new(py, &text))
    }

    fn digest<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.lock().digest())
    }
}

/// The key under which ledger secrets rest; leaves only in shares.
#[pyclass(frozen, module = "coco._native")]
pub struct WrappingKey {
    key: core::WrappingKey,
}

#[pymethods]
impl WrappingKey {
    #[staticmethod]
    fn generate() -> PyResult<Self> {
        Ok(Self {
            key: core::WrappingKey::generate().map_err(NativeError::from)?,
        })
    }

    #[staticmethod]
    fn combine(threshold: u8, shares: Vec<PyRef<'_, Share>>) -> PyResult<Self> {
        let borrowed: Vec<&core::Share> = shares.iter().map(|share| &share.share).collect();
        Ok(Self {
            key: core::WrappingKey::combine(threshold, &borrowed).map_err(NativeError::from)?,
        })
    }

    fn split(&self, threshold: u8, shares: u8) -> PyResult<Vec<Share>> {
        if threshold == 0 || threshold > shares {
            return Err(NativeError::new("native.argument", "the threshold must lie between 1 and the shares").into());
        }
        let split = self.key.split(threshold, shares);
        Ok(split.into_iter().map(|share| Share { share }).collect())
    }
}

/// A member's share of a wrapping key.
#[pyclass(frozen, module = "coco._native")]
pub struct Share {
    share: core::Share,
}

#[pymethods]
impl Share {
    /// Take over a share that came back; its bytes are wiped, so the caller must hold the only reference.
    #[staticmethod]
    fn adopt(bytes: &Bound<'_, PyBytes>) -> PyResult<Self> {
        let share = core::Share::adopt(bytes.as_bytes()).map_err(NativeError::from);
        wipe(bytes);
        Ok(Self { share: share? })
    }

    /// What tells this share from every other, and nothing of it.
    #[getter]
    fn commitment<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.share.commitment())
    }

    /// The share under a member's RSA key.
    fn encrypt<'py>(&self, py: Python<'py>, public_key: &str) -> PyResult<Bound<'py, PyBytes>> {
        let encrypted = guarded(py, || Ok(self.share.encrypt(public_key)?))?;
        Ok(PyBytes::new(py, &encrypted))
    }
}

/// Overwrite a secret that had to pass through Python: the caller must hold the only reference to it.
#[pyfunction]
pub fn wipe(secret: &Bound<'_, PyBytes>) {
    let length = secret.as_bytes().len();
    // Bytes objects of one byte or none are shared by the interpreter.
    if length > 1 {
        // SAFETY: the interpreter gives the address of this object's own `length` bytes; its lock is held, so nobody
        // reads them meanwhile; that nobody reads them later is the caller's promise.
        #[expect(unsafe_code, reason = "bytes objects are immutable, and this one is at its end")]
        unsafe {
            std::ptr::write_bytes(pyo3::ffi::PyBytes_AsString(secret.as_ptr()), 0, length);
        }
    }
}

/// Seals entries, each position once.
#[pyclass(frozen, module = "coco._native")]
pub struct Sealer {
    sealer: Mutex<core::Sealer>,
}

#[pymethods]
impl Sealer {
    #[new]
    fn new(view: u64, seqno: u64) -> Self {
        Self {
            sealer: Mutex::new(core::Sealer::new(view, seqno)),
        }
    }

    /// `(entry, leaf)` of a write set at `view.seqno`.
    fn seal<'py>(
        &self,
        py: Python<'py>,
        secret: &LedgerSecret,
        view: u64,
        seqno: u64,
        claims_digest: &[u8],
        writes: &WriteSet,
    ) -> PyResult<(Bound<'py, PyBytes>, Bound<'py, PyBytes>)> {
        let claims = hash(claims_digest, "a claims digest")?;
        let sealed = whole(py, || {
            let public = writes.inner.encode(Domain::Public);
            let private = writes.inner.encode(Domain::Private);
            let mut sealer = self.sealer.lock().unwrap_or_else(|_| std::process::abort());
            Ok(sealer.seal(&secret.secret, (view, seqno), &claims, &public, private)?)
        })?;
        Ok((PyBytes::new(py, &sealed.entry), PyBytes::new(py, &sealed.leaf)))
    }
}

/// The readable part of an entry.
#[pyclass(frozen, module = "coco._native")]
pub struct Entry {
    #[pyo3(get)]
    view: u64,
    #[pyo3(get)]
    seqno: u64,
    leaf: [u8; 32],
    write_set_digest: [u8; 32],
    claims_digest: [u8; 32],
    public_maps: Vec<u8>,
}

#[pymethods]
impl Entry {
    #[staticmethod]
    fn parse(bytes: &[u8]) -> PyResult<Self> {
        let entry = core::Entry::parse(bytes).map_err(NativeError::from)?;
        Ok(Self {
            view: entry.view,
            seqno: entry.seqno,
            leaf: entry.leaf,
            write_set_digest: entry.write_set_digest,
            claims_digest: entry.claims_digest,
            public_maps: entry.public_maps.to_vec(),
        })
    }

    #[getter]
    fn leaf<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.leaf)
    }

    #[getter]
    fn write_set_digest<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.write_set_digest)
    }

    #[getter]
    fn claims_digest<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.claims_digest)
    }

    /// The writes to public tables.
    fn public_writes(&self, py: Python<'_>) -> PyResult<WriteSet> {
        guarded(py, || {
            let mut inner = coco_core::store::WriteSet::default();
            inner.decode(&self.public_maps, Domain::Public)?;
            Ok(WriteSet { inner })
        })
    }
}
