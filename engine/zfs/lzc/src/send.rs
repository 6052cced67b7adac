//! Sending into a pipe.
//!
//! Where it writes has to be a blocking pipe: newer kernels refuse other files, the library of 2.2 and later
//! starts a thread to get round that, and a descriptor that does not block makes the stream break off with
//! `EAGAIN`. To stop a send, close the pipe's other end: it ends with `EPIPE` or, in the middle of the stream, with
//! `EINTR` (`dump_record` in `dmu_send.c` says that for any write that fails).

use std::ffi::c_int;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{FileType, OFlags, fcntl_getfl, fstat};

use crate::error::{LzcError, Operation};
use crate::name::{Kind, check};
use crate::session::{About, Lzc};
use crate::sys::Stream;

/// What a stream may contain (`enum lzc_send_flags`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SendFlags {
    /// `-e`: small blocks inside their pointers. Never for encrypted data.
    pub embed: bool,
    /// `-L`: records above 128 KiB.
    pub large_block: bool,
    /// `-c`: blocks compressed, as they are on disk.
    pub compress: bool,
    /// `-w`: encrypted blocks as they are on disk; implies the others where they matter.
    pub raw: bool,
}

impl SendFlags {
    fn bits(self) -> c_int {
        let bit = |yes: bool, n: u32| c_int::from(yes) << n;
        bit(self.embed, 0) | bit(self.large_block, 1) | bit(self.compress, 2) | bit(self.raw, 3)
    }
}

/// Where an interrupted stream goes on, from its token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResumePoint {
    /// `object` of the token.
    pub object: u64,
    /// `offset` of the token.
    pub offset: u64,
    /// `bytes` of the token: for the estimate.
    pub bytes: u64,
}

impl Lzc {
    /// Writes the stream of a snapshot into a pipe and returns when it is whole: in full, or from `from`, the
    /// full name of an earlier snapshot or bookmark of the same dataset or its origin.
    ///
    /// # Errors
    /// `ENOENT` (no snapshot, or no such base), `ESRCH` (no such bookmark as base), `EXDEV` (the base is not an earlier moment of it), `EPIPE` or
    /// `EINTR` (nobody reads), `EACCES` (the key is not loaded and it is not raw), `EINVAL`. What was written by then is not a
    /// whole stream. [`LzcError::Descriptor`].
    pub fn send(
        &self,
        snapshot: &str,
        from: Option<&str>,
        to: impl AsFd,
        flags: SendFlags,
    ) -> Result<(), LzcError> {
        let about = About::new(Operation::Send, snapshot);
        let to = to.as_fd();
        require_pipe(about, to)?;
        let names = Names::check(snapshot, from)?;
        about.done(&self.session.send(names.stream(flags), to)?)
    }

    /// As [`Lzc::send`], but only what is missing of an interrupted receive. Flags and base have to be those of
    /// the token. A point of object 0 and offset 0 is the whole stream.
    ///
    /// # Errors
    /// As [`Lzc::send`].
    pub fn send_resume(
        &self,
        snapshot: &str,
        from: Option<&str>,
        to: impl AsFd,
        flags: SendFlags,
        point: ResumePoint,
    ) -> Result<(), LzcError> {
        let about = About::new(Operation::Send, snapshot);
        let to = to.as_fd();
        require_pipe(about, to)?;
        let names = Names::check(snapshot, from)?;
        let outcome =
            self.session.send_resume(names.stream(flags), to, (point.object, point.offset))?;
        about.done(&outcome)
    }

    /// Estimated size of a send in bytes. Quick for a snapshot as base; from a bookmark all of the snapshot's
    /// indirect blocks are read.
    ///
    /// # Errors
    /// `ENOENT`, `ESRCH`, `EXDEV`, as [`Lzc::send`].
    pub fn send_space(
        &self,
        snapshot: &str,
        from: Option<&str>,
        flags: SendFlags,
    ) -> Result<u64, LzcError> {
        let names = Names::check(snapshot, from)?;
        let outcome = self.session.send_space(names.stream(flags))?;
        About::new(Operation::SendSpace, snapshot).done(&outcome)?;
        Ok(outcome.out)
    }

    /// Estimated size in bytes of what is missing of an interrupted receive.
    ///
    /// # Errors
    /// As [`Lzc::send_space`]; [`LzcError::NotAvailable`].
    pub fn send_space_resume(
        &self,
        snapshot: &str,
        from: Option<&str>,
        flags: SendFlags,
        point: ResumePoint,
    ) -> Result<u64, LzcError> {
        let names = Names::check(snapshot, from)?;
        let place = (point.object, point.offset, point.bytes);
        let outcome = self.session.send_space_resume(names.stream(flags), place)?;
        About::new(Operation::SendSpace, snapshot).done(&outcome)?;
        Ok(outcome.out)
    }
}

struct Names {
    snapshot: std::ffi::CString,
    from: Option<std::ffi::CString>,
}

impl Names {
    fn check(snapshot: &str, from: Option<&str>) -> Result<Self, LzcError> {
        let from = from.map(|from| check(from, Kind::SnapshotOrBookmark)).transpose()?;
        Ok(Self { snapshot: check(snapshot, Kind::Snapshot)?, from })
    }

    fn stream(&self, flags: SendFlags) -> Stream<'_> {
        Stream { snapshot: &self.snapshot, from: self.from.as_deref(), flags: flags.bits() }
    }
}

fn require_pipe(about: About<'_>, fd: BorrowedFd<'_>) -> Result<(), LzcError> {
    let stat = fstat(fd).map_err(|errno| about.failed(crate::Errno(errno.raw_os_error())))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Fifo {
        return Err(descriptor(about, "ZFS sends into pipes only, and this is none"));
    }
    require_blocking(about, fd)
}

/// Refuses what would break off with `EAGAIN`.
pub(crate) fn require_blocking(about: About<'_>, fd: BorrowedFd<'_>) -> Result<(), LzcError> {
    let flags =
        fcntl_getfl(fd).map_err(|errno| about.failed(crate::Errno(errno.raw_os_error())))?;
    if flags.contains(OFlags::NONBLOCK) {
        return Err(descriptor(about, "the descriptor does not block (O_NONBLOCK)"));
    }
    Ok(())
}

fn descriptor(about: About<'_>, problem: &'static str) -> LzcError {
    LzcError::Descriptor { operation: about.operation, subject: about.subject.to_owned(), problem }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flag_has_its_bit() {
        let all = SendFlags { embed: true, large_block: true, compress: true, raw: true };
        assert_eq!(all.bits(), 15);
        assert_eq!(SendFlags::default().bits(), 0);
        assert_eq!(SendFlags { raw: true, ..SendFlags::default() }.bits(), 8);
    }

    #[test]
    fn a_send_goes_into_a_blocking_pipe() {
        let about = About::new(Operation::Send, "tank@a");
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(matches!(require_pipe(about, file.as_fd()), Err(LzcError::Descriptor { .. })));
        let (_reader, writer) = rustix::pipe::pipe().unwrap();
        require_pipe(about, writer.as_fd()).unwrap();
        rustix::fs::fcntl_setfl(&writer, OFlags::NONBLOCK).unwrap();
        assert!(matches!(require_pipe(about, writer.as_fd()), Err(LzcError::Descriptor { .. })));
    }
}
