//! What can go wrong: a number from the kernel, with the operation, what it was about and, where ZFS says
//! so, a number for each name.

use std::collections::BTreeMap;
use std::fmt;
use std::io;

use crate::name::NameProblem;
use crate::nv::NvError;

/// An error number: of the system, or of ZFS's own (1024 and above, `zfs_errno_t` in `sys/fs/zfs.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Errno(pub i32);

macro_rules! errnos {
    ($($(#[$doc:meta])* $name:ident = $value:expr, $words:expr;)*) => {
        impl Errno {
            $($(#[$doc])* pub const $name: Self = Self($value);)*

            /// The C name, where it is one that ZFS is known to answer with.
            pub fn name(self) -> Option<&'static str> {
                match self {
                    $(Self::$name => Some(stringify!($name)),)*
                    _ => None,
                }
            }

            /// What it means when ZFS says it; `None` where the system's own words will do.
            fn words(self) -> Option<&'static str> {
                match self {
                    $(Self::$name => $words,)*
                    _ => None,
                }
            }
        }
    };
}

use rustix::io::Errno as Sys;

errnos! {
    /// Not allowed for this user.
    EPERM = Sys::PERM.raw_os_error(), None;
    /// No such dataset, snapshot, bookmark or hold.
    ENOENT = Sys::NOENT.raw_os_error(), None;
    /// No such bookmark, as the base of a send; a rollback's target is not a snapshot of that dataset.
    ESRCH = Sys::SRCH.raw_os_error(), None;
    /// Interrupted; of a send: its stream could not be written, most likely because nobody reads it.
    EINTR = Sys::INTR.raw_os_error(), None;
    /// Reading or writing failed.
    EIO = Sys::IO.raw_os_error(), None;
    /// No such device: the module is not loaded.
    ENXIO = Sys::NXIO.raw_os_error(), None;
    /// More than fits.
    E2BIG = Sys::TOOBIG.raw_os_error(), None;
    /// Not a descriptor that is open this way.
    EBADF = Sys::BADF.raw_os_error(), None;
    /// The pool is suspended, or a rollback met a snapshot of the same transaction group.
    EAGAIN = Sys::AGAIN.raw_os_error(), None;
    /// No memory; of a channel program: its answer did not fit.
    ENOMEM = Sys::NOMEM.raw_os_error(), None;
    /// Not allowed; of an encrypted dataset: its key is not loaded.
    EACCES = Sys::ACCESS.raw_os_error(), None;
    /// Held, mounted or being received into; of a dataset to destroy: it has snapshots.
    EBUSY = Sys::BUSY.raw_os_error(), None;
    /// The name is taken; of a dataset to destroy: it has children; of a rollback: there are
    /// newer snapshots or bookmarks.
    EEXIST = Sys::EXIST.raw_os_error(), None;
    /// In another pool or dataset; of a send: the base is not an earlier moment of it.
    EXDEV = Sys::XDEV.raw_os_error(), None;
    /// Of a receive: the incremental source is not there.
    ENODEV = Sys::NODEV.raw_os_error(), Some("the incremental source is not there");
    /// A name, a value or a stream that ZFS does not take.
    EINVAL = Sys::INVAL.raw_os_error(), None;
    /// Of a receive: the dataset was written since the base, or has newer snapshots.
    ETXTBSY = Sys::TXTBSY.raw_os_error(), Some("the dataset was modified since the incremental source");
    /// No room in the pool.
    ENOSPC = Sys::NOSPC.raw_os_error(), None;
    /// Read-only.
    EROFS = Sys::ROFS.raw_os_error(), None;
    /// Nobody reads the pipe.
    EPIPE = Sys::PIPE.raw_os_error(), None;
    /// A channel program failed.
    ECHRNG = Sys::CHRNG.raw_os_error(), None;
    /// What ZFS calls `ECKSUM` on Linux: damaged data, or a stream that does not fit its checksums.
    ECKSUM = Sys::BADE.raw_os_error(), Some("damaged data, or a damaged stream");
    /// A channel program used up its instructions.
    ETIME = Sys::TIME.raw_os_error(), None;
    /// Not supported by the pool or the dataset.
    ENOTSUP = Sys::OPNOTSUPP.raw_os_error(), None;
    /// A name that is too long.
    ENAMETOOLONG = Sys::NAMETOOLONG.raw_os_error(), None;
    /// A quota or a reservation.
    EDQUOT = Sys::DQUOT.raw_os_error(), None;
    /// Cancelled: the stream's other side went away.
    ECANCELED = Sys::CANCELED.raw_os_error(), None;
    /// The kernel's module is older than the library and does not know the call.
    ZFS_ERR_IOC_CMD_UNAVAIL = 1029, Some("the loaded ZFS module does not know this operation");
    /// The kernel's module does not know an argument.
    ZFS_ERR_IOC_ARG_UNAVAIL = 1030, Some("the loaded ZFS module does not know an argument");
    /// The kernel's module wants an argument that was not given.
    ZFS_ERR_IOC_ARG_REQUIRED = 1031, Some("the loaded ZFS module wants an argument that was not given");
    /// The kernel's module wants an argument of another type.
    ZFS_ERR_IOC_ARG_BADTYPE = 1032, Some("the loaded ZFS module wants an argument of another type");
    /// An encrypted dataset under the wrong parent.
    ZFS_ERR_WRONG_PARENT = 1033, Some("an encrypted dataset would come under the wrong parent");
    /// A raw increment over a base that was not received raw.
    ZFS_ERR_FROM_IVSET_GUID_MISSING = 1034, Some("the base has no IV set guid: it was not received raw");
    /// A raw increment over another base.
    ZFS_ERR_FROM_IVSET_GUID_MISMATCH = 1035, Some("the base has another IV set guid");
    /// A stream without its spill block flag.
    ZFS_ERR_SPILL_BLOCK_FLAG_MISSING = 1036, Some("the stream lacks the spill block flag");
    /// A stream with a feature that this side does not know.
    ZFS_ERR_UNKNOWN_SEND_STREAM_FEATURE = 1037, Some("the stream has a feature that is unknown here");
    /// A bookmark of what is not an ancestor.
    ZFS_ERR_BOOKMARK_SOURCE_NOT_ANCESTOR = 1039, Some("the source is not an ancestor of the bookmark's dataset");
    /// The stream ended too early.
    ZFS_ERR_STREAM_TRUNCATED = 1040, Some("the stream ended too early");
    /// `-L` was switched between two increments.
    ZFS_ERR_STREAM_LARGE_BLOCK_MISMATCH = 1041, Some("large blocks (-L) differ from those of earlier streams");
    /// A property that the kernel does not take.
    ZFS_ERR_BADPROP = 1044, Some("a property that is not taken");
    /// An interrupted receive is there, and this stream does not go on with it.
    ZFS_ERR_RESUME_EXISTS = 1047, Some("an interrupted receive is there");
    /// Encryption that the module does not have.
    ZFS_ERR_CRYPTO_NOTSUP = 1048, Some("the module does not support this encryption");
    /// The stream has large micro ZAPs, which the pool does not take.
    ZFS_ERR_STREAM_LARGE_MICROZAP = 1051, Some("the stream has large micro ZAPs, which the pool does not take");
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.name().unwrap_or("error");
        match self.words() {
            Some(words) => write!(f, "{words} ({name} {})", self.0),
            None if self.0 < 1024 => {
                write!(f, "{} ({name})", io::Error::from_raw_os_error(self.0))
            }
            None => write!(f, "ZFS error {}", self.0),
        }
    }
}

/// What was being done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "each is named after the method that does it")]
pub enum Operation {
    Snapshot,
    DestroySnapshots,
    Bookmark,
    Bookmarks,
    DestroyBookmarks,
    Hold,
    Release,
    Holds,
    Create,
    Clone,
    Promote,
    Rename,
    Destroy,
    DiscardPartial,
    Rollback,
    Sync,
    Send,
    SendSpace,
    Receive,
    Inventory,
    Properties,
    ChangeUserProperties,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Snapshot => "taking a snapshot",
            Self::DestroySnapshots => "destroying snapshots",
            Self::Bookmark => "making a bookmark",
            Self::Bookmarks => "listing the bookmarks",
            Self::DestroyBookmarks => "destroying bookmarks",
            Self::Hold => "putting a hold",
            Self::Release => "releasing a hold",
            Self::Holds => "listing the holds",
            Self::Create => "creating",
            Self::Clone => "cloning",
            Self::Promote => "promoting",
            Self::Rename => "renaming",
            Self::Destroy => "destroying",
            Self::DiscardPartial => "discarding an interrupted receive",
            Self::Rollback => "rolling back",
            Self::Sync => "waiting for the pool's transaction group",
            Self::Send => "sending",
            Self::SendSpace => "estimating a send",
            Self::Receive => "receiving",
            Self::Inventory => "listing the snapshots",
            Self::Properties => "reading properties",
            Self::ChangeUserProperties => "setting user properties",
        })
    }
}

