//! The order in which records may come.
//!
//! ```text
//! stream    = substream | package
//! substream = BEGIN(hdrtype 1)  body record*  END
//! package   = BEGIN(hdrtype 2, nvlist)  END  substream*  END
//!
//!   Start ──BEGIN 1──▶ Body ──END──▶ Done
//!     └─────BEGIN 2──▶ PackageHeader ──END──▶ Package ──END──▶ Done
//!                                              │   ▲
//!                                         BEGIN 1  END
//!                                              ▼   │
//!                                               Body
//! ```
//!
//! Owns: this machine, shared by reader and writer so that what one makes the other takes; and what every
//! record owes to its BEGIN: the guid, the announced features, plausible values. Leaves checksums to them.

use crate::error::Problem;
use crate::plausible;
use crate::record::{Begin, HeaderType, Record};

/// The part a record plays in the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Part {
    /// The outer BEGIN of a package; its payload is the package's nvlist.
    PackageBegin,
    /// The END right behind it. It is not sealed, but carries the checksum of what is before it.
    PackageHeaderEnd,
    /// BEGIN of one snapshot; its payload, if any, is an nvlist.
    Begin,
    /// Any record between BEGIN and END.
    Body,
    /// END of one snapshot: everything since its BEGIN is proven.
    End,
    /// The last END of a package, all zero but for its type.
    PackageEnd,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    Start,
    PackageHeader(Begin),
    Package,
    Body { begin: Begin, in_package: bool },
    Done,
}

/// Where a stream stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grammar {
    state: State,
}

impl Default for Grammar {
    fn default() -> Self {
        Self { state: State::Start }
    }
}

impl Grammar {
    /// Whether the stream is complete: nothing may follow.
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// The BEGIN of the open substream.
    pub fn open(&self) -> Option<&Begin> {
        match &self.state {
            State::Body { begin, .. } => Some(begin),
            State::Start | State::PackageHeader(_) | State::Package | State::Done => None,
        }
    }

    /// Whether the next record belongs to an open substream.
    pub(crate) fn in_body(&self) -> bool {
        matches!(self.state, State::Body { .. })
    }

    /// Whether the next record may be a BEGIN.
    pub(crate) fn awaits_begin(&self) -> bool {
        matches!(self.state, State::Start | State::Package)
    }

    /// Whether the substream (or package) about to begin is the outermost.
    pub(crate) fn at_start(&self) -> bool {
        self.state == State::Start
    }

    /// Takes the next record, and says which part it plays.
    ///
    /// # Errors
    /// [`Problem::Misplaced`], [`Problem::UnknownFeatures`], [`Problem::GuidMismatch`],
    /// [`Problem::Implausible`]. After an error the state is as before.
    pub fn admit(&mut self, record: &Record) -> Result<Part, Problem> {
        let misplaced = |expected| Problem::Misplaced { found: record.kind(), expected };
        let (part, next) = match (&self.state, record) {
            (State::Start, Record::Begin(begin)) => match begin.header_type {
                HeaderType::Compound => (Part::PackageBegin, State::PackageHeader(known(begin)?)),
                HeaderType::Substream => {
                    (Part::Begin, State::Body { begin: known(begin)?, in_package: false })
                }
            },
            (State::Start, _) => return Err(misplaced("BEGIN")),
            (State::PackageHeader(begin), Record::End(_)) => {
                belongs(record, begin)?;
                (Part::PackageHeaderEnd, State::Package)
            }
            (State::PackageHeader(_), _) => {
                return Err(misplaced("the END of the package's header"));
            }
            (State::Package, Record::Begin(begin))
                if begin.header_type == HeaderType::Substream =>
            {
                (Part::Begin, State::Body { begin: known(begin)?, in_package: true })
            }
            (State::Package, Record::End(_)) => {
                belongs(record, &Begin::default())?;
                (Part::PackageEnd, State::Done)
            }
            (State::Package, _) => {
                return Err(misplaced("the BEGIN of a substream or the package's END"));
            }
            (State::Body { .. }, Record::Begin(_)) => {
                return Err(misplaced("a record of the open substream"));
            }
            (State::Body { begin, in_package }, Record::End(_)) => {
                belongs(record, begin)?;
                (Part::End, if *in_package { State::Package } else { State::Done })
            }
            (State::Body { begin, .. }, _) => {
                belongs(record, begin)?;
                plausible::check(record, begin)
                    .map_err(|nonsense| Problem::Implausible { kind: record.kind(), nonsense })?;
                return Ok(Part::Body);
            }
            (State::Done, _) => return Err(Problem::TrailingBytes),
        };
        self.state = next;
        Ok(part)
    }
}

