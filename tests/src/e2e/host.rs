//! One node as its operator sees it: a folder, a configuration, a daemon, and commands.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// How long a test waits for what must come. Not a measure of speed: a hang ends here.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// A folder for the nodes of one test, removed when dropped (kept when the test fails and
/// `FLOCKER_KEEP` is set).
#[derive(Debug)]
pub struct World {
    dir: Option<tempfile::TempDir>,
    path: PathBuf,
}

impl World {
    /// An empty world.
    ///
    /// # Panics
    /// When the machine has no room for a folder.
    pub fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("flocker-e2e-").tempdir().expect("a folder");
        let path = dir.path().to_path_buf();
        Self { dir: Some(dir), path }
    }

    /// Its folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes a node with a vault, listening on loopback.
    pub fn vault_host(&self, name: &str) -> Host {
        let store = format!("vault:{}", self.path.join(format!("{name}-vault")).display());
        Host::init(self, name, &store, &format!("127.0.0.1:{}", free_udp_port()), None)
    }

    /// Makes a node that works in a pool, listening on loopback.
    pub fn zfs_host(&self, name: &str, pool: &str) -> Host {
        let listen = format!("127.0.0.1:{}", free_udp_port());
        Host::init(self, name, &format!("zfs:{pool}"), &listen, None)
    }

    /// Two nodes on these pools, `a` and `b`, serving and paired; each receives into `recv` of its own.
    pub fn zfs_pair(&self, pools: [&str; 2]) -> (Host, Host) {
        let (mut a, mut b) = (self.zfs_host("a", pools[0]), self.zfs_host("b", pools[1]));
        a.serve();
        b.serve();
        a.pair(&b, pools.map(|pool| format!("{pool}/recv")).each_ref().map(String::as_str));
        (a, b)
    }

    /// Two nodes with vaults, `a` and `b`, serving and paired.
    pub fn vault_pair(&self) -> (Host, Host) {
        let (mut a, mut b) = (self.vault_host("a"), self.vault_host("b"));
        a.serve();
        b.serve();
        a.pair(&b, ["recv/b", "recv/a"]);
        (a, b)
    }
}

impl Default for World {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking()
            && std::env::var_os("FLOCKER_KEEP").is_some()
            && let Some(dir) = self.dir.take()
        {
            eprintln!("kept: {}", dir.keep().display());
        }
    }
}

/// A UDP and TCP port that was free a moment ago.
///
/// # Panics
/// When there is none.
pub fn free_udp_port() -> u16 {
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("a port");
    socket.local_addr().expect("its address").port()
}

/// A TCP port that was free a moment ago.
///
/// # Panics
/// When there is none.
pub fn free_tcp_port() -> u16 {
    let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    socket.local_addr().expect("its address").port()
}

/// The binary under test.
///
/// # Panics
/// When it was not built.
pub fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("FLOCKER_REPL_BIN") {
        return path.into();
    }
    let mut path = std::env::current_exe().expect("this test's own path");
    path.pop();
    if path.ends_with("deps") {
        path.pop();
    }
    path.push("flocker-repl");
    assert!(
        path.exists(),
        "{} is missing: run `cargo build -p flocker-repl` first",
        path.display()
    );
    path
}

/// A node.
#[derive(Debug)]
pub struct Host {
    /// What it calls itself.
    pub name: String,
    /// `host:port` where it listens.
    pub listen: String,
    /// `host:port` at which a peer that joins dials it; as `listen` unless something lies between.
    pub dialled_at: String,
    /// Its configuration file.
    pub config: PathBuf,
    dir: PathBuf,
    netns: Option<String>,
    child: Option<Child>,
    starts: u32,
}

impl Host {
    /// Runs `init`.
    ///
    /// # Panics
    /// When that fails.
    pub fn init(world: &World, name: &str, store: &str, listen: &str, netns: Option<&str>) -> Self {
        Self::init_with(world, name, store, listen, netns, &[])
    }

    /// Where it keeps its state.
    pub fn state(&self) -> PathBuf {
        self.dir.join("state")
    }

    /// Runs `init` with further options.
    ///
    /// # Panics
    /// When that fails.
    pub fn init_with(
        world: &World,
        name: &str,
        store: &str,
        listen: &str,
        netns: Option<&str>,
        options: &[&str],
    ) -> Self {
        let dir = world.path().join(name);
        std::fs::create_dir_all(&dir).expect("a folder for the node");
        let host = Self {
            name: name.to_owned(),
            listen: listen.to_owned(),
            dialled_at: listen.to_owned(),
            config: dir.join("config.toml"),
            netns: netns.map(str::to_owned),
            dir,
            child: None,
            starts: 0,
        };
        let state = host.state().display().to_string();
        let init =
            ["init", "--name", name, "--store", store, "--listen", listen, "--state", &state];
        host.ok(&[&init, options].concat());
        host
    }

