//! Units of systemd, by `systemctl`.
//!
//! Owns: what a unit of systemd is asked for, in the unit's order. Leaves to others: its file, which the other
//! node's operator has put there: a unit may run anything as root, so it does not travel.
//!
//! - **Taken** means disabled, and the units that would start it (its sockets, timers, paths) disabled and
//!   stopped. Units that are `static` cannot be disabled: something else starts them, or nobody; it is said.
//! - **Runs** counts every state but `inactive` and `failed`, and what its cgroup holds.
//! - A restart by systemd itself (`Restart=`) would start it behind our back: `prepare` and `take` put a drop-in
//!   into `/run/systemd/system/UNIT.d/` that turns it off; being in `/run`, it is put there again at each start.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use flocker_core::ids::UnitId;
use flocker_core::record::WorkloadKind;
use flocker_core::{Failure, FailureCode, Remedy};
use serde::{Deserialize, Serialize};

use super::cgroup::{self, Cgroup};
use super::taken::{Before, Taken};
use super::{
    ASK_LIMIT, Described, Driver, Ended, FREEZE_LIMIT, KILL_LIMIT, Loss, Part, Places, command,
    start_in_order,
};

/// A start: `TimeoutStartSec=` of the unit ends it, 90 s where nobody said otherwise.
const START_LIMIT: Duration = Duration::from_secs(600);

/// Pause between two looks whether one has ended.
const WATCH_EVERY: Duration = Duration::from_millis(500);

/// Where drop-ins of this boot are.
const DROP_INS: &str = "/run/systemd/system";

/// The name of ours; `zz` makes it the last word.
const DROP_IN: &str = "zz-flocker-repl.conf";

/// What is in it.
const DROP_IN_TEXT: &str =
    "# flocker-repl: only it starts this unit while it is protected.\n[Service]\nRestart=no\n";

/// Where the folders of `StateDirectory=` are.
const STATE_ROOT: &str = "/var/lib";

/// How one was before it was taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Was {
    /// `enabled`, `static`, …; of [`systemctl is-enabled`](https://www.freedesktop.org/software/systemd/man/systemctl.html).
    file: String,
    active: bool,
}

/// What systemd says of a unit.
#[derive(Debug, Clone, Default)]
struct Shown(BTreeMap<String, String>);

impl Shown {
    fn parse(text: &str) -> Self {
        let pairs = text.lines().filter_map(|line| line.split_once('='));
        Self(pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
    }

    fn get(&self, name: &str) -> &str {
        self.0.get(name).map(String::as_str).unwrap_or_default()
    }

    fn words(&self, name: &str) -> Vec<&str> {
        self.get(name).split_whitespace().collect()
    }

    fn runs(&self) -> bool {
        !matches!(self.get("ActiveState"), "inactive" | "failed" | "")
    }

    fn cgroup(&self) -> Option<Cgroup> {
        let path = self.get("ControlGroup");
        (path.len() > 1).then(|| Cgroup::at(path))
    }
}

/// The units of one unit of ours.
#[derive(Debug)]
pub(super) struct Systemd {
    units: Vec<String>,
    taken: Taken,
}

const PROPERTIES: &str = "LoadState,ActiveState,SubState,UnitFileState,ControlGroup,MainPID,Result,\
                          ExecMainCode,ExecMainStatus,TriggeredBy,StateDirectory,Restart,Type,\
                          TimeoutStopUSec,NeedDaemonReload,FreezerState";

impl Systemd {
    pub(super) fn new(places: &Places, unit: UnitId, units: &[String]) -> Self {
        Self {
            units: units.to_vec(),
            taken: Taken::new(&places.state, unit, WorkloadKind::Systemd),
        }
    }

    fn show(&self, unit: &str) -> Result<Shown, Failure> {
        let property = format!("--property={PROPERTIES}");
        let args = ["show", "--no-pager", &property, "--", unit];
        Ok(Shown::parse(&command::done("systemctl", &args, ASK_LIMIT)?.stdout))
    }

    /// One that has to be here.
    fn shown(&self, unit: &str) -> Result<Shown, Failure> {
        let shown = self.show(unit)?;
        match shown.get("LoadState") {
            "loaded" => Ok(shown),
            "masked" => Err(Failure::refused(
                FailureCode::Unsupported,
                format!("{unit} is masked here; `systemctl unmask {unit}` lets it be started"),
            )),
            "not-found" | "" => Err(Failure::refused(
                FailureCode::NotFound,
                format!(
                    "systemd has no unit {unit} here; install it first, as it is on the other node: \
                     units do not travel"
                ),
            )),
            other => Err(Failure::refused(
                FailureCode::Workload,
                format!("systemd cannot load {unit} here ({other}); see `systemctl status {unit}`"),
            )),
        }
    }

