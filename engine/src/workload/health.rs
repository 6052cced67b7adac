//! Is a started workload healthy? Asked often at first, more rarely the longer it takes.

use std::fs::File;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use flocker_core::record::{Health, HealthCheck};
use flocker_core::{Failure, FailureCode, Remedy};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::hook;

/// Shortest pause between two checks.
const FIRST_PAUSE: Duration = Duration::from_millis(2);
/// Longest one.
const LAST_PAUSE: Duration = Duration::from_millis(100);
/// A pause is this part of the time that has passed: a check finds out at most so much too late.
const PAUSE_PART: u32 = 20;
/// Longest wait for one connection: an address that drops packets is asked again.
const CONNECT_LIMIT: Duration = Duration::from_millis(500);

/// Longest run of one command: one that hangs is asked again.
const COMMAND_LIMIT: Duration = Duration::from_secs(5);

/// Why it is not healthy.
#[derive(Debug)]
pub(super) enum Sick {
    /// Nothing of it runs any more.
    Ended,
    /// It did not become healthy in time; what the last check said.
    Limit(String),
    /// Nobody could look.
    Unknown(std::io::Error),
}

impl Sick {
    /// For a person; `see`: where the workload says more.
    pub(super) fn failure(self, program: &str, health: &Health, see: &str) -> Failure {
        let text = match self {
            Sick::Ended => format!("the workload `{program}` ended before it was healthy{see}"),
            Sick::Unknown(error) => {
                format!("whether the workload `{program}` is healthy cannot be seen: {error}")
            }
            Sick::Limit(reason) => {
                let limit_ms = health.limit_ms;
                format!("the workload `{program}` was not healthy within {limit_ms} ms: {reason}")
            }
        };
        Failure::new(Remedy::Operator, FailureCode::Unhealthy, text)
    }
}

/// Does it on a thread that is in the network namespace of a process; what it starts is so too.
pub(super) fn inside_network_of(
    pid: u32,
    what: impl FnOnce() -> Result<(), Sick> + Send,
) -> Result<(), Sick> {
    let namespace = File::open(format!("/proc/{pid}/ns/net")).map_err(Sick::Unknown)?;
    let inside = move || {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
            .map_err(|error| Sick::Unknown(error.into()))?;
        what()
    };
    std::thread::scope(|scope| scope.spawn(inside).join())
        .unwrap_or_else(|_| Err(Sick::Unknown(std::io::Error::other("the check panicked"))))
}

/// Asks until it is healthy, or `lives` says that it is gone, or the limit has passed.
pub(super) fn wait_until_healthy(
    health: &Health,
    environment: &[(String, String)],
    output: &Path,
    lives: &dyn Fn() -> bool,
) -> Result<(), Sick> {
    let begun = Instant::now();
    let limit = Duration::from_millis(health.limit_ms);
    loop {
        let left = limit.saturating_sub(begun.elapsed()).max(FIRST_PAUSE);
        let answer = check(&health.check, environment, output, left);
        // Whoever answers for a workload that is gone is somebody else.
        if !lives() {
            return Err(Sick::Ended);
        }
        let Err(reason) = answer else {
            return Ok(());
        };
        let elapsed = begun.elapsed();
        if elapsed >= limit {
            return Err(Sick::Limit(reason));
        }
        std::thread::sleep((elapsed / PAUSE_PART).clamp(FIRST_PAUSE, LAST_PAUSE));
    }
}

fn check(
    check: &HealthCheck,
    environment: &[(String, String)],
    output: &Path,
    left: Duration,
) -> Result<(), String> {
    match check {
        HealthCheck::Tcp(address) => connect(address, left),
        HealthCheck::Command(command) => {
            // Only the last answer is kept: there are many.
            let log = File::create(output).map_err(|e| format!("{}: {e}", output.display()))?;
            hook::run(command, environment, &log, left.min(COMMAND_LIMIT))
                .map_err(|error| error.to_string())
        }
    }
}

fn connect(address: &SocketAddr, left: Duration) -> Result<(), String> {
    TcpStream::connect_timeout(address, left.min(CONNECT_LIMIT))
        .map(drop)
        .map_err(|error| format!("{address} accepts no connection: {error}"))
}