fn known(begin: &Begin) -> Result<Begin, Problem> {
    if plausible::features_known(begin) {
        Ok(begin.clone())
    } else {
        Err(Problem::UnknownFeatures { features: begin.features })
    }
}

fn belongs(record: &Record, begin: &Begin) -> Result<(), Problem> {
    match record.to_guid() {
        found if found == begin.to_guid => Ok(()),
        found => Err(Problem::GuidMismatch { kind: record.kind(), begin: begin.to_guid, found }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{End, Free, Kind};

    const GUID: u64 = 7;

    fn begin(header_type: HeaderType) -> Record {
        let to_guid = if header_type == HeaderType::Substream { GUID } else { 0 };
        Record::Begin(Begin { header_type, to_guid, ..Begin::default() })
    }
    fn end(to_guid: u64) -> Record {
        Record::End(End { to_guid, ..End::default() })
    }
    fn free(to_guid: u64) -> Record {
        Record::Free(Free { object: 1, to_guid, ..Free::default() })
    }
    /// One word per record: P package BEGIN, B substream BEGIN, f a body record, E its END, e a package END.
    fn check(records: &str, done: bool) -> Result<(), (usize, Problem)> {
        let mut grammar = Grammar::default();
        for (at, word) in records.chars().enumerate() {
            let record = match word {
                'P' => begin(HeaderType::Compound),
                'B' => begin(HeaderType::Substream),
                'f' => free(GUID),
                'x' => free(GUID + 1),
                'E' => end(GUID),
                _ => end(0),
            };
            grammar.admit(&record).map_err(|problem| (at, problem))?;
        }
        assert_eq!(grammar.is_done(), done, "{records}");
        Ok(())
    }
    fn refused_at(records: &str) -> usize {
        check(records, false).expect_err(records).0
    }

    #[test]
    fn streams_and_packages_come_in_their_order() {
        for complete in ["BE", "Bffff E", "Pee", "PeBEe", "PeBffEBfEe"] {
            check(&complete.replace(' ', ""), true).expect("admitted");
        }
        for open in ["", "B", "Bf", "P", "Pe", "PeB", "PeBE"] {
            check(open, false).expect("admitted");
        }
    }

    #[test]
    fn a_record_out_of_its_order_is_refused_where_it_stands() {
        for (records, at) in [
            ("f", 0),
            ("E", 0),
            ("BB", 1),
            ("PB", 1),
            ("Pf", 1),
            ("PeP", 2),
            ("Pef", 2),
            ("BEf", 2),
            ("Peee", 3),
        ] {
            assert_eq!(refused_at(records), at, "{records}");
        }
    }

    #[test]
    fn a_record_of_another_snapshot_is_refused() {
        assert_eq!(refused_at("Bfxf"), 2);
        assert_eq!(refused_at("Be"), 1);
    }

    #[test]
    fn what_begin_does_not_announce_is_refused() {
        let mut grammar = Grammar::default();
        grammar.admit(&begin(HeaderType::Substream)).expect("BEGIN");
        let embedded = Record::WriteEmbedded(crate::record::WriteEmbedded {
            object: 1,
            length: 512,
            to_guid: GUID,
            ..Default::default()
        });
        assert!(matches!(
            grammar.admit(&embedded),
            Err(Problem::Implausible { kind: Kind::WriteEmbedded, .. })
        ));
    }
}
