//! How long a workload may run without being told again: a file, and who obeys it.
//!
//! The daemon writes `<state>/run/<unit>.lease` before the start and at each renewal; the workload's
//! supervisor reads it and kills everything shortly before the deadline, whether the daemon lives, hangs
//! or is stopped. The deadline is noted by two clocks, and the first to pass it counts: CLOCK_BOOTTIME
//! goes on while the host sleeps; CLOCK_REALTIME is put right after a virtual machine was paused, which
//! no other clock of it notices. A wall clock that is set forward by hand ends a lease early: down is
//! better than two.
//!
//! A file that is gone or cannot be read changes nothing: the deadline that was known last holds. Reading
//! may hang with the disk, so a thread of its own does it, and the one that kills waits for nobody.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fd::OwnedFd;
use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, clock_gettime,
    timerfd_create, timerfd_settime,
};

/// So much before the deadline everything is killed: the time that takes, with room to spare.
pub(super) const KILL_BEFORE_MS: i64 = 50;

/// Longest pause between two looks at the file: a deadline may also become a nearer one.
const READ_EVERY: Duration = Duration::from_millis(100);

/// The last look is so long before the kill.
const LAST_LOOK_MS: i64 = 10;

/// Until when, by both clocks, milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Deadline {
    /// Of CLOCK_BOOTTIME.
    pub(crate) boot_ms: i64,
    /// Of CLOCK_REALTIME.
    pub(crate) real_ms: i64,
}

fn clock_ms(clock: ClockId) -> i64 {
    let now = clock_gettime(clock);
    now.tv_sec.saturating_mul(1000).saturating_add(now.tv_nsec / 1_000_000)
}

impl Deadline {
    /// So far from now; nothing below zero.
    pub(crate) fn after(left: Duration) -> Self {
        let left = i64::try_from(left.as_millis()).unwrap_or(i64::MAX);
        Self {
            boot_ms: clock_ms(ClockId::Boottime).saturating_add(left),
            real_ms: clock_ms(ClockId::Realtime).saturating_add(left),
        }
    }

    /// How long until then by the clock that comes first; negative: it has passed.
    pub(super) fn left_ms(&self) -> i64 {
        let boot = self.boot_ms.saturating_sub(clock_ms(ClockId::Boottime));
        let real = self.real_ms.saturating_sub(clock_ms(ClockId::Realtime));
        boot.min(real)
    }
}

/// What the file says: a deadline, or that there is none.
fn parse(text: &str) -> Option<Option<Deadline>> {
    let mut fields = text.strip_suffix('\n')?.split(' ');
    let first = fields.next()?;
    if first == "none" {
        return Some(None);
    }
    let deadline = Deadline { boot_ms: first.parse().ok()?, real_ms: fields.next()?.parse().ok()? };
    fields.next().is_none().then_some(Some(deadline))
}

/// The lease's file in a directory of records.
pub(super) fn path(dir: &Path, unit: impl std::fmt::Display) -> PathBuf {
    dir.join(format!("{unit}.lease"))
}

/// Writes it: whole or not at all. Not durable: nothing that it is about outlives the boot.
///
/// # Errors
/// It could not be written; the deadline before holds.
pub(super) fn write(path: &Path, deadline: Option<Deadline>) -> io::Result<()> {
    let text = match deadline {
        Some(Deadline { boot_ms, real_ms }) => format!("{boot_ms} {real_ms}\n"),
        None => "none\n".to_owned(),
    };
    let beside = path.with_extension("lease.new");
    fs::write(&beside, text)?;
    fs::rename(&beside, path)
}

fn read(path: &Path) -> Option<Option<Deadline>> {
    parse(&fs::read_to_string(path).ok()?)
}

/// Watches over a lease on threads of its own, and calls `end` once when it has run out.
///
/// # Errors
/// There is no lease that could be read, or it has run out already: nothing may be started.
pub(super) fn watch(path: PathBuf, end: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let first = read(&path)
        .ok_or_else(|| io::Error::other(format!("{} says no deadline", path.display())))?;
    if first.is_some_and(|deadline| deadline.left_ms() <= KILL_BEFORE_MS) {
        return Err(io::Error::other("its lease has run out"));
    }
    let known = Arc::new(Mutex::new(first));
    let shared = Arc::clone(&known);
    std::thread::Builder::new().name("lease-read".into()).spawn(move || {
        loop {
            std::thread::sleep(pause(*lock(&shared)));
            if let Some(now) = read(&path) {
                *lock(&shared) = now;
            }
        }
    })?;
    let wall = wall_clock_changes();
    std::thread::Builder::new().name("lease-end".into()).spawn(move || {
        loop {
            let left_ms = lock(&known).map(|d| d.left_ms() - KILL_BEFORE_MS);
            match left_ms {
                Some(left) if left <= 0 => return end(),
                left => sleep(wall.as_ref(), left),
            }
        }
    })?;
    Ok(())
}

