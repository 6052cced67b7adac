//! The pipes between ZFS and us, as wide as the system grants.
//!
//! Owns: their size. Leaves to others: who is at their ends ([`crate::child`], `library::stream`).

use std::os::fd::AsFd;

use rustix::io::Errno;

/// Size that is asked for, in bytes: what an unprivileged user gets by default (`/proc/sys/fs/pipe-max-size`). With the
/// usual 64 KiB each end wakes the other sixteen times as often; see "Pipes" in `docs/data-path.md`.
pub(crate) const PIPE_BYTES: usize = 1 << 20;

/// Size of a pipe that nobody made wider, in bytes.
const USUAL_BYTES: usize = 64 << 10;

/// Makes a pipe wide. What it is granted is less where `pipe-max-size` is, or where the user has many pipes
/// (`pipe-user-pages-soft`); a narrow pipe is slower and as correct.
pub(crate) fn widen(pipe: impl AsFd, what: &str) {
    let granted = widest(|bytes| rustix::pipe::fcntl_setpipe_size(&pipe, bytes));
    if granted != Some(PIPE_BYTES) {
        tracing::debug!(what, ?granted, "the pipe is narrower than it was asked to be");
    }
}

/// The largest size that `set` takes, of [`PIPE_BYTES`], its half, and so on; `None` when it takes none that is more than
/// usual.
fn widest<T>(mut set: impl FnMut(usize) -> Result<T, Errno>) -> Option<usize> {
    let mut bytes = PIPE_BYTES;
    while bytes > USUAL_BYTES {
        match set(bytes) {
            Ok(_) => return Some(bytes),
            Err(Errno::PERM | Errno::BUSY | Errno::INVAL | Errno::NOMEM) => bytes /= 2,
            Err(_) => return None,
        }
    }
    None
}

/// What [`widen`] yields on this system, for tests.
#[cfg(test)]
pub(crate) fn granted_here() -> usize {
    let (_from, into) = rustix::pipe::pipe().unwrap();
    widest(|bytes| rustix::pipe::fcntl_setpipe_size(&into, bytes)).unwrap_or(USUAL_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipe_gets_the_size_that_is_asked_for_or_as_much_as_is_granted() {
        let upto = |limit| widest(|bytes| if bytes <= limit { Ok(()) } else { Err(Errno::PERM) });
        assert_eq!(upto(usize::MAX), Some(PIPE_BYTES));
        assert_eq!(upto(300 << 10), Some(256 << 10));
        assert_eq!(upto(USUAL_BYTES), None);
        assert_eq!(widest(|_| Err::<(), _>(Errno::BADF)), None);
    }

    #[test]
    fn a_real_pipe_is_as_wide_as_this_system_lets_it_be() {
        let (from, into) = rustix::pipe::pipe().unwrap();
        widen(&into, "a test's pipe");
        assert_eq!(rustix::pipe::fcntl_getpipe_size(&from).unwrap(), granted_here());
    }
}
