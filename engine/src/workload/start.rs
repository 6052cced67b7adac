//! Starting a workload: spawn the supervisor, make its record durable, let it go.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use flocker_core::ids::UnitId;
use flocker_core::{Failure, FailureCode, Remedy};

use super::lease;
use super::members::Mark;
use super::proc;
use super::record::{PidRecord, Records};
use super::supervise::{ERROR, GO, STARTED, arguments};
use super::{Places, Start};
use crate::failpoint;

/// How long the supervisor may take to start the command.
const START_LIMIT: Duration = Duration::from_secs(10);

/// Longest answer of a supervisor that is read, in bytes.
const MAX_ANSWER_BYTES: u64 = 4096;

/// What is to be started.
pub(super) struct Order<'a> {
    pub(super) unit: UnitId,
    pub(super) mark: Mark,
    pub(super) what: &'a Start<'a>,
}

/// What runs.
pub(super) struct Started {
    pub(super) child: Child,
    pub(super) lifeline: Option<UnixStream>,
}

/// The volumes' paths in a workload's environment, `:` between them.
pub(super) const PATH_VARIABLE: &str = "FLOCKER_VOLUME_PATH";

/// The command never ran.
fn failed(remedy: Remedy, order: &Order<'_>, reason: impl std::fmt::Display) -> Failure {
    failed_as(FailureCode::NotStarted, remedy, order, reason)
}

fn failed_as(
    code: FailureCode,
    remedy: Remedy,
    order: &Order<'_>,
    reason: impl std::fmt::Display,
) -> Failure {
    let program = order.what.command.first().map_or("(nothing)", String::as_str);
    Failure::new(remedy, code, format!("the workload `{program}` does not start: {reason}"))
}

/// Starts it; on failure the caller kills what may be left of it.
pub(super) fn start(
    places: &Places,
    records: &Records,
    order: &Order<'_>,
) -> Result<Started, Failure> {
    let retry = |error: io::Error| failed(Remedy::Retry, order, error);
    let lease_path = records.lease(order.unit);
    if let Some(deadline) = order.what.lease {
        lease::write(&lease_path, Some(deadline)).map_err(retry)?;
    }
    let lease = order.what.lease.map(|_| lease_path.as_path());
    let (ours, theirs) = UnixStream::pair().map_err(retry)?;
    let mut child = spawn(places, order, lease, theirs).map_err(retry)?;
    match let_go(records, order, &child, &ours) {
        Ok(()) => Ok(Started { child, lifeline: order.what.stays.then_some(ours) }),
        Err(failure) => {
            // It has started nothing, or could not: all the same, the caller makes sure.
            drop(ours);
            let _ = child.kill();
            let _ = child.wait();
            Err(failure)
        }
    }
}

fn spawn(
    places: &Places,
    order: &Order<'_>,
    lease: Option<&Path>,
    stdin: UnixStream,
) -> io::Result<Child> {
    let Some((program, leading)) = places.supervisor.split_first() else {
        return Err(io::Error::other("no supervisor is configured"));
    };
    let Some(path) = order.what.paths.first() else {
        return Err(io::Error::other("the unit's volume has no path here"));
    };
    // A zvol's path is its device, in which nothing can run. A path that is not there is no place to run either.
    let device = path.exists() && !path.is_dir();
    let directory = if device { Path::new("/") } else { path };
    let log = open_log(places, order.unit)?;
    let mut command = Command::new(program);
    command
        .args(leading)
        .args(arguments(order.what.stays, lease, order.what.command))
        .current_dir(directory)
        .env(PATH_VARIABLE, joined(order.what.paths))
        .env_remove(failpoint::VARIABLE)
        .stdin(Stdio::from(OwnedFd::from(stdin)))
        .stdout(log.try_clone()?)
        .stderr(log);
    for entry in &order.mark.environment {
        if let Some((name, value)) = entry.split_once('=') {
            command.env(name, value);
        }
    }
    command.spawn().map_err(|error| {
        io::Error::new(error.kind(), format!("{program} in {}: {error}", directory.display()))
    })
}

fn let_go(
    records: &Records,
    order: &Order<'_>,
    child: &Child,
    ours: &UnixStream,
) -> Result<(), Failure> {
    let retry = |error: io::Error| failed(Remedy::Retry, order, error);
    failpoint::pass(|| "after-spawn");
    let Some(stat) = proc::stat(child.id()) else {
        return Err(failed(Remedy::Retry, order, "its supervisor ended"));
    };
    let record = PidRecord {
        pid: stat.pid,
        start_time: stat.start_time,
        boot_id: proc::boot_id().map_err(retry)?,
        stays: order.what.stays,
        leased: order.what.lease.is_some(),
    };
    records.store(order.unit, &record).map_err(retry)?;
    failpoint::pass(|| "after-record");
    let mut socket = ours;
    socket.set_read_timeout(Some(START_LIMIT)).map_err(retry)?;
    socket.write_all(&[GO]).map_err(retry)?;
    // From here on it may run.
    let unsure = |reason: String| failed_as(FailureCode::Workload, Remedy::Retry, order, reason);
    let answer = read_answer(socket).map_err(|error| unsure(error.to_string()))?;
    match answer.strip_prefix(ERROR) {
        Some(reason) => Err(failed(Remedy::Operator, order, reason)),
        None if record.supervised() && answer != STARTED => {
            Err(unsure("its supervisor ended".to_owned()))
        }
        None => Ok(()),
    }
}

/// One line, or what came before the end.
fn read_answer(socket: &UnixStream) -> io::Result<String> {
    let mut answer = Vec::new();
    // Nobody reads from this socket after this line, so what is buffered beyond it is not missed.
    BufReader::new(socket.take(MAX_ANSWER_BYTES)).read_until(b'\n', &mut answer)?;
    Ok(String::from_utf8_lossy(&answer).trim_end().to_owned())
}

pub(super) fn joined(paths: &[PathBuf]) -> String {
    let all: Vec<_> = paths.iter().map(|p| p.to_string_lossy()).collect();
    all.join(":")
}

pub(super) fn log_path(places: &Places, unit: UnitId) -> PathBuf {
    places.state.join("logs").join(format!("{unit}.log"))
}

pub(super) fn open_log(places: &Places, unit: UnitId) -> io::Result<File> {
    let path = log_path(places, unit);
    rotate(&path, places.log_bytes)?;
    OpenOptions::new().append(true).create(true).open(path)
}

fn rotate(path: &Path, limit: u64) -> io::Result<()> {
    match std::fs::metadata(path) {
        Ok(found) if found.len() > limit => std::fs::rename(path, path.with_extension("log.1")),
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}
