//! Running the command of a runtime: within a limit, with what it says.
//!
//! Owns: one process, its two outputs, its end. Leaves to others: what the answer means. No shell; it runs in `/`,
//! so that it holds no volume.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use flocker_core::{Failure, FailureCode, Remedy};

/// Most bytes of an output that are read.
const OUTPUT_BYTES: u64 = 4 << 20;

/// Most bytes of words that are quoted.
const QUOTED_BYTES: usize = 600;

/// Pause between two looks whether it has ended: shorter than any of them takes.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// How one ended.
#[derive(Debug)]
pub(super) struct Output {
    pub(super) status: ExitStatus,
    pub(super) stdout: String,
    pub(super) stderr: String,
}

impl Output {
    /// The last lines of what it said, for a person.
    pub(super) fn words(&self) -> String {
        let said = if self.stderr.trim().is_empty() { &self.stdout } else { &self.stderr };
        let said = said.trim();
        let from = said.len().saturating_sub(QUOTED_BYTES);
        let from = (from..said.len()).find(|at| said.is_char_boundary(*at)).unwrap_or(said.len());
        said.get(from..).unwrap_or_default().replace('\n', "; ")
    }
}

/// Runs it to its end, whatever that is.
///
/// # Errors
/// It is not there (with `install` for what to do), or took longer than `limit` and was killed.
pub(super) fn run(program: &str, args: &[&str], limit: Duration) -> Result<Output, Failure> {
    let mut command = Command::new(program);
    command.args(args);
    run_command(command, limit)
}

/// The same for a command with more to it than arguments. Its outputs are files: who inherits them and
/// stays (a container) holds up nobody.
pub(super) fn run_command(mut command: Command, limit: Duration) -> Result<Output, Failure> {
    let words = words(&command);
    let program = command.get_program().to_string_lossy().into_owned();
    let failure = |error: io::Error| cannot_start(&program, &words, &error);
    let (stdout, stderr) = (temporary().map_err(failure)?, temporary().map_err(failure)?);
    let child = command
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(stdout.try_clone().map_err(failure)?)
        .stderr(stderr.try_clone().map_err(failure)?)
        .spawn()
        .map_err(failure)?;
    let Some(status) = wait(child, limit).map_err(failure)? else {
        return Err(took_too_long(&words, limit));
    };
    Ok(Output { status, stdout: text(stdout), stderr: text(stderr) })
}

/// The same, and it has to succeed.
///
/// # Errors
/// As [`run`], or it failed: its own words.
pub(super) fn done(program: &str, args: &[&str], limit: Duration) -> Result<Output, Failure> {
    let mut command = Command::new(program);
    command.args(args);
    done_command(command, limit)
}

/// [`done`] for a command with more to it than arguments.
///
/// # Errors
/// As [`done`].
pub(super) fn done_command(command: Command, limit: Duration) -> Result<Output, Failure> {
    let words = words(&command);
    let output = run_command(command, limit)?;
    if output.status.success() {
        return Ok(output);
    }
    Err(Failure::new(
        Remedy::Operator,
        FailureCode::Workload,
        format!("`{words}` ended with {}: {}", output.status, output.words()),
    ))
}

/// Runs one whose output, and that of what it leaves behind, goes to a file.
///
/// # Errors
/// It is not there, or took longer than `limit` and was killed.
pub(super) fn logged(
    command: &mut Command,
    log: &File,
    limit: Duration,
) -> Result<ExitStatus, Failure> {
    let words = words(command);
    let program = command.get_program().to_string_lossy().into_owned();
    let failure = |error: io::Error| cannot_start(&program, &words, &error);
    let child = command
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log.try_clone().map_err(failure)?)
        .stderr(log.try_clone().map_err(failure)?)
        .spawn()
        .map_err(failure)?;
    wait(child, limit).map_err(failure)?.ok_or_else(|| took_too_long(&words, limit))
}

fn took_too_long(words: &str, limit: Duration) -> Failure {
    Failure::new(
        Remedy::Operator,
        FailureCode::TimedOut,
        format!("`{words}` took longer than {} s and was killed", limit.as_secs()),
    )
}

fn words(command: &Command) -> String {
    let mut words = command.get_program().to_string_lossy().into_owned();
    for arg in command.get_args() {
        words.push(' ');
        words.push_str(&arg.to_string_lossy());
    }
    words
}

fn cannot_start(program: &str, words: &str, error: &io::Error) -> Failure {
    let next = if error.kind() == io::ErrorKind::NotFound {
        format!("; install {program} on this node")
    } else {
        String::new()
    };
    Failure::new(
        Remedy::Operator,
        FailureCode::Workload,
        format!("`{words}` cannot be run: {error}{next}"),
    )
}

/// A file without a name, in memory.
fn temporary() -> io::Result<File> {
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    Ok(File::from(rustix::fs::memfd_create("output", flags)?))
}

fn text(mut file: File) -> String {
    let mut bytes = Vec::new();
    let read =
        file.seek(SeekFrom::Start(0)).and_then(|_| file.take(OUTPUT_BYTES).read_to_end(&mut bytes));
    match read {
        Ok(_) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) => format!("(what it said cannot be read: {error})"),
    }
}

/// `None`: it was killed at the limit.
fn wait(mut child: Child, limit: Duration) -> io::Result<Option<ExitStatus>> {
    let until = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() > until {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_says_how_it_ended_and_what_is_missing() {
        let long = Duration::from_secs(20);
        let output = run("sh", &["-c", "echo out; echo err >&2; exit 3"], long).unwrap();
        assert_eq!((output.stdout.as_str(), output.stderr.as_str()), ("out\n", "err\n"));
        assert_eq!((output.status.code(), output.words().as_str()), (Some(3), "err"));
        let error = done("sh", &["-c", "echo why; exit 3"], long).unwrap_err();
        assert!(error.message.contains("exit status: 3: why"), "{error}");
        let error = run("no-such-program", &[], long).unwrap_err();
        assert!(error.message.contains("install no-such-program"), "{error}");
        let error = run("sleep", &["300"], Duration::from_millis(20)).unwrap_err();
        assert_eq!(error.code, FailureCode::TimedOut);
    }
}
