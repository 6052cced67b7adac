//! Runs the binary and looks at what it printed.

// Each test program uses its own part of this.
#![allow(dead_code)]

pub(crate) mod fake;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_flocker-repl");

/// What a run printed and how it ended.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    words: String,
}

impl Run {
    fn of(words: String, output: Output) -> Self {
        let run = Self {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            words,
        };
        assert!(!run.stderr.contains("panicked"), "{run:?}");
        run
    }

    /// A line for bash, where `$FLOCKER_REPL` is the binary.
    pub(crate) fn of_shell(line: &str) -> Self {
        let output =
            Command::new("bash").args(["-c", line]).env("FLOCKER_REPL", PROGRAM).output().unwrap();
        Self::of(line.to_owned(), output)
    }

    pub(crate) fn ok(self) -> Self {
        self.fails_with(0)
    }

    pub(crate) fn fails_with(self, code: i32) -> Self {
        assert_eq!(
            self.code,
            Some(code),
            "{}\nstdout: {}\nstderr: {}",
            self.words,
            self.stdout,
            self.stderr
        );
        self
    }

    /// The last line of stdout.
    pub(crate) fn json(&self) -> serde_json::Value {
        let last = self.stdout.lines().last().unwrap_or_default();
        serde_json::from_str(last).unwrap_or_else(|error| panic!("{error} in: {self:?}"))
    }
}

pub(crate) fn run(words: &[&str]) -> Run {
    run_with_stdin(words, b"")
}

pub(crate) fn run_with_stdin(words: &[&str], stdin: &[u8]) -> Run {
    let mut child = Command::new(PROGRAM)
        .args(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    let bytes = stdin.to_owned();
    // The program may end before it has read all: then writing fails, and that is all right.
    let writer = std::thread::spawn(move || drop(input.write_all(&bytes)));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    Run::of(words.join(" "), output)
}

/// A golden stream, unpacked.
pub(crate) fn golden(name: &str) -> Vec<u8> {
    let path: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/golden/streams")
        .join(format!("{name}.zstream.zst"));
    let packed = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    zstd::stream::decode_all(packed.as_slice()).unwrap()
}
