//! Pack files: blocks one after another, only ever appended to.
//!
//! ```text
//! pack  = "FLKVPACK" version:u32 pack:u32  entry*
//! entry = magic:u32 kind:u8 encoding:u8 0:u16 raw_len:u32 stored_len:u32 hash:[32]  stored bytes
//! ```
//! All numbers little-endian. Encoding 0: as it is; 1: one zstd frame.
//!
//! Owns: the bytes of a pack, appending with a buffer, reading one entry and proving it. Leaves out which
//! entries count: what lies behind the length that [`crate::blocks`] has committed does not exist.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use flocker_store::StoreError;

use crate::hash::{Hash, Kind};

type Result<T> = std::result::Result<T, StoreError>;

const FILE_MAGIC: &[u8; 8] = b"FLKVPACK";
const ENTRY_MAGIC: u32 = 0x31_42_56_46; // "FVB1"
const PACK_VERSION: u32 = 1;
/// Bytes before the first entry.
pub(crate) const FILE_HEADER: u64 = 16;
/// Bytes before an entry's content.
pub(crate) const ENTRY_HEADER: usize = 48;
/// Longest content of an entry, bytes: the longest block of ZFS and room for its spill or a node.
const MAX_CONTENT: u32 = 17 << 20;
/// A pack is closed when it has grown to this size, bytes: large enough that a terabyte is a few thousand
/// files, small enough that one can be rewritten without anybody noticing.
pub(crate) const PACK_BYTES: u64 = 256 << 20;
/// Appended bytes are gathered up to this before they go to the file, bytes.
const BUFFER_BYTES: usize = 1 << 20;
/// Blocks shorter than this are not worth a try with zstd, bytes.
const COMPRESS_MIN: usize = 256;

/// Where an entry lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Loc {
    /// The pack's number.
    pub(crate) pack: u32,
    /// Where its header begins, bytes.
    pub(crate) offset: u64,
    /// Bytes of header and content.
    pub(crate) len: u32,
}

impl Loc {
    pub(crate) fn to_bytes(self) -> [u8; 16] {
        let mut out = [0; 16];
        out[..4].copy_from_slice(&self.pack.to_le_bytes());
        out[4..12].copy_from_slice(&self.offset.to_le_bytes());
        out[12..].copy_from_slice(&self.len.to_le_bytes());
        out
    }

    pub(crate) fn from_bytes(bytes: [u8; 16]) -> Self {
        let [a, b, c, d, rest @ ..] = bytes;
        let [e, f, g, h, i, j, k, l, m, n, o, p] = rest;
        Loc {
            pack: u32::from_le_bytes([a, b, c, d]),
            offset: u64::from_le_bytes([e, f, g, h, i, j, k, l]),
            len: u32::from_le_bytes([m, n, o, p]),
        }
    }
}

/// The path of a pack.
pub(crate) fn path(dir: &Path, pack: u32) -> PathBuf {
    dir.join(format!("{pack:08}.pack"))
}

/// The number of the pack with this file name.
pub(crate) fn number(file_name: &str) -> Option<u32> {
    file_name.strip_suffix(".pack")?.parse().ok()
}

/// Appends to one pack.
#[derive(Debug)]
pub(crate) struct PackWriter {
    path: PathBuf,
    pack: u32,
    file: File,
    /// Length that was committed before this writer.
    committed: u64,
    /// Bytes in the file.
    written: u64,
    buffer: Vec<u8>,
    fresh: bool,
}

impl PackWriter {
    /// Opens a pack behind its committed length, cutting off what a crash left there.
    pub(crate) fn open(dir: &Path, pack: u32, committed: u64) -> Result<Self> {
        let path = path(dir, pack);
        let context = |e| StoreError::io(format!("opening {}", path.display()), e);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(context)?;
        file.set_len(committed).map_err(context)?;
        let mut buffer = Vec::with_capacity(BUFFER_BYTES);
        if committed == 0 {
            buffer.extend_from_slice(FILE_MAGIC);
            buffer.extend_from_slice(&PACK_VERSION.to_le_bytes());
            buffer.extend_from_slice(&pack.to_le_bytes());
        }
        Ok(PackWriter {
            pack,
            file,
            committed,
            written: committed,
            buffer,
            fresh: committed == 0,
            path,
        })
    }

    pub(crate) fn pack(&self) -> u32 {
        self.pack
    }

    /// Length that was committed before this writer, bytes.
    pub(crate) fn committed(&self) -> u64 {
        self.committed
    }

    /// Length with everything appended, bytes.
    pub(crate) fn len(&self) -> u64 {
        self.written + self.buffer.len() as u64
    }

    /// Whether this writer made the file, so that its name is not durable yet.
    pub(crate) fn is_fresh(&self) -> bool {
        self.fresh
    }

