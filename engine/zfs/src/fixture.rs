//! zfs-fuse for tests: one daemon shared by every test process, pools on files that go away by themselves.
//!
//! Owns: starting the daemon once however many processes ask, pool names that no other process has,
//! destroying on drop (also while a panic unwinds) and collecting what killed test processes have left.
//! Leaves to others: what is done with the pools. The daemon is never stopped: others may use it.
//!
//! ```no_run
//! let Some(pool) = flocker_zfs::fixture::pool_or_skip("db", 256, "a test's name") else { return };
//! let root = pool.dataset("recv");
//! ```
//!
//! `FLOCKER_NO_FUSE` set: every test skips. `FLOCKER_SKIP_LOG=FILE`: each skip appends a line there.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use flocker_store::DatasetName;
use rustix::fs::{FlockOperation, flock};

use crate::ZfsOptions;
use crate::fusectl::Connections;
use crate::mounts;
use crate::run::{Finished, Program, Runner, SystemRunner};

/// Beginning of the names of our pools; then the process id, `x`, a counter, `x`, the label.
const PREFIX: &str = "zfspool";

/// Taken while the daemon is started and while pools come and go: its configuration is one for all.
const LOCK: &str = "/tmp/flocker-zfs-fuse.lock";

/// How long the daemon may take to answer after it was started.
const DAEMON_LIMIT: Duration = Duration::from_secs(20);

/// How long a pool may stay busy before it is left behind with a warning; a later process collects it.
const DESTROY_LIMIT: Duration = Duration::from_secs(10);

/// How long is spent on a pool that somebody else has left: a live process may still be in it.
const COLLECT_LIMIT: Duration = Duration::from_millis(200);

/// Why zfs-fuse cannot be used here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skip(pub String);

/// A pool on a file, destroyed when dropped.
#[derive(Debug)]
pub struct FusePool {
    name: String,
    dir: tempfile::TempDir,
}

impl FusePool {
    /// Makes a pool of `mib` MiB (64 or more) whose name holds `label` and this process's id; starts the
    /// daemon when it does not run.
    ///
    /// # Errors
    /// [`Skip`] where zfs-fuse cannot run here.
    pub fn create(label: &str, mib: u64) -> Result<Self, Skip> {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        if std::env::var_os("FLOCKER_NO_FUSE").is_some() {
            return Err(Skip("FLOCKER_NO_FUSE is set".to_owned()));
        }
        if !rustix::process::geteuid().is_root() {
            return Err(Skip("not root".to_owned()));
        }
        let lock = Lock::take()?;
        ensure_daemon()?;
        collect_left_behind();
        let label: String = label.chars().filter(char::is_ascii_alphanumeric).collect();
        let count = COUNTER.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}{}x{count}x{label}", std::process::id());
        let dir = tempfile::Builder::new()
            .prefix(&format!("{name}-"))
            .tempdir()
            .map_err(|e| Skip(format!("no temporary directory: {e}")))?;
        let image = dir.path().join("pool.img");
        File::create(&image)
            .and_then(|file| file.set_len(mib << 20))
            .map_err(|e| Skip(format!("no file for a pool: {e}")))?;
        let pool = Self { name, dir };
        let mountpoint = pool.mountpoint();
        let (Some(at), Some(file)) = (mountpoint.to_str(), image.to_str()) else {
            return Err(Skip("the temporary directory's name is not UTF-8".to_owned()));
        };
        let finished = zpool(&["create", "-o", "cachefile=none", "-m", at, &pool.name, file])?;
        drop(lock);
        if !finished.ending.is_success() {
            return Err(Skip(finished.stderr));
        }
        Ok(pool)
    }

    /// The pool's name, `zfspool…`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The pool's own dataset.
    ///
    /// # Panics
    /// Never: the name was made here.
    pub fn root(&self) -> DatasetName {
        DatasetName::new(&self.name).expect("a pool's name is a dataset's")
    }

    /// `pool/path`; not created.
    ///
    /// # Panics
    /// When `path` is not a name: a mistake of the test.
    pub fn dataset(&self, path: &str) -> DatasetName {
        DatasetName::new(format!("{}/{path}", self.name)).expect("a dataset's name")
    }

    /// Where it is mounted; `pool/a` comes below it.
    pub fn mountpoint(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }
}

impl Drop for FusePool {
    fn drop(&mut self) {
        // Without the lock the pool would still have to go.
        let _lock = Lock::take();
        destroy(&self.name, DESTROY_LIMIT);
    }
}

