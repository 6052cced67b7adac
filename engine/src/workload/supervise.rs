//! The supervisor: our own program, between the daemon and a workload's command.
//!
//! ```text
//! daemon                       supervisor (own session)              command
//!   │── spawn ────────────────────▶│
//!   │   record pid, start time,    │  waits on its stdin
//!   │   boot id; fsync             │
//!   │── "go" ─────────────────────▶│── exec, or (--stay) spawn ─────────▶│
//!   │◀─ end of file, or "started" ─│
//!   │◀─ "error: …" ────────────────│  when the command cannot be started
//! ```
//!
//! Its stdin is one end of a socket pair of which the daemon has the other. A daemon that dies
//! before the record is durable closes it, and the supervisor ends without having started anything:
//! so there is never a workload without a record. With `--stay` it outlives the start, takes in
//! orphaned descendants, and kills everything when the daemon's end closes for whatever reason. With
//! `--lease FILE` it stays too, and kills everything when the lease runs out (see `lease`), but not
//! because the daemon has gone, unless `--stay` says so.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitOptions, WaitStatus};

use super::lease;
use super::members::below_us;
use super::proc;

/// What the daemon says once the record is durable.
pub(crate) const GO: u8 = b'g';
/// What a supervisor that stays says once the command runs.
pub(crate) const STARTED: &str = "started";
/// What it says before the reason why the command does not run.
pub(crate) const ERROR: &str = "error: ";

const EXIT_USAGE: u8 = 2;
const EXIT_NOT_STARTED: u8 = 127;

/// How often those that live on after a kill are killed again before it is given up.
const KILL_ROUNDS: u32 = 500;

/// The arguments with which the daemon calls it, behind the word `supervise`.
pub(crate) fn arguments(stay: bool, lease: Option<&Path>, command: &[String]) -> Vec<String> {
    let mut arguments = Vec::with_capacity(command.len() + 4);
    if stay {
        arguments.push("--stay".to_owned());
    }
    if let Some(lease) = lease {
        arguments.push("--lease".to_owned());
        arguments.push(lease.to_string_lossy().into_owned());
    }
    arguments.push("--".to_owned());
    arguments.extend(command.iter().cloned());
    arguments
}

/// The hidden subcommand `supervise`: takes everything behind that word on the command line, and
/// is of use only to the daemon, which talks to it over its stdin. Does not return where the
/// command takes its place.
pub fn supervise_main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    ExitCode::from(supervise(args))
}

pub(super) fn supervise(args: impl IntoIterator<Item = OsString>) -> u8 {
    let mut args = args.into_iter().peekable();
    let loopback = args.next_if(|arg| arg == "--loopback").is_some();
    let stay = args.next_if(|arg| arg == "--stay").is_some();
    let lease = match args.next_if(|arg| arg == "--lease") {
        Some(_) => args.next().map(PathBuf::from),
        None => None,
    };
    let separated = args.next_if(|arg| arg == "--").is_some();
    let (true, Some(program)) = (separated, args.next()) else {
        eprintln!(
            "supervise: for the daemon only: supervise [--loopback] [--stay] [--lease FILE] -- COMMAND…"
        );
        return EXIT_USAGE;
    };
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null());
    let Some(daemon) = daemon_end() else {
        eprintln!("supervise: the daemon is not at the other end of stdin");
        return EXIT_USAGE;
    };
    // Not a session's leader yet, since the daemon gave us no process group of our own.
    let _ = rustix::process::setsid();
    if !wait_for_go(&daemon) {
        return 0;
    }
    if loopback && let Err(error) = raise_loopback() {
        let mut daemon = &daemon;
        let _ = writeln!(daemon, "{ERROR}the loopback interface of its network: {error}");
        return EXIT_NOT_STARTED;
    }
    if stay || lease.is_some() {
        stay_with(command, daemon, stay, lease)
    } else {
        become_it(command, daemon)
    }
}

/// A copy of stdin that does not pass on to the command.
fn daemon_end() -> Option<UnixStream> {
    let copy = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3).ok()?;
    let is_socket = rustix::net::sockopt::socket_type(&copy).is_ok();
    is_socket.then(|| UnixStream::from(copy))
}

fn wait_for_go(mut daemon: &UnixStream) -> bool {
    let mut byte = [0u8];
    matches!(daemon.read(&mut byte), Ok(1) if byte[0] == GO)
}

/// A new network namespace has its loopback interface down (ip-link(8)).
fn raise_loopback() -> std::io::Result<()> {
    let status = Command::new("ip").args(["link", "set", "dev", "lo", "up"]).status()?;
    if status.success() { Ok(()) } else { Err(std::io::Error::other(status.to_string())) }
}

fn become_it(mut command: Command, mut daemon: UnixStream) -> u8 {
    // Closing our copy happens in exec itself: end of file tells the daemon that it worked.
    let error = command.exec();
    let _ = writeln!(daemon, "{ERROR}{error}");
    EXIT_NOT_STARTED
}

fn stay_with(
    mut command: Command,
    mut daemon: UnixStream,
    dies_with_daemon: bool,
    lease: Option<PathBuf>,
) -> u8 {
    // Orphans among the descendants become our children, so none gets lost.
    let _ = rustix::process::set_child_subreaper(Some(rustix::process::getpid()));
    let Ok(null) = std::fs::File::open("/dev/null") else {
        let _ = writeln!(daemon, "{ERROR}/dev/null cannot be opened");
        return EXIT_NOT_STARTED;
    };
    // The watch comes first: nothing runs for a moment without it.
    if let Some(Err(error)) = lease.map(|path| lease::watch(path, end_everything)) {
        let _ = writeln!(daemon, "{ERROR}{error}");
        return EXIT_NOT_STARTED;
    }
    let child = match command.spawn() {
        Ok(child) => child,
        Err(error) => {
            let _ = writeln!(daemon, "{ERROR}{error}");
            return EXIT_NOT_STARTED;
        }
    };
    // Only the copy is left: the daemon's end has one reader, the thread below.
    let _ = rustix::stdio::dup2_stdin(OwnedFd::from(null));
    let _ = writeln!(daemon, "{STARTED}");
    if dies_with_daemon {
        std::thread::spawn(move || {
            let mut sink = [0u8; 64];
            while matches!(daemon.read(&mut sink), Ok(n) if n > 0) {}
            end_everything();
        });
    } else {
        drop(daemon);
    }
    wait_for_all(child.id())
}

/// Ends when no child is left; with the status of the first one.
fn wait_for_all(main: u32) -> u8 {
    let mut code = 0u8;
    loop {
        match rustix::process::wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) if is(pid, main) => code = exit_code(status),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(_) => return code,
        }
    }
}

fn is(pid: Pid, number: u32) -> bool {
    u32::try_from(pid.as_raw_nonzero().get()).is_ok_and(|pid| pid == number)
}

/// As a shell has it: 128 and the signal for a process that was killed.
fn exit_code(status: WaitStatus) -> u8 {
    let code = match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => code,
        (None, Some(signal)) => 128 + signal,
        (None, None) => 0,
    };
    u8::try_from(code).unwrap_or(u8::MAX)
}

fn end_everything() {
    kill_everything();
    std::process::exit(i32::from(EXIT_NOT_STARTED));
}

fn kill_everything() {
    for _ in 0..KILL_ROUNDS {
        let below = below_us();
        if below.is_empty() {
            return;
        }
        for process in &below {
            let _ = proc::signal(process, Signal::KILL);
        }
        proc::wait_all(&below, Duration::from_millis(20));
    }
}
