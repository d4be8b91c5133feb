//! Ledger secrets, sealing of entries, and wrapping for recovery.
//!
//! Rules this module keeps (security requirements K1 to K5):
//! 1. A root secret never encrypts anything: every purpose has its own key by labelled HKDF-SHA-256 (K3).
//! 2. The [`Sealer`] refuses a position that is not strictly above its last one; there is no way to seal one again (K2).
//! 3. Key bytes live in zeroising memory and leave only wrapped (K5).

use aes_gcm::aead::{AeadInOut, KeyInit};
use aes_gcm::{Aes256Gcm, Nonce, Tag};
use hkdf::Hkdf;
use hmac::{Hmac, Mac};
use rsa::pkcs8::DecodePublicKey;
use rsa::traits::PublicKeyParts;
use rsa::{Oaep, RsaPublicKey};
use sha2::{Digest, Sha256};
use thiserror::Error;
use zeroize::Zeroizing;

/// First byte of every entry.
const ENTRY_VERSION: u8 = 1;
/// Write set with commit evidence and claims: the only entry type written.
const ENTRY_TYPE: u8 = 4;
/// Bytes before the rest that the size field counts.
pub const HEADER_BYTES: usize = 8;
/// Tag, IV and public domain length.
const SEAL_BYTES: usize = 16 + 12 + 8;
/// Entry type, version, claims digest, evidence digest, max conflict version.
const PUBLIC_HEADER_BYTES: usize = 1 + 8 + 32 + 32 + 8;
/// Number and 32 bytes.
const SHARE_BYTES: usize = 33;
const RSA_BITS_MIN: usize = 2048;
/// Hard limit of one entry (DESIGN: channel, engine, peer link and disk).
pub const ENTRY_BYTES_MAX: usize = 16 * 1024 * 1024;

/// What went wrong with a secret or a sealed entry.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum SecretError {
    /// Rule 2.
    #[error("{view}.{seqno} does not lie above {last_view}.{last_seqno}: it could be sealed twice")]
    Resealed {
        /// View given.
        view: u64,
        /// Seqno given.
        seqno: u64,
        /// View sealed last.
        last_view: u64,
        /// Seqno sealed last.
        last_seqno: u64,
    },
    /// An authentication tag does not fit.
    #[error("the seal does not open: wrong secret, or changed bytes")]
    SealBroken,
    /// Bytes that are no entry.
    #[error("malformed entry: {0}")]
    MalformedEntry(&'static str),
    /// Too large for the limit.
    #[error("an entry of {0} bytes is over the limit")]
    TooLarge(usize),
    /// Shares that do not combine.
    #[error("the shares do not combine to a wrapping key")]
    BadShares,
    /// A member's key for recovery that is none.
    #[error("a recovery member needs an RSA key of 2048 bits or more")]
    BadRecoveryKey,
    /// No randomness.
    #[error("the platform gives no randomness")]
    NoRandomness,
}

type Key = Zeroizing<[u8; 32]>;

/// Fill `out` from the platform.
pub fn random(out: &mut [u8]) -> Result<(), SecretError> {
    getrandom::fill(out).map_err(|_| SecretError::NoRandomness)
}

fn derive(root: &[u8; 32], label: &str) -> Key {
    let mut key = Zeroizing::new([0; 32]);
    let expanded = Hkdf::<Sha256>::new(Some(b"coco ledger secret v1"), root).expand(label.as_bytes(), key.as_mut());
    debug_assert!(expanded.is_ok(), "32 bytes are a valid HKDF length");
    key
}

fn hmac(key: &[u8; 32], message: &[u8]) -> [u8; 32] {
    let Ok(mut mac) = <Hmac<Sha256> as KeyInit>::new_from_slice(key) else {
        unreachable!("HMAC takes any key")
    };
    mac.update(message);
    mac.finalize().into_bytes().into()
}

fn cipher(key: &[u8; 32]) -> Aes256Gcm {
    Aes256Gcm::new(key.into())
}

/// The root secret of one epoch and the keys derived from it.
pub struct LedgerSecret {
    root: Key,
    entry: Aes256Gcm,
    evidence: Key,
    claims: Key,
    digest: Key,
}

