//! Tests of the binary as people run it: real `serve` processes, driven by real commands.
//!
//! Owns: [`host`] (a node in a folder of its own, in a network namespace if wanted), [`ledger`]
//! (a client that knows which records were acknowledged), [`netns`] (hosts on one machine),
//! [`database`] (PostgreSQL and Redis with a ledger outside of them), [`rig`] (two nodes that serve
//! them), [`pair`] (two nodes with vaults, each in its own namespace), [`watch`] (two writers at once), [`kills`] (daemons killed during a move), [`proxy`] and [`partitions`] (links cut during a move). Leaves to `tests/tests/`: the scenarios.

pub mod database;
pub mod host;
pub mod kills;
pub mod ledger;
pub mod netns;
pub mod pair;
pub mod partitions;
pub mod proxy;
pub mod rig;
pub mod watch;

pub use host::{Host, World, binary};
pub use ledger::{Ledger, Verdict};

/// Runs a `zfs` command of the operator's; returns what it printed.
///
/// # Panics
/// With what it said, when it fails.
pub fn zfs(args: &[&str]) -> String {
    let output = std::process::Command::new("zfs").args(args).output().expect("zfs runs");
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "zfs {}: {words}", args.join(" "));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Waits for what another process does in its own time: a workload that runs has not yet done
/// anything.
///
/// # Panics
/// When `good` is not so within a minute.
pub fn wait_for(what: &str, good: impl Fn() -> bool) {
    let until = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while !good() {
        assert!(std::time::Instant::now() < until, "never: {what}");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

/// Says loudly that a test does not run here, and counts it in `tests/run`.
pub fn skip(reason: &str, test: &str) {
    eprintln!("SKIPPED: {reason} ({test})");
    if let Some(path) = std::env::var_os("FLOCKER_SKIP_LOG") {
        use std::io::Write;
        let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
        if let Ok(mut file) = file {
            let _ = writeln!(file, "{reason} ({test})");
        }
    }
}
