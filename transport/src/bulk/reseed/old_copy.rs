//! Reading an old copy: the receiver's own send of it, on a thread of its own.
//!
//! Owns: the thread. When the transfer ends it is left behind: it drops the reader, which stops the send, as soon as
//! the read that it may be blocked in returns.

use std::fmt;
use std::io::{self, Read};
use std::sync::Arc;

use zfs_stream::Reader;

use super::held::{Closed, Held};
use crate::bulk::resources::Resources;
use crate::bulk::send::spawn;

/// Bytes asked of the reader at once.
const PIECE_BYTES: usize = 256 << 10;

/// A record that needs more than this to be put together is longer than any that is announced, and its like follow.
const READER_BYTES: usize = 3 << 20;

/// Longest nvlist of a BEGIN, in bytes: encryption keys take a few KiB.
const BEGIN_BYTES: usize = 1 << 20;

/// The old copy of what a transfer brings: its send stream, made with the flags of the one that comes.
pub struct OldCopy {
    read: Option<Box<dyn Read + Send>>,
}

impl fmt::Debug for OldCopy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OldCopy").field("is_there", &self.read.is_some()).finish()
    }
}

impl OldCopy {
    /// This stream of it.
    pub fn new(read: impl Read + Send + 'static) -> Self {
        Self { read: Some(Box::new(read)) }
    }

    /// It was promised, and cannot be read after all: the sender is told not to wait.
    pub fn gone() -> Self {
        Self { read: None }
    }

    /// Begins to read it into `held`; where that cannot be, its end is announced.
    pub(crate) fn start(self, resources: &Resources, held: &Arc<Held>) {
        let (Some(read), Some(slot)) = (self.read, resources.reseed_slot()) else {
            return held.end();
        };
        held.begin(slot);
        let holding = Arc::clone(held);
        let started = spawn("flocker-old-copy", move || {
            match follow(read, &holding) {
                Ok(()) => {}
                Err(Stop::Closed) => return,
                Err(Stop::Read(error)) => {
                    tracing::warn!(%error, "the old copy cannot be read on; the rest goes without it");
                }
                Err(Stop::Large) => {
                    tracing::info!("the old copy has records too large to be referred to");
                }
            }
            holding.end();
        });
        if let Err(error) = started {
            tracing::warn!(%error, "no thread reads the old copy; all of it is sent");
            held.end();
        }
    }
}

enum Stop {
    Closed,
    Read(io::Error),
    Large,
}

impl From<Closed> for Stop {
    fn from(_: Closed) -> Self {
        Self::Closed
    }
}

/// Hashes and holds what `read` yields, block after block.
fn follow(mut read: impl Read, held: &Held) -> Result<(), Stop> {
    let mut records = Reader::with_begin_limit(BEGIN_BYTES);
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        let len = match read.read(&mut piece) {
            Ok(0) => return records.finish().map_err(|e| Stop::Read(io::Error::other(e))),
            Ok(len) => len,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(Stop::Read(error)),
        };
        let mut input = &piece[..len];
        while let Some(item) =
            records.next(&mut input).map_err(|e| Stop::Read(io::Error::other(e)))?
        {
            let (len, block) = (item.bytes().len(), item.payload());
            let Some(place) = super::place(&item.record) else {
                continue;
            };
            if super::takes(block.len()) && held.wants(place) {
                held.add(place, *blake3::hash(block).as_bytes(), block)?;
            } else {
                held.reach(place, len)?;
            }
        }
        if records.buffered_capacity() > READER_BYTES {
            return Err(Stop::Large);
        }
    }
}
