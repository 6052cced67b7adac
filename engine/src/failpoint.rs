//! Places where a test may kill this process, as `kill -9` would, at just the wrong moment.
//!
//! `FLOCKER_REPL_FAILPOINT=NAME[:N]` names one place; the process ends when it passes it for the
//! Nth time (the first without `:N`). Unset it costs one load. The places:
//!
//! | name | when |
//! | --- | --- |
//! | `before-persist:WORD`, `after-persist:WORD` | a journal transaction changes a unit whose role is then WORD (`serving`, `leaving`, `handed-over`, `following`, `ready`, or `deleted`) |
//! | `before-ACTION`, `after-ACTION` | an action begins, or was done and not yet reported: `inspect`, `room`, `snapshot`, `tidy`, `changed`, `probe-workload`, `start-workload`, `stop-workload`, `fence`, `verify-unwritten`, `rehearse`, `activate`, `mirror`, `give-back` |
//! | `frozen` | inside a snapshot, while the workload is frozen |
//! | `mid-send@BYTES`, `mid-receive@BYTES` | the stream of one transfer has passed that many bytes |
//! | `mid-full-send@BYTES`, `mid-increment-send@BYTES`, `mid-full-receive@BYTES`, `mid-increment-receive@BYTES` | likewise, of one kind only |
//! | `before-commit`, `after-commit` | a received step is committed in the store |
//! | `phase:NAME` | a cutover entered this phase, as reported at the source: `preflight`, `converge`, `quiesce`, `fence`, `snapshot`, `transfer`, `prepare`, `commit`, `activate` |
//! | `after-spawn`, `after-record` | a workload's supervisor runs and may not start yet: before and after its record is durable |

use std::fmt::Display;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// The environment variable.
pub(crate) const VARIABLE: &str = "FLOCKER_REPL_FAILPOINT";

struct Failpoint {
    name: String,
    left: AtomicU64,
}

fn parse(text: &str) -> Failpoint {
    let (name, count) = match text.rsplit_once(':') {
        Some((name, count)) => match count.parse::<u64>() {
            Ok(count) => (name, count.max(1)),
            Err(_) => (text, 1),
        },
        None => (text, 1),
    };
    Failpoint { name: name.to_owned(), left: AtomicU64::new(count) }
}

fn armed() -> Option<&'static Failpoint> {
    static ARMED: OnceLock<Option<Failpoint>> = OnceLock::new();
    ARMED.get_or_init(|| std::env::var(VARIABLE).ok().map(|text| parse(&text))).as_ref()
}

/// Passes a place. `name` is only put together when a failpoint is set.
pub(crate) fn pass<N: Display>(name: impl FnOnce() -> N) {
    if let Some(point) = armed()
        && name().to_string() == point.name
        && point.left.fetch_sub(1, Ordering::SeqCst) == 1
    {
        die(&point.name);
    }
}

/// Whether any place is named; for callers on the path of the bytes.
pub(crate) fn is_set() -> bool {
    armed().is_some()
}

/// The byte counts at which `mid-KIND@BYTES` is set for this kind, if it is.
fn bytes_for(kind: &str) -> Option<u64> {
    let point = armed()?;
    let (name, bytes) = point.name.split_once('@')?;
    if name != kind {
        return None;
    }
    bytes.parse().ok()
}

/// Passes `KIND@BYTES` when `before..after` steps over the bytes set for it.
pub(crate) fn pass_bytes(kind: &str, before: u64, after: u64) {
    if let Some(at) = bytes_for(kind)
        && before < at
        && at <= after
    {
        pass(|| format!("{kind}@{at}"));
    }
}

fn die(name: &str) -> ! {
    eprintln!("flocker-repl: failpoint {name}: killing this process");
    let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    loop {
        std::thread::park();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_count_is_what_follows_the_last_colon_if_it_is_a_number() {
        for (text, name, left) in [
            ("phase:fence", "phase:fence", 1),
            ("phase:fence:3", "phase:fence", 3),
            ("before-commit", "before-commit", 1),
            ("mid-send@65536:2", "mid-send@65536", 2),
        ] {
            let point = parse(text);
            assert_eq!((point.name.as_str(), point.left.load(Ordering::SeqCst)), (name, left));
        }
    }
}