    fn failure(&self, what: &str, error: &io::Error) -> Failure {
        Failure::new(Remedy::Operator, FailureCode::Workload, format!("{what}: {error}"))
    }

    fn systemctl(&self, args: &[&str], limit: Duration) -> Result<(), Failure> {
        command::done("systemctl", args, limit).map(drop)
    }

    /// Writes it down first, once, then turns it off.
    fn take_one(&self, unit: &str, shown: &Shown, before: &mut Before<Was>) -> Result<(), Failure> {
        let file = shown.get("UnitFileState").to_owned();
        let starts = matches!(file.as_str(), "enabled" | "enabled-runtime" | "linked" | "alias");
        let triggers = self.units.iter().all(|own| own != unit);
        if !before.0.contains_key(unit) && (starts || (triggers && shown.runs())) {
            let was = Was { file: file.clone(), active: shown.runs() };
            before.0.insert(unit.to_owned(), was);
            self.taken.store(before)?;
        }
        if file == "enabled-runtime" {
            self.systemctl(&["disable", "--quiet", "--runtime", "--", unit], ASK_LIMIT)?;
        } else if starts {
            self.systemctl(&["disable", "--quiet", "--", unit], ASK_LIMIT)?;
        }
        if triggers && shown.runs() {
            self.systemctl(&["stop", "--", unit], START_LIMIT)?;
        }
        Ok(())
    }

    /// Turns `Restart=` off, for this boot.
    fn hold(&self, unit: &str, shown: &Shown) -> Result<(), Failure> {
        if !unit.ends_with(".service") || shown.get("Restart") == "no" {
            return Ok(());
        }
        let folder = Path::new(DROP_INS).join(format!("{unit}.d"));
        fs::create_dir_all(&folder)
            .and_then(|()| fs::write(folder.join(DROP_IN), DROP_IN_TEXT))
            .map_err(|error| self.failure(&format!("turning off Restart= of {unit}"), &error))?;
        self.systemctl(&["daemon-reload"], START_LIMIT)
    }