/// An error number for each name that has one.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NameErrors {
    /// By the name as ZFS gives it: a snapshot, a bookmark, a property; `snapshot#tag` for a hold.
    pub by_name: BTreeMap<String, Errno>,
    /// How many more there were, which ZFS has left out (`N_MORE_ERRORS`).
    pub omitted: u32,
}

impl NameErrors {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.by_name.is_empty() && self.omitted == 0
    }
}

/// Names that an error's text lists at most.
const SHOWN: usize = 3;

impl fmt::Display for NameErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, (name, errno)) in self.by_name.iter().take(SHOWN).enumerate() {
            write!(f, "{}{name}: {errno}", if n == 0 { "" } else { "; " })?;
        }
        match self.by_name.len().saturating_sub(SHOWN) + self.omitted as usize {
            0 => Ok(()),
            more => write!(f, "; and {more} more"),
        }
    }
}

/// What a channel program ran into. The command has no such limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// [`crate::program::MEMORY_BYTES`].
    Memory,
    /// [`crate::program::INSTRUCTIONS`].
    Instructions,
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory => write!(f, "{} bytes of memory", crate::program::MEMORY_BYTES),
            Self::Instructions => write!(f, "{} instructions", crate::program::INSTRUCTIONS),
        }
    }
}