/// [`FusePool::create`], or `None` after saying loudly that `test` is skipped and why.
pub fn pool_or_skip(label: &str, mib: u64, test: &str) -> Option<FusePool> {
    match FusePool::create(label, mib) {
        Ok(pool) => Some(pool),
        Err(Skip(why)) => {
            skipped(&why, test);
            None
        }
    }
}

/// Says loudly that a test was skipped, and writes it down where `FLOCKER_SKIP_LOG` says.
pub fn skipped(why: &str, test: &str) {
    let line = format!("zfs-fuse: {} ({test})", why.trim());
    eprintln!("SKIPPED: {line}");
    if let Some(log) = std::env::var_os("FLOCKER_SKIP_LOG") {
        let file = OpenOptions::new().create(true).append(true).open(&log);
        let written = file.and_then(|mut file| writeln!(file, "{line}"));
        if let Err(error) = written {
            eprintln!("{}: {error}", Path::new(&log).display());
        }
    }
}

/// Exclusive use of the daemon's configuration, across processes.
struct Lock(#[expect(dead_code, reason = "held open")] File);

impl Lock {
    fn take() -> Result<Self, Skip> {
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(LOCK)
            .map_err(|e| Skip(format!("{LOCK}: {e}")))?;
        flock(&file, FlockOperation::LockExclusive).map_err(|e| Skip(format!("{LOCK}: {e}")))?;
        Ok(Self(file))
    }
}

/// Runs `zpool` with a limit: a daemon that hangs must fail a test, not hang it.
fn zpool(args: &[&str]) -> Result<Finished, Skip> {
    let runner = SystemRunner::new(&ZfsOptions::default());
    runner.run(Program::Zpool, args).map_err(|error| Skip(error.to_string()))
}

/// Starts the daemon unless it answers.
fn ensure_daemon() -> Result<(), Skip> {
    let answers = || zpool(&["list", "-H"]).map(|finished| finished.ending.is_success());
    if answers()? {
        return Ok(());
    }
    if !Path::new("/dev/fuse").exists() {
        return Err(Skip("no /dev/fuse".to_owned()));
    }
    let deadline = Instant::now() + DAEMON_LIMIT;
    loop {
        // Looked at each time: the one that runs may be on its way out.
        if !daemon_runs() {
            start_daemon()?;
        }
        if answers()? {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(Skip("the zfs-fuse daemon does not answer".to_owned()));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn daemon_runs() -> bool {
    let processes = mounts::processes().unwrap_or_default();
    processes.into_iter().any(|pid| mounts::command_of(pid) == "zfs-fuse")
}

/// It goes to the background by itself and outlives us.
fn start_daemon() -> Result<(), Skip> {
    let started = Command::new("zfs-fuse")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    match started {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(Skip(format!("zfs-fuse does not start: {status}"))),
        Err(e) => Err(Skip(format!("zfs-fuse is not installed: {e}"))),
    }
}

/// Destroys pools whose test process was killed before it could.
fn collect_left_behind() {
    let Ok(finished) = zpool(&["list", "-H", "-o", "name"]) else {
        return;
    };
    for name in String::from_utf8_lossy(&finished.stdout).lines() {
        let owner = name
            .strip_prefix(PREFIX)
            .and_then(|rest| rest.split_once('x'))
            .and_then(|(pid, _)| pid.parse::<u32>().ok());
        if let Some(pid) = owner
            && !Path::new(&format!("/proc/{pid}")).exists()
        {
            eprintln!("destroying {name}, whose test process {pid} is gone");
            destroy(name, COLLECT_LIMIT);
        }
    }
}

/// Waits until zfs-fuse has heard of everything that was done to the filesystem with this device minor (see
/// [`crate::fusectl`]): before its last mount goes away by other means than a store's.
pub fn settle(minor: u32) {
    if let Some(connections) = Connections::open() {
        connections.drain(minor);
    }
}

/// Destroys a pool, never by force: a forced unmount drops what the daemon has not heard yet, and hangs it.
fn destroy(name: &str, limit: Duration) {
    let deadline = Instant::now() + limit;
    loop {
        let below = format!("{name}/");
        for mount in mounts::own().unwrap_or_default() {
            if mount.source == name || mount.source.starts_with(&below) {
                settle(mount.dev.1);
            }
        }
        let said = match zpool(&["destroy", name]) {
            Ok(finished) if finished.ending.is_success() => return,
            Ok(finished) => finished.stderr,
            Err(Skip(why)) => why,
        };
        if said.contains("no such pool") {
            return;
        }
        if Instant::now() >= deadline {
            eprintln!("left behind: {name}: {}", said.trim());
            return;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}
