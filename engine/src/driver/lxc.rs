//! Containers of LXC, by its commands.
//!
//! Owns: one container by its name. Leaves to others: its configuration and root, which lie in
//! `<lxcpath>/NAME/`: a volume there moves them along, and then whoever writes that volume is root where it runs.
//!
//! - **Taken** means `lxc.start.auto = 0` in its configuration.
//! - **Runs** is what its cgroups hold (`lxc.payload.NAME`), beside what `lxc-info` says.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use flocker_core::ids::UnitId;
use flocker_core::record::WorkloadKind;
use flocker_core::{Failure, FailureCode, Remedy};

use super::cgroup::{self, Cgroup};
use super::taken::{Before, Taken};
use super::{
    ASK_LIMIT, Described, Driver, Ended, FREEZE_LIMIT, KILL_LIMIT, Loss, Part, Places, command,
};

/// A start.
const START_LIMIT: Duration = Duration::from_secs(300);

/// Pause between two looks whether it has ended.
const WATCH_EVERY: Duration = Duration::from_millis(250);

/// The setting by which LXC starts it at boot.
const AUTO: &str = "lxc.start.auto";

/// One container.
#[derive(Debug)]
pub(super) struct Lxc {
    name: String,
    folder: PathBuf,
    log: PathBuf,
    taken: Taken,
}

impl Lxc {
    pub(super) fn new(places: &Places, unit: UnitId, name: &str) -> Self {
        Self {
            name: name.to_owned(),
            folder: places.lxc_path().join(name),
            log: places.state.join("logs").join(format!("{unit}.log")),
            taken: Taken::new(&places.state, unit, WorkloadKind::Lxc),
        }
    }

    fn failure(&self, code: FailureCode, what: impl std::fmt::Display) -> Failure {
        Failure::new(Remedy::Operator, code, format!("lxc container {}: {what}", self.name))
    }

    fn io<'a>(&'a self, what: &'a str) -> impl Fn(io::Error) -> Failure + 'a {
        move |error| self.failure(FailureCode::Workload, format!("{what}: {error}"))
    }

    fn config_path(&self) -> PathBuf {
        self.folder.join("config")
    }

    fn config(&self) -> Result<String, Failure> {
        let path = self.config_path();
        fs::read_to_string(&path).map_err(|error| {
            let missing = error.kind() == io::ErrorKind::NotFound;
            let code = if missing { FailureCode::NotFound } else { FailureCode::Workload };
            self.failure(
                code,
                format!(
                    "{} cannot be read: {error}; make the container here (`lxc-create`), or put the unit's \
                     volume at {}",
                    path.display(),
                    self.folder.display()
                ),
            )
        })
    }

