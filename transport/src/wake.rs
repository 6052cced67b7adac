//! A wake-up for a thread that waits in `poll` for a socket.
//!
//! Owns: an eventfd. Leaves to others: what the thread then looks at, which must be true before it is woken.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{EventfdFlags, eventfd};

/// Wakes the one thread that polls it, now or at its next poll.
#[derive(Debug)]
pub(crate) struct Wake(OwnedFd);

impl Wake {
    /// A new one.
    ///
    /// # Errors
    /// The process has no file descriptor left.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
    }

    /// Wakes.
    pub(crate) fn wake(&self) {
        // Only a count near 2^64 is refused, and then it is awake already.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }

    /// Forgets wake-ups, before a look at what they may have been for.
    pub(crate) fn clear(&self) {
        let _ = rustix::io::read(&self.0, &mut [0; 8]);
    }
}

impl AsFd for Wake {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
