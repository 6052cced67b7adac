//! Sound send streams of any length, made and not recorded, so that whoever measures needs no files.
//!
//! Owns: what is in them. All have one object with records of [`BLOCK`] bytes, as a volume or one large file has.

use std::collections::VecDeque;
use std::fs;
use std::io::{self, Read, Write as _};
use std::path::PathBuf;

use zfs_stream::format::objset;
use zfs_stream::record::{Begin, End, Object, Write};
use zfs_stream::{Compression, Features, Record, Seal, Writer};

/// Bytes of a record before compression: the default `recordsize`.
pub const BLOCK: usize = 128 << 10;

/// Compressed records are padded to whole sectors of this many bytes, as on a pool with `ashift=12`.
const SECTOR: usize = 4 << 10;

/// The level of ZFS's zstd when none is named.
const ZSTD_LEVEL: i32 = 3;

/// What a stream holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// Random bytes: nothing makes them smaller.
    Noise,
    /// Programs, libraries and texts of this machine.
    Text,
    /// The same in records that are lz4-compressed, as `zfs send -c` has them.
    Lz4,
    /// The same in records that are zstd-compressed.
    Zstd,
    /// Pages of tables that zstd halves; every second one is a copy of one drawn from all before it.
    Copies,
}

/// Writes a stream of about `bytes` of records (as they are in the stream). Returns the bytes it has in all.
///
/// # Errors
/// Of the file, or of the files of this machine that it is made of.
///
/// # Panics
/// When a record is not one of a sound stream: a bug here.
pub fn write(kind: Kind, bytes: u64, out: &mut impl io::Write) -> io::Result<u64> {
    write_in_blocks(kind, bytes, BLOCK, out)
}

/// The same with records of `block` bytes before compression, 128 at least.
///
/// # Errors
/// As [`write()`].
///
/// # Panics
/// As [`write()`].
pub fn write_in_blocks(
    kind: Kind,
    bytes: u64,
    block: usize,
    out: &mut impl io::Write,
) -> io::Result<u64> {
    let mut stream = Stream { writer: Writer::new(Seal::PerRecord), out, len: 0 };
    let features = match kind {
        Kind::Lz4 => Features::COMPRESSED | Features::LZ4,
        Kind::Zstd => Features::COMPRESSED | Features::ZSTD,
        Kind::Noise | Kind::Text | Kind::Copies => Features::NONE,
    };
    let begin = Begin {
        objset_type: objset::ZVOL,
        features,
        to_guid: 7,
        to_name: b"pool/volume@bench".to_vec(),
        ..Begin::default()
    };
    stream.record(&Record::Begin(begin), &[])?;
    let object = Object {
        object: 1,
        object_type: 23,
        block_size: block as u32,
        checksum_type: 7,
        dn_slots: 1,
        to_guid: 7,
        ..Object::default()
    };
    stream.record(&Record::Object(object), &[])?;
    let (mut blocks, mut number) = (Blocks::new(kind, block)?, 0);
    while stream.len < bytes {
        let (payload, compression) = blocks.next()?;
        let compressed = compression != Compression::NONE;
        let write = Write {
            object: 1,
            object_type: 23,
            offset: number * block as u64,
            logical_size: block as u64,
            compressed_size: if compressed { payload.len() as u64 } else { 0 },
            compression,
            to_guid: 7,
            checksum_type: 7,
            ..Write::default()
        };
        number += 1;
        stream.record(&Record::Write(write), payload)?;
    }
    stream.record(&Record::End(End { to_guid: 7, ..End::default() }), &[])?;
    Ok(stream.len)
}

struct Stream<'a, W> {
    writer: Writer,
    out: &'a mut W,
    len: u64,
}

impl<W: io::Write> Stream<'_, W> {
    fn record(&mut self, record: &Record, payload: &[u8]) -> io::Result<()> {
        let header = self.writer.header(record, payload).expect("a record of a sound stream");
        self.out.write_all(&header)?;
        self.out.write_all(payload)?;
        self.len += (header.len() + payload.len()) as u64;
        Ok(())
    }
}

/// The payloads, one after another.
struct Blocks {
    kind: Kind,
    made: u64,
    unique: u64,
    seed: u64,
    block: Vec<u8>,
    packed: Vec<u8>,
    files: Option<Files>,
    zstd: zstd::bulk::Compressor<'static>,
}

impl Blocks {
    fn new(kind: Kind, block: usize) -> io::Result<Self> {
        let from_files = matches!(kind, Kind::Text | Kind::Lz4 | Kind::Zstd);
        Ok(Self {
            kind,
            made: 0,
            unique: 0,
            seed: 1,
            block: vec![0; block],
            packed: Vec::new(),
            files: from_files.then(Files::find).transpose()?,
            zstd: zstd::bulk::Compressor::new(ZSTD_LEVEL)?,
        })
    }

    fn next(&mut self) -> io::Result<(&[u8], Compression)> {
        self.made += 1;
        match self.kind {
            Kind::Noise => noise(self.made, &mut self.block),
            Kind::Copies => self.page(),
            Kind::Text | Kind::Lz4 | Kind::Zstd => {
                if let Some(files) = &mut self.files {
                    files.fill(&mut self.block)?;
                }
            }
        }
        let compression = match self.kind {
            Kind::Noise | Kind::Text | Kind::Copies => return Ok((&self.block, Compression::NONE)),
            Kind::Lz4 => {
                // ZFS puts the length in front, big-endian.
                let body = lz4_flex::block::compress(&self.block);
                self.pack(&[&(body.len() as u32).to_be_bytes()], &body);
                Compression::LZ4
            }
            Kind::Zstd => {
                // Length, then version and level, big-endian; a frame without its magic number.
                let frame = self.zstd.compress(&self.block)?;
                let body = &frame[4..];
                let version_level = (10_405_u32 << 8) | ZSTD_LEVEL as u32;
                let len = body.len() as u32;
                self.pack(&[&len.to_be_bytes(), &version_level.to_be_bytes()], body);
                Compression::ZSTD
            }
        };
        // ZFS stores what does not shrink by an eighth as it is.
        if self.packed.len() > self.block.len() - self.block.len() / 8 {
            return Ok((&self.block, Compression::NONE));
        }
        Ok((&self.packed, compression))
    }