    /// Whole or not at all.
    fn write_config(&self, text: &str) -> Result<(), Failure> {
        let path = self.config_path();
        let write = || -> io::Result<()> {
            let beside = path.with_extension("flocker-repl.new");
            let mut file = File::create(&beside)?;
            file.set_permissions(fs::metadata(&path)?.permissions())?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&beside, &path)?;
            File::open(&self.folder)?.sync_all()
        };
        write().map_err(self.io(&format!("{} cannot be written", path.display())))
    }

    fn cgroups(&self) -> Vec<Cgroup> {
        // A second one beside a first that is not gone yet gets a number.
        let payload = format!("lxc.payload.{}", self.name);
        cgroup::find(&|name| {
            name.strip_prefix(payload.as_str()).is_some_and(|rest| {
                let number = rest.strip_prefix('-').unwrap_or_default();
                rest.is_empty()
                    || (!number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
            })
        })
    }

    fn populated(&self, cgroups: &[Cgroup]) -> Result<bool, Failure> {
        for cgroup in cgroups {
            if cgroup.populated().map_err(self.io("whether anything of it runs"))? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// `RUNNING`, `STOPPED`, `STARTING`, `FROZEN`, …
    fn state(&self) -> Result<String, Failure> {
        let output = command::run("lxc-info", &["-n", &self.name, "-s", "-H"], ASK_LIMIT)?;
        if output.status.success() {
            return Ok(output.stdout.trim().to_owned());
        }
        let words = output.words();
        if words.contains("doesn't exist") {
            return Ok("STOPPED".to_owned());
        }
        Err(self.failure(FailureCode::Workload, words))
    }

    fn end(&self, limit: Option<Duration>) -> Result<(), Failure> {
        let cgroups = self.cgroups();
        self.thaw_all(&cgroups)?;
        if self.state()? != "STOPPED" {
            let seconds = limit.map(|limit| limit.as_millis().div_ceil(1000).max(1).to_string());
            let mut args = vec!["-n", self.name.as_str()];
            match &seconds {
                Some(seconds) => args.extend(["-t", seconds]),
                None => args.push("-k"),
            }
            let output = command::run("lxc-stop", &args, limit.unwrap_or_default() + ASK_LIMIT)?;
            if !output.status.success() && self.state()? != "STOPPED" {
                for cgroup in &cgroups {
                    cgroup.kill().map_err(self.io("killing it"))?;
                }
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
        let wait = ["-n", self.name.as_str(), "-s", "STOPPED", "-t", "20"];
        command::run("lxc-wait", &wait, ASK_LIMIT).map(drop)
    }

    fn thaw_all(&self, cgroups: &[Cgroup]) -> Result<(), Failure> {
        for cgroup in cgroups.iter().filter(|cgroup| cgroup.is_frozen()) {
            cgroup.thaw().map_err(self.io("thawing it"))?;
        }
        Ok(())
    }

    fn cannot_checkpoint(&self) -> Failure {
        Failure::refused(
            FailureCode::Unsupported,
            format!(
                "lxc container {} cannot go on elsewhere with its memory: lxc-checkpoint cannot write down a \
                 whole system with its cgroups of version 2, and has no way for established connections; \
                 move it by a stop",
                self.name
            ),
        )
    }
}

impl Driver for Lxc {
    fn take(&self) -> Result<(), Failure> {
        cgroup::check().map_err(self.io("looking for cgroups"))?;
        let config = self.config()?;
        let Some(value) = setting(&config, AUTO).filter(|value| *value != "0") else {
            return Ok(());
        };
        let mut before: Before<String> = self.taken.load()?;
        if !before.0.contains_key(&self.name) {
            before.0.insert(self.name.clone(), value.to_owned());
            self.taken.store(&before)?;
        }
        self.write_config(&with_setting(&config, AUTO, "0"))
    }

    fn release(&self) -> Result<(), Failure> {
        let before: Before<String> = self.taken.load()?;
        if let Some(value) = before.0.get(&self.name)
            && self.config_path().exists()
        {
            self.write_config(&with_setting(&self.config()?, AUTO, value))?;
        }
        self.taken.store(&Before::<String>::default())
    }

    fn describe(&self, volumes: &[PathBuf]) -> Result<Described, Failure> {
        let losses = losses(&self.name, &self.config()?, &self.folder, volumes);
        Ok(Described { description: String::new(), losses })
    }

    fn prepare(&self, _description: &str, volumes: &[PathBuf]) -> Result<(), Failure> {
        command::done("lxc-start", &["--version"], ASK_LIMIT)?;
        // One that is in a volume arrives with it, as it was taken on the other node.
        let arrives = volumes.iter().any(|volume| self.folder.starts_with(volume));
        if arrives && !self.config_path().exists() {
            return Ok(());
        }
        self.take()
    }

    fn runs(&self) -> Result<bool, Failure> {
        Ok(self.populated(&self.cgroups())? || self.state()? != "STOPPED")
    }

    fn start(&self, _volumes: &[PathBuf]) -> Result<(), Failure> {
        if self.runs()? {
            return self.thaw_all(&self.cgroups());
        }
        self.take().map_err(|failure| Failure { code: FailureCode::NotStarted, ..failure })?;
        if let Some(folder) = self.log.parent() {
            fs::create_dir_all(folder).map_err(self.io("its log"))?;
        }
        let log = self.log.display().to_string();
        let args = ["-n", self.name.as_str(), "-d", "-o", &log, "-l", "WARN"];
        command::done("lxc-start", &args, START_LIMIT).map(drop).map_err(|failure| {
            match self.runs() {
                Ok(false) => Failure { code: FailureCode::NotStarted, ..failure },
                _ => failure,
            }
        })
    }

    fn stop(&self, limit: Duration) -> Result<(), Failure> {
        self.end(Some(limit))
    }

    fn kill(&self) -> Result<(), Failure> {
        self.end(None)
    }

    fn freeze(&self) -> Result<(), Failure> {
        for cgroup in self.cgroups() {
            if let Err(error) = cgroup.freeze(FREEZE_LIMIT) {
                self.thaw()?;
                return Err(self.io("freezing it")(error));
            }
        }
        Ok(())
    }

    fn thaw(&self) -> Result<(), Failure> {
        self.thaw_all(&self.cgroups())
    }

    fn wait(&self) -> Result<Ended, Failure> {
        let cgroups = self.cgroups();
        while self.populated(&cgroups)? {
            std::thread::sleep(WATCH_EVERY);
        }
        // A system that was shut down from inside; nobody says with which status.
        Ok(Ended { status: format!("lxc container {} ended", self.name), success: false })
    }

    fn can_checkpoint(&self) -> Result<(), Failure> {
        Err(self.cannot_checkpoint())
    }

    fn pre_dump(&self, _folder: &Path) -> Result<(), Failure> {
        Err(self.cannot_checkpoint())
    }

    fn checkpoint(&self, _folder: &Path, _pre_dumped: bool) -> Result<Vec<Part>, Failure> {
        Err(self.cannot_checkpoint())
    }

    fn restore(&self, _folder: &Path, _volumes: &[PathBuf]) -> Result<Vec<Part>, Failure> {
        Err(self.cannot_checkpoint())
    }
}

fn key_value(line: &str) -> Option<(&str, &str)> {
    let (key, value) = line.split_once('=')?;
    Some((key.trim(), value.trim().trim_matches('"')))
}

/// The last line with it counts.
fn setting<'a>(config: &'a str, wanted: &str) -> Option<&'a str> {
    let mut found = config.lines().rev().filter_map(key_value);
    found.find(|(key, _)| *key == wanted).map(|(_, value)| value)
}

fn with_setting(config: &str, wanted: &str, value: &str) -> String {
    let mut lines: Vec<String> = config
        .lines()
        .filter(|line| key_value(line).is_none_or(|(key, _)| key != wanted))
        .map(str::to_owned)
        .collect();
    lines.push(format!("{wanted} = {value}"));
    lines.join("\n") + "\n"
}

/// What of it is in none of the volumes.
fn losses(name: &str, config: &str, folder: &Path, volumes: &[PathBuf]) -> Vec<Loss> {
    let inside = |path: &Path| volumes.iter().any(|volume| path.starts_with(volume));
    let mut found = Vec::new();
    if !inside(folder) {
        found.push(Loss {
            name: format!("{name}:config"),
            what: format!(
                "container {name}: its configuration in {} is outside the unit; the other node needs its own",
                folder.display()
            ),
        });
    }
    let root = setting(config, "lxc.rootfs.path").unwrap_or_default();
    // `overlayfs:/below:/above`: what is written is above.
    let root = root.rsplit(':').next().unwrap_or_default();
    if !inside(Path::new(root)) {
        found.push(Loss {
            name: format!("{name}:rootfs"),
            what: format!(
                "container {name}: its root {root} is in none of the unit's volumes and stays here; put a \
                 volume there"
            ),
        });
    }
    for (key, value) in config.lines().filter_map(key_value) {
        let source = value.split_whitespace().next().unwrap_or_default();
        let path = Path::new(source);
        // What is below these is made by the kernel on each node.
        let own = ["/sys", "/proc", "/dev"].iter().any(|own| path.starts_with(own));
        if key == "lxc.mount.entry" && path.is_absolute() && !own && !inside(path) {
            found.push(Loss {
                name: format!("{name}:bind:{source}"),
                what: format!(
                    "container {name}: it mounts {source} of this host, outside the unit: what is there stays \
                     here; the other node needs its own"
                ),
            });
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = "# made by hand\nlxc.include = /usr/share/lxc/config/common.conf\n\
        lxc.start.auto = 0\nlxc.start.auto=1\nlxc.rootfs.path = dir:/tank/app/rootfs\n\
        lxc.mount.entry = /srv/x srv none bind 0 0\nlxc.mount.entry = /dev/fuse dev/fuse none bind 0 0\n";

    #[test]
    fn the_last_setting_counts_and_is_given_back() {
        assert_eq!(setting(CONFIG, AUTO), Some("1"));
        let off = with_setting(CONFIG, AUTO, "0");
        assert_eq!(setting(&off, AUTO), Some("0"));
        assert_eq!(off.matches(AUTO).count(), 1);
        assert!(off.starts_with("# made by hand\n") && off.contains("lxc.rootfs.path = dir:"));
        assert_eq!(setting(&with_setting(&off, AUTO, "1"), AUTO), Some("1"));
    }

    #[test]
    fn what_is_outside_the_volumes_is_a_loss() {
        let names = |folder: &str, volume: &str| -> Vec<String> {
            let volumes = [PathBuf::from(volume)];
            let found = losses("c", CONFIG, Path::new(folder), &volumes);
            found.into_iter().map(|loss| loss.name).collect()
        };
        assert_eq!(names("/tank/app", "/tank/app"), ["c:bind:/srv/x"]);
        assert_eq!(
            names("/var/lib/lxc/c", "/tank/other"),
            ["c:config", "c:rootfs", "c:bind:/srv/x"]
        );
    }
}
