//! The receiver's blocks of one pair and one grant: a ring in a file without a name.
//!
//! Owns: the file and what lies where in it. Leaves to others: who may use it ([`super`]).
//!
//! Nothing in it is ever trusted: a block is hashed when it is read, so a torn write, a rotten disk and
//! a place that was overwritten meanwhile are all misses. So it needs no order of writes and no syncing.
//! The file loses its name as soon as it is open: a crash leaves nothing behind that could be found
//! again, and whoever starts anew draws another id. What is written is enciphered with a key that exists in
//! this process alone, since the store may keep at rest as ciphertext what arrives here in the clear.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use aws_lc_rs::cipher::{AES_128, EncryptingKey, EncryptionContext, UnboundCipherKey};
use aws_lc_rs::error::Unspecified;

use super::recipe::Hash;
use super::ring::{MAX_BLOCKS, Place, Ring, prefix};
use crate::counters;
use crate::frame::dedup::{CACHE_ID_LEN, MIN_BLOCK};

/// After so many failed writes nothing more is written: the disk is full or broken.
const MAX_FAILED_WRITES: u32 = 16;

/// Smallest cache worth having, in bytes.
pub const MIN_CACHE: u64 = 1 << 20;

/// Blocks by their hash.
#[derive(Debug)]
pub struct Cache {
    id: [u8; CACHE_ID_LEN],
    capacity: u64,
    file: File,
    key: EncryptingKey,
    ring: Mutex<Ring>,
    failed_writes: AtomicU32,
}

impl Cache {
    /// An empty cache of `capacity` bytes, at least [`MIN_CACHE`], in `directory`. The file is sparse: it takes
    /// room as blocks come.
    ///
    /// # Errors
    /// The file cannot be made, or there is no randomness.
    pub fn create(directory: &Path, capacity: u64) -> io::Result<Self> {
        let (mut id, mut key) = ([0; CACHE_ID_LEN], [0; 16]);
        for drawn in [&mut id[..], &mut key[..]] {
            getrandom::fill(drawn).map_err(|e| io::Error::other(e.to_string()))?;
        }
        let key = UnboundCipherKey::new(&AES_128, &key)
            .and_then(EncryptingKey::ctr)
            .map_err(|_| io::Error::other("no cipher for the cache of blocks"))?;
        let name = blake3::hash(&id).to_hex();
        let path = directory.join(format!("{}.blocks", &name[..16]));
        let file =
            OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
        std::fs::remove_file(&path)?;
        let capacity = capacity.max(MIN_CACHE);
        let ring = Mutex::new(Ring::new(capacity, MAX_BLOCKS));
        Ok(Self { id, capacity, file, key, ring, failed_writes: AtomicU32::new(0) })
    }

    /// Drawn when it was made.
    pub fn id(&self) -> [u8; CACHE_ID_LEN] {
        self.id
    }

    /// Bytes of blocks that it holds.
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fills `out` with the block of this hash and just this length; `false` when it is not there, and
    /// then `out` holds anything.
    pub fn read(&self, hash: &Hash, out: &mut [u8]) -> bool {
        let Some(place) = self.ring().find(prefix(hash)) else { return false };
        if place.len as usize != out.len() {
            return false;
        }
        let read = self.file.read_exact_at(out, place.position % self.capacity).is_ok();
        if read && self.cipher(place, out).is_ok() {
            // What is read is never believed.
            if blake3::hash(out) == blake3::Hash::from_bytes(*hash) {
                return true;
            }
        }
        self.ring().forget(prefix(hash), place);
        false
    }

    /// Keeps a block. `bytes` must have this hash; failing to keep it is no error.
    pub fn insert(&self, hash: &Hash, bytes: &[u8]) {
        let broken = self.failed_writes.load(Ordering::Relaxed) >= MAX_FAILED_WRITES;
        let place = {
            let mut ring = self.ring();
            if broken || bytes.len() < MIN_BLOCK || !ring.takes(bytes.len()) {
                return;
            }
            if ring.find(prefix(hash)).is_some() {
                return;
            }
            ring.reserve(bytes.len())
        };
        let written = self.write(place, bytes);
        match written {
            Ok(()) => {
                self.ring().publish(prefix(hash), place);
                metrics::counter!(counters::DEDUP_CACHED).increment(bytes.len() as u64);
            }
            Err(error) => {
                if self.failed_writes.fetch_add(1, Ordering::Relaxed) == 0 {
                    tracing::warn!(%error, "the cache of blocks cannot be written; dedup suffers");
                }
            }
        }
    }

