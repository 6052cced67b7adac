//! Running `zfs` and `zpool` to their end: words in, bytes out, never a shell, never without a limit.
//!
//! Owns: how a metadata command is started, how long it may take, and how much of its output is
//! kept. Leaves to others: what the words mean (`errors`, `parse`), and the
//! long-lived children of send and receive ([`crate::child`]).

use std::fmt;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use flocker_store::StoreError;

use crate::ZfsOptions;

/// Most bytes kept of what a command writes to stderr; the rest is read and dropped.
pub const MAX_STDERR_BYTES: usize = 64 << 10;

/// Most bytes of stdout of one metadata command: about a million snapshots. More is an error, since
/// half an inventory must never be taken for a whole one.
pub const MAX_STDOUT_BYTES: usize = 256 << 20;

/// How long a killed child may take to disappear before it is left alone.
pub const KILL_GRACE: Duration = Duration::from_secs(2);

/// Which command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Program {
    /// `zfs`
    Zfs,
    /// `zpool`
    Zpool,
}

impl Program {
    /// The word it is known by.
    pub fn word(self) -> &'static str {
        match self {
            Program::Zfs => "zfs",
            Program::Zpool => "zpool",
        }
    }
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// It returned this.
    Code(i32),
    /// A signal ended it.
    Signal(i32),
}

impl Ending {
    /// Whether it says that all went well.
    pub fn is_success(self) -> bool {
        self == Ending::Code(0)
    }
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Ending::Code(code) => write!(f, "exit status {code}"),
            Ending::Signal(signal) => write!(f, "signal {signal}"),
        }
    }
}

impl From<ExitStatus> for Ending {
    fn from(status: ExitStatus) -> Self {
        use std::os::unix::process::ExitStatusExt;
        match (status.code(), status.signal()) {
            (Some(code), _) => Ending::Code(code),
            (None, Some(signal)) => Ending::Signal(signal),
            (None, None) => Ending::Code(-1),
        }
    }
}

/// A command that has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finished {
    /// Its words, fit for printing.
    pub command: String,
    /// How it ended.
    pub ending: Ending,
    /// What it wrote to stdout; not necessarily UTF-8.
    pub stdout: Vec<u8>,
    /// What it wrote to stderr, at most [`MAX_STDERR_BYTES`], made printable.
    pub stderr: String,
}

/// Runs commands. The tests put a fake in place of the system.
pub trait Runner: fmt::Debug + Send + Sync {
    /// Runs one command to its end.
    ///
    /// # Errors
    /// [`StoreError::Io`] when it cannot be started (`NotFound` where it is not installed) or gave
    /// no answer in time (`TimedOut`); [`StoreError::Output`] when it wrote more than is sane. A
    /// command that fails is not an error here.
    fn run(&self, program: Program, args: &[&str]) -> Result<Finished, StoreError>;

    /// Where the command is, for the children of send and receive.
    fn path(&self, program: Program) -> &Path;
}

/// Runs the real commands.
#[derive(Debug, Clone)]
pub struct SystemRunner {
    zfs: PathBuf,
    zpool: PathBuf,
    limit: Duration,
}

impl SystemRunner {
    /// A runner of the commands that `options` name.
    pub fn new(options: &ZfsOptions) -> Self {
        Self {
            zfs: options.zfs.clone(),
            zpool: options.zpool.clone(),
            limit: options.metadata_limit,
        }
    }
}

/// A command with the environment every one of ours gets: words in English, nothing on stdin.
pub(crate) fn command(path: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(path);
    command.args(args).env("LC_ALL", "C").env_remove("LANGUAGE").stdin(Stdio::null());
    command
}

/// The words of a command, as a person would type them.
pub(crate) fn printable(program: Program, args: &[&str]) -> String {
    let mut words = program.word().to_owned();
    for arg in args {
        words.push(' ');
        if arg.is_empty() || arg.contains([' ', '\t', '\n', '\'', '"']) {
            words.push_str(&format!("'{}'", arg.escape_debug()));
        } else {
            words.push_str(arg);
        }
    }
    words
}

impl Runner for SystemRunner {
    fn run(&self, program: Program, args: &[&str]) -> Result<Finished, StoreError> {
        let words = printable(program, args);
        let mut child = command(self.path(program), args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|source| cannot_start(&words, source))?;
        let stdout = collect(child.stdout.take(), MAX_STDOUT_BYTES);
        let stderr = collect(child.stderr.take(), MAX_STDERR_BYTES);
        let deadline = Instant::now() + self.limit;
        let (Some(out), Some(err)) = (receive(&stdout, deadline), receive(&stderr, deadline))
        else {
            return Err(self.gave_up(&words, child));
        };
        let Some(ending) = wait_until(&mut child, deadline) else {
            return Err(self.gave_up(&words, child));
        };
        if out.overflowed {
            return Err(StoreError::Output {
                command: words,
                detail: format!("more than {MAX_STDOUT_BYTES} bytes"),
            });
        }
        tracing::trace!(command = %words, %ending, "ran");
        Ok(Finished { command: words, ending, stdout: out.bytes, stderr: err.text() })
    }

    fn path(&self, program: Program) -> &Path {
        match program {
            Program::Zfs => &self.zfs,
            Program::Zpool => &self.zpool,
        }
    }
}

