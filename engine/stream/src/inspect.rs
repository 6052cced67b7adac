//! A report on a stream: what is in it, and whether it is whole.
//!
//! Owns: counting. Leaves reading to [`crate::reader`], and printing to the caller; the structs are plain,
//! and `serde::Serialize` with the feature `serde`.

use std::collections::BTreeMap;
use std::io::{self, Read};

use crate::error::StreamError;
use crate::format::{Compression, Endian, Features, begin_flag, objset};
use crate::grammar::Part;
use crate::nvlist::NvList;
use crate::reader::{Item, Reader};
use crate::record::{Begin, Kind, Record};

/// Most substreams that are listed one by one; those beyond are in the totals only.
pub const MAX_LISTED: usize = 10_000;

/// Records and their bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Tally {
    /// How many.
    pub records: u64,
    /// Bytes of their payloads.
    pub payload_bytes: u64,
}

impl Tally {
    fn add(&mut self, item: &Item<'_>) {
        self.records += 1;
        self.payload_bytes += item.payload().len() as u64;
    }
}

/// A whole stream.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Summary {
    /// Whether it is whole.
    pub verdict: Verdict,
    /// Whether it is a package of substreams.
    pub package: bool,
    /// Byte order, `None` before the first record.
    pub endian: Option<Endian>,
    /// Records read.
    pub records: u64,
    /// Bytes of the records read.
    pub bytes: u64,
    /// By type of record, over all of them.
    pub totals: BTreeMap<Kind, Tally>,
    /// The snapshots in it, in their order, up to [`MAX_LISTED`].
    pub substreams: Vec<Substream>,
    /// Snapshots that [`Self::substreams`] leaves out.
    pub substreams_unlisted: u64,
}

/// Whether a stream is whole.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize),
    serde(rename_all = "snake_case", tag = "state")
)]
pub enum Verdict {
    /// Every record and every checksum is right, up to the last END.
    Whole,
    /// It is not.
    Bad {
        /// Number of the record at which that was found.
        record: u64,
        /// Where it begins, bytes.
        offset: u64,
        /// What is wrong, in words.
        message: String,
        /// The same, typed.
        #[cfg_attr(feature = "serde", serde(skip))]
        error: StreamError,
    },
}

/// One snapshot's stream.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Substream {
    /// Name of the snapshot on the sender.
    pub to_name: String,
    /// Its guid.
    pub to_guid: u64,
    /// Guid of the base; `None` for a full stream.
    pub from_guid: Option<u64>,
    /// When the snapshot was made, seconds since 1970.
    pub creation_time_s: u64,
    /// `filesystem`, `volume`, or ZFS's number.
    pub objset: String,
    /// Names of the features announced.
    pub features: Vec<&'static str>,
    /// Names of the flags in BEGIN.
    pub flags: Vec<&'static str>,
    /// Whether each record carries a checksum; `None` before the first.
    pub sealed: Option<bool>,
    /// Whether it is raw (`-w`).
    pub raw: bool,
    /// Whether it is redacted.
    pub redacted: bool,
    /// Whether it is the rest of an interrupted stream, and from where.
    pub resumed: Option<Resumed>,
    /// By type of record, BEGIN and END included.
    pub records: BTreeMap<Kind, Tally>,
    /// By compression: payloads of WRITE, WRITE_EMBEDDED and SPILL.
    pub compressions: BTreeMap<String, Tally>,
    /// Bytes of blocks when decompressed: WRITE, WRITE_EMBEDDED and SPILL.
    pub logical_bytes: u64,
    /// Whether its END came and was right.
    pub complete: bool,
}

/// Where a resumed stream goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Resumed {
    /// Object; `None` when BEGIN does not say so readably.
    pub object: Option<u64>,
    /// Offset in it, bytes.
    pub offset: Option<u64>,
}

/// Counts a stream as it comes.
#[derive(Debug, Clone)]
pub struct Inspector {
    reader: Reader,
    summary: Summary,
    failed: Option<StreamError>,
}

impl Default for Inspector {
    fn default() -> Self {
        Self::new()
    }
}

impl Inspector {
    /// An inspector that has seen nothing.
    pub fn new() -> Self {
        Self {
            reader: Reader::new(),
            failed: None,
            summary: Summary {
                verdict: Verdict::Whole,
                package: false,
                endian: None,
                records: 0,
                bytes: 0,
                totals: BTreeMap::new(),
                substreams: Vec::new(),
                substreams_unlisted: 0,
            },
        }
    }

