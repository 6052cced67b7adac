//! The body of the fuzz target `stream`, as a plain function, so that its corpus is replayed by `cargo test`
//! on any toolchain. It checks what has to hold for every input.
//!
//! Owns: those checks. Not part of the API that others should build on.

use crate::error::StreamError;
use crate::grammar::Part;
use crate::nvlist::NvList;
use crate::reader::Reader;
use crate::token::ResumeToken;
use crate::writer::{Seal, Writer};

/// Allocation never goes beyond the bytes that came, but for growth by doubling and this much.
const SLACK_BYTES: usize = 4 << 10;

/// Runs one input through everything that decodes.
///
/// # Panics
/// When one of our promises does not hold, which is what the fuzzer looks for.
pub fn fuzz_one(data: &[u8]) {
    let (step, stream) = match data.split_first() {
        Some((first, rest)) => (usize::from(*first) * 7 + 1, rest),
        None => (1, data),
    };
    let whole = read(stream, stream.len().max(1));
    let chopped = read(stream, step);
    assert!(whole == chopped, "the same bytes in other pieces gave other items");

    let _ = NvList::unpack(stream);
    if let Ok(text) = std::str::from_utf8(data)
        && let Ok(token) = text.parse::<ResumeToken>()
        && token.unknown.is_empty()
    {
        let again = token.to_string().parse::<ResumeToken>().expect("a token that we wrote");
        assert!(again == token, "a token came back changed");
    }
}

/// Reads `stream` in pieces of `step` bytes. Returns how many records and bytes were good, and the end.
fn read(stream: &[u8], step: usize) -> (u64, u64, Result<(), StreamError>) {
    let mut reader = Reader::new();
    let mut again = Writers::default();
    let mut good = 0;
    for piece in stream.chunks(step) {
        let mut input = piece;
        loop {
            match reader.next(&mut input) {
                Ok(Some(item)) => {
                    let from = usize::try_from(item.offset).expect("within the input");
                    assert!(
                        item.bytes() == &stream[from..from + item.bytes().len()],
                        "not the stream's bytes"
                    );
                    good = item.offset + item.bytes().len() as u64;
                    again.write(&item);
                }
                Ok(None) => break,
                Err(error) => return (reader.records(), good, Err(error)),
            }
        }
        assert!(input.is_empty(), "no record, no error, and bytes left");
        assert!(
            reader.buffered_capacity() <= 2 * stream.len() + SLACK_BYTES,
            "allocated more than came"
        );
    }
    let end = reader.finish();
    if end.is_ok() {
        again.compare(stream);
    }
    (reader.records(), good, end)
}

/// Writes what is read, in the dialect of its first sealed or unsealed record.
#[derive(Default)]
struct Writers {
    items: Vec<(crate::record::Record, crate::record::Header, Vec<u8>)>,
    endian: crate::format::Endian,
    seals: Vec<bool>,
}

impl Writers {
    fn write(&mut self, item: &crate::reader::Item<'_>) {
        self.items.push((item.record.clone(), *item.header(), item.payload().to_vec()));
        self.endian = item.endian;
        if matches!(item.part, Part::Body | Part::End) {
            self.seals.push(item.sealed);
        }
    }

    fn compare(&self, stream: &[u8]) {
        // No sender mixes dialects inside a package, and the writer has one.
        if self.seals.iter().any(|sealed| *sealed != self.seals[0]) {
            return;
        }
        let seal = if self.seals.first() == Some(&false) { Seal::EndOnly } else { Seal::PerRecord };
        let mut writer = Writer::with_endian(seal, self.endian);
        let mut out = Vec::new();
        for (record, header, payload) in &self.items {
            writer
                .record_over(record, header, payload, &mut out)
                .expect("what was read can be written");
        }
        assert!(out == stream, "what was read was written differently");
    }
}
