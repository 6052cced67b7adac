//! Local commands that the configuration names: hooks, health checks, the fencing hook.
//!
//! Owns: running one within a limit and saying how it ended. Leaves to others: when, and what follows
//! from it. A command is not passed through a shell, has no stdin, runs in `/` (so that what it leaves
//! behind holds no volume), and in a process group of its own, which is killed at the limit.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use rustix::time::Timespec;

/// Longest last line of output that is quoted, bytes.
const MAX_QUOTED_BYTES: u64 = 400;

/// Why a command did not do what it should, in words.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HookError {
    /// It could not be started.
    #[error("`{command}` cannot be started: {source}")]
    Start {
        command: String,
        #[source]
        source: io::Error,
    },
    /// It ended, but not with status 0.
    #[error("`{command}` ended with {status}{}", quoted(last))]
    Status { command: String, status: ExitStatus, last: String },
    /// It was killed.
    #[error("`{command}` took longer than {} ms and was killed{}", limit.as_millis(), quoted(last))]
    Limit { command: String, limit: Duration, last: String },
}

fn quoted(last: &str) -> String {
    if last.is_empty() { String::new() } else { format!("; its last words: {last}") }
}

/// Runs a command to its end. Its output goes to the end of `log`.
///
/// # Errors
/// [`HookError`], which quotes the last line of its output.
pub(crate) fn run(
    command: &[String],
    environment: &[(String, String)],
    log: &File,
    limit: Duration,
) -> Result<(), HookError> {
    let words = command.join(" ");
    let start = |source| HookError::Start { command: words.clone(), source };
    let Some((program, arguments)) = command.split_first() else {
        return Err(start(io::Error::other("it is empty")));
    };
    let from = log.metadata().map(|found| found.len()).unwrap_or(0);
    let mut child = Command::new(program)
        .args(arguments)
        .envs(environment.iter().map(|(name, value)| (name, value)))
        .current_dir("/")
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(log.try_clone().map_err(start)?)
        .stderr(log.try_clone().map_err(start)?)
        .spawn()
        .map_err(start)?;
    match wait(&mut child, limit).map_err(start)? {
        Some(status) if status.success() => Ok(()),
        Some(status) => {
            Err(HookError::Status { command: words, status, last: last_line(log, from) })
        }
        None => Err(HookError::Limit { command: words, limit, last: last_line(log, from) }),
    }
}

/// `None`: it was killed at the limit.
fn wait(child: &mut Child, limit: Duration) -> io::Result<Option<ExitStatus>> {
    let until = Instant::now() + limit;
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let handle = pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            if let Some(pid) = pid {
                let _ = kill_process_group(pid, Signal::KILL);
            }
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        match &handle {
            Some(handle) => wait_for_end(handle, left),
            None => std::thread::sleep(Duration::from_millis(1)),
        }
    }
}

/// Interrupted or failed: the caller looks again anyway.
fn wait_for_end(handle: &OwnedFd, limit: Duration) {
    let timeout = Timespec {
        tv_sec: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: limit.subsec_nanos().into(),
    };
    let _ = poll(&mut [PollFd::new(handle, PollFlags::IN)], Some(&timeout));
}

/// The last line that is not empty of what was written since; nothing where it cannot be read.
fn last_line(log: &File, from: u64) -> String {
    let read = || -> io::Result<Vec<u8>> {
        // A handle of its own, with its own place in the file: others append meanwhile.
        let mut file =
            File::open(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(log)))?;
        let end = file.metadata()?.len();
        file.seek(SeekFrom::Start(from.max(end.saturating_sub(MAX_QUOTED_BYTES))))?;
        let mut bytes = Vec::new();
        file.take(MAX_QUOTED_BYTES).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    text.lines().rev().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(script: &str, limit_ms: u64) -> Result<(), String> {
        let log = tempfile::NamedTempFile::new().unwrap();
        let file = std::fs::OpenOptions::new().append(true).open(log.path()).unwrap();
        let command = ["/bin/sh", "-c", script].map(String::from);
        let environment = [("WORD".to_owned(), "hello".to_owned())];
        run(&command, &environment, &file, Duration::from_millis(limit_ms))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn status_zero_is_success_and_the_environment_is_there() {
        check("test \"$WORD\" = hello && test \"$(pwd)\" = /", 10_000).unwrap();
    }

    #[test]
    fn a_failure_names_command_status_and_last_line() {
        let text = check("echo first; echo last >&2; echo; exit 7", 10_000).unwrap_err();
        assert!(text.contains("exit status: 7") && text.ends_with("last"), "{text}");
        assert!(text.contains("/bin/sh"), "{text}");
    }

    #[test]
    fn what_takes_too_long_is_killed_with_its_children() {
        let begun = Instant::now();
        let text = check("echo slow; sleep 311 & wait", 100).unwrap_err();
        assert!(text.contains("100 ms") && text.ends_with("slow"), "{text}");
        assert!(begun.elapsed() < Duration::from_secs(300));
    }
}