/// An operation failed.
#[derive(Debug, thiserror::Error)]
pub enum LzcError {
    /// ZFS said no.
    #[error("{operation}: {subject}: {errno}{}", of_names(names))]
    Failed {
        /// What was being done.
        operation: Operation,
        /// To what: the first name, where there were several.
        subject: String,
        /// Why; of several reasons any one.
        errno: Errno,
        /// Why by name, where ZFS says so.
        names: NameErrors,
    },
    /// The installed libzfs_core has no such function.
    #[error("this version of libzfs_core has no {function}")]
    NotAvailable {
        /// Its C name.
        function: &'static str,
    },
    /// A name that ZFS cannot have, or that the library would cut off.
    #[error("{name:?}: {problem}")]
    Name {
        /// The name.
        name: String,
        /// What is wrong with it.
        problem: NameProblem,
    },
    /// An argument could not be put into an nvlist.
    #[error("{operation}: {source}")]
    Argument {
        /// What was being done.
        operation: Operation,
        /// Why not.
        #[source]
        source: NvError,
    },
    /// What has to be in one pool is not.
    #[error("{operation}: {first} and {other} are not in one pool")]
    Pools {
        /// What was being done.
        operation: Operation,
        /// A name.
        first: String,
        /// One of another pool.
        other: String,
    },
    /// Too much for a channel program. Nothing was changed; the `zfs` command can do it.
    #[error("{operation}: {subject}: more than {limit}")]
    TooBig {
        /// What was being done.
        operation: Operation,
        /// To what.
        subject: String,
        /// What was not enough.
        limit: Limit,
    },
    /// A channel program failed with words.
    #[error("{operation}: {subject}: {message}")]
    Program {
        /// What was being done.
        operation: Operation,
        /// To what.
        subject: String,
        /// What the kernel's Lua said.
        message: String,
    },
    /// An answer without what has to be in it.
    #[error("{operation}: {subject}: the answer cannot be read: {detail}")]
    Answer {
        /// What was being done.
        operation: Operation,
        /// To what.
        subject: String,
        /// What was missing or wrong.
        detail: String,
    },
    /// A descriptor that the kernel cannot stream through.
    #[error("{operation}: {subject}: {problem}")]
    Descriptor {
        /// What was being done.
        operation: Operation,
        /// To what.
        subject: String,
        /// Why it cannot be used.
        problem: &'static str,
    },
}

