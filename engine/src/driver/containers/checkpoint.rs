//! The memory of a unit's containers, by CRIU through podman's API.
//!
//! Owns: where podman writes and reads it, and what goes with it. Leaves to others: an archive of the runtime's.
//!
//! Podman's own way to another node is an archive (`--export`, `--import`): all of the memory is written three
//! times and read twice, and the container's definition, with the paths of *that* node, is in it. Instead:
//!
//! - Podman writes a checkpoint into a folder beside the container's definition. There we put a symbolic link to
//!   the unit's state volume, so that CRIU writes each page once, where it travels from.
//! - The other node goes on *in place* in the container that [`super::prepare`] has made from our description: its
//!   mounts are already where the volumes are there, and nothing of the definition comes from the archive.
//!   For that podman needs the runtime's own definition (`config.json`), which it writes when a container is made
//!   ready to start; see [`Containers::make_restorable`].
//! - What processes may have open in the writable layer (sockets, lock files in /run) goes along as podman's own
//!   `rootfs-diff.tar`, made from the layer; what is in /dev/shm as `devshm-checkpoint.tar`.
//!
//! ```text
//! FOLDER/NAME/checkpoint/            CRIU's images          ← userdata/checkpoint
//!             pre-checkpoint/        those of a pre-dump    ← userdata/pre-checkpoint
//!             rootfs-diff.tar, deleted.files, devshm-checkpoint.tar
//!             origin                 the id of the container that it was
//! ```
//!
//! Whoever writes the state volume decides what runs after a restore, with whatever rights CRIU gives back: a
//! peer whose checkpoints are restored here is root here.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use flocker_core::{Failure, FailureCode, Remedy};
use serde_json::{Value, json};

use super::api::{BULK_LIMIT, Inspected};
use super::http::{Payload, escaped};
use super::{Containers, KILL_LIMIT, cgroups};
use crate::driver::{Part, command, criu};

/// Podman's name for it, in the container's folder and in ours.
const CHECKPOINT: &str = "checkpoint";
/// The same of a pre-dump.
const PRE_CHECKPOINT: &str = "pre-checkpoint";
const ROOTFS_DIFF: &str = "rootfs-diff.tar";
const DELETED: &str = "deleted.files";
const DEV_SHM: &str = "devshm-checkpoint.tar";
const ORIGIN: &str = "origin";

/// A look whether this host has CRIU.
const CRIU_LIMIT: Duration = Duration::from_secs(60);

/// How long a container that was only made ready may take to be put away again.
const PUT_AWAY_LIMIT: Duration = Duration::from_secs(10);

impl Containers {
    /// Whether all of them can be written down here, and go on here.
    ///
    /// # Errors
    /// Why not.
    pub(super) fn checkpoint_allowed(&self) -> Result<(), Failure> {
        let no = |why: String| Err(Failure::refused(FailureCode::Unsupported, why));
        if !self.api.is_podman() {
            return no(format!(
                "docker cannot go on elsewhere from what it wrote down of {}: its checkpoints are \
                 experimental, and know neither established connections nor another node; move by a \
                 stop, or use podman",
                self.names.join(", ")
            ));
        }
        for name in &self.names {
            let inspected = self.api.inspect_fully(name)?.ok_or_else(|| self.missing(name))?;
            if let Some(why) = hindrance(&inspected) {
                return no(format!(
                    "container {name} cannot go on elsewhere with its memory: {why}"
                ));
            }
        }
        let output = command::run("criu", &["check"], CRIU_LIMIT)?;
        if output.status.success() {
            return Ok(());
        }
        no(format!("CRIU does not work on this host: {}", output.words()))
    }

    /// Has podman write the runtime's own definition of a container that never ran, by making it ready to start
    /// and putting it away again. No process of it runs meanwhile.
    pub(super) fn make_restorable(&self, name: &str) -> Result<(), Failure> {
        let Some(libpod) = self.api.libpod(name)? else { return Err(self.missing(name)) };
        if userdata(name, &libpod)?.join("config.json").exists() {
            return Ok(());
        }
        let what = format!("making container {name} ready to go on from its memory");
        let path = format!("/containers/{}/init", escaped(name));
        self.api.act_libpod(&what, &path, Payload::Nothing, PUT_AWAY_LIMIT * 6)?;
        self.api.stop(name, PUT_AWAY_LIMIT)
    }

