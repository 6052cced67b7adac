//! A `zfs send` or `zfs receive` that runs while bytes flow.
//!
//! Owns: starting it with a wide pipe, keeping its stderr, ending it in a bounded time. Leaves to others:
//! the bytes ([`crate::send`], [`crate::receive`]).
//!
//! A send or a receive can hang in the kernel where no signal reaches it (openzfs #3750, #14890), so
//! nobody waits for one without a limit: terminate, then kill, then leave it to a thread and say so.
//! On zfs-fuse the *daemon* reads and writes the pipe: killing the command alone stops nothing as long as
//! our end is open, so the callers close theirs first.

use std::io;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use flocker_store::StoreError;
use rustix::process::{Pid, Signal, kill_process};

use crate::pipe::widen;
use crate::run::{
    Collected, Ending, Finished, MAX_STDERR_BYTES, Program, cannot_start, collect, command,
    kill_and_wait, printable, receive, wait_until,
};

/// How long a child that was asked to end may take before it is killed.
pub const TERMINATE_GRACE: Duration = Duration::from_secs(2);

/// Which way the bytes flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    /// From the child to us.
    Send,
    /// From us to the child.
    Receive,
}

/// A running child without its data pipe.
#[derive(Debug)]
pub(crate) struct StreamChild {
    child: Option<Child>,
    stderr: Receiver<Collected>,
    words: String,
}

/// The data pipe of a child.
#[derive(Debug)]
pub(crate) enum Pipe {
    Out(ChildStdout),
    In(ChildStdin),
}

impl StreamChild {
    /// Starts `path args`.
    ///
    /// # Errors
    /// [`StoreError::Io`] when it cannot be started.
    pub(crate) fn start(
        path: &Path,
        args: &[&str],
        direction: Direction,
    ) -> Result<(Self, Pipe), StoreError> {
        let words = printable(Program::Zfs, args);
        let mut command = command(path, args);
        command.stderr(Stdio::piped());
        match direction {
            Direction::Send => command.stdout(Stdio::piped()),
            Direction::Receive => command.stdin(Stdio::piped()).stdout(Stdio::null()),
        };
        let mut child = command.spawn().map_err(|e| cannot_start(&words, e))?;
        let pipe = match (child.stdout.take(), child.stdin.take()) {
            (Some(out), _) => Pipe::Out(out),
            (None, Some(stdin)) => Pipe::In(stdin),
            (None, None) => {
                let missing = io::Error::from(io::ErrorKind::BrokenPipe);
                return Err(StoreError::io(format!("no pipe to `{words}`"), missing));
            }
        };
        match &pipe {
            Pipe::Out(out) => widen(out, &words),
            Pipe::In(stdin) => widen(stdin, &words),
        }
        let stderr = collect(child.stderr.take(), MAX_STDERR_BYTES);
        let this = Self { child: Some(child), stderr, words };
        Ok((this, pipe))
    }

    /// Waits for it to end by itself, up to `limit`; `None` when it did not, and it is still there.
    pub(crate) fn wait(&mut self, limit: Duration) -> Option<Finished> {
        let deadline = Instant::now() + limit;
        let ending = match &mut self.child {
            Some(child) => wait_until(child, deadline)?,
            None => Ending::Code(-1),
        };
        self.child = None;
        Some(self.finished(ending))
    }

    /// Ends it: asks, then kills, and in no case waits for long.
    ///
    /// # Errors
    /// [`StoreError::Io`] (`TimedOut`) when even the kill did not end it; it is left behind.
    pub(crate) fn stop(&mut self, first_wait: Duration) -> Result<Finished, StoreError> {
        if let Some(finished) = self.wait(first_wait) {
            return Ok(finished);
        }
        if let Some(child) = &self.child {
            // It may have ended this very moment.
            let _ = kill_process(Pid::from_child(child), Signal::TERM);
        }
        if let Some(finished) = self.wait(TERMINATE_GRACE) {
            return Ok(finished);
        }
        if self.child.take().is_none_or(kill_and_wait) {
            return Ok(self.finished(Ending::Signal(9)));
        }
        tracing::error!(command = %self.words, "cannot be killed; left behind");
        Err(StoreError::io(
            format!("`{}` does not die even when killed; left behind", self.words),
            io::Error::from(io::ErrorKind::TimedOut),
        ))
    }

    fn finished(&self, ending: Ending) -> Finished {
        // The child is gone, and its stderr with it; helpers that inherited it are not waited for.
        let deadline = Instant::now() + Duration::from_millis(500);
        let stderr = receive(&self.stderr, deadline).unwrap_or_default();
        Finished { command: self.words.clone(), ending, stdout: Vec::new(), stderr: stderr.text() }
    }
}

impl Drop for StreamChild {
    fn drop(&mut self) {
        if self.child.is_some() {
            // Said in the log by `stop`; nobody is left to be told.
            let _ = self.stop(Duration::ZERO);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipe::granted_here;
    use rustix::pipe::fcntl_getpipe_size;

    #[test]
    fn the_pipe_of_a_child_is_wide_whichever_way_the_bytes_flow() {
        let cat = Path::new("/bin/cat");
        for direction in [Direction::Send, Direction::Receive] {
            let (mut child, pipe) = StreamChild::start(cat, &["/dev/null"], direction).unwrap();
            let size = match &pipe {
                Pipe::Out(out) => fcntl_getpipe_size(out),
                Pipe::In(stdin) => fcntl_getpipe_size(stdin),
            };
            assert_eq!(size.unwrap(), granted_here(), "{direction:?}");
            drop(pipe);
            assert!(child.stop(Duration::from_secs(10)).unwrap().ending.is_success());
        }
    }
}