impl LedgerSecret {
    /// A fresh secret; `extra` is mixed with the operating system's randomness (K5).
    pub fn generate(extra: &[u8]) -> Result<Self, SecretError> {
        let mut seed = Zeroizing::new([0; 32]);
        random(seed.as_mut())?;
        let mut root = Zeroizing::new([0; 32]);
        let mixed = Hkdf::<Sha256>::new(Some(extra), seed.as_ref()).expand(b"coco fresh secret v1", root.as_mut());
        debug_assert!(mixed.is_ok());
        Ok(Self::from_root(root))
    }

    fn from_root(root: Key) -> Self {
        let entry = cipher(&derive(&root, "entries"));
        let evidence = derive(&root, "commit evidence");
        let claims = derive(&root, "claims salt");
        let digest = derive(&root, "state digest");
        Self {
            root,
            entry,
            evidence,
            claims,
            digest,
        }
    }

    /// The commit evidence string of a position: secret until a receipt shows it.
    #[must_use]
    pub fn commit_evidence(&self, view: u64, seqno: u64) -> String {
        let id = format!("{view}.{seqno}");
        let mut text = format!("ce:{id}:");
        for byte in hmac(&self.evidence, id.as_bytes()) {
            text.push_str(&format!("{byte:02x}"));
        }
        text
    }

    /// The salt of the claims digest of a position (K6).
    #[must_use]
    pub fn claims_salt(&self, view: u64, seqno: u64) -> [u8; 32] {
        hmac(&self.claims, format!("{view}.{seqno}").as_bytes())
    }

    /// Key of state digests.
    #[must_use]
    pub fn digest_key(&self) -> &[u8; 32] {
        &self.digest
    }

    /// A public name of this secret that tells nothing about it, to recognise it again.
    #[must_use]
    pub fn fingerprint(&self) -> [u8; 32] {
        *derive(&self.root, "fingerprint")
    }

    /// The key under which this secret keeps its predecessor.
    #[must_use]
    pub fn wrapping_key(&self) -> WrappingKey {
        WrappingKey(derive(&self.root, "predecessor"))
    }

    /// Encrypt the root under a wrapping key; `aad` binds it to what it may be used for (K4).
    pub fn wrap(&self, key: &WrappingKey, aad: &[u8]) -> Result<Vec<u8>, SecretError> {
        let mut nonce = [0; 12];
        random(&mut nonce)?;
        let mut text = Zeroizing::new(*self.root);
        let tag = cipher(&key.0)
            .encrypt_inout_detached(&Nonce::from(nonce), aad, text.as_mut_slice().into())
            .map_err(|_| SecretError::SealBroken)?;
        Ok([&nonce[..], text.as_slice(), &tag[..]].concat())
    }

    /// The secret that `wrap` hid.
    pub fn unwrap(wrapped: &[u8], key: &WrappingKey, aad: &[u8]) -> Result<Self, SecretError> {
        if wrapped.len() != 12 + 32 + 16 {
            return Err(SecretError::SealBroken);
        }
        let (nonce, rest) = wrapped.split_at(12);
        let (text, tag) = rest.split_at(32);
        let mut root = Zeroizing::new([0; 32]);
        root.copy_from_slice(text);
        cipher(&key.0)
            .decrypt_inout_detached(&nonce_of(nonce), aad, root.as_mut_slice().into(), &tag_of(tag))
            .map_err(|_| SecretError::SealBroken)?;
        Ok(Self::from_root(root))
    }

    /// The cipher of one snapshot of the state at `seqno`; `salt` is random, 32 bytes, and in the clear (K3).
    #[must_use]
    pub fn snapshot_cipher(&self, salt: &[u8; 32], seqno: u64) -> SnapshotCipher {
        let mut key = Zeroizing::new([0; 32]);
        let hkdf = Hkdf::<Sha256>::new(Some(salt), self.root.as_ref());
        let expanded = hkdf.expand(b"coco snapshot v1", key.as_mut());
        debug_assert!(expanded.is_ok(), "32 bytes are a valid HKDF length");
        let Ok(mut digest) = <Hmac<Sha256> as KeyInit>::new_from_slice(self.digest.as_ref()) else {
            unreachable!("HMAC takes any key")
        };
        digest.update(b"coco snapshot v1");
        digest.update(&seqno.to_le_bytes());
        SnapshotCipher {
            cipher: cipher(&key),
            digest,
            seqno,
            parts: 0,
        }
    }