    pub(super) fn write_pre_dump(&self, folder: &Path) -> Result<(), Failure> {
        for name in self.names.iter().rev() {
            let Some(libpod) = self.api.libpod(name)? else { return Err(self.missing(name)) };
            let bundle = userdata(name, &libpod)?;
            let here = folder.join(name);
            fresh(&here.join(CHECKPOINT)).map_err(|error| self.no_folder(name, &error))?;
            fresh(&here.join(PRE_CHECKPOINT))
                .and_then(|()| link(&bundle.join(PRE_CHECKPOINT), &here.join(PRE_CHECKPOINT)))
                .map_err(|error| self.no_folder(name, &error))?;
            self.checkpoint_one(name, &bundle, "preCheckpoint=true&leaveRunning=true")?;
        }
        Ok(())
    }

    pub(super) fn write_checkpoint(
        &self,
        folder: &Path,
        pre_dumped: bool,
    ) -> Result<Vec<Part>, Failure> {
        let mut parts = Vec::new();
        for name in self.names.iter().rev() {
            let inspected = self.api.inspect_fully(name)?.ok_or_else(|| self.missing(name))?;
            let cgroups = cgroups(&inspected.id);
            self.thaw_one(name, &inspected, &cgroups)?;
            let libpod = inspected.libpod.as_ref().unwrap_or(&Value::Null);
            let bundle = userdata(name, libpod)?;
            let here = folder.join(name);
            let with_previous =
                pre_dumped && here.join(PRE_CHECKPOINT).join("inventory.img").exists();
            let made = fresh(&here.join(CHECKPOINT)).and_then(|()| {
                link(&bundle.join(CHECKPOINT), &here.join(CHECKPOINT))?;
                if with_previous { Ok(()) } else { remove(&here.join(PRE_CHECKPOINT)) }
            });
            made.map_err(|error| self.no_folder(name, &error))?;
            let query = format!("withPrevious={with_previous}&leaveRunning=false");
            parts.extend(self.checkpoint_one(name, &bundle, &query)?);
            self.wait_until_gone(name, &cgroups)?;
            let rest = keep_rest(&inspected, libpod, &bundle, &here);
            rest.map_err(|error| self.no_folder(name, &error))?;
            clear(&bundle);
        }
        Ok(parts)
    }

    /// Has podman write one down; its own words and CRIU's where that fails.
    fn checkpoint_one(&self, name: &str, bundle: &Path, query: &str) -> Result<Vec<Part>, Failure> {
        let what = format!("writing down container {name}");
        let path = format!(
            "/containers/{}/checkpoint?{query}&keep=true&tcpEstablished=true&fileLocks=true\
             &printStats=true&export=false",
            escaped(name)
        );
        let report = self
            .api
            .act_libpod(&what, &path, Payload::Nothing, BULK_LIMIT)
            .map_err(|failure| with_errors(failure, &bundle.join("dump.log")))?;
        Ok(parts(&report))
    }

    pub(super) fn go_on_from(
        &self,
        folder: &Path,
        volumes: &[PathBuf],
    ) -> Result<Vec<Part>, Failure> {
        let mut parts = Vec::new();
        for (index, name) in self.names.iter().enumerate() {
            parts.extend(self.restore_one(name, &folder.join(name), volumes).map_err(
                |failure| {
                    let nothing = index == 0 || failure.code != FailureCode::NotStarted;
                    let code = if nothing { failure.code } else { FailureCode::Workload };
                    Failure { code, ..failure }
                },
            )?);
        }
        Ok(parts)
    }

