//! Data that lies in the demo's volume before it is protected, so that the first step has something to carry.
//!
//! Owns: making it, half text and half noise so that it compresses about as real data does, and its hash.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

/// The file's name in the volume.
pub(crate) const FILE: &str = "preload.bin";

/// Noise and text take turns in pieces of this many bytes.
const PIECE: usize = 8 << 10;

const TEXT: &str = "moving day: the boxes are packed, numbered and listed; each one is counted out of the old \
                    house and into the new one, and nobody leaves before both lists agree. ";

/// Writes the file durably into `dir`.
///
/// # Errors
/// The system's.
pub(crate) fn write(dir: &Path, size: u64, seed: &[u8; 32]) -> io::Result<()> {
    let mut file = File::create(dir.join(FILE))?;
    let mut noise = blake3::Hasher::new_keyed(seed).finalize_xof();
    let text: Vec<u8> = TEXT.bytes().cycle().take(PIECE).collect();
    let mut piece = vec![0; PIECE];
    let mut left = size;
    let mut noisy = true;
    while left > 0 {
        let len = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
        if noisy {
            noise.fill(&mut piece);
            file.write_all(&piece[..len])?;
        } else {
            file.write_all(&text[..len])?;
        }
        noisy = !noisy;
        left -= len as u64;
    }
    file.sync_all()?;
    File::open(dir)?.sync_all()
}

/// BLAKE3 of the file in `dir`.
///
/// # Errors
/// The system's; not being there is one.
pub(crate) fn hash(dir: &Path) -> io::Result<blake3::Hash> {
    let mut file = File::open(dir.join(FILE))?;
    let mut hasher = blake3::Hasher::new();
    let mut chunk = vec![0; 1 << 20];
    loop {
        match file.read(&mut chunk) {
            Ok(0) => return Ok(hasher.finalize()),
            Ok(len) => {
                hasher.update(&chunk[..len]);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_has_the_size_asked_for_and_depends_on_the_seed_alone() {
        let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        for size in [1, PIECE as u64 * 3 + 5] {
            for dir in &dirs {
                write(dir.path(), size, &[3; 32]).unwrap();
                assert_eq!(dir.path().join(FILE).metadata().unwrap().len(), size);
            }
            assert_eq!(hash(dirs[0].path()).unwrap(), hash(dirs[1].path()).unwrap());
            write(dirs[1].path(), size, &[4; 32]).unwrap();
            assert_ne!(hash(dirs[0].path()).unwrap(), hash(dirs[1].path()).unwrap());
        }
    }
}
