//! OCI bundles, run by runc or crun from the command line.
//!
//! Owns: one container of a runtime, by its id and bundle. Leaves to others: the bundle. Where it lies in a volume
//! of the unit it moves along, and says itself what it may do: whoever writes that volume is root where it runs.
//!
//! - It is run in the background; so its `config.json` must not ask for a terminal. Its output goes through a pipe
//!   to a `cat` that writes `<state>/logs/<unit>.log`: a file that is open in it, but not in its own mounts, CRIU
//!   cannot write down, while runtimes know how to give a pipe back. Without that `cat` its writes would fail.
//! - Its cgroup is a scope of systemd's where there is systemd, unless `config.json` names another: below the
//!   daemon's own it would be stopped with the daemon.
//! - Nobody else starts it, so there is nothing to take.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use flocker_core::ids::UnitId;
use flocker_core::record::OciRuntime;
use flocker_core::{Failure, FailureCode, Remedy};
use serde_json::Value;

use super::cgroup::{self, Cgroup};
use super::{
    ASK_LIMIT, Described, Driver, Ended, FREEZE_LIMIT, KILL_LIMIT, Loss, Part, Places, command,
    criu,
};

/// A start, a kill.
const ACT_LIMIT: Duration = Duration::from_secs(120);

/// What writes or reads memory.
const BULK_LIMIT: Duration = Duration::from_secs(3600);

/// How long the last words of a start that failed may take.
const WORDS_LIMIT: Duration = Duration::from_secs(2);

/// Pause between two looks whether it has ended.
const WATCH_EVERY: Duration = Duration::from_millis(100);

/// Folders in the one of a checkpoint.
const CHECKPOINT: &str = "checkpoint";
const PRE_CHECKPOINT: &str = "pre-checkpoint";
const WORK: &str = "work";

/// One container.
#[derive(Debug)]
pub(super) struct Oci {
    program: &'static str,
    id: String,
    bundle: PathBuf,
    log: PathBuf,
    pid_file: PathBuf,
}

/// What the runtime says of it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct State {
    /// `creating`, `created`, `running`, `paused`, `stopped`.
    status: String,
    pid: u32,
}

impl State {
    fn runs(&self) -> bool {
        self.status != "stopped"
    }
}

impl Oci {
    pub(super) fn new(
        places: &Places,
        unit: UnitId,
        runtime: OciRuntime,
        id: &str,
        bundle: &Path,
    ) -> Self {
        Self {
            program: match runtime {
                OciRuntime::Runc => "runc",
                OciRuntime::Crun => "crun",
            },
            id: id.to_owned(),
            bundle: bundle.to_owned(),
            log: places.state.join("logs").join(format!("{unit}.log")),
            pid_file: places.state.join("run").join(format!("{unit}.oci.pid")),
        }
    }

    fn failure(&self, code: FailureCode, what: impl std::fmt::Display) -> Failure {
        Failure::new(
            Remedy::Operator,
            code,
            format!("{} container {}: {what}", self.program, self.id),
        )
    }

    fn io<'a>(&'a self, what: &'a str) -> impl Fn(io::Error) -> Failure + 'a {
        move |error| {
            let full = error.kind() == io::ErrorKind::StorageFull;
            let code = if full { FailureCode::NoSpace } else { FailureCode::Workload };
            self.failure(code, format!("{what}: {error}"))
        }
    }

    fn bundle(&self, volumes: &[PathBuf]) -> PathBuf {
        match volumes.first() {
            Some(volume) if self.bundle.is_relative() => volume.join(&self.bundle),
            _ => self.bundle.clone(),
        }
    }

    fn config(&self, bundle: &Path) -> Result<Value, Failure> {
        let path = bundle.join("config.json");
        let bytes = fs::read(&path).map_err(|error| {
            let message = format!("its bundle's {} cannot be read: {error}", path.display());
            self.failure(FailureCode::NotFound, message)
        })?;
        serde_json::from_slice(&bytes).map_err(|error| {
            let message = format!("its bundle's {} is no definition: {error}", path.display());
            self.failure(FailureCode::BadRequest, message)
        })
    }

