//! Receiving: `zfs receive -u` as a [`ReceiveStream`], never with `-F`.
//!
//! Owns: what must hold before a stream may touch a dataset, and what must hold after it. Leaves to
//! others: the child ([`crate::child`]), verifying batches on the way (transport).
//!
//! # How a stream is kept from taking effect before `commit`
//!
//! ZFS commits a snapshot as soon as it has read the END record, whoever was to say "commit" later. So
//! the last 312 bytes, which are that record, are held back until [`ReceiveStream::commit`]: an abort, a
//! drop and a crash of this process all look to ZFS like a stream that broke off, and it takes back what
//! arrived. The first 312 bytes are held back too, until the BEGIN record in them has proved to carry the
//! guids that were announced: the command is not even started for another stream.
//!
//! # What is left of an interrupted receive
//!
//! Seen on zfs-fuse: at the end of the pipe the partial dataset (full) or the hidden clone (increment) is
//! gone by the time the command returns. Killing the command does nothing while our end of the pipe is
//! open, since the daemon reads it; so an abort closes the pipe first. While a receive runs, a second one
//! gets "dataset is busy" (increment) or finds the partial dataset (full). On OpenZFS with `-s` the part
//! stays, with a token; a stream that does not resume takes it away first (`zfs receive -A`).
//!
//! Seen on zfs-fuse: an increment is received over a *newer local snapshot* that changed nothing, and ends
//! up behind it. So that the base is the newest snapshot is checked here, by guid, not left to ZFS.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use flocker_lzc::{Properties, Setting};
use flocker_store::store::Result;
use flocker_store::{
    DatasetName, Holder, Inventory, ReceiveSpec, ReceiveStream, Snapshot, StoreError,
};
use zfs_stream::format::objset;
use zfs_stream::record::{Begin, HeaderType};
use zfs_stream::{Endian, Features, HEADER_LEN, Record};

use crate::ZfsStore;
use crate::child::{Direction, Pipe, StreamChild};
use crate::errors::{self, About};
use crate::fence::WAS_CANMOUNT;
use crate::library::stream::{Call, left_behind};
use crate::library::{self};
use crate::run::Program;
use crate::store::lock;

/// How long ZFS may take to make a received snapshot durable after its last byte.
pub const COMMIT_LIMIT: Duration = Duration::from_secs(600);

/// How long an aborted receive may take to undo what arrived before it is killed.
pub const ABORT_LIMIT: Duration = Duration::from_secs(30);

/// How long after a receive was killed the undoing is waited for.
const UNDO_GRACE: Duration = Duration::from_secs(5);

impl ZfsStore {
    pub(crate) fn start_receive(&self, spec: &ReceiveSpec) -> Result<Box<dyn ReceiveStream>> {
        if spec.snapshot.dataset() != &spec.dataset {
            return Err(
                self.not_capable(format!("receiving {} as {}", spec.dataset, spec.snapshot))
            );
        }
        let turn = Turn::take(&self.receiving, &spec.dataset)?;
        let partial = match spec.creates() {
            false => self.check_increment(spec)?,
            true => self.check_new(spec)?,
        };
        Ok(Box::new(ZfsReceive {
            store: self.clone(),
            spec: spec.clone(),
            partial,
            begin: Vec::with_capacity(HEADER_LEN),
            tail: Vec::with_capacity(2 * HEADER_LEN),
            state: State::Waiting,
            _turn: turn,
        }))
    }

