//! The demo's nodes: child processes of this very program, and the commands given to them.
//!
//! Owns: starting them, asking them through their local API by our own commands, and ending them whatever
//! happens. Leaves to others: what the demo asks ([`super::story`]).

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use flocker_engine::api::NodeView;
use serde::de::DeserializeOwned;

use super::interrupt;
use crate::render::status::view_of;

/// How long a node may take to answer after its start.
const START_LIMIT: Duration = Duration::from_secs(20);

/// How long a node may take to end in order before it is killed.
const END_LIMIT: Duration = Duration::from_secs(10);

/// How long one command may take; a move of the demo's volume takes moments.
const COMMAND_LIMIT: Duration = Duration::from_secs(180);

/// How much of a node's log is shown when it died, bytes.
const TAIL_BYTES: usize = 4096;

/// A node and its process.
pub(crate) struct Node {
    /// What it calls itself.
    pub(crate) name: &'static str,
    /// Where it listens for its peer.
    pub(crate) listen: SocketAddr,
    config: PathBuf,
    log: PathBuf,
    child: Child,
    /// While this is open the node lives: if the demo dies, the system closes it.
    stdin: Option<ChildStdin>,
}

/// Addresses for two nodes and the workload that nobody listens on now.
pub(crate) fn free_addresses() -> anyhow::Result<([SocketAddr; 2], SocketAddr)> {
    let failed = "cannot find a free port on 127.0.0.1";
    // Held together until all are known, so that they differ.
    let a = UdpSocket::bind("127.0.0.1:0").context(failed)?;
    let b = UdpSocket::bind("127.0.0.1:0").context(failed)?;
    let workload = TcpListener::bind("127.0.0.1:0").context(failed)?;
    Ok(([a.local_addr()?, b.local_addr()?], workload.local_addr()?))
}

/// This program.
fn program() -> anyhow::Result<Command> {
    let exe = std::env::current_exe().context("cannot find this program's own file")?;
    Ok(Command::new(exe))
}

impl Node {
    /// Makes a node in `dir` and starts it.
    ///
    /// # Errors
    /// It could not be made, or does not answer; with the end of its log.
    pub(crate) fn start(
        name: &'static str,
        dir: &Path,
        listen: SocketAddr,
    ) -> anyhow::Result<Self> {
        fs::create_dir_all(dir)?;
        let config = dir.join("config.toml");
        let store = format!("vault:{}", dir.join("vault").display());
        let state = dir.join("state").display().to_string();
        let listen_text = listen.to_string();
        let made = ["--name", name, "--store", &store, "--state", &state];
        let made = [&["init"], &made[..], &["--listen", &listen_text]].concat();
        run_json::<serde_json::Value>(&config, &made)?;
        let log = dir.join("serve.log");
        let file = File::create(&log).with_context(|| log.display().to_string())?;
        let mut child = program()?
            .arg("--config")
            .arg(&config)
            .args(["serve", "--until-stdin-closes"])
            .stdin(Stdio::piped())
            .stdout(file.try_clone()?)
            .stderr(file)
            .process_group(0) // Ctrl-C is for the demo, which then ends its nodes in order
            .spawn()
            .context("cannot start a node")?;
        let stdin = child.stdin.take();
        let mut node = Self { name, listen, config, log, child, stdin };
        node.wait_until_it_answers()?;
        Ok(node)
    }

    fn wait_until_it_answers(&mut self) -> anyhow::Result<()> {
        let begin = Instant::now();
        loop {
            self.check_alive()?;
            match self.status() {
                Ok(_) => return Ok(()),
                Err(error) if begin.elapsed() > START_LIMIT => {
                    return Err(error.context(format!("node {} does not answer", self.name)));
                }
                Err(_) => interrupt::sleep(Duration::from_millis(30))?,
            }
        }
    }

    /// Runs one of our commands for this node and reads what it prints as JSON.
    ///
    /// # Errors
    /// What the command said; with the end of the node's log if the node died.
    pub(crate) fn ask<T: DeserializeOwned>(&mut self, words: &[&str]) -> anyhow::Result<T> {
        let result = run_json(&self.config, words);
        if result.is_err() {
            self.check_alive()?;
        }
        result
    }

    /// Runs one of our commands whose answer does not matter.
    ///
    /// # Errors
    /// As [`Node::ask`].
    pub(crate) fn tell(&mut self, words: &[&str]) -> anyhow::Result<()> {
        self.ask::<serde_json::Value>(words).map(|_| ())
    }

    /// Starts one of our commands that prints lines of JSON while it waits.
    ///
    /// # Errors
    /// It could not be started.
    pub(crate) fn follow(&self, words: &[&str]) -> anyhow::Result<Following> {
        let mut child = our_command(&self.config, words)?
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot start `{}`", words.join(" ")))?;
        let Some(stdout) = child.stdout.take() else { bail!("a child without standard output") };
        Ok(Following { child, lines: BufReader::new(stdout), what: words.join(" ") })
    }

