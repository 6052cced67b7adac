//! The data path: a ZFS send stream from a reader on one node to a writer on the other.
//!
//! ```text
//! read ─▶ cut into records, verify ─▶ batches ─▶ hash, compress ─▶ in order ─▶ lane
//!                                                (workers)
//! lane ─▶ batches ─▶ decompress, verify hash ─▶ in order ─▶ write ─▶ answer
//!                    (workers)
//! ```
//!
//! Owns: the pipeline's threads, queues and memory, its errors, and the answer that tells the sender
//! what became of it. Leaves to others: what is sent and where it goes (the stores, by `Read` and
//! `Write`), connections ([`crate::peers`]), the bytes of frames ([`crate::frame::bulk`]).
//!
//! Read next: [`send`] and [`receive`], then [`resources`] for what bounds them.
//!
//! # Memory of a node, whatever the streams
//!
//! | what | bytes |
//! | --- | --- |
//! | sending: 8 transfers, each 1 MiB being read and cut, 2 MiB in the record reader | 24 MiB |
//! | sending: batches, 8 × 2 MiB of their own and 24 MiB shared | 40 MiB |
//! | sending: records larger than 2 MiB, one transfer at a time (16 MiB record, 8 MiB batch) | 24 MiB |
//! | receiving: batches, 8 × 2 MiB of their own and 30 MiB shared | 46 MiB |
//! | workers: 4 × compression output and contexts, 3 MiB, and 8 MiB for each of two large batches | 28 MiB |
//! | buffers that wait for the next batch, 8 × 1 MiB, see [`buffers`] | 8 MiB |
//! | QUIC: windows of one connection, 44 MiB in and 16 MiB out | 60 MiB |
//! | TLS: 16 transfers, each 256 KiB as it came and 256 KiB encrypted; the kernel's buffers beside | 8 MiB |
//! | control: queues, see [`crate::peers`] | 28 MiB |
//! | dedup: what is known of one peer's blocks, each way, see [`dedup`] | 15 MiB |
//! | reseeding: two transfers, each 16 MiB of an old copy held and 4 MiB being read, see [`reseed`] | 40 MiB |
//!
//! Together 321 MiB when everything is full at once, with one peer; each further peer adds its windows, and
//! up to the fourth what is known of its blocks.

mod answer;
pub mod budget;
pub mod buffers;
pub mod codec;
pub mod cut;
pub mod dedup;
pub mod level;
pub mod pace;
pub mod receive;
pub mod reseed;
pub mod resources;
pub mod rung;
pub mod send;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use flocker_core::ids::Fingerprint;

use crate::cancel::Cancel;
use crate::lane::Lane;
use crate::lane::choice::{Choice, LaneKind};

pub use level::{Compression, Learned, Limit};
pub use pace::{Bucket, Pace};
pub use receive::{ReceiveError, ReceiveReport, Refusal, receive_stream};
pub use reseed::OldCopy;
pub use resources::{MAX_TRANSFERS, Resources, Slot};
use rung::Rung;
pub use send::{SendError, SendOptions, SendReport, send_stream};

/// How far a transfer has come. Others read it while it runs.
#[derive(Debug, Default)]
pub struct Progress {
    raw_bytes: AtomicU64,
    wire_bytes: AtomicU64,
    batches: AtomicU64,
    saved_bytes: AtomicU64,
    stored: AtomicU64,
    deduplicates: AtomicBool,
    rung: Arc<Rung>,
    old_copy: AtomicU64,
    reseeds: AtomicBool,
}

impl Progress {
    /// Bytes of the stream: handed to the lane on the sending side, written on the receiving one.
    pub fn raw_bytes(&self) -> u64 {
        self.raw_bytes.load(Ordering::Relaxed)
    }

    /// Bytes on the wire, frames included, for the same.
    pub fn wire_bytes(&self) -> u64 {
        self.wire_bytes.load(Ordering::Relaxed)
    }

    /// Batches, for the same.
    pub fn batches(&self) -> u64 {
        self.batches.load(Ordering::Relaxed)
    }

    /// Bytes of the stream that went as references and were not asked for after all.
    pub fn saved_bytes(&self) -> u64 {
        self.saved_bytes.load(Ordering::Relaxed)
    }

    /// Whether the receiver has offered its blocks to this transfer.
    pub fn deduplicates(&self) -> bool {
        self.deduplicates.load(Ordering::Relaxed)
    }

    /// Of what is sent: the zstd level at which plain data is compressed now (`None`: stored, or nearly all that
    /// went was), where that is left to what limits the transfer, and what that is. `None`: not known yet.
    pub fn compressed(&self) -> Option<(Option<i32>, Limit)> {
        let stored = self.stored.load(Ordering::Relaxed) * 10 > self.batches() * 9;
        Some((self.rung.level().filter(|_| !stored), self.rung.limit()?))
    }

    fn went_stored(&self) {
        self.stored.fetch_add(1, Ordering::Relaxed);
    }

    /// On the sending side: bytes in which the receiver has announced an old copy; on the receiving one: bytes that it
    /// has read of that. Both grow while a transfer stands still because it waits for the old copy.
    pub fn old_copy_bytes(&self) -> u64 {
        self.old_copy.load(Ordering::Relaxed)
    }