fn of_names(names: &NameErrors) -> String {
    if names.is_empty() { String::new() } else { format!(" ({names})") }
}

impl LzcError {
    /// The kernel's error number, where it is one.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Failed { errno, .. } => Some(*errno),
            _ => None,
        }
    }

    /// The error numbers by name, where ZFS gave any.
    pub fn names(&self) -> Option<&NameErrors> {
        match self {
            Self::Failed { names, .. } => Some(names),
            _ => None,
        }
    }

    pub(crate) fn failed(operation: Operation, subject: &str, errno: Errno) -> Self {
        Self::Failed { operation, subject: subject.to_owned(), errno, names: NameErrors::default() }
    }

    pub(crate) fn answer(operation: Operation, subject: &str, detail: impl Into<String>) -> Self {
        Self::Answer { operation, subject: subject.to_owned(), detail: detail.into() }
    }
}

/// The loader's own words, which its error keeps for its source.
fn loader(error: &libloading::Error) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string)
}

/// The library could not be opened. All but [`OpenError::Symbol`] are the state of the machine, not faults.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A library is not installed.
    #[error("{library} cannot be loaded: {}", loader(source))]
    Library {
        /// Its soname.
        library: &'static str,
        /// What the loader said.
        #[source]
        source: libloading::Error,
    },
    /// A library without one of the symbols that there is no doing without.
    #[error("{library} has no {symbol}: {}", loader(source))]
    Symbol {
        /// Its soname.
        library: &'static str,
        /// The symbol.
        symbol: &'static str,
        /// What the loader said.
        #[source]
        source: libloading::Error,
    },
    /// There is no `/dev/zfs`, or nobody behind it: the module is not loaded.
    #[error("/dev/zfs: {0}: is the zfs module loaded?")]
    NoDevice(Errno),
    /// `/dev/zfs` is not for this user.
    #[error("/dev/zfs: {0}")]
    Permission(Errno),
    /// `/dev/zfs` could not be opened for another reason.
    #[error("/dev/zfs: {0}")]
    Device(Errno),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_says_what_was_done_to_what_and_why() {
        let names = NameErrors {
            by_name: ["a", "b", "c", "d"]
                .map(|n| (format!("tank@{n}"), Errno::EEXIST))
                .into_iter()
                .collect(),
            omitted: 2,
        };
        let error = LzcError::Failed {
            operation: Operation::Snapshot,
            subject: "tank@a".to_owned(),
            errno: Errno::EEXIST,
            names,
        };
        let text = error.to_string();
        assert!(text.starts_with("taking a snapshot: tank@a: File exists (os error 17) (EEXIST)"));
        assert!(text.contains("tank@c") && !text.contains("tank@d"), "{text}");
        assert!(text.ends_with("; and 3 more)"), "{text}");
    }

    #[test]
    fn zfs_has_numbers_of_its_own() {
        assert_eq!(Errno(1040).name(), Some("ZFS_ERR_STREAM_TRUNCATED"));
        assert_eq!(Errno(1099).to_string(), "ZFS error 1099");
        assert_eq!(Errno::ECKSUM, Errno(52));
        assert!(Errno::ENODEV.to_string().contains("incremental source"));
    }
}
