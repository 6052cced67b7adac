//! Workloads.

use std::ffi::OsString;
use std::process::ExitCode;

/// The hidden subcommand `supervise`: everything behind that word on the command line.
pub fn supervise_main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let _ = args.into_iter();
    ExitCode::FAILURE
}