impl SystemRunner {
    fn gave_up(&self, words: &str, child: Child) -> StoreError {
        let left = match kill_and_wait(child) {
            true => "was killed",
            false => "does not die even when killed, and was left behind",
        };
        StoreError::io(
            format!("`{words}` gave no answer within {:?} and {left}", self.limit),
            io::Error::from(io::ErrorKind::TimedOut),
        )
    }
}

/// Names what is missing when a command cannot be started.
pub(crate) fn cannot_start(words: &str, source: io::Error) -> StoreError {
    let hint = match source.kind() {
        io::ErrorKind::NotFound => {
            ": the command is not installed (Debian: zfsutils-linux, or zfs-fuse)"
        }
        _ => "",
    };
    StoreError::io(format!("cannot start `{words}`{hint}"), source)
}

/// What a pipe yielded.
#[derive(Debug, Default)]
pub(crate) struct Collected {
    bytes: Vec<u8>,
    overflowed: bool,
}

impl Collected {
    /// As printable text without the last line break.
    pub(crate) fn text(&self) -> String {
        let mut text = String::from_utf8_lossy(&self.bytes).trim_end().to_owned();
        if self.overflowed {
            text.push_str(" […]");
        }
        text
    }
}

/// Reads a pipe to its end on a thread of its own, so that the child never blocks on it.
pub(crate) fn collect<R: Read + Send + 'static>(
    pipe: Option<R>,
    max_bytes: usize,
) -> Receiver<Collected> {
    let (sender, receiver) = mpsc::channel();
    if let Some(mut pipe) = pipe {
        std::thread::spawn(move || {
            let mut collected = Collected::default();
            let mut chunk = [0; 8192];
            loop {
                match pipe.read(&mut chunk) {
                    Ok(0) => break,
                    Ok(n) => {
                        let room = max_bytes - collected.bytes.len();
                        collected.bytes.extend_from_slice(&chunk[..n.min(room)]);
                        collected.overflowed |= n > room;
                    }
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    Err(_) => break,
                }
            }
            // Nobody waits any more once the limit has passed: nothing is lost then.
            let _ = sender.send(collected);
        });
    }
    receiver
}

/// What the collecting thread found, or `None` when it is not done by `deadline`.
pub(crate) fn receive(from: &Receiver<Collected>, deadline: Instant) -> Option<Collected> {
    let left = deadline.saturating_duration_since(Instant::now());
    match from.recv_timeout(left) {
        Ok(collected) => Some(collected),
        Err(mpsc::RecvTimeoutError::Disconnected) => Some(Collected::default()),
        Err(mpsc::RecvTimeoutError::Timeout) => None,
    }
}

/// Waits for a child, but not beyond `deadline`.
pub(crate) fn wait_until(child: &mut Child, deadline: Instant) -> Option<Ending> {
    let mut pause = Duration::from_micros(200);
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status.into()),
            Ok(None) => {}
            // ECHILD: somebody else reaped it, so how it ended is not known.
            Err(_) => return Some(Ending::Code(-1)),
        }
        if Instant::now() >= deadline {
            return None;
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

/// Kills a child and waits [`KILL_GRACE`] for it; `false` when it is still there. Then a thread
/// stays behind to reap it whenever it goes.
pub(crate) fn kill_and_wait(mut child: Child) -> bool {
    // It may be gone already; that is what we want.
    let _ = child.kill();
    if wait_until(&mut child, Instant::now() + KILL_GRACE).is_some() {
        return true;
    }
    std::thread::spawn(move || child.wait());
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(limit: Duration) -> SystemRunner {
        SystemRunner::new(&ZfsOptions {
            zfs: "/bin/sh".into(),
            metadata_limit: limit,
            ..ZfsOptions::default()
        })
    }

    #[test]
    fn output_errors_and_status_of_a_command_are_kept_apart() {
        let runner = shell(Duration::from_secs(10));
        let script = "printf 'a\\tb'; echo no >&2; echo $LC_ALL >&2; exit 3";
        let done = runner.run(Program::Zfs, &["-c", script]).unwrap();
        assert_eq!(done.stdout, b"a\tb");
        assert_eq!(done.stderr, "no\nC");
        assert_eq!(done.ending, Ending::Code(3));
    }

    #[test]
    fn a_command_that_hangs_is_killed_and_named() {
        let runner = shell(Duration::from_millis(200));
        let begun = Instant::now();
        let error = runner.run(Program::Zfs, &["-c", "exec sleep 600"]).unwrap_err();
        assert!(begun.elapsed() < Duration::from_secs(5));
        let StoreError::Io { source, .. } = &error else { panic!("{error}") };
        assert_eq!(source.kind(), io::ErrorKind::TimedOut);
        assert!(error.to_string().contains("sleep 600"), "{error}");
    }

    #[test]
    fn a_flood_on_stderr_is_cut_and_does_not_block_the_command() {
        let runner = shell(Duration::from_secs(20));
        let done = runner
            .run(Program::Zfs, &["-c", "head -c 1000000 /dev/zero | tr '\\0' e >&2"])
            .unwrap();
        assert!(done.stderr.len() <= MAX_STDERR_BYTES + 8);
        assert!(done.stderr.ends_with("[…]"));
    }

    #[test]
    fn a_command_that_is_not_installed_is_named_with_what_to_install() {
        let runner = SystemRunner::new(&ZfsOptions {
            zfs: "/nonexistent/zfs".into(),
            ..ZfsOptions::default()
        });
        let error = runner.run(Program::Zfs, &["list"]).unwrap_err();
        assert!(error.to_string().contains("zfsutils-linux"), "{error}");
    }
}