    /// Takes the next bytes. Returns whether more make sense: after a problem they do not.
    pub fn feed(&mut self, mut input: &[u8]) -> bool {
        loop {
            match self.reader.next(&mut input) {
                Ok(Some(item)) => self.summary.count(&item),
                Ok(None) => return true,
                Err(error) => {
                    self.failed.get_or_insert(error);
                    return false;
                }
            }
        }
    }

    /// Says that the stream has ended, and returns the report.
    pub fn finish(mut self) -> Summary {
        let error = self.failed.or_else(|| self.reader.finish().err());
        if let Some(error) = error {
            self.summary.verdict = Verdict::Bad {
                record: error.record,
                offset: error.offset,
                message: error.problem.to_string(),
                error,
            };
        }
        self.summary
    }
}

/// Reads a stream to its end and reports on it; a bad stream is in the report, not an error.
///
/// # Errors
/// Those of `source`.
pub fn inspect(mut source: impl Read) -> io::Result<Summary> {
    let mut inspector = Inspector::new();
    let mut chunk = vec![0; crate::io::CHUNK];
    loop {
        match source.read(&mut chunk) {
            Ok(0) => return Ok(inspector.finish()),
            Ok(len) => {
                if !inspector.feed(&chunk[..len]) {
                    return Ok(inspector.finish());
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

impl Summary {
    /// Whether the stream is whole.
    pub fn is_whole(&self) -> bool {
        self.verdict == Verdict::Whole
    }

    fn count(&mut self, item: &Item<'_>) {
        self.records += 1;
        self.bytes += item.bytes().len() as u64;
        self.endian = Some(item.endian);
        self.totals.entry(item.record.kind()).or_default().add(item);
        match item.part {
            Part::PackageBegin => self.package = true,
            Part::PackageHeaderEnd | Part::PackageEnd => {}
            Part::Begin => {
                if let Record::Begin(begin) = &item.record {
                    self.open(begin, item.payload());
                }
                self.count_in_substream(item);
            }
            Part::Body | Part::End => self.count_in_substream(item),
        }
    }

    fn open(&mut self, begin: &Begin, payload: &[u8]) {
        if self.substreams.len() >= MAX_LISTED {
            self.substreams_unlisted += 1;
        } else {
            self.substreams.push(Substream::new(begin, payload));
        }
    }

    fn count_in_substream(&mut self, item: &Item<'_>) {
        if self.substreams_unlisted == 0
            && let Some(substream) = self.substreams.last_mut()
        {
            substream.count(item);
        }
    }
}

impl Substream {
    fn new(begin: &Begin, payload: &[u8]) -> Self {
        let resumed = begin.features.contains(Features::RESUMING).then(|| {
            let list = NvList::unpack(payload).unwrap_or_default();
            Resumed { object: list.u64("resume_object"), offset: list.u64("resume_offset") }
        });
        Self {
            to_name: begin.name().into_owned(),
            to_guid: begin.to_guid,
            from_guid: (!begin.is_full()).then_some(begin.from_guid),
            creation_time_s: begin.creation_time_s,
            objset: objset::name(begin.objset_type)
                .map_or_else(|| begin.objset_type.to_string(), String::from),
            features: begin.features.names(),
            flags: begin_flag::names(begin.flags),
            sealed: None,
            raw: begin.features.contains(Features::RAW),
            redacted: begin.features.contains(Features::REDACTED),
            resumed,
            records: BTreeMap::new(),
            compressions: BTreeMap::new(),
            logical_bytes: 0,
            complete: false,
        }
    }

    fn count(&mut self, item: &Item<'_>) {
        self.records.entry(item.record.kind()).or_default().add(item);
        if item.part != Part::Begin {
            self.sealed = Some(item.sealed);
        }
        self.complete = item.part == Part::End;
        let (compression, logical) = match &item.record {
            Record::Write(r) => (r.compression, r.logical_size),
            Record::Spill(r) => (r.compression, r.length),
            Record::WriteEmbedded(r) => (r.compression, u64::from(r.logical_size)),
            Record::Begin(_)
            | Record::Object(_)
            | Record::FreeObjects(_)
            | Record::Free(_)
            | Record::End(_)
            | Record::WriteByRef(_)
            | Record::ObjectRange(_)
            | Record::Redact(_) => return,
        };
        // "as it is" and "off" are the same to whoever reads a report.
        let compression =
            if compression == Compression::OFF { Compression::NONE } else { compression };
        self.compressions.entry(compression.to_string()).or_default().add(item);
        self.logical_bytes += logical;
    }
}