    /// The private domain of an entry that this secret sealed.
    pub fn open(&self, entry: &Entry<'_>) -> Result<Vec<u8>, SecretError> {
        let mut text = entry.ciphertext.to_vec();
        self.entry
            .decrypt_inout_detached(
                &nonce_of(entry.iv),
                entry.public_domain,
                text.as_mut_slice().into(),
                &tag_of(entry.tag),
            )
            .map_err(|_| SecretError::SealBroken)?;
        Ok(text)
    }
}

fn nonce_of(bytes: &[u8]) -> Nonce<aes_gcm::aead::consts::U12> {
    let mut nonce = [0; 12];
    nonce.copy_from_slice(bytes);
    nonce.into()
}

fn tag_of(bytes: &[u8]) -> Tag {
    let mut tag = [0; 16];
    tag.copy_from_slice(bytes);
    tag.into()
}

/// The key under which a ledger secret rests in the ledger; split among members, never stored whole.
pub struct WrappingKey(Key);

impl WrappingKey {
    /// A fresh key.
    pub fn generate() -> Result<Self, SecretError> {
        let mut key = Zeroizing::new([0; 32]);
        random(key.as_mut())?;
        Ok(Self(key))
    }

    /// `shares` shares of which any `threshold` give the key back (Shamir over GF(256)).
    #[must_use]
    pub fn split(&self, threshold: u8, shares: u8) -> Vec<Share> {
        let dealer = blahaj::Sharks(threshold).dealer(self.0.as_ref());
        dealer
            .take(shares as usize)
            .map(|share| Share(Zeroizing::new(Vec::from(&share))))
            .collect()
    }

    /// The key that `split` shared.
    pub fn combine(threshold: u8, shares: &[&Share]) -> Result<Self, SecretError> {
        let parsed: Vec<blahaj::Share> = shares
            .iter()
            .map(|share| blahaj::Share::try_from(share.0.as_slice()).map_err(|_| SecretError::BadShares))
            .collect::<Result<_, _>>()?;
        let secret = Zeroizing::new(
            blahaj::Sharks(threshold)
                .recover(&parsed)
                .map_err(|_| SecretError::BadShares)?,
        );
        let mut key = Zeroizing::new([0; 32]);
        if secret.len() != key.len() {
            return Err(SecretError::BadShares);
        }
        key.copy_from_slice(&secret);
        Ok(Self(key))
    }
}

/// One member's part of a wrapping key.
pub struct Share(Zeroizing<Vec<u8>>);

impl Share {
    /// A share that its member has given back.
    pub fn adopt(bytes: &[u8]) -> Result<Self, SecretError> {
        if bytes.len() != SHARE_BYTES {
            return Err(SecretError::BadShares);
        }
        Ok(Self(Zeroizing::new(bytes.to_vec())))
    }

    /// What tells this share from every other, and nothing of it: 32 random bytes are in it.
    #[must_use]
    pub fn commitment(&self) -> [u8; 32] {
        let mut digest = Sha256::new();
        digest.update(b"coco share commitment v1");
        digest.update(&*self.0);
        digest.finalize().into()
    }

    /// The share under a member's RSA key (PEM `SubjectPublicKeyInfo`): RSA-OAEP with SHA-256, no label.
    pub fn encrypt(&self, public_key: &str) -> Result<Vec<u8>, SecretError> {
        let key = RsaPublicKey::from_public_key_pem(public_key).map_err(|_| SecretError::BadRecoveryKey)?;
        if key.size() * 8 < RSA_BITS_MIN {
            return Err(SecretError::BadRecoveryKey);
        }
        key.encrypt(&mut Mixed, Oaep::new::<rsa::sha2::Sha256>(), &self.0)
            .map_err(|_| SecretError::BadRecoveryKey)
    }
}

/// [`random`] as the generator of a library; a failure of it ends the call by a panic, which becomes an error.
struct Mixed;

impl rsa::rand_core::RngCore for Mixed {
    fn next_u32(&mut self) -> u32 {
        rsa::rand_core::impls::next_u32_via_fill(self)
    }

    fn next_u64(&mut self) -> u64 {
        rsa::rand_core::impls::next_u64_via_fill(self)
    }

    fn fill_bytes(&mut self, out: &mut [u8]) {
        assert!(random(out).is_ok(), "no randomness");
    }

    fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), rsa::rand_core::Error> {
        self.fill_bytes(out);
        Ok(())
    }
}

impl rsa::rand_core::CryptoRng for Mixed {}

/// A sealed entry, and what the Merkle tree and a receipt need of it.
#[derive(Debug, Clone)]
pub struct Sealed {
    /// The bytes that go to the ledger.
    pub entry: Vec<u8>,
    /// Leaf of the Merkle tree.
    pub leaf: [u8; 32],
}

