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

pub use host::{Host, World};
pub use ledger::{Ledger, Verdict};

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