    /// `None`: the runtime does not know it.
    fn state(&self) -> Result<Option<State>, Failure> {
        let output = command::run(self.program, &["state", &self.id], ASK_LIMIT)?;
        if !output.status.success() {
            let words = output.words();
            let unknown = ["does not exist", "No such file", "not exist"];
            if unknown.iter().any(|text| words.contains(text)) {
                return Ok(None);
            }
            return Err(self.failure(FailureCode::Workload, words));
        }
        state(&output.stdout)
            .map(Some)
            .ok_or_else(|| self.failure(FailureCode::Workload, "its state cannot be read"))
    }

    /// Its cgroup: the one its first process is in, or, once that is gone, the scope of its name.
    fn cgroups(&self, state: Option<&State>) -> Vec<Cgroup> {
        let scope = format!("-{}.scope", self.id);
        let mut found = cgroup::find(&|name| name.ends_with(&scope));
        let of_process = state.filter(|state| state.runs() && state.pid > 0).and_then(|state| {
            let text = fs::read_to_string(format!("/proc/{}/cgroup", state.pid)).ok()?;
            text.lines().find_map(|line| line.strip_prefix("0::")).map(str::to_owned)
        });
        if let Some(path) = of_process.filter(|path| path.len() > 1) {
            // Runtimes put a cgroup of its own below the scope (crun), or not (runc).
            let path = path.strip_suffix("/container").unwrap_or(&path);
            let cgroup = Cgroup::at(path);
            if !found.contains(&cgroup) {
                found.push(cgroup);
            }
        }
        found
    }

    fn populated(&self, cgroups: &[Cgroup]) -> Result<bool, Failure> {
        for cgroup in cgroups {
            if cgroup.populated().map_err(self.io("whether anything of it runs"))? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// A runtime's command, with where its cgroup is to be.
    fn command(&self, config: Option<&Value>) -> Command {
        let mut command = Command::new(self.program);
        let path = config.and_then(|config| config["linux"]["cgroupsPath"].as_str());
        let elsewhere = path.is_some_and(|path| path.starts_with('/'));
        if config.is_some() && !elsewhere && Path::new("/run/systemd/system").exists() {
            command.arg("--systemd-cgroup");
        }
        command
    }

    /// Has it run in the background; its output goes to the end of the log.
    fn run_detached(&self, mut command: Command) -> Result<(), Failure> {
        for path in [&self.log, &self.pid_file] {
            if let Some(folder) = path.parent() {
                fs::create_dir_all(folder).map_err(self.io("its log"))?;
            }
        }
        let log = OpenOptions::new().create(true).append(true).open(&self.log);
        let log = log.map_err(self.io("its log"))?;
        let from = log.metadata().map(|found| found.len()).unwrap_or(0);
        let (read, write) = std::io::pipe().map_err(self.io("its output"))?;
        let mut logger = Command::new("cat")
            .current_dir("/")
            .stdin(read)
            .stdout(log)
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .map_err(self.io("its log"))?;
        let write = File::from(std::os::fd::OwnedFd::from(write));
        let done = command::logged(
            command_with_pid(&mut command, &self.pid_file, &self.id),
            &write,
            BULK_LIMIT,
        );
        drop(write);
        if !matches!(&done, Ok(status) if status.success()) {
            // Its last words are written once nobody holds the pipe any more.
            let until = Instant::now() + WORDS_LIMIT;
            while matches!(logger.try_wait(), Ok(None)) && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        let reaper = std::thread::Builder::new().name("oci-log".into());
        let _ = reaper.spawn(move || logger.wait());
        let done = done?;
        if done.success() {
            return Ok(());
        }
        let said = fs::read(&self.log).unwrap_or_default();
        let said = said.get(usize::try_from(from).unwrap_or(0)..).unwrap_or_default();
        let said = String::from_utf8_lossy(said);
        let last: Vec<&str> = said.lines().rev().take(3).collect();
        Err(self.failure(FailureCode::Workload, format!("{done}: {}", last.join("; "))))
    }

    /// What is left of one that ended.
    fn delete(&self) -> Result<(), Failure> {
        let output = command::run(self.program, &["delete", "--force", &self.id], ACT_LIMIT)?;
        if output.status.success() || self.state()?.is_none() {
            return Ok(());
        }
        Err(self
            .failure(FailureCode::Workload, format!("it cannot be deleted: {}", output.words())))
    }

    fn signal(&self, signal: &str) -> Result<(), Failure> {
        let output = command::run(self.program, &["kill", &self.id, signal], ACT_LIMIT)?;
        match self.state()? {
            Some(state) if state.runs() && !output.status.success() => {
                Err(self.failure(FailureCode::Workload, output.words()))
            }
            _ => Ok(()),
        }
    }

    fn end(&self, limit: Option<Duration>) -> Result<(), Failure> {
        let state = self.state()?;
        let cgroups = self.cgroups(state.as_ref());
        self.thaw_all(state.as_ref(), &cgroups)?;
        if let (Some(limit), Some(_)) = (limit, state.as_ref().filter(|state| state.runs())) {
            self.signal("TERM")?;
            let until = Instant::now() + limit;
            while self.populated(&cgroups)? && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        if self.populated(&cgroups)? {
            for cgroup in &cgroups {
                cgroup.kill().map_err(self.io("killing it"))?;
            }
        }
        cgroup::wait_until_empty(&cgroups, KILL_LIMIT).map_err(|error| {
            self.failure(FailureCode::TimedOut, format!("it was stopped, but {error}"))
        })?;
        if state.is_some() { self.delete() } else { Ok(()) }
    }

    fn thaw_all(&self, state: Option<&State>, cgroups: &[Cgroup]) -> Result<(), Failure> {
        if state.is_some_and(|state| state.status == "paused") {
            command::done(self.program, &["resume", &self.id], ACT_LIMIT)?;
        }
        for cgroup in cgroups.iter().filter(|cgroup| cgroup.is_frozen()) {
            cgroup.thaw().map_err(self.io("thawing it"))?;
        }
        Ok(())
    }

    fn dump(&self, folder: &Path, name: &str, extra: &[&str]) -> Result<Vec<Part>, Failure> {
        let (images, work) = (folder.join(name), folder.join(WORK));
        for path in [&images, &work] {
            match fs::remove_dir_all(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(self.io("where its memory is kept")(error));
                }
                _ => fs::create_dir_all(path).map_err(self.io("where its memory is kept"))?,
            }
        }
        let mut command = Command::new(self.program);
        command.arg("checkpoint").arg("--image-path").arg(&images).arg("--work-path").arg(&work);
        command.args(["--tcp-established", "--file-locks"]).args(extra).arg(&self.id);
        let begun = Instant::now();
        command::done_command(command, BULK_LIMIT)
            .map_err(|failure| with_errors(failure, &work, "dump.log"))?;
        let mut parts = criu::parts(&work.join("stats-dump"));
        parts.push(Part { name: "runtime", ms: millis(begun.elapsed()) });
        Ok(parts)
    }
}

fn command_with_pid<'a>(command: &'a mut Command, pid_file: &Path, id: &str) -> &'a mut Command {
    command.arg("--pid-file").arg(pid_file).arg(id)
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_micros().div_ceil(1000)).unwrap_or(u64::MAX)
}

