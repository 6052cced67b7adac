//! Reseeding: a full stream into a new dataset, beside an old copy that the receiver still has of it.
//!
//! ```text
//! sender                                            receiver
//!                                                   its own send of the old copy, record by record
//!             ◀── Seeds{reached, (place, len, prefix)…}   hashed, held in memory, announced
//!   waits until what is announced has reached its own next block
//!   Passed{place}, then a batch: references ──▶     out of what is held
//!                                                   lets go of what lies before the place
//! ```
//!
//! Owns: what is announced and held, how far the two streams may be apart, and reading the old copy. Leaves to
//! others: references, their credit, what is missing ([`super::dedup`]), the bytes of frames
//! ([`crate::frame::reseed`]), which old copy there is and whether it may be used (the engine).
//!
//! Read next: [`held`] for the receiver's side, [`announced`] for the sender's, [`old_copy`] for the thread that reads.
//!
//! # Why two streams side by side
//!
//! Send streams have their blocks in one order, by object and offset (see [`Place`]): so two of them can be
//! walked side by side, as two sorted lists are merged, and a block that is the same in both is met in both at about the
//! same time. That takes a bounded window instead of an index of the old copy, works for whatever a store can
//! send (filesystems, volumes, raw streams), and reads the old copy once, in order. Within the window a block is found
//! by its content, wherever it is: so a file that was moved to an object nearby is found as well, and a
//! stream in another order is no error, only less is found.
//!
//! The receiver announces, rather than being asked for hashes that it may not have: a block that changed would cost
//! a round trip each.
//!
//! # Why it is never wrong
//!
//! A block is hashed when it is read from the old copy, is held in memory from then on, and is found by its whole hash
//! alone. The batch's seal binds every byte as ever. What is announced is only a guess for the sender: it keeps what it
//! refers to until that is resolved, and sends it if asked.
//!
//! # Why it does not get stuck
//!
//! Both sides count what is announced and not passed: at most [`SEED_WINDOW`]. The reading thread waits for room; the
//! sender waits for announcements up to the end of its next batch. Both at once cannot be: before the sender waits while
//! the window may be full, it sends [`Passed`] with the place where that batch begins, and does not wait any more when
//! the window is full again of what lies behind it: so much of the old copy was taken out within one batch. An old copy
//! that ends, fails or stands still is no reason to wait: its end is announced, and who hears nothing for [`PATIENCE`]
//! goes on as without.
//!
//! The receiver's threads that take batches and write them never wait for the old copy.
//!
//! [`Passed`]: crate::frame::reseed::Passed

pub mod announced;
pub mod held;
pub mod old_copy;

use std::time::Duration;

use zfs_stream::Record;

use crate::frame::dedup::MIN_BLOCK;
use crate::frame::reseed::MAX_SEED;

pub use crate::frame::reseed::{Place, SEED_WINDOW};
pub use old_copy::OldCopy;

/// How long a sender waits for the next word of the old copy, before it goes on as if there were none.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Where the block of a record is, if it has one.
pub fn place(record: &Record) -> Option<Place> {
    match record {
        Record::Write(write) => Some(Place { object: write.object, offset: write.offset }),
        Record::Spill(spill) => Some(Place { object: spill.object, offset: u64::MAX }),
        _ => None,
    }
}

/// Whether a payload of this length is announced and referred to.
pub fn takes(len: usize) -> bool {
    (MIN_BLOCK..=MAX_SEED).contains(&len)
}
