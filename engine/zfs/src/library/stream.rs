//! Sends and receives of libzfs_core, each on a thread of its own with a pipe to us.
//!
//! Such a thread cannot be killed: it ends when the other end of its pipe is closed. One that hangs in the kernel all the
//! same is left behind, as a command would be that cannot be killed.

use std::fs::File;
use std::io::{self, Read};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use flocker_lzc::{BEGIN_LEN, Lzc, LzcError, Properties, Receive, ResumePoint, SendFlags};
use flocker_store::store::Result;
use flocker_store::{DatasetName, SendStream, StoreError};

use super::explain;
use crate::errors::About;
use crate::pipe::widen;
use crate::send::FINISH_LIMIT;

/// A call that runs on a thread.
#[derive(Debug)]
pub(crate) struct Call {
    done: Receiver<std::result::Result<(), LzcError>>,
}

/// How a call ended.
pub(crate) type Ended = std::result::Result<(), LzcError>;

impl Call {
    fn start(name: &str, run: impl FnOnce() -> Ended + Send + 'static) -> Result<Self> {
        let (sender, done) = channel();
        std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                // Nobody listens any more when it was left behind.
                let _ = sender.send(run());
            })
            .map_err(|error| StoreError::io(format!("no thread for {name}"), error))?;
        Ok(Self { done })
    }

    /// What came of it; `None` while it runs.
    pub(crate) fn wait(&self, limit: Duration) -> Option<Ended> {
        match self.done.recv_timeout(limit) {
            Ok(ended) => Some(ended),
            Err(RecvTimeoutError::Timeout) => None,
            // It panicked: said on stderr already.
            Err(RecvTimeoutError::Disconnected) => {
                Some(Err(LzcError::NotAvailable { function: "an answer of its own thread" }))
            }
        }
    }
}

/// Left behind in the kernel.
pub(crate) fn left_behind(what: &str, dataset: &DatasetName) -> StoreError {
    StoreError::io(
        format!("{what} {dataset} does not end although its pipe is closed; left behind"),
        io::Error::from(io::ErrorKind::TimedOut),
    )
}

/// Both ends of a pipe, blocking, wide.
fn pipe() -> Result<(File, File)> {
    let pipe = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC);
    let (from, into) = pipe.map_err(|e| StoreError::io("making a pipe", e.into()))?;
    widen(&into, "libzfs_core");
    Ok((File::from(from), File::from(into)))
}

/// What is sent.
pub(crate) struct Sending {
    pub(crate) dataset: DatasetName,
    pub(crate) snapshot: String,
    pub(crate) from: Option<String>,
    pub(crate) flags: SendFlags,
    pub(crate) resume: Option<ResumePoint>,
}

/// A send that runs.
#[derive(Debug)]
pub(crate) struct LibrarySend {
    pipe: Option<File>,
    call: Call,
    dataset: DatasetName,
}

impl LibrarySend {
    pub(crate) fn start(lzc: &Lzc, sending: Sending) -> Result<Self> {
        let (pipe, into) = pipe()?;
        let lzc = lzc.clone();
        let dataset = sending.dataset.clone();
        let call = Call::start("zfs-send", move || {
            let Sending { snapshot, from, flags, resume, .. } = sending;
            match resume {
                None => lzc.send(&snapshot, from.as_deref(), &into, flags),
                Some(point) => lzc.send_resume(&snapshot, from.as_deref(), &into, flags, point),
            }
        })?;
        Ok(Self { pipe: Some(pipe), call, dataset })
    }
}

impl Read for LibrarySend {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match &mut self.pipe {
            Some(pipe) => pipe.read(buf),
            None => Ok(0),
        }
    }
}

impl SendStream for LibrarySend {
    fn finish(mut self: Box<Self>) -> Result<()> {
        // Whatever was not read makes the send fail now, instead of waiting for ever.
        self.pipe = None;
        match self.call.wait(FINISH_LIMIT) {
            Some(Ok(())) => Ok(()),
            Some(Err(error)) => Err(explain(&error, About::dataset(&self.dataset))),
            None => Err(left_behind("a send of", &self.dataset)),
        }
    }
}

/// Starts a receive; what is written into the file is the stream behind its BEGIN record.
pub(crate) fn receive(
    lzc: &Lzc,
    snapshot: String,
    begin: [u8; BEGIN_LEN],
    local: Properties,
    (resumable, origin): (bool, Option<String>),
) -> Result<(Call, File)> {
    let (from, into) = pipe()?;
    let lzc = lzc.clone();
    let call = Call::start("zfs-receive", move || {
        let received = Properties::new();
        let taken = lzc.receive(Receive {
            snapshot: &snapshot,
            origin: origin.as_deref(),
            received: &received,
            local: &local,
            resumable,
            begin: &begin,
            input: std::os::fd::AsFd::as_fd(&from),
        })?;
        if !taken.properties.is_empty() {
            tracing::warn!(%snapshot, errors = %taken.properties, "not all properties were set");
        }
        Ok(())
    })?;
    Ok((call, into))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pipe_of_a_call_is_wide_and_blocks() {
        let (from, into) = pipe().unwrap();
        let size = rustix::pipe::fcntl_getpipe_size(&from).unwrap();
        assert_eq!(size, crate::pipe::granted_here());
        let flags = rustix::fs::fcntl_getfl(&into).unwrap();
        assert!(!flags.contains(rustix::fs::OFlags::NONBLOCK));
    }
}
