//! # zfs-stream
//!
//! A sans-IO reader and writer of the stream that `zfs send` makes and `zfs receive` takes: a run of
//! 312-byte records (`dmu_replay_record`), some with a payload, each sealed by a running fletcher4.
//!
//! Owns: the wire format of the stream, its checksums, its limits, resume tokens, and the report on a
//! stream. Leaves to others: files, pipes and threads (callers bring slices), what the payloads mean
//! (object sets, decompression, decryption), and the policy of what to send.
//!
//! Read next: [`reader`] for the contract of reading, [`record`] for the record types, [`grammar`] for
//! the order in which they may come, [`writer`] for the way back to bytes.
//!
//! ```
//! use zfs_stream::{Reader, StreamError};
//!
//! fn count(mut chunk: &[u8]) -> Result<u64, StreamError> {
//!     let mut reader = Reader::new();
//!     let mut payload_bytes = 0;
//!     while let Some(item) = reader.next(&mut chunk)? {
//!         payload_bytes += item.payload().len() as u64;
//!     }
//!     reader.finish()?;
//!     Ok(payload_bytes)
//! }
//! assert!(count(b"not a stream").is_err());
//! ```
//!
//! Sources of the format: `include/sys/zfs_ioctl.h`, `module/zfs/dmu_send.c`, `module/zfs/dmu_recv.c` and
//! `lib/libzfs/libzfs_sendrecv.c` of OpenZFS, read for facts; and real streams in `tests/golden`.

/// The README, whose example is tested.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
pub struct Readme;

pub mod error;
pub mod fletcher;
pub mod format;
pub mod fuzzing;
pub mod grammar;
pub mod inspect;
pub mod io;
pub mod nvlist;
pub mod plausible;
pub mod reader;
pub mod record;
pub mod token;
pub mod writer;

pub use error::{Problem, StreamError};
pub use fletcher::{Checksum, Fletcher4};
pub use format::{Compression, Endian, Features, HEADER_LEN};
pub use grammar::Part;
pub use reader::{Item, Reader};
pub use record::{Kind, Record};
pub use writer::{Seal, WriteError, Writer};
