//! One transfer by whatever tool: how long it took, and the processor time of every process on both ends.
//!
//! Everything that is started is a descendant of this process, which takes in orphans, so that what the kernel counts
//! for its children counts all of them, sshd's sessions included.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use nix::sys::resource::{UsageWho, getrusage};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions, kill_process_group, set_child_subreaper, wait};

/// No transfer takes longer than this; one that does has failed.
const LIMIT: Duration = Duration::from_secs(180);

/// How long a server may take to listen.
const READY_LIMIT: Duration = Duration::from_secs(20);

/// What was measured.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cost {
    /// From the start of the client to the end of the last process that ends by itself.
    pub(crate) seconds: f64,
    /// Of all processes, user and system.
    pub(crate) cpu_seconds: f64,
}

/// How a server says that it can be reached.
#[derive(Debug, Clone)]
pub(crate) enum Ready {
    /// It makes this file.
    File(PathBuf),
    /// It listens on this TCP port.
    Port(u16),
}

/// The far end.
#[derive(Debug, Clone)]
pub(crate) struct Server {
    pub(crate) shell: String,
    pub(crate) ready: Ready,
    /// Whether it ends with the transfer; otherwise it is ended.
    pub(crate) ends: bool,
}

/// A running shell command whose whole group ends with it.
struct Running(Child);

impl Running {
    fn start(shell: &str) -> anyhow::Result<Self> {
        use std::os::unix::process::CommandExt as _;
        let mut command = Command::new("bash");
        command.args(["-c", &format!("set -o pipefail; {shell}")]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).process_group(0);
        Ok(Self(command.spawn().with_context(|| format!("cannot start `{shell}`"))?))
    }

    fn signal(&self, signal: Signal) {
        // It may have ended by itself.
        let _ = kill_process_group(Pid::from_child(&self.0), signal);
    }

    fn wait(&mut self, what: &str) -> anyhow::Result<()> {
        let deadline = Instant::now() + LIMIT;
        loop {
            if let Some(status) = self.0.try_wait()? {
                if !status.success() {
                    bail!("`{what}` failed: {status}");
                }
                return Ok(());
            }
            if Instant::now() > deadline {
                self.signal(Signal::KILL);
                bail!("`{what}` did not end within {LIMIT:?}");
            }
            sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
        let _ = self.0.wait();
    }
}

/// Processor time of all descendants that have ended, in seconds.
fn children_cpu() -> anyhow::Result<f64> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let seconds =
        |t: nix::sys::time::TimeVal| t.tv_sec() as f64 + f64::from(t.tv_usec() as i32) / 1e6;
    Ok(seconds(usage.user_time()) + seconds(usage.system_time()))
}

/// Runs one shell command and counts it.
pub(crate) fn transfer(server: Option<&Server>, client: &str) -> anyhow::Result<Cost> {
    set_child_subreaper(Some(Pid::INIT))?;
    let before = children_cpu()?;
    let mut far = server.map(|server| Running::start(&server.shell)).transpose()?;
    if let (Some(server), Some(far)) = (server, &far) {
        await_ready(server, far)?;
    }
    let started = Instant::now();
    let mut near = Running::start(client)?;
    near.wait(client)?;
    if let (Some(server), Some(far)) = (server, &mut far)
        && server.ends
    {
        far.wait(&server.shell)?;
    }
    let seconds = started.elapsed().as_secs_f64();
    if let Some(far) = &mut far {
        far.signal(Signal::TERM);
        far.0.wait()?;
    }
    reap_orphans()?;
    Ok(Cost { seconds, cpu_seconds: children_cpu()? - before })
}

fn await_ready(server: &Server, far: &Running) -> anyhow::Result<()> {
    let deadline = Instant::now() + READY_LIMIT;
    let is_ready = || match &server.ready {
        Ready::File(path) => path.exists(),
        Ready::Port(port) => listens(far.0.id(), *port),
    };
    while !is_ready() {
        if Instant::now() > deadline {
            bail!("`{}` did not listen within {READY_LIMIT:?}", server.shell);
        }
        sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// Whether somebody listens on this TCP port where this process lives. Asked of the kernel: a connection would be
/// taken for the one that is waited for.
fn listens(pid: u32, port: u16) -> bool {
    let local = format!(":{port:04X}");
    let table = |kind| fs::read_to_string(format!("/proc/{pid}/net/{kind}")).unwrap_or_default();
    [table("tcp"), table("tcp6")].iter().flat_map(|table| table.lines()).any(|line| {
        let mut words = line.split_whitespace().skip(1);
        words.next().is_some_and(|address| address.ends_with(&local)) && words.nth(1) == Some("0A")
    })
}

/// What outlived its parents was handed to us.
fn reap_orphans() -> anyhow::Result<()> {
    let deadline = Instant::now() + READY_LIMIT;
    loop {
        match wait(WaitOptions::NOHANG) {
            Ok(Some(_)) | Err(Errno::INTR) => {}
            Ok(None) if Instant::now() > deadline => bail!("a process of a transfer does not end"),
            Ok(None) => sleep(Duration::from_millis(1)),
            Err(Errno::CHILD) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // One test: both wait for any child of this process.
    #[test]
    fn a_grandchild_that_was_left_behind_is_counted_and_what_fails_is_named() {
        let busy = "timeout 0.2 bash -c 'while :; do :; done'";
        let cost = transfer(None, &format!("({busy} & disown) ; true")).unwrap();
        assert!(cost.cpu_seconds > 0.05, "{cost:?}");
        let error = transfer(None, "false").unwrap_err().to_string();
        assert!(error.contains("`false` failed"), "{error}");
    }
}