fn lock(known: &Mutex<Option<Deadline>>) -> std::sync::MutexGuard<'_, Option<Deadline>> {
    known.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Until the file is read again: soon enough to see a renewal just before the end.
fn pause(known: Option<Deadline>) -> Duration {
    let until_last = known.map_or(i64::MAX, |d| d.left_ms() - KILL_BEFORE_MS - LAST_LOOK_MS);
    match u64::try_from(until_last) {
        Ok(ms) => Duration::from_millis(ms.max(1)).min(READ_EVERY),
        Err(_) => Duration::from_millis(2),
    }
}

/// A timer that is never due, but wakes whoever waits for it when the wall clock is set, and when the
/// host wakes up (timerfd_create(2), TFD_TIMER_CANCEL_ON_SET).
fn wall_clock_changes() -> Option<OwnedFd> {
    let timer =
        timerfd_create(TimerfdClockId::Realtime, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)
            .ok()?;
    arm(&timer).then_some(timer)
}

fn arm(timer: &OwnedFd) -> bool {
    let never = Itimerspec {
        it_interval: Timespec { tv_sec: 0, tv_nsec: 0 },
        // The year 2200: the kernel counts to 2262.
        it_value: Timespec { tv_sec: 7_258_118_400, tv_nsec: 0 },
    };
    let flags = TimerfdTimerFlags::ABSTIME | TimerfdTimerFlags::CANCEL_ON_SET;
    timerfd_settime(timer, flags, &never).is_ok()
}

fn sleep(wall: Option<&OwnedFd>, left_ms: Option<i64>) {
    let longest = i64::try_from(READ_EVERY.as_millis()).unwrap_or(i64::MAX);
    let ms = left_ms.unwrap_or(longest).clamp(1, longest);
    let timeout = Timespec { tv_sec: ms / 1000, tv_nsec: (ms % 1000) * 1_000_000 };
    let woken = match wall {
        Some(wall) => poll(&mut [PollFd::new(wall, PollFlags::IN)], Some(&timeout)),
        None => poll(&mut [], Some(&timeout)),
    };
    if let (Ok(1..), Some(wall)) = (woken, wall) {
        // The cancelled timer says so until it is read and set again.
        let _ = rustix::io::read(wall, &mut [0u8; 8]);
        arm(wall);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_reads_back_the_same_and_anything_else_reads_as_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = path(dir.path(), "u");
        assert_eq!(read(&path), None);
        for deadline in [None, Some(Deadline { boot_ms: 5, real_ms: 1_700_000_000_000 })] {
            write(&path, deadline).unwrap();
            assert_eq!(read(&path), Some(deadline));
        }
        for bad in ["", "none", "1 2", "1\n", "1 x\n", "1 2 3\n"] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn the_clock_that_comes_first_counts() {
        let far = Deadline::after(Duration::from_secs(1000));
        assert!(far.left_ms() > 900_000);
        assert!(Deadline { boot_ms: 0, ..far }.left_ms() < 0);
        assert!(Deadline { real_ms: 0, ..far }.left_ms() < 0);
    }

    #[test]
    fn nothing_is_watched_over_without_a_lease_that_holds() {
        let dir = tempfile::tempdir().unwrap();
        let path = path(dir.path(), "u");
        assert!(watch(path.clone(), || {}).is_err());
        write(&path, Some(Deadline::after(Duration::ZERO))).unwrap();
        assert!(watch(path, || {}).is_err());
    }

    #[test]
    fn the_end_comes_before_the_deadline_and_without_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = path(dir.path(), "u");
        let deadline = Deadline::after(Duration::from_millis(600));
        write(&path, Some(deadline)).unwrap();
        let (tell, told) = std::sync::mpsc::channel();
        watch(path.clone(), move || tell.send(()).unwrap()).unwrap();
        fs::remove_file(&path).unwrap();
        told.recv_timeout(Duration::from_secs(20)).unwrap();
        assert!(deadline.left_ms() <= KILL_BEFORE_MS);
    }
}
