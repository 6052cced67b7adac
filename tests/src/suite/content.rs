//! Data for the checks, made from a number, and what is there afterwards as one hash.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;

use rustix::fs::XattrFlags;
use rustix::io::Errno;

use super::Trouble;

/// Bytes that do not compress, from a seed.
pub fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut out = vec![0; bytes];
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    hasher.finalize_xof().fill(&mut out);
    out
}

fn text(seed: u64, lines: usize) -> Vec<u8> {
    (0..lines).flat_map(|n| format!("{seed} {n} the quick brown fox\n").into_bytes()).collect()
}

/// Adds and changes files below `dir`: text, noise, holes, links, many small ones, names of all sorts,
/// deletions of what an earlier round made.
///
/// # Errors
/// The filesystem says no.
pub fn write_round(dir: &Path, round: u64) -> Result<(), Trouble> {
    let own = dir.join(format!("round-{round}"));
    fs::create_dir_all(own.join("many"))?;
    fs::write(own.join("text"), text(round, 5_000))?;
    fs::write(own.join("noise"), noise(round, 700_000))?;
    fs::write(own.join("a b:c%d é"), text(round, 3))?;
    for n in 0..40 {
        fs::write(own.join(format!("many/{n}")), text(round * 100 + n, 1 + n as usize % 7))?;
    }
    let sparse = fs::File::create(own.join("sparse"))?;
    sparse.set_len(8 << 20)?;
    (&sparse).write_all(b"first")?;
    // One that fits into a large dnode, one that takes a block of its own.
    for (name, bytes) in [("user.small", 90), ("user.large", 3_000)] {
        set_attribute(&own.join("text"), name, &noise(round + bytes as u64, bytes))?;
    }
    std::os::unix::fs::chown(own.join("a b:c%d é"), Some(1234), Some(4321))?;
    fs::hard_link(own.join("text"), own.join("linked"))?;
    symlink("text", own.join("pointer"))?;
    // What every round changes in place: overwritten in the middle, grown, shrunk.
    let shared =
        fs::OpenOptions::new().create(true).truncate(false).write(true).open(dir.join("shared"))?;
    std::os::unix::fs::FileExt::write_all_at(&shared, &noise(round + 50, 90_000), round * 131_072)?;
    fs::write(dir.join("rewritten"), noise(round + 90, 300_000 / (round as usize + 1)))?;
    if let Some(before) = round.checked_sub(1) {
        let before = dir.join(format!("round-{before}"));
        if before.exists() {
            fs::remove_file(before.join("noise"))?;
            for n in (0..40).step_by(3) {
                fs::remove_file(before.join(format!("many/{n}")))?;
            }
            fs::File::options().write(true).open(before.join("sparse"))?.set_len(3 << 20)?;
        }
    }
    for entry in [own.join("text"), dir.join("shared")] {
        fs::File::open(entry)?.sync_all()?;
    }
    Ok(())
}

/// Sets an extended attribute, where there are such.
fn set_attribute(path: &Path, name: &str, value: &[u8]) -> Result<(), Trouble> {
    match rustix::fs::lsetxattr(path, name, value, XattrFlags::empty()) {
        // zfs-fuse
        Err(Errno::NOTSUP) => Ok(()),
        outcome => Ok(outcome?),
    }
}

/// The names of a path's extended attributes, in order, each with its value.
fn attributes(path: &Path) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, Trouble> {
    let mut names = vec![0; 64 << 10];
    let len = match rustix::fs::llistxattr(path, &mut names[..]) {
        Err(Errno::NOTSUP) => 0,
        len => len?,
    };
    let mut found = BTreeMap::new();
    for name in names[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0; 64 << 10];
        let len = rustix::fs::lgetxattr(path, name, &mut value[..])?;
        value.truncate(len);
        found.insert(name.to_owned(), value);
    }
    Ok(found)
}

/// A hash over every path, type, mode, owner, time of modification, extended attribute, size, link target and byte
/// below `dir`.
///
/// # Errors
/// Something cannot be read.
pub fn tree(dir: &Path) -> Result<String, Trouble> {
    let mut hasher = blake3::Hasher::new();
    walk(dir, dir, &mut hasher)?;
    Ok(hasher.finalize().to_hex()[..16].to_owned())
}

fn walk(top: &Path, dir: &Path, hasher: &mut blake3::Hasher) -> Result<(), Trouble> {
    let mut entries: Vec<_> = fs::read_dir(dir)?.collect::<Result<_, _>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let path = entry.path();
        let meta = fs::symlink_metadata(&path)?;
        let shown = path.strip_prefix(top)?.as_os_str().as_encoded_bytes();
        hasher.update(&(shown.len() as u64).to_le_bytes()).update(shown);
        hasher.update(&meta.mode().to_le_bytes());
        hasher.update(&meta.uid().to_le_bytes()).update(&meta.gid().to_le_bytes());
        hasher.update(&meta.mtime().to_le_bytes()).update(&meta.mtime_nsec().to_le_bytes());
        for (name, value) in attributes(&path)? {
            hasher.update(&(name.len() as u64).to_le_bytes()).update(&name);
            hasher.update(&(value.len() as u64).to_le_bytes()).update(&value);
        }
        if meta.is_dir() {
            walk(top, &path, hasher)?;
        } else if meta.is_symlink() {
            hasher.update(fs::read_link(&path)?.as_os_str().as_encoded_bytes());
        } else {
            hasher.update(&meta.len().to_le_bytes());
            hasher.update_reader(fs::File::open(&path)?)?;
        }
    }
    Ok(())
}

/// A hash over a device's first `bytes`.
///
/// # Errors
/// It cannot be read.
pub fn device(path: &Path, bytes: u64) -> Result<String, Trouble> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(fs::File::open(path)?.take(bytes))?;
    Ok(hasher.finalize().to_hex()[..16].to_owned())
}