fn with_errors(failure: Failure, work: &Path, log: &str) -> Failure {
    let log = work.join(log);
    let errors = criu::errors(&log);
    if errors.is_empty() {
        return failure;
    }
    let message = format!("{}; CRIU says: {errors} ({})", failure.message, log.display());
    Failure { message, ..failure }
}

fn state(text: &str) -> Option<State> {
    let value: Value = serde_json::from_str(text).ok()?;
    Some(State {
        status: value["status"].as_str()?.to_owned(),
        pid: u32::try_from(value["pid"].as_u64().unwrap_or(0)).ok()?,
    })
}

impl Driver for Oci {
    fn take(&self) -> Result<(), Failure> {
        cgroup::check().map_err(self.io("looking for cgroups"))?;
        command::done(self.program, &["--version"], ASK_LIMIT).map(drop)
    }

    fn release(&self) -> Result<(), Failure> {
        Ok(())
    }

    fn describe(&self, volumes: &[PathBuf]) -> Result<Described, Failure> {
        let bundle = self.bundle(volumes);
        let config = self.config(&bundle)?;
        Ok(Described {
            description: String::new(),
            losses: losses(&self.id, &config, &bundle, volumes),
        })
    }

    fn prepare(&self, _description: &str, volumes: &[PathBuf]) -> Result<(), Failure> {
        self.take()?;
        let bundle = self.bundle(volumes);
        // One that is in a volume arrives with it.
        if volumes.iter().any(|volume| bundle.starts_with(volume)) {
            return Ok(());
        }
        self.config(&bundle).map(drop)
    }