    fn write(&self, place: Place, bytes: &[u8]) -> io::Result<()> {
        let mut enciphered = bytes.to_vec();
        self.cipher(place, &mut enciphered).map_err(|_| io::Error::other("the cipher failed"))?;
        self.file.write_all_at(&enciphered, place.position % self.capacity)
    }

    /// Enciphers or deciphers what lies at a place: AES-128 in counter mode, the counter's upper half
    /// being the position. Positions are never used twice, so neither is a counter.
    fn cipher(&self, place: Place, bytes: &mut [u8]) -> Result<(), Unspecified> {
        let counter = u128::from(place.position) << 64;
        let context = EncryptionContext::Iv128(counter.to_be_bytes().into());
        self.key.less_safe_encrypt(bytes, context).map(drop)
    }

    /// Spoils every byte on disk, as a disk may; for tests.
    pub(crate) fn rot(&self) {
        let len = self.file.metadata().map_or(0, |m| m.len());
        let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
        if self.file.read_exact_at(&mut bytes, 0).is_ok() {
            bytes.iter_mut().for_each(|byte| *byte ^= 0x55);
            let _ = self.file.write_all_at(&bytes, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(number: u64, len: usize) -> (Hash, Vec<u8>) {
        let mut bytes = vec![0; len];
        blake3::Hasher::new().update(&number.to_le_bytes()).finalize_xof().fill(&mut bytes);
        (*blake3::hash(&bytes).as_bytes(), bytes)
    }

    fn holds(cache: &Cache, hash: &Hash, bytes: &[u8]) -> bool {
        let mut out = vec![0; bytes.len()];
        let found = cache.read(hash, &mut out);
        assert!(!found || out == bytes, "a block with other bytes");
        found
    }

    #[test]
    fn blocks_come_back_until_the_ring_wraps_over_them() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::create(dir.path(), MIN_CACHE).unwrap();
        let blocks: Vec<_> = (0..100).map(|n| block(n, MIN_BLOCK + n as usize)).collect();
        for (hash, bytes) in &blocks {
            cache.insert(hash, bytes);
            assert!(holds(&cache, hash, bytes));
        }
        let (old, new) = blocks.split_at(40);
        assert!(old[..30].iter().all(|(hash, bytes)| !holds(&cache, hash, bytes)));
        assert!(new.iter().all(|(hash, bytes)| holds(&cache, hash, bytes)));
    }

    #[test]
    fn a_rotten_disk_is_a_miss_and_the_block_can_come_again() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::create(dir.path(), MIN_CACHE).unwrap();
        let (hash, bytes) = block(1, 50_000);
        cache.insert(&hash, &bytes);
        cache.rot();
        assert!(!holds(&cache, &hash, &bytes));
        cache.insert(&hash, &bytes);
        assert!(holds(&cache, &hash, &bytes));
    }

    #[test]
    fn another_length_or_hash_finds_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::create(dir.path(), MIN_CACHE).unwrap();
        let (hash, bytes) = block(1, MIN_BLOCK);
        cache.insert(&hash, &bytes);
        assert!(!cache.read(&hash, &mut vec![0; MIN_BLOCK + 1]));
        // The same first eight bytes, and another end.
        let mut other = hash;
        other[31] ^= 1;
        assert!(!cache.read(&other, &mut vec![0; MIN_BLOCK]));
    }

    #[test]
    fn the_file_has_no_name_and_no_plain_bytes_and_each_cache_another_id() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::create(dir.path(), MIN_CACHE).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        let bytes = vec![7; MIN_BLOCK];
        cache.insert(blake3::hash(&bytes).as_bytes(), &bytes);
        let mut on_disk = vec![0; MIN_BLOCK];
        cache.file.read_exact_at(&mut on_disk, 0).unwrap();
        assert!(on_disk.windows(4).all(|four| four != [7; 4]));
        assert_ne!(cache.id(), Cache::create(dir.path(), MIN_CACHE).unwrap().id());
    }

    #[test]
    fn what_is_too_short_or_too_long_for_it_is_not_kept() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::create(dir.path(), MIN_CACHE).unwrap();
        for len in [MIN_BLOCK - 1, MIN_CACHE as usize / 4 + 1] {
            let (hash, bytes) = block(1, len);
            cache.insert(&hash, &bytes);
            assert!(!holds(&cache, &hash, &bytes));
        }
    }
}
