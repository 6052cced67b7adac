//! What a container wrote into its own layer, which does not move.
//!
//! Owns: looking for it, and which of it matters. Leaves to others: what moves with a container's memory
//! ([`super::checkpoint`]).

use std::fs;
use std::path::{Path, PathBuf};

use flocker_core::Failure;

use super::Containers;
use super::api::Inspected;
use crate::driver::Loss;

/// Most paths that are looked at: whoever writes more has more to say than can be read.
const PATHS: usize = 10_000;

impl Containers {
    /// Everything that is in it. By the runtime's word this may take minutes, since it compares all of the image
    /// with all of the container; where it says where the layer is, that is looked through instead.
    pub(super) fn layer_of(
        &self,
        name: &str,
        inspected: &Inspected,
    ) -> Result<Vec<PathBuf>, Failure> {
        let upper = inspected.docker["GraphDriver"]["Data"]["UpperDir"].as_str().map(Path::new);
        if let Some(upper) = upper.filter(|path| path.is_dir()) {
            let mut found = Vec::new();
            collect(upper, Path::new(""), &mut found);
            return Ok(found);
        }
        let changes = self.api.changes(name)?;
        let changes = changes.as_array().map(Vec::as_slice).unwrap_or_default();
        Ok(changes.iter().filter_map(|change| change["Path"].as_str().map(PathBuf::from)).collect())
    }
}

fn collect(upper: &Path, below: &Path, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(upper.join(below)) else { return };
    for entry in entries.flatten() {
        if found.len() >= PATHS {
            return;
        }
        let name = below.join(entry.file_name());
        found.push(Path::new("/").join(&name));
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            collect(upper, &name, found);
        }
    }
}

/// Folders in which everybody writes what nobody needs elsewhere.
const NOISE: [&str; 9] =
    ["/run", "/tmp", "/var/run", "/var/tmp", "/dev", "/proc", "/sys", "/var/cache", "/root/.cache"];

/// Files that the runtime writes itself.
const RUNTIMES_OWN: [&str; 5] =
    ["/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/etc/mtab", "/.dockerenv"];

/// Most paths that are named.
const NAMED: usize = 5;

/// What a container wrote into its writable layer, if that is anything that matters.
pub(super) fn layer(name: &str, changes: &[PathBuf], mounted: &[PathBuf]) -> Option<Loss> {
    let all: Vec<&Path> = changes.iter().map(PathBuf::as_path).collect();
    let is_noise = |path: &Path| {
        NOISE.iter().any(|noise| path.starts_with(noise))
            || RUNTIMES_OWN.iter().any(|own| path == Path::new(own))
            || mounted.iter().any(|mount| path.starts_with(mount) || mount.starts_with(path))
    };
    // A folder is changed by whatever changes in it: only the ends of the branches say anything.
    let is_parent = |path: &Path| {
        let noise = NOISE.iter().chain(&RUNTIMES_OWN).map(Path::new);
        noise.chain(all.iter().copied()).any(|other| other != path && other.starts_with(path))
    };
    let mut left: Vec<&Path> =
        all.iter().copied().filter(|path| !is_noise(path) && !is_parent(path)).collect();
    left.sort();
    let sample: Vec<String> = left.iter().take(NAMED).map(|p| p.display().to_string()).collect();
    let more = left.len().saturating_sub(NAMED);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    (!left.is_empty()).then(|| Loss {
        name: format!("{name}:layer"),
        what: format!(
            "container {name}: {}{more} lie in its writable layer and stay here; mount a folder of \
             the unit's volume there, or make an image of it",
            sample.join(", ")
        ),
    })
}
