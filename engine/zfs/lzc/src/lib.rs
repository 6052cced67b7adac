//! libzfs_core, libnvpair and `/dev/zfs` as a safe Rust API, opened at run time.
//!
//! Owns: the symbol tables, the nvlists that go in and come out, the errors by name, our channel programs.
//! Leaves to others: names that are ours, what to replicate, what is in a stream, fencing and mounting (the
//! kernel's receive and create never mount anything; nor does this crate). Knows no other crate of this
//! workspace. Starts no process.
//!
//! Read next: [`Lzc`], then [`stats`] for what is read, [`receive`] and [`send`] for bulk data, `sys` for every line of
//! `unsafe` there is.
//!
//! # Rules
//!
//! * Nothing here forces: no `force` of a receive, no recursive or deferred destruction that was not asked
//!   for, no rollback past the newest snapshot. The one argument called `force` that is ever passed is that of
//!   [`Lzc::sync`], which the kernel insists on, and it is false.
//! * Every call blocks, some for as long as a stream lasts: plain threads only. While one runs, its thread takes
//!   no signals: one signal, whatever its handler, makes a send or a receive fail with `EINTR`. To stop one, close
//!   the other end of its pipe.
//! * Names are checked for length before the library sees them, since it cuts them off silently.
//! * Errors are a number each, and one for each name where ZFS says so: see [`LzcError`].
//!
//! # Versions
//!
//! The soname is `libzfs_core.so.3` in OpenZFS 2.1 to 2.4, and the functions used here have the same
//! signatures in all of them (`include/libzfs_core.h`, `lib/libzfs_core/libzfs_core.abi`). One that is missing
//! is [`LzcError::NotAvailable`] when it is called, and nothing else suffers; [`Lzc::offers`] asks beforehand.

mod bookmarks;
mod datasets;
mod error;
mod holds;
mod lua;
mod name;
pub mod nv;
pub mod program;
pub mod receive;
pub mod send;
mod session;
mod snapshots;
pub mod stats;
#[allow(unsafe_code)] // The C libraries are called here and nowhere else.
mod sys;

pub use bookmarks::Bookmark;
pub use datasets::DatasetType;
pub use error::{Errno, Limit, LzcError, NameErrors, OpenError, Operation};
pub use name::NameProblem;
pub use program::UserChange;
pub use receive::{BEGIN_LEN, Properties, Receive, Received, Setting};
pub use send::{ResumePoint, SendFlags};
pub use session::Lzc;
pub use stats::{Inventory, ObjsetType, Property, PropertySource, PropertyValue, Snapshot, Stats};
pub use sys::Function;