    fn runs(&self) -> Result<bool, Failure> {
        let state = self.state()?;
        Ok(state.as_ref().is_some_and(State::runs)
            || self.populated(&self.cgroups(state.as_ref()))?)
    }

    fn start(&self, volumes: &[PathBuf]) -> Result<(), Failure> {
        let state = self.state()?;
        let cgroups = self.cgroups(state.as_ref());
        if state.as_ref().is_some_and(State::runs) || self.populated(&cgroups)? {
            return self.thaw_all(state.as_ref(), &cgroups);
        }
        if state.is_some() {
            self.delete()?;
        }
        let bundle = self.bundle(volumes);
        let not_started = |failure| Failure { code: FailureCode::NotStarted, ..failure };
        let config = self.config(&bundle).map_err(not_started)?;
        if config["process"]["terminal"] == true {
            let what = "its config.json asks for a terminal; set process.terminal to false";
            return Err(self.failure(FailureCode::NotStarted, what));
        }
        let mut command = self.command(Some(&config));
        command.arg("run").arg("--detach").arg("--bundle").arg(&bundle);
        self.run_detached(command).map_err(|failure| match self.runs() {
            Ok(false) => Failure { code: FailureCode::NotStarted, ..failure },
            _ => failure,
        })
    }

    fn stop(&self, limit: Duration) -> Result<(), Failure> {
        self.end(Some(limit))
    }

    fn kill(&self) -> Result<(), Failure> {
        self.end(None)
    }

    fn freeze(&self) -> Result<(), Failure> {
        let state = self.state()?;
        for cgroup in self.cgroups(state.as_ref()) {
            if let Err(error) = cgroup.freeze(FREEZE_LIMIT) {
                self.thaw()?;
                return Err(self.io("freezing it")(error));
            }
        }
        Ok(())
    }

    fn thaw(&self) -> Result<(), Failure> {
        let state = self.state()?;
        self.thaw_all(state.as_ref(), &self.cgroups(state.as_ref()))
    }

    fn wait(&self) -> Result<Ended, Failure> {
        let state = self.state()?;
        let cgroups = self.cgroups(state.as_ref());
        while self.populated(&cgroups)? {
            std::thread::sleep(WATCH_EVERY);
        }
        // It is no child of ours: its status is its runtime's secret.
        let status = format!("{} container {} ended", self.program, self.id);
        Ok(Ended { status, success: false })
    }

    fn can_checkpoint(&self) -> Result<(), Failure> {
        let output = command::run("criu", &["check"], ASK_LIMIT)?;
        if output.status.success() {
            return Ok(());
        }
        let what = format!("CRIU does not work on this host: {}", output.words());
        Err(Failure::refused(FailureCode::Unsupported, what))
    }

    fn pre_dump(&self, folder: &Path) -> Result<(), Failure> {
        self.dump(folder, PRE_CHECKPOINT, &["--pre-dump"]).map(drop)
    }

    fn checkpoint(&self, folder: &Path, pre_dumped: bool) -> Result<Vec<Part>, Failure> {
        let state = self.state()?;
        let cgroups = self.cgroups(state.as_ref());
        self.thaw_all(state.as_ref(), &cgroups)?;
        let parent = Path::new("..").join(PRE_CHECKPOINT);
        let parent = parent.to_string_lossy();
        let with_parent = ["--parent-path", &parent];
        let has_parent = pre_dumped && folder.join(PRE_CHECKPOINT).join("inventory.img").exists();
        let extra: &[&str] = if has_parent { &with_parent } else { &[] };
        let parts = self.dump(folder, CHECKPOINT, extra)?;
        cgroup::wait_until_empty(&cgroups, KILL_LIMIT).map_err(|error| {
            self.failure(FailureCode::TimedOut, format!("it was written down, but {error}"))
        })?;
        if self.state()?.is_some() {
            self.delete()?;
        }
        Ok(parts)
    }