/// The only one who seals under a secret, and never twice at one position.
pub struct Sealer {
    last: (u64, u64),
}

impl Sealer {
    /// A sealer that starts above `view.seqno`.
    #[must_use]
    pub fn new(view: u64, seqno: u64) -> Self {
        Self { last: (view, seqno) }
    }

    /// Seal the two domains of a write set at `view.seqno`.
    pub fn seal(
        &mut self,
        secret: &LedgerSecret,
        (view, seqno): (u64, u64),
        claims_digest: &[u8; 32],
        public_maps: &[u8],
        private_maps: Vec<u8>,
    ) -> Result<Sealed, SecretError> {
        if view < self.last.0 || seqno <= self.last.1 || view >= 1 << 31 {
            let (last_view, last_seqno) = self.last;
            return Err(SecretError::Resealed {
                view,
                seqno,
                last_view,
                last_seqno,
            });
        }
        let total = HEADER_BYTES + SEAL_BYTES + PUBLIC_HEADER_BYTES + public_maps.len() + private_maps.len();
        if total > ENTRY_BYTES_MAX {
            return Err(SecretError::TooLarge(total));
        }
        // From here on the position is spent, whatever happens.
        self.last = (view, seqno);
        let evidence_digest: [u8; 32] = Sha256::digest(secret.commit_evidence(view, seqno)).into();
        let mut public = Vec::with_capacity(PUBLIC_HEADER_BYTES + public_maps.len());
        public.push(ENTRY_TYPE);
        public.extend_from_slice(&seqno.to_le_bytes());
        public.extend_from_slice(claims_digest);
        public.extend_from_slice(&evidence_digest);
        public.extend_from_slice(&[0; 8]);
        public.extend_from_slice(public_maps);
        let mut iv = [0; 12];
        iv[..8].copy_from_slice(&seqno.to_le_bytes());
        iv[8..].copy_from_slice(&(view as u32).to_le_bytes());
        let mut text = private_maps;
        let tag = secret
            .entry
            .encrypt_inout_detached(&Nonce::from(iv), &public, text.as_mut_slice().into())
            .map_err(|_| SecretError::SealBroken)?;
        let mut entry = Vec::with_capacity(total);
        entry.extend_from_slice(&[ENTRY_VERSION, 0]);
        entry.extend_from_slice(&((total - HEADER_BYTES) as u64).to_le_bytes()[..6]);
        entry.extend_from_slice(&tag);
        entry.extend_from_slice(&iv);
        entry.extend_from_slice(&(public.len() as u64).to_le_bytes());
        entry.extend_from_slice(&public);
        entry.extend_from_slice(&text);
        let leaf = leaf(&Sha256::digest(&entry).into(), &evidence_digest, claims_digest);
        Ok(Sealed { entry, leaf })
    }
}

fn leaf(write_set_digest: &[u8; 32], evidence_digest: &[u8; 32], claims_digest: &[u8; 32]) -> [u8; 32] {
    let mut hasher = Sha256::new();
    hasher.update(write_set_digest);
    hasher.update(evidence_digest);
    hasher.update(claims_digest);
    hasher.finalize().into()
}

/// Seals or opens the parts of one snapshot, in order, and digests their text under the epoch's digest key.
pub struct SnapshotCipher {
    cipher: Aes256Gcm,
    digest: Hmac<Sha256>,
    seqno: u64,
    parts: u64,
}

impl SnapshotCipher {
    /// Number and text go into the digest; the number is never used again.
    fn next(&mut self, text: &[u8]) {
        self.digest.update(&(text.len() as u64).to_le_bytes());
        self.digest.update(text);
        self.parts += 1;
    }

    fn place(&self) -> (Nonce<aes_gcm::aead::consts::U12>, [u8; 16]) {
        let mut nonce = [0; 12];
        nonce[..8].copy_from_slice(&self.parts.to_le_bytes());
        let mut aad = [0; 16];
        aad[..8].copy_from_slice(&self.seqno.to_le_bytes());
        aad[8..].copy_from_slice(&self.parts.to_le_bytes());
        (nonce.into(), aad)
    }