    /// Whether blocks of an old copy were announced.
    pub fn reseeds(&self) -> bool {
        self.reseeds.load(Ordering::Relaxed)
    }

    fn announced(&self, bytes: u64, blocks: bool) {
        self.old_copy.store(bytes, Ordering::Relaxed);
        self.reseeds.fetch_or(blocks, Ordering::Relaxed);
    }

    fn add_wire(&self, wire: usize) {
        self.wire_bytes.fetch_add(wire as u64, Ordering::Relaxed);
    }

    fn add(&self, raw: usize, wire: usize) {
        self.raw_bytes.fetch_add(raw as u64, Ordering::Relaxed);
        self.wire_bytes.fetch_add(wire as u64, Ordering::Relaxed);
        self.batches.fetch_add(1, Ordering::Relaxed);
    }

    fn offered(&self, offered: bool) {
        self.deduplicates.store(offered, Ordering::Relaxed);
    }

    fn save(&self, bytes: usize) {
        self.saved_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Blocks that were thought saved went after all, taking `wire` bytes.
    fn supply(&self, bytes: usize, wire: usize) {
        self.saved_bytes.fetch_sub(bytes as u64, Ordering::Relaxed);
        self.wire_bytes.fetch_add(wire as u64, Ordering::Relaxed);
    }
}

/// The sending end of one transfer. Give it to [`send_stream`]; dropping it resets the transfer.
#[derive(Debug)]
pub struct BulkSender {
    pub(crate) lane: Lane,
    pub(crate) cancel: Cancel,
    pub(crate) resources: Arc<Resources>,
    /// With whom, for dedup; `None`: without.
    pub(crate) peer: Option<Fingerprint>,
    /// Held until the transfer is over.
    pub(crate) _slot: Option<Slot>,
    /// Told when the lane fails, where there was a choice.
    pub(crate) choice: Option<Arc<Choice>>,
    pub(crate) kind: LaneKind,
    /// How fast it may go.
    pub(crate) pace: Pace,
}

impl BulkSender {
    /// A sender over any lane, as tests and benches use it; the lane's other end is a
    /// [`BulkReceiver::over`].
    pub fn over(lane: Lane, resources: Arc<Resources>) -> Self {
        Self {
            lane,
            cancel: Cancel::default(),
            resources,
            peer: None,
            _slot: None,
            choice: None,
            kind: LaneKind::Quic,
            pace: Pace::default(),
        }
    }

    /// The lane alone, without hashing and the rest, to measure it.
    pub fn into_lane(self) -> Lane {
        self.lane
    }

    /// The same, within these limits.
    #[must_use]
    pub fn at_pace(self, pace: Pace) -> Self {
        Self { pace, ..self }
    }

    /// Which lane it takes.
    pub fn kind(&self) -> LaneKind {
        self.kind
    }

    /// The same, as one to this peer: what it is known to hold is referred to.
    #[must_use]
    pub fn to_peer(self, peer: Fingerprint) -> Self {
        Self { peer: Some(peer), ..self }
    }

    /// Stops the transfer from any thread. It also counts as cancelled once the transfer is over.
    pub fn cancel_handle(&self) -> Cancel {
        self.cancel.clone()
    }
}

/// The receiving end of one transfer. Give it to [`receive_stream`], then say with
/// [`BulkReceiver::finish`] what became of it. Dropping it resets the transfer.
#[derive(Debug)]
pub struct BulkReceiver {
    pub(crate) lane: Lane,
    pub(crate) cancel: Cancel,
    pub(crate) resources: Arc<Resources>,
    /// With whom, for dedup; `None`: without.
    pub(crate) peer: Option<Fingerprint>,
    /// Held until the transfer is over.
    pub(crate) _slot: Option<Slot>,
    pub(crate) received: Option<u64>,
    /// What the sender was told is read along.
    pub(crate) old_copy: Option<OldCopy>,
}

impl BulkReceiver {
    /// A receiver over any lane, as tests and benches use it.
    pub fn over(lane: Lane, resources: Arc<Resources>) -> Self {
        let cancel = Cancel::default();
        Self { lane, cancel, resources, peer: None, _slot: None, received: None, old_copy: None }
    }

    /// The lane alone, without hashing and the rest, to measure it.
    pub fn into_lane(self) -> Lane {
        self.lane
    }

    /// The same, as one from this peer: blocks that came from it may be referred to.
    #[must_use]
    pub fn from_peer(self, peer: Fingerprint) -> Self {
        Self { peer: Some(peer), ..self }
    }

    /// From an old copy of what comes: the sender was told, and waits for it ([`SendOptions::reseed`]). Only what
    /// the sender may know is given here: it learns which blocks of its stream the old copy has.
    pub fn reseed_from(&mut self, old_copy: OldCopy) {
        self.old_copy = Some(old_copy);
    }

    /// Stops the transfer from any thread; [`BulkReceiver::finish`] can still say why.
    pub fn cancel_handle(&self) -> Cancel {
        self.cancel.clone()
    }
}