    /// Appends a block; its hash is not checked.
    pub(crate) fn append(
        &mut self,
        kind: Kind,
        hash: &Hash,
        content: &[u8],
        squeezer: Option<&mut Squeezer>,
    ) -> Result<Loc> {
        let (encoding, stored) = match squeezer.and_then(|s| s.squeeze(content)) {
            Some(squeezed) => (1, squeezed),
            None => (0, content),
        };
        let len = ENTRY_HEADER + stored.len();
        let too_long = || StoreError::Corrupt {
            path: self.path.clone(),
            detail: format!("a block of {} bytes does not fit in", content.len()),
        };
        let raw_len = u32::try_from(content.len()).map_err(|_| too_long())?;
        if raw_len > MAX_CONTENT {
            return Err(too_long());
        }
        let loc = Loc {
            pack: self.pack,
            offset: self.len(),
            len: u32::try_from(len).map_err(|_| too_long())?,
        };
        self.buffer.extend_from_slice(&ENTRY_MAGIC.to_le_bytes());
        self.buffer.extend_from_slice(&[kind.number(), encoding, 0, 0]);
        self.buffer.extend_from_slice(&raw_len.to_le_bytes());
        self.buffer.extend_from_slice(&(loc.len - ENTRY_HEADER as u32).to_le_bytes());
        self.buffer.extend_from_slice(&hash.0);
        self.buffer.extend_from_slice(stored);
        if self.buffer.len() >= BUFFER_BYTES {
            self.flush()?;
        }
        Ok(loc)
    }

    /// Copies an entry as it is from another pack.
    pub(crate) fn append_entry(&mut self, entry: &[u8]) -> Result<Loc> {
        let loc = Loc {
            pack: self.pack,
            offset: self.len(),
            len: u32::try_from(entry.len()).map_err(|_| StoreError::Corrupt {
                path: self.path.clone(),
                detail: "an entry beyond 4 GiB".into(),
            })?,
        };
        self.buffer.extend_from_slice(entry);
        if self.buffer.len() >= BUFFER_BYTES {
            self.flush()?;
        }
        Ok(loc)
    }

    /// Hands what was appended to the system, so that it can be read.
    pub(crate) fn flush(&mut self) -> Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        self.file
            .write_all_at(&self.buffer, self.written)
            .map_err(|e| StoreError::io(format!("writing {}", self.path.display()), e))?;
        self.written += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    /// Makes everything appended durable.
    pub(crate) fn sync(&mut self) -> Result<()> {
        self.flush()?;
        self.file
            .sync_data()
            .map_err(|e| StoreError::io(format!("syncing {}", self.path.display()), e))
    }

    /// Takes back what this writer appended. Failing leaves only bytes that do not count.
    pub(crate) fn take_back(&mut self) -> std::io::Result<()> {
        self.buffer.clear();
        if self.committed == 0 {
            std::fs::remove_file(&self.path)
        } else {
            self.file.set_len(self.committed)
        }
    }

    /// Reads an entry that was appended and flushed.
    pub(crate) fn read(&self, loc: Loc, hash: &Hash, kind: Kind) -> Result<Vec<u8>> {
        read(&self.file, &self.path, loc, hash, kind)
    }
}

/// Reads and proves one entry.
pub(crate) fn read(file: &File, path: &Path, loc: Loc, hash: &Hash, kind: Kind) -> Result<Vec<u8>> {
    let entry = read_entry(file, path, loc)?;
    decode(&entry, path, loc.offset, hash, kind)
}

/// Reads the bytes of one entry without proving its content.
pub(crate) fn read_entry(file: &File, path: &Path, loc: Loc) -> Result<Vec<u8>> {
    let mut entry = vec![0; loc.len as usize];
    file.read_exact_at(&mut entry, loc.offset).map_err(|e| {
        if e.kind() == std::io::ErrorKind::UnexpectedEof {
            corrupt(path, loc.offset, "the pack ends before it")
        } else {
            StoreError::io(format!("reading {}", path.display()), e)
        }
    })?;
    Ok(entry)
}

fn corrupt(path: &Path, offset: u64, detail: impl std::fmt::Display) -> StoreError {
    StoreError::Corrupt {
        path: path.to_owned(),
        detail: format!("block at byte {offset}: {detail}"),
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes)
}

/// Takes an entry apart and proves that it holds the block of this name.
fn decode(entry: &[u8], path: &Path, offset: u64, hash: &Hash, kind: Kind) -> Result<Vec<u8>> {
    let Some((header, stored)) = entry.split_at_checked(ENTRY_HEADER) else {
        return Err(corrupt(path, offset, "too short for an entry"));
    };
    let raw_len = u32_at(header, 8);
    let sound = u32_at(header, 0) == ENTRY_MAGIC
        && u32_at(header, 12) as usize == stored.len()
        && raw_len <= MAX_CONTENT
        && header[4] == kind.number()
        && header[16..48] == hash.0;
    if !sound {
        return Err(corrupt(path, offset, "its header is not what the index says"));
    }
    let content = match header[5] {
        0 => stored.to_vec(),
        1 => zstd::bulk::decompress(stored, raw_len as usize)
            .map_err(|e| corrupt(path, offset, format!("does not decompress: {e}")))?,
        other => return Err(corrupt(path, offset, format!("unknown encoding {other}"))),
    };
    if content.len() != raw_len as usize || kind.hash(&content) != *hash {
        return Err(corrupt(path, offset, format!("its content does not have the hash {hash}")));
    }
    Ok(content)
}