    fn restore_one(
        &self,
        name: &str,
        here: &Path,
        volumes: &[PathBuf],
    ) -> Result<Vec<Part>, Failure> {
        let inspected = self.api.inspect_fully(name)?.ok_or_else(|| self.missing(name))?;
        if self.one_runs(name, &inspected)? {
            return Ok(Vec::new());
        }
        self.check_mounts(&inspected, volumes)?;
        self.wait_until_put_away(name)?;
        self.make_restorable(name)?;
        let libpod = inspected.libpod.as_ref().unwrap_or(&Value::Null);
        let bundle = userdata(name, libpod)?;
        let same = fs::read_to_string(here.join(ORIGIN)).is_ok_and(|id| id == inspected.id);
        lay_out(&bundle, here, same).map_err(|error| self.no_folder(name, &error))?;
        let what = format!("going on with container {name}");
        let path = format!(
            "/containers/{}/restore?tcpEstablished=true&fileLocks=true&printStats=true&keep=true",
            escaped(name)
        );
        let report = match self.api.act_libpod(&what, &path, Payload::Nothing, BULK_LIMIT) {
            Ok(report) => report,
            Err(failure) => {
                let failure = with_errors(failure, &bundle.join("restore.log"));
                let after = self.inspect(name)?;
                if self.one_runs(name, &after)? {
                    return Err(failure);
                }
                clear(&bundle);
                return Err(Failure { code: FailureCode::NotStarted, ..failure });
            }
        };
        clear(&bundle);
        Ok(parts(&report))
    }