    fn restore(&self, folder: &Path, volumes: &[PathBuf]) -> Result<Vec<Part>, Failure> {
        if self.runs()? {
            return Ok(Vec::new());
        }
        if self.state()?.is_some() {
            self.delete()?;
        }
        let bundle = self.bundle(volumes);
        let not_started = |failure| Failure { code: FailureCode::NotStarted, ..failure };
        let config = self.config(&bundle).map_err(not_started)?;
        let (images, work) = (folder.join(CHECKPOINT), folder.join(WORK));
        fs::create_dir_all(&work).map_err(self.io("CRIU's folder"))?;
        let mut command = self.command(Some(&config));
        command.arg("restore").arg("--detach").arg("--bundle").arg(&bundle);
        command.arg("--image-path").arg(&images).arg("--work-path").arg(&work);
        command.args(["--tcp-established", "--file-locks"]);
        let begun = Instant::now();
        self.run_detached(command).map_err(|failure| {
            let failure = with_errors(failure, &work, "restore.log");
            match self.runs() {
                Ok(false) => not_started(failure),
                _ => failure,
            }
        })?;
        let mut parts = criu::parts(&work.join("stats-restore"));
        parts.push(Part { name: "runtime", ms: millis(begun.elapsed()) });
        Ok(parts)
    }
}

/// What of it is in none of the volumes.
fn losses(id: &str, config: &Value, bundle: &Path, volumes: &[PathBuf]) -> Vec<Loss> {
    let inside = |path: &Path| volumes.iter().any(|volume| path.starts_with(volume));
    let mut found = Vec::new();
    if !inside(bundle) {
        found.push(Loss {
            name: format!("{id}:bundle"),
            what: format!(
                "container {id}: its bundle {} is outside the unit; the other node needs the same one there",
                bundle.display()
            ),
        });
    }
    let root = bundle.join(config["root"]["path"].as_str().unwrap_or("rootfs"));
    if !inside(&root) && !root.starts_with(bundle) {
        found.push(Loss {
            name: format!("{id}:rootfs"),
            what: format!(
                "container {id}: its root {} is outside the unit; the other node needs the same one there",
                root.display()
            ),
        });
    }
    for mount in config["mounts"].as_array().into_iter().flatten() {
        let options = super::containers::strings(&mount["options"]);
        let bind = mount["type"] == "bind" || options.iter().any(|o| o == "bind" || o == "rbind");
        let source = bundle.join(mount["source"].as_str().unwrap_or_default());
        if bind && !inside(&source) {
            let source = source.display();
            found.push(Loss {
                name: format!("{id}:bind:{source}"),
                what: format!(
                    "container {id}: it mounts {source} of this host, outside the unit: what is there stays \
                     here; the other node needs its own"
                ),
            });
        }
    }
    for device in config["linux"]["devices"].as_array().into_iter().flatten() {
        let path = device["path"].as_str().unwrap_or_default();
        found.push(Loss {
            name: format!("{id}:device:{path}"),
            what: format!(
                "container {id}: it uses the device {path}; the other node's own is another one"
            ),
        });
    }
    found
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_the_runtime_says_is_its_state() {
        let runc = r#"{"ociVersion":"1.2.0","id":"a","pid":77,"status":"running","bundle":"/b"}"#;
        let found = state(runc).unwrap();
        assert!(found.runs() && found.pid == 77);
        let crun = r#"{"ociVersion":"1.0.0","id":"a","pid":0,"status":"stopped"}"#;
        assert!(!state(crun).unwrap().runs());
        assert_eq!(state("container does not exist"), None);
    }

    #[test]
    fn only_what_is_outside_the_volumes_is_a_loss() {
        let volumes = [PathBuf::from("/tank/app")];
        let config = json!({
            "root": {"path": "rootfs"},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/data", "type": "bind", "source": "/tank/app/data", "options": ["rbind"]},
                {"destination": "/etc/x", "type": "none", "source": "/etc/x", "options": ["bind", "ro"]},
            ],
            "linux": {"devices": [{"path": "/dev/fuse"}]},
        });
        let names = |bundle: &str| -> Vec<String> {
            let found = losses("a", &config, Path::new(bundle), &volumes);
            found.into_iter().map(|loss| loss.name).collect()
        };
        assert_eq!(names("/tank/app/bundle"), ["a:bind:/etc/x", "a:device:/dev/fuse"]);
        assert_eq!(names("/opt/bundle"), ["a:bundle", "a:bind:/etc/x", "a:device:/dev/fuse"]);
    }
}