    fn pack(&mut self, head: &[&[u8]], body: &[u8]) {
        self.packed.clear();
        head.iter().for_each(|part| self.packed.extend_from_slice(part));
        self.packed.extend_from_slice(body);
        self.packed.resize(self.packed.len().next_multiple_of(SECTOR), 0);
    }

    fn page(&mut self) {
        self.seed = self
            .seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let copy = self.unique > 0 && (self.seed >> 33).is_multiple_of(2);
        let number = if copy { (self.seed >> 20) % self.unique } else { self.unique };
        self.unique += u64::from(!copy);
        let mut random = blake3::Hasher::new().update(&number.to_le_bytes()).finalize_xof();
        for row in self.block.chunks_mut(128) {
            random.fill(&mut row[..64]);
            row[64..].copy_from_slice(
                b"a row of a table whose columns repeat themselves, one by one    ",
            );
        }
    }
}

fn noise(number: u64, block: &mut [u8]) {
    blake3::Hasher::new().update(&number.to_le_bytes()).finalize_xof().fill(block);
}

/// The files of this machine: libraries and texts in turn, in the order of their names, again from the start when
/// there are too few.
struct Files {
    kinds: [VecDeque<PathBuf>; 2],
    open: [Option<fs::File>; 2],
    turn: usize,
}

/// Suffixes of what is compressed already.
const PACKED: [&str; 8] = ["gz", "xz", "zst", "bz2", "png", "jpg", "zip", "whl"];

impl Files {
    fn find() -> io::Result<Self> {
        let kinds = [list(&["/usr/lib", "/usr/bin"]), list(&["/usr/share", "/usr/include"])];
        if kinds.iter().any(VecDeque::is_empty) {
            return Err(io::Error::other("no files below /usr to make a stream of"));
        }
        Ok(Self { kinds, open: [None, None], turn: 0 })
    }

    fn fill(&mut self, block: &mut [u8]) -> io::Result<()> {
        self.turn ^= 1;
        let (files, open) = (&mut self.kinds[self.turn], &mut self.open[self.turn]);
        let (mut filled, mut unread) = (0, 0);
        while filled < block.len() {
            let read = open.as_mut().map_or(0, |file| file.read(&mut block[filled..]).unwrap_or(0));
            filled += read;
            unread = if read > 0 { 0 } else { unread + 1 };
            if unread > 2 * files.len() {
                return Err(io::Error::other("none of the files below /usr can be read"));
            }
            if read == 0
                && let Some(next) = files.pop_front()
            {
                *open = fs::File::open(&next).ok();
                files.push_back(next);
            }
        }
        Ok(())
    }
}

fn list(roots: &[&str]) -> VecDeque<PathBuf> {
    let (mut folders, mut files): (Vec<PathBuf>, Vec<PathBuf>) =
        (roots.iter().map(PathBuf::from).collect(), Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let (path, kind) = (entry.path(), entry.file_type());
            let packed = path.extension().is_some_and(|e| PACKED.iter().any(|p| e == *p));
            match kind {
                Ok(kind) if kind.is_dir() => folders.push(path),
                Ok(kind) if kind.is_file() && !packed => files.push(path),
                Ok(_) | Err(_) => {}
            }
        }
    }
    files.sort();
    files.into()
}

/// A whole stream in memory.
///
/// # Errors
/// As [`write()`].
pub fn in_memory(kind: Kind, bytes: u64) -> io::Result<Vec<u8>> {
    let mut out = Vec::new();
    write(kind, bytes, &mut out)?;
    out.flush()?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use zfs_stream::io::for_each_record;

    #[test]
    fn every_stream_is_sound_and_about_as_long_as_asked() {
        for kind in [Kind::Noise, Kind::Text, Kind::Lz4, Kind::Zstd, Kind::Copies] {
            let stream = in_memory(kind, 8 << 20).unwrap();
            assert!((8 << 20..9 << 20).contains(&stream.len()), "{kind:?}: {}", stream.len());
            let mut compressed = 0;
            for_each_record(&stream[..], |item| {
                let packed = matches!(&item.record, Record::Write(w) if w.compressed_size > 0);
                compressed += usize::from(packed);
                Ok::<_, io::Error>(())
            })
            .unwrap();
            assert_eq!(compressed > 20, matches!(kind, Kind::Lz4 | Kind::Zstd), "{kind:?}");
        }
    }

    #[test]
    fn half_of_the_copies_are_copies() {
        let stream = in_memory(Kind::Copies, 64 << 20).unwrap();
        let mut seen = std::collections::BTreeSet::new();
        let (mut all, mut again) = (0, 0);
        for_each_record(&stream[..], |item| {
            if matches!(item.record, Record::Write(_)) {
                all += 1;
                again += usize::from(!seen.insert(*blake3::hash(item.payload()).as_bytes()));
            }
            Ok::<_, io::Error>(())
        })
        .unwrap();
        assert!((all * 2 / 5..all * 3 / 5).contains(&again), "{again} of {all}");
    }
}