/// Proves an entry, whatever its kind.
pub(crate) fn prove(entry: &[u8], path: &Path, offset: u64, hash: &Hash) -> Result<()> {
    let kind = entry.get(4).copied().and_then(Kind::of);
    let kind = kind.ok_or_else(|| corrupt(path, offset, "unknown kind"))?;
    decode(entry, path, offset, hash, kind).map(drop)
}

/// The hashes and places of the entries in the first `len` bytes of a pack.
pub(crate) fn entries<'f>(
    file: &'f File,
    path: &'f Path,
    len: u64,
) -> impl Iterator<Item = Result<(Hash, Loc)>> + 'f {
    let id = path.file_name().and_then(|n| n.to_str()).and_then(number).unwrap_or(0);
    let mut at = FILE_HEADER;
    std::iter::from_fn(move || {
        if at >= len {
            return None;
        }
        let mut header = [0; ENTRY_HEADER];
        if let Err(e) = file.read_exact_at(&mut header, at) {
            at = len;
            return Some(Err(StoreError::io(format!("reading {}", path.display()), e)));
        }
        let stored = u32_at(&header, 12);
        let (offset, whole) = (at, u64::from(stored) + ENTRY_HEADER as u64);
        if u32_at(&header, 0) != ENTRY_MAGIC || offset + whole > len {
            at = len;
            return Some(Err(corrupt(path, offset, "no entry begins here")));
        }
        at += whole;
        let mut hash = [0; 32];
        hash.copy_from_slice(&header[16..]);
        let loc = Loc { pack: id, offset, len: stored.saturating_add(ENTRY_HEADER as u32) };
        Some(Ok((Hash(hash), loc)))
    })
}

/// zstd with its tables kept between blocks.
pub(crate) struct Squeezer {
    compressor: Option<zstd::bulk::Compressor<'static>>,
    out: Vec<u8>,
}

impl std::fmt::Debug for Squeezer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Squeezer").finish_non_exhaustive()
    }
}

impl Squeezer {
    /// Level 1: see MEASURED, 0.6 GB/s a thread with a ratio near that of level 3.
    pub(crate) fn new() -> Self {
        Squeezer { compressor: zstd::bulk::Compressor::new(1).ok(), out: Vec::new() }
    }

    /// The block compressed, where that saves at least one part in sixteen.
    fn squeeze(&mut self, content: &[u8]) -> Option<&[u8]> {
        if content.len() < COMPRESS_MIN {
            return None;
        }
        let compressor = self.compressor.as_mut()?;
        self.out.resize(content.len() - content.len() / 16, 0);
        let len = compressor.compress_to_buffer(content, &mut self.out[..]).ok()?;
        self.out.get(..len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write_one(dir: &Path, content: &[u8]) -> (Loc, Hash) {
        let mut writer = PackWriter::open(dir, 1, 0).expect("open");
        let hash = Kind::Data.hash(content);
        let mut squeezer = Squeezer::new();
        let loc = writer.append(Kind::Data, &hash, content, Some(&mut squeezer)).expect("append");
        writer.sync().expect("sync");
        (loc, hash)
    }

    #[test]
    fn what_is_appended_is_read_back_and_smaller_where_it_shrinks() {
        let dir = tempfile::tempdir().expect("dir");
        let content = vec![7; 100_000];
        let (loc, hash) = write_one(dir.path(), &content);
        assert!(loc.len < 1000);
        let file = File::open(path(dir.path(), 1)).expect("open");
        let back = read(&file, &path(dir.path(), 1), loc, &hash, Kind::Data).expect("read");
        assert_eq!(back, content);
    }

    #[test]
    fn a_flipped_byte_never_gives_other_content_and_the_damage_names_the_pack() {
        let dir = tempfile::tempdir().expect("dir");
        let content: Vec<u8> = (0..600u32).flat_map(|i| (i * i).to_le_bytes()).collect();
        let (loc, hash) = write_one(dir.path(), &content);
        let path = path(dir.path(), 1);
        let good = std::fs::read(&path).expect("read");
        // Bytes 6 and 7 of the header are not used.
        let used = (0..loc.len as usize).filter(|at| !matches!(at, 6 | 7));
        for at in used.map(|at| at + loc.offset as usize) {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            std::fs::write(&path, &bad).expect("write");
            let file = File::open(&path).expect("open");
            match read(&file, &path, loc, &hash, Kind::Data) {
                Err(StoreError::Corrupt { path: named, .. }) => assert_eq!(named, path),
                // A bit that zstd does not look at: what comes out is proven all the same.
                Ok(back) => assert!(back == content, "byte {at}"),
                Err(other) => panic!("byte {at}: {other:?}"),
            }
        }
    }

    #[test]
    fn a_location_survives_its_sixteen_bytes() {
        let loc = Loc { pack: 0xAABB_CCDD, offset: 0x1122_3344_5566_7788, len: 0x99 };
        assert_eq!(Loc::from_bytes(loc.to_bytes()), loc);
    }
}