    fn let_go(&self, unit: &str) -> Result<bool, Failure> {
        let file = Path::new(DROP_INS).join(format!("{unit}.d")).join(DROP_IN);
        match fs::remove_file(&file) {
            Ok(()) => {
                if let Some(folder) = file.parent() {
                    // Somebody else's are in it: then it stays.
                    let _ = fs::remove_dir(folder);
                }
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(self.failure(&format!("giving Restart= of {unit} back"), &error)),
        }
    }

    fn one_runs(&self, unit: &str, shown: &Shown) -> Result<bool, Failure> {
        if shown.runs() {
            return Ok(true);
        }
        let Some(cgroup) = shown.cgroup() else { return Ok(false) };
        cgroup.populated().map_err(|error| self.failure(&format!("whether {unit} runs"), &error))
    }

    fn start_one(&self, unit: &str) -> Result<(), Failure> {
        let shown = self.shown(unit)?;
        if self.one_runs(unit, &shown)? {
            return self.thaw_one(unit, &shown);
        }
        self.hold(unit, &shown)?;
        let started = self.systemctl(&["start", "--", unit], START_LIMIT);
        let after = self.show(unit)?;
        let Some(failure) = started.err().or_else(|| ended_badly(unit, &after)) else {
            return Ok(());
        };
        let nothing = never_ran(&after) && !self.one_runs(unit, &after)?;
        let code = if nothing { FailureCode::NotStarted } else { FailureCode::Workload };
        Err(Failure { code, ..failure })
    }

    /// `limit`: how long it may take to stop by itself; `None`: it is killed at once.
    fn end(&self, unit: &str, limit: Option<Duration>) -> Result<(), Failure> {
        let shown = self.show(unit)?;
        let cgroups: Vec<Cgroup> = shown.cgroup().into_iter().collect();
        self.thaw_one(unit, &shown)?;
        if let Some(limit) = limit
            && shown.runs()
        {
            self.systemctl(&["stop", "--no-block", "--", unit], ASK_LIMIT)?;
            self.wait_until_inactive(unit, limit)?;
        }
        if self.one_runs(unit, &self.show(unit)?)? {
            // A stop that it does not survive, so that systemd knows that it is to stay down.
            let _ = self.systemctl(&["kill", "--signal=SIGKILL", "--", unit], ASK_LIMIT);
            self.systemctl(&["stop", "--no-block", "--", unit], ASK_LIMIT)?;
            for cgroup in &cgroups {
                cgroup.kill().map_err(|error| self.failure(&format!("killing {unit}"), &error))?;
            }
            self.wait_until_inactive(unit, KILL_LIMIT)?;
        }
        cgroup::wait_until_empty(&cgroups, KILL_LIMIT).map_err(|error| {
            Failure::new(
                Remedy::Operator,
                FailureCode::TimedOut,
                format!("{unit} was stopped, but {error}"),
            )
        })
    }

    fn wait_until_inactive(&self, unit: &str, limit: Duration) -> Result<(), Failure> {
        let until = Instant::now() + limit;
        while self.show(unit)?.runs() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    fn thaw_one(&self, unit: &str, shown: &Shown) -> Result<(), Failure> {
        let Some(cgroup) = shown.cgroup() else { return Ok(()) };
        if shown.get("FreezerState") == "frozen" {
            self.systemctl(&["thaw", "--", unit], ASK_LIMIT)?;
        }
        if cgroup.is_frozen() {
            cgroup.thaw().map_err(|error| self.failure(&format!("thawing {unit}"), &error))?;
        }
        Ok(())
    }

    /// What starts one of them when something happens: sockets, timers, paths.
    fn triggers(&self, shown: &[Shown]) -> BTreeSet<String> {
        let all = shown.iter().flat_map(|shown| shown.words("TriggeredBy"));
        all.filter(|name| self.units.iter().all(|own| own != name)).map(str::to_owned).collect()
    }

    fn cannot_checkpoint(&self) -> Failure {
        Failure::refused(
            FailureCode::Unsupported,
            format!(
                "systemd can neither write {} down nor go on from what was written; move it by a stop, or \
                 run it in a container of podman",
                self.units.join(", ")
            ),
        )
    }
}

impl Driver for Systemd {
    fn take(&self) -> Result<(), Failure> {
        cgroup::check().map_err(|error| self.failure("looking for cgroups", &error))?;
        let mut before = self.taken.load()?;
        let mut all = Vec::new();
        for unit in &self.units {
            let shown = self.shown(unit)?;
            self.take_one(unit, &shown, &mut before)?;
            self.hold(unit, &shown)?;
            all.push(shown);
        }
        for trigger in self.triggers(&all) {
            let shown = self.show(&trigger)?;
            self.take_one(&trigger, &shown, &mut before)?;
        }
        Ok(())
    }

    fn release(&self) -> Result<(), Failure> {
        let before: Before<Was> = self.taken.load()?;
        let mut changed = false;
        for unit in &self.units {
            changed |= self.let_go(unit)?;
        }
        if changed {
            self.systemctl(&["daemon-reload"], START_LIMIT)?;
        }
        for (unit, was) in &before.0 {
            if self.show(unit)?.get("LoadState") != "loaded" {
                continue;
            }
            match was.file.as_str() {
                "enabled-runtime" => {
                    self.systemctl(&["enable", "--quiet", "--runtime", "--", unit], ASK_LIMIT)?;
                }
                "enabled" | "linked" | "alias" => {
                    self.systemctl(&["enable", "--quiet", "--", unit], ASK_LIMIT)?;
                }
                _ => {}
            }
            if was.active && self.units.iter().all(|own| own != unit) {
                self.systemctl(&["start", "--", unit], START_LIMIT)?;
            }
        }
        self.taken.store(&Before::<Was>::default())
    }

    fn describe(&self, volumes: &[PathBuf]) -> Result<Described, Failure> {
        let mut losses = Vec::new();
        for unit in &self.units {
            let shown = self.shown(unit)?;
            for name in shown.words("StateDirectory") {
                let path = Path::new(STATE_ROOT).join(name);
                // A folder that is a link to a volume, or a volume mounted there.
                let real = path.canonicalize().unwrap_or_else(|_| path.clone());
                if volumes.iter().any(|volume| real.starts_with(volume)) {
                    continue;
                }
                losses.push(Loss {
                    name: format!("{unit}:state:{}", path.display()),
                    what: format!(
                        "{unit}: its StateDirectory= {} is in none of the unit's volumes and stays here; \
                         put a volume there",
                        path.display()
                    ),
                });
            }
        }
        Ok(Described { description: String::new(), losses })
    }

    fn prepare(&self, _description: &str, _volumes: &[PathBuf]) -> Result<(), Failure> {
        self.take()
    }

    fn runs(&self) -> Result<bool, Failure> {
        for unit in &self.units {
            if self.one_runs(unit, &self.show(unit)?)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn start(&self, _volumes: &[PathBuf]) -> Result<(), Failure> {
        start_in_order(&self.units, |unit| self.start_one(unit))
    }

    fn stop(&self, limit: Duration) -> Result<(), Failure> {
        self.units.iter().rev().try_for_each(|unit| self.end(unit, Some(limit)))
    }

    fn kill(&self) -> Result<(), Failure> {
        self.units.iter().rev().try_for_each(|unit| self.end(unit, None))
    }

    fn freeze(&self) -> Result<(), Failure> {
        let done = self.units.iter().try_for_each(|unit| {
            let shown = self.show(unit)?;
            match shown.cgroup() {
                Some(cgroup) if shown.runs() => cgroup
                    .freeze(FREEZE_LIMIT)
                    .map_err(|error| self.failure(&format!("freezing {unit}"), &error)),
                _ => Ok(()),
            }
        });
        // All of them or none.
        if done.is_err() {
            self.thaw()?;
        }
        done
    }

    fn thaw(&self) -> Result<(), Failure> {
        self.units.iter().try_for_each(|unit| self.thaw_one(unit, &self.show(unit)?))
    }

    fn wait(&self) -> Result<Ended, Failure> {
        loop {
            let mut all_ended = true;
            let mut last = Ended { status: "nothing of it runs".to_owned(), success: false };
            for unit in &self.units {
                let shown = self.show(unit)?;
                if self.one_runs(unit, &shown)? {
                    all_ended = false;
                    continue;
                }
                last = ended(unit, &shown);
                if !last.success {
                    return Ok(last);
                }
            }
            if all_ended {
                return Ok(last);
            }
            std::thread::sleep(WATCH_EVERY);
        }
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

/// A start that systemd calls one, of something that has failed already.
fn ended_badly(unit: &str, shown: &Shown) -> Option<Failure> {
    (shown.get("ActiveState") == "failed").then(|| {
        let how = ended(unit, shown).status;
        let message = format!("{how}; see `journalctl -u {unit}`");
        Failure::new(Remedy::Operator, FailureCode::Workload, message)
    })
}

/// Whether its program never ran: there is no status of it, or one that systemd gives what could not be run
/// (systemd.exec(5), "Process Exit Codes").
fn never_ran(shown: &Shown) -> bool {
    let status = shown.get("ExecMainStatus").parse::<u32>().unwrap_or(0);
    let own_codes = shown.get("ExecMainCode") == "1" && (200..=243).contains(&status);
    own_codes || shown.get("ExecMainCode") == "0" || shown.get("Result") == "resources"
}

fn ended(unit: &str, shown: &Shown) -> Ended {
    let result = shown.get("Result");
    let status = shown.get("ExecMainStatus");
    // 2 and 3 are CLD_KILLED and CLD_DUMPED.
    let how = if matches!(shown.get("ExecMainCode"), "2" | "3") { "signal" } else { "exit status" };
    Ended { status: format!("{unit}: {result}, {how} {status}"), success: result == "success" }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> Shown {
        Shown::parse(text)
    }

    #[test]
    fn a_unit_runs_in_every_state_but_two() {
        for (state, runs) in [
            ("active", true),
            ("activating", true),
            ("deactivating", true),
            ("reloading", true),
            ("inactive", false),
            ("failed", false),
        ] {
            assert_eq!(shown(&format!("ActiveState={state}\n")).runs(), runs, "{state}");
        }
        assert!(!shown("").runs());
    }

    #[test]
    fn an_end_is_told_by_its_result() {
        let good = shown("Result=success\nExecMainCode=1\nExecMainStatus=0\n");
        assert_eq!(
            ended("x.service", &good),
            Ended { status: "x.service: success, exit status 0".into(), success: true }
        );
        let killed =
            ended("x.service", &shown("Result=signal\nExecMainCode=2\nExecMainStatus=9\n"));
        assert_eq!(
            (killed.success, killed.status.as_str()),
            (false, "x.service: signal, signal 9")
        );
    }

    #[test]
    fn what_triggers_a_unit_is_not_one_of_its_own() {
        let units = ["x.service".to_owned(), "x.socket".to_owned()];
        let systemd = Systemd::new(&Places::default(), UnitId(0), &units);
        let all = [shown("TriggeredBy=x.socket y.timer\nStateDirectory=a b\n")];
        assert_eq!(systemd.triggers(&all), BTreeSet::from(["y.timer".to_owned()]));
        assert_eq!(all[0].words("StateDirectory"), ["a", "b"]);
    }
}
