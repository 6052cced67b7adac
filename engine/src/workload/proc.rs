//! What `/proc` says of processes (proc(5)). Processes come and go while we look: whatever
//! vanished between two looks is simply not there.

use std::fs;
use std::io;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fd::OwnedFd;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use rustix::time::Timespec;

/// A process as `/proc/PID/stat` has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stat {
    pub(crate) pid: u32,
    pub(crate) command: String,
    /// One letter: `R`, `S`, `D`, `T`, `Z`, …
    pub(crate) state: char,
    pub(crate) parent: u32,
    pub(crate) session: u32,
    /// A thread of the kernel's own: no files, no environment.
    pub(crate) kernel: bool,
    /// Field 22: clock ticks since boot. With the pid and the boot id it names one process.
    pub(crate) start_time: u64,
}

/// `PF_KTHREAD` of the kernel's `include/linux/sched.h`.
const PF_KTHREAD: u64 = 0x0020_0000;

/// Field 2 may hold anything, spaces and parentheses too: what counts begins behind the last `)`.
fn parse_stat(text: &str) -> Option<Stat> {
    let open = text.find('(')?;
    let close = text.rfind(')')?;
    let pid = text.get(..open)?.trim().parse().ok()?;
    let command = text.get(open + 1..close)?.to_owned();
    let mut rest = text.get(close + 1..)?.split_ascii_whitespace();
    let state = rest.next()?.chars().next()?;
    let parent = rest.next()?.parse().ok()?;
    let _group = rest.next()?;
    let session = rest.next()?.parse().ok()?;
    // The flags are field 9, two behind the session (6); fields 10 to 21 lie before the start time.
    let flags: u64 = rest.nth(2)?.parse().ok()?;
    let start_time = rest.nth(12)?.parse().ok()?;
    Some(Stat { pid, command, state, parent, session, kernel: flags & PF_KTHREAD != 0, start_time })
}

/// One process, if it is there.
pub(crate) fn stat(pid: u32) -> Option<Stat> {
    // The command may be any bytes at all.
    let bytes = fs::read(format!("/proc/{pid}/stat")).ok()?;
    parse_stat(&String::from_utf8_lossy(&bytes))
}

/// Every process that can be seen.
pub(crate) fn all() -> Vec<Stat> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
        .filter_map(stat)
        .collect()
}

/// State of each thread of a process; empty when it is gone.
fn thread_states(pid: u32) -> Vec<char> {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| {
            let tid = entry.ok()?.file_name().to_str()?.parse::<u32>().ok()?;
            let bytes = fs::read(format!("/proc/{pid}/task/{tid}/stat")).ok()?;
            Some(parse_stat(&String::from_utf8_lossy(&bytes))?.state)
        })
        .collect()
}

impl Stat {
    /// No thread of it will ever run again. A leader may be a zombie while other threads live on.
    pub(crate) fn is_dead(&self) -> bool {
        matches!(self.state, 'Z' | 'X' | 'x')
            && thread_states(self.pid).iter().all(|state| matches!(state, 'Z' | 'X' | 'x'))
    }

    /// No thread of it runs now: each is stopped, or dead. A thread in the kernel (`D`) may still
    /// be writing and does not count as stopped.
    pub(crate) fn is_stopped(&self) -> bool {
        thread_states(self.pid).iter().all(|state| matches!(state, 'T' | 't' | 'Z' | 'X' | 'x'))
    }

    /// The same process, and not another one under its number.
    pub(crate) fn is_same(&self, other: &Stat) -> bool {
        (self.pid, self.start_time) == (other.pid, other.start_time)
    }
}

/// Whether the environment a process was started with has every one of these `NAME=value`.
/// `None`: it may not be read, or the process is gone.
pub(crate) fn has_environment(pid: u32, wanted: &[String]) -> Option<bool> {
    let bytes = fs::read(format!("/proc/{pid}/environ")).ok()?;
    let has = |want: &String| bytes.split(|b| *b == 0).any(|entry| entry == want.as_bytes());
    Some(wanted.iter().all(has))
}

/// This boot of the system.
pub(crate) fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// A handle on exactly this process: its number may not pass to another meanwhile.
/// `None`: it is gone.
pub(crate) fn handle(process: &Stat) -> Option<OwnedFd> {
    let pid = Pid::from_raw(i32::try_from(process.pid).ok()?)?;
    let fd = pidfd_open(pid, PidfdFlags::empty()).ok()?;
    stat(process.pid).is_some_and(|now| now.is_same(process)).then_some(fd)
}

/// Sends a signal to exactly this process; one that is gone is not an error.
///
/// # Errors
/// We may not signal it.
pub(crate) fn signal(process: &Stat, signal: Signal) -> io::Result<()> {
    let Some(fd) = handle(process) else {
        return Ok(());
    };
    match pidfd_send_signal(&fd, signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Pause where there is nothing to wait on: a process that went away meanwhile.
const VANISHED: Duration = Duration::from_millis(2);

/// Waits until all of these processes have ended, or until the limit.
pub(crate) fn wait_all(processes: &[Stat], limit: Duration) {
    let until = Instant::now() + limit;
    let mut handles: Vec<OwnedFd> = processes.iter().filter_map(handle).collect();
    if handles.is_empty() {
        std::thread::sleep(VANISHED.min(limit));
    }
    while !handles.is_empty() {
        let left = until.saturating_duration_since(Instant::now());
        let mut fds: Vec<PollFd<'_>> =
            handles.iter().map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
        let timeout = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        };
        // Interrupted or failed: the caller looks again anyway.
        if !matches!(poll(&mut fds, Some(&timeout)), Ok(ended) if ended > 0) {
            return;
        }
        let alive: Vec<bool> = fds.iter().map(|fd| fd.revents().is_empty()).collect();
        let mut alive = alive.into_iter();
        handles.retain(|_| alive.next().unwrap_or(false));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_with_parentheses_and_spaces_does_not_shift_the_fields() {
        let line = "42 (a) (b c) d) S 7 42 43 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 987654 1 2";
        assert_eq!(
            parse_stat(line).unwrap(),
            Stat {
                pid: 42,
                command: "a) (b c) d".into(),
                state: 'S',
                parent: 7,
                session: 43,
                kernel: false,
                start_time: 987_654,
            }
        );
        for bad in ["", "42", "42 (x", "42 (x) S 1 2", ") 42 ("] {
            assert_eq!(parse_stat(bad), None, "{bad}");
        }
    }

    #[test]
    fn this_process_sees_itself_and_its_environment() {
        let own = stat(std::process::id()).unwrap();
        assert!(!own.is_dead() && !own.is_stopped() && own.start_time > 0);
        assert!(all().iter().any(|p| p.is_same(&own)));
        assert_eq!(has_environment(own.pid, &["NO_SUCH_VARIABLE=1".into()]), Some(false));
    }
}
