//! flocker-repl: the command line. It asks the node over its local API and prints the answer.
//!
//! Owns: commands, what they print, exit codes, and the demo. Leaves to others: everything that is
//! done (`flocker_engine`), decided (`flocker_core`) or read in a stream (`zfs_stream`).
//!
//! Read next: [`args`] (every command and its help), [`commands`] (one module a topic), [`render`]
//! (what people see), [`demo`] (the main job on one machine).

mod args;
mod commands;
mod demo;
mod exit;
mod out;
mod quantity;
mod render;
mod values;

use std::process::ExitCode;

use clap::Parser;

/// The word by which the daemon starts a workload through this program; not for people.
const SUPERVISE: &str = "supervise";

fn main() -> ExitCode {
    let mut words = std::env::args_os().skip(1);
    if words.next().is_some_and(|word| word == SUPERVISE) {
        // What follows is the engine's own, and may look like our options.
        return flocker_engine::workload::supervise_main(words);
    }
    let cli = match args::Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return exit::report_usage(&error).into(),
    };
    let out = out::Out::new(cli.json);
    match commands::dispatch(cli, &out) {
        Ok(exit) => exit.into(),
        Err(error) => exit::report(&out, &error).into(),
    }
}