    /// What was killed is put away by a program of podman's own; until then it is not gone on with.
    fn wait_until_put_away(&self, name: &str) -> Result<(), Failure> {
        let until = Instant::now() + KILL_LIMIT;
        loop {
            let inspected = self.inspect(name)?;
            let status = inspected.docker["State"]["Status"].as_str().unwrap_or_default();
            if !matches!(status, "stopped" | "stopping") || Instant::now() > until {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn no_folder(&self, name: &str, error: &io::Error) -> Failure {
        let full = error.kind() == io::ErrorKind::StorageFull;
        let code = if full { FailureCode::NoSpace } else { FailureCode::Workload };
        Failure::new(
            Remedy::Operator,
            code,
            format!("where the memory of container {name} is kept: {error}"),
        )
    }
}

/// Why one cannot go on elsewhere, if so.
pub(super) fn hindrance(inspected: &Inspected) -> Option<String> {
    let host = &inspected.docker["HostConfig"];
    let mode = host["NetworkMode"].as_str().unwrap_or_default();
    if !matches!(mode, "host" | "none") {
        return Some(format!(
            "it is in the network {mode}, behind this host's address translation, which does not know its \
             connections on the other node; make it with `--network host`"
        ));
    }
    if host["Privileged"] == true {
        return Some("it is privileged; make it without".to_owned());
    }
    if host["Devices"].as_array().is_some_and(|devices| !devices.is_empty()) {
        return Some("it uses devices, whose state CRIU does not know".to_owned());
    }
    let pod = inspected.libpod.as_ref().and_then(|libpod| libpod["Pod"].as_str());
    pod.filter(|pod| !pod.is_empty()).map(|_| "it is in a pod".to_owned())
}

/// Where podman keeps what belongs to a container.
fn userdata(name: &str, libpod: &Value) -> Result<PathBuf, Failure> {
    libpod["StaticDir"].as_str().filter(|path| path.starts_with('/')).map(PathBuf::from).ok_or_else(
        || {
            Failure::refused(
                FailureCode::Unsupported,
                format!("podman does not say where it keeps container {name}"),
            )
        },
    )
}

/// What podman and CRIU say that it took.
fn parts(report: &Value) -> Vec<Part> {
    let statistics = &report["criu_statistics"];
    let known = [
        ("freezing_time", "criu freeze"),
        ("frozen_time", "criu frozen"),
        ("memdump_time", "criu read memory"),
        ("memwrite_time", "criu write memory"),
        ("forking_time", "criu fork"),
        ("restore_time", "criu restore"),
    ];
    let known = known.map(|(key, name)| (&statistics[key], name));
    let runtime = ["runtime_checkpoint_duration", "runtime_restore_duration"];
    let runtime = runtime.map(|key| (&report[key], "runtime"));
    let all = known.into_iter().chain(runtime);
    let all = all.filter_map(|(micros, name)| Some((micros.as_u64().filter(|n| *n > 0)?, name)));
    all.map(|(micros, name)| Part { name, ms: micros.div_ceil(1000) }).collect()
}

fn with_errors(failure: Failure, log: &Path) -> Failure {
    let errors = criu::errors(log);
    if errors.is_empty() {
        return failure;
    }
    let message = format!("{}; CRIU says: {errors} ({})", failure.message, log.display());
    Failure { message, ..failure }
}

/// Whatever it is, and if it is: a link itself, never what it leads to.
fn remove(path: &Path) -> io::Result<()> {
    let done = match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match done {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

/// An empty folder.
fn fresh(path: &Path) -> io::Result<()> {
    remove(path)?;
    fs::create_dir_all(path)
}

fn link(at: &Path, to: &Path) -> io::Result<()> {
    remove(at)?;
    symlink(to, at)
}

/// What goes along with the images.
fn keep_rest(inspected: &Inspected, libpod: &Value, bundle: &Path, here: &Path) -> io::Result<()> {
    remove(&here.join(DEV_SHM))?;
    match fs::copy(bundle.join(DEV_SHM), here.join(DEV_SHM)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let upper = libpod["GraphDriver"]["Data"]["UpperDir"].as_str().map(PathBuf::from);
    let Some(upper) = upper else {
        return Err(io::Error::other(
            "podman's storage is not overlay: what the container wrote into its own layer is unknown",
        ));
    };
    let mut deleted = BTreeSet::new();
    let mut archive = tar::Builder::new(File::create(here.join(ROOTFS_DIFF))?);
    archive.follow_symlinks(false);
    let mut skipped = super::targets(&inspected.docker);
    // Its own on each node.
    skipped.extend(
        ["/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/dev", "/proc", "/sys"]
            .map(PathBuf::from),
    );
    add_layer(&mut archive, &upper, Path::new(""), &skipped, &mut deleted)?;
    archive.into_inner()?.sync_all()?;
    fs::write(here.join(DELETED), json!(deleted).to_string())?;
    fs::write(here.join(ORIGIN), &inspected.id)
}

/// One folder of an overlay's upper layer: what is there is changed, a device 0:0 is what was deleted.
pub(super) fn add_layer(
    archive: &mut tar::Builder<File>,
    upper: &Path,
    below: &Path,
    skipped: &[PathBuf],
    deleted: &mut BTreeSet<String>,
) -> io::Result<()> {
    for entry in fs::read_dir(upper.join(below))? {
        let entry = entry?;
        let name = below.join(entry.file_name());
        let inside = Path::new("/").join(&name);
        if skipped.contains(&inside) {
            continue;
        }
        let found = entry.metadata()?;
        let kind = found.file_type();
        if kind.is_char_device() && found.rdev() == 0 {
            deleted.extend(inside.to_str().map(str::to_owned));
        } else if kind.is_dir() {
            archive.append_dir(&name, entry.path())?;
            add_layer(archive, upper, &name, skipped, deleted)?;
        } else if kind.is_file() || kind.is_symlink() {
            archive.append_path_with_name(entry.path(), &name)?;
        }
        // Sockets and pipes: CRIU makes them anew.
    }
    Ok(())
}

/// Puts everything where podman looks for it. `same`: the container that was written down: its layer is there.
fn lay_out(bundle: &Path, here: &Path, same: bool) -> io::Result<()> {
    if !here.join(CHECKPOINT).join("inventory.img").exists() {
        return Err(io::Error::other(format!(
            "{} holds no whole checkpoint",
            here.join(CHECKPOINT).display()
        )));
    }
    clear(bundle);
    let files: &[&str] =
        if same { &[CHECKPOINT, DEV_SHM] } else { &[CHECKPOINT, DEV_SHM, ROOTFS_DIFF, DELETED] };
    for name in files {
        if here.join(name).exists() {
            link(&bundle.join(name), &here.join(name))?;
        }
    }
    Ok(())
}

/// Takes it away from there again; what cannot be taken away is in nobody's way.
fn clear(bundle: &Path) {
    for name in [CHECKPOINT, PRE_CHECKPOINT, DEV_SHM, ROOTFS_DIFF, DELETED, "network.status"] {
        if let Err(error) = remove(&bundle.join(name)) {
            tracing::warn!(path = %bundle.join(name).display(), %error, "a checkpoint's file stays");
        }
    }
}
