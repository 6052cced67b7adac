//! Receiving from a descriptor.
//!
//! The caller reads the stream's first 312 bytes, its BEGIN record, decides by them, and hands them over as
//! they came (in the stream's own byte order, checksum and all). Everything after these bytes stays in the
//! descriptor, the record's payload (`drr_payloadlen` bytes) too: the kernel reads on from there
//! (`recv_impl` in `libzfs_core.c`, `dmu_recv_begin` in `dmu_recv.c`). A stream inside a package of several
//! (`DMU_COMPOUNDSTREAM`: `-R`, `-I`, `-p`) is not one of these.
//!
//! To stop a receive, close the pipe's other end. What arrived is then taken back, or kept where `resumable`
//! asked for it.

use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;

use crate::error::{LzcError, NameErrors, Operation};
use crate::name::{Kind, check};
use crate::nv::{Entries, Value};
use crate::session::{About, Lzc, name_errors};
use crate::sys::Incoming;

/// Length of a `dmu_replay_record_t`.
pub const BEGIN_LEN: usize = 312;

/// One property to be set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Setting {
    /// A number (`quota`, `volsize`, in bytes), or the index of a word (`canmount`, `readonly`, `compression`).
    Number(u64),
    /// A text: `mountpoint`, and every user property.
    Text(String),
    /// Inherit it (`-x`); only for [`Receive::local`].
    Inherit,
}

/// Properties to be set, by name, each **in the type that the kernel has for it**; a text for a number or an
/// index is refused (`EINVAL`), or reported by name by a receive. The table of `zfs_prop.c`:
///
/// * number: `quota`, `refquota`, `reservation`, `refreservation`, `recordsize`, `volsize`, `volblocksize`
/// * index, also a number: `canmount` (off 0, on 1, noauto 2: [`Setting::CANMOUNT_NOAUTO`]), `readonly`, `atime`,
///   `exec`, `setuid`, `devices` (off 0, on 1), `compression`, `checksum`, …
/// * text: `mountpoint`, `sharenfs`, `sharesmb`, `mlslabel`, user properties
pub type Properties = BTreeMap<String, Setting>;

impl Setting {
    /// `canmount=noauto`: what every replica gets.
    pub const CANMOUNT_NOAUTO: Self = Self::Number(2);
    /// `off` of all properties that are on or off.
    pub const OFF: Self = Self::Number(0);
    /// `on` of all properties that are on or off.
    pub const ON: Self = Self::Number(1);
}

pub(crate) fn setting_entries(properties: &Properties) -> Entries {
    let value = |setting: &Setting| match setting {
        Setting::Number(n) => Value::Uint(*n),
        Setting::Text(text) => Value::Text(text.clone()),
        Setting::Inherit => Value::Flag,
    };
    properties.iter().map(|(name, setting)| (name.clone(), value(setting))).collect()
}

/// One receive. There is no force: what is in the way is an error.
#[derive(Debug, Clone, Copy)]
pub struct Receive<'a> {
    /// The full name of the snapshot that results. Its dataset is created by a full stream, and exists for an
    /// increment.
    pub snapshot: &'a str,
    /// For a stream of a clone into a new dataset: the snapshot here that it is a clone of.
    pub origin: Option<&'a str>,
    /// Properties as if the stream had brought them (source `received`). Leave it empty unless you mean it:
    /// the first ones that an existing dataset gets *blow away all its local properties* (`zfs_ioc_recv_impl`).
    pub received: &'a Properties,
    /// Properties to set on the dataset (`-o`, `-x`), before the data come. Taken back when the receive fails.
    pub local: &'a Properties,
    /// Keep what arrived when the stream breaks off.
    pub resumable: bool,
    /// The stream's BEGIN record, as it came.
    pub begin: &'a [u8; BEGIN_LEN],
    /// Where the rest comes from: a pipe or a file, blocking.
    pub input: BorrowedFd<'a>,
}

/// A receive has succeeded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    /// Bytes taken from the descriptor: without the BEGIN record, with its payload.
    pub read_bytes: u64,
    /// Properties that could not be set, each with its reason. The data are there all the same.
    pub properties: NameErrors,
    /// The kernel could not clear or restore properties (`zprop_errflags_t`); 0 where it could.
    pub property_flags: u64,
}

impl Lzc {
    /// Receives one stream and returns when its snapshot is there. Never mounts what it creates. Always uses
    /// the newer of the two ioctls (`ZFS_IOC_RECV_NEW`), so that raw and other streams are no different here.
    ///
    /// # Errors
    /// `ENODEV` (the dataset has not the base of an increment), `EEXIST` (snapshot, or dataset of a full stream),
    /// `ETXTBSY` (written since the base, or newer snapshots), `EBUSY` (another receive, or the dataset is
    /// held), `ENOENT` (no parent; no dataset, of an increment), `EINVAL` (not a stream, or a property list), `ECKSUM` (damaged),
    /// `ZFS_ERR_STREAM_TRUNCATED` (broken off), `EDQUOT`, `ENOSPC`, `ZFS_ERR_*`. Nothing changed then, but for
    /// what `resumable` keeps. [`LzcError::Descriptor`].
    pub fn receive(&self, receive: Receive<'_>) -> Result<Received, LzcError> {
        let about = About::new(Operation::Receive, receive.snapshot);
        let snapshot = check(receive.snapshot, Kind::Snapshot)?;
        let origin = receive.origin.map(|origin| check(origin, Kind::Snapshot)).transpose()?;
        crate::send::require_blocking(about, receive.input)?;
        // No list at all is not the same as an empty one: see `Receive::received`.
        let list = |properties: &Properties| match properties.is_empty() {
            true => Ok(None),
            false => about.list(&setting_entries(properties)).map(Some),
        };
        let (received, local) = (list(receive.received)?, list(receive.local)?);
        let outcome = self.session.receive(Incoming {
            snapshot: &snapshot,
            origin: origin.as_deref(),
            received: received.as_ref(),
            local: local.as_ref(),
            resumable: receive.resumable,
            input: receive.input,
            begin: receive.begin,
        })?;
        let errors = name_errors(&about.read(outcome.out.errors.as_ref())?);
        match outcome.error() {
            None => Ok(Received {
                read_bytes: outcome.out.read_bytes,
                properties: errors,
                property_flags: outcome.out.error_flags,
            }),
            Some(errno) => Err(LzcError::Failed {
                operation: about.operation,
                subject: about.subject.to_owned(),
                errno,
                names: errors,
            }),
        }
    }
}