    /// How the node is.
    ///
    /// # Errors
    /// It does not answer.
    pub(crate) fn status(&self) -> anyhow::Result<NodeView> {
        let object = run_json(&self.config, &["status"])?;
        view_of(object).context("`flocker-repl status` printed something else")
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it still runs.
    pub(crate) fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// # Errors
    /// It died; with the end of its log.
    pub(crate) fn check_alive(&mut self) -> anyhow::Result<()> {
        match self.child.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => bail!(
                "node {} ended ({status}); the end of its log, {}:\n{}",
                self.name,
                self.log.display(),
                tail(&self.log)
            ),
            Err(error) => Err(error).with_context(|| format!("node {} is lost", self.name)),
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        drop(self.stdin.take());
        let begin = Instant::now();
        while begin.elapsed() < END_LIMIT {
            match self.child.try_wait() {
                Ok(None) => thread::sleep(Duration::from_millis(10)),
                Ok(Some(_)) | Err(_) => return,
            }
        }
        // It had its chance; nothing may be left behind.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn our_command(config: &Path, words: &[&str]) -> anyhow::Result<Command> {
    let mut command = program()?;
    command.arg("--config").arg(config).arg("--json");
    command.args(words);
    Ok(command)
}

/// Runs a command to its end and reads the last line it prints. A signal ends it.
fn run_json<T: DeserializeOwned>(config: &Path, words: &[&str]) -> anyhow::Result<T> {
    let said = || format!("`flocker-repl {}`", words.join(" "));
    let mut child = our_command(config, words)?
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(said)?;
    // Read aside, so that a long answer cannot block the command while we look at signals.
    let stdout = read_aside(child.stdout.take());
    let stderr = read_aside(child.stderr.take());
    let begin = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().with_context(said)? {
            break status;
        }
        let late = begin.elapsed() > COMMAND_LIMIT;
        if let Err(error) = interrupt::check() {
            let _ = child.kill();
            let _ = child.wait();
            return Err(error);
        }
        if late {
            let _ = child.kill();
            let _ = child.wait();
            bail!("{} took more than {} s", said(), COMMAND_LIMIT.as_secs());
        }
        thread::sleep(Duration::from_millis(2));
    };
    let (stdout, stderr) = (text_of(stdout), text_of(stderr));
    if !status.success() {
        bail!("{} failed ({status}): {}", said(), stderr.trim());
    }
    let last = stdout.lines().last().unwrap_or_default();
    serde_json::from_str(last).with_context(|| format!("{} printed: {last}", said()))
}

fn read_aside(source: Option<impl Read + Send + 'static>) -> JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut text = Vec::new();
        if let Some(mut source) = source {
            // What was read until an error is all there is to show.
            let _ = source.read_to_end(&mut text);
        }
        text
    })
}

fn text_of(reader: JoinHandle<Vec<u8>>) -> String {
    String::from_utf8_lossy(&reader.join().unwrap_or_default()).into_owned()
}

fn tail(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text[text.len().saturating_sub(TAIL_BYTES)..]).into_owned();
    text.lines().map(|line| format!("  | {line}\n")).collect()
}

/// A command that runs on.
pub(crate) struct Following {
    child: Child,
    lines: BufReader<ChildStdout>,
    what: String,
}

impl Following {
    /// Its next line.
    ///
    /// # Errors
    /// It ended, or printed something else.
    pub(crate) fn line<T: DeserializeOwned>(&mut self) -> anyhow::Result<T> {
        let mut line = String::new();
        self.lines.read_line(&mut line)?;
        if line.is_empty() {
            bail!("`flocker-repl {}` ended too early", self.what);
        }
        serde_json::from_str(&line)
            .with_context(|| format!("`flocker-repl {}` printed: {}", self.what, line.trim()))
    }

    /// Waits for its end and returns its last line.
    ///
    /// # Errors
    /// It failed.
    pub(crate) fn end<T: DeserializeOwned>(mut self) -> anyhow::Result<T> {
        let mut rest = String::new();
        self.lines.read_to_string(&mut rest)?;
        let status: ExitStatus = self.child.wait()?;
        if !status.success() {
            bail!("`flocker-repl {}` failed ({status}): {}", self.what, rest.trim());
        }
        let last = rest.lines().last().unwrap_or_default();
        serde_json::from_str(last)
            .with_context(|| format!("`flocker-repl {}` printed: {last}", self.what))
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Processes of the demo's workload on this machine: their writer's name and pid.
pub(crate) fn workloads(listen: SocketAddr) -> Vec<(String, u32)> {
    let address = listen.to_string();
    let Ok(processes) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for process in processes.flatten() {
        let Ok(pid) = process.file_name().to_string_lossy().parse::<u32>() else {
            continue;
        };
        let line = fs::read(process.path().join("cmdline")).unwrap_or_default();
        let words: Vec<&str> = line
            .split(|byte| *byte == 0)
            .filter_map(|word| std::str::from_utf8(word).ok())
            .collect();
        // The supervisor's command line may hold the same words further behind.
        if words.get(1) != Some(&"demo-workload") || !words.contains(&address.as_str()) {
            continue;
        }
        let writer = words
            .windows(2)
            .find(|pair| pair[0] == "--writer")
            .map_or_else(String::new, |pair| pair[1].to_owned());
        found.push((writer, pid));
    }
    found
}

/// Kills what is left of the workload when the demo ends; only processes with our own address.
pub(crate) struct Sweep(pub(crate) SocketAddr);

impl Drop for Sweep {
    fn drop(&mut self) {
        for (_, pid) in workloads(self.0) {
            if let Some(pid) = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
    }
}