    fn command(&self) -> Command {
        let mut command = match &self.netns {
            None => Command::new(binary()),
            Some(netns) => {
                // Only the network is another one: `ip netns exec` would hide later mounts as well.
                let mut command = Command::new("nsenter");
                command.arg(format!("--net=/run/netns/{netns}")).arg(binary());
                command
            }
        };
        command.arg("--config").arg(&self.config).stdin(Stdio::null());
        command
    }

    /// Starts the daemon and waits until it answers.
    ///
    /// # Panics
    /// When it does not.
    pub fn serve(&mut self) {
        self.serve_with(None);
        self.wait_up();
    }

    /// Starts the daemon so that it kills itself at this place; see `flocker_engine`'s `failpoint`.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn serve_with(&mut self, failpoint: Option<&str>) {
        assert!(self.child.is_none(), "{} runs already", self.name);
        self.starts += 1;
        let log = File::options().create(true).append(true).open(self.log_path()).expect("a log");
        let mut command = self.command();
        command.arg("serve").stdout(log.try_clone().expect("a log")).stderr(log);
        if let Some(failpoint) = failpoint {
            command.env("FLOCKER_REPL_FAILPOINT", failpoint);
        }
        self.child = Some(command.spawn().expect("the daemon starts"));
    }

    /// Waits until the daemon answers.
    ///
    /// # Panics
    /// When it does not in time.
    pub fn wait_up(&mut self) {
        let until = Instant::now() + PATIENCE;
        while !self.run(&["status", "--json"]).status.success() {
            if let Some(status) = self.exited() {
                panic!("{} ended ({status}):\n{}", self.name, self.log_tail());
            }
            assert!(Instant::now() < until, "{} does not answer:\n{}", self.name, self.log_tail());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits until the daemon answers, or has killed itself at its failpoint before it could.
    ///
    /// # Panics
    /// When neither comes in time.
    pub fn wait_up_or_killed(&mut self) {
        let until = Instant::now() + PATIENCE;
        while !self.run(&["status", "--json"]).status.success() && self.exited().is_none() {
            assert!(Instant::now() < until, "{} does not answer:\n{}", self.name, self.log_tail());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn exited(&mut self) -> Option<std::process::ExitStatus> {
        self.child.as_mut().and_then(|c| c.try_wait().ok().flatten())
    }

    /// Its process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// `kill -9` of the daemon.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Waits until the daemon has killed itself at its failpoint.
    ///
    /// # Panics
    /// When it does not in time.
    pub fn wait_killed(&mut self) {
        let until = Instant::now() + PATIENCE;
        while self.exited().is_none() {
            assert!(
                Instant::now() < until,
                "{} never came to its failpoint:\n{}",
                self.name,
                self.log_tail()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        self.child = None;
    }

    /// Whether it killed itself already.
    pub fn was_killed(&mut self) -> bool {
        self.exited().is_some()
    }

    /// Runs a command against this node.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn run(&self, args: &[&str]) -> Output {
        self.command().args(args).output().expect("the command runs")
    }

    /// Runs a command that must succeed; returns what it printed.
    ///
    /// # Panics
    /// With everything it said, when it fails.
    pub fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(
            output.status.success(),
            "{}: flocker-repl {} failed ({}):\n{}{}\n--- log\n{}",
            self.name,
            args.join(" "),
            output.status,
            text(&output.stdout),
            text(&output.stderr),
            self.log_tail()
        );
        text(&output.stdout)
    }

    /// Runs a command that must fail; returns its exit code and what it said on stderr.
    ///
    /// # Panics
    /// When it succeeds.
    pub fn fails(&self, args: &[&str]) -> (i32, String) {
        let output = self.run(args);
        assert!(
            !output.status.success(),
            "{}: flocker-repl {} should have failed",
            self.name,
            args.join(" ")
        );
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code().unwrap_or(-1), words)
    }

    /// Runs a command with `--json` and reads what it printed.
    ///
    /// # Panics
    /// When it fails or prints something else.
    pub fn json(&self, args: &[&str]) -> Value {
        let text = self.ok(&[args, &["--json"]].concat());
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e} in: {text}"))
    }

    /// Starts a command in the background.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn spawn(&self, args: &[&str]) -> Child {
        let mut command = self.command();
        command.args(args).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().expect("the command starts")
    }

    /// One unit's status.
    pub fn unit(&self, name: &str) -> Option<Value> {
        let output = self.run(&["status", "--json"]);
        let status: Value = serde_json::from_slice(&output.stdout).ok()?;
        let units = find_units(&status)?;
        units.iter().find(|u| u["name"] == name).cloned()
    }

    /// Waits until a unit's status satisfies `good`.
    ///
    /// # Panics
    /// With the last status, when it does not in time.
    pub fn wait_unit(&self, name: &str, what: &str, good: impl Fn(&Value) -> bool) -> Value {
        let until = Instant::now() + PATIENCE;
        loop {
            let unit = self.unit(name);
            if let Some(unit) = &unit
                && good(unit)
            {
                return unit.clone();
            }
            assert!(
                Instant::now() < until,
                "{}: {name} never became {what}; last: {}\n--- log\n{}",
                self.name,
                unit.map_or_else(|| "unknown".into(), |u| format!("{u:#}")),
                self.log_tail()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits until the unit is primary here, up, and its workload runs.
    pub fn wait_serving(&self, name: &str) -> Value {
        self.wait_unit(name, "primary and running", |u| {
            u["role"] == "primary" && u["workload_state"] == "running"
        })
    }

    /// Waits until every standby of the unit is in step and has equalled the primary at least once.
    pub fn wait_in_step(&self, name: &str) -> Value {
        self.wait_unit(name, "in step", |u| {
            let standbys = u["standbys"].as_array();
            standbys.is_some_and(|s| !s.is_empty() && s.iter().all(|s| s["lag_ms"].is_u64()))
        })
    }

    fn log_path(&self) -> PathBuf {
        self.dir.join("serve.log")
    }

    /// Length of the daemon's log in bytes.
    pub fn log_length(&self) -> u64 {
        std::fs::metadata(self.log_path()).map_or(0, |meta| meta.len())
    }

    /// What the daemon's log says from this byte on.
    pub fn log_since(&self, at: u64) -> String {
        use std::io::{Read, Seek, SeekFrom};
        let mut text = String::new();
        if let Ok(mut file) = File::open(self.log_path()) {
            let _ = file.seek(SeekFrom::Start(at));
            let _ = file.read_to_string(&mut text);
        }
        text
    }

    /// The end of the daemon's log.
    pub fn log_tail(&self) -> String {
        let text = std::fs::read_to_string(self.log_path()).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    /// Pairs two nodes with a real one-time code, and grants each the other what a migration needs.
    ///
    /// # Panics
    /// When that fails.
    pub fn pair(&self, other: &Host, grants: [&str; 2]) {
        let (address, code, mut invite) = self.invite();
        let address = address.replace("0.0.0.0", "127.0.0.1");
        other.ok(&["pair", &address, &code]);
        let _ = invite.wait();
        self.ok(&["grant", &other.name, "--receive", grants[0], "--workload", "process"]);
        other.ok(&["grant", &self.name, "--receive", grants[1], "--workload", "process"]);
        for (host, peer) in [(self, other), (other, self)] {
            host.wait_connected(&peer.name);
        }
    }

    /// Opens an invitation: its address, its code, and the command that waits for its end.
    ///
    /// # Panics
    /// When it does not print them.
    pub fn invite(&self) -> (String, String, Child) {
        use std::io::{BufRead, BufReader};
        let mut child = self.spawn(&["pair", "--invite", "--json"]);
        let stdout = child.stdout.take().expect("its output");
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line).expect("an invitation");
        let open: Value = serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e} in: {line}"));
        let code = find_text(&open, "code").expect("a code");
        (self.dialled_at.clone(), code, child)
    }

    /// Waits until a peer is connected, and stays so for a moment.
    ///
    /// # Panics
    /// When it is not in time.
    pub fn wait_connected(&self, peer: &str) {
        let until = Instant::now() + PATIENCE;
        let mut seen = false;
        loop {
            let status = self.json(&["status"]);
            let peers = status["peers"].as_array().cloned().unwrap_or_default();
            let there = peers.iter().any(|p| p["record"]["name"] == peer && p["connected"] == true);
            if there && seen {
                return;
            }
            if there {
                // Two nodes that meet dial each other, and one connection is given up soon after.
                std::thread::sleep(Duration::from_millis(600));
            }
            seen = there;
            assert!(
                Instant::now() < until,
                "{} never saw {peer}: {status:#}\n{}",
                self.name,
                self.log_tail()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

fn find_units(status: &Value) -> Option<&Vec<Value>> {
    status["units"].as_array()
}

fn find_text(value: &Value, key: &str) -> Option<String> {
    match value {
        Value::Object(map) => map
            .get(key)
            .and_then(|v| v.as_str().map(str::to_owned))
            .or_else(|| map.values().find_map(|v| find_text(v, key))),
        Value::Array(items) => items.iter().find_map(|v| find_text(v, key)),
        _ => None,
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- {}: {}", self.name, self.log_tail());
        }
        // What a unit runs may outlive its daemon by design; not a test.
        let state = self.state().join("run");
        self.kill();
        for entry in std::fs::read_dir(state).into_iter().flatten().flatten() {
            let text = std::fs::read_to_string(entry.path()).unwrap_or_default();
            let record: Value = serde_json::from_str(&text).unwrap_or_default();
            let pid = record["pid"].as_u64().and_then(|pid| i32::try_from(pid).ok());
            // Not by the `kill` command: procps 4.0 reads `kill -9 -1234` as `kill -9 -1`.
            if let Some(pid) = pid.filter(|pid| *pid > 1).and_then(rustix::process::Pid::from_raw) {
                let _ = rustix::process::kill_process_group(pid, rustix::process::Signal::KILL);
            }
        }
    }
}
