//! # flocker-vault
//!
//! A store of ZFS streams in plain files: no ZFS, no root.
//!
//! A dataset is an object set as the send stream describes it. A receive applies records to objects and
//! blocks; a snapshot is the hash of the resulting tree; a send is the difference of two trees, as records
//! again, which real ZFS receives. So a vault is a standby for real ZFS datasets: filesystems and zvols; raw
//! encrypted ones, too, which it keeps sealed and hands on as they came. Live volumes here are the disk image of
//! a zvol, and directories, kept as a private kind of object set.
//!
//! ```text
//!   stream ─▶ receive ─▶ apply ─▶ objset ─▶ tree ─▶ blocks ─▶ pack files
//!   stream ◀─ send    ◀─ emit  ◀── diff  ◀── tree ◀─ blocks      + index (redb)
//!   directory ─▶ dir::scan ─▶ objset             tree ─▶ dir::checkout ─▶ directory
//! ```
//!
//! Owns: the format on disk, its durability, what of the stream's meaning is needed to keep and resend it.
//! Leaves to others: the stream's bytes and checksums (`zfs-stream`), which snapshot to take or send when
//! (`flocker-core`), and moving bytes between nodes (`flocker-transport`).
//!
//! Invariants: a snapshot that was reported is whole and durable, whatever is killed when. Nothing that a
//! receive brings is visible before its commit, but that a part of it is here and where the rest begins. Every block is proven by its BLAKE3 when it is read. Memory
//! is bounded, whatever the size of a dataset.
//!
//! Read next: [`Vault`], then `layout` (the directory), `blocks` (durability), `tree`, `apply` and `emit`
//! (the stream), `keydata` (sealed datasets), `partial` (interrupted receives), `dir` (live volumes).

mod apply;
mod aside;
mod base;
mod blockmap;
mod blocks;
mod cache;
mod codec;
mod datasets;
mod db;
mod dir;
mod emit;
#[doc(hidden)]
pub mod fault;
mod gc;
mod hash;
mod inner;
mod inspect;
mod keydata;
mod layout;
mod lock;
mod meta;
mod object;
mod objset;
mod overlay;
mod pack;
mod partial;
mod receive;
mod resume;
mod send;
mod snapshots;
mod transfer;
mod tree;
mod vault;
mod worker;

pub use gc::Collected;
pub use layout::FORMAT_VERSION;
pub use vault::{ROOT, Vault};
