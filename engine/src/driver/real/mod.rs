//! The drivers with the programs themselves. Run inside a guest of the lab by `tests/tests/lab_drivers.rs`: as root,
//! with podman, docker, runc, crun, LXC and systemd, a pool `tank`, and the image `lab-db`.

mod containers;
mod oci_lxc;
mod systemd;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use flocker_core::ids::UnitId;
use flocker_core::record::Program;

use super::{Driver, Places};

/// What is run in a guest takes long there.
const LONG: Duration = Duration::from_secs(120);

/// How long one may take to stop.
const STOP: Duration = Duration::from_secs(30);

const UNIT: UnitId = UnitId(0x2f1e);

/// Runs a shell's line, which has to succeed; what it said.
fn shell(line: &str) -> String {
    let output = Command::new("sh").args(["-c", line]).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{line}: {}: {out} {err}", output.status);
    out
}

/// The same, whatever comes of it.
fn try_shell(line: &str) -> bool {
    Command::new("sh").args(["-c", line]).output().unwrap().status.success()
}

fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < LONG, "{what}: not within {} s", LONG.as_secs());
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// A node's state, and volumes.
struct Here {
    dir: tempfile::TempDir,
    datasets: Vec<String>,
}

impl Here {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), datasets: Vec::new() }
    }

    fn places(&self) -> Places {
        Places { state: self.dir.path().join("state"), ..Places::default() }
    }

    fn driver(&self, program: &Program) -> Box<dyn Driver> {
        super::driver(&self.places(), UNIT, program).unwrap()
    }

    /// A new dataset; its mountpoint.
    fn volume(&mut self, name: &str) -> PathBuf {
        let dataset = format!("tank/{name}");
        let _ = try_shell(&format!("zfs destroy -r {dataset}"));
        shell(&format!("zfs create {dataset}"));
        self.datasets.push(dataset);
        Path::new("/tank").join(name)
    }

    /// The same volume at another path.
    fn rename(&mut self, from: &str, to: &str) {
        let _ = try_shell(&format!("zfs destroy -r tank/{to}"));
        shell(&format!("zfs rename tank/{from} tank/{to}"));
        self.datasets.retain(|dataset| *dataset != format!("tank/{from}"));
        self.datasets.push(format!("tank/{to}"));
    }

    fn taken(&self) -> PathBuf {
        self.dir.path().join("state/taken").join(format!("{UNIT}.json"))
    }
}

impl Drop for Here {
    fn drop(&mut self) {
        for dataset in &self.datasets {
            let _ = try_shell(&format!("zfs destroy -r {dataset}"));
        }
    }
}

/// Prints how long a step took.
fn timed<T>(what: &str, does: impl FnOnce() -> T) -> T {
    let begun = Instant::now();
    let done = does();
    println!("  {what:<40} {:>6} ms", begun.elapsed().as_millis());
    done
}
