//! Real ZFS as a [`flocker_store::Store`], by running `zfs` and `zpool`.
//!
//! Owns: the words of the commands, their output and their errors; fencing and mounting of datasets; the
//! children of send and receive. Leaves to others: what to replicate and when (`flocker-core`), who may
//! write (`flocker-engine`), what is in a stream (`zfs-stream`). Links no ZFS library and no shell: the
//! same binary starts on a machine without ZFS, and [`Probe`] says what is missing there.
//!
//! Read next: [`store`] (what the parts share), [`run`] (how a command is run), `errors` for what
//! its words mean, [`receive`] and [`fence`] for what data depends on.
//!
//! # Rules
//!
//! * Never `receive -F`, never `destroy -r`/`-R`/`-f`, never `rollback -r`, never `send -R`.
//! * Nothing outside the root is touched; a name that a command would read as an option or as a range
//!   (`a%b`) never reaches one.
//! * Every metadata command has a limit ([`options::METADATA_LIMIT`]); no child is waited for without one.
//! * What ZFS says it did is read back where the exit status is known to lie.
//!
//! # zfs-fuse, as found (0.7.0 of Debian, pool version 23)
//!
//! | What | What follows |
//! | --- | --- |
//! | no `zfs version`; every unknown word prints the usage | [`probe`] judges by the usage text |
//! | `zfs list` prints guids as `13.6E`, has no `-p` | lists of numbers come from `zfs get -Hp` |
//! | `zfs holds` ends with "pyzfs.py not found" | [`holds`] keeps the tags in a property of the snapshot |
//! | `receive -u` works, though the usage does not say so | used |
//! | the *daemon* reads and writes the pipes of send and receive | [`child`]: close our end first |
//! | an increment is received over a newer, empty local snapshot | [`receive`] checks the base by guid |
//! | `readonly=on` leaves open descriptors writable | [`fence`] unmounts |
//! | an unmount right after files were closed wedges the daemon, and with it every pool | [`fusectl`] |
//! | an unmount goes on after the command has returned: "dataset is busy" | waited for, or tried again |
//! | `rename` of what is mounted always says busy | unmounted, renamed, mounted |
//! | `create -V` aborts the command (no zvols) | refused before |
//! | one snapshot, one property a call | groups are not atomic; a failed one is taken back |
//! | reading with `atime=on` makes a standby modified, and no space figure says so for 30 s | [`check`] |

pub mod activate;
mod aside;
pub mod check;
pub mod child;
mod clones;
pub mod datasets;
mod errors;
pub mod examine;
pub mod fence;
#[cfg(feature = "fixture")]
pub mod fixture;
pub mod fusectl;
#[cfg(test)]
mod golden;
pub mod holders;
pub mod holds;
mod known;
mod library;
mod mounts;
pub mod options;
mod parse;
mod pipe;
pub mod probe;
pub mod properties;
pub mod receive;
mod rest;
pub mod room;
pub mod run;
pub mod send;
pub mod snapshots;
pub mod store;
pub mod streams;

pub use options::{Engine, ZfsOptions};
pub use probe::{Availability, Probe};
pub use store::ZfsStore;
