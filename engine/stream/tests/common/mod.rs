//! The golden streams, found and decompressed.
#![allow(dead_code, missing_docs, reason = "each test binary uses a part of it")]

use std::path::PathBuf;

use zfs_stream::record::Header;
use zfs_stream::{Endian, Part, Reader, Record, Seal, StreamError, Writer};

pub(crate) fn golden_dir() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden")
}

/// The crate can be tested outside its repository, where the golden streams are not.
pub(crate) fn names() -> Vec<String> {
    let Ok(dir) = std::fs::read_dir(golden_dir().join("streams")) else {
        eprintln!("SKIPPED: no golden streams beside this crate");
        return Vec::new();
    };
    let mut names: Vec<String> = dir
        .map(|entry| entry.expect("listing").file_name().into_string().expect("UTF-8"))
        .filter_map(|file| file.strip_suffix(".zstream.zst").map(String::from))
        .collect();
    names.sort();
    assert!(names.len() >= 46, "golden streams are missing: {names:?}");
    names
}

/// Those that are whole: all but the first part of an interrupted one.
pub(crate) fn whole_names() -> Vec<String> {
    names().into_iter().filter(|name| name != "resume-part1-truncated").collect()
}

pub(crate) fn golden(name: &str) -> Vec<u8> {
    unzstd(&format!("streams/{name}.zstream.zst"))
}

pub(crate) fn unzstd(path: &str) -> Vec<u8> {
    let file = std::fs::File::open(golden_dir().join(path)).expect(path);
    zstd::decode_all(file).expect(path)
}

/// One record, owned.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Owned {
    pub(crate) record: Record,
    pub(crate) part: Part,
    pub(crate) header: Header,
    pub(crate) payload: Vec<u8>,
    pub(crate) sealed: bool,
    pub(crate) offset: u64,
    pub(crate) endian: Endian,
}

/// Reads `stream` in pieces that end at `cuts` (ascending).
pub(crate) fn read_cut(
    stream: &[u8],
    cuts: impl Iterator<Item = usize>,
) -> (Vec<Owned>, Result<(), StreamError>) {
    let mut reader = Reader::new();
    let mut items = Vec::new();
    let mut from = 0;
    for to in cuts.chain([stream.len()]) {
        let mut input = &stream[from..to];
        from = to;
        loop {
            match reader.next(&mut input) {
                Ok(Some(item)) => {
                    assert_eq!(item.index, items.len() as u64);
                    items.push(Owned {
                        part: item.part,
                        header: *item.header(),
                        payload: item.payload().to_vec(),
                        sealed: item.sealed,
                        offset: item.offset,
                        endian: item.endian,
                        record: item.record,
                    });
                }
                Ok(None) => break,
                Err(error) => return (items, Err(error)),
            }
        }
    }
    let end = reader.finish();
    (items, end)
}

pub(crate) fn read(stream: &[u8]) -> Vec<Owned> {
    let (items, end) = read_cut(stream, std::iter::empty());
    end.expect("a whole stream");
    items
}

/// The end of reading, without keeping the items.
pub(crate) fn verify(stream: &[u8]) -> Result<(), StreamError> {
    let mut reader = Reader::new();
    let mut input = stream;
    while reader.next(&mut input)?.is_some() {}
    reader.finish()
}

pub(crate) fn write(items: &[Owned], seal: Seal) -> Vec<u8> {
    let endian = items.first().map_or(Endian::Little, |item| item.endian);
    let mut writer = Writer::with_endian(seal, endian);
    let mut out = Vec::new();
    for item in items {
        writer.record(&item.record, &item.payload, &mut out).expect("what was read can be written");
    }
    assert!(writer.is_done());
    out
}

pub(crate) fn seal_of(name: &str) -> Seal {
    if name.starts_with("fuse-") { Seal::EndOnly } else { Seal::PerRecord }
}