    /// Whether a full stream, or a clone's first, may create the dataset; `true` when a partial receive is in its
    /// place.
    fn check_new(&self, spec: &ReceiveSpec) -> Result<bool> {
        if let (Some(origin), Some(base)) = (&spec.origin, spec.from_guid) {
            self.inside(origin.dataset())?;
            match self.find_snapshot(origin) {
                Ok(found) if found.guid == base => {}
                Ok(_) | Err(StoreError::NoSnapshot { .. } | StoreError::NoDataset { .. }) => {
                    return Err(StoreError::NoBase { dataset: spec.dataset.clone(), base });
                }
                Err(error) => return Err(error),
            }
        }
        match self.list_inventory(&spec.dataset) {
            Ok(found) if found.partial.is_some() && found.snapshots.is_empty() => Ok(true),
            Ok(_) => Err(StoreError::Exists { name: spec.dataset.to_string() }),
            Err(StoreError::NoDataset { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Whether an increment fits; `true` when a partial receive is in its way.
    fn check_increment(&self, spec: &ReceiveSpec) -> Result<bool> {
        let Some(base) = spec.from_guid else {
            return Ok(false);
        };
        if let Some(found) = self.newest_by_library(&spec.dataset) {
            let newest = found?;
            // Whether the name is taken ZFS says itself when a receive begins, but not when one goes on.
            let taken = || self.find_snapshots(std::slice::from_ref(&spec.snapshot));
            if newest.guid == Some(base) && (!newest.partial || taken()?.is_empty()) {
                return Ok(newest.partial);
            }
            // What is the matter is seen in the whole inventory.
        }
        let inventory = self.clear_probes(&spec.dataset)?;
        let Some(at) = inventory.snapshot(base) else {
            return Err(StoreError::NoBase { dataset: spec.dataset.clone(), base });
        };
        if let Some(taken) = inventory.snapshots.iter().find(|s| s.name == spec.snapshot) {
            return Err(StoreError::Exists { name: taken.name.to_string() });
        }
        if let Some(newest) = inventory.latest().filter(|newest| newest.guid != base) {
            return Err(StoreError::Modified {
                dataset: spec.dataset.clone(),
                detail: format!("{} is newer than the base {}", newest.name, at.name),
            });
        }
        if self.dialect.fuse {
            self.refuse_mounted_standby(spec, &at.name)?;
        }
        Ok(inventory.partial.is_some())
    }

    /// What is mounted changes at any moment (access times): on zfs-fuse a standby is at rest or not
    /// received into. Says what was modified, if anything was, since that needs a person.
    fn refuse_mounted_standby(
        &self,
        spec: &ReceiveSpec,
        newest: &flocker_store::SnapshotName,
    ) -> Result<()> {
        let Some(path) = self.mounted_here(&spec.dataset)? else {
            return Ok(());
        };
        if let Some(detail) = self.probe(newest)? {
            return Err(StoreError::Modified { dataset: spec.dataset.clone(), detail });
        }
        Err(StoreError::Busy {
            dataset: spec.dataset.clone(),
            holders: vec![Holder {
                pid: 0,
                command: "mount".to_owned(),
                what: format!("the standby is mounted at {}", path.display()),
            }],
        })
    }

    fn receive_words(&self, spec: &ReceiveSpec, begin: &Begin) -> Vec<String> {
        let mut words = vec!["receive".to_owned(), "-u".to_owned()];
        if spec.resumable && self.dialect.resumable {
            words.push("-s".to_owned());
        }
        if let Some(origin) = spec.origin.as_ref().filter(|_| !self.dialect.fuse) {
            // zfs-fuse finds it by its guid, and by nothing else.
            words.extend(["-o".to_owned(), format!("origin={origin}")]);
        }
        if spec.creates() && !self.dialect.fuse && begin.objset_type == objset::ZFS {
            // Set with the dataset, so that no boot in between mounts it.
            for property in ["canmount=noauto".to_owned(), format!("{WAS_CANMOUNT}=on")] {
                words.extend(["-o".to_owned(), property]);
            }
        }
        words.push(spec.snapshot.to_string());
        words
    }

    /// What was received, by its guid, and put to rest.
    fn confirm(&self, spec: &ReceiveSpec) -> Result<Snapshot> {
        let mut found = self.find_snapshots(std::slice::from_ref(&spec.snapshot))?;
        let found = found.remove(&spec.snapshot).filter(|found| found.guid == spec.to_guid);
        let Some(found) = found else {
            return Err(StoreError::BadStream {
                dataset: spec.dataset.clone(),
                detail: format!(
                    "zfs receive reports success, yet {} is not there with guid {}; the newest is {}",
                    spec.snapshot,
                    spec.to_guid,
                    newest(&self.list_inventory(&spec.dataset)?)
                ),
            });
        };
        if spec.creates() && self.dialect.fuse {
            for word in [format!("{WAS_CANMOUNT}=on"), "canmount=noauto".to_owned()] {
                self.set_words(&spec.dataset, &[word])?;
            }
        }
        Ok(found)
    }

    /// After a receive that was broken off.
    fn look_at_rest(&self, spec: &ReceiveSpec) -> Result<Rest> {
        match self.list_inventory(&spec.dataset) {
            Ok(now) if now.partial.is_some() => Ok(Rest::Partial),
            Ok(_) if !spec.creates() => Ok(Rest::Nothing),
            Ok(_) => Ok(Rest::Undoing),
            Err(StoreError::NoDataset { .. }) => Ok(Rest::Nothing),
            Err(error) => Err(error),
        }
    }

    pub(crate) fn discard_partial(&self, dataset: &DatasetName) -> Result<()> {
        let about = About::dataset(dataset);
        match self.by_library(about, |lzc| lzc.discard_partial(dataset.as_str())) {
            Some(Ok(true)) => return Ok(()),
            Some(Err(error)) => return Err(error),
            // Of a full stream the dataset itself is the part: the command knows how to tell.
            Some(Ok(false)) | None => {}
        }
        self.zfs(&["receive", "-A", dataset.as_str()], about).map(drop)
    }
}

/// What is left of a receive that was broken off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rest {
    /// The dataset is as it was before.
    Nothing,
    /// Part of the stream, with a token.
    Partial,
    /// Part of the stream, which ZFS is still taking back.
    Undoing,
}

fn newest(inventory: &Inventory) -> String {
    match inventory.latest() {
        Some(snapshot) => format!("{} (guid {})", snapshot.name, snapshot.guid),
        None => "none".to_owned(),
    }
}

/// The right to receive into a dataset; ZFS takes one stream at a time.
#[derive(Debug)]
struct Turn {
    all: Arc<Mutex<BTreeSet<DatasetName>>>,
    dataset: DatasetName,
}

impl Turn {
    fn take(all: &Arc<Mutex<BTreeSet<DatasetName>>>, dataset: &DatasetName) -> Result<Self> {
        if !lock(all).insert(dataset.clone()) {
            return Err(StoreError::Busy {
                dataset: dataset.clone(),
                holders: vec![Holder {
                    pid: std::process::id(),
                    command: "flocker-repl".to_owned(),
                    what: "another receive into it is running".to_owned(),
                }],
            });
        }
        Ok(Self { all: Arc::clone(all), dataset: dataset.clone() })
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        lock(&self.all).remove(&self.dataset);
    }
}

/// Where a receive stands.
#[derive(Debug)]
enum State {
    /// The BEGIN record has not come in full; nothing was started.
    Waiting,
    /// ZFS takes what we write.
    Running { worker: Worker, pipe: File },
    /// It ended before the stream did, and said this.
    Ended(Result<()>),
    /// The stream was refused before anything was started.
    Refused(StoreError),
    /// Committed or aborted.
    Over,
}

/// Who receives.
#[derive(Debug)]
enum Worker {
    Command(StreamChild),
    Library(Call),
}

impl Worker {
    /// What came of it, once its pipe is closed; what does not end is killed where it can be.
    ///
    /// # Errors
    /// [`StoreError::Io`] (`TimedOut`): left behind.
    fn end(&mut self, limit: Duration, about: About<'_>) -> Result<Result<()>> {
        match self {
            Worker::Command(child) => {
                let finished = match child.wait(limit) {
                    Some(finished) => finished,
                    None => child.stop(Duration::ZERO)?,
                };
                Ok(match finished.ending.is_success() {
                    true => Ok(()),
                    false => Err(errors::explain(&finished, about)),
                })
            }
            Worker::Library(call) => match call.wait(limit) {
                Some(ended) => Ok(ended.map_err(|error| library::explain(&error, about))),
                None => Err(left_behind("a receive into", about.dataset)),
            },
        }
    }
}

struct ZfsReceive {
    store: ZfsStore,
    spec: ReceiveSpec,
    /// A partial receive that a stream which does not resume has to take away.
    partial: bool,
    /// The BEGIN record as far as it has come.
    begin: Vec<u8>,
    /// The last bytes so far, never more than [`HEADER_LEN`] between calls.
    tail: Vec<u8>,
    state: State,
    _turn: Turn,
}

impl Write for ZfsReceive {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        if matches!(self.state, State::Waiting) {
            let taken = buf.len().min(HEADER_LEN - self.begin.len());
            self.begin.extend_from_slice(&buf[..taken]);
            if self.begin.len() == HEADER_LEN
                && let Err(error) = self.start()
            {
                self.state = State::Refused(error);
            }
            return self.said(taken);
        }
        self.forward(buf)?;
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl ZfsReceive {
    /// Checks BEGIN, then starts the command.
    fn start(&mut self) -> Result<()> {
        let announced = check_begin(&self.begin, &self.spec)?;
        let resuming = announced.features.contains(Features::RESUMING);
        let dataset = &self.spec.dataset;
        if self.partial && !resuming {
            self.store.discard_partial(dataset)?;
        }
        if self.spec.creates() && !self.partial {
            self.store.create_parents(dataset)?;
        }
        let resumable = self.spec.resumable && self.store.dialect.resumable;
        if let (Some(lzc), Some(header)) = (&self.store.library, self.begin.first_chunk()) {
            let (snapshot, local) = (self.spec.snapshot.to_string(), self.at_rest(&announced));
            let how = (resumable, self.spec.origin.as_ref().map(ToString::to_string));
            let (call, pipe) = library::stream::receive(lzc, snapshot, *header, local, how)?;
            self.state = State::Running { worker: Worker::Library(call), pipe };
            self.begin.clear();
            return Ok(());
        }
        let words = self.store.receive_words(&self.spec, &announced);
        let args: Vec<&str> = words.iter().map(String::as_str).collect();
        let path = self.store.runner.path(Program::Zfs);
        let (child, pipe) = StreamChild::start(path, &args, Direction::Receive)?;
        let Pipe::In(stdin) = pipe else {
            unreachable!("a receive is started with a pipe to its stdin");
        };
        let pipe = File::from(OwnedFd::from(stdin));
        self.state = State::Running { worker: Worker::Command(child), pipe };
        let begin = std::mem::take(&mut self.begin);
        // A failed write is kept in the state.
        let _ = self.forward(&begin);
        Ok(())
    }

    /// Properties of a dataset that a full stream makes: set with it, so that no boot in between mounts it.
    fn at_rest(&self, announced: &Begin) -> Properties {
        if !self.spec.creates() || announced.objset_type != objset::ZFS {
            return Properties::new();
        }
        [
            ("canmount".to_owned(), Setting::CANMOUNT_NOAUTO),
            (WAS_CANMOUNT.to_owned(), Setting::Text("on".to_owned())),
        ]
        .into()
    }

    /// Writes everything but the last [`HEADER_LEN`] bytes so far.
    fn forward(&mut self, buf: &[u8]) -> io::Result<()> {
        let State::Running { pipe, .. } = &mut self.state else {
            return self.said(());
        };
        let from_tail =
            self.tail.len().min((self.tail.len() + buf.len()).saturating_sub(HEADER_LEN));
        let from_buf = buf.len().saturating_sub(HEADER_LEN);
        let mut outcome = Ok(());
        if from_tail > 0 {
            outcome = pipe.write_all(&self.tail[..from_tail]);
            self.tail.drain(..from_tail);
        }
        if outcome.is_ok() && from_buf > 0 {
            outcome = pipe.write_all(&buf[..from_buf]);
        }
        self.tail.extend_from_slice(&buf[from_buf..]);
        if let Err(error) = outcome {
            self.broken(error)?;
        }
        Ok(())
    }

    /// ZFS no longer reads: it has ended, and says why.
    fn broken(&mut self, error: io::Error) -> io::Result<()> {
        if let State::Running { mut worker, pipe } = std::mem::replace(&mut self.state, State::Over)
        {
            drop(pipe);
            self.state = match worker.end(ABORT_LIMIT, self.about()) {
                Ok(ended) => State::Ended(ended),
                Err(left_behind) => State::Refused(left_behind),
            };
        }
        match self.said(()) {
            Ok(()) => Err(error),
            Err(said) => Err(said),
        }
    }

    /// `value`, or the reason why this stream is over, as an I/O error.
    fn said<T>(&self, value: T) -> io::Result<T> {
        match &self.state {
            State::Waiting | State::Running { .. } => Ok(value),
            State::Ended(ended) => {
                let said = ended.as_ref().err().map_or_else(String::new, ToString::to_string);
                Err(io::Error::new(io::ErrorKind::BrokenPipe, said))
            }
            State::Refused(error) => {
                Err(io::Error::new(io::ErrorKind::InvalidData, error.to_string()))
            }
            State::Over => Err(io::Error::from(io::ErrorKind::BrokenPipe)),
        }
    }

    fn about(&self) -> About<'_> {
        About { dataset: &self.spec.dataset, base: self.spec.from_guid }
    }

    fn incomplete(&self) -> StoreError {
        StoreError::BadStream {
            dataset: self.spec.dataset.clone(),
            detail: format!("incomplete stream: {} bytes", self.begin.len()),
        }
    }

    /// Closes the pipe without the END record and waits until ZFS has taken back what arrived, or has
    /// put it where it goes on from.
    fn break_off(&mut self) -> Result<Rest> {
        let State::Running { mut worker, pipe } = std::mem::replace(&mut self.state, State::Over)
        else {
            return Ok(Rest::Nothing);
        };
        drop(pipe);
        // It fails, since the stream is not whole.
        let _ = worker.end(ABORT_LIMIT, self.about())?;
        let deadline = Instant::now() + UNDO_GRACE;
        let mut pause = Duration::from_millis(5);
        loop {
            match self.store.look_at_rest(&self.spec)? {
                Rest::Undoing if Instant::now() >= deadline => {
                    return Err(StoreError::Busy {
                        dataset: self.spec.dataset.clone(),
                        holders: vec![Holder {
                            pid: 0,
                            command: "zfs receive".to_owned(),
                            what: "a partial dataset that ZFS has not taken back".to_owned(),
                        }],
                    });
                }
                Rest::Undoing => {}
                rest => return Ok(rest),
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(200));
        }
    }
}

impl ReceiveStream for ZfsReceive {
    fn commit(mut self: Box<Self>) -> Result<Snapshot> {
        let tail = std::mem::take(&mut self.tail);
        let (mut worker, mut pipe) = match std::mem::replace(&mut self.state, State::Over) {
            State::Running { worker, pipe } => (worker, pipe),
            State::Waiting | State::Over => return Err(self.incomplete()),
            State::Ended(ended) => return ended.and_then(|()| self.store.confirm(&self.spec)),
            State::Refused(error) => return Err(error),
        };
        // If it has ended, its own words say why.
        let _ = pipe.write_all(&tail);
        drop(pipe);
        worker.end(COMMIT_LIMIT, self.about())??;
        self.store.confirm(&self.spec)
    }

    fn abort(mut self: Box<Self>) -> Result<()> {
        match self.break_off()? {
            Rest::Partial => self.store.discard_partial(&self.spec.dataset),
            Rest::Nothing | Rest::Undoing => Ok(()),
        }
    }

    fn suspend(mut self: Box<Self>) -> Result<()> {
        self.break_off().map(drop)
    }
}

impl Drop for ZfsReceive {
    fn drop(&mut self) {
        if let Err(error) = self.break_off() {
            tracing::warn!(dataset = %self.spec.dataset, %error, "a receive that was broken off has not ended");
        }
    }
}

/// Checks that a stream is the one that was announced.
fn check_begin(bytes: &[u8], spec: &ReceiveSpec) -> Result<Begin> {
    let bad = |detail: String| StoreError::BadStream { dataset: spec.dataset.clone(), detail };
    let Some(header) = bytes.first_chunk::<HEADER_LEN>() else {
        return Err(bad("incomplete stream".to_owned()));
    };
    // Either byte order may arrive; the magic number in BEGIN tells which it is.
    let little = Record::decode(header, Endian::Little);
    let record = match little {
        Ok(record) => record,
        Err(problem) => Record::decode(header, Endian::Big)
            .map_err(|_| bad(format!("record 0, offset 0: {problem}")))?,
    };
    let Record::Begin(begin) = record else {
        return Err(bad("record 0, offset 0: not a BEGIN record".to_owned()));
    };
    if begin.header_type == HeaderType::Compound {
        return Err(StoreError::Unsupported {
            dataset: spec.dataset.clone(),
            feature: "a package of several streams (-R, -I, -p)".to_owned(),
        });
    }
    if begin.to_guid != spec.to_guid.0 {
        return Err(bad(format!(
            "it carries the snapshot with guid {} ({}), and {} was announced",
            begin.to_guid,
            begin.name(),
            spec.to_guid
        )));
    }
    let base = spec.from_guid.map_or(0, |guid| guid.0);
    if begin.from_guid != base {
        return Err(bad(format!(
            "it starts from guid {}, and {base} was announced",
            begin.from_guid
        )));
    }
    Ok(begin)
}