    /// Seal the next part.
    ///
    /// # Errors
    /// It is larger than the cipher takes.
    pub fn seal(&mut self, text: &[u8]) -> Result<Vec<u8>, SecretError> {
        let (nonce, aad) = self.place();
        let mut sealed = text.to_vec();
        let tag = self
            .cipher
            .encrypt_inout_detached(&nonce, &aad, sealed.as_mut_slice().into())
            .map_err(|_| SecretError::SealBroken)?;
        sealed.extend_from_slice(&tag);
        self.next(text);
        Ok(sealed)
    }

    /// Open the next part.
    ///
    /// # Errors
    /// It is not the part that was sealed there.
    pub fn open(&mut self, sealed: &[u8]) -> Result<Vec<u8>, SecretError> {
        let bytes = sealed.len().checked_sub(16).ok_or(SecretError::SealBroken)?;
        let (nonce, aad) = self.place();
        let mut text = sealed[..bytes].to_vec();
        self.cipher
            .decrypt_inout_detached(&nonce, &aad, text.as_mut_slice().into(), &tag_of(&sealed[bytes..]))
            .map_err(|_| SecretError::SealBroken)?;
        self.next(&text);
        Ok(text)
    }

    /// HMAC-SHA-256 over the parts so far; says nothing about the state to whoever lacks the key (K6).
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        self.digest.clone().finalize().into_bytes().into()
    }
}

/// A parsed entry that borrows its bytes.
#[derive(Debug)]
pub struct Entry<'a> {
    /// View and seqno of the IV.
    pub view: u64,
    /// Seqno, equal in IV and public domain.
    pub seqno: u64,
    /// SHA-256 of the whole entry.
    pub write_set_digest: [u8; 32],
    /// Claims digest, or 32 zero bytes.
    pub claims_digest: [u8; 32],
    /// Leaf of the Merkle tree.
    pub leaf: [u8; 32],
    /// Map list of the public domain.
    pub public_maps: &'a [u8],
    public_domain: &'a [u8],
    ciphertext: &'a [u8],
    iv: &'a [u8],
    tag: &'a [u8],
}

impl<'a> Entry<'a> {
    /// Parse the bytes of one whole entry.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, SecretError> {
        let bad = SecretError::MalformedEntry;
        if bytes.len() > ENTRY_BYTES_MAX {
            return Err(SecretError::TooLarge(bytes.len()));
        }
        if bytes.len() < HEADER_BYTES + SEAL_BYTES + PUBLIC_HEADER_BYTES {
            return Err(bad("it is too short"));
        }
        // The flags lie outside the seal; this ledger never sets one, so that a changed flag shows.
        if bytes[0] != ENTRY_VERSION || bytes[1] != 0 {
            return Err(bad("unknown version or flags"));
        }
        if word(&[&bytes[2..8], &[0, 0][..]].concat()) != (bytes.len() - HEADER_BYTES) as u64 {
            return Err(bad("its size field does not fit"));
        }
        let tag = &bytes[8..24];
        let iv = &bytes[24..36];
        let public_bytes = word(&bytes[36..44]);
        if public_bytes < PUBLIC_HEADER_BYTES as u64 || public_bytes > (bytes.len() - 44) as u64 {
            return Err(bad("its public domain does not fit"));
        }
        let (public_domain, ciphertext) = bytes[44..].split_at(public_bytes as usize);
        if public_domain[0] != ENTRY_TYPE {
            return Err(bad("unknown entry type"));
        }
        let seqno = word(&iv[..8]);
        let view = u64::from(u32::from_le_bytes([iv[8], iv[9], iv[10], iv[11]]));
        if view >= 1 << 31 || word(&public_domain[1..9]) != seqno {
            return Err(bad("its IV and its version differ"));
        }
        let array = |at: usize| -> [u8; 32] {
            let mut out = [0; 32];
            out.copy_from_slice(&public_domain[at..at + 32]);
            out
        };
        let (claims_digest, evidence_digest) = (array(9), array(41));
        let write_set_digest: [u8; 32] = Sha256::digest(bytes).into();
        let leaf = leaf(&write_set_digest, &evidence_digest, &claims_digest);
        let public_maps = &public_domain[PUBLIC_HEADER_BYTES..];
        Ok(Self {
            view,
            seqno,
            write_set_digest,
            claims_digest,
            leaf,
            public_maps,
            public_domain,
            ciphertext,
            iv,
            tag,
        })
    }
}

fn word(bytes: &[u8]) -> u64 {
    let mut out = [0; 8];
    out.copy_from_slice(&bytes[..8]);
    u64::from_le_bytes(out)
}
